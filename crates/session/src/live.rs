//! Sandboxes that are alive: how many, for whom, and how to talk to one.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use cloister_sandbox::files::View;
use cloister_types::SessionId;
use cloister_types::link::{Command, Fact, FrameReader, encode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::OwnedSemaphorePermit;

use crate::SessionError;
use crate::registry::{Session, Sessions};

/// The way out, as this crate sees it: it hands listeners over.
pub trait Gateway: Send + Sync {
    /// Serve the session's model listener, for these models.
    ///
    /// # Errors
    /// The egress process is not there.
    fn attach(&self, session: &SessionId, listener: OwnedFd, models: Vec<String>) -> std::io::Result<()>;
    /// Stop serving the session.
    fn detach(&self, session: &SessionId);
}

/// The link to a live sandbox. Dropping it ends the sandbox.
pub(crate) struct Sandbox {
    link: UnixStream,
    reader: FrameReader,
    /// The view that it was made on.
    pub(crate) view: Arc<View>,
    pub(crate) idle_since: Instant,
    _slot: OwnedSemaphorePermit,
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

    /// Facts that have arrived, at least one; `None` when the supervisor is
    /// gone. Safe to drop while it waits.
    pub(crate) async fn facts(&mut self) -> std::io::Result<Option<Vec<Fact>>> {
        let mut buffer = vec![0; 64 << 10];
        loop {
            let mut facts = Vec::new();
            while let Some(fact) = self.reader.next_frame().map_err(std::io::Error::other)? {
                facts.push(fact);
            }
            if !facts.is_empty() {
                return Ok(Some(facts));
            }
            match self.link.read(&mut buffer).await? {
                0 => return Ok(None),
                got => self.reader.push(&buffer[..got]),
            }
        }
    }

    /// Has the supervisor hung up, as far as can be told without waiting?
    pub(crate) fn is_closed(&self) -> bool {
        // Nothing comes unasked while a turn has not begun, so anything that
        // can be read now is the end.
        let read = self.link.try_read(&mut [0; 1]);
        !matches!(read, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
    }

    /// Ends the sandbox and waits until nothing of it is left.
    pub(crate) async fn stop(mut self) {
        let _ = self.command(&Command::Stop).await;
        let gone = async { while let Ok(Some(_)) = self.facts().await {} };
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), gone).await;
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
        // Never waited for: its own message may want our place in turn.
        let Some(sandbox) = session.inner.try_lock().ok().and_then(|mut inner| inner.sandbox.take()) else {
            return true;
        };
        self.put_to_sleep(&session, sandbox).await;
        true
    }

    /// Ends an idle sandbox; the session itself stays.
    pub(crate) async fn put_to_sleep(&self, session: &Session, sandbox: Sandbox) {
        session.set_enforced(None);
        self.gateway.detach(&session.stored.id);
        sandbox.stop().await;
    }

    /// Starts a sandbox for the session on its present view.
    pub(crate) async fn launch(
        &self,
        session: &Session,
        view: Arc<View>,
        slot: OwnedSemaphorePermit,
    ) -> Result<Sandbox, SessionError> {
        let (host, id, limits, for_launch) =
            (self.host.clone(), session.stored.id.clone(), self.config.sandbox, view.clone());
        let launched = blocking(move || host.launch(&id, &for_launch, &limits)).await?;
        launched
            .link
            .set_nonblocking(true)
            .map_err(|error| SessionError::new(cloister_types::ErrorCode::Internal, error.to_string()))?;
        let link = UnixStream::from_std(launched.link)
            .map_err(|error| SessionError::new(cloister_types::ErrorCode::Internal, error.to_string()))?;
        let models = vec![session.stored.model.clone()];
        self.gateway.attach(&session.stored.id, launched.listener, models).map_err(|error| {
            tracing::error!(%error, "egress");
            SessionError::new(cloister_types::ErrorCode::Unavailable, "the egress process is not there; try again")
        })?;
        session.set_enforced(Some(launched.enforced));
        Ok(Sandbox { link, reader: FrameReader::default(), view, idle_since: Instant::now(), _slot: slot })
    }
}

/// The base URL of the model listener, as seen from inside.
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
    match tokio::task::spawn_blocking(work).await {
        Ok(outcome) => outcome.map_err(Into::into),
        Err(error) => {
            tracing::error!(%error, "a blocking task broke");
            Err(SessionError::new(cloister_types::ErrorCode::Internal, "an operation broke"))
        }
    }
}
