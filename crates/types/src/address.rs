//! Which addresses are public, and which are one party's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// May a call to this address leave without having been allowed by name?
/// Everything that is not plainly global unicast is private, and so are the
/// few global ones at which clouds serve their machines (IANA's special-purpose
/// registries of 2026; Azure's 168.63.129.16, which is in none of them).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, d] = address.octets();
    !(a == 0
        || a == 10
        || a == 127
        || a >= 224
        || (a == 100 && (64..128).contains(&b))
        || (a == 169 && b == 254)
        || (a == 172 && (16..32).contains(&b))
        || (a == 192 && b == 168)
        || (a == 192 && b == 0 && (c == 0 || c == 2))
        || (a == 192 && b == 31 && c == 196)
        || (a == 192 && b == 52 && c == 193)
        || (a == 192 && b == 88 && c == 99)
        || (a == 192 && b == 175 && c == 48)
        || (a == 198 && (b == 18 || b == 19))
        || (a == 198 && b == 51 && c == 100)
        || (a == 203 && b == 0 && c == 113)
        || (a, b, c, d) == (168, 63, 129, 16))
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    // Addresses with another one inside are refused whatever that one is:
    // mapped, translated (64:ff9b::/96 is not in 2000::/3), 6to4 and Teredo.
    let [first, second, ..] = address.segments();
    // Global unicast is 2000::/3; of it, what tunnels or documents is not.
    (first & 0xe000) == 0x2000
        && !(first == 0x2001 && second < 0x200)
        && !(first == 0x2001 && second == 0xdb8)
        && !(first == 0x2620 && second == 0x4f && address.segments()[2] == 0x8000)
        && first != 0x2002
        && first != 0x3fff
        && first != 0x5f00
}

/// The network that whoever has an address is taken to have: of version 6, the 2^64
/// addresses around it (RFC 4291, 2.5.4); of version 4, that one.
#[must_use]
pub fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() >> 64 << 64).into(),
        address => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_ranges_are_private_in_every_spelling() {
        for text in [
            "127.0.0.1",
            "10.1.2.3",
            "172.31.0.1",
            "192.168.0.1",
            "169.254.169.254",
            "100.64.0.1",
            "100.100.100.200",
            "0.0.0.0",
            "0.1.2.3",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "198.19.255.255",
            "192.0.2.1",
            "192.0.0.192",
            "168.63.129.16",
            "::1",
            "::",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "::ffff:10.0.0.1",
            "::ffff:1.1.1.1",
            "::7f00:1",
            "2002::1",
            "2002:7f00:1::",
            "2001::1",
            "2001:db8::1",
            "64:ff9b::1",
            "64:ff9b::a00:1",
            "64:ff9b:1::1",
            "100::1",
            "3fff::1",
            "5f00::1",
        ] {
            assert!(!is_public(text.parse().unwrap()), "{text}");
        }
        for text in ["1.1.1.1", "172.32.0.1", "100.128.0.1", "168.63.129.17", "2606:4700::1111", "2001:4860:4860::8888"]
        {
            assert!(is_public(text.parse().unwrap()), "{text}");
        }
    }
}
