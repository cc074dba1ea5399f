//! What the workspace may hold, for the file API and for agents.

use std::time::{Duration, Instant};

use cloister_testkit::{As, Options, Stack, kill, until};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

fn bash(command: &str) -> Value {
    json!({"tool": "bash", "input": {"command": command}})
}

async fn stack(who: As, config: &str) -> Stack {
    Stack::with(Options { config: Some(config.into()), as_user: who == As::User, ..Options::default() }).await
}

async fn put(stack: &Stack, session: &cloister_types::SessionId, path: &str, size: usize) -> (u16, String) {
    let answer = stack.raw("PUT", &format!("/v1/sessions/{session}/files/{path}"), &[], &vec![7; size]).await;
    (answer.status, answer.json()["error"].as_str().unwrap_or_default().to_owned())
}

#[tokio::test]
async fn uploads_beyond_the_limit_are_refused_and_deleting_makes_room() {
    for who in As::all() {
        let stack = stack(who, "[workspace]\nbytes = 10000000\n").await;
        let session = stack.session().await;
        assert_eq!(put(&stack, &session, "a", 6_000_000).await.0, 201, "{who:?}");
        assert_eq!(put(&stack, &session, "b", 6_000_000).await, (413, "quota_exceeded".into()), "{who:?}");
        assert_eq!(put(&stack, &session, "b", 3_000_000).await.0, 201, "{who:?}");
        // Nothing of what was refused is kept, or counts.
        let path = format!("/v1/sessions/{session}/files");
        let names = stack.raw("GET", &path, &[], b"").await.json();
        assert!(
            !names.as_array().unwrap().iter().any(|entry| entry["size"] == 0 && entry["type"] == "file"),
            "{names}"
        );
        assert_eq!(put(&stack, &session, "c", 3_000_000).await.0, 413, "{who:?}");
        assert_eq!(stack.raw("DELETE", &format!("{path}/a"), &[], b"").await.status, 204);
        assert_eq!(put(&stack, &session, "c", 6_000_000).await.0, 201, "{who:?}");
        // What an agent wrote counts as well.
        stack.bash(&session, "rm c; head -c 5000000 /dev/zero > d").await;
        assert_eq!(put(&stack, &session, "e", 3_000_000).await.0, 413, "{who:?}");
        stack.bash(&session, "rm d").await;
        assert_eq!(put(&stack, &session, "e", 3_000_000).await.0, 201, "{who:?}");
    }
}

#[tokio::test]
async fn the_number_of_files_is_limited_too() {
    let stack = stack(As::Root, "[workspace]\nfiles = 100\n").await;
    let session = stack.session().await;
    let mut refused = 0;
    for n in 0..100 {
        refused += usize::from(put(&stack, &session, &format!("f{n}"), 1).await.0 == 413);
    }
    assert!((1..10).contains(&refused), "{refused}");
    let (said, failed) =
        stack.bash(&session, "i=0; while :; do i=$((i+1)); mkdir -p many; : > many/$i; sleep 0.001; done").await;
    assert!(failed && said.contains("files and folders of at most 100"), "{said}");
}

#[tokio::test]
async fn a_tool_that_fills_the_workspace_is_ended_and_told_why_and_others_go_on() {
    for who in As::all() {
        let stack = stack(who, "[workspace]\nbytes = 50000000\n").await;
        let (filler, other) = (stack.session().await, stack.session().await);
        let reader =
            cloister_testkit::script(&[bash("touch began; while [ ! -e go ]; do sleep 0.02; done; echo whole")]);
        let reading = stack.client.message(&other, &reader, None).await.unwrap();
        until("the other is at work", || stack.workspace().join("began").exists()).await;
        let fill = "while :; do head -c 1000000 /dev/zero >> big; sleep 0.002; done";
        let turn = stack
            .play(&filler, &[bash(fill), bash("du -sb big | cut -f1; rm big"), bash("echo room > small && cat small")])
            .await;
        let results = turn.of(EventKind::ToolResult);
        let said = |n: usize| results[n].data["content"].as_str().unwrap().to_owned();
        assert!(
            said(0).contains("the workspace holds") && said(0).contains("of at most 50000000"),
            "{who:?}: {}",
            said(0)
        );
        let size: u64 = said(1).trim().parse().unwrap();
        assert!((40_000_000..400_000_000).contains(&size), "{who:?}: {size}");
        assert_eq!((said(2).as_str(), turn.end()), ("room\n", EventKind::MessageCompleted), "{who:?}");
        std::fs::write(stack.workspace().join("go"), "").unwrap();
        let turn = cloister_testkit::Turn::collect(reading).await;
        assert_eq!(turn.of(EventKind::ToolResult)[0].data["content"], "whole\n", "{who:?}");
    }
}

