//! After sessions have come and gone, everything is as before.

use std::ffi::OsString;

use cloister_testkit::{As, Stack, children, is_gone, is_meter, kill, script, until};
use serde_json::json;

/// Processes of a stack by state directory: those whose ancestor it is, and
/// control groups named after its spawner.
fn groups(pid: u32) -> Vec<String> {
    let mut found = Vec::new();
    for controller in std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        for entry in std::fs::read_dir(controller.path()).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy() == format!("cloister-{pid}") {
                let inside = std::fs::read_dir(entry.path())
                    .into_iter()
                    .flatten()
                    .flatten()
                    .filter(|inner| inner.path().is_dir());
                found.extend(inside.map(|inner| inner.path().display().to_string()));
            }
        }
    }
    found
}

/// Sandboxes that a spawner keeps ready.
const SPARES: usize = 3;

fn spares(spawner: u32) -> Vec<u32> {
    children(spawner).into_iter().filter(|pid| !is_meter(*pid)).collect()
}

/// Waits until nothing of a spawner is left but its spares; they, with their
/// groups.
async fn settled(stack: &Stack, spawner: u32) -> (Vec<u32>, Vec<String>) {
    until("only spares are left", || {
        let whole = |spare: &u32| children(*spare).len() == 1;
        let all = spares(spawner);
        stack.processes().supervisors().next().is_none() && all.len() == SPARES && all.iter().all(whole)
    })
    .await;
    // Those that nobody is in are for the next sandboxes.
    let taken =
        |group: &String| std::fs::read_to_string(format!("{group}/cgroup.procs")).is_ok_and(|pids| !pids.is_empty());
    (spares(spawner), groups(spawner).into_iter().filter(taken).collect())
}

/// Controllers of control groups, and groups that a spawner keeps for reuse.
const MOST_GROUPS: usize = 3 * (SPARES + 64);

/// But for the networks and host users that the next sandboxes get.
fn open_files(pid: u32) -> usize {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = files.filter_map(|file| std::fs::read_link(file.path()).ok());
    links
        .filter(|link| !link.to_string_lossy().starts_with("net:[") && !link.to_string_lossy().starts_with("user:["))
        .count()
}

#[tokio::test]
async fn sessions_leave_no_process_group_or_descriptor() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let spawner = stack.processes().spawner().unwrap();
        let round = async || {
            let session = stack.session().await;
            stack.bash(&session, "setsid sleep 100 & sleep 100 & echo hi").await;
            let message = script(&[json!({"tool": "bash", "input": {"command": "sleep 100"}})]);
            let events = stack.client.message(&session, &message, None).await.unwrap();
            drop(events);
            stack.client.delete(&session).await.unwrap();
        };
        round().await;
        let (_, of_spares) = settled(&stack, spawner).await;
        let before = (open_files(spawner), open_files(stack.pid()));
        for _ in 0..8 {
            round().await;
        }
        let (spares, left) = settled(&stack, spawner).await;
        assert_eq!(left.len(), of_spares.len(), "{who:?}: {left:?}");
        // One more may be about to be let go of, before as well as now.
        until("the spawner has no more descriptors", || open_files(spawner) <= before.0).await;
        assert!(
            open_files(stack.pid()) <= before.1 + 3,
            "{who:?}: {} descriptors, {} before",
            open_files(stack.pid()),
            before.1
        );
        assert_eq!(stack.private_folders(), Vec::<OsString>::new(), "{who:?}");

        // Spares end with the spawner, whichever way it goes.
        let inits: Vec<u32> = spares.iter().flat_map(|spare| children(*spare)).collect();
        kill(spawner);
        until("the spares end", || spares.iter().chain(&inits).all(|pid| is_gone(*pid))).await;
        let session = stack.session().await;
        assert_eq!(stack.bash(&session, "echo on").await.0, "on\n");
        stack.client.delete(&session).await.unwrap();
        let spawner = stack.processes().spawner().unwrap();
        let (spares, _) = settled(&stack, spawner).await;
        let mut stack = stack;
        stack.terminate().await;
        assert!(spares.iter().all(|pid| is_gone(*pid)), "{who:?}: spares outlive the server");
        assert_eq!(groups(spawner), Vec::<String>::new(), "{who:?}");
    }
}

