//! The PROXY protocol, as balancers send it before anything else: who calls, and
//! in version 2 over which of a cloud's private endpoints.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use tokio::io::{AsyncRead, AsyncReadExt};

/// How each header of version 2 begins; it tells which bytes are one.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// How a line of version 1 begins, which is all that nginx sends, and its most
/// bytes.
const WORD: &[u8] = b"PROXY ";
const LINE: usize = 107;
/// Bytes of what follows the fixed part. Balancers send a few hundred.
const MOST: usize = 4096;

/// What a header says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Header {
    /// The client's address; none if the balancer speaks for itself.
    pub(crate) source: Option<IpAddr>,
    /// The private endpoint, by its cloud's own id.
    pub(crate) endpoint: Option<String>,
}

/// What is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a PROXY header")]
pub(crate) struct NoHeader;

/// Do these bytes begin like a header? None if more are needed to tell.
pub(crate) fn begins(bytes: &[u8]) -> Option<bool> {
    let fits = |start: &[u8]| bytes.iter().zip(start).all(|(one, other)| one == other);
    if !fits(&SIGNATURE) && !fits(WORD) {
        return Some(false);
    }
    (bytes.len() >= SIGNATURE.len()).then_some(true)
}

/// Reads a header, and not a byte more.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> Result<Header, NoHeader> {
    // No header is shorter.
    let mut first = [0; SIGNATURE.len()];
    stream.read_exact(&mut first).await.map_err(|_| NoHeader)?;
    if first.starts_with(WORD) {
        let mut line = first.to_vec();
        while !line.ends_with(b"\r\n") {
            if line.len() == LINE {
                return Err(NoHeader);
            }
            line.push(stream.read_u8().await.map_err(|_| NoHeader)?);
        }
        return parse_line(&line);
    }
    let mut fixed = [0; 4];
    stream.read_exact(&mut fixed).await.map_err(|_| NoHeader)?;
    let length = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
    if first != SIGNATURE || length > MOST {
        return Err(NoHeader);
    }
    let mut rest = vec![0; length];
    stream.read_exact(&mut rest).await.map_err(|_| NoHeader)?;
    parse(fixed[0], fixed[1], &rest)
}

/// A line of version 1.
fn parse_line(line: &[u8]) -> Result<Header, NoHeader> {
    let text = std::str::from_utf8(line).map_err(|_| NoHeader)?.trim_end_matches("\r\n");
    let words: Vec<&str> = text.split(' ').collect();
    let source = match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => return Ok(Header::default()),
        ["PROXY", "TCP4", all @ ..] => ends::<Ipv4Addr>(all)?,
        ["PROXY", "TCP6", all @ ..] => ends::<Ipv6Addr>(all)?,
        _ => return Err(NoHeader),
    };
    Ok(Header { source: Some(source.to_canonical()), endpoint: None })
}

/// The client's address, of two addresses and two ports.
fn ends<A: FromStr + Into<IpAddr>>(words: &[&str]) -> Result<IpAddr, NoHeader> {
    let &[source, to, from_port, to_port] = words else { return Err(NoHeader) };
    let whole = to.parse::<A>().is_ok() && from_port.parse::<u16>().is_ok() && to_port.parse::<u16>().is_ok();
    source.parse::<A>().ok().filter(|_| whole).map(Into::into).ok_or(NoHeader)
}

fn parse(command: u8, family: u8, rest: &[u8]) -> Result<Header, NoHeader> {
    match command {
        // LOCAL: a balancer's own question whether we are there.
        0x20 => return Ok(Header::default()),
        0x21 => {}
        _ => return Err(NoHeader),
    }
    let (source, mut more) = match family {
        // TCP over IPv4: two addresses, two ports.
        0x11 => {
            let (addresses, more) = rest.split_at_checked(12).ok_or(NoHeader)?;
            let source = Ipv4Addr::new(addresses[0], addresses[1], addresses[2], addresses[3]);
            (Some(IpAddr::V4(source)), more)
        }
        0x21 => {
            let (addresses, more) = rest.split_at_checked(36).ok_or(NoHeader)?;
            let mut source = [0; 16];
            source.copy_from_slice(&addresses[..16]);
            // One network must not be written in two ways.
            (Some(Ipv6Addr::from(source).to_canonical()), more)
        }
        // Of other kinds nothing is known of the client.
        _ => return Err(NoHeader),
    };
    let mut endpoint = None;
    while !more.is_empty() {
        let ([kind, high, low], rest) = more.split_first_chunk().ok_or(NoHeader)?;
        let length = usize::from(u16::from_be_bytes([*high, *low]));
        let (value, rest) = rest.split_at_checked(length).ok_or(NoHeader)?;
        endpoint = match endpoint_of(*kind, value) {
            // Two are one too many.
            Some(_) if endpoint.is_some() => return Err(NoHeader),
            found => endpoint.or(found),
        };
        more = rest;
    }
    Ok(Header { source, endpoint })
}

/// The id of a private endpoint, in the forms of the clouds: AWS's `vpce-` id
/// (type 0xEA, subtype 1), Azure's LINKID (0xEE, subtype 1, little endian),
/// Google's connection id (0xE0, big endian).
fn endpoint_of(kind: u8, value: &[u8]) -> Option<String> {
    match (kind, value) {
        (0xea, [1, id @ ..]) => String::from_utf8(id.to_vec()).ok(),
        (0xee, [1, a, b, c, d]) => Some(u32::from_le_bytes([*a, *b, *c, *d]).to_string()),
        (0xe0, id) => <[u8; 8]>::try_from(id).ok().map(|id| u64::from_be_bytes(id).to_string()),
        _ => None,
    }
}

