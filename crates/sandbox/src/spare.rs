//! Sandboxes that are ready before anybody asks: each lacks nothing but its
//! workspace. What makes a launch slow (namespaces, above all the network's,
//! tmpfs) has been done for them while nobody waited.
//!
//! ```text
//! spawner --fork--> spare: prepares a sandbox, says so, waits
//! spawner --claim (who, where, the workspace)--> spare: becomes the supervisor
//! ```

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloister_types::SessionId;
use cloister_types::link::Enforced;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::cgroup::SessionGroups;
use crate::confine::Limits;
use crate::identity::{self, Ended, Identity};
use crate::launch::{self, Prepared, Refused, Sandbox};
use crate::protocol;
use crate::quota::Meter;
use crate::slots::Slot;
use crate::supervisor::{self, Post};
use crate::sys;

/// How many are kept. Each takes some 600 KiB, most of it the kernel's.
const KEPT: usize = 3;

/// From the spawner, with the supervisor's link and folder, and the workspace.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    session: SessionId,
    launch: String,
    at_once: bool,
    /// The workspace has mount points in folders that can be changed.
    pinned: bool,
}

/// To the spawner, once. What was made for it comes along, to be used again:
/// the map of owners, if it has one, and the network.
#[derive(Debug, Serialize, Deserialize)]
struct Stands {
    well: bool,
    owners: bool,
}

/// What every sandbox of a tenant is made with.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Who owns the workspace.
    pub(crate) owner: Identity,
    pub(crate) limits: Limits,
    pub(crate) enforced: Enforced,
}

/// A sandbox, as the spawner holds it. Dropping it ends one that was not given
/// to a session.
pub(crate) struct Spare {
    channel: OwnedFd,
    stands: bool,
    slot: Slot,
}

impl Spare {
    pub(crate) fn new(channel: OwnedFd, slot: Slot) -> Self {
        Self { channel, stands: false, slot }
    }

    /// Gives it to a session, which hears of it on its link. False if it has
    /// died.
    pub(crate) fn claim(&self, post: &Post, workspace: &OwnedFd, pinned: bool) -> bool {
        let Post { link, folder, session, launch, at_once } = post;
        let claim = Claim { session: session.clone(), launch: launch.clone(), at_once: *at_once, pinned };
        protocol::send(&self.channel, &claim, &[link.as_fd(), folder.as_fd(), workspace.as_fd()]).is_ok()
    }

    /// Hears its word, if it has said one.
    fn hear(&mut self) {
        let Ok(Some((Stands { well, owners }, fds))) = protocol::receive::<Stands>(&self.channel) else {
            self.stands = false;
            return;
        };
        self.stands = well;
        let mut fds = fds.into_iter();
        if owners {
            self.slot.owners = fds.next();
        }
        if let Some(network) = fds.next() {
            self.slot.network = Some(network);
        }
    }

    /// What of it can be used again, now that its process has ended; nothing if it
    /// never stood: who knows how far it had come.
    pub(crate) fn slot(mut self) -> Option<Slot> {
        let mut said = [PollFd::new(&self.channel, PollFlags::IN)];
        if !self.stands && poll(&mut said, Some(&Default::default())).is_ok_and(|count| count > 0) {
            self.hear();
        }
        self.stands.then_some(self.slot)
    }
}

/// All that are kept.
#[derive(Default)]
pub(crate) struct Spares {
    kept: Vec<(Pid, Spare)>,
    /// One could not be made, or died: the next launch says why, and whether
    /// it is worth trying again.
    resting: bool,
}

impl Spares {
    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Is there a place for one more?
    pub(crate) fn wants(&self) -> bool {
        !self.resting && self.kept.len() < KEPT
    }

    pub(crate) fn keep(&mut self, spare: Option<(Pid, Spare)>) {
        self.resting = spare.is_none();
        self.kept.extend(spare);
    }

    /// One for a session, rather one that stands than one in the making.
    pub(crate) fn take(&mut self) -> Option<(Pid, Spare)> {
        self.resting = false;
        // The first is the oldest.
        let at = self.kept.iter().position(|(_, spare)| spare.stands).unwrap_or(0);
        (at < self.kept.len()).then(|| self.kept.remove(at))
    }

