//! The region's door: one address for many tenants. It reads the name that a TLS
//! handshake begins with and hands the connection, still closed, to that tenant's
//! own server. It has no key and sees nothing that is said.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use cloister_types::Host;
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::Semaphore;

use crate::ServerError;
use crate::files::write_private;
use crate::given::listen;
use crate::proxy;
use crate::shares::Shares;
use crate::stamp::{Stamp, door, suspension};
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
/// Connections at once.
const CONNECTIONS: usize = 50_000;

/// The file of `cloister region`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    region: Table,
}

/// `[region]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    name: String,
    address: SocketAddr,
    #[serde(default)]
    tenant: Vec<Place>,
}

/// `[[region.tenant]]`.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    host: Host,
    data: PathBuf,
}

/// Runs until SIGTERM or Ctrl-C. `announce` is called with the address once
/// connections are taken.
///
/// # Errors
/// The configuration, or a tenant that belongs to another region.
pub async fn region(
    config: &Path,
    ready_file: Option<&Path>,
    given: Option<std::net::TcpListener>,
    announce: impl FnOnce(SocketAddr),
) -> Result<(), ServerError> {
    let stop = stop_signal()?;
    let bad = |error: &dyn std::fmt::Display| ServerError::Config(format!("{}: {error}", config.display()));
    let text = std::fs::read_to_string(config).map_err(|error| bad(&error))?;
    let File { region: Table { name, address, tenant } } = toml::from_str(&text).map_err(|error| bad(&error))?;
    let absolute = std::path::absolute(config).map_err(|error| bad(&error))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let mut tenants = HashMap::new();
    let mut refused = Ok(());
    for Place { host, data } in tenant {
        let data = folder.join(data);
        // One that is gone, or has spoilt its own stamp, closes nobody else's door.
        if let Err(why) = belongs(&data, &name) {
            tracing::error!(%host, "{why}; nobody is let through to it");
            refused = Err(bad(&why));
            continue;
        }
        if tenants.insert(host.clone(), data).is_some() {
            return Err(bad(&format!("two tenants have the host {host}")));
        }
    }
    if tenants.is_empty() {
        refused?;
    }
    let listener = listen(given, address).await?;
    let address = listener.local_addr().map_err(ServerError::start("read the address"))?;
    if let Some(path) = ready_file {
        let ready = serde_json::json!({ "address": address }).to_string();
        write_private(path, ready.as_bytes()).map_err(ServerError::start(format!("write {}", path.display())))?;
    }
    announce(address);
    let tenants = Arc::new(tenants);
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
            () = &mut stop => return Ok(()),
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else { continue };
        // A balancer on this host speaks for many.
        let share = if peer.ip().to_canonical().is_loopback() { None } else { Some(shares.take(peer.ip())) };
        if matches!(share, Some(None)) {
            continue;
        }
        let tenants = tenants.clone();
        tokio::spawn(async move {
            // However it ends, the client learns nothing but that it has ended.
            let _ = pass(&tenants, socket, (peer, address)).await;
            drop((slot, share));
        });
    }
}

/// Is this the data of one of the region's tenants?
fn belongs(data: &Path, region: &str) -> Result<(), String> {
    match Stamp::read(data).map_err(|error| error.to_string())? {
        Some(stamp) if stamp.region == region => Ok(()),
        Some(Stamp { tenant, region: other, .. }) => {
            Err(format!("tenant {tenant:?} belongs to region {other:?}, not to {region:?}"))
        }
        None => Err(format!("{} is no tenant's: `cloister tenant create` makes one", data.display())),
    }
}

async fn pass(
    tenants: &HashMap<Host, PathBuf>,
    mut socket: TcpStream,
    (peer, to): (SocketAddr, SocketAddr),
) -> std::io::Result<()> {
    let _ = socket.set_nodelay(true);
    // Boxed: what it takes to understand a handshake is not kept for its connection.
    let hello = tokio::time::timeout(PATIENCE, Box::pin(hello(&mut socket))).await??;
    let Some((host, bytes)) = hello else { return Ok(()) };
    let Some(data) = tenants.get(&host) else { return Ok(()) };
    let inside = tokio::select! {
        inside = reach(data) => inside,
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
