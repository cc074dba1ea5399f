//! One sandbox, from a view to its end, with a shell script as the agent.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use cloister_sandbox::confine::Limits;
use cloister_sandbox::host::{Host, HostError};
use cloister_types::link::{Command, Fact, FrameReader, Signal, Spooled, TurnLimits, TurnStart, encode};
use cloister_types::model::{ModelSpec, Wire};
use cloister_types::scope::FileAccess;
use cloister_types::{ResponseId, SessionId, WorkspacePath};

fn host(folder: &std::path::Path, agent: &str) -> Host {
    let path = folder.join("agent");
    std::fs::write(&path, agent).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    Host::start(env!("CARGO_BIN_EXE_cloister-sandbox").as_ref(), &path, &folder.join("workspace"), &folder.join("run"))
        .unwrap()
}

fn start(session: &SessionId) -> TurnStart {
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
    let mut launched = host.launch(&session, &view, &Limits::default()).unwrap();
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
fn a_scope_through_a_link_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), "#!/bin/sh\n");
    let session = SessionId::from_random([1; 6]);
    std::os::unix::fs::symlink("/etc", folder.path().join("workspace/link")).unwrap();
    let refused = host.view(&session, &FileAccess { read: vec!["link".into()], write: vec![] });
    assert!(matches!(refused, Err(HostError::Scope(message)) if message.contains("symbolic link")));
}

#[test]
fn a_missing_executable_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, workspace) = (folder.path().join("nothing"), folder.path().join("workspace"));
    let run = folder.path().join("run");
    let error = Host::start(&missing, &missing, &workspace, &run).err().unwrap();
    assert!(error.to_string().contains("nothing"), "{error}");
    // A missing agent keeps sandboxes from being made, not the server from
    // saying so.
    let host = Host::start(env!("CARGO_BIN_EXE_cloister-sandbox").as_ref(), &missing, &workspace, &run).unwrap();
    let refused = host.view(&SessionId::from_random([1; 6]), &FileAccess::everything());
    assert!(matches!(refused, Err(HostError::Refused { message, .. }) if message.contains("open the agent")));
}
