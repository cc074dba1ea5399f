//! Backups made at work, and what is restored from them.

use std::path::Path;
use std::process::{Command, Output};

use cloister_testkit::{Options, Stack, Turn, script};
use cloister_types::event::EventKind;
use serde_json::json;

fn cloister(stack: &Stack, data: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(stack.executable());
    command.arg("--data").arg(data).args(arguments).env_clear().env("PATH", "/usr/bin:/bin").output().unwrap()
}

#[tokio::test]
async fn a_backup_made_at_work_resumes_every_stream_identically() {
    let stack = Stack::start().await;
    let (done, open) = (stack.session().await, stack.session().await);
    let finished = stack.play(&done, &[json!({"say": "kept"}), json!({"tool": "bash", "input": {"command": "echo x > file; ln -s file link; ln -s d//./e odd; ln -s $(head -c 150 /dev/zero | tr '\\0' x) long; mkdir -p deep/er; echo y > deep/er/y; chmod 500 deep; mkfifo pipe"}})]).await;
    let lines = [
        json!({"tool": "bash", "input": {"command": "echo once >> effects"}}),
        json!({"say": "between"}),
        json!({"tool": "bash", "input": {"command": "while [ ! -e go ]; do sleep 0.02; done"}}),
        json!({"say": "end"}),
    ];
    let mut events = stack.client.message(&open, &script(&lines), None).await.unwrap();
    let mut seen = Vec::new();
    while !seen.last().is_some_and(|event: &cloister_client::Event| {
        event.data["id"] == "call_2_0" && event.kind == Some(EventKind::ToolUseExecuting)
    }) {
        seen.push(events.next().await.unwrap().unwrap());
    }
    let archive = stack.folder().join("backup.tar");
    let made = cloister(&stack, &stack.folder().join("data"), &["backup", archive.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    assert!(String::from_utf8_lossy(&made.stderr).contains("left out: workspace/pipe"));
    let again = cloister(&stack, &stack.folder().join("data"), &["backup", archive.to_str().unwrap()]);
    assert!(!again.status.success(), "a backup is a new file");
    // The original goes its own way.
    std::fs::write(stack.workspace().join("go"), "").unwrap();
    Turn::collect(events).await;

    let folder = tempfile::Builder::new().prefix("testkit-").tempdir().unwrap();
    let data = folder.path().join("data");
    let restored = cloister(&stack, &data, &["restore", archive.to_str().unwrap()]);
    assert!(restored.status.success(), "{}", String::from_utf8_lossy(&restored.stderr));
    assert!(
        !cloister(&stack, &data, &["restore", archive.to_str().unwrap()]).status.success(),
        "nothing is overwritten"
    );
    std::fs::write(data.join("workspace/go"), "").unwrap();
    let second = Stack::on(folder, Options::default()).await;
    assert_eq!(second.key, stack.key, "keys are part of it");
    let kept = Turn::collect(second.client.events(&done, &finished.id, None).await.unwrap()).await;
    assert_eq!(kept.events, finished.events);
    let resumed =
        Turn::collect(second.client.events(&open, &stack_turn(&stack, &open).await, None).await.unwrap()).await;
    assert_eq!(resumed.events[..seen.len()], seen, "a prefix of what the first tenant's clients saw");
    assert_eq!((resumed.end(), resumed.of(EventKind::TurnResumed).len()), (EventKind::MessageCompleted, 1));
    let (said, _) = second
        .bash(&done, "cat file link deep/er/y effects; readlink odd; readlink long | wc -c; stat -c %a deep; ls")
        .await;
    assert_eq!(said, "x\nx\ny\nonce\nd//./e\n151\n500\ndeep\neffects\nfile\ngo\nlink\nlong\nodd\n");
}

async fn stack_turn(stack: &Stack, session: &cloister_types::SessionId) -> cloister_types::ResponseId {
    stack.client.session(session).await.unwrap().last_response.unwrap().id
}

#[tokio::test]
async fn half_a_backup_or_a_changed_one_is_told_and_leaves_nothing() {
    let stack = Stack::start().await;
    let session = stack.session().await;
    stack.play(&session, &[json!({"say": "kept"})]).await;
    std::fs::write(stack.workspace().join("big"), vec![7; 300_000]).unwrap();
    let archive = stack.folder().join("backup.tar");
    let made = cloister(&stack, &stack.folder().join("data"), &["backup", archive.to_str().unwrap()]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let bytes = std::fs::read(&archive).unwrap();
    let (bad, data) = (stack.folder().join("bad.tar"), stack.folder().join("restored"));
    let cuts = [0, 100, 600, bytes.len() / 2, bytes.len() - 3000];
    for cut in cuts {
        std::fs::write(&bad, &bytes[..cut]).unwrap();
        let restored = cloister(&stack, &data, &["restore", bad.to_str().unwrap()]);
        assert!(!restored.status.success() && !data.exists(), "cut at {cut}");
    }
    // A byte of every kind of content; headers have sums of their own.
    for at in [700, 5000, bytes.len() / 2, bytes.len() - 200_000] {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        std::fs::write(&bad, &changed).unwrap();
        let restored = cloister(&stack, &data, &["restore", bad.to_str().unwrap()]);
        assert!(!restored.status.success() && !data.exists(), "changed at {at}");
    }
    let left = std::fs::read_dir(stack.folder())
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("partial"));
    assert_eq!(left.count(), 0);
}
