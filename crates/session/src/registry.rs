//! All sessions of the tenant.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use cloister_sandbox::files::View;
use cloister_sandbox::host::Host;
use cloister_store::{Store, StoredSession};
use cloister_types::key::ApiKey;
use cloister_types::link::Enforced;
use cloister_types::transcript::Metered;
use cloister_types::wire::{SandboxReport, SessionRecord, SessionStatus};
use cloister_types::{ErrorCode, ResponseId, SessionId};
use tokio::sync::{Mutex as AsyncMutex, Semaphore, watch};

use crate::clock::{self, LifeClock};
use crate::feed::{Feeds, Subscription};
use crate::file_threads::FileThreads;
use crate::live::{Gateway, Sandbox, blocking};
use crate::state::State;
use crate::{Config, SessionError};

/// A turn that runs gets its feed within moments of being accepted.
const NO_FEED_YET: Duration = Duration::from_millis(5);
/// How long after its sandbox stands a session's note of it may come.
const NOTED: Duration = Duration::from_secs(2);
/// How long running turns may take to end with the server.
const SHUT_DOWN: Duration = Duration::from_secs(8);

/// One session.
pub(crate) struct Session {
    /// What was fixed at creation.
    pub(crate) stored: StoredSession,
    /// Everything that changes is changed under this lock.
    pub(crate) inner: AsyncMutex<Inner>,
    /// By the wall, and on the clock of lives.
    activity: Mutex<(f64, f64)>,
    enforced: Mutex<Option<Enforced>>,
    pub(crate) view: AsyncMutex<Option<Arc<View>>>,
}

pub(crate) struct Inner {
    pub(crate) state: State,
    /// Alive and idle; a running turn has taken it.
    pub(crate) sandbox: Option<Sandbox>,
    /// Stops the running turn.
    pub(crate) stop: Option<watch::Sender<Stop>>,
    /// When the last turn ended, or the session began, on the clock of lives.
    pub(crate) rested: f64,
    /// What of the session's model calls its ended turns account for.
    pub(crate) metered: Metered,
}

/// How a running turn is asked to end early.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Not at all.
    No,
    /// A client cancelled it.
    Cancel,
    /// The server ends and takes its sandboxes along.
    Interrupt,
}

impl Session {
    pub(crate) fn new(stored: StoredSession) -> Self {
        let (rested, metered) = (stored.life.rested, stored.metered);
        let inner = Inner { state: State::Idle, sandbox: None, stop: None, rested, metered };
        let activity = (stored.last_activity, stored.life.active);
        Self {
            stored,
            inner: AsyncMutex::new(inner),
            activity: Mutex::new(activity),
            enforced: Mutex::new(None),
            view: AsyncMutex::new(None),
        }
    }

    pub(crate) fn set_enforced(&self, enforced: Option<Enforced>) {
        *self.enforced.lock().unwrap_or_else(PoisonError::into_inner) = enforced;
    }

    /// When it was last active: by the wall, and on the clock of lives.
    pub(crate) fn last_activity(&self) -> (f64, f64) {
        *self.activity.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes activity. Clock jumps backwards do not move it back.
    pub(crate) fn touch(&self, now: f64, life: f64) {
        let mut activity = self.activity.lock().unwrap_or_else(PoisonError::into_inner);
        *activity = (activity.0.max(now), activity.1.max(life));
    }
}

/// The tenant's sessions, behind everything that serves them.
pub struct Sessions {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) host: Arc<Host>,
    pub(crate) file_threads: Arc<FileThreads>,
    pub(crate) gateway: Arc<dyn Gateway>,
    pub(crate) feeds: Feeds,
    pub(crate) slots: Arc<Semaphore>,
    clock: LifeClock,
    closing: AtomicBool,
    /// What runs is left to its supervisors.
    pub(crate) closing_for_good: Arc<AtomicBool>,
    map: RwLock<HashMap<SessionId, Arc<Session>>>,
}

