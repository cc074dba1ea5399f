//! Who calls, and whether they may. Everything passes here, unknown paths
//! included, so that nothing can be learned without a key.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cloister_types::access::{Right, Role};
use cloister_types::key::ApiKey;
use cloister_types::{ErrorCode, SessionId};
use percent_encoding::percent_decode_str;

use crate::Api;
use crate::access::{Needs, needs};
use crate::body::drain;
use crate::error::{Answer, ApiError};
use crate::require::Scheme;

/// Where a request comes from, as the listener knows it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The client's address; none where the connection has none.
    pub address: Option<IpAddr>,
    /// Is it one that may call at all?
    pub allowed: bool,
    /// Whose certificate came with the connection.
    pub certified: Option<Certified>,
}

/// Whom a client certificate stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certified {
    /// The name that is kept with what they do.
    pub caller: String,
    /// What they may.
    pub role: Role,
}

/// Who a request is from.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    /// The name that is kept with what they do.
    pub(crate) caller: String,
    /// What they are; of several, each must allow.
    pub(crate) roles: Vec<Role>,
    /// The one session that they reach.
    pub(crate) session: Option<SessionId>,
    /// How they have shown who they are.
    pub(crate) scheme: String,
}

impl Principal {
    pub(crate) fn may(&self, right: Right) -> bool {
        !self.roles.is_empty() && self.roles.iter().all(|role| role.may(right))
    }
}

pub(crate) async fn guard(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    let asked = Asked::of(&request);
    match admit(&api, &asked).await {
        Ok(Some(principal)) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Ok(None) => next.run(request).await,
        Err(error) => {
            drain(request.into_body()).await;
            error.into_response()
        }
    }
}

/// What of a request decides whether it is let in.
struct Asked {
    method: Method,
    /// The path as the router writes it; none where it serves nothing.
    path: Option<String>,
    /// The path as it was sent.
    text: String,
    authorization: Vec<HeaderValue>,
    origin: Option<Origin>,
}

impl Asked {
    fn of(request: &Request) -> Self {
        Self {
            method: request.method().clone(),
            path: request.extensions().get::<MatchedPath>().map(|path| path.as_str().to_owned()),
            text: request.uri().path().to_owned(),
            authorization: request.headers().get_all(header::AUTHORIZATION).iter().cloned().collect(),
            origin: request.extensions().get::<Origin>().cloned(),
        }
    }
}

/// Who calls, if the operation wants to know; an error if they may not.
async fn admit(api: &Api, asked: &Asked) -> Answer<Option<Principal>> {
    let address = asked.origin.as_ref().and_then(|origin| origin.address);
    if asked.origin.as_ref().is_some_and(|origin| !origin.allowed) {
        api.failures.note(api, address, "address_not_allowed").await;
        return Err(ApiError::new(ErrorCode::Forbidden, "this address may not call"));
    }
    let path = asked.path.as_deref();
    let needed = path.and_then(|path| needs(&asked.method, path));
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
    api.quotas.take(&principal.caller)?;
    // Names of files are bytes; everything else is text, or nothing.
    if !asked.text.contains("/files/") && percent_decode_str(&asked.text).decode_utf8().is_err() {
        return Err(ApiError::new(ErrorCode::NotFound, "there is nothing at this path"));
    }
    match needed {
        Some(Needs::Right(right)) if !principal.may(right) => return Err(not_with(&principal)),
        Some(_) => {}
        // A row is missing: a mistake of ours, which opens nothing.
        None if path.is_some_and(|path| crate::routes::serves(&asked.method, path)) => {
            return Err(not_with(&principal));
        }
        // Known, and about to be told that there is nothing, or no such method.
        None => {}
    }
    if let Some(only) = &principal.session {
        within(only, path.unwrap_or_default(), &asked.text)?;
    }
    Ok(Some(principal))
}

fn not_with(principal: &Principal) -> ApiError {
    let roles: Vec<&str> = principal.roles.iter().map(|role| role.as_str()).collect();
    ApiError::new(ErrorCode::Forbidden, format!("a caller that is {} may not do this", roles.join(" and ")))
}

/// Is the request about the one session that the caller reaches? Others do not
/// exist for them.
fn within(only: &SessionId, path: &str, text: &str) -> Answer<()> {
    match path.strip_prefix("/v1/sessions") {
        Some(rest) if rest.starts_with("/{id}") => {
            let named = text.strip_prefix("/v1/sessions/").and_then(|rest| rest.split('/').next()).unwrap_or_default();
            let named = percent_decode_str(named).decode_utf8_lossy();
            if named == only.as_str() { Ok(()) } else { Err(ApiError::new(ErrorCode::NotFound, "no such session")) }
        }
        _ if matches!(path, "/openapi.json" | "/v1/me" | "") => Ok(()),
        _ => Err(ApiError::new(ErrorCode::Forbidden, "this key reaches one session and nothing else")),
    }
}

pub(crate) fn unix_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// Who calls, by the first list of schemes of which all have something to say.
async fn authenticate(api: &Api, asked: &Asked) -> Answer<Principal> {
    let unauthorized = || ApiError::new(ErrorCode::Unauthorized, api.require.words());
    let wanted = |scheme: Scheme| api.require.0.iter().any(|all| all.contains(&scheme));
    let certified = asked.origin.as_ref().and_then(|origin| origin.certified.clone());
    let certified = certified.filter(|_| wanted(Scheme::Mtls)).map(|Certified { caller, role }| Principal {
        caller,
        roles: vec![role],
        session: None,
        scheme: "mtls".into(),
    });
    let bearer = if wanted(Scheme::Bearer) { bearer(api, &asked.authorization).await? } else { None };
    for all in &api.require.0 {
        let shown = all.iter().map(|scheme| match scheme {
            Scheme::Bearer => bearer.clone(),
            Scheme::Mtls => certified.clone(),
        });
        let Some(shown) = shown.collect::<Option<Vec<_>>>() else { continue };
        // What one of them does not allow, none does; the first names the caller.
        let together = shown.into_iter().reduce(|one, other| Principal {
            roles: one.roles.into_iter().chain(other.roles).collect(),
            session: one.session.or(other.session),
            scheme: format!("{}+{}", one.scheme, other.scheme),
            caller: one.caller,
        });
        return together.ok_or_else(unauthorized);
    }
    Err(unauthorized())
}

/// Whose API key came along; none if it is no valid one.
async fn bearer(api: &Api, presented: &[HeaderValue]) -> Answer<Option<Principal>> {
    // Two are one too many: who would say which counts?
    let [value] = presented else { return Ok(None) };
    let Some((scheme, token)) = value.to_str().ok().and_then(|value| value.split_once(' ')) else { return Ok(None) };
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Ok(None);
    }
    let Ok(key) = token.trim().parse::<ApiKey>() else { return Ok(None) };
    if key.tenant() != api.tenant {
        return Ok(None);
    }
    let known = api.sessions.store().known(&key, unix_now()).await.map_err(cloister_session::SessionError::from)?;
    Ok(known.map(|known| Principal {
        caller: known.caller,
        roles: vec![known.role],
        session: known.session,
        scheme: "bearer".into(),
    }))
}
