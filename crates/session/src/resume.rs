//! What a turn's log says when its agent is lost: what clients must be told,
//! what the model must be told, and nothing else. Pure.
//!
//! ```text
//! log: ... answer  [events of a call that never ended]      the call is made again; what it showed is void
//! log: ... answer with calls, some with results:
//!            result on record, its event not                the event is made up for
//!            started, no result                             "interrupted, may have had effects"
//!            not started                                    left to the next agent, which runs it
//! ```

use std::collections::BTreeSet;

use cloister_store::LogItem;
use cloister_types::ResponseId;
use cloister_types::event::{EventKind, StoredEvent, data_line, terminal};
use cloister_types::link::Outcome;
use cloister_types::transcript::{Entry, Usage};
use serde_json::{Map, Value, json};

/// Where a turn's log stands.
#[derive(Debug, Default)]
pub(crate) struct Standing {
    /// Number of the next event.
    pub(crate) next: u64,
    /// The block that stands open.
    open: Option<EventKind>,
    /// First event of the model call that has not ended.
    void_from: Option<u64>,
    /// Calls of the last answer, in order.
    calls: Vec<String>,
    started: BTreeSet<String>,
    results: Vec<(String, String, bool)>,
    shown: BTreeSet<String>,
}

impl Standing {
    /// Reads a turn's log, in its order.
    pub(crate) fn read(items: &[LogItem]) -> Self {
        let mut standing = Self::default();
        for item in items {
            match item {
                LogItem::Event(event) => standing.event(event),
                LogItem::Entry(entry) => standing.entry(entry),
                LogItem::Intent(calls) => standing.started.extend(calls.iter().cloned()),
            }
        }
        standing
    }

    fn event(&mut self, event: &StoredEvent) {
        use EventKind as K;
        self.next = event.seq + 1;
        match event.kind {
            K::TextStart | K::ThinkingStart | K::ToolUseStart => {
                self.open = Some(event.kind);
                self.void_from.get_or_insert(event.seq);
            }
            K::AttemptDiscarded | K::TurnResumed => (self.open, self.void_from) = (None, None),
            K::ToolResult => {
                let data: Value = serde_json::from_str(&event.data).unwrap_or_default();
                self.shown.extend(data["id"].as_str().map(str::to_owned));
            }
            kind if self.open.and_then(EventKind::closed_by) == Some(kind) => self.open = None,
            _ => {}
        }
    }

    fn entry(&mut self, entry: &Entry) {
        match entry {
            Entry::User { .. } => {}
            Entry::Assistant { blocks, .. } => {
                // The call has ended: what it showed stands.
                self.void_from = None;
                let calls = blocks.iter().filter(|block| block["type"] == "tool_use");
                self.calls = calls.filter_map(|block| block["id"].as_str()).map(str::to_owned).collect();
                self.started.clear();
                self.results.clear();
                self.shown.clear();
            }
            Entry::ToolResult { id, content, is_error } => {
                self.results.push((id.clone(), content.clone(), *is_error));
            }
        }
    }

    /// What to append before another agent takes the turn up.
    pub(crate) fn resume(self, attempt: u32, cause: &str, scripted: bool) -> Vec<LogItem> {
        let mut tail = Tail { next: self.next, scripted, items: Vec::new() };
        tail.close(self.open);
        let fields = json!({"attempt": attempt, "cause": cause, "discard_from": self.void_from});
        tail.push(EventKind::TurnResumed, fields);
        for (id, content, is_error) in &self.results {
            if !self.shown.contains(id) {
                tail.push(EventKind::ToolResult, json!({"id": id, "content": content, "is_error": is_error}));
            }
        }
        for id in self.calls {
            if self.started.contains(&id) && !self.results.iter().any(|(known, ..)| *known == id) {
                let content = format!(
                    "This call was interrupted before its result was recorded ({cause}). It may have had effects; check before repeating it."
                );
                let entry = Entry::ToolResult { id: id.clone(), content: content.clone(), is_error: true };
                tail.items.push(LogItem::Entry(entry));
                tail.push(EventKind::ToolResult, json!({"id": id, "content": content, "is_error": true}));
            }
        }
        tail.items
    }

    /// What to append to end the turn as it stands.
    pub(crate) fn end(&self, turn: &ResponseId, outcome: &Outcome, scripted: bool) -> Vec<LogItem> {
        let mut tail = Tail { next: self.next, scripted, items: Vec::new() };
        tail.close(self.open);
        let (kind, fields) = terminal(turn, outcome, &Usage::default());
        tail.push(kind, Value::Object(fields));
        tail.items
    }
}

/// Events behind the log's end.
struct Tail {
    next: u64,
    scripted: bool,
    items: Vec<LogItem>,
}

impl Tail {
    fn push(&mut self, kind: EventKind, fields: Value) {
        let fields = match fields {
            Value::Object(fields) => fields,
            _ => Map::new(),
        };
        let data = data_line(fields, self.next, self.scripted).into();
        self.items.push(LogItem::Event(StoredEvent { seq: self.next, kind, data }));
        self.next += 1;
    }

