//! The role: takes orders, serves listeners.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cloister_types::SessionId;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::control::{self, Order, Upstream};
use crate::forward::{self, Clients};

/// Connections that one session may have open.
const CONNECTIONS: usize = 32;
/// How long a request's head may take.
const HEAD: Duration = Duration::from_secs(10);

/// What all sessions of the tenant share.
pub(crate) struct Tenant {
    pub(crate) models: BTreeMap<String, Upstream>,
    pub(crate) clients: Clients,
}

/// A session, known by its listener.
pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) models: Vec<String>,
    pub(crate) tenant: Arc<Tenant>,
}

/// Runs the role on the control socket. When the server hangs up, the sessions
/// that it gave are served on, each until its lifeline ends: they have turns
/// that go on without a server.
///
/// # Errors
/// The control socket is none, or speaks something else.
pub async fn main(control: OwnedFd) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    // A second installation in one process is harmless.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut orders = listen(control);
    let Some((Order::Models(models), _)) = orders.recv().await else {
        return Err("the server did not say which models there are".into());
    };
    let tenant = Arc::new(Tenant { models, clients: Clients::new()? });
    let mut serving: HashMap<SessionId, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            Some(_) = tasks.join_next() => continue,
        };
        let Some((order, fds)) = order else { break };
        match (order, <[OwnedFd; 2]>::try_from(fds)) {
            (Order::Attach { session, models }, Ok([listener, lifeline])) => {
                let who = Arc::new(Session { id: session.clone(), models, tenant: tenant.clone() });
                let task = tasks.spawn(accept(who, listener, lifeline));
                if let Some(old) = serving.insert(session, task) {
                    old.abort();
                }
            }
            (Order::Detach { session }, _) => {
                if let Some(task) = serving.remove(&session) {
                    task.abort();
                }
            }
            (order, _) => tracing::error!(?order, "an order that makes no sense"),
        }
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Orders from the socket, on a thread that may block.
fn listen(control: OwnedFd) -> mpsc::Receiver<(Order, Vec<OwnedFd>)> {
    let (sender, receiver) = mpsc::channel(64);
    tokio::task::spawn_blocking(move || {
        loop {
            match control::receive(&control) {
                Ok(Some(order)) => {
                    if sender.blocking_send(order).is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // The server will start another that hears it.
                    tracing::error!(%error, "the control socket broke");
                    std::process::exit(1);
                }
            }
        }
    });
    receiver
}

async fn accept(session: Arc<Session>, listener: OwnedFd, lifeline: OwnedFd) {
    let listener = std::net::TcpListener::from(listener);
    let listener = match listener.set_nonblocking(true).and_then(|()| TcpListener::from_std(listener)) {
        Ok(listener) => listener,
        Err(error) => {
            tracing::error!(session = %session.id, %error, "not a listener");
            return;
        }
    };
    let over = ended(lifeline);
    tokio::pin!(over);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    // Connections end with this task: a detached session calls nothing more.
    let mut connections = JoinSet::new();
    loop {
        let slot = tokio::select! {
            Ok(slot) = slots.clone().acquire_owned() => slot,
            () = &mut over => break,
        };
        let socket = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
            () = &mut over => break,
        };
        match socket {
            Ok((socket, _)) => {
                let session = session.clone();
                connections.spawn(async move {
                    converse(session, socket).await;
                    drop(slot);
                });
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    // Somebody else accepts from now on, or nobody. A call that is under way
    // is seen to its end; a caller that is gone ends its own.
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// Waits for the end of a pipe that nobody writes to.
async fn ended(lifeline: OwnedFd) {
    match tokio::net::unix::pipe::Receiver::from_owned_fd(lifeline) {
        Ok(mut pipe) => _ = tokio::io::AsyncReadExt::read(&mut pipe, &mut [0]).await,
        Err(error) => {
            tracing::error!(%error, "not a lifeline");
            std::future::pending().await
        }
    }
}

async fn converse(session: Arc<Session>, socket: TcpStream) {
    let _ = socket.set_nodelay(true);
    let service = service_fn(|request| {
        let session = session.clone();
        async move { forward::handle(&session, request).await }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(64)
        .serve_connection(TokioIo::new(socket), service);
    // Whatever a session does to its own connection concerns it alone.
    let _ = connection.await;
}
