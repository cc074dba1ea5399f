//! Sandboxes that are alive: how many, for whom, and how to talk to one.

use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use cloister_sandbox::files::View;
use cloister_sandbox::host::{Launched, Standing};
use cloister_sandbox::network::Exits;
use cloister_sandbox::run::RunFolder;
use cloister_store::StoredSession;
use cloister_types::egress::{ConnectionName, Policy};
use cloister_types::link::{Command, Enforced, FrameReader, Signal, encode};
use cloister_types::transcript::Metered;
use cloister_types::{ResponseId, SessionId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::SessionError;
use crate::registry::{Session, Sessions};

/// The way out, as this crate sees it: it hands listeners over.
pub trait Gateway: Send + Sync {
    /// Have the vault know what the session may use. `strict`: it is an error
    /// if a connection does not exist; else that one is left out.
    fn permit<'a>(&'a self, session: &'a SessionId, rights: &'a Rights, strict: bool) -> Permitting<'a>;
    /// Serve the session's sockets until the lifeline ends.
    ///
    /// # Errors
    /// The egress process is not there.
    fn attach(&self, session: &SessionId, way: WayOut, rights: Rights) -> std::io::Result<()>;
    /// Stop serving the session.
    fn detach(&self, session: &SessionId);
    /// The session is gone: it may use nothing any more.
    fn forget(&self, session: &SessionId);
    /// What the session's model calls have used from its beginning on, in the
    /// providers' figures. None if that cannot be found out.
    fn usage<'a>(&'a self, session: &'a SessionId) -> Metering<'a>;
    /// These are all the sessions that there are.
    fn prune(&self, sessions: Vec<String>);
}

/// The answer of [`Gateway::permit`]: an error is the client's to be told.
pub type Permitting<'a> = Pin<Box<dyn Future<Output = Result<(), SessionError>> + Send + 'a>>;

/// The answer of [`Gateway::usage`].
pub type Metering<'a> = Pin<Box<dyn Future<Output = Option<Metered>> + Send + 'a>>;

/// What a session may use of the outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    /// Models.
    pub models: Vec<String>,
    /// Hosts, without a credential.
    pub policy: Policy,
    /// Connections, with theirs.
    pub connections: Vec<ConnectionName>,
}

/// What the way out needs of a sandbox.
#[derive(Debug)]
pub struct WayOut {
    /// The sockets inside.
    pub exits: Exits,
    /// A pipe that ends with the sandbox's supervisor, or when the next server
    /// has taken the sandbox over.
    pub lifeline: OwnedFd,
}

/// How long a sandbox that was told to end may take.
const GOODBYE: std::time::Duration = std::time::Duration::from_secs(5);

/// The link to a live sandbox. Dropping it ends the sandbox, unless the server
/// has let everything go.
pub(crate) struct Sandbox {
    let_go: Arc<AtomicBool>,
    link: UnixStream,
    reader: FrameReader,
    /// Where its supervisor keeps the spools.
    pub(crate) folder: RunFolder,
    /// The view that it was made on; unknown for one that was taken over.
    pub(crate) view: Option<Arc<View>>,
    pub(crate) idle_since: Instant,
    /// The spool of the turn that has just ended: turn, attempt, bytes.
    pub(crate) ended: Option<(ResponseId, u32, u64)>,
    _slot: Option<OwnedSemaphorePermit>,
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // A last resort: whoever ends one in order waits until it is gone.
        if !self.let_go.load(Ordering::Acquire)
            && let Ok(stop) = encode(&Command::Stop)
        {
            let _ = self.link.try_write(&stop);
        }
    }
}

impl Sandbox {
    pub(crate) async fn command(&mut self, command: &Command) -> std::io::Result<()> {
        let frame = encode(command).map_err(std::io::Error::other)?;
        self.send(&frame).await
    }

    /// Sends a frame that is already encoded.
    pub(crate) async fn send(&mut self, frame: &[u8]) -> std::io::Result<()> {
        self.link.write_all(frame).await
    }

    /// Signals that have arrived, at least one; `None` when the supervisor is
    /// gone. Safe to drop while it waits.
    pub(crate) async fn signals(&mut self) -> std::io::Result<Option<Vec<Signal>>> {
        let mut buffer = [0; 4096];
        loop {
            let mut signals = Vec::new();
            while let Some(signal) = self.reader.next_frame().map_err(std::io::Error::other)? {
                signals.push(signal);
            }
            if !signals.is_empty() {
                return Ok(Some(signals));
            }
            match self.link.read(&mut buffer).await? {
                0 => return Ok(None),
                got => self.reader.push(&buffer[..got]),
            }
        }
    }

