//! A version of a credential, as stored: closed with a key of its own, about
//! all that says where it may go.

use aws_lc_rs::digest::{SHA256, digest};
use cloister_types::egress::{ConnectionName, SecretKind, VersionRecord, VersionState};
use rusqlite::{Connection, Transaction, params};
use zeroize::Zeroizing;

use crate::VaultError;
use crate::key::{Key, NotOpened, hex};

pub(crate) fn word<T: serde::Serialize>(value: &T) -> Result<String, VaultError> {
    Ok(serde_json::to_value(value)?.as_str().unwrap_or_default().to_owned())
}

fn unword<T: serde::de::DeserializeOwned>(text: String) -> Result<T, VaultError> {
    Ok(serde_json::from_value(serde_json::Value::String(text))?)
}

/// A version as stored.
pub(crate) struct Version {
    pub(crate) name: ConnectionName,
    pub(crate) version: u64,
    pub(crate) kind: SecretKind,
    pub(crate) state: VersionState,
    pub(crate) fingerprint: String,
    pub(crate) created_at: f64,
    pub(crate) sealed: Option<Vec<u8>>,
    pub(crate) token: Option<Vec<u8>>,
}

pub(crate) fn versions(db: &Connection, name: &ConnectionName) -> Result<Vec<Version>, VaultError> {
    let mut statement = db.prepare_cached(
        "SELECT version, kind, state, fingerprint, created_at, sealed, token FROM credential WHERE name = ?1 ORDER BY version",
    )?;
    let mut rows = statement.query([name.as_str()])?;
    let mut found = Vec::new();
    while let Some(row) = rows.next()? {
        found.push(Version {
            name: name.clone(),
            version: row.get::<_, i64>(0)?.cast_unsigned(),
            kind: unword(row.get(1)?)?,
            state: unword(row.get(2)?)?,
            fingerprint: row.get(3)?,
            created_at: row.get(4)?,
            sealed: row.get(5)?,
            token: row.get(6)?,
        });
    }
    Ok(found)
}

impl Version {
    pub(crate) fn record(self) -> VersionRecord {
        let Self { version, kind, state, fingerprint, created_at, .. } = self;
        VersionRecord { version, kind, state, fingerprint, created_at }
    }

    /// A key of its own.
    pub(crate) fn key(&self, root: &Key) -> Key {
        root.derive("record", format!("{}\n{}", self.name, self.version).as_bytes())
    }

    /// All that it is bound to: change any of it, and it does not open.
    pub(crate) fn about(&self, tenant: &str, rules: &str, part: &str) -> Vec<u8> {
        let rules = hex(digest(&SHA256, rules.as_bytes()).as_ref());
        let Self { name, version, kind, fingerprint, created_at, .. } = self;
        format!(
            "cloister-vault/1\n{part}\n{tenant}\n{name}\n{version}\n{}\n{fingerprint}\n{}\n{rules}",
            kind.as_str(),
            created_at.to_bits()
        )
        .into_bytes()
    }

    pub(crate) fn open(&self, root: &Key, tenant: &str, rules: &str) -> Result<Zeroizing<Vec<u8>>, VaultError> {
        let sealed = self.sealed.as_deref().ok_or(NotOpened)?;
        Ok(self.key(root).open(&self.about(tenant, rules, "secret"), sealed)?)
    }

    pub(crate) fn open_token(
        &self,
        root: &Key,
        tenant: &str,
        rules: &str,
    ) -> Result<Option<Zeroizing<Vec<u8>>>, VaultError> {
        let Some(sealed) = self.token.as_deref() else { return Ok(None) };
        // One that was kept under other rules is made anew.
        Ok(self.key(root).open(&self.about(tenant, rules, "token"), sealed).ok())
    }

    pub(crate) fn write(
        &self,
        db: &Transaction<'_>,
        root: &Key,
        tenant: &str,
        rules: &str,
        secret: &[u8],
    ) -> Result<(), VaultError> {
        let sealed = self.key(root).close(&self.about(tenant, rules, "secret"), secret)?;
        db.execute(
            "UPDATE credential SET sealed = ?3 WHERE name = ?1 AND version = ?2",
            params![self.name.as_str(), self.version.cast_signed(), sealed],
        )?;
        Ok(())
    }
}
