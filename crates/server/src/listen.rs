//! Accepting connections, and draining them at the end.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use cloister_api::Origin;
use rustix::net::{SocketFlags, accept_with};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::either::Either;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::Gate;
use crate::protocols::{IDLE, Known, LAST_WORD, Protocols};
use crate::proxy;
use crate::shares::{Share, Shares};
use crate::tls::{self, Tls};

/// How long a handshake may take.
const PATIENCE: Duration = Duration::from_secs(15);
/// How long open requests may take to finish once the server ends.
const DRAIN: Duration = Duration::from_secs(3);
/// Connections that may have waited in line when a server ends.
const LINE: usize = 1024;

/// One of the places where callers come in.
pub(crate) struct Entrance {
    pub(crate) listener: TcpListener,
    /// Whoever serves next listens on the same socket: those in its line are theirs.
    pub(crate) is_given: bool,
    pub(crate) door: Option<Door>,
    pub(crate) front: Front,
}

/// What stands before the API there.
#[derive(Clone)]
pub(crate) struct Front {
    pub(crate) gate: Arc<Gate>,
    pub(crate) tls: Option<Tls>,
}

/// Where the region's door comes in.
pub(crate) struct Door {
    pub(crate) listener: UnixListener,
    pub(crate) path: PathBuf,
}

/// From the network, or from the region's door.
type Socket = Either<TcpStream, UnixStream>;

enum Greeted {
    Plain(Box<Socket>),
    Secure(Box<TlsStream<Socket>>),
}

