//! As whom sandboxes run on the host, and whose their files are.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use cloister_testkit::{As, Options, Stack, kernel, until};
use cloister_types::wire::Verdict;
use serde_json::json;

/// Kernels before this one show no tmpfs with other owners.
const TMPFS_MAPS: (u32, u32) = (6, 3);

/// Host user of a process.
fn user_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("Uid:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn under_root_each_sandbox_has_a_host_user_of_its_own_and_files_have_one_owner() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let (one, other) = (stack.session().await, stack.session().await);
        let host_user = async |id| stack.client.session(id).await.unwrap().sandbox.unwrap().host_user;
        let of = |id: &cloister_types::SessionId| user_of(stack.processes().sandbox(id.as_str()).unwrap().init);
        let (first, second, server) = (of(&one), of(&other), user_of(stack.pid()));
        if who == As::Root && kernel() < TMPFS_MAPS {
            assert_eq!(host_user(&one).await, "tenant");
            assert!(first == 1_900_000_000 && second == first, "{first} {second}");
        } else if who == As::Root {
            assert_eq!(host_user(&one).await, "own");
            let range = 1_900_000_001..1_900_000_000 + (1 << 24);
            assert!(first != second && range.contains(&first) && range.contains(&second), "{first} {second}");
        } else {
            assert_eq!(host_user(&one).await, "server");
            assert!(first == server && second == server);
        }

        // Inside there is one user; on disk the workspace has one owner.
        let (out, failed) = stack.bash(&one, "mkdir d; echo a > d/f; chmod 600 d/f; stat -c %u:%g d d/f .memory").await;
        assert_eq!((out.as_str(), failed), ("1000:1000\n1000:1000\n1000:1000\n", false), "{who:?}");
        let workspace = std::fs::metadata(stack.workspace()).unwrap();
        let file = std::fs::metadata(stack.workspace().join("d/f")).unwrap();
        assert_eq!((file.uid(), file.gid()), (workspace.uid(), workspace.gid()), "{who:?}");
        let (out, _) = stack.bash(&other, "cat d/f && echo b >> d/f && rm d/f && ls d | wc -l").await;
        assert_eq!(out, "a\n0\n", "{who:?}: the other session's file");
        stack.client.upload(&one, "up", "from outside").await.unwrap();
        assert_eq!(stack.bash(&one, "stat -c %u up; echo more >> up; cat up").await.0, "1000\nfrom outsidemore\n");
        let got = stack.raw("GET", &format!("/v1/sessions/{other}/files/up"), &[], b"").await;
        assert_eq!(got.text(), "from outsidemore\n");
        // The sandbox's own folders are its user's.
        assert_eq!(
            stack.bash(&one, "stat -c %u ~ /tmp; touch /tmp/x /dev/shm/x && echo made").await.0,
            "1000\n1000\nmade\n"
        );
    }
}

