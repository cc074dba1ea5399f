//! Model providers with their habits and their bad days: real wire bytes over
//! real sockets, through egress.

use std::time::Duration;

use cloister_testkit::{Options, Provider, Reply, Stack, Turn};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

const KEY: &str = "sk-test-canary-0123456789";

pub(crate) fn config(provider: &Provider, wire: &str) -> String {
    let suffix = if wire == "openai-chat" { "/v1" } else { "" };
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("key");
    std::fs::write(&key, format!("{KEY}\n")).unwrap();
    format!(
        "[[model]]\nname = 'm'\nwire = '{wire}'\nbase_url = '{}{suffix}'\nupstream_model = 'vendor-1'\nkey_file = '{}'\nallow_private = true\ndefault = true\n",
        provider.url,
        folder.keep().join("key").display()
    )
}

async fn stack_for(provider: &Provider, wire: &str) -> Stack {
    Stack::with(Options { config: Some(config(provider, wire)), ..Options::default() }).await
}

pub(crate) fn anthropic(events: &[Value]) -> Vec<u8> {
    events
        .iter()
        .map(|event| format!("event: {}\ndata: {event}\n\n", event["type"].as_str().unwrap()))
        .collect::<String>()
        .into_bytes()
}

pub(crate) fn chat(chunks: &[Value]) -> Vec<u8> {
    let chunks: String = chunks.iter().map(|chunk| format!("data: {chunk}\n\n")).collect();
    format!("{chunks}data: [DONE]\n\n").into_bytes()
}

pub(crate) fn anthropic_text(text: &str) -> Vec<Value> {
    vec![
        json!({"type": "message_start", "message": {"id": "msg_1", "role": "assistant", "content": [], "usage": {"input_tokens": 7, "cache_read_input_tokens": 5, "output_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}),
        json!({"type": "ping"}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}}),
        json!({"type": "message_stop"}),
    ]
}

pub(crate) fn anthropic_call(command: &str) -> Vec<Value> {
    let input = json!({"command": command}).to_string();
    let (a, b) = input.split_at(input.len() / 2);
    vec![
        json!({"type": "message_start", "message": {"usage": {"input_tokens": 7}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "let me see"}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "c2ln"}}),
        json!({"type": "content_block_stop", "index": 0}),
        json!({"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "toolu_1", "name": "bash", "input": {}}}),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": a}}),
        json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": b}}),
        json!({"type": "content_block_stop", "index": 1}),
        json!({"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}}),
        json!({"type": "message_stop"}),
    ]
}

fn chat_call(command: &str) -> Vec<Value> {
    let input = json!({"command": command}).to_string();
    let delta =
        |delta: Value, finish: Value| json!({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]});
    vec![
        delta(json!({"role": "assistant", "content": null, "reasoning_content": "hm"}), Value::Null),
        delta(
            json!({"tool_calls": [{"index": 0, "id": "call_a", "type": "function", "function": {"name": "bash", "arguments": ""}}]}),
            Value::Null,
        ),
        delta(json!({"tool_calls": [{"index": 0, "function": {"arguments": input}}]}), Value::Null),
        delta(json!({}), json!("tool_calls")),
        json!({"choices": [], "usage": {"prompt_tokens": 20, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 8}}}),
    ]
}

fn chat_text(text: &str) -> Vec<Value> {
    vec![
        json!({"choices": [{"delta": {"content": text}}]}),
        json!({"choices": [{"delta": {}, "finish_reason": "stop"}]}),
        json!({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 2}}),
    ]
}

async fn send(stack: &Stack) -> Turn {
    let session = stack.session().await;
    Turn::collect(stack.client.message(&session, "work", None).await.unwrap()).await
}

