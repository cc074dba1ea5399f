//! What is on disk about a live sandbox: a folder of its own with the socket
//! on which its supervisor listens, what it says of itself, and the spools of
//! its turns. Everything in it can be made again from the log.
//!
//! A pid alone says nothing: processes are known by pid, start time and boot.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_types::{ResponseId, SessionId};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::extent;
use crate::spool::{Reader, SpoolError};

/// The socket's name in the folder.
pub(crate) const SOCKET: &str = "socket";
/// The description's name in the folder.
pub(crate) const ABOUT: &str = "about.json";
/// Version of the conversation over the socket; a server of another one ends
/// the sandbox and takes its turn up from the log.
pub(crate) const VERSION: u32 = 3;

/// How long a process that is ending may take to be gone by itself.
const ENDING: Duration = Duration::from_secs(1);
/// How long a killed process may take to be gone.
const DYING: Duration = Duration::from_secs(10);

/// How long a supervisor may take to answer. It has nothing else to do.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);

/// This boot of the machine.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// A process that cannot be confused with a later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pid: i32,
    /// Clock ticks from the boot to its start.
    start: u64,
}

impl Process {
    pub(crate) fn of(pid: i32) -> std::io::Result<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        // The name may hold anything, parentheses too; fields are counted
        // from behind it. The start time is the 22nd of all.
        let start = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(19)?.parse().ok());
        let start = start.ok_or_else(|| std::io::Error::other("an unreadable /proc/<pid>/stat"))?;
        Ok(Self { pid, start })
    }

    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }

    /// A handle of it, if it still exists.
    fn handle(&self) -> Option<OwnedFd> {
        let handle = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Looked at with the handle in hand: the pid cannot be reused now.
        (Self::of(self.pid).ok()? == *self).then_some(handle)
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.handle().is_some()
    }

    /// Waits for it to end by itself.
    fn wait(&self, patience: Duration) {
        if let Some(handle) = self.handle() {
            is_gone_within(&handle, patience);
        }
    }

    /// Ends it, if it still exists, and waits until it is gone; false if it
    /// does not go.
    pub(crate) fn end(&self, patience: Duration) -> bool {
        let Some(handle) = self.handle() else { return true };
        let _ = pidfd_send_signal(&handle, Signal::KILL);
        is_gone_within(&handle, patience)
    }
}

fn is_gone_within(handle: &OwnedFd, patience: Duration) -> bool {
    let timeout = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: i64::from(patience.subsec_nanos()) };
    // Readable once it has ended, even if nobody has collected it yet.
    matches!(poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&timeout)), Ok(1..))
}

/// The processes of a sandbox, and the boot in which they live.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    boot: String,
    supervisor: Process,
    init: Process,
}

impl Known {
    /// Of this process, and the init that it has made.
    pub(crate) fn of(init: i32) -> std::io::Result<Self> {
        let own = std::process::id().cast_signed();
        Ok(Self { boot: boot_id(), supervisor: Process::of(own)?, init: Process::of(init)? })
    }
}

/// What a supervisor says of itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct About {
    pub(crate) version: u32,
    pub(crate) session: SessionId,
    /// Known to the server that started it and to whoever may read the folder.
    pub(crate) launch: String,
    pub(crate) boot: String,
    pub(crate) supervisor: Process,
    pub(crate) init: Process,
}

impl About {
    pub(crate) fn new(session: cloister_types::SessionId, launch: String, known: &Known) -> Self {
        let Known { boot, supervisor, init } = known.clone();
        Self { version: VERSION, session, launch, boot, supervisor, init }
    }

    /// Writes it into the folder, whole or not at all.
    pub(crate) fn write(&self, folder: &OwnedFd) -> std::io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let file = rustix::fs::openat(folder, "about.new", flags, Mode::from_raw_mode(0o600))?;
        std::io::Write::write_all(&mut File::from(file), &serde_json::to_vec(self)?)?;
        Ok(rustix::fs::renameat(folder, "about.new", folder, ABOUT)?)
    }
}

/// Name of a turn's spool.
pub(crate) fn spool_name(turn: &ResponseId, attempt: u32) -> String {
    format!("{turn}.{attempt}")
}