    /// Has the supervisor hung up, as far as can be told without waiting? Late
    /// words about the last turn may still come; they are kept for later.
    pub(crate) fn is_closed(&mut self) -> bool {
        let mut buffer = [0; 4096];
        loop {
            match self.link.try_read(&mut buffer) {
                Ok(0) => return true,
                Ok(got) => self.reader.push(&buffer[..got]),
                Err(error) => return error.kind() != std::io::ErrorKind::WouldBlock,
            }
        }
    }

    /// The log holds the turn that has just ended.
    pub(crate) async fn acknowledge_end(&mut self) {
        if let Some((response_id, attempt, offset)) = self.ended.take() {
            // If the supervisor is gone, the next turn finds out.
            let _ = self.command(&Command::Stored { response_id, attempt, offset }).await;
        }
    }

    /// Ends the sandbox and waits until nothing of it is left.
    pub(crate) async fn stop(self) {
        self.end().await.remove();
    }

    /// Ends the sandbox; what it wrote stays.
    pub(crate) async fn end(mut self) -> RunFolder {
        let _ = self.command(&Command::Stop).await;
        self.wait_until_gone().await
    }

    /// Waits for a supervisor that is ending.
    pub(crate) async fn wait_until_gone(mut self) -> RunFolder {
        let gone = async { while let Ok(Some(_)) = self.signals().await {} };
        let ends = tokio::time::timeout(GOODBYE, gone).await.is_ok();
        let folder = self.folder.clone();
        let of_it = folder.clone();
        let see_off =
            move || Ok::<_, SessionError>(if ends { of_it.see_it_off() } else { of_it.make_sure_it_is_gone() });
        if !blocking(see_off).await.unwrap_or(false) {
            tracing::error!(folder = ?folder, "a sandbox does not end");
        }
        folder
    }
}

impl Sessions {
    /// Room for one more sandbox; the one that has been idle for longest is
    /// ended if there is none.
    pub(crate) async fn slot(&self) -> Result<OwnedSemaphorePermit, SessionError> {
        for _ in 0..3 {
            if let Ok(permit) = self.slots.clone().try_acquire_owned() {
                return Ok(permit);
            }
            if !self.evict_one().await {
                break;
            }
        }
        let most = self.config.live_sessions;
        Err(SessionError {
            code: cloister_types::ErrorCode::SessionLimit,
            message: format!("{most} sessions are at work, which is the limit"),
            hint: Some("wait for one to finish, or raise limits.live_sessions".into()),
        })
    }

    async fn evict_one(&self) -> bool {
        let mut oldest: Option<(Instant, Arc<Session>)> = None;
        for session in self.all() {
            if let Ok(inner) = session.inner.try_lock()
                && let Some(sandbox) = &inner.sandbox
                && oldest.as_ref().is_none_or(|(since, _)| sandbox.idle_since < *since)
            {
                oldest = Some((sandbox.idle_since, session.clone()));
            }
        }
        let Some((_, session)) = oldest else { return false };
        // Never waited for: its own message may want our place in turn. Held to
        // the end: that message must not find the old way out half closed.
        if let Ok(mut inner) = session.inner.try_lock()
            && let Some(sandbox) = inner.sandbox.take()
        {
            self.put_to_sleep(&session, sandbox).await;
        }
        true
    }

    /// Ends an idle sandbox; the session itself stays.
    pub(crate) async fn put_to_sleep(&self, session: &Session, sandbox: Sandbox) {
        session.set_enforced(None);
        self.gateway.detach(&session.stored.id);
        sandbox.stop().await;
    }

    /// Starts a sandbox for the session on its present view, and its turn with
    /// it.
    pub(crate) async fn launch(
        &self,
        session: &Session,
        view: Arc<View>,
        slot: OwnedSemaphorePermit,
        order: Arc<[u8]>,
    ) -> Result<Sandbox, SessionError> {
        let (host, id, for_launch) = (self.host.clone(), session.stored.id.clone(), view.clone());
        let launched = blocking(move || host.launch(&id, &for_launch, &order)).await?;
        let mut sandbox = self.take_launched(session, view, slot, launched).await?;
        // If it hangs up at once, following it says so.
        let _ = sandbox.command(&Command::Begin).await;
        Ok(sandbox)
    }

