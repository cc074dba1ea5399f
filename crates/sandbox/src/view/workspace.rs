//! The workspace part of a view: what the session's scope makes visible.
//!
//! The result is a detached tree whose `/opt/sandbox/workspace` is the
//! workspace as the session sees it. The file API opens through this tree; a
//! sandbox gets a clone of it. Rooting it above the workspace makes absolute
//! links and `..` mean the same to both.

use std::os::fd::{AsFd, OwnedFd};

use cloister_types::path::WorkspacePath;
use cloister_types::scope::{Access, MEMORY, SESSIONS};
use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat, openat2, statat};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use super::ViewError;
use super::mounts::{STRICT, attach, bind, handle, tmpfs};
use crate::identity::Identity;
use crate::plan::{Bind, IfAbsent, Plan, Root};
use crate::protocol::Source;
use crate::{WORKSPACE, sys};

const FOLDER: Mode = Mode::from_raw_mode(0o755);

/// A built view.
pub(crate) struct Built {
    pub(crate) tree: OwnedFd,
    /// What was bound, to notice later that it was replaced.
    pub(crate) sources: Vec<Source>,
}

/// Builds the view that `plan` describes from the workspace folder.
pub(crate) fn build(workspace: &OwnedFd, plan: &Plan, identity: Identity) -> Result<Built, ViewError> {
    let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let inodes = (64 + 2 * plan.binds.iter().map(|bind| bind.path.components().len()).sum::<usize>()).to_string();
    let tree = tmpfs(&[("size", "4m"), ("nr_inodes", &inodes), ("mode", "0755")], plain)
        .map_err(ViewError::at("make the skeleton (tmpfs)"))?;
    for folder in ["opt", "opt/sandbox", WORKSPACE, "sessions"] {
        mkdirat(&tree, folder, FOLDER).map_err(ViewError::at(format!("make /{folder}")))?;
    }
    let mut builder = Builder { workspace, tree, identity, sources: Vec::new() };

    restore_modes(workspace);
    // The private folder first: it must exist whatever the scope says.
    builder.make_writable(plan);
    let own = builder.source(&Bind { path: plan.own.clone(), access: Access::Write, absent: IfAbsent::Create })?;
    match plan.root {
        Root::Workspace(access) => builder.whole_workspace(access, plan)?,
        Root::Skeleton => builder.skeleton(plan)?,
    }
    for bind in &plan.binds {
        if let Some(source) = builder.source(bind)? {
            builder.place(&bind.path, source, bind.access)?;
        }
    }
    if let Some(own) = own {
        builder.place(&plan.own, own, Access::Write)?;
    }
    // From here on nobody adds a name to the skeleton.
    sys::set_mount_attributes(&builder.tree, sys::ATTR_RDONLY, false).map_err(ViewError::at("seal the skeleton"))?;
    Ok(Built { tree: builder.tree, sources: builder.sources })
}

struct Builder<'a> {
    workspace: &'a OwnedFd,
    tree: OwnedFd,
    identity: Identity,
    sources: Vec<Source>,
}

