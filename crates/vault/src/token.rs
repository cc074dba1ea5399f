//! Tokens that are made from credentials: fetched by the vault itself, once for
//! all that wait, and kept before they are used.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_lc_rs::digest::{SHA256, digest};
use bytes::Bytes;
use cloister_dial::Https;
use cloister_types::egress::{ConnectionName, Secret};
use http::{Request, header};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::VaultError;
use crate::desk::Desk;
use crate::key::hex;
use crate::records::{Opened, Refusal};
use crate::scribe::now;
use crate::sign::Signer;

/// How long an issuer may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// A token's life if its issuer does not say.
const LIFE: f64 = 3600.0;
/// A token is made anew so long before it ends, or after 80 % of its life.
const EARLY: f64 = 60.0;
/// Between a failure and the next try.
const PAUSE: f64 = 5.0;
/// Between two tokens that are made because of a 401: another one so soon is
/// about something else than the token.
const FORCED: f64 = 30.0;
/// How long another vault may take to make one.
const LEASE: f64 = 30.0;

/// A token, as kept.
#[derive(Clone, Serialize, Deserialize)]
pub(crate) struct Token {
    pub(crate) value: String,
    /// Unix seconds from which a new one is looked for, and at which it ends.
    renew: f64,
    ends: f64,
}

impl Token {
    fn new(value: String, life: f64, now: f64) -> Self {
        Self { value, renew: now + (life * 0.8).min((life - EARLY).max(life * 0.5)), ends: now + life }
    }
}

/// Where tokens come from.
pub(crate) struct Issuers {
    https: Https,
    /// One at a time makes a token for a credential; the others wait for it.
    making: Mutex<HashMap<(ConnectionName, u64), Turn>>,
    /// The last failures: whoever waits shares them, and nobody asks again at
    /// once.
    failed: Mutex<HashMap<(ConnectionName, u64), (f64, Refusal)>>,
    /// When a token was last made because the other side rejected one.
    forced: Mutex<HashMap<(ConnectionName, u64), f64>>,
}

/// Held by whoever makes a token.
type Turn = Arc<tokio::sync::Mutex<()>>;

/// Why there is no token.
enum NoToken {
    /// The issuer says no.
    Refused(String),
    /// It does not answer, or not in its own words.
    Unavailable(String),
}

impl Issuers {
    pub(crate) fn new(https: Https) -> Self {
        Self { https, making: Mutex::default(), failed: Mutex::default(), forced: Mutex::default() }
    }

