//! Names of hosts. There is one canonical form, made once at the edge; whoever
//! decides about a host takes this type and never a string again.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Bytes of a name, and of one of its labels (RFC 1035, 2.3.4).
const LONGEST: usize = 253;
const LONGEST_LABEL: usize = 63;

/// Why a text is no host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// Empty, or over 253 bytes, or a label over 63.
    #[error("a host name has 1 to 253 characters, and 1 to 63 between dots")]
    Length,
    /// Something other than letters, digits, `-`, `_` and dots.
    #[error("a host name consists of letters, digits, '-' and '.'; international names are written as xn--...")]
    Character,
    /// An address, or what some resolver takes for one.
    #[error("an address is not a host name")]
    Address,
}

/// A host's name: lower case, ASCII, no dot at the end, not an address in any
/// spelling.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(String);

impl Host {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Reads bytes as they came over a network.
    ///
    /// # Errors
    /// Why it is none.
    pub fn parse(bytes: &[u8]) -> Result<Self, HostError> {
        let text = std::str::from_utf8(bytes).map_err(|_| HostError::Character)?;
        text.parse()
    }

    /// Reads what a person wrote, who may write an international name as it is
    /// spoken.
    ///
    /// # Errors
    /// Why it is none.
    pub fn from_person(text: &str) -> Result<Self, HostError> {
        idna::domain_to_ascii_strict(text).map_err(|_| HostError::Character)?.parse()
    }
}

impl FromStr for Host {
    type Err = HostError;

    fn from_str(text: &str) -> Result<Self, HostError> {
        if text.is_empty() || text.len() > LONGEST {
            return Err(HostError::Length);
        }
        let name = text.to_ascii_lowercase();
        for label in name.split('.') {
            if label.is_empty() || label.len() > LONGEST_LABEL {
                return Err(HostError::Length);
            }
            let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
            if !label.bytes().all(plain) || label.starts_with('-') || label.ends_with('-') {
                return Err(HostError::Character);
            }
        }
        // What ends in a number is an IPv4 address to one parser or another
        // (URL standard, "ends in a number").
        let last = name.rsplit('.').next().unwrap_or_default();
        let hexadecimal = last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if hexadecimal || last.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(HostError::Address);
        }
        Ok(Self(name))
    }
}

impl TryFrom<String> for Host {
    type Error = HostError;
    fn try_from(text: String) -> Result<Self, HostError> {
        text.parse()
    }
}

impl From<Host> for String {
    fn from(host: Host) -> Self {
        host.0
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why a text is no pattern of hosts.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// Its name is none.
    #[error("{0}")]
    Host(#[from] HostError),
    /// It would cover what belongs to many.
    #[error("{0:?} covers names that belong to different owners; name the hosts, or a domain below it")]
    Public(String),
}

/// Hosts that a rule means: one by name, or those one label below a domain
/// (`*.example.com`, which `example.com` itself is not).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum HostPattern {
    /// This host.
    Exact(Host),
    /// Every host one label below this.
    Below(Host),
}

impl HostPattern {
    /// Does it mean this host?
    #[must_use]
    pub fn matches(&self, host: &Host) -> bool {
        match self {
            Self::Exact(exact) => exact == host,
            Self::Below(domain) => host.0.split_once('.').is_some_and(|(_, rest)| rest == domain.0),
        }
    }

    /// The one host that it means, if it is one.
    #[must_use]
    pub fn host(&self) -> Option<&Host> {
        match self {
            Self::Exact(host) => Some(host),
            Self::Below(_) => None,
        }
    }
}

impl FromStr for HostPattern {
    type Err = PatternError;

    fn from_str(text: &str) -> Result<Self, PatternError> {
        let Some(domain) = text.strip_prefix("*.") else { return Ok(Self::Exact(Host::from_person(text)?)) };
        let domain = Host::from_person(domain)?;
        // Whoever may register a name there may take what is sent to it.
        if psl::domain_str(domain.as_str()).is_none() {
            return Err(PatternError::Public(text.to_owned()));
        }
        Ok(Self::Below(domain))
    }
}

impl TryFrom<String> for HostPattern {
    type Error = PatternError;
    fn try_from(text: String) -> Result<Self, PatternError> {
        text.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(host) => host.fmt(f),
            Self::Below(domain) => write!(f, "*.{domain}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_spelling_of_something_else_is_refused() {
        for bad in [
            "",
            ".",
            "a..b",
            "a.",
            ".a",
            "-a.b",
            "a-.b",
            "a b",
            "a\0.b",
            "a\r\n.b",
            "a%00.b",
            "a/b",
            "a\\b",
            "a@b",
            "a?b",
            "a#b",
            "a:443",
            "[::1]",
            "ex\u{e4}mple.com",
            "\u{ff45}xample.com",
            "example\u{3002}com",
            "a\u{ad}b.com",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f000001",
            "0x7f.1",
            "0177.0.0.1",
            "1.2.3.4.5",
            "example.0x",
            "a.0xfF",
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad:?}");
        }
        assert!("x".repeat(64).parse::<Host>().is_err());
        assert!(["a"; 128].join(".").parse::<Host>().is_err());
        assert_eq!("API.Example.COM".parse::<Host>().unwrap().as_str(), "api.example.com");
        assert_eq!(Host::from_person("b\u{fc}cher.example").unwrap().as_str(), "xn--bcher-kva.example");
        assert!("1password.com".parse::<Host>().is_ok() && "a.0xg".parse::<Host>().is_ok());
    }

    #[test]
    fn patterns_mean_whole_labels_and_nothing_public() {
        let host = |text: &str| text.parse::<Host>().unwrap();
        let below: HostPattern = "*.example.com".parse().unwrap();
        assert!(below.matches(&host("api.example.com")));
        for other in ["example.com", "a.b.example.com", "evilexample.com", "api.example.com.evil.test"] {
            assert!(!below.matches(&host(other)), "{other}");
        }
        let exact: HostPattern = "api.example.com".parse().unwrap();
        assert!(exact.matches(&host("API.example.com")) && !exact.matches(&host("xapi.example.com")));
        for public in
            ["*.com", "*.co.uk", "*.github.io", "*.s3.amazonaws.com", "*.*.com", "*", "**.example.com", "a*.com"]
        {
            assert!(public.parse::<HostPattern>().is_err(), "{public}");
        }
    }

    proptest! {
        #[test]
        fn canonical_names_are_their_own_canonical_form(text in "[a-zA-Z0-9_.-]{1,80}") {
            if let Ok(host) = text.parse::<Host>() {
                prop_assert_eq!(host.as_str().parse::<Host>(), Ok(host.clone()));
                prop_assert!(host.as_str().parse::<std::net::IpAddr>().is_err());
            }
        }

        #[test]
        fn bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = Host::parse(&bytes);
        }
    }
}
