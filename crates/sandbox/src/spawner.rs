//! The spawner: the one process with mount rights. One thread, so that it can
//! fork; no network, no secret. It takes no more orders when the server hangs
//! up, and ends with the last sandbox that it started.

use std::collections::HashMap;
use std::ffi::OsString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloister_types::SessionId;
use cloister_types::scope::FileAccess;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, wait};

use crate::cgroup::{Cgroups, SessionGroups};
use crate::identity::{Identity, SandboxIds};
use crate::launch::Refused;
use crate::leaving::Leaving;
use crate::protocol::{self, Greeting, Request, Setup, ViewReply, shows_only};
use crate::quota::Meter;
use crate::quota::meter::Office;
use crate::slots::{Slot, Slots};
use crate::spare::{self, Parts, Spare, Spares, Terms};
use crate::supervisor::Post;
use crate::sys::{self, Forked};
use crate::view::{self, Base, Built, Image, Lent, Seen, Site, ViewError};
use crate::{confine, doctor, grounds, supervisor};

/// Silence after which something is made for whoever asks next.
const LULL: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };

/// A start-up that failed, in words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Fatal(String);

/// Entry of the executable: `spawner` with the control socket as standard
/// input, or `probe` for the doctor.
///
/// # Errors
/// What is wrong, and what to do about it.
pub fn main(arguments: &[OsString]) -> Result<(), Fatal> {
    match arguments {
        [_, role] if role == "probe" => {
            let findings = doctor::probe_here();
            println!("{}", serde_json::to_string(&findings).map_err(|error| Fatal(error.to_string()))?);
            Ok(())
        }
        [_, role] if role == "spawner" => {
            let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
                .map_err(|errno| Fatal(format!("keep the control socket: {errno}")))?;
            let setup = protocol::receive::<Setup>(&control).map_err(|error| Fatal(error.to_string()))?;
            let Some((setup, _)) = setup else { return Ok(()) };
            match Spawner::start(control, &setup) {
                Ok((spawner, meter)) => {
                    let said = protocol::send(&spawner.control, &Greeting::Ready, &[meter.0.as_fd()]);
                    drop(meter);
                    if said.is_ok() {
                        spawner.serve();
                    }
                    Ok(())
                }
                Err((control, fatal)) => {
                    // The server says it to people; it may be gone.
                    let _ = protocol::send(&control, &Greeting::Failed(fatal.to_string()), &[]);
                    Err(fatal)
                }
            }
        }
        _ => Err(Fatal("usage: cloister-sandbox spawner (started by the server)".into())),
    }
}

struct Spawner {
    control: OwnedFd,
    children: OwnedFd,
    workspace: OwnedFd,
    site: Site,
    base: Base,
    slots: Slots,
    seen: Seen,
    lent: Lent,
    terms: Terms,
    cgroups: Cgroups,
    office: Office,
    spares: Spares,
    /// Every process that was started, with the groups of its sandbox.
    started: HashMap<Pid, SessionGroups>,
    /// Those that were given to sessions.
    given: HashMap<Pid, Spare>,
    leaving: Leaving,
}

/// What a spawner is made of, once the kernel has granted it.
struct Granted {
    workspace: OwnedFd,
    site: Site,
    base: Base,
    lent: Lent,
    children: OwnedFd,
    office: Office,
    meter: Meter,
    /// If each sandbox can have its own.
    ids: Option<SandboxIds>,
}

