//! Every form in which a credential may come back.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Shorter credentials are looked for as they are alone: their encodings would
/// be found in anything.
const ENCODED: usize = 8;
/// A part of an encoding that is shorter says nothing.
const LEAST: usize = 6;

/// The forms of these texts: as they are, percent-encoded, JSON- and
/// HTML-escaped, hexadecimal, and in base64 at every place of a longer text.
#[must_use]
pub(crate) fn forms(secrets: &[&str]) -> Vec<Vec<u8>> {
    let mut found = BTreeSet::new();
    for secret in secrets.iter().filter(|secret| !secret.is_empty()) {
        let bytes = secret.as_bytes();
        found.insert(bytes.to_vec());
        if bytes.len() < ENCODED {
            continue;
        }
        for text in [
            percent(bytes, false, false),
            percent(bytes, true, false),
            percent(bytes, false, true),
            percent(bytes, true, true),
            each(bytes, |byte| format!("{byte:02x}")),
            each(bytes, |byte| format!("{byte:02X}")),
            json(secret, &['"', '\\']),
            json(secret, &['"', '\\', '/']),
            json(secret, &['"', '\\', '<', '>', '&']),
            json(secret, &['"', '\\', '<', '>', '&', '+', '=', '/', '\'']),
            html(secret, "&#39;"),
            html(secret, "&#x27;"),
            upper_escapes(secret, &['"', '\\', '<', '>', '&', '+', '\'']),
            upper_escapes(secret, &['<', '>', '&', '=', '\'']),
            safe(bytes, b"/", false),
            safe(bytes, b"!*'()", false),
            safe(bytes, b"/:@!$&'()*+,;=", false),
            safe(bytes, b"", true),
            numeric(secret, 10),
            numeric(secret, 16),
            secret.to_ascii_lowercase(),
            secret.to_ascii_uppercase(),
            secret.chars().rev().collect(),
        ] {
            found.insert(text.into_bytes());
        }
        // Every server that answers in UTF-16.
        found.insert(bytes.iter().flat_map(|byte| [*byte, 0]).take(bytes.len() * 2 - 1).collect());
        for shift in 0..3 {
            for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
                let mut shifted = vec![0; shift];
                shifted.extend(bytes);
                let text = engine.encode(&shifted);
                // Characters at both ends hold bits of whatever is beside it.
                let first = (shift * 8).div_ceil(6);
                let last = text.len() - usize::from(shifted.len() % 3 != 0);
                if last.saturating_sub(first) >= LEAST {
                    found.insert(text.as_bytes()[first..last].to_vec());
                }
            }
        }
    }
    found.into_iter().collect()
}

fn each(bytes: &[u8], form: impl Fn(u8) -> String) -> String {
    bytes.iter().map(|byte| form(*byte)).collect()
}

fn percent(bytes: &[u8], lower: bool, all: bool) -> String {
    let plain = |byte: u8| !all && (byte.is_ascii_alphanumeric() || b"-._~".contains(&byte));
    each(bytes, |byte| match (plain(byte), lower) {
        (true, _) => char::from(byte).to_string(),
        (false, true) => format!("%{byte:02x}"),
        (false, false) => format!("%{byte:02X}"),
    })
}

fn json(text: &str, escaped: &[char]) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '"' | '\\' | '/' if escaped.contains(&character) => out.extend(['\\', character]),
            _ if escaped.contains(&character) => out.push_str(&format!("\\u{:04x}", u32::from(character))),
            _ => out.push(character),
        }
    }
    out
}

/// Percent-encoded but for these, and `-._~`; or, for forms, all but letters,
/// digits and `*-._`.
fn safe(bytes: &[u8], kept: &[u8], form: bool) -> String {
    let plain = |byte: u8| {
        byte.is_ascii_alphanumeric()
            || if form { b"*-._".contains(&byte) } else { kept.contains(&byte) || b"-._~".contains(&byte) }
    };
    each(bytes, |byte| match byte {
        b' ' if form => "+".to_owned(),
        _ if plain(byte) => char::from(byte).to_string(),
        _ => format!("%{byte:02X}"),
    })
}

/// As JSON is written by those who escape in upper case.
fn upper_escapes(text: &str, escaped: &[char]) -> String {
    let form = |character: char| match character {
        _ if escaped.contains(&character) => format!("\\u{:04X}", u32::from(character)),
        _ => character.to_string(),
    };
    text.chars().map(form).collect()
}

/// HTML's references by number.
fn numeric(text: &str, base: u32) -> String {
    let form = |character: char| match (character.is_ascii_alphanumeric(), base) {
        (true, _) | (_, 0) => character.to_string(),
        (false, 16) => format!("&#x{:x};", u32::from(character)),
        _ => format!("&#{};", u32::from(character)),
    };
    text.chars().map(form).collect()
}

fn html(text: &str, quote: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', quote)
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    #[test]
    fn encodings_are_found_wherever_they_stand() {
        let secret = "sk_live+a/b=\"c<d>";
        let needles = forms(&[secret]);
        let holds = |text: &str| {
            needles.iter().any(|needle| text.as_bytes().windows(needle.len()).any(|window| window == needle))
        };
        for shift in 0..7 {
            let longer = format!("{}{secret}{}", "x".repeat(shift), "y".repeat(5));
            assert!(holds(&STANDARD.encode(&longer)), "base64 at {shift}");
            assert!(holds(&URL_SAFE_NO_PAD.encode(&longer)), "base64url at {shift}");
        }
        assert!(holds(&serde_json::to_string(secret).unwrap()));
        assert!(holds("sk_live%2Ba%2Fb%3D%22c%3Cd%3E") && holds("sk_live%2ba%2fb%3d%22c%3cd%3e"));
        assert!(holds("sk_live+a/b=&quot;c&lt;d&gt;") && holds(r#"sk_live\u002ba\/b\u003d\"c\u003cd\u003e"#));
        for text in [
            "sk_live%2Ba/b%3D",
            "sk_live&#43;a&#47;b&#61;",
            "sk_live\\u002Ba/b=\\u0022c",
            "s\0k\0_\0l\0i\0v\0e\0+\0a\0/\0b\0=\0\"\0c\0<\0d\0>",
        ] {
            assert!(
                needles.iter().any(|needle| needle
                    .windows(9)
                    .any(|window| text.as_bytes().windows(9).any(|other| other == window))),
                "{text}"
            );
        }
        assert!(!holds("nothing of it"));
        assert_eq!(forms(&["abc"]), [b"abc".to_vec()]);
        assert!(forms(&[""]).is_empty());
    }
}
