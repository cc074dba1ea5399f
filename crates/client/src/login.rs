//! Sign-in of whoever types commands, with the tenant's identity provider: by a
//! browser on this machine that comes back to a port of ours (RFC 8252), or by a
//! code that is typed in on another one (RFC 8628).

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use url::Url;

use crate::{ClientError, Result};

/// Where a server says who vouches for its callers (RFC 9728).
const METADATA: &str = "/.well-known/oauth-protected-resource";
/// What is asked for: who it is, and to be able to go on without being asked.
const SCOPE: &str = "openid";
const OFFLINE: &str = "offline_access";
const DEVICE_GRANT: &str = "urn:ietf:params:oauth:grant-type:device_code";
/// How long somebody may take to sign in.
const PATIENCE: Duration = Duration::from_secs(600);
/// Bytes of what a browser asks for.
const MAX_HEAD: usize = 16 << 10;

/// Where to sign in to one server, to be kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The server, as it calls itself.
    resource: String,
    client_id: String,
    authorization_endpoint: Option<String>,
    token_endpoint: String,
    device_authorization_endpoint: Option<String>,
    scope: String,
}

/// A way to sign in to one server.
#[derive(Debug, Clone)]
pub struct Login {
    /// Where.
    pub place: Place,
    http: reqwest::Client,
}

/// What somebody has who is signed in.
#[derive(Clone, Serialize, Deserialize)]
pub struct SignedIn {
    /// Sent as an API key is.
    pub token: String,
    /// What the next one is had with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refresh_token: Option<String>,
    /// Unix seconds.
    pub expires_at: f64,
}

#[derive(Deserialize)]
struct Tokens {
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    id_token: Option<String>,
    #[serde(default)]
    refresh_token: Option<String>,
    #[serde(default)]
    expires_in: Option<f64>,
}

/// A code to be typed in on another machine.
#[derive(Clone, Deserialize)]
pub struct Device {
    device_code: String,
    /// The code.
    pub user_code: String,
    /// Where.
    pub verification_uri: String,
    /// The same with the code in it.
    #[serde(default)]
    pub verification_uri_complete: Option<String>,
    expires_in: f64,
    #[serde(default)]
    interval: Option<u64>,
}

fn malformed(what: impl ToString) -> ClientError {
    ClientError::Malformed(what.to_string())
}

/// A place to which something may be sent that matters: not in the clear, but on
/// this machine.
fn safe(place: &str) -> Result<&str> {
    let local = |url: &Url| matches!(url.host_str(), Some("localhost" | "127.0.0.1" | "[::1]"));
    let fits = Url::parse(place).is_ok_and(|url| url.scheme() == "https" || (url.scheme() == "http" && local(&url)));
    if fits { Ok(place) } else { Err(malformed(format!("{place} is not https"))) }
}

fn now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn random() -> Result<String> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(malformed)?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

impl SignedIn {
    fn of(tokens: Tokens, before: Option<String>) -> Result<Self> {
        let is_jwt = |token: &String| token.split('.').count() == 3;
        // What is no signed token can be verified by its issuer alone.
        let token = tokens.access_token.filter(is_jwt).or(tokens.id_token);
        let token = token.ok_or_else(|| malformed("the identity provider gives no signed token"))?;
        // What is kept ends by what it says itself.
        let said = token.split('.').nth(1).and_then(|claims| URL_SAFE_NO_PAD.decode(claims).ok());
        let said = said.and_then(|claims| serde_json::from_slice::<Value>(&claims).ok()?["exp"].as_f64());
        let expires_at = said.unwrap_or_else(|| now() + tokens.expires_in.unwrap_or(300.0));
        Ok(Self { token, refresh_token: tokens.refresh_token.or(before), expires_at })
    }
}

