//! Where the workspace lies, and whether its file system keeps to a limit by
//! itself. btrfs does, for a subvolume; ext4 and XFS do, for a project, if they
//! are mounted with `prjquota`: there a program is told "disk quota exceeded" at
//! the very byte. Everywhere else the meter has to do.

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

/// Upper half of the project numbers; the lower one is people's own, in
/// `/etc/projid`.
const OURS: u32 = 1 << 31;
/// Projects that are tried before one is found that nobody uses.
const TRIES: usize = 16;

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
    std::fs::create_dir_all(workspace)?;
    // Without it, as an ordinary user or elsewhere, the meter has to do.
    let _ = open(workspace, OFlags::RDONLY).and_then(make_project);
    Ok(())
}

/// Makes the new folder a project of its own, where that can be limited.
fn make_project(folder: OwnedFd) -> rustix::io::Result<()> {
    // What lies in a project of the operator's stays there, and in its limit.
    if sys::project_of(&folder)?.is_some() || !sys::limits_projects(&folder)? {
        return Ok(());
    }
    for _ in 0..TRIES {
        let mut random = [0; 4];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let project = u32::from_ne_bytes(random) | OURS;
        if project != u32::MAX && sys::is_free_project(&folder, project)? {
            return sys::make_project(&folder, project);
        }
    }
    Ok(())
}

/// Has the file system itself keep to the limit, if it can; says whether.
pub(crate) fn limit(workspace: &Path, allowance: Allowance) -> std::io::Result<bool> {
    // Sessions may have taken the right to read it away.
    let handle = open(workspace, OFlags::PATH)?;
    if is_btrfs(&handle) {
        // Without the right to it, as an ordinary user, the meter has to do.
        let limited = || sys::limit_subvolume(open(workspace, OFlags::RDONLY)?, allowance.bytes);
        return Ok(fstat(&handle)?.st_ino == SUBVOLUME && limited().is_ok());
    }
    let limited = || {
        let root = open(workspace, OFlags::RDONLY)?;
        let ours = sys::project_of(&root)?.filter(|project| project & OURS != 0);
        let Some(project) = ours.filter(|_| sys::limits_projects(&root) == Ok(true)) else { return Ok(false) };
        sys::limit_project(&root, project, allowance.bytes, allowance.files).map(|()| true)
    };
    Ok(limited().unwrap_or(false))
}

fn open(folder: &Path, how: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(folder, how | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

fn is_btrfs(folder: &OwnedFd) -> bool {
    fstatfs(folder).is_ok_and(|stat| stat.f_type == BTRFS)
}
