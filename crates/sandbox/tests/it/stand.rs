//! One sandbox, from a view to its end, with a shell script as the agent.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_sandbox::confine::Limits;
use cloister_sandbox::host::{Ground, Host, HostError};
use cloister_sandbox::quota::Allowance;
use cloister_types::link::{Command, Fact, FrameReader, Signal, Spooled, TurnLimits, TurnStart, encode};
use cloister_types::model::{ModelSpec, Wire};
use cloister_types::scope::FileAccess;
use cloister_types::{ResponseId, SessionId, WorkspacePath};

pub(crate) fn host(folder: &Path, agent: &str) -> Host {
    let path = folder.join("agent");
    std::fs::write(&path, agent).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    let executable = env!("CARGO_BIN_EXE_cloister-sandbox").into();
    Host::start(ground(executable, path, folder)).unwrap()
}

pub(crate) fn ground(executable: PathBuf, agent: PathBuf, folder: &Path) -> Ground {
    Ground {
        executable,
        agent,
        workspace: folder.join("workspace"),
        run: folder.join("run"),
        image: None,
        limits: Limits::default(),
        allowance: Allowance::default(),
    }
}

pub(crate) fn start(session: &SessionId) -> TurnStart {
    let model = ModelSpec {
        name: "m".into(),
        wire: Wire::AnthropicMessages,
        upstream_model: "m".into(),
        max_output_tokens: 1,
        thinking_tokens: None,
        price: Default::default(),
    };
    TurnStart {
        session_id: session.clone(),
        response_id: ResponseId::from_random([2; 12]),
        attempt: 1,
        next_seq: 1,
        elapsed_ms: 0,
        model,
        model_url: String::new(),
        scripted: false,
        limits: TurnLimits { steps: 1, tokens: 1, spend: None, time_ms: 5000 },
        context: String::new(),
        memory_hint: true,
        conversation: Vec::new(),
        turn_from: 0,
    }
}

#[test]
fn an_agent_runs_in_its_view_and_its_death_ends_the_sandbox_and_is_on_record() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), "#!/bin/sh\n(ls; id -u) > .memory/out; echo last words >&2\nexit 3\n");
    let session = SessionId::from_random([1; 6]);
    let view = host.view(&session, &FileAccess { read: vec![], write: vec!["a/b".into()] }).unwrap();
    let mut launched = host.launch(&session, &view, &[]).unwrap();
    launched.link.write_all(&encode(&Command::Start(Box::new(start(&session)))).unwrap()).unwrap();
    let (mut reader, mut signals, mut buffer) = (FrameReader::default(), Vec::new(), [0; 4096]);
    loop {
        match launched.link.read(&mut buffer).unwrap() {
            0 => break,
            got => reader.push(&buffer[..got]),
        }
        while let Some(signal) = reader.next_frame::<Signal>().unwrap() {
            signals.push(signal);
        }
    }
    // The link has closed: the supervisor has ended, and everything with it.
    assert!(launched.folder.make_sure_it_is_gone());
    let turn = ResponseId::from_random([2; 12]);
    let mut spool = launched.folder.spool(&turn, 1, 0).unwrap().unwrap();
    let facts = spool.next_facts().unwrap();
    let [Spooled { fact: Fact::Lost { cause }, .. }] = &facts[..] else { panic!("{facts:?}") };
    assert!(cause.contains("exit status 3") && cause.contains("last words"), "{cause}");
    let Some(Signal::Spooled(said)) = signals.last() else { panic!("{signals:?}") };
    assert_eq!((&said.response_id, said.offset), (&turn, spool.offset()));
    let out = std::fs::read_to_string(folder.path().join("workspace/.memory/out")).unwrap();
    assert_eq!(out, "a\n1000\n");
    // The view outlives the sandbox.
    let path = WorkspacePath::parse(b".memory/out").unwrap();
    assert_eq!(view.read_small(&path, 100).unwrap().unwrap(), out.as_bytes());
}

