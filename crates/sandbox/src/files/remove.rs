//! Deleting.

use std::os::fd::{AsFd, OwnedFd};

use cloister_types::WorkspacePath;
use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, StatVfsMountFlags, fchmod, fstat, fstatvfs, openat, renameat, unlinkat,
};
use rustix::io::Errno;

use super::{Condition, FileError, Result, View, is_mount_root, kind, reopen, tag};

impl View {
    /// Deletes a file, a link or an empty folder.
    ///
    /// # Errors
    /// [`FileError::NotEmpty`] for a folder that holds something,
    /// [`FileError::Pinned`] for a path that the scope names.
    pub fn remove(&self, path: &WorkspacePath, condition: &Condition) -> Result<()> {
        self.act(|| {
            // The folder is resolved once; everything else happens in it. A
            // second walk could be led elsewhere by a link that the agent
            // turns in between.
            let (folder, name) = self.parent(path)?;
            let stat = {
                let handle = entry(&folder, name)?;
                let stat = fstat(&handle)?;
                if !condition.holds(Some(&tag(&stat))) {
                    return Err(FileError::Precondition);
                }
                refuse_mount(&folder, &handle)?;
                stat
            };
            let flags = if kind(&stat) == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            match unlinkat(&folder, name, flags) {
                // The skeleton's own folders are visible, hence read-only.
                Err(Errno::ROFS) => Err(FileError::ReadOnly),
                other => Ok(other?),
            }
        })
    }
}

/// A handle of one name in an open folder, not followed.
pub(super) fn entry(folder: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    openat(folder, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

/// Refuses to touch a mount point. Inside, the kernel itself answers EBUSY;
/// from here it would let the mount go, because it is not one in our own
/// namespace. The mounts of a view never change, so this cannot be raced.
pub(super) fn refuse_mount(folder: &OwnedFd, handle: impl AsFd) -> Result<()> {
    if !is_mount_root(handle)? {
        return Ok(());
    }
    let sealed = fstatvfs(folder)?.f_flag.contains(StatVfsMountFlags::RDONLY);
    Err(if sealed { FileError::ReadOnly } else { FileError::Pinned })
}

/// Rights without which a folder cannot be emptied.
const OPEN: Mode = Mode::from_raw_mode(0o700);

/// Removes a whole tree that a hostile agent may have built: of any depth,
/// with any modes, links never followed. Sub-folders are moved up into `root`
/// instead of being walked into, so neither stack nor descriptors grow.
pub(crate) fn remove_tree(parent: impl AsFd, name: &[u8]) -> rustix::io::Result<()> {
    let parent = parent.as_fd().try_clone_to_owned().map_err(|_| Errno::MFILE)?;
    let root = match open_folder(&parent, name) {
        Ok(root) => root,
        Err(Errno::NOENT) => return Ok(()),
        Err(errno) => return Err(errno),
    };
    let mut moved: u64 = 0;
    loop {
        let names = names(&root)?;
        if names.is_empty() {
            return unlinkat(&parent, name, AtFlags::REMOVEDIR);
        }
        for name in names {
            if is_folder(&root, &name) {
                let inner = open_folder(&root, &name)?;
                for below in self::names(&inner)? {
                    if is_folder(&inner, &below) {
                        moved += 1;
                        let aside = format!(".removing-{moved}");
                        match renameat(&inner, below.as_slice(), &root, aside.as_str()) {
                            // An agent may have taken the name; the next one is free.
                            Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
                            Err(errno) => return Err(errno),
                        }
                    } else {
                        unlinkat(&inner, below.as_slice(), AtFlags::empty())?;
                    }
                }
                match unlinkat(&root, name.as_slice(), AtFlags::REMOVEDIR) {
                    Ok(()) | Err(Errno::NOTEMPTY) => {}
                    Err(errno) => return Err(errno),
                }
            } else {
                unlinkat(&root, name.as_slice(), AtFlags::empty())?;
            }
        }
    }
}

fn is_folder(folder: &OwnedFd, name: &[u8]) -> bool {
    entry(folder, name).and_then(fstat).is_ok_and(|stat| kind(&stat) == FileType::Directory)
}

/// Opens a folder for emptying, with its mode put right.
fn open_folder(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let handle = entry(parent, name)?;
    let stat = fstat(&handle)?;
    if kind(&stat) != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    if Mode::from_raw_mode(stat.st_mode) & OPEN != OPEN {
        rustix::fs::chmod(proc_path(&handle), OPEN)?;
    }
    let folder = reopen(&handle, OFlags::RDONLY | OFlags::DIRECTORY)?;
    fchmod(&folder, OPEN)?;
    Ok(folder)
}

/// A handle's own path; a handle cannot be changed in any other way.
fn proc_path(handle: &OwnedFd) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}", handle.as_raw_fd())
}

fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for item in Dir::read_from(folder)? {
        let name = item?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn any_tree_goes_and_nothing_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let keep = folder.path().join("keep");
        std::fs::create_dir(&keep).unwrap();
        std::fs::write(keep.join("file"), "x").unwrap();
        let root = folder.path().join("gone");
        std::fs::create_dir(&root).unwrap();
        symlink(&keep, root.join("link")).unwrap();
        std::fs::create_dir_all(root.join("a/b/.removing-1/c")).unwrap();
        std::fs::write(root.join(".removing-1"), "taken").unwrap();
        std::fs::write(root.join("a/b/file"), "x").unwrap();
        std::fs::set_permissions(root.join("a/b"), std::fs::Permissions::from_mode(0o0)).unwrap();
        // Deeper than any path, any stack and any descriptor table.
        let mut deep = OwnedFd::from(std::fs::File::open(&root).unwrap());
        for _ in 0..20_000 {
            rustix::fs::mkdirat(&deep, "d", OPEN).unwrap();
            deep = openat(&deep, "d", OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        let parent = std::fs::File::open(folder.path()).unwrap();
        remove_tree(&parent, b"gone").unwrap();
        assert!(!root.exists() && keep.join("file").exists());
        remove_tree(&parent, b"gone").unwrap();
    }
}
