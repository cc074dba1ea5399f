//! The passing of time: idle sandboxes sleep, sessions whose time is over go,
//! rows of deleted ones follow.

use std::sync::Arc;
use std::time::Duration;

use cloister_store::StoredSession;

use crate::SessionError;
use crate::registry::{Session, Sessions};

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
        let clock = {
            let sessions = self.clone();
            async move { sessions.clock().watch(&sessions.store).await }
        };
        tokio::pin!(clock);
        for count in 0u64.. {
            tokio::select! {
                _ = ticks.tick() => {}
                () = &mut clock => {}
            }
            // Takes the reserve again as soon as there is space.
            self.store.has_room().await;
            for session in self.all() {
                self.tend(&session).await;
            }
            if count % PURGE_EVERY == 0 {
                self.begin_all_waiting().await;
                let life = self.life();
                if let Err(error) = self.store.purge(life - READ_OUT, life).await {
                    tracing::warn!(%error, "purge");
                }
            }
        }
    }

    async fn tend(self: &Arc<Self>, session: &Arc<Session>) {
        // A session that is being asked something is not idle.
        let Ok(mut inner) = session.inner.try_lock() else { return };
        let busy = inner.state.turn().is_some();
        let asleep_after = self.config.sandbox_idle;
        if let Some(sandbox) = inner.sandbox.take_if(|sandbox| sandbox.idle_since.elapsed() >= asleep_after) {
            // Under the lock: a message that comes now waits for a clean start.
            self.put_to_sleep(session, sandbox).await;
        }
        let over = due(&session.stored, inner.rested, busy, self.config.session_idle, self.life());
        drop(inner);
        if let Some(why) = over {
            tokio::spawn(self.clone().delete_quietly(session.stored.id.clone(), why));
        }
    }

    /// Has the session outlived its ttl? New turns are refused then; a running
    /// one ends first.
    pub(crate) fn is_over_age(&self, session: &Session) -> Result<(), SessionError> {
        if is_over_age(&session.stored, self.life()) { Err(SessionError::no_session()) } else { Ok(()) }
    }

    /// Nothing new begins on a full disk.
    pub(crate) async fn check_room(&self) -> Result<(), SessionError> {
        if self.store.has_room().await {
            return Ok(());
        }
        Err(SessionError {
            code: cloister_types::ErrorCode::StorageFull,
            message: "the server's disk is full".into(),
            hint: Some("free space on the data directory's file system; service returns by itself".into()),
        })
    }
}

fn is_over_age(session: &StoredSession, life: f64) -> bool {
    session.ttl.is_some_and(|ttl| life - session.life.born >= ttl as f64)
}

/// Why the session's time is over, if it is. A running turn ends first, by
/// itself or at its own limit.
fn due(session: &StoredSession, rested: f64, busy: bool, idle: Duration, life: f64) -> Option<&'static str> {
    let over_idle = !session.persistent && life - rested >= idle.as_secs_f64();
    match (busy, is_over_age(session, life), over_idle) {
        (true, ..) | (_, false, false) => None,
        (_, true, _) => Some("ttl"),
        (_, _, true) => Some("idle"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_store::Life;
    use cloister_types::SessionId;
    use cloister_types::scope::FileAccess;
    use proptest::prelude::*;

    const IDLE: f64 = 300.0;

    fn session(ttl: Option<u64>, persistent: bool, born: f64) -> StoredSession {
        StoredSession {
            id: SessionId::from_random([1; 6]),
            created_at: 0.0,
            last_activity: 0.0,
            life: Life { born, active: born, rested: born },
            persistent,
            ttl,
            metadata: Default::default(),
            file_access: FileAccess::everything(),
            model: "m".into(),
            context: String::new(),
            egress: Default::default(),
            connections: Vec::new(),
            metered: Default::default(),
        }
    }

    proptest! {
        // Against the words of the contract, read off the history: turns that
        // begin and end as time passes.
        #[test]
        fn a_session_goes_when_its_time_is_over_and_not_before(
            ttl in proptest::option::of(1..2000u64),
            persistent: bool,
            steps in proptest::collection::vec((0..200u32, any::<bool>()), 1..40),
        ) {
            let born = 5000.0;
            let stored = session(ttl, persistent, born);
            let (mut now, mut busy, mut rested) = (born, false, born);
            for (pass, toggle) in steps {
                now += f64::from(pass);
                let age = now - born;
                let want = if busy {
                    None
                } else if ttl.is_some_and(|ttl| age >= ttl as f64) {
                    Some("ttl")
                } else if !persistent && now - rested >= IDLE {
                    Some("idle")
                } else {
                    None
                };
                prop_assert_eq!(due(&stored, rested, busy, Duration::from_secs_f64(IDLE), now), want);
                prop_assert_eq!(is_over_age(&stored, now), ttl.is_some_and(|ttl| age >= ttl as f64));
                if want.is_some() {
                    break;
                }
                if toggle {
                    if busy { rested = now; }
                    busy = !busy;
                }
            }
        }
    }
}