#[tokio::test]
async fn files_of_other_owners_keep_their_modes_on_both_surfaces() {
    // Only root can make files of others.
    if !As::all().contains(&As::Root) {
        return;
    }
    let stack = Stack::start().await;
    let session = stack.session().await;
    for (name, mode) in [("open", 0o666), ("readable", 0o644), ("closed", 0o600)] {
        let path = stack.workspace().join(name);
        std::fs::write(&path, "host").unwrap();
        std::os::unix::fs::chown(&path, Some(0), Some(0)).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let (out, _) = stack
        .bash(
            &session,
            "stat -c %u open; for f in open readable closed; do cat $f; (echo x >> $f) && echo written; done 2>&1",
        )
        .await;
    assert_eq!(out.matches("written").count(), 1, "{out}");
    assert!(out.starts_with("65534\nhostwritten\nhost") && out.matches("Permission denied").count() == 3, "{out}");
    for (name, readable) in [("open", true), ("readable", true), ("closed", false)] {
        assert_eq!(stack.client.download(&session, name).await.is_ok(), readable, "{name}");
    }
    // Nobody can give files away, or take them.
    let (out, _) = stack.bash(&session, "touch mine; chown 0 mine; chown 1000 open; echo $?").await;
    assert!(out.ends_with("1\n"), "{out}");
    let ask = json!({"file_access": {"read": ["readable"], "write": []}});
    let scoped = stack.session_with(ask).await.id;
    assert_eq!(stack.bash(&scoped, "cat readable").await.0, "host");
}

#[tokio::test]
async fn what_holds_a_session_is_measured_from_its_process() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let session = stack.session().await;
        let report = stack.client.sandbox(&session).await.unwrap();
        assert!(report.live);
        let of = |what: &str| report.measured.iter().find(|measured| measured.what == what).unwrap();
        for what in ["capabilities", "new privileges", "system calls", "resource limits", "out of memory"] {
            assert_eq!(of(what).verdict, Verdict::Holds, "{who:?}: {:?}", of(what));
        }
        // A server that is not root may not look into some corners.
        for what in ["namespaces", "mounts", "network"] {
            if who == As::Root {
                assert_eq!(of(what).verdict, Verdict::Holds, "{:?}", of(what));
            }
            assert_ne!(of(what).verdict, Verdict::Broken, "{who:?}: {:?}", of(what));
        }
        let host_user = if who == As::Root { Verdict::Holds } else { Verdict::Weaker };
        assert_eq!(of("host user").verdict, host_user, "{:?}", of("host user"));
        if who == As::Root {
            assert_eq!(of("control groups").verdict, Verdict::Holds, "{:?}", of("control groups"));
            assert!(of("control groups").seen.contains("memory 2147483648 bytes"), "{:?}", of("control groups"));
        }

        // Measured, not repeated: what changes from outside shows.
        let init = stack.processes().sandbox(session.as_str()).unwrap().init;
        std::fs::write(format!("/proc/{init}/oom_score_adj"), "777").unwrap();
        let report = stack.client.sandbox(&session).await.unwrap();
        assert!(report.measured.iter().any(|measured| measured.seen.contains("777")), "{report:?}");
        let said = Command::new(stack.executable())
            .args(["explain", "session", session.as_str()])
            .env("CLOISTER_URL", &stack.url)
            .env("CLOISTER_KEY", &stack.key)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&said.stdout).into_owned();
        assert!(said.status.success() && text.contains("holds   capabilities: none"), "{text}");

        // A session that is asleep is not measured, one that does not exist not found.
        cloister_testkit::kill(init);
        until("it has no process", || stack.processes().sandbox(session.as_str()).is_none()).await;
        assert!(!stack.client.sandbox(&session).await.unwrap().live);
        stack.client.delete(&session).await.unwrap();
        assert!(stack.client.sandbox(&session).await.is_err());
    }
}

/// A file system below the workspace that takes no id-mapped mount.
struct Overlay {
    at: PathBuf,
}

impl Overlay {
    fn mount(parts: &Path, at: PathBuf) -> Self {
        for name in ["lower", "upper", "work"] {
            std::fs::create_dir(parts.join(name)).unwrap();
        }
        std::fs::create_dir_all(&at).unwrap();
        let parts = parts.display();
        let options = format!("lowerdir={parts}/lower,upperdir={parts}/upper,workdir={parts}/work");
        let mount = Command::new("mount").args(["-t", "overlay", "overlay", "-o", &options]).arg(&at).status().unwrap();
        assert!(mount.success());
        std::os::unix::fs::chown(&at, Some(1_900_000_000), Some(1_900_000_000)).unwrap();
        Self { at }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.at).status();
    }
}

#[tokio::test]
async fn a_view_over_another_file_system_is_the_owners() {
    if !As::all().contains(&As::Root) {
        return;
    }
    let (folder, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let _overlay = Overlay::mount(parts.path(), folder.path().join("data/workspace/disk"));
    let stack = Stack::on(folder, Options::default()).await;
    let own = if kernel() < TMPFS_MAPS { "tenant" } else { "own" };
    for (write, host_user) in [(json!(["disk", "d"]), "tenant"), (json!(["d"]), own), (json!(["disk/a"]), "tenant")] {
        let record = stack.session_with(json!({"file_access": {"read": [], "write": write}})).await;
        assert_eq!(record.sandbox.unwrap().host_user, host_user, "{write}");
        let inner = write[0].as_str().unwrap();
        let (out, failed) =
            stack.bash(&record.id, &format!("echo in > {inner}/f; stat -c %u {inner}/f; cat {inner}/f")).await;
        assert_eq!((out.as_str(), failed), ("1000\nin\n", false), "{write}");
    }
}
