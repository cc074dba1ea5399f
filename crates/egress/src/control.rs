//! What the server tells egress, over a seqpacket socket: one JSON message,
//! with the descriptors that belong to it.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cloister_types::egress::Policy;
use cloister_types::model::{Price, Wire};
use cloister_types::{Host, SessionId};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

use crate::limits::Limits;

/// Where a model lives.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Upstream {
    /// The protocol, which fixes the path and how the key is sent.
    pub wire: Wire,
    /// What the vendor's SDK calls base URL.
    pub base_url: String,
    /// The provider's name for the model: no other may be asked for.
    pub upstream_model: String,
    /// Does it want a key?
    pub keyed: bool,
    /// May it lie on loopback or a private address?
    pub allow_private: bool,
    /// What its tokens cost.
    pub price: Price,
}

/// What egress must know of the tenant.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Setup {
    /// The models, by name.
    pub models: BTreeMap<String, Upstream>,
    /// Hosts that the operator has placed.
    pub hosts: BTreeMap<Host, SocketAddr>,
    /// Authorities to trust besides the machine's.
    pub extra_ca: Option<PathBuf>,
    /// How much may leave.
    pub limits: Limits,
}

/// What a session may do.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pass {
    /// The models that it may call.
    pub models: Vec<String>,
    /// Where it may go without a credential. Its connections are the vault's
    /// to tell.
    pub policy: Policy,
}

/// A message to egress.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Order {
    /// First, once.
    Setup(Box<Setup>),
    /// A link to the vault, which comes along; it takes the place of one before.
    Vault,
    /// Serve a session's sockets, which come along, with the pipe at whose end
    /// the session is somebody else's to serve, or nobody's.
    Attach {
        /// Whose they are.
        session: SessionId,
        /// What it may do.
        pass: Pass,
    },
    /// Stop serving a session.
    Detach {
        /// Whose.
        session: SessionId,
    },
    /// Say on the socket that comes along what a session's model calls have used
    /// so far, as JSON, once that is on disk. Nothing is said if it is not known.
    Usage {
        /// Whose.
        session: SessionId,
    },
    /// Say something on the socket that comes along.
    Well,
    /// Serve a connection of the server's own, which comes along, as if a
    /// session with connections and nothing else had made it. The host is said
    /// by each request.
    Try {
        /// What the vault knows it by.
        session: SessionId,
    },
}

/// Largest message in bytes.
const MAX: usize = 128 << 10;
/// Most descriptors of a message: a session's sockets and its lifeline.
const FDS: usize = 5;

/// Sends an order.
///
/// # Errors
/// Egress is gone, or the order is too large.
pub fn send(socket: impl AsFd, order: &Order, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let body = serde_json::to_vec(order)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(std::io::Error::other("no room for the descriptors"));
    }
    sendmsg(socket, &[IoSlice::new(&body)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for an order; `None` when the server is gone.
///
/// # Errors
/// The socket broke, or carries something else.
pub fn receive(socket: impl AsFd) -> std::io::Result<Option<(Order, Vec<OwnedFd>)>> {
    let mut body = vec![0; MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(&socket, &mut [IoSliceMut::new(&mut body)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut received = Vec::new();
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            received.extend(fds);
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&body[..got.bytes])?, received)))
}
