//! Ceilings of a turn and of a sandbox.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

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
        // Shared memory is of the same room, and another folder.
        let fill = |folder: &str, bytes: u32| format!("head -c {bytes} /dev/zero > {folder}/part");
        let (tmp, both) = (fill("/tmp", 600_000), fill("/dev/shm", 600_000));
        let (said, failed) = stack.bash(&session, &format!("rm /tmp/big; {tmp} && echo fits && {both}")).await;
        assert!(failed && said.starts_with("fits\n") && said.contains("No space left"), "{who:?}: {said}");
        let fits = fill("/dev/shm", 200_000);
        let (said, _) = stack
            .bash(&session, &format!("rm /dev/shm/part; {fits} && ls /dev/shm; ln /dev/shm/part /tmp/link 2>&1"))
            .await;
        assert!(said.starts_with("part\n") && said.contains("cross-device"), "{who:?}: {said}");
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

/// A group of version 2 that the test hands on; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn make(kind: &str) -> Option<Self> {
        let root = Path::new("/sys/fs/cgroup");
        let offered = std::fs::read_to_string(root.join("cgroup.controllers")).unwrap_or_default();
        if !offered.contains("memory") || As::all().len() < 2 {
            eprintln!("SKIPPED: only root can make groups, and version 2 must have the memory controller");
            return None;
        }
        std::fs::write(root.join("cgroup.subtree_control"), "+memory +cpu +pids").unwrap();
        let made = root.join(format!("testkit-{}-{}{kind}", std::process::id(), rand()));
        std::fs::create_dir(&made).unwrap();
        Some(Self(made))
    }

    fn give_to(&self, user: u32) {
        for file in ["", "cgroup.procs", "cgroup.subtree_control"] {
            std::os::unix::fs::chown(self.0.join(file), Some(user), Some(user)).unwrap();
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let began = Instant::now();
        let _ = std::fs::remove_dir(self.0.join("cloister-server"));
        while std::fs::remove_dir(&self.0).is_err() && began.elapsed() < Duration::from_secs(10) {
            std::thread::sleep(Duration::from_millis(20));
            let _ = std::fs::remove_dir(self.0.join("cloister-server"));
        }
    }
}

fn rand() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

#[tokio::test]
async fn limits_hold_where_a_group_is_left_to_the_server_and_else_it_says_so() {
    // A service's own group is not split, whoever left it to us: the next server could
    // not be started in it.
    for (who, kind, left) in
        [(As::Root, ".scope", true), (As::User, "", true), (As::Root, "", false), (As::Root, ".service", true)]
    {
        let Some(group) = Group::make(kind) else { return };
        match (who, left) {
            (As::User, _) => group.give_to(cloister_testkit::ORDINARY),
            // As systemd does for a unit with `Delegate=yes`.
            (As::Root, true) => {
                let script = "import os,sys; os.setxattr(sys.argv[1], 'trusted.delegate', b'1')";
                let mark = Command::new("python3").args(["-c", script]).arg(&group.0).status().unwrap();
                assert!(mark.success());
            }
            (As::Root, false) => {}
        }
        let config = "[sandbox]\nmemory_bytes = 100000000\n";
        let stack = Stack::with(Options {
            config: Some(config.into()),
            as_user: who == As::User,
            group: Some(group.0.clone()),
            ..Options::default()
        })
        .await;
        let session = stack.session().await;
        let (said, failed) = stack.bash(&session, "python3 -c 'x = bytearray(400000000); print(\"got it\")'").await;
        assert!(failed && !said.contains("got it"), "{who:?}: {said}");
        let sandbox = stack.client.session(&session).await.unwrap().sandbox.unwrap();
        let found = [sandbox.memory.as_str(), &sandbox.cpu, &sandbox.pids];
        if left && kind != ".service" {
            assert_eq!(found, ["cgroup-v2"; 3], "{who:?}");
            assert!(said.contains("out of memory"), "{who:?}: {said}");
        } else {
            assert_eq!(found, ["rlimit-per-process", "none", "rlimit-per-namespace"], "{who:?}");
        }
        drop(stack);
    }
}

#[tokio::test]
async fn what_runs_in_a_sandbox_is_behind_the_server() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let session = stack.session().await;
        let inside: i32 = stack.bash(&session, "nice").await.0.trim().parse().unwrap();
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", stack.pid())).unwrap();
        // The nineteenth field (proc(5)), counted from behind the name.
        let server: i32 = stat.rsplit(')').next().unwrap().split_whitespace().nth(16).unwrap().parse().unwrap();
        assert_eq!(inside - server, 10, "{who:?}");
    }
}
