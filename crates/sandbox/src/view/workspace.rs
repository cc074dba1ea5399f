//! The workspace part of a view: what the session's scope makes visible.
//!
//! The result is a detached tree whose `/opt/sandbox/workspace` is the
//! workspace as the session sees it. The file API opens through this tree; a
//! sandbox gets a clone of it. Rooting it above the workspace makes absolute
//! links and `..` mean the same to both.

use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};

use cloister_types::path::WorkspacePath;
use cloister_types::scope::{Access, MEMORY, SESSIONS};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, StatxAttributes, StatxFlags, mkdirat, mknodat, openat2, statat, statx,
};
use rustix::io::Errno;

use super::ViewError;
use super::base::PLAIN;
use super::mounts::{STRICT, attach, bind, clone_mount, handle, tmpfs};
use super::places::Places;
use super::site::{Site, Tree};
use crate::identity::Identity;
use crate::plan::{Bind, IfAbsent, Plan, Root};
use crate::protocol::Source;
use crate::{WORKSPACE, sys};

pub(super) const FOLDER: Mode = Mode::from_raw_mode(0o755);

/// A built view.
pub(crate) struct Built {
    pub(crate) tree: Tree,
    /// What was bound, to notice later that it was replaced.
    pub(crate) sources: Vec<Source>,
    /// It has mount points in folders that can be changed.
    pub(crate) pinned: bool,
}

/// What all sessions with one scope have in common: the view without anybody's
/// private folder.
pub(super) struct Template {
    tree: Tree,
    sources: Vec<Source>,
    /// It shows folders alone. A file that is deleted would be kept on the disk
    /// by a tree that is.
    folders: bool,
    /// It has mount points in folders that can be changed.
    pinned: bool,
}

impl Template {
    /// Mounts that it takes.
    pub(super) fn mounts(&self) -> usize {
        self.sources.len() + 1
    }

    pub(super) fn may_be_kept(&self) -> bool {
        self.folders
    }

    /// Would it be built of the same things now?
    pub(super) fn is_fresh(&self, workspace: &OwnedFd) -> bool {
        let Ok(shown) = handle(&self.tree, WORKSPACE) else { return false };
        self.sources.iter().all(|source| {
            let now = statat(workspace, source.path.as_slice(), AtFlags::SYMLINK_NOFOLLOW);
            source.identity == now.ok().map(|stat| (stat.st_dev, stat.st_ino)) && still_shows(&shown, source)
        })
    }

    pub(super) fn build(site: &Site, workspace: &OwnedFd, plan: &Plan, identity: Identity) -> Result<Self, ViewError> {
        let inodes = (64 + 2 * plan.binds.iter().map(|bind| bind.path.components().len()).sum::<usize>()).to_string();
        let tree = tmpfs(&[("size", "4m"), ("nr_inodes", &inodes), ("mode", "0755")], PLAIN)
            .and_then(|tree| site.stand(tree))
            .map_err(ViewError::at("make the skeleton (tmpfs)"))?;
        for folder in ["opt", "opt/sandbox", WORKSPACE] {
            mkdirat(&tree, folder, FOLDER).map_err(ViewError::at(format!("make /{folder}")))?;
        }
        let pinned = plan.has_mounts_in_mounts();
        let mut builder = Builder { workspace, tree, identity, sources: Vec::new(), folders: true };
        match plan.root {
            Root::Workspace(access) => builder.whole_workspace(access)?,
            Root::Skeleton => builder.skeleton(plan)?,
        }
        for bind in &plan.binds {
            if let Some(source) = builder.source(bind)? {
                builder.place(&bind.path, source, bind.access)?;
            }
        }
        // From here on nobody adds a name to the skeleton.
        sys::set_mount_attributes(&builder.tree, sys::ATTR_RDONLY, false)
            .map_err(ViewError::at("seal the skeleton"))?;
        Ok(Self { tree: builder.tree, sources: builder.sources, folders: builder.folders, pinned })
    }

    /// The view of one session: a clone, and in it a sealed `.sessions` that
    /// holds the private folder and nothing else.
    pub(super) fn view(
        &self,
        site: &Site,
        own: &WorkspacePath,
        source: OwnedFd,
        places: &mut Places,
    ) -> Result<Built, ViewError> {
        let at = |what: &str| ViewError::at(format!("{what} .sessions"));
        let tree = clone_mount(&self.tree, true).and_then(|tree| site.stand(tree));
        let tree = tree.map_err(ViewError::at("clone the view"))?;
        let (_, name) = own.split_last().ok_or_else(|| ViewError::Scope("a session without a name".into()))?;
        let identity = Some(identity_of(&source).map_err(at("look into"))?);
        // A tree of its own until it is sealed: a part takes no more attributes.
        let sealed = site.stand(places.take(site, name)?).map_err(at("place"))?;
        let inside = handle(&sealed, name).map_err(at("open"))?;
        attach(bind(source, false).map_err(at("bind the private folder in"))?, inside).map_err(at("attach in"))?;
        sys::set_mount_attributes(&sealed, sys::ATTR_RDONLY, false).map_err(at("seal"))?;
        let target = handle(&tree, format!("{WORKSPACE}/{SESSIONS}")).map_err(at("reach"))?;
        attach(&sealed, target).map_err(at("attach"))?;
        let mut sources = self.sources.clone();
        sources.push(Source { path: own.to_bytes(), identity });
        Ok(Built { tree, sources, pinned: self.pinned })
    }
}

