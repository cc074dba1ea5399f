//! One request of a session's programs, from its sockets to the other side and
//! back: identify -> decide -> strip -> attach -> send -> scrub -> write down.

use std::convert::Infallible;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use cloister_dial::{DialError, Peer, Reach};
use cloister_types::Host;
use cloister_types::egress::{ClientAuth, Decision, ResponseRules};
use cloister_vault::wire::{Material, Permitted, Purpose, With};
use http::header::{self, HeaderMap};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body as HttpBody, Incoming};
use rustls::client::ResolvesClientCert;

use crate::attach::{self, Attached};
use crate::body::{self, Answer, Body, Ending, full, scrub_headers};
use crate::headers;
use crate::names::address_of;
use crate::path::{canonical, without_parameters};
use crate::pool::Key;
use crate::refuse::Refused;
use crate::rules::{self, Asked, Verdict};
use crate::scrub::{Needles, Scrubber};
use crate::session::Session;
use crate::websocket;
use crate::withhold::Withholder;

/// How long the other side may take to begin its answer.
const FIRST_BYTE: Duration = Duration::from_secs(600);
/// Bytes of a request's target.
const TARGET: usize = 8 << 10;

/// What is known of the connection that a request came on.
#[derive(Debug, Clone)]
pub(crate) struct Dialled {
    /// The name in the TLS handshake; none on plain connections.
    pub(crate) name: Option<Host>,
    /// The address that was dialled; none for connections of the server's own.
    pub(crate) address: Option<Ipv4Addr>,
}

/// A request that has been read.
struct Read {
    host: Host,
    path: String,
    query: String,
}

/// Answers one request.
pub(crate) async fn handle(
    session: Arc<Session>,
    dialled: Dialled,
    request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let stream = if websocket::is_asked_for(&request) { "websocket" } else { "http" };
    let mut ending = Ending::new(session.clone(), stream, request.method());
    ending.entry.port = Some(443);
    match call(&session, &dialled, request, &mut ending).await {
        Ok(Sent::Answer(response)) => {
            let (parts, answer) = response.into_parts();
            Ok(Response::from_parts(parts, answer(ending)))
        }
        Ok(Sent::Upgraded(response, begin)) => {
            begin(ending);
            Ok(response)
        }
        Err(refused) => {
            let entry = &mut ending.entry;
            entry.status = Some(refused.status);
            entry.decision = Some(if refused.status >= 500 { Decision::Failed } else { Decision::Denied });
            refused.word.clone_into(&mut entry.rule);
            Ok(refused.response())
        }
    }
}

/// What came of a request that was sent. The record of the call ends with it.
pub(crate) enum Sent {
    /// An answer.
    Answer(Response<Box<dyn FnOnce(Ending) -> Body + Send>>),
    /// A WebSocket.
    Upgraded(Response<Body>, Box<dyn FnOnce(Ending) + Send>),
}

async fn call(
    session: &Arc<Session>,
    dialled: &Dialled,
    request: Request<Incoming>,
    ending: &mut Ending,
) -> Result<Sent, Refused> {
    rules::check_method(request.method().as_str())?;
    let permitted = session.permitted().await?;
    let read = read(session, dialled, &request, &permitted)?;
    read.host.as_str().clone_into(&mut ending.entry.host);
    read.path.clone_into(&mut ending.entry.path);
    ending.entry.query = headers::query_names(&read.query);
    session.check_room()?;
    if ending.place.is_none() {
        return Err(Refused::new(429, "egress_limit", "the session has as many calls under way as it may"));
    }
    let named = request.headers().get(headers::CONNECTION_HEADER).map(|value| value.to_str().unwrap_or("?"));
    let path = without_parameters(&read.path);
    let asked = Asked {
        host: &read.host,
        method: request.method().as_str(),
        path: &path,
        whole: &read.path,
        named,
        placed: session.is_placed(&read.host),
    };
    let verdict = rules::decide(&session.pass.policy, &permitted, asked)?;
    let (mut parts, incoming) = request.into_parts();
    // Before anything is attached: what the agent lists as concerning this
    // connection alone must not take our own headers out.
    let upgrade = websocket::take(&mut parts);
    headers::strip_hops(&mut parts.headers);
    parts.headers.remove(header::HOST);
    let asked = Stripped { read, parts, incoming, upgrade };
    match verdict {
        Verdict::Plain(other) => plain(session, asked, other, ending).await,
        Verdict::With(with, port) => {
            ending.entry.port = Some(port);
            ending.entry.connection = Some(with.name.to_string());
            credentialed(session, asked, (with, port), ending).await
        }
    }
}

/// A request without what concerned the connection that it came on.
struct Stripped {
    read: Read,
    parts: Parts,
    incoming: Incoming,
    upgrade: Option<websocket::Upgrade>,
}

