//! Ceilings of a turn and of a sandbox.

use cloister_testkit::{As, Options, Stack};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

async fn ends_with(config: &str, lines: &[Value]) -> (String, String) {
    let stack = Stack::with(Options { config: Some(config.into()), ..Options::default() }).await;
    let session = stack.session().await;
    let turn = stack.play(&session, lines).await;
    assert_eq!(turn.end(), EventKind::MessageError, "{:?}", turn.events.last());
    let data = turn.events.last().unwrap().data.clone();
    let record = stack.client.session(&session).await.unwrap();
    assert!(!record.busy);
    assert_eq!(record.last_response.unwrap().error.unwrap().error.as_str(), data["code"].as_str().unwrap());
    // And it goes on afterwards.
    assert_eq!(stack.play(&session, &[json!({"say": "next"})]).await.text(), "next");
    (data["code"].as_str().unwrap().to_owned(), data["error"].as_str().unwrap().to_owned())
}

fn bash(command: &str) -> Value {
    json!({"tool": "bash", "input": {"command": command}})
}

#[tokio::test]
async fn steps_tokens_and_time_end_in_a_clear_event() {
    let three = [bash("echo 1"), bash("echo 2"), bash("echo 3")];
    assert_eq!(ends_with("[limits]\nsteps = 2\n", &three).await.0, "step_limit");
    assert_eq!(ends_with("[limits]\ntokens = 1000\n", &three).await.0, "token_limit");
    let (code, message) = ends_with("[limits]\nturn_seconds = 1\n", &[bash("sleep 60")]).await;
    assert_eq!(code, "time_limit");
    assert!(message.contains("1 s"), "{message}");
}

#[tokio::test]
async fn a_sandbox_keeps_to_its_processes_and_its_tmp() {
    let config = "[sandbox]\nprocesses = 60\ntmp_bytes = 1000000\n";
    for who in As::all() {
        let stack =
            Stack::with(Options { config: Some(config.into()), as_user: who == As::User, ..Options::default() }).await;
        let session = stack.session().await;
        let bomb = "for n in $(seq 200); do sleep 5 & done 2>&1 | tail -1; wait";
        let (said, _) = stack.bash(&session, &format!("timeout 8 bash -c '{bomb}'")).await;
        assert!(said.contains("fork") || said.contains("Resource"), "{who:?}: {said}");
        let (said, _) = stack.bash(&session, "head -c 3000000 /dev/zero > /tmp/big; ls -l /tmp/big").await;
        assert!(said.contains("No space left"), "{who:?}: {said}");
    }
}

#[tokio::test]
async fn a_memory_hog_is_stopped_and_its_neighbour_is_not() {
    let config = "[sandbox]\nmemory_bytes = 100000000\n";
    for who in As::all() {
        let stack =
            Stack::with(Options { config: Some(config.into()), as_user: who == As::User, ..Options::default() }).await;
        let (hog, neighbour) = (stack.session().await, stack.session().await);
        let (said, failed) = stack.bash(&hog, "python3 -c 'x = bytearray(400000000); print(\"got it\")'").await;
        assert!(failed && !said.contains("got it"), "{who:?}: {said}");
        assert_eq!(stack.bash(&neighbour, "echo fine").await.0, "fine\n");
    }
}

#[tokio::test]
async fn idle_sandboxes_make_room_and_working_ones_do_not() {
    let stack =
        Stack::with(Options { config: Some("[limits]\nlive_sessions = 2\n".into()), ..Options::default() }).await;
    let sessions = [stack.session().await, stack.session().await, stack.session().await, stack.session().await];
    for session in &sessions {
        assert_eq!(stack.bash(session, "echo hi").await.0, "hi\n");
    }
    let message = cloister_testkit::script(&[bash("sleep 30")]);
    let first = stack.client.message(&sessions[0], &message, None).await.unwrap();
    let second = stack.client.message(&sessions[1], &message, None).await.unwrap();
    let refused = stack.post(&format!("/v1/sessions/{}/messages", sessions[2]), &json!({"message": "hi"})).await;
    assert_eq!((refused.status, refused.json()["error"].as_str()), (429, Some("session_limit")));
    assert!(refused.headers.contains_key("retry-after"));
    stack.client.cancel(&sessions[0], first.turn()).await.unwrap();
    cloister_testkit::Turn::collect(first).await;
    assert_eq!(stack.bash(&sessions[2], "echo now").await.0, "now\n");
    drop(second);
}
