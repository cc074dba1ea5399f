//! The turn that runs: its agent, its spool, its limits.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cloister_types::ErrorCode;
use cloister_types::link::{Outcome, Spooling, ToAgent, TurnLimits, TurnStart};
use cloister_types::model::Price;
use cloister_types::transcript::{Entry, Usage, spent};

use super::channel::Channel;
use super::turn::Turn;
use crate::cgroup::Met;
use crate::quota::Full;
use crate::spool::Spool;

/// Bytes of the agent's error output kept for the report of its death.
const LOG_TAIL: usize = 2048;
/// Bytes of spool that may wait for the log before the agent waits, too.
const SPOOL_CAP: u64 = 64 << 20;

/// A way for a turn to end that the agent has announced.
pub(super) struct Ending {
    pub(super) outcome: Outcome,
    pub(super) usage: Usage,
    pub(super) output_text: String,
    /// When the sandbox began to be swept for it.
    pub(super) since: Instant,
}

pub(super) struct Work {
    pub(super) turn: Turn,
    pub(super) spool: Spool,
    pub(super) attempt: u32,
    pub(super) agent: Channel,
    pub(super) log: OwnedFd,
    log_tail: VecDeque<u8>,
    pub(super) log_closed: bool,
    pub(super) agent_gone: bool,
    began: Instant,
    elapsed_before: Duration,
    pub(super) deadline: Instant,
    pub(super) cancelled: Option<Instant>,
    pub(super) ending: Option<Ending>,
    /// Init is ending tools for this: those that write, or all.
    pub(super) quelling: Option<Full>,
    /// How often it has ended some.
    pub(super) quelled: u32,
    /// Limits that were met and not yet told to the agent.
    pub(super) met: Vec<String>,
    /// What the control groups had counted when the agent was last told.
    pub(super) groups_met: Met,
    /// The agent waits to be told.
    pub(super) asks_limits: bool,
    /// The agent waits for everything up to here to be on disk.
    awaited: Option<(u64, u64)>,
    budget: Budget,
}

impl Work {
    pub(super) fn new(start: &TurnStart, spool: Spool, agent: Channel, log: OwnedFd, groups_met: Met) -> Self {
        let began = Instant::now();
        Self {
            turn: Turn::new(start.response_id.clone(), start.next_seq, start.scripted),
            spool,
            attempt: start.attempt,
            agent,
            log,
            log_tail: VecDeque::new(),
            log_closed: false,
            agent_gone: false,
            began,
            elapsed_before: Duration::from_millis(start.elapsed_ms),
            deadline: began + Duration::from_millis(start.limits.time_ms),
            cancelled: None,
            ending: None,
            quelling: None,
            quelled: 0,
            met: Vec::new(),
            groups_met,
            asks_limits: false,
            awaited: None,
            budget: Budget::new(start),
        }
    }

    /// Milliseconds of work on the turn, all attempts together.
    pub(super) fn at_ms(&self) -> u64 {
        u64::try_from((self.elapsed_before + self.began.elapsed()).as_millis()).unwrap_or(u64::MAX)
    }

    /// The limit of time, as it was for the whole turn.
    pub(super) fn time_limit(&self) -> Duration {
        self.elapsed_before + self.deadline.duration_since(self.began)
    }

    pub(super) fn spooling(&self) -> Spooling {
        Spooling { response_id: self.turn.id().clone(), attempt: self.attempt, offset: self.spool.offset() }
    }

    /// Must the agent wait until the log has caught up?
    pub(super) fn is_full(&self) -> bool {
        self.spool.unstored() > SPOOL_CAP
    }

    pub(super) fn keep_log(&mut self, bytes: &[u8]) {
        self.log_tail.extend(bytes);
        let excess = self.log_tail.len().saturating_sub(LOG_TAIL);
        self.log_tail.drain(..excess);
    }

    pub(super) fn last_words(&self) -> String {
        let tail: Vec<u8> = self.log_tail.iter().copied().collect();
        String::from_utf8_lossy(&tail).trim().to_owned()
    }

    /// The agent wants to go on once what it has sent is on disk.
    pub(super) fn wait_for(&mut self, ticket: u64) {
        self.awaited = Some((ticket, self.spool.offset()));
    }

    /// Tells the agent to go on if it may: while a server is there, by what
    /// its log holds; else by a sync of our own. A cancelled turn starts
    /// nothing more.
    pub(super) fn release(&mut self, attached: bool) -> std::io::Result<()> {
        let Some((ticket, offset)) = self.awaited.filter(|_| self.cancelled.is_none()) else { return Ok(()) };
        if attached && self.spool.stored() < offset {
            return Ok(());
        }
        if self.spool.stored() < offset {
            self.spool.sync()?;
        }
        self.awaited = None;
        // An agent that hung up is noticed where it is read from.
        let _ = self.agent.send(&ToAgent::Durable { ticket });
        Ok(())
    }

    /// Counts an entry. The limit that was reached before it, if one was: an
    /// agent that keeps to the rules never goes beyond.
    pub(super) fn count(&mut self, entry: &Entry) -> Option<(ErrorCode, String)> {
        self.budget.count(entry)
    }
}

/// What a turn may take, and has taken.
struct Budget {
    limits: TurnLimits,
    price: Price,
    calls: u32,
    usage: Usage,
}

impl Budget {
    fn new(start: &TurnStart) -> Self {
        let (calls, usage) = spent(start.conversation.get(start.turn_from..).unwrap_or_default());
        Self { limits: start.limits, price: start.model.price, calls, usage }
    }

    fn count(&mut self, entry: &Entry) -> Option<(ErrorCode, String)> {
        let Entry::Assistant { usage, .. } = entry else { return None };
        let reached = self.limits.reached(self.calls, &self.usage, &self.price);
        self.calls = self.calls.saturating_add(1);
        self.usage.add(usage);
        reached
    }
}
