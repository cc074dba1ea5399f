//! Attaching a credential: exactly one, in exactly one place.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use cloister_types::egress::Attach;
use cloister_vault::wire::{AwsCall, Material, Permitted, Purpose};
use http::header::{AUTHORIZATION, COOKIE, HeaderName, HeaderValue};
use http::request::Parts;
use tokio::sync::OwnedSemaphorePermit;

use crate::body::{self, Body, full};
use crate::headers;
use crate::identity::Identity;
use crate::refuse::Refused;
use crate::session::Session;

/// What stands for itself in a query (RFC 3986, 2.3).
const QUERY: &percent_encoding::AsciiSet =
    &percent_encoding::NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
/// Bytes of a body that is looked into, or hashed.
const BODY: usize = 16 << 20;

/// What a call goes out with.
pub(crate) struct Attached {
    pub(crate) version: u64,
    /// The value itself, of kinds that can be made anew.
    pub(crate) value: Option<String>,
    /// Room that the body takes.
    pub(crate) places: Vec<OwnedSemaphorePermit>,
    pub(crate) identity: Option<Arc<Identity>>,
    /// The first frame on a WebSocket.
    pub(crate) frame: Option<String>,
    /// The query with the credential in it.
    pub(crate) query: Option<String>,
}

fn unusable() -> Refused {
    Refused::new(403, "no_credential", "the connection's credential cannot be attached as it says")
}

fn sensitive(text: &str) -> Result<HeaderValue, Refused> {
    let mut value = HeaderValue::from_str(text).map_err(|_| unusable())?;
    // Never indexed by HTTP/2, never printed.
    value.set_sensitive(true);
    Ok(value)
}

/// Attaches the credential of a connection to a request, whose own ones have
/// been taken out.
pub(crate) async fn attach(
    session: &Arc<Session>,
    with: &Permitted,
    purpose: &Purpose,
    parts: &mut Parts,
    body: &mut Option<Body>,
    (path, query): (&str, &str),
) -> Result<Attached, Refused> {
    if let Attach::Sigv4 { service, .. } = &with.connection.attach {
        return sign(session, purpose, parts, body, (path, query, service)).await;
    }
    let material = session.material(purpose).await?;
    let (secret, version) = match material {
        Material::Value(secret, version) => (secret, version),
        Material::Certificates(chain, version) => {
            let identity = Some(Identity::new(session.tenant.clone(), purpose.clone(), chain));
            return Ok(Attached { version, value: None, places: Vec::new(), identity, frame: None, query: None });
        }
        Material::Signed(..) => return Err(unusable()),
    };
    let (mut frame, mut new_query, mut rendered, mut places) = (None, None, Vec::new(), Vec::new());
    match &with.connection.attach {
        Attach::Header { name, template } => {
            let name: HeaderName = name.parse().map_err(|_| unusable())?;
            parts.headers.insert(name, sensitive(&template.replace("{secret}", &secret))?);
        }
        Attach::Basic { username } => {
            let pair = username.as_ref().map_or_else(|| secret.clone(), |username| format!("{username}:{secret}"));
            let encoded = STANDARD.encode(&pair);
            parts.headers.insert(AUTHORIZATION, sensitive(&format!("Basic {encoded}"))?);
            // Who decodes it shows its parts.
            rendered.extend(pair.split_once(':').map(|(_, password)| password.to_owned()));
            rendered.push(pair);
        }
        Attach::Query { name } => {
            let value = percent_encoding::utf8_percent_encode(&secret, QUERY).to_string();
            let pair = format!("{name}={value}");
            rendered.push(value);
            // Of two of one name, some servers take the first.
            let others = headers::without_parameter(query, name);
            new_query = Some(if others.is_empty() { pair } else { format!("{others}&{pair}") });
        }
        Attach::Cookie { name } => {
            let kept =
                parts.headers.get(COOKIE).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty());
            let text = kept.map_or_else(|| format!("{name}={secret}"), |kept| format!("{kept}; {name}={secret}"));
            parts.headers.insert(COOKIE, sensitive(&text)?);
        }
        Attach::Body { pointer } => {
            let (bytes, room) = collect(session, body).await?;
            places = room;
            let mut value: serde_json::Value = serde_json::from_slice(&bytes).map_err(|_| {
                Refused::new(400, "body_refused", "the connection attaches to a JSON body, which this is not")
            })?;
            let (parent, name) = pointer.rsplit_once('/').ok_or_else(unusable)?;
            let name = name.replace("~1", "/").replace("~0", "~");
            match value.pointer_mut(parent) {
                Some(serde_json::Value::Object(members)) => members.insert(name, secret.clone().into()),
                _ => {
                    return Err(Refused::new(
                        400,
                        "body_refused",
                        "the body has no place for the connection's credential",
                    ));
                }
            };
            let bytes = serde_json::to_vec(&value).map_err(|_| unusable())?;
            parts.headers.insert(http::header::CONTENT_LENGTH, HeaderValue::from(bytes.len()));
            *body = Some(full(bytes));
        }
        Attach::WebsocketFrame { template } => frame = Some(template.replace("{secret}", &secret)),
        Attach::Sigv4 { .. } | Attach::ClientCertificate => return Err(unusable()),
    }
    let secrets: Vec<&str> = std::iter::once(secret.as_str()).chain(rendered.iter().map(String::as_str)).collect();
    session.hide(&secrets);
    Ok(Attached { version, value: Some(secret), places, identity: None, frame, query: new_query })
}

