//! Views and sandboxes, asked for from the spawner.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use cloister_types::SessionId;
use cloister_types::link::{Enforced, FrameReader, Signal};
use cloister_types::scope::FileAccess;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendFlags, SocketFlags, SocketType, socketpair,
};

use super::{Host, HostError, PATIENCE, refused};
use crate::files::View;
use crate::network::Exits;
use crate::protocol::{self, Request, ViewReply};
use crate::run::RunFolder;

/// A sandbox that stands, seen from the server.
#[derive(Debug)]
pub struct Launched {
    /// Frames to and from the supervisor.
    pub link: UnixStream,
    /// Accepted from outside, connected to from inside.
    pub exits: Exits,
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
        let (answer, asker) = answer_socket()?;
        let request = Request::View { session: session.clone(), file_access: file_access.clone() };
        let generation = self.ask(&request, &[asker.as_fd()], None)?;
        drop(asker);
        self.hear_view(&answer, generation)
    }

    /// Starts a sandbox on a view that this host built. With an order, a
    /// [`Command::Start`](cloister_types::link::Command) that is already a
    /// frame, its agent comes up at once, and its turn begins with
    /// [`Command::Begin`](cloister_types::link::Command), which is the caller's
    /// to send when it is ready to follow.
    ///
    /// # Errors
    /// [`HostError::Refused`] names the step that the kernel refused.
    pub fn launch(&self, session: &SessionId, view: &View, order: &[u8]) -> Result<Launched, HostError> {
        let one_file_system = view.is_on_device(rustix::fs::fstat(&self.workspace)?.st_dev);
        let once = || {
            let place = self.place(session, order)?;
            let (session, launch) = (session.clone(), place.launch.clone());
            let (pinned, at_once) = (view.is_pinned(), !order.is_empty());
            let request = Request::Launch { session, launch, one_file_system, pinned, at_once };
            let fds = [place.theirs.as_fd(), view.tree(), place.handle.as_fd()];
            let asked = self.ask(&request, &fds, Some(view.generation()));
            self.stands(place, asked.map(drop))
        };
        match once() {
            // A spare that died as it was claimed; nothing of it is left, and
            // it had not begun.
            Err(HostError::Gone(error)) if hung_up(&error) => once(),
            outcome => outcome,
        }
    }

    /// Builds the view of a session and starts a sandbox on it, in one go.
    ///
    /// # Errors
    /// As [`Host::view`] and [`Host::launch`].
    pub fn open(
        &self,
        session: &SessionId,
        file_access: &FileAccess,
        order: &[u8],
    ) -> Result<(View, Launched), HostError> {
        let place = self.place(session, order)?;
        let (answer, asker) = answer_socket()?;
        let request = Request::Open {
            session: session.clone(),
            file_access: file_access.clone(),
            launch: place.launch.clone(),
            at_once: !order.is_empty(),
        };
        let asked = self.ask(&request, &[asker.as_fd(), place.theirs.as_fd(), place.handle.as_fd()], None);
        drop(asker);
        let view = asked.and_then(|generation| self.hear_view(&answer, generation));
        let (view, built) = match view {
            Ok(view) => (Some(view), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let launched = self.stands(place, built);
        match (launched, view) {
            (Ok(launched), Some(view)) => Ok((view, launched)),
            // As in a launch.
            (Err(HostError::Gone(error)), Some(view)) if hung_up(&error) => {
                self.launch(session, &view, order).map(|launched| (view, launched))
            }
            (Err(error), _) => Err(error),
            (Ok(_), None) => Err(std::io::Error::other("a sandbox without a view").into()),
        }
    }

    fn hear_view(&self, answer: &OwnedFd, generation: u64) -> Result<View, HostError> {
        match protocol::receive(answer).inspect_err(|error| self.give_up(error))? {
            Some((ViewReply::Built { sources, pinned }, fds)) => {
                let mut fds = fds.into_iter();
                let tree = fds.next().ok_or_else(|| std::io::Error::other("a view without its tree"))?;
                Ok(View::new(tree, fds.next(), sources, pinned, self.identity, generation)?)
            }
            Some((ViewReply::Scope(message), _)) => Err(HostError::Scope(message)),
            Some((ViewReply::Kernel(message), _)) => Err(refused(message)),
            _ => Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into()),
        }
    }

    /// Makes what a supervisor is given: its folder, before anything is started,
    /// so that what dies half way is found by it; and its link, which holds as
    /// much of the order as it takes.
    fn place<'a>(&self, session: &SessionId, order: &'a [u8]) -> Result<Place<'a>, HostError> {
        let (ours, theirs) = UnixStream::pair()?;
        ours.set_read_timeout(Some(PATIENCE))?;
        ours.set_write_timeout(Some(PATIENCE))?;
        let (mut rest, flags) = (order, SendFlags::DONTWAIT.union(SendFlags::NOSIGNAL));
        while !rest.is_empty() {
            match rustix::net::send(&ours, rest, flags) {
                Ok(sent) => rest = &rest[sent..],
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        let NextFolder { launch, made, handle } = match self.next_folder().take() {
            Some(next) => next,
            None => NextFolder::make(&self.run)?,
        };
        let folder = RunFolder::new(self.run.join(format!("{session}.{launch}")));
        std::fs::rename(made.path(), folder.path()).inspect_err(|_| made.remove())?;
        Ok(Place { ours, theirs, rest, launch, folder, handle })
    }

    fn next_folder(&self) -> MutexGuard<'_, Option<NextFolder>> {
        self.next_folder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the folder of the launch after this one, while this one is waited
    /// for. What cannot be made is made, or refused, with that launch.
    fn make_next_folder(&self) {
        let mut next = self.next_folder();
        if next.is_none() && !self.lock().stopped {
            *next = NextFolder::make(&self.run).ok();
        }
    }

    /// Removes it: there is no launch any more.
    pub(super) fn forget_next_folder(&self) {
        if let Some(next) = self.next_folder().take() {
            next.made.remove();
        }
    }

    /// Waits for the word of a supervisor that was asked for.
    fn stands(&self, place: Place<'_>, asked: Result<(), HostError>) -> Result<Launched, HostError> {
        let Place { mut ours, theirs, rest, folder, .. } = place;
        drop(theirs);
        self.make_next_folder();
        let answer = asked.and_then(|()| Ok(first_signal(&ours).inspect_err(|error| self.give_up(error))?));
        let refusal = match answer {
            Ok((Signal::Ready(enforced), fds)) => match exits_and_lifeline(fds) {
                Some((exits, lifeline)) => {
                    // One that is gone by now is noticed by whoever follows it.
                    let _ = std::io::Write::write_all(&mut ours, rest);
                    ours.set_read_timeout(None)?;
                    ours.set_write_timeout(None)?;
                    return Ok(Launched { link: ours, exits, lifeline, folder, enforced });
                }
                None => std::io::Error::other("descriptors are missing").into(),
            },
            Ok((Signal::Unready { message }, _)) => refused(message),
            Ok(_) => std::io::Error::other("an answer that makes no sense").into(),
            Err(error) => error,
        };
        folder.remove();
        Err(refusal)
    }
}

