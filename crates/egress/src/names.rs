//! The resolver that a session sees. It answers names that the session may
//! reach with an address that means that name and nothing else; all others do
//! not exist. No question ever leaves.

use std::net::Ipv4Addr;

use aws_lc_rs::digest::{SHA256, digest};
use cloister_types::Host;

/// Seconds that an answer is good for.
const TTL: u32 = 30;
/// Bytes of an answer by UDP (RFC 1035, 4.2.1); ours are all shorter.
const HEADER: usize = 12;

const A: u16 = 1;
const INTERNET: u16 = 1;
/// Answers without an error, and those for names that do not exist.
const NO_ERROR: u16 = 0;
const FORMAT_ERROR: u16 = 1;
const NO_SUCH_NAME: u16 = 3;
const NOT_IMPLEMENTED: u16 = 4;

/// The address that means a host, for one session: of 198.18.0.0/15, which
/// RFC 2544 keeps free. It follows from both, so no table is needed, and
/// nothing is forgotten when this process is.
#[must_use]
pub fn address_of(session: &str, host: &Host) -> Ipv4Addr {
    let hash = digest(&SHA256, format!("{session}\n{host}").as_bytes());
    let bytes = hash.as_ref();
    Ipv4Addr::new(198, 18 + (bytes[0] & 1), bytes[1], bytes[2])
}

/// A question, read.
#[derive(Debug, PartialEq, Eq)]
struct Question<'a> {
    id: u16,
    wants_recursion: bool,
    /// `None`: a name that is none of ours in any spelling.
    host: Option<Host>,
    kind: u16,
    class: u16,
    /// The question as it stands in the message.
    section: &'a [u8],
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// Reads a query with one question; what is wrong with it otherwise.
fn read(message: &[u8]) -> Result<Question<'_>, u16> {
    let flags = word(message, 2).ok_or(FORMAT_ERROR)?;
    if flags & 0x8000 != 0 {
        return Err(FORMAT_ERROR);
    }
    if flags & 0x7800 != 0 {
        return Err(NOT_IMPLEMENTED);
    }
    if word(message, 4) != Some(1) {
        return Err(FORMAT_ERROR);
    }
    let (mut name, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*message.get(at).ok_or(FORMAT_ERROR)?);
        at += 1;
        if length == 0 {
            break;
        }
        // A question has nothing in front of it to point to.
        if length > 63 || name.len() > 255 {
            return Err(FORMAT_ERROR);
        }
        if !name.is_empty() {
            name.push(b'.');
        }
        let label = message.get(at..at + length).ok_or(FORMAT_ERROR)?;
        // A dot within a label would become one between labels.
        name.extend(label.iter().map(|byte| if *byte == b'.' { 0 } else { *byte }));
        at += length;
    }
    Ok(Question {
        id: word(message, 0).ok_or(FORMAT_ERROR)?,
        wants_recursion: flags & 0x0100 != 0,
        host: Host::parse(&name).ok(),
        kind: word(message, at).ok_or(FORMAT_ERROR)?,
        class: word(message, at + 2).ok_or(FORMAT_ERROR)?,
        section: message.get(HEADER..at + 4).ok_or(FORMAT_ERROR)?,
    })
}

/// What was asked for, and whether it was told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// The name, if it is one.
    pub host: Option<Host>,
    /// It exists for this session.
    pub known: bool,
}

