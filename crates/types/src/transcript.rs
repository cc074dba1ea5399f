//! The conversation as the model must see it again: kept beside the events,
//! because a provider wants its own blocks back unchanged.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Wire;

/// One entry of the conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "role", rename_all = "snake_case")]
pub enum Entry {
    /// What the client sent.
    User {
        /// The message.
        text: String,
    },
    /// What the model answered.
    Assistant {
        /// The protocol that the blocks belong to. Signed or encrypted blocks
        /// are only sent back over the same one, to the same model.
        wire: Wire,
        /// The provider's name of the model.
        model: String,
        /// The blocks, in the shape of Anthropic's content blocks, with every
        /// unknown field and kind kept.
        blocks: Vec<Value>,
    },
    /// What a tool answered.
    ToolResult {
        /// The call's id.
        id: String,
        /// What the model reads.
        content: String,
        /// Did the tool fail?
        is_error: bool,
    },
}

/// Tokens, summed over the model calls of a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct Usage {
    /// Input tokens that came from no cache.
    pub input_tokens: u64,
    /// Output tokens, reasoning included.
    pub output_tokens: u64,
    /// Input tokens that the provider read from its cache.
    pub cache_read_tokens: u64,
    /// Input tokens that the provider wrote to its cache.
    pub cache_write_tokens: u64,
    /// The sum of the four.
    pub total_tokens: u64,
    /// The provider sent no usage for at least one call.
    pub estimated: bool,
}

impl Usage {
    /// Adds one call's usage and renews the total.
    pub fn add(&mut self, call: &Self) {
        self.input_tokens += call.input_tokens;
        self.output_tokens += call.output_tokens;
        self.cache_read_tokens += call.cache_read_tokens;
        self.cache_write_tokens += call.cache_write_tokens;
        self.total_tokens = self.input_tokens + self.output_tokens + self.cache_read_tokens + self.cache_write_tokens;
        self.estimated |= call.estimated;
    }
}