#[tokio::test]
async fn a_spare_that_dies_is_noticed_and_followed() {
    let stack = Stack::start().await;
    let spawner = stack.processes().spawner().unwrap();
    for _ in 0..3 {
        let (spares, _) = settled(&stack, spawner).await;
        // Its first process, or itself.
        let inits: Vec<u32> = spares.iter().flat_map(|spare| children(*spare)).collect();
        kill(inits[0]);
        kill(spares[1]);
        until("both are gone", || is_gone(inits[0]) && is_gone(spares[1]) && is_gone(spares[0])).await;
        for _ in 0..4 {
            assert_eq!(stack.bash(&stack.session().await, "echo on").await.0, "on\n");
        }
        for record in stack.client.sessions().await.unwrap() {
            stack.client.delete(&record.id).await.unwrap();
        }
    }
}

/// `CLOISTER_SESSIONS` for more of them.
#[tokio::test]
async fn many_sessions_and_a_killed_server_leave_nothing() {
    let most: usize = std::env::var("CLOISTER_SESSIONS").ok().and_then(|text| text.parse().ok()).unwrap_or(1000);
    for who in As::all() {
        let mut stack = Stack::start_as(who).await;
        let config = json!({"file_access": {"read": ["in"], "write": ["out", "a/b"]}});
        stack.bash(&stack.session().await, "mkdir -p in out a/b; echo x > in/f").await;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut spawners = vec![stack.processes().spawner().unwrap()];
        for part in 0..3 {
            let tasks: Vec<_> = (0..4)
                .map(|task| {
                    let (client, config) = (stack.client.clone(), config.clone());
                    tokio::spawn(async move {
                        for n in 0..most.div_ceil(12) {
                            let request = serde_json::from_value(config.clone()).unwrap();
                            let Ok(session) = client.create(&request).await else { return };
                            if n % 4 == task {
                                let command = json!({"tool": "bash", "input": {"command": "cat in/f; setsid sleep 50 & echo y > out/f"}});
                                let Ok(events) = client.message(&session.id, &script(&[command]), None).await else { return };
                                if n % 8 == task {
                                    drop(events);
                                }
                            }
                            if client.delete(&session.id).await.is_err() {
                                return;
                            }
                        }
                    })
                })
                .collect();
            if part < 2 {
                // In the middle of it.
                tokio::time::sleep(std::time::Duration::from_millis(400)).await;
                stack.kill().await;
                for task in tasks {
                    task.abort();
                }
                stack = stack.restart().await;
                spawners.push(stack.processes().spawner().unwrap());
            } else {
                for task in tasks {
                    task.await.unwrap();
                }
            }
        }
        for record in stack.client.sessions().await.unwrap() {
            stack.client.delete(&record.id).await.unwrap();
        }
        let (last, earlier) = spawners.split_last().unwrap();
        until("the spawners of killed servers are gone", || earlier.iter().all(|pid| is_gone(*pid))).await;
        let (_, of_spares) = settled(&stack, *last).await;
        assert!(of_spares.len() <= SPARES * 8, "{who:?}: {of_spares:?}");
        assert!(groups(*last).len() <= MOST_GROUPS, "{who:?}: {:?}", groups(*last));
        for spawner in earlier {
            assert_eq!(groups(*spawner), Vec::<String>::new(), "{who:?}");
        }
        assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts, "{who:?}");
        assert_eq!(stack.private_folders(), Vec::<OsString>::new(), "{who:?}");
        assert_eq!(stack.run_folders().len(), 0, "{who:?}");
        assert_eq!(stack.terminate().await.code(), Some(0), "{who:?}");
        assert!(is_gone(*last), "{who:?}");
    }
}
