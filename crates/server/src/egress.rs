//! The two processes of the way out as the server's children: egress and the
//! vault. Started, told, started again if they die. Sessions' sockets are kept
//! here as duplicates, so a new egress serves the very ones that the old one did.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloister_egress::control::{self, Order, Pass, Setup};
use cloister_session::{Gateway, Metering, Permitting, Rights, SessionError, WayOut};
use cloister_types::transcript::Metered;
use cloister_types::{ErrorCode, SessionId};
use cloister_vault::SealingKey;
use cloister_vault::client::{Away, Client, OPENING};
use cloister_vault::wire::{self, Reply, Request, Role};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use tokio::io::AsyncReadExt;
use tokio::runtime::Handle;

use crate::vault::Vault;

/// Between the death of a process and the start of the next.
const PAUSE: Duration = Duration::from_millis(100);

/// Looks from one question to the next, whether the vault is well.
const LOOKS: u32 = 20;

/// How often a vault that is away is asked again.
const AGAIN: u32 = 25;

/// How long egress may take to say what was used: longer than it waits for the
/// vault.
const USAGE: Duration = Duration::from_secs(8);

/// How long egress may leave an order, or a question whether it is well, where
/// it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// How long it may take to end with the sessions that it serves.
const GOODBYE: Duration = Duration::from_secs(5);

/// The server's handle.
pub(crate) struct Egress {
    executable: PathBuf,
    setup: Setup,
    /// The server's own link to the vault.
    pub(crate) vault: Client,
    runtime: Handle,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    control: Option<OwnedFd>,
    child: Option<Child>,
    vault: Option<Vault>,
    /// Sessions with sockets.
    ways: HashMap<SessionId, (WayOut, Rights)>,
    stopping: bool,
    /// Looks since the vault was last asked whether it is well, and how often
    /// in a row it did not say so.
    looks: u32,
    silent: u32,
    /// How often in a row egress did not say that it is.
    mute: u32,
    /// It has answered since it was started.
    opened: bool,
}

impl State {
    /// Gives egress an order. One that does not take it is ended: its successor is
    /// told everything.
    fn order(&mut self, order: &Order, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
        let control = self.control.as_ref().ok_or_else(|| std::io::Error::other("egress is away"))?;
        let sent = control::send(control, order, fds);
        if sent.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock) {
            self.end_egress();
        }
        sent
    }

    fn end_egress(&mut self) {
        tracing::error!("egress takes no orders, or does not answer; it is ended");
        if let Some(child) = &mut self.child {
            let _ = child.kill();
        }
    }

    /// Gives egress its link to the vault.
    fn give_link(&mut self) -> std::io::Result<()> {
        let Some(vault) = &self.vault else { return Ok(()) };
        let link = vault.link(Role::Egress)?;
        self.order(&Order::Vault, &[link.as_fd()])
    }
}

