//! Framing, order and resume.

use cloister_testkit::{Stack, Turn, script};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

fn lines() -> Vec<Value> {
    vec![
        json!({"think": "first \u{e9}\u{1f600} thoughts\nover lines"}),
        json!({"say": "some text that is long enough to come in several pieces, one after the other"}),
        json!({"parallel": [
            {"tool": "bash", "input": {"command": "echo one; exit 3"}},
            {"tool": "no_such_tool", "input": {}},
        ]}),
        json!({"say": "the end"}),
    ]
}

async fn stream(stack: &Stack, path: &str, headers: &[(&str, &str)]) -> String {
    let answer = stack.raw("GET", path, headers, b"").await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-store");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    answer.text()
}

/// Events of a stream's text: exactly three lines each, then a blank one.
fn parse(text: &str) -> Vec<(u64, String, Value)> {
    let blocks: Vec<&str> = text.split("\n\n").collect();
    assert_eq!(blocks.last(), Some(&""));
    blocks[..blocks.len() - 1]
        .iter()
        .filter(|block| !block.starts_with(':'))
        .map(|block| {
            let lines: Vec<&str> = block.lines().collect();
            assert_eq!(lines.len(), 3, "{block}");
            let field = |line: &str, name: &str| line.strip_prefix(name).unwrap_or_else(|| panic!("{line}")).to_owned();
            let data: Value = serde_json::from_str(&field(lines[2], "data: ")).unwrap();
            (field(lines[0], "id: ").parse().unwrap(), field(lines[1], "event: "), data)
        })
        .collect()
}

#[tokio::test]
async fn framing_and_order_are_the_contract() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let answer = stack.post(&format!("/v1/sessions/{session}/messages"), &json!({"message": script(&lines())})).await;
    assert_eq!(answer.status, 200);
    let rid = answer.headers["x-response-id"].clone();
    let events = parse(&answer.text());
    let mut open: Option<String> = None;
    for (index, (seq, kind, data)) in events.iter().enumerate() {
        assert_eq!((*seq, &data["sequence_number"]), (index as u64, &json!(index)));
        match kind.as_str() {
            "text.start" | "thinking.start" | "tool_use.start" => {
                assert!(open.replace(kind.replace(".start", ".stop")).is_none(), "blocks interleave");
            }
            "text.stop" | "thinking.stop" | "tool_use.stop" => assert_eq!(open.take().as_ref(), Some(kind)),
            _ => {}
        }
    }
    assert_eq!(events[0].1, "message.created");
    assert_eq!((&events[0].2["id"], &events[0].2["session_id"]), (&json!(rid), &json!(session)));
    assert_eq!(events[0].2["status"], "in_progress");
    let (_, last, data) = events.last().unwrap();
    assert_eq!((last.as_str(), &data["status"], &data["id"]), ("message.completed", &json!("completed"), &json!(rid)));
    assert!(data["usage"]["total_tokens"].as_u64().unwrap() > 0);
    let of = |kind: &str| events.iter().filter(|event| event.1 == kind).map(|event| &event.2).collect::<Vec<_>>();
    let thinking: String = of("thinking.delta").iter().map(|data| data["content"].as_str().unwrap()).collect();
    assert_eq!(thinking, "first \u{e9}\u{1f600} thoughts\nover lines");
    let executing = of("tool_use.executing");
    assert_eq!(executing[0]["input"], json!({"command": "echo one; exit 3"}));
    let results = of("tool_result");
    assert_eq!(results[0]["id"], executing[0]["id"]);
    assert_eq!((&results[0]["is_error"], &results[0]["content"]), (&json!(true), &json!("one\n[exit status 3]")));
    assert_eq!(results[1]["is_error"], true);
    let input: String = of("tool_use.input_delta").iter().map(|data| data["content"].as_str().unwrap()).collect();
    assert!(input.starts_with("{\"command\":"), "{input}");
}

#[tokio::test]
async fn every_cursor_gives_the_identical_rest() {
    let mut stack = Stack::start().await;
    let session = stack.session().await;
    let live = stack.post(&format!("/v1/sessions/{session}/messages"), &json!({"message": script(&lines())})).await;
    let rid = live.headers["x-response-id"].clone();
    let path = format!("/v1/sessions/{session}/responses/{rid}/events");
    let whole = stream(&stack, &path, &[]).await;
    assert_eq!(whole, live.text(), "a replay is byte for byte the first delivery");
    let count = parse(&whole).len();
    for cut in 0..count {
        let rest = stream(&stack, &path, &[("last-event-id", &cut.to_string())]).await;
        let want = whole.find(&format!("id: {}\n", cut + 1)).map_or("", |at| &whole[at..]);
        assert_eq!(rest, want, "after {cut}");
        assert_eq!(stream(&stack, &format!("{path}?last_event_id={cut}"), &[]).await, want);
    }
    // The header wins; past the end there is nothing; nonsense is refused.
    assert_eq!(stream(&stack, &format!("{path}?last_event_id=0"), &[("last-event-id", "99999")]).await, "");
    for bad in ["-1", "x", "1.5", ""] {
        assert_eq!(stack.raw("GET", &path, &[("last-event-id", bad)], b"").await.status, 400, "{bad:?}");
    }
    let other = stack.session().await;
    for path in [
        format!("/v1/sessions/{other}/responses/{rid}/events"),
        format!("/v1/sessions/{session}/responses/msg_000000000000/events"),
        format!("/v1/sessions/{session}/responses/nonsense/events"),
    ] {
        assert_eq!(stack.raw("GET", &path, &[], b"").await.status, 404, "{path}");
    }
    // And after a restart.
    assert!(stack.terminate().await.success());
    let stack = stack.restart().await;
    assert_eq!(stream(&stack, &path, &[]).await, whole);
}

#[tokio::test]
async fn many_readers_in_the_middle_of_a_turn_see_the_same() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let mut script_lines: Vec<Value> = Vec::new();
    for n in 0..8 {
        script_lines.push(json!({"say": format!("part {n}")}));
        script_lines.push(json!({"sleep_ms": 30}));
        script_lines.push(json!({"tool": "bash", "input": {"command": format!("echo {n}")}}));
    }
    let first = stack.client.message(&session, &script(&script_lines), None).await.unwrap();
    let turn = first.turn().clone();
    let mut readers = Vec::new();
    for n in 0..20u64 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        let after = (n % 3 > 0).then_some(n % 5);
        let events = stack.client.events(&session, &turn, after).await.unwrap();
        readers.push((after, tokio::spawn(Turn::collect(events))));
    }
    let whole = Turn::collect(first).await;
    assert_eq!(whole.end(), EventKind::MessageCompleted);
    for (after, reader) in readers {
        let got = reader.await.unwrap();
        let from = after.map_or(0, |seq| seq as usize + 1);
        assert_eq!(got.events, whole.events[from..], "after {after:?}");
    }
}
