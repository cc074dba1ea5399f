//! What the boundary to the outside is made of: paths, names, rules, scrubbing.

use std::sync::OnceLock;

use cloister_egress::names::answer;
use cloister_egress::path::{canonical, without_parameters};
use cloister_egress::rules::{Asked, Verdict, check_method, decide, may_resolve};
use cloister_egress::scrub::{Needles, Scrubber};
use cloister_types::Host;
use cloister_types::egress::Policy;
use cloister_vault::wire::Permitted;

use crate::bytes::{first, halves, pieces};

/// A canonical path is its own canonical form, and has one meaning.
pub(crate) fn path(data: &[u8]) {
    let (strict, rest) = first(data);
    let strict = strict & 1 == 1;
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let Ok(once) = canonical(text, strict) else { return };
    assert_eq!(canonical(&once, strict).as_ref(), Ok(&once));
    assert!(once.starts_with('/') && once.bytes().all(|byte| byte.is_ascii_graphic()));
    assert!(!once.split('/').any(|segment| segment == ".." || segment == "."));
    let lower = once.to_ascii_lowercase();
    assert!(!["%00", "%0a", "%0d", "%7f"].iter().any(|hidden| lower.contains(hidden)));
    if strict {
        assert!(!["%2f", "%5c", "%2e", "%252e", "%252f", "%255c", "%2525", "//"].iter().any(|way| lower.contains(way)));
        assert!(!without_parameters(&once).split('/').any(|segment| segment == ".." || segment == "."));
    }
}

/// Whatever is asked: the answer is short, to the question, and no name is known that
/// may not be.
pub(crate) fn names(data: &[u8]) {
    let mut known = Vec::new();
    if let Some((out, _)) = answer(data, "s", |host| {
        known.push(host.clone());
        host.as_str().ends_with(".com")
    }) {
        assert!(out.len() <= 512 && out[..2] == data[..2] && out[2] & 0x80 != 0);
        let answers = u16::from_be_bytes([out[6], out[7]]);
        assert!(answers == 0 || known.iter().any(|host| host.as_str().ends_with(".com")));
    }
}

/// Connections that overlap.
fn connections() -> &'static [Permitted] {
    static CONNECTIONS: OnceLock<Vec<Permitted>> = OnceLock::new();
    CONNECTIONS.get_or_init(|| {
        let connections = r#"[
            {"name":"read","version":1,"connection":{"targets":[{"host":"a.com","methods":["GET"]}],"attach":{"kind":"header"}}},
            {"name":"charge","version":1,"connection":{"targets":[{"host":"a.com","port":8443,"paths":["/v1/c"]}],"attach":{"kind":"header"}}},
            {"name":"all","version":2,"connection":{"targets":[{"host":"*.a.com"},{"host":"b.com","paths":["/x","/y/*"]}],"attach":{"kind":"header"}}}
        ]"#;
        serde_json::from_str(connections).expect("connections as the vault says them")
    })
}

/// A credential goes only where a target of its own says.
pub(crate) fn rules(data: &[u8]) {
    let (mode, rest) = first(data);
    let policy = match mode % 3 {
        0 => "{}",
        1 => r#"{"mode":"open"}"#,
        _ => r#"{"mode":"allow","allow":["a.com","c.a.com"]}"#,
    };
    let policy: Policy = serde_json::from_str(policy).expect("a policy");
    let Ok(text) = std::str::from_utf8(rest) else { return };
    let mut words = text.split('\n');
    let mut word = || words.next().unwrap_or_default();
    let Ok(host) = word().parse::<Host>() else { return };
    let (method, named) = (word(), Some(word()).filter(|named| !named.is_empty()));
    let Ok(whole) = canonical(word(), true) else { return };
    let path = without_parameters(&whole);
    let asked = Asked { host: &host, method, path: &path, whole: &whole, named, placed: mode & 64 != 0 };
    match decide(&policy, connections(), asked) {
        Ok(Verdict::With(one, port)) => {
            let covers =
                |target: &cloister_types::egress::Target| target.is_at(&host, port) && target.takes(method, &path);
            assert!(one.connection.targets.iter().any(covers));
            assert!(may_resolve(&policy, connections(), &host, mode & 64 != 0));
            assert!(named.is_none_or(|named| named == one.name.as_str()));
        }
        Ok(Verdict::Plain(_)) => assert!(mode % 3 != 0 && check_method(method) == Ok(())),
        Err(_) => {}
    }
}

/// In pieces it is as in whole, as long as it was, and no secret is left.
pub(crate) fn scrub(data: &[u8]) {
    let (shape, rest) = first(data);
    let (cuts, rest) = rest.split_at(rest.len().min(usize::from(shape >> 5)));
    let (secrets, text) = halves(rest);
    let secrets: Vec<Vec<u8>> =
        secrets.split(|byte| *byte == b'\n').filter(|secret| secret.len() > 1).map(<[u8]>::to_vec).take(4).collect();
    // What covers a secret may not be read as another one.
    if secrets.is_empty() || secrets.iter().any(|secret| secret.contains(&b'*')) {
        return;
    }
    let needles = Needles::new(secrets.clone());
    let mut whole = text.to_vec();
    let found = needles.cover(&mut whole);
    let mut scrubber = Scrubber::new(needles);
    let mut out: Vec<u8> = pieces(text, cuts).into_iter().flat_map(|piece| scrubber.push(piece)).collect();
    out.extend(scrubber.finish());
    assert_eq!(out, whole);
    assert!(out.len() == text.len() && found == (out != text));
    for secret in secrets {
        assert!(!out.windows(secret.len()).any(|window| window == secret));
    }
}
