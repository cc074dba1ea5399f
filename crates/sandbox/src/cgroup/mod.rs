//! Control groups: version 1, 2 or the hybrid of both, whichever controllers
//! this process may use; nothing where it may use none.
//!
//! A sandbox's groups lie below the spawner's own group, in a folder named
//! after the spawner's pid, so that leftovers of a killed one can be told.

mod find;
mod hierarchy;
mod limits;
mod met;

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use cloister_types::link::Enforced;
use rustix::process::Pid;

use self::find::groups_of;
use self::hierarchy::Hierarchy;
use self::limits::set_limit;
use crate::confine::Limits;
use crate::identity::Identity;

pub(crate) use self::limits::in_force;
pub(crate) use self::met::Met;

/// [`Enforced::memory`] when only the process itself is limited.
pub(crate) const MEMORY_FALLBACK: &str = "rlimit-per-process";
pub(crate) const PIDS_FALLBACK: &str = "rlimit-per-namespace";

/// What this machine lets us use. Probed once.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    /// Our folder in each.
    homes: Rc<[PathBuf]>,
    /// Groups whose sandboxes are gone: making some costs more than all else
    /// that a sandbox needs as root.
    free: VecDeque<SessionGroups>,
}

/// How many free groups are kept.
const KEPT: usize = 64;
/// Free groups that are looked at when some are needed.
const LOOKS: usize = 4;
/// Bytes still charged to a group (files that its sandbox had used) with which
/// another sandbox may begin.
const RESIDUE: u64 = 16 << 20;

impl Cgroups {
    /// Finds the usable hierarchies and makes this process's folder in each.
    ///
    /// # Errors
    /// Something that is no answer: to go on would be to go on without limits.
    pub(crate) fn probe() -> io::Result<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for group in groups_of("self")? {
            hierarchies.extend(Hierarchy::enter(&group)?);
        }
        let homes = hierarchies.iter().map(|hierarchy| hierarchy.home.clone()).collect();
        Ok(Self { hierarchies, homes, free: VecDeque::new() })
    }

    /// Which limits hold for sessions made with these.
    pub(crate) fn enforced(&self, identity: Identity) -> Enforced {
        let by = |controller: &str, fallback: &str| {
            let found = self.hierarchies.iter().find(|hierarchy| hierarchy.controllers.contains(&controller));
            found.map_or_else(|| fallback.to_owned(), |hierarchy| format!("cgroup-v{}", hierarchy.version))
        };
        Enforced {
            mode: if identity.root_mode { "root" } else { "user" }.to_owned(),
            host_user: if identity.root_mode { "tenant" } else { "server" }.to_owned(),
            image: false,
            hidden_mounts: false,
            memory: by("memory", MEMORY_FALLBACK),
            cpu: by("cpu", "none"),
            pids: by("pids", PIDS_FALLBACK),
            disk: "accounting".to_owned(),
            landlock_abi: 0,
        }
    }

    /// The folders in which our own are.
    pub(crate) fn folders(&self) -> Vec<&Path> {
        self.homes.iter().filter_map(|home| home.parent()).collect()
    }

    /// Groups for one sandbox, with its limits, which are those of all.
    pub(crate) fn take(&mut self, limits: &Limits) -> io::Result<SessionGroups> {
        // The oldest first: the kernel may need a moment to notice that a
        // process is gone.
        for _ in 0..LOOKS {
            match self.free.pop_front() {
                Some(groups) if groups.are_empty() => return Ok(groups),
                Some(groups) => self.free.push_back(groups),
                None => break,
            }
        }
        self.create(limits)
    }

    /// Takes the groups of a sandbox back that is gone.
    pub(crate) fn give_back(&mut self, groups: SessionGroups) {
        // Those of a sandbox that got none are none.
        if !Rc::ptr_eq(&groups.homes, &self.homes) {
            return;
        }
        if self.free.len() < KEPT && groups.charged() <= RESIDUE {
            self.free.push_back(groups);
        } else {
            groups.remove();
        }
    }

    /// Makes the groups of one sandbox and sets its limits.
    fn create(&self, limits: &Limits) -> io::Result<SessionGroups> {
        static LAUNCHES: AtomicU64 = AtomicU64::new(0);
        let groups = SessionGroups { homes: self.homes.clone(), name: LAUNCHES.fetch_add(1, Ordering::Relaxed) };
        match self.furnish(&groups, limits) {
            Ok(()) => Ok(groups),
            Err(error) => {
                groups.remove();
                Err(error)
            }
        }
    }

    fn furnish(&self, groups: &SessionGroups, limits: &Limits) -> io::Result<()> {
        for (hierarchy, folder) in self.hierarchies.iter().zip(groups.folders()) {
            fs::create_dir(&folder)?;
            for controller in &hierarchy.controllers {
                set_limit(hierarchy.version, controller, &folder, limits)?;
            }
        }
        Ok(())
    }

    /// The groups of a sandbox that has none.
    pub(crate) fn none(&self) -> SessionGroups {
        SessionGroups { homes: Rc::new([]), name: 0 }
    }

    /// Removes this process's folders; they are empty once no sandbox is left.
    pub(crate) fn remove(&mut self) {
        self.free.drain(..).for_each(|groups| groups.remove());
        for hierarchy in &self.hierarchies {
            let _ = fs::remove_dir(&hierarchy.home);
        }
    }
}