impl Sessions {
    /// Loads the sessions and takes up the turns that the last server left.
    ///
    /// # Errors
    /// The store's.
    pub async fn open(
        config: Config,
        store: Store,
        host: Host,
        gateway: Arc<dyn Gateway>,
    ) -> Result<Arc<Self>, SessionError> {
        let slots = Arc::new(Semaphore::new(config.live_sessions));
        let clock = LifeClock::open(&store).await?;
        let stored = store.sessions().await?;
        let map = stored.into_iter().map(|stored| (stored.id.clone(), Arc::new(Session::new(stored)))).collect();
        let file_threads = Arc::new(FileThreads::new(host.identity())?);
        let sessions = Arc::new(Self {
            config,
            store,
            host: Arc::new(host),
            file_threads,
            gateway,
            feeds: Feeds::default(),
            slots,
            clock,
            closing: AtomicBool::new(false),
            closing_for_good: Arc::default(),
            map: RwLock::new(map),
        });
        sessions.adopt().await?;
        Ok(sessions)
    }

    /// Seconds on the clock of lives.
    pub(crate) fn life(&self) -> f64 {
        self.clock.now()
    }

    pub(crate) fn clock(&self) -> &LifeClock {
        &self.clock
    }

    /// A new API key of a tenant's, and an id for it; neither is stored yet.
    ///
    /// # Errors
    /// The store's.
    pub fn fresh_key(&self, tenant: &str) -> Result<(String, ApiKey), SessionError> {
        Ok(Store::fresh_key(tenant)?)
    }

