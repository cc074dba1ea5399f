//! Turns: accepted in one transaction with their first event and their
//! idempotency key; they wait, run, and end (in `append`).

use cloister_types::transcript::Usage;
use cloister_types::wire::{ErrorBody, LastResponse, OnBusy, TurnStatus};
use cloister_types::{ResponseId, SessionId};
use rusqlite::{Connection, OptionalExtension, Row, params};

use crate::append::begin_next;
use crate::live::{Live, State};
use crate::row::{self, LogItem, Mark};
use crate::{Result, Store, StoreError, log};

/// A turn as stored.
#[derive(Debug, Clone, PartialEq)]
pub struct StoredTurn {
    /// The id.
    pub id: ResponseId,
    /// Its session.
    pub session: SessionId,
    /// When it was accepted, Unix seconds.
    pub created_at: f64,
    /// The state.
    pub status: TurnStatus,
    /// Its place in the conversation, from 1, once it has begun.
    pub started: Option<u64>,
    /// How often it was begun.
    pub attempt: u32,
    /// A cancel was promised.
    pub cancelling: bool,
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
    /// What to do if another turn is open, and how many may wait.
    pub on_busy: OnBusy,
    /// Most turns that may wait.
    pub most_waiting: u32,
    /// First event and first entry.
    pub items: Vec<LogItem>,
    /// Unix seconds.
    pub now: f64,
    /// The same moment on the clock of lives.
    pub life: f64,
    /// How long the key is kept, in seconds.
    pub key_life: f64,
}

/// What became of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Acceptance {
    /// A new turn, which has begun; everything is on disk.
    Begun,
    /// A new turn, which waits.
    Waiting,
    /// The key stands for this turn.
    Replayed(ResponseId),
    /// The key stands for another session or body.
    Mismatch,
    /// The session has an open turn.
    Busy,
    /// As many wait as may.
    QueueFull,
}

