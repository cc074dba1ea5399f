//! JSON bodies and query strings.

use std::time::Duration;

use axum::body::Body;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use bytes::Bytes;
use cloister_types::ErrorCode;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde_json::Value;

use crate::error::{Answer, ApiError};

/// How much of a refused body is taken in, and for how long.
const DRAIN_BYTES: usize = 256 << 20;
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// How long a body that is no file may take.
const READ_TIME: Duration = Duration::from_secs(30);
/// Bytes of a JSON body; longer texts are files.
const MAX_JSON: usize = 4 << 20;

/// Reads a body that is no file.
pub(crate) async fn whole(body: Body, most: usize) -> Answer<Bytes> {
    match tokio::time::timeout(READ_TIME, Limited::new(body, most).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => {
            Err(ApiError::new(ErrorCode::PayloadTooLarge, format!("the body is over {most} bytes")))
        }
        Ok(Err(_)) => Err(ApiError::invalid("the body ended early")),
        Err(_) => Err(ApiError::invalid(format!("the body took longer than {} s", READ_TIME.as_secs()))),
    }
}

/// Reads a body as JSON; an empty one is `null`.
pub(crate) async fn json(body: Body) -> Answer<Value> {
    let bytes = whole(body, MAX_JSON).await?;
    if bytes.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_slice(&bytes).map_err(|error| ApiError::invalid(format!("the body is not JSON: {error}")))
}

/// Takes in what a refused client is still sending, within bounds: many
/// clients look for an answer only once they have sent everything.
pub(crate) async fn drain(body: Body) {
    let all = async {
        let mut body = Limited::new(body, DRAIN_BYTES);
        while let Some(Ok(_)) = body.frame().await {}
    };
    // Whoever is slower or longer than this loses the connection instead.
    let _ = tokio::time::timeout(DRAIN_TIME, all).await;
}

/// Reads a query string.
pub(crate) fn query<T>(query: Result<Query<T>, QueryRejection>) -> Answer<T> {
    query.map(|Query(value)| value).map_err(|error| ApiError::invalid(error.body_text()))
}
