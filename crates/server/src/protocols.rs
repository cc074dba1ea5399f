//! How connections are served, by the protocol that was agreed on. Finding it out
//! from the first bytes instead costs every connection half as much memory again.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::response::Response;
use cloister_api::Origin;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How long a connection may be idle, or a request's head take to arrive.
/// Clients that poll every 15 seconds keep theirs.
const HEAD: Duration = Duration::from_secs(75);
/// How long a connection that is to end may take, once nothing is open on it.
const LEAVE: Duration = Duration::from_secs(5);
/// How long one that has asked nothing yet may do so when the server ends.
const LAST_WORD: Duration = Duration::from_secs(1);
/// Streams of one HTTP/2 connection: event streams live long, so more than
/// hyper's own 200.
const STREAMS: u32 = 1000;
/// Most bytes of a request's headers with HTTP/2: hyper's own limit, said here.
const HEADERS: u32 = 16 << 10;
/// Most bytes of a connection's buffer, and so of a head with HTTP/1.1; bodies pass
/// through it in pieces. Ten thousand open streams each have one.
const BUFFER: usize = 16 << 10;

/// The router, with what is known of a connection on each of its requests.
#[derive(Clone)]
pub(crate) struct Known {
    router: Router,
    origin: Origin,
    /// There was one.
    asked: Arc<AtomicBool>,
}

impl Known {
    pub(crate) fn new(router: Router, origin: Origin) -> Self {
        Self { router, origin, asked: Arc::default() }
    }
}

impl tower_service::Service<Request<Incoming>> for Known {
    type Response = <Router as tower_service::Service<Request<Incoming>>>::Response;
    type Error = <Router as tower_service::Service<Request<Incoming>>>::Error;
    type Future = <Router as tower_service::Service<Request<Incoming>>>::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        tower_service::Service::<Request<Incoming>>::poll_ready(&mut self.router, context)
    }

    fn call(&mut self, mut request: Request<Incoming>) -> Self::Future {
        self.asked.store(true, Ordering::Relaxed);
        request.extensions_mut().insert(self.origin.clone());
        tower_service::Service::call(&mut self.router, request)
    }
}

#[derive(Clone)]
pub(crate) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
}

impl Protocols {
    pub(crate) fn new() -> Self {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(BUFFER);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).max_concurrent_streams(STREAMS).max_header_list_size(HEADERS);
        http2.keep_alive_interval(Duration::from_secs(30));
        Self { http1, http2 }
    }

    // What a client does to its own connection concerns it alone.

    /// Serves until the client goes, or until `leaving` and what is under way is over.
    pub(crate) async fn http1(self, known: Known, leaving: CancellationToken, stream: impl Stream) {
        let asked = known.asked.clone();
        let connection = self.http1.serve_connection(TokioIo::new(stream), TowerToHyperService::new(known));
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => return,
            () = left(&leaving, &asked) => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    /// The same, and until nothing has been under way for long: unlike with HTTP/1.1,
    /// that is not hyper's business.
    pub(crate) async fn http2(self, known: Known, leaving: CancellationToken, stream: impl Stream) {
        let (underway, mut open) = watch::channel(0);
        let asked = known.asked.clone();
        let service = TowerToHyperService::new(known);
        let service = service_fn(move |request| {
            let open = Open::new(&underway);
            let answer = service.call(request);
            async move { answer.await.map(|answer: Response| answer.map(|body| Held { body, _open: open })) }
        });
        let connection = self.http2.serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => return,
            () = left(&leaving, &asked) => connection.as_mut().graceful_shutdown(),
            () = idle(&mut open) => connection.as_mut().graceful_shutdown(),
        }
        let ended = async {
            tokio::time::sleep(LEAVE).await;
            let _ = open.wait_for(|open| *open == 0).await;
        };
        tokio::select! {
            _ = &mut connection => {}
            () = ended => {}
        }
    }
}

/// Resolves when the server ends; a little later for whoever has just come in, who is
/// answered once.
async fn left(leaving: &CancellationToken, asked: &AtomicBool) {
    leaving.cancelled().await;
    if !asked.load(Ordering::Relaxed) {
        tokio::time::sleep(LAST_WORD).await;
    }
}

/// Resolves when nothing has been under way for long.
async fn idle(open: &mut watch::Receiver<usize>) {
    loop {
        let _ = open.wait_for(|open| *open == 0).await;
        if tokio::time::timeout(HEAD, open.changed()).await.is_err() {
            return;
        }
    }
}

/// A request that is under way, until this is dropped.
struct Open(watch::Sender<usize>);

impl Open {
    fn new(underway: &watch::Sender<usize>) -> Self {
        underway.send_modify(|open| *open += 1);
        Self(underway.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|open| *open -= 1);
    }
}

/// An answer's body, which is under way until it has gone out.
struct Held {
    body: Body,
    _open: Open,
}

impl hyper::body::Body for Held {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}
