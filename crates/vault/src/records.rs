//! Connections, versions of credentials, grants: the vault's database.
//!
//! A credential is closed with a key of its own, and bound to all that says
//! where it may go: whoever edits the database can make one unusable, and not
//! send it elsewhere.

use std::cell::Cell;
use std::path::{Path, PathBuf};

use cloister_types::egress::{
    Connection as Rules, ConnectionName, ConnectionRecord, Secret, VersionRecord, VersionState,
};
use rusqlite::{Connection, OptionalExtension, Transaction, params};
use zeroize::Zeroizing;

use crate::VaultError;
use crate::guard::{self, Guard, Seen};
use crate::kek;
use crate::key::{Key, NotOpened, SealingKey, hex};
use crate::place::Place;
use crate::recovery;
use crate::root::{AUDIT_KEY, root_about, root_key};
use crate::seal::{self, Checked, keep_seal};
use crate::version::{Version, versions, word};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value ANY NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS connection (
    name TEXT PRIMARY KEY, rules TEXT NOT NULL, created_at REAL NOT NULL, updated_at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS credential (
    name TEXT NOT NULL, version INTEGER NOT NULL, kind TEXT NOT NULL, state TEXT NOT NULL, fingerprint TEXT NOT NULL,
    created_at REAL NOT NULL, grace_until REAL, sealed BLOB, token BLOB, lease REAL NOT NULL DEFAULT 0,
    PRIMARY KEY (name, version)
) STRICT;
CREATE TABLE IF NOT EXISTS permit (session TEXT NOT NULL, connection TEXT NOT NULL, PRIMARY KEY (session, connection)) STRICT;
";

pub(crate) struct Records {
    pub(crate) db: Connection,
    pub(crate) root: Key,
    tenant: String,
    guard: Guard,
    audit: PathBuf,
    /// The root key was wrapped with the key before.
    rewrap: bool,
    /// The state of the database in which its seal was checked.
    pub(crate) checked: Checked,
    _lock: std::fs::File,
}

/// A credential in use.
pub(crate) struct Opened {
    pub(crate) rules: Rules,
    pub(crate) version: u64,
    pub(crate) secret: Zeroizing<Vec<u8>>,
    /// A token that was made from it, and has not run out.
    pub(crate) token: Option<Zeroizing<Vec<u8>>>,
}

/// Why a session may not use a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, thiserror::Error)]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// It was not given it.
    #[error("the session has no such connection")]
    NotGranted,
    /// Its targets do not include this one.
    #[error("the connection is not for this target")]
    NotATarget,
    /// There is no credential, or none that still works.
    #[error("the connection has no usable credential")]
    NoCredential,
    /// The issuer refused to make a token.
    #[error("the credential's issuer refuses it: it needs a new one")]
    NeedsReauth,
    /// The issuer cannot be reached.
    #[error("the credential's issuer cannot be reached")]
    IssuerUnavailable,
    /// What happens could not be written down.
    #[error("the audit cannot be written")]
    AuditUnavailable,
    /// The vault failed.
    #[error("the vault failed")]
    Failed,
}

/// What a sealed secret is about: it opens for this connection alone.
#[must_use]
pub fn about_secret(tenant: &str, name: &ConnectionName) -> Vec<u8> {
    format!("cloister-seal/1\n{tenant}\n{name}").into_bytes()
}

pub(crate) fn open_database(path: &Path) -> Result<Connection, VaultError> {
    use std::os::unix::fs::OpenOptionsExt;
    // For its owner alone, from the first byte on.
    std::fs::OpenOptions::new().append(true).create(true).mode(0o600).open(path)?;
    let db = Connection::open(path)?;
    db.busy_timeout(std::time::Duration::from_secs(10))?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "FULL")?;
    db.pragma_update(None, "secure_delete", "ON")?;
    db.execute_batch(SCHEMA)?;
    Ok(db)
}