/// The groups of one sandbox; removed by [`SessionGroups::remove`].
///
/// Small: the spawner has one for each sandbox, and what it writes to its
/// memory is copied for whatever it has forked.
#[derive(Debug, Clone)]
pub(crate) struct SessionGroups {
    homes: Rc<[PathBuf]>,
    name: u64,
}

impl SessionGroups {
    fn folders(&self) -> impl Iterator<Item = PathBuf> {
        self.homes.iter().map(|home| home.join(self.name.to_string()))
    }

    /// Moves a process, and with it what it will start, into the groups of
    /// version 2. Those of version 1 it enters by itself ([`Doors`]).
    pub(crate) fn admit(&self, pid: i32) -> io::Result<()> {
        let mut folders = self.folders().filter(|folder| !folder.join(DOOR).exists());
        folders.try_for_each(|folder| fs::write(folder.join("cgroup.procs"), pid.to_string()))
    }

    /// The ways into the groups of version 1, for a child to take.
    pub(crate) fn doors(&self) -> io::Result<Doors> {
        let open = |folder: PathBuf| match fs::OpenOptions::new().write(true).open(folder.join(DOOR)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other.map(OwnedFd::from)),
        };
        self.folders().filter_map(open).collect::<io::Result<_>>().map(Doors)
    }

    /// How often the session has met a limit so far.
    pub(crate) fn met(&self) -> Met {
        let count = |files: &[&str], word: &str| {
            let texts = self.folders().flat_map(|folder| files.iter().map(move |file| folder.join(file)));
            let texts = texts.filter_map(|file| fs::read_to_string(file).ok());
            let counts = texts.filter_map(|text| {
                text.lines().find_map(|line| line.strip_prefix(word)?.strip_prefix(' ')?.parse::<u64>().ok())
            });
            counts.sum()
        };
        Met {
            killed_for_memory: count(&["memory.events", "memory.oom_control"], "oom_kill"),
            forks_refused: count(&["pids.events"], "max"),
        }
    }

    /// Are they those of a sandbox that got none?
    pub(crate) fn are_none(&self) -> bool {
        self.homes.is_empty()
    }

    /// Is no process in any of them?
    pub(crate) fn are_empty(&self) -> bool {
        self.folders().all(|folder| fs::read_to_string(folder.join("cgroup.procs")).is_ok_and(|pids| pids.is_empty()))
    }

    /// Bytes of memory that they still account for.
    fn charged(&self) -> u64 {
        let files = ["memory.usage_in_bytes", "memory.current"];
        let texts = self.folders().flat_map(|folder| files.map(|file| fs::read_to_string(folder.join(file))));
        texts.filter_map(|bytes| bytes.ok()?.trim().parse::<u64>().ok()).sum()
    }

    /// In a supervisor that ends: its spawner takes the groups back, unless it
    /// is gone.
    pub(crate) fn leave(&self, spawner: Option<Pid>) {
        if rustix::process::getppid() != spawner {
            self.remove();
        }
    }

    /// Removes the groups. The processes must be dead; the kernel may need a
    /// moment to notice.
    pub(crate) fn remove(&self) {
        for folder in self.folders() {
            for _ in 0..50 {
                match fs::remove_dir(&folder) {
                    Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                        std::thread::sleep(std::time::Duration::from_millis(2));
                    }
                    _ => break,
                }
            }
        }
    }
}

/// The file of a group of version 1 by which single threads are moved. Version
/// 2 has none.
const DOOR: &str = "tasks";

/// Groups of version 1, open to whoever holds them. A thread that moves itself
/// is the one case in which the kernel holds up nobody else: to move a process
/// from outside it stops all forks and exits of the machine, and waits for a
/// grace period of RCU before it can (`cgroup_threadgroup_rwsem`).
pub(crate) struct Doors(pub(crate) Vec<OwnedFd>);

impl Doors {
    /// Moves this process, which has one thread.
    pub(crate) fn enter(self) -> io::Result<()> {
        self.0.into_iter().try_for_each(|door| {
            rustix::io::write(&door, b"0")?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_groups_are_used_again_and_no_groups_never() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().join("home");
        let hierarchy = Hierarchy { version: 2, controllers: vec![], home: home.clone() };
        let homes = Rc::from([home.clone()]);
        let mut cgroups = Cgroups { hierarchies: vec![hierarchy], homes, free: VecDeque::new() };
        // A sandbox that could have none is refused; what it had is not had by
        // the next.
        assert!(cgroups.take(&Limits::default()).is_err());
        let none = cgroups.none();
        cgroups.give_back(none);
        fs::create_dir(&home).unwrap();
        let groups = cgroups.take(&Limits::default()).unwrap();
        let own = home.join(groups.name.to_string());
        assert!(own.is_dir());
        // Not while somebody is in them.
        fs::write(own.join("cgroup.procs"), "77\n").unwrap();
        cgroups.give_back(groups);
        let other = cgroups.take(&Limits::default()).unwrap();
        assert_ne!(home.join(other.name.to_string()), own);
        fs::write(own.join("cgroup.procs"), "").unwrap();
        assert_eq!(home.join(cgroups.take(&Limits::default()).unwrap().name.to_string()), own);
        // Nor with much to account for.
        fs::write(own.join("memory.current"), "99999999\n").unwrap();
        fs::write(own.join("cgroup.procs"), "").unwrap();
        cgroups.give_back(other);
        assert_eq!(cgroups.free.len(), 1);
    }
}
