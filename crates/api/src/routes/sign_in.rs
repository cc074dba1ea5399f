//! Sign-in of people with a browser.
//!
//! ```text
//! browser --GET /auth/sign-in--> here --303--> issuer ... --303--> GET /auth/callback
//!         <--flow cookie--                                         code for token, roles by groups
//!                                                                  <--cookie, 303 to where it began
//! ```
//!
//! The cookie says nothing; what it stands for is in the store, where it can be
//! ended.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, header};
use axum::response::{AppendHeaders, IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use cloister_oidc::Begun;
use cloister_session::SessionError;
use cloister_store::{SIGN_IN, Store};
use cloister_types::ErrorCode;
use cloister_types::access::{SignIn, SignInList};
use cloister_types::wire::ErrorBody;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::keys::act;
use crate::Api;
use crate::auth::unix_now;
use crate::body::query;
use crate::error::{Answer, ApiError};
use crate::principal::{Origin, Principal};
use crate::shown::{COOKIE, cookie};
use crate::sso::{Browser, Sso};

/// The cookie of a sign-in under way.
const FLOW: &str = "__Host-cloister-flow";
/// Seconds that one may take.
const FLOW_LIFE: u64 = 600;
/// Sign-ins about which the provider is asked at once; made-up codes must not have
/// it shut us out.
static ENDING: Semaphore = Semaphore::const_new(8);
/// Bytes of the place that is returned to.
const LONGEST_PLACE: usize = 1024;

fn absent() -> ApiError {
    ApiError::new(ErrorCode::NotFound, "there is no sign-in here: auth.oidc is not set, or not for browsers")
}

fn browser(api: &Api) -> Answer<(&Sso, &Browser)> {
    api.sso.as_ref().and_then(|sso| Some((sso, sso.browser.as_ref()?))).ok_or_else(absent)
}

/// A cookie for this host alone, that no page can read and no other site's form
/// brings along.
fn set(name: &str, value: &str, seconds: u64) -> (HeaderName, String) {
    (header::SET_COOKIE, format!("{name}={value}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={seconds}"))
}

/// Sends a browser somewhere, with cookies.
fn send<const N: usize>(place: &str, cookies: [(HeaderName, String); N]) -> Response {
    let headers =
        [(header::LOCATION, place), (header::CACHE_CONTROL, "no-store"), (header::REFERRER_POLICY, "no-referrer")];
    (StatusCode::SEE_OTHER, headers, AppendHeaders(cookies)).into_response()
}

/// What a sign-in under way is remembered by, in its cookie.
#[derive(Serialize, Deserialize)]
struct Flowing {
    begun: Begun,
    to: String,
    /// Unix seconds.
    at: f64,
}

#[derive(Deserialize)]
pub(super) struct Beginning {
    return_to: Option<String>,
}

/// Is it a place of this origin?
fn is_here(place: &str) -> bool {
    place.len() <= LONGEST_PLACE
        && place.starts_with('/')
        && !place[1..].starts_with(['/', '\\'])
        && place.bytes().all(|byte| byte.is_ascii_graphic())
}

/// What callers must know to sign in (RFC 9728).
#[utoipa::path(
    get, path = "/.well-known/oauth-protected-resource", tag = "system", security(()),
    responses((status = 200, body = Object), (status = 404, body = ErrorBody))
)]
pub(super) async fn metadata(State(api): State<Arc<Api>>) -> Answer<Json<Value>> {
    let sso = api.sso.as_ref().ok_or_else(absent)?;
    let url = sso.public_url.as_ref().ok_or_else(absent)?;
    let mut said = json!({
        "resource": url,
        "authorization_servers": [sso.issuer.url()],
        "bearer_methods_supported": ["header"],
        "resource_name": format!("Cloister, tenant {}", api.tenant),
    });
    if let Some(browser) = &sso.browser {
        said["scopes_supported"] = browser.flow.scope.split(' ').collect();
    }
    if let Some(client) = &sso.cli_client_id {
        said["cloister_cli_client_id"] = client.as_str().into();
    }
    Ok(Json(said))
}

