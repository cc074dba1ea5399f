//! Subvolumes and their limits, from `linux/btrfs.h`.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::{Errno, Result};

use super::check;

/// `BTRFS_IOC_SUBVOL_CREATE`: `_IOW(0x94, 14, struct btrfs_ioctl_vol_args)`.
const SUBVOL_CREATE: libc::c_ulong = 0x5000_940e;
/// `BTRFS_IOC_QUOTA_CTL`: `_IOWR(0x94, 40, struct btrfs_ioctl_quota_ctl_args)`.
const QUOTA_CTL: libc::c_ulong = 0xc010_9428;
/// `BTRFS_IOC_QGROUP_LIMIT`: `_IOR(0x94, 43, struct btrfs_ioctl_qgroup_limit_args)`.
const QGROUP_LIMIT: libc::c_ulong = 0x8030_942b;

const NAME: usize = 4088;

#[repr(C)]
struct VolumeArguments {
    fd: i64,
    name: [u8; NAME],
}

#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}

#[repr(C)]
struct QgroupLimit {
    /// 0: the subvolume that the call is made on.
    qgroup: u64,
    flags: u64,
    referenced: u64,
    exclusive: u64,
    reserved_referenced: u64,
    reserved_exclusive: u64,
}

/// Makes a subvolume in a folder.
pub(crate) fn create_subvolume(folder: impl AsFd, name: &[u8]) -> Result<()> {
    let mut arguments = VolumeArguments { fd: 0, name: [0; NAME] };
    // The last byte stays: it ends the name.
    arguments.name[..NAME - 1].get_mut(..name.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(name);
    // SAFETY: the structure has the kernel's layout and outlives the call,
    // which only reads it.
    check(unsafe { libc::ioctl(folder.as_fd().as_raw_fd(), SUBVOL_CREATE, &raw const arguments) }.into()).map(drop)
}

/// Limits what the subvolume that `root` is the root of may hold, in bytes.
pub(crate) fn limit_subvolume(root: impl AsFd, bytes: u64) -> Result<()> {
    const ENABLE: u64 = 1;
    const MAX_REFERENCED: u64 = 1;
    let root = root.as_fd().as_raw_fd();
    let mut control = QuotaControl { command: ENABLE, status: 0 };
    // SAFETY: as above; this one is written, too.
    check(unsafe { libc::ioctl(root, QUOTA_CTL, &raw mut control) }.into())?;
    let limit = QgroupLimit {
        qgroup: 0,
        flags: MAX_REFERENCED,
        referenced: bytes,
        exclusive: 0,
        reserved_referenced: 0,
        reserved_exclusive: 0,
    };
    // SAFETY: as for the first.
    check(unsafe { libc::ioctl(root, QGROUP_LIMIT, &raw const limit) }.into()).map(drop)
}
