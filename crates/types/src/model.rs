//! Models as the agent needs to know them. Where a model lives and which key
//! opens it is known to egress alone.

use serde::{Deserialize, Serialize};

use crate::transcript::Usage;

/// The protocol that a model's provider speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wire {
    /// Anthropic Messages.
    AnthropicMessages,
    /// OpenAI Chat Completions, as llama.cpp, vLLM and Ollama speak it too.
    OpenaiChat,
}

impl Wire {
    /// The path that follows the base URL, as the vendors' own SDKs build it.
    #[must_use]
    pub const fn path(self) -> &'static str {
        match self {
            Self::AnthropicMessages => "/v1/messages",
            Self::OpenaiChat => "/chat/completions",
        }
    }
}

/// What tokens cost, in dollars a million. One dollar a million tokens is a
/// millionth of a dollar a token, the unit in which sums are kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Price {
    /// Input that came from no cache.
    pub input: f64,
    /// Output.
    pub output: f64,
    /// Input that the provider read from its cache.
    pub cache_read: f64,
    /// Input that the provider wrote to its cache.
    pub cache_write: f64,
}

impl Price {
    /// What this usage costs, in millionths of a dollar, rounded up.
    #[must_use]
    pub fn of(&self, usage: &Usage) -> u64 {
        let cost = self.input * usage.input_tokens as f64
            + self.output * usage.output_tokens as f64
            + self.cache_read * usage.cache_read_tokens as f64
            + self.cache_write * usage.cache_write_tokens as f64;
        cost.ceil() as u64
    }
}

/// A model, as told to the agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelSpec {
    /// Name in the catalogue; also the first part of the path at the listener.
    pub name: String,
    /// The protocol.
    pub wire: Wire,
    /// The provider's own name for it.
    pub upstream_model: String,
    /// Most tokens of one answer.
    pub max_output_tokens: u32,
    /// Tokens that the model may think, if it is to think at all.
    pub thinking_tokens: Option<u32>,
    /// What its tokens cost; nothing if left out.
    #[serde(default)]
    pub price: Price,
}
