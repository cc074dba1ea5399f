//! How connections are served, by the protocol that was agreed on. Finding it out
//! from the first bytes instead costs every connection half as much memory again.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::response::Response;
use cloister_api::Origin;
use hyper::Request;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::{http1, http2};
use hyper::service::Service;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

/// How long a connection may be idle, or a request's head take to arrive. Clients that
/// poll every 15 seconds keep theirs; event streams say something every ten.
pub(crate) const IDLE: Duration = Duration::from_secs(75);
/// Looks at a connection in that time.
const LOOKS: u32 = 5;
/// How long one that has asked nothing yet may do so when the server ends.
pub(crate) const LAST_WORD: Duration = Duration::from_secs(1);
/// Streams of one HTTP/2 connection: event streams live long, so more than
/// hyper's own 200.
const STREAMS: u32 = 1000;
/// Most bytes of a request's headers with HTTP/2: hyper's own limit, said here.
const HEADERS: u32 = 16 << 10;
/// Most bytes of a connection's buffer, and so of a head with HTTP/1.1; bodies pass
/// through it in pieces. Ten thousand open streams each have one.
const BUFFER: usize = 16 << 10;
/// Most bytes of an answer that are handed over at once.
const PIECE: usize = 64 << 10;

/// The router, with what is known of a connection on each of its requests.
pub(crate) struct Known {
    router: Router,
    origin: Origin,
    work: Arc<Work>,
}

impl Known {
    pub(crate) fn new(router: Router, origin: Origin) -> Self {
        Self { router, origin, work: Arc::default() }
    }
}

impl Service<Request<Incoming>> for Known {
    type Response = Response<Counted>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn call(&self, mut request: Request<Incoming>) -> Self::Future {
        let (asked, origin) = (Asked::new(&self.work), self.origin.clone());
        request.extensions_mut().insert(origin);
        // axum's router is ready at any time.
        let answer = tower_service::Service::call(&mut self.router.clone(), request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(answer.map(|body| Counted { body, rest: Bytes::new(), work: asked.0.clone() }))
        })
    }
}

/// What is done on a connection.
#[derive(Default)]
struct Work {
    /// Requests that are not answered yet.
    asked: AtomicUsize,
    /// Goes up with whatever is done.
    done: AtomicUsize,
}

impl Work {
    fn note(&self) {
        self.done.fetch_add(1, Ordering::Relaxed);
    }

    /// Has there been anything?
    fn is_begun(&self) -> bool {
        self.done.load(Ordering::Relaxed) > 0
    }

    /// Resolves when nothing has been done for so long, and nothing is asked: nobody has,
    /// or nobody takes the answer.
    async fn idle(&self, long: Duration) {
        let (mut before, mut quiet) = (self.done.load(Ordering::Relaxed), 0);
        while quiet < LOOKS {
            tokio::time::sleep(long / LOOKS).await;
            let now = self.done.load(Ordering::Relaxed);
            quiet = if now == before && self.asked.load(Ordering::Relaxed) == 0 { quiet + 1 } else { 0 };
            before = now;
        }
    }
}

/// A request that is not answered yet, until this is dropped.
struct Asked(Arc<Work>);

impl Asked {
    fn new(work: &Arc<Work>) -> Self {
        work.asked.fetch_add(1, Ordering::Relaxed);
        work.note();
        Self(work.clone())
    }
}

impl Drop for Asked {
    fn drop(&mut self) {
        self.0.asked.fetch_sub(1, Ordering::Relaxed);
        self.0.note();
    }
}

/// An answer's body, in pieces. It is asked for the next one once there is room for it,
/// and not while the client takes nothing.
pub(crate) struct Counted {
    body: Body,
    /// Of what the body has given.
    rest: Bytes,
    work: Arc<Work>,
}

impl hyper::body::Body for Counted {
    type Data = <Body as hyper::body::Body>::Data;
    type Error = <Body as hyper::body::Body>::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.work.note();
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)).transpose()?.map(Frame::into_data) {
                Some(Ok(data)) => self.rest = data,
                Some(Err(other)) => return Poll::Ready(Some(Ok(other))),
                None => return Poll::Ready(None),
            }
        }
        let piece = self.rest.len().min(PIECE);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (rest, hint) = (self.rest.len() as u64, self.body.size_hint());
        let mut whole = SizeHint::new();
        whole.set_lower(hint.lower() + rest);
        if let Some(upper) = hint.upper() {
            whole.set_upper(upper + rest);
        }
        whole
    }
}

#[derive(Clone)]
pub(crate) struct Protocols {
    http1: http1::Builder,
    http2: http2::Builder<TokioExecutor>,
    idle: Duration,
}

