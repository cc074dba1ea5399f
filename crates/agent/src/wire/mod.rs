//! The protocols of model providers: a request to build, a stream to read.
//!
//! Both sides are tolerant in what they keep (unknown blocks, unknown events)
//! and strict in one thing: a stream without its end is never an answer.

mod anthropic;
mod chat;

use cloister_types::model::{ModelSpec, Wire};
pub use cloister_types::transcript::Stop;
use cloister_types::transcript::{Entry, Usage};
use serde_json::Value;

use crate::tools::Schema;
use cloister_types::sse;

/// What kind of block opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Block {
    /// An answer's text.
    Text,
    /// Reasoning.
    Thinking,
    /// A call of one of the agent's tools.
    Tool {
        /// The provider's id.
        id: String,
        /// The tool.
        name: String,
    },
}

/// A piece of a streamed answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// A block opens; the one before is closed.
    Open(Block),
    /// More of the open block: text, thinking or argument text.
    More(String),
    /// The open block closes; a tool call with its parsed arguments, unless
    /// they are not JSON.
    Close(Option<Value>),
}

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The blocks as they must be sent back.
    pub blocks: Vec<Value>,
    /// Calls whose arguments were not JSON: id and the text that came.
    pub malformed: Vec<(String, String)>,
    /// Why it ended.
    pub stop: Stop,
    /// Tokens.
    pub usage: Usage,
}

/// A stream that cannot become an answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The provider reported an error within the stream.
    #[error("{kind}: {message}")]
    Reported {
        /// The provider's word for it.
        kind: String,
        /// Its explanation.
        message: String,
    },
    /// The stream ended before its last event.
    #[error("the provider's stream ended early")]
    Incomplete,
    /// Not the protocol.
    #[error("the provider sent something that is not its protocol: {0}")]
    Malformed(String),
}

/// Reads one streamed answer.
#[derive(Debug)]
pub enum Decoder {
    /// Anthropic Messages.
    Anthropic(anthropic::Decoder),
    /// OpenAI Chat Completions.
    Chat(chat::Decoder),
}

impl Decoder {
    /// A decoder for a protocol; `step` is the number of the call in its turn.
    #[must_use]
    pub fn new(wire: Wire, step: u32) -> Self {
        match wire {
            Wire::AnthropicMessages => Self::Anthropic(anthropic::Decoder::default()),
            Wire::OpenaiChat => Self::Chat(chat::Decoder::new(step)),
        }
    }

    /// Takes one event.
    ///
    /// # Errors
    /// The stream holds an error; nothing after it counts.
    pub fn event(&mut self, event: &sse::Event) -> Result<Vec<Piece>, WireError> {
        match self {
            Self::Anthropic(decoder) => decoder.event(event),
            Self::Chat(decoder) => decoder.event(event),
        }
    }

    /// Has the last event arrived?
    #[must_use]
    pub fn is_complete(&self) -> bool {
        match self {
            Self::Anthropic(decoder) => decoder.is_complete(),
            Self::Chat(decoder) => decoder.is_complete(),
        }
    }

    /// The answer, at the clean end of the stream.
    ///
    /// # Errors
    /// [`WireError::Incomplete`] if the last event did not come.
    pub fn finish(self) -> Result<(Vec<Piece>, Answer), WireError> {
        match self {
            Self::Anthropic(decoder) => decoder.finish(),
            Self::Chat(decoder) => decoder.finish(),
        }
    }
}

/// The body of a model call.
#[must_use]
pub(crate) fn request(model: &ModelSpec, system: &str, conversation: &[Entry], tools: &[Schema]) -> Value {
    match model.wire {
        Wire::AnthropicMessages => anthropic::request(model, system, conversation, tools),
        Wire::OpenaiChat => chat::request(model, system, conversation, tools),
    }
}

/// Parses a call's argument text; none at all means no arguments.
fn parse_input(text: &str) -> Result<Value, ()> {
    if text.trim().is_empty() {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        _ => Err(()),
    }
}
