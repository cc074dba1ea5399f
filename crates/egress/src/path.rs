//! The path of a request in its canonical form: the one that rules are matched
//! on, and the one that is sent.

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// Control characters, white space, bytes above ASCII, a backslash.
    #[error("the path holds a character that has no place in one")]
    Character,
    /// A percent sign without two digits behind it.
    #[error("a percent sign must be followed by two hexadecimal digits")]
    Escape,
    /// An escaped NUL, line end, or other control character.
    #[error("the path hides a control character")]
    Hidden,
    /// More `..` than folders.
    #[error("the path leads above the root")]
    AboveRoot,
    /// What some servers read as a slash or as dots, and others do not.
    #[error("the path holds an escape that servers read in different ways")]
    Ambiguous,
}

/// Brings a path into its canonical form: dots resolved, no escape without
/// need, escapes in upper case. `strict`: rules about paths depend on it, so
/// nothing may be left that servers could read in different ways.
///
/// # Errors
/// Why it has none.
pub fn canonical(path: &str, strict: bool) -> Result<String, PathError> {
    let unescaped = unescape(path, strict)?;
    let mut segments: Vec<&str> = Vec::new();
    let rest = unescaped.strip_prefix('/').ok_or(PathError::Character)?;
    let parts: Vec<&str> = rest.split('/').collect();
    for (at, part) in parts.iter().enumerate() {
        let last = at + 1 == parts.len();
        // To some servers, `..;x` is `..` with a parameter.
        let name = if strict { part.split(';').next().unwrap_or_default() } else { part };
        match name {
            "." | ".." if name != *part => return Err(PathError::Ambiguous),
            "." if last => segments.push(""),
            "." => {}
            ".." => {
                if segments.pop().is_none() {
                    return Err(PathError::AboveRoot);
                }
                if last {
                    segments.push("");
                }
            }
            "" if strict && !last => {}
            _ => segments.push(part),
        }
    }
    Ok(format!("/{}", segments.join("/")))
}

/// What rules are matched on: a canonical path without its parameters.
#[must_use]
pub fn without_parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

fn unescape(path: &str, strict: bool) -> Result<String, PathError> {
    let bytes = path.as_bytes();
    let (mut out, mut at) = (String::with_capacity(path.len()), 0);
    while at < bytes.len() {
        let byte = bytes[at];
        if !(0x21..0x7f).contains(&byte) || matches!(byte, b'\\' | b'#' | b'?') {
            return Err(PathError::Character);
        }
        if byte != b'%' {
            out.push(byte.into());
            at += 1;
            continue;
        }
        let digits = path.get(at + 1..at + 3).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()));
        let decoded = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).ok_or(PathError::Escape)?;
        at += 3;
        match decoded {
            0..0x20 | 0x7f => return Err(PathError::Hidden),
            b'/' | b'\\' | b';' if strict => return Err(PathError::Ambiguous),
            // Overlong forms of ASCII (`%c0%ae`), and what is no UTF-8 at all.
            0xc0 | 0xc1 | 0xf5.. if strict => return Err(PathError::Ambiguous),
            _ if decoded.is_ascii_alphanumeric() || b"-._~".contains(&decoded) => out.push(decoded.into()),
            _ => out.push_str(&format!("%{decoded:02X}")),
        }
    }
    if strict && is_escaped_twice(&out) { Err(PathError::Ambiguous) } else { Ok(out) }
}

/// Is there an escape left in it if it is read once more? What comes of that depends on
/// how often it is read.
fn is_escaped_twice(unescaped: &str) -> bool {
    let digits = |rest: &str| rest.bytes().take_while(u8::is_ascii_hexdigit).take(2).count() == 2;
    unescaped.split("%25").skip(1).any(digits)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_way_around_a_rule_has_one_form_or_none() {
        for (path, want) in [
            ("/v1/charges", "/v1/charges"),
            ("/v1/../admin", "/admin"),
            ("/v1/%2e%2e/admin", "/admin"),
            ("/v1/.%2E/admin", "/admin"),
            ("/v1/./x/.", "/v1/x/"),
            ("/v1//x", "/v1/x"),
            ("/v1/x/..", "/v1/"),
            ("/%76%31/x", "/v1/x"),
            ("/a%20b%c3%a4", "/a%20b%C3%A4"),
            ("/", "/"),
            ("/v1/x/", "/v1/x/"),
            ("/a;b=c/d", "/a;b=c/d"),
            ("/100%25/%25x", "/100%25/%25x"),
        ] {
            assert_eq!(canonical(path, true).as_deref(), Ok(want), "{path}");
        }
        for (path, why) in [
            ("/v1/..%2fadmin", PathError::Ambiguous),
            ("/v1/%252e%252e/admin", PathError::Ambiguous),
            ("/v1/%25%32e%25%32e/admin", PathError::Ambiguous),
            ("/v1/%25%32%65/x", PathError::Ambiguous),
            ("/v1/%25%32%66x", PathError::Ambiguous),
            ("/v1/..;/admin", PathError::Ambiguous),
            ("/v1/..;x=y/admin", PathError::Ambiguous),
            ("/v1/%5c..%5cadmin", PathError::Ambiguous),
            ("/v1/..%3B/admin", PathError::Ambiguous),
            ("/v1/\\..\\admin", PathError::Character),
            ("/%c0%ae%c0%ae/admin", PathError::Ambiguous),
            ("/../admin", PathError::AboveRoot),
            ("/v1/../../admin", PathError::AboveRoot),
            ("/v1/%00", PathError::Hidden),
            ("/v1/%0d%0aX: y", PathError::Hidden),
            ("/v1/x y", PathError::Character),
            ("/v1/x\ty", PathError::Character),
            ("/v1/\u{e4}", PathError::Character),
            ("/v1/%", PathError::Escape),
            ("/v1/%g0", PathError::Escape),
            ("v1", PathError::Character),
            ("*", PathError::Character),
        ] {
            assert_eq!(canonical(path, true), Err(why), "{path}");
        }
        // Without rules about paths, names with slashes in them are names.
        assert_eq!(canonical("/@scope%2fname", false).as_deref(), Ok("/@scope%2Fname"));
        assert_eq!(canonical("/web//http://x", false).as_deref(), Ok("/web//http://x"));
        assert_eq!(canonical("/a/../b", false).as_deref(), Ok("/b"));
        assert_eq!(without_parameters("/a;x/b;y=z"), "/a/b");
    }

    proptest! {
        #[test]
        fn the_canonical_form_is_its_own(path in "/[a-z0-9./;%\\\\ ~-]{0,40}", strict: bool) {
            if let Ok(once) = canonical(&path, strict) {
                prop_assert_eq!(canonical(&once, strict), Ok(once.clone()));
                prop_assert!(once.starts_with('/'));
                prop_assert!(!once.split('/').any(|segment| segment == ".." || segment == "."));
            }
        }
    }
}
