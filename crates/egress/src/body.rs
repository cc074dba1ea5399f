//! Bodies on their way: counted, and on the way back scrubbed.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use cloister_types::egress::AuditEntry;
use futures_util::TryStreamExt;
use http::HeaderMap;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use std::sync::atomic::{AtomicU64, Ordering};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::io::{ReaderStream, StreamReader};

use crate::ledger::Call;
use crate::scrub::{Needles, Scrubber};
use crate::session::Session;
use crate::withhold::Withholder;

pub(crate) type Error = Box<dyn std::error::Error + Send + Sync>;
/// A body in either direction.
pub(crate) type Body = BoxBody<Bytes, Error>;

/// How long a body that is wanted whole may take: it comes over loopback.
const WHOLE: std::time::Duration = std::time::Duration::from_secs(60);
/// Bytes that a compressed body may become, and how many times longer it may
/// become, before it is taken for an attack.
const UNPACKED: u64 = 64 << 20;
const RATIO: u64 = 100;

/// A body that is there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed()
}

/// A whole body of at most so many bytes, with its place in the session's room;
/// `None` if it is longer, too slow, or breaks off.
pub(crate) async fn collect(
    body: Body,
    most: usize,
    room: &Arc<Semaphore>,
) -> Option<(Bytes, Vec<OwnedSemaphorePermit>)> {
    tokio::time::timeout(WHOLE, gather(body, most, room)).await.ok()?
}

async fn gather(mut body: Body, most: usize, room: &Arc<Semaphore>) -> Option<(Bytes, Vec<OwnedSemaphorePermit>)> {
    let (mut whole, mut places) = (bytes::BytesMut::new(), Vec::new());
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame.ok()?.into_data() {
            if whole.len() + data.len() > most {
                return None;
            }
            places.push(room.clone().acquire_many_owned(u32::try_from(data.len()).ok()?).await.ok()?);
            whole.extend_from_slice(&data);
        }
    }
    Some((whole.freeze(), places))
}

/// Counts what passes.
pub(crate) fn counted(
    body: impl HttpBody<Data = Bytes, Error = hyper::Error> + Send + Sync + 'static,
    count: Arc<AtomicU64>,
) -> Body {
    let counting = move |frame: Frame<Bytes>| {
        if let Some(data) = frame.data_ref() {
            count.fetch_add(data.len() as u64, Ordering::Relaxed);
        }
        frame
    };
    body.map_frame(counting).map_err(Error::from).boxed()
}

/// Takes the compression off a body; `None` if its kind is not known.
pub(crate) fn unpacked(body: Body, encoding: &str) -> Option<Body> {
    use async_compression::tokio::bufread::{BrotliDecoder, GzipDecoder, ZlibDecoder};
    let taken = Arc::new(AtomicU64::new(0));
    let counter = taken.clone();
    let data = body.into_data_stream().map_err(|error: Error| std::io::Error::other(error)).inspect_ok(move |bytes| {
        counter.fetch_add(bytes.len() as u64, Ordering::Relaxed);
    });
    let reader = StreamReader::new(data);
    let reader: Pin<Box<dyn tokio::io::AsyncRead + Send>> = match encoding {
        "gzip" | "x-gzip" => Box::pin(GzipDecoder::new(reader)),
        "deflate" => Box::pin(ZlibDecoder::new(reader)),
        "br" => Box::pin(BrotliDecoder::new(reader)),
        _ => return None,
    };
    let mut given = 0;
    let frames = ReaderStream::new(reader).map_err(Error::from).and_then(move |bytes| {
        given += bytes.len() as u64;
        let bomb = given > UNPACKED && given > taken.load(Ordering::Relaxed).saturating_mul(RATIO);
        std::future::ready(if bomb { Err("a body that unpacks without end".into()) } else { Ok(Frame::data(bytes)) })
    });
    Some(BodyExt::boxed(StreamBody::new(crate::sync::SyncStream::new(frames))))
}

/// What becomes of a call's record when its answer is over, however it ends.
pub(crate) struct Ending {
    pub(crate) session: Arc<Session>,
    pub(crate) entry: AuditEntry,
    pub(crate) began: std::time::Instant,
    pub(crate) up: Arc<AtomicU64>,
    pub(crate) down: u64,
    /// Of a model call whose answer has begun.
    pub(crate) model: Option<Arc<Call>>,
    /// Its place among the session's calls.
    pub(crate) place: Option<OwnedSemaphorePermit>,
    /// Room that its body takes.
    pub(crate) places: Vec<OwnedSemaphorePermit>,
}

impl Ending {
    /// Of a call that begins now.
    pub(crate) fn new(session: Arc<Session>, stream: &str, method: &http::Method) -> Self {
        let mut entry = session.recorder.entry(stream);
        entry.method = method.as_str().chars().take(16).collect();
        let place = session.call();
        let (began, up) = (std::time::Instant::now(), Arc::new(AtomicU64::new(0)));
        Self { session, entry, began, up, down: 0, model: None, place, places: Vec::new() }
    }

