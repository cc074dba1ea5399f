//! Short-lived tokens: for one session, to be handed on; for programs that
//! another issuer vouches for. And why a caller is who they are.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Json};
use cloister_oidc::{Rejected, issuer_of};
use cloister_store::Maker;
use cloister_types::ErrorCode;
use cloister_types::access::{Exchanged, Explain, Explained, ExplainedStep, MadeKey, NewKey, NewToken, Right, Role};
use cloister_types::wire::ErrorBody;

use super::keys::{act, add, fresh, parse};
use super::sessions::session_id;
use crate::Api;
use crate::auth::unix_now;
use crate::body::{json, whole};
use crate::error::{Answer, ApiError};
use crate::principal::{Certified, Origin, Principal};
use crate::require::Scheme;
use crate::shown::{Presented, decide, look};

/// Bytes of a request for an exchange.
const MAX_FORM: usize = 64 << 10;
/// Grant and kinds of tokens, as RFC 8693 calls them.
const EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT: &str = "urn:ietf:params:oauth:token-type:jwt";
const ID_TOKEN: &str = "urn:ietf:params:oauth:token-type:id_token";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";
/// What made a token that was exchanged.
const BY_EXCHANGE: &str = "exchange";

/// Make a token for one session.
///
/// It is sent like an API key and reaches this session alone. A viewer's may also
/// be in the URL of an event stream, as `?token=`, where a browser's `EventSource`
/// has no other place for it. It ends with what it was made with.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/tokens", tag = "sessions", params(("id" = String, Path)), request_body = NewToken,
    responses((status = 201, body = MadeKey), (status = 400, body = ErrorBody), (status = 403, body = ErrorBody), (status = 404, body = ErrorBody))
)]
pub(super) async fn for_session(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Extension(principal): Extension<Principal>,
    body: Body,
) -> Answer<(StatusCode, Json<MadeKey>)> {
    let session = session_id(&id)?;
    let asked: NewToken = parse(json(body).await?)?;
    let new = asked.key(principal.caller.clone(), session.clone()).map_err(ApiError::invalid)?;
    let policies = api.doors.iter().flat_map(|door| &door.require().0);
    if !policies.into_iter().any(|all| all[..] == [Scheme::Bearer]) {
        let message = "a token would open nothing: no listener has a list of bearer alone in its policy";
        return Err(ApiError::new(ErrorCode::Forbidden, message));
    }
    if principal.is_token {
        return Err(ApiError::new(ErrorCode::Forbidden, "a token makes no other"));
    }
    if new.role == Role::Developer && !principal.may(Right::Work) {
        return Err(ApiError::new(ErrorCode::Forbidden, "nobody makes a token that may more than they"));
    }
    api.sessions.get(&session).await?;
    let (token_id, key) = fresh(&api)?;
    act(&api, "token_made", format!("key:{token_id}"), &principal.caller).await?;
    let record = add(&api, (&token_id, &key), new, principal.maker(true)).await?;
    Ok((StatusCode::CREATED, Json(MadeKey { key: key.reveal().to_owned(), record })))
}

/// Exchange a token of another issuer's for one of this tenant's (RFC 8693).
///
/// For programs that their platform gives a token: a CI job, a workload of a
/// cluster. The operator says whose tokens are taken, in `auth.workload`.
#[utoipa::path(
    post, path = "/v1/token", tag = "keys", security(()),
    request_body(
        content = String, content_type = "application/x-www-form-urlencoded",
        description = "`grant_type`, `subject_token`, `subject_token_type`"
    ),
    responses((status = 200, body = Exchanged), (status = 400, body = ErrorBody), (status = 401, body = ErrorBody))
)]
pub(super) async fn exchange(
    State(api): State<Arc<Api>>,
    origin: Option<Extension<Origin>>,
    body: Body,
) -> Answer<impl IntoResponse> {
    let body = whole(body, MAX_FORM).await?;
    let field = |name: &str| {
        let mut all = url::form_urlencoded::parse(&body).filter(|(key, _)| key == name);
        all.next().filter(|_| all.next().is_none()).map(|(_, value)| value.into_owned())
    };
    if field("grant_type").as_deref() != Some(EXCHANGE) {
        return Err(ApiError::invalid(format!("grant_type is {EXCHANGE}")));
    }
    if !matches!(field("subject_token_type").as_deref(), Some(JWT | ID_TOKEN)) {
        return Err(ApiError::invalid(format!("subject_token_type is {JWT}")));
    }
    let token = field("subject_token").ok_or_else(|| ApiError::invalid("there is no subject_token"))?;
    let new = match vouched_for(&api, &token).await {
        Ok(new) => new,
        Err(Rejected::Unavailable(why)) => {
            tracing::warn!(why, "a token is not exchanged");
            return Err(ApiError::new(ErrorCode::Unavailable, "the issuer of this token does not answer"));
        }
        Err(why) => {
            tracing::info!(%why, "a token is not exchanged");
            api.failures.note(&api, origin.and_then(|origin| origin.address), "not_exchanged").await;
            let message = "this token is not exchanged here; `cloister auth explain` says why";
            return Err(ApiError::new(ErrorCode::Unauthorized, message));
        }
    };
    api.quotas.take(&new.caller)?;
    let (expires_in, caller) = (new.expires_in.unwrap_or_default(), new.caller.clone());
    let (id, key) = fresh(&api)?;
    act(&api, "token_exchanged", format!("key:{id}"), &caller).await?;
    add(&api, (&id, &key), new, Maker { parent: Some(BY_EXCHANGE.into()), ..Maker::default() }).await?;
    let answer = Exchanged {
        access_token: key.reveal().to_owned(),
        issued_token_type: ACCESS_TOKEN.into(),
        token_type: "Bearer".into(),
        expires_in,
    };
    Ok(([(header::CACHE_CONTROL, "no-store")], Json(answer)))
}

