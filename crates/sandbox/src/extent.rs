//! How much of a spool is surely on disk, in a small file beside it. A spool
//! that is cut or deleted by hand is told by it from one that was never longer.
//!
//! It is written after the spool was synced, and never waited for: it may say
//! less than is true, and no death or power cut makes it say more.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::spool::SpoolError;

/// Name of the file that belongs to a spool.
pub(crate) fn name(spool: &str) -> String {
    format!("{spool}.length")
}

/// The writing side.
pub(crate) struct Extent {
    file: OwnedFd,
}

impl Extent {
    /// Makes the file of a spool that is empty.
    pub(crate) fn create(folder: impl AsFd, spool: &str) -> std::io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(folder, name(spool), flags, Mode::from_raw_mode(0o600))?;
        let extent = Self { file };
        // Takes its block now: on most file systems later writes need no space.
        extent.note(0)?;
        Ok(extent)
    }

    /// So many bytes of the spool are on disk.
    pub(crate) fn note(&self, length: u64) -> std::io::Result<()> {
        // Always of one length, and in one page, which no death divides.
        let line = format!("{length:020}\n");
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.file, line.as_bytes(), 0))?;
        if written == line.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
    }
}

/// Bytes of a spool that were on disk; 0 if nothing is said.
///
/// # Errors
/// [`SpoolError::Length`] for what was not written by [`Extent`].
pub(crate) fn read(folder: &Path, spool: &str) -> Result<u64, SpoolError> {
    let text = match std::fs::read_to_string(folder.join(name(spool))) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => return Err(SpoolError::Length),
        text => text?,
    };
    // Made a moment before a power cut, it may hold nothing yet.
    let digits = text.trim_matches(['\0', '\n']);
    if digits.is_empty() { Ok(0) } else { digits.parse().map_err(|_| SpoolError::Length) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_was_noted_last() {
        let folder = tempfile::tempdir().unwrap();
        let fd = rustix::fs::open(folder.path(), OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let read = || read(folder.path(), "turn.1");
        assert_eq!(read().unwrap(), 0);
        let extent = Extent::create(&fd, "turn.1").unwrap();
        assert_eq!(read().unwrap(), 0);
        for length in [1, u64::MAX, 70_000] {
            extent.note(length).unwrap();
            assert_eq!(read().unwrap(), length);
        }
        for (text, length) in [("", Some(0)), ("\0\0\0", Some(0)), ("nonsense", None), ("12 34\n", None)] {
            std::fs::write(folder.path().join(name("turn.1")), text).unwrap();
            assert_eq!(read().ok(), length, "{text:?}");
        }
    }
}