#[tokio::test]
async fn a_turn_with_a_tool_over_messages_one_byte_at_a_time() {
    let one = |events: &[Value]| Reply { piece: 1, ..Reply::stream(anthropic(events)) };
    let provider =
        Provider::start(vec![one(&anthropic_call("echo caf\u{e9}")), one(&anthropic_text("All done \u{1f600}."))])
            .await;
    let stack = stack_for(&provider, "anthropic-messages").await;
    let turn = send(&stack).await;
    assert_eq!((turn.end(), turn.text().as_str()), (EventKind::MessageCompleted, "All done \u{1f600}."));
    assert_eq!(turn.results(), ["caf\u{e9}\n"]);
    assert!(turn.events[0].data.get("scripted").is_none());
    let usage = &turn.events.last().unwrap().data["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["output_tokens"], &usage["cache_read_tokens"]),
        (&json!(14), &json!(12), &json!(5))
    );
    let received = provider.received();
    assert_eq!(received.len(), 2);
    for request in &received {
        let head = request.head.to_ascii_lowercase();
        assert!(head.starts_with("post /v1/messages "), "{head}");
        assert!(
            head.contains(&format!("x-api-key: {KEY}")) && head.contains("anthropic-version: 2023-06-01"),
            "{head}"
        );
        assert_eq!((&request.body["model"], &request.body["stream"]), (&json!("vendor-1"), &json!(true)));
    }
    // The second request goes on where the first one was: same beginning, the
    // signed thinking unchanged, the result right after its call.
    let (first, second) = (&received[0].body, &received[1].body);
    assert_eq!((&first["system"], &first["tools"]), (&second["system"], &second["tools"]));
    let messages = second["messages"].as_array().unwrap();
    assert_eq!(messages[1]["content"][0], json!({"type": "thinking", "thinking": "let me see", "signature": "c2ln"}));
    assert_eq!(
        (&messages[2]["content"][0]["tool_use_id"], &messages[2]["content"][0]["content"]),
        (&json!("toolu_1"), &json!("caf\u{e9}\n"))
    );
}

#[tokio::test]
async fn a_turn_with_a_tool_over_chat_completions() {
    let provider = Provider::start(vec![
        Reply::stream(chat(&chat_call("echo hi; exit 2"))),
        Reply::stream(chat(&chat_text("Failed."))),
    ])
    .await;
    let stack = stack_for(&provider, "openai-chat").await;
    let turn = send(&stack).await;
    assert_eq!((turn.end(), turn.text().as_str()), (EventKind::MessageCompleted, "Failed."));
    assert_eq!(turn.results(), ["hi\n[exit status 2]"]);
    let usage = &turn.events.last().unwrap().data["usage"];
    assert_eq!(
        (&usage["input_tokens"], &usage["cache_read_tokens"], &usage["output_tokens"]),
        (&json!(42), &json!(8), &json!(6))
    );
    let received = provider.received();
    assert!(received[0].head.starts_with("POST /v1/chat/completions "), "{}", received[0].head);
    assert!(received[0].head.contains(&format!("Bearer {KEY}")));
    let messages = received[1].body["messages"].as_array().unwrap();
    assert_eq!(messages[2]["tool_calls"][0]["id"], "call_a");
    assert_eq!((&messages[3]["role"], &messages[3]["tool_call_id"]), (&json!("tool"), &json!("call_a")));
}

#[tokio::test]
async fn a_stream_cut_at_any_event_is_never_an_answer() {
    let events = anthropic_text("whole");
    let mut replies = Vec::new();
    // At each border: once with a broken connection, once with a clean end.
    for border in 0..events.len() {
        for cut in [true, false] {
            replies.push(Reply { cut, ..Reply::stream(anthropic(&events[..border])) });
            replies.push(Reply::stream(anthropic(&events)));
        }
    }
    let count = replies.len();
    let provider = Provider::start(replies).await;
    let stack = stack_for(&provider, "anthropic-messages").await;
    let session = stack.session().await;
    for round in 0..count / 2 {
        let turn = Turn::collect(stack.client.message(&session, "work", None).await.unwrap()).await;
        assert_eq!(turn.end(), EventKind::MessageCompleted, "round {round}");
        assert_eq!(turn.of(EventKind::RetryScheduled).len(), 1, "round {round}");
        // What was shown before the cut is declared void, block closed.
        let discarded = turn.of(EventKind::AttemptDiscarded).len();
        assert_eq!(discarded, usize::from(round / 2 >= 2), "round {round}");
        assert_eq!(turn.of(EventKind::TextStart).len(), turn.of(EventKind::TextStop).len());
        let record = stack.client.session(&session).await.unwrap();
        assert_eq!(record.last_response.unwrap().output_text, "whole");
    }
}

