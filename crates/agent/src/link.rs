//! The agent's end of its link.

use std::os::unix::net::UnixStream as StdStream;

use cloister_types::event::EventKind;
use cloister_types::link::{FrameReader, FromAgent, ToAgent, encode};
use cloister_types::transcript::Entry;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, watch};

/// Takes the link from standard input, which no tool may inherit.
pub(crate) fn take() -> std::io::Result<(Commands, OwnedWriteHalf)> {
    let socket = StdStream::from(rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)?);
    let null = std::fs::File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    socket.set_nonblocking(true)?;
    let (read, write) = UnixStream::from_std(socket)?.into_split();
    Ok((Commands { socket: read, reader: FrameReader::default() }, write))
}

/// Commands that come down.
pub(crate) struct Commands {
    socket: OwnedReadHalf,
    reader: FrameReader,
}

impl Commands {
    /// The next command; `None` when the supervisor is gone.
    pub(crate) async fn next(&mut self) -> std::io::Result<Option<ToAgent>> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            if let Some(command) = self.reader.next_frame().map_err(std::io::Error::other)? {
                return Ok(Some(command));
            }
            match self.socket.read(&mut buffer).await? {
                0 => return Ok(None),
                got => self.reader.push(&buffer[..got]),
            }
        }
    }

    /// Listens in the background: the first receiver turns true on a cancel,
    /// the second holds the last ticket that is on disk, the third yields what
    /// is said of limits. Without a supervisor
    /// there is nobody to work for, so that ends the process.
    pub(crate) fn listen(mut self) -> (watch::Receiver<bool>, watch::Receiver<u64>, mpsc::Receiver<Vec<String>>) {
        let (cancel, cancelled) = watch::channel(false);
        let (disk, durable) = watch::channel(0);
        let (told, limits) = mpsc::channel(1);
        tokio::spawn(async move {
            while let Ok(Some(command)) = self.next().await {
                match command {
                    ToAgent::Cancel => _ = cancel.send(true),
                    ToAgent::Durable { ticket } => _ = disk.send(ticket),
                    ToAgent::Limits { met } => _ = told.send(met).await,
                    ToAgent::Start(_) => break,
                }
            }
            std::process::exit(1);
        });
        (cancelled, durable, limits)
    }
}

/// Facts that go up, in order. A write waits while the supervisor is behind.
pub(crate) struct Facts {
    socket: OwnedWriteHalf,
    durable: watch::Receiver<u64>,
    limits: mpsc::Receiver<Vec<String>>,
    ticket: u64,
}

impl Facts {
    pub(crate) fn new(
        socket: OwnedWriteHalf,
        durable: watch::Receiver<u64>,
        limits: mpsc::Receiver<Vec<String>>,
    ) -> Self {
        Self { socket, durable, limits, ticket: 0 }
    }

    /// Waits until everything sent so far is on disk; false if a cancel came
    /// first, upon which it is never said.
    pub(crate) async fn settled(&mut self, cancel: &mut watch::Receiver<bool>) -> std::io::Result<bool> {
        self.ticket += 1;
        self.send(&FromAgent::Await { ticket: self.ticket }).await?;
        let wanted = self.ticket;
        tokio::select! {
            biased;
            _ = cancel.wait_for(|cancelled| *cancelled) => Ok(false),
            durable = self.durable.wait_for(|ticket| *ticket >= wanted) => {
                durable.map(|_| true).map_err(|_| std::io::Error::other("the supervisor is gone"))
            }
        }
    }

    /// Which limits the session has met since this was last asked: why a tool
    /// may have failed.
    pub(crate) async fn limits_met(&mut self) -> std::io::Result<Vec<String>> {
        self.send(&FromAgent::AskLimits).await?;
        self.limits.recv().await.ok_or_else(|| std::io::Error::other("the supervisor is gone"))
    }

    /// Sends one fact.
    pub(crate) async fn send(&mut self, fact: &FromAgent) -> std::io::Result<()> {
        let frame = encode(fact).map_err(std::io::Error::other)?;
        self.socket.write_all(&frame).await
    }

    /// Sends an event; `fields` is an object literal.
    pub(crate) async fn event(&mut self, kind: EventKind, fields: Value) -> std::io::Result<()> {
        let data = match fields {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        self.send(&FromAgent::Event { kind, data }).await
    }

    /// Sends an entry of the conversation.
    pub(crate) async fn entry(&mut self, entry: &Entry) -> std::io::Result<()> {
        self.send(&FromAgent::Entry(entry.clone())).await
    }
}
