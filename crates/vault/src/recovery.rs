//! Keys for the day on which the vault's key is lost: the root key is closed for
//! each with its public half as well. Their private halves are kept offline.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::VaultError;
use crate::key::{Key, NotOpened, SealingKey, hex, unhex};
use crate::place::Place;

const PUBLIC: &str = "cloister-recovery-public-";
const PRIVATE: &str = "cloister-recovery-private-";

/// The public half of a recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Recipient(SealingKey);

/// A text that is no recovery key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a recovery key is what `cloister vault recovery-key` prints")]
pub struct NoRecoveryKey;

impl fmt::Display for Recipient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PUBLIC}{}", hex(self.0.bytes()))
    }
}

impl From<Recipient> for String {
    fn from(recipient: Recipient) -> Self {
        recipient.to_string()
    }
}

impl TryFrom<String> for Recipient {
    type Error = NoRecoveryKey;

    fn try_from(text: String) -> Result<Self, NoRecoveryKey> {
        text.parse()
    }
}

impl FromStr for Recipient {
    type Err = NoRecoveryKey;

    fn from_str(text: &str) -> Result<Self, NoRecoveryKey> {
        let bytes = text.trim().strip_prefix(PUBLIC).and_then(unhex).ok_or(NoRecoveryKey)?;
        SealingKey::from_bytes(&bytes).map(Self).map_err(|_| NoRecoveryKey)
    }
}

/// A new recovery key: the public half, and the text to keep offline.
///
/// # Errors
/// There is no randomness.
pub fn make() -> Result<(Recipient, Zeroizing<String>), NotOpened> {
    let key = Key::random()?;
    let text = Zeroizing::new(format!("{PRIVATE}{}", *Zeroizing::new(hex(key.bytes()))));
    Ok((Recipient(key.sealing_key()?), text))
}

fn private(text: &str) -> Result<Key, NoRecoveryKey> {
    let digits = text.trim().strip_prefix(PRIVATE).ok_or(NoRecoveryKey)?;
    let bytes = Zeroizing::new(unhex(digits).ok_or(NoRecoveryKey)?);
    Key::from_bytes(&bytes).map_err(|_| NoRecoveryKey)
}

fn about(tenant: &str) -> Vec<u8> {
    format!("cloister-vault/1\nrecovery\n{tenant}").into_bytes()
}

/// Under which a closed root key is kept: one for another root or another
/// recipient is another one.
fn name(recipient: &Recipient, root: &Key) -> String {
    let tag = root.derive("recovery-tag", recipient.0.bytes()).mac(b"");
    format!("recovery:{}:{}", &hex(digest(&SHA256, recipient.0.bytes()).as_ref())[..16], &hex(&tag)[..16])
}

/// Do these recipients, and no others, have the root key?
pub(crate) fn is_kept(db: &Connection, recipients: &[Recipient], root: &Key) -> Result<bool, VaultError> {
    let mut wanted: Vec<String> = recipients.iter().map(|recipient| name(recipient, root)).collect();
    wanted.sort();
    wanted.dedup();
    let mut statement = db.prepare("SELECT key FROM meta WHERE key LIKE 'recovery:%' ORDER BY key")?;
    let kept: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    Ok(kept == wanted)
}

/// Closes the root key for these recipients, and for no others.
pub(crate) fn keep(db: &Connection, recipients: &[Recipient], root: &Key, tenant: &str) -> Result<(), VaultError> {
    db.execute("DELETE FROM meta WHERE key LIKE 'recovery:%'", [])?;
    for recipient in recipients {
        let sealed = recipient.0.seal(&about(tenant), root.bytes())?;
        db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", params![name(recipient, root), sealed])?;
    }
    Ok(())
}

/// The root key, opened with the private half of a recovery key.
pub(crate) fn open(db: &Connection, text: &str, tenant: &str) -> Result<Key, VaultError> {
    let key = private(text)?;
    let mut statement = db.prepare("SELECT value FROM meta WHERE key LIKE 'recovery:%'")?;
    let sealed: Vec<Vec<u8>> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let opened = sealed.iter().find_map(|sealed| key.unseal(&about(tenant), sealed).ok()).ok_or(NotOpened)?;
    Ok(Key::from_bytes(&opened)?)
}

/// Closes the root key with the present key file, which is made if there is none,
/// by means of a recovery key, once it is `written` down. The vault must not be running.
///
/// # Errors
/// It is not a recovery key of this vault's, or the data was changed by hand.
pub fn recover(place: &Place, text: &str, written: impl FnOnce() -> std::io::Result<()>) -> Result<(), VaultError> {
    drop(place.lock(true)?);
    crate::root::rewrap_root(place, |db| {
        let root = open(db, text, &place.tenant)?;
        written()?;
        Ok(root)
    })
}
