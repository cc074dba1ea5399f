//! Accepting connections, and draining them at the end.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use cloister_api::Origin;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;

use crate::gate::Gate;
use crate::proxy;
use crate::shares::{Share, Shares};
use crate::tls::{self, Tls};

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long a connection may be idle, or a request's head take to arrive.
/// Clients that poll every 15 seconds keep theirs.
const HEAD: Duration = Duration::from_secs(75);
/// Streams of one HTTP/2 connection: event streams live long, so more than
/// hyper's own 200.
const STREAMS: u32 = 1000;
/// Most bytes of a connection's buffer; bodies pass through it in pieces. Ten
/// thousand open streams each have one.
const BUFFER: usize = 16 << 10;
/// How long open requests may take to finish once the server ends.
const DRAIN: Duration = Duration::from_secs(3);

/// What stands before the API.
pub(crate) struct Front {
    pub(crate) gate: Arc<Gate>,
    pub(crate) tls: Option<Tls>,
}

/// From the network, or from the region's door.
type Socket = Either<TcpStream, UnixStream>;

enum Greeted {
    Plain(Box<Socket>),
    Secure(Box<TlsStream<Socket>>),
}

impl Front {
    async fn greet(
        &self,
        shares: &Arc<Shares>,
        mut socket: Socket,
        peer: Option<IpAddr>,
    ) -> Option<(Greeted, Origin, Option<Share>)> {
        let begins = match &socket {
            Either::Left(socket) => self.gate.looks(peer) && begins_with_header(socket).await,
            Either::Right(_) => false,
        };
        let mut origin = self.gate.greet(&mut socket, peer, begins).await.ok()?;
        let share = match origin.address.filter(|address| !self.gate.speaks_for_many(*address)) {
            Some(address) => Some(shares.take(address)?),
            None => None,
        };
        let Some(tls) = &self.tls else { return Some((Greeted::Plain(Box::new(socket)), origin, share)) };
        // Plain text and old versions end here, without an answer.
        let stream = tls.accept(socket).await.ok()??;
        origin.certified = self.gate.certified(stream.get_ref().1.peer_certificates());
        Some((Greeted::Secure(Box::new(stream)), origin, share))
    }
}

/// Does the connection begin with a PROXY header? Nothing is taken from it.
async fn begins_with_header(socket: &TcpStream) -> bool {
    let mut first = [0; 16];
    loop {
        let Ok(count @ 1..) = socket.peek(&mut first).await else { return false };
        match proxy::begins(&first[..count]) {
            Some(begins) => return begins,
            // More is on its way; the caller's patience ends this.
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// The router, with what is known of a connection on each of its requests.
#[derive(Clone)]
struct Known {
    router: Router,
    origin: Origin,
}

impl tower_service::Service<Request<Incoming>> for Known {
    type Response = <Router as tower_service::Service<Request<Incoming>>>::Response;
    type Error = <Router as tower_service::Service<Request<Incoming>>>::Error;
    type Future = <Router as tower_service::Service<Request<Incoming>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower_service::Service::<Request<Incoming>>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        request.extensions_mut().insert(self.origin.clone());
        tower_service::Service::call(&mut self.router, request)
    }
}

/// Serves until `stop` resolves, then lets open requests finish. What `stop` came
/// to.
pub(crate) async fn serve<T>(
    (listener, door): (TcpListener, Option<UnixListener>),
    front: Front,
    router: Router,
    stop: impl Future<Output = T>,
) -> T {
    let protocols = Protocols::new();
    let graceful = GracefulShutdown::new();
    let front = Arc::new(front);
    let most = most_connections();
    let (slots, shares) = (Arc::new(Semaphore::new(most)), Shares::new(most / 2));
    tokio::pin!(stop);
    let stopped = loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted.map(|(socket, peer)| {
                let _ = socket.set_nodelay(true);
                (Either::Left(socket), Some(peer.ip()))
            }),
            accepted = come_in(door.as_ref()) => accepted.map(|socket| (Either::Right(socket), None)),
            stopped = &mut stop => break stopped,
        };
        let (socket, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: wait for some to close.
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        // Beyond that, files could not be opened for those who are here.
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        let (protocols, router, watcher) = (protocols.clone(), router.clone(), graceful.watcher());
        let (front, shares) = (front.clone(), shares.clone());
        tokio::spawn(async move {
            let _slot = slot;
            // Whoever takes too long, or is nobody, is not answered.
            let greeted = tokio::time::timeout(PATIENCE, front.greet(&shares, socket, peer)).await;
            let Ok(Some((stream, origin, _share))) = greeted else { return };
            let router = Known { router, origin };
            match stream {
                Greeted::Plain(stream) => protocols.http1(router, watcher, *stream).await,
                Greeted::Secure(stream) => match stream.get_ref().1.alpn_protocol() {
                    Some(tls::HTTP2) => protocols.http2(router, watcher, stream).await,
                    _ => protocols.http1(router, watcher, stream).await,
                },
            }
        });
    };
    drop((listener, door));
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::info!("streams that were still open are cut; their clients resume");
    }
    stopped
}

/// Connections at once: three quarters of the descriptors that there are. The rest
/// is for files and sessions.
fn most_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS) / 4 * 3
}

async fn come_in(door: Option<&UnixListener>) -> std::io::Result<UnixStream> {
    match door {
        Some(door) => door.accept().await.map(|(socket, _)| socket),
        None => std::future::pending().await,
    }
}

/// How connections are served, by the protocol that was agreed on. Finding it
/// out from the first bytes instead costs every connection half as much
/// memory again.
#[derive(Clone)]
struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).max_concurrent_streams(STREAMS).keep_alive_interval(Duration::from_secs(30));
        Self { http1, http2 }
    }

    // What a client does to its own connection concerns it alone.

    async fn http1(self, router: Known, watcher: Watcher, stream: impl Stream) {
        let connection = self.http1.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        let _ = watcher.watch(connection).await;
    }

    async fn http2(self, router: Known, watcher: Watcher, stream: impl Stream) {
        // A client that agrees on it and then says nothing is not hyper's
        // business; it is ours.
        let asked = Arc::new(AtomicBool::new(false));
        let (service, heard) = (TowerToHyperService::new(router), asked.clone());
        let service = service_fn(move |request| {
            heard.store(true, Ordering::Relaxed);
            service.call(request)
        });
        let connection = watcher.watch(self.http2.serve_connection(TokioIo::new(stream), service));
        tokio::pin!(connection);
        if tokio::time::timeout(HEAD, &mut connection).await.is_err() && asked.load(Ordering::Relaxed) {
            let _ = connection.await;
        }
    }
}

trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}
