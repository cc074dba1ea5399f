//! Appending to a turn's log: judged against what is known of the turn, then
//! written, then made visible. Whoever writes for an attempt that is no longer
//! the turn's, or at another place of its spool, is refused.

use std::collections::{HashMap, HashSet};

use cloister_types::ResponseId;
use cloister_types::transcript::{Metered, Usage};
use cloister_types::wire::{ErrorBody, TurnStatus};
use rusqlite::{Connection, OptionalExtension, params};
use serde_json::{Map, Value};

use crate::live::{Live, Lives};
use crate::row::{Chunk, LogItem, Mark, Row};
use crate::{Result, Store, StoreError, log};

/// Bytes of rows after which they are closed into a chunk.
const CHUNK_BYTES: usize = 256 << 10;

/// How a turn ended.
#[derive(Debug, Clone, PartialEq)]
pub struct Finish {
    /// The state.
    pub status: TurnStatus,
    /// Text of the final answer.
    pub output_text: String,
    /// Tokens.
    pub usage: Usage,
    /// What of the session's model calls is accounted for with it.
    pub metered: Option<Metered>,
    /// Why it failed.
    pub error: Option<ErrorBody>,
    /// Unix seconds.
    pub now: f64,
    /// The same moment on the clock of lives.
    pub life: f64,
}

/// Something for a turn's log.
#[derive(Debug, Clone, PartialEq)]
pub struct Append {
    turn: ResponseId,
    items: Vec<LogItem>,
    /// Where the turn must stand: attempt, and bytes of its spool.
    from: (u32, u64),
    to: Mark,
    finish: Option<Finish>,
}

impl Append {
    /// What `from..to` of the spool holds.
    #[must_use]
    pub fn new(turn: ResponseId, items: Vec<LogItem>, from: u64, to: Mark) -> Self {
        Self { turn, items, from: (to.attempt, from), to, finish: None }
    }

    /// What does not come from a spool: appended where the turn stands.
    #[must_use]
    pub fn at(turn: ResponseId, items: Vec<LogItem>, mark: Mark) -> Self {
        Self { turn, items, from: (mark.attempt, mark.offset), to: mark, finish: None }
    }

    /// Ends the turn, in the same transaction.
    #[must_use]
    pub fn finish(self, finish: Finish) -> Self {
        Self { finish: Some(finish), ..self }
    }

    /// Begins the next attempt, with an empty spool. Whoever still writes for
    /// the present one is refused from then on.
    #[must_use]
    pub fn renew(self) -> Self {
        let to = Mark { attempt: self.to.attempt + 1, offset: 0, ..self.to };
        Self { to, ..self }
    }

    /// How it ends the turn, if it does.
    #[must_use]
    pub fn status(&self) -> Option<TurnStatus> {
        self.finish.as_ref().map(|finish| finish.status)
    }

