//! The event catalogue of a turn's stream.

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::ResponseId;
use crate::link::Outcome;
use crate::transcript::Usage;
use crate::wire::TurnStatus;

macro_rules! kinds {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)*) => {
        /// The type of an event, as in the SSE `event:` line.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum EventKind { $($(#[$doc])* #[serde(rename = $text)] $name,)* }

        impl EventKind {
            /// Every kind.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The name on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// Reads a name from the wire.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$name),)* _ => None }
            }
        }
    };
}

kinds! {
    /// Always first, number 0: the turn was accepted.
    MessageCreated = "message.created";
    /// A text block opens.
    TextStart = "text.start";
    /// More text.
    TextDelta = "text.delta";
    /// The text block closes.
    TextStop = "text.stop";
    /// A reasoning block opens.
    ThinkingStart = "thinking.start";
    /// More reasoning.
    ThinkingDelta = "thinking.delta";
    /// The reasoning block closes.
    ThinkingStop = "thinking.stop";
    /// The model calls one of the agent's tools.
    ToolUseStart = "tool_use.start";
    /// A piece of the call's argument text.
    ToolUseInputDelta = "tool_use.input_delta";
    /// The arguments are complete; the tool is about to run.
    ToolUseExecuting = "tool_use.executing";
    /// The call's block closes.
    ToolUseStop = "tool_use.stop";
    /// A tool's result.
    ToolResult = "tool_result";
    /// Additive: a model request failed and will be made again.
    RetryScheduled = "retry.scheduled";
    /// Additive: what the failed request had streamed is void.
    AttemptDiscarded = "attempt.discarded";
    /// Additive: a turn that waited for its session begins.
    TurnStarted = "turn.started";
    /// Additive: the turn goes on after one of its processes was lost; says
    /// from which number on the blocks before it are void.
    TurnResumed = "turn.resumed";
    /// Terminal: success.
    MessageCompleted = "message.completed";
    /// Terminal: cancelled.
    MessageCancelled = "message.cancelled";
    /// Terminal: failure.
    MessageError = "message.error";
}

impl EventKind {
    /// Does this event end its turn?
    #[must_use]
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::MessageCompleted | Self::MessageCancelled | Self::MessageError)
    }

    /// The kind that closes a block which this kind opens.
    #[must_use]
    pub const fn closed_by(self) -> Option<Self> {
        match self {
            Self::TextStart => Some(Self::TextStop),
            Self::ThinkingStart => Some(Self::ThinkingStop),
            Self::ToolUseStart => Some(Self::ToolUseStop),
            _ => None,
        }
    }
}

impl fmt::Display for EventKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// An event with its number, as stored and as sent. `data` is the very bytes
/// of the SSE `data:` line: one line of JSON that holds `sequence_number` too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredEvent {
    /// Position in the turn, from 0 without gaps.
    pub seq: u64,
    /// The type.
    pub kind: EventKind,
    /// One line of JSON.
    pub data: Arc<str>,
}

/// A turn's terminal event: type and fields.
#[must_use]
pub fn terminal(id: &ResponseId, outcome: &Outcome, usage: &Usage) -> (EventKind, Map<String, Value>) {
    let (kind, fields) = match outcome {
        Outcome::Completed { stop_reason } => {
            let status = TurnStatus::Completed.as_str();
            let fields = [("status", json!(status)), ("usage", json!(usage)), ("stop_reason", json!(stop_reason))];
            (EventKind::MessageCompleted, fields.to_vec())
        }
        Outcome::Cancelled => (EventKind::MessageCancelled, vec![("status", json!(TurnStatus::Cancelled.as_str()))]),
        Outcome::Failed { code, message } => {
            let fields = [("error", json!(message)), ("code", json!(code)), ("retryable", json!(code.retryable()))];
            (EventKind::MessageError, fields.to_vec())
        }
    };
    let fields = fields.into_iter().chain([("id", json!(id))]);
    (kind, fields.map(|(name, value)| (name.to_owned(), value)).collect())
}

/// Builds the `data` line: the fields, the number, and the mark of a scripted
/// turn. The result holds no raw newline because JSON strings escape theirs.
#[must_use]
pub fn data_line(mut fields: Map<String, Value>, seq: u64, scripted: bool) -> String {
    fields.insert("sequence_number".into(), seq.into());
    if scripted {
        fields.insert("scripted".into(), true.into());
    }
    Value::Object(fields).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_three_are_terminal() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::parse(kind.as_str()), Some(*kind));
        }
        assert_eq!(EventKind::ALL.iter().filter(|kind| kind.is_terminal()).count(), 3);
    }

    #[test]
    fn a_data_line_is_one_line() {
        let mut fields = serde_json::Map::new();
        fields.insert("content".into(), "a\nb\r\u{2028}".into());
        let line = data_line(fields, 7, true);
        assert!(!line.contains('\n') && !line.contains('\r'));
        assert!(line.contains("\"sequence_number\":7") && line.contains("\"scripted\":true"));
    }
}
