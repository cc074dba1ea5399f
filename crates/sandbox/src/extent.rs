//! How long a spool has been, in a small file beside it. A spool that is cut
//! or deleted by hand is told by it from one that was never longer.
//!
//! It is written after every append and never waited for, so it tells what
//! this boot of the machine has seen: after a power cut it says nothing.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::run::boot_id;

/// Name of the file that belongs to a spool.
pub(crate) fn name(spool: &str) -> String {
    format!("{spool}.length")
}

/// The writing side.
pub(crate) struct Extent {
    file: OwnedFd,
    boot: String,
}

impl Extent {
    /// Makes the file of a spool that is empty.
    pub(crate) fn create(folder: impl AsFd, spool: &str) -> std::io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = rustix::fs::openat(folder, name(spool), flags, Mode::from_raw_mode(0o600))?;
        let extent = Self { file, boot: boot_id() };
        // Takes its block now: later writes need no space.
        extent.note(0)?;
        Ok(extent)
    }

    /// The spool has `length` bytes.
    pub(crate) fn note(&self, length: u64) -> std::io::Result<()> {
        // Always of one length, and in one page, which no death divides.
        let line = format!("{} {length:020}\n", self.boot);
        let written = rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.file, line.as_bytes(), 0))?;
        if written == line.len() { Ok(()) } else { Err(std::io::ErrorKind::WriteZero.into()) }
    }
}

/// Bytes that a spool has had in this boot; 0 if nothing is said.
pub(crate) fn read(folder: &Path, spool: &str) -> std::io::Result<u64> {
    let text = match std::fs::read_to_string(folder.join(name(spool))) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        text => text?,
    };
    let parsed = text.trim_end().split_once(' ').and_then(|(boot, length)| Some((boot, length.parse().ok()?)));
    match parsed {
        Some((boot, length)) if boot == boot_id() => Ok(length),
        Some(_) => Ok(0),
        None => Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "a spool's length is unreadable")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_says_what_this_boot_has_written_and_nothing_of_another() {
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
        let file = folder.path().join(name("turn.1"));
        let text = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, text.replace(&boot_id(), "another")).unwrap();
        assert_eq!(read().unwrap(), 0);
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(read().unwrap_err().kind(), std::io::ErrorKind::InvalidData);
    }
}
