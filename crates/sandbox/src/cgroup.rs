//! Control groups: version 1, 2 or the hybrid of both, whichever controllers
//! this process may use; nothing where it may use none.
//!
//! A sandbox's groups lie below the spawner's own group, in a folder named
//! after the spawner's pid, so that leftovers of a killed one can be told.

use std::collections::VecDeque;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use cloister_types::link::Enforced;
use rustix::process::Pid;

use crate::confine::Limits;
use crate::identity::Identity;

/// [`Enforced::memory`] when only the process itself is limited.
pub(crate) const MEMORY_FALLBACK: &str = "rlimit-per-process";
pub(crate) const PIDS_FALLBACK: &str = "rlimit-per-namespace";
const PREFIX: &str = "cloister-";
/// Length of the accounting period in microseconds, the kernel's default.
const PERIOD: u64 = 100_000;
/// Of the memory limit, one part in so many may be sockets' buffers.
const SOCKET_SHARE: u64 = 4;

/// A hierarchy with the controllers of interest, and our folder in it.
#[derive(Debug, Clone)]
struct Hierarchy {
    version: u8,
    controllers: Vec<&'static str>,
    home: PathBuf,
}

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

const WANTED: [&str; 3] = ["memory", "cpu", "pids"];

impl Cgroups {
    /// Finds the usable hierarchies and makes this process's folder in each.
    ///
    /// # Errors
    /// Something that is no answer: to go on would be to go on without limits.
    pub(crate) fn probe() -> io::Result<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        for Group { version, names, folder: own } in groups_of("self")? {
            let controllers: Vec<&'static str> = if version == 2 {
                let offered = fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default();
                WANTED.into_iter().filter(|name| offered.split_whitespace().any(|other| other == *name)).collect()
            } else {
                WANTED.into_iter().filter(|name| names.split(',').any(|other| other == *name)).collect()
            };
            if controllers.is_empty() {
                continue;
            }
            sweep(&own);
            let home = own.join(format!("{PREFIX}{}", std::process::id()));
            match fs::create_dir(&home) {
                Ok(()) => {}
                // Not ours to use.
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            }
            let hierarchy = Hierarchy { version, controllers, home };
            if hierarchy.usable() {
                hierarchies.push(hierarchy);
            } else {
                let _ = fs::remove_dir(&hierarchy.home);
            }
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
            memory: by("memory", MEMORY_FALLBACK),
            cpu: by("cpu", "none"),
            pids: by("pids", PIDS_FALLBACK),
            disk: "accounting".to_owned(),
            landlock_abi: 0,
        }
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

impl Hierarchy {
    /// Can limits be set below our folder?
    fn usable(&self) -> bool {
        if self.version == 1 {
            return true;
        }
        let parent = self.home.parent().unwrap_or(&self.home);
        let enable: String = self.controllers.iter().map(|name| format!("+{name} ")).collect();
        // Fails where the group was not delegated to us, and where other
        // processes sit in it; then resource limits have to do.
        fs::write(parent.join("cgroup.subtree_control"), &enable).is_ok()
            && fs::write(self.home.join("cgroup.subtree_control"), &enable).is_ok()
    }
}

fn set_limit(version: u8, controller: &str, folder: &Path, limits: &Limits) -> io::Result<()> {
    let quota = (limits.cpus * PERIOD as f64) as u64;
    let set = |file: &str, value: String| fs::write(folder.join(file), value);
    match (version, controller) {
        (1, "memory") => {
            set("memory.limit_in_bytes", limits.memory_bytes.to_string())?;
            // Memory of sockets is not in it; swap may be counted, or not be there.
            set("memory.kmem.tcp.limit_in_bytes", (limits.memory_bytes / SOCKET_SHARE).to_string()).or_else(absent)?;
            set("memory.memsw.limit_in_bytes", limits.memory_bytes.to_string()).or_else(absent)
        }
        (1, "pids") | (2, "pids") => set("pids.max", limits.processes.to_string()),
        (1, "cpu") => {
            set("cpu.cfs_period_us", PERIOD.to_string())?;
            set("cpu.cfs_quota_us", quota.to_string())
        }
        (2, "memory") => {
            set("memory.max", limits.memory_bytes.to_string())?;
            set("memory.swap.max", "0".to_owned()).or_else(absent)?;
            set("memory.oom.group", "0".to_owned())
        }
        (2, "cpu") => set("cpu.max", format!("{quota} {PERIOD}")),
        _ => Ok(()),
    }
}

