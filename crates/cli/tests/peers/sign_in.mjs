// An identity provider that others have written: oidc-provider, with TLS, its own pages to sign in on, and groups by
// account. Tells on standard output where it listens.
import fs from 'node:fs';
import https from 'node:https';
import { pathToFileURL } from 'node:url';

// Its advice to whoever deploys it is not for standard output.
console.info = console.warn = () => {};

const [modules, cert, key, resource] = process.argv.slice(2);
const { default: Provider } = await import(pathToFileURL(`${modules}/node_modules/oidc-provider/lib/index.js`));

const files = { cert: fs.readFileSync(cert), key: fs.readFileSync(key) };
let answer;
const server = https.createServer(files, (request, response) => answer(request, response));
await new Promise((listening) => server.listen(0, '127.0.0.1', listening));
const issuer = `https://127.0.0.1:${server.address().port}`;

const groups = { ada: ['staff'], eve: ['strangers'] };
const provider = new Provider(issuer, {
  clients: [
    {
      client_id: 'cloister',
      client_secret: 'client-secret-canary-0123456789',
      redirect_uris: [`${resource}/auth/callback`],
    },
    {
      client_id: 'command-line',
      application_type: 'native',
      token_endpoint_auth_method: 'none',
      grant_types: ['authorization_code', 'refresh_token', 'urn:ietf:params:oauth:grant-type:device_code'],
      redirect_uris: ['http://127.0.0.1/callback'],
    },
  ],
  claims: { openid: ['sub', 'groups'] },
  conformIdTokenClaims: false,
  pkce: { required: () => true },
  rotateRefreshToken: true,
  ttl: { AccessToken: 34 },
  features: {
    devInteractions: { enabled: true },
    deviceFlow: { enabled: true },
    resourceIndicators: {
      enabled: true,
      useGrantedResource: () => true,
      getResourceServerInfo: () => ({ scope: '', audience: resource, accessTokenFormat: 'jwt' }),
    },
  },
  extraTokenClaims: (_, token) => ({ groups: groups[token.accountId] ?? [] }),
  findAccount: (_, accountId) => ({
    accountId,
    claims: () => ({ sub: accountId, groups: groups[accountId] ?? [] }),
  }),
});
provider.proxy = true;

answer = provider.callback();
console.log(JSON.stringify({ issuer }));
