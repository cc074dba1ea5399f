//! A session, as egress knows it: by its sockets. What it may use is the
//! vault's to say, and is asked again every second.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_types::{Host, SessionId};
use cloister_vault::client::Client;
use cloister_vault::wire::{AwsCall, Material, Permitted, Purpose, Refusal, Reply, Request};
use tokio::sync::{OnceCell, OwnedSemaphorePermit, Semaphore, watch};

use crate::authority::Authority;
use crate::control::{Pass, Setup};
use crate::ledger::Ledger;
use crate::limits::{Budget, Met};
use crate::pool::Pool;
use crate::record::{Outbox, Recorder};
use crate::scrub::Needles;

/// How long an answer of the vault's is good for.
const FRESH: Duration = Duration::from_secs(1);
/// Answers that are kept.
const KEPT: usize = 256;

/// What all sessions of the tenant share.
pub(crate) struct Tenant {
    pub(crate) setup: Setup,
    pub(crate) vault: Client,
    pub(crate) pool: Pool,
    pub(crate) budget: Budget,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) ledger: Ledger,
}

pub(crate) struct Session {
    pub(crate) id: SessionId,
    pub(crate) pass: Pass,
    pub(crate) tenant: Arc<Tenant>,
    pub(crate) recorder: Recorder,
    budget: Budget,
    authority: OnceCell<Arc<Authority>>,
    permitted: Fresh<(), Arc<Vec<Permitted>>>,
    materials: Fresh<Purpose, Material>,
    needles: Mutex<Known>,
    /// Only one asks the vault at a time; the others share its answer.
    asking: tokio::sync::Mutex<()>,
    /// Bytes of bodies that are held whole.
    pub(crate) room: Arc<Semaphore>,
    /// Calls under way, sockets among them.
    calls: Arc<Semaphore>,
    /// Ends what is under way when the session is somebody else's, or nobody's.
    closed: watch::Sender<bool>,
}

/// Everything that was attached for the session and must not come back, whatever
/// answer it comes back in.
struct Known {
    texts: Vec<String>,
    needles: Arc<Needles>,
}

/// Texts that are kept: the newest.
const TEXTS: usize = 64;
/// Bytes of bodies that one session may have held whole.
const ROOM: usize = 64 << 20;
/// Calls that one session may have under way.
const CALLS: usize = 128;

/// Values that are good for a second.
struct Fresh<K, V>(Mutex<HashMap<K, (Instant, V)>>);

impl<K: Eq + Hash, V: Clone> Fresh<K, V> {
    fn new() -> Self {
        Self(Mutex::new(HashMap::new()))
    }

    fn get(&self, key: &K) -> Option<V> {
        let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.get(key).filter(|(since, _)| since.elapsed() < FRESH).map(|(_, value)| value.clone())
    }

