//! The event log: appending to it, and reading events back from rows in
//! memory and chunks on disk.

use cloister_types::event::StoredEvent;
use cloister_types::transcript::Entry;
use cloister_types::{ResponseId, SessionId};
use rusqlite::{CachedStatement, Connection, OptionalExtension, params};

use crate::live::{State, cut};
use crate::row::{Chunk, LogItem, Mark, Row, Silent, merge};
use crate::{Result, Store, StoreError};

/// The statement that appends a row: nearly all that is ever written.
pub(crate) struct Insert<'c>(CachedStatement<'c>);

impl<'c> Insert<'c> {
    pub(crate) fn new(db: &'c Connection) -> Result<Self> {
        Ok(Self(db.prepare_cached(
            "INSERT INTO log (turn, seq, kind, body, attempt, mark, at_ms, crc) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
        )?))
    }

    /// Appends one row; its id.
    pub(crate) fn row(&mut self, turn: i64, row: &Row, mark: Mark) -> Result<i64> {
        let (seq, offset, at_ms) = (row.seq().cast_signed(), mark.offset.cast_signed(), mark.at_ms.cast_signed());
        let values = params![turn, seq, row.kind(), row.body(), mark.attempt, offset, at_ms, row.crc(turn, mark)];
        Ok(self.0.insert(values)?)
    }
}

/// Stores a chunk and removes the rows that it replaces.
pub(crate) fn close(db: &Connection, turn: i64, chunk: &Chunk, rows: &[i64]) -> Result<()> {
    db.prepare_cached(
        "INSERT INTO chunk (turn, first, next, attempt, mark, at_ms, events, rest, crc)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9)",
    )?
    .execute(params![
        turn,
        chunk.first.cast_signed(),
        chunk.next.cast_signed(),
        chunk.mark.attempt,
        chunk.mark.offset.cast_signed(),
        chunk.mark.at_ms.cast_signed(),
        chunk.events,
        chunk.rest,
        chunk.crc(turn)
    ])?;
    let mut delete = db.prepare_cached("DELETE FROM log WHERE id = ?1")?;
    for id in rows {
        delete.execute([id])?;
    }
    Ok(())
}

/// The chunks of a turn that hold events from `from` on; each checked.
pub(crate) fn chunks(db: &Connection, turn: i64, from: u64) -> Result<Vec<Result<Chunk>>> {
    let mut statement = db.prepare_cached(
        "SELECT first, next, attempt, mark, at_ms, events, rest, crc FROM chunk WHERE turn = ?1 AND next > ?2 ORDER BY first",
    )?;
    let mut rows = statement.query(params![turn, from.cast_signed()])?;
    let mut chunks = Vec::new();
    while let Some(row) = rows.next()? {
        chunks.push(read_chunk(turn, row));
    }
    Ok(chunks)
}

fn read_chunk(turn: i64, row: &rusqlite::Row<'_>) -> Result<Chunk> {
    let unreadable = |_| StoreError::Damaged("a chunk of the log is unreadable".into());
    let number = |index: usize| row.get::<_, i64>(index).map(i64::cast_unsigned).map_err(unreadable);
    let chunk = Chunk {
        first: number(0)?,
        next: number(1)?,
        mark: Mark { attempt: row.get(2).map_err(unreadable)?, offset: number(3)?, at_ms: number(4)? },
        events: row.get(5).map_err(unreadable)?,
        rest: row.get(6).map_err(unreadable)?,
    };
    if row.get::<_, u32>(7).map_err(unreadable)? != chunk.crc(turn) {
        return Err(StoreError::Damaged("a chunk of the log is not what was written".into()));
    }
    Ok(chunk)
}

/// Key of a turn, and the number of its last event if it has ended.
fn find(db: &Connection, turn: &ResponseId) -> Result<Option<(i64, bool, Option<u64>)>> {
    let mut statement = db.prepare_cached("SELECT key, status, last_seq FROM turn WHERE id = ?1")?;
    let found = statement.query_row([turn.as_str()], |row| {
        let status: String = row.get(1)?;
        let over = !matches!(status.as_str(), "queued" | "in_progress");
        Ok((row.get(0)?, over, row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned)))
    });
    Ok(found.optional()?)
}

fn missing() -> StoreError {
    StoreError::Damaged("a part of the log is missing".into())
}

/// Events of a turn from its chunks.
fn events_of_chunks(db: &Connection, turn: &ResponseId, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
    let Some((key, over, last)) = find(db, turn)? else { return Ok(Vec::new()) };
    if over && last.is_none() {
        return Err(missing());
    }
    match chunks(db, key, from)?.into_iter().next().transpose()? {
        Some(chunk) if chunk.first > from => Err(missing()),
        Some(chunk) => Ok(cut(chunk.events()?.into_iter().filter(|event| event.seq >= from), limit)),
        None if last.is_some_and(|last| from <= last) => Err(missing()),
        None => Ok(Vec::new()),
    }
}

/// The whole log of an ended turn, checked.
fn whole(db: &Connection, key: i64, last: Option<u64>) -> Result<(Vec<StoredEvent>, Vec<Silent>)> {
    let (mut events, mut rest) = (Vec::new(), Vec::new());
    for chunk in chunks(db, key, 0)? {
        let chunk = chunk?;
        if chunk.first != events.len() as u64 {
            return Err(missing());
        }
        events.extend(chunk.events()?);
        rest.extend(chunk.rest()?);
    }
    match last {
        Some(last) if events.len() as u64 == last + 1 => Ok((events, rest)),
        _ => Err(missing()),
    }
}

