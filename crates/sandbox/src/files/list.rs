//! Listing a folder.

use cloister_types::WorkspacePath;
use cloister_types::wire::FileType as Kind;
use rustix::fs::{Dir, FileType, OFlags, fstat};
use rustix::io::Errno;

use super::{FileError, Result, View, kind, modified};

/// Most entries of one listing; a longer folder is an error, not a silent cut.
const MAX_ENTRIES: usize = 200_000;

/// One name in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name's bytes.
    pub name: Vec<u8>,
    /// The kind; of a link, the kind of what it leads to in this view.
    pub kind: Kind,
    /// Bytes; 0 for anything but a file.
    pub size: u64,
    /// Unix seconds.
    pub modified: f64,
}

impl View {
    /// Lists a folder, by name in byte order.
    ///
    /// # Errors
    /// [`FileError::WrongKind`] if it is not a folder.
    pub fn list(&self, path: &WorkspacePath) -> Result<Vec<Entry>> {
        self.act(|| {
            let stat = fstat(self.open(path, OFlags::PATH)?)?;
            if kind(&stat) == FileType::Directory { self.list_open(path) } else { Err(FileError::WrongKind) }
        })
    }

    pub(super) fn list_open(&self, path: &WorkspacePath) -> Result<Vec<Entry>> {
        let folder = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK)?;
        let mut entries = Vec::new();
        for item in Dir::read_from(&folder)? {
            let item = item?;
            let name = item.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            if entries.len() == MAX_ENTRIES {
                return Err(FileError::Io(Errno::OVERFLOW));
            }
            // Through the view again: mounts and links mean what they mean to
            // the agent. What vanished meanwhile is left out.
            let child = path.join(name).map_err(|_| FileError::BadName)?;
            let stat = match self.open(&child, OFlags::PATH) {
                Ok(handle) => fstat(handle)?,
                Err(_) => match self.open(&child, OFlags::PATH | OFlags::NOFOLLOW) {
                    Ok(handle) => fstat(handle)?,
                    Err(_) => continue,
                },
            };
            let (kind, size) = match kind(&stat) {
                FileType::Directory => (Kind::Directory, 0),
                FileType::RegularFile => (Kind::File, stat.st_size.cast_unsigned()),
                FileType::Symlink => (Kind::Symlink, 0),
                _ => (Kind::Other, 0),
            };
            entries.push(Entry { name: name.to_vec(), kind, size, modified: modified(&stat) });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}
