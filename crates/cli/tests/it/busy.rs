//! Messages to a session that is at work: refused, waiting, interrupting.

use std::time::{Duration, Instant};

use cloister_client::{ClientError, Events};
use cloister_testkit::{Options, Stack, Turn, script};
use cloister_types::event::EventKind;
use cloister_types::wire::{OnBusy, SendMessage, TurnStatus};
use cloister_types::{ErrorCode, SessionId};
use serde_json::{Value, json};

async fn send(stack: &Stack, session: &SessionId, lines: &[Value], on_busy: OnBusy) -> Result<Events, ClientError> {
    let message = SendMessage { message: script(lines), on_busy };
    stack.client.send_message(session, &message, None).await
}

/// Works until the file `go` exists, then says so.
fn slow(name: &str) -> [Value; 2] {
    let command = format!("touch began-{name}; while [ ! -e go ]; do sleep 0.02; done; echo {name} >> order");
    [json!({"tool": "bash", "input": {"command": command}}), json!({"say": name})]
}

async fn began(stack: &Stack, name: &str) {
    let began = Instant::now();
    while !stack.workspace().join(format!("began-{name}")).exists() {
        assert!(began.elapsed() < Duration::from_secs(10), "{name} does not begin");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn messages_wait_in_order_over_a_killed_server_and_no_more_than_may() {
    let config = "[limits]\nqueued_messages = 3\n";
    let mut stack = Stack::with(Options { config: Some(config.into()), ..Options::default() }).await;
    let session = stack.session().await;
    let first = send(&stack, &session, &slow("a"), OnBusy::Queue).await.unwrap();
    began(&stack, "a").await;
    assert!(matches!(
        send(&stack, &session, &slow("x"), OnBusy::Reject).await,
        Err(ClientError::Refused { code: ErrorCode::SessionBusy, status: 409, .. })
    ));
    let mut waiting = Vec::new();
    for name in ["b", "c", "d"] {
        waiting.push(send(&stack, &session, &slow(name), OnBusy::Queue).await.unwrap());
    }
    let full = send(&stack, &session, &slow("x"), OnBusy::Queue).await;
    assert!(matches!(full, Err(ClientError::Refused { code: ErrorCode::QueueFull, status: 429, .. })));
    let record = stack.client.session(&session).await.unwrap();
    assert_eq!((record.queued, record.current_response_id.as_ref()), (3, Some(first.turn())));
    let status = async |turn| stack.client.response(&session, turn, 0).await.unwrap().status;
    assert_eq!(status(waiting[0].turn()).await, TurnStatus::Queued);
    // One that waits is cancelled like any other, and never begins.
    let third = waiting.remove(1);
    assert_eq!(stack.client.cancel(&session, third.turn()).await.unwrap().status, "cancelling");
    assert_eq!(Turn::collect(third).await.end(), EventKind::MessageCancelled);
    let (workspace, ids) = (stack.workspace(), waiting.iter().map(|events| events.turn().clone()).collect::<Vec<_>>());
    stack.kill().await;
    let stack = stack.restart().await;
    assert_eq!(stack.client.session(&session).await.unwrap().queued, 2);
    std::fs::write(workspace.join("go"), "").unwrap();
    for (events, name) in [first].into_iter().chain(waiting).zip(["a", "b", "d"]) {
        let turn = Turn::collect(events).await;
        assert_eq!((turn.end(), turn.text().as_str()), (EventKind::MessageCompleted, name));
        let waited = name != "a";
        assert_eq!(turn.events[0].data["queued"] == true, waited);
        assert_eq!(turn.of(EventKind::TurnStarted).len(), usize::from(waited));
    }
    assert_eq!(std::fs::read_to_string(workspace.join("order")).unwrap(), "a\nb\nd\n");
    let page = stack.client.transcript(&session, None, 100).await.unwrap();
    let order: Vec<_> = page.data.iter().map(|entry| &entry.response_id).collect();
    assert!(order.is_sorted_by_key(|id| ids.iter().position(|known| known == *id)), "the conversation is in order");
    assert_eq!(stack.bash(&session, "echo free").await.0, "free\n");
}

#[tokio::test]
async fn an_interrupting_message_runs_next() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let first = send(&stack, &session, &slow("a"), OnBusy::Reject).await.unwrap();
    began(&stack, "a").await;
    let waiting = send(&stack, &session, &[json!({"say": "b"})], OnBusy::Queue).await.unwrap();
    let asked = Instant::now();
    let urgent = send(&stack, &session, &[json!({"say": "c"})], OnBusy::Interrupt).await.unwrap();
    let (first, urgent, waiting) =
        (Turn::collect(first).await, Turn::collect(urgent).await, Turn::collect(waiting).await);
    assert!(asked.elapsed() < Duration::from_secs(3), "{:?}", asked.elapsed());
    assert_eq!(first.end(), EventKind::MessageCancelled);
    assert_eq!((urgent.end(), urgent.text().as_str()), (EventKind::MessageCompleted, "c"));
    assert_eq!((waiting.end(), waiting.text().as_str()), (EventKind::MessageCompleted, "b"));
    let page = stack.client.transcript(&session, None, 100).await.unwrap();
    let mut turns: Vec<_> = page.data.iter().map(|entry| entry.response_id.clone()).collect();
    turns.dedup();
    assert_eq!(turns, [first.id, urgent.id, waiting.id]);
    // With nothing to interrupt it is a message like any other.
    let plain = send(&stack, &session, &[json!({"say": "d"})], OnBusy::Interrupt).await.unwrap();
    assert_eq!(Turn::collect(plain).await.text(), "d");
}

#[tokio::test]
async fn deleting_a_session_ends_its_running_and_its_waiting_turns_once_each() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let running = send(&stack, &session, &slow("a"), OnBusy::Reject).await.unwrap();
    began(&stack, "a").await;
    let waiting = send(&stack, &session, &slow("b"), OnBusy::Queue).await.unwrap();
    stack.client.delete(&session).await.unwrap();
    for events in [running, waiting] {
        let turn = Turn::collect(events).await;
        assert_eq!(turn.end(), EventKind::MessageCancelled);
        assert_eq!(turn.events.iter().filter(|event| event.kind.is_some_and(EventKind::is_terminal)).count(), 1);
    }
    assert!(!stack.workspace().join("order").exists());
}