impl Spawner {
    /// With it, the server's socket of the meter.
    fn start(control: OwnedFd, setup: &Setup) -> Result<(Self, Meter), (OwnedFd, Fatal)> {
        let identity = setup.identity;
        let mut cgroups = match Cgroups::probe() {
            Ok(cgroups) => cgroups,
            Err(error) => return Err((control, Fatal(format!("look for control groups: {error}")))),
        };
        match Self::prepare(identity, setup, &cgroups) {
            Ok(Granted { workspace, site, base, lent, children, office, meter, ids }) => {
                let slots = Slots::new(ids);
                let mut enforced = cgroups.enforced(identity);
                if setup.quota {
                    enforced.disk = "quota".into();
                }
                let terms = Terms { owner: identity, limits: setup.limits, enforced };
                let seen = Seen::default();
                let (spares, started, given) = (Spares::default(), HashMap::new(), HashMap::new());
                let spawner = Self {
                    control,
                    children,
                    workspace,
                    site,
                    base,
                    slots,
                    seen,
                    lent,
                    terms,
                    cgroups,
                    office,
                    spares,
                    started,
                    given,
                    leaving: Leaving::default(),
                };
                Ok((spawner, meter))
            }
            Err(fatal) => {
                cgroups.remove();
                Err((control, fatal))
            }
        }
    }

