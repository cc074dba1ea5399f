//! The dialer as an HTTP client's way to connect.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::resolve::{DialError, Dialer, Reach};

/// The address that an answer came from; among an answer's extensions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer(pub SocketAddr);

/// Connects for one kind of request: `https` URIs with TLS, `http` ones only
/// where the operator allowed that.
#[derive(Clone)]
pub struct Connector {
    /// Where hosts are.
    pub dialer: Arc<Dialer>,
    /// Which addresses may be connected to.
    pub reach: Reach,
    /// Whom to trust, and as whom to speak.
    pub tls: Arc<ClientConfig>,
}

impl Connector {
    /// Connects.
    ///
    /// # Errors
    /// Why not.
    pub async fn connect(self, uri: Uri) -> Result<Stream, DialError> {
        let host = uri.host().unwrap_or_default().to_owned();
        let secure = uri.scheme_str() == Some("https");
        if !secure && self.reach == Reach::Public {
            return Err(DialError::Tls(io::Error::other("nothing leaves in the clear")));
        }
        let port = uri.port_u16().unwrap_or(if secure { 443 } else { 80 });
        let reach = if secure || self.reach != Reach::Any { self.reach } else { Reach::Private };
        let socket = self.dialer.dial(&host, port, reach).await?;
        let peer = socket.peer_addr().map_err(DialError::Connect)?;
        if !secure {
            return Ok(Stream { peer, kind: Kind::Plain(TokioIo::new(socket)) });
        }
        let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned());
        let name = name.map_err(|error| DialError::Tls(io::Error::other(error)))?;
        let connector = TlsConnector::from(self.tls);
        match tokio::time::timeout(HANDSHAKE, connector.connect(name, socket)).await {
            Ok(Ok(stream)) => Ok(Stream { peer, kind: Kind::Tls(Box::new(TokioIo::new(stream))) }),
            Ok(Err(error)) => Err(DialError::Tls(error)),
            Err(_) => Err(DialError::Slow),
        }
    }
}

/// How long a handshake may take.
const HANDSHAKE: std::time::Duration = std::time::Duration::from_secs(10);

impl tower_service::Service<Uri> for Connector {
    type Response = Stream;
    type Error = DialError;
    type Future = Pin<Box<dyn Future<Output = Result<Stream, DialError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), DialError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        Box::pin(self.clone().connect(uri))
    }
}

/// A connection, with TLS or, to a private host, without.
pub struct Stream {
    peer: SocketAddr,
    kind: Kind,
}

enum Kind {
    Plain(TokioIo<TcpStream>),
    Tls(Box<TokioIo<TlsStream<TcpStream>>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().extra(Peer(self.peer));
        match &self.kind {
            Kind::Tls(stream) if stream.inner().get_ref().1.alpn_protocol() == Some(b"h2") => connected.negotiated_h2(),
            _ => connected,
        }
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, buffer: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Kind::Tls(stream) => Pin::new(&mut **stream).poll_read(context, buffer),
        }
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Kind::Tls(stream) => Pin::new(&mut **stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_write_vectored(context, parts),
            Kind::Tls(stream) => Pin::new(&mut **stream).poll_write_vectored(context, parts),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_flush(context),
            Kind::Tls(stream) => Pin::new(&mut **stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.get_mut().kind {
            Kind::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Kind::Tls(stream) => Pin::new(&mut **stream).poll_shutdown(context),
        }
    }
}
