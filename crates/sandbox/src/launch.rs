//! From a root tree to a confined PID 1, in two steps: what takes time needs
//! no session, and can be done before there is one.
//!
//! ```text
//! supervisor                          child (becomes init)
//!   clone into new namespaces ------>   wait
//!   id maps, control groups
//!   "go" --------------------------->   ids, loopback, listener, limits,
//!                                       root tree in, pivot
//!   <-------- prepared + listener ----
//!   the workspace ------------------>   attach it, confine
//!   <------------------------ ready --  serve as init
//! ```
//!
//! Each step has a name, so that a refusal says what was refused.

use std::fs;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsFd, OwnedFd};

use cloister_types::link::Enforced;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use serde::{Deserialize, Serialize};

use crate::cgroup::SessionGroups;
use crate::confine::{self, Limits, Seal};
use crate::identity::Identity;
use crate::sys::{self, Forked};
use crate::view::mounts;
use crate::{INSIDE_ID, MODEL_LISTENER, WORKSPACE, init, protocol};

/// A step that was refused.
#[derive(Debug, thiserror::Error, Serialize, Deserialize)]
#[error("{step}: {answer}")]
pub(crate) struct Refused {
    /// What was tried.
    pub(crate) step: String,
    /// What the kernel answered.
    pub(crate) answer: String,
}

impl Refused {
    fn at<E: std::fmt::Display>(step: &str) -> impl FnOnce(E) -> Self {
        let step = step.to_owned();
        move |error| Self { step, answer: error.to_string() }
    }
}

/// What init reports once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// The model listener, which comes along. Sent before init becomes the
    /// inside user: descriptors under way are charged to whoever sends them,
    /// and that user's other sandboxes may have used its account up.
    Listening,
    /// Everything stands but the workspace.
    Prepared,
    /// Confined and waiting.
    Ready { landlock_abi: u32 },
    /// A step failed; init has ended.
    Failed(Refused),
}

/// A sandbox that stands.
pub(crate) struct Sandbox {
    /// Handle of init.
    pub(crate) init: OwnedFd,
    /// Its pid.
    pub(crate) init_pid: i32,
    /// Conversation with init.
    pub(crate) control: OwnedFd,
    /// The listening socket inside, served outside.
    pub(crate) listener: OwnedFd,
    /// What holds.
    pub(crate) enforced: Enforced,
}

const NAMESPACES: i32 = libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS;

/// A sandbox that has no workspace yet.
pub(crate) struct Prepared {
    sandbox: Sandbox,
}

/// Prepares a sandbox on `root`. Called in the process that becomes its
/// supervisor.
pub(crate) fn prepare(
    root: OwnedFd,
    groups: &SessionGroups,
    identity: Identity,
    limits: &Limits,
    enforced: Enforced,
) -> Result<Prepared, Refused> {
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(Refused::at("make init's control socket"))?;
    let (pid, init) = match sys::fork_into(NAMESPACES).map_err(Refused::at("make the namespaces (clone3)"))? {
        Forked::Child => child(root, theirs, limits, &enforced),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((root, theirs));
    map_ids(pid, identity)?;
    groups.admit(pid).map_err(Refused::at("move init into its control groups"))?;
    // A sandbox goes before the server when the whole machine runs short.
    fs::write(format!("/proc/{pid}/oom_score_adj"), "500").map_err(Refused::at("raise the OOM score"))?;
    protocol::send(&ours, &(), &[]).map_err(Refused::at("release init"))?;

    let listener = match hear(&ours)? {
        (Standing::Listening, mut fds) if fds.len() == 1 => fds.remove(0),
        _ => return Err(Refused { step: "hear from init".into(), answer: "it has no listener".into() }),
    };
    match hear(&ours)? {
        (Standing::Prepared, _) => {
            Ok(Prepared { sandbox: Sandbox { init, init_pid: pid, control: ours, listener, enforced } })
        }
        _ => Err(Refused { step: "hear from init".into(), answer: "a word out of place".into() }),
    }
}

impl Prepared {
    /// Handle of init.
    pub(crate) fn init(&self) -> &OwnedFd {
        &self.sandbox.init
    }

    /// Gives it its workspace, and with it its work.
    pub(crate) fn claim(mut self, workspace: OwnedFd) -> Result<Sandbox, Refused> {
        let control = &self.sandbox.control;
        protocol::send(control, &(), &[workspace.as_fd()]).map_err(Refused::at("hand the workspace over"))?;
        drop(workspace);
        match hear(control)? {
            (Standing::Ready { landlock_abi }, _) => {
                self.sandbox.enforced.landlock_abi = landlock_abi;
                Ok(self.sandbox)
            }
            _ => Err(Refused { step: "hear from init".into(), answer: "a word out of place".into() }),
        }
    }
}

/// Ends a sandbox by its init, and waits until nothing of it is left.
pub(crate) fn end(init: &OwnedFd) {
    let _ = pidfd_send_signal(init, Signal::KILL);
    let _ = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(init.as_fd()), WaitIdOptions::EXITED));
}