impl Protocols {
    /// For connections that may be idle for so long.
    pub(crate) fn new(idle: Duration) -> Self {
        let mut http1 = http1::Builder::new();
        http1.timer(TokioTimer::new()).header_read_timeout(idle).max_buf_size(BUFFER);
        let mut http2 = http2::Builder::new(TokioExecutor::new());
        http2.timer(TokioTimer::new()).max_concurrent_streams(STREAMS).max_header_list_size(HEADERS);
        http2.keep_alive_interval(Duration::from_secs(30));
        Self { http1, http2, idle }
    }

    pub(crate) async fn http1(self, known: Known, leaving: CancellationToken, stream: impl Stream) {
        let work = known.work.clone();
        serve(self.http1.serve_connection(TokioIo::new(stream), known), &work, self.idle, &leaving).await;
    }

    pub(crate) async fn http2(self, known: Known, leaving: CancellationToken, stream: impl Stream) {
        let work = known.work.clone();
        serve(self.http2.serve_connection(TokioIo::new(stream), known), &work, self.idle, &leaving).await;
    }
}

/// Serves until the client goes; or until it has been idle for long, or the server
/// leaves, and what was asked has gone out. Whoever takes nothing of that is cut off.
async fn serve(connection: impl Connection, work: &Work, idle: Duration, leaving: &CancellationToken) {
    let left = async {
        leaving.cancelled().await;
        // Whoever has just come in is answered once.
        if !work.is_begun() {
            tokio::time::sleep(LAST_WORD).await;
        }
    };
    tokio::pin!(connection);
    tokio::select! {
        // What a client does to its own connection concerns it alone.
        _ = &mut connection => return,
        () = left => {}
        () = work.idle(idle) => {}
    }
    connection.as_mut().leave();
    tokio::select! {
        _ = &mut connection => {}
        () = work.idle(idle) => {}
    }
}

/// One of hyper's.
trait Connection: Future<Output = hyper::Result<()>> {
    /// Takes no further request, and ends when those that there are have been answered.
    fn leave(self: Pin<&mut Self>);
}

impl<S: Stream> Connection for http1::Connection<TokioIo<S>, Known> {
    fn leave(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

impl<S: Stream> Connection for http2::Connection<TokioIo<S>, Known, TokioExecutor> {
    fn leave(self: Pin<&mut Self>) {
        self.graceful_shutdown();
    }
}

pub(crate) trait Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static {}
impl<S: AsyncRead + AsyncWrite + Unpin + Send + 'static> Stream for S {}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    use super::*;

    /// So long may a connection be idle here.
    const SHORT: Duration = Duration::from_millis(250);

    /// Serves one connection; the client's end of it, and what resolves with the server's.
    fn connect() -> (DuplexStream, tokio::task::JoinHandle<Duration>) {
        let router = Router::new()
            .route("/large", get(|| async { vec![b'x'; 1 << 20] }))
            .route("/late", get(|| async { tokio::time::sleep(SHORT * 6).await }));
        let origin = Origin { address: None, allowed: true, certified: None, require: Arc::default() };
        let (client, server) = duplex(4096);
        let served = tokio::spawn(async move {
            let began = Instant::now();
            Protocols::new(SHORT).http1(Known::new(router, origin), CancellationToken::new(), server).await;
            began.elapsed()
        });
        (client, served)
    }

    #[tokio::test]
    async fn whoever_takes_nothing_of_an_answer_is_cut_off() {
        let (mut client, served) = connect();
        client.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let took = tokio::time::timeout(SHORT * 40, served).await.unwrap().unwrap();
        assert!(took >= SHORT, "{took:?}");
    }

    #[tokio::test]
    async fn whoever_takes_an_answer_slowly_gets_it_whole() {
        let (mut client, served) = connect();
        client.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let (mut got, mut piece) = (0, vec![0; 48 << 10]);
        loop {
            let mut taken = 0;
            while taken < piece.len() {
                match client.read(&mut piece[taken..]).await.unwrap() {
                    0 => break,
                    count => taken += count,
                }
            }
            got += taken;
            if taken < piece.len() {
                break;
            }
            tokio::time::sleep(SHORT / 2).await;
        }
        assert!(got > 1 << 20, "{got}");
        assert!(served.await.unwrap() >= SHORT * 8);
    }

    #[tokio::test]
    async fn whoever_waits_for_an_answer_gets_it() {
        let (mut client, served) = connect();
        client.write_all(b"GET /late HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert!(said.starts_with("HTTP/1.1 200 "), "{said:?}");
        assert!(served.await.unwrap() >= SHORT * 6);
    }
}
