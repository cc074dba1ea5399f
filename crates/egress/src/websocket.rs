//! WebSockets: the handshake is made anew, messages are passed on one by one,
//! and those that come back are scrubbed. Compression is never agreed on.

use std::sync::Arc;

use cloister_types::egress::Decision;
use futures_util::{SinkExt, StreamExt};
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Version};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

use crate::body::{Body, Ending, full};
use crate::refuse::Refused;
use crate::scrub::Needles;
use crate::session::Session;
use crate::web::{Outgoing, Sent, clean, dial_refused};

/// How long the other side may take to answer the handshake.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(30);
/// Bytes of a message.
const MESSAGE: usize = 1 << 20;

/// A handshake that the session's side waits to be finished.
pub(crate) struct Upgrade {
    theirs: OnUpgrade,
    key: HeaderValue,
}

/// Does a request ask for a WebSocket?
pub(crate) fn is_asked_for<B>(request: &Request<B>) -> bool {
    wants(request.method(), request.version(), request.headers())
}

fn wants(method: &Method, version: Version, headers: &header::HeaderMap) -> bool {
    let has = |name: HeaderName, word: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .any(|value| value.split(',').any(|part| part.trim().eq_ignore_ascii_case(word)))
    };
    method == Method::GET
        && version == Version::HTTP_11
        && has(header::UPGRADE, "websocket")
        && has(header::CONNECTION, "upgrade")
        && headers.contains_key(header::SEC_WEBSOCKET_KEY)
}

/// Takes the handshake off a request, if it has one.
pub(crate) fn take(parts: &mut Parts) -> Option<Upgrade> {
    if !wants(&parts.method, parts.version, &parts.headers) {
        return None;
    }
    let theirs = parts.extensions.remove::<OnUpgrade>()?;
    let key = parts.headers.remove(header::SEC_WEBSOCKET_KEY)?;
    // What is compressed could not be looked through.
    parts.headers.remove(header::SEC_WEBSOCKET_EXTENSIONS);
    Some(Upgrade { theirs, key })
}

/// Opens the other side's half, and joins both.
pub(crate) async fn open(
    session: &Arc<Session>,
    mut out: Outgoing,
    upgrade: Upgrade,
    ending: &mut Ending,
) -> Result<Sent, Refused> {
    let unreachable = || Refused::new(502, "upstream_unreachable", "no connection to the other side");
    let connector = session.tenant.pool.connector(out.key.reach, out.identity()).map_err(|_| unreachable())?;
    let uri = out.uri()?;
    let stream = connector.connect(uri.clone()).await.map_err(|error| dial_refused(Some(&error)))?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Body>(stream).await.map_err(|_| unreachable())?;
    tokio::spawn(connection.with_upgrades());
    let mut request = Request::new(full(bytes::Bytes::new()));
    *request.uri_mut() =
        uri.path_and_query().map_or("/", |target| target.as_str()).parse().map_err(|_| unreachable())?;
    let headers = request.headers_mut();
    *headers = std::mem::take(&mut out.parts.headers);
    let host = uri.authority().map_or("", |authority| authority.as_str());
    for (name, value) in [
        (header::HOST, HeaderValue::from_str(host).map_err(|_| unreachable())?),
        (header::CONNECTION, HeaderValue::from_static("Upgrade")),
        (header::UPGRADE, HeaderValue::from_static("websocket")),
        (header::SEC_WEBSOCKET_KEY, upgrade.key.clone()),
    ] {
        headers.insert(name, value);
    }
    let answer = tokio::time::timeout(HANDSHAKE, sender.send_request(request)).await;
    let answer = answer.map_err(|_| Refused::new(504, "upstream_slow", "the other side does not answer"))?;
    let mut answer =
        answer.map_err(|_| Refused::new(502, "upstream_broken", "the other side broke the handshake off"))?;
    ending.entry.status = Some(answer.status().as_u16());
    ending.entry.decision = Some(Decision::Allowed);
    let needles = session.needles();
    let mut response = Response::new(full(bytes::Bytes::new()));
    *response.status_mut() = answer.status();
    let accept = answer.headers().get(header::SEC_WEBSOCKET_ACCEPT).cloned();
    let extended = answer.headers().contains_key(header::SEC_WEBSOCKET_EXTENSIONS);
    *response.headers_mut() = clean(std::mem::take(answer.headers_mut()), &needles, None, ending);
    response.headers_mut().remove(header::SET_COOKIE);
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(Refused::new(
            502,
            "upstream_broken",
            format!("the other side answers the handshake with {}", answer.status().as_u16()),
        ));
    }
    // Said by us, so that nothing else can be said in its place.
    let right = HeaderValue::from_str(&derive_accept_key(upgrade.key.as_bytes())).map_err(|_| unreachable())?;
    let (Some(accept), false) = (accept.filter(|accept| *accept == right), extended) else {
        return Err(Refused::new(502, "answer_refused", "the other side agrees to something that was not asked for"));
    };
    let headers = response.headers_mut();
    headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    let frame = out.attached.frame.take();
    let version = out.attached.version;
    let join = move |mut ending: Ending| {
        let with = ending.entry.connection.clone();
        let session = ending.session.clone();
        tokio::spawn(async move {
            let over = session.until_over(with.as_deref().map(|name| (name, version)));
            let outcome = tokio::select! {
                outcome = join(upgrade.theirs, answer, frame, &needles, &mut ending) => outcome.is_ok(),
                () = over => false,
            };
            if !outcome {
                ending.flag("broken_off");
            }
        });
    };
    Ok(Sent::Upgraded(response, Box::new(join)))
}

