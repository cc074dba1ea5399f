//! After sessions have come and gone, everything is as before.

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
    (spares(spawner), groups(spawner))
}

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
        assert_eq!(open_files(spawner), before.0, "{who:?}: descriptors of the spawner");
        assert!(
            open_files(stack.pid()) <= before.1 + 3,
            "{who:?}: {} descriptors, {} before",
            open_files(stack.pid()),
            before.1
        );
        let left = std::fs::read_dir(stack.workspace().join(".sessions")).unwrap().count();
        assert_eq!(left, 0, "{who:?}: private folders");

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