    /// The token of a credential that needs one.
    pub(crate) async fn token(&self, desk: &Desk, name: &ConnectionName, opened: Opened) -> Result<String, Refusal> {
        let failed = |error: VaultError| {
            tracing::error!(%error, "the vault's records");
            Refusal::Failed
        };
        let kept =
            |opened: &Opened| opened.token.as_ref().and_then(|token| serde_json::from_slice::<Token>(token).ok());
        let old = kept(&opened);
        if let Some(token) = old.as_ref().filter(|token| token.renew > now()) {
            return Ok(token.value.clone());
        }
        let still_good = || old.as_ref().filter(|token| token.ends > now() + 1.0).map(|token| token.value.clone());
        let turn = {
            let mut making = self.making.lock().unwrap_or_else(PoisonError::into_inner);
            making.retain(|_, turn| Arc::strong_count(turn) > 1);
            making.entry((name.clone(), opened.version)).or_default().clone()
        };
        // Whoever still has a good one does not wait.
        let _turn = match turn.try_lock() {
            Ok(turn) => turn,
            Err(_) => match still_good() {
                Some(value) => return Ok(value),
                None => turn.lock().await,
            },
        };
        if let Some(refusal) = self.recent_failure(name, opened.version) {
            return still_good().ok_or(refusal);
        }
        let began = now();
        loop {
            let (of, version) = (name.clone(), opened.version);
            let (leased, again) = desk
                .run(move |records| {
                    let leased = records.lease(&of, version, now(), LEASE)?;
                    Ok((leased, records.reopen(&of, version)?))
                })
                .await
                .map_err(failed)?;
            // It may have been made while we waited, here or by another vault.
            let Some(again) = again else { return Err(Refusal::NeedsReauth) };
            if let Some(token) = kept(&again).filter(|token| token.renew > now()) {
                if leased {
                    self.give_up(desk, name, opened.version).await;
                }
                return Ok(token.value);
            }
            if leased {
                return self.make(desk, name, &again, still_good()).await;
            }
            if let Some(value) = still_good() {
                return Ok(value);
            }
            if now() - began > LEASE {
                return Err(Refusal::IssuerUnavailable);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn recent_failure(&self, name: &ConnectionName, version: u64) -> Option<Refusal> {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.retain(|_, (at, _)| now() - *at < PAUSE);
        failed.get(&(name.clone(), version)).map(|(_, refusal)| *refusal)
    }

    fn fail(&self, name: &ConnectionName, version: u64, refusal: Refusal) -> Refusal {
        let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        failed.insert((name.clone(), version), (now(), refusal));
        refusal
    }

    /// The token that was rejected, as one that is over: `None` if it is not
    /// the one in use, or is too young to be over.
    pub(crate) fn expire(&self, name: &ConnectionName, opened: &Opened, rejected: &str) -> Option<Vec<u8>> {
        let mut token: Token = serde_json::from_slice(opened.token.as_ref()?).ok()?;
        let hash = hex(digest(&SHA256, token.value.as_bytes()).as_ref());
        if hash != rejected || self.recent_failure(name, opened.version).is_some() {
            return None;
        }
        let mut forced = self.forced.lock().unwrap_or_else(PoisonError::into_inner);
        forced.retain(|_, at| now() - *at < FORCED);
        if forced.insert((name.clone(), opened.version), now()).is_some() {
            return None;
        }
        token.renew = 0.0;
        token.ends = 0.0;
        serde_json::to_vec(&token).ok()
    }

    async fn give_up(&self, desk: &Desk, name: &ConnectionName, version: u64) {
        let name = name.clone();
        let _ = desk.run(move |records| records.release(&name, version)).await;
    }

    async fn make(
        &self,
        desk: &Desk,
        name: &ConnectionName,
        opened: &Opened,
        old: Option<String>,
    ) -> Result<String, Refusal> {
        let secret: Secret = serde_json::from_slice(&opened.secret).map_err(|_| Refusal::Failed)?;
        let (of, version) = (name.clone(), opened.version);
        match tokio::time::timeout(PATIENCE, self.fetch(&secret)).await {
            Ok(Ok((token, renewed))) => {
                let text = Zeroizing::new(serde_json::to_vec(&token).map_err(|_| Refusal::Failed)?);
                // On disk before it is used: an issuer that replaces refresh
                // tokens takes the old one no more.
                let kept =
                    desk.run(move |records| records.keep_token(&of, version, Some(&text), renewed.as_ref())).await;
                kept.map(|()| token.value).map_err(|error| {
                    tracing::error!(%error, "a token could not be kept");
                    Refusal::Failed
                })
            }
            Ok(Err(NoToken::Refused(why))) => {
                tracing::warn!(connection = %name, version, why, "the issuer refuses to make a token");
                // One that is still good is used to its end.
                if let Some(old) = old {
                    self.give_up(desk, name, version).await;
                    self.fail(name, version, Refusal::NeedsReauth);
                    return Ok(old);
                }
                let _ = desk.run(move |records| records.needs_reauth(&of, version)).await;
                Err(self.fail(name, version, Refusal::NeedsReauth))
            }
            other => {
                let why =
                    if let Ok(Err(NoToken::Unavailable(why))) = other { why } else { "no answer in time".to_owned() };
                tracing::warn!(connection = %name, version, why, "the issuer cannot be reached");
                self.give_up(desk, name, version).await;
                let refusal = self.fail(name, version, Refusal::IssuerUnavailable);
                old.ok_or(refusal)
            }
        }
    }

    async fn fetch(&self, secret: &Secret) -> Result<(Token, Option<Secret>), NoToken> {
        let form = |pairs: &[(&str, Option<&str>)]| {
            let pairs = pairs.iter().filter_map(|(name, value)| value.map(|value| format!("{name}={}", escape(value))));
            Zeroizing::new(pairs.collect::<Vec<_>>().join("&"))
        };
        match secret {
            Secret::Oauth2Refresh { token_url, client_id, client_secret, refresh_token, scope } => {
                let body = form(&[
                    ("grant_type", Some("refresh_token")),
                    ("refresh_token", Some(refresh_token)),
                    ("client_id", Some(client_id)),
                    ("client_secret", client_secret.as_deref()),
                    ("scope", scope.as_deref()),
                ]);
                let answer = self.post_form(token_url, &body).await?;
                let renewed = answer["refresh_token"].as_str().filter(|new| new != refresh_token).map(|new| {
                    let mut secret = secret.clone();
                    if let Secret::Oauth2Refresh { refresh_token, .. } = &mut secret {
                        *refresh_token = new.to_owned();
                    }
                    secret
                });
                Ok((access_token(&answer)?, renewed))
            }
            Secret::Oauth2ClientCredentials { token_url, client_id, client_secret, scope, audience } => {
                let body = form(&[
                    ("grant_type", Some("client_credentials")),
                    ("client_id", Some(client_id)),
                    ("client_secret", Some(client_secret)),
                    ("scope", scope.as_deref()),
                    ("audience", audience.as_deref()),
                ]);
                Ok((access_token(&self.post_form(token_url, &body).await?)?, None))
            }
            Secret::Oauth2JwtBearer { token_url, issuer, subject, audience, scope, private_key, key_id } => {
                let now = now() as u64;
                let mut claims = json!({
                    "iss": issuer,
                    "sub": subject.as_ref().unwrap_or(issuer),
                    "aud": audience.as_ref().unwrap_or(token_url),
                    "iat": now,
                    "exp": now + 300,
                });
                if let Some(scope) = scope {
                    claims["scope"] = scope.as_str().into();
                }
                let assertion = signed(private_key, &claims, key_id.as_deref())?;
                let body = form(&[
                    ("grant_type", Some("urn:ietf:params:oauth:grant-type:jwt-bearer")),
                    ("assertion", Some(&assertion)),
                ]);
                Ok((access_token(&self.post_form(token_url, &body).await?)?, None))
            }
            Secret::GithubApp { app_id, installation_id, private_key, api_url, repositories, permissions } => {
                let now = now() as u64;
                // A minute back, as GitHub advises, for clocks that differ.
                let claims = json!({"iss": app_id, "iat": now.saturating_sub(60), "exp": now + 540});
                let assertion = signed(private_key, &claims, None)?;
                let base = api_url.as_deref().unwrap_or("https://api.github.com").trim_end_matches('/');
                let mut wanted = json!({});
                if !repositories.is_empty() {
                    wanted["repositories"] = json!(repositories);
                }
                if !permissions.is_empty() {
                    wanted["permissions"] = json!(permissions);
                }
                let request = Request::builder()
                    .header(header::AUTHORIZATION, format!("Bearer {assertion}"))
                    .header(header::ACCEPT, "application/vnd.github+json")
                    .header(header::CONTENT_TYPE, "application/json");
                let url = format!("{base}/app/installations/{installation_id}/access_tokens");
                let answer = self.post(&url, request, wanted.to_string().into()).await?;
                let value =
                    answer["token"].as_str().ok_or_else(|| NoToken::Unavailable("no token in the answer".into()))?;
                // Such tokens live for an hour, which the answer says as a date.
                Ok((Token::new(value.to_owned(), LIFE, now as f64), None))
            }
            _ => Err(NoToken::Unavailable("a credential that makes no tokens".into())),
        }
    }

    async fn post_form(&self, url: &str, body: &str) -> Result<Value, NoToken> {
        let request = Request::builder()
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(header::ACCEPT, "application/json");
        self.post(url, request, Bytes::copy_from_slice(body.as_bytes())).await
    }

    async fn post(&self, url: &str, request: http::request::Builder, body: Bytes) -> Result<Value, NoToken> {
        let answered = self.https.post(url, request, body).await;
        let (status, value) = answered.map_err(|error| NoToken::Unavailable(error.to_string()))?;
        if status.is_success() {
            return Ok(value);
        }
        let why = value["error"].as_str().unwrap_or_default();
        // What RFC 6749 (5.2) says of a grant or client that is no good. Anything
        // else, a bare 404 for one, may pass.
        let refused = matches!(why, "invalid_grant" | "invalid_client" | "unauthorized_client");
        let said = format!("{status} {why}");
        Err(if refused { NoToken::Refused(said) } else { NoToken::Unavailable(said) })
    }
}

fn signed(private_key: &str, claims: &Value, key_id: Option<&str>) -> Result<String, NoToken> {
    let signer = Signer::from_pem(private_key).map_err(|error| NoToken::Refused(error.to_string()))?;
    signer.jwt(claims, key_id).map_err(|error| NoToken::Refused(error.to_string()))
}

fn access_token(answer: &Value) -> Result<Token, NoToken> {
    let value = answer["access_token"]
        .as_str()
        .filter(|token| !token.is_empty() && token.bytes().all(|byte| (0x21..0x7f).contains(&byte)));
    let value = value.ok_or_else(|| NoToken::Unavailable("no access_token in the answer".into()))?;
    let life = answer["expires_in"].as_f64().filter(|life| *life > 0.0).unwrap_or(LIFE);
    Ok(Token::new(value.to_owned(), life, now()))
}

/// Form encoding.
fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}