    pub(crate) fn flag(&mut self, flag: &str) {
        if !self.entry.flags.iter().any(|known| known == flag) {
            self.entry.flags.push(flag.to_owned());
        }
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        let mut entry = std::mem::take(&mut self.entry);
        let up = self.up.load(Ordering::Relaxed);
        entry.bytes_up = Some(up);
        entry.bytes_down = Some(self.down);
        entry.duration_ms = Some((self.began.elapsed().as_secs_f64() * 1e4).round() / 10.0);
        self.session.count(up + self.down);
        let Some(call) = self.model.take() else { return self.session.recorder.write(entry) };
        self.session.tenant.ledger.end(&self.session.id, &call, up, |usage, cost| {
            entry.usage = Some(usage);
            entry.cost = Some(cost);
            self.session.recorder.write(entry);
        });
    }
}

/// An answer's body: scrubbed, counted, and written down when it is over.
pub(crate) struct Answer {
    pub(crate) inner: Body,
    pub(crate) scrubber: Option<Scrubber>,
    pub(crate) withholder: Option<Withholder>,
    pub(crate) needles: Arc<Needles>,
    pub(crate) ending: Ending,
    pub(crate) over: bool,
    pub(crate) withholds_cookies: bool,
}

impl Answer {
    fn pass(&mut self, bytes: &[u8], last: bool) -> Bytes {
        let mut out = match &mut self.scrubber {
            None => bytes.to_vec(),
            Some(scrubber) => {
                let mut out = scrubber.push(bytes);
                if last {
                    out.extend(scrubber.finish());
                }
                if scrubber.found {
                    self.ending.flag("reflected");
                }
                out
            }
        };
        if let Some(withholder) = &mut self.withholder {
            withholder.cover(&mut out);
            if withholder.found {
                self.ending.flag("withheld_token");
            }
        }
        if let Some(call) = &self.ending.model {
            call.meter().see(&out);
        }
        self.ending.down += out.len() as u64;
        out.into()
    }

    fn trailers(&mut self, mut trailers: HeaderMap) -> HeaderMap {
        crate::headers::strip_answer(&mut trailers);
        if self.withholds_cookies {
            trailers.remove(http::header::SET_COOKIE);
        }
        let (trailers, found) = scrub_headers(trailers, &self.needles);
        if found {
            self.ending.flag("reflected");
        }
        trailers
    }
}

/// Covers credentials in the values of headers; true if there were any.
pub(crate) fn scrub_headers(mut headers: HeaderMap, needles: &Needles) -> (HeaderMap, bool) {
    let mut found = false;
    if needles.is_empty() {
        return (headers, found);
    }
    // A name cannot be covered.
    let telling: Vec<_> = headers.keys().filter(|name| needles.are_in(name.as_str().as_bytes())).cloned().collect();
    for name in telling {
        headers.remove(name);
        found = true;
    }
    for value in headers.values_mut() {
        if needles.are_in(value.as_bytes()) {
            let mut bytes = value.as_bytes().to_vec();
            needles.cover(&mut bytes);
            found = true;
            *value = http::HeaderValue::from_bytes(&bytes).unwrap_or(http::HeaderValue::from_static("*"));
        }
    }
    (headers, found)
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        loop {
            if this.over {
                return Poll::Ready(None);
            }
            match ready!(Pin::new(&mut this.inner).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => {
                        let out = match (&this.scrubber, &this.withholder, &this.ending.model) {
                            // Nothing to look for: the bytes pass as they are.
                            (None, None, None) => {
                                this.ending.down += data.len() as u64;
                                data
                            }
                            _ => this.pass(&data, false),
                        };
                        if !out.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::data(out))));
                        }
                    }
                    Err(frame) => {
                        let Ok(trailers) = frame.into_trailers() else { continue };
                        let trailers = this.trailers(trailers);
                        let rest = this.pass(&[], true);
                        if rest.is_empty() {
                            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
                        }
                        // What was held comes first.
                        this.inner =
                            StreamBody::new(futures_util::stream::iter([Ok(Frame::trailers(trailers))])).boxed();
                        this.scrubber = None;
                        return Poll::Ready(Some(Ok(Frame::data(rest))));
                    }
                },
                Some(Err(error)) => {
                    this.over = true;
                    this.ending.flag("broken_off");
                    return Poll::Ready(Some(Err(error)));
                }
                None => {
                    this.over = true;
                    let rest = this.pass(&[], true);
                    if let Some(call) = &this.ending.model {
                        call.meter().end();
                    }
                    return Poll::Ready((!rest.is_empty()).then(|| Ok(Frame::data(rest))));
                }
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.over || (self.scrubber.as_ref().is_none_or(Scrubber::holds_nothing) && self.inner.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        // Covered bytes are as many as they were.
        self.inner.size_hint()
    }
}