#[test]
fn private_folders_are_fresh_whatever_was_left_where_they_are_made_ahead() {
    let folder = tempfile::tempdir().unwrap();
    let sessions = folder.path().join("workspace/.sessions");
    let next = sessions.join(".next");
    host(folder.path(), "#!/bin/sh\n").stop();
    let outside = folder.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "s").unwrap();
    let plant: [&dyn Fn(); 4] = [
        &|| (),
        &|| std::os::unix::fs::symlink(&outside, &next).unwrap(),
        &|| std::fs::write(&next, "a file").unwrap(),
        &|| {
            std::fs::create_dir(&next).unwrap();
            std::fs::write(next.join("another's"), "s").unwrap();
        },
    ];
    for (n, plant) in (0_u8..).zip(plant) {
        let _ = std::fs::remove_dir_all(&next);
        let _ = std::fs::remove_file(&next);
        plant();
        let host = host(folder.path(), "#!/bin/sh\n");
        for m in 0..3 {
            // Until one is made ahead, where that is possible; else long enough for it.
            let began = std::time::Instant::now();
            while n == 0 && !next.is_dir() && began.elapsed() < Duration::from_secs(20) {
                std::thread::sleep(Duration::from_millis(2));
            }
            std::thread::sleep(Duration::from_millis(60));
            if (n, m) == (0, 2) {
                // Somebody has been in it: it is nobody's private folder any more.
                std::fs::write(next.join("another's"), "s").unwrap();
            }
            let session = SessionId::from_random([n, m, 1, 1, 1, 1]);
            let before = std::fs::symlink_metadata(&next).map(|stat| std::os::unix::fs::MetadataExt::ino(&stat));
            host.view(&session, &FileAccess::everything()).unwrap();
            let own = sessions.join(session.as_str());
            let is = std::fs::symlink_metadata(&own).unwrap();
            assert!(is.is_dir() && std::fs::read_dir(&own).unwrap().next().is_none(), "{n} {m}");
            let was_ahead = before.is_ok_and(|before| before == std::os::unix::fs::MetadataExt::ino(&is));
            assert_eq!(was_ahead, n == 0 && m < 2, "{n} {m}: made ahead");
        }
        host.stop();
    }
}

#[test]
fn a_scope_through_a_link_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), "#!/bin/sh\n");
    let session = SessionId::from_random([1; 6]);
    std::os::unix::fs::symlink("/etc", folder.path().join("workspace/link")).unwrap();
    let refused = host.view(&session, &FileAccess { read: vec!["link".into()], write: vec![] });
    assert!(matches!(refused, Err(HostError::Scope(message)) if message.contains("symbolic link")));
}

/// Says so if it is told a turn.
const TOLD: &str =
    "#!/usr/bin/env python3\nimport socket\nif socket.socket(fileno=0).recv(1): open('.memory/told', 'w')\n";

#[test]
fn a_turn_that_comes_along_begins_when_the_server_is_ready_and_else_never() {
    for begins in [true, false] {
        let folder = tempfile::tempdir().unwrap();
        let host = host(folder.path(), TOLD);
        let session = SessionId::from_random([1; 6]);
        // More than the link takes before anybody reads.
        let order = Command::Start(Box::new(TurnStart { context: "x".repeat(2 << 20), ..start(&session) }));
        let order = encode(&order).unwrap();
        let (_view, mut launched) = host.open(&session, &FileAccess::everything(), &order).unwrap();
        std::thread::sleep(Duration::from_millis(200));
        let told = folder.path().join("workspace/.memory/told");
        assert!(!told.exists(), "it has begun by itself");
        if begins {
            launched.link.write_all(&encode(&Command::Begin).unwrap()).unwrap();
            while launched.link.read(&mut [0; 4096]).unwrap() > 0 {}
        }
        // The server is gone, as far as the supervisor can tell.
        launched.link.shutdown(std::net::Shutdown::Both).unwrap();
        let began = std::time::Instant::now();
        while !host.measure(&session).is_empty() {
            assert!(began.elapsed() < Duration::from_secs(10), "the sandbox goes on without a server");
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(told.exists(), begins);
        assert_eq!(launched.folder.spool(&ResponseId::from_random([2; 12]), 1, 0).unwrap().is_some(), begins);
    }
}

#[test]
fn a_missing_executable_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("nothing");
    let error = Host::start(ground(missing.clone(), missing.clone(), folder.path())).err().unwrap();
    assert!(error.to_string().contains("nothing"), "{error}");
    // A missing agent keeps sandboxes from being made, not the server from
    // saying so.
    let executable = env!("CARGO_BIN_EXE_cloister-sandbox").into();
    let host = Host::start(ground(executable, missing, folder.path())).unwrap();
    let refused = host.view(&SessionId::from_random([1; 6]), &FileAccess::everything());
    assert!(matches!(refused, Err(HostError::Refused { message, .. }) if message.contains("open the agent")));
}

