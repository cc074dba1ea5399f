//! What the server tells egress, over a seqpacket socket: one JSON message,
//! with the listener's descriptor where one is needed.

use std::collections::BTreeMap;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use cloister_types::SessionId;
use cloister_types::model::Wire;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags,
    recvmsg, sendmsg,
};
use serde::{Deserialize, Serialize};

/// Where a model lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upstream {
    /// The protocol, which fixes the path and how the key is sent.
    pub wire: Wire,
    /// What the vendor's SDK calls base URL.
    pub base_url: String,
    /// The file that holds the key; none for servers that want no key.
    pub key_file: Option<PathBuf>,
    /// May it lie on loopback or a private address?
    pub allow_private: bool,
}

/// A message to egress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Order {
    /// The models of the tenant, by name. First, once.
    Models(BTreeMap<String, Upstream>),
    /// Serve a session's listener, which comes along, with the pipe at whose
    /// end the session is somebody else's to serve, or nobody's.
    Attach {
        /// Whose it is.
        session: SessionId,
        /// The models that it may call.
        models: Vec<String>,
    },
    /// Stop serving a session.
    Detach {
        /// Whose.
        session: SessionId,
    },
}

/// Largest message in bytes.
const MAX: usize = 128 << 10;

/// Sends an order.
///
/// # Errors
/// Egress is gone, or the order is too large.
pub fn send(socket: impl AsFd, order: &Order, fds: &[BorrowedFd<'_>]) -> std::io::Result<()> {
    let body = serde_json::to_vec(order)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
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
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
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
