//! PID 1 of a sandbox: starts the agent when told to, reaps what dies, and
//! ends, and with it everything inside, when its supervisor is gone.

use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use serde::{Deserialize, Serialize};

use crate::protocol;
use crate::sys;

/// From the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum ToInit {
    /// The workspace is there. Once, and first. With descriptors, as those of
    /// [`ToInit::RunAgent`], the agent is to run at once.
    Begin {
        /// Which agent.
        serial: u64,
    },
    /// Run the agent. Descriptors: its link, its log pipe.
    RunAgent {
        /// Told apart from its predecessors, whose end may be reported late.
        serial: u64,
    },
    /// End every process inside.
    Sweep,
    /// End the tools that write to the disk, or all of them; the agent goes on.
    Quell {
        /// All.
        all: bool,
    },
}

/// To the supervisor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum FromInit {
    /// An agent ended.
    AgentExited {
        /// Which agent.
        serial: u64,
        /// The wait status in words: `exit status 1`, `signal 9`.
        how: String,
    },
    /// Nothing is left inside but init.
    Swept,
    /// So many tools were ended.
    Quelled {
        /// Processes.
        count: u32,
        /// Some of them were seen to write.
        wrote: bool,
    },
}

const AGENT: &CStr = c"/opt/sandbox/bin/cloister-agent";
/// What starts it in an image, and with which libraries.
const LOADER: &CStr = c"/opt/sandbox/lib/loader";
const LIBRARIES: &CStr = c"/opt/sandbox/lib";
/// How long tools are watched for writing at a time.
const WATCH: Duration = Duration::from_millis(50);
/// How often in a row, until one is seen: on a busy machine whoever fills the
/// workspace may not get to run in the first.
const WATCHES: u32 = 5;

/// The whole environment of agent and tools: fixed, nothing inherited.
/// Pagers, prompts and progress bars only confuse a program.
const ENVIRONMENT: [&CStr; 23] = [
    c"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    c"HOME=/tmp/home",
    c"USER=agent",
    c"LOGNAME=agent",
    c"LANG=C.UTF-8",
    c"TMPDIR=/tmp",
    c"TERM=dumb",
    c"PAGER=cat",
    c"GIT_TERMINAL_PROMPT=0",
    c"CI=1",
    c"CLOISTER=1",
    // The session's own authority, for all that look elsewhere than in `/etc`.
    c"SSL_CERT_FILE=/tmp/.cloister/ca.pem",
    c"AWS_CA_BUNDLE=/tmp/.cloister/ca.pem",
    c"CARGO_HTTP_CAINFO=/tmp/.cloister/ca.pem",
    c"CLOUDSDK_CORE_CUSTOM_CA_CERTS_FILE=/tmp/.cloister/ca.pem",
    c"CURL_CA_BUNDLE=/tmp/.cloister/ca.pem",
    c"DENO_CERT=/tmp/.cloister/ca.pem",
    c"GIT_SSL_CAINFO=/tmp/.cloister/ca.pem",
    c"GRPC_DEFAULT_SSL_ROOTS_FILE_PATH=/tmp/.cloister/ca.pem",
    c"NODE_EXTRA_CA_CERTS=/tmp/.cloister/ca.pem",
    c"NPM_CONFIG_CAFILE=/tmp/.cloister/ca.pem",
    c"PIP_CERT=/tmp/.cloister/ca.pem",
    c"REQUESTS_CA_BUNDLE=/tmp/.cloister/ca.pem",
];

/// An agent that is to be run: serial and descriptors.
pub(crate) type Awaiting = (u64, Vec<OwnedFd>);

/// Waits until the workspace is there; `None` if nobody needs this sandbox.
/// With it, the agent that is to run at once.
pub(crate) fn wait_for_workspace(control: &OwnedFd) -> Option<Option<Awaiting>> {
    match protocol::receive::<ToInit>(control) {
        Ok(Some((ToInit::Begin { serial }, fds))) => Some((!fds.is_empty()).then_some((serial, fds))),
        _ => None,
    }
}

