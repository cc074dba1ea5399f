//! Where the workspace lies, and whether its file system keeps to a limit by
//! itself. btrfs does, for a subvolume: there a program is told "disk quota
//! exceeded" at the very byte. Everywhere else the meter has to do.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Mode, OFlags, fstat, fstatfs};

use super::Allowance;
use crate::sys;

/// `BTRFS_SUPER_MAGIC` of `linux/magic.h`.
const BTRFS: i64 = 0x9123_683e;
/// The root of every subvolume (`BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME: u64 = 256;

/// Makes the workspace's folder if it is not there; where that is possible, as
/// something that can be limited.
pub(crate) fn make(workspace: &Path) -> std::io::Result<()> {
    if workspace.exists() {
        return Ok(());
    }
    if let (Some(parent), Some(name)) = (workspace.parent(), workspace.file_name()) {
        std::fs::create_dir_all(parent)?;
        let parent = open(parent, OFlags::RDONLY)?;
        if is_btrfs(&parent) && sys::create_subvolume(&parent, name.as_bytes()).is_ok() {
            return Ok(());
        }
    }
    std::fs::create_dir_all(workspace)
}

/// Has the file system itself keep to the limit, if it can; says whether.
pub(crate) fn limit(workspace: &Path, allowance: Allowance) -> std::io::Result<bool> {
    // Sessions may have taken the right to read it away.
    let handle = open(workspace, OFlags::PATH)?;
    if !is_btrfs(&handle) || fstat(&handle)?.st_ino != SUBVOLUME {
        return Ok(false);
    }
    // Without the right to it, as an ordinary user, the meter has to do.
    Ok(open(workspace, OFlags::RDONLY).and_then(|root| sys::limit_subvolume(&root, allowance.bytes)).is_ok())
}

fn open(folder: &Path, how: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(folder, how | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_btrfs(folder: &OwnedFd) -> bool {
    fstatfs(folder).is_ok_and(|stat| stat.f_type == BTRFS)
}
