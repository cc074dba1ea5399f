//! Views and sandboxes, asked for from the spawner.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;

use cloister_types::SessionId;
use cloister_types::link::{Enforced, FrameReader, Signal};
use cloister_types::scope::FileAccess;
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, socketpair,
};

use super::{Host, HostError, PATIENCE, refused};
use crate::files::View;
use crate::protocol::{self, Request, ViewReply};
use crate::run::RunFolder;

/// A sandbox that stands, seen from the server.
#[derive(Debug)]
pub struct Launched {
    /// Frames to and from the supervisor.
    pub link: UnixStream,
    /// The model listener: accepted from outside, connected to from inside.
    pub listener: OwnedFd,
    /// Ends with the supervisor.
    pub lifeline: OwnedFd,
    /// Where it keeps what the server reads.
    pub folder: RunFolder,
    /// What the kernel enforces.
    pub enforced: Enforced,
}

impl Host {
    /// Builds the view of a session: what it sees of the workspace.
    ///
    /// # Errors
    /// [`HostError::Scope`] if the scope names something that cannot be shown.
    pub fn view(&self, session: &SessionId, file_access: &FileAccess) -> Result<View, HostError> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
        let request = Request::View { session: session.clone(), file_access: file_access.clone() };
        let generation = self.ask(&request, &[theirs.as_fd()], None)?;
        drop(theirs);
        let answer = protocol::receive(&ours).inspect_err(|error| self.give_up(error))?;
        match answer {
            Some((ViewReply::Built { sources }, mut fds)) if fds.len() == 1 => {
                Ok(View::new(fds.remove(0), sources, self.identity, generation)?)
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
    pub fn launch(&self, session: &SessionId, view: &View) -> Result<Launched, HostError> {
        match self.launch_once(session, view) {
            // A spare that died as it was claimed; nothing of it is left.
            Err(HostError::Gone(error)) if error.kind() == std::io::ErrorKind::UnexpectedEof => {
                self.launch_once(session, view)
            }
            outcome => outcome,
        }
    }

    fn launch_once(&self, session: &SessionId, view: &View) -> Result<Launched, HostError> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        // Before anything is started: what dies half way is found by it.
        let launch = launch_name()?;
        let folder = RunFolder::new(self.run.join(format!("{session}.{launch}")));
        std::fs::DirBuilder::new().mode(0o700).create(folder.path())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(folder.path(), flags, Mode::empty())?;
        let one_file_system = view.is_on_device(rustix::fs::fstat(&self.workspace)?.st_dev);
        let request = Request::Launch { session: session.clone(), launch, one_file_system };
        let answer = self
            .ask(&request, &[theirs.as_fd(), view.tree(), handle.as_fd()], Some(view.generation()))
            .and_then(|_| {
                drop(theirs);
                Ok(first_signal(&ours).inspect_err(|error| self.give_up(error))?)
            });
        let refusal = match answer {
            Ok((Signal::Ready(enforced), fds)) => match <[OwnedFd; 2]>::try_from(fds) {
                Ok([listener, lifeline]) => {
                    ours.set_read_timeout(None)?;
                    return Ok(Launched { link: ours, listener, lifeline, folder, enforced });
                }
                Err(_) => std::io::Error::other("descriptors are missing").into(),
            },
            Ok((Signal::Unready { message }, _)) => refused(message),
            Ok(_) => std::io::Error::other("an answer that makes no sense").into(),
            Err(error) => error,
        };
        folder.remove();
        Err(refusal)
    }
}

/// Sixteen random bytes in hexadecimal.
fn launch_name() -> std::io::Result<String> {
    let mut bytes = [0; 16];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// The first frame, byte for byte up to its end: what follows belongs to the
/// next reader.
pub(crate) fn first_signal(socket: &UnixStream) -> std::io::Result<(Signal, Vec<OwnedFd>)> {
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
        if let Some(fact) = reader.next_frame::<Signal>().map_err(std::io::Error::other)? {
            return Ok((fact, fds));
        }
        wanted = match head.first_chunk::<4>() {
            None => 4 - head.len(),
            Some(length) => (u32::from_be_bytes(*length) as usize + 4).saturating_sub(head.len()).clamp(1, 1 << 20),
        };
    }
}
