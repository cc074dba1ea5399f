//! The server's side of the spawner. Every call blocks for a few
//! milliseconds; callers on an async runtime use a blocking thread.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use cloister_types::SessionId;
use cloister_types::link::{Enforced, Fact, FrameReader};
use cloister_types::scope::FileAccess;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, socketpair,
};

use crate::confine::Limits;
use crate::doctor;
use crate::files::View;
use crate::identity::Identity;
use crate::protocol::{self, Request, ViewReply};

/// How long a launch or a view may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why the sandbox side could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The scope cannot be honoured: the client's to mend.
    #[error("{0}")]
    Scope(String),
    /// The kernel refused a step; the second text is the remedy.
    #[error("{message}")]
    Refused {
        /// Step and answer.
        message: String,
        /// What to do.
        fix: String,
    },
    /// The spawner did not answer.
    #[error("the sandbox spawner does not answer: {0}")]
    Gone(std::io::Error),
}

impl From<std::io::Error> for HostError {
    fn from(error: std::io::Error) -> Self {
        Self::Gone(error)
    }
}

impl From<rustix::io::Errno> for HostError {
    fn from(errno: rustix::io::Errno) -> Self {
        Self::Gone(errno.into())
    }
}

fn refused(message: String) -> HostError {
    let (step, answer) = message.rsplit_once(": ").unwrap_or((&message, ""));
    let fix = doctor::fix_for(step, answer);
    HostError::Refused { message, fix }
}

/// A running spawner. Dropping it hangs up, upon which the spawner and all
/// its sandboxes end.
pub struct Host {
    control: Option<OwnedFd>,
    child: Mutex<Child>,
    identity: Identity,
    workspace: OwnedFd,
}

/// A sandbox that stands, seen from the server.
#[derive(Debug)]
pub struct Launched {
    /// Frames to and from the supervisor.
    pub link: UnixStream,
    /// The model listener: accepted from outside, connected to from inside.
    pub listener: OwnedFd,
    /// What the kernel enforces.
    pub enforced: Enforced,
}

impl Host {
    /// Makes the workspace folder if need be and starts the spawner.
    ///
    /// # Errors
    /// The executable is missing, or the workspace cannot be made.
    pub fn start(executable: &Path, agent: &Path, workspace: &Path) -> std::io::Result<Self> {
        let identity = Identity::current();
        std::fs::create_dir_all(workspace)?;
        let handle = OwnedFd::from(std::fs::File::open(workspace)?);
        identity.own(&handle)?;
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child = Command::new(executable)
            .arg("spawner")
            .args([workspace, agent])
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| std::io::Error::new(error.kind(), format!("start {}: {error}", executable.display())))?;
        Ok(Self { control: Some(ours), child: Mutex::new(child), identity, workspace: handle })
    }

    /// The tenant's `.pokee/*.md`, joined; and what had to be left out.
    #[must_use]
    pub fn context(&self) -> (String, Vec<String>) {
        crate::files::read_context(&self.workspace, self.identity)
    }

    /// Would building this view anew show something else?
    #[must_use]
    pub fn is_stale(&self, view: &View) -> bool {
        view.is_stale(&self.workspace)
    }

    /// Removes the private folder of a session that is no more.
    ///
    /// # Errors
    /// What the file system answers; a missing folder is no error.
    pub fn remove_private(&self, session: &SessionId) -> std::io::Result<()> {
        use std::os::fd::AsRawFd;
        // Removal by std walks by descriptor and follows no link.
        let path =
            format!("/proc/self/fd/{}/{}/{session}", self.workspace.as_raw_fd(), cloister_types::scope::SESSIONS);
        match self.identity.act(|| std::fs::remove_dir_all(path)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn ask(&self, request: &Request, fds: &[std::os::fd::BorrowedFd<'_>]) -> Result<(), HostError> {
        let control = self.control.as_ref().ok_or_else(|| std::io::Error::other("it was stopped"))?;
        Ok(protocol::send(control, request, fds)?)
    }

    /// Builds the view of a session: what it sees of the workspace.
    ///
    /// # Errors
    /// [`HostError::Scope`] if the scope names something that cannot be shown.
    pub fn view(&self, session: &SessionId, file_access: &FileAccess) -> Result<View, HostError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        self.ask(&Request::View { session: session.clone(), file_access: file_access.clone() }, &[theirs.as_fd()])?;
        drop(theirs);
        match protocol::receive(&ours)? {
            Some((ViewReply::Built { sources }, mut fds)) if fds.len() == 1 => {
                Ok(View::new(fds.remove(0), sources, self.identity)?)
            }
            Some((ViewReply::Scope(message), _)) => Err(HostError::Scope(message)),
            Some((ViewReply::Kernel(message), _)) => Err(refused(message)),
            _ => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        }
    }

    /// Starts a sandbox on a view that this host built.
    ///
    /// # Errors
    /// [`HostError::Refused`] names the step that the kernel refused.
    pub fn launch(&self, session: &SessionId, view: &View, limits: &Limits) -> Result<Launched, HostError> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        self.ask(&Request::Launch { session: session.clone(), limits: *limits }, &[theirs.as_fd(), view.tree()])?;
        drop(theirs);
        let (fact, mut fds) = first_fact(&ours)?;
        ours.set_read_timeout(None)?;
        match fact {
            Fact::Ready(enforced) if fds.len() == 1 => Ok(Launched { link: ours, listener: fds.remove(0), enforced }),
            Fact::Unready { message } => Err(refused(message)),
            _ => Err(std::io::Error::other("an answer that makes no sense").into()),
        }
    }

    /// Hangs up and waits for the spawner to end everything it started.
    pub fn stop(&mut self) {
        self.control = None;
        if let Ok(mut child) = self.child.lock() {
            let _ = child.wait();
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
    }
}

/// The first frame, byte for byte up to its end: what follows belongs to the
/// next reader.
fn first_fact(socket: &UnixStream) -> std::io::Result<(Fact, Vec<OwnedFd>)> {
    let mut fds = Vec::new();
    let mut reader = FrameReader::default();
    let mut wanted = 4;
    let mut head = Vec::new();
    loop {
        let mut buffer = vec![0; wanted];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(2))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let got =
            rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut buffer)], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(received) = message {
                fds.extend(received);
            }
        }
        if got.bytes == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        reader.push(&buffer[..got.bytes]);
        head.extend_from_slice(&buffer[..got.bytes]);
        if let Some(fact) = reader.next::<Fact>().map_err(std::io::Error::other)? {
            return Ok((fact, fds));
        }
        wanted = match head.first_chunk::<4>() {
            None => 4 - head.len(),
            Some(length) => (u32::from_be_bytes(*length) as usize + 4).saturating_sub(head.len()).clamp(1, 1 << 20),
        };
    }
}
