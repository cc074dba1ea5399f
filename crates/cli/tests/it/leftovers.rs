//! After sessions have come and gone, everything is as before.

use cloister_testkit::{As, Stack, script};
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

fn children(pid: u32) -> Vec<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

fn open_files(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, Iterator::count)
}

#[tokio::test]
async fn sessions_leave_no_process_group_or_descriptor() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        // The spawner is the child that has the sandbox's name.
        let all = std::fs::read_dir(format!("/proc/{}/task", stack.pid())).unwrap().flatten();
        let spawner = all
            .flat_map(|task| {
                std::fs::read_to_string(task.path().join("children"))
                    .unwrap_or_default()
                    .split_whitespace()
                    .map(str::to_owned)
                    .collect::<Vec<_>>()
            })
            .filter_map(|pid| pid.parse::<u32>().ok())
            .find(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().starts_with("cloister-sandbo")
            })
            .unwrap();
        let round = async || {
            let session = stack.session().await;
            stack.bash(&session, "setsid sleep 100 & sleep 100 & echo hi").await;
            let message = script(&[json!({"tool": "bash", "input": {"command": "sleep 100"}})]);
            let events = stack.client.message(&session, &message, None).await.unwrap();
            drop(events);
            stack.client.delete(&session).await.unwrap();
        };
        round().await;
        let before = (open_files(spawner), open_files(stack.pid()));
        for _ in 0..8 {
            round().await;
        }
        for _ in 0..100 {
            if children(spawner).is_empty() && groups(spawner).is_empty() {
                break;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        assert_eq!(children(spawner), Vec::<u32>::new(), "{who:?}");
        assert_eq!(groups(spawner), Vec::<String>::new(), "{who:?}");
        assert_eq!(open_files(spawner), before.0, "{who:?}: descriptors of the spawner");
        assert!(
            open_files(stack.pid()) <= before.1 + 3,
            "{who:?}: {} descriptors, {} before",
            open_files(stack.pid()),
            before.1
        );
        let left = std::fs::read_dir(stack.workspace().join(".sessions")).unwrap().count();
        assert_eq!(left, 0, "{who:?}: private folders");
    }
}
