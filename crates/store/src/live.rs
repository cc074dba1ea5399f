//! Open turns in memory: the rows that are in no chunk yet, and what the next
//! append must fit. Everything in here is on disk already; what is only under
//! way is known to the committer alone.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use cloister_types::ResponseId;
use cloister_types::event::StoredEvent;
use rusqlite::Connection;

use crate::row::{Mark, Row};
use crate::{Result, StoreError};

/// Bytes of events after which a page ends.
pub(crate) const PAGE_BYTES: usize = 256 << 10;

/// An open turn.
#[derive(Debug)]
pub(crate) struct Live {
    pub(crate) key: i64,
    pub(crate) state: Mutex<State>,
}

#[derive(Debug, Clone)]
pub(crate) struct State {
    /// Rows in no chunk yet, with their ids in the log.
    pub(crate) rows: Vec<(i64, Row)>,
    /// Bytes of their bodies.
    pub(crate) bytes: usize,
    /// First event that is in no chunk.
    pub(crate) first: u64,
    /// Number of the next event.
    pub(crate) next: u64,
    pub(crate) mark: Mark,
    /// Why nothing more may be read or appended.
    pub(crate) damage: Option<String>,
}

impl State {
    pub(crate) fn new(mark: Mark) -> Self {
        Self { rows: Vec::new(), bytes: 0, first: 0, next: 0, mark, damage: None }
    }

    pub(crate) fn push(&mut self, id: i64, row: Row) {
        self.bytes += row.body().len();
        self.next = row.seq() + u64::from(matches!(row, Row::Event(_)));
        self.rows.push((id, row));
    }

    /// Forgets the first rows: a chunk holds them now.
    pub(crate) fn chunked(&mut self, count: usize, next: u64) {
        self.bytes -= self.rows.drain(..count).map(|(_, row)| row.body().len()).sum::<usize>();
        self.first = next;
    }
}

impl Live {
    pub(crate) fn new(key: i64, state: State) -> Arc<Self> {
        Arc::new(Self { key, state: Mutex::new(state) })
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page of events from `from`; `None` if it begins in a chunk.
    pub(crate) fn page(&self, from: u64, limit: usize) -> Option<Result<Vec<StoredEvent>>> {
        let state = self.lock();
        if let Some(damage) = &state.damage {
            return Some(Err(StoreError::Damaged(damage.clone())));
        }
        if from < state.first {
            return None;
        }
        // Rows are in order of their numbers.
        let start = state.rows.partition_point(|(_, row)| row.seq() < from);
        let events = state.rows[start..].iter().filter_map(|(_, row)| match row {
            Row::Event(event) => Some(event.clone()),
            Row::Silent(_) => None,
        });
        Some(Ok(cut(events, limit)))
    }
}

/// As many events as fit a page, at least one.
pub(crate) fn cut(events: impl Iterator<Item = StoredEvent>, limit: usize) -> Vec<StoredEvent> {
    let mut bytes = 0;
    let mut page = Vec::new();
    for event in events.take(limit) {
        bytes += event.data.len();
        if bytes > PAGE_BYTES && !page.is_empty() {
            break;
        }
        page.push(event);
    }
    page
}

/// All open turns.
#[derive(Debug, Default)]
pub(crate) struct Lives(RwLock<HashMap<ResponseId, Arc<Live>>>);

impl Lives {
    pub(crate) fn get(&self, turn: &ResponseId) -> Option<Arc<Live>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(turn).cloned()
    }

    pub(crate) fn insert(&self, turn: ResponseId, live: Arc<Live>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(turn, live);
    }

    pub(crate) fn remove(&self, turn: &ResponseId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(turn);
    }

    /// Reads what the log holds of the open turns: once, when the store opens.
    pub(crate) fn load(db: &Connection) -> Result<Self> {
        let mut by_key: HashMap<i64, (ResponseId, State)> = HashMap::new();
        let mut turns = db.prepare("SELECT key, id, attempt FROM turn WHERE status IN ('in_progress', 'queued')")?;
        let mut found = turns.query([])?;
        while let Some(row) = found.next()? {
            let id: String = row.get(1)?;
            let id = id.parse().map_err(|_| StoreError::Broken(format!("turn id {id:?}")))?;
            let mark = Mark { attempt: row.get(2)?, offset: 0, at_ms: 0 };
            by_key.insert(row.get(0)?, (id, State::new(mark)));
        }
        for (key, (_, state)) in &mut by_key {
            // Chunks come first; their end is where the rows begin.
            for chunk in crate::log::chunks(db, *key, 0)? {
                match chunk {
                    Ok(chunk) if chunk.first == state.first => {
                        (state.first, state.next, state.mark) = (chunk.next, chunk.next, chunk.mark);
                    }
                    Ok(_) => state.damage = Some("a chunk of the log is missing".into()),
                    Err(error) => state.damage = Some(error.to_string()),
                }
            }
        }
        let mut log = db.prepare("SELECT id, turn, seq, kind, body, attempt, mark, at_ms, crc FROM log ORDER BY id")?;
        let mut rows = log.query([])?;
        while let Some(row) = rows.next()? {
            let Some((_, state)) = by_key.get_mut(&row.get::<_, i64>(1)?) else { continue };
            if let Err(StoreError::Damaged(what)) = take(state, row) {
                state.damage.get_or_insert(what);
            }
        }
        for (id, state) in by_key.values() {
            if let Some(damage) = &state.damage {
                tracing::error!(turn = %id, damage, "ALARM: the log of an open turn is damaged; nothing of it is touched");
            }
        }
        let lives = by_key.into_iter().map(|(key, (id, state))| (id, Live::new(key, state)));
        Ok(Self(RwLock::new(lives.collect())))
    }
}

/// Takes one row of the log, if it is what was written and what must come next.
fn take(state: &mut State, row: &rusqlite::Row<'_>) -> Result<()> {
    let damaged = |what: &str| StoreError::Damaged(format!("a row of the log {what}"));
    let unreadable = |_| damaged("is unreadable");
    let number = |index: usize| row.get::<_, i64>(index).map(i64::cast_unsigned).map_err(unreadable);
    let (key, id) = (row.get::<_, i64>(1).map_err(unreadable)?, row.get::<_, i64>(0).map_err(unreadable)?);
    let mark = Mark { attempt: row.get(5).map_err(unreadable)?, offset: number(6)?, at_ms: number(7)? };
    let kind: String = row.get(3).map_err(unreadable)?;
    let read = Row::read(number(2)?, &kind, row.get(4).map_err(unreadable)?)?;
    if row.get::<_, u32>(8).map_err(unreadable)? != read.crc(key, mark) {
        return Err(damaged("is not what was written"));
    }
    if read.seq() != state.next {
        return Err(damaged("is missing"));
    }
    state.mark = mark;
    state.push(id, read);
    Ok(())
}
