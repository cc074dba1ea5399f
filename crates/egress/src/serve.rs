//! The role: takes orders, serves sessions' sockets.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cloister_dial::{Dialer, Roots};
use cloister_types::link::RESOLVER;
use cloister_types::{Host, SessionId};
use cloister_vault::client::Client;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinSet};

use crate::control::{self, Order, Pass, Setup};
use crate::ledger::Ledger;
use crate::limits::Budget;
use crate::model;
use crate::names;
use crate::pool::Pool;
use crate::record::Outbox;
use crate::rules;
use crate::session::{Session, Tenant};
use crate::web::{self, Dialled};

/// Connections that one session may have open.
const CONNECTIONS: usize = 256;
/// Names that one session may have looked up at once.
const QUESTIONS: usize = 64;
/// How long a request's head, or a TLS handshake, may take.
const HEAD: Duration = Duration::from_secs(10);
/// Bytes and fields of a request's head.
const HEAD_BYTES: usize = 32 << 10;
const FIELDS: usize = 100;
/// Requests at once on one HTTP/2 connection.
const STREAMS: u32 = 128;

/// Runs the role on the control socket. When the server hangs up, the sessions
/// that it gave are served on, each until its lifeline ends: they have turns
/// that go on without a server.
///
/// # Errors
/// The control socket is none, or speaks something else.
pub async fn main(control: OwnedFd) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    close_up();
    // A second installation in one process is harmless.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let mut orders = listen(control);
    let Some((Order::Setup(setup), _)) = orders.recv().await else {
        return Err("the server did not say what there is".into());
    };
    let tenant = Arc::new(open(*setup)?);
    let mut serving: HashMap<SessionId, AbortHandle> = HashMap::new();
    let mut tasks = JoinSet::new();
    loop {
        let order = tokio::select! {
            order = orders.recv() => order,
            Some(_) = tasks.join_next() => continue,
        };
        let Some((order, mut fds)) = order else { break };
        match order {
            Order::Attach { session, pass } => match (fds.pop(), <[OwnedFd; 4]>::try_from(fds)) {
                (Some(lifeline), Ok(exits)) => {
                    let who = Session::new(session.clone(), pass, tenant.clone());
                    let task = tasks.spawn(serve(who, exits, lifeline));
                    if let Some(old) = serving.insert(session, task) {
                        old.abort();
                    }
                }
                _ => tracing::error!(%session, "a session without its sockets"),
            },
            Order::Detach { session } => {
                if let Some(task) = serving.remove(&session) {
                    task.abort();
                }
            }
            Order::Vault => {
                let used = fds.pop().map(|link| tenant.vault.use_link(link));
                if !matches!(used, Some(Ok(()))) {
                    tracing::error!("a link to the vault that is none");
                }
            }
            Order::Try { session } => {
                let who = Session::new(session, Pass::default(), tenant.clone());
                let stream = fds.pop().map(std::os::unix::net::UnixStream::from);
                if let Some(stream) = stream
                    && stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = tokio::net::UnixStream::from_std(stream)
                {
                    tasks.spawn(converse(who, Dialled { name: None, address: None }, stream));
                }
            }
            Order::Usage { session } => {
                let stream = fds.pop().map(std::os::unix::net::UnixStream::from);
                if let Some(stream) = stream
                    && stream.set_nonblocking(true).is_ok()
                    && let Ok(stream) = tokio::net::UnixStream::from_std(stream)
                {
                    tasks.spawn(say_usage(tenant.clone(), session, stream));
                }
            }
            Order::Well => {
                if let Some(mut stream) = fds.pop().map(std::os::unix::net::UnixStream::from) {
                    // One byte fits.
                    let _ = std::io::Write::write_all(&mut stream, b"!");
                }
            }
            order @ Order::Setup(_) => tracing::error!(?order, "an order that makes no sense"),
        }
    }
    while tasks.join_next().await.is_some() {}
    // The last records are on their way for a moment.
    tokio::time::sleep(Duration::from_millis(50)).await;
    Ok(())
}

