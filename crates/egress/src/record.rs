//! What is written down about calls. Nobody can fill the audit: refusals beyond
//! a rate are counted, and the count goes with the next record.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloister_types::SessionId;
use cloister_types::egress::{AuditEntry, Decision};
use cloister_vault::client::Client;
use cloister_vault::wire::{Reply, Request};
use tokio::sync::{Notify, watch};

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
/// goes together, and stays here until it is on disk.
pub(crate) struct Outbox {
    /// What the vault knows this process by.
    source: String,
    waiting: Mutex<Waiting>,
    filled: Notify,
    /// Somebody waits for what is on disk.
    hurried: Notify,
    /// Records that are on disk.
    written: watch::Sender<u64>,
}

struct Waiting {
    entries: VecDeque<AuditEntry>,
    /// The number that the next record gets.
    next: u64,
}

/// How long the first of a group waits for others, and most of a group.
const MOMENT: Duration = Duration::from_millis(5);
const GROUP: usize = 512;
const GROUP_BYTES: usize = 512 << 10;
/// Between tries to reach a vault that is away.
const PAUSE: Duration = Duration::from_millis(50);
/// Records that are kept for a vault that is away. Long before, nothing is
/// attached any more.
const KEPT: usize = 20_000;
/// So many that wait mean that the vault is away, or cannot keep up.
const MANY: usize = 4_000;
/// How long somebody waits for what is on disk.
const PATIENCE: Duration = Duration::from_secs(2);

impl Outbox {
    pub(crate) fn new(source: String) -> Self {
        let waiting = Mutex::new(Waiting { entries: VecDeque::new(), next: 1 });
        Self { source, waiting, filled: Notify::new(), hurried: Notify::new(), written: watch::Sender::new(0) }
    }

    fn push(&self, entry: AuditEntry) {
        let mut waiting = self.lock();
        if waiting.entries.len() < KEPT {
            waiting.entries.push_back(entry);
            waiting.next += 1;
        }
        // Whoever sends looks again by itself while something waits.
        if waiting.entries.len() == 1 {
            self.filled.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Is more waiting than should be?
    pub(crate) fn is_late(&self) -> bool {
        self.lock().entries.len() >= MANY
    }

    /// Waits until all that is here now is on disk, as long as that may take.
    pub(crate) async fn settle(&self) {
        let last = self.lock().next - 1;
        let mut written = self.written.subscribe();
        self.hurried.notify_one();
        let _ = tokio::time::timeout(PATIENCE, written.wait_for(|written| *written >= last)).await;
    }

    /// Hands records over, for as long as this process lives.
    pub(crate) async fn send(&self, vault: Client) {
        loop {
            self.filled.notified().await;
            while let Some(()) = self.rest().await {
                let (first, entries) = self.group();
                let count = entries.len() as u64;
                let request = Request::Record { source: self.source.clone(), first, entries };
                if matches!(vault.ask(&request).await, Ok(Reply::Done)) {
                    self.written.send_replace(first + count - 1);
                    continue;
                }
                // Kept, in their order, for the next vault.
                if let Request::Record { entries, .. } = request {
                    let mut waiting = self.lock();
                    entries.into_iter().rev().for_each(|entry| waiting.entries.push_front(entry));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
    }

    /// Lets a group come together; none if nothing waits.
    async fn rest(&self) -> Option<()> {
        let waiting = self.lock().entries.len();
        if waiting == 0 {
            return None;
        }
        if waiting < GROUP {
            let _ = tokio::time::timeout(MOMENT, self.hurried.notified()).await;
        }
        Some(())
    }

    /// Takes a group out, with the number of its first.
    fn group(&self) -> (u64, Vec<AuditEntry>) {
        let mut waiting = self.lock();
        let first = waiting.next - waiting.entries.len() as u64;
        let mut bytes = 0;
        let fits = |entry: &&AuditEntry| {
            bytes += 512 + entry.path.len() + entry.query.iter().map(|name| name.len() + 3).sum::<usize>();
            bytes < GROUP_BYTES
        };
        let count = waiting.entries.iter().take(GROUP).take_while(fits).count().max(1);
        (first, waiting.entries.drain(..count).collect())
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
