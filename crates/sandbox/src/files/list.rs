//! Listing a folder.

use std::time::{Duration, Instant};

use cloister_types::WorkspacePath;
use cloister_types::wire::FileType as Kind;
use rustix::fs::{AtFlags, Dir, FileType, OFlags, fstat, statat};
use rustix::io::Errno;

use super::{FileError, Result, View, kind, modified};

/// Most entries of one listing; a longer folder is an error, not a silent cut.
const MAX_ENTRIES: usize = 200_000;
/// How long links of one listing may take to be resolved: chains of them can
/// be made as slow as anybody likes. The rest are shown as links.
const LINKS: Duration = Duration::from_millis(200);

/// One name in a folder.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// The name's bytes.
    pub name: Vec<u8>,
    /// The kind; of a link, the kind of what it leads to in this view.
    pub kind: Kind,
    /// Is the name a link?
    pub link: bool,
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
        let began = Instant::now();
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
            // What vanished meanwhile is left out.
            let Ok(mut stat) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let link = kind(&stat) == FileType::Symlink;
            if link && began.elapsed() < LINKS {
                // Through the view, where links mean what they mean inside.
                let target = path.join(name).ok().and_then(|path| self.open(&path, OFlags::PATH).and_then(fstat).ok());
                stat = target.unwrap_or(stat);
            }
            let (kind, size) = match kind(&stat) {
                FileType::Directory => (Kind::Directory, 0),
                FileType::RegularFile => (Kind::File, stat.st_size.cast_unsigned()),
                FileType::Symlink => (Kind::Symlink, 0),
                _ => (Kind::Other, 0),
            };
            entries.push(Entry { name: name.to_vec(), kind, link, size, modified: modified(&stat) });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }
}
