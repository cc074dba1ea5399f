//! A turn's stream as its supervisor keeps it: numbers, order, the one
//! terminal event. Pure: facts in, facts out.
//!
//! ```text
//!            event (start)             event (stop)
//!   between ---------------> in a block ------------> between
//!      \__________________________|__________ end ____> over
//! ```
//!
//! The agent is not trusted to keep the order: a block that it leaves open is
//! closed for it, what belongs to no block is dropped, terminal events come
//! from [`Turn::end`] alone.

use cloister_types::ResponseId;
use cloister_types::event::{EventKind, data_line, terminal};
use cloister_types::link::{Fact, Outcome};
use cloister_types::transcript::{Entry, Usage};
use serde_json::{Map, Value};

/// Bytes of event data that one turn may produce. A hostile agent could
/// otherwise fill the server's disk.
const MAX_TURN_BYTES: usize = 256 << 20;
/// What any frame costs besides its data, kept or dropped.
const FRAME_BYTES: usize = 256;

/// What a call costs in memory besides its name.
const CALL_BYTES: usize = 64;

/// The agent produced more than a turn may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TooMuch;

/// The stream of one turn.
#[derive(Debug)]
pub(crate) struct Turn {
    id: ResponseId,
    scripted: bool,
    next: u64,
    open: Option<EventKind>,
    bytes: usize,
}

impl Turn {
    pub(crate) fn new(id: ResponseId, next: u64, scripted: bool) -> Self {
        Self { id, scripted, next, open: None, bytes: 0 }
    }

    pub(crate) fn id(&self) -> &ResponseId {
        &self.id
    }

    fn number(&mut self, data: Map<String, Value>) -> (u64, String) {
        let seq = self.next;
        self.next += 1;
        let data = data_line(data, seq, self.scripted);
        self.bytes += data.len();
        (seq, data)
    }

    fn fact(&mut self, kind: EventKind, data: Map<String, Value>) -> Fact {
        let (seq, data) = self.number(data);
        Fact::Event { seq, kind, data }
    }

    fn close(&mut self, facts: &mut Vec<Fact>) {
        if let Some(stop) = self.open.take().and_then(EventKind::closed_by) {
            facts.push(self.fact(stop, Map::new()));
        }
    }

    /// An event of the agent: numbered, or dropped if it is out of place.
    pub(crate) fn event(&mut self, kind: EventKind, data: Map<String, Value>) -> Result<Vec<Fact>, TooMuch> {
        use EventKind as K;
        self.bytes += FRAME_BYTES;
        if self.bytes > MAX_TURN_BYTES {
            return Err(TooMuch);
        }
        let mut facts = Vec::new();
        match kind {
            // What only the server and the supervisor may say.
            K::MessageCreated
            | K::MessageCompleted
            | K::MessageCancelled
            | K::MessageError
            | K::TurnStarted
            | K::TurnResumed => return Ok(facts),
            K::TextStart | K::ThinkingStart | K::ToolUseStart => {
                self.close(&mut facts);
                self.open = Some(kind);
            }
            K::TextDelta if self.open != Some(K::TextStart) => return Ok(facts),
            K::ThinkingDelta if self.open != Some(K::ThinkingStart) => return Ok(facts),
            K::ToolUseInputDelta if self.open != Some(K::ToolUseStart) => return Ok(facts),
            K::TextStop | K::ThinkingStop | K::ToolUseStop => {
                if self.open.and_then(K::closed_by) != Some(kind) {
                    return Ok(facts);
                }
                self.open = None;
            }
            K::TextDelta | K::ThinkingDelta | K::ToolUseInputDelta => {}
            K::ToolUseExecuting => {}
            K::ToolResult | K::RetryScheduled | K::AttemptDiscarded => self.close(&mut facts),
        }
        facts.push(self.fact(kind, data));
        Ok(facts)
    }

    /// An entry of the conversation.
    pub(crate) fn entry(&mut self, entry: Entry) -> Result<Fact, TooMuch> {
        let size = serde_json::to_vec(&entry).map_or(usize::MAX, |bytes| bytes.len());
        self.bytes = self.bytes.saturating_add(size).saturating_add(FRAME_BYTES);
        if self.bytes > MAX_TURN_BYTES {
            return Err(TooMuch);
        }
        Ok(Fact::Entry(entry))
    }