/// The header for a client, as this region's door sends it.
pub(crate) fn header(source: std::net::SocketAddr, to: std::net::SocketAddr) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    let (ports, source, to) = ([source.port(), to.port()], source.ip(), to.ip());
    let addresses: Vec<u8> = match (source, to) {
        (IpAddr::V4(source), IpAddr::V4(to)) => [source.octets(), to.octets()].concat(),
        (source, to) => {
            let wide = |address: IpAddr| match address {
                IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                IpAddr::V6(address) => address.octets(),
            };
            [wide(source), wide(to)].concat()
        }
    };
    out.extend([0x21, if addresses.len() == 8 { 0x11 } else { 0x21 }]);
    out.extend((addresses.len() as u16 + 4).to_be_bytes());
    out.extend(addresses);
    out.extend(ports.iter().flat_map(|port| port.to_be_bytes()));
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_all(bytes: &[u8]) -> Result<Header, NoHeader> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read(&mut &bytes[..]))
    }

    fn with(family: u8, body: &[u8]) -> Vec<u8> {
        [&SIGNATURE[..], &[0x21, family], &(body.len() as u16).to_be_bytes(), body].concat()
    }

    #[test]
    fn what_is_sent_is_read() {
        for (source, to) in [("192.0.2.7:1", "198.51.100.1:443"), ("[2001:db8::7]:1", "[2001:db8::1]:443")] {
            let source: std::net::SocketAddr = source.parse().unwrap();
            let read = read_all(&header(source, to.parse().unwrap())).unwrap();
            assert_eq!(read, Header { source: Some(source.ip()), endpoint: None });
        }
        let mixed = header("192.0.2.7:1".parse().unwrap(), "[2001:db8::1]:443".parse().unwrap());
        assert_eq!(read_all(&mixed).unwrap().source, Some("192.0.2.7".parse().unwrap()));
    }

    #[test]
    fn endpoints_of_the_clouds_are_read() {
        let addresses = [192, 0, 2, 7, 198, 51, 100, 1, 0, 1, 1, 187];
        let tlv = |kind: u8, value: &[u8]| [&[kind], &(value.len() as u16).to_be_bytes()[..], value].concat();
        for (tlv, id) in [
            (tlv(0xea, b"\x01vpce-08d2bf15fac5001c9"), "vpce-08d2bf15fac5001c9"),
            (tlv(0xee, &[1, 0x78, 0x56, 0x34, 0x12]), "305419896"),
            (tlv(0xe0, &7_u64.to_be_bytes()), "7"),
        ] {
            let other = [1, 0, 2, b'h', b'2'];
            let read = read_all(&with(0x11, &[&addresses[..], &other, &tlv].concat())).unwrap();
            assert_eq!(read.endpoint.as_deref(), Some(id));
            assert!(read_all(&with(0x11, &[&addresses[..], &tlv, &tlv].concat())).is_err());
        }
    }

    #[test]
    fn what_is_cut_or_of_another_kind_is_none() {
        let whole = header("192.0.2.7:1".parse().unwrap(), "198.51.100.1:443".parse().unwrap());
        for end in 0..whole.len() {
            assert!(read_all(&whole[..end]).is_err(), "{end}");
        }
        for bad in [&b"GET / HTTP/1.1\r\n\r\n"[..], &with(0x31, &[0; 216])] {
            assert!(read_all(bad).is_err());
        }
        assert!(read_all(&with(0x11, &[1, 2, 3])).is_err());
        assert!(read_all(&with(0x11, &[&[0; 12][..], &[0xea, 0, 9, 1]].concat())).is_err());
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(read_all(&local), Ok(Header::default()));
    }

    #[test]
    fn lines_of_the_first_version_are_read_to_their_end() {
        let long = format!("PROXY TCP4 192.0.2.7 198.51.100.1 1 {}443\r\n", "0".repeat(80));
        for (line, expected) in [
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1 443\r\n", Some("192.0.2.7")),
            ("PROXY TCP6 2001:db8::7 2001:db8::1 1 443\r\n", Some("2001:db8::7")),
            ("PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 443\r\n", Some("192.0.2.7")),
            ("PROXY TCP4 2001:db8::7 2001:db8::1 1 443\r\n", None),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1 65536\r\n", None),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", None),
            ("PROXY TCP4  192.0.2.7 198.51.100.1 1 443\r\n", None),
            ("PROXY UDP4 192.0.2.7 198.51.100.1 1 443\r\n", None),
            ("PROXY TCP4 192.0.2.7 198.51.100.1 1 443\n\n", None),
            (&long, None),
        ] {
            let expected = expected.map(|source| Header { source: Some(source.parse().unwrap()), endpoint: None });
            let mut rest = &[line.as_bytes(), b"hello"].concat()[..];
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let read = runtime.block_on(read(&mut rest)).ok();
            assert_eq!(read, expected, "{line}");
            assert!(read.is_none() || rest == b"hello", "not a byte more");
        }
        assert_eq!(read_all(b"PROXY UNKNOWN\r\n"), Ok(Header::default()));
        assert_eq!(
            (begins(b"PRO"), begins(b"PROXY TCP4 1"), begins(b"POST / HTTP/1")),
            (None, Some(true), Some(false))
        );
    }
}
