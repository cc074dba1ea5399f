//! Deleting sessions: one, many, and those whose time is over.

use std::sync::Arc;
use std::time::Duration;

use cloister_types::SessionId;

use crate::SessionError;
use crate::live::blocking;
use crate::registry::{Inner, Session, Sessions, Stop};
use crate::state::{Ask, State, Verdict};

/// How long a cancelled turn may take to end before its session goes anyway.
const PATIENCE: Duration = Duration::from_secs(15);

impl Sessions {
    /// Destroys a session: its turn is cancelled and seen to its end, its
    /// sandbox ends, its private folder goes. Workspace and memory stay.
    ///
    /// # Errors
    /// Not found; also for a second call while the first still works.
    pub async fn delete(&self, id: &SessionId) -> Result<(), SessionError> {
        let session = self.find(id)?;
        let mut inner = session.inner.lock().await;
        let before = inner.state.clone();
        if inner.state.ask(Ask::Destroy) != Verdict::Accepted {
            return Err(SessionError::no_session());
        }
        if let Err(error) = self.cancel_all(&session, &inner).await {
            // It can be asked again; half gone it cannot stay.
            inner.state = before;
            return Err(error);
        }
        if let Some(stop) = &inner.stop {
            let _ = stop.send(Stop::Cancel);
        }
        drop(inner);
        self.wait_until_idle(&session).await;
        if let Some(sandbox) = session.inner.lock().await.sandbox.take() {
            self.put_to_sleep(&session, sandbox).await;
        }
        if let Err(error) = self.store.delete_session(id, self.life()).await {
            let mut inner = session.inner.lock().await;
            inner.state = match inner.state.turn().cloned() {
                Some(turn) => State::Working { turn, cancelling: true },
                None => State::Idle,
            };
            return Err(error.into());
        }
        self.remove(id);
        self.gateway.forget(id);
        let (host, private) = (self.host.clone(), id.clone());
        if let Err(error) = blocking(move || {
            host.remove_private(&private).map_err(|error| {
                tracing::warn!(%error, "the private folder stays");
                SessionError::new(cloister_types::ErrorCode::Internal, error.to_string())
            })
        })
        .await
        {
            tracing::warn!(session = %id, %error, "a deleted session left files");
        }
        Ok(())
    }

    /// Notes, durably, that nothing of the session goes on whatever becomes of
    /// us, and ends what waits.
    async fn cancel_all(&self, session: &Session, inner: &Inner) -> Result<(), SessionError> {
        if let Some(running) = inner.state.turn() {
            self.store.note_cancel(running).await?;
        }
        for waiting in self.store.waiting_turns(&session.stored.id).await? {
            self.end_waiting(session, &waiting.id).await?;
        }
        Ok(())
    }

    /// Waits until no turn of the session runs, and none begins because
    /// another has ended.
    pub(crate) async fn wait_until_idle(&self, session: &Session) {
        let idle = async {
            loop {
                let running = session.inner.lock().await.state.turn().cloned();
                let Some(turn) = running else { return };
                let Some(mut head) = self.feeds.subscribe(&turn) else {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    continue;
                };
                while !head.borrow_and_update().done && head.changed().await.is_ok() {}
            }
        };
        if tokio::time::timeout(PATIENCE, idle).await.is_err() {
            tracing::error!(session = %session.stored.id, "a turn does not end");
        }
    }

    /// Destroys the sessions that match every given condition.
    ///
    /// # Errors
    /// The first failure; sessions before it are gone.
    pub async fn delete_matching(&self, idle_only: bool, older_than: Option<Duration>) -> Result<u64, SessionError> {
        let now = self.life();
        let mut deleted = 0;
        for session in self.all() {
            let busy = session.inner.lock().await.state.turn().is_some();
            let old = older_than.is_none_or(|age| now - session.last_activity().1 >= age.as_secs_f64());
            if (idle_only && busy) || !old {
                continue;
            }
            match self.delete(&session.stored.id).await {
                Ok(()) => deleted += 1,
                // Somebody else was faster.
                Err(error) if error.code == cloister_types::ErrorCode::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }

    pub(crate) async fn delete_quietly(self: Arc<Self>, id: SessionId, why: &'static str) {
        match self.delete(&id).await {
            Ok(()) => tracing::info!(session = %id, why, "session ended"),
            Err(error) => tracing::warn!(session = %id, why, %error, "session not ended"),
        }
    }
}
