//! The region's door: one address for many tenants. It reads the name that a TLS
//! handshake begins with and hands the connection, still closed, to that tenant's
//! own server. It has no key and sees nothing that is said.

mod table;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use cloister_types::Host;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;
use tokio_util::task::TaskTracker;

use self::table::Table;
use crate::ServerError;
use crate::files::write_private;
use crate::given::{Given, listen};
use crate::proxy;
use crate::shares::Shares;
use crate::stamp::{door, suspension};
use crate::tenant::stop_signal;

/// How long a handshake's first message may take, and its most bytes.
const PATIENCE: Duration = Duration::from_secs(10);
const HELLO: usize = 16 << 10;
/// How long a tenant's server may be away before its callers are sent off (sooner than
/// they give up by themselves), and the time between two looks.
const AWAY: Duration = Duration::from_secs(8);
const PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_millis(320);
/// How long a client is heard whose tenant has closed.
const LINGER: Duration = Duration::from_secs(10);
/// Most bytes that are passed on at once.
const PIECE: usize = 16 << 10;
/// How long connections may take to end once the door is closed.
const DRAIN: Duration = Duration::from_secs(3);
/// Connections at once.
const CONNECTIONS: usize = 50_000;

/// Runs until SIGTERM or Ctrl-C. `announce` is called with the address once
/// connections are taken. Whoever changes the file is heard within a second or two;
/// connections that stand are left alone.
///
/// # Errors
/// The configuration, or a tenant that belongs to another region.
pub async fn region(
    config: &Path,
    ready_file: Option<&Path>,
    given: Given,
    announce: impl FnOnce(SocketAddr),
) -> Result<(), ServerError> {
    let stop = stop_signal()?;
    let (table, address) = Table::open(config)?;
    let given = given.assign(&[address])?.pop().flatten();
    let listener = listen(given.map(|(_, socket)| socket), address).await?;
    let address = listener.local_addr().map_err(ServerError::start("read the address"))?;
    if let Some(path) = ready_file {
        let ready = serde_json::json!({ "address": address }).to_string();
        write_private(path, ready.as_bytes()).map_err(ServerError::start(format!("write {}", path.display())))?;
    }
    announce(address);
    let connections = TaskTracker::new();
    let (slots, shares) = (Arc::new(Semaphore::new(CONNECTIONS)), Shares::new(CONNECTIONS / 2));
    tokio::pin!(stop);
    loop {
        let (socket, peer) = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            },
            () = &mut stop => break,
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        // A balancer on this host speaks for many.
        let share = if peer.ip().to_canonical().is_loopback() { None } else { Some(shares.take(peer.ip())) };
        if matches!(share, Some(None)) {
            continue;
        }
        let table = table.clone();
        connections.spawn(async move {
            // However it ends, the client learns nothing but that it has ended.
            let _ = pass(&table, socket, (peer, address)).await;
            drop((slot, share));
        });
    }
    drop(listener);
    connections.close();
    // Requests end meanwhile; streams are cut, and their clients resume.
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
    Ok(())
}

async fn pass(table: &Table, mut socket: TcpStream, (peer, to): (SocketAddr, SocketAddr)) -> std::io::Result<()> {
    let _ = socket.set_nodelay(true);
    // Boxed: what it takes to understand a handshake is not kept for its connection.
    let hello = tokio::time::timeout(PATIENCE, Box::pin(hello(&mut socket))).await??;
    let Some((host, bytes)) = hello else { return Ok(()) };
    let Some(data) = table.data(&host) else { return Ok(()) };
    let inside = tokio::select! {
        inside = reach(&data) => inside,
        () = hung_up(&socket) => None,
    };
    let Some(mut inside) = inside else { return Ok(()) };
    inside.write_all(&[proxy::header(peer, to), bytes].concat()).await?;
    let ((from_client, to_client), (from_tenant, to_tenant)) = (socket.split(), inside.split());
    let (asked, answered) = (pass_on(from_client, to_tenant), pass_on(from_tenant, to_client));
    tokio::pin!(asked, answered);
    tokio::select! {
        // The tenant has said all that it will. The client may have to hear that.
        done = &mut answered => {
            let _ = tokio::time::timeout(LINGER, asked).await;
            done
        }
        // The client has, or it is not heard any more: what the tenant has said already
        // goes out. The tenant's own patience ends this.
        _ = &mut asked => answered.await,
    }
}

/// A connection to a tenant's server; while one is replaced by the next, whoever calls
/// waits here. `None`: it is suspended or gone, or its server is away for long.
async fn reach(data: &Path) -> Option<UnixStream> {
    let until = tokio::time::Instant::now() + AWAY;
    let mut pause = PAUSE;
    while data.exists() && !suspension(data).exists() && tokio::time::Instant::now() < until {
        match UnixStream::connect(door(data)).await {
            Ok(inside) => return Some(inside),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused) => {}
            // Its line is full.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => {
                tracing::warn!(%error, door = %door(data).display(), "a tenant cannot be reached");
                return None;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
    None
}

/// Resolves once a client that waits has gone.
async fn hung_up(socket: &TcpStream) {
    if matches!(socket.peek(&mut [0]).await, Ok(1..)) {
        std::future::pending().await
    }
}

/// One way of a connection, to its end, which is passed on as well.
async fn pass_on(mut from: impl Readable, mut to: impl AsyncWrite + Unpin) -> std::io::Result<()> {
    let done = copy(&mut from, &mut to).await;
    let closed = to.shutdown().await;
    done.and(closed)
}

async fn copy(from: &mut impl Readable, to: &mut (impl AsyncWrite + Unpin)) -> std::io::Result<()> {
    loop {
        from.readable().await?;
        // Ten thousand idle connections have none.
        let mut piece = Vec::with_capacity(PIECE);
        match from.try_read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(_) => to.write_all(&piece).await?,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

/// The reading half of a socket, of which it can be asked whether there is
/// something to read.
trait Readable {
    async fn readable(&self) -> std::io::Result<()>;
    fn try_read(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize>;
}

impl Readable for tokio::net::tcp::ReadHalf<'_> {
    async fn readable(&self) -> std::io::Result<()> {
        Self::readable(self).await
    }

    fn try_read(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize> {
        self.try_read_buf(into)
    }
}

impl Readable for tokio::net::unix::ReadHalf<'_> {
    async fn readable(&self) -> std::io::Result<()> {
        Self::readable(self).await
    }

    fn try_read(&mut self, into: &mut Vec<u8>) -> std::io::Result<usize> {
        self.try_read_buf(into)
    }
}

/// The name that a handshake asks for, and all bytes that were read for it.
async fn hello(socket: &mut TcpStream) -> std::io::Result<Option<(Host, Vec<u8>)>> {
    let mut bytes = Vec::with_capacity(2048);
    let mut acceptor = rustls::server::Acceptor::default();
    loop {
        let before = bytes.len();
        if socket.read_buf(&mut bytes).await? == 0 || bytes.len() > HELLO {
            return Ok(None);
        }
        let mut rest = &bytes[before..];
        while !rest.is_empty() {
            acceptor.read_tls(&mut rest)?;
        }
        match acceptor.accept() {
            Ok(Some(accepted)) => {
                let host = accepted.client_hello().server_name().and_then(|name| name.parse().ok());
                return Ok(host.map(|host| (host, bytes)));
            }
            Ok(None) => {}
            Err(_) => return Ok(None),
        }
    }
}
