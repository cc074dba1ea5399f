//! The key that the vault's own key is wrapped with. It lies outside the data:
//! whoever has one without the other has nothing.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::key::{Key, hex, unhex};

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KekError {
    /// The file.
    #[error("the vault's key file {}: {why}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
}

/// Reads the key: 64 hexadecimal digits, or 32 bytes.
pub(crate) fn read(path: &Path) -> Result<Key, KekError> {
    let wrong = |why: String| KekError::File { path: path.to_owned(), why };
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| wrong(error.to_string()))?);
    let text = std::str::from_utf8(&bytes).ok().and_then(|text| unhex(text.trim()));
    let key = match &text {
        Some(key) if key.len() == 32 => Key::from_bytes(key),
        _ => Key::from_bytes(&bytes),
    };
    key.map_err(|_| wrong("it must hold 64 hexadecimal digits or 32 bytes".into()))
}

/// Makes a key file that only its owner may read, if there is none.
///
/// # Errors
/// The system's.
pub fn make_if_absent(path: &Path) -> std::io::Result<()> {
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => {
            let key = Key::random().map_err(std::io::Error::other)?;
            let text = Zeroizing::new(format!("{}\n", *Zeroizing::new(hex(key.bytes()))));
            file.write_all(text.as_bytes()).and_then(|()| file.sync_all())
        }
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}