/// The folder of one sandbox, as the server sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Whose it is, by its name.
    pub(crate) fn session(&self) -> Option<SessionId> {
        self.path.file_name()?.to_str()?.split_once('.')?.0.parse().ok()
    }

    pub(crate) fn about(&self) -> Option<About> {
        serde_json::from_slice(&std::fs::read(self.path.join(ABOUT)).ok()?).ok()
    }

    /// The sandbox's first process, if it is alive.
    pub(crate) fn init(&self) -> Option<i32> {
        let about = self.about().filter(|about| about.boot == boot_id())?;
        about.init.is_alive().then(|| about.init.pid())
    }

    /// The spool of a turn, from `offset` on; `None` if there is none here.
    ///
    /// # Errors
    /// The system's.
    pub fn spool(&self, turn: &ResponseId, attempt: u32, offset: u64) -> std::io::Result<Option<Reader>> {
        match File::open(self.path.join(spool_name(turn, attempt))) {
            Ok(file) => Ok(Some(Reader::new(file, offset))),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Bytes of a turn's spool that were surely on disk: if it ends before,
    /// somebody has cut or deleted it.
    ///
    /// # Errors
    /// [`SpoolError::Length`], or the system's.
    pub fn written(&self, turn: &ResponseId, attempt: u32) -> Result<u64, SpoolError> {
        extent::read(&self.path, &spool_name(turn, attempt))
    }

    /// Removes the folder: its sandbox is gone and the log holds the rest.
    /// What cannot be removed now is swept when the next server starts.
    pub fn remove(&self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }

    /// Ends whatever of the sandbox still runs, and waits for it; false if a
    /// process does not go.
    #[must_use]
    pub fn make_sure_it_is_gone(&self) -> bool {
        match self.about() {
            Some(about) if about.boot != boot_id() => true,
            Some(about) => about.supervisor.end(DYING) && about.init.end(DYING),
            // It never stood, or its description was lost.
            None => end_listener(self),
        }
    }

    /// The same for one whose supervisor is ending: that is given a moment to do
    /// it by itself. What it had is then used again at once.
    #[must_use]
    pub fn see_it_off(&self) -> bool {
        if let Some(about) = self.about().filter(|about| about.boot == boot_id()) {
            about.supervisor.wait(ENDING);
        }
        self.make_sure_it_is_gone()
    }

    /// Puts the folder aside, for people to look at: something in it is not
    /// what was written. Its new place.
    ///
    /// # Errors
    /// The system's.
    pub fn put_aside(&self) -> std::io::Result<PathBuf> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let aside = self.path.with_file_name(format!("damaged-{name}"));
        std::fs::rename(&self.path, &aside)?;
        Ok(aside)
    }
}

/// Ends the process that listens in the folder, if one does, and its children;
/// false if one does not go.
fn end_listener(folder: &RunFolder) -> bool {
    let link = match connect(folder.path()) {
        Ok(link) => link,
        // Nobody listens. Anything else says nothing about that.
        Err(error) => {
            return matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused);
        }
    };
    let Ok(peer) = rustix::net::sockopt::socket_peercred(&link) else { return false };
    let pid = peer.pid.as_raw_nonzero().get();
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    let children = children.split_whitespace().filter_map(|child| child.parse().ok());
    let processes = std::iter::once(pid).chain(children).filter_map(|pid| Process::of(pid).ok());
    // All handles first: the children are gone soon after their parent.
    let processes: Vec<Process> = processes.collect();
    processes.into_iter().all(|process| process.end(DYING))
}

/// Connects to the socket in a folder whose path may be too long for an address.
pub(crate) fn connect(folder: &Path) -> std::io::Result<UnixStream> {
    use std::os::fd::AsRawFd;
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC;
    let folder = rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
    // One that takes no more connections must not hold us up.
    rustix::net::sockopt::set_socket_timeout(&socket, rustix::net::sockopt::Timeout::Send, Some(PATIENCE))?;
    rustix::net::connect(&socket, &address)?;
    Ok(UnixStream::from(socket))
}