    /// What to poll, in an order that [`Spares::hear`] knows.
    pub(crate) fn channels(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.kept.iter().map(|(_, spare)| PollFd::new(&spare.channel, PollFlags::IN))
    }

    /// Hears those that have something to say: that they stand, or that they
    /// do not.
    pub(crate) fn hear(&mut self, woken: &[bool]) {
        let mut woken = woken.iter();
        self.kept.retain_mut(|(_, spare)| {
            if !woken.next().copied().unwrap_or_default() {
                return true;
            }
            spare.hear();
            self.resting |= !spare.stands;
            spare.stands
        });
    }

    /// Ends all.
    pub(crate) fn end(&mut self) {
        self.kept.clear();
        self.resting = true;
    }
}

/// What a spare is made of.
pub(crate) struct Parts {
    pub(crate) root: Result<OwnedFd, Refused>,
    pub(crate) groups: SessionGroups,
    pub(crate) terms: Terms,
    pub(crate) slot: Slot,
    pub(crate) meter: Meter,
    /// By whom.
    pub(crate) spawner: Pid,
}

/// Begins a spare's life, in a fresh fork of the spawner, of which it keeps
/// what it is made of and no more. False if it could not be made, and something
/// of it may be left for a moment.
pub(crate) fn begin(channel: OwnedFd, parts: Parts) -> bool {
    let Parts { root, groups, terms, slot, meter, spawner } = parts;
    let (root, refused) = match root {
        Ok(root) => (Some(root), None),
        Err(refused) => (None, Some(refused)),
    };
    let Slot { user, owners, network } = slot;
    let (has_root, has_owners, has_network) = (root.is_some(), owners.is_some(), network.is_some());
    let keep = [Some(channel), Some(meter.0), root, owners, network].into_iter().flatten().collect();
    let Ok(kept) = sys::keep_only(keep) else { return false };
    let mut kept = kept.into_iter();
    let (Some(channel), Some(meter)) = (kept.next(), kept.next()) else { return false };
    let root = if has_root { kept.next().ok_or_else(lost) } else { Err(refused.unwrap_or_else(lost)) };
    let owners = if has_owners { kept.next() } else { None };
    let network = if has_network { kept.next() } else { None };
    let slot = Slot { user, owners, network };
    live(channel, Parts { root, groups, terms, slot, meter: Meter(meter), spawner })
}

fn lost() -> Refused {
    Refused { step: "keep the sandbox's root".into(), answer: "it is gone".into() }
}

/// A spare's life, in its own process; then the life of the supervisor that it
/// becomes.
fn live(channel: OwnedFd, parts: Parts) -> bool {
    let Parts { root, groups, terms, mut slot, meter, spawner } = parts;
    let Terms { owner, limits, enforced } = terms;
    let user = slot.user.unwrap_or(owner);
    let (mut owners, mut network) = (None, None);
    let prepared = root.and_then(|root| {
        let parts =
            launch::Parts { root, network: slot.network.as_ref(), groups: &groups, user, limits: &limits, enforced };
        let preparing = launch::prepare(parts)?;
        let mut helper = None;
        if slot.owners.is_none() && user.uid != owner.uid {
            let (map, ended) = owners_map(owner, user)?;
            (owners, helper) = (Some(map), ended);
        }
        supervisor::give_up().map_err(|errno| Refused { step: "give rights up".into(), answer: errno.to_string() })?;
        let (prepared, new) = preparing.wait()?;
        network = new;
        drop(helper);
        Ok(prepared)
    });
    let well = prepared.is_ok();
    let word = Stands { well, owners: owners.is_some() };
    let made: Vec<BorrowedFd<'_>> = owners.iter().chain(&network).map(AsFd::as_fd).collect();
    // The spawner has hung up already if it was in need of this one.
    let _ = protocol::send(&channel, &word, &made);
    drop(network);
    let owners = owners.or_else(|| slot.owners.take());
    drop(slot);
    let mut prepared = prepared;
    if let Ok(prepared) = &mut prepared
        && !is_waited_for(&channel)
    {
        prepared.tidy();
    }
    match claimed(&channel, prepared.as_ref().ok()) {
        Some((post, workspace, pinned)) => {
            drop(channel);
            let claimed = prepared.map(|prepared| Claimed { prepared, owners, workspace, pinned });
            supervisor::run(post, claimed, groups.clone(), meter);
        }
        None => {
            if let Ok(prepared) = prepared {
                launch::end(prepared.init());
            }
        }
    }
    groups.leave(Some(spawner));
    well
}