/// Reads what a request is about, and that it is about what was dialled.
fn read(
    session: &Session,
    dialled: &Dialled,
    request: &Request<Incoming>,
    permitted: &[Permitted],
) -> Result<Read, Refused> {
    let malformed = |message: &str| Refused::new(400, "request_refused", message);
    let uri = request.uri();
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let (host, second) = (hosts.next(), hosts.next());
    if second.is_some() {
        return Err(malformed("a request has one Host header"));
    }
    if request.version() == Version::HTTP_2 && dialled.name.is_some() && uri.scheme_str() == Some("http") {
        return Err(malformed("the request's scheme is not the connection's"));
    }
    let host = host.map(|host| host.to_str().map_err(|_| malformed("the Host header is not readable"))).transpose()?;
    let authority = match (uri.authority().map(http::uri::Authority::as_str), host) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host) => return Err(Refused::misdirected()),
        (Some(authority), _) => authority,
        (None, Some(host)) => host,
        (None, None) => return Err(malformed("the request names no host")),
    };
    let ordinary = if dialled.name.is_some() { "443" } else { "80" };
    let name = match authority.rsplit_once(':') {
        Some((name, port)) if port == ordinary => name,
        Some(_) => return Err(malformed("the request's port is not the connection's")),
        None => authority,
    };
    let host: Host = name
        .parse()
        .map_err(|error: cloister_types::host::HostError| Refused::new(421, "host_refused", error.to_string()))?;
    if dialled.name.as_ref().is_some_and(|dialled| *dialled != host) {
        return Err(Refused::misdirected());
    }
    if dialled.address.is_some_and(|address| address != address_of(session.id.as_str(), &host)) {
        return Err(Refused::misdirected());
    }
    let target = uri.path_and_query().map_or("/", |target| target.as_str());
    if target.len() > TARGET {
        return Err(Refused::new(414, "request_refused", "the target is too long"));
    }
    let path = canonical(uri.path(), rules::is_ruled(permitted, &host))?;
    let query = uri.query().unwrap_or_default();
    if !query.bytes().all(|byte| (0x21..0x7f).contains(&byte) && byte != b'#') {
        return Err(malformed("the query holds a character that has no place in one"));
    }
    Ok(Read { host, path, query: query.to_owned() })
}

/// Without a credential of ours.
async fn plain(
    session: &Arc<Session>,
    asked: Stripped,
    other: Option<&Permitted>,
    ending: &mut Ending,
) -> Result<Sent, Refused> {
    let rule = match other {
        Some(other) => other.connection.client_auth,
        None if rules::is_everybodys(&asked.read.host) => ClientAuth::Deny,
        None => ClientAuth::Allow,
    };
    let also = other.and_then(|other| headers::attached(&other.connection.attach)).map(str::to_owned);
    let Stripped { mut read, mut parts, incoming, upgrade } = asked;
    own_credentials(&mut parts, &mut read, rule, also.as_deref(), ending)?;
    if let Some(other) = other {
        headers::ask_for_plain(&mut parts.headers, other.connection.response.ranges);
    }
    let key = Key { credential: None, session: session.id.clone(), host: None, reach: Reach::Public };
    let attached = Attached { version: 0, value: None, places: Vec::new(), identity: None, frame: None, query: None };
    let body = body::counted(incoming, ending.up.clone());
    "policy".clone_into(&mut ending.entry.rule);
    // A host that holds a credential of the session may show it anywhere.
    let rules = other.map(|other| other.connection.response);
    let out = Outgoing { parts, upgrade, body: Some(body), read, port: 443, key, attached, rules };
    send(session, out, ending).await
}

