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

/// When something was asked: after how many endings, and at which moment.
#[derive(Clone, Copy)]
pub(crate) struct Asked {
    count: u64,
    at: Instant,
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

    /// What a key stands for, if that was found a moment ago; otherwise when it was
    /// not, for [`Endings::remember`].
    pub(crate) fn recall(&self, hash: &[u8], now: f64) -> Result<Known, Asked> {
        let works = self.works();
        let fresh = works
            .keys
            .get(hash)
            .filter(|(found, known)| found.elapsed() < FRESH && known.expires_at.is_none_or(|expires| expires > now));
        fresh.map(|(_, known)| known.clone()).ok_or(Asked { count: works.count, at: Instant::now() })
    }

    /// A key was found to work, in a query that began after it was asked. If there
    /// were more endings since, it may be one of them.
    pub(crate) fn remember(&self, hash: &[u8], known: &Known, asked: Asked) {
        let mut works = self.works();
        if works.count != asked.count {
            return;
        }
        if works.keys.len() >= MOST {
            works.keys.clear();
        }
        works.keys.insert(hash.to_vec(), (asked.at, known.clone()));
    }
}

#[cfg(test)]
mod tests {
    use cloister_types::access::{NewKey, Role};

    use super::*;
    use crate::{Maker, Store};

    #[tokio::test]
    async fn what_was_found_before_an_ending_is_not_kept_after_it() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(&folder.path().join("tenant.db"), "acme").unwrap();
        let (id, key) = Store::fresh_key("acme").unwrap();
        store.add_key(&id, &key, NewKey::new("c", Role::Viewer), Maker::default(), 100.0).await.unwrap();
        let known = store.known(&key, 100.0).await.unwrap().unwrap();
        let endings = Endings::new();
        let before = endings.recall(b"h", 100.0).err().unwrap();
        endings.note();
        endings.remember(b"h", &known, before);
        let after = endings.recall(b"h", 100.0).err().expect("an ending came between");
        endings.remember(b"h", &known, after);
        assert!(endings.recall(b"h", 100.0).is_ok());
        // Half a second is counted from the question, not from its answer.
        let late = Asked { at: after.at.checked_sub(FRESH).unwrap(), ..after };
        endings.remember(b"h", &known, late);
        assert!(endings.recall(b"h", 100.0).is_err());
    }

    #[tokio::test]
    async fn a_key_that_was_known_a_moment_ago_ends_all_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tenant.db");
        let (store, other) = (Store::open(&path, "acme").unwrap(), Store::open(&path, "acme").unwrap());
        let make = async |expires_in| {
            let (id, key) = Store::fresh_key("acme").unwrap();
            let what = NewKey { expires_in, ..NewKey::new("c", Role::Viewer) };
            store.add_key(&id, &key, what, Maker::default(), 100.0).await.unwrap().unwrap();
            assert!(store.known(&key, 100.0).await.unwrap().is_some());
            (id, key)
        };
        let works = async |key, now| store.known(key, now).await.unwrap().is_some();
        // Ended here: at once, also if whoever wanted it does not wait.
        let (id, key) = make(None).await;
        store.revoke_key(&id, 101.0).await.unwrap();
        assert!(!works(&key, 101.0).await);
        let (id, key) = make(None).await;
        let endings = store.endings();
        tokio::select! {
            biased;
            _ = store.revoke_key(&id, 101.0) => panic!("it is not durable at once"),
            () = std::future::ready(()) => {}
        }
        make(None).await;
        assert!(!works(&key, 101.0).await && endings.has_changed().unwrap());
        // By itself.
        let (_, key) = make(Some(5)).await;
        assert!(works(&key, 104.9).await && !works(&key, 105.0).await);
        // Replaced: the one before is counted from then on, and then ends.
        let (id, key) = make(None).await;
        let new = Store::fresh_key("acme").unwrap().1;
        store.rotate_key(&id, &new, 10.0, 101.0).await.unwrap().unwrap();
        assert!(works(&key, 102.0).await && works(&key, 103.0).await && works(&new, 103.0).await);
        assert_eq!(store.key(&id, 104.0).await.unwrap().unwrap().late_uses, 2);
        assert!(!works(&key, 111.0).await);
        // By another process: within half a second.
        let (id, key) = make(None).await;
        other.revoke_key(&id, 101.0).await.unwrap();
        assert!(works(&key, 101.0).await, "nobody has asked since");
        tokio::time::sleep(std::time::Duration::from_millis(550)).await;
        assert!(!works(&key, 101.0).await);
    }
}
