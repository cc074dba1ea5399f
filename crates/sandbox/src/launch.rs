//! From a root tree to a confined PID 1, in two steps: what takes time needs
//! no session, and is done before there is one. Nothing but our own code runs
//! in a sandbox until it has been claimed.
//!
//! ```text
//! supervisor                          child (becomes init)
//!   network
//!   clone into new namespaces ------>   wait
//!   id maps, control groups
//!   "go" --------------------------->   ids, the root tree as root,
//!   routes, sockets                     limits, Landlock, capabilities, filter
//!   <----------------------- prepared   wait
//!   the workspace, moved in
//!   "begin", with an agent's descriptors if a turn comes along
//!   -------------------------------->   serve as init
//! ```
//!
//! Each step has a name, so that a refusal says what was refused.
//!
//! Where the kernel lets it (6.15), the root tree stays what it was built as, a
//! tree that is mounted nowhere: no mount of it is in the sandbox's own mount
//! namespace. So the kernel has nothing to list (`mountinfo` would tell where the
//! host keeps the workspace), takes no mount of the tree away and changes none, and
//! needs no pivot, which looks at every thread of the host. One thing it
//! does for mount points of the own namespace alone: nobody may remove or rename
//! them. So where they lie in folders that can be changed, the namespace has the
//! same mounts once more, at a place that no path leads to.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};

use cloister_types::link::Enforced;
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use serde::{Deserialize, Serialize};

use crate::cgroup::SessionGroups;
use crate::confine::Limits;
use crate::identity::Identity;
use crate::network::{self, Exits};
use crate::run::Known;
use crate::sys::{self, Forked};
use crate::view::mounts;
use crate::{INSIDE_ID, WORKSPACE, init, protocol, setup};

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
    pub(crate) fn at<E: std::fmt::Display>(step: &str) -> impl FnOnce(E) -> Self {
        let step = step.to_owned();
        move |error| Self { step, answer: error.to_string() }
    }
}

/// What init reports once.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Standing {
    /// Confined; it lacks nothing but the workspace. With what it has used up.
    Prepared { landlock_abi: u32 },
    /// A step failed; init has ended.
    Failed(Refused),
}

/// A sandbox that stands.
pub(crate) struct Sandbox {
    /// Handle of init.
    pub(crate) init: OwnedFd,
    /// Who it is, and who its supervisor.
    pub(crate) known: Known,
    /// Conversation with init.
    pub(crate) control: OwnedFd,
    /// The sockets inside, served outside.
    pub(crate) exits: Exits,
    /// What holds.
    pub(crate) enforced: Enforced,
    /// Its root. One that is mounted nowhere is taken down when this is closed, which
    /// takes a moment; those inside see it on.
    pub(crate) root: OwnedFd,
    /// What init has made and needs no more. The kernel takes its time over
    /// closing it, and nobody should wait for that.
    pub(crate) used_up: Vec<OwnedFd>,
}

const NAMESPACES: i32 =
    libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;

/// A sandbox that has no workspace yet.
pub(crate) struct Prepared {
    sandbox: Sandbox,
    inside: Inside,
}

/// The mount namespace of a sandbox, for its supervisor.
struct Inside {
    namespace: OwnedFd,
    /// The supervisor's own.
    home: OwnedFd,
}

impl Inside {
    fn of(pid: i32) -> Result<Self, Refused> {
        let open = |of: &str, what: &str| {
            let flags = OFlags::RDONLY | OFlags::CLOEXEC;
            rustix::fs::open(format!("/proc/{of}/ns/mnt"), flags, Mode::empty()).map_err(Refused::at(what))
        };
        let namespace = open(&pid.to_string(), "know the sandbox's mount namespace")?;
        Ok(Self { namespace, home: open("self", "know the own mount namespace")? })
    }

    /// Attaches the workspace at a folder of the namespace. Nobody else has been
    /// in there yet, and whoever will be has no right left by which to attach
    /// anything.
    fn attach(&self, workspace: OwnedFd, folder: &str) -> Result<(), Refused> {
        use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
        let enter = |namespace: &OwnedFd| move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount));
        enter(&self.namespace).map_err(Refused::at("enter the sandbox's mount namespace"))?;
        let attached = mounts::host("/").and_then(|root| mounts::attach(workspace, mounts::handle(root, folder)?));
        enter(&self.home).map_err(Refused::at("leave the sandbox's mount namespace"))?;
        attached.map_err(Refused::at("attach the workspace view"))
    }
}

/// What a sandbox is prepared with.
pub(crate) struct Parts<'a> {
    /// Its root tree.
    pub(crate) root: OwnedFd,
    /// Its network; a new one is made if it has none.
    pub(crate) network: Option<&'a OwnedFd>,
    pub(crate) groups: &'a SessionGroups,
    /// Its host user.
    pub(crate) user: Identity,
    pub(crate) limits: &'a Limits,
    pub(crate) enforced: Enforced,
}