/// What init says next.
fn hear(control: &OwnedFd) -> Result<(Standing, Vec<OwnedFd>), Refused> {
    match protocol::receive::<Standing>(control).map_err(Refused::at("hear from init"))? {
        Some((Standing::Failed(refused), _)) => Err(refused),
        Some(said) => Ok(said),
        None => Err(Refused { step: "hear from init".into(), answer: "it ended without a word".into() }),
    }
}

/// Maps the inside user to the sandbox's host user, and nobody else.
fn map_ids(pid: i32, identity: Identity) -> Result<(), Refused> {
    let write = |file: &str, text: String| {
        fs::write(format!("/proc/{pid}/{file}"), text).map_err(Refused::at(&format!("write {file}")))
    };
    if !identity.root_mode {
        write("setgroups", "deny".into())?;
    }
    write("uid_map", format!("{INSIDE_ID} {} 1", identity.uid))?;
    write("gid_map", format!("{INSIDE_ID} {} 1", identity.gid))
}

/// The child's side. Never returns: it serves as init or exits.
fn child(root: OwnedFd, control: OwnedFd, limits: &Limits, enforced: &Enforced) -> ! {
    // The supervisor's own socket end must close here, or init would never
    // notice that the supervisor is gone.
    let Ok([root, control]) = sys::keep_only([root, control]) else { std::process::exit(1) };
    let Ok(Some(_)) = protocol::receive::<()>(&control) else { std::process::exit(1) };
    let standing = match set_up(root, &control, limits, enforced).and_then(|inside| enter(inside, &control)) {
        Ok(landlock_abi) => Standing::Ready { landlock_abi },
        Err(refused) => Standing::Failed(refused),
    };
    if protocol::send(&control, &standing, &[]).is_err() || matches!(standing, Standing::Failed(_)) {
        std::process::exit(1);
    }
    init::serve(control)
}

/// What is left to do inside.
struct Inside {
    seal: Seal,
    /// The mount namespaces' limit, to be written last: it counts detached
    /// trees, too.
    last: OwnedFd,
}

