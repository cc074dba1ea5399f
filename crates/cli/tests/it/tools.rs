//! The agent's tools, in the sandbox.

use cloister_testkit::{As, Stack, Turn};
use cloister_types::event::EventKind;
use serde_json::{Value, json};

async fn results(stack: &Stack, lines: &[Value]) -> Vec<(String, bool)> {
    let session = stack.session().await;
    let turn = stack.play(&session, lines).await;
    assert_eq!(turn.end(), EventKind::MessageCompleted, "{:?}", turn.events.last());
    let results = turn.of(EventKind::ToolResult);
    results
        .iter()
        .map(|event| (event.data["content"].as_str().unwrap().to_owned(), event.data["is_error"] == true))
        .collect()
}

fn call(tool: &str, input: Value) -> Value {
    json!({"tool": tool, "input": input})
}

fn bash(command: &str) -> Value {
    call("bash", json!({"command": command}))
}

#[tokio::test]
async fn a_program_gets_a_terminal_where_asked() {
    for who in As::all() {
        let stack = Stack::start_as(who).await;
        let pty = |command: &str| call("bash", json!({"command": command, "pty": true}));
        let lines = [
            bash("tty; test -t 1"),
            pty("tty; stty size; echo $TERM; test -t 0 && test -t 1 && test -t 2"),
            call(
                "bash",
                json!({"command": "read -p 'name? ' name; echo \"hello $name\"; cat", "pty": true, "input": "you\nmore\n"}),
            ),
            pty("cat; exit 3"),
            pty("echo for all > /dev/tty; ps -o pid=,sid=,tpgid= $$ | awk '{print ($1==$2 && $2==$3)}'"),
            call("bash", json!({"command": "echo on; sleep 60", "pty": true, "timeout": 0.3})),
            pty("setsid sleep 60 & sleep 0.1; echo left"),
            call("bash", json!({"command": "cat", "input": "x"})),
            call("bash", json!({"command": "stty -echo; wc -c", "pty": true, "input": "hello"})),
            call(
                "bash",
                json!({"command": "stty -echo; sleep 0.2; wc -c", "pty": true, "input": "line of text\n".repeat(10_000)}),
            ),
            call("bash", json!({"command": "cat", "pty": true, "input": "x".repeat(5000)})),
            pty("seq 1 20000 | tail -1; python3 -c 'import pty; pty.spawn([\"tty\"])'"),
        ];
        // One that lets go of its terminal before it ends is not hung up on.
        let closing: Vec<_> = (0..60).map(|_| pty("exec cat /dev/null")).collect();
        assert!(
            results(&stack, &closing).await.iter().all(|(said, failed)| !failed && said == "(no output)"),
            "{who:?}"
        );
        let got = results(&stack, &lines).await;
        assert_eq!(got[0], ("not a tty\n[exit status 1]".into(), true), "{who:?}");
        assert_eq!(got[1], ("/dev/pts/0\n40 120\nxterm-256color\n".into(), false), "{who:?}");
        assert!(got[2].0.contains("hello you") && got[2].0.ends_with("more\n"), "{who:?}: {:?}", got[2]);
        assert_eq!(got[3], ("[exit status 3]".into(), true), "{who:?}");
        assert_eq!(got[4], ("for all\n1\n".into(), false), "{who:?}");
        assert!(got[5].1 && got[5].0.starts_with("on\n") && got[5].0.contains("timed out"), "{who:?}: {:?}", got[5]);
        assert!(!got[6].1 && got[6].0.starts_with("left\n"), "{who:?}: {:?}", got[6]);
        assert!(got[7].1 && got[7].0.contains("input needs pty"), "{who:?}: {:?}", got[7]);
        assert!(!got[8].1 && got[8].0.ends_with("5\n"), "{who:?}: {:?}", got[8]);
        assert!(!got[9].1 && got[9].0.ends_with("130000\n"), "{who:?}: {:?}", got[9].0.len());
        assert!(got[10].1 && got[10].0.contains("at most 4095"), "{who:?}: {:?}", got[10]);
        assert!(!got[11].1 && got[11].0.starts_with("20000\n/dev/pts/"), "{who:?}: {:?}", got[11]);
    }
}

