//! Reading a file or a folder.

use std::fs::File;

use cloister_types::WorkspacePath;
use rustix::fs::{FileType, OFlags, fstat};

use super::{Entry, FileError, Result, View, kind, modified, reopen, tag};

/// A regular file, open for reading at its start.
#[derive(Debug)]
pub struct Opened {
    /// The file.
    pub file: File,
    /// Bytes at the time of opening.
    pub size: u64,
    /// Unix seconds.
    pub modified: f64,
    /// Strong validator, quoted as in the `ETag` header.
    pub tag: String,
}

/// What a path turned out to be.
#[derive(Debug)]
pub enum Found {
    /// A file.
    File(Opened),
    /// A folder, listed.
    Folder(Vec<Entry>),
}

impl View {
    /// Opens a file or lists a folder.
    ///
    /// # Errors
    /// FIFOs, sockets and devices are [`FileError::WrongKind`]: never opened.
    pub fn read(&self, path: &WorkspacePath) -> Result<Found> {
        self.act(|| {
            let handle = self.open(path, OFlags::PATH)?;
            let stat = fstat(&handle)?;
            match kind(&stat) {
                FileType::Directory => self.list_open(path).map(Found::Folder),
                FileType::RegularFile => {
                    let file = File::from(reopen(&handle, OFlags::RDONLY)?);
                    Ok(Found::File(Opened {
                        file,
                        size: stat.st_size.cast_unsigned(),
                        modified: modified(&stat),
                        tag: tag(&stat),
                    }))
                }
                _ => Err(FileError::WrongKind),
            }
        })
    }

    /// Reads the start of a small file of the workspace; `None` if it is not
    /// a regular file or longer than `limit`.
    ///
    /// # Errors
    /// As for [`View::read`].
    pub fn read_small(&self, path: &WorkspacePath, limit: u64) -> Result<Option<Vec<u8>>> {
        let Found::File(opened) = self.read(path)? else { return Ok(None) };
        if opened.size > limit {
            return Ok(None);
        }
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(opened.file, limit + 1), &mut content)?;
        Ok((content.len() as u64 <= limit).then_some(content))
    }
}
