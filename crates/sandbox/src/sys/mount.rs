//! Mount calls that rustix lacks.

use std::os::fd::{AsFd, AsRawFd};

use rustix::io::Result;

use super::check;

pub(crate) const ATTR_RDONLY: u64 = libc::MOUNT_ATTR_RDONLY;
pub(crate) const ATTR_NOSUID: u64 = libc::MOUNT_ATTR_NOSUID;
pub(crate) const ATTR_NODEV: u64 = libc::MOUNT_ATTR_NODEV;
pub(crate) const ATTR_NOEXEC: u64 = libc::MOUNT_ATTR_NOEXEC;

/// Sets attributes on the mount at `mount`, and on those below if `deep`;
/// propagation is made private.
pub(crate) fn set_mount_attributes(mount: impl AsFd, set: u64, deep: bool) -> Result<()> {
    let attributes = libc::mount_attr { attr_set: set, attr_clr: 0, propagation: libc::MS_PRIVATE, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | if deep { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the path is a valid empty C string, the structure has the
    // kernel's layout and its true size is passed; the call only reads them.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Shows the files of a mount, and of those below, with the owners that the
/// user namespace maps theirs to. Possible once for each mount.
pub(crate) fn map_mount_owners(mount: impl AsFd, namespace: impl AsFd) -> Result<()> {
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: namespace.as_fd().as_raw_fd().unsigned_abs().into(),
    };
    // SAFETY: as above; the descriptor outlives the call.
    check(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | libc::AT_RECURSIVE,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

/// Makes the current folder, which must be a mount, the root of the mount
/// namespace and lets go of everything that was there before.
pub(crate) fn pivot_into_cwd() -> Result<()> {
    // SAFETY: all paths are valid C strings; the calls change only this
    // process's mount namespace. Stacking the old root on "." and detaching
    // it needs no folder for it in the new one.
    unsafe {
        check(libc::syscall(libc::SYS_pivot_root, c".".as_ptr(), c".".as_ptr()))?;
        check(libc::umount2(c".".as_ptr(), libc::MNT_DETACH).into())?;
    }
    Ok(())
}
