//! The seal over the whole database: only who has the root key can change it
//! and be believed.

use rusqlite::{Connection, OptionalExtension};

use crate::VaultError;
use crate::key::Key;
use crate::records::Records;

impl Records {
    /// Fails if somebody else than a vault has changed the database: every change
    /// of a vault's ends with a seal over all of it.
    pub(crate) fn check_seal(&self) -> Result<(), VaultError> {
        let version: i64 = self.db.query_row("PRAGMA data_version", [], |row| row.get(0))?;
        if self.checked.get() == Some(version) {
            return Ok(());
        }
        let kept: Option<Vec<u8>> =
            self.db.query_row("SELECT value FROM meta WHERE key = 'seal'", [], |row| row.get(0)).optional()?;
        let empty: i64 = self.db.query_row(
            "SELECT (SELECT count(*) FROM connection) + (SELECT count(*) FROM permit)",
            [],
            |row| row.get(0),
        )?;
        match kept {
            Some(kept) if kept == seal_of(&self.db, &self.root)? => {}
            None if empty == 0 => {}
            _ => return Err(VaultError::Tampered),
        }
        self.checked.set(Some(version));
        Ok(())
    }
}

/// A keyed hash over everything that decides about credentials.
fn seal_of(db: &Connection, root: &Key) -> Result<Vec<u8>, VaultError> {
    let mut text = Vec::new();
    for query in [
        "SELECT key, value FROM meta WHERE key NOT IN ('seal', 'root') ORDER BY key",
        "SELECT name, rules, created_at, updated_at FROM connection ORDER BY name",
        "SELECT name, version, kind, state, fingerprint, created_at, grace_until, sealed, token FROM credential ORDER BY name, version",
        "SELECT session, connection FROM permit ORDER BY session, connection",
    ] {
        let mut statement = db.prepare_cached(query)?;
        let columns = statement.column_count();
        let mut rows = statement.query([])?;
        while let Some(row) = rows.next()? {
            for column in 0..columns {
                use rusqlite::types::ValueRef;
                let (kind, bytes) = match row.get_ref(column)? {
                    ValueRef::Null => (0_u8, Vec::new()),
                    ValueRef::Integer(number) => (1, number.to_be_bytes().to_vec()),
                    ValueRef::Real(number) => (2, number.to_bits().to_be_bytes().to_vec()),
                    ValueRef::Text(bytes) => (3, bytes.to_vec()),
                    ValueRef::Blob(bytes) => (4, bytes.to_vec()),
                };
                text.push(kind);
                text.extend((bytes.len() as u64).to_be_bytes());
                text.extend(bytes);
            }
        }
        text.push(9);
    }
    Ok(root.derive("seal-of-database", b"").mac(&text).to_vec())
}

/// Seals the database as it is now.
pub(crate) fn keep_seal(db: &Connection, root: &Key) -> Result<(), VaultError> {
    let seal = seal_of(db, root)?;
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('seal', ?1)", [seal])?;
    Ok(())
}
