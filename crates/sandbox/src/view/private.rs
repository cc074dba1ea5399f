//! A session's private folder, which is kept when its sandbox is not. To make
//! one takes as long as all else that a view of a known scope needs, so that
//! one is made ahead, and is then only given its name.

use std::os::fd::OwnedFd;

use cloister_types::path::WorkspacePath;
use cloister_types::scope::SESSIONS;
use rustix::fs::{AtFlags, RenameFlags, mkdirat, renameat_with, unlinkat};
use rustix::io::{Errno, Result};

use super::ViewError;
use super::mounts::{handle, open_strictly};
use super::workspace::{FOLDER, make_folders};
use crate::identity::Identity;

/// The one made ahead. Beside the others, under a name that no session has.
const NEXT: &str = ".next";

/// Private folders, as they are needed.
#[derive(Default)]
pub(super) struct Private {
    is_ahead: bool,
    /// It could not be made: the next view tries anew.
    resting: bool,
}

impl Private {
    pub(super) fn wants(&self) -> bool {
        !self.is_ahead && !self.resting
    }

    pub(super) fn make_ahead(&mut self, workspace: &OwnedFd, identity: Identity) {
        let made = open_strictly(workspace, SESSIONS).and_then(|folders| {
            identity.act(|| {
                // What an earlier spawner has left, if nobody has been in it since.
                match unlinkat(&folders, NEXT, AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOENT) => mkdirat(&folders, NEXT, FOLDER),
                    Err(errno) => Err(errno),
                }
            })
        });
        (self.is_ahead, self.resting) = (made.is_ok(), made.is_err());
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
                let named = std::mem::take(&mut self.is_ahead).then(|| name_it(workspace, own, identity));
                match named {
                    Some(Ok(folder)) => Ok(folder),
                    _ => identity.act(|| make_folders(workspace, own)),
                }
            }
            other => other,
        };
        folder.map_err(ViewError::at("open the private folder in the workspace"))
    }
}

fn name_it(workspace: &OwnedFd, own: &WorkspacePath, identity: Identity) -> Result<OwnedFd> {
    let (_, name) = own.split_last().ok_or(Errno::INVAL)?;
    let folders = open_strictly(workspace, SESSIONS)?;
    identity.act(|| renameat_with(&folders, NEXT, &folders, name, RenameFlags::NOREPLACE))?;
    handle(folders, name)
}
