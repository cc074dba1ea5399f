//! A client for `egress.py` and `front.py`: the same one inside a session and
//! outside. It opens connections, keeps them, and measures each request.
//!
//! `egress_client NAME ADDRESS CA CONNECTIONS REQUESTS PATH`; prints JSON. In the
//! environment: `PACE`, milliseconds to wait before each request; `BEARER`, a key to
//! show; `PLAIN`, no TLS; `FRESH`, a connection for each request, measured with it.
//! `idle` as a path opens the connections, says so, and waits.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_bench::quantiles;
use http_body_util::{BodyExt, Empty};
use hyper::Request;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

type Failure = Box<dyn std::error::Error + Send + Sync>;

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

async fn connect(name: &str, address: &str, tls: &TlsConnector) -> Result<Box<dyn Stream>, Failure> {
    let socket = TcpStream::connect(address).await?;
    socket.set_nodelay(true)?;
    if is_set("PLAIN") {
        return Ok(Box::new(socket));
    }
    Ok(Box::new(tls.connect(ServerName::try_from(name.to_owned())?, socket).await?))
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some()
}

async fn open(
    name: &str,
    address: &str,
    tls: &TlsConnector,
) -> Result<hyper::client::conn::http1::SendRequest<Empty<bytes::Bytes>>, Failure> {
    let stream = connect(name, address, tls).await?;
    let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

async fn requests(
    name: String,
    address: String,
    tls: TlsConnector,
    count: usize,
    path: String,
    pace: Duration,
) -> Result<(Vec<f64>, u64), Failure> {
    let fresh = is_set("FRESH");
    let bearer = std::env::var("BEARER").ok().map(|key| format!("Bearer {key}"));
    let mut sender = open(&name, &address, &tls).await?;
    let (mut took, mut bytes) = (Vec::with_capacity(count), 0);
    for _ in 0..count {
        tokio::time::sleep(pace).await;
        let mut request = Request::get(&path).header("host", &name);
        if let Some(bearer) = &bearer {
            request = request.header("authorization", bearer);
        }
        let request = request.body(Empty::<bytes::Bytes>::new())?;
        let began = Instant::now();
        if fresh {
            sender = open(&name, &address, &tls).await?;
        }
        let answer = sender.send_request(request).await?;
        if !answer.status().is_success() {
            return Err(format!("status {}", answer.status()).into());
        }
        let mut body = answer.into_body();
        while let Some(frame) = body.frame().await {
            bytes += frame?.data_ref().map_or(0, |data| data.len() as u64);
        }
        took.push(began.elapsed().as_secs_f64() * 1e6);
    }
    Ok((took, bytes))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [name, address, ca, connections, count, path] = arguments.as_slice() else {
        return Err("egress_client NAME ADDRESS CA CONNECTIONS REQUESTS PATH".into());
    };
    let (connections, count): (usize, usize) = (connections.parse()?, count.parse()?);
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(ca)? {
        roots.add(certificate?)?;
    }
    let config = rustls::ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    let tls = TlsConnector::from(Arc::new(config));
    if path == "idle" {
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(connect(name, address, &tls).await?);
        }
        println!("open");
        tokio::time::sleep(Duration::from_secs(count as u64)).await;
        return Ok(());
    }
    let pace = std::env::var("PACE").ok().and_then(|pace| pace.parse().ok()).unwrap_or_default();
    let pace = Duration::from_millis(pace);
    let began = Instant::now();
    let tasks: Vec<_> = (0..connections)
        .map(|_| tokio::spawn(requests(name.clone(), address.clone(), tls.clone(), count, path.clone(), pace)))
        .collect();
    let (mut all, mut bytes) = (Vec::new(), 0);
    for task in tasks {
        let (took, got) = task.await??;
        // The first of each opens what is kept from then on.
        all.extend(took.into_iter().skip(1));
        bytes += got;
    }
    let seconds = began.elapsed().as_secs_f64();
    let (p50, p99) = if all.is_empty() { (0.0, 0.0) } else { quantiles(&mut all) };
    println!("{{\"p50\": {p50:.1}, \"p99\": {p99:.1}, \"seconds\": {seconds:.4}, \"bytes\": {bytes}}}");
    Ok(())
}
