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

impl ApiKey {
    /// Makes a key for `tenant` from 32 random bytes.
    ///
    /// # Errors
    /// The tenant's name is not `[a-z0-9-]{1,63}`.
    pub fn new(tenant: &str, random: [u8; 32]) -> Result<Self, BadKey> {
        use fmt::Write;
        let mut text = format!("pk_{tenant}_");
        for byte in random {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        text.parse()
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
        if tenant_fits && token_fits { Ok(Self { text: text.to_owned(), tenant: tenant.len() }) } else { Err(BadKey) }
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
        assert!(!format!("{key:?}").contains("0707"));
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