/// What comes along with a word that a sandbox stands.
pub(crate) fn exits_and_lifeline(mut fds: Vec<OwnedFd>) -> Option<(Exits, OwnedFd)> {
    let lifeline = fds.pop()?;
    Some((Exits::from_fds(fds.try_into().ok()?), lifeline))
}

/// Did the other side of a link end? Without having read what was sent, too.
fn hung_up(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::ConnectionReset)
}

/// What a supervisor is given, as the server holds it.
struct Place<'a> {
    ours: UnixStream,
    theirs: UnixStream,
    /// What the link had no room for.
    rest: &'a [u8],
    launch: String,
    folder: RunFolder,
    handle: OwnedFd,
}

/// A folder for a supervisor that is still to be asked for. Dropping it leaves
/// it; it is swept like others that belong to nobody.
pub(super) struct NextFolder {
    launch: String,
    made: RunFolder,
    handle: OwnedFd,
}

impl NextFolder {
    fn make(run: &Path) -> std::io::Result<Self> {
        let launch = launch_name()?;
        let made = RunFolder::new(run.join(format!("next.{launch}")));
        std::fs::DirBuilder::new().mode(0o700).create(made.path())?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(made.path(), flags, Mode::empty()).inspect_err(|_| made.remove())?;
        Ok(Self { launch, made, handle })
    }
}

/// A socket for an answer, and its end for whoever answers.
fn answer_socket() -> Result<(OwnedFd, OwnedFd), HostError> {
    let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    rustix::net::sockopt::set_socket_timeout(&ours, rustix::net::sockopt::Timeout::Recv, Some(PATIENCE))?;
    Ok((ours, theirs))
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
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
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
