//! Rows of the log and the chunks that they are packed into: pure, bytes in
//! and out, with checksums that tell what was written from what is there.

use std::borrow::Cow;
use std::sync::Arc;

use cloister_types::event::{EventKind, StoredEvent};
use cloister_types::transcript::Entry;

use crate::{Result, StoreError};

const ENTRY: &str = "entry";
const INTENT: &str = "intent";

/// Something to append.
#[derive(Debug, Clone, PartialEq)]
pub enum LogItem {
    /// An event, numbered.
    Event(StoredEvent),
    /// An entry of the conversation.
    Entry(Entry),
    /// Calls that are about to start.
    Intent(Vec<String>),
}

impl LogItem {
    /// The number, if it is an event.
    #[must_use]
    pub fn seq(&self) -> Option<u64> {
        match self {
            Self::Event(event) => Some(event.seq),
            _ => None,
        }
    }
}

/// How far a turn has come with its rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The attempt.
    pub attempt: u32,
    /// Bytes of its spool.
    pub offset: u64,
    /// Milliseconds of work, all attempts together.
    pub at_ms: u64,
}

/// What belongs between the events and is not shown.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Silent {
    /// Number of the event that follows.
    pub(crate) seq: u64,
    pub(crate) kind: &'static str,
    pub(crate) body: String,
}

impl Silent {
    pub(crate) fn entry(&self) -> Option<Result<Entry>> {
        (self.kind == ENTRY).then(|| Ok(serde_json::from_str(&self.body)?))
    }

    fn item(&self) -> Result<LogItem> {
        Ok(match self.kind {
            ENTRY => LogItem::Entry(serde_json::from_str(&self.body)?),
            _ => LogItem::Intent(serde_json::from_str(&self.body)?),
        })
    }
}

/// A row in memory.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Row {
    Event(StoredEvent),
    Silent(Silent),
}

impl Row {
    /// The row of an item; `next` is the number of the next event.
    pub(crate) fn new(item: LogItem, next: u64) -> Result<Self> {
        let silent = |kind, body| Self::Silent(Silent { seq: next, kind, body });
        Ok(match item {
            LogItem::Event(event) => Self::Event(event),
            LogItem::Entry(entry) => silent(ENTRY, serde_json::to_string(&entry)?),
            LogItem::Intent(calls) => silent(INTENT, serde_json::to_string(&calls)?),
        })
    }

    /// The row as read back.
    pub(crate) fn read(seq: u64, kind: &str, body: String) -> Result<Self> {
        let silent = |kind, body| Self::Silent(Silent { seq, kind, body });
        Ok(match kind {
            ENTRY => silent(ENTRY, body),
            INTENT => silent(INTENT, body),
            _ => Self::Event(StoredEvent { seq, kind: event_kind(kind)?, data: body.into() }),
        })
    }

    pub(crate) fn seq(&self) -> u64 {
        match self {
            Self::Event(event) => event.seq,
            Self::Silent(silent) => silent.seq,
        }
    }

    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::Event(event) => event.kind.as_str(),
            Self::Silent(silent) => silent.kind,
        }
    }

    pub(crate) fn body(&self) -> &str {
        match self {
            Self::Event(event) => &event.data,
            Self::Silent(silent) => &silent.body,
        }
    }

    /// The checksum of the row as a row of this turn.
    pub(crate) fn crc(&self, turn: i64, mark: Mark) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        crc.update(&turn.to_be_bytes());
        crc.update(&self.seq().to_be_bytes());
        crc.update(&mark_bytes(mark));
        // No kind holds a NUL, so no two pairs of kind and body look alike.
        crc.update(self.kind().as_bytes());
        crc.update(&[0]);
        crc.update(self.body().as_bytes());
        crc.finalize()
    }
}

fn mark_bytes(mark: Mark) -> [u8; 20] {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&mark.attempt.to_be_bytes());
    bytes[4..12].copy_from_slice(&mark.offset.to_be_bytes());
    bytes[12..].copy_from_slice(&mark.at_ms.to_be_bytes());
    bytes
}

fn event_kind(kind: &str) -> Result<EventKind> {
    EventKind::parse(kind).ok_or_else(|| StoreError::Damaged(format!("an event of the unknown type {kind:?}")))
}

/// Closed rows of a turn, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// Events `first..next`.
    pub(crate) first: u64,
    pub(crate) next: u64,
    pub(crate) mark: Mark,
    pub(crate) events: Vec<u8>,
    pub(crate) rest: Vec<u8>,
}

