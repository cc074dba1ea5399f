//! The server's side of the spawner. Every call blocks for a few
//! milliseconds; callers on an async runtime use a blocking thread.
//!
//! A spawner that died is replaced with the next call. Live sandboxes do not
//! notice; views that it built are of no use to its successor and are told by
//! their generation.

use std::io::IoSliceMut;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloister_types::SessionId;
use cloister_types::link::{Enforced, FrameReader, Signal};
use cloister_types::scope::{FileAccess, SESSIONS};
use cloister_types::wire::Measured;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType, socketpair,
};

use crate::confine::Limits;
use crate::doctor;
use crate::files::{View, remove_tree};
use crate::identity::Identity;
use crate::measure;
use crate::protocol::{self, Greeting, Request, Setup, ViewReply};
use crate::quota::{Allowance, Full, Meter, storage};
use crate::run::RunFolder;
use crate::survive::survivors;
pub use crate::survive::{Left, Standing};

/// How long a launch or a view may take before it is given up.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the spawner may take to end with everything that it started.
const GOODBYE: Duration = Duration::from_secs(12);

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

/// What a tenant's sandboxes stand on.
#[derive(Debug, Clone)]
pub struct Ground {
    /// The executable of spawner, supervisors and init.
    pub executable: PathBuf,
    /// The agent's.
    pub agent: PathBuf,
    /// The tenant's files; made if it is not there.
    pub workspace: PathBuf,
    /// Where supervisors keep what the server reads; made if it is not there.
    pub run: PathBuf,
    /// A root folder for programs, instead of the host's.
    pub image: Option<PathBuf>,
    /// Of each sandbox.
    pub limits: Limits,
    /// Of all together.
    pub allowance: Allowance,
}

/// The tenant's spawner, kept running. Dropping it hangs up, upon which the
/// spawner and all its sandboxes end.
pub struct Host {
    executable: PathBuf,
    setup: Setup,
    identity: Identity,
    workspace: OwnedFd,
    run: PathBuf,
    state: Mutex<State>,
    reserving: Mutex<()>,
}

/// The present spawner, if there is one, and how many there have been.
#[derive(Default)]
struct State {
    running: Option<Running>,
    generation: u64,
    stopped: bool,
    /// Takes no more orders, and waits for the last of its sandboxes.
    leaving: Vec<Child>,
}

struct Running {
    control: OwnedFd,
    child: Child,
    meter: Arc<Meter>,
}

