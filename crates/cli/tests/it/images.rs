//! Programs of a tenant's own: a root folder under a layer for each sandbox.

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use cloister_testkit::{As, Options, Stack};
use serde_json::json;

/// A system without any C library: one static program under many names.
fn image(folder: &Path) {
    let busybox = ["/usr/bin/busybox", "/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    for name in ["bin", "etc", "usr/share", "var/lib"] {
        std::fs::create_dir_all(folder.join(name)).unwrap();
    }
    let target = folder.join("bin/busybox");
    std::fs::copy(busybox.expect("busybox-static is installed"), &target).unwrap();
    std::fs::set_permissions(&target, std::fs::Permissions::from_mode(0o755)).unwrap();
    for name in [
        "sh", "cat", "echo", "ls", "id", "touch", "rm", "mkdir", "tty", "head", "grep", "hostname", "mv", "sleep",
        "ln", "wc", "mount", "cp",
    ] {
        symlink("busybox", folder.join("bin").join(name)).unwrap();
    }
    std::fs::write(folder.join("etc/passwd"), "root:x:0:0:root:/root:/bin/sh\nold:x:1000:1000::/:/bin/sh\n").unwrap();
    std::fs::write(folder.join("etc/release"), "an image\n").unwrap();
    // Links that lead to the host's own files, for whoever follows them.
    symlink("/etc/group-of-the-host", folder.join("etc/group")).unwrap();
    std::fs::write(folder.join("usr/share/data"), "as it was\n").unwrap();
}

async fn stack(who: As) -> Stack {
    let folder = tempfile::Builder::new().prefix("testkit-").tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    image(&folder.path().join("image"));
    std::fs::write(folder.path().join("config.toml"), "[image]\nroot = \"image\"\n[sandbox]\ntmp_bytes = 20000000\n")
        .unwrap();
    if who == As::User && std::fs::metadata(folder.path()).unwrap().uid() == 0 {
        // As the stack runs.
        let status = std::process::Command::new("chown").args(["-R", "54321:54321"]).arg(folder.path()).status();
        assert!(status.unwrap().success());
    }
    let config = Some(std::fs::read_to_string(folder.path().join("config.toml")).unwrap());
    Stack::on(folder, Options { config, as_user: who == As::User, ..Options::default() }).await
}

#[tokio::test]
async fn an_image_runs_instead_of_the_host_and_each_session_changes_a_copy() {
    for who in As::all() {
        let stack = stack(who).await;
        let (one, two) = (stack.session().await, stack.session().await);
        let said = async |session, command: &str| stack.bash(session, command).await.0;
        assert_eq!(said(&one, "cat /etc/release; ls /; ls /usr/bin").await.lines().next(), Some("an image"), "{who:?}");
        assert!(said(&one, "ls /usr/bin/python3 /lib/x86_64-linux-gnu").await.contains("No such file"), "{who:?}");
        assert_eq!(said(&one, "id -un; hostname").await, "agent\ncloister\n", "{who:?}");
        assert!(said(&one, "grep -c 1000 /etc/passwd; ls -l /etc/group").await.starts_with("1\n-rw"), "{who:?}");
        // All of it can be changed, by one session for itself.
        let change = "echo mine > /usr/share/data && rm /etc/release && touch /new /bin/program && mkdir /var/lib/x && mv /bin/hostname /bin/host && echo done";
        assert_eq!(said(&one, change).await, "done\n", "{who:?}");
        assert_eq!(said(&one, "cat /usr/share/data; ls /new").await, "mine\n/new\n", "{who:?}");
        assert_eq!(
            said(&two, "cat /usr/share/data /etc/release; ls /new 2>&1 | wc -l").await,
            "as it was\nan image\n1\n",
            "{who:?}"
        );
        let folder = stack.folder().join("image");
        assert_eq!(std::fs::read_to_string(folder.join("usr/share/data")).unwrap(), "as it was\n");
        assert!(!folder.join("new").exists() && !folder.join("dev").exists() && !folder.join("opt").exists());
        // The rest is as ever: workspace, scope, terminal, confinement.
        assert_eq!(said(&one, "echo hi > f; cat /opt/sandbox/workspace/f").await, "hi\n", "{who:?}");
        assert!(said(&one, "echo x > /opt/sandbox/bin/cloister-agent").await.contains("Read-only"), "{who:?}");
        assert!(said(&one, "touch /opt/sandbox/lib/x").await.contains("Read-only"), "{who:?}");
        assert!(said(&one, "mount -t tmpfs x /tmp").await.contains("ermi"), "{who:?}");
        // What lies on it stays where it is.
        for place in ["/dev", "/proc", "/tmp", "/opt"] {
            let away =
                said(&one, &format!("mv {place} {place}.away; rmdir {place}; test -e {place} && echo there")).await;
            assert!(away.matches("busy").count() == 2 && away.ends_with("there\n"), "{who:?}: {away}");
        }
        assert!(!said(&one, "cat /proc/self/mountinfo").await.contains(&*folder.to_string_lossy()), "{who:?}");
        let turn = stack.play(&one, &[json!({"tool": "bash", "input": {"command": "tty", "pty": true}})]).await;
        assert_eq!(turn.of(cloister_types::event::EventKind::ToolResult)[0].data["content"], "/dev/pts/0\n", "{who:?}");
        let path = format!("/v1/sessions/{one}/sandbox");
        let report = stack.raw("GET", &path, &[], b"").await.json();
        assert!(!report.to_string().contains("\"broken\""), "{who:?}: {report}");
        let record = stack.raw("GET", &format!("/v1/sessions/{one}"), &[], b"").await.json();
        assert!(record.to_string().contains("\"image\":true"), "{who:?}: {record}");
        // What a tool says that every program must load, the next agent does not.
        let seen = "touch /tmp/seen-by-$$";
        assert_eq!(
            said(&one, &format!("{seen}; echo /tmp/pre.so > /etc/ld.so.preload; echo x > /tmp/pre.so; echo set")).await,
            "set\n"
        );
        let errors = said(&one, "echo on").await;
        assert_eq!(errors, "on\n", "{who:?}");
        let agent = stack.processes().sandbox(one.as_str()).map(|sandbox| sandbox.init);
        assert!(agent.is_some(), "{who:?}: the sandbox is the same");
        let loader = std::fs::read(format!("/proc/{}/root/opt/sandbox/lib/loader", agent.unwrap())).unwrap();
        assert!(!loader.windows(18).any(|bytes| bytes == b"/etc/ld.so.preload"), "{who:?}");
        // A layer is memory, and ends.
        let fill = said(&one, "head -c 30000000 /dev/zero > /var/big; wc -c < /var/big").await;
        let size: u64 = fill.lines().last().unwrap().trim().parse().unwrap();
        assert!(size < 20_000_000, "{who:?}: {fill}");
    }
}

#[tokio::test]
async fn a_folder_that_is_no_image_is_refused_with_words() {
    let folder = tempfile::Builder::new().prefix("testkit-").tempdir().unwrap();
    std::fs::create_dir(folder.path().join("image")).unwrap();
    let config = "[image]\nroot = \"image\"\n";
    std::fs::write(folder.path().join("config.toml"), config).unwrap();
    let stack = Stack::on(folder, Options { config: Some(config.into()), ..Options::default() }).await;
    let answer = stack.post("/v1/sessions", &json!({})).await;
    assert_eq!(answer.status, 503);
    let text = answer.json().to_string();
    assert!(text.contains("/bin/sh in the image"), "{text}");
}
