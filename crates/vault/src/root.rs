//! The root key at rest: closed with the key outside the data.

use std::cell::Cell;

use rusqlite::{Connection, OptionalExtension};

use crate::VaultError;
use crate::kek;
use crate::key::Key;
use crate::place::Place;
use crate::records::open_database;
use crate::seal;

/// What the audit's key is closed about.
pub(crate) const AUDIT_KEY: &[u8] = b"cloister-vault/1\naudit";

pub(crate) fn root_about(tenant: &str) -> Vec<u8> {
    format!("cloister-vault/1\nroot\n{tenant}").into_bytes()
}

/// The root key: made if there is none, wrapped anew if it was wrapped with the
/// previous key.
/// Second: it has to be wrapped anew.
pub(crate) fn root_key(db: &Connection, place: &Place) -> Result<(Key, bool), VaultError> {
    let about = root_about(&place.tenant);
    let wrapped: Option<Vec<u8>> =
        db.query_row("SELECT value FROM meta WHERE key = 'root'", [], |row| row.get(0)).optional()?;
    if wrapped.is_none() && place.makes_key {
        kek::make_if_absent(place)?;
    }
    let key = kek::read(place, &place.key_file)?;
    let Some(wrapped) = wrapped else {
        let root = Key::random()?;
        let wrapped = key.close(&about, root.bytes())?;
        // Two may be at it; the first one's stays.
        db.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('root', ?1)", [wrapped])?;
        let kept: Vec<u8> = db.query_row("SELECT value FROM meta WHERE key = 'root'", [], |row| row.get(0))?;
        return Ok((Key::from_bytes(&key.open(&about, &kept)?)?, false));
    };
    if let Ok(root) = key.open(&about, &wrapped) {
        return Ok((Key::from_bytes(&root)?, false));
    }
    let wrong = |hint| VaultError::WrongKey { file: place.key_file.display().to_string(), hint };
    let Some(previous) = &place.previous_key_file else {
        return Err(wrong("bring the key back that the data was made with, or name it as [vault] previous_key_file"));
    };
    let root = kek::read(place, previous)?.open(&about, &wrapped);
    let root = Key::from_bytes(&root.map_err(|_| wrong("neither it nor previous_key_file opens the vault"))?)?;
    Ok((root, true))
}

/// Closes the root key with the present key file, for whoever has come by it in
/// another way.
pub(crate) fn rewrap_root(
    place: &Place,
    opened: impl FnOnce(&Connection) -> Result<Key, VaultError>,
) -> Result<(), VaultError> {
    let db = open_database(&place.database())?;
    let root = opened(&db)?;
    seal::check(&db, &root, &Cell::new(None))?;
    kek::make_if_absent(place)?;
    let wrapped = kek::read(place, &place.key_file)?.close(&root_about(&place.tenant), root.bytes())?;
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('root', ?1)", [wrapped])?;
    Ok(())
}
