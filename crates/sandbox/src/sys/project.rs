//! Project quotas of ext4 and XFS: what lies in a folder, and in those made in
//! it, counts as one project. From `linux/fs.h`, `linux/quota.h` and
//! `linux/dqblk_xfs.h`.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

use super::check;

/// `FS_IOC_FSGETXATTR`: `_IOR('X', 31, struct fsxattr)`.
const GET_ATTRIBUTES: libc::c_ulong = 0x801c_581f;
/// `FS_IOC_FSSETXATTR`: `_IOW('X', 32, struct fsxattr)`.
const SET_ATTRIBUTES: libc::c_ulong = 0x401c_5820;
/// `FS_XFLAG_PROJINHERIT`: what is made in the folder is of its project.
const INHERIT: u32 = 0x200;

/// `PRJQUOTA`, the low byte of a quota command.
const PROJECT: u32 = 2;
const GET_QUOTA: u32 = 0x80_0007;
const SET_QUOTA: u32 = 0x80_0008;
/// `Q_XGETQSTAT`.
const GET_STATE: u32 = (b'X' as u32) << 8 | 5;
/// `FS_QUOTA_PDQ_ENFD`: limits of projects are kept.
const ENFORCED: u16 = 1 << 5;
/// `QIF_LIMITS`: limits of space and of files are given.
const LIMITS: u32 = 1 | 4;
/// `QIF_DQBLKSIZE`: the unit of a limit of space.
const BLOCK: u64 = 1024;

#[repr(C)]
#[derive(Default)]
struct Attributes {
    flags: u32,
    extent_size: u32,
    extents: u32,
    project: u32,
    copy_extent_size: u32,
    reserved: [u8; 8],
}

#[repr(C)]
#[derive(Default)]
struct Quota {
    space_hard: u64,
    space_soft: u64,
    space: u64,
    files_hard: u64,
    files_soft: u64,
    files: u64,
    space_time: u64,
    files_time: u64,
    valid: u32,
}

/// `struct fs_quota_stat`; nothing but the flags is read.
#[repr(C, align(8))]
struct State {
    version: i8,
    flags: u16,
    rest: [u8; 76],
}

fn attributes(folder: impl AsFd) -> Result<Attributes> {
    let mut attributes = Attributes::default();
    // SAFETY: the structure has the kernel's layout and outlives the call,
    // which only writes it.
    check(unsafe { libc::ioctl(folder.as_fd().as_raw_fd(), GET_ATTRIBUTES, &raw mut attributes) }.into())?;
    Ok(attributes)
}

/// The project of a folder and of all that is made in it; `None`: it has none.
pub(crate) fn project_of(folder: impl AsFd) -> Result<Option<u32>> {
    let Attributes { project, flags, .. } = attributes(folder)?;
    Ok((project != 0 && flags & INHERIT != 0).then_some(project))
}

/// Makes an empty folder, and what will be made in it, one project.
pub(crate) fn make_project(folder: impl AsFd, project: u32) -> Result<()> {
    let before = attributes(&folder)?;
    let attributes = Attributes { project, flags: before.flags | INHERIT, ..before };
    // SAFETY: as above; the call only reads it.
    check(unsafe { libc::ioctl(folder.as_fd().as_raw_fd(), SET_ATTRIBUTES, &raw const attributes) }.into()).map(drop)
}

/// A quota command for the file system that `folder` is of.
///
/// # Safety
/// `argument` is what the command takes, and outlives the call.
unsafe fn quota_call<T>(folder: impl AsFd, command: u32, project: u32, argument: *mut T) -> Result<()> {
    let command = command << 8 | PROJECT;
    let folder = folder.as_fd().as_raw_fd();
    // SAFETY: integers, and what the caller vouches for.
    check(unsafe { libc::syscall(libc::SYS_quotactl_fd, folder, command, project, argument) }).map(drop)
}

/// Does the file system keep to limits of projects?
pub(crate) fn limits_projects(folder: impl AsFd) -> Result<bool> {
    let mut state = State { version: 1, flags: 0, rest: [0; 76] };
    // SAFETY: the command writes a structure that is no larger than this one.
    unsafe { quota_call(folder, GET_STATE, 0, &raw mut state) }?;
    Ok(state.flags & ENFORCED != 0)
}

/// Does nobody use this project yet?
pub(crate) fn is_free_project(folder: impl AsFd, project: u32) -> Result<bool> {
    let mut quota = Quota::default();
    // SAFETY: the structure has the kernel's layout; the call writes it.
    match unsafe { quota_call(folder, GET_QUOTA, project, &raw mut quota) } {
        Ok(()) => Ok(quota.space + quota.files + quota.space_hard + quota.files_hard == 0),
        Err(Errno::NOENT | Errno::SRCH) => Ok(true),
        Err(errno) => Err(errno),
    }
}

/// Limits what a project may hold: bytes, and files with folders and links.
pub(crate) fn limit_project(folder: impl AsFd, project: u32, bytes: u64, files: u64) -> Result<()> {
    let mut quota = Quota { space_hard: bytes / BLOCK, files_hard: files, valid: LIMITS, ..Quota::default() };
    // SAFETY: the structure has the kernel's layout; the call reads it.
    unsafe { quota_call(folder, SET_QUOTA, project, &raw mut quota) }
}
