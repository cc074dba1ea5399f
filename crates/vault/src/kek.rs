//! The key that the vault's own key is wrapped with. It lies outside the data:
//! whoever has one without the other has nothing.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::key::{Key, hex, unhex};
use crate::kms::{self, Whose};
use crate::place::Place;

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

/// Reads a key file: 64 hexadecimal digits, 32 bytes, or a ciphertext that the
/// key service opens.
pub(crate) fn read(place: &Place, path: &Path) -> Result<Key, KekError> {
    let wrong = |why: String| KekError::File { path: path.to_owned(), why };
    let bytes = Zeroizing::new(std::fs::read(path).map_err(|error| wrong(error.to_string()))?);
    let text = std::str::from_utf8(&bytes).unwrap_or_default().trim();
    if let Some(closed) = text.strip_prefix(kms::MARK) {
        let kms =
            place.kms.as_ref().ok_or_else(|| wrong("a key service closed it: name that in [vault.kms]".into()))?;
        return kms.open(whose(place), closed, place.extra_ca.as_deref()).map_err(wrong);
    }
    let key = match unhex(text).map(Zeroizing::new) {
        Some(key) if key.len() == 32 => Key::from_bytes(&key),
        _ => Key::from_bytes(&bytes),
    };
    key.map_err(|_| wrong("it must hold 64 hexadecimal digits or 32 bytes".into()))
}

/// Makes a key file that only its owner may read, if there is none. A key service,
/// if there is one, closes the key before it is written anywhere.
pub(crate) fn make_if_absent(place: &Place) -> Result<(), KekError> {
    let path = &place.key_file;
    let wrong = |why: String| KekError::File { path: path.clone(), why };
    if path.exists() {
        return Ok(());
    }
    let key = Key::random().map_err(|error| wrong(error.to_string()))?;
    let text = Zeroizing::new(match &place.kms {
        Some(kms) => kms.close(whose(place), &key, place.extra_ca.as_deref()).map_err(wrong)?,
        None => format!("{}\n", *Zeroizing::new(hex(key.bytes()))),
    });
    let mut options = std::fs::OpenOptions::new();
    match options.write(true).create_new(true).mode(0o600).open(path) {
        Ok(mut file) => file.write_all(text.as_bytes()).and_then(|()| file.sync_all()),
        // Another vault was first.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
    .map_err(|error| wrong(error.to_string()))
}

fn whose(place: &Place) -> Whose<'_> {
    Whose { tenant: &place.tenant, region: &place.region }
}