/// Answers a message; `None` if it is none that has an answer.
pub fn answer(message: &[u8], session: &str, may_know: impl FnOnce(&Host) -> bool) -> Option<(Vec<u8>, Option<Told>)> {
    let id = word(message, 0)?;
    let question = match read(message) {
        Ok(question) => question,
        // An answer is no question.
        Err(FORMAT_ERROR) if word(message, 2).is_none_or(|flags| flags & 0x8000 != 0) => return None,
        Err(code) => return Some((head(id, false, code, 0, 0), None)),
    };
    let known = question.class == INTERNET && question.host.as_ref().is_some_and(may_know);
    let address = question.host.as_ref().filter(|_| known && question.kind == A).map(|host| address_of(session, host));
    let code = if known { NO_ERROR } else { NO_SUCH_NAME };
    let mut out = head(question.id, question.wants_recursion, code, 1, u16::from(address.is_some()));
    out.extend(question.section);
    if let Some(address) = address {
        // The name is where the question has it.
        out.extend([0xc0, HEADER as u8]);
        out.extend(A.to_be_bytes());
        out.extend(INTERNET.to_be_bytes());
        out.extend(TTL.to_be_bytes());
        out.extend(4_u16.to_be_bytes());
        out.extend(address.octets());
    }
    Some((out, Some(Told { host: question.host, known })))
}

fn head(id: u16, wants_recursion: bool, code: u16, questions: u16, answers: u16) -> Vec<u8> {
    // An answer, with authority, and with recursion offered: some libraries
    // mistrust a resolver that does not.
    let flags = 0x8400 | 0x0080 | (u16::from(wants_recursion) << 8) | code;
    [id, flags, questions, answers, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn query(name: &str, kind: u16) -> Vec<u8> {
        let mut message: Vec<u8> = [7_u16, 0x0100, 1, 0, 0, 0].into_iter().flat_map(u16::to_be_bytes).collect();
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(label.len() as u8);
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend(INTERNET.to_be_bytes());
        message
    }

    fn ask(name: &str, kind: u16) -> (u16, u16, Vec<u8>) {
        let (out, _) = answer(&query(name, kind), "s", |host| host.as_str() == "api.example.com").unwrap();
        (word(&out, 2).unwrap() & 15, word(&out, 6).unwrap(), out)
    }

    #[test]
    fn allowed_names_have_an_address_and_others_do_not_exist() {
        let (code, answers, out) = ask("API.example.com", A);
        assert_eq!((code, answers), (NO_ERROR, 1));
        let address = address_of("s", &"api.example.com".parse().unwrap());
        assert_eq!(out[out.len() - 4..], address.octets());
        assert!(address.octets()[0] == 198 && matches!(address.octets()[1], 18 | 19));
        assert_ne!(address, address_of("t", &"api.example.com".parse().unwrap()));
        // AAAA, TXT, HTTPS, SRV, PTR, ANY: it exists, and there is nothing.
        for kind in [28, 16, 65, 64, 33, 12, 255] {
            assert_eq!(ask("api.example.com", kind).1, 0, "{kind}");
            assert_eq!(ask("api.example.com", kind).0, NO_ERROR, "{kind}");
        }
        let long = format!("{}.example.com", "x".repeat(63));
        for name in ["example.com", "secret.api.example.com", "localhost", "", "169.254.169.254", long.as_str()] {
            assert_eq!(ask(name, A).0, NO_SUCH_NAME, "{name}");
        }
    }

    #[test]
    fn a_dot_in_a_label_is_not_a_dot() {
        let mut message = query("x", A)[..HEADER].to_vec();
        message.push(15);
        message.extend(b"api.example.com");
        message.extend([0, 0, 1, 0, 1]);
        let (out, told) = answer(&message, "s", |_| true).unwrap();
        assert_eq!(word(&out, 2).unwrap() & 15, NO_SUCH_NAME);
        assert_eq!(told.unwrap().host, None);
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_short_answer_or_none(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            if let Some((out, _)) = answer(&bytes, "s", |_| true) {
                prop_assert!(out.len() <= 512 && out[..2] == bytes[..2]);
            }
        }

        #[test]
        fn damaged_questions_never_panic(at in 0usize..40, byte: u8) {
            let mut message = query("api.example.com", A);
            if let Some(place) = message.get_mut(at) {
                *place = byte;
            }
            let _ = answer(&message, "s", |_| true);
            let _ = answer(&message[..at.min(message.len())], "s", |_| true);
        }
    }
}
