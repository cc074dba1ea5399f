//! What the server asks of the spawner. One request is one seqpacket message
//! with the descriptors that it needs; the answer comes on a socket that the
//! request brings along, so a slow one holds up nobody else.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cloister_types::SessionId;
use cloister_types::scope::FileAccess;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::{Deserialize, Serialize};

use crate::confine::Limits;
use crate::identity::Identity;
use crate::quota::Allowance;

/// Largest message that travels as such; others, such as long scopes, go
/// through a memfd. Every process that receives has room for one: small ones
/// keep small processes small.
const INLINE: usize = 4 << 10;
/// Bytes of a message in a memfd that are read. The longest scope (2,048 paths
/// of 4,095 bytes, each escaped) takes less.
const OUT_OF_LINE: u64 = 64 << 20;
/// Most descriptors in one message.
const MAX_FDS: usize = 4;

/// The first message to a spawner.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Setup {
    /// The tenant's workspace on the host.
    pub(crate) workspace: PathBuf,
    /// The agent's executable on the host.
    pub(crate) agent: PathBuf,
    /// A root folder instead of the host's programs.
    pub(crate) image: Option<PathBuf>,
    /// Who owns the workspace, as the server has found.
    pub(crate) identity: Identity,
    /// Limits of each sandbox.
    pub(crate) limits: Limits,
    /// What all of them may keep in the workspace.
    pub(crate) allowance: Allowance,
    /// The workspace's file system keeps to it by itself.
    pub(crate) quota: bool,
}

/// Its answer.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Greeting {
    /// It serves. A socket of the meter comes along.
    Ready,
    /// It cannot, and ends: step and answer.
    Failed(String),
}

/// A request to the spawner.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Build a view. Descriptors: reply socket.
    View {
        /// Whose.
        session: SessionId,
        /// Of what.
        file_access: FileAccess,
    },
    /// Start a sandbox. Descriptors: the supervisor's link (on which the
    /// answer comes), the view, the supervisor's folder.
    Launch {
        /// Whose.
        session: SessionId,
        /// What its supervisor is known by.
        launch: String,
        /// The view shows files of the workspace's own file system alone.
        one_file_system: bool,
        /// It has mount points in folders that can be changed.
        pinned: bool,
        /// A turn comes with it, on the link.
        at_once: bool,
    },
    /// Both: build a view, and start a sandbox on it. Descriptors: reply
    /// socket, the supervisor's link, its folder.
    Open {
        /// Whose.
        session: SessionId,
        /// Of what.
        file_access: FileAccess,
        /// What its supervisor is known by.
        launch: String,
        /// A turn comes with it, on the link.
        at_once: bool,
    },
}

/// The answer to [`Request::View`].
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ViewReply {
    /// The tree comes along as a descriptor; with a second one, which shows the
    /// spawner that it is needed, if the tree does not end with the first.
    Built {
        /// What it shows.
        sources: Vec<Source>,
        /// It has mount points in folders that can be changed.
        pinned: bool,
    },
    /// The scope cannot be honoured: the client's to mend.
    Scope(String),
    /// The kernel refused.
    Kernel(String),
}

/// A path of the workspace that a view binds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Relative to the workspace.
    pub path: Vec<u8>,
    /// Device and inode when it was bound; `None`: it was absent.
    pub identity: Option<(u64, u64)>,
}

/// Does everything that a view shows lie on one device?
pub(crate) fn shows_only(sources: &[Source], device: u64) -> bool {
    sources.iter().filter_map(|source| source.identity).all(|(of, _)| of == device)
}