impl Chunk {
    /// Packs rows in their order. `None` if there are none.
    pub(crate) fn pack<'r>(rows: impl Iterator<Item = &'r Row>, mark: Mark) -> Option<Self> {
        let (mut events, mut rest) = (String::new(), String::new());
        let (mut first, mut next) = (None, 0);
        for row in rows {
            let (text, seq) = match row {
                Row::Event(_) => (&mut events, Cow::Borrowed("")),
                Row::Silent(silent) => (&mut rest, Cow::Owned(format!("{}\t", silent.seq))),
            };
            // Kinds hold no tab and JSON on one line holds no line feed.
            for part in [&*seq, row.kind(), "\t", row.body(), "\n"] {
                text.push_str(part);
            }
            first.get_or_insert(row.seq());
            next = row.seq() + u64::from(matches!(row, Row::Event(_)));
        }
        let pack = |text: &str| lz4_flex::block::compress_prepend_size(text.as_bytes());
        Some(Self { first: first?, next, mark, events: pack(&events), rest: pack(&rest) })
    }

    pub(crate) fn crc(&self, turn: i64) -> u32 {
        let mut crc = crc32fast::Hasher::new();
        for number in [turn.cast_unsigned(), self.first, self.next, self.events.len() as u64] {
            crc.update(&number.to_be_bytes());
        }
        crc.update(&mark_bytes(self.mark));
        crc.update(&self.events);
        crc.update(&self.rest);
        crc.finalize()
    }

    /// The events.
    pub(crate) fn events(&self) -> Result<Vec<StoredEvent>> {
        let mut events = Vec::new();
        for (line, seq) in unpack(&self.events)?.lines().zip(self.first..) {
            let (kind, data) = line.split_once('\t').ok_or_else(malformed)?;
            events.push(StoredEvent { seq, kind: event_kind(kind)?, data: Arc::from(data) });
        }
        if events.len() as u64 == self.next - self.first { Ok(events) } else { Err(malformed()) }
    }

    /// What belongs between the events.
    pub(crate) fn rest(&self) -> Result<Vec<Silent>> {
        let mut rest = Vec::new();
        for line in unpack(&self.rest)?.lines() {
            let mut parts = line.splitn(3, '\t');
            let (Some(seq), Some(kind), Some(body)) = (parts.next(), parts.next(), parts.next()) else {
                return Err(malformed());
            };
            let seq = seq.parse().map_err(|_| malformed())?;
            let kind = if kind == ENTRY { ENTRY } else { INTENT };
            rest.push(Silent { seq, kind, body: body.to_owned() });
        }
        Ok(rest)
    }
}

fn malformed() -> StoreError {
    StoreError::Damaged("a chunk of the log is malformed".into())
}

fn unpack(blob: &[u8]) -> Result<String> {
    let bytes = lz4_flex::block::decompress_size_prepended(blob).map_err(|_| malformed())?;
    String::from_utf8(bytes).map_err(|_| malformed())
}

/// Events and what belongs between them, merged into their order.
pub(crate) fn merge(events: Vec<StoredEvent>, rest: Vec<Silent>) -> Result<Vec<LogItem>> {
    let mut items = Vec::with_capacity(events.len() + rest.len());
    let mut rest = rest.into_iter().peekable();
    for event in events {
        while let Some(silent) = rest.next_if(|silent| silent.seq <= event.seq) {
            items.push(silent.item()?);
        }
        items.push(LogItem::Event(event));
    }
    for silent in rest {
        items.push(silent.item()?);
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MARK: Mark = Mark { attempt: 3, offset: 99, at_ms: 1234 };

    fn items() -> impl Strategy<Value = Vec<LogItem>> {
        let item = prop_oneof![
            "\\PC{0,30}".prop_map(|text| {
                let data = serde_json::json!({ "content": text }).to_string().into();
                LogItem::Event(StoredEvent { seq: 0, kind: EventKind::TextDelta, data })
            }),
            "[\\t\\n a-z]{0,9}".prop_map(|text| LogItem::Entry(Entry::User { text })),
            proptest::collection::vec("[a-z]{1,4}", 0..3).prop_map(LogItem::Intent),
        ];
        (proptest::collection::vec(item, 1..30), 0..1000u64).prop_map(|(mut items, mut next)| {
            for item in &mut items {
                if let LogItem::Event(event) = item {
                    event.seq = next;
                    next += 1;
                }
            }
            items
        })
    }

    fn rows(items: &[LogItem]) -> Vec<Row> {
        let first = items.iter().find_map(|item| match item {
            LogItem::Event(event) => Some(event.seq),
            _ => None,
        });
        let mut next = first.unwrap_or(7);
        let mut rows = Vec::new();
        for item in items {
            rows.push(Row::new(item.clone(), next).unwrap());
            next += u64::from(matches!(item, LogItem::Event(_)));
        }
        rows
    }

    proptest! {
        #[test]
        fn what_is_packed_comes_back_in_its_order(items in items()) {
            let chunk = Chunk::pack(rows(&items).iter(), MARK).unwrap();
            prop_assert_eq!(merge(chunk.events().unwrap(), chunk.rest().unwrap()).unwrap(), items);
        }

        #[test]
        fn a_row_comes_back_and_any_change_is_noticed(items in items(), at in any::<prop::sample::Index>()) {
            for row in rows(&items) {
                let crc = row.crc(5, MARK);
                let read = Row::read(row.seq(), row.kind(), row.body().to_owned()).unwrap();
                prop_assert_eq!(read.crc(5, MARK), crc);
                prop_assert_ne!(read.crc(6, MARK), crc);
                prop_assert_ne!(read.crc(5, Mark { offset: 98, ..MARK }), crc);
                let mut body = row.body().as_bytes().to_vec();
                if !body.is_empty() {
                    let at = at.index(body.len());
                    body[at] ^= 1;
                    if let Ok(body) = String::from_utf8(body) {
                        let changed = Row::read(row.seq(), row.kind(), body).unwrap();
                        prop_assert_ne!(changed.crc(5, MARK), crc);
                    }
                }
            }
        }

        #[test]
        fn no_bit_of_a_chunk_changes_unnoticed(items in items(), at in any::<prop::sample::Index>(), bit in 0..8u8) {
            let chunk = Chunk::pack(rows(&items).iter(), MARK).unwrap();
            let crc = chunk.crc(5);
            let mut changed = chunk.clone();
            let at = at.index(chunk.events.len() + chunk.rest.len());
            match changed.events.get_mut(at) {
                Some(byte) => *byte ^= 1 << bit,
                None => changed.rest[at - chunk.events.len()] ^= 1 << bit,
            }
            prop_assert_ne!(changed.crc(5), crc);
            // And whatever is read without looking at the sum does not panic.
            let _ = (changed.events(), changed.rest());
        }
    }
}
