//! Anthropic Messages.

use std::collections::BTreeMap;

use cloister_types::model::{ModelSpec, Wire};
use cloister_types::transcript::{Entry, Usage};
use serde_json::{Map, Value, json};

use super::{Answer, Block, Piece, Stop, WireError, parse_input};
use crate::tools::Schema;
use cloister_types::sse;

/// Reads a stream. Blocks are found by the provider's index; one that comes
/// twice (gateways splice streams) is a new block.
#[derive(Debug, Default)]
pub struct Decoder {
    blocks: Vec<Open>,
    by_index: BTreeMap<u64, usize>,
    stop: Option<String>,
    usage: Option<Map<String, Value>>,
    complete: bool,
}

#[derive(Debug)]
struct Open {
    raw: Map<String, Value>,
    input: String,
    closed: bool,
}

impl Open {
    fn kind(&self) -> &str {
        self.raw.get("type").and_then(Value::as_str).unwrap_or_default()
    }

    fn append(&mut self, field: &str, more: &str) {
        match self.raw.get_mut(field) {
            Some(Value::String(text)) => text.push_str(more),
            _ => drop(self.raw.insert(field.to_owned(), more.into())),
        }
    }
}

impl Decoder {
    pub(super) fn is_complete(&self) -> bool {
        self.complete
    }

    pub(super) fn event(&mut self, event: &sse::Event) -> Result<Vec<Piece>, WireError> {
        if self.complete {
            return Ok(Vec::new());
        }
        let data: Value = serde_json::from_str(&event.data).map_err(|error| WireError::Malformed(error.to_string()))?;
        let kind = data["type"].as_str().unwrap_or(&event.name);
        let index = data["index"].as_u64().unwrap_or_default();
        match kind {
            "message_start" => {
                // A gateway that began anew: what it left half done is void.
                self.blocks.retain(|block| block.closed);
                self.by_index.clear();
                self.take_usage(&data["message"]["usage"]);
            }
            "content_block_start" => return Ok(self.open(index, &data["content_block"])),
            "content_block_delta" => return Ok(self.delta(index, &data["delta"])),
            "content_block_stop" => return Ok(self.close(index)),
            "message_delta" => {
                if let Some(reason) = data["delta"]["stop_reason"].as_str() {
                    self.stop = Some(reason.to_owned());
                }
                self.take_usage(&data["usage"]);
            }
            "message_stop" => self.complete = true,
            "error" => {
                let text = |field: &str| data["error"][field].as_str().unwrap_or("unknown").to_owned();
                return Err(WireError::Reported { kind: text("type"), message: text("message") });
            }
            // Pings, and whatever is invented next.
            _ => {}
        }
        Ok(Vec::new())
    }

    /// Counts are running totals: newer ones replace older ones.
    fn take_usage(&mut self, usage: &Value) {
        if let Value::Object(fields) = usage {
            let all = self.usage.get_or_insert_default();
            all.extend(
                fields.iter().filter(|(_, value)| !value.is_null()).map(|(key, value)| (key.clone(), value.clone())),
            );
        }
    }

    fn open(&mut self, index: u64, block: &Value) -> Vec<Piece> {
        let raw = block.as_object().cloned().unwrap_or_default();
        let open = Open { raw, input: String::new(), closed: false };
        let text = |field: &str| open.raw.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let mut pieces = match open.kind() {
            "text" => vec![Piece::Open(Block::Text), Piece::More(text("text"))],
            "thinking" => vec![Piece::Open(Block::Thinking), Piece::More(text("thinking"))],
            "tool_use" => vec![Piece::Open(Block::Tool { id: text("id"), name: text("name") })],
            _ => Vec::new(),
        };
        pieces.retain(|piece| *piece != Piece::More(String::new()));
        self.by_index.insert(index, self.blocks.len());
        self.blocks.push(open);
        pieces
    }

