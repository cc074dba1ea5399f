//! The server's side of the spawner. Every call blocks for a few
//! milliseconds; callers on an async runtime use a blocking thread.
//!
//! A spawner that died is replaced with the next call. Live sandboxes do not
//! notice; views that it built are of no use to its successor and are told by
//! their generation.

mod launch;
mod upkeep;

use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

pub use self::launch::Launched;
use self::launch::NextFolder;
pub(crate) use self::launch::{exits_and_lifeline, first_signal};
use crate::confine::Limits;
use crate::doctor;
use crate::identity::Identity;
use crate::protocol::{self, Greeting, Request, Setup};
use crate::quota::{Allowance, Asker, Meter, storage};
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
    next_folder: Mutex<Option<NextFolder>>,
    state: Mutex<State>,
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
    meter: Arc<Asker>,
}

impl State {
    fn runs(&mut self) -> bool {
        self.running.as_mut().is_some_and(|running| {
            let mut control = [PollFd::new(&running.control, PollFlags::empty())];
            let _ = poll(&mut control, Some(&Timespec::default()));
            let hung_up = control[0].revents().contains(PollFlags::HUP);
            !hung_up && running.meter.is_well() && matches!(running.child.try_wait(), Ok(None))
        })
    }
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
        let identity = Identity::current()?;
        storage::make(&workspace)?;
        let quota = storage::limit(&workspace, allowance)?;
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&run)?;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let handle = rustix::fs::open(&workspace, flags, Mode::empty())?;
        identity.own(&handle)?;
        let setup = Setup { workspace, agent, image, identity, limits, allowance, quota };
        let state = Mutex::default();
        let next_folder = Mutex::default();
        let host = Self { executable, setup, identity, workspace: handle, run, next_folder, state };
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
                let meter = fds.remove(0);
                rustix::net::sockopt::set_socket_timeout(&meter, rustix::net::sockopt::Timeout::Recv, patience)?;
                let meter = Arc::new(Asker::new(Meter(meter)));
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

    /// Hangs up; sandboxes with a turn go on without a server.
    pub fn let_go(&self) {
        {
            let mut state = self.lock();
            state.stopped = true;
            state.running = None;
        }
        self.forget_next_folder();
    }

    /// Hangs up and waits for the spawner, which ends with its last sandbox.
    pub fn stop(&self) {
        let running = {
            let mut state = self.lock();
            state.stopped = true;
            state.running.take()
        };
        self.forget_next_folder();
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
