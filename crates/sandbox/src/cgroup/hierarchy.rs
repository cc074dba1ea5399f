//! A place for groups of our own: below the group that we are in.
//!
//! Version 2 keeps processes and limited groups apart: a group whose members
//! are limited holds no process itself. So our own processes step aside, into
//! a group beside those of the sandboxes; only where the whole group is ours.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::find::Group;

const WANTED: [&str; 3] = ["memory", "cpu", "pids"];
const PREFIX: &str = "cloister-";
/// Where our own processes are, in a hierarchy of version 2.
const ASIDE: &str = "cloister-server";
/// Times that we look for processes that were started meanwhile.
const ROUNDS: usize = 8;

/// A hierarchy with the controllers of interest, and our folder in it.
#[derive(Debug, Clone)]
pub(super) struct Hierarchy {
    pub(super) version: u8,
    pub(super) controllers: Vec<&'static str>,
    pub(super) home: PathBuf,
}

impl Hierarchy {
    /// Makes our folder in the hierarchy that a group of ours is of; `None` if
    /// it has none of the controllers, or is not ours to use.
    pub(super) fn enter(group: &Group) -> io::Result<Option<Self>> {
        let own = match group.folder.file_name() {
            Some(name) if name == OsStr::new(ASIDE) => group.folder.parent().unwrap_or(&group.folder),
            _ => &group.folder,
        };
        let offered = match group.version {
            2 => fs::read_to_string(own.join("cgroup.controllers")).unwrap_or_default(),
            _ => group.names.replace(',', " "),
        };
        let offers = |name: &&str| offered.split_whitespace().any(|other| other == *name);
        let controllers: Vec<&'static str> = WANTED.into_iter().filter(offers).collect();
        if controllers.is_empty() {
            return Ok(None);
        }
        sweep(own);
        let home = own.join(format!("{PREFIX}{}", std::process::id()));
        match fs::create_dir(&home) {
            Ok(()) => {}
            // Not ours to use.
            Err(error)
                if matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let hierarchy = Self { version: group.version, controllers, home };
        if hierarchy.version == 1 || hierarchy.can_limit(own) {
            return Ok(Some(hierarchy));
        }
        let _ = fs::remove_dir(&hierarchy.home);
        Ok(None)
    }

    /// Has the controllers work below our folder; then resource limits have to
    /// do where they do not.
    fn can_limit(&self, own: &Path) -> bool {
        let enable: String = self.controllers.iter().map(|name| format!("+{name} ")).collect();
        let enable_in = |folder: &Path| fs::write(folder.join("cgroup.subtree_control"), &enable);
        let enabled = match enable_in(own) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && is_ours(own) => {
                step_aside(own).and_then(|()| enable_in(own)).inspect_err(|_| step_back(own))
            }
            other => other,
        };
        enabled.and_then(|()| enable_in(&self.home)).is_ok()
    }
}

/// Was the group left to us? To move processes about in one that somebody else
/// looks after (systemd) would last until it looks. A service's own group, even one
/// that was left to us, is not split: with groups below it that are limited it takes
/// no process, so that the next server could not be started while turns go on.
/// `DelegateSubgroup=` puts us below it to begin with.
fn is_ours(own: &Path) -> bool {
    if own.extension() == Some(OsStr::new("service")) {
        return false;
    }
    let marked = ["trusted.delegate", "user.delegate"].iter().any(|name| {
        let mut value = [0; 1];
        rustix::fs::getxattr(own, *name, &mut value).is_ok_and(|length| value[..length] == *b"1")
    });
    let is_root_of_view = !own.parent().is_some_and(|above| above.join("cgroup.procs").exists());
    marked || is_root_of_view || !rustix::process::geteuid().is_root()
}

/// Moves the server, and what it has started, into a group of their own. Others
/// stay, and with them the group is of no use.
fn step_aside(own: &Path) -> io::Result<()> {
    let aside = own.join(ASIDE);
    match fs::create_dir(&aside) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let server = rustix::process::getppid().map_or(0, |pid| pid.as_raw_nonzero().get());
    // One that has died is not our parent any more.
    let name = fs::read_to_string(format!("/proc/{server}/comm")).unwrap_or_default();
    if !name.starts_with("cloister") {
        return Err(io::ErrorKind::NotFound.into());
    }
    for _ in 0..ROUNDS {
        let family: Vec<i32> = members(own).into_iter().filter(|pid| is_of_family(*pid, server)).collect();
        if family.is_empty() {
            break;
        }
        // One that has ended meanwhile needs no place.
        family.into_iter().for_each(|pid| drop(fs::write(aside.join("cgroup.procs"), pid.to_string())));
    }
    Ok(())
}

fn step_back(own: &Path) {
    for pid in members(&own.join(ASIDE)) {
        let _ = fs::write(own.join("cgroup.procs"), pid.to_string());
    }
    let _ = fs::remove_dir(own.join(ASIDE));
}

fn members(group: &Path) -> Vec<i32> {
    let pids = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
    pids.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Is this the server, or something that it has started?
fn is_of_family(pid: i32, server: i32) -> bool {
    let mut at = pid;
    while at != server {
        if at <= 1 {
            return false;
        }
        let stat = fs::read_to_string(format!("/proc/{at}/stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        at = parent.unwrap_or(0);
    }
    true
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
