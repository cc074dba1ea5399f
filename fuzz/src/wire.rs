//! What processes and clients say to each other.

use cloister_types::host::HostPattern;
use cloister_types::link::{Command, FrameReader, FromAgent, Signal, ToAgent};
use cloister_types::scope::FileAccess;
use cloister_types::sse::Parser;
use cloister_types::{Host, Scope, SessionId, WorkspacePath};

use crate::bytes::{first, halves, pieces};

/// A host is its own canonical form and no address, and a pattern means whole labels.
pub(crate) fn host(data: &[u8]) {
    let (pattern, name) = halves(data);
    let Ok(host) = Host::parse(name) else { return };
    assert_eq!(host.as_str().parse::<Host>().as_ref(), Ok(&host));
    assert!(host.as_str().parse::<std::net::IpAddr>().is_err() && host.as_str().len() <= 253);
    let Some(Ok(pattern)) = std::str::from_utf8(pattern).ok().map(str::parse::<HostPattern>) else { return };
    if pattern.matches(&host) && pattern.host().is_none() {
        let (_, above) = host.as_str().split_once('.').expect("a label less");
        assert!(!pattern.matches(&above.parse().expect("a host above a host")));
    }
}

/// The lists as sent grant what their normal form grants, and so does the plan of mounts.
pub(crate) fn scope(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let (mut declared, mut probes) = (FileAccess { read: Vec::new(), write: Vec::new() }, Vec::new());
    for line in text.lines().take(24) {
        match line.split_at_checked(1) {
            Some(("r", path)) => declared.read.push(path.to_owned()),
            Some(("w", path)) => declared.write.push(path.to_owned()),
            Some((_, path)) => probes.extend(WorkspacePath::parse(path.as_bytes())),
            None => {}
        }
    }
    let Ok(scope) = Scope::parse(&declared) else { return };
    assert!(scope.is_within(&scope));
    assert!(scope.is_within(&Scope::parse(&FileAccess::everything()).expect("everything")));
    let own = |access| -> Vec<String> {
        scope.entries().filter(|entry| entry.1 == access).map(|(path, _)| path.to_text()).collect()
    };
    use cloister_types::Access::{Read, Write};
    if scope.entries().all(|(path, _)| std::str::from_utf8(&path.to_bytes()).is_ok()) {
        let again = Scope::parse(&FileAccess { read: own(Read), write: own(Write) }).expect("what it says itself");
        assert!(scope.is_within(&again) && again.is_within(&scope));
    }
    for probe in &probes {
        let below = probe.join(b"below");
        // What is granted goes on below, except where another entry says more.
        if let (Some(access), Ok(below)) = (scope.declared(probe), below)
            && !scope.names(&below)
        {
            assert_eq!(scope.declared(&below), Some(access));
        }
    }
    let _ = cloister_sandbox::plan::plan(&scope, &SessionId::from_random([1; 6]));
}

/// Events are the same however the stream is cut.
pub(crate) fn sse(data: &[u8]) {
    let (shape, rest) = first(data);
    let (cuts, text) = rest.split_at(rest.len().min(usize::from(shape % 8)));
    let read = |pieces: &[&[u8]]| {
        let mut parser = Parser::default();
        let events: Result<Vec<_>, _> = pieces.iter().map(|piece| parser.push(piece)).collect();
        events.map(|events| events.concat()).ok()
    };
    assert_eq!(read(&[text]), read(&pieces(text, cuts)));
}

/// Frames are the same however they arrive, and whatever says too much is refused.
pub(crate) fn frames(data: &[u8]) {
    let (shape, rest) = first(data);
    let (cuts, text) = rest.split_at(rest.len().min(usize::from(shape % 8)));
    let read = |pieces: &[&[u8]]| {
        let mut reader = FrameReader::with_limit(4096);
        let mut heard = Vec::new();
        for piece in pieces {
            reader.push(piece);
            loop {
                match reader.next_frame::<serde_json::Value>() {
                    Ok(Some(frame)) => {
                        let _ = serde_json::from_value::<ToAgent>(frame.clone());
                        let _ = serde_json::from_value::<FromAgent>(frame.clone());
                        let _ = serde_json::from_value::<Command>(frame.clone());
                        let _ = serde_json::from_value::<Signal>(frame.clone());
                        heard.push(frame);
                    }
                    Ok(None) => break,
                    Err(_) => return (heard, true),
                }
            }
        }
        (heard, false)
    };
    assert_eq!(read(&[text]), read(&pieces(text, cuts)));
}

/// What spawner, supervisors, init, meter and server take from each other: refused or
/// understood, whatever comes along.
pub(crate) fn orders(data: &[u8]) {
    let (receiver, rest) = first(data);
    let (shape, rest) = first(rest);
    // A message of its own, or one that is in a file.
    let (message, file) = match shape & 1 {
        0 => ([&[0], rest].concat(), None),
        _ => (vec![1], Some(rest)),
    };
    cloister_sandbox::protocol::hear_bytes(receiver, &message, file, usize::from(shape >> 1) % 5).expect("a socket");
}

/// What the vault takes from its links: refused or understood, and said the same again.
pub(crate) fn vault(data: &[u8]) {
    use cloister_vault::wire::{Reply, Request};
    if let Ok(request) = serde_json::from_slice::<Request>(data) {
        let said = serde_json::to_vec(&request).expect("a request");
        let again: Request = serde_json::from_slice(&said).expect("what was said");
        assert_eq!(serde_json::to_vec(&again).expect("a request"), said);
    }
    if let Ok(reply) = serde_json::from_slice::<Reply>(data) {
        let said = serde_json::to_vec(&reply).expect("a reply");
        assert!(serde_json::from_slice::<Reply>(&said).is_ok());
    }
}