/// Sign in with a browser: sends it to the identity provider.
#[utoipa::path(
    get, path = "/auth/sign-in", tag = "sign-in", security(()),
    params(("return_to" = Option<String>, Query, description = "Path on this server to return to; / if left out")),
    responses((status = 303, description = "To the identity provider"), (status = 404, body = ErrorBody))
)]
pub(super) async fn begin(
    State(api): State<Arc<Api>>,
    asked: Result<Query<Beginning>, QueryRejection>,
) -> Answer<Response> {
    let (_, browser) = browser(&api)?;
    let to = query(asked)?.return_to.unwrap_or_else(|| "/".into());
    if !is_here(&to) {
        return Err(ApiError::invalid("return_to is a path on this server, such as /"));
    }
    let (begun, place) = browser.flow.begin().await.map_err(|why| unavailable(&why.to_string()))?;
    let flowing = Flowing { begun, to, at: unix_now() };
    let text = serde_json::to_vec(&flowing).map_err(|error| ApiError::invalid(error.to_string()))?;
    let text = URL_SAFE_NO_PAD.encode(text);
    let sealed = format!("{text}.{}", api.sessions.store().seal(&text));
    Ok(send(&place, [set(FLOW, &sealed, FLOW_LIFE)]))
}

fn unavailable(why: &str) -> ApiError {
    tracing::warn!(why, "nobody can sign in");
    ApiError::new(ErrorCode::Unavailable, "the identity provider does not answer, or not as it should")
}

/// The sign-in that a browser has under way.
fn flowing(api: &Api, headers: &HeaderMap, now: f64) -> Option<Flowing> {
    let sealed = cookie(headers, FLOW)?;
    let (text, seal) = sealed.split_once('.')?;
    if !api.sessions.store().is_sealed(text, seal) {
        return None;
    }
    let flowing: Flowing = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
    (0.0..FLOW_LIFE as f64).contains(&(now - flowing.at)).then_some(flowing)
}

#[derive(Deserialize)]
pub(super) struct Returned {
    state: Option<String>,
    code: Option<String>,
    iss: Option<String>,
    error: Option<String>,
}

/// Where the identity provider sends browsers back to.
#[utoipa::path(
    get, path = "/auth/callback", tag = "sign-in", security(()),
    params(("code" = Option<String>, Query), ("state" = Option<String>, Query)),
    responses((status = 303, description = "Signed in"), (status = 401, body = ErrorBody), (status = 403, body = ErrorBody))
)]
pub(super) async fn callback(
    State(api): State<Arc<Api>>,
    origin: Option<Extension<Origin>>,
    headers: HeaderMap,
    returned: Result<Query<Returned>, QueryRejection>,
) -> Answer<Response> {
    browser(&api)?;
    match sign_in(&api, &headers, query(returned)?).await {
        Ok((to, secret, seconds)) => Ok(send(&to, [set(COOKIE, &secret, seconds), set(FLOW, "", 0)])),
        Err(error) => {
            api.failures.note(&api, origin.and_then(|origin| origin.address), "not_signed_in").await;
            let mut response = error.into_response();
            let (name, value) = set(FLOW, "", 0);
            if let Ok(value) = value.try_into() {
                response.headers_mut().append(name, value);
            }
            Ok(response)
        }
    }
}

