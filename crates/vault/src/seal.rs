//! The seal over the whole database: only who has the root key can change it
//! and be believed.

use std::cell::Cell;

use rusqlite::{Connection, OptionalExtension};

use crate::VaultError;
use crate::key::Key;

/// The state of the database in which its seal was last found right.
pub(crate) type Checked = Cell<Option<i64>>;

/// Fails if somebody else than a vault has changed the database: every change of
/// a vault's ends with a seal over all of it. Called within the transaction that
/// relies on it, so that nothing comes between.
pub(crate) fn check(db: &Connection, root: &Key, checked: &Checked) -> Result<(), VaultError> {
    let version: i64 = db.query_row("PRAGMA data_version", [], |row| row.get(0))?;
    if checked.get() == Some(version) {
        return Ok(());
    }
    let kept: Option<Vec<u8>> =
        db.query_row("SELECT value FROM meta WHERE key = 'seal'", [], |row| row.get(0)).optional()?;
    let rows: i64 =
        db.query_row("SELECT (SELECT count(*) FROM connection) + (SELECT count(*) FROM permit)", [], |row| row.get(0))?;
    match kept {
        Some(kept) if kept == seal_of(db, root)? => {}
        None if rows == 0 => {}
        _ => return Err(VaultError::Tampered),
    }
    checked.set(Some(version));
    Ok(())
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
