//! Messages, their streams, and cancelling.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use cloister_session::{Message, Sent};
use cloister_types::wire::{CancelAnswer, ErrorBody, OnBusy, SendMessage};
use cloister_types::{ErrorCode, ResponseId};
use serde::Deserialize;
use serde_json::json;

use super::sessions::{session_id, unhurried};
use crate::error::{Answer, ApiError};
use crate::principal::Principal;
use crate::standing::Standing;
use crate::{Api, body, sse};

pub(super) fn response_id(text: &str) -> Answer<ResponseId> {
    text.parse().map_err(|_| ApiError::new(ErrorCode::NotFound, "no such response in this session"))
}

/// Send a message; the answer streams. The turn runs to its end whether or not
/// anybody listens.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/messages", tag = "messages",
    params(
        ("id" = String, Path),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters; kept for 24 hours"),
    ),
    request_body = SendMessage,
    responses(
        (status = 200, description = "The turn's events; header X-Response-Id names the turn", content_type = "text/event-stream", body = String),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 409, description = "session_busy; see on_busy", body = ErrorBody),
        (status = 422, description = "idempotency_mismatch", body = ErrorBody),
        (status = 429, description = "session_limit, or queue_full", body = ErrorBody),
    )
)]
pub(super) async fn send(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    Extension(principal): Extension<Principal>,
    headers: HeaderMap,
    body: Body,
) -> Answer<Response> {
    let id = session_id(&id)?;
    if !headers.contains_key("idempotency-key") {
        api.sessions.check(&id)?;
    }
    let standing = Standing::of(&principal, api.sessions.store());
    let body = body::json(body).await?;
    // It may have ended while the body was held back.
    standing.check().await?;
    let text = body["message"].as_str().ok_or_else(|| ApiError::invalid("message must be a string"))?;
    if text.is_empty() {
        return Err(ApiError::invalid("message must not be empty"));
    }
    let on_busy = match body.get("on_busy") {
        None | Some(serde_json::Value::Null) => OnBusy::Reject,
        Some(word) => serde_json::from_value(word.clone())
            .map_err(|_| ApiError::invalid("on_busy takes reject, queue or interrupt"))?,
    };
    let key = idempotency_key(&headers)?;
    let message = Message { text: text.to_owned(), on_busy, caller: principal.caller, key, body };
    let (sessions, session) = (api.sessions.clone(), id.clone());
    match unhurried(async move { sessions.send(&session, message).await }).await? {
        Sent::Turn(turn) => {
            sse::response(api.sessions.subscribe(&id, &turn, None).await?, standing, api.leaving.clone()).await
        }
        Sent::Evicted(turn) => {
            let note = "the session of this turn was deleted, and its events with it";
            let body = Json(json!({"response_id": turn, "status": "replayed", "note": note}));
            Ok(([("x-response-id", turn.to_string())], body).into_response())
        }
    }
}

fn idempotency_key(headers: &HeaderMap) -> Answer<Option<String>> {
    let Some(value) = headers.get("idempotency-key") else { return Ok(None) };
    let fits = (1..=255).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic);
    match value.to_str() {
        Ok(text) if fits => Ok(Some(text.to_owned())),
        _ => Err(ApiError::invalid("Idempotency-Key takes 1 to 255 visible ASCII characters")),
    }
}

#[derive(Deserialize)]
pub(super) struct Cursor {
    last_event_id: Option<String>,
}

/// Follow a turn from a cursor, during it or at any time after.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/responses/{rid}/events", tag = "messages",
    params(
        ("id" = String, Path),
        ("rid" = String, Path),
        ("last_event_id" = Option<u64>, Query, description = "Start after this number; from the beginning if left out"),
        ("Last-Event-ID" = Option<u64>, Header, description = "The same; wins over the query"),
    ),
    responses(
        (status = 200, content_type = "text/event-stream", body = String),
        (status = 400, description = "The cursor is not a whole number", body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 500, description = "log_damaged", body = ErrorBody),
    )
)]
pub(super) async fn events(
    State(api): State<Arc<Api>>,
    Path((id, rid)): Path<(String, String)>,
    cursor: Result<Query<Cursor>, QueryRejection>,
    headers: HeaderMap,
    Extension(principal): Extension<Principal>,
) -> Answer<Response> {
    let standing = Standing::of(&principal, api.sessions.store());
    let cursor = body::query(cursor)?;
    let (id, rid) = (session_id(&id)?, response_id(&rid)?);
    let header = headers.get("last-event-id").map(|value| value.to_str().unwrap_or("?").to_owned());
    let after = match header.or(cursor.last_event_id) {
        None => None,
        Some(text) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => {
            Some(text.parse().unwrap_or(u64::MAX))
        }
        Some(_) => return Err(ApiError::invalid("the cursor must be a whole number, 0 or more")),
    };
    sse::response(api.sessions.subscribe(&id, &rid, after).await?, standing, api.leaving.clone()).await
}

/// Cancel a turn.
#[utoipa::path(
    post, path = "/v1/sessions/{id}/responses/{rid}/cancel", tag = "messages",
    params(("id" = String, Path), ("rid" = String, Path)),
    responses(
        (status = 202, description = "Begun: the stream ends with message.cancelled", body = CancelAnswer),
        (status = 200, description = "The turn had already ended", body = CancelAnswer),
        (status = 404, body = ErrorBody),
    )
)]
pub(super) async fn cancel(
    State(api): State<Arc<Api>>,
    Path((id, rid)): Path<(String, String)>,
) -> Answer<(StatusCode, Json<CancelAnswer>)> {
    let (id, rid) = (session_id(&id)?, response_id(&rid)?);
    let sessions = api.sessions.clone();
    let answer = unhurried(async move { sessions.cancel(&id, &rid).await }).await?;
    let status = if answer.status == "cancelling" { StatusCode::ACCEPTED } else { StatusCode::OK };
    Ok((status, Json(answer)))
}
