//! One request to the session's model listener, the answer as it streams.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// No byte for this long: the stream is dead. Providers send pings.
const IDLE: Duration = Duration::from_secs(90);
/// What egress itself answers comes at once.
const OURS: Duration = Duration::from_secs(10);
/// A provider may think long before its first byte.
const FIRST_BYTE: Duration = Duration::from_secs(600);

/// The connection broke, or never stood.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HttpError {
    /// The listener's address is not one.
    #[error("bad model address {0:?}")]
    Address(String),
    /// Anything on the way.
    #[error("{0}")]
    Transport(String),
    /// Nothing came for too long.
    #[error("nothing came for {} s", .0.as_secs())]
    Idle(Duration),
}

fn transport(error: impl std::fmt::Display) -> HttpError {
    HttpError::Transport(error.to_string())
}

/// An answer whose body is still to be read.
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) retry_after: Option<Duration>,
    body: Incoming,
    begun: bool,
}

/// Posts `body` to `url`; `key` stays the same over repetitions of one call.
pub(crate) async fn post(url: &str, key: &str, body: Vec<u8>) -> Result<Reply, HttpError> {
    let uri: Uri = url.parse().map_err(|_| HttpError::Address(url.to_owned()))?;
    let host = uri.host().ok_or_else(|| HttpError::Address(url.to_owned()))?.to_owned();
    let socket = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(80))).await.map_err(transport)?;
    socket.set_nodelay(true).map_err(transport)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(transport)?;
    // Ends with the connection, which ends with the reply.
    tokio::spawn(connection);
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri.path_and_query().map_or("/", |path| path.as_str()))
        .header("host", host)
        .header("content-type", "application/json")
        .header("accept", "text/event-stream")
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from(body)))
        .map_err(transport)?;
    let response = tokio::time::timeout(FIRST_BYTE, sender.send_request(request))
        .await
        .map_err(|_| HttpError::Idle(FIRST_BYTE))?;
    let response = response.map_err(transport)?;
    Ok(Reply {
        status: response.status().as_u16(),
        retry_after: retry_after(&response),
        body: response.into_body(),
        begun: false,
    })
}

/// Reads what is at `url`, which egress itself answers.
pub(crate) async fn get(url: &str) -> Result<Bytes, HttpError> {
    let uri: Uri = url.parse().map_err(|_| HttpError::Address(url.to_owned()))?;
    let host = uri.host().ok_or_else(|| HttpError::Address(url.to_owned()))?.to_owned();
    let socket = TcpStream::connect((host.as_str(), uri.port_u16().unwrap_or(80))).await.map_err(transport)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(socket)).await.map_err(transport)?;
    tokio::spawn(connection);
    let request = Request::get(uri.path()).header("host", host).body(Full::new(Bytes::new())).map_err(transport)?;
    let answered = async {
        let response = sender.send_request(request).await.map_err(transport)?;
        if !response.status().is_success() {
            return Err(transport(format!("status {}", response.status())));
        }
        response.into_body().collect().await.map(http_body_util::Collected::to_bytes).map_err(transport)
    };
    tokio::time::timeout(OURS, answered).await.map_err(|_| HttpError::Idle(OURS))?
}

/// `retry-after-ms`, or `retry-after` in seconds or as a date; at most a day.
fn retry_after(response: &Response<Incoming>) -> Option<Duration> {
    const DAY: Duration = Duration::from_secs(86_400);
    let text = |name: &str| response.headers().get(name)?.to_str().ok().map(str::trim);
    let seconds = |text: &str| text.parse::<f64>().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let milliseconds = text("retry-after-ms").and_then(seconds).map(|amount| amount / 1000);
    let date = |text: &str| {
        let date = httpdate::parse_http_date(text).ok()?;
        Some(date.duration_since(std::time::SystemTime::now()).unwrap_or_default())
    };
    let delay = milliseconds.or_else(|| text("retry-after").and_then(|text| seconds(text).or_else(|| date(text))));
    delay.filter(|delay| *delay < DAY)
}

impl Reply {
    /// The next bytes; `None` at the clean end.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, HttpError> {
        loop {
            // Some servers send their headers at once and think then.
            let patience = if self.begun { IDLE } else { FIRST_BYTE };
            let frame = tokio::time::timeout(patience, self.body.frame()).await;
            let frame = frame.map_err(|_| HttpError::Idle(patience))?;
            self.begun = true;
            match frame {
                None => return Ok(None),
                Some(Err(error)) => return Err(transport(error)),
                Some(Ok(frame)) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// The start of an error's body.
    pub(crate) async fn text(&mut self) -> String {
        let mut text = Vec::new();
        while let Ok(Some(bytes)) = self.chunk().await {
            text.extend_from_slice(&bytes);
            if text.len() > 16 << 10 {
                break;
            }
        }
        String::from_utf8_lossy(&text).into_owned()
    }
}
