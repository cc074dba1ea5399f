//! A turn's log as server-sent events.

use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::Response;
use bytes::{BufMut, Bytes, BytesMut};
use cloister_session::Subscription;
use cloister_types::event::StoredEvent;
use futures_util::stream;
use tokio::sync::watch;

use crate::error::Answer;
use crate::standing::Standing;

/// Silence after which a comment is sent. It has no `id:`, so no cursor moves.
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Said when the server is about to be replaced: the turn goes on, and the client
/// finds it at the next server, from its cursor, a quarter of a second later.
const LEAVING: &[u8] = b"retry: 250\n: the server is being replaced; reconnect\n\n";

/// Streams from the subscription's cursor to the terminal event. Each client
/// pulls pages at its own pace: a slow one holds one page and nobody else. It ends
/// with what the caller has shown as well.
///
/// # Errors
/// What is there already cannot be read: said while a status can still say it.
pub(crate) async fn response(
    mut subscription: Subscription,
    standing: Standing,
    leaving: watch::Receiver<bool>,
) -> Answer<Response> {
    let turn = subscription.turn().to_string();
    let last = *leaving.borrow();
    let first = subscription.ready().await?;
    let state = Some((first, subscription, standing, leaving));
    let body = Body::from_stream(stream::unfold(state, |state| async move {
        let (first, mut subscription, mut standing, mut leaving) = state?;
        let page = match first {
            Some(events) => Ok(Ok(Some(events))),
            None => tokio::select! {
                biased;
                _ = leaving.wait_for(|leaving| *leaving) => return Some((Ok(Bytes::from_static(LEAVING)), None)),
                () = standing.end() => return None,
                page = tokio::time::timeout(HEARTBEAT, subscription.page()) => page,
            },
        };
        let said = match page {
            Err(_) => Ok(Bytes::from_static(b": ping\n\n")),
            Ok(Ok(Some(events))) => Ok(frames(&events)),
            Ok(Ok(None)) => return None,
            Ok(Err(error)) => Err(error),
        };
        Some((said, Some((None, subscription, standing, leaving))))
    }));
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    if last {
        // Nothing more is asked of a server that is going.
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
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