/// Sends one message. Large ones go through an anonymous file, which is then
/// the first descriptor.
pub(crate) fn send<T: Serialize>(socket: impl AsFd, message: &T, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let body = serde_json::to_vec(message)?;
    if body.len() <= INLINE {
        return send_raw(socket, &body, fds);
    }
    let file = rustix::fs::memfd_create("message", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    std::io::Write::write_all(&mut file, &body)?;
    let mut all = vec![file.as_fd()];
    all.extend_from_slice(fds);
    send_raw(socket, b"", &all)
}

fn send_raw(socket: impl AsFd, body: &[u8], fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(std::io::Error::other("too many descriptors for one message"));
    }
    // A first byte tells an empty (out-of-line) body from a closed socket.
    let marker = [u8::from(body.is_empty())];
    sendmsg(socket, &[IoSlice::new(&marker), IoSlice::new(body)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Receives one message and its descriptors; `None` when the peer is gone.
pub(crate) fn receive<T: for<'de> Deserialize<'de>>(socket: impl AsFd) -> std::io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut body = vec![0; INLINE + 1];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut body)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    if body[0] == 0 {
        return Ok(Some((serde_json::from_slice(&body[1..got.bytes])?, fds)));
    }
    if fds.is_empty() {
        return Err(std::io::Error::other("a message without its body"));
    }
    let mut file = std::fs::File::from(fds.remove(0));
    std::io::Seek::rewind(&mut file)?;
    let mut body = Vec::new();
    std::io::Read::read_to_end(&mut std::io::Read::take(file, OUT_OF_LINE), &mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

/// How many receivers [`hear_bytes`] knows.
pub const RECEIVERS: u8 = 7;

/// Sends bytes to one of our processes' ears, as a peer that says what it
/// likes: true if they are a message of its protocol, or nothing. `file` comes along as a
/// descriptor, before as many others as `gifts` says. For tests and the fuzzer.
///
/// # Errors
/// The kernel refuses what it takes to try: a socket, a file, the descriptors.
pub fn hear_bytes(receiver: u8, message: &[u8], file: Option<&[u8]>, gifts: usize) -> std::io::Result<bool> {
    use crate::init::{FromInit, ToInit};
    use crate::launch::Standing;
    let (theirs, ours) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    let file = match file {
        Some(bytes) => {
            let mut file = std::fs::File::from(rustix::fs::memfd_create("bytes", rustix::fs::MemfdFlags::CLOEXEC)?);
            std::io::Write::write_all(&mut file, bytes)?;
            Some(file)
        }
        None => None,
    };
    let mut fds: Vec<BorrowedFd<'_>> = file.iter().map(AsFd::as_fd).collect();
    fds.extend(std::iter::repeat_n(theirs.as_fd(), gifts.min(MAX_FDS)));
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS + 1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(std::io::Error::other("too many descriptors for one message"));
    }
    sendmsg(&theirs, &[IoSlice::new(message)], &mut ancillary, SendFlags::NOSIGNAL)?;
    let understood = match receiver % RECEIVERS {
        0 => receive::<Request>(&ours).is_ok(),
        1 => receive::<ViewReply>(&ours).is_ok(),
        2 => receive::<Setup>(&ours).is_ok(),
        3 => receive::<ToInit>(&ours).is_ok(),
        4 => receive::<FromInit>(&ours).is_ok(),
        5 => receive::<Standing>(&ours).is_ok(),
        _ => receive::<crate::quota::Said>(&ours).is_ok(),
    };
    Ok(understood)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_messages_arrive_with_their_descriptors() {
        let (a, b) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        for size in [0, 10, INLINE * 4] {
            let text = "x".repeat(size);
            send(&a, &text, &[a.as_fd()]).unwrap();
            let (got, fds): (String, _) = receive(&b).unwrap().unwrap();
            assert_eq!((got.len(), fds.len()), (size, 1));
        }
        drop(a);
        assert!(receive::<String>(&b).unwrap().is_none());
    }

    proptest::proptest! {
        // No bytes and no descriptors make a receiver panic, or take more
        // memory than a message may have.
        #[test]
        fn whatever_arrives_is_taken_or_refused(
            bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200),
            json in "[\\{\\[\"a-zA-Z0-9:,\\]\\} ]{0,60}",
            out_of_line in proptest::prelude::any::<bool>(),
            fds in 0usize..5,
            receiver in 0..RECEIVERS,
        ) {
            hear_bytes(receiver, &bytes, None, fds).unwrap();
            let file = out_of_line.then_some(json.as_bytes());
            hear_bytes(receiver, &[&[u8::from(out_of_line)], json.as_bytes()].concat(), file, fds).unwrap();
        }
    }

    #[test]
    fn what_is_well_said_is_heard() {
        let said = serde_json::to_vec(&Request::Launch {
            session: SessionId::from_random([1; 6]),
            launch: "l".into(),
            one_file_system: true,
            pinned: true,
            at_once: false,
        });
        let said = said.unwrap();
        assert!(hear_bytes(0, &[&[0], &said[..]].concat(), None, 3).unwrap());
        assert!(hear_bytes(0, &[1], Some(&said), 3).unwrap());
        assert!(!hear_bytes(1, &[1], Some(&said), 3).unwrap());
    }
}
