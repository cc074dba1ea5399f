//! Identifiers. Each kind is a type of its own, so that one cannot be passed
//! where another is meant.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a string is not an identifier of the wanted kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a valid identifier")]
pub struct BadId;

fn hex(bytes: &[u8], out: &mut String) {
    use fmt::Write;
    for byte in bytes {
        // Writing to a String cannot fail.
        let _ = write!(out, "{byte:02x}");
    }
}

/// Ids are lower-case letters, digits and `_` after a fixed prefix; the
/// documentation shows two lengths for turn ids, so any up to 64 is read.
fn parse(prefix: &str, text: &str) -> Result<String, BadId> {
    let rest = text.strip_prefix(prefix).ok_or(BadId)?;
    let fits = (1..=64).contains(&rest.len());
    let plain = rest.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if fits && plain { Ok(text.to_owned()) } else { Err(BadId) }
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $prefix:literal, $bytes:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Makes an id from random bytes; the caller brings the randomness.
            #[must_use]
            pub fn from_random(bytes: [u8; $bytes]) -> Self {
                let mut text = String::from($prefix);
                hex(&bytes, &mut text);
                Self(text)
            }

            /// The id as it appears on the wire.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                parse($prefix, text).map(Self)
            }
        }

        impl TryFrom<String> for $name {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id!(
    /// A session: `sess_` and 12 hex digits.
    SessionId, "sess_", 6
);
id!(
    /// A session turn: `msg_` and 24 hex digits.
    ResponseId, "msg_", 12
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn made_ids_have_the_documented_form() {
        assert_eq!(SessionId::from_random([0xab; 6]).as_str(), "sess_abababababab");
        assert_eq!(ResponseId::from_random([1; 12]).as_str(), "msg_010101010101010101010101");
    }

    #[test]
    fn only_plain_ids_of_the_right_kind_parse() {
        assert!("sess_0123456789ab".parse::<SessionId>().is_ok());
        assert!("msg_0123456789ab".parse::<ResponseId>().is_ok());
        for bad in ["", "sess_", "msg_ab", "sess_../..", "sess_A", "sess_a b", "sess_\u{e9}"] {
            assert_eq!(bad.parse::<SessionId>(), Err(BadId), "{bad}");
        }
    }
}