impl Login {
    /// Asks a server, and the identity provider that it names, how to sign in.
    ///
    /// # Errors
    /// The server offers no sign-in to the command line.
    pub async fn discover(base: &str, authority: Option<&[u8]>) -> Result<Self> {
        let client = crate::Client::new(base, "", authority)?;
        let http = client.http.clone();
        let about: Value = client.json(http.get(format!("{}{METADATA}", client.base))).await?;
        // Whoever speaks for another server would get that one's tokens (RFC 9728,
        // section 3.3).
        let resource = about["resource"].as_str().unwrap_or_default().trim_end_matches('/');
        if resource != client.base {
            return Err(malformed(format!("{} says that it is {resource}: sign in there", client.base)));
        }
        let issuer = about["authorization_servers"][0].as_str().unwrap_or_default();
        let client_id = about["cloister_cli_client_id"].as_str();
        let client_id = client_id.ok_or_else(|| malformed("this server offers no sign-in to the command line"))?;
        let place = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let provider: Value = client.json(http.get(safe(&place)?)).await?;
        if provider["issuer"] != issuer {
            return Err(malformed(format!("{issuer} says that it is {}", provider["issuer"])));
        }
        let named = |name: &str| provider[name].as_str().map(str::to_owned);
        let endpoints = ["authorization_endpoint", "token_endpoint", "device_authorization_endpoint"];
        endpoints.iter().filter_map(|name| named(name)).try_for_each(|place| safe(&place).map(drop))?;
        let scopes = about["scopes_supported"].as_array();
        let scopes = scopes.map(|all| all.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "));
        let place = Place {
            resource: resource.to_owned(),
            scope: format!("{} {OFFLINE}", scopes.unwrap_or_else(|| SCOPE.into())),
            client_id: client_id.to_owned(),
            authorization_endpoint: named("authorization_endpoint"),
            token_endpoint: named("token_endpoint").ok_or_else(|| malformed("the provider gives no tokens"))?,
            device_authorization_endpoint: named("device_authorization_endpoint"),
        };
        Ok(Self { place, http })
    }

    /// At a place that was kept.
    ///
    /// # Errors
    /// The certificate is none.
    pub fn at(place: Place, authority: Option<&[u8]>) -> Result<Self> {
        let http = crate::Client::new(&place.resource, "", authority)?.http;
        Ok(Self { place, http })
    }

    /// By a browser: `show` is told where to send it.
    ///
    /// # Errors
    /// Nobody signs in, or not in time.
    pub async fn by_browser(&self, show: impl FnOnce(&str)) -> Result<SignedIn> {
        let listener = TcpListener::bind("127.0.0.1:0").await.map_err(malformed)?;
        let port = listener.local_addr().map_err(malformed)?.port();
        let back = format!("http://127.0.0.1:{port}/callback");
        let (state, verifier) = (random()?, random()?);
        let place = self.place.authorization_endpoint.as_ref();
        let place = place.ok_or_else(|| malformed("the provider has no place to sign in"))?;
        let mut place = Url::parse(place).map_err(malformed)?;
        place
            .query_pairs_mut()
            .append_pair("response_type", "code")
            .append_pair("client_id", &self.place.client_id)
            .append_pair("redirect_uri", &back)
            .append_pair("scope", &self.place.scope)
            .append_pair("prompt", "consent")
            .append_pair("resource", &self.place.resource)
            .append_pair("state", &state)
            .append_pair("code_challenge", &URL_SAFE_NO_PAD.encode(Sha256::digest(&verifier)))
            .append_pair("code_challenge_method", "S256");
        show(place.as_str());
        let code = tokio::time::timeout(PATIENCE, come_back(&listener, &state)).await;
        let code = code.map_err(|_| malformed("nobody has signed in"))??;
        let form = [
            ("grant_type", "authorization_code"),
            ("code", &code),
            ("redirect_uri", &back),
            ("code_verifier", &verifier),
            ("resource", &self.place.resource),
        ];
        match self.ask(&form).await? {
            Ok(tokens) => SignedIn::of(tokens, None),
            Err(error) => Err(malformed(format!("the provider does not take the code: {error}"))),
        }
    }

    /// By a code that is typed in elsewhere: `show` is told which, and where.
    ///
    /// # Errors
    /// Nobody signs in, or not in time.
    pub async fn by_device(&self, show: impl FnOnce(&Device)) -> Result<SignedIn> {
        let place = self.place.device_authorization_endpoint.as_ref();
        let place = place.ok_or_else(|| malformed("the provider has no sign-in by a code"))?;
        let form = [
            ("client_id", self.place.client_id.as_str()),
            ("scope", self.place.scope.as_str()),
            ("resource", &self.place.resource),
        ];
        let (ok, answer) = self.post(place, &form).await?;
        if !ok {
            return Err(malformed(format!("the provider gives no code: {}", answer["error"])));
        }
        let device: Device = serde_json::from_value(answer).map_err(malformed)?;
        show(&device);
        let ends = now() + device.expires_in;
        let mut pause = device.interval.unwrap_or(5).clamp(1, 60);
        while now() < ends {
            tokio::time::sleep(Duration::from_secs(pause)).await;
            let form = [
                ("grant_type", DEVICE_GRANT),
                ("device_code", &device.device_code),
                ("resource", &self.place.resource),
            ];
            match self.ask(&form).await? {
                Ok(tokens) => return SignedIn::of(tokens, None),
                Err(error) if error == "authorization_pending" => {}
                Err(error) if error == "slow_down" => pause += 5,
                Err(error) => return Err(malformed(format!("the provider says: {error}"))),
            }
        }
        Err(malformed("nobody has typed the code in"))
    }

    /// The next token, of somebody who has signed in.
    ///
    /// # Errors
    /// They have to sign in again.
    pub async fn renew(&self, refresh_token: &str) -> Result<SignedIn> {
        let form = [
            ("grant_type", "refresh_token"),
            ("refresh_token", refresh_token),
            ("resource", self.place.resource.as_str()),
        ];
        match self.ask(&form).await? {
            Ok(tokens) => SignedIn::of(tokens, Some(refresh_token.to_owned())),
            Err(error) => Err(malformed(format!("signed in no more ({error}): cloister login"))),
        }
    }

    async fn post(&self, place: &str, form: &[(&str, &str)]) -> Result<(bool, Value)> {
        let body: String = url::form_urlencoded::Serializer::new(String::new()).extend_pairs(form).finish();
        let request = self.http.post(place).header("content-type", "application/x-www-form-urlencoded");
        let request = request.header("accept", "application/json").body(body);
        let unreachable =
            |error: reqwest::Error| ClientError::Unreachable { url: place.to_owned(), cause: error.to_string() };
        let answer = request.send().await.map_err(unreachable)?;
        let ok = answer.status().is_success();
        Ok((ok, answer.json().await.map_err(malformed)?))
    }

    /// Asks for tokens; the provider's word if it gives none.
    async fn ask(&self, form: &[(&str, &str)]) -> Result<std::result::Result<Tokens, String>> {
        let form: Vec<_> = form.iter().copied().chain([("client_id", self.place.client_id.as_str())]).collect();
        let (ok, answer) = self.post(&self.place.token_endpoint, &form).await?;
        if !ok {
            return Ok(Err(answer["error"].as_str().unwrap_or("no reason").to_owned()));
        }
        serde_json::from_value(answer).map(Ok).map_err(malformed)
    }
}

/// Waits for the browser that was sent away with `state`. Its code.
async fn come_back(listener: &TcpListener, state: &str) -> Result<String> {
    loop {
        let (mut socket, _) = listener.accept().await.map_err(malformed)?;
        let mut head = Vec::new();
        while !head.windows(4).any(|window| window == b"\r\n\r\n") && head.len() < MAX_HEAD {
            let mut piece = [0; 2048];
            let read = tokio::time::timeout(Duration::from_secs(5), socket.read(&mut piece)).await;
            match read {
                Ok(Ok(count @ 1..)) => head.extend_from_slice(&piece[..count]),
                _ => break,
            }
        }
        let head = String::from_utf8_lossy(&head);
        let asked = head.split(' ').nth(1).and_then(|target| Url::parse(&format!("http://127.0.0.1{target}")).ok());
        let field = |name: &str| {
            asked.as_ref()?.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
        };
        // Browsers ask for more than they are sent to; so does whoever guesses.
        let ours =
            asked.as_ref().is_some_and(|url| url.path() == "/callback") && field("state").as_deref() == Some(state);
        let said = if ours { "You may close this window.\n" } else { "There is nothing here.\n" };
        let status = if ours { "200 OK" } else { "404 Not Found" };
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-type: text/plain\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{said}",
            said.len()
        );
        let _ = socket.write_all(answer.as_bytes()).await;
        if !ours {
            continue;
        }
        return match (field("code"), field("error")) {
            (Some(code), None) => Ok(code),
            (_, error) => Err(malformed(format!("the provider says: {}", error.unwrap_or_default()))),
        };
    }
}
