//! The far side of the network: answers model calls with the very bytes that
//! a test gives it, in the pieces that it says, and records what it got.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::raw::dechunk;

/// One answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// The status.
    pub status: u16,
    /// Extra header lines.
    pub headers: Vec<String>,
    /// The body.
    pub body: Vec<u8>,
    /// Bytes of one write.
    pub piece: usize,
    /// Close in the middle: the announced end never comes.
    pub cut: bool,
    /// Wait before the first byte.
    pub delay: Duration,
}

impl Reply {
    /// A stream with status 200, in one piece.
    #[must_use]
    pub fn stream(body: impl Into<Vec<u8>>) -> Self {
        Self {
            status: 200,
            headers: Vec::new(),
            body: body.into(),
            piece: usize::MAX,
            cut: false,
            delay: Duration::ZERO,
        }
    }

    /// An error with a JSON body.
    #[must_use]
    pub fn error(status: u16, body: &str) -> Self {
        Self { status, ..Self::stream(body) }
    }
}

/// What a provider received.
#[derive(Debug, Clone)]
pub struct Received {
    /// Request line and headers.
    pub head: String,
    /// The body.
    pub body: serde_json::Value,
}

/// A provider on loopback. The last reply is repeated when the rest are used.
pub struct Provider {
    /// Its base URL.
    pub url: String,
    received: Arc<Mutex<Vec<Received>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Provider {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Provider {
    /// Starts one that gives these replies in order.
    ///
    /// # Panics
    /// No port is free.
    pub async fn start(replies: Vec<Reply>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let received = Arc::new(Mutex::new(Vec::new()));
        let (log, queue) = (received.clone(), Arc::new(Mutex::new(VecDeque::from(replies))));
        let task = tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                tokio::spawn(converse(socket, log.clone(), queue.clone()));
            }
        });
        Self { url, received, task }
    }

    /// What it has received so far.
    ///
    /// # Panics
    /// A test broke while it held the lock.
    #[must_use]
    pub fn received(&self) -> Vec<Received> {
        self.received.lock().expect("the log").clone()
    }
}

async fn converse(mut socket: TcpStream, log: Arc<Mutex<Vec<Received>>>, queue: Arc<Mutex<VecDeque<Reply>>>) {
    let Some(request) = read(&mut socket).await else { return };
    log.lock().expect("the log").push(request);
    let reply = {
        let mut queue = queue.lock().expect("the queue");
        if queue.len() > 1 { queue.pop_front() } else { queue.front().cloned() }
    };
    let Some(reply) = reply else { return };
    tokio::time::sleep(reply.delay).await;
    let kind = if reply.status == 200 { "text/event-stream" } else { "application/json" };
    let mut head = format!(
        "HTTP/1.1 {} X\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\nconnection: close\r\n",
        reply.status
    );
    for header in &reply.headers {
        head.push_str(&format!("{header}\r\n"));
    }
    head.push_str("\r\n");
    let _ = socket.set_nodelay(true);
    if socket.write_all(head.as_bytes()).await.is_err() {
        return;
    }
    for piece in reply.body.chunks(reply.piece.min(reply.body.len()).max(1)) {
        let mut chunk = format!("{:x}\r\n", piece.len()).into_bytes();
        chunk.extend_from_slice(piece);
        chunk.extend_from_slice(b"\r\n");
        if socket.write_all(&chunk).await.is_err() {
            return;
        }
        // Let each piece travel on its own.
        tokio::task::yield_now().await;
    }
    if !reply.cut {
        let _ = socket.write_all(b"0\r\n\r\n").await;
    }
}

/// Reads a request with a length or chunks.
async fn read(socket: &mut TcpStream) -> Option<Received> {
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        if let Some(request) = parse(&bytes) {
            return Some(request);
        }
        match socket.read(&mut buffer).await {
            Ok(got @ 1..) => bytes.extend_from_slice(&buffer[..got]),
            _ => return None,
        }
    }
}

fn parse(bytes: &[u8]) -> Option<Received> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let rest = &bytes[end + 4..];
    let lower = head.to_ascii_lowercase();
    let length = lower.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
    let body = match length {
        Some(length) => rest.get(..length)?.to_vec(),
        None if rest.ends_with(b"0\r\n\r\n") => dechunk(rest),
        None => return None,
    };
    Some(Received { head, body: serde_json::from_slice(&body).unwrap_or_default() })
}
