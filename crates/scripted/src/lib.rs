//! The scripted provider. It understands nothing; it plays a script that
//! stands in the user's message, and says so. It speaks the wires of real
//! providers, and demands a key that only the egress process can attach.

mod play;
mod render;
mod request;
mod script;

use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use serde_json::{Value, json};
use tokio::net::TcpListener;

use play::{Attempts, Play};
use render::Wire;

struct Provider {
    key: String,
    attempts: Attempts,
}

/// Serves both wires on `listener` until the task is dropped; requests must
/// carry `key` as a provider's SDK would send it.
///
/// # Errors
/// The listener broke.
pub async fn serve(listener: TcpListener, key: String) -> std::io::Result<()> {
    let provider = Arc::new(Provider { key, attempts: Attempts::default() });
    let routes = Router::new()
        .route("/v1/messages", post(messages))
        .route("/v1/chat/completions", post(chat))
        .layer(axum::extract::DefaultBodyLimit::max(64 << 20))
        .with_state(provider);
    axum::serve(listener, routes).await
}

async fn messages(State(provider): State<Arc<Provider>>, headers: HeaderMap, body: Bytes) -> Response {
    answer(&provider, Wire::Anthropic, &headers, &body)
}

async fn chat(State(provider): State<Arc<Provider>>, headers: HeaderMap, body: Bytes) -> Response {
    answer(&provider, Wire::Chat, &headers, &body)
}

fn answer(provider: &Provider, wire: Wire, headers: &HeaderMap, body: &Bytes) -> Response {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let presented = match wire {
        Wire::Anthropic => text("x-api-key"),
        Wire::Chat => text("authorization").strip_prefix("Bearer ").unwrap_or_default(),
    };
    if presented != provider.key {
        return error(
            StatusCode::UNAUTHORIZED,
            "authentication_error",
            "this provider wants the key that only egress attaches",
        );
    }
    let Ok(request) = serde_json::from_slice::<Value>(body) else {
        return error(StatusCode::BAD_REQUEST, "invalid_request_error", "the body is not JSON");
    };
    let conversation = match wire {
        Wire::Anthropic => request::anthropic(&request),
        Wire::Chat => request::chat(&request),
    };
    // Repetitions of one call bear the same key, so a fault can count them.
    let call = match text("idempotency-key") {
        "" => request::digest(body),
        key => key.to_owned(),
    };
    match play::play(&conversation, &call, &provider.attempts) {
        Play::Fail { status, retry_after } => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            let mut response = error(status, "overloaded_error", "a failure that the script asked for");
            if let Some(value) = retry_after.and_then(|seconds| seconds.to_string().parse().ok()) {
                response.headers_mut().insert(header::RETRY_AFTER, value);
            }
            response
        }
        Play::Answer(answer) => {
            let input_tokens = (body.len() / 4) as u64;
            let model = request["model"].as_str().unwrap_or("scripted").to_owned();
            let stream = render::stream(wire, answer, model, input_tokens);
            ([(header::CONTENT_TYPE, "text/event-stream")], Body::from_stream(stream)).into_response()
        }
    }
}

fn error(status: StatusCode, kind: &str, message: &str) -> Response {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}});
    (status, [(header::CONTENT_TYPE, "application/json")], body.to_string()).into_response()
}
