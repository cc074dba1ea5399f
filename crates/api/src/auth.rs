//! Who calls, and whether they may. Everything passes here, unknown paths
//! included, so that nothing can be learned without a key.

use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cloister_types::access::Role;
use cloister_types::key::ApiKey;
use cloister_types::scope::Scope;
use cloister_types::{ErrorCode, SessionId};
use percent_encoding::percent_decode_str;

use crate::Api;
use crate::access::{Needs, needs};
use crate::body::drain;
use crate::error::{Answer, ApiError};
use crate::principal::{Origin, Principal, Reach};
use crate::quotas::Left;
use crate::shown::{Presented, TOKEN, decide, known, look};

/// The one path on which a key may be in the URL, where a browser's `EventSource`
/// has no other place for it.
const EVENTS: &str = "/v1/sessions/{id}/responses/{rid}/events";

/// Hears those alone whose address may call, before anything else is asked.
pub(crate) async fn network(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    match request.extensions().get::<Origin>() {
        Some(origin) if !origin.allowed => {
            let address = origin.address;
            api.failures.note(&api, address, "address_not_allowed").await;
            drain(request.into_body()).await;
            let mut response = ApiError::new(ErrorCode::Forbidden, "this address may not call").into_response();
            // What others could have is not kept.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            response
        }
        _ => next.run(request).await,
    }
}

pub(crate) async fn guard(State(api): State<Arc<Api>>, request: Request, next: Next) -> Response {
    let (mut parts, body) = request.into_parts();
    let admitted = admit(&api, &Asked::of(&parts)).await;
    match admitted {
        Ok(Some((principal, left))) => {
            parts.extensions.insert(principal);
            let mut response = next.run(Request::from_parts(parts, body)).await;
            if let Some(left) = left {
                left.put(response.headers_mut());
            }
            response
        }
        Ok(None) => next.run(Request::from_parts(parts, body)).await,
        Err(error) => {
            drain(body).await;
            let mut response = error.into_response();
            let place = api.sso.as_ref().and_then(|sso| sso.metadata_url());
            let says = |place| HeaderValue::try_from(format!("Bearer resource_metadata=\"{place}\"")).ok();
            if let Some(says) = place.and_then(says)
                && let Some(header) = response.headers_mut().get_mut(header::WWW_AUTHENTICATE)
            {
                *header = says;
            }
            response
        }
    }
}

/// What of a request decides whether it is let in.
struct Asked<'a> {
    method: &'a Method,
    /// The path as the router writes it; none where it serves nothing.
    path: Option<&'a str>,
    /// The path as it was sent.
    text: &'a str,
    /// A key in the URL.
    in_url: Option<&'a str>,
    headers: &'a HeaderMap,
    origin: Option<&'a Origin>,
}

impl<'a> Asked<'a> {
    fn of(parts: &'a Parts) -> Self {
        let path = parts.extensions.get::<MatchedPath>().map(MatchedPath::as_str);
        let key = |query: &'a str| query.split('&').find_map(|pair| pair.strip_prefix("token="));
        Self {
            method: &parts.method,
            path,
            text: parts.uri.path(),
            in_url: parts.uri.query().and_then(key).filter(|_| path == Some(EVENTS)),
            headers: &parts.headers,
            origin: parts.extensions.get(),
        }
    }
}

/// Who calls, if the operation wants to know, and how often they still may; an
/// error if they may not.
async fn admit(api: &Api, asked: &Asked<'_>) -> Answer<Option<(Principal, Option<Left>)>> {
    let address = asked.origin.and_then(|origin| origin.address);
    let path = asked.path;
    let needed = path.and_then(|path| needs(asked.method, path));
    if needed == Some(Needs::Nothing) {
        return Ok(None);
    }
    let principal = match authenticate(api, asked).await {
        Ok(principal) => principal,
        Err(error) => {
            api.failures.note(api, address, "unauthorized").await;
            return Err(error);
        }
    };
    // Refusals count as well.
    let left = api.quotas.take(&principal.caller)?;
    same_site(&principal, asked)?;
    // Names of files are bytes; everything else is text, or nothing.
    if !asked.text.contains("/files/") && percent_decode_str(asked.text).decode_utf8().is_err() {
        return Err(ApiError::new(ErrorCode::NotFound, "there is nothing at this path"));
    }
    match needed {
        Some(Needs::Right(right)) if !principal.may(right) => return Err(not_with(&principal)),
        Some(_) => {}
        // A row is missing: a mistake of ours, which opens nothing.
        None if path.is_some_and(|path| crate::routes::serves(asked.method, path)) => {
            return Err(not_with(&principal));
        }
        // Known, and about to be told that there is nothing, or no such method.
        None => {}
    }
    within(api, &principal.reach, asked.method, path.unwrap_or_default(), asked.text).await?;
    Ok(Some((principal, left)))
}

