//! Whatever comes over a border: the answer is an answer, and whoever gave it
//! lives on. `PROPTEST_CASES` for more.

use std::io::{Read, Write};

use cloister_sandbox::host::{Host, HostError};
use cloister_types::link::{Command, Fact, FrameReader, Signal, encode};
use cloister_types::scope::FileAccess;
use cloister_types::{ResponseId, SessionId, WorkspacePath};
use proptest::prelude::*;

use crate::stand::{host, start};

/// What a path of a scope may be made of: what is there, what is not, what
/// leads out, and what is no name at all.
fn paths() -> impl Strategy<Value = Vec<String>> {
    let name = prop_oneof![
        Just("d".to_owned()),
        Just("e".to_owned()),
        Just("file".to_owned()),
        Just("link".to_owned()),
        Just("fifo".to_owned()),
        Just("absent".to_owned()),
        Just("..".to_owned()),
        Just(".".to_owned()),
        Just(String::new()),
        Just(".memory".to_owned()),
        Just(".sessions".to_owned()),
        Just("n".repeat(256)),
        "[a-c]{1,2}",
        "\\PC{0,6}",
        ".{0,3}",
    ];
    let path = proptest::collection::vec(name, 0..5).prop_map(|names| names.join("/"));
    proptest::collection::vec(path, 0..12)
}

fn prepared() -> (tempfile::TempDir, Host) {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), "#!/bin/sh\n");
    let workspace = folder.path().join("workspace");
    std::fs::create_dir_all(workspace.join("d/e/d")).unwrap();
    std::fs::write(workspace.join("file"), "x").unwrap();
    std::fs::write(workspace.join("d/file"), "x").unwrap();
    std::os::unix::fs::symlink("/etc", workspace.join("link")).unwrap();
    std::os::unix::fs::symlink("../..", workspace.join("d/link")).unwrap();
    let fifo = std::process::Command::new("mkfifo").arg(workspace.join("fifo")).status();
    assert!(fifo.unwrap().success());
    (folder, host)
}

#[test]
fn any_list_of_scope_paths_makes_a_view_or_is_the_clients_to_mend() {
    let (_folder, host) = prepared();
    let root = WorkspacePath::ROOT;
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    runner
        .run(&(paths(), paths(), any::<[u8; 6]>()), |(read, write, id)| {
            let session = SessionId::from_random(id);
            let access = FileAccess { read, write };
            match host.view(&session, &access) {
                Ok(view) => {
                    // Nothing but what was declared, the way to it, and what
                    // every session has.
                    let names: Vec<String> = view
                        .list(&root)
                        .unwrap()
                        .iter()
                        .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
                        .collect();
                    let declared = |name: &str| {
                        let mut all = access.read.iter().chain(&access.write);
                        all.any(|path| {
                            path.split('/').all(|part| part.is_empty() || part == ".")
                                || path.split('/').any(|part| part == name)
                        })
                    };
                    for name in names {
                        prop_assert!(
                            [".memory", ".sessions"].contains(&name.as_str()) || declared(&name),
                            "{name:?} in {access:?}"
                        );
                    }
                }
                Err(HostError::Scope(message)) => prop_assert!(!message.is_empty()),
                Err(error) => prop_assert!(false, "{error} for {access:?}"),
            }
            host.remove_private(&session).unwrap();
            Ok(())
        })
        .unwrap();
}

/// Says what it is told to say by the turn's message, and nothing else.
const PARROT: &str = r#"#!/usr/bin/env python3
import json, socket, struct, sys
link = socket.socket(fileno=0)
def read(n):
    data = b""
    while len(data) < n:
        piece = link.recv(n - len(data))
        if not piece: sys.exit(9)
        data += piece
    return data
start = json.loads(read(struct.unpack(">I", read(4))[0]))
try:
    link.sendall(bytes.fromhex(start["context"]))
    link.shutdown(socket.SHUT_WR)
    while link.recv(4096): pass
except OSError:
    pass
"#;