/// A sandbox in the making: init works at it, and there is time for something
/// else.
pub(crate) struct Preparing {
    prepared: Prepared,
    /// Its network, if that is new.
    network: Option<OwnedFd>,
}

/// Begins to prepare a sandbox. Called in the process that becomes its
/// supervisor. Init is sent to its work as soon as it can be: it takes longest.
pub(crate) fn prepare(parts: Parts<'_>) -> Result<Preparing, Refused> {
    let Parts { root, network, groups, user, limits, enforced } = parts;
    let (ours, theirs) =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(Refused::at("make init's control socket"))?;
    let go = eventfd(0, EventfdFlags::CLOEXEC).map_err(Refused::at("make init's starting signal"))?;
    let home = network::current().map_err(Refused::at("know the own network"))?;
    match network {
        Some(network) => network::enter(network).map_err(Refused::at("enter the network"))?,
        None => network::enter_bare().map_err(Refused::at("make the network"))?,
    }
    let doors = groups.doors().map_err(Refused::at("open the control groups"))?;
    let (pid, init) = match sys::fork_into(NAMESPACES).map_err(Refused::at("make the namespaces (clone3)"))? {
        Forked::Child => setup::child(root, theirs, go, doors, limits, &enforced),
        Forked::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((theirs, doors));
    // Now, while it may be looked at: init is about to close itself to that.
    let inside = Inside::of(pid)?;
    map_ids(pid, user)?;
    groups.admit(pid).map_err(Refused::at("move init into its control groups"))?;
    // A sandbox goes before the server when the whole machine runs short.
    fs::write(format!("/proc/{pid}/oom_score_adj"), "500").map_err(Refused::at("raise the OOM score"))?;
    rustix::io::write(&go, &1_u64.to_ne_bytes()).map_err(Refused::at("release init"))?;
    let new = match network {
        Some(_) => None,
        None => Some(network::furnish().map_err(Refused::at("furnish the network"))?),
    };
    let exits = Exits::make().map_err(Refused::at("listen for what leaves"))?;
    network::enter(&home).map_err(Refused::at("leave the sandbox's network"))?;
    let known = Known::of(pid).map_err(Refused::at("look at the new processes"))?;
    let sandbox = Sandbox { init, known, control: ours, exits, enforced, root, used_up: Vec::new() };
    Ok(Preparing { prepared: Prepared { sandbox, inside }, network: new })
}

impl Preparing {
    /// Waits for init's word; with the network, if that is new.
    pub(crate) fn wait(self) -> Result<(Prepared, Option<OwnedFd>), Refused> {
        let Self { mut prepared, network } = self;
        let said = protocol::receive(&prepared.sandbox.control).map_err(Refused::at("hear from init"))?;
        match said {
            Some((Standing::Prepared { landlock_abi }, fds)) => {
                prepared.sandbox.enforced.landlock_abi = landlock_abi;
                prepared.sandbox.used_up = fds;
                Ok((prepared, network))
            }
            Some((Standing::Failed(refused), _)) => Err(refused),
            None => Err(Refused { step: "hear from init".into(), answer: "it ended without a word".into() }),
        }
    }
}

impl Prepared {
    /// Handle of init.
    pub(crate) fn init(&self) -> &OwnedFd {
        &self.sandbox.init
    }

    /// Closes what has been used up, which takes a moment.
    pub(crate) fn tidy(&mut self) {
        self.sandbox.used_up.clear();
    }

    /// Gives it its workspace, and with it its work; its first agent as well, if
    /// there are descriptors for one. `pinned`: the workspace has mount points in
    /// folders that can be changed.
    pub(crate) fn begin(
        self,
        workspace: OwnedFd,
        pinned: bool,
        serial: u64,
        agent: &[OwnedFd],
    ) -> Result<Sandbox, Refused> {
        let Self { sandbox, inside } = self;
        if sandbox.enforced.hidden_mounts {
            if pinned {
                let pins = mounts::clone_mount(&workspace, true).map_err(Refused::at("clone the workspace view"))?;
                inside.attach(pins, ".")?;
            }
            let spot = mounts::handle(&sandbox.root, WORKSPACE);
            spot.and_then(|spot| mounts::attach(workspace, spot)).map_err(Refused::at("attach the workspace view"))?;
        } else {
            inside.attach(workspace, WORKSPACE)?;
        }
        init::begin(&sandbox.control, serial, agent).map_err(Refused::at("send init to work"))?;
        Ok(sandbox)
    }
}

/// Ends a sandbox by its init, and waits until nothing of it is left.
pub(crate) fn end(init: &OwnedFd) {
    // What cannot be killed (something above us forbids it) is not waited for;
    // it ends with its supervisor, whose hanging up it hears.
    if matches!(pidfd_send_signal(init, Signal::KILL), Ok(()) | Err(Errno::SRCH)) {
        collect(init);
    }
}

/// Waits for the end of a child.
pub(crate) fn collect(child: &OwnedFd) {
    let _ = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(child.as_fd()), WaitIdOptions::EXITED));
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