    fn prepare(identity: Identity, setup: &Setup, cgroups: &Cgroups) -> Result<Granted, Fatal> {
        let fatal = |what: &str, error: &dyn std::fmt::Display| Fatal(format!("{what}: {error}"));
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| fatal("open /dev/null", &errno))?;
        sys::set_standard(&null, 0).map_err(|errno| fatal("let go of standard input", &errno))?;
        // A Ctrl-C at the terminal is for the server, which then hangs up.
        let _ = rustix::process::setsid();
        grounds::enter(identity).map_err(|error| fatal("enter the spawner's namespaces", &error))?;
        // Opened in here: mounts of the namespace outside cannot be cloned.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let workspace = rustix::fs::openat(CWD, &setup.workspace, flags, Mode::empty())
            .map_err(|errno| fatal(&format!("open the workspace {}", setup.workspace.display()), &errno))?;
        grounds::reserved_folders(&workspace, identity)
            .map_err(|errno| fatal("make the workspace's reserved folders", &errno))?;
        let unbuilt = |error| fatal("build the base view", &error);
        let agent = Base::agent(&setup.agent).map_err(unbuilt)?;
        let image = setup.image.as_deref().map(Image::open).transpose().map_err(unbuilt)?;
        let office = Office::open(&workspace, setup.allowance).map_err(|errno| fatal("start the meter", &errno))?;
        let site = Site::find().map_err(|errno| fatal("find out how views are built", &errno))?;
        let lent = Lent::new().map_err(|errno| fatal("watch for views that are given back", &errno))?;
        let base = Base::build(&site, agent, image).map_err(unbuilt)?;
        let meter = office.join().map_err(|error| fatal("join the meter", &error))?;
        confine::get_ready();
        let children = sys::watch_children().map_err(|errno| fatal("watch children", &errno))?;
        let ids =
            grounds::own_users(&workspace, identity).map_err(|error| fatal("find host users for sandboxes", &error))?;
        // Before Linux 6.15 everything stands in this namespace.
        let workspace = if site.is_nowhere() {
            let own = view::mounts::clone_mount(&workspace, true);
            let own = own.map_err(|errno| fatal("take the workspace along", &errno))?;
            grounds::leave_host(&cgroups.folders()).map_err(|error| fatal("leave the host's files behind", &error))?;
            own
        } else {
            workspace
        };
        Ok(Granted { workspace, site, base, lent, children, office, meter, ids })
    }

    fn serve(mut self) {
        loop {
            let has_plans = self.spares.wants() || self.seen.wants() || self.leaving.is_pressing();
            let patience = has_plans.then_some(&LULL);
            let own = [self.control.as_fd(), self.children.as_fd(), self.lent.as_fd()];
            let mut waiting: Vec<PollFd<'_>> = own.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            waiting.extend(self.spares.channels());
            let woken = match poll(&mut waiting, patience) {
                Ok(woken) => woken,
                Err(Errno::INTR) => continue,
                Err(_) => break,
            };
            let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(waiting);
            if woken == 0 {
                self.see_off();
                if self.spares.wants() {
                    let spare = self.make(true);
                    self.spares.keep(spare.ok());
                } else if self.seen.wants() {
                    self.seen.make_ahead(&self.workspace, self.terms.owner);
                }
                continue;
            }
            self.spares.hear(&ready[3..]);
            if ready[2] {
                self.lent.take_back();
            }
            // Without a meter nothing more is started; the server finds another
            // spawner, with another meter.
            if ready[1] && self.reap() {
                break;
            }
            if ready[0] {
                match protocol::receive::<Request>(&self.control) {
                    Ok(Some((request, fds))) => self.answer(request, fds),
                    _ => break,
                }
            }
        }
        self.goodbye();
    }

    fn answer(&mut self, request: Request, fds: Vec<OwnedFd>) {
        match (request, fds.len()) {
            (Request::View { session, file_access }, 1) => {
                let built = self.view(&session, &file_access);
                self.reply(&fds[0], built);
            }
            (Request::Launch { session, launch, one_file_system, pinned, at_once }, 3) => {
                let Ok([link, view, folder]) = <[OwnedFd; 3]>::try_from(fds) else { return };
                let post = Post { link, folder, session, launch, at_once };
                self.launch(&post, view.as_fd(), one_file_system, pinned);
            }
            (Request::Open { session, file_access, launch, at_once }, 3) => {
                let Ok([asker, link, folder]) = <[OwnedFd; 3]>::try_from(fds) else { return };
                if self.spares.is_empty() && self.spares.wants() {
                    // It is made while the view is built.
                    let spare = self.make(true);
                    self.spares.keep(spare.ok());
                }
                let built = self.view(&session, &file_access);
                if let Ok(built) = &built {
                    let device = rustix::fs::fstat(&self.workspace).map(|stat| stat.st_dev);
                    let one_file_system = device.is_ok_and(|device| shows_only(&built.sources, device));
                    let post = Post { link, folder, session, launch, at_once };
                    self.launch(&post, built.tree.as_fd(), one_file_system, built.pinned);
                }
                self.reply(&asker, built);
            }
            // Only our own server talks here; a mismatch is a bug of ours, and
            // dropping the descriptors tells it.
            _ => {}
        }
    }

    fn view(&mut self, session: &SessionId, file_access: &FileAccess) -> Result<Built, ViewError> {
        self.seen.view(&self.site, &self.workspace, file_access, session, self.terms.owner)
    }

    /// Tells how a view came out. The asker may be gone; that is its own affair.
    fn reply(&mut self, asker: &OwnedFd, built: Result<Built, ViewError>) {
        let built = built.and_then(|Built { tree, sources, pinned }| {
            let (root, stand) = tree.into_parts();
            let lease = stand.map(|stand| self.lent.lend(stand)).transpose();
            let lease = lease.map_err(|errno| ViewError::Kernel { step: "lend the view".into(), errno })?;
            Ok((ViewReply::Built { sources, pinned }, [Some(root), lease]))
        });
        let _ = match built {
            Ok((reply, fds)) => {
                let fds: Vec<BorrowedFd<'_>> = fds.iter().flatten().map(AsFd::as_fd).collect();
                protocol::send(asker, &reply, &fds)
            }
            Err(ViewError::Scope(message)) => protocol::send(asker, &ViewReply::Scope(message), &[]),
            Err(error) => protocol::send(asker, &ViewReply::Kernel(error.to_string()), &[]),
        };
    }

    fn launch(&mut self, post: &Post, view: BorrowedFd<'_>, one_file_system: bool, pinned: bool) {
        let workspace = match view::mounts::workspace_of(view) {
            Ok(workspace) => workspace,
            Err(error) => {
                let step = "take the session's view".into();
                return supervisor::refuse(&post.link, &Refused { step, answer: error.to_string() });
            }
        };
        // Other file systems may not take an id-mapped mount: there the sandbox
        // runs as the owner.
        let own_user = one_file_system || !self.slots.have_users();
        if own_user
            && let Some((pid, spare)) = self.spares.take()
            && spare.claim(post, &workspace, pinned)
        {
            self.given.insert(pid, spare);
            // It was woken on this processor, where it would wait for us.
            rustix::thread::sched_yield();
            return;
        }
        match self.make(own_user) {
            Ok((pid, spare)) => {
                // If it is not heard of again, the closed link says so.
                spare.claim(post, &workspace, pinned);
                self.given.insert(pid, spare);
            }
            Err(errno) => {
                let step = "make a process for the sandbox".into();
                supervisor::refuse(&post.link, &Refused { step, answer: errno.to_string() });
            }
        }
    }

    /// Begins to make a sandbox, in a process of its own.
    fn make(&mut self, own_user: bool) -> rustix::io::Result<(Pid, Spare)> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let meter = self.office.join().map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
        self.see_off();
        let slot = self.slots.take(own_user);
        let mut terms = self.terms.clone();
        if slot.user.is_some() {
            terms.enforced.host_user = "own".into();
        }
        terms.enforced.image = self.base.is_image();
        terms.enforced.hidden_mounts = self.site.is_nowhere();
        let (groups, refused) = match self.cgroups.take(&terms.limits) {
            Ok(groups) => (groups, None),
            Err(error) => {
                let step = "make the control groups".into();
                (self.cgroups.none(), Some(Refused { step, answer: error.to_string() }))
            }
        };
        let spawner = rustix::process::getpid();
        match sys::fork() {
            Ok(Forked::Child) => {
                let _ = sys::unblock_signals();
                let user = slot.user.unwrap_or(terms.owner);
                let root = || self.base.sandbox_root(&self.site, user, &terms.limits).map_err(unbuilt);
                let root = refused.map_or_else(root, Err);
                let well = spare::begin(theirs, Parts { root, groups, terms, slot, meter, spawner });
                std::process::exit(i32::from(!well))
            }
            Ok(Forked::Parent { pid, .. }) => {
                let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
                self.started.insert(pid, groups);
                Ok((pid, Spare::new(ours, slot)))
            }
            Err(errno) => {
                groups.remove();
                Err(errno)
            }
        }
    }

    /// Collects what has ended; true: the meter, too.
    fn reap(&mut self) -> bool {
        let (mut drained, mut meter_ended) = ([0; 1024], false);
        while matches!(rustix::io::read(&self.children, &mut drained), Ok(1..)) {}
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            self.site.clear(pid);
            if let Some(groups) = self.started.remove(&pid) {
                let slot = self.given.remove(&pid).and_then(Spare::slot);
                if status.exit_status() == Some(0) {
                    self.take_back(groups, slot);
                } else {
                    self.leaving.add(groups, slot);
                }
            }
            meter_ended |= self.office.is(pid);
        }
        meter_ended
    }

    fn take_back(&mut self, groups: SessionGroups, slot: Option<Slot>) {
        self.cgroups.give_back(groups);
        if let Some(slot) = slot {
            self.slots.give_back(slot);
        }
    }

    /// Takes back what those had who were killed and are gone.
    fn see_off(&mut self) {
        for (groups, slot) in self.leaving.take_gone() {
            self.take_back(groups, slot);
        }
    }

    /// The server is gone. Supervisors with a turn go on; this stays to
    /// collect them and their control groups.
    fn goodbye(mut self) {
        // Closed, so that what was asked and not read is known to be lost.
        if let Ok(null) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) {
            drop(std::mem::replace(&mut self.control, null));
        }
        self.spares.end();
        while !self.started.is_empty() {
            self.reap();
            let mut ended = [PollFd::new(&self.children, PollFlags::IN)];
            if !self.started.is_empty() && !matches!(poll(&mut ended, None), Ok(_) | Err(Errno::INTR)) {
                break;
            }
        }
        self.leaving.remove();
        self.cgroups.remove();
        // It ends when nobody who writes is left.
        self.office.close();
    }
}

fn unbuilt(error: ViewError) -> Refused {
    Refused { step: "build the sandbox's root".into(), answer: error.to_string() }
}
