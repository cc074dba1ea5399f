//! A full disk: a small file system of the test's own, which only root can
//! mount; without root this says that it was skipped.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use cloister_client::ClientError;
use cloister_testkit::{Options, Stack, Turn, script};
use cloister_types::ErrorCode;
use cloister_types::event::EventKind;
use serde_json::json;

/// An ext4 of so many mebibytes in a file, mounted.
struct SmallDisk {
    folder: tempfile::TempDir,
    at: PathBuf,
}

impl SmallDisk {
    fn mount(mebibytes: u64) -> Option<Self> {
        if !rustix_is_root() {
            eprintln!("SKIPPED: only root can mount a file system");
            return None;
        }
        let folder = tempfile::Builder::new().prefix("disk-").tempdir().unwrap();
        let (image, at) = (folder.path().join("image"), folder.path().join("testkit-disk"));
        std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
        std::fs::create_dir(&at).unwrap();
        let run = |program: &str, arguments: &[&str]| {
            let output = Command::new(program).args(arguments).arg(&image).output().expect(program);
            assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        };
        run("mkfs.ext4", &["-q", "-m", "0"]);
        let output = Command::new("mount").args(["-o", "loop"]).arg(&image).arg(&at).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Some(Self { folder, at })
    }

    /// Takes all the space that is left.
    fn fill(&self) -> PathBuf {
        let path = self.at.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let block = vec![1; 64 << 10];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        while std::io::Write::write_all(&mut file, &[1; 512]).is_ok() {}
        path
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
        let _ = &self.folder;
    }
}

fn rustix_is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

async fn until_served(stack: &Stack) {
    let began = Instant::now();
    while let Err(error) = stack.client.create(&Default::default()).await {
        assert!(began.elapsed() < Duration::from_secs(15), "service does not return: {error}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn folder_on(path: &Path) -> tempfile::TempDir {
    tempfile::Builder::new().prefix("testkit-").tempdir_in(path).unwrap()
}

#[tokio::test]
async fn a_full_disk_is_said_ends_turns_by_name_loses_nothing_and_passes() {
    let Some(disk) = SmallDisk::mount(120) else { return };
    let stack = Stack::on(folder_on(&disk.at), Options::default()).await;
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
    std::fs::write(stack.workspace().join("go"), "").unwrap();
    let filler = disk.fill();
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
