//! API keys, by their hashes.

use std::time::Duration;

use cloister_types::SessionId;
use cloister_types::access::{KeyRecord, KeyState, NewKey, Role};
use cloister_types::egress::Policy;
use cloister_types::key::ApiKey;
use cloister_types::scope::FileAccess;
use rusqlite::{Connection, Row, params};
use tokio::sync::watch;

use crate::{Result, Store, StoreError};

/// What somebody has shown, by which it can be asked later whether it still stands:
/// the hash of an API key or of a cookie.
#[derive(Clone, PartialEq, Eq)]
pub struct Proof(pub(crate) Vec<u8>);

/// Who makes a key.
#[derive(Clone, Default)]
pub struct Maker {
    /// What they have shown. It must still stand when the key is made.
    pub proofs: Vec<Proof>,
    /// For a token, which ends with its makers: their ids, or how they have shown who
    /// they are; spaces between.
    pub parent: Option<String>,
    /// Unix seconds that the key does not outlive: the end of what they have shown.
    pub ends: Option<f64>,
}

/// Where a key is with the hash `?1` that works at `?2`.
const WORKS: &str = "FROM key_hash JOIN key ON key.id = key_hash.key
    WHERE hash = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)
      AND (until IS NULL OR until > ?2)";

fn stand(db: &Connection, proofs: &[Proof], now: f64) -> Result<bool> {
    let mut statement = db.prepare_cached(&format!(
        "SELECT EXISTS (SELECT 1 {WORKS})
             OR EXISTS (SELECT 1 FROM sign_in WHERE hash = ?1 AND ended_at IS NULL AND expires_at > ?2)"
    ))?;
    for proof in proofs {
        if !statement.query_row(params![proof.0, now], |row| row.get::<_, bool>(0))? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What a key that was presented stands for.
#[derive(Clone, PartialEq)]
pub struct Known {
    /// The key's id.
    pub id: String,
    /// Who calls with it.
    pub caller: String,
    /// What the caller may.
    pub role: Role,
    /// The one session that it reaches.
    pub session: Option<SessionId>,
    /// The most that its sessions may see.
    pub file_access: Option<FileAccess>,
    /// As far as its sessions may reach.
    pub egress: Option<Policy>,
    /// Unix seconds at which it ends by itself: when it expires, or the time is over in
    /// which one that was replaced still works.
    pub expires_at: Option<f64>,
    /// It was made by another, and ends with that.
    pub is_token: bool,
    /// It has been replaced, and works for a while yet.
    pub late: bool,
    /// By what it is asked later whether it still works.
    pub proof: Proof,
}

fn session_of(row: &Row<'_>) -> Result<Option<SessionId>> {
    let text: Option<String> = row.get("session")?;
    text.map(|text| text.parse().map_err(|_| StoreError::Broken(format!("session id {text:?}")))).transpose()
}

fn json_of<T: serde::de::DeserializeOwned>(row: &Row<'_>, column: &str) -> Result<Option<T>> {
    let text: Option<String> = row.get(column)?;
    text.map(|text| serde_json::from_str(&text).map_err(|error| StoreError::Broken(format!("{column}: {error}"))))
        .transpose()
}

fn to_json<T: serde::Serialize>(value: Option<&T>) -> Result<Option<String>> {
    value.map(|value| serde_json::to_string(value).map_err(|error| StoreError::Broken(error.to_string()))).transpose()
}

fn role_of(row: &Row<'_>) -> Result<Role> {
    let text: String = row.get("role")?;
    text.parse().map_err(|_| StoreError::Broken(format!("role {text:?}")))
}

fn record_of(row: &Row<'_>, now: f64) -> Result<KeyRecord> {
    let (expires_at, revoked_at): (Option<f64>, Option<f64>) = (row.get("expires_at")?, row.get("revoked_at")?);
    let state = match (revoked_at, expires_at) {
        (Some(_), _) => KeyState::Revoked,
        (None, Some(at)) if at <= now => KeyState::Expired,
        _ => KeyState::Active,
    };
    let grace_until: Option<f64> = row.get("grace_until")?;
    Ok(KeyRecord {
        id: row.get("id")?,
        caller: row.get("caller")?,
        role: role_of(row)?,
        session: session_of(row)?,
        file_access: json_of(row, "file_access")?,
        egress: json_of(row, "egress")?,
        parent: row.get("parent")?,
        created_at: row.get("created_at")?,
        expires_at,
        rotated_at: row.get("rotated_at")?,
        grace_until: grace_until.filter(|until| *until > now),
        late_uses: row.get::<_, i64>("late")?.cast_unsigned(),
        state,
    })
}

/// Seconds for which the tokens of others are listed after their end.
const KEPT: f64 = 86_400.0;

const RECORD: &str =
    "SELECT key.*, (SELECT max(until) FROM key_hash WHERE key_hash.key = key.id) AS grace_until FROM key";

fn record(db: &Connection, id: &str, now: f64) -> Result<Option<KeyRecord>> {
    let mut statement = db.prepare_cached(&format!("{RECORD} WHERE id = ?1"))?;
    let mut rows = statement.query([id])?;
    rows.next()?.map(|row| record_of(row, now)).transpose()
}

fn look_up(db: &Connection, proof: &Proof, now: f64) -> Result<Option<Known>> {
    let mut statement = db.prepare_cached(&format!("SELECT key.*, until, hash {WORKS}"))?;
    let mut rows = statement.query(params![proof.0, now])?;
    let Some(row) = rows.next()? else { return Ok(None) };
    // The index has compared already; what decides takes as long for every key.
    let kept: Vec<u8> = row.get("hash")?;
    if aws_lc_rs::constant_time::verify_slices_are_equal(&kept, &proof.0).is_err() {
        return Ok(None);
    }
    let (expires_at, until): (Option<f64>, Option<f64>) = (row.get("expires_at")?, row.get("until")?);
    Ok(Some(Known {
        id: row.get("id")?,
        caller: row.get("caller")?,
        role: role_of(row)?,
        session: session_of(row)?,
        file_access: json_of(row, "file_access")?,
        egress: json_of(row, "egress")?,
        expires_at: expires_at.into_iter().chain(until).reduce(f64::min),
        is_token: row.get::<_, Option<String>>("parent")?.is_some(),
        late: until.is_some(),
        proof: proof.clone(),
    }))
}

impl Store {
    /// A new key of a tenant's, and an id for it; neither is stored yet.
    ///
    /// # Errors
    /// There is no randomness, or the name is not a tenant's.
    pub fn fresh_key(tenant: &str) -> Result<(String, ApiKey)> {
        let failed = |why: &str| StoreError::Broken(format!("a key cannot be made: {why}"));
        let (mut token, mut id) = ([0; 32], [0; 10]);
        let filled = aws_lc_rs::rand::fill(&mut token).and_then(|()| aws_lc_rs::rand::fill(&mut id));
        filled.map_err(|_| failed("no randomness"))?;
        let id: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
        let key = ApiKey::new(tenant, token).map_err(|error| failed(&error.to_string()))?;
        Ok((format!("key_{id}"), key))
    }

    /// Adds a key; none if what its maker has shown stands no more. The store forgets
    /// tokens a day after their end.
    ///
    /// # Errors
    /// The store's.
    pub async fn add_key(
        &self,
        id: &str,
        key: &ApiKey,
        what: NewKey,
        Maker { proofs, parent, ends }: Maker,
        now: f64,
    ) -> Result<Option<KeyRecord>> {
        let (id, hash) = (id.to_owned(), self.inner.pepper.hash(key));
        let (file_access, egress) = (to_json(what.file_access.as_ref())?, to_json(what.egress.as_ref())?);
        self.write(move |db| {
            if !stand(db, &proofs, now)? {
                return Ok(None);
            }
            db.execute(
                "DELETE FROM key_hash WHERE key IN (SELECT id FROM key WHERE parent IS NOT NULL AND expires_at < ?1)",
                [now - KEPT],
            )?;
            db.execute("DELETE FROM key WHERE parent IS NOT NULL AND expires_at < ?1", [now - KEPT])?;
            db.execute(
                "INSERT INTO key (id, caller, role, session, created_at, expires_at, parent, file_access, egress)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
                params![
                    id,
                    what.caller,
                    what.role.as_str(),
                    what.session.as_ref().map(SessionId::as_str),
                    now,
                    what.expires_in.map(|seconds| now + seconds as f64).into_iter().chain(ends).reduce(f64::min),
                    parent,
                    file_access,
                    egress
                ],
            )?;
            db.execute("INSERT INTO key_hash (hash, key) VALUES (?1, ?2)", params![hash, id])?;
            record(db, &id, now)
        })
        .await
    }

    /// What a key stands for, if it works now. One that this process ends is so at
    /// once, one that another ends within half a second.
    ///
    /// # Errors
    /// The store's.
    pub async fn known(&self, key: &ApiKey, now: f64) -> Result<Option<Known>> {
        let hash = self.inner.pepper.hash(key);
        let asked = match self.inner.endings.recall(&hash, now) {
            Ok(known) => return Ok(Some(known)),
            Err(asked) => asked,
        };
        let proof = Proof(hash.clone());
        let found = self.read(move |db| look_up(db, &proof, now)).await?;
        match &found {
            // Each of its uses is counted.
            Some(Known { id, late: true, .. }) => {
                let id = id.clone();
                self.write(move |db| {
                    db.execute("UPDATE key SET late = late + 1 WHERE id = ?1", [&id])?;
                    Ok(())
                })
                .await?;
            }
            Some(known) => self.inner.endings.remember(&hash, known, asked),
            None => {}
        }
        Ok(found)
    }

    /// Does all of that still stand?
    ///
    /// # Errors
    /// The store's.
    pub async fn stands(&self, proofs: Vec<Proof>, now: f64) -> Result<bool> {
        self.read(move |db| stand(db, &proofs, now)).await
    }

    /// Changes whenever something that callers have shown may have ended before its
    /// time.
    #[must_use]
    pub fn endings(&self) -> watch::Receiver<()> {
        self.inner.endings.subscribe()
    }

    /// Makes a change after which something may have ended that callers have shown.
    /// They hear of it although whoever wanted it has gone away. Is it essential: may it
    /// be made when the disk is full?
    pub(crate) async fn write_ending<T: Send + 'static>(
        &self,
        essential: bool,
        change: impl FnMut(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let endings = self.inner.endings.clone();
        self.inner.writer.run(essential, change, move |_| endings.note()).await
    }

    /// All keys, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn keys(&self, now: f64) -> Result<Vec<KeyRecord>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!("{RECORD} ORDER BY created_at, id"))?;
            let mut rows = statement.query([])?;
            let mut all = Vec::new();
            while let Some(row) = rows.next()? {
                all.push(record_of(row, now)?);
            }
            Ok(all)
        })
        .await
    }

    /// One key.
    ///
    /// # Errors
    /// The store's.
    pub async fn key(&self, id: &str, now: f64) -> Result<Option<KeyRecord>> {
        let id = id.to_owned();
        self.read(move |db| record(db, &id, now)).await
    }

    /// Replaces a key that works; the one before works for `grace` seconds more.
    /// None if there is no such key, or it works no more.
    ///
    /// # Errors
    /// The store's.
    pub async fn rotate_key(&self, id: &str, new: &ApiKey, grace: f64, now: f64) -> Result<Option<KeyRecord>> {
        let (id, hash) = (id.to_owned(), self.inner.pepper.hash(new));
        let endings = self.inner.endings.clone();
        tokio::spawn(async move {
            tokio::time::sleep(Duration::try_from_secs_f64(grace).unwrap_or_default()).await;
            endings.note();
        });
        self.write_ending(false, move |db| {
            let works = db.execute(
                "UPDATE key SET rotated_at = ?2, late = 0
                 WHERE id = ?1 AND revoked_at IS NULL AND (expires_at IS NULL OR expires_at > ?2)",
                params![id, now],
            )?;
            if works == 0 {
                return Ok(None);
            }
            // One that was replaced before has had its time.
            db.execute("DELETE FROM key_hash WHERE key = ?1 AND until IS NOT NULL", [&id])?;
            db.execute("UPDATE key_hash SET until = ?2 WHERE key = ?1", params![id, now + grace])?;
            // What was made with the one before has no longer than that.
            db.execute(
                &format!("UPDATE key SET expires_at = min(expires_at, ?2) WHERE {IS_CHILD}"),
                params![id, now + grace],
            )?;
            db.execute("INSERT INTO key_hash (hash, key) VALUES (?1, ?2)", params![hash, id])?;
            record(db, &id, now)
        })
        .await
    }

    /// Ends a key, with the tokens that were made with it; false if there is no
    /// such key.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_key(&self, id: &str, now: f64) -> Result<bool> {
        let id = id.to_owned();
        self.write_ending(true, move |db| {
            db.execute("DELETE FROM key_hash WHERE key = ?1", [&id])?;
            let ended =
                db.execute("UPDATE key SET revoked_at = coalesce(revoked_at, ?2) WHERE id = ?1", params![id, now])?;
            if ended > 0 {
                end_children(db, &id, now)?;
            }
            Ok(ended > 0)
        })
        .await
    }
}

/// Is it a token that was made with what has the id `?1`?
const IS_CHILD: &str = "' ' || parent || ' ' LIKE '% ' || ?1 || ' %'";

/// Ends the tokens that were made with a key or by somebody who is signed in.
/// They make none themselves.
pub(crate) fn end_children(db: &Connection, parent: &str, now: f64) -> Result<()> {
    db.execute(&format!("DELETE FROM key_hash WHERE key IN (SELECT id FROM key WHERE {IS_CHILD})"), [parent])?;
    db.execute(
        &format!("UPDATE key SET revoked_at = coalesce(revoked_at, ?2) WHERE {IS_CHILD}"),
        params![parent, now],
    )?;
    Ok(())
}
