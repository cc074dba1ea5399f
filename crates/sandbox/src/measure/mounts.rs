//! The mounts of a live sandbox: from the kernel's list where it has one, else
//! found where they can be.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, StatVfsMountFlags, StatxAttributes, StatxFlags, fstatfs, fstatvfs,
    openat, statx,
};
use rustix::io::{Errno, Result};

use super::Process;
use crate::view::mounts;

/// Mounts in folders that may be anything, and hold as much as the agent likes:
/// there, only these are looked for.
const KNOWN: [&str; 6] =
    ["dev", "opt/sandbox", "opt/sandbox/workspace", "opt/sandbox/workspace/.sessions", "proc", "tmp"];
/// Folders of a scope may lie this deep.
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
    let mut found = BTreeMap::new();
    visit(&root, "", 0, &mut found).ok()?;
    for path in KNOWN {
        if !found.contains_key(path) {
            // It need not be there.
            let _ = visit(&root, path, 0, &mut found);
        }
    }
    Some(found.into_values().collect())
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

/// Looks at a path, and at what is in it if that is a folder of a view's own:
/// memory that nobody can change.
fn visit(root: &OwnedFd, path: &str, depth: usize, found: &mut BTreeMap<String, Mount>) -> Result<()> {
    let handle = mounts::handle(root, if path.is_empty() { "." } else { path })?;
    if path.is_empty() || is_mount(&handle)? {
        found.insert(path.to_owned(), look_at(&handle, path)?);
    }
    if depth == DEPTH || !is_sealed(&handle)? {
        return Ok(());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let folder = match openat(&handle, ".", flags, Mode::empty()) {
        Err(Errno::NOTDIR) => return Ok(()),
        other => other?,
    };
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy();
        if !matches!(&*name, "." | "..") && entry.file_type() != FileType::Symlink {
            let below = if path.is_empty() { name.into_owned() } else { format!("{path}/{name}") };
            visit(root, &below, depth + 1, found)?;
        }
    }
    Ok(())
}

fn is_mount(handle: &OwnedFd) -> Result<bool> {
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