#[tokio::test]
async fn passing_failures_are_retried_and_final_ones_are_not() {
    let busy = |status: u16| Reply {
        headers: vec!["retry-after: 0".into()],
        ..Reply::error(status, "{\"error\":{\"type\":\"x\",\"message\":\"later\"}}")
    };
    let in_band = |kind: &str| {
        let mut events = anthropic_text("half");
        events.insert(4, json!({"type": "error", "error": {"type": kind, "message": "in the stream"}}));
        Reply::stream(anthropic(&events))
    };
    let good = Reply::stream(anthropic(&anthropic_text("fine")));
    let provider = Provider::start(vec![
        busy(408),
        busy(409),
        busy(429),
        busy(500),
        busy(503),
        busy(529),
        in_band("overloaded_error"),
        good,
    ])
    .await;
    let stack = stack_for(&provider, "anthropic-messages").await;
    let turn = send(&stack).await;
    assert_eq!((turn.end(), turn.of(EventKind::RetryScheduled).len()), (EventKind::MessageCompleted, 7));
    let record = stack.client.sessions().await.unwrap();
    assert_eq!(record[0].last_response.as_ref().unwrap().output_text, "fine");

    for (reply, word) in [
        (
            Reply::error(400, "{\"error\":{\"type\":\"invalid_request_error\",\"message\":\"no such thing\"}}"),
            "no such thing",
        ),
        (Reply::error(401, &format!("{{\"error\":{{\"message\":\"bad key {KEY}\"}}}}")), "bad key ***"),
        (Reply::error(429, "{\"error\":{\"code\":\"insufficient_quota\",\"message\":\"pay first\"}}"), "pay first"),
        (in_band("invalid_request_error"), "in the stream"),
    ] {
        let provider = Provider::start(vec![reply]).await;
        let stack = stack_for(&provider, "anthropic-messages").await;
        let turn = send(&stack).await;
        let last = &turn.events.last().unwrap().data;
        assert_eq!((turn.end(), &last["code"]), (EventKind::MessageError, &json!("model_rejected")));
        assert!(last["error"].as_str().unwrap().contains(word), "{last}");
        assert_eq!(provider.received().len(), 1, "{word}");
        // Whatever a provider echoes, no key comes into the sandbox or the log.
        assert!(turn.events.iter().all(|event| !event.raw.contains(KEY)));
    }
}

#[tokio::test]
async fn retry_after_is_honoured() {
    let later = Reply { headers: vec!["retry-after: 2".into()], ..Reply::error(429, "{}") };
    let provider = Provider::start(vec![later, Reply::stream(chat(&chat_text("ok")))]).await;
    let stack = stack_for(&provider, "openai-chat").await;
    let began = std::time::Instant::now();
    let turn = send(&stack).await;
    assert_eq!(turn.end(), EventKind::MessageCompleted);
    assert_eq!(turn.of(EventKind::RetryScheduled)[0].data["delay_ms"], 2000);
    assert!(began.elapsed() >= Duration::from_secs(2));
}

#[tokio::test]
async fn retry_after_may_be_a_date() {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(4));
    let later = Reply { headers: vec![format!("retry-after: {date}")], ..Reply::error(503, "{}") };
    let provider = Provider::start(vec![later, Reply::stream(chat(&chat_text("ok")))]).await;
    let stack = stack_for(&provider, "openai-chat").await;
    let turn = send(&stack).await;
    assert_eq!(turn.end(), EventKind::MessageCompleted);
    let delay = turn.of(EventKind::RetryScheduled)[0].data["delay_ms"].as_u64().unwrap();
    assert!((1000..4000).contains(&delay), "{delay}");
}

