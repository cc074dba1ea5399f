//! A sandbox's network: loopback, and the one listener through which calls
//! leave. It is made outside and belongs to the spawner's user namespace, so
//! nobody inside has any right over it; and as making and ending one is what a
//! sandbox costs most, it is used again, once nothing is left in it.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::io::{Errno, Result};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::{MODEL_LISTENER, sys};

/// The namespace that this process is in.
pub(crate) fn current() -> Result<OwnedFd> {
    openat(CWD, "/proc/self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

/// Moves this process, which must have one thread, to a network.
pub(crate) fn enter(network: impl AsFd) -> Result<()> {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
}

/// Moves this process to a new network, with loopback up.
pub(crate) fn enter_new() -> Result<OwnedFd> {
    sys::unshare(libc::CLONE_NEWNET)?;
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(&socket)?;
    current()
}

/// The model listener, in this process's network. A socket belongs for ever to
/// the namespace that made it: it is served outside.
pub(crate) fn listener() -> Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let (address, port) = MODEL_LISTENER;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::from(address), port))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// What the kernel counts in a network that nobody has used yet; some sockets
/// are its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Silence(Vec<(String, u64)>);

impl Silence {
    /// Looks at a new network; `home` is where this process belongs.
    pub(crate) fn measure(home: &OwnedFd) -> Result<Self> {
        let network = enter_new()?;
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