/// Has a session been waiting for this sandbox already?
fn is_waited_for(channel: &OwnedFd) -> bool {
    poll(&mut [PollFd::new(channel, PollFlags::IN)], Some(&Default::default())).is_ok_and(|ready| ready > 0)
}

/// What shows the workspace as the sandbox's user's.
fn owners_map(owner: Identity, user: Identity) -> Result<(OwnedFd, Option<Ended>), Refused> {
    let map = identity::owners_map(owner, user);
    map.map_err(|error| Refused { step: "map the workspace's owner".into(), answer: error.to_string() })
}

/// A sandbox that has a session.
pub(crate) struct Claimed {
    pub(crate) prepared: Prepared,
    owners: Option<OwnedFd>,
    workspace: OwnedFd,
    pinned: bool,
}

impl Claimed {
    /// Gives the sandbox its workspace and sets it to work, and its first agent,
    /// if these are the descriptors of one.
    pub(crate) fn begin(self, serial: u64, agent: &[OwnedFd]) -> Result<Sandbox, Refused> {
        let Self { prepared, owners, workspace, pinned } = self;
        if let Some(map) = owners {
            sys::map_mount_owners(&workspace, map).map_err(|errno| Refused {
                step: "show the workspace as the sandbox's user's (id-mapped mount)".into(),
                answer: errno.to_string(),
            })?;
        }
        prepared.begin(workspace, pinned, serial, agent)
    }
}

/// Waits for a session; `None` if the spawner or init ends first. One that
/// could not be prepared waits as well: it knows why.
fn claimed(channel: &OwnedFd, prepared: Option<&Prepared>) -> Option<(Post, OwnedFd, bool)> {
    loop {
        let mut waiting = vec![PollFd::new(channel, PollFlags::IN)];
        waiting.extend(prepared.map(|prepared| PollFd::new(prepared.init(), PollFlags::IN)));
        match poll(&mut waiting, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return None,
        }
        if waiting[0].revents().is_empty() {
            return None;
        }
        let (Claim { session, launch, at_once, pinned }, fds) = match protocol::receive(channel) {
            // The spawner has hung up, as it does after a claim, and had not
            // read our word: said once, and the claim is still to come.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => continue,
            received => received.ok()??,
        };
        let [link, folder, workspace] = <[OwnedFd; 3]>::try_from(fds).ok()?;
        return Some((Post { link, folder, session, launch, at_once }, workspace, pinned));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn pid() -> Pid {
        rustix::process::getpid()
    }

    fn post() -> (Post, OwnedFd) {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let session = SessionId::from_random([7; 6]);
        (Post { link: file(), folder: file(), session, launch: "launch".into(), at_once: true }, file())
    }

    #[test]
    fn a_claim_arrives_whether_or_not_the_spares_word_was_read() {
        for read in [false, true] {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            let mut spares = Spares::default();
            spares.keep(Some((pid(), Spare::new(ours, Slot::default()))));
            protocol::send(&theirs, &Stands { well: true, owners: false }, &[]).unwrap();
            if read {
                spares.hear(&[true]);
            }
            let (post, workspace) = post();
            assert!(spares.take().unwrap().1.claim(&post, &workspace, true));
            let (claimed, ..) = claimed(&theirs, None).expect("the claim");
            assert_eq!(
                (claimed.session, claimed.launch.as_str(), claimed.at_once),
                (post.session, "launch", true),
                "{read}"
            );
        }
    }

    #[test]
    fn one_that_ends_or_does_not_stand_is_not_kept_and_not_followed_at_once() {
        for last_word in [None, Some(Stands { well: false, owners: false })] {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            let mut spares = Spares::default();
            spares.keep(Some((pid(), Spare::new(ours, Slot::default()))));
            assert!(spares.wants());
            if let Some(word) = last_word {
                protocol::send(&theirs, &word, &[]).unwrap();
            }
            drop(theirs);
            spares.hear(&[true]);
            assert!(!spares.wants() && spares.take().is_none());
            assert!(spares.wants(), "a launch may try again");
        }
    }
}