/// What a kernel was built without needs no limit.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The limits that hold for a process, as its groups say now: controller, and
/// limit with its unit.
pub(crate) fn in_force(pid: i32) -> Vec<(&'static str, String)> {
    let mut limits = Vec::new();
    for Group { version, folder, .. } in groups_of(&pid.to_string()).unwrap_or_default() {
        let read = |file: &str| Some(fs::read_to_string(folder.join(file)).ok()?.trim().to_owned());
        let (memory, cpu) = match version {
            1 => {
                let quota = read("cpu.cfs_quota_us").filter(|quota| quota != "-1");
                (read("memory.limit_in_bytes"), quota.zip(read("cpu.cfs_period_us")))
            }
            _ => {
                let cpu = read("cpu.max");
                let cpu = cpu.as_deref().and_then(|cpu| cpu.split_once(' ')).filter(|(quota, _)| *quota != "max");
                (read("memory.max"), cpu.map(|(quota, period)| (quota.to_owned(), period.to_owned())))
            }
        };
        // Version 1 has no word for "no limit": it is a number near 2^63.
        let limited = |limit: &String| limit.parse::<u64>().is_ok_and(|bytes| bytes < 1 << 60);
        limits.extend(memory.filter(limited).map(|bytes| ("memory", format!("{bytes} bytes"))));
        limits.extend(cpu.map(|(quota, period)| ("cpu", format!("{quota} of every {period} µs"))));
        limits.extend(read("pids.max").filter(|most| most != "max").map(|most| ("pids", most)));
    }
    limits
}

/// A group that a process is in.
struct Group {
    version: u8,
    /// Its hierarchy's controllers (version 1).
    names: String,
    folder: PathBuf,
}

/// The groups of a process, in the hierarchies that are mounted here.
fn groups_of(pid: &str) -> io::Result<Vec<Group>> {
    let membership = match fs::read_to_string(format!("/proc/{pid}/cgroup")) {
        // A kernel without control groups.
        Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
        other => other?,
    };
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let group = |line: &str| {
        let mut fields = line.splitn(3, ':');
        let (id, names, path) = (fields.next()?, fields.next()?, fields.next()?);
        let version = if id == "0" && names.is_empty() { 2 } else { 1 };
        let folder = mount_point(&mounts, version, names)?.join(path.trim_start_matches('/'));
        Some(Group { version, names: names.to_owned(), folder })
    };
    Ok(membership.lines().filter_map(group).collect())
}

/// Where a hierarchy is mounted: `names` are its controllers (version 1).
fn mount_point(mounts: &str, version: u8, names: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        let fits = match version {
            2 => kind == "cgroup2",
            _ => kind == "cgroup" && names.split(',').all(|name| options.split(',').any(|option| option == name)),
        };
        // Fields of mountinfo: id, parent, device, root, mount point.
        fits.then(|| left.split(' ').nth(4).map(PathBuf::from)).flatten()
    })
}

/// Removes the folders of spawners that are no more.
fn sweep(own: &Path) {
    for entry in fs::read_dir(own).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(PREFIX)).and_then(|pid| pid.parse::<u32>().ok());
        // One of our own pid is of a predecessor: we have made none yet.
        let gone = |pid: u32| pid == std::process::id() || !Path::new(&format!("/proc/{pid}")).exists();
        if pid.is_some_and(gone) {
            for inner in fs::read_dir(entry.path()).into_iter().flatten().flatten() {
                let _ = fs::remove_dir(inner.path());
            }
            let _ = fs::remove_dir(entry.path());
        }
    }
}

/// How often limits were met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Met {
    /// Processes that were killed for want of memory.
    pub(crate) killed_for_memory: u64,
    /// Processes and threads that could not be started.
    pub(crate) forks_refused: u64,
}

impl Met {
    /// What was met since `earlier`, for people and for models.
    pub(crate) fn since(self, earlier: Self) -> Vec<String> {
        let mut said = Vec::new();
        if self.killed_for_memory > earlier.killed_for_memory {
            let count = self.killed_for_memory - earlier.killed_for_memory;
            said.push(format!(
                "out of memory: the session reached its memory limit, and {count} of its processes were killed"
            ));
        }
        if self.forks_refused > earlier.forks_refused {
            said.push("the session reached its limit of processes and threads".to_owned());
        }
        said
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

    /// Moves a process, and with it what it will start, into the groups.
    pub(crate) fn admit(&self, pid: i32) -> io::Result<()> {
        self.folders().try_for_each(|folder| fs::write(folder.join("cgroup.procs"), pid.to_string()))
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

    fn are_empty(&self) -> bool {
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

    #[test]
    fn mount_points_are_found_by_version_and_controllers() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(mount_point(mounts, 1, "memory"), Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(mount_point(mounts, 1, "cpu,cpuacct"), Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(mount_point(mounts, 2, ""), Some("/sys/fs/cgroup/unified".into()));
        assert_eq!(mount_point(mounts, 1, "pids"), None);
    }
}
