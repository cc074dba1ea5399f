//! Who calls. Everything but `/health` passes here, unknown paths included,
//! so that nothing can be learned without a key.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderValue, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use cloister_types::ErrorCode;
use cloister_types::key::ApiKey;
use percent_encoding::percent_decode_str;
use sha2::{Digest, Sha256};

use crate::Api;
use crate::body::drain;
use crate::error::ApiError;

/// The caller of a request, by the name that its key was given.
#[derive(Debug, Clone)]
pub(crate) struct Principal {
    pub(crate) caller: String,
}

pub(crate) async fn require_key(State(api): State<Arc<Api>>, mut request: Request, next: Next) -> Response {
    if request.uri().path() == "/health" {
        return next.run(request).await;
    }
    match authenticate(&api, request.headers().get(header::AUTHORIZATION).cloned()).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            // Names of files are bytes; everything else is text, or nothing.
            let path = request.uri().path();
            if !path.contains("/files/") && percent_decode_str(path).decode_utf8().is_err() {
                return ApiError::new(ErrorCode::NotFound, "there is nothing at this path").into_response();
            }
            next.run(request).await
        }
        Err(error) => {
            drain(request.into_body()).await;
            error.into_response()
        }
    }
}

async fn authenticate(api: &Api, presented: Option<HeaderValue>) -> Result<Principal, ApiError> {
    let unauthorized = || ApiError::new(ErrorCode::Unauthorized, "a valid API key is required");
    let value = presented.as_ref().and_then(|value| value.to_str().ok()).ok_or_else(unauthorized)?;
    let (scheme, token) = value.split_once(' ').ok_or_else(unauthorized)?;
    if !scheme.eq_ignore_ascii_case("bearer") {
        return Err(unauthorized());
    }
    let key: ApiKey = token.trim().parse().map_err(|_| unauthorized())?;
    if key.tenant() != api.tenant {
        return Err(unauthorized());
    }
    // Only hashes are stored, and they are what is compared: how long that
    // takes tells nothing about a key.
    let hash: [u8; 32] = Sha256::digest(key.reveal()).into();
    let caller = api.sessions.caller_of(hash).await?.ok_or_else(unauthorized)?;
    Ok(Principal { caller })
}