#[tokio::test]
async fn bash_tells_what_happened() {
    let stack = Stack::start().await;
    let lines = [
        bash("echo out; echo err >&2; echo out again"),
        bash("exit 7"),
        bash("kill -9 $$"),
        bash("true"),
        call("bash", json!({"command": "echo before; sleep 60", "timeout": 0.3})),
        bash("seq 1 100000"),
        bash("sleep 60 & echo started"),
        bash("printf 'caf\\303\\251 \\377'"),
        call("bash", json!({"cmd": "x"})),
        bash("cat"),
        bash("pwd; echo $HOME; id -un"),
    ];
    let got = results(&stack, &lines).await;
    assert_eq!(got[0], ("out\nerr\nout again\n".into(), false));
    assert_eq!(got[1], ("[exit status 7]".into(), true));
    assert_eq!(got[2], ("[killed by signal 9]".into(), true));
    assert_eq!(got[3], ("(no output)".into(), false));
    assert!(got[4].1 && got[4].0.starts_with("before\n") && got[4].0.contains("timed out after 0.3 s"), "{:?}", got[4]);
    let long = &got[5].0;
    assert!(
        long.starts_with("1\n2\n")
            && long.ends_with("99999\n100000\n")
            && long.contains("left out")
            && long.len() < 33_000
    );
    let file = long.split("all of it is in ").nth(1).unwrap().split(' ').next().unwrap();
    assert!(file.starts_with("/opt/sandbox/workspace/.sessions/sess_"), "{file}");
    let host = stack.workspace().join(file.trim_start_matches("/opt/sandbox/workspace/"));
    assert_eq!(std::fs::read_to_string(host).unwrap().lines().count(), 100_000);
    assert!(
        !got[6].1 && got[6].0.contains("started") && got[6].0.contains("1 process(es) left running"),
        "{:?}",
        got[6]
    );
    assert_eq!(got[7].0, "caf\u{e9} \u{fffd}");
    assert!(got[8].1 && got[8].0.contains("command"), "{:?}", got[8]);
    assert_eq!(got[9], ("(no output)".into(), false));
    assert_eq!(got[10].0, "/opt/sandbox/workspace\n/tmp/home\nagent\n");
}

#[tokio::test]
async fn the_file_tools() {
    let stack = Stack::start().await;
    let lines = [
        call("write_file", json!({"path": "src/deep/a.txt", "content": "one\ntwo\nthree\n"})),
        call("read_file", json!({"path": "src/deep/a.txt"})),
        call("read_file", json!({"path": "/opt/sandbox/workspace/src/deep/a.txt", "offset": 2, "limit": 1})),
        call("edit_file", json!({"path": "src/deep/a.txt", "old": "two", "new": "2"})),
        call("edit_file", json!({"path": "src/deep/a.txt", "old": "two", "new": "2"})),
        call("list_files", json!({"path": "src", "recursive": true})),
        call("search_files", json!({"pattern": "^t.*e$", "glob": "*.txt"})),
        call("read_file", json!({"path": "nope.txt"})),
        call("read_file", json!({"path": "/etc/shadow"})),
        call("write_file", json!({"path": "/etc/x", "content": ""})),
        bash("head -c 100 /dev/zero > zeros; mkfifo fifo"),
        call("read_file", json!({"path": "zeros"})),
        call("read_file", json!({"path": "fifo"})),
        call("search_files", json!({"pattern": "("})),
        call("read_file", json!({"path": 3})),
        call("dance", json!({})),
    ];
    let got = results(&stack, &lines).await;
    assert_eq!(got[1], ("1\tone\n2\ttwo\n3\tthree\n".into(), false));
    assert!(got[2].0.starts_with("2\ttwo\n[more follows"), "{:?}", got[2]);
    assert!(!got[3].1 && got[4].1, "{got:?}");
    assert_eq!(got[5].0, "dir\t-\tdeep/\nfile\t12\tdeep/a.txt\n");
    assert_eq!(got[6].0, "src/deep/a.txt:3:three\n");
    assert!(got[7].1 && got[7].0.contains("ENOENT") && got[8].1 && got[8].0.contains("ENOENT"));
    assert!(got[9].1 && got[9].0.contains("EROFS"), "{:?}", got[9]);
    assert!(got[11].0.contains("binary file of 100 bytes"));
    for index in [12, 13, 14, 15] {
        assert!(got[index].1, "{:?}", got[index]);
    }
    assert!(got[15].0.contains("no tool named"));
}

#[tokio::test]
async fn context_files_reach_the_prompt_of_later_sessions_in_order() {
    // A provider that shows what it was sent.
    let end = "data: {\"type\":\"message_stop\"}\n\n";
    let provider = cloister_testkit::Provider::start(vec![cloister_testkit::Reply::stream(end)]).await;
    let config = format!(
        "[[model]]\nname = 'spy'\nwire = 'anthropic-messages'\nbase_url = '{}'\nallow_private = true\ndefault = true\n",
        provider.url
    );
    let stack = Stack::with(cloister_testkit::Options { config: Some(config), ..Default::default() }).await;
    let before = stack.session().await;
    for (name, body) in [
        ("20-style.md", "Be brief."),
        ("10-role.md", "You are the librarian."),
        ("notes.txt", "not markdown"),
        ("UPPER.MD", "no"),
    ] {
        stack.client.upload(&before, &format!(".pokee/{name}"), body.to_owned()).await.unwrap();
    }
    stack.client.upload(&before, ".pokee/bad.md", vec![0xff_u8, 0xfe]).await.unwrap();
    let session = stack.session_with(json!({"file_access": {"read": []}})).await.id;
    for id in [&before, &session] {
        Turn::collect(stack.client.message(id, "hello", None).await.unwrap()).await;
    }
    let received = provider.received();
    let system = |index: usize| received[index].body["system"][0]["text"].as_str().unwrap().to_owned();
    assert!(!system(0).contains("librarian"), "a running session keeps its prompt");
    let text = system(1);
    let role = text.find("## 10-role.md\n\nYou are the librarian.").unwrap();
    let style = text.find("## 20-style.md\n\nBe brief.").unwrap();
    assert!(role < style && !text.contains("not markdown") && !text.contains("UPPER") && !text.contains("bad.md"));
    assert!(text.contains(".memory/MEMORY.md"));
}
