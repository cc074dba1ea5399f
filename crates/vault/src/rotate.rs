//! What an operator does while no vault runs: new keys, old data.

use rusqlite::params;

use crate::VaultError;
use crate::kek;
use crate::key::Key;
use crate::place::Place;
use crate::records::Records;
use crate::recovery;
use crate::root::{AUDIT_KEY, root_about};
use crate::version::versions;

/// Takes the present database for the newest, once that is `written` down: after a
/// restore on purpose.
///
/// # Errors
/// The key does not open it, or the guard cannot be written.
pub fn accept_rollback(place: &Place, written: impl FnOnce() -> std::io::Result<()>) -> Result<(), VaultError> {
    drop(place.lock(true)?);
    let records = Records::unguarded(place)?;
    written()?;
    records.mark();
    Ok(())
}

/// Makes a new root key and closes everything with it, once it is `written` down. The
/// vault must not be running.
///
/// # Errors
/// Something does not open; then nothing has changed.
pub fn rotate(place: &Place, written: impl FnOnce() -> std::io::Result<()>) -> Result<usize, VaultError> {
    drop(place.lock(true)?);
    let mut records = Records::open(place)?;
    written()?;
    let (new, kek) = (Key::random()?, kek::read(place, &place.key_file)?);
    let (about, audit) = (root_about(&place.tenant), records.audit_key()?);
    let fresh = Key::from_bytes(new.bytes())?;
    records.change_root(fresh, |db, root, tenant| {
        let mut statement = db.prepare("SELECT name, rules FROM connection")?;
        let found: Vec<(String, String)> =
            statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?;
        let mut count = 0;
        for (name, rules) in found {
            let Ok(name) = name.parse() else { continue };
            for version in versions(db, &name)?.into_iter().filter(|version| version.sealed.is_some()) {
                let opened = version.open(root, tenant, &rules)?;
                version.write(db, &new, tenant, &rules, &opened)?;
                db.execute(
                    "UPDATE credential SET token = NULL WHERE name = ?1 AND version = ?2",
                    params![name.as_str(), version.version.cast_signed()],
                )?;
                count += 1;
            }
        }
        let audit = new.close(AUDIT_KEY, audit.bytes())?;
        db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('audit', ?1)", [audit])?;
        db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('root', ?1)", [kek.close(&about, new.bytes())?])?;
        recovery::keep(db, &place.recovery, &new, tenant)?;
        Ok(count)
    })
}
