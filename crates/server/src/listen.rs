//! Accepting connections, and draining them at the end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::tls;

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

/// Serves until `stop` resolves, then lets open requests finish.
pub(crate) async fn serve(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    router: Router,
    stop: impl Future<Output = ()>,
) {
    let protocols = Protocols::new();
    let graceful = GracefulShutdown::new();
    tokio::pin!(stop);
    loop {
        let socket = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((socket, _)) => socket,
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to close.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let _ = socket.set_nodelay(true);
        let (protocols, router, watcher) = (protocols.clone(), router.clone(), graceful.watcher());
        match tls.clone() {
            None => drop(tokio::spawn(protocols.http1(router, watcher, socket))),
            Some(acceptor) => drop(tokio::spawn(async move {
                // Plain text and old versions end here, without an answer.
                let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(socket)).await else { return };
                match stream.get_ref().1.alpn_protocol() {
                    Some(tls::HTTP2) => protocols.http2(router, watcher, stream).await,
                    _ => protocols.http1(router, watcher, stream).await,
                }
            })),
        }
    }
    drop(listener);
    if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
        tracing::info!("streams that were still open are cut; their clients resume");
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

    async fn http1(self, router: Router, watcher: Watcher, stream: impl Stream) {
        let connection = self.http1.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        let _ = watcher.watch(connection).await;
    }

    async fn http2(self, router: Router, watcher: Watcher, stream: impl Stream) {
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