    /// The store, for what is not about sessions: API keys.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.store
    }

    pub(crate) fn insert(&self, session: Arc<Session>) {
        self.map.write().unwrap_or_else(PoisonError::into_inner).insert(session.stored.id.clone(), session);
    }

    pub(crate) fn remove(&self, id: &SessionId) -> bool {
        self.map.write().unwrap_or_else(PoisonError::into_inner).remove(id).is_some()
    }

    pub(crate) fn find(&self, id: &SessionId) -> Result<Arc<Session>, SessionError> {
        self.map.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned().ok_or_else(SessionError::no_session)
    }

    /// Every session, oldest first.
    pub(crate) fn all(&self) -> Vec<Arc<Session>> {
        let mut all: Vec<_> = self.map.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
        all.sort_by(|a, b| a.stored.created_at.total_cmp(&b.stored.created_at));
        all
    }

    /// Is there such a session?
    ///
    /// # Errors
    /// Not found.
    pub fn check(&self, id: &SessionId) -> Result<(), SessionError> {
        self.find(id).map(drop)
    }

    /// A session's record.
    ///
    /// # Errors
    /// Not found.
    pub async fn get(&self, id: &SessionId) -> Result<SessionRecord, SessionError> {
        let session = self.find(id)?;
        self.record(&session).await
    }

    /// All records.
    ///
    /// # Errors
    /// The store's.
    pub async fn list(&self) -> Result<Vec<SessionRecord>, SessionError> {
        let mut records = Vec::new();
        for session in self.all() {
            records.push(self.record(&session).await?);
        }
        Ok(records)
    }

    pub(crate) async fn record(&self, session: &Session) -> Result<SessionRecord, SessionError> {
        let state = session.inner.lock().await.state.clone();
        let (last, queued) = self.store.last_ended(&session.stored.id).await.unwrap_or_else(|error| {
            // One turn that cannot be read must not hide the rest.
            tracing::error!(session = %session.stored.id, %error, "ALARM: a session's last turn cannot be read");
            (None, 0)
        });
        let stored = session.stored.clone();
        Ok(SessionRecord {
            session_id: stored.id.clone(),
            id: stored.id,
            created_at: stored.created_at,
            last_activity: session.last_activity().0,
            queued,
            busy: state.turn().is_some(),
            persistent: stored.persistent,
            ttl: stored.ttl,
            status: if matches!(state, State::Destroying { .. }) {
                SessionStatus::Destroying
            } else {
                SessionStatus::Ready
            },
            metadata: stored.metadata,
            tools: Vec::new(),
            file_access: stored.file_access,
            model: stored.model,
            egress: stored.egress,
            connections: stored.connections,
            current_response_id: state.turn().cloned(),
            last_response: last.and_then(|turn| turn.as_last_response()),
            sandbox: session.enforced.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        })
    }

    /// Measures a session's sandbox.
    ///
    /// # Errors
    /// Not found.
    pub async fn measure(&self, id: &SessionId) -> Result<SandboxReport, SessionError> {
        let session = self.find(id)?;
        // A supervisor notes which process it is just after it has said that the
        // sandbox stands.
        let until = Instant::now() + NOTED;
        loop {
            let (host, id) = (self.host.clone(), id.clone());
            let measured = blocking(move || Ok::<_, SessionError>(host.measure(&id))).await?;
            let stands = session.inner.lock().await.sandbox.is_some();
            if !measured.is_empty() || !stands || Instant::now() >= until {
                return Ok(SandboxReport { live: !measured.is_empty(), measured });
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Follows a turn of a session: events after `after`, then live.
    ///
    /// # Errors
    /// Not found, for a turn of another session too.
    pub async fn subscribe(
        &self,
        id: &SessionId,
        turn: &ResponseId,
        after: Option<u64>,
    ) -> Result<Subscription, SessionError> {
        self.find(id)?;
        let next = after.map_or(0, |seq| seq.saturating_add(1));
        loop {
            // Before the look at the store: a turn that ends in between is then
            // still seen to its end through the receiver.
            let head = self.feeds.subscribe(turn);
            let stored = self.store.turn(turn).await?.filter(|turn| turn.session == *id);
            let stored = stored.ok_or_else(SessionError::no_turn)?;
            match head {
                Some(head) => return Ok(Subscription::live(self.store.clone(), stored.id, next, head)),
                None if !stored.status.is_over() => tokio::time::sleep(NO_FEED_YET).await,
                None => {
                    let end = self.store.next_seq(turn).await?.ok_or_else(SessionError::log_damaged)?;
                    return Ok(Subscription::ended(self.store.clone(), stored.id, next, end));
                }
            }
        }
    }

    /// The session's present view of the workspace. While it is idle, a view
    /// that no longer shows what is there is built anew, and the sandbox that
    /// was made on the old one ends; while it works, the view stays.
    pub(crate) async fn view(&self, session: &Session, idle: bool) -> Result<Arc<View>, SessionError> {
        let mut slot = session.view.lock().await;
        if let Some(view) = &*slot {
            let (host, view_now) = (self.host.clone(), view.clone());
            let stale = idle && blocking(move || Ok::<_, SessionError>(host.is_stale(&view_now))).await?;
            if !stale {
                return Ok(view.clone());
            }
        }
        let (host, id, access) = (self.host.clone(), session.stored.id.clone(), session.stored.file_access.clone());
        let view = Arc::new(blocking(move || host.view(&id, &access)).await?);
        *slot = Some(view.clone());
        Ok(view)
    }

    /// Notes activity, in memory at once and in the store in its own time.
    pub(crate) async fn touch(&self, session: &Session) {
        let (now, life) = (clock::now(), self.life());
        session.touch(now, life);
        if let Err(error) = self.store.touch_session(&session.stored.id, now, life).await {
            tracing::warn!(%error, "activity not recorded");
        }
    }

    /// Nothing new may begin once the server is ending.
    pub(crate) fn check_open(&self) -> Result<(), SessionError> {
        if self.closing.load(Ordering::Acquire) {
            return Err(SessionError::new(ErrorCode::Unavailable, "the server is stopping"));
        }
        Ok(())
    }

    /// Does the server end everything that it started?
    pub(crate) fn is_ending(&self) -> bool {
        self.closing.load(Ordering::Acquire) && !self.closing_for_good.load(Ordering::Acquire)
    }

    /// Takes no more work and leaves what runs to its supervisors: the next
    /// server takes it over.
    pub fn let_go(&self) {
        self.closing_for_good.store(true, Ordering::Release);
        self.closing.store(true, Ordering::Release);
        self.host.let_go();
    }

    /// Ends every sandbox, and every running turn as interrupted: the orderly
    /// end of a server that takes its sessions' work along.
    pub async fn shut_down(&self) {
        self.closing.store(true, Ordering::Release);
        let mut ending = Vec::new();
        for session in self.all() {
            ending.push(session.clone());
            let mut inner = session.inner.lock().await;
            if let Some(stop) = &inner.stop {
                let _ = stop.send(Stop::Interrupt);
            }
            if let Some(sandbox) = inner.sandbox.take() {
                drop(inner);
                self.put_to_sleep(&session, sandbox).await;
            }
        }
        let all_idle = async {
            for session in ending {
                self.wait_until_idle(&session).await;
            }
        };
        if tokio::time::timeout(SHUT_DOWN, all_idle).await.is_err() {
            tracing::error!("some turns did not end");
        }
    }
}

/// Fresh random bytes for an id.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], SessionError> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes)
        .map_err(|error| SessionError::new(ErrorCode::Internal, format!("no randomness: {error}")))?;
    Ok(bytes)
}
