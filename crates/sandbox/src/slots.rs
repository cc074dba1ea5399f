//! What sandboxes leave for the next: host users with the maps that show the
//! workspace as theirs, and networks. One is used again only when every process
//! of the sandbox that had it is gone, and its network holds nothing any more;
//! within one tenant, as each has its spawner.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::identity::{Identity, SandboxIds};
use crate::network::{self, Silence};

/// How many are kept, ready or not.
const KEPT: usize = 64;
/// Longer than the kernel remembers a closed connection (`TIME_WAIT`, 60 s).
const COOLING: Duration = Duration::from_secs(90);
/// Networks that are looked at when one is needed.
const LOOKS: usize = 4;

/// What a sandbox does not use up: the next one may have it, once nothing of
/// this one is left.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// A host user of its own.
    pub(crate) user: Option<Identity>,
    /// Shows the workspace as that user's.
    pub(crate) owners: Option<OwnedFd>,
    pub(crate) network: Option<OwnedFd>,
}

/// All that are kept.
pub(crate) struct Slots {
    /// Host users for sandboxes, if each can have its own.
    ids: Option<SandboxIds>,
    /// The spawner's own network, and what a new one counts; without that,
    /// none is used again.
    quiet: Option<(OwnedFd, Silence)>,
    free: Vec<Slot>,
    /// Their networks still hold something.
    cooling: VecDeque<(Instant, Slot)>,
}

impl Slots {
    pub(crate) fn new(ids: Option<SandboxIds>) -> Self {
        let quiet = network::current().and_then(|home| Silence::measure(&home).map(|silence| (home, silence)));
        Self { ids, quiet: quiet.ok(), free: Vec::new(), cooling: VecDeque::new() }
    }

    /// Can sandboxes have host users of their own?
    pub(crate) fn have_users(&self) -> bool {
        self.ids.is_some()
    }

    /// One for a new sandbox, with a host user of its own if it may have one.
    pub(crate) fn take(&mut self, own_user: bool) -> Slot {
        let wants = own_user && self.ids.is_some();
        let fits = |slot: &Slot| slot.user.is_some() == wants;
        if !self.free.iter().any(fits) {
            self.look();
        }
        if let Some(at) = self.free.iter().position(fits) {
            return self.free.swap_remove(at);
        }
        Slot { user: self.ids.as_mut().filter(|_| wants).map(SandboxIds::next), ..Slot::default() }
    }

    /// Takes back what a sandbox had whose processes are all gone.
    pub(crate) fn give_back(&mut self, mut slot: Slot) {
        if self.quiet.is_none() {
            slot.network = None;
        }
        if slot.user.is_none() && slot.network.is_none() {
            return;
        }
        if self.is_quiet(&slot) {
            self.keep(slot);
        } else if self.cooling.len() < KEPT {
            self.cooling.push_back((Instant::now(), slot));
        }
    }

    fn keep(&mut self, slot: Slot) {
        if self.free.len() < KEPT {
            self.free.push(slot);
        }
    }

    fn is_quiet(&self, slot: &Slot) -> bool {
        match (&slot.network, &self.quiet) {
            (Some(network), Some((home, silence))) => silence.is_in(network, home),
            _ => true,
        }
    }

    /// Looks whether networks have become quiet, the oldest first.
    fn look(&mut self) {
        for _ in 0..LOOKS.min(self.cooling.len()) {
            let Some((since, mut slot)) = self.cooling.pop_front() else { return };
            if self.is_quiet(&slot) {
                self.keep(slot);
            } else if since.elapsed() < COOLING {
                self.cooling.push_back((since, slot));
            } else {
                // Somebody holds a socket of it; the user is free all the same.
                slot.network = None;
                self.give_back(slot);
            }
        }
    }
}