impl Egress {
    /// Starts the processes and the watch over them. Called within a runtime.
    pub(crate) fn start(executable: PathBuf, setup: Setup, for_vault: wire::Setup) -> std::io::Result<Arc<Self>> {
        let vault = Client::default();
        let egress = Arc::new(Self { executable, setup, vault, runtime: Handle::current(), state: Mutex::default() });
        {
            let mut state = egress.lock();
            let vault = Vault::start(egress.executable.clone(), for_vault)?;
            egress.vault.use_link(vault.link(Role::Server)?)?;
            state.vault = Some(vault);
            egress.spawn(&mut state)?;
        }
        let watched = Arc::downgrade(&egress);
        std::thread::Builder::new().name("egress-watch".into()).spawn(move || {
            while let Some(egress) = watched.upgrade() {
                egress.ask_how_it_is();
                if !egress.look_after() {
                    return;
                }
                drop(egress);
                std::thread::sleep(PAUSE);
            }
        })?;
        Ok(egress)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, state: &mut State) -> std::io::Result<()> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(&self.executable)
            .arg("egress-process")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()?;
        set_socket_timeout(&ours, Timeout::Send, Some(PATIENCE))?;
        (state.control, state.child, state.mute) = (Some(ours), Some(child), 0);
        state.order(&Order::Setup(Box::new(self.setup.clone())), &[])?;
        state.give_link()?;
        let State { control, ways, .. } = state;
        for (session, (way, rights)) in ways.iter() {
            control::send(
                control.as_ref().ok_or(std::io::ErrorKind::NotConnected)?,
                &attach(session, rights),
                &fds(way),
            )?;
        }
        Ok(())
    }

    /// The key that closes secrets for the vault, once that has opened.
    ///
    /// # Errors
    /// It does not open.
    pub(crate) async fn sealing_key(&self) -> Result<SealingKey, Away> {
        match self.vault.ask_within(&Request::SealingKey, OPENING).await? {
            Reply::SealingKey(key) => {
                self.lock().opened = true;
                Ok(key)
            }
            _ => Err(Away),
        }
    }

    /// Ends a vault that lives and does not answer, and egress alike: another one
    /// may.
    fn ask_how_it_is(&self) {
        {
            let mut state = self.lock();
            state.looks += 1;
            if !state.looks.is_multiple_of(LOOKS) || state.stopping {
                return;
            }
        }
        // Not under the lock: it may take a while.
        let well = self.runtime.block_on(self.vault.ask(&Request::SealingKey)).is_ok();
        let mut state = self.lock();
        state.opened |= well;
        let opens = !state.opened && state.vault.as_ref().is_some_and(|vault| vault.age() < OPENING);
        state.silent = if well || opens { 0 } else { state.silent + 1 };
        if state.silent >= 2
            && let Some(vault) = &mut state.vault
            && !vault.has_ended()
        {
            tracing::error!("the vault does not answer; it is ended");
            vault.kill();
        }
        drop(state);
        let well = self.runtime.block_on(self.egress_answers());
        let mut state = self.lock();
        state.mute = if well { 0 } else { state.mute + 1 };
        if state.mute >= 2 {
            state.end_egress();
        }
    }

    async fn egress_answers(&self) -> bool {
        let Ok((ours, theirs)) = UnixStream::pair() else { return true };
        let ours = ours.set_nonblocking(true).and_then(|()| tokio::net::UnixStream::from_std(ours));
        let Ok(mut ours) = ours else { return true };
        if self.lock().order(&Order::Well, &[theirs.as_fd()]).is_err() {
            // It has died, or been ended: that is noticed elsewhere.
            return true;
        }
        drop(theirs);
        let answer = tokio::time::timeout(PATIENCE, ours.read_u8()).await;
        // A hang-up is an answer of one that ends.
        answer.is_ok()
    }

    /// Restarts what died; false once it is to stay dead.
    fn look_after(&self) -> bool {
        let mut state = self.lock();
        if state.stopping {
            return false;
        }
        let ended = state.vault.as_mut().is_some_and(|vault| vault.has_ended() && vault.may_start_again());
        if ended || (self.vault.is_broken() && state.vault.as_mut().is_some_and(|vault| !vault.has_ended())) {
            if ended {
                tracing::error!("the vault ended; starting another");
            }
            // Nobody may wait for this lock while the vault is asked: its answers come
            // by way of those who would.
            let known = self.renew_vault(&mut state, ended);
            drop(state);
            if let Err(error) = known.and_then(|known| self.tell(&known)) {
                tracing::error!(%error, "the vault cannot be started");
            }
            state = self.lock();
            if state.stopping {
                return false;
            }
        }
        let ended = state.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if ended {
            tracing::error!("the egress process ended; starting another");
            if let Err(error) = self.spawn(&mut state) {
                tracing::error!(%error, "egress cannot be started");
                // Half told, it must not go on beside its successor.
                if let Some(child) = &mut state.child {
                    let _ = child.kill();
                }
            }
        }
        true
    }

    /// Starts the vault again, or gives a link that broke anew. What it must be
    /// told before egress can ask.
    fn renew_vault(&self, state: &mut State, ended: bool) -> std::io::Result<Vec<Request>> {
        let _runtime = self.runtime.enter();
        if let Some(vault) = &mut state.vault {
            if ended {
                vault.start_again()?;
                state.opened = false;
            }
            self.vault.use_link(vault.link(Role::Server)?)?;
        }
        Ok(state.ways.iter().map(|(session, (_, rights))| permit(session, rights, false)).collect())
    }

    /// Tells a vault of all sessions, and then egress of the vault.
    fn tell(&self, known: &[Request]) -> std::io::Result<()> {
        self.runtime.block_on(async {
            self.sealing_key().await.map_err(std::io::Error::other)?;
            for request in known {
                if self.vault.ask(request).await.is_err() {
                    return Err(std::io::Error::other("the vault does not answer"));
                }
            }
            Ok(())
        })?;
        let mut state = self.lock();
        if state.control.is_some() { state.give_link() } else { Ok(()) }
    }

    async fn ask_usage(&self, session: &SessionId) -> Option<Metered> {
        let (ours, theirs) = UnixStream::pair().ok()?;
        ours.set_nonblocking(true).ok()?;
        let mut ours = tokio::net::UnixStream::from_std(ours).ok()?;
        self.lock().order(&Order::Usage { session: session.clone() }, &[theirs.as_fd()]).ok()?;
        drop(theirs);
        let mut text = Vec::new();
        tokio::time::timeout(USAGE, ours.read_to_end(&mut text)).await.ok()?.ok()?;
        serde_json::from_slice(&text).ok()
    }

    /// Hangs up and waits for the processes to end.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.control = None;
        state.ways.clear();
        self.vault.hang_up();
        let children = [state.child.take(), state.vault.take().map(Vault::hang_up)];
        drop(state);
        for mut child in children.into_iter().flatten() {
            let end = Instant::now() + GOODBYE;
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= end {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Hangs up; calls of turns that go on without a server are served on.
    pub(crate) fn let_go(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.control = None;
        state.vault = None;
        self.vault.hang_up();
    }
}

fn fds(way: &WayOut) -> Vec<BorrowedFd<'_>> {
    way.exits.as_fds().into_iter().chain([way.lifeline.as_fd()]).collect()
}

