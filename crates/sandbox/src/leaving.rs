//! Sandboxes whose supervisor was killed. What is inside ends by itself, a moment
//! later; the spawner does not wait for that. Once nobody is left in their
//! control groups, what they had is used again as after any other end.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::cgroup::SessionGroups;
use crate::slots::Slot;

/// Those that are looked at when something of theirs is needed, or nothing else
/// is to be done.
const LOOKS: usize = 8;
/// How long it is looked for their end every few milliseconds. Those that stay
/// longer are looked at with the next launches.
const PRESSING: Duration = Duration::from_secs(10);

struct Leaver {
    groups: SessionGroups,
    slot: Option<Slot>,
    since: Instant,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Leaving(VecDeque<Leaver>);

impl Leaving {
    /// One more. Without groups nothing tells when it is gone, and its slot is
    /// given up.
    pub(crate) fn add(&mut self, groups: SessionGroups, slot: Option<Slot>) {
        if !groups.are_none() {
            self.0.push_back(Leaver { groups, slot, since: Instant::now() });
        }
    }

    /// Is one expected to be gone in a moment?
    pub(crate) fn is_pressing(&self) -> bool {
        self.0.iter().any(|leaver| leaver.since.elapsed() < PRESSING)
    }

    /// Takes what those had of whom nothing is left.
    pub(crate) fn take_gone(&mut self) -> Vec<(SessionGroups, Option<Slot>)> {
        let mut gone = Vec::new();
        for _ in 0..LOOKS.min(self.0.len()) {
            match self.0.pop_front() {
                Some(leaver) if leaver.groups.are_empty() => gone.push((leaver.groups, leaver.slot)),
                Some(leaver) => self.0.push_back(leaver),
                None => break,
            }
        }
        gone
    }

    /// Removes the groups of all.
    pub(crate) fn remove(&mut self) {
        self.0.drain(..).for_each(|leaver| leaver.groups.remove());
    }
}
