//! Errors in the wire's words: one place for status, headers and body.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use cloister_session::SessionError;
use cloister_types::ErrorCode;
use cloister_types::wire::ErrorBody;

use crate::quotas::Left;

/// An error on its way to a client.
#[derive(Debug)]
pub(crate) struct ApiError {
    error: SessionError,
    /// The limit that was met.
    limit: Option<Left>,
}

/// A result of a handler.
pub(crate) type Answer<T> = Result<T, ApiError>;

impl ApiError {
    pub(crate) fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        SessionError::new(code, message).into()
    }

    /// Says which limit was met, and when it no longer is, in headers as well.
    pub(crate) fn limited(self, limit: Left) -> Self {
        Self { limit: Some(limit), ..self }
    }

    pub(crate) fn invalid(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::InvalidRequest, message)
    }
}

impl From<SessionError> for ApiError {
    fn from(error: SessionError) -> Self {
        Self { error, limit: None }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let SessionError { code, message, hint } = self.error;
        let status = StatusCode::from_u16(code.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let mut response = (status, Json(ErrorBody { error: code, message, hint })).into_response();
        let headers = response.headers_mut();
        if matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if let Some(limit) = self.limit {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(limit.wait));
            limit.put(headers);
        }
        if status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
