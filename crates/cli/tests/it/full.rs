//! A full disk.

use std::time::{Duration, Instant};

use cloister_client::ClientError;
use cloister_testkit::{Options, Stack, Turn, script};
use cloister_types::ErrorCode;
use cloister_types::event::EventKind;
use serde_json::json;

use crate::disk::SmallDisk;

async fn until_served(stack: &Stack) {
    let began = Instant::now();
    while let Err(error) = stack.client.create(&Default::default()).await {
        assert!(began.elapsed() < Duration::from_secs(15), "service does not return: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_full_disk_is_said_ends_turns_by_name_loses_nothing_and_passes() {
    let Some(disk) = SmallDisk::mount(120) else { return };
    let stack = Stack::on(disk.folder(), Options::default()).await;
    let (session, idle) = (stack.session().await, stack.session().await);
    let before = stack.play(&idle, &[json!({"say": "before"})]).await;
    let noise = json!({"tool": "bash", "input": {"command": "head -c 30000 /dev/urandom | base64 -w0"}});
    let wait = json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 0.02; done"}});
    let mut lines = vec![json!({"say": "shown"}), wait];
    lines.extend((0..150).map(|_| noise.clone()));
    let mut events = stack.client.message(&session, &script(&lines), None).await.unwrap();
    let mut seen = Vec::new();
    while seen.last().is_none_or(|event: &cloister_client::Event| event.kind != Some(EventKind::ToolUseStop)) {
        seen.push(events.next().await.unwrap().unwrap());
    }
    // Nobody writes while it fills: who does would give up the reserve, and the
    // filler would take that as well.
    std::fs::write(stack.workspace().join("ready"), "").unwrap();
    let filler = disk.fill();
    std::fs::rename(stack.workspace().join("ready"), stack.workspace().join("go")).unwrap();
    // The running turn ends, by name.
    while let Some(event) = events.next().await.unwrap() {
        seen.push(event);
    }
    let last = seen.last().unwrap();
    assert_eq!((last.kind, &last.data["code"]), (Some(EventKind::MessageError), &json!("storage_full")), "{last:?}");
    // New work is refused before anything is half done.
    let refused = |outcome: ClientError| {
        matches!(outcome, ClientError::Refused { code: ErrorCode::StorageFull, status: 507, .. })
    };
    assert!(refused(stack.client.create(&Default::default()).await.unwrap_err()));
    assert!(refused(stack.client.message(&session, "hello", None).await.unwrap_err()));
    assert!(!stack.client.session(&session).await.unwrap().busy);
    // Nothing that was shown is lost, and what removes something works.
    let again = Turn::collect(stack.client.events(&session, events.turn(), None).await.unwrap()).await;
    assert_eq!(again.events, seen);
    let kept = Turn::collect(stack.client.events(&idle, &before.id, None).await.unwrap()).await;
    assert_eq!(kept.events, before.events);
    stack.client.delete(&idle).await.unwrap();
    // Over a restart on the full disk, too; and when there is space again,
    // service returns by itself.
    let stack = stack.kill_and_restart().await;
    assert!(refused(stack.client.message(&session, "hello", None).await.unwrap_err()));
    std::fs::remove_file(filler).unwrap();
    until_served(&stack).await;
    assert_eq!(stack.bash(&session, "echo again").await.0, "again\n");
    drop(stack);
}