fn counter(db: &Connection) -> Result<u64, VaultError> {
    let found: Option<i64> =
        db.query_row("SELECT value FROM meta WHERE key = 'counter'", [], |row| row.get(0)).optional()?;
    Ok(found.unwrap_or(0).cast_unsigned())
}

impl Records {
    pub(crate) fn open(place: &Place) -> Result<Self, VaultError> {
        let mut records = Self::unguarded(place)?;
        // What was seen is read before what is: another vault may be at work.
        let mut seen = records.guard.read(records.guard.path())?;
        if let (None, None, Some(previous)) = (&seen, &place.guard_file, &place.previous_key_file) {
            seen = records.guard.read(&guard::path_for(previous))?;
        }
        let now = records.seen()?;
        records.guard.check(seen, &now, |seq| records.audit_hash(seq))?;
        drop(records.snapshot()?);
        if records.rewrap {
            let wrapped = kek::read(place, &place.key_file)?.close(&root_about(&place.tenant), records.root.bytes())?;
            records.db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES ('root', ?1)", [wrapped])?;
        }
        if !recovery::is_kept(&records.db, &place.recovery, &records.root)? {
            records.change(|db, root, tenant| recovery::keep(db, &place.recovery, root, tenant))?;
        }
        records.mark();
        Ok(records)
    }

    pub(crate) fn unguarded(place: &Place) -> Result<Self, VaultError> {
        let lock = place.lock(false)?;
        let db = open_database(&place.database())?;
        let (root, rewrap) = root_key(&db, place)?;
        let guard = Guard::new(place.guard(), &place.data, &audit_key(&db, &root)?);
        let checked = Cell::new(None);
        Ok(Self { db, root, tenant: place.tenant.clone(), guard, audit: place.audit(), rewrap, checked, _lock: lock })
    }

    fn seen(&self) -> Result<Seen, VaultError> {
        let (seq, hash) = match self.open_audit()? {
            Some(db) => db
                .query_row("SELECT seq, hash FROM record ORDER BY seq DESC LIMIT 1", [], |row| {
                    Ok((row.get::<_, i64>(0)?.cast_unsigned(), row.get::<_, Vec<u8>>(1)?))
                })
                .optional()?
                .unwrap_or_default(),
            None => Default::default(),
        };
        Ok(Seen { counter: counter(&self.db)?, audit: (seq, hex(&hash)) })
    }

    fn audit_hash(&self, seq: u64) -> Result<Option<String>, VaultError> {
        let Some(db) = self.open_audit()? else { return Ok(None) };
        let hash = db
            .query_row("SELECT hash FROM record WHERE seq = ?1", [seq.cast_signed()], |row| row.get::<_, Vec<u8>>(0))
            .optional()?;
        Ok(hash.map(|hash| hex(&hash)))
    }