fn entries_of_chunks(db: &Connection, key: i64) -> Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for chunk in chunks(db, key, 0)? {
        for silent in chunk?.rest()? {
            entries.extend(silent.entry().transpose()?);
        }
    }
    Ok(entries)
}

impl Store {
    /// Up to `limit` events of a turn with numbers of at least `from`; fewer if
    /// they are large, so that a page fits a reader's memory. None at the
    /// present end.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the store's.
    pub async fn events(&self, turn: &ResponseId, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
        if let Some(live) = self.inner.lives.get(turn)
            && let Some(page) = live.page(from, limit)
        {
            return page;
        }
        let turn = turn.clone();
        self.read(move |db| events_of_chunks(db, &turn, from, limit)).await
    }

    /// Number that the next event of a turn has or would have.
    ///
    /// # Errors
    /// The store's.
    pub async fn next_seq(&self, turn: &ResponseId) -> Result<Option<u64>> {
        if let Some(live) = self.inner.lives.get(turn) {
            return Ok(Some(live.lock().next));
        }
        let turn = turn.clone();
        self.read(move |db| Ok(find(db, &turn)?.and_then(|(_, _, last)| last).map(|last| last + 1))).await
    }

    /// Everything that an open turn's log holds, and how far it has come.
    ///
    /// # Errors
    /// [`StoreError::Ended`] if it is not open, [`StoreError::Damaged`].
    pub async fn log_of_open(&self, turn: &ResponseId) -> Result<(Vec<LogItem>, Mark)> {
        let live = self.inner.lives.get(turn).ok_or(StoreError::Ended)?;
        let (mut state, key) = (live.lock().clone(), live.key);
        if let Some(damage) = state.damage.take() {
            return Err(StoreError::Damaged(damage));
        }
        let State { rows, first, mark, .. } = state;
        let read = self.read(move |db| {
            let (mut events, mut rest) = (Vec::new(), Vec::new());
            for chunk in chunks(db, key, 0)? {
                let chunk = chunk?;
                // One that has just been closed is in the rows as well.
                if chunk.first < first {
                    events.extend(chunk.events()?);
                    rest.extend(chunk.rest()?);
                }
            }
            for (_, row) in rows {
                match row {
                    Row::Event(event) => events.push(event),
                    Row::Silent(silent) => rest.push(silent),
                }
            }
            Ok((merge(events, rest)?, mark))
        });
        let outcome = read.await;
        if let Err(StoreError::Damaged(what)) = &outcome {
            // Nothing is added to it from now on.
            live.lock().damage.get_or_insert_with(|| what.clone());
        }
        outcome
    }

    /// The conversation of a session as far as its turns have ended, in the
    /// order in which they began.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the store's.
    pub async fn conversation(&self, session: &SessionId) -> Result<Vec<Entry>> {
        let session = session.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT key, last_seq FROM turn WHERE session = ?1 AND started IS NOT NULL AND status <> 'in_progress' ORDER BY started",
            )?;
            let mut turns = statement.query([session.as_str()])?;
            let mut entries = Vec::new();
            while let Some(row) = turns.next()? {
                row.get::<_, Option<i64>>(1)?.ok_or_else(missing)?;
                entries.extend(entries_of_chunks(db, row.get(0)?)?);
            }
            Ok(entries)
        })
        .await
    }

    /// The part of a turn in the conversation.
    ///
    /// # Errors
    /// [`StoreError::Damaged`], or the store's.
    pub async fn entries(&self, turn: &ResponseId) -> Result<Vec<Entry>> {
        match self.log_of_open(turn).await {
            Ok((items, _)) => {
                let entries = items.into_iter().filter_map(|item| match item {
                    LogItem::Entry(entry) => Some(entry),
                    _ => None,
                });
                return Ok(entries.collect());
            }
            Err(StoreError::Ended) => {}
            Err(error) => return Err(error),
        }
        let turn = turn.clone();
        self.read(move |db| {
            let Some((key, _, last)) = find(db, &turn)? else { return Ok(Vec::new()) };
            last.ok_or_else(missing)?;
            entries_of_chunks(db, key)
        })
        .await
    }

    /// Reads every ended turn whole and checks it. The number of events.
    ///
    /// # Errors
    /// [`StoreError::Damaged`] names the first turn that is not what was written.
    pub async fn verify(&self) -> Result<u64> {
        self.read(|db| {
            let mut statement =
                db.prepare("SELECT key, id, last_seq FROM turn WHERE status NOT IN ('in_progress', 'queued')")?;
            let mut turns = statement.query([])?;
            let mut count = 0;
            while let Some(row) = turns.next()? {
                let (key, id): (i64, String) = (row.get(0)?, row.get(1)?);
                let last = row.get::<_, Option<i64>>(2)?.map(i64::cast_unsigned);
                let checked = whole(db, key, last).and_then(|(events, rest)| merge(events, rest));
                let items = checked.map_err(|error| StoreError::Damaged(format!("turn {id}: {error}")))?;
                count += items.iter().filter(|item| matches!(item, LogItem::Event(_))).count() as u64;
            }
            Ok(count)
        })
        .await
    }
}