/// With the credential of a connection.
async fn credentialed(
    session: &Arc<Session>,
    asked: Stripped,
    (with, port): (&Permitted, u16),
    ending: &mut Ending,
) -> Result<Sent, Refused> {
    let connection = &with.connection;
    let Stripped { mut read, mut parts, incoming, upgrade } = asked;
    let also = headers::attached(&connection.attach);
    own_credentials(&mut parts, &mut read, connection.client_auth, also, ending)?;
    // Our own takes the place of whatever was left there.
    if let Some(name) = also {
        parts.headers.remove(name);
    }
    headers::ask_for_plain(&mut parts.headers, connection.response.ranges);
    let purpose = Purpose {
        session: session.id.clone(),
        with: With::Connection(with.name.clone()),
        host: read.host.to_string(),
        port,
    };
    let repeatable = incoming.is_end_stream().then(|| parts.clone());
    let mut body = Some(body::counted(incoming, ending.up.clone()));
    let attached = attach::attach(session, with, &purpose, &mut parts, &mut body, (&read.path, &read.query)).await?;
    "connection".clone_into(&mut ending.entry.rule);
    ending.entry.version = Some(attached.version);
    let again = Read { host: read.host.clone(), path: read.path.clone(), query: read.query.clone() };
    let (version, value) = (attached.version, attached.value.clone());
    let key = key_of(session, &purpose, &attached);
    let out = Outgoing { parts, upgrade, body, read, port, key, attached, rules: Some(connection.response) };
    let sent = send(session, out, ending).await?;
    // One more try, with a new token, where nothing of a body is lost.
    let Sent::Answer(response) = &sent else { return Ok(sent) };
    let (StatusCode::UNAUTHORIZED, Some(mut parts)) = (response.status(), repeatable) else { return Ok(sent) };
    let Some(before) = value else { return Ok(sent) };
    session.rejected(&purpose, version, &before).await;
    let after = session.material(&purpose).await.ok();
    if !matches!(after, Some(Material::Value(after, _)) if after != before) {
        return Ok(sent);
    }
    ending.flag("token_renewed");
    let mut body = Some(full(bytes::Bytes::new()));
    let attached = attach::attach(session, with, &purpose, &mut parts, &mut body, (&again.path, &again.query)).await?;
    let key = key_of(session, &purpose, &attached);
    let out =
        Outgoing { parts, upgrade: None, body, read: again, port, key, attached, rules: Some(connection.response) };
    send(session, out, ending).await
}

/// Whose connections a call with a credential uses.
fn key_of(session: &Session, purpose: &Purpose, attached: &Attached) -> Key {
    let host = attached.identity.is_some().then(|| purpose.host.clone());
    Key {
        credential: Some((purpose.with.clone(), attached.version)),
        session: session.id.clone(),
        host,
        reach: Reach::Public,
    }
}

/// Takes out the agent's own credentials, or refuses the request for them.
fn own_credentials(
    parts: &mut Parts,
    read: &mut Read,
    rule: ClientAuth,
    also: Option<&str>,
    ending: &mut Ending,
) -> Result<(), Refused> {
    if rule == ClientAuth::Allow {
        return Ok(());
    }
    let own = headers::credentials(&parts.headers, also);
    let (query, in_query) = headers::strip_query(&read.query, also);
    if own.is_empty() && !in_query {
        return Ok(());
    }
    if rule == ClientAuth::Deny {
        return Err(rules::Refusal::AgentCredential.into());
    }
    own.iter().for_each(|name| drop(parts.headers.remove(name)));
    read.query = query;
    ending.flag("stripped_auth");
    Ok(())
}

/// A request, ready to be sent.
pub(crate) struct Outgoing {
    pub(crate) parts: Parts,
    upgrade: Option<websocket::Upgrade>,
    body: Option<Body>,
    read: Read,
    pub(crate) port: u16,
    pub(crate) key: Key,
    pub(crate) attached: Attached,
    /// For answers to calls with a credential.
    rules: Option<ResponseRules>,
}

impl Outgoing {
    pub(crate) fn uri(&self) -> Result<Uri, Refused> {
        let query = self.attached.query.as_deref().unwrap_or(&self.read.query);
        let mark = if query.is_empty() { "" } else { "?" };
        let port = if self.port == 443 { String::new() } else { format!(":{}", self.port) };
        let text = format!("https://{}{port}{}{mark}{query}", self.read.host, self.read.path);
        text.parse().map_err(|_| Refused::new(400, "request_refused", "the target is not one"))
    }

    pub(crate) fn identity(&self) -> Option<Arc<dyn ResolvesClientCert>> {
        self.attached.identity.clone().map(|identity| identity as Arc<dyn ResolvesClientCert>)
    }
}

async fn send(session: &Arc<Session>, mut out: Outgoing, ending: &mut Ending) -> Result<Sent, Refused> {
    if let Some(upgrade) = out.upgrade.take() {
        return websocket::open(session, out, upgrade, ending).await;
    }
    let uri = out.uri()?;
    let client = session.tenant.pool.client(out.key.clone(), out.identity()).map_err(|error| {
        tracing::error!(%error, "no TLS");
        Refused::new(502, "upstream_unreachable", "no connection can be made")
    })?;
    // The body's room is taken until its call is over.
    ending.places.append(&mut out.attached.places);
    let mut request = Request::new(out.body.take().unwrap_or_else(|| full(bytes::Bytes::new())));
    *request.method_mut() = out.parts.method.clone();
    *request.uri_mut() = uri;
    *request.headers_mut() = std::mem::take(&mut out.parts.headers);
    let answer = tokio::time::timeout(FIRST_BYTE, client.request(request)).await;
    let answer = answer.map_err(|_| Refused::new(504, "upstream_slow", "the other side does not answer"))?;
    let answer = answer.map_err(|error| unreachable(session, &error))?;
    answered(session, answer, &out, ending)
}

