//! Sessions.

use cloister_types::SessionId;
use cloister_types::egress::{ConnectionName, Policy};
use cloister_types::scope::FileAccess;
use cloister_types::transcript::Metered;
use rusqlite::{Row, params};
use serde_json::{Map, Value};

use crate::{Result, Store, StoreError};

/// Moments of a session on the clock of lives, in seconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Life {
    /// It was created.
    pub born: f64,
    /// A message, an answer or a file call.
    pub active: f64,
    /// Its last turn ended; its creation before the first.
    pub rested: f64,
}

/// A session as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredSession {
    /// The id.
    pub id: SessionId,
    /// Unix seconds.
    pub created_at: f64,
    /// Unix seconds.
    pub last_activity: f64,
    /// When it began, when it was last active and when its last turn ended, on
    /// the clock of lives.
    pub life: Life,
    /// Lives on when idle?
    pub persistent: bool,
    /// Longest life in seconds.
    pub ttl: Option<u64>,
    /// The client's own.
    pub metadata: Map<String, Value>,
    /// The scope as declared.
    pub file_access: FileAccess,
    /// Model name.
    pub model: String,
    /// The tenant's prompt text at the time of creation.
    pub context: String,
    /// Where it may go.
    pub egress: Policy,
    /// The connections that it may use.
    pub connections: Vec<ConnectionName>,
    /// What of its model calls its ended turns account for.
    pub metered: Metered,
}

fn from_row(row: &Row<'_>) -> Result<StoredSession> {
    let id: String = row.get("id")?;
    Ok(StoredSession {
        id: id.parse().map_err(|_| StoreError::Broken(format!("session id {id:?}")))?,
        created_at: row.get("created_at")?,
        last_activity: row.get("last_activity")?,
        life: Life { born: row.get("born")?, active: row.get("active")?, rested: row.get("rested")? },
        persistent: row.get("persistent")?,
        ttl: row.get::<_, Option<i64>>("ttl")?.map(i64::cast_unsigned),
        metadata: serde_json::from_str(&row.get::<_, String>("metadata")?)?,
        file_access: serde_json::from_str(&row.get::<_, String>("file_access")?)?,
        model: row.get("model")?,
        context: row.get("context")?,
        egress: serde_json::from_str(&row.get::<_, String>("egress")?)?,
        connections: serde_json::from_str(&row.get::<_, String>("connections")?)?,
        metered: serde_json::from_str(&row.get::<_, String>("metered")?)?,
    })
}

impl Store {
    /// Adds a session.
    ///
    /// # Errors
    /// The store's.
    pub async fn add_session(&self, session: StoredSession) -> Result<()> {
        self.write(move |db| {
            let session = &session;
            let metadata = serde_json::to_string(&session.metadata)?;
            let file_access = serde_json::to_string(&session.file_access)?;
            db.prepare_cached(
                "INSERT INTO session (id, created_at, last_activity, persistent, ttl, metadata, file_access, model, context,
                  born, active, rested, egress, connections)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14)",
            )?
            .execute(params![
                session.id.as_str(),
                session.created_at,
                session.last_activity,
                session.persistent,
                session.ttl.map(u64::cast_signed),
                metadata,
                file_access,
                session.model,
                session.context,
                session.life.born,
                session.life.active,
                session.life.rested,
                serde_json::to_string(&session.egress)?,
                serde_json::to_string(&session.connections)?
            ])?;
            Ok(())
        })
        .await
    }

    /// Every session that is not deleted, oldest first.
    ///
    /// # Errors
    /// The store's.
    pub async fn sessions(&self) -> Result<Vec<StoredSession>> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT * FROM session WHERE deleted_at IS NULL ORDER BY created_at, id")?;
            let mut rows = statement.query([])?;
            let mut sessions = Vec::new();
            while let Some(row) = rows.next()? {
                sessions.push(from_row(row)?);
            }
            Ok(sessions)
        })
        .await
    }

    /// Records activity; never moves it back.
    ///
    /// # Errors
    /// The store's.
    pub async fn touch_session(&self, id: &SessionId, now: f64, life: f64) -> Result<()> {
        let id = id.clone();
        self.write(move |db| {
            db.prepare_cached(
                "UPDATE session SET last_activity = max(last_activity, ?2), active = max(active, ?3) WHERE id = ?1",
            )?
            .execute(params![id.as_str(), now, life])?;
            Ok(())
        })
        .await
    }

    /// Marks a session deleted. Its rows stay until [`Store::purge`], so that
    /// whoever is reading its last turn can finish.
    ///
    /// # Errors
    /// The store's.
    pub async fn delete_session(&self, id: &SessionId, life: f64) -> Result<()> {
        let id = id.clone();
        self.write_essential(move |db| {
            db.execute("UPDATE session SET deleted_at = ?2 WHERE id = ?1", params![id.as_str(), life])?;
            Ok(())
        })
        .await
    }

    /// Removes what was deleted before `deleted_before` and idempotency keys
    /// that expired before `life`.
    ///
    /// # Errors
    /// The store's.
    pub async fn purge(&self, deleted_before: f64, life: f64) -> Result<()> {
        self.write_essential(move |db| {
            const OVER: &str = "status NOT IN ('in_progress', 'queued')";
            const GONE: &str = "SELECT id FROM session WHERE deleted_at < ?1";
            for table in ["log", "chunk"] {
                db.execute(
                    &format!(
                        "DELETE FROM {table} WHERE turn IN (SELECT key FROM turn WHERE session IN ({GONE}) AND {OVER})"
                    ),
                    [deleted_before],
                )?;
            }
            db.execute(&format!("DELETE FROM turn WHERE session IN ({GONE}) AND {OVER}"), [deleted_before])?;
            db.execute("DELETE FROM session WHERE deleted_at < ?1", [deleted_before])?;
            db.execute("DELETE FROM idempotency WHERE expires_at < ?1", [life])?;
            Ok(())
        })
        .await
    }
}
