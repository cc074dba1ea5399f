//! What a hostile session, or an unlucky operator, once broke: each of these
//! failed before it was mended.

use std::process::Command;
use std::time::{Duration, Instant};

use cloister_testkit::{As, Stack, script};
use cloister_types::event::EventKind;
use serde_json::json;

/// Exchanges two links as fast as it can, for some seconds.
const JUGGLER: &str = r#"
import ctypes, os, time
libc = ctypes.CDLL(None)
os.chdir("w")
os.symlink(".", "a"); os.symlink("other", "b")
end = time.time() + 3
while time.time() < end:
    for _ in range(200):
        libc.renameat2(-100, b"a", -100, b"b", 2)
try:
    open("guarded/conf", "w").write("PLANTED")
    print("planted")
except OSError as e:
    print("held")
"#;

#[tokio::test]
async fn no_race_removes_a_mount_of_the_view() {
    let stack = Stack::start().await;
    let owner = stack.session().await;
    for (path, body) in [("w/guarded/conf", "original"), ("w/other/x", "x"), (".memory/juggle.py", JUGGLER)] {
        stack.client.upload(&owner, path, body.to_owned()).await.unwrap();
    }
    let ask = json!({"file_access": {"write": ["w"], "read": ["w/guarded"]}});
    let session = stack.session_with(ask).await.id;
    let juggling = stack.bash(&session, "python3 .memory/juggle.py");
    let attacking = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let base = format!("/v1/sessions/{session}/files/w/a");
        for _ in 0..150 {
            for (method, path) in
                [("DELETE", "/guarded"), ("PUT", "/guarded"), ("PUT", "/guarded/conf"), ("DELETE", "/guarded/conf")]
            {
                stack.raw(method, &format!("{base}{path}"), &[], b"replaced").await;
            }
        }
    };
    let ((said, _), ()) = tokio::join!(juggling, attacking);
    assert_eq!(said.trim(), "held");
    assert_eq!(std::fs::read_to_string(stack.workspace().join("w/guarded/conf")).unwrap(), "original");
}

#[tokio::test]
async fn whatever_a_session_leaves_its_deletion_ends() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let build = "cd .sessions/*; python3 -c \"
import os
for _ in range(8000):
    os.mkdir('d'); os.chdir('d')
\"; mkdir shut; touch shut/file; chmod 000 shut; ln -s / root; echo built";
    let (said, _) = stack.bash(&session, build).await;
    assert!(said.ends_with("built\n"), "{said}");
    stack.client.delete(&session).await.unwrap();
    assert!(!stack.workspace().join(".sessions").join(session.as_str()).exists());
    assert_eq!(stack.bash(&stack.session().await, "echo alive").await.0, "alive\n");
}

#[tokio::test]
async fn a_wrecked_workspace_does_not_keep_the_tenant_down() {
    for who in As::all() {
        let mut stack = Stack::start_as(who).await;
        let session = stack.session().await;
        stack.bash(&session, "rm -rf .pokee; ln -s /etc .pokee; chmod 000 .memory .").await;
        assert!(stack.terminate().await.success());
        let stack = stack.restart().await;
        let session = stack.session().await;
        let (said, failed) = stack.bash(&session, "echo x > file; echo y > .memory/note; cat file .memory/note").await;
        assert_eq!((said.as_str(), failed), ("x\ny\n", false), "{who:?}");
    }
}

