//! What must not go back: a counter and the end of the audit, written down
//! outside the data, beside the key. A database that is older than that was
//! restored, by its operator or by somebody else.

use std::path::{Path, PathBuf};

use crate::VaultError;
use crate::key::{Key, hex};

pub(crate) struct Guard {
    path: PathBuf,
    key: Key,
    /// It lies in the data directory, and goes back along with it: it says
    /// something while it is there, and its absence says nothing.
    within: bool,
}

/// What was seen last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// Changes of credentials.
    pub(crate) counter: u64,
    /// Records of the audit, and the hash of the last of them.
    pub(crate) audit: (u64, String),
}

impl Guard {
    /// `key` never changes, whatever becomes of the other keys.
    pub(crate) fn new(path: PathBuf, data: &Path, key: &Key) -> Self {
        let within = path.starts_with(data);
        Self { path, key: key.derive("guard", b""), within }
    }

    fn mac(&self, text: &str) -> String {
        hex(&self.key.mac(text.as_bytes()))
    }

    /// Writes down what is now so, whole or not at all.
    pub(crate) fn write(&self, seen: &Seen) -> std::io::Result<()> {
        let text = format!("{} {} {}", seen.counter, seen.audit.0, seen.audit.1);
        let text = format!("{text} {}\n", self.mac(&text));
        if std::fs::read_to_string(&self.path).is_ok_and(|old| old == text) {
            return Ok(());
        }
        // A name that no other vault of the same place uses.
        let mut new = self.path.clone().into_os_string();
        new.push(format!(".{}", std::process::id()));
        std::fs::write(&new, text)?;
        std::fs::File::open(&new)?.sync_all()?;
        std::fs::rename(&new, &self.path)
    }

    /// What was seen last, if it was noted.
    pub(crate) fn read(&self, path: &Path) -> Result<Option<Seen>, VaultError> {
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let damaged = || VaultError::RolledBack(format!("{} is damaged", self.path.display()));
        let (said, mac) = text.trim().rsplit_once(' ').ok_or_else(damaged)?;
        if self.mac(said) != mac {
            return Err(damaged());
        }
        let mut words = said.split(' ');
        let mut next = || words.next().ok_or_else(damaged);
        let number = |word: &str| word.parse().map_err(|_| damaged());
        Ok(Some(Seen { counter: number(next()?)?, audit: (number(next()?)?, next()?.to_owned()) }))
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Fails if what is there is older than what was seen. `hash_at` is the
    /// audit's hash at a place.
    pub(crate) fn check(
        &self,
        seen: Option<Seen>,
        now: &Seen,
        hash_at: impl FnOnce(u64) -> Result<Option<String>, VaultError>,
    ) -> Result<(), VaultError> {
        let Some(seen) = seen else {
            // Nothing was ever kept: there is nothing to go back to.
            return if now.counter == 0 || self.within {
                Ok(())
            } else {
                Err(VaultError::RolledBack(format!("{} is missing", self.path.display())))
            };
        };
        if seen.counter > now.counter {
            return Err(VaultError::RolledBack(format!("change {} of {}", now.counter, seen.counter)));
        }
        if seen.audit.0 > 0 && hash_at(seen.audit.0)?.as_deref() != Some(&seen.audit.1) {
            return Err(VaultError::RolledBack(format!("the audit's record {} is missing or another", seen.audit.0)));
        }
        Ok(())
    }
}

/// Where it is: beside the key.
pub(crate) fn path_for(key_file: &Path) -> PathBuf {
    let mut name = key_file.file_name().unwrap_or_default().to_os_string();
    name.push(".guard");
    key_file.with_file_name(name)
}