fn from_row(row: &Row<'_>) -> Result<StoredTurn> {
    let broken = |what: &str| StoreError::Damaged(format!("a turn's {what} is unreadable"));
    Ok(StoredTurn {
        id: row.get::<_, String>("id")?.parse().map_err(|_| broken("id"))?,
        session: row.get::<_, String>("session")?.parse().map_err(|_| broken("session"))?,
        created_at: row.get("created_at")?,
        started: row.get::<_, Option<i64>>("started")?.map(i64::cast_unsigned),
        attempt: row.get("attempt")?,
        cancelling: row.get("cancelling")?,
        status: TurnStatus::parse(&row.get::<_, String>("status")?).ok_or_else(|| broken("status"))?,
        output_text: row.get("output_text")?,
        usage: serde_json::from_str(&row.get::<_, String>("usage")?).map_err(|_| broken("usage"))?,
        error: row
            .get::<_, Option<String>>("error")?
            .map(|text| serde_json::from_str(&text).map_err(|_| broken("error")))
            .transpose()?,
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

/// A turn's key, and its first rows with their ids.
type Inserted = (i64, Vec<(i64, row::Row)>);

/// Inserts a turn with its first rows.
fn insert(db: &Connection, accept: &Accept, waits: bool) -> Result<Inserted> {
    let place = match accept.on_busy {
        OnBusy::Interrupt => "(SELECT coalesce(min(place), 0) - 1 FROM turn WHERE session = ?2 AND status = 'queued')",
        _ => "(SELECT coalesce(max(place), 0) + 1 FROM turn WHERE session = ?2 AND status = 'queued')",
    };
    let started = if waits { "NULL" } else { "(SELECT coalesce(max(started), 0) + 1 FROM turn WHERE session = ?2)" };
    let status = if waits { TurnStatus::Queued } else { TurnStatus::InProgress };
    let text = format!(
        "INSERT INTO turn (id, session, created_at, status, place, started) VALUES (?1, ?2, ?3, ?4, {place}, {started})"
    );
    let key = db.prepare_cached(&text)?.insert(params![
        accept.turn.as_str(),
        accept.session.as_str(),
        accept.now,
        status.as_str()
    ])?;
    let mut rows = Vec::new();
    let mut next = 0;
    for item in &accept.items {
        let row = row::Row::new(item.clone(), next)?;
        next = row.seq() + u64::from(matches!(item, LogItem::Event(_)));
        rows.push((log::Insert::new(db)?.row(key, &row, FIRST)?, row));
    }
    Ok((key, rows))
}

/// Where every turn begins.
const FIRST: Mark = Mark { attempt: 1, offset: 0, at_ms: 0 };

impl Store {
    /// What a key stands for, without accepting anything.
    ///
    /// # Errors
    /// The store's.
    pub async fn find_key(&self, caller: &str, idempotency: Idempotency, life: f64) -> Result<Option<Acceptance>> {
        let caller = caller.to_owned();
        self.read(move |db| look_up(db, &caller, &idempotency, life)).await
    }

    /// Accepts a turn, or tells why not. Look-up and insert are one
    /// transaction of the one writer, so two racing retries give one turn. An
    /// interrupting one marks the open turn as being cancelled with the same
    /// stroke.
    ///
    /// # Errors
    /// The store's.
    pub async fn accept_turn(&self, accept: Accept) -> Result<Acceptance> {
        let (turn, inner) = (accept.turn.clone(), self.inner.clone());
        let work = move |db: &Connection| {
            let refused = |acceptance| Ok((acceptance, None));
            if let Some(wanted) = &accept.idempotency
                && let Some(known) = look_up(db, &accept.caller, wanted, accept.life)?
            {
                return refused(known);
            }
            let session = accept.session.as_str();
            let count = |status: TurnStatus| -> Result<u32> {
                let mut statement =
                    db.prepare_cached("SELECT count(*) FROM turn WHERE session = ?1 AND status = ?2")?;
                Ok(statement.query_row([session, status.as_str()], |row| row.get(0))?)
            };
            let waiting = count(TurnStatus::Queued)?;
            let waits = waiting > 0 || count(TurnStatus::InProgress)? > 0;
            if waits && accept.on_busy == OnBusy::Reject {
                return refused(Acceptance::Busy);
            }
            if waits && waiting >= accept.most_waiting {
                return refused(Acceptance::QueueFull);
            }
            let inserted = insert(db, &accept, waits)?;
            if accept.on_busy == OnBusy::Interrupt {
                db.prepare_cached(
                    "UPDATE turn SET cancelling = 1 WHERE session = ?1 AND status = 'in_progress' AND id <> ?2",
                )?
                .execute([session, accept.turn.as_str()])?;
            }
            db.prepare_cached(
                "UPDATE session SET last_activity = max(last_activity, ?2), active = max(active, ?3) WHERE id = ?1",
            )?
            .execute(params![session, accept.now, accept.life])?;
            if let Some(new) = &accept.idempotency {
                db.prepare_cached("INSERT OR REPLACE INTO idempotency (caller, key, fingerprint, turn, expires_at) VALUES (?1, ?2, ?3, ?4, ?5)")?
                    .execute(params![accept.caller, new.key, new.fingerprint, accept.turn.as_str(), accept.life + accept.key_life])?;
            }
            Ok((if waits { Acceptance::Waiting } else { Acceptance::Begun }, Some(inserted)))
        };
        let settle = move |(_, inserted): &(Acceptance, Option<Inserted>)| {
            let Some((key, rows)) = inserted else { return };
            let mut state = State::new(FIRST);
            for (id, row) in rows {
                state.push(*id, row.clone());
            }
            inner.lives.insert(turn, Live::new(*key, state));
        };
        Ok(self.inner.writer.run(false, work, settle).await?.0)
    }

    /// Notes that an open turn is to be cancelled; false if it is not open. A
    /// cancel that was promised is kept by whoever comes after.
    ///
    /// # Errors
    /// The store's.
    pub async fn note_cancel(&self, turn: &ResponseId) -> Result<bool> {
        let turn = turn.clone();
        self.write_essential(move |db| {
            let text = "UPDATE turn SET cancelling = 1 WHERE id = ?1 AND status IN ('in_progress', 'queued')";
            Ok(db.prepare_cached(text)?.execute([turn.as_str()])? > 0)
        })
        .await
    }

    /// Lets the turn begin that waits in front, if none is open.
    ///
    /// # Errors
    /// The store's.
    pub async fn begin_next(&self, session: &SessionId) -> Result<Option<ResponseId>> {
        let session = session.clone();
        self.write(move |db| begin_next(db, session.as_str())).await
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

    /// The last ended turn of a session, and how many wait.
    ///
    /// # Errors
    /// The store's.
    pub async fn last_ended(&self, session: &SessionId) -> Result<(Option<StoredTurn>, u32)> {
        let session = session.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT * FROM turn WHERE session = ?1 AND status NOT IN ('in_progress', 'queued')
                 ORDER BY ended DESC, key DESC LIMIT 1",
            )?;
            let mut rows = statement.query([session.as_str()])?;
            let last = rows.next()?.map(from_row).transpose()?;
            let mut count = db.prepare_cached("SELECT count(*) FROM turn WHERE session = ?1 AND status = 'queued'")?;
            Ok((last, count.query_row([session.as_str()], |row| row.get(0))?))
        })
        .await
    }

    /// Turns of a session that have begun, from a place in the conversation
    /// on, at most `limit`.
    ///
    /// # Errors
    /// The store's.
    pub async fn begun_turns(&self, session: &SessionId, from: u64, limit: usize) -> Result<Vec<StoredTurn>> {
        let session = session.clone();
        self.turns("session = ?1 AND started >= ?2 ORDER BY started LIMIT ?3", move |statement| {
            Ok(statement.query(params![
                session.as_str(),
                i64::try_from(from).unwrap_or(i64::MAX),
                limit.min(1 << 20) as i64
            ])?)
        })
        .await
    }

    /// Turns of a session that wait, in their order.
    ///
    /// # Errors
    /// The store's.
    pub async fn waiting_turns(&self, session: &SessionId) -> Result<Vec<StoredTurn>> {
        let session = session.clone();
        self.turns("session = ?1 AND status = 'queued' ORDER BY place", move |statement| {
            Ok(statement.query([session.as_str()])?)
        })
        .await
    }

    /// Turns without a terminal event: those that run, then those that wait.
    ///
    /// # Errors
    /// The store's.
    pub async fn open_turns(&self) -> Result<Vec<StoredTurn>> {
        self.turns("status IN ('in_progress', 'queued') ORDER BY status, place, key", |statement| {
            Ok(statement.query([])?)
        })
        .await
    }

    async fn turns(
        &self,
        which: &'static str,
        query: impl for<'s> FnOnce(&'s mut rusqlite::CachedStatement<'_>) -> Result<rusqlite::Rows<'s>> + Send + 'static,
    ) -> Result<Vec<StoredTurn>> {
        self.read(move |db| {
            let mut statement = db.prepare_cached(&format!("SELECT * FROM turn WHERE {which}"))?;
            let mut rows = query(&mut statement)?;
            let mut turns = Vec::new();
            while let Some(row) = rows.next()? {
                turns.push(from_row(row)?);
            }
            Ok(turns)
        })
        .await
    }
}
