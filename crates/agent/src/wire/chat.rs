//! OpenAI Chat Completions, in the dialects that gateways and local servers
//! speak: reasoning under three names, indices missing or repeated, usage in a
//! last chunk without choices, no `[DONE]`.

use cloister_types::model::ModelSpec;
use cloister_types::transcript::{Entry, Usage};
use serde_json::{Value, json};

use super::{Answer, Block, Piece, Stop, WireError, parse_input};
use crate::tools::Schema;
use cloister_types::sse;

/// Reads a stream. The protocol has no block borders: a block closes when
/// another kind of content begins. A call that goes on after another one has
/// begun is collected silently and shown when its turn comes.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Distinguishes the ids that we have to make up for this call.
    step: u32,
    blocks: Vec<Collected>,
    /// The block that clients see open, and how many were shown whole.
    shown: usize,
    open: bool,
    finish: Option<String>,
    done: bool,
    usage: Option<Value>,
}

#[derive(Debug)]
struct Collected {
    kind: Kind,
    text: String,
    /// Bytes of `text` that clients have seen.
    sent: usize,
}

#[derive(Debug, PartialEq)]
enum Kind {
    Text,
    Thinking,
    Tool { index: Option<u64>, id: String, name: String },
}

impl Decoder {
    pub(super) fn new(step: u32) -> Self {
        Self { step, ..Self::default() }
    }

    pub(super) fn is_complete(&self) -> bool {
        self.done
    }