/// What whoever brings a token of another issuer's gets; or why nothing.
async fn vouched_for(api: &Api, token: &str) -> Result<NewKey, Rejected> {
    let issuer = issuer_of(token).ok_or(Rejected::Malformed)?;
    let mut why = Rejected::Issuer(issuer.clone());
    for rule in api.workloads.iter().filter(|rule| rule.issuer.url().to_string() == issuer) {
        match rule.issuer.verify(token, unix_now()).await {
            Err(rejected) => why = rejected,
            Ok(claims) => match rule.caller(&claims) {
                None => why = Rejected::Claim("sub, or another that auth.workload asks for"),
                Some(caller) => {
                    return Ok(NewKey { expires_in: Some(rule.seconds), ..NewKey::new(caller, rule.role) });
                }
            },
        }
    }
    Err(why)
}

/// Explain what would become of a call, and which rule decides.
///
/// What is asked about is not admitted by it, and nothing of it is kept; but a use of a
/// replaced key is counted.
#[utoipa::path(
    post, path = "/v1/auth/explain", tag = "keys", request_body = Explain,
    responses((status = 200, body = Explained), (status = 400, body = ErrorBody))
)]
pub(super) async fn explain(State(api): State<Arc<Api>>, body: Body) -> Answer<Json<Explained>> {
    let Explain { listener, endpoint, bearer, token, cookie, certificate, address } = parse(json(body).await?)?;
    let mut doors = api.doors.iter();
    let door = match listener {
        Some(address) => doors.find(|door| door.address() == address),
        None => doors.next(),
    };
    let door = door.ok_or_else(|| ApiError::invalid("no listener has this address in the configuration"))?;
    let require = door.require();
    let mut steps = Vec::new();
    let mut step = |rule: &str, outcome: String| steps.push(ExplainedStep { rule: rule.into(), outcome });
    let mut allowed = true;
    if let Some((links, rule)) = door.links(endpoint.as_deref()) {
        allowed = links;
        step("endpoint", rule);
    }
    if let Some(address) = address {
        let (admits, rule) = door.admits(address);
        allowed &= admits;
        step("allow", rule);
    }
    let certified: Option<Certified> = match certificate.as_deref().map(|pem| door.certifies(pem)) {
        Some(Ok((certified, rule))) => {
            step("mtls", rule);
            certified
        }
        Some(Err(why)) => {
            allowed = false;
            step("mtls", why);
            None
        }
        None => None,
    };
    let presented = Presented { bearer: bearer.clone(), token, cookie, certified };
    let shown = look(&api, require, presented).await?;
    for one in &shown {
        step(one.scheme.as_str(), one.outcome.to_string());
    }
    let decided = decide(require, &shown);
    let list = |at: usize| require.0[at].iter().map(|scheme| scheme.as_str()).collect::<Vec<_>>().join(" and ");
    step(
        "require",
        match &decided {
            Ok((_, at)) => format!("list {} suffices: {}", at + 1, list(*at)),
            Err(_) => format!("no list of the policy is satisfied: {}", require.words()),
        },
    );
    // What is no caller's may be a program's, which has to exchange it first.
    if let (Err(_), Some(token)) = (&decided, bearer.filter(|token| issuer_of(token).is_some())) {
        step(
            "workload",
            match vouched_for(&api, &token).await {
                Ok(new) => format!("it is exchanged at POST /v1/token, for {} as {}", new.caller, new.role.as_str()),
                Err(why) => format!("it is not exchanged: {why}"),
            },
        );
    }
    let principal = decided.ok().map(|(principal, _)| principal);
    let roles = principal.as_ref().map(Principal::all_roles).unwrap_or_default();
    let caller = principal.map(|principal| principal.caller);
    Ok(Json(Explained { admitted: allowed && caller.is_some(), caller, roles, steps }))
}

impl Scheme {
    fn as_str(self) -> &'static str {
        match self {
            Self::Bearer => "bearer",
            Self::Mtls => "mtls",
            Self::Sso => "sso",
        }
    }
}
