//! The few mount operations that views are made of.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Result;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, FsPickFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
    fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, fspick, move_mount,
    open_tree,
};

use crate::sys;

/// How a source below a trusted folder is opened: no climbing, no links.
pub(super) const STRICT: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Opens `path` below `folder` as a mere handle.
pub(crate) fn handle(folder: impl AsFd, path: impl rustix::path::Arg) -> Result<OwnedFd> {
    openat2(folder, path, OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty(), STRICT)
}

/// Opens a folder below a trusted one, for reading, no link followed.
pub(crate) fn open_strictly(folder: impl AsFd, path: &str) -> Result<OwnedFd> {
    openat2(folder, path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty(), STRICT)
}

/// A fresh tmpfs as a detached mount.
pub(crate) fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd> {
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "none")?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A fresh procfs that shows processes and nothing else.
pub(crate) fn process_only_proc() -> Result<OwnedFd> {
    proc(Some("pid"))
}

/// A fresh procfs with settings as well, for the set-up alone. Not the host's:
/// there, the settings of all namespaces hang in one chain that each look-up
/// walks.
pub(crate) fn whole_proc() -> Result<OwnedFd> {
    proc(None)
}

fn proc(subset: Option<&str>) -> Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "proc")?;
    if let Some(subset) = subset {
        fsconfig_set_string(&context, "subset", subset)?;
    }
    fsconfig_create(&context)?;
    let attributes =
        MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A fresh set of terminals, none yet. Devices there are no danger: they are
/// the sandbox's own terminals.
pub(crate) fn terminals() -> Result<OwnedFd> {
    let context = fsopen("devpts", FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (key, value) in [("source", "devpts"), ("ptmxmode", "0666"), ("mode", "0620"), ("max", "64")] {
        fsconfig_set_string(&context, key, value)?;
    }
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached clone of the mount that `source` lies in, rooted at `source`.
pub(crate) fn clone_mount(source: impl AsFd, deep: bool) -> Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, deep);
    open_tree(source, "", flags)
}

/// A folder of a tree as a detached mount.
pub(crate) fn part(tree: impl AsFd, folder: &str) -> Result<OwnedFd> {
    clone_mount(handle(tree, folder)?, false)
}

/// A clone of one file or folder of the host, without devices or setuid.
pub(super) fn bind(source: impl AsFd, read_only: bool) -> Result<OwnedFd> {
    let mount = clone_mount(source, false)?;
    let attributes = sys::ATTR_NOSUID | sys::ATTR_NODEV | if read_only { sys::ATTR_RDONLY } else { 0 };
    sys::set_mount_attributes(&mount, attributes, false)?;
    Ok(mount)
}

/// Can the files in `folder` be shown with other owners, and what views are
/// made of (tmpfs: since Linux 6.3)?
pub(crate) fn can_map_owners(folder: impl AsFd, namespace: impl AsFd) -> Result<()> {
    sys::map_mount_owners(clone_mount(folder, false)?, &namespace)?;
    sys::map_mount_owners(tmpfs(&[("size", "4k"), ("nr_inodes", "2")], MountAttrFlags::empty())?, namespace)
}

/// Makes the whole file system of a mount read-only, through whichever mount it
/// is seen.
pub(crate) fn seal(mount: impl AsFd) -> Result<()> {
    let context = fspick(mount, "", FsPickFlags::FSPICK_CLOEXEC | FsPickFlags::FSPICK_EMPTY_PATH)?;
    fsconfig_set_flag(&context, "ro")?;
    fsconfig_reconfigure(&context)
}

/// Attaches a detached mount on `target`.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<()> {
    move_mount(mount, "", target, "", MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH)
}

/// Takes what is mounted at `name` in `folder` out of the mount namespace, with
/// all that is mounted on it. Whoever uses it keeps it until then.
pub(super) fn unmount(folder: impl AsFd, name: &str) -> Result<()> {
    let path = format!("/proc/self/fd/{}/{name}", folder.as_fd().as_raw_fd());
    rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)
}

/// Opens a trusted path of the host, links followed.
pub(crate) fn host(path: impl rustix::path::Arg) -> Result<OwnedFd> {
    rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// A clone of the workspace in a view that [`super::build`] made, to be
/// attached in a sandbox.
pub(crate) fn workspace_of(view: impl AsFd) -> std::result::Result<OwnedFd, super::ViewError> {
    let workspace = handle(view, crate::WORKSPACE).map_err(super::ViewError::at("open the view's workspace"))?;
    clone_mount(workspace, true).map_err(super::ViewError::at("clone the workspace view"))
}
