//! Idempotency keys.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use cloister_testkit::{Stack, script};
use serde_json::json;

#[tokio::test]
async fn one_key_is_one_turn() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let path = format!("/v1/sessions/{session}/messages");
    let message = script(&[
        json!({"tool": "bash", "input": {"command": "echo once >> .memory/count; sleep 0.3"}}),
        json!({"say": "done"}),
    ]);
    let body = json!({"message": message}).to_string();
    let send = || stack.raw("POST", &path, &[("idempotency-key", "k-1")], body.as_bytes());
    let answers = tokio::join!(send(), send(), send(), send());
    let texts = [answers.0.text(), answers.1.text(), answers.2.text(), answers.3.text()];
    assert!(texts.iter().all(|text| *text == texts[0] && text.contains("message.completed")));
    // Long after, and with other spelling of the same JSON.
    let spelled = format!("{{ \"message\" : {} }}", json!(message));
    let again = stack.raw("POST", &path, &[("idempotency-key", "k-1")], spelled.as_bytes()).await;
    assert_eq!(again.text(), texts[0]);
    assert_eq!(std::fs::read_to_string(stack.workspace().join(".memory/count")).unwrap(), "once\n");

    let other = json!({"message": "something else"}).to_string();
    let mismatch = stack.raw("POST", &path, &[("idempotency-key", "k-1")], other.as_bytes()).await;
    assert_eq!((mismatch.status, mismatch.json()["error"].as_str()), (422, Some("idempotency_mismatch")));
    let second = stack.session().await;
    let elsewhere = format!("/v1/sessions/{second}/messages");
    assert_eq!(stack.raw("POST", &elsewhere, &[("idempotency-key", "k-1")], body.as_bytes()).await.status, 422);
    for bad in ["", "a b", &"x".repeat(256)] {
        assert_eq!(stack.raw("POST", &path, &[("idempotency-key", bad)], body.as_bytes()).await.status, 400, "{bad:?}");
    }

    // It survives a restart, and the session.
    let mut stack = stack;
    assert!(stack.terminate().await.success());
    let stack = stack.restart().await;
    let replay = stack.raw("POST", &path, &[("idempotency-key", "k-1")], body.as_bytes()).await;
    assert_eq!(replay.text(), texts[0]);
    stack.client.delete(&session).await.unwrap();
    let gone = stack.raw("POST", &path, &[("idempotency-key", "k-1")], body.as_bytes()).await;
    assert_eq!((gone.status, &gone.json()["status"]), (200, &json!("replayed")));
    assert_eq!(gone.headers["content-type"], "application/json");
}

#[tokio::test]
async fn a_busy_session_replays_its_own_key_and_refuses_the_rest() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let path = format!("/v1/sessions/{session}/messages");
    let body = json!({"message": script(&[json!({"tool": "bash", "input": {"command": "sleep 1"}})])}).to_string();
    let first = stack.raw("POST", &path, &[("idempotency-key", "a")], body.as_bytes());
    let others = async {
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
        let busy = stack.raw("POST", &path, &[], body.as_bytes()).await;
        let replay = stack.raw("POST", &path, &[("idempotency-key", "a")], body.as_bytes()).await;
        // A refused message leaves its key free.
        let free = stack.raw("POST", &path, &[("idempotency-key", "b")], body.as_bytes()).await;
        (busy, replay, free)
    };
    let (first, (busy, replay, free)) = tokio::join!(first, others);
    assert_eq!((busy.status, busy.json()["error"].as_str()), (409, Some("session_busy")));
    assert_eq!(replay.text(), first.text());
    assert_eq!(free.status, 200, "the turn had ended when the replay did, so this one is accepted");
}

/// Sends a request and kills the server so much later: true if no byte of an
/// answer had come.
async fn killed_after(stack: &mut Stack, wait: Duration, path: &str, key: &str, body: &str) -> bool {
    let mut socket = TcpStream::connect(stack.url.trim_start_matches("http://")).unwrap();
    let request = format!(
        "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nidempotency-key: {key}\r\ncontent-length: {}\r\n\r\n{body}",
        stack.key,
        body.len()
    );
    let server = stack.pid();
    let silent = tokio::task::spawn_blocking(move || {
        socket.write_all(request.as_bytes()).unwrap();
        let began = Instant::now();
        while began.elapsed() < wait {
            std::hint::spin_loop();
        }
        cloister_testkit::kill(server);
        !matches!(socket.read(&mut [0; 1]), Ok(1..))
    });
    let silent = silent.await.unwrap();
    stack.kill().await;
    silent
}

#[tokio::test]
async fn a_server_killed_between_accepting_and_answering_has_accepted_once() {
    let mut stack = Stack::start().await;
    // Closes in on the moment between the two.
    let (mut wait, mut step) = (Duration::from_millis(4), Duration::from_millis(2));
    for round in 0..100 {
        let (session, key) = (stack.session().await, format!("key-{round}"));
        let path = format!("/v1/sessions/{session}/messages");
        let command = format!("echo {key} >> .memory/count");
        let body = json!({"message": script(&[json!({"tool": "bash", "input": {"command": command}})])}).to_string();
        let silent = killed_after(&mut stack, wait, &path, &key, &body).await;
        stack = stack.restart().await;
        let there = stack.raw("GET", &format!("/v1/sessions/{session}/responses"), &[], b"").await.json();
        let again = stack.raw("POST", &path, &[("idempotency-key", &key)], body.as_bytes()).await;
        assert!(again.text().contains("message.completed"), "{}", again.text());
        let accepted = there["data"][0]["id"].as_str();
        assert!(accepted.is_none_or(|accepted| again.headers["x-response-id"] == accepted));
        assert!(accepted.is_some() || silent, "what is answered is accepted");
        let counted = std::fs::read_to_string(stack.workspace().join(".memory/count")).unwrap();
        assert_eq!(counted.matches(&format!("{key}\n")).count(), 1, "{counted}");
        match (accepted, silent) {
            (None, _) => wait += step,
            (Some(_), false) => wait = wait.saturating_sub(step),
            (Some(_), true) => return,
        }
        step = (step / 2).max(Duration::from_micros(100));
    }
    panic!("no kill came between accepting and answering");
}