    /// What it says that the turn used.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.finish.as_ref().map(|finish| finish.usage).unwrap_or_default()
    }

    /// When it ends the turn, if it does: by the wall, and on the clock of lives.
    #[must_use]
    pub fn ends_at(&self) -> Option<(f64, f64)> {
        self.finish.as_ref().map(|finish| (finish.now, finish.life))
    }

    /// Puts another terminal event in the place of the one that it has.
    #[must_use]
    pub fn end_with(mut self, event: impl FnOnce(u64) -> LogItem, finish: Finish) -> Self {
        if let Some(last) = self.items.last_mut()
            && let Some(seq) = last.seq()
        {
            *last = event(seq);
        }
        self.finish(finish)
    }

    /// Puts metered figures in the place of what the agent says, in its end and
    /// in its terminal event.
    ///
    /// # Errors
    /// The event is not JSON.
    pub fn meter(&mut self, usage: Usage, metered: Option<Metered>) -> Result<()> {
        let Some(finish) = &mut self.finish else { return Ok(()) };
        finish.usage = usage;
        finish.metered = metered;
        if let Some(LogItem::Event(event)) = self.items.last_mut() {
            let mut data: Map<String, Value> = serde_json::from_str(&event.data)?;
            if let Some(said) = data.get_mut("usage") {
                *said = serde_json::to_value(usage)?;
                event.data = serde_json::to_string(&data)?.into();
            }
        }
        Ok(())
    }

    /// Roughly what its rows take.
    pub(crate) fn bytes(&self) -> usize {
        let rows = self.items.iter().map(|item| match item {
            LogItem::Event(event) => event.data.len() + 100,
            _ => 2048,
        });
        rows.sum()
    }

    pub(crate) fn is_essential(&self) -> bool {
        self.finish.is_some()
    }

    /// Writes it in the open transaction.
    pub(crate) fn stage(&self, batch: &mut Batch<'_>, lives: &Lives) -> Result<Staged> {
        let live = lives.get(&self.turn).ok_or(StoreError::Ended)?;
        // A turn has one writer, which waits for each append.
        if !batch.turns.insert(live.key) {
            return Err(StoreError::Stale);
        }
        let db = batch.db;
        let (rows, chunk, closed) = {
            let state = live.lock();
            if let Some(damage) = &state.damage {
                // Nothing may be added to what cannot be trusted; but the turn ends.
                return if self.is_essential() {
                    self.end(db, live.key, None)
                } else {
                    Err(StoreError::Damaged(damage.clone()))
                };
            }
            if (state.mark.attempt, state.mark.offset) != self.from {
                return Err(StoreError::Stale);
            }
            let rows = self.rows(state.next)?;
            let full = state.bytes > CHUNK_BYTES && state.next > state.first;
            let chunk = if self.finish.is_some() {
                Chunk::pack(state.rows.iter().map(|(_, row)| row).chain(&rows), self.to)
            } else if full {
                Chunk::pack(state.rows.iter().map(|(_, row)| row), state.mark)
            } else {
                None
            };
            let closed: Vec<i64> =
                if chunk.is_some() { state.rows.iter().map(|(id, _)| *id).collect() } else { Vec::new() };
            (rows, chunk, closed)
        };
        // From here on it touches the database: what fails fails the batch.
        let whole = |error| match error {
            StoreError::Damaged(what) => StoreError::Broken(what),
            error => error,
        };
        self.write(batch, &live, rows, chunk, &closed).map_err(whole)
    }

    fn write(
        &self,
        batch: &mut Batch<'_>,
        live: &Live,
        mut rows: Vec<Row>,
        chunk: Option<Chunk>,
        closed: &[i64],
    ) -> Result<Staged> {
        let db = batch.db;
        if let Some(chunk) = &chunk {
            log::close(db, live.key, chunk, closed)?;
        }
        let last = rows.last().map(Row::seq);
        if self.finish.is_some() {
            // They are in the chunk.
            rows.clear();
        }
        let rows = rows.into_iter().map(|row| Ok((batch.insert.row(live.key, &row, self.to)?, row)));
        let rows = rows.collect::<Result<Vec<_>>>()?;
        if self.to.attempt != self.from.0 {
            db.prepare_cached("UPDATE turn SET attempt = ?2 WHERE key = ?1")?
                .execute(params![live.key, self.to.attempt])?;
        }
        let closed = chunk.map(|chunk| (closed.len(), chunk.next));
        match self.finish {
            Some(_) => self.end(db, live.key, last),
            None => Ok(Staged { rows, closed, next_turn: None, over: false }),
        }
    }

    /// The rows, if their events are the turn's next ones.
    fn rows(&self, mut next: u64) -> Result<Vec<Row>> {
        let mut rows = Vec::with_capacity(self.items.len());
        for item in &self.items {
            if let LogItem::Event(event) = item {
                if event.seq != next {
                    return Err(StoreError::Stale);
                }
                rows.push(Row::new(item.clone(), next)?);
                next += 1;
            } else {
                rows.push(Row::new(item.clone(), next)?);
            }
        }
        let terminal = |row: &Row| matches!(row, Row::Event(event) if event.kind.is_terminal());
        let last_is_terminal = rows.last().is_some_and(terminal);
        if self.finish.is_some() != last_is_terminal || rows.iter().filter(|row| terminal(row)).count() > 1 {
            // A mistake of ours, and of this append alone.
            tracing::error!(turn = %self.turn, "a turn ends with its one terminal event");
            return Err(StoreError::Stale);
        }
        Ok(rows)
    }

    /// Marks the turn ended, and lets the next that waits begin.
    fn end(&self, db: &Connection, key: i64, last: Option<u64>) -> Result<Staged> {
        let over = |next_turn| Staged { rows: Vec::new(), closed: None, next_turn, over: true };
        let Some(finish) = &self.finish else { return Ok(over(None)) };
        let error = finish.error.as_ref().map(serde_json::to_string).transpose()?;
        let session: String = db
            .prepare_cached(
                "UPDATE turn SET status = ?2, output_text = ?3, usage = ?4, error = ?5, completed_at = ?6, last_seq = ?7, ended = ?8
                 WHERE key = ?1 RETURNING session",
            )?
            .query_row(
                params![
                    key,
                    finish.status.as_str(),
                    finish.output_text,
                    serde_json::to_string(&finish.usage)?,
                    error,
                    finish.now,
                    last.map(u64::cast_signed),
                    finish.life
                ],
                |row| row.get(0),
            )?;
        db.prepare_cached(
            "UPDATE session SET last_activity = max(last_activity, ?2), active = max(active, ?3), rested = max(rested, ?3) WHERE id = ?1",
        )?
        .execute(params![session, finish.now, finish.life])?;
        if let Some(metered) = &finish.metered {
            db.prepare_cached("UPDATE session SET metered = ?2 WHERE id = ?1")?
                .execute(params![session, serde_json::to_string(metered)?])?;
        }
        Ok(over(begin_next(db, &session)?))
    }
}

