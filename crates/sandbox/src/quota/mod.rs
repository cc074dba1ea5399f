//! What the workspace may hold, where the kernel itself keeps no account: one
//! process, the *meter*, counts, answers the file API before bytes are taken,
//! and tells supervisors whose agents fill it up.
//!
//! ```text
//! server     --Reserve--> meter --Granted, Full-->  server       (file API)
//! supervisor --Busy-----> meter --Full-----------> supervisor   (agents: those that write are stopped)
//! ```
//!
//! The meter belongs to the spawner and outlives the server as supervisors do.

mod gauge;
mod grant;
pub(crate) mod meter;
pub(crate) mod storage;
mod usage;

use std::os::fd::OwnedFd;

pub(crate) use self::grant::Asker;
pub use self::grant::{Grant, NoRoom};

use serde::{Deserialize, Serialize};

use crate::protocol;

/// What all sessions of a tenant may keep in the workspace together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Allowance {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files, folders and links.
    pub files: u64,
    /// Bytes that stay free on the workspace's disk, for everything else that
    /// lives there; never more than a twentieth of it.
    pub free_bytes: u64,
}

impl Default for Allowance {
    /// 100 GB, as the contract says (section 3.3).
    fn default() -> Self {
        Self { bytes: 100_000_000_000, files: 10_000_000, free_bytes: 256 << 20 }
    }
}

/// What there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Amount {
    pub(crate) bytes: u64,
    pub(crate) files: u64,
}

impl Amount {
    fn plus(self, other: Self) -> Self {
        let (bytes, files) = (self.bytes.saturating_add(other.bytes), self.files.saturating_add(other.files));
        Self { bytes, files }
    }

    fn minus(self, other: Self) -> Self {
        let (bytes, files) = (self.bytes.saturating_sub(other.bytes), self.files.saturating_sub(other.files));
        Self { bytes, files }
    }

    /// Is it as much in anything?
    fn exceeds(self, other: Self) -> bool {
        self.bytes >= other.bytes || self.files >= other.files
    }
}

/// Why nothing more can be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Full {
    /// Bytes.
    #[error("the workspace holds {used} bytes of at most {limit}; delete something to go on")]
    Bytes {
        /// In it.
        used: u64,
        /// Allowed.
        limit: u64,
    },
    /// Files.
    #[error("the workspace holds {used} files and folders of at most {limit}; delete some to go on")]
    Files {
        /// In it.
        used: u64,
        /// Allowed.
        limit: u64,
    },
    /// The disk itself, whatever it is that fills it.
    #[error("the server's disk has {free} bytes left, and {kept} are kept free")]
    Disk {
        /// Free.
        free: u64,
        /// Kept.
        kept: u64,
    },
}

/// To the meter.
#[derive(Debug, Serialize, Deserialize)]
enum Word {
    /// Told of a full workspace, whether any program was seen to write.
    Found(bool),
    /// Whoever says it has programs at work that may write, or none any more.
    Busy(bool),
    /// May so much more be written? Always answered.
    Reserve(Amount),
    /// What was granted to an upload is needed no more: it is in place, or given
    /// up.
    Settle { granted: Amount, kept: bool },
}

/// From the meter.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Said {
    /// The answer to `Reserve`.
    Granted,
    /// The answer to `Reserve`; to the busy, that it has become so. `stage`: how
    /// often in a row it has grown without anybody being seen to write.
    Full { why: Full, stage: u32 },
}

/// The meter, for whoever writes.
#[derive(Debug)]
pub(crate) struct Meter(pub(crate) OwnedFd);

impl Meter {
    /// Says whether programs are at work.
    pub(crate) fn busy(&self, busy: bool) -> std::io::Result<()> {
        protocol::send(&self.0, &Word::Busy(busy), &[])
    }

    /// Says whether a program was seen to write, after it was told that the
    /// workspace is full.
    pub(crate) fn found(&self, wrote: bool) -> std::io::Result<()> {
        protocol::send(&self.0, &Word::Found(wrote), &[])
    }

    /// What it says next.
    pub(crate) fn hear(&self) -> std::io::Result<Said> {
        let said = protocol::receive::<Said>(&self.0)?;
        said.map(|(said, _)| said).ok_or_else(|| std::io::ErrorKind::UnexpectedEof.into())
    }

    /// Asks for room.
    pub(crate) fn reserve(&self, more: Amount) -> std::io::Result<Result<(), Full>> {
        protocol::send(&self.0, &Word::Reserve(more), &[])?;
        Ok(match self.hear()? {
            Said::Granted => Ok(()),
            Said::Full { why, .. } => Err(why),
        })
    }

    /// Gives back what was granted.
    pub(crate) fn settle(&self, granted: Amount, kept: bool) -> std::io::Result<()> {
        protocol::send(&self.0, &Word::Settle { granted, kept }, &[])
    }
}
