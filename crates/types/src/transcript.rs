//! The conversation as the model must see it again: kept beside the events,
//! because a provider wants its own blocks back unchanged.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::Wire;

/// Why an answer of a model ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// The model is done.
    #[default]
    End,
    /// It waits for tool results.
    Tools,
    /// It reached the limit of one answer.
    MaxTokens,
    /// It wants to go on in another call.
    Pause,
    /// It declined.
    Refusal,
    /// The conversation no longer fits.
    ContextFull,
}

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
        /// Calls whose arguments were not JSON: id and how the text began.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        malformed: Vec<(String, String)>,
        /// Why it ended. With the two fields around it, this is all that a
        /// successor needs to go on where an agent was killed.
        #[serde(default)]
        stop: Stop,
        /// Tokens of this call.
        #[serde(default)]
        usage: Usage,
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

/// What model calls have used since a session began, as they are metered where
/// they leave.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Metered {
    /// Their tokens.
    pub usage: Usage,
    /// Calls among them whose provider did not give all its figures.
    pub estimated: u64,
}

impl Metered {
    /// Adds one call.
    pub fn add(&mut self, call: &Usage) {
        self.usage.add(call);
        self.estimated += u64::from(call.estimated);
    }

    /// What came after `before`.
    #[must_use]
    pub fn since(&self, before: &Self) -> Usage {
        let less = |of: fn(&Usage) -> u64| of(&self.usage).saturating_sub(of(&before.usage));
        let mut rest = Usage::default();
        rest.add(&Usage {
            input_tokens: less(|usage| usage.input_tokens),
            output_tokens: less(|usage| usage.output_tokens),
            cache_read_tokens: less(|usage| usage.cache_read_tokens),
            cache_write_tokens: less(|usage| usage.cache_write_tokens),
            total_tokens: 0,
            estimated: self.estimated > before.estimated,
        });
        rest
    }
}

/// What the model calls among these entries took: how many, and their tokens.
#[must_use]
pub fn spent(entries: &[Entry]) -> (u32, Usage) {
    let mut total = (0, Usage::default());
    for entry in entries {
        if let Entry::Assistant { usage, .. } = entry {
            total.0 += 1;
            total.1.add(usage);
        }
    }
    total
}