#[tokio::test]
async fn a_word_that_is_none_is_refused() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let answer =
        stack.post(&format!("/v1/sessions/{session}/messages"), &json!({"message": "x", "on_busy": "wait"})).await;
    assert_eq!((answer.status, &answer.json()["error"]), (400, &json!("invalid_request")));
}

#[tokio::test]
async fn a_stop_with_messages_waiting_ends_everything_in_time() {
    let mut stack = Stack::start().await;
    let mut readers = Vec::new();
    for n in 0..3 {
        let session = stack.session().await;
        for m in 0..4 {
            let events = send(&stack, &session, &slow(&format!("{n}-{m}")), OnBusy::Queue).await.unwrap();
            readers.push(tokio::spawn(Turn::collect(events)));
        }
        began(&stack, &format!("{n}-0")).await;
    }
    let running = cloister_testkit::descendants(stack.pid());
    let asked = Instant::now();
    assert_eq!(stack.terminate().await.code(), Some(0));
    assert!(asked.elapsed() < Duration::from_secs(8), "{:?}", asked.elapsed());
    assert!(running.iter().all(|pid| cloister_testkit::is_gone(*pid)), "a process is left");
    let stack = stack.restart().await;
    for reader in readers {
        let turn = reader.await.unwrap();
        assert_eq!(turn.events.last().unwrap().data["code"], "interrupted");
    }
    assert!(stack.client.sessions().await.unwrap().iter().all(|session| !session.busy && session.queued == 0));
}
