//! The command line: data on standard output, talk on standard error, the
//! next step last.

use std::process::{Command, Output};

use cloister_testkit::{Stack, script};
use serde_json::{Value, json};

fn run(stack: &Stack, arguments: &[&str]) -> Output {
    let mut command = Command::new(stack.executable());
    command
        .args(arguments)
        .env_clear()
        .env("CLOISTER_URL", &stack.url)
        .env("CLOISTER_KEY", &stack.key)
        .output()
        .unwrap()
}

fn out(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn talk(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn a_day_at_the_command_line() {
    let stack = Stack::start().await;
    let message = script(&[
        json!({"say": "Hello. "}),
        json!({"tool": "bash", "input": {"command": "echo made > file.txt"}}),
        json!({"say": "Bye."}),
    ]);
    let ran = run(&stack, &["run", &message]);
    assert!(ran.status.success(), "{}", talk(&ran));
    assert_eq!(out(&ran), "Hello. \nBye.\n");
    let said = talk(&ran);
    assert!(said.contains("> bash echo made > file.txt") && !said.contains('\x1b'), "{said}");
    let last = said.lines().last().unwrap();
    let id = last.rsplit(' ').next().unwrap().to_owned();
    assert!(last.starts_with("next: cloister files ls sess_"), "{last}");

    let listed = run(&stack, &["files", "ls", &id]);
    assert!(out(&listed).contains("file.txt"));
    assert_eq!(out(&run(&stack, &["files", "get", &id, "file.txt"])), "made\n");
    let local = stack.folder().join("local.txt");
    std::fs::write(&local, "from here").unwrap();
    assert!(run(&stack, &["files", "put", &id, local.to_str().unwrap(), "deep/er.txt"]).status.success());
    let back = stack.folder().join("back.txt");
    assert!(run(&stack, &["files", "get", &id, "deep/er.txt", back.to_str().unwrap()]).status.success());
    assert_eq!(std::fs::read_to_string(back).unwrap(), "from here");
    assert!(run(&stack, &["files", "rm", &id, "deep/er.txt"]).status.success());

    let attached = run(&stack, &["session", "attach", &id]);
    assert_eq!(out(&attached), out(&ran));
    let raw = run(&stack, &["--json", "session", "attach", &id]);
    let events: Vec<Value> = out(&raw).lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(events.last().unwrap()["status"], "completed");

    let new = run(&stack, &["session", "new", "--write", "x"]);
    let other = out(&new).trim().to_owned();
    let sent = run(&stack, &["session", "send", &other, &script(&[json!({"say": "hi"})]), "--idempotency-key", "k"]);
    assert_eq!(out(&sent), "hi\n");
    assert_eq!(out(&run(&stack, &["session", "ls"])).lines().count(), 2);
    let shown: Value = serde_json::from_str(&out(&run(&stack, &["--json", "session", "show", &other]))).unwrap();
    assert_eq!(shown["file_access"]["write"], json!(["x"]));
    assert!(run(&stack, &["session", "rm", &other]).status.success());
    let gone = run(&stack, &["session", "show", &other]);
    assert_eq!(gone.status.code(), Some(1));
    assert!(
        talk(&gone).contains("no such session (not_found)")
            && talk(&gone).lines().last().unwrap() == "next: cloister explain not_found"
    );
    assert!(out(&run(&stack, &["session", "rm", "--idle"])).contains("destroyed 1"));

    let failed = run(&stack, &["run", &script(&[json!({"fail": 400}), json!({"say": "x"})])]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(talk(&failed).contains("error:"), "{}", talk(&failed));
}

/// Machines that lack something, made with a user namespace of the test's own.
#[tokio::test]
async fn what_a_machine_lacks_is_named_with_its_remedy() {
    let stack = Stack::start().await;
    let program = stack.executable();
    let inside = |script: &str| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c", script]).env("CLOISTER", &program);
        command.env("DATA", stack.folder().join("elsewhere")).output().unwrap()
    };
    // Root of a container, with no other user: works, with less.
    let contained = inside("exec $CLOISTER doctor");
    assert!(contained.status.success(), "{}{}", out(&contained), talk(&contained));
    assert!(out(&contained).contains("weaker  host users: user 0"), "{}", out(&contained));
    // No namespaces left: said by the doctor, and by creation with 503.
    let none = "echo 0 > /proc/sys/user/max_user_namespaces";
    let doctor = inside(&format!("{none}; exec $CLOISTER doctor"));
    assert!(
        !doctor.status.success()
            && out(&doctor).contains("MISSING")
            && out(&doctor).contains("user.max_user_namespaces")
    );
    let create = "$CLOISTER --data $DATA dev --listen 127.0.0.1:0 --ready-file $DATA.ready & server=$!; \
                  n=0; while [ ! -f $DATA.ready ] && [ $n -lt 200 ]; do sleep 0.05; n=$((n + 1)); done; $CLOISTER --data $DATA session new; kill $server; wait";
    let refused = inside(&format!("{none}; {create}"));
    let said = talk(&refused);
    assert!(
        said.contains("(sandbox_unavailable)") && said.contains("hint: ") && said.contains("max_user_namespaces"),
        "{said}"
    );
}

#[tokio::test]
async fn what_needs_no_server() {
    let stack = Stack::start().await;
    let explained = run(&stack, &["explain", "session_busy"]);
    assert!(out(&explained).contains("one turn at a time"));
    assert!(out(&run(&stack, &["explain"])).lines().count() > 20);
    assert_eq!(run(&stack, &["explain", "nonsense"]).status.code(), Some(2));
    let doctor = run(&stack, &["doctor"]);
    assert!(doctor.status.success(), "{}", out(&doctor));
    assert!(out(&doctor).contains("sandbox (user, mount, pid, net, ipc, uts, cgroup namespaces"));
    let findings: Value = serde_json::from_str(&out(&run(&stack, &["--json", "doctor"]))).unwrap();
    assert!(findings.as_array().unwrap().iter().all(|finding| finding["verdict"] != "missing"));
    let shown = out(&run(&stack, &["config", "show"]));
    assert!(shown.contains("live_sessions") && shown.contains("[sandbox]"));
    assert!(!run(&stack, &["session", "show", "not-an-id"]).status.success());
    let unknown = Command::new(stack.executable())
        .args(["session", "ls"])
        .env_clear()
        .env("HOME", stack.folder())
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("cloister dev"));
}