#[tokio::test]
async fn who_goes_on_filling_it_has_his_turn_ended_by_name() {
    // Also by many that each write little, which no account shows.
    let little = "trap '' CHLD; while :; do head -c 300000 /dev/zero > f$RANDOM$RANDOM & sleep 0.002; done";
    let stack = stack(As::Root, "[workspace]\nbytes = 20000000\n").await;
    let session = stack.session().await;
    let began = Instant::now();
    let turn = stack.play(&session, &vec![bash(little); 12]).await;
    assert_eq!(turn.end(), EventKind::MessageError, "{:?}", turn.events.last());
    assert_eq!(turn.events.last().unwrap().data["code"], "quota_exceeded");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    let used: u64 =
        std::fs::read_dir(stack.workspace()).unwrap().flatten().filter_map(|f| Some(f.metadata().ok()?.len())).sum();
    assert!(used < 300_000_000, "{used}");
}

#[tokio::test]
async fn who_only_waits_is_not_held_to_account_for_who_fills_it() {
    let stack = stack(As::Root, "[workspace]\nbytes = 20000000\n").await;
    let (filler, quiet) = (stack.session().await, stack.session().await);
    // One that wrote once, long ago, and waits; its children end all the time, and nobody collects them.
    let children = "import os, time\nfor _ in range(150):\n    os.fork() or os._exit(0)\n    time.sleep(0.04)\n";
    let wait = format!("head -c 3000000 /dev/zero > once; sync once; touch began; python3 -c '{children}'; echo whole");
    let waiting = stack.client.message(&quiet, &cloister_testkit::script(&[bash(&wait)]), None).await.unwrap();
    until("it waits", || stack.workspace().join("began").exists()).await;
    let fill = "while :; do head -c 1000000 /dev/zero >> big; sleep 0.01; done";
    let turn = stack.play(&filler, &vec![bash(fill); 12]).await;
    assert_eq!(turn.events.last().unwrap().data["code"], "quota_exceeded");
    let turn = cloister_testkit::Turn::collect(waiting).await;
    assert_eq!(turn.of(EventKind::ToolResult)[0].data["content"], "whole\n");
    assert_eq!(turn.end(), EventKind::MessageCompleted);
}

#[tokio::test]
async fn uploads_under_way_have_their_room_and_give_it_back() {
    use tokio::io::AsyncWriteExt;
    let stack = stack(As::Root, "[workspace]\nbytes = 20000000\n").await;
    let session = stack.session().await;
    let address = stack.url.trim_start_matches("http://").to_owned();
    let begin = async |name: &str| {
        let mut socket = tokio::net::TcpStream::connect(&address).await.unwrap();
        let head = format!(
            "PUT /v1/sessions/{session}/files/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 15000000\r\n\r\nbegins",
            stack.key
        );
        socket.write_all(head.as_bytes()).await.unwrap();
        socket
    };
    let first = begin("one").await;
    let tried = Instant::now();
    while put(&stack, &session, "two", 15_000_000).await.0 != 413 {
        assert!(tried.elapsed() < Duration::from_secs(5), "the first has no room of its own");
    }
    drop(first);
    let tried = Instant::now();
    while put(&stack, &session, "two", 15_000_000).await.0 != 201 {
        assert!(tried.elapsed() < Duration::from_secs(5), "its room does not come back");
    }
    // Refused uploads leave no folders, and small ones of unknown length fit.
    assert_eq!(put(&stack, &session, "deep/er/file", 15_000_000).await.0, 413);
    assert!(!stack.workspace().join("deep").exists());
    let chunked = stack
        .raw(
            "PUT",
            &format!("/v1/sessions/{session}/files/small"),
            &[("transfer-encoding", "chunked")],
            b"4\r\ntiny\r\n0\r\n\r\n",
        )
        .await;
    assert!(matches!(chunked.status, 201 | 400), "{}", chunked.status);
}

