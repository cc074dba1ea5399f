//! Files of the data directory that are cut, changed or lost under a turn.

use std::path::{Path, PathBuf};

use cloister_testkit::{Options, Stack, Turn, is_gone, script, until};
use cloister_types::event::EventKind;
use cloister_types::{ResponseId, SessionId};
use serde_json::json;

use crate::crash::Scripted;

/// A server, killed while a turn of it is at its second tool, which waits for
/// the file `go`.
async fn killed(provider: &Scripted) -> (Stack, SessionId, ResponseId) {
    let mut stack = Stack::with(Options { serve: true, config: Some(provider.config("")), ..Options::default() }).await;
    let session = stack.session().await;
    let tool = |name: &str, wait: &str| json!({"tool": "bash", "input": {"command": format!("echo {name} >> effects; {wait}")}});
    let lines = [
        tool("one", "true"),
        tool("two", "while [ ! -e go ]; do sleep 0.02; done"),
        tool("three", "true"),
        json!({"say": "end"}),
    ];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    let turn = events.turn().clone();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolResult) {}
    let effects = stack.workspace().join("effects");
    until("the second tool runs", || std::fs::read_to_string(&effects).unwrap_or_default().lines().count() == 2).await;
    drop(events);
    stack.kill().await;
    (stack, session, turn)
}

fn run_folder(stack: &Stack) -> PathBuf {
    stack.run_folders().into_iter().next().expect("a run folder")
}

fn effects(stack: &Stack) -> String {
    std::fs::read_to_string(stack.workspace().join("effects")).unwrap()
}

fn spool(stack: &Stack, turn: &ResponseId) -> PathBuf {
    run_folder(stack).join(format!("{turn}.1"))
}

/// Cuts the end off a file.
fn cut(path: &Path, bytes: u64) {
    let file = std::fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - bytes).unwrap();
}

#[tokio::test]
async fn a_spool_that_a_power_cut_left_anywhere_loses_no_finished_tool() {
    // Where in its last frames it is cut makes no difference.
    for lost in [1, 40, 400] {
        let provider = Scripted::start().await;
        let (stack, session, turn) = killed(&provider).await;
        let sandbox = stack.processes().sandbox(session.as_str()).unwrap();
        std::fs::write(stack.workspace().join("go"), "").unwrap();
        until("the turn ends by itself", || is_gone(sandbox.supervisor)).await;
        cut(&spool(&stack, &turn), lost);
        // It came before the end was on disk.
        std::fs::write(spool(&stack, &turn).with_extension("1.length"), "").unwrap();
        let stack = stack.restart().await;
        let whole = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
        assert_eq!((whole.end(), whole.text().as_str()), (EventKind::MessageCompleted, "end"), "cut {lost}");
        assert_eq!(effects(&stack), "one\ntwo\nthree\n", "cut {lost}: no tool ran twice");
        assert_eq!(whole.of(EventKind::ToolResult).len(), 3);
    }
}

#[tokio::test]
async fn a_spool_that_is_not_what_its_supervisor_wrote_ends_the_turn_by_name() {
    // While the supervisor lives, and once it has ended the turn.
    for (damage, ended) in
        [("cut", false), ("lost", false), ("changed", false), ("cut", true), ("lost", true), ("garbled", true)]
    {
        let provider = Scripted::start().await;
        let (stack, session, turn) = killed(&provider).await;
        let sandbox = stack.processes().sandbox(session.as_str()).unwrap();
        let go = stack.workspace().join("go");
        if ended {
            std::fs::write(&go, "").unwrap();
            until("the turn ends by itself", || is_gone(sandbox.supervisor)).await;
        }
        let spool = spool(&stack, &turn);
        match damage {
            "lost" => std::fs::remove_file(&spool).unwrap(),
            "garbled" => {
                std::fs::remove_file(&spool).unwrap();
                std::fs::write(spool.with_extension("1.length"), "nonsense").unwrap();
            }
            "cut" => cut(&spool, std::fs::metadata(&spool).unwrap().len() / 2),
            _ => {
                let mut bytes = std::fs::read(&spool).unwrap();
                bytes.extend(b"garbage");
                std::fs::write(&spool, bytes).unwrap();
            }
        }
        let stack = stack.restart().await;
        std::fs::write(&go, "").unwrap();
        let response = stack.client.response(&session, &turn, 20).await.unwrap();
        let code = response.error.map(|error| error.error.as_str());
        assert_eq!(code, Some("log_damaged"), "{damage}, {ended}");
        until("nothing of it is at work", || is_gone(sandbox.supervisor) && is_gone(sandbox.init)).await;
        let effects = effects(&stack);
        for name in ["one", "two", "three"] {
            assert!(effects.lines().filter(|line| *line == name).count() <= 1, "{damage}, {ended}: {effects}");
        }
        assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
    }
}

