// An OAuth server that others have written: oidc-provider, with TLS. Tells on standard output where it listens and a
// refresh token to begin with. `/protected` takes its access tokens.
import fs from 'node:fs';
import https from 'node:https';
import { pathToFileURL } from 'node:url';

// Its advice to whoever deploys it is not for standard output.
console.info = console.warn = () => {};

const [modules, cert, key, issuer] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(`${modules}/node_modules/oidc-provider/lib/index.js`));

const client = (client_id, grants) => ({
  client_id,
  client_secret: 'client-secret-canary-0123456789',
  grant_types: grants,
  redirect_uris: grants.includes('authorization_code') ? ['https://app.example.test/back'] : [],
  response_types: grants.includes('authorization_code') ? ['code'] : [],
  token_endpoint_auth_method: 'client_secret_post',
});

const provider = new Provider(issuer, {
  clients: [client('service', ['client_credentials']), client('app', ['authorization_code', 'refresh_token'])],
  features: { clientCredentials: { enabled: true }, devInteractions: { enabled: false } },
  rotateRefreshToken: true,
  ttl: { AccessToken: 4, ClientCredentials: 4 },
  findAccount: (_, accountId) => ({ accountId, claims: () => ({ sub: accountId }) }),
});

const answer = provider.callback();
const server = https.createServer({ cert: fs.readFileSync(cert), key: fs.readFileSync(key) }, async (request, response) => {
  if (request.url !== '/protected') return answer(request, response);
  const token = (request.headers.authorization ?? '').replace('Bearer ', '');
  const found = (await provider.AccessToken.find(token)) ?? (await provider.ClientCredentials.find(token));
  response.writeHead(found ? 200 : 401).end(found ? `for ${found.clientId}` : 'no');
});

const grant = new provider.Grant({ accountId: 'somebody', clientId: 'app' });
grant.addOIDCScope('openid offline_access');
const refresh = new provider.RefreshToken({
  accountId: 'somebody',
  client: await provider.Client.find('app'),
  grantId: await grant.save(),
  gty: 'authorization_code',
  scope: 'openid offline_access',
});
const refresh_token = await refresh.save();
server.listen(0, '127.0.0.1', () => console.log(JSON.stringify({ port: server.address().port, refresh_token })));