    /// Builds the session's first view and starts a sandbox on it.
    pub(crate) async fn launch_first(
        &self,
        session: &Session,
        slot: OwnedSemaphorePermit,
    ) -> Result<Sandbox, SessionError> {
        let mut kept = session.view.lock().await;
        let (host, id, access) = (self.host.clone(), session.stored.id.clone(), session.stored.file_access.clone());
        let (view, launched) = blocking(move || host.open(&id, &access, &[])).await?;
        let view = Arc::new(view);
        *kept = Some(view.clone());
        self.take_launched(session, view, slot, launched).await
    }

    async fn take_launched(
        &self,
        session: &Session,
        view: Arc<View>,
        slot: OwnedSemaphorePermit,
        launched: Launched,
    ) -> Result<Sandbox, SessionError> {
        let Launched { link, exits, lifeline, folder, enforced } = launched;
        let known = Known { view: Some(view), slot: Some(slot), enforced };
        let sandbox = self.take(session, link, folder, known)?;
        match self.give_way_out(session, WayOut { exits, lifeline }).await {
            Ok(()) => Ok(sandbox),
            Err(error) => {
                sandbox.stop().await;
                Err(error)
            }
        }
    }

    /// Takes a sandbox over that an earlier server launched.
    pub(crate) async fn take_over(&self, session: &Session, standing: Standing) -> Result<Sandbox, SessionError> {
        let Standing { link, exits, lifeline, enforced, folder, .. } = standing;
        // It is at work already: if that is one more than may be, the next
        // ones wait.
        let slot = self.slots.clone().try_acquire_owned().ok();
        let known = Known { view: None, slot, enforced };
        let sandbox = self.take(session, link, folder, known)?;
        self.give_way_out(session, WayOut { exits, lifeline }).await?;
        Ok(sandbox)
    }

    /// Has the vault know what a session may use; what it may not, because it
    /// does not exist, is the client's error.
    pub(crate) async fn permit(&self, session: &Session, strict: bool) -> Result<(), SessionError> {
        self.gateway.permit(&session.stored.id, &rights_of(session), strict).await
    }

    async fn give_way_out(&self, session: &Session, way: WayOut) -> Result<(), SessionError> {
        self.permit(session, false).await?;
        self.gateway.attach(&session.stored.id, way, rights_of(session)).map_err(|error| {
            tracing::error!(%error, "egress");
            SessionError::new(cloister_types::ErrorCode::Unavailable, "the egress process is not there; try again")
        })
    }

    fn take(
        &self,
        session: &Session,
        link: std::os::unix::net::UnixStream,
        folder: RunFolder,
        known: Known,
    ) -> Result<Sandbox, SessionError> {
        link.set_nonblocking(true)?;
        let link = UnixStream::from_std(link)?;
        let Known { view, slot, enforced } = known;
        session.set_enforced(Some(enforced));
        let (reader, idle_since) = (FrameReader::default(), Instant::now());
        let let_go = self.closing_for_good.clone();
        Ok(Sandbox { let_go, link, reader, folder, view, idle_since, ended: None, _slot: slot })
    }
}

fn rights_of(session: &Session) -> Rights {
    let StoredSession { model, egress, connections, .. } = &session.stored;
    Rights { models: vec![model.clone()], policy: egress.clone(), connections: connections.clone() }
}

/// What is known of a sandbox besides how to reach it.
struct Known {
    view: Option<Arc<View>>,
    slot: Option<OwnedSemaphorePermit>,
    enforced: Enforced,
}

/// Where models are called, as seen from inside.
pub(crate) fn model_url() -> String {
    let ([a, b, c, d], port) = cloister_sandbox::MODEL_LISTENER;
    format!("http://{a}.{b}.{c}.{d}:{port}")
}

/// Runs a call that blocks on a thread where it may.
pub(crate) async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T, SessionError>
where
    T: Send + 'static,
    E: Into<SessionError> + Send + 'static,
{
    outcome(tokio::task::spawn_blocking(work).await)
}

/// What became of a blocking call.
pub(crate) fn outcome<T, E: Into<SessionError>>(
    ended: Result<Result<T, E>, tokio::task::JoinError>,
) -> Result<T, SessionError> {
    match ended {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(error) => {
            tracing::error!(%error, "a blocking task broke");
            Err(SessionError::new(cloister_types::ErrorCode::Internal, "an operation broke"))
        }
    }
}
