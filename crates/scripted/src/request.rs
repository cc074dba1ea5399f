//! What a request says about the conversation, whichever wire it came on.

use serde_json::Value;
use sha2::{Digest, Sha256};

/// The part of a conversation that a script needs.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Conversation {
    /// The last thing that a user wrote.
    pub(crate) message: String,
    /// Answers with tool calls since then.
    pub(crate) steps: usize,
    /// What the last tool answered.
    pub(crate) last_result: String,
}

impl Conversation {
    fn user(&mut self, text: &str) {
        *self = Self { message: text.to_owned(), ..Self::default() };
    }
}

/// Text of a content field: a string, or parts.
fn text_of(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => parts.iter().filter_map(|part| part["text"].as_str()).collect(),
        _ => String::new(),
    }
}

pub(crate) fn anthropic(request: &Value) -> Conversation {
    let mut conversation = Conversation::default();
    for message in request["messages"].as_array().into_iter().flatten() {
        let Value::Array(blocks) = &message["content"] else {
            if message["role"] == "user" {
                conversation.user(&text_of(&message["content"]));
            }
            continue;
        };
        if message["role"] == "assistant" {
            conversation.steps += usize::from(blocks.iter().any(|block| block["type"] == "tool_use"));
        }
        for block in blocks.iter().filter(|_| message["role"] == "user") {
            match block["type"].as_str() {
                Some("text") => conversation.user(block["text"].as_str().unwrap_or_default()),
                Some("tool_result") => conversation.last_result = text_of(&block["content"]),
                _ => {}
            }
        }
    }
    conversation
}

pub(crate) fn chat(request: &Value) -> Conversation {
    let mut conversation = Conversation::default();
    for message in request["messages"].as_array().into_iter().flatten() {
        match message["role"].as_str() {
            Some("user") => conversation.user(&text_of(&message["content"])),
            Some("assistant") => {
                conversation.steps +=
                    usize::from(message["tool_calls"].as_array().is_some_and(|calls| !calls.is_empty()))
            }
            Some("tool") => conversation.last_result = text_of(&message["content"]),
            _ => {}
        }
    }
    conversation
}

/// Names a request that bears no key of its own.
pub(crate) fn digest(body: &[u8]) -> String {
    Sha256::digest(body).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn both_wires_tell_the_same() {
        let want = Conversation { message: "go".into(), steps: 1, last_result: "ok".into() };
        let messages = json!({"messages": [
            {"role": "user", "content": "before"},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "x"}]},
            {"role": "user", "content": [{"type": "tool_result", "content": "old"}, {"type": "text", "text": "go"}]},
            {"role": "assistant", "content": [{"type": "tool_use", "id": "t"}]},
            {"role": "user", "content": [{"type": "tool_result", "content": "ok"}]},
        ]});
        assert_eq!(anthropic(&messages), want);
        let messages = json!({"messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "go"},
            {"role": "assistant", "content": "", "tool_calls": [{"id": "t"}]},
            {"role": "tool", "content": "ok"},
        ]});
        assert_eq!(chat(&messages), want);
    }
}