fn attach(session: &SessionId, rights: &Rights) -> Order {
    let pass = Pass { models: rights.models.clone(), policy: rights.policy.clone() };
    Order::Attach { session: session.clone(), pass }
}

fn permit(session: &SessionId, rights: &Rights, strict: bool) -> Request {
    let Rights { models, connections, .. } = rights.clone();
    Request::Permit { session: session.clone(), connections, models, strict }
}

impl cloister_api::Outside for Egress {
    fn try_link(&self, session: &SessionId) -> std::io::Result<UnixStream> {
        let (ours, theirs) = UnixStream::pair()?;
        self.lock().order(&Order::Try { session: session.clone() }, &[theirs.as_fd()])?;
        Ok(ours)
    }
}

impl Gateway for Egress {
    fn permit<'a>(&'a self, session: &'a SessionId, rights: &'a Rights, strict: bool) -> Permitting<'a> {
        Box::pin(async move {
            let request = permit(session, rights, strict);
            let mut reply = self.vault.ask(&request).await;
            // One that died is back in a moment.
            for _ in 0..AGAIN {
                if reply.is_ok() {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
                reply = self.vault.ask(&request).await;
            }
            match reply {
                Ok(Reply::Done) => Ok(()),
                Ok(Reply::Invalid(message)) => Err(SessionError {
                    code: ErrorCode::InvalidRequest,
                    message,
                    hint: Some("GET /v1/connections lists them".into()),
                }),
                _ => Err(SessionError::new(ErrorCode::Unavailable, "the vault is not there; try again")),
            }
        })
    }

    fn attach(&self, session: &SessionId, way: WayOut, rights: Rights) -> std::io::Result<()> {
        let mut state = self.lock();
        // If the process has just died, its successor is told with the rest.
        if state.control.is_some()
            && let Err(error) = state.order(&attach(session, &rights), &fds(&way))
        {
            tracing::warn!(%error, "egress is away; its successor will serve this session");
        }
        // One that was replaced since it was told knows nothing of it.
        if state.vault.as_ref().is_some_and(Vault::is_new) {
            let (vault, request) = (self.vault.clone(), permit(session, &rights, false));
            self.runtime.spawn(async move { drop(vault.ask(&request).await) });
        }
        state.ways.insert(session.clone(), (way, rights));
        Ok(())
    }

    fn detach(&self, session: &SessionId) {
        let mut state = self.lock();
        if state.ways.remove(session).is_some() {
            let _ = state.order(&Order::Detach { session: session.clone() }, &[]);
        }
    }

    fn forget(&self, session: &SessionId) {
        let (vault, request) = (self.vault.clone(), permit(session, &Rights::default(), false));
        self.runtime.spawn(async move {
            let _ = vault.ask(&request).await;
        });
    }

    fn usage<'a>(&'a self, session: &'a SessionId) -> Metering<'a> {
        Box::pin(async move {
            for attempt in 0..AGAIN {
                if let Some(usage) = self.ask_usage(session).await {
                    return Some(usage);
                }
                tracing::debug!(%session, attempt, "egress does not say what was used");
                tokio::time::sleep(PAUSE).await;
            }
            None
        })
    }

    fn prune(&self, sessions: Vec<String>) {
        let vault = self.vault.clone();
        self.runtime.spawn(async move {
            let _ = vault.ask(&Request::Prune(sessions)).await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn egress_that_takes_no_orders_is_ended() {
        let (ours, _theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        set_socket_timeout(&ours, Timeout::Send, Some(Duration::from_millis(20))).unwrap();
        let child = Command::new("sleep").arg("60").spawn().unwrap();
        let mut state = State { control: Some(ours), child: Some(child), ..State::default() };
        let order = Order::Detach { session: SessionId::from_random([1; 6]) };
        let refused = (0..10_000).find_map(|_| state.order(&order, &[]).err()).expect("no socket has room for so many");
        assert_eq!(refused.kind(), std::io::ErrorKind::WouldBlock);
        let status = state.child.unwrap().wait().unwrap();
        assert_eq!(std::os::unix::process::ExitStatusExt::signal(&status), Some(9));
    }
}