    pub(super) fn event(&mut self, event: &sse::Event) -> Result<Vec<Piece>, WireError> {
        if self.done {
            return Ok(Vec::new());
        }
        if event.data.trim() == "[DONE]" {
            self.done = true;
            return Ok(Vec::new());
        }
        let chunk: Value =
            serde_json::from_str(&event.data).map_err(|error| WireError::Malformed(error.to_string()))?;
        if let Some(error) = chunk.get("error").filter(|error| !error.is_null()) {
            let word = |field: &str| match &error[field] {
                Value::String(text) => Some(text.clone()),
                Value::Number(number) => Some(number.to_string()),
                _ => None,
            };
            let kind = word("type").or_else(|| word("code")).unwrap_or_else(|| "api_error".into());
            let message = word("message").unwrap_or_else(|| error.as_str().unwrap_or("no message").to_owned());
            return Err(WireError::Reported { kind, message });
        }
        if chunk["usage"].is_object() {
            self.usage = Some(chunk["usage"].clone());
        }
        let choice = &chunk["choices"][0];
        let delta = &choice["delta"];
        for field in ["reasoning_content", "reasoning"] {
            if let Some(text) = delta[field].as_str().filter(|text| !text.is_empty()) {
                self.plain(Kind::Thinking, text);
                break;
            }
        }
        if delta["reasoning_content"].is_null() && delta["reasoning"].is_null() {
            for detail in delta["reasoning_details"].as_array().into_iter().flatten() {
                if let Some(text) =
                    detail["text"].as_str().or_else(|| detail["summary"].as_str()).filter(|text| !text.is_empty())
                {
                    self.plain(Kind::Thinking, text);
                }
            }
        }
        if let Some(text) = delta["content"].as_str().filter(|text| !text.is_empty()) {
            self.plain(Kind::Text, text);
        }
        for part in delta["content"].as_array().into_iter().flatten() {
            if let Some(text) = part["text"].as_str() {
                self.plain(Kind::Text, text);
            }
        }
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            self.call(call);
        }
        if let Some(reason) = choice["finish_reason"].as_str() {
            self.finish = Some(reason.to_owned());
        }
        Ok(self.show(false))
    }

    fn plain(&mut self, kind: Kind, text: &str) {
        match self.blocks.last_mut() {
            Some(last) if last.kind == kind => last.text.push_str(text),
            _ => self.blocks.push(Collected { kind, text: text.to_owned(), sent: 0 }),
        }
    }

    fn call(&mut self, delta: &Value) {
        let index = delta["index"].as_u64();
        let id = delta["id"].as_str().unwrap_or_default();
        let name = delta["function"]["name"].as_str().unwrap_or_default();
        let arguments = match &delta["function"]["arguments"] {
            Value::String(text) => text.clone(),
            Value::Object(_) => delta["function"]["arguments"].to_string(),
            _ => String::new(),
        };
        // The same call has the same index and does not change its id; without
        // an index, text without an id belongs to the call before.
        let known = self.blocks.iter().rposition(|block| match &block.kind {
            Kind::Tool { index: other, id: known, .. } => {
                let same_id = id.is_empty() || known.is_empty() || known == id;
                if index.is_some() && other.is_some() {
                    *other == index && same_id
                } else {
                    same_id && name.is_empty() || (!id.is_empty() && known == id)
                }
            }
            _ => false,
        });
        match known.map(|at| &mut self.blocks[at]) {
            Some(block) => {
                block.text.push_str(&arguments);
                if let Kind::Tool { id: known, name: tool, .. } = &mut block.kind {
                    if known.is_empty() {
                        *known = id.to_owned();
                    }
                    if tool.is_empty() {
                        *tool = name.to_owned();
                    }
                }
            }
            None => {
                let id =
                    if id.is_empty() { format!("call_{}_{}", self.step, self.blocks.len()) } else { id.to_owned() };
                self.blocks.push(Collected {
                    kind: Kind::Tool { index, id, name: name.to_owned() },
                    text: arguments,
                    sent: 0,
                });
            }
        }
    }

    /// Shows what can be shown without interleaving blocks.
    fn show(&mut self, all: bool) -> Vec<Piece> {
        let mut pieces = Vec::new();
        while self.shown < self.blocks.len() {
            let last = self.shown + 1 == self.blocks.len();
            let block = &mut self.blocks[self.shown];
            if !self.open {
                pieces.push(Piece::Open(match &block.kind {
                    Kind::Text => Block::Text,
                    Kind::Thinking => Block::Thinking,
                    Kind::Tool { id, name, .. } => Block::Tool { id: id.clone(), name: name.clone() },
                }));
                self.open = true;
            }
            if block.sent < block.text.len() {
                pieces.push(Piece::More(block.text[block.sent..].to_owned()));
                block.sent = block.text.len();
            }
            // Calls may still grow while they stream side by side, so a call
            // closes only at the end or when plain content follows.
            if last && !all {
                break;
            }
            let next_is_tool =
                self.blocks.get(self.shown + 1).is_some_and(|next| matches!(next.kind, Kind::Tool { .. }));
            let block = &self.blocks[self.shown];
            let is_tool = matches!(block.kind, Kind::Tool { .. });
            if !all && is_tool && next_is_tool && parse_input(&block.text).is_err() {
                break;
            }
            pieces.push(Piece::Close(if is_tool { parse_input(&block.text).ok() } else { None }));
            self.open = false;
            self.shown += 1;
        }
        pieces
    }

    pub(super) fn finish(mut self) -> Result<(Vec<Piece>, Answer), WireError> {
        // A server that says it is done has finished, if it said anything.
        let ended = self.finish.is_some() || (self.done && !self.blocks.is_empty());
        if !ended {
            return Err(WireError::Incomplete);
        }
        let pieces = self.show(true);
        let mut malformed = Vec::new();
        let (mut plain, mut tools) = (Vec::new(), Vec::new());
        for block in self.blocks {
            match block.kind {
                Kind::Text => plain.push(json!({"type": "text", "text": block.text})),
                Kind::Thinking => plain.push(json!({"type": "thinking", "thinking": block.text})),
                Kind::Tool { id, name, .. } => {
                    let input = parse_input(&block.text).unwrap_or_else(|()| {
                        malformed.push((id.clone(), block.text.clone()));
                        json!({})
                    });
                    tools.push(json!({"type": "tool_use", "id": id, "name": name, "input": input}));
                }
            }
        }
        let stop = match self.finish.as_deref() {
            Some("length") => Stop::MaxTokens,
            Some("content_filter") => Stop::Refusal,
            // Some servers say "stop" and mean the calls that they made.
            _ if !tools.is_empty() => Stop::Tools,
            _ => Stop::End,
        };
        plain.extend(tools);
        Ok((pieces, Answer { blocks: plain, malformed, stop, usage: usage(self.usage.as_ref()) }))
    }
}

/// Input counts include cached tokens on this wire; ours do not.
fn usage(usage: Option<&Value>) -> Usage {
    let count = |value: &Value| value.as_u64().unwrap_or_default();
    let mut sum = Usage::default();
    let Some(usage) = usage else {
        sum.estimated = true;
        return sum;
    };
    let cached = count(&usage["prompt_tokens_details"]["cached_tokens"]);
    sum.add(&Usage {
        input_tokens: count(&usage["prompt_tokens"]).saturating_sub(cached),
        output_tokens: count(&usage["completion_tokens"]),
        cache_read_tokens: cached,
        ..Usage::default()
    });
    sum
}

