//! Model calls: the one thing that every session may do. They are made at an
//! address of their own, name the model in their path, and their answers say
//! what they used.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use cloister_dial::Reach;
use cloister_types::egress::Decision;
use cloister_types::link::{AUTHORITY_PATH, AUTHORITY_STORE_PATH};
use cloister_types::model::{Price, Wire};
use cloister_vault::wire::{Material, Purpose, With};
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::json;

use crate::body::{self, Answer, Body, Ending, full};
use crate::control::Upstream;
use crate::meter::Meter;
use crate::pool::Key;
use crate::rules;
use crate::scrub::{Needles, Scrubber};
use crate::session::Session;

/// Bytes of a model call.
const REQUEST_BODY: usize = 64 << 20;
/// How long the provider may take to begin its answer.
const FIRST_BYTE: Duration = Duration::from_secs(600);
/// What a session may say about its call, besides the body.
const REQUEST_HEADERS: [&str; 3] = ["accept", "content-type", "idempotency-key"];
/// What a provider may say about its answer. Cookies and the rest stay here.
const RESPONSE_HEADERS: [HeaderName; 4] =
    [CONTENT_TYPE, RETRY_AFTER, HeaderName::from_static("retry-after-ms"), HeaderName::from_static("request-id")];
/// The version of the protocol that our client speaks.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// What of a call's body is looked at.
#[derive(serde::Deserialize)]
struct Asked {
    model: Option<String>,
}

