//! How connections are served, by the protocol that was agreed on. Finding it out
//! from the first bytes instead costs every connection half as much memory again.

use std::pin::Pin;
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
    pub(crate) router: Router,
    pub(crate) origin: Origin,
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
        let connection = self.http1.serve_connection(TokioIo::new(stream), TowerToHyperService::new(known));
        tokio::pin!(connection);
        tokio::select! {
            _ = &mut connection => return,
            () = leaving.cancelled() => connection.as_mut().graceful_shutdown(),
        }
        let _ = connection.await;
    }

    /// The same, and until nothing has been under way for long: unlike with HTTP/1.1,
    /// that is not hyper's business.
    pub(crate) async fn http2(self, known: Known, leaving: CancellationToken, stream: impl Stream) {
        let (underway, mut seen) = watch::channel(Underway::default());
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
            () = over(&mut seen, &leaving) => connection.as_mut().graceful_shutdown(),
        }
        let ended = async {
            tokio::time::sleep(LEAVE).await;
            let _ = seen.wait_for(|seen| seen.open == 0).await;
        };
        tokio::select! {
            _ = &mut connection => {}
            () = ended => {}
        }
    }
}

/// Resolves when a connection is to end.
async fn over(seen: &mut watch::Receiver<Underway>, leaving: &CancellationToken) {
    let idle = async {
        loop {
            let _ = seen.wait_for(|seen| seen.open == 0).await;
            if tokio::time::timeout(HEAD, seen.changed()).await.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        () = idle => return,
        () = leaving.cancelled() => {}
    }
    // Whoever has just come in is answered once.
    let _ = tokio::time::timeout(LAST_WORD, seen.wait_for(|seen| seen.asked)).await;
}

/// What is under way on a connection.
#[derive(Default)]
struct Underway {
    /// Requests whose answers have not gone out whole.
    open: usize,
    /// There was one.
    asked: bool,
}

/// A request that is under way, until this is dropped.
struct Open(watch::Sender<Underway>);

impl Open {
    fn new(underway: &watch::Sender<Underway>) -> Self {
        underway.send_modify(|underway| {
            underway.open += 1;
            underway.asked = true;
        });
        Self(underway.clone())
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.send_modify(|underway| underway.open -= 1);
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
