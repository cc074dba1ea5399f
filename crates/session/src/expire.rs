//! The passing of time: idle sandboxes sleep, sessions whose time is over go,
//! rows of deleted ones follow.

use std::sync::Arc;
use std::time::Duration;

use crate::registry::{Session, Sessions};
use crate::{SessionError, clock};

const TICK: Duration = Duration::from_secs(1);
/// How long a deleted session's rows stay for those who still read, in
/// seconds; the contract's floor for finished turns.
const READ_OUT: f64 = 120.0;
/// Ticks between purges.
const PURGE_EVERY: u64 = 30;

impl Sessions {
    /// Runs until the task is dropped.
    pub async fn keep_time(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        for count in 0u64.. {
            ticks.tick().await;
            for session in self.all() {
                self.tend(&session).await;
            }
            if count % PURGE_EVERY == 0 {
                let now = clock::now();
                if let Err(error) = self.store.purge(now - READ_OUT, now).await {
                    tracing::warn!(%error, "purge");
                }
            }
        }
    }

    async fn tend(self: &Arc<Self>, session: &Arc<Session>) {
        let now = clock::now();
        // A session that is being asked something is not idle.
        let Ok(mut inner) = session.inner.try_lock() else { return };
        let busy = inner.state.turn().is_some();
        let asleep_after = self.config.sandbox_idle;
        if let Some(sandbox) = inner.sandbox.take_if(|sandbox| sandbox.idle_since.elapsed() >= asleep_after) {
            // Under the lock: a message that comes now waits for a clean start.
            self.put_to_sleep(session, sandbox).await;
        }
        let over_age = session.stored.ttl.is_some_and(|ttl| now - session.stored.created_at >= ttl as f64);
        let over_idle = !session.stored.persistent && now - inner.idle_since >= self.config.session_idle.as_secs_f64();
        drop(inner);
        if !busy && (over_age || over_idle) {
            let why = if over_age { "ttl" } else { "idle" };
            tokio::spawn(self.clone().delete_quietly(session.stored.id.clone(), why));
        }
    }

    /// Has the session outlived its ttl? New turns are refused then; a running
    /// one ends first.
    pub(crate) fn is_over_age(session: &Session) -> Result<(), SessionError> {
        match session.stored.ttl {
            Some(ttl) if clock::now() - session.stored.created_at >= ttl as f64 => Err(SessionError::no_session()),
            _ => Ok(()),
        }
    }
}