fn set_up(root: OwnedFd, control: &OwnedFd, limits: &Limits, enforced: &Enforced) -> Result<Inside, Refused> {
    let listener = network().map_err(Refused::at("set the network up"))?;
    protocol::send(control, &Standing::Listening, &[listener.as_fd()])
        .map_err(Refused::at("hand the listener over"))?;
    drop(listener);
    sys::become_inside(INSIDE_ID).map_err(Refused::at("become the inside user"))?;
    rustix::process::setsid().map_err(Refused::at("start a session (setsid)"))?;
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(Refused::at("make the cgroup namespace"))?;
    rustix::system::sethostname(b"cloister").map_err(Refused::at("set the host name"))?;
    let last = forbid_namespaces().map_err(Refused::at("forbid nested namespaces"))?;

    // The tree needs a place in this namespace before it can become the root.
    // procfs must be made while the old, unmasked one is still visible.
    let spot =
        rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).map_err(Refused::at("open /proc"))?;
    let proc = mounts::process_only_proc().map_err(Refused::at("make procfs (subset=pid)"))?;
    mounts::attach(&root, &spot).map_err(Refused::at("move the root tree in"))?;
    let terminals = mounts::terminals().map_err(Refused::at("make the terminals (devpts)"))?;
    for (mount, folder) in [(proc, "proc"), (terminals, "dev/pts")] {
        let target = rustix::fs::openat(&root, folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(Refused::at(&format!("open the new /{folder}")))?;
        mounts::attach(mount, target).map_err(Refused::at(&format!("attach /{folder}")))?;
    }
    rustix::process::fchdir(&root).map_err(Refused::at("enter the root tree"))?;
    sys::pivot_into_cwd().map_err(Refused::at("pivot the root"))?;
    drop((root, spot));

    rustix::process::umask(Mode::from_raw_mode(0o022));
    fs::create_dir("/tmp/home").map_err(Refused::at("make the home folder"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(Refused::at("open /dev/null"))?;
    for number in 0..3 {
        sys::set_standard(&null, number).map_err(Refused::at("set the standard descriptors"))?;
    }
    let seal = confine::prepare(limits, enforced).map_err(Refused::at("confine"))?;
    Ok(Inside { seal, last })
}

/// Waits for the workspace, and shuts the door behind it.
fn enter(inside: Inside, control: &OwnedFd) -> Result<u32, Refused> {
    protocol::send(control, &Standing::Prepared, &[]).map_err(Refused::at("report that all is prepared"))?;
    let workspace = match protocol::receive::<()>(control) {
        Ok(Some((_, mut fds))) if fds.len() == 1 => fds.remove(0),
        // Nobody needs this sandbox.
        _ => std::process::exit(0),
    };
    let path = format!("/{WORKSPACE}");
    let spot = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(Refused::at("open the workspace mount point"))?;
    mounts::attach(workspace, spot).map_err(Refused::at("attach the workspace view"))?;
    rustix::io::write(&inside.last, b"0").map_err(Refused::at("forbid nested mount namespaces"))?;
    drop(inside.last);
    rustix::process::chdir(path).map_err(Refused::at("enter the workspace"))?;
    inside.seal.close().map_err(Refused::at("confine"))
}

/// Loopback up, and the one listener through which calls leave. It is made
/// here, inside, and served outside: a socket belongs for ever to the
/// namespace that made it.
fn network() -> Result<OwnedFd, Errno> {
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    sys::loopback_up(&socket)?;
    let (address, port) = MODEL_LISTENER;
    rustix::net::bind(&socket, &SocketAddrV4::new(Ipv4Addr::from(address), port))?;
    rustix::net::listen(&socket, 64)?;
    Ok(socket)
}

/// Writes 0 to the per-namespace limits, so that nesting fails even if the
/// filter let it through. Returns the mount limit's file, to be written last.
fn forbid_namespaces() -> Result<OwnedFd, Errno> {
    let open = |kind: &str| {
        rustix::fs::open(
            format!("/proc/sys/user/max_{kind}_namespaces"),
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    };
    for kind in ["user", "net", "pid", "ipc", "uts", "cgroup"] {
        rustix::io::write(open(kind)?, b"0")?;
    }
    // These are charged to the user who made the namespace, too: one session
    // must not use up what the host's own programs need.
    for (kind, most) in [("instances", "32"), ("watches", "16384")] {
        let path = format!("/proc/sys/user/max_inotify_{kind}");
        rustix::io::write(rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?, most.as_bytes())?;
    }
    open("mnt")
}