#[tokio::test]
async fn a_damaged_row_of_a_running_turn_ends_it_and_everything_that_it_started() {
    let provider = Scripted::start().await;
    let (stack, session, turn) = killed(&provider).await;
    let other_file = stack.folder().join("data/tenant.db");
    let sandbox = stack.processes().sandbox(session.as_str()).unwrap();
    let tamper = "import sqlite3,sys; db=sqlite3.connect(sys.argv[1]); db.execute(\"update log set body=replace(body,'id','ID') where seq=1\"); db.commit()";
    let done = std::process::Command::new("python3").args(["-c", tamper]).arg(&other_file).status().unwrap();
    assert!(done.success());
    let stack = stack.restart().await;
    let answer = stack.raw("GET", &format!("/v1/sessions/{session}/responses/{turn}/events"), &[], b"").await;
    assert_eq!((answer.status, &answer.json()["error"]), (500, &json!("log_damaged")));
    until("nothing of it is at work", || is_gone(sandbox.supervisor) && is_gone(sandbox.init)).await;
    let record = stack.client.session(&session).await.unwrap();
    assert_eq!(record.last_response.unwrap().error.unwrap().error.as_str(), "log_damaged");
    // The session's conversation cannot be trusted; others are not affected.
    let refused = stack.post(&format!("/v1/sessions/{session}/messages"), &json!({"message": "x"})).await;
    assert!(refused.text().contains("log_damaged"), "{}", refused.text());
    let other = stack.session().await;
    assert_eq!(stack.bash(&other, "echo fine").await.0, "fine\n");
}

#[tokio::test]
async fn a_supervisor_whose_description_is_lost_is_ended_before_its_turn_goes_on() {
    for lost in ["about.json", "everything"] {
        let provider = Scripted::start().await;
        let (stack, session, turn) = killed(&provider).await;
        let sandbox = stack.processes().sandbox(session.as_str()).unwrap();
        let folder = run_folder(&stack);
        if lost == "everything" {
            std::fs::remove_dir_all(&folder).unwrap();
            until("a supervisor that nobody can find ends", || is_gone(sandbox.supervisor) && is_gone(sandbox.init))
                .await;
        } else {
            std::fs::remove_file(folder.join("about.json")).unwrap();
        }
        let stack = stack.restart().await;
        assert!(is_gone(sandbox.supervisor) && is_gone(sandbox.init), "{lost}");
        let whole = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
        assert_eq!((whole.end(), whole.text().as_str()), (EventKind::MessageCompleted, "end"), "{lost}");
        assert_eq!(effects(&stack), "one\ntwo\nthree\n", "{lost}");
    }
}

#[tokio::test]
async fn answers_of_megabytes_end_like_any_other() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    for _ in 0..4 {
        let turn = stack.play(&session, &[json!({"say": "A".repeat(3_000_000)})]).await;
        assert_eq!((turn.end(), turn.text().len()), (EventKind::MessageCompleted, 3_000_000));
    }
}
