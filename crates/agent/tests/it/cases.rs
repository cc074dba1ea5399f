//! Hand-made streams, one for each rule that a client is known to break.

use super::{borders, read};
use cloister_agent::wire::{Stop, WireError};
use cloister_types::model::Wire;
use serde_json::{Value, json};

fn anthropic(events: &[Value]) -> String {
    events.iter().map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap())).collect()
}

fn tool_stream() -> Vec<Value> {
    vec![
        json!({"type": "message_start", "message": {"usage": {"input_tokens": 5, "cache_read_input_tokens": 3, "output_tokens": 1}}}),
        json!({"type": "ping"}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "invented_event", "index": 9}),
        json!({"type": "content_block_start", "index": 1, "content_block": {"type": "invented_block", "keep": {"me": 1}}}),
        json!({"type": "content_block_stop", "index": 1}),
        json!({"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t1", "name": "bash", "input": {}}}),
        json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{\"command\":"}}),
        json!({"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "\"l\u{e9}s\"}"}}),
        json!({"type": "content_block_stop", "index": 2}),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 40}}),
        json!({"type": "message_stop"}),
    ]
}

#[test]
fn blocks_are_kept_verbatim_and_usage_is_not_added_up() {
    let reading = read(Wire::AnthropicMessages, anthropic(&tool_stream()).as_bytes(), 1);
    let answer = reading.answer.unwrap();
    assert_eq!(answer.stop, Stop::Tools);
    assert_eq!(answer.blocks[0], json!({"type": "thinking", "thinking": "hm", "signature": "sig"}));
    assert_eq!(answer.blocks[1], json!({"type": "invented_block", "keep": {"me": 1}}));
    assert_eq!(answer.blocks[2]["input"], json!({"command": "l\u{e9}s"}));
    assert_eq!((answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.cache_read_tokens), (5, 40, 3));
    assert_eq!(reading.shown, "<thinking>hm</><tool t1 bash>{\"command\":\"l\u{e9}s\"}</>");
}

#[test]
fn a_cut_at_every_border_and_every_byte_is_incomplete() {
    let text = anthropic(&tool_stream());
    let borders = borders(&text);
    for end in 0..*borders.last().unwrap() {
        assert_eq!(
            read(Wire::AnthropicMessages, &text.as_bytes()[..end], usize::MAX).answer,
            Err(WireError::Incomplete),
            "{end}"
        );
    }
}

#[test]
fn a_call_without_input_deltas_has_no_arguments() {
    let mut events = tool_stream();
    events.retain(|event| event["delta"]["type"] != "input_json_delta");
    let answer = read(Wire::AnthropicMessages, anthropic(&events).as_bytes(), 9).answer.unwrap();
    assert_eq!(answer.blocks[2]["input"], json!({}));
    assert!(answer.malformed.is_empty());
}

#[test]
fn a_second_start_at_the_same_index_is_another_block() {
    let mut events = tool_stream();
    let again = events[9..13].to_vec();
    events.splice(13..13, again);
    events.insert(1, events[0].clone());
    let answer = read(Wire::AnthropicMessages, anthropic(&events).as_bytes(), 50).answer.unwrap();
    assert_eq!(answer.blocks.len(), 4);
}

#[test]
fn an_error_in_the_stream_is_reported_as_such() {
    let mut events = tool_stream();
    events.insert(5, json!({"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}));
    let answer = read(Wire::AnthropicMessages, anthropic(&events).as_bytes(), 50).answer;
    assert_eq!(answer, Err(WireError::Reported { kind: "overloaded_error".into(), message: "Overloaded".into() }));
}
