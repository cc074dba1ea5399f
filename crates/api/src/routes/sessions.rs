//! Sessions.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use cloister_session::SessionError;
use cloister_types::egress::Policy;
use cloister_types::scope::Scope;
use cloister_types::wire::{CreateSession, Deleted, ErrorBody, SandboxReport, SessionRecord};
use cloister_types::{ErrorCode, SessionId, duration};
use serde::Deserialize;
use serde_json::Value;

use crate::Api;
use crate::auth::holds;
use crate::body::{json, query};
use crate::error::{Answer, ApiError};
use crate::principal::{Principal, Reach};

/// Reads a session id; what is none names no session.
pub(super) fn session_id(text: &str) -> Answer<SessionId> {
    text.parse().map_err(|_| ApiError::new(ErrorCode::NotFound, "no such session"))
}

/// Runs a change in a task of its own: a client that hangs up must not leave
/// it half done.
pub(super) async fn unhurried<T: Send + 'static>(
    change: impl Future<Output = Result<T, SessionError>> + Send + 'static,
) -> Answer<T> {
    match tokio::spawn(change).await {
        Ok(outcome) => Ok(outcome?),
        Err(_) => Err(ApiError::new(ErrorCode::Internal, "the operation broke")),
    }
}

/// Create a session.
///
/// Its view of the workspace is built and its sandbox started at once.
#[utoipa::path(
    post, path = "/v1/sessions", tag = "sessions",
    request_body(content = CreateSession, description = "May be empty"),
    responses(
        (status = 201, body = SessionRecord),
        (status = 400, description = "invalid_request", body = ErrorBody),
        (status = 503, description = "sandbox_unavailable: the machine lacks something; the hint says what to do", body = ErrorBody),
    )
)]
pub(super) async fn create(
    State(api): State<Arc<Api>>,
    Extension(principal): Extension<Principal>,
    body: Body,
) -> Answer<(StatusCode, Json<SessionRecord>)> {
    let body = match json(body).await? {
        Value::Null => Value::Object(serde_json::Map::new()),
        body @ Value::Object(_) => body,
        _ => return Err(ApiError::invalid("the body must be a JSON object")),
    };
    match body.get("file_access") {
        None | Some(Value::Null) => {}
        Some(Value::Object(access)) if access.contains_key("read") || access.contains_key("write") => {}
        Some(_) => {
            let message = "file_access must be an object with read or write; leave it out for the whole workspace";
            return Err(ApiError::invalid(message));
        }
    }
    match body.get("tools") {
        None | Some(Value::Null) => {}
        Some(Value::Array(tools)) if tools.is_empty() => {}
        Some(_) => return Err(ApiError::invalid("this version has no client-side tools; leave tools out")),
    }
    let mut ask: CreateSession =
        serde_path_to_error::deserialize(body).map_err(|error| ApiError::invalid(error.to_string()))?;
    keep_below(&principal.reach, api.sessions.default_egress(), &mut ask)?;
    let sessions = api.sessions.clone();
    Ok((StatusCode::CREATED, Json(unhurried(async move { sessions.create(ask).await }).await?)))
}

/// List all sessions.
#[utoipa::path(get, path = "/v1/sessions", tag = "sessions", responses((status = 200, body = Vec<SessionRecord>)))]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Extension(principal): Extension<Principal>,
) -> Answer<Json<Vec<SessionRecord>>> {
    let mut all = api.sessions.list().await?;
    if principal.reach.has_ceiling() {
        all.retain(|session| holds(&principal.reach, session));
    }
    Ok(Json(all))
}

