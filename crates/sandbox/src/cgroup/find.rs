//! Which groups a process is in, and where they are.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// A group that a process is in.
pub(super) struct Group {
    pub(super) version: u8,
    /// Its hierarchy's controllers (version 1).
    pub(super) names: String,
    pub(super) folder: PathBuf,
}

/// The groups of a process, in the hierarchies that are mounted here.
pub(super) fn groups_of(pid: &str) -> io::Result<Vec<Group>> {
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
        let folder = folder_of(&mounts, version, names, path)?;
        Some(Group { version, names: names.to_owned(), folder })
    };
    Ok(membership.lines().filter_map(group).collect())
}

/// Where a group of a hierarchy is to be found here: `names` are the
/// hierarchy's controllers (version 1).
fn folder_of(mounts: &str, version: u8, names: &str, group: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        let (kind, _, options) = (right.next()?, right.next()?, right.next()?);
        let fits = match version {
            2 => kind == "cgroup2",
            _ => kind == "cgroup" && names.split(',').all(|name| options.split(',').any(|option| option == name)),
        };
        // Fields of mountinfo: id, parent, device, root, mount point. In a
        // container the root may be a group, and groups be named from the real
        // root on.
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let below = Path::new(group).strip_prefix(root).or_else(|_| Path::new(group).strip_prefix("/")).ok()?;
        fits.then(|| Path::new(point).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_found_by_version_and_controllers() {
        let mounts = "30 24 0:26 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory\n\
                      31 24 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                      33 24 0:29 /docker/abc /sys/fs/cgroup/devices ro - cgroup cgroup rw,devices\n\
                      32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n";
        let found = |version, names, group| folder_of(mounts, version, names, group);
        assert_eq!(found(1, "memory", "/"), Some("/sys/fs/cgroup/memory".into()));
        assert_eq!(found(1, "cpu,cpuacct", "/a/b"), Some("/sys/fs/cgroup/cpu,cpuacct/a/b".into()));
        assert_eq!(found(2, "", "/a"), Some("/sys/fs/cgroup/unified/a".into()));
        assert_eq!(found(1, "devices", "/docker/abc/x"), Some("/sys/fs/cgroup/devices/x".into()));
        assert_eq!(found(1, "devices", "/"), Some("/sys/fs/cgroup/devices".into()));
        assert_eq!(found(1, "pids", "/"), None);
    }
}