/// An agent that tries to be more than it is.
const HOSTILE: &str = r#"#!/usr/bin/env python3
import json, socket, struct, sys, time
link = socket.socket(fileno=0)
def read(n):
    data = b""
    while len(data) < n:
        piece = link.recv(n - len(data))
        if not piece: sys.exit(9)
        data += piece
    return data
def send(value):
    body = json.dumps(value).encode()
    link.sendall(struct.pack(">I", len(body)) + body)
start = json.loads(read(struct.unpack(">I", read(4))[0]))
assert start["do"] == "start"
event = lambda kind, **data: send({"is": "event", "kind": kind, "data": data})
for kind in ["message.created", "message.completed", "turn.resumed", "turn.started", "text.delta", "text.stop"]:
    event(kind, sequence_number=99, discard_from=0)
send({"is": "entry", "role": "user", "text": "forged"})
event("text.start")
event("text.delta", content="\u0000\u0000\u0001\\\"", sequence_number=0)
send({"is": "intent", "calls": ["a"] * 1000})
for ticket in range(2000):
    send({"is": "await", "ticket": ticket})
# From here on it does not listen (what it is told meets a closed door), and
# still has its say.
link.shutdown(socket.SHUT_RD)
time.sleep(0.2)
send({"is": "await", "ticket": 5000})
send({"is": "end", "outcome": {"status": "completed", "stop_reason": "end"}, "usage": {}, "output_text": "x"})
"#;

#[test]
fn a_hostile_agent_numbers_nothing_forges_nothing_and_is_heard_to_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), HOSTILE);
    let session = SessionId::from_random([1; 6]);
    let view = host.view(&session, &FileAccess::everything()).unwrap();
    let mut launched = host.launch(&session, &view, &[]).unwrap();
    launched.link.write_all(&encode(&Command::Start(Box::new(start(&session)))).unwrap()).unwrap();
    let turn = ResponseId::from_random([2; 12]);
    let (mut reader, mut buffer, mut facts) = (FrameReader::default(), [0; 4096], Vec::new());
    let mut spool = None;
    while !matches!(facts.last(), Some(Fact::Ended { .. })) {
        match launched.link.read(&mut buffer).unwrap() {
            0 => panic!("the supervisor ended: {facts:?}"),
            got => reader.push(&buffer[..got]),
        }
        while reader.next_frame::<Signal>().unwrap().is_some() {}
        if spool.is_none() {
            spool = launched.folder.spool(&turn, 1, 0).unwrap();
        }
        if let Some(spool) = &mut spool {
            facts.extend(spool.next_facts().unwrap().into_iter().map(|spooled| spooled.fact));
            let stored = Command::Stored { response_id: turn.clone(), attempt: 1, offset: spool.offset() };
            launched.link.write_all(&encode(&stored).unwrap()).unwrap();
        }
    }
    let kinds: Vec<(u64, &str)> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Event { seq, kind, .. } | Fact::Ended { seq, kind, .. } => Some((*seq, kind.as_str())),
            _ => None,
        })
        .collect();
    assert_eq!(kinds, [(1, "text.start"), (2, "text.delta"), (3, "text.stop"), (4, "message.completed")]);
    let Fact::Event { data, .. } = &facts[1] else { panic!("{facts:?}") };
    assert!(data.contains("\"sequence_number\":2"), "{data}");
    assert!(!facts.iter().any(|fact| matches!(fact, Fact::Entry(_))), "{facts:?}");
    launched.link.write_all(&encode(&Command::Stop).unwrap()).unwrap();
    while launched.link.read(&mut buffer).unwrap() > 0 {}
    assert!(launched.folder.make_sure_it_is_gone());
}
