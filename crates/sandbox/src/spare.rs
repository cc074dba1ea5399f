//! Sandboxes that are ready before anybody asks: each lacks nothing but its
//! workspace. What makes a launch slow (namespaces, above all the network's,
//! tmpfs, pivot) has been done for them while nobody waited.
//!
//! ```text
//! spawner --fork--> spare: prepares a sandbox, says so, waits
//! spawner --claim (who, where, the workspace)--> spare: becomes the supervisor
//! ```

use std::os::fd::{AsFd, OwnedFd};

use cloister_types::SessionId;
use cloister_types::link::Enforced;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::cgroup::SessionGroups;
use crate::confine::Limits;
use crate::identity::{self, Identity};
use crate::launch::{self, Prepared, Refused};
use crate::protocol;
use crate::quota::Meter;
use crate::supervisor::{self, Post};
use crate::sys;

/// How many are kept. Each takes some 600 KiB, most of it the kernel's.
const KEPT: usize = 3;

/// From the spawner, with the supervisor's link and folder, and the workspace.
#[derive(Debug, Serialize, Deserialize)]
struct Claim {
    session: SessionId,
    launch: String,
}

/// To the spawner, once.
#[derive(Debug, Serialize, Deserialize)]
struct Stands(bool);

/// What every sandbox of a tenant is made with.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    /// Who owns the workspace.
    pub(crate) owner: Identity,
    pub(crate) limits: Limits,
    pub(crate) enforced: Enforced,
}

/// One of them, as the spawner holds it. Dropping it ends it.
pub(crate) struct Spare {
    channel: OwnedFd,
    stands: bool,
}

impl Spare {
    pub(crate) fn new(channel: OwnedFd) -> Self {
        Self { channel, stands: false }
    }

    /// Gives it to a session, which hears of it on its link. False if it has
    /// died.
    pub(crate) fn claim(self, post: &Post, workspace: &OwnedFd) -> bool {
        let claim = Claim { session: post.session.clone(), launch: post.launch.clone() };
        protocol::send(&self.channel, &claim, &[post.link.as_fd(), post.folder.as_fd(), workspace.as_fd()]).is_ok()
    }
}

/// All that are kept.
#[derive(Default)]
pub(crate) struct Spares {
    kept: Vec<Spare>,
    /// One could not be made, or died: the next launch says why, and whether
    /// it is worth trying again.
    resting: bool,
}

impl Spares {
    /// Is there a place for one more?
    pub(crate) fn wants(&self) -> bool {
        !self.resting && self.kept.len() < KEPT
    }

    pub(crate) fn keep(&mut self, spare: Option<Spare>) {
        self.resting = spare.is_none();
        self.kept.extend(spare);
    }

    /// One for a session, rather one that stands than one in the making.
    pub(crate) fn take(&mut self) -> Option<Spare> {
        self.resting = false;
        // The first is the oldest.
        let at = self.kept.iter().position(|spare| spare.stands).unwrap_or(0);
        (at < self.kept.len()).then(|| self.kept.remove(at))
    }

    /// What to poll, in an order that [`Spares::hear`] knows.
    pub(crate) fn channels(&self) -> impl Iterator<Item = PollFd<'_>> {
        self.kept.iter().map(|spare| PollFd::new(&spare.channel, PollFlags::IN))
    }

    /// Hears those that have something to say: that they stand, or that they
    /// do not.
    pub(crate) fn hear(&mut self, woken: &[bool]) {
        let mut woken = woken.iter();
        self.kept.retain_mut(|spare| {
            if !woken.next().copied().unwrap_or_default() {
                return true;
            }
            spare.stands = matches!(protocol::receive::<Stands>(&spare.channel), Ok(Some((Stands(true), _))));
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

/// A spare's life, in its own process; then the life of the supervisor that it
/// becomes.
pub(crate) fn live(
    channel: OwnedFd,
    root: Result<OwnedFd, Refused>,
    groups: SessionGroups,
    terms: Terms,
    user: Identity,
    meter: Meter,
) {
    let Terms { owner, limits, enforced } = terms;
    let prepared = root.and_then(|root| {
        let map = owners(owner, user)?;
        Ok((launch::prepare(root, &groups, user, &limits, enforced)?, map))
    });
    // The spawner has hung up already if it was in need of this one.
    let _ = protocol::send(&channel, &Stands(prepared.is_ok()), &[]);
    match claimed(&channel, prepared.as_ref().ok().map(|(prepared, _)| prepared)) {
        Some((post, workspace)) => {
            drop(channel);
            let launched = prepared.and_then(|(prepared, map)| {
                hand_over(&workspace, map)?;
                prepared.claim(workspace)
            });
            supervisor::run(post, launched, groups, meter);
        }
        None => {
            if let Ok((prepared, _)) = prepared {
                launch::end(prepared.init());
            }
            groups.remove();
        }
    }
}

/// What shows the workspace as the sandbox's user's, if that is not its owner.
fn owners(owner: Identity, user: Identity) -> Result<Option<OwnedFd>, Refused> {
    let map = (owner.uid != user.uid).then(|| identity::owners_map(owner, user)).transpose();
    map.map_err(|error| Refused { step: "map the workspace's owner".into(), answer: error.to_string() })
}

fn hand_over(workspace: &OwnedFd, map: Option<OwnedFd>) -> Result<(), Refused> {
    let Some(map) = map else { return Ok(()) };
    sys::map_mount_owners(workspace, map).map_err(|errno| Refused {
        step: "show the workspace as the sandbox's user's (id-mapped mount)".into(),
        answer: errno.to_string(),
    })
}

/// Waits for a session; `None` if the spawner or init ends first. One that
/// could not be prepared waits as well: it knows why.
fn claimed(channel: &OwnedFd, prepared: Option<&Prepared>) -> Option<(Post, OwnedFd)> {
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
        let (Claim { session, launch }, fds) = match protocol::receive(channel) {
            // The spawner has hung up, as it does after a claim, and had not
            // read our word: said once, and the claim is still to come.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => continue,
            received => received.ok()??,
        };
        let [link, folder, workspace] = <[OwnedFd; 3]>::try_from(fds).ok()?;
        return Some((Post { link, folder, session, launch }, workspace));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

    fn post() -> (Post, OwnedFd) {
        let file = || OwnedFd::from(tempfile::tempfile().unwrap());
        let session = SessionId::from_random([7; 6]);
        (Post { link: file(), folder: file(), session, launch: "launch".into() }, file())
    }

    #[test]
    fn a_claim_arrives_whether_or_not_the_spares_word_was_read() {
        for read in [false, true] {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            let mut spares = Spares::default();
            spares.keep(Some(Spare::new(ours)));
            protocol::send(&theirs, &Stands(true), &[]).unwrap();
            if read {
                spares.hear(&[true]);
            }
            let (post, workspace) = post();
            assert!(spares.take().unwrap().claim(&post, &workspace));
            let (claimed, _) = claimed(&theirs, None).expect("the claim");
            assert_eq!((claimed.session, claimed.launch.as_str()), (post.session, "launch"), "{read}");
        }
    }

    #[test]
    fn one_that_ends_or_does_not_stand_is_not_kept_and_not_followed_at_once() {
        for last_word in [None, Some(Stands(false))] {
            let (ours, theirs) =
                socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
            let mut spares = Spares::default();
            spares.keep(Some(Spare::new(ours)));
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