fn open(setup: Setup) -> Result<Tenant, cloister_dial::TlsError> {
    let roots = Roots::read(setup.extra_ca.as_deref())?;
    let pool = Pool::new(Dialer::new(setup.hosts.clone()), roots)?;
    let budget = Budget::of_tenant(&setup.limits);
    let mut source = [0; 16];
    aws_lc_rs::rand::fill(&mut source).map_err(|_| rustls::Error::FailedToGetRandomBytes)?;
    let (vault, outbox) = (Client::default(), Arc::new(Outbox::new(cloister_vault::hex(&source))));
    let (sender, to) = (outbox.clone(), vault.clone());
    tokio::spawn(async move { sender.send(to).await });
    Ok(Tenant { setup, vault, pool, budget, outbox, ledger: Ledger::default() })
}

/// Nobody reads this process while it holds a credential.
fn close_up() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = rustix::thread::set_no_new_privs(true);
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

async fn say_usage(tenant: Arc<Tenant>, session: SessionId, mut stream: tokio::net::UnixStream) {
    // Unknown is left unsaid.
    if tenant.ledger.open(&tenant.vault, &session).await.is_err() {
        return;
    }
    let used = tenant.ledger.used(&session);
    tenant.outbox.settle().await;
    if let Ok(text) = serde_json::to_vec(&used) {
        let _ = stream.write_all(&text).await;
    }
}

/// Serves a session until its lifeline ends. Then somebody else does, or nobody;
/// a call that is under way is seen to its end.
async fn serve(session: Arc<Session>, exits: [OwnedFd; 4], lifeline: OwnedFd) {
    let [http, https, names, names_tcp] = exits;
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let (http, https, names_tcp) = match (listener(http), listener(https), listener(names_tcp)) {
        (Ok(http), Ok(https), Ok(names_tcp)) => (http, https, names_tcp),
        _ => {
            tracing::error!(session = %session.id, "not listeners");
            return;
        }
    };
    let names = std::net::UdpSocket::from(names);
    let Ok(names) = names.set_nonblocking(true).and_then(|()| UdpSocket::from_std(names)) else { return };
    let names = Arc::new(names);
    let _over = Over(session.clone());
    let questions = Arc::new(Semaphore::new(QUESTIONS));
    // Connections end with this task: a detached session calls nothing more.
    let mut connections = JoinSet::new();
    let over = ended(lifeline);
    tokio::pin!(over);
    let mut question = [0; 1024];
    loop {
        let slot = tokio::select! {
            Ok(slot) = slots.clone().acquire_owned() => slot,
            () = &mut over => break,
        };
        let accepted = tokio::select! {
            accepted = http.accept() => accepted.map(|(socket, _)| (Kind::Http, socket)),
            accepted = https.accept() => accepted.map(|(socket, _)| (Kind::Https, socket)),
            accepted = names_tcp.accept() => accepted.map(|(socket, _)| (Kind::Names, socket)),
            asked = names.recv_from(&mut question) => {
                // One too many at once is asked again.
                if let (Ok((length, from)), Ok(place)) = (asked, questions.clone().try_acquire_owned()) {
                    let (session, names, question) = (session.clone(), names.clone(), question[..length].to_vec());
                    connections.spawn(async move {
                        if let Some(answer) = resolve(&session, &question).await {
                            let _ = names.send_to(&answer, from).await;
                        }
                        drop(place);
                    });
                }
                continue;
            }
            Some(_) = connections.join_next() => continue,
            () = &mut over => break,
        };
        match accepted {
            Ok((kind, socket)) => _ = connections.spawn(answer(session.clone(), kind, socket, slot)),
            Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    }
    drop((http, https, names, names_tcp));
    while connections.join_next().await.is_some() {}
}

/// Ends with the service of a session, however that ends.
struct Over(Arc<Session>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.close();
        self.0.tenant.pool.forget(&self.0.id);
    }
}

