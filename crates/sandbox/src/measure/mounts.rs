//! The mounts of a live sandbox: from the kernel's list where it has one, else
//! found where they can be.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags, fstatfs, fstatvfs,
    openat, statx,
};
use rustix::io::{Errno, Result};

use super::Process;
use crate::view::mounts;

/// Mounts in folders that may be anything, and hold as much as the agent likes:
/// there, only these are looked for.
const KNOWN: [&str; 7] = [
    "dev",
    "opt/sandbox",
    "opt/sandbox/workspace",
    "opt/sandbox/workspace/.memory",
    "opt/sandbox/workspace/.sessions",
    "proc",
    "tmp",
];
/// Names that are looked at, at most: more than a scope has entries, and the way
/// to them.
const MOST: usize = 100_000;
/// And how deep.
const DEPTH: usize = 64;
/// The kind of file system that views are held together by, from `magic.h`.
const TMPFS: i64 = 0x0102_1994;

pub(super) struct Mount {
    pub(super) path: String,
    read_only: bool,
    no_setuid: bool,
    no_devices: bool,
    /// Shows more than processes.
    whole_proc: bool,
}

impl Mount {
    /// Is it not as it must be in a sandbox?
    pub(super) fn is_faulty(&self) -> bool {
        !self.no_setuid || !(self.no_devices || self.is_device()) || self.whole_proc
    }

    /// Can files be changed in it?
    pub(super) fn is_writable(&self) -> bool {
        !self.read_only && !self.path.starts_with("/dev/") && self.path != "/proc"
    }

    fn is_device(&self) -> bool {
        self.path.starts_with("/dev/") && self.path != "/dev/shm"
    }
}

/// All that are found; `None` if this process may not look.
pub(super) fn of(process: &Process) -> Option<Vec<Mount>> {
    let table = process.read("mountinfo")?;
    if !table.is_empty() {
        return Some(table.lines().filter_map(listed).collect());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = openat(CWD, format!("/proc/{}/root", process.pid), flags, Mode::empty()).ok()?;
    let mut search = Search { found: BTreeMap::new(), looked: 0 };
    search.found.insert(String::new(), look_at(&root, "").ok()?);
    search.look_into(&root, "");
    for path in KNOWN {
        match mounts::handle(&root, path) {
            Ok(_) if search.found.contains_key(path) => {}
            Ok(handle) => search.look_at(&handle, path),
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            Err(_) => return None,
        }
    }
    Some(search.found.into_values().collect())
}

fn listed(line: &str) -> Option<Mount> {
    // Fields: id, parent, device, root, mount point, options.
    let fields: Vec<&str> = line.split(' ').collect();
    let (path, options) = (*fields.get(4)?, *fields.get(5)?);
    let has = |option: &str| options.split(',').any(|other| other == option);
    Some(Mount {
        path: path.to_owned(),
        read_only: has("ro"),
        no_setuid: has("nosuid"),
        no_devices: has("nodev"),
        whole_proc: path == "/proc" && !line.contains("subset=pid"),
    })
}

struct Search {
    found: BTreeMap<String, Mount>,
    looked: usize,
}

impl Search {
    fn look_at(&mut self, handle: &OwnedFd, path: &str) {
        // What is gone meanwhile is none.
        if is_mount(handle).unwrap_or(false)
            && let Ok(mount) = look_at(handle, path)
        {
            self.found.insert(path.to_owned(), mount);
        }
        self.look_into(handle, path);
    }

    /// Looks at what is in a folder of a view's own: memory that is mounted
    /// read-only. (So may be what a scope shows, which nobody counts.)
    fn look_into(&mut self, folder: &OwnedFd, path: &str) {
        if path.split('/').count() > DEPTH || !is_sealed(folder).unwrap_or(false) {
            return;
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let entries = openat(folder, ".", flags, Mode::empty()).and_then(Dir::new);
        for entry in entries.into_iter().flatten().flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") || entry.file_type() == FileType::Symlink {
                continue;
            }
            self.looked += 1;
            if self.looked > MOST {
                return;
            }
            let shown = name.to_string_lossy();
            let below = if path.is_empty() { shown.into_owned() } else { format!("{path}/{shown}") };
            if let Ok(handle) = mounts::handle(folder, name) {
                self.look_at(&handle, &below);
            }
        }
    }
}

fn is_mount(handle: impl AsFd) -> Result<bool> {
    let stat = statx(handle, "", AtFlags::EMPTY_PATH | AtFlags::NO_AUTOMOUNT, StatxFlags::TYPE)?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

fn is_sealed(folder: &OwnedFd) -> Result<bool> {
    let memory = fstatfs(folder)?.f_type == TMPFS;
    Ok(memory && fstatvfs(folder)?.f_flag.contains(StatVfsMountFlags::RDONLY))
}

fn look_at(mount: &OwnedFd, path: &str) -> Result<Mount> {
    let flags = fstatvfs(mount)?.f_flag;
    Ok(Mount {
        path: format!("/{path}"),
        read_only: flags.contains(StatVfsMountFlags::RDONLY),
        no_setuid: flags.contains(StatVfsMountFlags::NOSUID),
        no_devices: flags.contains(StatVfsMountFlags::NODEV),
        // Of what is not a process's, `subset=pid` leaves nothing.
        whole_proc: path == "proc" && statx(mount, "meminfo", AtFlags::empty(), StatxFlags::TYPE).is_ok(),
    })
}
