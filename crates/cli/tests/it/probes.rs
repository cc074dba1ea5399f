//! Attacks from inside, as a hostile agent would make them. Every group has a
//! control that must succeed, so that a dead harness cannot pass.

use std::os::linux::net::SocketAddrExt;

use cloister_testkit::{As, Stack, kernel};
use serde_json::Value;

/// Each prints one JSON object: probe name -> outcome. With how many there are
/// at least, so that none can go missing.
const PROBES: [(&str, &str, usize); 2] = [
    ("probes", concat!(include_str!("probes_common.py"), include_str!("probes.py")), 250),
    ("probes_more", concat!(include_str!("probes_common.py"), include_str!("probes_more.py")), 580),
];

/// Errno names that count as "denied".
const DENIED: [&str; 10] = [
    "EPERM",
    "EROFS",
    "EACCES",
    "ENOSYS",
    "ENOTTY",
    "EAFNOSUPPORT",
    "ENOSPC",
    "EPROTONOSUPPORT",
    "ESRCH",
    "ENOPROTOOPT",
];

#[tokio::test]
async fn nothing_gets_out() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        // A canary that must appear nowhere, and a port of the host.
        std::fs::write(stack.folder().join("canary"), "canary-7f3a").unwrap();
        let port = stack.url.rsplit(':').next().unwrap().to_owned();
        // A socket of the host that has no file.
        let name = std::os::unix::net::SocketAddr::from_abstract_name(stack.folder().as_os_str().as_encoded_bytes());
        let _listener = std::os::unix::net::UnixListener::bind_addr(&name.unwrap()).unwrap();
        let everything = stack.session().await;
        stack.bash(&everything, "mkdir -p in/rw/guarded; printf original > in/rw/guarded/kept").await;
        let scope = serde_json::json!({"read": ["in/ro", "in/rw/guarded"], "write": ["in/rw"]});
        let session = stack.session_with(serde_json::json!({"file_access": scope})).await;
        assert_eq!(session.sandbox.as_ref().unwrap().mode, if who == As::Root { "root" } else { "user" });
        for (name, program, least) in PROBES {
            let path = format!("/v1/sessions/{}/files/.memory/{name}.py", session.id);
            assert_eq!(stack.raw("PUT", &path, &[], program.as_bytes()).await.status, 201);
            let command = format!("python3 .memory/{name}.py {port} {}", stack.folder().display());
            let (said, failed) = stack.bash(&session.id, &command).await;
            assert!(!failed, "{said}");
            let all = format!(".sessions/{}/output", session.id);
            let outcomes = match said.find("all of it is in ") {
                // Too long to be shown whole.
                Some(_) => {
                    let folder = std::fs::read_dir(stack.workspace().join(all)).unwrap();
                    let newest = folder.flatten().max_by_key(|file| file.metadata().unwrap().modified().unwrap());
                    std::fs::read_to_string(newest.unwrap().path()).unwrap()
                }
                None => said,
            };
            judge(who, &outcomes, least);
        }
        // The session is none the worse for it, and neither is a new one.
        assert_eq!(stack.bash(&session.id, "echo fine").await.0, "fine\n");
        assert_eq!(stack.bash(&stack.session().await, "echo fine").await.0, "fine\n");
    }
}

fn judge(who: As, said: &str, least: usize) {
    let outcomes: Value =
        serde_json::from_str(said.lines().last().unwrap_or_default()).unwrap_or_else(|_| panic!("{said}"));
    let outcomes = outcomes.as_object().unwrap();
    let mut open = Vec::new();
    for (probe, outcome) in outcomes {
        let outcome = outcome.as_str().unwrap();
        let (kind, _) = probe.split_once(' ').unwrap();
        let held = match kind {
            "absent" => outcome == "ENOENT",
            "denied" => DENIED.contains(&outcome),
            // A call that older kernels do not have.
            "readonly" if probe.contains("fchmodat2") && kernel() < (6, 6) => outcome == "ENOSYS",
            "readonly" => outcome == "EROFS",
            "unreachable" => {
                matches!(outcome, "ENETUNREACH" | "EINVAL" | "EHOSTUNREACH" | "ECONNREFUSED" | "EADDRNOTAVAIL" | "EAI")
                    || DENIED.contains(&outcome)
            }
            "is" | "control" => outcome == "ok",
            _ => false,
        };
        if !held {
            open.push(format!("{probe}: {outcome}"));
        }
    }
    assert!(open.is_empty(), "{who:?}: {} of {} open:\n{}", open.len(), outcomes.len(), open.join("\n"));
    assert!(outcomes.len() >= least, "only {} probes ran", outcomes.len());
}

/// Wherever a process got to that left its root: its mount namespace, and the
/// spawner's, from which that was made, hold nothing of the host.
#[tokio::test]
async fn nothing_of_the_host_is_in_the_mount_namespaces() {
    if kernel() < (6, 15) {
        return;
    }
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let scope = serde_json::json!({"read": ["w/kept"], "write": ["w"]});
        stack.bash(&stack.session().await, "mkdir -p w/kept; echo secret > other").await;
        let session = stack.session_with(serde_json::json!({"file_access": scope})).await.id;
        assert_eq!(stack.bash(&session, "df . 2> /dev/null | wc -l").await.0, "2\n", "{who:?}: programs manage");
        let init = stack.processes().sandbox(session.as_str()).unwrap().init;
        let spawner = stack.processes().spawner().unwrap();
        let table = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        if who == As::Root {
            assert_eq!(table(init), "");
        }
        let known = |path: &str| path == "/" || ["/proc", "/sys/fs/cgroup"].iter().any(|known| path.starts_with(known));
        let table = table(spawner);
        let others: Vec<&str> = table.lines().filter(|line| !line.split(' ').nth(4).is_some_and(known)).collect();
        assert!(others.is_empty() && table.lines().count() > 1, "{who:?}: {others:?}");

        // What somebody finds who enters a namespace: the session's own view at most.
        let enter = |pid: u32, program: &[&str]| {
            let mut command = std::process::Command::new("nsenter");
            command.arg(format!("--mount=/proc/{pid}/ns/mnt")).arg("--wdns=/").arg("--").args(program);
            let output = command.output().unwrap();
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        };
        assert_eq!(enter(std::process::id(), &["/bin/cat", "/proc/self/comm"]), "cat\n", "a control");
        let said = enter(init, &["/bin/cat", "/proc/self/comm"]);
        assert!(said.contains("failed to execute"), "{who:?}: {said}");
    }
}