/// Where to go on, the cookie, and how long it lasts.
async fn sign_in(api: &Api, headers: &HeaderMap, returned: Returned) -> Answer<(String, String, u64)> {
    let (sso, Browser { flow, seconds }) = browser(api)?;
    let now = unix_now();
    let refused = |message: &str| ApiError::new(ErrorCode::Unauthorized, message);
    let again = "this sign-in was not begun here, or took too long; begin again at /auth/sign-in";
    let under_way = flowing(api, headers, now).ok_or_else(|| refused(again))?;
    if returned.state.as_deref() != Some(under_way.begun.state.as_str()) {
        return Err(refused(again));
    }
    // Whoever mixes issuers up does not get our code (RFC 9207).
    if returned.iss.is_some_and(|issuer| issuer != sso.issuer.url().to_string()) {
        return Err(refused("another identity provider has answered"));
    }
    let code = returned.code.filter(|_| returned.error.is_none());
    let code = code.ok_or_else(|| refused("the identity provider has signed nobody in"))?;
    let Ok(_turn) = ENDING.try_acquire() else {
        return Err(ApiError::new(ErrorCode::Unavailable, "too many sign in at once; try again"));
    };
    let claims = flow.end(&under_way.begun, &code, now).await.map_err(|why| {
        tracing::info!(%why, "nobody is signed in");
        refused("the identity provider does not confirm this sign-in")
    })?;
    let principal = sso.principal(&claims).map_err(|why| {
        tracing::info!(%why, "nobody is signed in");
        refused("the identity provider does not say who this is")
    })?;
    let roles = principal.all_roles();
    if roles.is_empty() {
        let message = format!("{} is known, but in no group that has a role here", principal.caller);
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    let (id, secret) = Store::fresh_sign_in().map_err(SessionError::from)?;
    act(api, "signed_in", format!("sign_in:{id}"), &principal.caller).await?;
    let who = SignIn { id, caller: principal.caller, roles, created_at: now, expires_at: now + *seconds as f64 };
    api.sessions.store().add_sign_in(&secret, who).await.map_err(SessionError::from)?;
    Ok((under_way.to, secret, *seconds))
}

/// Sign out.
#[utoipa::path(
    post, path = "/auth/sign-out", tag = "sign-in",
    responses((status = 204), (status = 404, description = "This caller has not signed in", body = ErrorBody))
)]
pub(super) async fn end_own(
    State(api): State<Arc<Api>>,
    Extension(principal): Extension<Principal>,
) -> Answer<impl IntoResponse> {
    let own = principal.by.iter().map(|(id, _)| id).find(|id| id.starts_with(SIGN_IN));
    let none = || ApiError::new(ErrorCode::NotFound, "this caller has not signed in with a browser");
    finish(&api, own.ok_or_else(none)?, &principal).await?;
    Ok((StatusCode::NO_CONTENT, AppendHeaders([set(COOKIE, "", 0)])))
}

/// List who is signed in.
#[utoipa::path(get, path = "/v1/sign-ins", tag = "sign-in", responses((status = 200, body = SignInList)))]
pub(super) async fn list(State(api): State<Arc<Api>>) -> Answer<Json<SignInList>> {
    let data = api.sessions.store().sign_ins(unix_now()).await.map_err(SessionError::from)?;
    Ok(Json(SignInList { data }))
}

/// Sign somebody out.
#[utoipa::path(
    delete, path = "/v1/sign-ins/{id}", tag = "sign-in", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
pub(super) async fn end(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Extension(principal): Extension<Principal>,
) -> Answer<StatusCode> {
    finish(&api, &id, &principal).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn finish(api: &Api, id: &str, principal: &Principal) -> Answer<()> {
    // What ends something is done even if it cannot be written down.
    let written = act(api, "signed_out", format!("sign_in:{id}"), &principal.caller).await;
    let ended = api.sessions.store().end_sign_in(id, unix_now()).await.map_err(SessionError::from)?;
    if let Err(error) = written {
        tracing::error!(?error, id, "somebody was signed out without a record");
    }
    if ended { Ok(()) } else { Err(ApiError::new(ErrorCode::NotFound, "nobody is signed in by this id")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_sent_anywhere_else() {
        for (place, expected) in [
            ("/", true),
            ("/sessions?x=1#y", true),
            ("", false),
            ("//evil.test", false),
            ("/\\evil.test", false),
            ("https://evil.test", false),
            ("/a\r\nset-cookie: x", false),
            ("/a b", false),
        ] {
            assert_eq!(is_here(place), expected, "{place:?}");
        }
    }
}
