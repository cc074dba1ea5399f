//! Sandboxes whose supervisor was killed. What is inside ends by itself, a moment
//! later; the spawner does not wait for that. Once nobody is left in their
//! control groups, what they had is used again as after any other end.

use crate::cgroup::SessionGroups;
use crate::slots::Slot;

/// How often it is looked. The spawner looks every few milliseconds.
const LOOKS: u32 = 400;

struct Leaver {
    groups: SessionGroups,
    slot: Option<Slot>,
    looks: u32,
}

/// All of them.
#[derive(Default)]
pub(crate) struct Leaving(Vec<Leaver>);

impl Leaving {
    /// One more. Without groups nothing tells when it is gone, and its slot is
    /// given up.
    pub(crate) fn add(&mut self, groups: SessionGroups, slot: Option<Slot>) {
        if !groups.are_none() {
            self.0.push(Leaver { groups, slot, looks: 0 });
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// What those had of whom nothing is left.
    pub(crate) fn gone(&mut self) -> Vec<(SessionGroups, Option<Slot>)> {
        let mut gone = Vec::new();
        self.0.retain_mut(|Leaver { groups, slot, looks }| {
            *looks += 1;
            let is_gone = groups.are_empty();
            if is_gone {
                gone.push((groups.clone(), slot.take()));
            }
            // The next spawner sweeps what never goes.
            !is_gone && *looks < LOOKS
        });
        gone
    }

    /// Removes the groups of all.
    pub(crate) fn remove(&mut self) {
        self.0.drain(..).for_each(|leaver| leaver.groups.remove());
    }
}