    fn delta(&mut self, index: u64, delta: &Value) -> Vec<Piece> {
        let Some(block) = self.by_index.get(&index).map(|at| &mut self.blocks[*at]) else { return Vec::new() };
        let text = |field: &str| delta[field].as_str().unwrap_or_default();
        let more = |text: &str| if text.is_empty() { Vec::new() } else { vec![Piece::More(text.to_owned())] };
        match delta["type"].as_str().unwrap_or_default() {
            "text_delta" => {
                block.append("text", text("text"));
                more(text("text"))
            }
            "thinking_delta" => {
                block.append("thinking", text("thinking"));
                more(text("thinking"))
            }
            "signature_delta" => {
                block.append("signature", text("signature"));
                Vec::new()
            }
            "input_json_delta" => {
                block.input.push_str(text("partial_json"));
                if block.kind() == "tool_use" { more(text("partial_json")) } else { Vec::new() }
            }
            "citations_delta" => {
                let list = block.raw.entry("citations").or_insert(Value::Null);
                match list {
                    Value::Array(list) => list.push(delta["citation"].clone()),
                    other => *other = json!([delta["citation"]]),
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn close(&mut self, index: u64) -> Vec<Piece> {
        let Some(block) = self.by_index.get(&index).map(|at| &mut self.blocks[*at]) else { return Vec::new() };
        block.closed = true;
        // The start carries an empty object, or all of it when nothing streams.
        let parsed = if block.input.is_empty() {
            Ok(block.raw.get("input").cloned().unwrap_or(json!({})))
        } else {
            parse_input(&block.input)
        };
        let input = parsed.ok();
        match block.kind() {
            "text" | "thinking" => vec![Piece::Close(None)],
            "tool_use" => {
                block.raw.insert("input".into(), input.clone().unwrap_or(json!({})));
                vec![Piece::Close(input)]
            }
            _ if !block.input.is_empty() => {
                block.raw.insert("input".into(), input.unwrap_or(json!({})));
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    pub(super) fn finish(self) -> Result<(Vec<Piece>, Answer), WireError> {
        if !self.complete {
            return Err(WireError::Incomplete);
        }
        let stop = match self.stop.as_deref() {
            Some("tool_use") => Stop::Tools,
            Some("max_tokens") => Stop::MaxTokens,
            Some("pause_turn") => Stop::Pause,
            Some("refusal") => Stop::Refusal,
            Some("model_context_window_exceeded") => Stop::ContextFull,
            _ => Stop::End,
        };
        let id = |block: &Open| block.raw.get("id").and_then(Value::as_str).unwrap_or_default().to_owned();
        // What was never closed was cut by the token limit. Clients see it
        // closed all the same.
        let shown = |block: &Open| matches!(block.kind(), "text" | "thinking" | "tool_use");
        let pieces =
            self.blocks.iter().filter(|block| !block.closed && shown(block)).map(|_| Piece::Close(None)).collect();
        let (tools, others): (Vec<Open>, Vec<Open>) =
            self.blocks.into_iter().partition(|block| block.kind() == "tool_use");
        let malformed = tools
            .iter()
            .filter(|block| !block.closed || (!block.input.is_empty() && parse_input(&block.input).is_err()))
            .map(|block| (id(block), block.input.clone()))
            .collect();
        let empty = |block: &Open| {
            block.kind() == "text" && block.raw.get("text").and_then(Value::as_str).is_none_or(str::is_empty)
        };
        let unsigned = |block: &Open| {
            let signature = block.raw.get("signature").and_then(Value::as_str).unwrap_or_default();
            block.kind() == "thinking" && (!block.closed || signature.is_empty())
        };
        // The provider would refuse these when they come back, for ever.
        let kept = others.into_iter().filter(|block| !empty(block) && !unsigned(block));
        let kept = kept.filter(|block| block.closed || block.kind() == "text");
        // Tool calls last: nothing may stand between a call and its result.
        let mut blocks: Vec<Value> = kept.chain(tools).map(|block| Value::Object(block.raw)).collect();
        // A message of thinking alone is none either.
        if blocks.iter().all(|block| matches!(block["type"].as_str(), Some("thinking" | "redacted_thinking"))) {
            blocks.clear();
        }
        Ok((pieces, Answer { blocks, malformed, stop, usage: usage(self.usage.as_ref()) }))
    }
}

fn usage(fields: Option<&Map<String, Value>>) -> Usage {
    let count = |name: &str| fields.and_then(|fields| fields.get(name)).and_then(Value::as_u64).unwrap_or_default();
    let mut sum = Usage::default();
    sum.add(&Usage {
        input_tokens: count("input_tokens"),
        output_tokens: count("output_tokens"),
        cache_read_tokens: count("cache_read_input_tokens"),
        cache_write_tokens: count("cache_creation_input_tokens"),
        estimated: fields.is_none(),
        total_tokens: 0,
    });
    sum
}

/// Builds the request. Cache marks sit on the system text and on the last two
/// user messages, so that each call finds the one before it in the cache.
pub(super) fn request(model: &ModelSpec, system: &str, conversation: &[Entry], tools: &[Schema]) -> Value {
    let mut messages: Vec<Value> = Vec::new();
    for entry in conversation {
        let (role, blocks) = match entry {
            Entry::User { text } => ("user", vec![json!({"type": "text", "text": text})]),
            Entry::ToolResult { id, content, is_error } => (
                "user",
                vec![json!({"type": "tool_result", "tool_use_id": id, "content": content, "is_error": is_error})],
            ),
            Entry::Assistant { wire, model: author, blocks, .. } => ("assistant", replay(*wire, author, blocks, model)),
        };
        if blocks.is_empty() {
            continue;
        }
        match messages.last_mut() {
            Some(last) if last["role"] == role => {
                if let Some(list) = last["content"].as_array_mut() {
                    list.extend(blocks);
                }
            }
            _ => messages.push(json!({"role": role, "content": blocks})),
        }
    }
    let mark = json!({"type": "ephemeral"});
    for message in messages.iter_mut().rev().filter(|message| message["role"] == "user").take(2) {
        if let Some(block) = message["content"].as_array_mut().and_then(|list| list.last_mut()) {
            block["cache_control"] = mark.clone();
        }
    }
    let tools: Vec<Value> = tools
        .iter()
        .map(|tool| json!({"name": tool.name, "description": tool.description, "input_schema": tool.parameters}))
        .collect();
    let mut body = json!({
        "model": model.upstream_model,
        "max_tokens": model.max_output_tokens,
        "stream": true,
        "system": [{"type": "text", "text": system, "cache_control": mark}],
        "tools": tools,
        "messages": messages,
    });
    if let Some(budget) = model.thinking_tokens {
        body["thinking"] = json!({"type": "enabled", "budget_tokens": budget});
    }
    body
}

/// Signed and unknown blocks go back to the model that made them, as they
/// came; another model gets text and tool calls.
fn replay(wire: Wire, author: &str, blocks: &[Value], model: &ModelSpec) -> Vec<Value> {
    let same = wire == Wire::AnthropicMessages && author == model.upstream_model;
    let portable = |block: &&Value| matches!(block["type"].as_str(), Some("text" | "tool_use"));
    let plain = |block: &Value| match block["type"].as_str() {
        Some("text") => json!({"type": "text", "text": block["text"]}),
        _ => json!({"type": "tool_use", "id": block["id"], "name": block["name"], "input": block["input"]}),
    };
    if same { blocks.to_vec() } else { blocks.iter().filter(portable).map(plain).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> ModelSpec {
        ModelSpec {
            name: "m".into(),
            wire: Wire::AnthropicMessages,
            upstream_model: "claude".into(),
            max_output_tokens: 9,
            thinking_tokens: None,
            price: Default::default(),
        }
    }

    #[test]
    fn results_precede_the_next_text_in_one_user_message() {
        let tool = json!({"type": "tool_use", "id": "t", "name": "bash", "input": {}});
        let entries = [
            Entry::User { text: "go".into() },
            Entry::Assistant {
                wire: Wire::AnthropicMessages,
                model: "claude".into(),
                blocks: vec![json!({"type": "thinking", "thinking": "x", "signature": "s"}), tool],
                malformed: vec![],
                stop: Default::default(),
                usage: Default::default(),
            },
            Entry::ToolResult { id: "t".into(), content: "ok".into(), is_error: false },
            Entry::User { text: "and".into() },
        ];
        let body = request(&spec(), "sys", &entries, &[]);
        let messages = body["messages"].as_array().unwrap();
        assert_eq!(messages.len(), 3);
        assert_eq!(messages[1]["content"][0]["signature"], "s");
        assert_eq!(messages[2]["content"][0]["type"], "tool_result");
        assert_eq!(messages[2]["content"][1]["text"], "and");
        assert!(messages[2]["content"][1]["cache_control"].is_object());
    }

    #[test]
    fn another_model_gets_no_foreign_thinking() {
        let blocks =
            [json!({"type": "thinking", "thinking": "x", "signature": "s"}), json!({"type": "text", "text": "hi"})];
        assert_eq!(replay(Wire::AnthropicMessages, "other", &blocks, &spec()).len(), 1);
    }
}
