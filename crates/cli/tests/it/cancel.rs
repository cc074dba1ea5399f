//! Cancelling, and what may not be left behind by it.

use std::time::{Duration, Instant};

use cloister_testkit::{Stack, Turn, script};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

async fn cancel_during(stack: &Stack, lines: &[Value], wait_for: EventKind) -> Turn {
    let session = stack.session().await;
    let mut events = stack.client.message(&session, &script(lines), None).await.unwrap();
    let turn = events.turn().clone();
    let mut seen = Vec::new();
    loop {
        let event = events.next().await.unwrap().unwrap();
        let found = event.kind == Some(wait_for);
        seen.push(event);
        if found {
            break;
        }
    }
    tokio::time::sleep(Duration::from_millis(150)).await;
    let path = format!("/v1/sessions/{session}/responses/{turn}/cancel");
    let began = Instant::now();
    let answer = stack.raw("POST", &path, &[], b"").await;
    assert_eq!((answer.status, &answer.json()["status"]), (202, &json!("cancelling")));
    assert_eq!(answer.json()["response_id"], json!(turn));
    while let Some(event) = events.next().await.unwrap() {
        seen.push(event);
    }
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    let answer = stack.raw("POST", &path, &[], b"").await;
    assert_eq!((answer.status, &answer.json()["status"]), (200, &json!("already_complete")));
    let whole = Turn { id: turn, events: seen };
    assert_eq!(whole.end(), EventKind::MessageCancelled);
    let count = |kind| whole.of(kind).len();
    assert_eq!(count(EventKind::TextStart), count(EventKind::TextStop));
    assert_eq!(count(EventKind::ToolUseStart), count(EventKind::ToolUseStop));
    // The next message works: the history is one that the provider takes.
    let record = stack.client.session(&session).await.unwrap();
    assert!(!record.busy);
    let next = stack.play(&session, &[json!({"say": "still here"})]).await;
    assert_eq!((next.end(), next.text().as_str()), (EventKind::MessageCompleted, "still here"));
    whole
}

#[tokio::test]
async fn a_sleeping_shell_and_its_runaway_children_die() {
    let stack = Stack::start().await;
    let command =
        "(setsid sh -c 'while :; do echo x >> .memory/beat; sleep 0.05; done' > /dev/null 2>&1 &) ; sleep 1000";
    let turn =
        cancel_during(&stack, &[json!({"tool": "bash", "input": {"command": command}})], EventKind::ToolUseExecuting)
            .await;
    let results = turn.results();
    assert!(results[0].contains("cancelled"), "{results:?}");
    let beat = stack.workspace().join(".memory/beat");
    let size = std::fs::metadata(&beat).unwrap().len();
    assert!(size > 0);
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(std::fs::metadata(&beat).unwrap().len(), size, "a child of the cancelled turn still writes");
}

#[tokio::test]
async fn a_model_call_is_aborted() {
    let stack = Stack::start().await;
    let lines =
        [json!({"tool": "bash", "input": {"command": "true"}}), json!({"sleep_ms": 60_000}), json!({"say": "late"})];
    let turn = cancel_during(&stack, &lines, EventKind::ToolResult).await;
    assert_eq!(turn.text(), "");
}

#[tokio::test]
async fn a_back_off_is_interrupted() {
    let stack = Stack::start().await;
    let lines = [json!({"fail": 529, "times": 9, "retry_after": 300}), json!({"say": "late"})];
    cancel_during(&stack, &lines, EventKind::RetryScheduled).await;
}

#[tokio::test]
async fn deleting_a_busy_session_ends_its_stream_with_one_terminal_event() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [json!({"tool": "bash", "input": {"command": "sleep 1000"}})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseExecuting) {}
    let path = format!("/v1/sessions/{session}");
    let (deleted, rest) = tokio::join!(stack.raw("DELETE", &path, &[], b""), Turn::collect(events));
    assert_eq!(deleted.status, 204);
    assert_eq!(rest.of(EventKind::MessageCancelled).len(), 1);
    assert_eq!(rest.end(), EventKind::MessageCancelled);
    assert_eq!(stack.raw("GET", &path, &[], b"").await.status, 404);
    assert!(!stack.workspace().join(".sessions").join(session.as_str()).exists());
}

#[tokio::test]
async fn a_supervisor_that_does_not_answer_is_ended_for_a_cancel() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [json!({"tool": "bash", "input": {"command": "sleep 100"}})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseStop) {}
    let sandbox = stack.processes().sandbox(session.as_str()).unwrap();
    cloister_testkit::freeze(sandbox.supervisor);
    assert_eq!(stack.client.cancel(&session, events.turn()).await.unwrap().status, "cancelling");
    let turn = tokio::time::timeout(Duration::from_secs(12), Turn::collect(events)).await.expect("it ends");
    assert_eq!(turn.end(), EventKind::MessageCancelled);
    assert!(cloister_testkit::is_gone(sandbox.supervisor) && cloister_testkit::is_gone(sandbox.init));
    assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
}
