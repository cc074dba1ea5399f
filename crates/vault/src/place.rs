//! Where the vault's things are.

use std::path::PathBuf;

use rustix::fs::FlockOperation;

use crate::guard;
use crate::kms::Kms;
use crate::recovery::Recipient;

/// Where the vault's things are.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Place {
    /// The tenant's data directory.
    pub data: PathBuf,
    /// The tenant's name.
    pub tenant: String,
    /// The tenant's region; empty if it has none.
    pub region: String,
    /// The key file.
    pub key_file: PathBuf,
    /// The key file before the last change of it.
    pub previous_key_file: Option<PathBuf>,
    /// The service that opens the key file, if that holds a ciphertext.
    pub kms: Option<Kms>,
    /// Authorities to trust for it besides the machine's.
    pub extra_ca: Option<PathBuf>,
    /// Make the key file if there is none.
    pub makes_key: bool,
    /// Who can open the vault if its key is lost.
    pub recovery: Vec<Recipient>,
    /// Where it notes how far it has come; beside the key if none.
    pub guard_file: Option<PathBuf>,
}

impl Place {
    pub(crate) fn database(&self) -> PathBuf {
        self.data.join("vault.db")
    }

    pub(crate) fn audit(&self) -> PathBuf {
        self.data.join("audit.db")
    }

    /// Held by every vault at work on the data; by one alone, for what may not
    /// happen beside another.
    pub(crate) fn lock(&self, alone: bool) -> std::io::Result<std::fs::File> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(self.data.join("vault.lock"))?;
        let flags = if alone { FlockOperation::NonBlockingLockExclusive } else { FlockOperation::LockShared };
        rustix::fs::flock(&file, flags).map_err(|error| match error {
            rustix::io::Errno::WOULDBLOCK => {
                std::io::Error::other("a vault is at work on this data: turns of an earlier server may still run")
            }
            error => error.into(),
        })?;
        Ok(file)
    }

    pub(crate) fn guard(&self) -> PathBuf {
        self.guard_file.clone().unwrap_or_else(|| guard::path_for(&self.key_file))
    }
}