    /// A question to be answered once something is on disk.
    pub(crate) fn question(&mut self) -> Result<(), TooMuch> {
        self.bytes += FRAME_BYTES;
        if self.bytes > MAX_TURN_BYTES { Err(TooMuch) } else { Ok(()) }
    }

    /// Calls that are about to start.
    pub(crate) fn intent(&mut self, calls: Vec<String>) -> Result<Fact, TooMuch> {
        self.bytes += FRAME_BYTES + calls.iter().map(|call| call.len() + CALL_BYTES).sum::<usize>();
        if self.bytes > MAX_TURN_BYTES {
            return Err(TooMuch);
        }
        Ok(Fact::Intent { calls })
    }

    /// Ends the turn: closes the open block, adds the terminal event.
    pub(crate) fn end(&mut self, outcome: Outcome, usage: Usage, output_text: String, sandbox_gone: bool) -> Vec<Fact> {
        let mut facts = Vec::new();
        self.close(&mut facts);
        let (kind, data) = terminal(&self.id, &outcome, &usage);
        let (seq, data) = self.number(data);
        facts.push(Fact::Ended { seq, kind, data, outcome, usage, output_text, sandbox_gone });
        facts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_types::ErrorCode;
    use proptest::prelude::*;

    fn kinds(facts: &[Fact]) -> Vec<(u64, EventKind)> {
        facts
            .iter()
            .filter_map(|fact| match fact {
                Fact::Event { seq, kind, .. } | Fact::Ended { seq, kind, .. } => Some((*seq, *kind)),
                _ => None,
            })
            .collect()
    }

    fn turn() -> Turn {
        Turn::new(ResponseId::from_random([1; 12]), 1, false)
    }

    #[test]
    fn a_block_left_open_is_closed_and_strays_are_dropped() {
        use EventKind as K;
        let mut turn = turn();
        let mut all = Vec::new();
        for kind in [
            K::TextDelta,
            K::TextStart,
            K::TextDelta,
            K::ThinkingDelta,
            K::ToolUseStart,
            K::TextStop,
            K::MessageCompleted,
        ] {
            all.extend(turn.event(kind, Map::new()).unwrap());
        }
        all.extend(turn.end(Outcome::Cancelled, Usage::default(), String::new(), false));
        let want = [K::TextStart, K::TextDelta, K::TextStop, K::ToolUseStart, K::ToolUseStop, K::MessageCancelled];
        assert_eq!(kinds(&all), want.into_iter().enumerate().map(|(i, kind)| (i as u64 + 1, kind)).collect::<Vec<_>>());
    }

    #[test]
    fn a_flood_is_noticed() {
        // Of what is shown, and of what is dropped.
        for kind in [EventKind::ToolResult, EventKind::MessageCreated] {
            let mut turn = turn();
            let flooded = (0..2_000_000).any(|_| turn.event(kind, Map::new()).is_err());
            assert!(flooded, "{kind}");
        }
    }

    proptest! {
        // Whatever an agent sends: numbers without gaps, starts and stops in
        // pairs, one terminal event, at the end.
        #[test]
        fn the_stream_is_well_formed_whatever_comes(sent in proptest::collection::vec(0..EventKind::ALL.len(), 0..60)) {
            let mut turn = turn();
            let mut all = Vec::new();
            for index in sent {
                all.extend(turn.event(EventKind::ALL[index], Map::new()).unwrap());
            }
            let failed = Outcome::Failed { code: ErrorCode::AgentDied, message: "gone".into() };
            all.extend(turn.end(failed, Usage::default(), String::new(), true));
            let events = kinds(&all);
            let mut open = None;
            for (index, (seq, kind)) in events.iter().enumerate() {
                prop_assert_eq!(*seq, index as u64 + 1);
                prop_assert_eq!(kind.is_terminal(), index + 1 == events.len());
                if let Some(stop) = kind.closed_by() {
                    prop_assert!(open.replace(stop).is_none());
                }
                if matches!(kind, EventKind::TextStop | EventKind::ThinkingStop | EventKind::ToolUseStop) {
                    prop_assert_eq!(open.take(), Some(*kind));
                }
            }
            prop_assert!(open.is_none());
        }
    }
}