/// Keeps a new session below its maker's ceiling.
fn keep_below(reach: &Reach, default: &Policy, ask: &mut CreateSession) -> Answer<()> {
    let above = |what: &str| ApiError::new(ErrorCode::Forbidden, format!("{what} reaches further than this key may"));
    if let Some(ceiling) = &reach.file_access {
        let asked = ask.file_access.get_or_insert_with(|| ceiling.clone());
        let parse = |access| Scope::parse(access).map_err(|error| ApiError::invalid(error.to_string()));
        if !parse(asked)?.is_within(&parse(ceiling)?) {
            return Err(above("file_access"));
        }
    }
    if let Some(ceiling) = &reach.egress {
        // What is not said is the tenant's default, where that is below the ceiling.
        let usual = if default.is_within(ceiling) { default } else { ceiling };
        if !ask.egress.get_or_insert_with(|| usual.clone()).is_within(ceiling) {
            return Err(above("egress"));
        }
        // What a connection reaches is not said by the policy.
        if ask.connections.as_ref().is_some_and(|connections| !connections.is_empty()) {
            return Err(above("connections"));
        }
    }
    Ok(())
}

#[derive(Deserialize)]
pub(super) struct Matching {
    status: Option<String>,
    older_than: Option<String>,
}

/// Destroy the sessions that match every given condition.
#[utoipa::path(
    delete, path = "/v1/sessions", tag = "sessions",
    params(
        ("status" = Option<String>, Query, description = "`idle`: only sessions that are not busy"),
        ("older_than" = Option<String>, Query, description = "Inactive for at least this long: `2h`, `90s`, `1h30m`"),
    ),
    responses((status = 200, body = Deleted), (status = 400, description = "No condition, or a malformed one", body = ErrorBody))
)]
pub(super) async fn delete_matching(
    State(api): State<Arc<Api>>,
    matching: Result<Query<Matching>, QueryRejection>,
) -> Answer<Json<Deleted>> {
    let Matching { status, older_than } = query(matching)?;
    let idle_only = match status.as_deref() {
        None => false,
        Some("idle") => true,
        Some(_) => return Err(ApiError::invalid("status takes the value idle")),
    };
    let older_than = match older_than.as_deref().map(duration::parse) {
        None => None,
        Some(Some(age)) => Some(age),
        Some(None) => return Err(ApiError::invalid("older_than takes a length such as 2h, 90s or 1h30m")),
    };
    if !idle_only && older_than.is_none() {
        return Err(ApiError::invalid("say which sessions: status=idle, older_than=2h, or both"));
    }
    let sessions = api.sessions.clone();
    let deleted = unhurried(async move { sessions.delete_matching(idle_only, older_than).await }).await?;
    Ok(Json(Deleted { deleted }))
}

#[derive(Deserialize)]
pub(super) struct Wait {
    wait: Option<String>,
}

/// Read a session.
#[utoipa::path(
    get, path = "/v1/sessions/{id}", tag = "sessions",
    params(
        ("id" = String, Path),
        ("wait" = Option<u32>, Query, description = "Wait up to so many seconds, 0 to 60, for the session to be idle"),
    ),
    responses((status = 200, body = SessionRecord), (status = 404, body = ErrorBody))
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    wait: Result<Query<Wait>, QueryRejection>,
) -> Answer<Json<SessionRecord>> {
    let wait = super::history::wait(query(wait)?.wait.as_deref())?;
    Ok(Json(api.sessions.get_when_idle(&session_id(&id)?, wait).await?))
}

/// Measure a session's sandbox: what the kernel says it is held by, read while
/// it lives.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/sandbox", tag = "sessions",
    params(("id" = String, Path)),
    responses((status = 200, body = SandboxReport), (status = 404, body = ErrorBody))
)]
pub(super) async fn sandbox(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Answer<Json<SandboxReport>> {
    Ok(Json(api.sessions.measure(&session_id(&id)?).await?))
}

/// Destroy a session. Workspace files and `.memory/` stay.
#[utoipa::path(
    delete, path = "/v1/sessions/{id}", tag = "sessions",
    params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ErrorBody))
)]
pub(super) async fn delete(State(api): State<Arc<Api>>, Path(id): Path<String>) -> Answer<StatusCode> {
    let id = session_id(&id)?;
    let sessions = api.sessions.clone();
    unhurried(async move { sessions.delete(&id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}