/// What sessions leave in the tenant's own folders for the server to fall over.
#[tokio::test]
async fn links_fifos_and_giants_in_memory_and_context_do_not_harm_the_host() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let session = stack.session().await;
        let plant = "mkdir -p .pokee && cd .pokee && mkfifo 1.md && ln -s /etc/passwd 2.md && ln -s ../../../../../../etc/passwd 3.md && \
            truncate -s 3G 4.md && mkdir 5.md && ln -s 7.md 7.md && ln -s /proc/self/environ 8.md && printf 'x%.0s' $(seq 300) > 9.md && \
            for n in $(seq 600); do ln -s 1.md many$n.md; done; \
            cd ../.memory && rm -f MEMORY.md && mkfifo MEMORY.md && ln -s /etc/shadow link && truncate -s 3G giant && mkfifo pipe && \
            mkdir -p $(printf 'd/%.0s' $(seq 500)) && echo planted";
        let (said, _) = stack.bash(&session, plant).await;
        assert!(said.ends_with("planted\n"), "{who:?}: {said}");
        // Nothing waits for a writer, or reads without an end.
        let began = Instant::now();
        let other = stack.session().await;
        assert_eq!(stack.bash(&other, "echo on").await.0, "on\n", "{who:?}");
        for (path, status) in [
            (".pokee/1.md", 409),
            (".pokee/2.md", 404),
            (".pokee/3.md", 404),
            (".pokee/5.md", 200),
            (".pokee/7.md", 404),
            (".pokee/8.md", 404),
            (".memory/MEMORY.md", 409),
            (".memory/pipe", 409),
            (".memory/link", 404),
        ] {
            let answer = stack.raw("GET", &format!("/v1/sessions/{other}/files/{path}"), &[], b"").await;
            assert_eq!(answer.status, status, "{who:?}: {path}");
            assert!(!answer.text().contains("root:"), "{who:?}: {path}");
        }
        let range = [("range", "bytes=0-9")];
        let answer = stack.raw("GET", &format!("/v1/sessions/{other}/files/.memory/giant"), &range, b"").await;
        assert_eq!((answer.status, answer.body.len()), (206, 10), "{who:?}");
        let put = stack.raw("PUT", &format!("/v1/sessions/{other}/files/.pokee/new.md"), &[], b"fine").await;
        assert!(matches!(put.status, 201 | 413), "{who:?}: {}", put.status);
        let mut stack = stack;
        assert!(stack.terminate().await.success());
        let stack = stack.restart().await;
        assert_eq!(stack.bash(&stack.session().await, "echo again").await.0, "again\n", "{who:?}");
        assert!(began.elapsed() < Duration::from_secs(15), "{who:?}: {:?}", began.elapsed());
    }
}

#[tokio::test]
async fn a_dead_spawner_is_replaced() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    stack.bash(&session, "echo first").await;
    let spawner =
        Command::new("pgrep").args(["-P", &stack.pid().to_string(), "-x", "cloister-sandbo"]).output().unwrap();
    let spawner = String::from_utf8(spawner.stdout).unwrap().trim().to_owned();
    assert!(Command::new("kill").args(["-9", &spawner]).status().unwrap().success());
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Both a new session and one whose view the dead one had built.
    assert_eq!(stack.bash(&stack.session().await, "echo second").await.0, "second\n");
    assert_eq!(stack.bash(&session, "echo third").await.0, "third\n");
}

#[tokio::test]
async fn a_second_server_is_turned_away_and_the_first_works_on() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [json!({"tool": "bash", "input": {"command": "sleep 1; echo slept"}})];
    let events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    let data = stack.folder().join("data");
    let second = Command::new(stack.executable())
        .args(["dev", "--listen", "127.0.0.1:0", "--data"])
        .arg(&data)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another server is using"), "{said}");
    let turn = cloister_testkit::Turn::collect(events).await;
    assert_eq!((turn.end(), turn.results()), (EventKind::MessageCompleted, vec!["slept\n".to_owned()]));
    assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
}

#[tokio::test]
async fn turns_in_quick_succession_do_not_trip_over_each_other() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    for n in 0..120 {
        let turn = stack.play(&session, &[json!({"say": format!("{n}")})]).await;
        assert_eq!(turn.end(), EventKind::MessageCompleted, "turn {n}: {:?}", turn.events.last());
    }
}

#[tokio::test]
async fn a_cancel_that_was_promised_holds() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    for n in 0..40u64 {
        let lines = [json!({"sleep_ms": n % 8}), json!({"say": "quick"})];
        let events = stack.client.message(&session, &script(&lines), None).await.unwrap();
        tokio::time::sleep(Duration::from_millis(n % 13 + 5)).await;
        let promised = stack.client.cancel(&session, events.turn()).await.unwrap().status;
        let turn = cloister_testkit::Turn::collect(events).await;
        let want = if promised == "cancelling" { EventKind::MessageCancelled } else { EventKind::MessageCompleted };
        assert_eq!(turn.end(), want, "round {n}: {promised}");
    }
}

