//! Who owns the workspace, and as whom the file API and the sandbox act.

use std::cell::Cell;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::process::{Signal, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::launch;
use crate::sys::{self, Forked};

/// Host user and group that own the workspace in root mode. It lies in a range that
/// neither distributions, systemd nor the subordinate-id helpers hand out
/// (systemd's "uids, gids" page leaves 1879048192..2147483647 unused).
pub const ROOT_MODE_ID: u32 = 1_900_000_000;
/// Host users of single sandboxes, above the one that owns the workspace.
const SANDBOX_IDS: std::ops::Range<u32> = ROOT_MODE_ID + 1..ROOT_MODE_ID + (1 << 24);

thread_local! {
    /// The identity that this thread keeps.
    static KEPT: Cell<Option<(u32, u32)>> = const { Cell::new(None) };
}

/// A host identity: the one that owns the workspace's files, or a sandbox's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Host user id.
    pub uid: u32,
    /// Host group id.
    pub gid: u32,
    /// Is this process root, so that the identity differs from its own?
    pub root_mode: bool,
}

impl Identity {
    /// The identity for this process: its own for an ordinary user, one of
    /// the sandboxes' own under root.
    ///
    /// # Errors
    /// `/proc` does not say whose users this process may be: to guess would be to
    /// run sandboxes as root.
    pub fn current() -> std::io::Result<Self> {
        let uid = rustix::process::geteuid();
        // Root of a container may own no other user; then it is an ordinary one.
        Ok(if uid.is_root() && maps("uid_map")? && maps("gid_map")? {
            Self { uid: ROOT_MODE_ID, gid: ROOT_MODE_ID, root_mode: true }
        } else {
            Self { uid: uid.as_raw(), gid: rustix::process::getegid().as_raw(), root_mode: false }
        })
    }

    /// Runs `work` with the thread's file-system identity set to this one, so
    /// that the kernel's own permission checks and ownership apply.
    pub fn act<T>(self, work: impl FnOnce() -> T) -> T {
        if !self.root_mode || KEPT.get() == Some((self.uid, self.gid)) {
            return work();
        }
        let _restore = sys::FsIdentity::assume(self.uid, self.gid);
        work()
    }

    /// Gives the calling thread this file-system identity for good, which makes
    /// [`Self::act`] cost nothing there: changing it four times takes longer than
    /// opening a file. For threads that do nothing else.
    pub fn keep(self) {
        if self.root_mode {
            std::mem::forget(sys::FsIdentity::assume(self.uid, self.gid));
            KEPT.set(Some((self.uid, self.gid)));
        }
    }

    /// Makes an open folder belong to this identity.
    ///
    /// # Errors
    /// What `chown` answers.
    pub fn own(self, folder: impl AsFd) -> rustix::io::Result<()> {
        if self.root_mode {
            let (uid, gid) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
            rustix::fs::chownat(folder, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        }
        Ok(())
    }
}

/// Host users for single sandboxes, one after another.
#[derive(Debug)]
pub(crate) struct SandboxIds {
    next: u32,
}

impl SandboxIds {
    /// Begins at a random one: sandboxes of a spawner that was killed may
    /// still live, and theirs are not to be met for a long time.
    pub(crate) fn new() -> rustix::io::Result<Self> {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let count = SANDBOX_IDS.end - SANDBOX_IDS.start;
        Ok(Self { next: SANDBOX_IDS.start + u32::from_ne_bytes(random) % count })
    }

    /// The identity of the next sandbox.
    pub(crate) fn next(&mut self) -> Identity {
        let id = self.next;
        self.next = if id + 1 < SANDBOX_IDS.end { id + 1 } else { SANDBOX_IDS.start };
        Identity { uid: id, gid: id, root_mode: true }
    }
}

/// The process that a namespace was made with, which has been ended; dropped, it
/// is waited for.
pub(crate) struct Ended(OwnedFd);

impl Drop for Ended {
    fn drop(&mut self) {
        launch::collect(&self.0);
    }
}

/// A user namespace for `map_mount_owners`: what belongs to `owner` on disk is
/// `user`'s, and whatever else there is keeps its owner.
pub(crate) fn owners_map(owner: Identity, user: Identity) -> std::io::Result<(OwnedFd, Option<Ended>)> {
    let parent = rustix::process::getpid();
    let Forked::Parent { pid, pidfd } = sys::fork_into(libc::CLONE_NEWUSER)? else { be_a_namespace(parent) };
    let made = (|| -> std::io::Result<OwnedFd> {
        for (file, owner, user) in [("uid_map", owner.uid, user.uid), ("gid_map", owner.gid, user.gid)] {
            let same =
                |from: u32, to: u32| if from < to { format!("{from} {from} {}\n", to - from) } else { String::new() };
            let map =
                same(0, owner) + &format!("{owner} {user} 1\n") + &same(owner + 1, user) + &same(user + 1, u32::MAX);
            std::fs::write(format!("/proc/{pid}/{file}"), map)?;
        }
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(format!("/proc/{pid}/ns/user"), flags, Mode::empty())?)
    })();
    // What cannot be killed is not waited for: it ends with its parent.
    let ended = pidfd_send_signal(&pidfd, Signal::KILL).is_ok().then(|| Ended(pidfd));
    Ok((made?, ended))
}

/// Lives for as long as it takes to read its namespace, and never longer than
/// the parent, of which it keeps nothing.
fn be_a_namespace(parent: rustix::process::Pid) -> ! {
    let dies_along = rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).is_ok();
    if dies_along && sys::close_from(0).is_ok() && rustix::process::getppid() == Some(parent) {
        loop {
            std::thread::park();
        }
    }
    std::process::exit(1)
}

/// Does this process's user namespace know the sandboxes' host user?
fn maps(file: &str) -> std::io::Result<bool> {
    let text = std::fs::read_to_string(format!("/proc/self/{file}"))?;
    Ok(text.lines().any(|line| {
        let mut numbers = line.split_whitespace().filter_map(|number| number.parse::<u64>().ok());
        let (Some(first), Some(_), Some(count)) = (numbers.next(), numbers.next(), numbers.next()) else {
            return false;
        };
        (first..first + count).contains(&u64::from(ROOT_MODE_ID))
    }))
}
