//! Deleting.

use cloister_types::WorkspacePath;
use rustix::fs::{AtFlags, FileType, OFlags, StatVfsMountFlags, fstat, fstatvfs, unlinkat};
use rustix::io::Errno;

use super::{Condition, FileError, Result, View, is_mount_root, kind, tag};

impl View {
    /// Deletes a file, a link or an empty folder.
    ///
    /// # Errors
    /// [`FileError::NotEmpty`] for a folder that holds something,
    /// [`FileError::Pinned`] for a path that the scope names.
    pub fn remove(&self, path: &WorkspacePath, condition: &Condition) -> Result<()> {
        self.act(|| {
            let handle = self.open(path, OFlags::PATH | OFlags::NOFOLLOW)?;
            let stat = fstat(&handle)?;
            if !condition.holds(Some(&tag(&stat))) {
                return Err(FileError::Precondition);
            }
            let (folder, name) = self.parent(path)?;
            // Inside, the kernel itself answers EBUSY. From here it would let
            // the mount point go, because it is not one in our namespace.
            if is_mount_root(&handle)? {
                let sealed = fstatvfs(&folder)?.f_flag.contains(StatVfsMountFlags::RDONLY);
                return Err(if sealed { FileError::ReadOnly } else { FileError::Pinned });
            }
            let flags = if kind(&stat) == FileType::Directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            match unlinkat(&folder, name, flags) {
                // The skeleton's own folders are visible, hence read-only.
                Err(Errno::ROFS) => Err(FileError::ReadOnly),
                other => Ok(other?),
            }
        })
    }
}