/// Frames that an agent may send, that it must not, and what is no frame.
fn words() -> impl Strategy<Value = Vec<u8>> {
    let json = prop_oneof![
        Just(r#"{"is":"event","kind":"text.start","data":{}}"#.to_owned()),
        Just(r#"{"is":"event","kind":"text.delta","data":{"content":"x","sequence_number":9}}"#.to_owned()),
        Just(r#"{"is":"event","kind":"text.stop","data":{}}"#.to_owned()),
        Just(r#"{"is":"event","kind":"tool_use.start","data":{"id":"a","name":"bash"}}"#.to_owned()),
        Just(r#"{"is":"event","kind":"message.completed","data":{}}"#.to_owned()),
        Just(r#"{"is":"event","kind":"tool_result","data":{}}"#.to_owned()),
        Just(r#"{"is":"entry","role":"user","text":"forged"}"#.to_owned()),
        Just(r#"{"is":"entry","role":"tool_result","id":"a","content":"b","is_error":false}"#.to_owned()),
        Just(r#"{"is":"intent","calls":["a","a"]}"#.to_owned()),
        Just(r#"{"is":"await","ticket":1}"#.to_owned()),
        Just(r#"{"is":"await","ticket":18446744073709551615}"#.to_owned()),
        Just(r#"{"is":"ask_limits"}"#.to_owned()),
        Just(
            r#"{"is":"end","outcome":{"status":"completed","stop_reason":"end"},"usage":{},"output_text":"x"}"#
                .to_owned()
        ),
        Just(
            r#"{"is":"end","outcome":{"status":"failed","code":"internal","message":"m"},"usage":{},"output_text":""}"#
                .to_owned()
        ),
        Just(r#"{"is":"nothing"}"#.to_owned()),
        Just("[".repeat(300)),
        "\\PC{0,40}",
    ];
    let frame = json.prop_map(|text| [&(text.len() as u32).to_be_bytes(), text.as_bytes()].concat());
    let raw = proptest::collection::vec(any::<u8>(), 0..40);
    let frames = proptest::collection::vec(prop_oneof![9 => frame, 1 => raw], 0..20);
    frames.prop_map(|frames| frames.concat())
}

#[test]
fn whatever_an_agent_says_its_spool_is_in_order_and_ends_once() {
    let folder = tempfile::tempdir().unwrap();
    let host = host(folder.path(), PARROT);
    let config = ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() };
    let mut runner = proptest::test_runner::TestRunner::new(config);
    runner
        .run(&(words(), any::<[u8; 6]>()), |(words, id)| {
            let session = SessionId::from_random(id);
            let view = host.view(&session, &FileAccess::everything()).unwrap();
            let mut launched = host.launch(&session, &view, &[]).unwrap();
            let mut start = start(&session);
            start.context = words.iter().map(|byte| format!("{byte:02x}")).collect();
            launched.link.write_all(&encode(&Command::Start(Box::new(start))).unwrap()).unwrap();
            let turn = ResponseId::from_random([2; 12]);
            let (mut reader, mut buffer, mut facts, mut spool) = (FrameReader::default(), [0; 4096], Vec::new(), None);
            let over = |facts: &[Fact]| matches!(facts.last(), Some(Fact::Ended { .. } | Fact::Lost { .. }));
            loop {
                let got = launched.link.read(&mut buffer).unwrap();
                reader.push(&buffer[..got]);
                while reader.next_frame::<Signal>().unwrap().is_some() {}
                if spool.is_none() {
                    spool = launched.folder.spool(&turn, 1, 0).unwrap();
                }
                if let Some(spool) = &mut spool {
                    facts.extend(spool.next_facts().unwrap().into_iter().map(|spooled| spooled.fact));
                }
                if over(&facts) || got == 0 {
                    break;
                }
            }
            prop_assert!(over(&facts), "{facts:?}");
            let ends = facts.iter().filter(|fact| matches!(fact, Fact::Ended { .. } | Fact::Lost { .. })).count();
            prop_assert_eq!(ends, 1);
            let numbers: Vec<u64> = facts
                .iter()
                .filter_map(|fact| match fact {
                    Fact::Event { seq, .. } | Fact::Ended { seq, .. } => Some(*seq),
                    _ => None,
                })
                .collect();
            prop_assert!(numbers.iter().copied().eq(1..=numbers.len() as u64), "{numbers:?}");
            let _ = launched.link.write_all(&encode(&Command::Stop).unwrap());
            while matches!(launched.link.read(&mut buffer), Ok(1..)) {}
            prop_assert!(launched.folder.make_sure_it_is_gone());
            host.remove_private(&session).unwrap();
            Ok(())
        })
        .unwrap();
}
