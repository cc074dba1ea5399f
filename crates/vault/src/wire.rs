//! What is said on the vault's sockets: frames of a length (4 bytes, big
//! endian), a number (8 bytes) that the answer bears again, and JSON.

use std::os::fd::{AsFd, OwnedFd};

use cloister_types::egress::{Audit, AuditEntry, Connection, ConnectionName, ConnectionRecord, VersionRecord};
use cloister_types::transcript::Metered;
use cloister_types::{Host, SessionId};
use serde::{Deserialize, Serialize};

use crate::key::SealingKey;
pub use crate::place::Place;
pub use crate::records::Refusal;

/// Bytes of a frame.
pub const MAX_FRAME: usize = 2 << 20;

/// The first message on the control socket; then each message brings a link.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Order {
    /// Open the vault.
    Setup(Box<Setup>),
    /// Serve a link, which comes along.
    Link(Role),
}

/// What the vault must know.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Setup {
    /// Where its things are.
    pub place: Place,
    /// Files that hold the keys of models, by model.
    pub models: std::collections::BTreeMap<String, ModelKey>,
    /// Where hosts are that the operator placed.
    pub hosts: std::collections::BTreeMap<Host, std::net::SocketAddr>,
    /// Authorities to trust besides the machine's.
    pub extra_ca: Option<std::path::PathBuf>,
}

/// Where a model's key is, and where it may go.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ModelKey {
    /// The file.
    pub key_file: std::path::PathBuf,
    /// The host and port of the model's base URL.
    pub target: (String, u16),
}

/// Who is at the other end of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// The server: it sets, lists and removes; it is given no credential.
    Server,
    /// Egress: it is given what it attaches; it sets nothing.
    Egress,
}

/// A question.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// The server's: the key that closes secrets for the vault.
    SealingKey,
    /// The server's: set a connection.
    Put {
        /// Its name.
        name: ConnectionName,
        /// What it is.
        connection: Connection,
        /// Who does it.
        caller: String,
    },
    /// The server's: remove a connection.
    Remove {
        /// Its name.
        name: ConnectionName,
        /// Who does it.
        caller: String,
    },
    /// The server's: all connections.
    List,
    /// The server's: one connection.
    Get(ConnectionName),
    /// The server's: a new version of a credential, sealed.
    SetSecret {
        /// Of which connection.
        name: ConnectionName,
        /// The secret, as JSON, closed with the sealing key.
        #[serde(with = "base64_bytes")]
        sealed: Vec<u8>,
        /// Seconds for which the one before stays known.
        grace: f64,
        /// Who does it.
        caller: String,
    },
    /// The server's: end a version, or all.
    Revoke {
        /// Of which connection.
        name: ConnectionName,
        /// Which; all if none.
        version: Option<u64>,
        /// Who does it.
        caller: String,
    },
    /// The server's: what a session may use.
    Permit {
        /// Which.
        session: SessionId,
        /// Its connections.
        connections: Vec<ConnectionName>,
        /// Its models.
        models: Vec<String>,
        /// Refuse if a connection does not exist; else it is left out.
        strict: bool,
    },
    /// The server's: these are all the sessions that there are.
    Prune(Vec<String>),
    /// The server's: a page of the audit.
    Audit {
        /// Of one session.
        session: Option<SessionId>,
        /// After this place.
        after: u64,
        /// Records.
        limit: usize,
    },
    /// The server's: an act, or a refusal, for the audit. Answered when it is on
    /// disk.
    Note(Box<AuditEntry>),
    /// Egress's: what a session may use, without the credentials.
    Permitted(SessionId),
    /// Egress's: the credential for a call.
    Use(Purpose),
    /// Egress's: sign a call to AWS.
    SignAws(Purpose, Box<AwsCall>),
    /// Egress's: sign a handshake with the key of a client certificate.
    SignTls {
        /// For which call.
        purpose: Purpose,
        /// The scheme's number in TLS.
        scheme: u16,
        /// What to sign.
        #[serde(with = "base64_bytes")]
        message: Vec<u8>,
    },
    /// Egress's: the other side took the token for invalid, of which this is the
    /// SHA-256.
    Rejected(Purpose, u64, String),
    /// Egress's: the seed of a session's own authority.
    Authority(SessionId),
    /// Egress's: what happened. Answered when it is on disk; what is not
    /// answered comes again, and is taken once.
    Record {
        /// Which egress process counts them.
        source: String,
        /// The number of the first.
        first: u64,
        /// Without gaps.
        entries: Vec<AuditEntry>,
    },
    /// Egress's: what a session's model calls have used.
    Used(SessionId),
}