#[tokio::test]
async fn links_make_no_endless_walks_and_lead_nowhere_outside() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    stack
        .bash(&session, "ln -s . .pokee/a; ln -s . .pokee/b; ln -s ../../.. up; ln -s /sessions ses; ln -s / root")
        .await;
    let path = format!("/v1/sessions/{session}/files/.pokee/x.md");
    let put = stack.raw("PUT", &path, &[], b"x");
    assert_eq!(tokio::time::timeout(Duration::from_secs(5), put).await.unwrap().status, 201);
    for path in ["up", "up/opt", "ses", "root", "up/opt/sandbox"] {
        let answer = stack.raw("GET", &format!("/v1/sessions/{session}/files/{path}"), &[], b"").await;
        assert_eq!(answer.status, 404, "{path}: {}", answer.text());
    }
}

#[tokio::test]
async fn a_client_that_hangs_up_leaves_nothing_half_done() {
    use tokio::io::AsyncWriteExt;
    let stack = Stack::start().await;
    let send = async |request: String, patience: u64| {
        let mut socket = tokio::net::TcpStream::connect(stack.url.trim_start_matches("http://")).await.unwrap();
        let head = format!(
            "{request} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 0\r\n\r\n",
            stack.key
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_millis(patience)).await;
    };
    for round in 0..10u64 {
        for _ in 0..3 {
            stack.session().await;
        }
        send("POST /v1/sessions".into(), round).await;
        send("DELETE /v1/sessions?status=idle".into(), round * 2).await;
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    // Whole or not at all: what is listed is ready, and can be deleted.
    for session in stack.client.sessions().await.unwrap() {
        assert_eq!(session.status, cloister_types::wire::SessionStatus::Ready);
        stack.client.delete(&session.id).await.unwrap();
    }
    let mut stack = stack;
    assert!(stack.terminate().await.success());
    let stack = stack.restart().await;
    assert!(stack.client.sessions().await.unwrap().is_empty(), "a ghost came back");
}

#[tokio::test]
async fn clients_that_hang_up_while_they_cancel_leave_no_stream_without_an_end() {
    use cloister_types::wire::{OnBusy, SendMessage};
    let stack = Stack::start().await;
    let session = stack.session().await;
    let slow = [json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 0.02; done"}})];
    let running = stack.client.message(&session, &script(&slow), None).await.unwrap();
    let mut waiting = Vec::new();
    for n in 0..12 {
        let message = SendMessage { message: script(&[json!({"say": format!("{n}")})]), on_busy: OnBusy::Queue };
        waiting.push(stack.client.send_message(&session, &message, None).await.unwrap());
    }
    let host = stack.url.trim_start_matches("http://").to_owned();
    for (n, events) in waiting.iter().enumerate() {
        let mut socket = tokio::net::TcpStream::connect(&host).await.unwrap();
        let head = format!(
            "POST /v1/sessions/{session}/responses/{}/cancel HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {}\r\ncontent-length: 0\r\n\r\n",
            events.turn(),
            stack.key
        );
        tokio::io::AsyncWriteExt::write_all(&mut socket, head.as_bytes()).await.unwrap();
        tokio::time::sleep(Duration::from_micros(300 * n as u64)).await;
    }
    tokio::time::sleep(Duration::from_millis(300)).await;
    std::fs::write(stack.workspace().join("go"), "").unwrap();
    for events in waiting.into_iter().chain([running]) {
        let turn = tokio::time::timeout(Duration::from_secs(10), cloister_testkit::Turn::collect(events));
        assert!(turn.await.expect("it ends").end().is_terminal());
    }
}

#[tokio::test]
async fn a_stop_in_the_middle_of_creations_ends_in_time_and_leaves_nothing() {
    for wait in [2, 5, 9] {
        let mut stack = Stack::start().await;
        let mut asked = Vec::new();
        for _ in 0..3 {
            let client = stack.client.clone();
            asked.push(tokio::spawn(async move { client.create(&Default::default()).await.map(drop) }));
        }
        tokio::time::sleep(Duration::from_millis(wait)).await;
        let began = std::time::Instant::now();
        assert_eq!(stack.terminate().await.code(), Some(0));
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        for ask in asked {
            let _ = ask.await.unwrap();
        }
        let left = stack.run_folders().len();
        assert_eq!(left, 0, "stopped after {wait} ms");
    }
}