    fn open_audit(&self) -> Result<Option<Connection>, VaultError> {
        if !self.audit.exists() {
            return Ok(None);
        }
        let db = Connection::open_with_flags(&self.audit, rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.busy_timeout(std::time::Duration::from_secs(10))?;
        let tables: i64 =
            db.query_row("SELECT count(*) FROM sqlite_master WHERE name = 'record'", [], |row| row.get(0))?;
        Ok((tables > 0).then_some(db))
    }

    /// Notes outside the data how far it has come. What cannot be noted now is
    /// noted with the next change, or within a minute.
    pub(crate) fn mark(&self) {
        if let Err(error) = self.seen().and_then(|seen| Ok(self.guard.write(&seen)?)) {
            tracing::error!(%error, "how far the vault has come cannot be noted");
        }
    }

    pub(crate) fn sealing_key(&self) -> Result<SealingKey, NotOpened> {
        self.root.derive("seal", b"").sealing_key()
    }

    /// The key that heads of the audit are signed with.
    pub(crate) fn audit_key(&self) -> Result<Key, VaultError> {
        audit_key(&self.db, &self.root)
    }

    /// What a session's own authority is made from: the same as long as the
    /// vault is, so that it outlives every process.
    pub(crate) fn authority_seed(&self, session: &str) -> Key {
        self.root.derive("session-authority", session.as_bytes())
    }

    /// A change of credentials: in one transaction with the counter and the seal,
    /// and then noted outside.
    pub(crate) fn change<T>(
        &mut self,
        work: impl FnOnce(&Transaction<'_>, &Key, &str) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        self.commit(None, work)
    }

    /// Changes the root key with everything that is closed with it.
    pub(crate) fn change_root<T>(
        &mut self,
        new: Key,
        work: impl FnOnce(&Transaction<'_>, &Key, &str) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        self.commit(Some(new), work)
    }

    fn commit<T>(
        &mut self,
        new: Option<Key>,
        work: impl FnOnce(&Transaction<'_>, &Key, &str) -> Result<T, VaultError>,
    ) -> Result<T, VaultError> {
        let transaction = self.db.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate)?;
        seal::check(&transaction, &self.root, &self.checked)?;
        let done = work(&transaction, &self.root, &self.tenant)?;
        count(&transaction)?;
        keep_seal(&transaction, new.as_ref().unwrap_or(&self.root))?;
        transaction.commit()?;
        if let Some(new) = new {
            self.root = new;
        }
        self.mark();
        Ok(done)
    }

    /// A view of the database that does not change, found to be a vault's.
    pub(crate) fn snapshot(&self) -> Result<Transaction<'_>, VaultError> {
        let snapshot = self.db.unchecked_transaction()?;
        seal::check(&snapshot, &self.root, &self.checked)?;
        Ok(snapshot)
    }

    /// Sets a connection. Its credentials are closed anew for the new rules, if
    /// those allow nothing that they were not given for; otherwise they are
    /// revoked: whoever may set rules must not be able to send a credential
    /// where he likes, and so read it.
    pub(crate) fn put(&mut self, name: &ConnectionName, rules: &Rules, now: f64) -> Result<(), VaultError> {
        let text = serde_json::to_string(rules)?;
        self.change(|db, root, tenant| {
            let old: Option<String> = db
                .query_row("SELECT rules FROM connection WHERE name = ?1", [name.as_str()], |row| row.get(0))
                .optional()?;
            let keeps = match &old {
                Some(old) => rules.is_within(&serde_json::from_str(old)?),
                None => false,
            };
            for version in versions(db, name)?.into_iter().filter(|version| version.sealed.is_some()) {
                if let (Some(old), true) = (&old, keeps) {
                    let opened = version.open(root, tenant, old)?;
                    version.write(db, root, tenant, &text, &opened)?;
                } else {
                    end_version(db, name, Some(version.version))?;
                }
            }
            db.execute(
                "INSERT INTO connection (name, rules, created_at, updated_at) VALUES (?1, ?2, ?3, ?3)
                 ON CONFLICT (name) DO UPDATE SET rules = ?2, updated_at = ?3",
                params![name.as_str(), text, now],
            )?;
            Ok(())
        })
    }

    /// Removes a connection and all its credentials; false if there is none.
    pub(crate) fn remove(&mut self, name: &ConnectionName) -> Result<bool, VaultError> {
        self.change(|db, _, _| {
            db.execute("DELETE FROM credential WHERE name = ?1", [name.as_str()])?;
            db.execute("DELETE FROM permit WHERE connection = ?1", [name.as_str()])?;
            Ok(db.execute("DELETE FROM connection WHERE name = ?1", [name.as_str()])? > 0)
        })
    }

    pub(crate) fn list(&self) -> Result<Vec<ConnectionRecord>, VaultError> {
        let mut statement = self.db.prepare_cached("SELECT name FROM connection ORDER BY name")?;
        let names: Vec<String> = statement.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
        let names = names.iter().filter_map(|name| name.parse().ok());
        names.filter_map(|name: ConnectionName| self.get(&name).transpose()).collect()
    }

    pub(crate) fn get(&self, name: &ConnectionName) -> Result<Option<ConnectionRecord>, VaultError> {
        let found = self
            .db
            .query_row("SELECT rules, created_at, updated_at FROM connection WHERE name = ?1", [name.as_str()], |row| {
                Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
            })
            .optional()?;
        let Some((rules, created_at, updated_at)) = found else { return Ok(None) };
        let mut found: Vec<VersionRecord> = versions(&self.db, name)?.into_iter().map(Version::record).collect();
        found.reverse();
        let connection = serde_json::from_str(&rules)?;
        Ok(Some(ConnectionRecord { name: name.clone(), connection, created_at, updated_at, versions: found }))
    }

    /// Adds a version of a credential, which is used from now on; the one
    /// before stays known for `grace` seconds.
    pub(crate) fn add_version(
        &mut self,
        name: &ConnectionName,
        secret: &Secret,
        grace: f64,
        now: f64,
    ) -> Result<Option<VersionRecord>, VaultError> {
        let text = Zeroizing::new(serde_json::to_vec(secret)?);
        self.change(|db, root, tenant| {
            let Some(rules) = rules_text(db, name)? else { return Ok(None) };
            // Numbers go on even if the connection was removed meanwhile.
            let number = format!("last:{name}");
            let last: Option<i64> =
                db.query_row("SELECT value FROM meta WHERE key = ?1", [&number], |row| row.get(0)).optional()?;
            db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)", params![number, last.unwrap_or(0) + 1])?;
            db.execute(
                "UPDATE credential SET state = 'grace', grace_until = ?2, token = NULL WHERE name = ?1 AND state IN ('active', 'needs_reauth')",
                params![name.as_str(), now + grace],
            )?;
            let version = Version {
                name: name.clone(),
                version: last.unwrap_or(0).cast_unsigned() + 1,
                kind: secret.kind(),
                state: VersionState::Active,
                fingerprint: hex(&root.derive("fingerprint", b"").mac(&text)[..8]),
                created_at: now,
                sealed: None,
                token: None,
            };
            db.execute(
                "INSERT INTO credential (name, version, kind, state, fingerprint, created_at) VALUES (?1, ?2, ?3, 'active', ?4, ?5)",
                params![name.as_str(), version.version.cast_signed(), word(&version.kind)?, version.fingerprint, now],
            )?;
            version.write(db, root, tenant, &rules, &text)?;
            Ok(Some(version.record()))
        })
    }

    /// Ends a version, or all: nothing of it is left but its record.
    pub(crate) fn revoke(&mut self, name: &ConnectionName, version: Option<u64>) -> Result<usize, VaultError> {
        self.change(|db, _, _| end_version(db, name, version))
    }

    /// Ends the versions whose grace is over.
    pub(crate) fn expire(&mut self, now: f64) -> Result<(), VaultError> {
        let due: i64 = self.db.query_row(
            "SELECT count(*) FROM credential WHERE state = 'grace' AND grace_until <= ?1",
            [now],
            |row| row.get(0),
        )?;
        if due == 0 {
            return Ok(());
        }
        self.change(|db, _, _| {
            db.execute(
                "UPDATE credential SET state = 'revoked', sealed = NULL, token = NULL WHERE state = 'grace' AND grace_until <= ?1",
                [now],
            )?;
            Ok(())
        })
    }

    /// Opens the credential that a session may use for a target.
    pub(crate) fn open_for(
        &self,
        session: &str,
        name: &ConnectionName,
        host: &cloister_types::Host,
        port: u16,
    ) -> Result<Result<Opened, Refusal>, VaultError> {
        let _snapshot = self.snapshot()?;
        let permitted: i64 = self.db.query_row(
            "SELECT count(*) FROM permit WHERE session = ?1 AND connection = ?2",
            params![session, name.as_str()],
            |row| row.get(0),
        )?;
        let Some(text) = rules_text(&self.db, name)?.filter(|_| permitted > 0) else {
            return Ok(Err(Refusal::NotGranted));
        };
        let rules: Rules = serde_json::from_str(&text)?;
        if !rules.targets.iter().any(|target| target.is_at(host, port)) {
            return Ok(Err(Refusal::NotATarget));
        }
        self.open_active(name, &text, rules)
    }

    /// Opens the credential of a connection, whoever asks: for its own upkeep.
    pub(crate) fn open_active(
        &self,
        name: &ConnectionName,
        text: &str,
        rules: Rules,
    ) -> Result<Result<Opened, Refusal>, VaultError> {
        let live = |version: &Version| matches!(version.state, VersionState::Active | VersionState::NeedsReauth);
        match versions(&self.db, name)?.into_iter().rfind(live) {
            None => Ok(Err(Refusal::NoCredential)),
            Some(version) if version.state == VersionState::NeedsReauth => Ok(Err(Refusal::NeedsReauth)),
            Some(version) => {
                let secret = version.open(&self.root, &self.tenant, text)?;
                let token = version.open_token(&self.root, &self.tenant, text)?;
                Ok(Ok(Opened { rules, version: version.version, secret, token }))
            }
        }
    }

    /// Opens what somebody sealed for a connection.
    pub(crate) fn unseal(&self, name: &ConnectionName, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, NotOpened> {
        self.root.derive("seal", b"").unseal(&about_secret(&self.tenant, name), sealed)
    }
}

/// Counts a change.
fn count(db: &Connection) -> Result<(), VaultError> {
    let more = "INSERT INTO meta (key, value) VALUES ('counter', 1) ON CONFLICT (key) DO UPDATE SET value = value + 1";
    db.execute(more, [])?;
    Ok(())
}

fn end_version(db: &Connection, name: &ConnectionName, version: Option<u64>) -> Result<usize, VaultError> {
    Ok(db.execute(
        "UPDATE credential SET state = 'revoked', sealed = NULL, token = NULL
         WHERE name = ?1 AND state <> 'revoked' AND (?2 IS NULL OR version = ?2)",
        params![name.as_str(), version.map(u64::cast_signed)],
    )?)
}

fn audit_key(db: &Connection, root: &Key) -> Result<Key, VaultError> {
    let kept: Option<Vec<u8>> =
        db.query_row("SELECT value FROM meta WHERE key = 'audit'", [], |row| row.get(0)).optional()?;
    match kept {
        Some(kept) => Ok(Key::from_bytes(&root.open(AUDIT_KEY, &kept)?)?),
        None => Ok(root.derive("audit", b"")),
    }
}

pub(crate) fn rules_text(db: &Connection, name: &ConnectionName) -> Result<Option<String>, VaultError> {
    Ok(db.query_row("SELECT rules FROM connection WHERE name = ?1", [name.as_str()], |row| row.get(0)).optional()?)
}

#[cfg(test)]
mod edited;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rotate::{accept_rollback, rotate};

    pub(super) fn place(folder: &Path) -> Place {
        let (data, key_file) = (folder.join("data"), folder.join("key"));
        std::fs::create_dir_all(&data).unwrap();
        Place {
            data,
            tenant: "t".into(),
            region: "local".into(),
            key_file,
            previous_key_file: None,
            kms: None,
            extra_ca: None,
            makes_key: true,
            recovery: Vec::new(),
            guard_file: None,
        }
    }

    /// Puts another database in place of the vault's.
    pub(super) fn replace(at: &Place, database: &[u8]) {
        for tail in ["db-wal", "db-shm"] {
            let _ = std::fs::remove_file(at.database().with_extension(tail));
        }
        std::fs::write(at.database(), database).unwrap();
    }

    pub(super) fn rules(host: &str) -> Rules {
        serde_json::from_str(&format!(r#"{{"targets":[{{"host":"{host}"}}],"attach":{{"kind":"header"}}}}"#)).unwrap()
    }

    pub(super) fn secret(value: &str) -> Secret {
        Secret::Static { value: value.into() }
    }

    pub(super) fn open(records: &Records, host: &str) -> Result<String, Refusal> {
        let found = records.open_for("s", &"a".parse().unwrap(), &host.parse().unwrap(), 443).unwrap();
        found.map(|opened| String::from_utf8(opened.secret.to_vec()).unwrap())
    }

    #[test]
    fn a_credential_goes_where_its_rules_say_and_to_whom_it_was_permitted() {
        let folder = tempfile::tempdir().unwrap();
        let mut records = Records::open(&place(folder.path())).unwrap();
        let name: ConnectionName = "a".parse().unwrap();
        assert!(records.add_version(&name, &secret("hush"), 0.0, 1.0).unwrap().is_none());
        records.put(&name, &rules("api.example.com"), 1.0).unwrap();
        assert_eq!(open(&records, "api.example.com"), Err(Refusal::NotGranted));
        assert_eq!(records.permit("s", &["b".parse().unwrap()], true).unwrap(), Some("b".parse().unwrap()));
        records.permit("s", std::slice::from_ref(&name), true).unwrap();
        assert_eq!(open(&records, "api.example.com"), Err(Refusal::NoCredential));
        records.add_version(&name, &secret("hush"), 600.0, 2.0).unwrap();
        assert!(open(&records, "api.example.com").unwrap().contains("hush"));
        assert_eq!(open(&records, "other.example.com"), Err(Refusal::NotATarget));
        // Rotation; the old one is forgotten after its grace.
        records.add_version(&name, &secret("newer"), 600.0, 3.0).unwrap();
        assert!(open(&records, "api.example.com").unwrap().contains("newer"));
        records.expire(700.0).unwrap();
        let states: Vec<_> =
            records.get(&name).unwrap().unwrap().versions.into_iter().map(|version| version.state).collect();
        assert_eq!(states, [VersionState::Active, VersionState::Revoked]);
        // Narrower rules hold for it, too; others are none that it was given for.
        let narrower = serde_json::from_str(
            r#"{"targets":[{"host":"api.example.com","paths":["/v1"]}],"attach":{"kind":"header"}}"#,
        );
        records.put(&name, &narrower.unwrap(), 4.0).unwrap();
        assert!(open(&records, "api.example.com").unwrap().contains("newer"));
        records.put(&name, &rules("other.example.com"), 5.0).unwrap();
        assert_eq!(open(&records, "other.example.com"), Err(Refusal::NoCredential));
        assert_eq!(open(&records, "api.example.com"), Err(Refusal::NotATarget));
        records.prune(&[]).unwrap();
        assert_eq!(open(&records, "other.example.com"), Err(Refusal::NotGranted));
        let text = std::fs::read(folder.path().join("data/vault.db")).unwrap();
        let wal = std::fs::read(folder.path().join("data/vault.db-wal")).unwrap_or_default();
        assert!(![text, wal].iter().any(|bytes| bytes.windows(4).any(|window| window == b"hush")));
    }

    #[test]
    fn edits_of_the_database_make_a_credential_useless_and_send_it_nowhere() {
        let folder = tempfile::tempdir().unwrap();
        let at = place(folder.path());
        let mut records = Records::open(&at).unwrap();
        for (name, host) in [("a", "api.example.com"), ("b", "evil.example.com")] {
            let name: ConnectionName = name.parse().unwrap();
            records.put(&name, &rules(host), 1.0).unwrap();
            records.add_version(&name, &secret("hush"), 0.0, 2.0).unwrap();
        }
        records.permit("s", &["a".parse().unwrap(), "b".parse().unwrap()], true).unwrap();
        records.revoke(&"b".parse().unwrap(), None).unwrap();
        records.add_version(&"b".parse().unwrap(), &secret("hush"), 0.0, 3.0).unwrap();
        let keep = || {
            records.db.execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            std::fs::read(at.database()).unwrap()
        };
        let whole = keep();
        let at = &at;
        drop(records);
        for edit in [
            "UPDATE connection SET rules = replace(rules, 'api.', 'evil.') WHERE name = 'a'",
            "UPDATE credential SET sealed = (SELECT sealed FROM credential WHERE name = 'b') WHERE name = 'a'",
            "UPDATE credential SET created_at = 9 WHERE name = 'a'",
            "UPDATE credential SET version = 2 WHERE name = 'a'",
            "UPDATE credential SET kind = 'aws' WHERE name = 'a'",
            "UPDATE credential SET state = 'active'",
            "INSERT INTO permit VALUES ('other', 'a')",
            "UPDATE meta SET value = 99 WHERE key = 'counter'",
            "DELETE FROM meta WHERE key = 'seal'",
        ] {
            replace(at, &whole);
            let records = Records::open(at).unwrap();
            assert!(open(&records, "api.example.com").is_ok());
            // Somebody else, while the vault is at work.
            Connection::open(at.database()).unwrap().execute_batch(edit).unwrap();
            for host in ["api.example.com", "evil.example.com"] {
                let found = records.open_for("s", &"a".parse().unwrap(), &host.parse().unwrap(), 443);
                assert!(!matches!(found, Ok(Ok(_))), "{edit}, {host}");
            }
            drop(records);
            assert!(Records::open(at).is_err(), "{edit}");
        }
    }

    #[test]
    fn keys_change_and_old_databases_are_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let mut at = place(folder.path());
        let name: ConnectionName = "a".parse().unwrap();
        let mut records = Records::open(&at).unwrap();
        records.put(&name, &rules("api.example.com"), 1.0).unwrap();
        records.permit("s", std::slice::from_ref(&name), true).unwrap();
        records.add_version(&name, &secret("first"), 0.0, 1.0).unwrap();
        drop(records);
        let mut records = Records::open(&at).unwrap();
        records.revoke(&name, None).unwrap();
        records.add_version(&name, &secret("second"), 0.0, 2.0).unwrap();
        drop(records);
        // Another key file: only with the previous one at hand.
        let previous = folder.path().join("previous");
        std::fs::rename(&at.key_file, &previous).unwrap();
        kek::make_if_absent(&at).unwrap();
        assert!(matches!(Records::open(&at), Err(VaultError::WrongKey { .. })));
        at.previous_key_file = Some(previous);
        assert!(open(&Records::open(&at).unwrap(), "api.example.com").unwrap().contains("second"));
        at.previous_key_file = None;
        assert!(open(&Records::open(&at).unwrap(), "api.example.com").is_ok());
        assert_eq!(rotate(&at, || Ok(())).unwrap(), 1);
        assert!(open(&Records::open(&at).unwrap(), "api.example.com").unwrap().contains("second"));
        // An older database, with which what was revoked would come back.
        let snapshot = || {
            Connection::open(at.database()).unwrap().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
            std::fs::read(at.database()).unwrap()
        };
        let old = snapshot();
        Records::open(&at).unwrap().revoke(&name, None).unwrap();
        let new = snapshot();
        let bring = |bytes: &[u8]| replace(&at, bytes);
        bring(&old);
        assert!(matches!(Records::open(&at), Err(VaultError::RolledBack(_))));
        bring(&new);
        assert!(Records::open(&at).is_ok());
        bring(&old);
        accept_rollback(&at, || Ok(())).unwrap();
        assert!(Records::open(&at).is_ok());
        std::fs::write(guard::path_for(&at.key_file), "7 0 0 00").unwrap();
        assert!(matches!(Records::open(&at), Err(VaultError::RolledBack(_))));
        std::fs::remove_file(guard::path_for(&at.key_file)).unwrap();
        assert!(matches!(Records::open(&at), Err(VaultError::RolledBack(_))));
    }
}