    fn keep(&self, key: K, value: V) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= KEPT {
            kept.clear();
        }
        kept.insert(key, (Instant::now(), value));
    }

    fn forget(&self, key: &K) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Session {
    pub(crate) fn new(id: SessionId, pass: Pass, tenant: Arc<Tenant>) -> Arc<Self> {
        let recorder = Recorder::new(id.clone(), tenant.outbox.clone());
        let budget = Budget::of_session(&tenant.setup.limits);
        let (authority, permitted, materials) = (OnceCell::new(), Fresh::new(), Fresh::new());
        let needles = Mutex::new(Known { texts: Vec::new(), needles: Needles::new(Vec::new()) });
        let (room, calls) = (Arc::new(Semaphore::new(ROOM)), Arc::new(Semaphore::new(CALLS)));
        let (asking, closed) = (tokio::sync::Mutex::default(), watch::Sender::new(false));
        Arc::new(Self {
            id,
            pass,
            tenant,
            recorder,
            budget,
            authority,
            permitted,
            materials,
            needles,
            asking,
            room,
            calls,
            closed,
        })
    }

    /// The session's connections.
    pub(crate) async fn permitted(&self) -> Result<Arc<Vec<Permitted>>, Refusal> {
        if let Some(permitted) = self.permitted.get(&()) {
            return Ok(permitted);
        }
        let _asking = self.asking.lock().await;
        if let Some(permitted) = self.permitted.get(&()) {
            return Ok(permitted);
        }
        match self.tenant.vault.ask(&Request::Permitted(self.id.clone())).await {
            Ok(Reply::Permitted(permitted)) => {
                let permitted = Arc::new(permitted);
                self.permitted.keep((), permitted.clone());
                Ok(permitted)
            }
            _ => Err(Refusal::Failed),
        }
    }

    /// What is to be attached to a call.
    pub(crate) async fn material(&self, purpose: &Purpose) -> Result<Material, Refusal> {
        if let Some(material) = self.materials.get(purpose) {
            return Ok(material);
        }
        if self.tenant.outbox.is_late() {
            return Err(Refusal::AuditUnavailable);
        }
        let material = material(self.tenant.vault.ask(&Request::Use(purpose.clone())).await)?;
        self.materials.keep(purpose.clone(), material.clone());
        Ok(material)
    }

    /// The headers that sign a call to AWS.
    pub(crate) async fn signed(&self, purpose: &Purpose, call: AwsCall) -> Result<Material, Refusal> {
        material(self.tenant.vault.ask(&Request::SignAws(purpose.clone(), Box::new(call))).await)
    }

    /// The other side takes a token for invalid: the next one is another.
    pub(crate) async fn rejected(&self, purpose: &Purpose, version: u64, token: &str) {
        self.materials.forget(purpose);
        let hash =
            cloister_vault::hex(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, token.as_bytes()).as_ref());
        let _ = self.tenant.vault.ask(&Request::Rejected(purpose.clone(), version, hash)).await;
    }

    /// Notes what must not come back, in this answer or another.
    pub(crate) fn hide(&self, secrets: &[&str]) {
        let mut known = self.needles.lock().unwrap_or_else(PoisonError::into_inner);
        let news: Vec<String> = secrets
            .iter()
            .filter(|secret| !known.texts.iter().any(|text| text == *secret))
            .map(ToString::to_string)
            .collect();
        if news.is_empty() {
            return;
        }
        known.texts.extend(news);
        let over = known.texts.len().saturating_sub(TEXTS);
        known.texts.drain(..over);
        let texts: Vec<&str> = known.texts.iter().map(String::as_str).collect();
        known.needles = Needles::new(crate::needles::forms(&texts));
    }

    /// What to look for in answers.
    pub(crate) fn needles(&self) -> Arc<Needles> {
        self.needles.lock().unwrap_or_else(PoisonError::into_inner).needles.clone()
    }

    /// Has the operator placed the host?
    pub(crate) fn is_placed(&self, host: &Host) -> bool {
        self.tenant.setup.hosts.contains_key(host)
    }

    /// A place among the calls under way.
    pub(crate) fn call(&self) -> Option<OwnedSemaphorePermit> {
        self.calls.clone().try_acquire_owned().ok()
    }

    /// Ends what is under way and does not end with its connection.
    pub(crate) fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Waits until the session is over, or may not use a version any more.
    pub(crate) async fn until_over(&self, with: Option<(&str, u64)>) {
        let mut closed = self.closed.subscribe();
        loop {
            tokio::select! {
                _ = closed.wait_for(|closed| *closed) => return,
                () = tokio::time::sleep(FRESH) => {}
            }
            let Some((name, version)) = with else { continue };
            let permitted = self.permitted().await.unwrap_or_default();
            if !permitted.iter().any(|one| one.name.as_str() == name && one.version == version) {
                return;
            }
        }
    }

    /// The session's own authority.
    pub(crate) async fn authority(&self) -> Option<Arc<Authority>> {
        let made = self.authority.get_or_try_init(|| async {
            match self.tenant.vault.ask(&Request::Authority(self.id.clone())).await {
                Ok(Reply::Seed(seed)) => Authority::from_seed(&seed).map(Arc::new).map_err(|error| error.to_string()),
                _ => Err("the vault is away".to_owned()),
            }
        });
        made.await.inspect_err(|error| tracing::error!(session = %self.id, error, "no authority")).ok().cloned()
    }

    /// Is there room for one more request?
    pub(crate) fn check_room(&self) -> Result<(), Met> {
        self.budget.request()?;
        self.tenant.budget.request()
    }

    /// Counts what a call took.
    pub(crate) fn count(&self, bytes: u64) {
        self.budget.bytes(bytes);
        self.tenant.budget.bytes(bytes);
    }
}

fn material(reply: Result<Reply, cloister_vault::client::Away>) -> Result<Material, Refusal> {
    match reply {
        Ok(Reply::Material(material)) => Ok(material),
        Ok(Reply::Refused(refusal)) => Err(refusal),
        _ => Err(Refusal::Failed),
    }
}