impl Builder<'_> {
    /// Makes the writable paths that are absent, before anything is looked at:
    /// a readable path above one of them is there then. What cannot be made is
    /// reported when it is bound.
    fn make_writable(&self, plan: &Plan) {
        for Bind { path, .. } in plan.binds.iter().filter(|bind| bind.absent == IfAbsent::Create) {
            if matches!(handle(self.workspace, path.to_bytes()), Err(Errno::NOENT)) {
                let _ = self.identity.act(|| make_folders(self.workspace, path));
            }
        }
    }

    /// The workspace itself as the mount point, with a sealed `.sessions`
    /// over the real one.
    fn whole_workspace(&mut self, access: Access, plan: &Plan) -> Result<(), ViewError> {
        let target = handle(&self.tree, WORKSPACE).map_err(ViewError::at("open the workspace mount point"))?;
        let mount = bind(self.workspace, access == Access::Read).map_err(ViewError::at("bind the workspace"))?;
        attach(mount, target).map_err(ViewError::at("attach the workspace"))?;
        if let Some((_, name)) = plan.own.split_last() {
            let sealed = handle(&self.tree, "sessions").map_err(ViewError::at("open the sealed .sessions"))?;
            mkdirat(&sealed, name, FOLDER).map_err(ViewError::at("make the private folder's mount point"))?;
            let target = self.inside(&WorkspacePath::ROOT.join(SESSIONS.as_bytes()).unwrap_or_default())?;
            attach(bind(sealed, true).map_err(ViewError::at("bind the sealed .sessions"))?, target)
                .map_err(ViewError::at("attach the sealed .sessions"))?;
        }
        Ok(())
    }

    /// Folders and empty mount points for exactly the paths of the plan.
    fn skeleton(&mut self, plan: &Plan) -> Result<(), ViewError> {
        let root = handle(&self.tree, WORKSPACE).map_err(ViewError::at("open the workspace mount point"))?;
        let own = Bind { path: plan.own.clone(), access: Access::Write, absent: IfAbsent::Create };
        for Bind { path, absent, .. } in plan.binds.iter().chain([&own]) {
            if plan.binds.iter().any(|bind| path != &bind.path && path.is_within(&bind.path)) {
                continue; // its mount point lies in a bound folder
            }
            let bytes = path.to_bytes();
            let kind = match statat(self.workspace, bytes.as_slice(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => FileType::from_raw_mode(stat.st_mode),
                // Not even its mount point may hint at it.
                Err(_) if *absent == IfAbsent::Skip => continue,
                Err(_) => FileType::Directory,
            };
            for folder in path.ancestors() {
                mkdir(&root, &folder.to_bytes()).map_err(ViewError::at(format!("make the way to {path}")))?;
            }
            let made = if kind == FileType::Directory {
                mkdir(&root, &bytes)
            } else {
                mknodat(&root, bytes.as_slice(), FileType::RegularFile, Mode::from_raw_mode(0o444), 0)
            };
            made.map_err(ViewError::at(format!("make the mount point of {path}")))?;
        }
        Ok(())
    }

    /// Opens what a bind shows; `None` if it is absent and may be.
    fn source(&mut self, bind: &Bind) -> Result<Option<OwnedFd>, ViewError> {
        let path = &bind.path;
        let mut opened = handle(self.workspace, path.to_bytes());
        if matches!((&opened, bind.absent), (Err(Errno::NOENT), IfAbsent::Create)) {
            opened = self.identity.act(|| make_folders(self.workspace, path));
        }
        let source = match (opened, bind.absent) {
            (Ok(source), _) => source,
            (Err(Errno::NOENT), IfAbsent::Skip) => {
                self.sources.push(Source { path: path.to_bytes(), identity: None });
                return Ok(None);
            }
            (Err(Errno::NOENT), _) => {
                return Err(ViewError::Scope(format!(
                    "file_access: read path {path:?} lies in a writable path and does not exist, so it cannot be protected; create it first"
                )));
            }
            (Err(Errno::LOOP), _) => return Err(ViewError::Scope(self.name_the_link(path))),
            (Err(Errno::NOTDIR), _) => {
                return Err(ViewError::Scope(format!("file_access: a parent of {path:?} is a file, not a folder")));
            }
            (Err(errno), _) => {
                return Err(ViewError::Kernel { step: format!("open {path:?} in the workspace"), errno });
            }
        };
        let stat = rustix::fs::fstat(&source).map_err(ViewError::at(format!("stat {path:?}")))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory | FileType::RegularFile => {}
            FileType::Symlink => return Err(ViewError::Scope(self.name_the_link(path))),
            _ => return Err(ViewError::Scope(format!("file_access: {path:?} is neither a file nor a folder"))),
        }
        self.sources.push(Source { path: path.to_bytes(), identity: Some((stat.st_dev, stat.st_ino)) });
        Ok(Some(source))
    }

    fn name_the_link(&self, path: &WorkspacePath) -> String {
        let link = path.ancestors().chain([path.clone()]).find(|prefix| {
            statat(self.workspace, prefix.to_bytes(), rustix::fs::AtFlags::SYMLINK_NOFOLLOW)
                .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        });
        let link = link.unwrap_or_else(|| path.clone());
        format!("file_access: {link:?} is a symbolic link; name the folder that it points to instead")
    }

    fn place(&self, path: &WorkspacePath, source: OwnedFd, access: Access) -> Result<(), ViewError> {
        let mount = bind(source, access == Access::Read).map_err(ViewError::at(format!("bind {path:?}")))?;
        attach(mount, self.inside(path)?).map_err(ViewError::at(format!("attach {path:?}")))
    }

    /// A mount point, reached through what is already attached.
    fn inside(&self, path: &WorkspacePath) -> Result<OwnedFd, ViewError> {
        let mut full = WORKSPACE.as_bytes().to_vec();
        full.push(b'/');
        full.extend(path.to_bytes());
        handle(&self.tree, full).map_err(ViewError::at(format!("reach {path:?} in the view")))
    }
}

fn mkdir(root: impl AsFd, path: &[u8]) -> rustix::io::Result<()> {
    match mkdirat(root, path, FOLDER) {
        Err(Errno::EXIST) => Ok(()),
        other => other,
    }
}

/// Gives the owner back what a session may have taken away from the folders
/// that every session needs. Without success where they are not there yet.
pub(crate) fn restore_modes(workspace: &OwnedFd) {
    for path in [".", MEMORY, SESSIONS] {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let Ok(handle) = openat2(workspace, path, flags, Mode::empty(), STRICT) else { continue };
        let shut = rustix::fs::fstat(&handle).is_ok_and(|stat| Mode::from_raw_mode(stat.st_mode) & FOLDER != FOLDER);
        if shut {
            let own = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&handle));
            let _ = rustix::fs::chmod(own, FOLDER);
        }
    }
}

/// Makes the folders of `path` one by one, each through the one above it.
pub(crate) fn make_folders(root: impl AsFd, path: &WorkspacePath) -> rustix::io::Result<OwnedFd> {
    let mut at = openat2(root, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), STRICT)?;
    for name in path.components() {
        mkdir(&at, name)?;
        at = openat2(&at, name, OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY, Mode::empty(), STRICT)?;
    }
    Ok(at)
}
