//! When what callers have shown ends before its time; and until then, keys that
//! were found to work a moment ago, so that not every call waits for a query.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::keys::Known;

/// How long a key is taken to work on. This process's own endings are heard at
/// once; this is for those of another's, which must count within a second.
const FRESH: Duration = Duration::from_millis(500);
/// Keys that are remembered.
const MOST: usize = 1024;

/// Both.
pub(crate) struct Endings {
    told: watch::Sender<()>,
    works: Mutex<Works>,
}

#[derive(Default)]
struct Works {
    /// Endings so far.
    count: u64,
    keys: HashMap<Vec<u8>, (Instant, Known)>,
}

impl Endings {
    pub(crate) fn new() -> Self {
        Self { told: watch::Sender::new(()), works: Mutex::default() }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<()> {
        self.told.subscribe()
    }

    fn works(&self) -> std::sync::MutexGuard<'_, Works> {
        self.works.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Something may have ended.
    pub(crate) fn note(&self) {
        {
            let mut works = self.works();
            works.count += 1;
            works.keys.clear();
        }
        self.told.send_replace(());
    }

    /// What a key stands for, if that was found a moment ago; otherwise what
    /// [`Endings::remember`] wants to know.
    pub(crate) fn recall(&self, hash: &[u8], now: f64) -> Result<Known, u64> {
        let works = self.works();
        let fresh = works
            .keys
            .get(hash)
            .filter(|(found, known)| found.elapsed() < FRESH && known.expires_at.is_none_or(|expires| expires > now));
        fresh.map(|(_, known)| known.clone()).ok_or(works.count)
    }

    /// A key was found to work, in a query that began when there were so many
    /// endings. If there were more since, it may be one of them.
    pub(crate) fn remember(&self, hash: &[u8], known: &Known, count: u64) {
        let mut works = self.works();
        if works.count != count {
            return;
        }
        if works.keys.len() >= MOST {
            works.keys.clear();
        }
        works.keys.insert(hash.to_vec(), (Instant::now(), known.clone()));
    }
}
