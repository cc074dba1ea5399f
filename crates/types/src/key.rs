//! API keys as they are handed to people: `pk_<tenant>_<token>`.

use std::fmt;
use std::str::FromStr;

/// An API key in clear. Neither `Debug` nor `Display` print it; it leaves
/// through [`ApiKey::reveal`] alone, at the moment it is made.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey {
    text: String,
    tenant: usize,
}

/// Why a string is not an API key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not an API key of the form pk_<tenant>_<token>")]
pub struct BadKey;

/// Characters of a made token: 32 bytes in base 62, and the checksum.
const BODY: usize = 43;
const SUM: usize = 6;

/// A number in base 62, most significant digit first, in so many digits.
fn base62(bytes: &[u8], digits: usize) -> String {
    const DIGITS: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    let mut number = bytes.to_vec();
    let mut out = vec![b'0'; digits];
    for place in out.iter_mut().rev() {
        let mut rest = 0_u32;
        for byte in &mut number {
            rest = rest * 256 + u32::from(*byte);
            *byte = (rest / 62) as u8;
            rest %= 62;
        }
        *place = DIGITS[rest as usize];
    }
    out.into_iter().map(char::from).collect()
}

/// CRC-32 (IEEE 802.3) of a text, in base 62.
fn checksum(text: &str) -> String {
    base62(&crc32fast::hash(text.as_bytes()).to_be_bytes(), SUM)
}

impl ApiKey {
    /// Makes a key for `tenant` from 32 random bytes. Its last six characters are
    /// a checksum over the others, so that a scanner of secrets can tell a key
    /// from something that looks like one, without asking anybody.
    ///
    /// # Errors
    /// The tenant's name is not `[a-z0-9-]{1,63}`.
    pub fn new(tenant: &str, random: [u8; 32]) -> Result<Self, BadKey> {
        let text = format!("pk_{tenant}_{}", base62(&random, BODY));
        let sum = checksum(&text);
        format!("{text}{sum}").parse()
    }

    /// The tenant that the key names.
    #[must_use]
    pub fn tenant(&self) -> &str {
        &self.text[3..3 + self.tenant]
    }

    /// The whole key, to be shown once or sent as a bearer token.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.text
    }
}

impl FromStr for ApiKey {
    type Err = BadKey;

    fn from_str(text: &str) -> Result<Self, BadKey> {
        let (tenant, token) = text.strip_prefix("pk_").and_then(|rest| rest.split_once('_')).ok_or(BadKey)?;
        let tenant_fits = (1..=63).contains(&tenant.len())
            && tenant.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        let token_fits = (16..=256).contains(&token.len())
            && token.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
        // One of a made key's length, but not with its checksum, was never made.
        let summed = |text: &str| text.ends_with(&checksum(&text[..text.len() - SUM]));
        if tenant_fits && token_fits && (token.len() != BODY + SUM || summed(text)) {
            Ok(Self { text: text.to_owned(), tenant: tenant.len() })
        } else {
            Err(BadKey)
        }
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKey(pk_{}_...)", self.tenant())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_made_key_parses_and_is_not_printed() {
        let key = ApiKey::new("acme-1", [7; 32]).unwrap();
        assert_eq!(key.tenant(), "acme-1");
        assert_eq!(key.reveal().parse::<ApiKey>(), Ok(key.clone()));
        assert!(!format!("{key:?}").contains(&key.reveal()[12..20]));
        assert_eq!(key.reveal().len(), "pk_acme-1_".len() + BODY + SUM);
    }

    #[test]
    fn one_wrong_character_is_told_by_the_checksum() {
        let key = ApiKey::new("acme", [0xa5; 32]).unwrap();
        for at in "pk_acme_".len()..key.reveal().len() {
            let mut text = key.reveal().to_owned().into_bytes();
            text[at] = if text[at] == b'x' { b'y' } else { b'x' };
            assert!(String::from_utf8(text).unwrap().parse::<ApiKey>().is_err(), "{at}");
        }
        assert_eq!(base62(&[0, 62], 3), "010");
        // Keys of other lengths are of other makers.
        assert!(format!("pk_acme_{}", "0".repeat(64)).parse::<ApiKey>().is_ok());
    }

    #[test]
    fn letters_of_several_bytes_are_no_keys() {
        for at in 0..=BODY + SUM {
            for bytes in [BODY + SUM, BODY + SUM + 1] {
                let after = bytes.saturating_sub(at + 2);
                let text = format!("pk_a_{}\u{e9}{}", "a".repeat(at), "a".repeat(after));
                assert_eq!(text.parse::<ApiKey>(), Err(BadKey), "{text}");
            }
        }
    }

    #[test]
    fn other_strings_are_not_keys() {
        for bad in
            ["", "pk_", "pk_a_", "pk__0123456789abcdef", "sk_a_0123456789abcdef", "pk_A_0123456789abcdef", "pk_a_short"]
        {
            assert_eq!(bad.parse::<ApiKey>(), Err(BadKey), "{bad}");
        }
    }
}
