//! Where trees are built. Linux 6.15 and newer mount onto a detached tree and
//! clone one: there, a tree needs no place and ends with its descriptor. Before,
//! both are done only to what is mounted in the caller's own namespace: there,
//! trees stand in a folder of the spawner's while they are needed.

use std::cell::Cell;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{AtFlags, Mode, mkdirat, unlinkat};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, getpid};

use super::base::PLAIN;
use super::mounts::{attach, handle, host, tmpfs, unmount};

/// Most trees that stand at once: as many as a namespace has mounts
/// (`fs.mount-max`).
const MOST: &str = "100000";

/// Folders of which every system has one, and which nobody needs who is already
/// where the trees are built. Not the root: a process for which it is covered
/// counts as one in a `chroot`, and may not make user namespaces.
const SPOTS: [&str; 6] = ["/mnt", "/media", "/srv", "/run", "/var", "/tmp"];

/// The place.
pub(crate) struct Site {
    folder: Option<Rc<OwnedFd>>,
    count: Cell<u64>,
}

impl Site {
    /// Finds out what this kernel needs. Called once, in the namespace in which
    /// everything is built, and when all that lies elsewhere than in `/usr`,
    /// `/etc`, `/dev`, `/proc` and `/sys` is open: it may be covered then.
    pub(crate) fn find() -> Result<Self> {
        let folder = tmpfs(&[("size", "1m"), ("nr_inodes", MOST), ("mode", "0700")], PLAIN)?;
        mkdirat(&folder, "trial", Mode::from_raw_mode(0o700))?;
        let trial = tmpfs(&[("size", "4k"), ("nr_inodes", "2")], PLAIN)?;
        let folder = match attach(trial, handle(&folder, "trial")?) {
            Ok(()) => None,
            Err(Errno::INVAL) => {
                let spot = SPOTS.iter().find_map(|path| host(*path).ok()).ok_or(Errno::NOENT)?;
                attach(&folder, spot)?;
                Some(Rc::new(folder))
            }
            Err(errno) => return Err(errno),
        };
        Ok(Self { folder, count: Cell::new(0) })
    }

    /// Do trees end with their descriptor?
    pub(crate) fn is_nowhere(&self) -> bool {
        self.folder.is_none()
    }

    /// Puts a fresh tree where more can be mounted on it, and where it can be
    /// cloned.
    pub(super) fn stand(&self, root: OwnedFd) -> Result<Tree> {
        self.count.set(self.count.get() + 1);
        self.stand_as(root, self.count.get().to_string())
    }

    /// The same in a process that was forked to make a sandbox.
    pub(super) fn stand_in_fork(&self, root: OwnedFd, part: Part) -> Result<Tree> {
        self.stand_as(root, part.name(getpid()))
    }

    fn stand_as(&self, root: OwnedFd, name: String) -> Result<Tree> {
        let Some(folder) = &self.folder else { return Ok(Tree { root, stand: None }) };
        mkdirat(folder, &name, Mode::from_raw_mode(0o700))?;
        let stand = Stand { folder: folder.clone(), name, owner: getpid() };
        attach(&root, handle(folder, &stand.name)?)?;
        Ok(Tree { root, stand: Some(stand) })
    }

    /// Removes what a forked process has left standing.
    pub(crate) fn clear(&self, pid: Pid) {
        if let Some(folder) = &self.folder {
            remove(folder, &Part::Image.name(pid));
            remove(folder, &Part::Memory.name(pid));
        }
    }
}

/// What a forked process makes of an image.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Image,
    Memory,
}

impl Part {
    fn name(self, of: Pid) -> String {
        format!("{self:?}.{}", of.as_raw_nonzero())
    }
}

/// A tree, by its root.
pub(crate) struct Tree {
    root: OwnedFd,
    stand: Option<Stand>,
}

impl Tree {
    /// Its root, and what it stands on until that is dropped; nothing if the
    /// tree ends with its descriptor.
    pub(crate) fn into_parts(self) -> (OwnedFd, Option<Stand>) {
        (self.root, self.stand)
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

/// The place of one tree, taken down when it is dropped.
pub(crate) struct Stand {
    folder: Rc<OwnedFd>,
    name: String,
    /// A fork has a copy of this, and none of the place.
    owner: Pid,
}

impl Drop for Stand {
    fn drop(&mut self) {
        if self.owner == getpid() {
            remove(&self.folder, &self.name);
        }
    }
}

fn remove(folder: &OwnedFd, name: &str) {
    // Mounted or not, it is to be gone.
    let _ = unmount(folder, name);
    let _ = unlinkat(folder, name, AtFlags::REMOVEDIR);
}
