//! What a spawner must be granted, or make, before it can serve.

use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use cloister_types::WorkspacePath;
use cloister_types::scope::{CONTEXT, MEMORY, SESSIONS};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::identity::{self, Identity, SandboxIds};
use crate::launch::Refused;
use crate::sys;
use crate::view::{self, mounts};

/// A process of one thread with a mount namespace of its own, and as an
/// ordinary user with a user namespace in which it may mount. Also with a network
/// of its own, in which there is nothing: it needs none, and to one that is its
/// own it may return from a sandbox's.
pub(crate) fn enter(identity: Identity) -> Result<(), Refused> {
    let refused = |step: &'static str| {
        move |error: &dyn std::fmt::Display| Refused { step: step.into(), answer: error.to_string() }
    };
    if identity.root_mode {
        sys::unshare(libc::CLONE_NEWNS | libc::CLONE_NEWNET)
            .map_err(|errno| refused("make a mount and a network namespace (unshare)")(&errno))?;
    } else {
        sys::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWNET)
            .map_err(|errno| refused("make a user, a mount and a network namespace (unshare)")(&errno))?;
        for (file, text) in [
            ("setgroups", "deny".to_owned()),
            ("uid_map", format!("{0} {0} 1", identity.uid)),
            ("gid_map", format!("{0} {0} 1", identity.gid)),
        ] {
            std::fs::write(format!("/proc/self/{file}"), text)
                .map_err(|error| refused("map the own user id")(&error))?;
        }
    }
    rustix::mount::mount_change(
        "/",
        rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC,
    )
    .map_err(|errno| refused("make mounts private")(&errno))
}

/// Leaves the host's files behind: this process, and with it every mount
/// namespace that is made from its own, keeps `/proc`, these folders and nothing
/// else. Whatever else it needs it must hold as a mount of its own.
pub(crate) fn leave_host(folders: &[&Path]) -> Result<(), Refused> {
    let refused = |step: String| move |errno: Errno| Refused { step, answer: errno.to_string() };
    let root = mounts::tmpfs(&[("size", "64k"), ("nr_inodes", "256"), ("mode", "0755")], view::PLAIN)
        .map_err(refused("make an empty root (tmpfs)".into()))?;
    for folder in [Path::new("/proc")].iter().chain(folders) {
        let place = || -> rustix::io::Result<()> {
            let below = folder.strip_prefix("/").map_err(|_| Errno::INVAL)?;
            let path = WorkspacePath::parse(below.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
            // What lies on `/proc` may hide some of it, and may not be taken away.
            let mount = mounts::clone_mount(mounts::host(*folder)?, true)?;
            mounts::attach(mount, view::make_folders(&root, &path)?)
        };
        place().map_err(refused(format!("keep {}", folder.display())))?;
    }
    mounts::seal(&root).map_err(refused("seal the empty root".into()))?;
    // The new root needs a place first.
    let enter = || -> rustix::io::Result<()> {
        mounts::attach(&root, mounts::host("/proc")?)?;
        rustix::process::fchdir(&root)?;
        sys::pivot_into_cwd()
    };
    enter().map_err(refused("enter the empty root (pivot_root)".into()))
}

/// Host users for sandboxes, if the workspace's file system can show its files
/// as theirs.
///
/// # Errors
/// Something that does not say that it cannot.
pub(crate) fn own_users(workspace: &OwnedFd, owner: Identity) -> std::io::Result<Option<SandboxIds>> {
    if !owner.root_mode {
        return Ok(None);
    }
    let mut ids = SandboxIds::new()?;
    let (map, _) = identity::owners_map(owner, ids.next())?;
    match mounts::can_map_owners(workspace, map) {
        Ok(()) => Ok(Some(ids)),
        Err(Errno::INVAL | Errno::OPNOTSUPP | Errno::PERM | Errno::NOSYS) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

/// Makes what the workspace must have. Sessions may write here, so what they
/// did to it must not keep the tenant from starting.
pub(crate) fn reserved_folders(workspace: &OwnedFd, identity: Identity) -> rustix::io::Result<()> {
    view::restore_modes(workspace);
    let path = |name: &str| WorkspacePath::ROOT.join(name.as_bytes()).unwrap_or_default();
    for name in [MEMORY, SESSIONS] {
        identity.act(|| view::make_folders(workspace, &path(name)))?;
    }
    // A file or a link in its place just means no context files.
    let _ = identity.act(|| view::make_folders(workspace, &path(CONTEXT)));
    let memory = format!("{MEMORY}/MEMORY.md");
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let _ = identity.act(|| rustix::fs::openat(workspace, memory, flags, Mode::from_raw_mode(0o644)));
    Ok(())
}
