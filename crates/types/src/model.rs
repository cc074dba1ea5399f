//! Models as the agent needs to know them. Where a model lives and which key
//! opens it is known to egress alone.

use serde::{Deserialize, Serialize};

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

/// A model, as told to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}
