//! A sandbox's network: loopback, to which every address leads, and the few
//! sockets through which calls leave. It is made outside and belongs to the spawner's user namespace, so
//! nobody inside has any right over it; and as making and ending one is what a
//! sandbox costs most, it is used again, once nothing is left in it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloister_types::link::RESOLVER;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::sys;

/// The namespace that this process is in.
pub(crate) fn current() -> Result<OwnedFd> {
    openat(CWD, "/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Moves this process, which must have one thread, to a network.
pub(crate) fn enter(network: impl AsFd) -> Result<()> {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
}

/// Moves this process to a new network, in which nothing works yet.
pub(crate) fn enter_bare() -> Result<()> {
    sys::unshare(libc::CLONE_NEWNET)
}

/// Brings loopback up in the network that this process is in, and makes every
/// address its own: whatever a program dials is answered here, or refused.
pub(crate) fn furnish() -> Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(&socket)?;
    lead_everything_here()?;
    current()
}

/// Index of loopback in every network.
const LOOPBACK: u32 = 1;
/// An address that is not loopback's, so that look-ups for "families that are
/// configured" find IPv4: the dummy address of RFC 7600.
const DUMMY: [u8; 4] = [192, 0, 0, 8];

/// Two requests to the kernel (rtnetlink(7)): an address, and a route by which
/// all of IPv4 is local. IPv6 leads nowhere.
fn lead_everything_here() -> Result<()> {
    let socket = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    let family = AddressFamily::INET.as_raw() as u8;
    let mut address = vec![family, 32, 0, 0];
    address.extend(LOOPBACK.to_ne_bytes());
    attribute(&mut address, libc::IFA_LOCAL, &DUMMY);
    ask_kernel(&socket, libc::RTM_NEWADDR, &address)?;
    let (table, kind) = (libc::RT_TABLE_LOCAL, libc::RTN_LOCAL);
    let mut route = vec![family, 0, 0, 0, table, libc::RTPROT_STATIC, libc::RT_SCOPE_HOST, kind, 0, 0, 0, 0];
    attribute(&mut route, libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
    ask_kernel(&socket, libc::RTM_NEWROUTE, &route)
}

fn attribute(message: &mut Vec<u8>, kind: u16, value: &[u8; 4]) {
    message.extend(8_u16.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(value);
}

/// Sends one request and waits for the kernel's word.
fn ask_kernel(socket: &OwnedFd, kind: u16, body: &[u8]) -> Result<()> {
    let length = 16 + u32::try_from(body.len()).unwrap_or(0);
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = length.to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend((flags as u16).to_ne_bytes());
    message.extend([0; 8]);
    message.extend(body);
    rustix::net::send(socket, &message, rustix::net::SendFlags::empty())?;
    let mut answer = [0_u8; 256];
    let (got, _) = rustix::net::recv(socket, &mut answer, rustix::net::RecvFlags::empty())?;
    // A header of 16 bytes, then the error's number, negative or 0.
    let code = answer[..got].get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match code {
        Some(0) => Ok(()),
        Some(error) => Err(Errno::from_raw_os_error(-error)),
        None => Err(Errno::PROTO),
    }
}

/// The sockets of a sandbox, made inside, served outside.
#[derive(Debug)]
pub struct Exits {
    /// TCP, port 80 of every address: model calls at [`crate::MODEL_LISTENER`],
    /// `http://` at others.
    pub http: OwnedFd,
    /// TCP, port 443 of every address.
    pub https: OwnedFd,
    /// UDP, the resolver.
    pub names: OwnedFd,
    /// TCP, the resolver.
    pub names_tcp: OwnedFd,
}

/// How many descriptors they are.
pub const EXITS: usize = 4;

impl Exits {
    /// Makes them in this process's network. A socket belongs for ever to the
    /// namespace that made it.
    pub(crate) fn make() -> Result<Self> {
        let anywhere = Ipv4Addr::UNSPECIFIED;
        let resolver = Ipv4Addr::from(RESOLVER);
        Ok(Self {
            http: listener(anywhere, 80)?,
            https: listener(anywhere, 443)?,
            names: bound(SocketType::DGRAM, resolver, 53)?,
            names_tcp: listener(resolver, 53)?,
        })
    }

    /// In the order in which they travel.
    #[must_use]
    pub fn as_fds(&self) -> [BorrowedFd<'_>; EXITS] {
        [self.http.as_fd(), self.https.as_fd(), self.names.as_fd(), self.names_tcp.as_fd()]
    }

    /// From that order.
    #[must_use]
    pub fn from_fds([http, https, names, names_tcp]: [OwnedFd; EXITS]) -> Self {
        Self { http, https, names, names_tcp }
    }
}

fn bound(kind: SocketType, address: Ipv4Addr, port: u16) -> Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address, port))?;
    Ok(socket)
}

fn listener(address: Ipv4Addr, port: u16) -> Result<OwnedFd> {
    let socket = bound(SocketType::STREAM, address, port)?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// What the kernel counts in a network that nobody has used yet; some sockets
/// are its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Silence(Vec<(String, u64)>);

impl Silence {
    /// Looks at a new network; `home` is where this process belongs.
    pub(crate) fn measure(home: &OwnedFd) -> Result<Self> {
        enter_bare()?;
        let network = furnish()?;
        enter(home)?;
        Ok(Self(counts(&network, home)?))
    }

    /// Is nothing left in a network: no socket, not even one that waits for
    /// the last packets of a connection?
    pub(crate) fn is_in(&self, network: &OwnedFd, home: &OwnedFd) -> bool {
        counts(network, home).is_ok_and(|counts| counts == self.0)
    }
}

fn counts(network: &OwnedFd, home: &OwnedFd) -> Result<Vec<(String, u64)>> {
    enter(network)?;
    let texts = ["sockstat", "sockstat6"].map(|file| std::fs::read_to_string(format!("/proc/self/net/{file}")));
    // Where it cannot return to, this process must not go on.
    if let Err(errno) = enter(home) {
        eprintln!("cloister-sandbox: the spawner is lost in a sandbox's network: {errno}");
        std::process::exit(1);
    }
    let [four, six] = texts;
    let four = four.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    // Where there is no IPv6 there are no sockets of it.
    Ok(parse(&(four + &six.unwrap_or_default())))
}

/// Sockets by kind, as the kernel counts them for one network; other counts in
/// the same text are of the whole machine.
fn parse(text: &str) -> Vec<(String, u64)> {
    let mut counts = Vec::new();
    for line in text.lines() {
        let Some((kind, rest)) = line.split_once(':') else { continue };
        let mut words = rest.split_whitespace();
        while let (Some(word), Some(count)) = (words.next(), words.next()) {
            if let ("used" | "inuse" | "tw", Ok(count)) = (word, count.parse()) {
                counts.push((format!("{kind} {word}"), count));
            }
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_the_network_are_counted_and_the_machines_memory_is_not() {
        let text = "sockets: used 2\nTCP: inuse 1 orphan 3 tw 4 alloc 9 mem 4\nFRAG: inuse 0 memory 5\nUDP6: inuse 6\n";
        let want = [("sockets used", 2), ("TCP inuse", 1), ("TCP tw", 4), ("FRAG inuse", 0), ("UDP6 inuse", 6)];
        assert_eq!(parse(text), want.map(|(kind, count)| (kind.to_owned(), count)));
    }
}