/// Serves until the supervisor hangs up.
pub(crate) fn serve(control: OwnedFd, children: OwnedFd, first: Option<Awaiting>, image: bool) -> ! {
    let mut agents: Vec<(Pid, u64)> = Vec::new();
    let run = |agents: &mut Vec<(Pid, u64)>, (serial, fds): Awaiting| match start_agent(fds, image) {
        Some(pid) => agents.push((pid, serial)),
        None => std::process::exit(1),
    };
    if let Some(first) = first {
        run(&mut agents, first);
    }
    loop {
        let mut waiting = [PollFd::new(&control, PollFlags::IN), PollFd::new(&children, PollFlags::IN)];
        if !matches!(poll(&mut waiting, None), Ok(_) | Err(Errno::INTR)) {
            std::process::exit(1);
        }
        let (told, child_ended) = (!waiting[0].revents().is_empty(), !waiting[1].revents().is_empty());
        if child_ended {
            reap(&control, &children, &mut agents);
        }
        if told {
            // A hang-up, garbage, or the agent that cannot start: the end.
            match protocol::receive::<ToInit>(&control) {
                Ok(Some((ToInit::RunAgent { serial }, fds))) => run(&mut agents, (serial, fds)),
                Ok(Some((ToInit::Sweep, _))) => sweep(&control, &mut agents),
                Ok(Some((ToInit::Quell { all }, _))) => end_tools(&control, &agents, all),
                _ => std::process::exit(0),
            }
        }
    }
}

fn reap(control: &OwnedFd, children: &OwnedFd, agents: &mut Vec<(Pid, u64)>) {
    let mut drained = [0; 1024];
    while matches!(rustix::io::read(children, &mut drained), Ok(1..)) {}
    collect(control, agents, WaitOptions::NOHANG);
}

/// Ends everything and waits until it is gone. Whatever slipped away from its
/// parent has come to us.
fn sweep(control: &OwnedFd, agents: &mut Vec<(Pid, u64)>) {
    while sys::signal_all_others(libc::SIGKILL).is_ok() {
        collect(control, agents, WaitOptions::empty());
    }
    if protocol::send(control, &FromInit::Swept, &[]).is_err() {
        std::process::exit(0);
    }
}

/// Ends the tools that write while they are watched, with what started them; or
/// all. The rest goes on.
fn end_tools(control: &OwnedFd, agents: &[(Pid, u64)], all: bool) {
    let spared = |pid: Pid| pid.is_init() || agents.iter().any(|(agent, _)| *agent == pid);
    let before = written();
    let writes = |(pid, bytes): (&Pid, &u64)| !spared(*pid) && *bytes > before.get(pid).copied().unwrap_or(0);
    for _ in 0..WATCHES {
        std::thread::sleep(WATCH);
        if written().iter().any(writes) {
            break;
        }
    }
    // From here on nothing grows, and nothing gets away.
    let _ = sys::signal_all_others(libc::SIGSTOP);
    let (mut ended, mut wrote) = (HashSet::new(), false);
    for (pid, bytes) in written() {
        let grown = bytes.saturating_sub(before.get(&pid).copied().unwrap_or(0));
        wrote |= grown > 0 && !spared(pid);
        if all || grown > 0 {
            // Whoever has others write for it is ended as well.
            let mut at = Some(pid);
            while let Some(pid) = at.filter(|pid| !spared(*pid) && ended.insert(*pid)) {
                at = parent(pid);
            }
        }
    }
    let count = ended.into_iter().filter(|pid| kill_process(*pid, Signal::KILL).is_ok()).count();
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    let said = protocol::send(control, &FromInit::Quelled { count, wrote }, &[]);
    let _ = sys::signal_all_others(libc::SIGCONT);
    if said.is_err() {
        std::process::exit(0);
    }
}