/// Why a call failed: status, kind and message in the provider's own form.
type Refused = (StatusCode, &'static str, String);

/// Answers one request at the model's address.
pub(crate) async fn handle(session: Arc<Session>, request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    // An absolute form or a query is no model call.
    let target = request.uri().path_and_query().map_or("", |target| target.as_str()).to_owned();
    let target = if request.uri().scheme().is_some() { String::new() } else { target };
    if request.method() == Method::GET && [AUTHORITY_PATH, AUTHORITY_STORE_PATH].contains(&target.as_str()) {
        return Ok(authority(&session, &target).await);
    }
    let mut ending = Ending::new(session.clone(), "model", request.method());
    let granted = |name: &str| {
        let allowed = session.pass.models.iter().any(|model| model == name);
        session.tenant.setup.models.get(name).filter(|_| allowed).map(|upstream| upstream.wire)
    };
    let name = match rules::model_of(request.method(), &target, granted) {
        Ok(name) => name.to_owned(),
        Err(refusal) => {
            tracing::info!(session = %session.id, %refusal, "refused");
            ending.entry.decision = Some(Decision::Denied);
            refusal.word().clone_into(&mut ending.entry.rule);
            ending.entry.status = Some(403);
            return Ok(plain_error(StatusCode::FORBIDDEN, "permission_error", &refusal.to_string()));
        }
    };
    ending.entry.connection = Some(format!("model:{name}"));
    "model".clone_into(&mut ending.entry.rule);
    match forward(&session, &name, request, &mut ending).await {
        Ok((answer, needles, upstream)) => Ok(respond(answer, needles, (upstream.wire, upstream.price), ending)),
        Err((status, kind, message)) => {
            ending.entry.status = Some(status.as_u16());
            let denied = matches!(status.as_u16(), 403 | 413 | 429);
            ending.entry.decision = Some(if denied { Decision::Denied } else { Decision::Failed });
            Ok(plain_error(status, kind, &message))
        }
    }
}

async fn authority(session: &Session, target: &str) -> Response<Body> {
    match session.authority().await {
        Some(authority) if target == AUTHORITY_PATH => Response::new(full(authority.pem())),
        Some(authority) => Response::new(full(authority.java_store())),
        None => plain_error(StatusCode::SERVICE_UNAVAILABLE, "api_error", "there is no authority now; try again"),
    }
}

/// Where a model is called: its URI, and the host and port that its key is for.
fn place(upstream: &Upstream) -> Option<(Uri, String, u16)> {
    let uri: Uri = format!("{}{}", upstream.base_url.trim_end_matches('/'), upstream.wire.path()).parse().ok()?;
    let (host, port) = target(&upstream.base_url)?;
    Some((uri, host, port))
}

/// Host and port of a base URL.
#[must_use]
pub fn target(base_url: &str) -> Option<(String, u16)> {
    let uri: Uri = base_url.parse().ok()?;
    let ordinary = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    Some((uri.host()?.to_owned(), uri.port_u16().unwrap_or(ordinary)))
}

async fn forward<'s>(
    session: &'s Arc<Session>,
    name: &str,
    request: Request<Incoming>,
    ending: &mut Ending,
) -> Result<(Response<Incoming>, Arc<Needles>, &'s Upstream), Refused> {
    let refused = |status, kind, message: String| (status, kind, message);
    let configuration = |message: &str| {
        refused(StatusCode::FORBIDDEN, "api_error", format!("the operator's configuration of model {name:?} {message}"))
    };
    let upstream = session.tenant.setup.models.get(name).ok_or_else(|| configuration("is gone"))?;
    let (uri, host, port) = place(upstream).ok_or_else(|| configuration("has no usable address"))?;
    host.clone_into(&mut ending.entry.host);
    ending.entry.port = Some(port);
    uri.path().clone_into(&mut ending.entry.path);
    let room = session.check_room();
    room.map_err(|met| {
        (StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", format!("the limit of calls is met; again in {} s", met.0))
    })?;
    if ending.place.is_none() {
        let message = "the session has as many calls under way as it may".to_owned();
        return Err((StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message));
    }
    let tenant = &session.tenant;
    let known = tenant.ledger.open(&tenant.vault, &session.id).await;
    known.map_err(|_| refused(StatusCode::SERVICE_UNAVAILABLE, "api_error", "the vault is away; try again".into()))?;
    if let Some(limit) = tenant.ledger.reached(&session.id, &tenant.setup.limits) {
        // Waiting does not help before somebody raises it, or tomorrow.
        "spend_limit".clone_into(&mut ending.entry.rule);
        let message = format!("model calls have cost what they may ({limit}); the operator can raise it");
        return Err(refused(StatusCode::FORBIDDEN, "spend_limit", message));
    }
    let mut headers = HeaderMap::new();
    for header in REQUEST_HEADERS {
        if let Some(value) = request.headers().get(header) {
            headers.insert(HeaderName::from_static(header), value.clone());
        }
    }
    let mut version = 0;
    if upstream.keyed {
        let purpose = Purpose { session: session.id.clone(), with: With::Model(name.to_owned()), host, port };
        let material = session.material(&purpose).await.map_err(|refusal| {
            use cloister_vault::wire::Refusal;
            tracing::error!(model = name, %refusal, "no credential");
            match refusal {
                // Waiting does not mend a configuration, nor a session's rights.
                Refusal::NotATarget | Refusal::NoCredential | Refusal::NeedsReauth => {
                    configuration("has no usable key")
                }
                _ => refused(StatusCode::SERVICE_UNAVAILABLE, "api_error", "the vault is away; try again".to_owned()),
            }
        })?;
        let Material::Value(key, of) = material else { return Err(configuration("has no usable key")) };
        version = of;
        let (header, value) = match upstream.wire {
            Wire::AnthropicMessages => (HeaderName::from_static("x-api-key"), key.clone()),
            Wire::OpenaiChat => (AUTHORIZATION, format!("Bearer {key}")),
        };
        let mut value = HeaderValue::from_str(&value).map_err(|_| configuration("has no usable key"))?;
        if key.is_empty() {
            return Err(configuration("has no usable key"));
        }
        // Never indexed by HTTP/2, never printed.
        value.set_sensitive(true);
        // After the session's own, so that none of them can stand in its way.
        headers.insert(header, value);
        session.hide(&[&key]);
    }
    if upstream.wire == Wire::AnthropicMessages {
        headers.insert("anthropic-version", HeaderValue::from_static(ANTHROPIC_VERSION));
    }
    // Whole, so that it goes out with its length: not every provider takes
    // chunks.
    let incoming = body::counted(request.into_body(), ending.up.clone());
    let Some((whole, places)) = body::collect(incoming, REQUEST_BODY, &session.room).await else {
        let message = "the model call is too large, too slow, or broke off";
        return Err(refused(StatusCode::PAYLOAD_TOO_LARGE, "api_error", message.to_owned()));
    };
    ending.places = places;
    // The key is good for every model of the provider's; the session for one.
    let asked = serde_json::from_slice::<Asked>(&whole).ok().and_then(|asked| asked.model);
    if asked.is_none_or(|asked| asked != upstream.upstream_model) {
        let message = format!("this is not a call of model {name:?}");
        return Err(refused(StatusCode::FORBIDDEN, "permission_error", message));
    }
    let mut outgoing = Request::new(full(whole));
    *outgoing.method_mut() = Method::POST;
    *outgoing.uri_mut() = uri;
    *outgoing.headers_mut() = headers;
    let reach = if upstream.allow_private { Reach::Any } else { Reach::Public };
    let key = Key {
        credential: Some((With::Model(name.to_owned()), version)),
        session: session.id.clone(),
        host: None,
        reach,
    };
    let client = session.tenant.pool.client(key, None).map_err(|error| {
        tracing::error!(%error, "no TLS");
        configuration("cannot be used")
    })?;
    let away =
        || refused(StatusCode::BAD_GATEWAY, "api_error", format!("the provider of model {name:?} cannot be reached"));
    let answer = tokio::time::timeout(FIRST_BYTE, client.request(outgoing)).await.map_err(|_| away())?;
    let answer = answer.map_err(|error| {
        tracing::warn!(session = %session.id, model = name, ?error, "provider not reached");
        away()
    })?;
    tracing::info!(session = %session.id, model = name, status = answer.status().as_u16(), "model call");
    Ok((answer, session.needles(), upstream))
}

fn respond(
    answer: Response<Incoming>,
    needles: Arc<Needles>,
    (wire, price): (Wire, Price),
    mut ending: Ending,
) -> Response<Body> {
    let (parts, incoming) = answer.into_parts();
    if let Some(peer) = parts.extensions.get::<cloister_dial::Peer>() {
        ending.entry.address = Some(peer.0.ip().to_string());
    }
    ending.entry.status = Some(parts.status.as_u16());
    ending.entry.decision = Some(Decision::Allowed);
    if parts.status.is_success() {
        let streams =
            parts.headers.get(CONTENT_TYPE).is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        let session = &ending.session;
        ending.model = Some(session.tenant.ledger.begin(&session.id, price, Meter::new(wire, streams)));
    }
    let mut headers = HeaderMap::new();
    for header in RESPONSE_HEADERS {
        if let Some(value) = parts.headers.get(&header) {
            headers.insert(header, value.clone());
        }
    }
    let (headers, found) = body::scrub_headers(headers, &needles);
    if found {
        ending.flag("reflected");
    }
    let scrubber = (!needles.is_empty()).then(|| Scrubber::new(needles.clone()));
    let inner = incoming.map_err(body::Error::from).boxed();
    let mut response = Response::new(
        Answer { inner, scrubber, withholder: None, needles, ending, over: false, withholds_cookies: true }.boxed(),
    );
    *response.status_mut() = parts.status;
    *response.headers_mut() = headers;
    response
}

fn plain_error(status: StatusCode, kind: &str, message: &str) -> Response<Body> {
    let mut response =
        Response::new(full(json!({"type": "error", "error": {"type": kind, "message": message}}).to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
