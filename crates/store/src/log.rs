//! The event log.

use cloister_types::event::{EventKind, StoredEvent};
use cloister_types::transcript::Entry;
use cloister_types::{ResponseId, SessionId};
use rusqlite::{Connection, params};

use crate::{Result, Store, StoreError};

/// Bytes after which a page of events ends.
const PAGE_BYTES: usize = 1 << 20;
/// `kind` of an entry's row.
const ENTRY: &str = "entry";

/// Something to append.
#[derive(Debug, Clone, PartialEq)]
pub enum LogItem {
    /// An event, numbered.
    Event(StoredEvent),
    /// An entry of the conversation.
    Entry(Entry),
}

pub(crate) fn insert(db: &Connection, turn: &ResponseId, items: &[LogItem]) -> Result<()> {
    let mut statement = db.prepare_cached("INSERT INTO log (turn, seq, kind, body) VALUES (?1, ?2, ?3, ?4)")?;
    for item in items {
        match item {
            LogItem::Event(event) => {
                statement.execute(params![turn.as_str(), event.seq.cast_signed(), event.kind.as_str(), event.data])?;
            }
            LogItem::Entry(entry) => {
                statement.execute(params![turn.as_str(), None::<i64>, ENTRY, serde_json::to_string(entry)?])?;
            }
        }
    }
    Ok(())
}

impl Store {
    /// Up to `limit` events of a turn with numbers of at least `from`; fewer if
    /// they are large, so that a page fits a reader's memory.
    ///
    /// # Errors
    /// The store's.
    pub async fn events(&self, turn: &ResponseId, from: u64, limit: usize) -> Result<Vec<StoredEvent>> {
        let turn = turn.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT seq, kind, body FROM log WHERE turn = ?1 AND seq >= ?2 ORDER BY seq LIMIT ?3",
            )?;
            let mut rows = statement.query(params![turn.as_str(), from.cast_signed(), limit as i64])?;
            let mut events = Vec::new();
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let kind: String = row.get(1)?;
                let kind = EventKind::parse(&kind).ok_or_else(|| StoreError::Broken(format!("event kind {kind:?}")))?;
                let data: String = row.get(2)?;
                bytes += data.len();
                events.push(StoredEvent { seq: row.get::<_, i64>(0)?.cast_unsigned(), kind, data });
                if bytes > PAGE_BYTES {
                    break;
                }
            }
            Ok(events)
        })
        .await
    }

    /// Number of the last event of a turn.
    ///
    /// # Errors
    /// The store's.
    pub async fn last_seq(&self, turn: &ResponseId) -> Result<Option<u64>> {
        let turn = turn.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached("SELECT max(seq) FROM log WHERE turn = ?1 AND seq IS NOT NULL")?;
            Ok(statement.query_row([turn.as_str()], |row| row.get::<_, Option<i64>>(0))?.map(i64::cast_unsigned))
        })
        .await
    }

    /// The conversation of a session, all turns in order.
    ///
    /// # Errors
    /// The store's.
    pub async fn conversation(&self, session: &SessionId) -> Result<Vec<Entry>> {
        let session = session.clone();
        self.read(move |db| {
            let mut statement = db.prepare_cached(
                "SELECT body FROM log JOIN turn ON turn.id = log.turn
                 WHERE turn.session = ?1 AND log.seq IS NULL ORDER BY log.id",
            )?;
            let mut rows = statement.query([session.as_str()])?;
            let mut entries = Vec::new();
            while let Some(row) = rows.next()? {
                entries.push(serde_json::from_str(&row.get::<_, String>(0)?)?);
            }
            Ok(entries)
        })
        .await
    }
}