impl State {
    fn runs(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| {
            let mut control = [PollFd::new(&running.control, PollFlags::empty())];
            let _ = poll(&mut control, Some(&Timespec::default()));
            let hung_up = control[0].revents().contains(PollFlags::HUP);
            !hung_up && matches!(running.child.try_wait(), Ok(None))
        })
    }
}

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
    /// Makes the workspace folder if need be and starts the spawner.
    ///
    /// # Errors
    /// The executable is missing, or the workspace cannot be made. What the
    /// kernel refuses is told by each creation instead, with its remedy; it
    /// may be granted while the server runs.
    pub fn start(ground: Ground) -> Result<Self, HostError> {
        let Ground { executable, agent, workspace, run, image, limits, allowance } = ground;
        let identity = Identity::current();
        storage::make(&workspace)?;
        let quota = storage::limit(&workspace, allowance)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&run)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&workspace, flags, Mode::empty())?;
        identity.own(&handle)?;
        let setup = Setup { workspace, agent, image, limits, allowance, quota };
        let state = Mutex::default();
        let reserving = Mutex::default();
        let host = Self { executable, setup, identity, workspace: handle, run, state, reserving };
        let first = host.ensure(&mut host.lock());
        match first {
            Ok(()) | Err(HostError::Refused { .. }) => Ok(host),
            Err(error) => Err(error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes sure that a spawner runs.
    fn ensure(&self, state: &mut State) -> Result<(), HostError> {
        if state.stopped {
            return Err(std::io::Error::other("it was stopped").into());
        }
        if !state.runs() {
            state.leaving.extend(state.running.take().map(|running| running.child));
            state.leaving.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
            state.running = Some(self.spawn()?);
            state.generation += 1;
        }
        Ok(())
    }

    /// Starts a spawner and waits until it is ready to serve.
    fn spawn(&self) -> Result<Running, HostError> {
        let (control, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        // Its command line can be read in every sandbox, so it says nothing.
        let child = Command::new(&self.executable)
            .arg0("cloister-sandbox")
            .arg("spawner")
            .env_clear()
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .map_err(|error| std::io::Error::new(error.kind(), format!("{}: {error}", self.executable.display())))?;
        let mut child = child;
        let patience = Some(PATIENCE);
        rustix::net::sockopt::set_socket_timeout(&control, rustix::net::sockopt::Timeout::Recv, patience)?;
        let greeted = protocol::send(&control, &self.setup, &[]).and_then(|()| protocol::receive::<Greeting>(&control));
        match greeted {
            Ok(Some((Greeting::Ready, mut fds))) if fds.len() == 1 => {
                let meter = Arc::new(Meter(fds.remove(0)));
                Ok(Running { control, child, meter })
            }
            Ok(Some((Greeting::Failed(message), _))) => {
                end(&mut child);
                Err(refused(message))
            }
            Ok(_) => {
                end(&mut child);
                Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into())
            }
            Err(error) => {
                end(&mut child);
                Err(error.into())
            }
        }
    }

    /// Sends a request to the spawner, or to its successor if it has died.
    /// With `of`, only to the spawner of that generation.
    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>], of: Option<u64>) -> Result<u64, HostError> {
        let mut state = self.lock();
        self.ensure(&mut state)?;
        if of.is_some_and(|of| of != state.generation) {
            return Err(std::io::Error::other("the spawner that built the view is gone").into());
        }
        let running = state.running.as_ref().ok_or_else(|| std::io::Error::other("it was stopped"))?;
        protocol::send(&running.control, request, fds)?;
        Ok(state.generation)
    }

    /// A spawner that has not answered in time is ended; the next request gets
    /// another. Live sandboxes do not notice.
    fn give_up(&self, error: &std::io::Error) {
        if matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut)
            && let Some(mut running) = self.lock().running.take()
        {
            let _ = running.child.kill();
            let _ = running.child.wait();
        }
    }

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

    /// As whom the file API acts.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Asks for room in the workspace for one file of so many bytes, or for so
    /// many more of it.
    ///
    /// # Errors
    /// The spawner is gone; or, inside, why there is no room.
    pub fn reserve(&self, bytes: u64) -> Result<Result<(), Full>, HostError> {
        let meter = {
            let mut state = self.lock();
            self.ensure(&mut state)?;
            state.running.as_ref().map(|running| running.meter.clone())
        };
        let meter = meter.ok_or_else(|| std::io::Error::other("it was stopped"))?;
        // One question at a time, or answers would be mixed up.
        let _turn = self.reserving.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(meter.reserve(bytes)?)
    }

    /// What earlier servers have left, looked after: whoever is at work is
    /// taken over, the rest is gone for certain. Called once, before anything
    /// is launched.
    ///
    /// # Errors
    /// The run folder cannot be read.
    pub fn survivors(&self) -> std::io::Result<Vec<Left>> {
        survivors(&self.run)
    }

    /// What the kernel says of a session's sandbox; nothing if none is alive.
    #[must_use]
    pub fn measure(&self, session: &SessionId) -> Vec<Measured> {
        let folders = std::fs::read_dir(&self.run).into_iter().flatten().flatten();
        let folders = folders.map(|entry| RunFolder::new(entry.path()));
        let mut of_session = folders.filter(|folder| folder.session().as_ref() == Some(session));
        of_session.find_map(|folder| folder.init()).map(measure::measure).unwrap_or_default()
    }

    /// Removes the private folders of sessions that `lives` does not know.
    pub fn sweep_private(&self, lives: impl Fn(&str) -> bool) {
        let Ok(sessions) = crate::view::open_strictly(&self.workspace, SESSIONS) else { return };
        let Ok(entries) = rustix::fs::Dir::read_from(&sessions) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes();
            let is_session = std::str::from_utf8(name).is_ok_and(|name| name.starts_with("sess_") && !lives(name));
            if is_session {
                let _ = self.identity.act(|| remove_tree(&sessions, name));
            }
        }
    }

    /// The tenant's `.pokee/*.md`, joined; and what had to be left out.
    #[must_use]
    pub fn context(&self) -> (String, Vec<String>) {
        crate::files::read_context(&self.workspace, self.identity)
    }

    /// Would building this view anew show something else, or has the spawner
    /// that built it died?
    #[must_use]
    pub fn is_stale(&self, view: &View) -> bool {
        let mut state = self.lock();
        let current = state.generation == view.generation() && state.runs();
        drop(state);
        !current || view.is_stale(&self.workspace)
    }

    /// Removes the private folder of a session that is no more.
    ///
    /// # Errors
    /// What the file system answers; a missing folder is no error.
    pub fn remove_private(&self, session: &SessionId) -> std::io::Result<()> {
        let sessions = crate::view::open_strictly(&self.workspace, SESSIONS)?;
        Ok(self.identity.act(|| remove_tree(&sessions, session.as_str().as_bytes()))?)
    }

    /// Hangs up; sandboxes with a turn go on without a server.
    pub fn let_go(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.running = None;
    }

    /// Hangs up and waits for the spawner, which ends with its last sandbox.
    pub fn stop(&self) {
        let running = {
            let mut state = self.lock();
            state.stopped = true;
            state.running.take()
        };
        let Some(Running { control, mut child, meter }) = running else { return };
        drop((control, meter));
        end(&mut child);
    }
}

/// Waits for a child that is ending; one that does not is killed.
fn end(child: &mut Child) {
    let began = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > GOODBYE {
            let _ = child.kill();
            let _ = child.wait();
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.stop();
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