impl Entrance {
    async fn accept(&self) -> std::io::Result<(Socket, Option<IpAddr>)> {
        let through_door = async {
            match &self.door {
                Some(door) => door.listener.accept().await.map(|(socket, _)| socket),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = self.listener.accept() => accepted.map(from_network),
            accepted = through_door => accepted.map(|socket| (Either::Right(socket), None)),
        }
    }

    /// Those who had been let in by the kernel when it was closed.
    fn line(&self) -> Vec<(Socket, Option<IpAddr>)> {
        // Asked directly: the runtime does not look before it hears that there is one.
        let next = |listener: BorrowedFd<'_>| accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK).ok();
        let mut waiting = Vec::new();
        if !self.is_given {
            while let Some(socket) = next(self.listener.as_fd()).filter(|_| waiting.len() < LINE) {
                let Ok(socket) = TcpStream::from_std(socket.into()) else { break };
                let Ok(peer) = socket.peer_addr() else { continue };
                waiting.push(from_network((socket, peer)));
            }
        }
        if let Some(Door { listener, path }) = &self.door {
            // Whoever finds none waits for the next.
            let _ = std::fs::remove_file(path);
            while let Some(socket) = next(listener.as_fd()).filter(|_| waiting.len() < 2 * LINE) {
                let Ok(socket) = UnixStream::from_std(socket.into()) else { break };
                waiting.push((Either::Right(socket), None));
            }
        }
        waiting
    }
}

impl Front {
    async fn greet(
        &self,
        shares: &Arc<Shares>,
        mut socket: Socket,
        peer: Option<IpAddr>,
    ) -> Option<(Greeted, Origin, Option<Share>)> {
        let begins = match &socket {
            Either::Left(socket) => self.gate.looks(peer) && begins_with_header(socket).await,
            Either::Right(_) => false,
        };
        let mut origin = self.gate.greet(&mut socket, peer, begins).await.ok()?;
        let share = match origin.address.filter(|address| !self.gate.speaks_for_many(*address)) {
            Some(address) => Some(shares.take(address)?),
            None => None,
        };
        let Some(tls) = &self.tls else { return Some((Greeted::Plain(Box::new(socket)), origin, share)) };
        // Plain text and old versions end here, without an answer.
        let stream = tls.accept(socket).await.ok()??;
        origin.certified = self.gate.certified(stream.get_ref().1.peer_certificates());
        Some((Greeted::Secure(Box::new(stream)), origin, share))
    }
}

fn from_network((socket, peer): (TcpStream, SocketAddr)) -> (Socket, Option<IpAddr>) {
    let _ = socket.set_nodelay(true);
    (Either::Left(socket), Some(peer.ip()))
}

/// Does the connection begin with a PROXY header? Nothing is taken from it.
async fn begins_with_header(socket: &TcpStream) -> bool {
    let mut first = [0; 16];
    loop {
        let Ok(count @ 1..) = socket.peek(&mut first).await else { return false };
        match proxy::begins(&first[..count]) {
            Some(begins) => return begins,
            // More is on its way; the caller's patience ends this.
            None => tokio::time::sleep(Duration::from_millis(2)).await,
        }
    }
}

/// What all entrances lead to.
struct Hall {
    router: Router,
    protocols: Protocols,
    slots: Arc<Semaphore>,
    shares: Arc<Shares>,
    leaving: CancellationToken,
    connections: TaskTracker,
}

/// Serves until `stop` resolves, then lets open requests finish. What `stop` came
/// to.
pub(crate) async fn serve<T>(entrances: Vec<Entrance>, router: Router, stop: impl Future<Output = T>) -> T {
    let most = most_connections();
    let hall = Arc::new(Hall {
        router,
        protocols: Protocols::new(IDLE),
        slots: Arc::new(Semaphore::new(most)),
        shares: Shares::new(most / 2),
        leaving: CancellationToken::new(),
        connections: TaskTracker::new(),
    });
    let mut accepting = JoinSet::new();
    for entrance in entrances {
        accepting.spawn(hall.clone().accept(entrance));
    }
    let stopped = stop.await;
    hall.leaving.cancel();
    while accepting.join_next().await.is_some() {}
    hall.connections.close();
    if tokio::time::timeout(DRAIN, hall.connections.wait()).await.is_err() {
        tracing::info!("streams that were still open are cut; their clients resume");
    }
    stopped
}

impl Hall {
    async fn accept(self: Arc<Self>, entrance: Entrance) {
        loop {
            let accepted = tokio::select! {
                accepted = entrance.accept() => accepted,
                () = self.leaving.cancelled() => break,
            };
            match accepted {
                Ok((socket, peer)) => self.let_in(&entrance.front, socket, peer),
                Err(error) => {
                    // Out of descriptors, most likely: wait for some to close.
                    tracing::warn!(%error, "accept");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
        for (socket, peer) in entrance.line() {
            self.let_in(&entrance.front, socket, peer);
        }
    }

    fn let_in(self: &Arc<Self>, front: &Front, socket: Socket, peer: Option<IpAddr>) {
        // Beyond that, files could not be opened for those who are here.
        let Ok(slot) = self.slots.clone().try_acquire_owned() else { return };
        let (hall, front) = (self.clone(), front.clone());
        self.connections.spawn(async move {
            let _slot = slot;
            // Whoever takes too long, or is nobody, is not answered.
            let greeted = tokio::select! {
                greeted = tokio::time::timeout(PATIENCE, front.greet(&hall.shares, socket, peer)) => greeted,
                () = left(&hall.leaving) => return,
            };
            let Ok(Some((stream, origin, _share))) = greeted else { return };
            let (protocols, leaving) = (hall.protocols.clone(), hall.leaving.clone());
            let known = Known::new(hall.router.clone(), origin);
            match stream {
                Greeted::Plain(stream) => protocols.http1(known, leaving, *stream).await,
                Greeted::Secure(stream) => match stream.get_ref().1.alpn_protocol() {
                    Some(tls::HTTP2) => protocols.http2(known, leaving, stream).await,
                    _ => protocols.http1(known, leaving, stream).await,
                },
            }
        });
    }
}

/// Resolves when the server has been about to end for as long as it waits for those who
/// have not asked anything yet.
async fn left(leaving: &CancellationToken) {
    leaving.cancelled().await;
    tokio::time::sleep(LAST_WORD).await;
}

/// Connections at once: three quarters of the descriptors that there are. The rest
/// is for files and sessions.
fn most_connections() -> usize {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(1 << 20);
    usize::try_from(limit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS) / 4 * 3
}