#[tokio::test]
async fn thinking_that_was_cut_off_is_not_sent_back() {
    let cut = vec![
        json!({"type": "message_start", "message": {"usage": {"input_tokens": 1}}}),
        json!({"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}}),
        json!({"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "endless"}}),
        json!({"type": "message_delta", "delta": {"stop_reason": "max_tokens"}, "usage": {}}),
        json!({"type": "message_stop"}),
    ];
    let provider =
        Provider::start(vec![Reply::stream(anthropic(&cut)), Reply::stream(anthropic(&anthropic_text("ok")))]).await;
    let stack = stack_for(&provider, "anthropic-messages").await;
    let session = stack.session().await;
    for want in ["max_tokens", "end"] {
        let turn = Turn::collect(stack.client.message(&session, "work", None).await.unwrap()).await;
        assert_eq!(turn.events.last().unwrap().data["stop_reason"], want);
        assert_eq!(turn.of(EventKind::ThinkingStart).len(), turn.of(EventKind::ThinkingStop).len());
    }
    let messages = provider.received()[1].body["messages"].clone();
    assert!(!messages.to_string().contains("endless"), "{messages}");
}

#[tokio::test]
async fn a_refusal_a_token_limit_and_a_malformed_call_are_told_apart() {
    let stop = |reason: &str| {
        let mut events = anthropic_text("some");
        events[5] = json!({"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {}});
        Reply::stream(anthropic(&events))
    };
    let provider =
        Provider::start(vec![stop("refusal"), stop("max_tokens"), stop("pause_turn"), stop("end_turn")]).await;
    let stack = stack_for(&provider, "anthropic-messages").await;
    let refused = send(&stack).await;
    assert_eq!(
        (refused.end(), &refused.events.last().unwrap().data["code"]),
        (EventKind::MessageError, &json!("model_refusal"))
    );
    let cut = send(&stack).await;
    assert_eq!(
        (cut.end(), &cut.events.last().unwrap().data["stop_reason"]),
        (EventKind::MessageCompleted, &json!("max_tokens"))
    );
    let paused = send(&stack).await;
    assert_eq!((paused.end(), provider.received().len()), (EventKind::MessageCompleted, 4));

    let mut broken = anthropic_call("x");
    broken[7] = json!({"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "\"oops"}});
    let provider =
        Provider::start(vec![Reply::stream(anthropic(&broken)), Reply::stream(anthropic(&anthropic_text("sorry")))])
            .await;
    let stack = stack_for(&provider, "anthropic-messages").await;
    let turn = send(&stack).await;
    assert_eq!((turn.end(), turn.of(EventKind::ToolUseExecuting).len()), (EventKind::MessageCompleted, 0));
    assert!(turn.results()[0].contains("Not run"), "{:?}", turn.results());
}

#[tokio::test]
async fn a_provider_that_is_not_there_is_said_clearly() {
    // No key file: the operator's fault, told without trying.
    let config = "[[model]]\nname = 'm'\nwire = 'openai-chat'\nbase_url = 'http://127.0.0.1:9'\nkey_file = 'absent'\nallow_private = true\ndefault = true\n";
    let stack = Stack::with(Options { config: Some(config.into()), ..Options::default() }).await;
    let turn = send(&stack).await;
    let last = &turn.events.last().unwrap().data;
    assert_eq!(last["code"], "model_rejected");
    assert!(last["error"].as_str().unwrap().contains("no usable key"), "{last}");
    assert!(!last["error"].as_str().unwrap().contains("absent"), "paths of the operator stay with the operator");
}

/// Recorded streams that lie beside the project, where they do, through the
/// whole stack: whatever a provider once sent, the turn ends, in order.
#[tokio::test]
async fn recorded_streams_end_their_turns_properly() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/fixtures/provider-streams");
    let Ok(files) = std::fs::read_dir(folder) else {
        eprintln!("SKIPPED: no recorded provider streams beside the project");
        return;
    };
    let mut providers = Vec::new();
    let mut config = String::new();
    for file in files.flatten() {
        let name = file.file_name().to_string_lossy().trim_end_matches(".sse").to_owned();
        let (wire, suffix, good) = match name.split('-').next() {
            Some("anthropic") => ("anthropic-messages", "", anthropic(&anthropic_text("the end"))),
            Some("chat") => ("openai-chat", "/v1", chat(&chat_text("the end"))),
            _ => continue,
        };
        let recorded = Reply { piece: 7, ..Reply::stream(std::fs::read(file.path()).unwrap()) };
        let provider = Provider::start(vec![recorded, Reply::stream(good)]).await;
        config.push_str(&format!(
            "[[model]]\nname = '{name}'\nwire = '{wire}'\nbase_url = '{}{suffix}'\nallow_private = true\n",
            provider.url
        ));
        providers.push((name, provider));
    }
    let stack = Stack::with(Options { config: Some(config), ..Options::default() }).await;
    for (name, provider) in &providers {
        let session = stack.session_with(json!({"model": name})).await.id;
        let turn = Turn::collect(stack.client.message(&session, "work", None).await.unwrap()).await;
        let last = &turn.events.last().unwrap().data;
        match turn.end() {
            EventKind::MessageCompleted => {}
            EventKind::MessageError => assert!(last["code"].as_str().unwrap().starts_with("model_"), "{name}: {last}"),
            other => panic!("{name}: {other}"),
        }
        let count = |kind| turn.of(kind).len();
        assert_eq!(count(EventKind::TextStart), count(EventKind::TextStop), "{name}");
        assert_eq!(count(EventKind::ThinkingStart), count(EventKind::ThinkingStop), "{name}");
        assert_eq!(count(EventKind::ToolUseStart), count(EventKind::ToolUseStop), "{name}");
        // Every call that was announced as running has its one result.
        for call in turn.of(EventKind::ToolUseExecuting) {
            let results =
                turn.of(EventKind::ToolResult).into_iter().filter(|event| event.data["id"] == call.data["id"]);
            let discarded = count(EventKind::AttemptDiscarded) > 0;
            assert!(results.count() == 1 || discarded, "{name}: call {}", call.data["id"]);
        }
        assert!((1..=3).contains(&provider.received().len()), "{name}");
        stack.client.delete(&session).await.unwrap();
    }
    assert!(providers.len() > 40, "{} streams", providers.len());
}
