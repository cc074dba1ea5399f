//! Raw Linux calls that neither std nor rustix offer. Every `unsafe` of the
//! project is in this folder.
#![allow(unsafe_code)]

mod btrfs;
mod identity;
mod mount;
mod process;
mod project;
mod seccomp;

pub(crate) use btrfs::{create_subvolume, limit_subvolume};
pub(crate) use identity::{
    CAP_DAC_READ_SEARCH, CAP_KILL, FsIdentity, become_inside, drop_bounding_set, drop_capabilities,
    keep_only_capability,
};
pub(crate) use mount::{
    ATTR_NODEV, ATTR_NOEXEC, ATTR_NOSUID, ATTR_RDONLY, map_mount_owners, pivot_into_cwd, set_mount_attributes,
};
pub(crate) use process::{
    Forked, close_from, exec, fork, fork_into, keep_only, loopback_up, lower_limit, set_standard, signal_all_others,
    start_program, unblock_signals, unshare, watch_children,
};
pub(crate) use project::{is_free_project, limit_project, limits_projects, make_project, project_of};
pub(crate) use seccomp::{Instruction, install, landlock_version};

/// Turns a raw return value into a result.
fn check(value: libc::c_long) -> rustix::io::Result<libc::c_long> {
    if value < 0 {
        let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        Err(rustix::io::Errno::from_raw_os_error(errno))
    } else {
        Ok(value)
    }
}
