//! What is written down about calls. Nobody can fill the audit: refusals beyond
//! a rate are counted, and the count goes with the next record.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use cloister_types::SessionId;
use cloister_types::egress::{AuditEntry, Decision};
use cloister_vault::client::Client;
use tokio::sync::Notify;

/// Refusals that one session may have written down at once, and in a second.
const BURST: f64 = 200.0;
const RATE: f64 = 20.0;

/// Writes down the calls of one session.
pub(crate) struct Recorder {
    session: SessionId,
    outbox: Arc<Outbox>,
    /// Refusals that may be written, when that was worked out, and how many
    /// were not.
    room: Mutex<(f64, Instant, u64)>,
}

/// Records on their way to the vault, of all sessions: what comes within a moment
/// goes together.
#[derive(Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Vec<AuditEntry>>,
    filled: Notify,
}

/// How long the first of a group waits for others, and most of a group.
const MOMENT: Duration = Duration::from_millis(5);
const GROUP: usize = 64;
/// Records that are kept for a vault that is away. Long before, nothing is
/// attached any more.
const KEPT: usize = 20_000;
/// So many that wait mean that the vault is away, or cannot keep up.
const MANY: usize = 2_000;

impl Outbox {
    fn push(&self, entry: AuditEntry) {
        let mut waiting = self.lock();
        if waiting.len() < KEPT {
            waiting.push(entry);
        }
        // Whoever sends looks again by itself while something waits.
        if waiting.len() == 1 {
            self.filled.notify_one();
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<AuditEntry>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is more waiting than should be?
    pub(crate) fn is_late(&self) -> bool {
        self.lock().len() >= MANY
    }

    /// Hands records over, for as long as this process lives.
    pub(crate) async fn send(&self, vault: Client) {
        loop {
            self.filled.notified().await;
            while !self.lock().is_empty() {
                tokio::time::sleep(MOMENT).await;
                while let Some(group) = self.group() {
                    if vault.record(group.clone()).is_err() {
                        // Kept, in their order, for the next vault.
                        let mut waiting = self.lock();
                        let rest = std::mem::replace(&mut *waiting, group);
                        waiting.extend(rest);
                        break;
                    }
                }
            }
        }
    }

    fn group(&self) -> Option<Vec<AuditEntry>> {
        let mut waiting = self.lock();
        let count = waiting.len().min(GROUP);
        (count > 0).then(|| waiting.drain(..count).collect())
    }
}

impl Recorder {
    pub(crate) fn new(session: SessionId, outbox: Arc<Outbox>) -> Self {
        Self { session, outbox, room: Mutex::new((BURST, Instant::now(), 0)) }
    }

    /// Begins a record.
    pub(crate) fn entry(&self, stream: &str) -> AuditEntry {
        AuditEntry { session: Some(self.session.to_string()), stream: stream.to_owned(), ..AuditEntry::default() }
    }

    /// Writes one down. If that fails, the vault gives out nothing more.
    pub(crate) fn write(&self, mut entry: AuditEntry) {
        if matches!(entry.decision, Some(Decision::Denied | Decision::Failed)) {
            let mut room = self.room.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            room.0 = (room.0 + now.saturating_duration_since(room.1).as_secs_f64() * RATE).min(BURST);
            room.1 = now;
            if room.0 < 1.0 {
                room.2 += 1;
                return;
            }
            room.0 -= 1.0;
            if room.2 > 0 {
                entry.flags.push(format!("unwritten:{}", room.2));
                room.2 = 0;
            }
        }
        self.outbox.push(entry);
    }

    /// Writes down that something was refused.
    pub(crate) fn refused(&self, mut entry: AuditEntry, rule: &str) {
        entry.decision = Some(Decision::Denied);
        rule.clone_into(&mut entry.rule);
        self.write(entry);
    }
}
