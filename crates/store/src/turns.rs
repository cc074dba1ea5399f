//! Turns: accepted in one transaction with their first event and their
//! idempotency key, finished in one with their last.

use cloister_types::transcript::Usage;
use cloister_types::wire::{ErrorBody, LastResponse, TurnStatus};
use cloister_types::{ResponseId, SessionId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::log::{self, LogItem};
use crate::{Result, Store, StoreError};

/// A turn as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTurn {
    /// The id.
    pub id: ResponseId,
    /// Its session.
    pub session: SessionId,
    /// The state.
    pub status: TurnStatus,
    /// Text of the final answer.
    pub output_text: String,
    /// Tokens.
    pub usage: Usage,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// Unix seconds.
    pub completed_at: Option<f64>,
}

impl StoredTurn {
    /// The turn as the session's record shows it, once it has ended.
    #[must_use]
    pub fn as_last_response(&self) -> Option<LastResponse> {
        Some(LastResponse {
            id: self.id.clone(),
            status: self.status,
            output_text: self.output_text.clone(),
            usage: self.usage,
            completed_at: self.completed_at?,
            error: self.error.clone(),
        })
    }
}

/// An idempotency key with what it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The client's key.
    pub key: String,
    /// Hash of session and body.
    pub fingerprint: [u8; 32],
}

/// A message that wants to become a turn.
#[derive(Debug, Clone)]
pub struct Accept {
    /// The new turn's id, if it is accepted.
    pub turn: ResponseId,
    /// Its session.
    pub session: SessionId,
    /// Who asks: idempotency keys are per caller.
    pub caller: String,
    /// The key, if there is one.
    pub idempotency: Option<Idempotency>,
    /// First event and first entry.
    pub items: Vec<LogItem>,
    /// Unix seconds.
    pub now: f64,
    /// How long the key is kept, in seconds.
    pub key_life: f64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// A new turn; everything is on disk.
    Accepted,
    /// The key stands for this turn.
    Replayed(ResponseId),
    /// The key stands for another session or body.
    Mismatch,
    /// The session has an open turn.
    Busy,
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// The state.
    pub status: TurnStatus,
    /// Text of the final answer.
    pub output_text: String,
    /// Tokens.
    pub usage: Usage,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// Unix seconds.
    pub now: f64,
}

fn from_row(row: &Row<'_>) -> Result<StoredTurn> {
    let broken = |what: &str| StoreError::Broken(format!("a turn's {what} is unreadable"));
    Ok(StoredTurn {
        id: row.get::<_, String>("id")?.parse().map_err(|_| broken("id"))?,
        session: row.get::<_, String>("session")?.parse().map_err(|_| broken("session"))?,
        status: TurnStatus::parse(&row.get::<_, String>("status")?).ok_or_else(|| broken("status"))?,
        output_text: row.get("output_text")?,
        usage: serde_json::from_str(&row.get::<_, String>("usage")?)?,
        error: row.get::<_, Option<String>>("error")?.map(|text| serde_json::from_str(&text)).transpose()?,
        completed_at: row.get("completed_at")?,
    })
}

fn look_up(db: &Connection, caller: &str, wanted: &Idempotency, now: f64) -> Result<Option<Acceptance>> {
    let found: Option<(Vec<u8>, String)> = db
        .prepare_cached("SELECT fingerprint, turn FROM idempotency WHERE caller = ?1 AND key = ?2 AND expires_at > ?3")?
        .query_row(params![caller, wanted.key, now], |row| Ok((row.get(0)?, row.get(1)?)))
        .optional()?;
    let Some((fingerprint, turn)) = found else { return Ok(None) };
    if fingerprint != wanted.fingerprint {
        return Ok(Some(Acceptance::Mismatch));
    }
    let turn = turn.parse().map_err(|_| StoreError::Broken("an idempotency key's turn is unreadable".into()))?;
    Ok(Some(Acceptance::Replayed(turn)))
}

impl Store {
    /// What a key stands for, without accepting anything.
    ///
    /// # Errors
    /// The store's.
    pub async fn find_key(&self, caller: &str, idempotency: Idempotency, now: f64) -> Result<Option<Acceptance>> {
        let caller = caller.to_owned();
        self.read(move |db| look_up(db, &caller, &idempotency, now)).await
    }

