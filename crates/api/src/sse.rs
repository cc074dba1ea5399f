//! A turn's log as server-sent events.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use cloister_session::Subscription;
use cloister_types::event::StoredEvent;
use futures_util::stream;

use crate::error::Answer;

/// Silence after which a comment is sent. It has no `id:`, so no cursor moves.
const HEARTBEAT: Duration = Duration::from_secs(10);

/// Streams from the subscription's cursor to the terminal event. Each client
/// pulls pages at its own pace: a slow one holds one page and nobody else.
///
/// # Errors
/// What is there already cannot be read: said while a status can still say it.
pub(crate) async fn response(mut subscription: Subscription) -> Answer<Response> {
    let turn = subscription.turn().to_string();
    let first = subscription.ready().await?;
    let body = Body::from_stream(stream::unfold((first, subscription), |(first, mut subscription)| async move {
        let page = match first {
            Some(events) => Ok(Ok(Some(events))),
            None => tokio::time::timeout(HEARTBEAT, subscription.page()).await,
        };
        match page {
            Err(_) => Some((Ok(Bytes::from_static(b": ping\n\n")), (None, subscription))),
            Ok(Ok(Some(events))) => Some((Ok(frames(&events)), (None, subscription))),
            Ok(Ok(None)) => None,
            Ok(Err(error)) => Some((Err(error), (None, subscription))),
        }
    }));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if let Ok(value) = HeaderValue::from_str(&turn) {
        headers.insert("x-response-id", value);
    }
    Ok(response)
}

fn frames(events: &[StoredEvent]) -> Bytes {
    let mut out = BytesMut::with_capacity(events.iter().map(|event| event.data.len() + 64).sum());
    for event in events {
        out.put_slice(format!("id: {}\nevent: {}\ndata: ", event.seq, event.kind).as_bytes());
        out.put_slice(event.data.as_bytes());
        out.put_slice(b"\n\n");
    }
    out.freeze()
}
