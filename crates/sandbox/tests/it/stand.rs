use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;

use cloister_sandbox::confine::Limits;
use cloister_sandbox::host::Host;
use cloister_types::SessionId;
use cloister_types::link::{Command, Fact, FrameReader, TurnLimits, TurnStart, encode};
use cloister_types::model::{ModelSpec, Wire};
use cloister_types::scope::FileAccess;

#[test]
fn smoke() {
    let dir = tempfile::tempdir().unwrap();
    let agent = dir.path().join("agent");
    std::fs::write(&agent, "#!/bin/sh\n(id; ls -la . / /dev /etc /proc/self/fd; cat /proc/self/status /proc/self/mountinfo; cat /proc/self/cgroup; ls -la /opt/sandbox/bin; touch x; ls -la) >/tmp/out 2>&1\ncat /tmp/out > .memory/out; exit 3\n").unwrap();
    std::fs::set_permissions(&agent, std::fs::Permissions::from_mode(0o755)).unwrap();
    let workspace = dir.path().join("workspace");
    let host = Host::start(env!("CARGO_BIN_EXE_cloister-sandbox").as_ref(), &agent, &workspace).unwrap();
    let session = SessionId::from_random([1; 6]);
    let view = host.view(&session, &FileAccess { read: vec![], write: vec!["a/b".into()] }).unwrap();
    let t = std::time::Instant::now();
    let mut launched = host.launch(&session, &view, &Limits::default()).unwrap();
    eprintln!("launch {:?} {:?}", t.elapsed(), launched.enforced);
    let start = TurnStart {
        session_id: session.clone(),
        response_id: cloister_types::ResponseId::from_random([2; 12]),
        next_seq: 1,
        model: ModelSpec {
            name: "m".into(),
            wire: Wire::AnthropicMessages,
            upstream_model: "m".into(),
            max_output_tokens: 1,
            thinking_tokens: None,
        },
        model_url: String::new(),
        scripted: false,
        limits: TurnLimits { steps: 1, tokens: 1, time_ms: 5000 },
        context: String::new(),
        memory_hint: true,
        conversation: vec![],
    };
    launched.link.write_all(&encode(&Command::Start(Box::new(start))).unwrap()).unwrap();
    let mut reader = FrameReader::default();
    let mut buf = [0; 4096];
    loop {
        let got = launched.link.read(&mut buf).unwrap();
        if got == 0 {
            break;
        }
        reader.push(&buf[..got]);
        while let Some(fact) = reader.next_frame::<Fact>().unwrap() {
            eprintln!("{fact:?}");
        }
    }
    eprintln!("{}", std::fs::read_to_string(workspace.join(".memory/out")).unwrap());
    eprintln!("{:?}", view.read(&cloister_types::WorkspacePath::ROOT));
}
