//! One request, from the session to a provider and back.

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde_json::json;

use crate::attach::Credential;
use crate::control::Upstream;
use crate::resolve::Only;
use crate::rules::{self, is_public};
use crate::serve::Session;

/// A body on its way to the session.
pub(crate) type Body = BoxBody<Bytes, Box<dyn std::error::Error + Send + Sync>>;

/// How long the provider may take to be connected to.
const CONNECT: Duration = Duration::from_secs(10);
/// Bytes of a model call.
const REQUEST_BODY: usize = 64 << 20;
/// How long it may take to arrive: it comes over loopback.
const REQUEST_TIME: Duration = Duration::from_secs(60);
/// Bytes of an error's body that are passed on.
const ERROR_BODY: usize = 64 << 10;
/// What a session may say about its call, besides the body.
const REQUEST_HEADERS: [&str; 3] = ["accept", "content-type", "idempotency-key"];
/// What a provider may say about its answer. Cookies and the rest stay here.
const RESPONSE_HEADERS: [HeaderName; 4] =
    [CONTENT_TYPE, RETRY_AFTER, HeaderName::from_static("retry-after-ms"), HeaderName::from_static("request-id")];

/// The ways to reach providers.
pub(crate) struct Clients {
    /// Public addresses, TLS.
    public: reqwest::Client,
    /// Any address, TLS.
    any: reqwest::Client,
    /// Private addresses, in the clear.
    clear: reqwest::Client,
}

impl Clients {
    pub(crate) fn new() -> Result<Self, reqwest::Error> {
        // A redirect would carry the key to another place; a proxy from the
        // environment would see it.
        let builder = || {
            reqwest::Client::builder().redirect(reqwest::redirect::Policy::none()).no_proxy().connect_timeout(CONNECT)
        };
        Ok(Self {
            public: builder().dns_resolver(Only::Public).https_only(true).build()?,
            any: builder().https_only(true).build()?,
            clear: builder().dns_resolver(Only::Private).build()?,
        })
    }

    fn for_upstream(&self, upstream: &Upstream) -> &reqwest::Client {
        match (upstream.allow_private, upstream.base_url.starts_with("https:")) {
            (false, _) => &self.public,
            (true, true) => &self.any,
            (true, false) => &self.clear,
        }
    }
}

/// Answers one request of a session.
pub(crate) async fn handle(session: &Session, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let granted = |name: &str| {
        let allowed = session.models.iter().any(|model| model == name);
        session.tenant.models.get(name).filter(|_| allowed).map(|upstream| upstream.wire)
    };
    // An absolute form or a query is no model call either.
    let target = request.uri().path_and_query().map_or("", |target| target.as_str()).to_owned();
    let target = if request.uri().scheme().is_some() { String::new() } else { target };
    let name = match rules::model_of(request.method(), &target, granted) {
        Ok(name) => name,
        Err(refusal) => {
            tracing::info!(session = %session.id, %target, %refusal, "refused");
            return Ok(plain_error(StatusCode::FORBIDDEN, "permission_error", &refusal.to_string()));
        }
    };
    let Some(upstream) = session.tenant.models.get(name) else {
        return Ok(plain_error(StatusCode::FORBIDDEN, "permission_error", "no such model"));
    };
    let response = forward(session, name, upstream, request).await;
    Ok(response.unwrap_or_else(|(status, message)| plain_error(status, "api_error", &message)))
}

async fn forward(
    session: &Session,
    name: &str,
    upstream: &Upstream,
    request: Request<Incoming>,
) -> Result<Response<Body>, (StatusCode, String)> {
    let credential = Credential::read(upstream).await.map_err(|error| {
        tracing::error!(model = name, %error, "no credential");
        // Not retried: waiting does not mend a configuration.
        (StatusCode::FORBIDDEN, format!("the operator's configuration of model {name:?} has no usable key"))
    })?;
    let url = format!("{}{}", upstream.base_url.trim_end_matches('/'), upstream.wire.path());
    check_literal(&url, upstream).map_err(|message| (StatusCode::FORBIDDEN, message))?;
    let mut headers = HeaderMap::new();
    for header in REQUEST_HEADERS {
        if let Some(value) = request.headers().get(header) {
            headers.insert(HeaderName::from_static(header), value.clone());
        }
    }
    // After the session's own, so that none of them can stand in their way.
    headers.extend(credential.headers.iter().cloned());
    // Whole, so that it goes out with its length: not every provider takes
    // chunks.
    let whole = Limited::new(request.into_body(), REQUEST_BODY).collect();
    let body = match tokio::time::timeout(REQUEST_TIME, whole).await {
        Ok(Ok(body)) => body,
        _ => {
            let message = "the model call is too large, too slow, or broke off";
            return Err((StatusCode::PAYLOAD_TOO_LARGE, message.to_owned()));
        }
    };
    let body = body.to_bytes();
    let sent = session.tenant.clients.for_upstream(upstream).post(url).headers(headers).body(body).send().await;
    let answer = sent.map_err(|error| {
        let error = error.without_url();
        tracing::warn!(session = %session.id, model = name, error = ?error, "provider not reached");
        (StatusCode::BAD_GATEWAY, format!("the provider of model {name:?} cannot be reached"))
    })?;
    let status = answer.status();
    tracing::info!(session = %session.id, model = name, status = status.as_u16(), "model call");
    let mut response = Response::builder().status(status);
    for header in RESPONSE_HEADERS {
        if let Some(value) = answer.headers().get(&header) {
            response = response.header(header, value);
        }
    }
    let body: Body = if status.is_success() {
        let frames = answer.bytes_stream().map_ok(Frame::data).map_err(|error| error.without_url().into());
        BodyExt::boxed(StreamBody::new(SyncStream::new(frames)))
    } else {
        let text = error_text(answer).await;
        Full::new(Bytes::from(credential.scrub(&text))).map_err(|never| match never {}).boxed()
    };
    response.body(body).map_err(|error| (StatusCode::BAD_GATEWAY, error.to_string()))
}

/// Names are checked when they are resolved; an address in the URL here.
fn check_literal(url: &str, upstream: &Upstream) -> Result<(), String> {
    let parsed = reqwest::Url::parse(url).map_err(|error| error.to_string())?;
    let host = parsed.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse() {
        Ok(address) if !is_public(address) && !upstream.allow_private => {
            Err("the model's address is private and not allowed".into())
        }
        _ => Ok(()),
    }
}

async fn error_text(mut answer: reqwest::Response) -> String {
    let mut text = Vec::new();
    while let Ok(Some(bytes)) = answer.chunk().await {
        text.extend_from_slice(&bytes);
        if text.len() > ERROR_BODY {
            text.truncate(ERROR_BODY);
            break;
        }
    }
    String::from_utf8_lossy(&text).into_owned()
}

fn plain_error(status: StatusCode, kind: &str, message: &str) -> Response<Body> {
    let body = json!({"type": "error", "error": {"type": kind, "message": message}}).to_string();
    let mut response = Response::new(Full::new(Bytes::from(body)).map_err(|never| match never {}).boxed());
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    response
}

/// A stream that hyper's boxed body may hold: it wants `Sync`, and a lock that
/// is never contended gives it.
struct SyncStream<S>(std::sync::Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures_util::Stream> SyncStream<S> {
    fn new(stream: S) -> Self {
        Self(std::sync::Mutex::new(Box::pin(stream)))
    }
}

impl<S: futures_util::Stream> futures_util::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        let stream = self.0.get_mut().unwrap_or_else(std::sync::PoisonError::into_inner);
        stream.as_mut().poll_next(context)
    }
}