fn not_with(principal: &Principal) -> ApiError {
    let roles: Vec<&str> = principal.all_roles().into_iter().map(Role::as_str).collect();
    let are = if roles.is_empty() { "nothing here".into() } else { roles.join(" and ") };
    ApiError::new(ErrorCode::Forbidden, format!("a caller that is {are} may not do this"))
}

/// Whatever changes something comes from somebody who means it. A browser brings
/// cookies and client certificates along by itself: then it has to be a page of
/// this origin; with a cookie, one that could read who the caller is.
fn same_site(principal: &Principal, asked: &Asked<'_>) -> Answer<()> {
    let head = |name: &str| asked.headers.get(name).map(HeaderValue::as_bytes);
    let brought = [header::AUTHORIZATION.as_str(), TOKEN].iter().any(|name| asked.headers.contains_key(*name));
    let ambient = !brought || principal.csrf.is_some();
    if !ambient || matches!(*asked.method, Method::GET | Method::HEAD | Method::OPTIONS) {
        return Ok(());
    }
    if head("sec-fetch-site").is_some_and(|site| site != b"same-origin" && site != b"none") {
        return Err(ApiError::new(ErrorCode::Forbidden, "this was asked for by a page of another site"));
    }
    if principal.csrf.as_ref().is_some_and(|token| head("x-csrf-token") != Some(token.as_bytes())) {
        let message = "whoever is signed in with a browser sends X-CSRF-Token with this, as GET /v1/me says it";
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    Ok(())
}

/// Is the request about what the caller reaches? Other sessions do not exist for
/// them.
async fn within(api: &Api, reach: &Reach, method: &Method, path: &str, text: &str) -> Answer<()> {
    if reach == &Reach::default() || matches!(path, "/openapi.json" | "/v1/me" | "") {
        return Ok(());
    }
    let absent = || ApiError::new(ErrorCode::NotFound, "no such session");
    if !path.starts_with("/v1/sessions/{id}") {
        // With a ceiling, sessions are made and listed; handlers keep to it.
        let of_sessions = path == "/v1/sessions" && matches!(*method, Method::GET | Method::HEAD | Method::POST);
        if reach.session.is_none() && of_sessions {
            return Ok(());
        }
        return Err(ApiError::new(ErrorCode::Forbidden, "this key reaches its sessions and nothing else"));
    }
    let named = text.strip_prefix("/v1/sessions/").and_then(|rest| rest.split('/').next()).unwrap_or_default();
    let named = percent_decode_str(named).decode_utf8_lossy().parse::<SessionId>().map_err(|_| absent())?;
    if reach.session.as_ref().is_some_and(|only| *only != named) {
        return Err(absent());
    }
    if reach.has_ceiling() {
        let session = api.sessions.get(&named).await?;
        if !holds(reach, &session) {
            return Err(absent());
        }
    }
    Ok(())
}

/// Is a session within a ceiling?
pub(crate) fn holds(reach: &Reach, session: &cloister_types::wire::SessionRecord) -> bool {
    let scope = |access| Scope::parse(access).ok();
    let files = reach.file_access.as_ref().is_none_or(|ceiling| {
        scope(&session.file_access).zip(scope(ceiling)).is_some_and(|(scope, ceiling)| scope.is_within(&ceiling))
    });
    // What a connection reaches is not said by the policy.
    let egress = |ceiling| session.connections.is_empty() && session.egress.is_within(ceiling);
    files && reach.egress.as_ref().is_none_or(egress)
}

pub(crate) fn unix_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

async fn authenticate(api: &Api, asked: &Asked<'_>) -> Answer<Principal> {
    // Without one, somebody has forgotten to say where the call came in: nobody is known.
    let Some(origin) = asked.origin else {
        return Err(ApiError::new(ErrorCode::Unauthorized, "this listener has no policy"));
    };
    let mut presented = Presented::of(asked.headers, origin.certified.clone());
    if let (None, Some(text)) = (&presented.bearer, asked.in_url) {
        // URLs are kept by browsers and proxies: what is in one shows one session,
        // for a while.
        let key = text.parse::<ApiKey>().ok();
        let principal = match &key {
            Some(key) => known(api, key).await?,
            None => None,
        };
        if !principal.is_some_and(|principal| {
            principal.reach.session.is_some() && principal.is_token && principal.all_roles() == [Role::Viewer]
        }) {
            return Err(ApiError::new(
                ErrorCode::Unauthorized,
                "only a viewer's token for one session may be in a URL",
            ));
        }
        presented.bearer = Some(text.to_owned());
    }
    let shown = look(api, &origin.require, presented).await?;
    decide(&origin.require, &shown).map(|(principal, _)| principal)
}