/// A call for which something is asked.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Purpose {
    /// Whose.
    pub session: SessionId,
    /// With which connection, or for which model.
    pub with: With,
    /// To which host.
    pub host: String,
    /// And port.
    pub port: u16,
}

/// What a credential belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum With {
    /// A connection.
    Connection(ConnectionName),
    /// A model.
    Model(String),
}

/// The parts of a call to AWS that a signature covers.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AwsCall {
    /// The method.
    pub method: String,
    /// The canonical path.
    pub path: String,
    /// The query as it is sent.
    pub query: String,
    /// Headers to sign, lower case.
    pub headers: Vec<(String, String)>,
    /// SHA-256 of the body, hexadecimal, or `UNSIGNED-PAYLOAD`.
    pub payload: String,
    /// `20260102T030405Z`.
    pub time: String,
}

/// What a session may use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Permitted {
    /// The connection.
    pub name: ConnectionName,
    /// What it is.
    pub connection: Connection,
    /// The version of its credential that is in use; 0 is none.
    pub version: u64,
}

/// What model calls have used, as the audit has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// The session's, from its beginning.
    pub session: Metered,
    /// What that cost, in millionths of a dollar.
    pub cost: u64,
    /// What all sessions' have cost today (UTC).
    pub today: u64,
}

/// What is attached.
#[derive(Clone, Serialize, Deserialize)]
pub enum Material {
    /// A value, and the version that it is of.
    Value(String, u64),
    /// The certificates of a client certificate, in DER, and the version.
    Certificates(Vec<Vec<u8>>, u64),
    /// Headers of a signed call, what of them must not come back, the version.
    Signed(Vec<(String, String)>, Vec<String>, u64),
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Material")
    }
}

/// An answer.
#[derive(Debug, Serialize, Deserialize)]
pub enum Reply {
    /// Done.
    Done,
    /// There is nothing of that name.
    Absent,
    /// It cannot be taken, and why.
    Invalid(String),
    /// The vault failed; its log says why.
    Failed,
    /// Not with this role.
    Forbidden,
    /// To [`Request::SealingKey`].
    SealingKey(SealingKey),
    /// To [`Request::List`].
    Connections(Vec<ConnectionRecord>),
    /// To [`Request::Get`].
    Connection(Box<ConnectionRecord>),
    /// To [`Request::SetSecret`].
    Version(VersionRecord),
    /// To [`Request::Audit`].
    Audit(Box<Audit>),
    /// To [`Request::Permitted`].
    Permitted(Vec<Permitted>),
    /// To [`Request::Use`] and [`Request::SignAws`].
    Material(Material),
    /// To [`Request::SignTls`].
    Signature(#[serde(with = "base64_bytes")] Vec<u8>),
    /// To [`Request::Authority`].
    Seed(#[serde(with = "base64_bytes")] Vec<u8>),
    /// To [`Request::Used`].
    Used(Used),
    /// A session may not, or cannot.
    Refused(Refusal),
}

mod base64_bytes {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

/// Sends an order, with the link that it brings.
///
/// # Errors
/// The vault is gone.
pub fn send(control: impl AsFd, order: &Order, link: Option<&OwnedFd>) -> std::io::Result<()> {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
    let body = serde_json::to_vec(order)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = link.iter().map(|link| link.as_fd()).collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(std::io::Error::other("no room for the link"));
    }
    sendmsg(control, &[std::io::IoSlice::new(&body)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// Waits for an order; `None` when the server is gone.
///
/// # Errors
/// The socket broke, or carries something else.
pub fn receive(control: impl AsFd) -> std::io::Result<Option<(Order, Option<OwnedFd>)>> {
    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
    let mut body = vec![0; 128 << 10];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let got = rustix::io::retry_on_intr(|| {
        recvmsg(&control, &mut [std::io::IoSliceMut::new(&mut body)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)
    })?;
    let mut link = None;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(fds) = message {
            link = fds.last();
        }
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&body[..got.bytes])?, link)))
}
