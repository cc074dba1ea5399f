//! What has been said and done: transcripts and turns, page by page.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Path, Query, State};
use cloister_types::wire::{ErrorBody, Response, Responses, Transcript};
use serde::Deserialize;

use super::messages::response_id;
use super::sessions::session_id;
use crate::Api;
use crate::body::query;
use crate::error::{Answer, ApiError};

/// Entries of a page: if nothing is said, and at most.
const LIMIT: usize = 100;
const MOST: usize = 1000;
/// Seconds that a request may wait.
const LONGEST_WAIT: u64 = 60;

/// Which page.
#[derive(Deserialize)]
pub(super) struct PageQuery {
    after: Option<String>,
    limit: Option<String>,
    wait: Option<String>,
}

impl PageQuery {
    fn limit(&self) -> Answer<usize> {
        match self.limit.as_deref().map(str::parse) {
            None => Ok(LIMIT),
            Some(Ok(limit @ 1..=MOST)) => Ok(limit),
            Some(_) => Err(ApiError::invalid(format!("limit takes a whole number from 1 to {MOST}"))),
        }
    }
}

/// How long to wait, in whole seconds.
pub(super) fn wait(text: Option<&str>) -> Answer<Duration> {
    match text.map(str::parse) {
        None => Ok(Duration::ZERO),
        Some(Ok(seconds @ 0..=LONGEST_WAIT)) => Ok(Duration::from_secs(seconds)),
        Some(_) => Err(ApiError::invalid(format!("wait takes whole seconds from 0 to {LONGEST_WAIT}"))),
    }
}

/// The session's transcript, oldest first, page by page.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/messages", tag = "messages",
    params(
        ("id" = String, Path),
        ("after" = Option<String>, Query, description = "The cursor after which the page begins: `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "Entries of a page, 1 to 1000; 100 if left out"),
    ),
    responses(
        (status = 200, body = Transcript),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 500, description = "log_damaged", body = ErrorBody),
    )
)]
pub(super) async fn transcript(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Json<Transcript>> {
    let page = query(page)?;
    Ok(Json(api.sessions.transcript(&session_id(&id)?, page.after.as_deref(), page.limit()?).await?))
}

/// The session's turns, oldest first, page by page, without their output.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/responses", tag = "messages",
    params(
        ("id" = String, Path),
        ("after" = Option<String>, Query, description = "The cursor after which the page begins: `next` of the page before"),
        ("limit" = Option<u32>, Query, description = "Turns of a page, 1 to 1000; 100 if left out"),
    ),
    responses((status = 200, body = Responses), (status = 400, body = ErrorBody), (status = 404, body = ErrorBody))
)]
pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Path(id): Path<String>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Json<Responses>> {
    let page = query(page)?;
    Ok(Json(api.sessions.responses(&session_id(&id)?, page.after.as_deref(), page.limit()?).await?))
}

/// One turn: where it stands, how it ended, and its part of the transcript,
/// page by page. At any time, years later too.
#[utoipa::path(
    get, path = "/v1/sessions/{id}/responses/{rid}", tag = "messages",
    params(
        ("id" = String, Path),
        ("rid" = String, Path),
        ("wait" = Option<u32>, Query, description = "Wait up to so many seconds, 0 to 60, for the turn to end"),
        ("after" = Option<String>, Query, description = "The cursor after which the page of output begins"),
        ("limit" = Option<u32>, Query, description = "Entries of the page, 1 to 1000; 100 if left out"),
    ),
    responses(
        (status = 200, body = Response),
        (status = 400, body = ErrorBody),
        (status = 404, body = ErrorBody),
        (status = 500, description = "log_damaged", body = ErrorBody),
    )
)]
pub(super) async fn get(
    State(api): State<Arc<Api>>,
    Path((id, rid)): Path<(String, String)>,
    page: Result<Query<PageQuery>, QueryRejection>,
) -> Answer<Json<Response>> {
    let page = query(page)?;
    let (id, rid) = (session_id(&id)?, response_id(&rid)?);
    let (limit, wait) = (page.limit()?, wait(page.wait.as_deref())?);
    Ok(Json(api.sessions.response(&id, &rid, page.after.as_deref(), limit, wait).await?))
}
