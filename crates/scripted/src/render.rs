//! An answer as a provider would stream it.

use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use serde_json::{Value, json};

use crate::play::{Answer, Block};

/// The protocol of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wire {
    Anthropic,
    Chat,
}

/// Time for written pieces to leave before a connection is dropped.
const BEFORE_CUT: Duration = Duration::from_millis(20);
/// Characters of one delta.
const DELTA: usize = 24;

/// A step of a stream.
enum Step {
    Send(String),
    Pause(Duration),
    Cut,
}

/// Streams the answer; a cut ends with an error, which drops the connection.
pub(crate) fn stream(
    wire: Wire,
    answer: Answer,
    model: String,
    input_tokens: u64,
) -> impl Stream<Item = std::io::Result<Bytes>> {
    let pace = Duration::from_millis(answer.pace_ms);
    let steps = match wire {
        Wire::Anthropic => anthropic(&answer, &model, input_tokens),
        Wire::Chat => chat(&answer, &model, input_tokens),
    };
    futures_util::stream::unfold(steps.into_iter(), move |mut steps| async move {
        loop {
            match steps.next()? {
                Step::Send(chunk) => {
                    if !pace.is_zero() {
                        tokio::time::sleep(pace).await;
                    }
                    return Some((Ok(Bytes::from(chunk)), steps));
                }
                Step::Pause(time) => tokio::time::sleep(time).await,
                Step::Cut => {
                    // What was streamed must be on its way before the break.
                    tokio::time::sleep(BEFORE_CUT).await;
                    return Some((
                        Err(std::io::Error::other("the script cuts the stream here")),
                        Vec::new().into_iter(),
                    ));
                }
            }
        }
    })
}

/// What a block that sends nothing does to the stream.
fn silent(block: &Block) -> Step {
    match block {
        Block::Pause(ms) => Step::Pause(Duration::from_millis(*ms)),
        _ => Step::Cut,
    }
}

fn pieces(text: &str) -> Vec<String> {
    let characters: Vec<char> = text.chars().collect();
    characters.chunks(DELTA).map(|piece| piece.iter().collect()).collect()
}

fn output_tokens(answer: &Answer) -> u64 {
    let length = |block: &Block| match block {
        Block::Text(text) | Block::Thinking(text) => text.len(),
        Block::Call { call, .. } => call.input.to_string().len() + call.tool.len(),
        Block::Pause(_) | Block::Cut => 0,
    };
    (answer.blocks.iter().map(length).sum::<usize>() / 4) as u64 + 1
}

fn arguments(input: &Value) -> String {
    if input.is_null() { "{}".to_owned() } else { input.to_string() }
}

fn anthropic(answer: &Answer, model: &str, input_tokens: u64) -> Vec<Step> {
    let event =
        |data: Value| Step::Send(format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or_default()));
    let usage = json!({"input_tokens": input_tokens, "output_tokens": 1, "cache_read_input_tokens": 0, "cache_creation_input_tokens": 0});
    let message = json!({"id": "msg_scripted", "type": "message", "role": "assistant", "content": [], "model": model, "stop_reason": null, "stop_sequence": null, "usage": usage});
    let mut out = vec![event(json!({"type": "message_start", "message": message})), event(json!({"type": "ping"}))];
    let mut index = 0;
    for block in &answer.blocks {
        let (start, deltas): (Value, Vec<Value>) = match block {
            Block::Text(text) => (
                json!({"type": "text", "text": ""}),
                pieces(text).into_iter().map(|piece| json!({"type": "text_delta", "text": piece})).collect(),
            ),
            Block::Thinking(text) => {
                let thinking =
                    pieces(text).into_iter().map(|piece| json!({"type": "thinking_delta", "thinking": piece}));
                let signature = json!({"type": "signature_delta", "signature": "c2NyaXB0ZWQ="});
                (json!({"type": "thinking", "thinking": "", "signature": ""}), thinking.chain([signature]).collect())
            }
            Block::Call { id, call } => (
                json!({"type": "tool_use", "id": id, "name": call.tool, "input": {}}),
                pieces(&arguments(&call.input))
                    .into_iter()
                    .map(|piece| json!({"type": "input_json_delta", "partial_json": piece}))
                    .collect(),
            ),
            Block::Pause(_) | Block::Cut => {
                out.push(silent(block));
                continue;
            }
        };
        out.push(event(json!({"type": "content_block_start", "index": index, "content_block": start})));
        out.extend(
            deltas
                .into_iter()
                .map(|delta| event(json!({"type": "content_block_delta", "index": index, "delta": delta}))),
        );
        out.push(event(json!({"type": "content_block_stop", "index": index})));
        index += 1;
    }
    let stop = if calls(answer) { "tool_use" } else { "end_turn" };
    let delta = json!({"stop_reason": stop, "stop_sequence": null});
    out.push(event(
        json!({"type": "message_delta", "delta": delta, "usage": {"output_tokens": output_tokens(answer)}}),
    ));
    out.push(event(json!({"type": "message_stop"})));
    out
}

fn chat(answer: &Answer, model: &str, input_tokens: u64) -> Vec<Step> {
    let envelope = |choices: Value, usage: Value| {
        let chunk = json!({"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0, "model": model, "choices": choices, "usage": usage});
        Step::Send(format!("data: {chunk}\n\n"))
    };
    let delta = |delta: Value, finish: Value| {
        envelope(json!([{"index": 0, "delta": delta, "finish_reason": finish}]), Value::Null)
    };
    let mut out = vec![delta(json!({"role": "assistant", "content": ""}), Value::Null)];
    let mut calls_made = 0;
    for block in &answer.blocks {
        match block {
            Block::Text(text) => {
                out.extend(pieces(text).into_iter().map(|piece| delta(json!({"content": piece}), Value::Null)))
            }
            Block::Thinking(text) => {
                out.extend(
                    pieces(text).into_iter().map(|piece| delta(json!({"reasoning_content": piece}), Value::Null)),
                );
            }
            Block::Call { id, call } => {
                let head = json!({"index": calls_made, "id": id, "type": "function", "function": {"name": call.tool, "arguments": ""}});
                out.push(delta(json!({"tool_calls": [head]}), Value::Null));
                let more =
                    |piece: String| json!({"tool_calls": [{"index": calls_made, "function": {"arguments": piece}}]});
                out.extend(pieces(&arguments(&call.input)).into_iter().map(|piece| delta(more(piece), Value::Null)));
                calls_made += 1;
            }
            Block::Pause(_) | Block::Cut => out.push(silent(block)),
        }
    }
    out.push(delta(json!({}), if calls(answer) { "tool_calls" } else { "stop" }.into()));
    let output = output_tokens(answer);
    let usage =
        json!({"prompt_tokens": input_tokens, "completion_tokens": output, "total_tokens": input_tokens + output});
    out.push(envelope(json!([]), usage));
    out.push(Step::Send("data: [DONE]\n\n".to_owned()));
    out
}

fn calls(answer: &Answer) -> bool {
    answer.blocks.iter().any(|block| matches!(block, Block::Call { .. }))
}
