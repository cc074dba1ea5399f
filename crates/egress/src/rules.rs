//! What may leave, as pure functions.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use cloister_types::model::Wire;
use http::Method;

/// Why a request does not leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not `/<model>` and the wire's one path.
    #[error("only model calls leave this sandbox")]
    NotAModelCall,
    /// Not a method of the wire.
    #[error("only POST is a model call")]
    Method,
    /// The session was not given that model, or there is none of that name.
    #[error("this session may not call that model")]
    Model,
}

/// The model that a request means: `POST /<model><path of its wire>`.
///
/// # Errors
/// The first rule that the request breaks.
pub fn model_of<'p>(
    method: &Method,
    path: &'p str,
    granted: impl Fn(&str) -> Option<Wire>,
) -> Result<&'p str, Refusal> {
    let rest = path.strip_prefix('/').ok_or(Refusal::NotAModelCall)?;
    let slash = rest.find('/').ok_or(Refusal::NotAModelCall)?;
    let (name, tail) = rest.split_at(slash);
    let wire = granted(name).ok_or(Refusal::Model)?;
    if tail != wire.path() {
        return Err(Refusal::NotAModelCall);
    }
    if method == Method::POST { Ok(name) } else { Err(Refusal::Method) }
}

/// May a call to this address leave without having been allowed by name?
/// Everything that is not plainly public is private.
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    if let Some(v4) = address.to_ipv4_mapped() {
        return is_public_v4(v4);
    }
    let [first, second, ..] = address.segments();
    // Global unicast is 2000::/3; of it, what tunnels or documents is not.
    (first & 0xe000) == 0x2000
        && !(first == 0x2001 && second < 0x200)
        && !(first == 0x2001 && second == 0xdb8)
        && first != 0x2002
        && first != 0x3fff
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_granted_models_one_path_passes() {
        let granted = |name: &str| (name == "m").then_some(Wire::AnthropicMessages);
        let of = |method: &Method, path| model_of(method, path, granted);
        assert_eq!(of(&Method::POST, "/m/v1/messages"), Ok("m"));
        for (method, path, why) in [
            (Method::GET, "/m/v1/messages", Refusal::Method),
            (Method::POST, "/m/v1/messages/", Refusal::NotAModelCall),
            (Method::POST, "/m/v1/messages/../files", Refusal::NotAModelCall),
            (Method::POST, "/m/v1/models", Refusal::NotAModelCall),
            (Method::POST, "/m", Refusal::NotAModelCall),
            (Method::POST, "//v1/messages", Refusal::Model),
            (Method::POST, "/other/v1/messages", Refusal::Model),
            (Method::POST, "http://x/m/v1/messages", Refusal::NotAModelCall),
        ] {
            assert_eq!(of(&method, path), Err(why), "{method} {path}");
        }
    }

    #[test]
    fn private_ranges_are_private_in_every_spelling() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.2.1",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "ff02::1",
            "::ffff:10.0.0.1",
            "2002::1",
            "2001:db8::1",
            "64:ff9b::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2001:4860:4860::8888"] {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