/// What each process has written to disks, with the children that it has
/// collected, in bytes; the most there is for one that does not say. Those that
/// have ended say nothing: their parent will, once it collects them.
fn written() -> HashMap<Pid, u64> {
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?));
    let bytes = |pid: Pid| {
        let account = std::fs::read_to_string(format!("/proc/{}/io", pid.as_raw_nonzero())).ok()?;
        account.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok())
    };
    let of = |pid: Pid| match bytes(pid) {
        None if has_ended(pid) => None,
        bytes => Some((pid, bytes.unwrap_or(u64::MAX))),
    };
    pids.filter_map(of).collect()
}

fn has_ended(pid: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
    stat.map_or(true, |stat| stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with(['Z', 'X'])))
}

fn parent(pid: Pid) -> Option<Pid> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?;
    Pid::from_raw(stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()?)
}

fn collect(control: &OwnedFd, agents: &mut Vec<(Pid, u64)>, options: WaitOptions) {
    while let Ok(Some((pid, status))) = wait(options) {
        let Some(at) = agents.iter().position(|(agent, _)| *agent == pid) else { continue };
        let (_, serial) = agents.remove(at);
        let how = match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("exit status {code}"),
            (_, Some(signal)) => format!("signal {signal}"),
            _ => "unknown status".to_owned(),
        };
        if protocol::send(control, &FromInit::AgentExited { serial, how }, &[]).is_err() {
            std::process::exit(0);
        }
    }
}

fn start_agent(fds: Vec<OwnedFd>, image: bool) -> Option<Pid> {
    let [link, log] = <[OwnedFd; 2]>::try_from(fds).ok()?;
    let started = sys::start_program(&|| {
        let _ = exec_agent(&link, &log, image);
    });
    started.ok().and_then(Pid::from_raw)
}

/// In the child, which shares this process's memory until the program runs.
fn exec_agent(link: &OwnedFd, log: &OwnedFd, image: bool) -> Result<(), Errno> {
    sys::unblock_signals()?;
    rustix::process::setsid()?;
    sys::set_standard(log, 1)?;
    sys::set_standard(log, 2)?;
    // The link is standard input: the one descriptor that a program can take
    // over without unsafe code.
    sys::set_standard(link, 0)?;
    sys::close_from(3)?;
    // In an image the agent brings its own C library.
    let by_loader = [LOADER, c"--library-path", LIBRARIES, c"--argv0", AGENT, AGENT];
    let (program, arguments) = if image { (LOADER, &by_loader[..]) } else { (AGENT, &[AGENT][..]) };
    sys::exec(program, arguments, &ENVIRONMENT).map(|_| ())
}

/// Tells init that the workspace is there, and asks it to run the agent whose
/// descriptors these are, if there are any. Called in the supervisor.
pub(crate) fn begin(control: impl AsFd, serial: u64, agent: &[OwnedFd]) -> std::io::Result<()> {
    say(control, &ToInit::Begin { serial }, agent)
}

/// Asks init to run the agent. Called in the supervisor.
pub(crate) fn run_agent(control: impl AsFd, serial: u64, agent: &[OwnedFd]) -> std::io::Result<()> {
    say(control, &ToInit::RunAgent { serial }, agent)
}

fn say(control: impl AsFd, order: &ToInit, fds: &[OwnedFd]) -> std::io::Result<()> {
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    protocol::send(control, order, &fds)
}

/// Asks init to end everything inside. Called in the supervisor.
pub(crate) fn sweep_all(control: impl AsFd) -> std::io::Result<()> {
    protocol::send(control, &ToInit::Sweep, &[])
}

/// Asks init to end the tools that write, or all. Called in the supervisor.
pub(crate) fn quell(control: impl AsFd, all: bool) -> std::io::Result<()> {
    protocol::send(control, &ToInit::Quell { all }, &[])
}