/// Builds the request. Reasoning is not sent back on this wire.
pub(super) fn request(model: &ModelSpec, system: &str, conversation: &[Entry], tools: &[Schema]) -> Value {
    let mut messages = vec![json!({"role": "system", "content": system})];
    for entry in conversation {
        messages.push(match entry {
            Entry::User { text } => json!({"role": "user", "content": text}),
            Entry::ToolResult { id, content, .. } => json!({"role": "tool", "tool_call_id": id, "content": content}),
            Entry::Assistant { blocks, .. } => assistant(blocks),
        });
    }
    let tools: Vec<Value> = tools
        .iter()
        .map(|tool| json!({"type": "function", "function": {"name": tool.name, "description": tool.description, "parameters": tool.parameters}}))
        .collect();
    json!({
        "model": model.upstream_model,
        limit_field(&model.upstream_model): model.max_output_tokens,
        "stream": true,
        "stream_options": {"include_usage": true},
        "messages": messages,
        "tools": tools,
    })
}

fn assistant(blocks: &[Value]) -> Value {
    let text: String =
        blocks.iter().filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str()).collect();
    let calls: Vec<Value> = crate::history::calls(blocks)
        .into_iter()
        .map(|call| json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.input.to_string()}}))
        .collect();
    let mut message = json!({"role": "assistant", "content": text});
    if !calls.is_empty() {
        message["tool_calls"] = calls.into();
    }
    message
}

/// OpenAI's reasoning models refuse the field that everybody else knows.
fn limit_field(upstream_model: &str) -> &'static str {
    const NEWER: [&str; 4] = ["o1", "o3", "o4", "gpt-5"];
    if NEWER.iter().any(|prefix| upstream_model.starts_with(prefix)) { "max_completion_tokens" } else { "max_tokens" }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(chunks: &[Value]) -> (Vec<Piece>, Result<Answer, WireError>) {
        let mut decoder = Decoder::default();
        let mut pieces = Vec::new();
        for chunk in chunks {
            pieces.extend(decoder.event(&sse::Event { data: chunk.to_string(), ..sse::Event::default() }).unwrap());
        }
        match decoder.finish() {
            Ok((rest, answer)) => {
                pieces.extend(rest);
                (pieces, Ok(answer))
            }
            Err(error) => (pieces, Err(error)),
        }
    }

    fn call(index: Option<u64>, id: &str, name: &str, arguments: &str) -> Value {
        let mut call = json!({"function": {"name": name, "arguments": arguments}});
        if let Some(index) = index {
            call["index"] = index.into();
        }
        if !id.is_empty() {
            call["id"] = id.into();
        }
        json!({"choices": [{"delta": {"tool_calls": [call]}}]})
    }

    fn end(reason: &str) -> Value {
        json!({"choices": [{"delta": {}, "finish_reason": reason}]})
    }

    #[test]
    fn interleaved_calls_come_out_one_after_the_other() {
        let (pieces, answer) = run(&[
            call(Some(0), "a", "bash", "{\"x\":"),
            call(Some(1), "b", "bash", "{\"y\":"),
            call(Some(0), "", "", "1}"),
            call(Some(1), "", "", "2}"),
            end("tool_calls"),
        ]);
        let answer = answer.unwrap();
        assert_eq!(answer.blocks[0]["input"], json!({"x": 1}));
        assert_eq!(answer.blocks[1]["input"], json!({"y": 2}));
        let opens: Vec<_> = pieces.iter().filter(|piece| matches!(piece, Piece::Open(_) | Piece::Close(_))).collect();
        assert!(
            matches!(opens[..], [Piece::Open(_), Piece::Close(Some(_)), Piece::Open(_), Piece::Close(Some(_))]),
            "{opens:?}"
        );
    }

    #[test]
    fn calls_without_or_with_repeated_indices_are_told_apart() {
        for index in [None, Some(0)] {
            let (_, answer) =
                run(&[call(index, "a", "bash", "{}"), call(index, "b", "bash", "{\"y\":2}"), end("stop")]);
            let answer = answer.unwrap();
            assert_eq!(answer.blocks.len(), 2, "{index:?}");
            assert_eq!(answer.stop, Stop::Tools);
        }
    }

    #[test]
    fn an_error_object_and_a_missing_end_are_no_answers() {
        let mut decoder = Decoder::default();
        let error = sse::Event {
            data: json!({"error": {"message": "slow down", "code": 429}}).to_string(),
            ..sse::Event::default()
        };
        assert_eq!(decoder.event(&error), Err(WireError::Reported { kind: "429".into(), message: "slow down".into() }));
        assert_eq!(run(&[json!({"choices": [{"delta": {"content": "half"}}]})]).1, Err(WireError::Incomplete));
    }
}
