//! A session's private folder, which is kept when its sandbox is not. To make
//! one takes as long as all else that a view of a known scope needs, so that
//! one is made ahead, and is then only given its name.

use std::os::fd::OwnedFd;

use cloister_types::path::WorkspacePath;
use cloister_types::scope::SESSIONS;
use rustix::fs::{AtFlags, RenameFlags, mkdirat, renameat_with, statat, unlinkat};
use rustix::io::{Errno, Result};

use super::ViewError;
use super::mounts::{handle, open_strictly};
use super::workspace::{FOLDER, make_folders};
use crate::identity::Identity;

/// The one made ahead. Beside the others, under a name that no session has.
const NEXT: &str = ".next";

/// Which folder, and when something was last put into it.
#[derive(PartialEq, Eq)]
struct Made {
    inode: (u64, u64),
    changed: (i64, u64),
}

impl Made {
    fn of(folders: &OwnedFd) -> Result<Self> {
        let stat = statat(folders, NEXT, AtFlags::SYMLINK_NOFOLLOW)?;
        let (seconds, nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
        Ok(Self { inode: (stat.st_dev, stat.st_ino), changed: (seconds, nanoseconds) })
    }

    /// Gives it its name, if it is still what was made.
    fn named(self, workspace: &OwnedFd, own: &WorkspacePath, identity: Identity) -> Result<OwnedFd> {
        let (_, name) = own.split_last().ok_or(Errno::INVAL)?;
        let folders = open_strictly(workspace, SESSIONS)?;
        if Self::of(&folders)? != self {
            return Err(Errno::EXIST);
        }
        identity.act(|| renameat_with(&folders, NEXT, &folders, name, RenameFlags::NOREPLACE))?;
        handle(folders, name)
    }
}

/// Private folders, as they are needed.
#[derive(Default)]
pub(super) struct Private {
    /// As it was made: whoever has been in it since has changed that.
    ahead: Option<Made>,
    /// It could not be made: the next view tries anew.
    resting: bool,
}

impl Private {
    pub(super) fn wants(&self) -> bool {
        self.ahead.is_none() && !self.resting
    }

    pub(super) fn make_ahead(&mut self, workspace: &OwnedFd, identity: Identity) {
        let made = open_strictly(workspace, SESSIONS).and_then(|folders| {
            identity.act(|| -> Result<()> {
                // What an earlier spawner has left, if nobody has been in it since.
                match unlinkat(&folders, NEXT, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => mkdirat(&folders, NEXT, FOLDER),
                    Err(errno) => Err(errno),
                }
            })?;
            Made::of(&folders)
        });
        self.resting = made.is_err();
        self.ahead = made.ok();
    }

    /// That of a session, made if it is not there.
    pub(super) fn take(
        &mut self,
        workspace: &OwnedFd,
        own: &WorkspacePath,
        identity: Identity,
    ) -> std::result::Result<OwnedFd, ViewError> {
        self.resting = false;
        let folder = match handle(workspace, own.to_bytes()) {
            Err(Errno::NOENT) => {
                let named = self.ahead.take().ok_or(Errno::NOENT).and_then(|made| made.named(workspace, own, identity));
                named.or_else(|_| identity.act(|| make_folders(workspace, own)))
            }
            other => other,
        };
        folder.map_err(ViewError::at("open the private folder in the workspace"))
    }
}