fn listener(fd: OwnedFd) -> std::io::Result<TcpListener> {
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

/// Waits for the end of a pipe that nobody writes to.
async fn ended(lifeline: OwnedFd) {
    match tokio::net::unix::pipe::Receiver::from_owned_fd(lifeline) {
        Ok(mut pipe) => _ = pipe.read(&mut [0]).await,
        Err(error) => {
            tracing::error!(%error, "not a lifeline");
            std::future::pending().await
        }
    }
}

/// What a socket is for.
enum Kind {
    Http,
    Https,
    Names,
}

async fn answer(session: Arc<Session>, kind: Kind, socket: TcpStream, slot: OwnedSemaphorePermit) {
    let _ = socket.set_nodelay(true);
    // A socket's own address is the one that was dialled.
    let Ok(IpAddr::V4(address)) = socket.local_addr().map(|address| address.ip()) else { return };
    match kind {
        Kind::Http if address == Ipv4Addr::from(RESOLVER) => converse_about_models(session, socket).await,
        Kind::Http => converse(session, Dialled { name: None, address: Some(address) }, socket).await,
        Kind::Https => secure(session, address, socket).await,
        Kind::Names => names_over_tcp(session, socket).await,
    }
    drop(slot);
}

async fn resolve(session: &Arc<Session>, message: &[u8]) -> Option<Vec<u8>> {
    // Without the vault nothing is known of connections: what the policy allows
    // is found all the same.
    let permitted = session.permitted().await.unwrap_or_default();
    let may_know = |host: &Host| rules::may_resolve(&session.pass.policy, &permitted, host, session.is_placed(host));
    let (answer, told) = names::answer(message, session.id.as_str(), may_know)?;
    if let Some(told) = told
        && !told.known
    {
        let mut entry = session.recorder.entry("dns");
        entry.host = told.host.map(|host| host.to_string()).unwrap_or_default();
        session.recorder.refused(entry, "name_not_allowed");
    }
    Some(answer)
}

async fn names_over_tcp(session: Arc<Session>, mut socket: TcpStream) {
    let conversation = async {
        loop {
            let length = socket.read_u16().await?;
            let mut message = vec![0; usize::from(length)];
            socket.read_exact(&mut message).await?;
            let Some(answer) = resolve(&session, &message).await else { return Ok(()) };
            // Some clients take the first packet for the whole.
            let length = u16::try_from(answer.len()).unwrap_or(0).to_be_bytes();
            socket.write_all(&[&length[..], &answer].concat()).await?;
        }
    };
    let _: Result<std::io::Result<()>, _> = tokio::time::timeout(HEAD, conversation).await;
}

/// TLS with the session, about the host that it names; no other name is
/// answered for.
async fn secure(session: Arc<Session>, address: Ipv4Addr, socket: TcpStream) {
    let hello = tokio_rustls::LazyConfigAcceptor::new(rustls::server::Acceptor::default(), socket);
    let Ok(Ok(start)) = tokio::time::timeout(HEAD, hello).await else { return };
    let name = start.client_hello().server_name().map(str::to_owned);
    let host = name.as_deref().and_then(|name| name.parse::<Host>().ok());
    let permitted = session.permitted().await.unwrap_or_default();
    let mut entry = session.recorder.entry("tls");
    entry.host = host.as_ref().map(ToString::to_string).unwrap_or_default();
    let refusal = match &host {
        None => Some("no_name"),
        Some(host) if address != names::address_of(session.id.as_str(), host) => Some("host_mismatch"),
        Some(host) if !rules::may_resolve(&session.pass.policy, &permitted, host, session.is_placed(host)) => {
            Some("host_not_allowed")
        }
        Some(_) => None,
    };
    let (Some(host), None) = (host, refusal) else {
        session.recorder.refused(entry, refusal.unwrap_or("no_name"));
        // The alert for a name that is not answered for (RFC 6066, 3).
        let mut socket = start.io;
        let _ = socket.write_all(&[21, 3, 3, 0, 2, 2, 112]).await;
        return;
    };
    let config = session.authority().await.and_then(|authority| authority.server_config(&host).ok());
    let Some(config) = config else { return };
    if let Ok(Ok(stream)) = tokio::time::timeout(HEAD, start.into_stream(config)).await {
        converse(session, Dialled { name: Some(host), address: Some(address) }, stream).await;
    }
}

async fn converse(
    session: Arc<Session>,
    dialled: Dialled,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) {
    let service = service_fn(move |request| web::handle(session.clone(), dialled.clone(), request));
    let mut server = auto::Builder::new(TokioExecutor::new());
    server
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(FIELDS)
        .max_buf_size(HEAD_BYTES)
        .half_close(false);
    server
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(HEAD_BYTES as u32)
        .max_send_buf_size(64 << 10)
        .max_pending_accept_reset_streams(32)
        .keep_alive_interval(Duration::from_secs(60))
        .keep_alive_timeout(Duration::from_secs(20));
    // Whatever a session does to its own connection concerns it alone.
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), service).await;
}

async fn converse_about_models(session: Arc<Session>, socket: TcpStream) {
    let service = service_fn(|request| model::handle(session.clone(), request));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD)
        .max_headers(64)
        .serve_connection(TokioIo::new(socket), service);
    let _ = connection.await;
}
