//! The other end of a link to the vault: many questions at once, each answered
//! in its own time. A link that breaks answers everything with "away".

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroize;

use crate::wire::{MAX_FRAME, Reply, Request};

/// How long an answer may take, and one for which a token may have to be made.
const PATIENCE: Duration = Duration::from_secs(5);
const LONG: Duration = Duration::from_secs(45);
/// How long a vault may take to open, with a key service behind it or on a slow machine.
pub const OPENING: Duration = Duration::from_secs(45);
/// Frames that may wait to be sent.
const LINE: usize = 4096;

/// The vault does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the vault is not there")]
pub struct Away;

type Waiting = Arc<Mutex<Option<HashMap<u64, oneshot::Sender<Reply>>>>>;

/// A link to the vault; a new one takes the place of one that broke.
#[derive(Clone, Default)]
pub struct Client(Arc<Mutex<Option<Link>>>);

struct Link {
    reader: tokio::task::AbortHandle,
    line: mpsc::Sender<Vec<u8>>,
    waiting: Waiting,
    next: AtomicU64,
}

impl Drop for Link {
    fn drop(&mut self) {
        // With it goes the last half of the socket; whoever waits is told.
        self.reader.abort();
        lock(&self.waiting).take();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Client {
    /// Uses a link from now on. Must be called within a runtime.
    ///
    /// # Errors
    /// It is not a socket.
    pub fn use_link(&self, link: OwnedFd) -> std::io::Result<()> {
        let stream = std::os::unix::net::UnixStream::from(link);
        stream.set_nonblocking(true)?;
        let (mut read, mut write) = UnixStream::from_std(stream)?.into_split();
        let (line, mut frames) = mpsc::channel::<Vec<u8>>(LINE);
        let waiting: Waiting = Arc::new(Mutex::new(Some(HashMap::new())));
        let answered = waiting.clone();
        tokio::spawn(async move {
            while let Some(mut frame) = frames.recv().await {
                let sent = write.write_all(&frame).await;
                frame.zeroize();
                if sent.is_err() {
                    break;
                }
            }
        });
        let reader = tokio::spawn(async move {
            while let Ok((number, mut body)) = read_frame(&mut read).await {
                let reply = serde_json::from_slice(&body);
                body.zeroize();
                let Ok(reply) = reply else { break };
                if let Some(asker) = lock(&answered).as_mut().and_then(|waiting| waiting.remove(&number)) {
                    let _ = asker.send(reply);
                }
            }
            // Whoever waits hears that there is nobody.
            lock(&answered).take();
        });
        let reader = reader.abort_handle();
        *lock(&self.0) = Some(Link { reader, line, waiting, next: AtomicU64::new(1) });
        Ok(())
    }

    /// Has the link broken, or is there none?
    #[must_use]
    pub fn is_broken(&self) -> bool {
        lock(&self.0).as_ref().is_none_or(|link| lock(&link.waiting).is_none())
    }

    /// Gives the link up: the vault ends with its last one.
    pub fn hang_up(&self) {
        *lock(&self.0) = None;
    }

    /// Asks.
    ///
    /// # Errors
    /// The vault is not there.
    pub async fn ask(&self, request: &Request) -> Result<Reply, Away> {
        // Whoever makes tokens may take a while; anything else is at once.
        self.ask_within(request, if matches!(request, Request::Use(_)) { LONG } else { PATIENCE }).await
    }

    /// Asks, and waits so long for the answer.
    ///
    /// # Errors
    /// The vault is not there.
    pub async fn ask_within(&self, request: &Request, patience: Duration) -> Result<Reply, Away> {
        let (answer, heard) = oneshot::channel();
        let body = serde_json::to_vec(request).map_err(|_| Away)?;
        if body.len() > MAX_FRAME {
            return Err(Away);
        }
        {
            let link = lock(&self.0);
            let link = link.as_ref().ok_or(Away)?;
            let number = link.next.fetch_add(1, Ordering::Relaxed);
            lock(&link.waiting).as_mut().ok_or(Away)?.insert(number, answer);
            if link.line.try_send(frame(number, body)).is_err() {
                lock(&link.waiting).as_mut().ok_or(Away)?.remove(&number);
                return Err(Away);
            }
        }
        tokio::time::timeout(patience, heard).await.map_err(|_| Away)?.map_err(|_| Away)
    }

    /// Asks from a thread that may block.
    ///
    /// # Errors
    /// The vault is not there.
    pub fn ask_and_block(&self, runtime: &tokio::runtime::Handle, request: &Request) -> Result<Reply, Away> {
        tokio::task::block_in_place(|| runtime.block_on(self.ask(request)))
    }
}

pub(crate) fn frame(number: u64, mut body: Vec<u8>) -> Vec<u8> {
    let mut frame = Vec::with_capacity(body.len() + 12);
    frame.extend(u32::try_from(body.len()).unwrap_or(u32::MAX).to_be_bytes());
    frame.extend(number.to_be_bytes());
    frame.extend_from_slice(&body);
    body.zeroize();
    frame
}

pub(crate) async fn read_frame(read: &mut (impl AsyncReadExt + Unpin)) -> std::io::Result<(u64, Vec<u8>)> {
    let mut head = [0; 12];
    read.read_exact(&mut head).await?;
    let length = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if length > MAX_FRAME {
        return Err(std::io::Error::other("a frame that is too long"));
    }
    let mut number = [0; 8];
    number.copy_from_slice(&head[4..]);
    let mut body = vec![0; length];
    read.read_exact(&mut body).await?;
    Ok((u64::from_be_bytes(number), body))
}