/// Why the other side was not reached: the kind is told, the rest is logged.
fn unreachable(session: &Session, error: &hyper_util::client::legacy::Error) -> Refused {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    let mut dial = None;
    while let Some(error) = source {
        dial = dial.or_else(|| error.downcast_ref::<DialError>());
        source = error.source();
    }
    tracing::info!(session = %session.id, ?error, "not reached");
    dial_refused(dial)
}

pub(crate) fn dial_refused(error: Option<&DialError>) -> Refused {
    match error {
        Some(DialError::Private(_) | DialError::Public(_)) => {
            Refused::new(403, "address_refused", "the name leads to an address that sessions may not reach")
        }
        Some(DialError::Resolve(_)) => Refused::new(502, "name_unknown", "the name cannot be resolved"),
        Some(DialError::Tls(_)) => {
            Refused::new(502, "upstream_insecure", "the other side's certificate or TLS is not acceptable")
        }
        Some(DialError::Slow) => Refused::new(504, "upstream_slow", "the other side does not answer"),
        Some(DialError::Connect(_)) => Refused::new(502, "upstream_unreachable", "no connection to the other side"),
        None => Refused::new(
            502,
            "upstream_broken",
            "the other side broke the connection, or answered with something else than HTTP",
        ),
    }
}

fn answered(
    session: &Session,
    answer: Response<Incoming>,
    out: &Outgoing,
    ending: &mut Ending,
) -> Result<Sent, Refused> {
    let (mut parts, incoming) = answer.into_parts();
    if let Some(peer) = parts.extensions.get::<Peer>() {
        ending.entry.address = Some(peer.0.ip().to_string());
    }
    ending.entry.status = Some(parts.status.as_u16());
    ending.entry.decision = Some(Decision::Allowed);
    let needles = session.needles();
    let packed = headers::packing(&parts.headers);
    parts.headers = clean(std::mem::take(&mut parts.headers), &needles, out.rules, ending);
    let mut body: Body = http_body_util::BodyExt::map_err(incoming, body::Error::from).boxed();
    let mut withholder = None;
    if let Some(rules) = out.rules {
        if parts.status == StatusCode::PARTIAL_CONTENT && !rules.ranges {
            return Err(Refused::new(502, "answer_refused", "the other side sent a part that was not asked for"));
        }
        let empty = out.parts.method == Method::HEAD || body.is_end_stream();
        let unknown =
            || Refused::new(502, "answer_refused", "the other side packed what could then not be looked through");
        if let Some(encoding) = packed.map_err(|()| unknown())?.filter(|_| !empty) {
            body = body::unpacked(body, &encoding).ok_or_else(unknown)?;
            parts.headers.remove(header::CONTENT_ENCODING);
            parts.headers.remove(header::CONTENT_LENGTH);
            parts.headers.remove(header::ETAG);
        }
        let kind = parts.headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        withholder = if rules.tokens { None } else { Withholder::for_kind(kind) };
    }
    let withholds_cookies = out.rules.is_some_and(|rules| !rules.cookies);
    let response = |parts: http::response::Parts| {
        let mut response = Response::new(Box::new(move |ending: Ending| {
            let scrubber = (!needles.is_empty()).then(|| Scrubber::new(needles.clone()));
            http_body_util::BodyExt::boxed(Answer {
                inner: body,
                scrubber,
                withholder,
                needles,
                ending,
                over: false,
                withholds_cookies,
            })
        }) as Box<dyn FnOnce(Ending) -> Body + Send>);
        *response.status_mut() = parts.status;
        *response.headers_mut() = parts.headers;
        response
    };
    Ok(Sent::Answer(response(parts)))
}

/// The headers of an answer that the session may see.
pub(crate) fn clean(
    mut headers: HeaderMap,
    needles: &Needles,
    rules: Option<ResponseRules>,
    ending: &mut Ending,
) -> HeaderMap {
    headers::strip_answer(&mut headers);
    if rules.is_some_and(|rules| !rules.cookies) && headers.remove(header::SET_COOKIE).is_some() {
        ending.flag("withheld_cookie");
    }
    if headers.contains_key(header::LOCATION) {
        ending.flag("redirected");
    }
    let (headers, found) = scrub_headers(headers, needles);
    if found {
        ending.flag("reflected");
    }
    headers
}

trait Boxed {
    fn boxed(self) -> Body;
}

impl<B: HttpBody<Data = bytes::Bytes, Error = body::Error> + Send + Sync + 'static> Boxed for B {
    fn boxed(self) -> Body {
        http_body_util::BodyExt::boxed(self)
    }
}