/// Begins the turn that waits in front, unless one is open.
pub(crate) fn begin_next(db: &Connection, session: &str) -> Result<Option<ResponseId>> {
    let open =
        db.prepare_cached("SELECT 1 FROM turn WHERE session = ?1 AND status = 'in_progress'")?.exists([session])?;
    if open {
        return Ok(None);
    }
    let next: Option<String> = db
        .prepare_cached(
            "UPDATE turn SET status = 'in_progress', started = (SELECT coalesce(max(started), 0) + 1 FROM turn WHERE session = ?1)
             WHERE key = (SELECT key FROM turn WHERE session = ?1 AND status = 'queued' ORDER BY place LIMIT 1) RETURNING id",
        )?
        .query_row([session], |row| row.get(0))
        .optional()?;
    next.map(|id| id.parse().map_err(|_| StoreError::Broken(format!("turn id {id:?}")))).transpose()
}

/// What the appends of one transaction share.
pub(crate) struct Batch<'c> {
    db: &'c Connection,
    insert: log::Insert<'c>,
    turns: HashSet<i64>,
}

impl<'c> Batch<'c> {
    pub(crate) fn new(db: &'c Connection) -> Result<Self> {
        Ok(Self { db, insert: log::Insert::new(db)?, turns: HashSet::new() })
    }
}

/// Outcomes of the appends of a batch, by their place in it.
pub(crate) type Staging = HashMap<usize, Result<Staged>>;

/// An append that stands in the transaction.
pub(crate) struct Staged {
    rows: Vec<(i64, Row)>,
    /// How many rows a chunk took in, and its end.
    closed: Option<(usize, u64)>,
    next_turn: Option<ResponseId>,
    over: bool,
}

impl Staged {
    /// It is durable: now it may be seen.
    pub(crate) fn settle(self, append: &Append, lives: &Lives) -> Option<ResponseId> {
        if self.over {
            lives.remove(&append.turn);
        } else if let Some(live) = lives.get(&append.turn) {
            let mut state = live.lock();
            if let Some((count, next)) = self.closed {
                state.chunked(count, next);
            }
            for (id, row) in self.rows {
                state.push(id, row);
            }
            state.mark = append.to;
        }
        self.next_turn
    }
}

impl Store {
    /// Appends, and ends the turn if told so. Durable when this returns. The
    /// turn that had waited and begins with that, if there is one.
    ///
    /// # Errors
    /// Nothing was appended: [`StoreError::Ended`], [`StoreError::Stale`],
    /// [`StoreError::Damaged`], [`StoreError::Full`], or the store's.
    pub async fn append(&self, append: Append) -> Result<Option<ResponseId>> {
        self.inner.writer.append(append).await
    }
}