#[tokio::test]
async fn a_limit_holds_without_a_server_and_with_the_next() {
    let mut stack = stack(As::Root, "[workspace]\nbytes = 20000000\n").await;
    let session = stack.session().await;
    let fill = "touch began; while [ ! -e go ]; do sleep 0.01; done; while :; do head -c 500000 /dev/zero >> big; sleep 0.005; done";
    let events = stack.client.message(&session, &cloister_testkit::script(&[bash(fill)]), None).await.unwrap();
    let workspace = stack.workspace();
    until("it is at work", || workspace.join("began").exists()).await;
    let turn = events.turn().clone();
    drop(events);
    stack.kill().await;
    std::fs::write(workspace.join("go"), "").unwrap();
    let size = || std::fs::metadata(workspace.join("big")).map_or(0, |file| file.len());
    until("it is full", || size() > 20_000_000).await;
    let stack = stack.restart().await;
    let turn = cloister_testkit::Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
    let said = turn.of(EventKind::ToolResult)[0].data["content"].as_str().unwrap().to_owned();
    assert!(said.contains("the workspace holds"), "{said}");
    assert!(size() < 200_000_000);
    assert_eq!(put(&stack, &session, "more", 1000).await, (413, "quota_exceeded".into()));
}

#[tokio::test]
async fn without_its_meter_a_spawner_is_followed_by_another() {
    let stack = stack(As::Root, "[workspace]\nbytes = 20000000\n").await;
    let session = stack.session().await;
    assert_eq!(stack.bash(&session, "echo one").await.0, "one\n");
    for _ in 0..3 {
        let spawner = stack.processes().spawner().unwrap();
        let meter = stack.processes().meter().unwrap();
        kill(meter);
        until("the spawner lets go", || cloister_testkit::is_gone(meter)).await;
        let tried = Instant::now();
        while put(&stack, &session, "f", 1000).await.0 != 201 {
            assert!(tried.elapsed() < Duration::from_secs(5));
        }
        assert_ne!(stack.processes().spawner().unwrap(), spawner);
        assert_eq!(put(&stack, &session, "g", 30_000_000).await.0, 413);
        assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
        until("the old one has gone", || cloister_testkit::is_gone(spawner)).await;
    }
}

#[tokio::test]
async fn a_tool_that_runs_out_of_memory_or_processes_is_told_so() {
    let stack = stack(As::Root, "[sandbox]\nmemory_bytes = 100000000\nprocesses = 40\nfile_bytes = 1000000\n").await;
    let enforced = stack.client.session(&stack.session().await).await.unwrap();
    let session = enforced.id;
    let (said, failed) = stack.bash(&session, "python3 -c 'x = bytearray(400000000)'").await;
    assert!(failed && said.contains("out of memory"), "{said}");
    let (said, failed) = stack.bash(&session, "ls /nonexistent").await;
    assert!(failed && !said.contains("memory"), "told once: {said}");
    let (said, _) = stack.bash(&session, "for n in $(seq 100); do sleep 3 & done; wait; false").await;
    assert!(said.contains("limit of processes"), "{said}");
    let (said, _) = stack.bash(&session, "exec head -c 2000000 /dev/zero > large").await;
    assert!(said.contains("largest size"), "{said}");
}

#[tokio::test]
async fn btrfs_keeps_to_the_limit_itself() {
    let Some(disk) = crate::disk::SmallDisk::mount_btrfs(400) else { return };
    keeps_to_the_limit_itself(disk).await;
}

#[tokio::test]
async fn a_file_system_with_project_quotas_keeps_to_the_limit_itself() {
    let Some(disk) = crate::disk::SmallDisk::mount_with_projects(400) else { return };
    keeps_to_the_limit_itself(disk).await;
}

async fn keeps_to_the_limit_itself(disk: crate::disk::SmallDisk) {
    let config = "[workspace]\nbytes = 20000000\n";
    let folder = disk.folder();
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    let stack = Stack::on(folder, Options { config: Some(config.into()), ..Options::default() }).await;
    let session = stack.session().await;
    assert_eq!(stack.bash(&session, "echo on > f; cat f").await.0, "on\n");
    let record = stack.client.session(&session).await.unwrap();
    assert_eq!(record.sandbox.unwrap().disk, "quota");
    let (said, failed) = stack.bash(&session, "head -c 40000000 /dev/urandom > big; sync big; ls -l big").await;
    assert!(failed || said.contains("quota exceeded"), "{said}");
    assert!(said.contains("quota exceeded") || said.contains("the workspace holds"), "{said}");
    let size = std::fs::metadata(stack.workspace().join("big")).unwrap().len();
    assert!(size < 21_000_000, "{size}");
    assert_eq!(put(&stack, &session, "more", 5_000_000).await, (413, "quota_exceeded".into()));
    stack.bash(&session, "rm big; sync .").await;
    let tried = Instant::now();
    while put(&stack, &session, "more", 5_000_000).await.0 != 201 {
        assert!(tried.elapsed() < Duration::from_secs(20), "room does not come back");
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    drop(stack);
}