    fn close(&mut self, open: Option<EventKind>) {
        if let Some(stop) = open.and_then(EventKind::closed_by) {
            self.push(stop, json!({}));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_types::model::Wire;
    use proptest::prelude::*;

    fn answer(ids: &[&str]) -> LogItem {
        let blocks = ids.iter().map(|id| json!({"type": "tool_use", "id": id, "name": "bash", "input": {}})).collect();
        LogItem::Entry(Entry::Assistant {
            wire: Wire::AnthropicMessages,
            model: "m".into(),
            blocks,
            malformed: vec![],
            stop: Default::default(),
            usage: Usage::default(),
        })
    }

    /// A whole turn as it is logged: two answers, the first with two calls.
    fn turn() -> Vec<LogItem> {
        let mut items: Vec<LogItem> = Vec::new();
        let mut seq = 0;
        let mut event = |items: &mut Vec<LogItem>, kind: EventKind, fields: Value| {
            let Value::Object(fields) = fields else { panic!() };
            items.push(LogItem::Event(StoredEvent { seq, kind, data: data_line(fields, seq, false).into() }));
            seq += 1;
        };
        use EventKind as K;
        event(&mut items, K::MessageCreated, json!({}));
        items.push(LogItem::Entry(Entry::User { text: "go".into() }));
        for kind in [K::TextStart, K::TextDelta, K::TextStop] {
            event(&mut items, kind, json!({}));
        }
        for id in ["a", "b"] {
            event(&mut items, K::ToolUseStart, json!({"id": id}));
            event(&mut items, K::ToolUseExecuting, json!({"id": id}));
            event(&mut items, K::ToolUseStop, json!({}));
        }
        items.push(answer(&["a", "b"]));
        for id in ["a", "b"] {
            items.push(LogItem::Intent(vec![id.into()]));
            items.push(LogItem::Entry(Entry::ToolResult { id: id.into(), content: "r".into(), is_error: false }));
            event(&mut items, K::ToolResult, json!({"id": id, "content": "r", "is_error": false}));
        }
        for kind in [K::TextStart, K::TextDelta, K::TextDelta, K::TextStop] {
            event(&mut items, kind, json!({}));
        }
        items.push(answer(&[]));
        items
    }

    fn events(items: &[LogItem]) -> Vec<&StoredEvent> {
        items.iter().filter_map(|item| if let LogItem::Event(event) = item { Some(event) } else { None }).collect()
    }

    /// What a client holds that follows the rule: blocks from `discard_from`
    /// on are dropped when it is told so.
    fn kept(items: &[LogItem]) -> Vec<u64> {
        let mut kept: Vec<u64> = Vec::new();
        for event in events(items) {
            let data: Value = serde_json::from_str(&event.data).unwrap();
            if let (EventKind::TurnResumed, Some(from)) = (event.kind, data["discard_from"].as_u64()) {
                kept.retain(|seq| *seq < from);
            }
            kept.push(event.seq);
        }
        kept
    }

    #[test]
    fn cut_anywhere_the_log_goes_on_in_order_and_every_call_is_accounted_for() {
        let whole = turn();
        for cut in 2..=whole.len() {
            let mut items = whole[..cut].to_vec();
            items.extend(Standing::read(&items).resume(2, "gone", false));
            let seqs: Vec<u64> = events(&items).iter().map(|event| event.seq).collect();
            assert!(seqs.iter().copied().eq(0..seqs.len() as u64));
            let mut open = None;
            for event in events(&items) {
                if let Some(stop) = event.kind.closed_by() {
                    assert!(open.replace(stop).is_none());
                } else if open == Some(event.kind) {
                    open = None;
                }
            }
            assert!(open.is_none(), "cut {cut}");
            // Each call that started has one result, in the log and shown.
            let started: Vec<&String> = items
                .iter()
                .filter_map(|item| if let LogItem::Intent(ids) = item { Some(ids) } else { None })
                .flatten()
                .collect();
            for id in started {
                let results = items
                    .iter()
                    .filter(|item| matches!(item, LogItem::Entry(Entry::ToolResult { id: of, .. }) if of == id));
                assert_eq!(results.count(), 1, "cut {cut}");
                let shown = events(&items)
                    .into_iter()
                    .filter(|event| event.kind == EventKind::ToolResult && event.data.contains(&format!("\"{id}\"")));
                assert_eq!(shown.count(), 1, "cut {cut}");
            }
            // What is kept of the blocks belongs to answers that are on record.
            let answered =
                whole[..cut].iter().filter(|item| matches!(item, LogItem::Entry(Entry::Assistant { .. }))).count();
            let kept = kept(&items);
            let starts = events(&items)
                .into_iter()
                .filter(|event| event.kind == EventKind::TextStart && kept.contains(&event.seq));
            assert_eq!(starts.count(), answered, "cut {cut}");
        }
    }

    proptest! {
        // However often it is cut, and wherever.
        #[test]
        fn it_can_be_resumed_again_and_again(cuts in proptest::collection::vec(any::<prop::sample::Index>(), 1..5)) {
            let mut items = turn();
            for (attempt, cut) in cuts.iter().enumerate() {
                items.truncate(2 + cut.index(items.len() - 1));
                items.extend(Standing::read(&items).resume(attempt as u32 + 2, "gone", false));
            }
            let seqs: Vec<u64> = events(&items).iter().map(|event| event.seq).collect();
            prop_assert!(seqs.iter().copied().eq(0..seqs.len() as u64));
            let end = Standing::read(&items).end(&ResponseId::from_random([1; 12]), &Outcome::Cancelled, false);
            prop_assert_eq!(events(&end).len(), 1);
        }
    }
}