    /// Accepts a turn, or tells why not. Look-up and insert are one
    /// transaction of the one writer, so two racing retries give one turn.
    ///
    /// # Errors
    /// The store's.
    pub async fn accept_turn(&self, accept: Accept) -> Result<Acceptance> {
        self.write(move |db| {
            if let Some(wanted) = &accept.idempotency
                && let Some(known) = look_up(db, &accept.caller, wanted, accept.now)?
            {
                return Ok(known);
            }
            let open: bool = db
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM turn WHERE session = ?1 AND status = 'in_progress')")?
                .query_row([accept.session.as_str()], |row| row.get(0))?;
            if open {
                return Ok(Acceptance::Busy);
            }
            db.prepare_cached("INSERT INTO turn (id, session, created_at, status) VALUES (?1, ?2, ?3, 'in_progress')")?
                .execute(params![accept.turn.as_str(), accept.session.as_str(), accept.now])?;
            db.prepare_cached("UPDATE session SET last_activity = max(last_activity, ?2) WHERE id = ?1")?
                .execute(params![accept.session.as_str(), accept.now])?;
            if let Some(new) = &accept.idempotency {
                db.prepare_cached("INSERT OR REPLACE INTO idempotency (caller, key, fingerprint, turn, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![accept.caller, new.key, new.fingerprint, accept.turn.as_str(), accept.now + accept.key_life])?;
            }
            log::insert(db, &accept.turn, &accept.items)?;
            Ok(Acceptance::Accepted)
        })
        .await
    }

    /// Appends to a turn's log, and ends the turn in the same transaction if
    /// told how.
    ///
    /// # Errors
    /// [`StoreError::Ended`] if the turn has ended, or the store's; then
    /// nothing was appended.
    pub async fn append(&self, turn: &ResponseId, items: Vec<LogItem>, finish: Option<Finish>) -> Result<()> {
        let turn = turn.clone();
        self.write(move |db| {
            // A terminal event is the last one, whoever comes late.
            let open: bool = db
                .prepare_cached("SELECT EXISTS (SELECT 1 FROM turn WHERE id = ?1 AND status = 'in_progress')")?
                .query_row([turn.as_str()], |row| row.get(0))?;
            if !open {
                return Err(StoreError::Ended);
            }
            log::insert(db, &turn, &items)?;
            let Some(finish) = &finish else { return Ok(()) };
            let error = finish.error.as_ref().map(serde_json::to_string).transpose()?;
            db.prepare_cached("UPDATE turn SET status = ?2, output_text = ?3, usage = ?4, error = ?5, completed_at = ?6 WHERE id = ?1")?
                .execute(params![
                    turn.as_str(),
                    finish.status.as_str(),
                    finish.output_text,
                    serde_json::to_string(&finish.usage)?,
                    error,
                    finish.now
                ])?;
            db.prepare_cached(
                "UPDATE session SET last_activity = max(last_activity, ?2) WHERE id = (SELECT session FROM turn WHERE id = ?1)",
            )?
            .execute(params![turn.as_str(), finish.now])?;
            Ok(())
        })
        .await
    }

    /// A turn by its id.
    ///
    /// # Errors
    /// The store's.
    pub async fn turn(&self, id: &ResponseId) -> Result<Option<StoredTurn>> {
        let id = id.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT * FROM turn WHERE id = ?1")?;
            let mut rows = statement.query([id.as_str()])?;
            rows.next()?.map(from_row).transpose()
        })
        .await
    }

    /// The last ended turn of a session.
    ///
    /// # Errors
    /// The store's.
    pub async fn last_ended(&self, session: &SessionId) -> Result<Option<StoredTurn>> {
        let session = session.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT * FROM turn WHERE session = ?1 AND status <> 'in_progress' ORDER BY completed_at DESC, created_at DESC LIMIT 1",
            )?;
            let mut rows = statement.query([session.as_str()])?;
            rows.next()?.map(from_row).transpose()
        })
        .await
    }

    /// Turns that no terminal event has ended.
    ///
    /// # Errors
    /// The store's.
    pub async fn open_turns(&self) -> Result<Vec<StoredTurn>> {
        self.read(|db| {
            let mut statement =
                db.prepare_cached("SELECT * FROM turn WHERE status = 'in_progress' ORDER BY created_at")?;
            let mut rows = statement.query([])?;
            let mut turns = Vec::new();
            while let Some(row) = rows.next()? {
                turns.push(from_row(row)?);
            }
            Ok(turns)
        })
        .await
    }
}
