//! Ends and beginnings of the server.

use cloister_testkit::{Stack, Turn, script};
use cloister_types::event::EventKind;
use processes::children_of;
use serde_json::json;

/// Processes below a process, by what /proc says.
mod processes {
    pub(super) fn children_of(pid: u32) -> Vec<u32> {
        let mut all = vec![pid];
        let mut index = 0;
        while index < all.len() {
            let parent = all[index];
            index += 1;
            for entry in std::fs::read_dir("/proc").unwrap().flatten() {
                let Some(child) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
                    continue;
                };
                let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
                let fields = stat.rsplit(')').next().unwrap_or_default();
                if fields.split_whitespace().nth(1).and_then(|ppid| ppid.parse::<u32>().ok()) == Some(parent)
                    && !all.contains(&child)
                {
                    all.push(child);
                }
            }
        }
        all
    }
}

#[tokio::test]
async fn sigterm_ends_everything_with_status_0_and_a_terminal_event() {
    let mut stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [json!({"tool": "bash", "input": {"command": "setsid sleep 1000 & sleep 1000"}})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    while events.next().await.unwrap().unwrap().kind != Some(EventKind::ToolUseExecuting) {}
    tokio::time::sleep(std::time::Duration::from_millis(200)).await;
    let running = children_of(stack.pid());
    assert!(running.len() >= 6, "server, egress, spawner, supervisor, init, agent, shell: {running:?}");
    let reader = tokio::spawn(Turn::collect(events));
    let status = stack.terminate().await;
    assert_eq!(status.code(), Some(0));
    let rest = reader.await.unwrap();
    assert_eq!(rest.events.last().unwrap().data["code"], "interrupted");
    for pid in running {
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists(), "process {pid} is left");
    }
    // The same key, the same sessions, the turn's end kept.
    let key = stack.key.clone();
    let stack = stack.restart().await;
    assert_eq!(stack.key, key);
    let record = stack.client.session(&session).await.unwrap();
    assert_eq!(record.last_response.unwrap().error.unwrap().error.as_str(), "interrupted");
    assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
}

#[tokio::test]
async fn sigterm_at_the_very_first_moment_ends_with_status_0_too() {
    for _ in 0..5 {
        let mut stack = Stack::start().await;
        assert_eq!(stack.terminate().await.code(), Some(0));
    }
}

#[tokio::test]
async fn a_killed_server_leaves_nothing_running_and_no_turn_open() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    let lines = [json!({"say": "before"}), json!({"tool": "bash", "input": {"command": "sleep 1000"}})];
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    let mut seen = Vec::new();
    loop {
        let event = events.next().await.unwrap().unwrap();
        let executing = event.kind == Some(EventKind::ToolUseExecuting);
        seen.push(event);
        if executing {
            break;
        }
    }
    let turn = events.turn().clone();
    drop(events);
    let children: Vec<u32> = children_of(stack.pid()).into_iter().skip(1).collect();
    let stack = stack.kill_and_restart().await;
    let again = Turn::collect(stack.client.events(&session, &turn, None).await.unwrap()).await;
    assert_eq!(again.events[..seen.len()], seen, "what was seen is what is kept");
    assert_eq!(
        (again.end(), &again.events.last().unwrap().data["code"]),
        (EventKind::MessageError, &json!("interrupted"))
    );
    let starts = again.of(EventKind::ToolUseStart).len();
    assert_eq!(starts, again.of(EventKind::ToolUseStop).len());
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    for pid in children {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        // A zombie has ended; collecting it is the business of the machine's
        // first process.
        let lives = (stat.contains("(cloister") || stat.contains("(sleep)")) && !stat.contains(") Z ");
        assert!(!lives, "process {pid} is left: {stat}");
    }
    let next = stack.play(&session, &[json!({"say": "after"})]).await;
    assert_eq!(next.text(), "after");
}

#[tokio::test]
async fn a_killed_agent_fails_its_turn_and_a_killed_egress_is_replaced() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    // The agent is the shell's parent.
    let (said, _) = stack.bash(&session, "echo $PPID").await;
    assert!(said.trim().parse::<u32>().is_ok(), "{said}");
    let turn = stack.play(&session, &[json!({"tool": "bash", "input": {"command": "kill -9 $PPID; sleep 5"}})]).await;
    let last = &turn.events.last().unwrap().data;
    assert_eq!((turn.end(), &last["code"]), (EventKind::MessageError, &json!("agent_died")));
    assert!(last["error"].as_str().unwrap().contains("signal 9"), "{last}");
    assert_eq!(stack.bash(&session, "echo again").await.0, "again\n");

    let egress = children_of(stack.pid())
        .into_iter()
        .find(|pid| std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default().ends_with(b"\0egress\0"))
        .unwrap();
    let killed = std::process::Command::new("kill").args(["-9", &egress.to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(stack.bash(&session, "echo through").await.0, "through\n");
}