/// The whole body, within reason.
async fn collect(session: &Session, body: &mut Option<Body>) -> Result<(Bytes, Vec<OwnedSemaphorePermit>), Refused> {
    let Some(body) = body.take() else { return Ok((Bytes::new(), Vec::new())) };
    let whole = body::collect(body, BODY, &session.room).await;
    whole.ok_or_else(|| Refused::new(413, "body_too_large", "the body is too large for this connection, or broke off"))
}

async fn sign(
    session: &Arc<Session>,
    purpose: &Purpose,
    parts: &mut Parts,
    body: &mut Option<Body>,
    (path, query, service): (&str, &str, &str),
) -> Result<Attached, Refused> {
    // Chunks that the agent's own tool has signed would be signed by nobody.
    let of_amazon: Vec<HeaderName> =
        parts.headers.keys().filter(|name| name.as_str().starts_with("x-amz-")).cloned().collect();
    if parts.headers.get("x-amz-content-sha256").is_some_and(|value| value.as_bytes().starts_with(b"STREAMING-")) {
        return Err(Refused::new(
            400,
            "body_refused",
            "bodies signed in chunks are not passed on; send the body unsigned",
        ));
    }
    for name in ["x-amz-date", "x-amz-content-sha256", "x-amz-security-token"] {
        parts.headers.remove(name);
    }
    let mut places = Vec::new();
    let payload = if service == "s3" {
        "UNSIGNED-PAYLOAD".to_owned()
    } else {
        let (bytes, room) = collect(session, body).await?;
        places = room;
        let hash = cloister_vault::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, &bytes).as_ref());
        *body = Some(full(bytes));
        hash
    };
    let host = if purpose.port == 443 { purpose.host.clone() } else { format!("{}:{}", purpose.host, purpose.port) };
    let mut headers = vec![("host".to_owned(), host)];
    headers.extend(
        of_amazon
            .iter()
            .filter_map(|name| Some((name.to_string(), parts.headers.get(name)?.to_str().ok()?.to_owned()))),
    );
    headers.extend(
        parts
            .headers
            .get(http::header::CONTENT_TYPE)
            .and_then(|value| Some(("content-type".into(), value.to_str().ok()?.to_owned()))),
    );
    let time = cloister_vault::aws_time(std::time::SystemTime::now());
    let call = AwsCall {
        method: parts.method.to_string(),
        path: path.to_owned(),
        query: query.to_owned(),
        headers,
        payload,
        time,
    };
    let Material::Signed(headers, hidden, version) = session.signed(purpose, call).await? else {
        return Err(unusable());
    };
    for (name, value) in &headers {
        let name: HeaderName = name.parse().map_err(|_| unusable())?;
        parts.headers.insert(name, sensitive(value)?);
    }
    let hidden: Vec<&str> = hidden.iter().map(String::as_str).collect();
    session.hide(&hidden);
    Ok(Attached { version, value: None, places, identity: None, frame: None, query: None })
}