async fn join(
    theirs: OnUpgrade,
    answer: Response<Incoming>,
    frame: Option<String>,
    needles: &Needles,
    ending: &mut Ending,
) -> Result<(), crate::body::Error> {
    let config = WebSocketConfig::default().max_message_size(Some(MESSAGE)).max_frame_size(Some(MESSAGE));
    let outside = TokioIo::new(hyper::upgrade::on(answer).await?);
    let inside = TokioIo::new(theirs.await?);
    let mut outside = WebSocketStream::from_raw_socket(outside, Role::Client, Some(config)).await;
    let mut inside = WebSocketStream::from_raw_socket(inside, Role::Server, Some(config)).await;
    if let Some(frame) = frame {
        outside.send(Message::text(frame)).await?;
    }
    let up = ending.up.clone();
    loop {
        tokio::select! {
            message = inside.next() => {
                let Some(message) = message else { break };
                let message = message?;
                up.fetch_add(message.len() as u64, std::sync::atomic::Ordering::Relaxed);
                // Those are answered here, on both sides.
                if message.is_ping() || message.is_pong() {
                    inside.flush().await?;
                    continue;
                }
                let over = message.is_close();
                outside.send(message).await?;
                if over {
                    break;
                }
            }
            message = outside.next() => {
                let Some(message) = message else { break };
                let message = message?;
                if message.is_ping() || message.is_pong() {
                    outside.flush().await?;
                    continue;
                }
                let over = message.is_close();
                let (message, found) = scrub(message, needles);
                if found {
                    ending.flag("reflected");
                }
                ending.down += message.len() as u64;
                inside.send(message).await?;
                if over {
                    break;
                }
            }
        }
    }
    let _ = outside.close(None).await;
    let _ = inside.close(None).await;
    Ok(())
}

fn scrub(message: Message, needles: &Needles) -> (Message, bool) {
    let mut bytes = message.clone().into_data().to_vec();
    if !needles.cover(&mut bytes) {
        return (message, false);
    }
    match message {
        Message::Text(_) => (Message::text(String::from_utf8_lossy(&bytes).into_owned()), true),
        Message::Binary(_) => (Message::binary(bytes), true),
        // The reason of a close.
        _ => (Message::Close(None), true),
    }
}