/// Does a view, whose workspace this is, still have the mount of a source? Whoever removes the folder that
/// something is mounted on takes the mount away, in every view; and a folder
/// that is made in its place may have the same inode.
pub(crate) fn still_shows(shown: impl AsFd, source: &Source) -> bool {
    let Some(identity) = source.identity else { return true };
    let mut flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    flags.set(AtFlags::EMPTY_PATH, source.path.is_empty());
    statx(shown, source.path.as_slice(), flags, StatxFlags::INO).is_ok_and(|stat| {
        let device = rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor);
        (device, stat.stx_ino) == identity && stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT)
    })
}

fn identity_of(source: &OwnedFd) -> rustix::io::Result<(u64, u64)> {
    let stat = rustix::fs::fstat(source)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Makes the writable paths that are absent, before anything is looked at: a
/// readable path above one of them is there then. What cannot be made is
/// reported when it is bound.
pub(super) fn make_writable(workspace: &OwnedFd, plan: &Plan, identity: Identity) {
    for Bind { path, .. } in plan.binds.iter().filter(|bind| bind.absent == IfAbsent::Create) {
        if matches!(handle(workspace, path.to_bytes()), Err(Errno::NOENT)) {
            let _ = identity.act(|| make_folders(workspace, path));
        }
    }
}

struct Builder<'a> {
    workspace: &'a OwnedFd,
    tree: Tree,
    identity: Identity,
    sources: Vec<Source>,
    folders: bool,
}

impl Builder<'_> {
    /// The workspace itself as the mount point. What its `.sessions` holds is
    /// covered in each view.
    fn whole_workspace(&mut self, access: Access) -> Result<(), ViewError> {
        let target = handle(&self.tree, WORKSPACE).map_err(ViewError::at("open the workspace mount point"))?;
        let mount = bind(self.workspace, access == Access::Read).map_err(ViewError::at("bind the workspace"))?;
        attach(mount, target).map_err(ViewError::at("attach the workspace"))
    }

    /// Folders and empty mount points for exactly the paths of the plan.
    fn skeleton(&mut self, plan: &Plan) -> Result<(), ViewError> {
        let root = handle(&self.tree, WORKSPACE).map_err(ViewError::at("open the workspace mount point"))?;
        mkdir(&root, SESSIONS.as_bytes()).map_err(ViewError::at("make the place of .sessions"))?;
        let bound: HashSet<&WorkspacePath> = plan.binds.iter().map(|bind| &bind.path).collect();
        for Bind { path, absent, .. } in &plan.binds {
            if path.ancestors().any(|above| bound.contains(&above)) {
                continue; // its mount point lies in a bound folder
            }
            let bytes = path.to_bytes();
            let kind = match statat(self.workspace, bytes.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
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
            (Err(Errno::ACCESS | Errno::PERM), _) => {
                return Err(ViewError::Scope(format!(
                    "file_access: {path:?} cannot be made: the mode of a folder above it denies it"
                )));
            }
            (Err(Errno::NAMETOOLONG), _) => {
                return Err(ViewError::Scope(format!(
                    "file_access: {path:?} has a name longer than a file system holds"
                )));
            }
            (Err(errno), _) => {
                return Err(ViewError::Kernel { step: format!("open {path:?} in the workspace"), errno });
            }
        };
        let stat = rustix::fs::fstat(&source).map_err(ViewError::at(format!("stat {path:?}")))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {}
            FileType::RegularFile => self.folders = false,
            FileType::Symlink => return Err(ViewError::Scope(self.name_the_link(path))),
            _ => return Err(ViewError::Scope(format!("file_access: {path:?} is neither a file nor a folder"))),
        }
        self.sources.push(Source { path: path.to_bytes(), identity: Some((stat.st_dev, stat.st_ino)) });
        Ok(Some(source))
    }

    fn name_the_link(&self, path: &WorkspacePath) -> String {
        let link = path.ancestors().chain([path.clone()]).find(|prefix| {
            statat(self.workspace, prefix.to_bytes(), AtFlags::SYMLINK_NOFOLLOW)
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
