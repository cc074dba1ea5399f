//! The key of the hashes under which API keys are kept. It lies beside the
//! database and not in it: whoever has the one alone can try no key out.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use aws_lc_rs::hmac;
use cloister_types::key::ApiKey;

use crate::Result;

/// Where it is, for a database.
#[must_use]
pub fn pepper_of(database: &Path) -> PathBuf {
    let mut name = database.as_os_str().to_owned();
    name.push("-pepper");
    PathBuf::from(name)
}

pub(crate) struct Pepper(hmac::Key);

impl Pepper {
    /// Reads it; makes it if there is none.
    pub(crate) fn open(database: &Path) -> Result<Self> {
        let path = pepper_of(database);
        let mut fresh = [0; 32];
        aws_lc_rs::rand::fill(&mut fresh).map_err(|_| std::io::Error::other("no randomness"))?;
        match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path) {
            Ok(mut file) => file.write_all(&fresh).and_then(|()| file.sync_all())?,
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error.into()),
        }
        let bytes = std::fs::read(&path)?;
        if bytes.len() != fresh.len() {
            return Err(std::io::Error::other(format!("{} is not what was written", path.display())).into());
        }
        Ok(Self(hmac::Key::new(hmac::HMAC_SHA256, &bytes)))
    }

    /// What a key is kept as.
    pub(crate) fn hash(&self, key: &ApiKey) -> Vec<u8> {
        self.hash_of(key.reveal())
    }

    /// What another secret is kept as. What it begins with keeps kinds apart; no
    /// key begins like it.
    pub(crate) fn hash_of(&self, text: &str) -> Vec<u8> {
        hmac::sign(&self.0, text.as_bytes()).as_ref().to_vec()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
