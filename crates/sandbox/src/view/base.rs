//! What every sandbox of a tenant has in common: the host's programs, a
//! minimal `/etc`, a few devices. Built once and cloned for each sandbox.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat, openat, symlinkat};
use rustix::mount::MountAttrFlags;

use super::ViewError;
use super::mounts::{attach, bind, clone_mount, handle, host, tmpfs};
use crate::confine::Limits;
use crate::identity::Identity;
use crate::{AGENT, INSIDE_ID, WORKSPACE, sys};

/// Folders of the root that hold programs and libraries.
const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Devices that programs expect; none of them leads to hardware.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of the host's `/etc` that its programs need to start or to verify
/// certificates. Nothing about users, machines or the network.
const ETC: [&str; 6] = ["alternatives", "ld.so.cache", "ssl/certs", "ssl/openssl.cnf", "localtime", "mime.types"];

const FOLDER: Mode = Mode::from_raw_mode(0o755);

/// The tenant's common tree.
pub(crate) struct Base {
    tree: OwnedFd,
}

impl Base {
    /// Builds the tree, with the agent's executable in its place.
    pub(crate) fn build(agent: &Path) -> Result<Self, ViewError> {
        let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let tree = tmpfs(&[("size", "1m"), ("mode", "0755")], plain).map_err(ViewError::at("make the root (tmpfs)"))?;
        for folder in
            ["etc", "etc/ssl", "dev", "dev/pts", "dev/shm", "proc", "tmp", "opt", "opt/sandbox", "opt/sandbox/bin", WORKSPACE]
        {
            mkdirat(&tree, folder, FOLDER).map_err(ViewError::at(format!("make /{folder}")))?;
        }
        for name in SYSTEM {
            system(&tree, name).map_err(ViewError::at(format!("bind /{name}")))?;
        }
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
            ("ptmx", "pts/ptmx"),
        ] {
            symlinkat(target, &tree, format!("dev/{name}")).map_err(ViewError::at(format!("link /dev/{name}")))?;
        }
        for name in DEVICES {
            device(&tree, name).map_err(ViewError::at(format!("bind /dev/{name}")))?;
        }
        for name in ETC {
            etc(&tree, name).map_err(ViewError::at(format!("bind /etc/{name}")))?;
        }
        for (name, text) in accounts() {
            write(&tree, name, text.as_bytes()).map_err(ViewError::at(format!("write /{name}")))?;
        }
        let agent_source =
            host(&agent.to_string_lossy()).map_err(ViewError::at(format!("open the agent at {}", agent.display())))?;
        place_file(&tree, AGENT.trim_start_matches('/'), bind(agent_source, true))
            .map_err(ViewError::at("bind the agent"))?;
        sys::set_mount_attributes(&tree, sys::ATTR_RDONLY, false).map_err(ViewError::at("seal the root"))?;
        Ok(Self { tree })
    }

    /// The root of one sandbox: a clone of the base with its own `/tmp`. The
    /// workspace's mount point is empty.
    pub(crate) fn sandbox_root(&self, identity: Identity, limits: &Limits) -> Result<OwnedFd, ViewError> {
        let root = clone_mount(&self.tree, true).map_err(ViewError::at("clone the base tree"))?;
        let plain = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
        let (uid, gid) = (identity.uid.to_string(), identity.gid.to_string());
        for (folder, size, mode) in [("tmp", limits.tmp_bytes, "1777"), ("dev/shm", limits.tmp_bytes / 4, "1777")] {
            let inodes = (size / 4096).max(1024).to_string();
            let size = size.to_string();
            let options =
                [("size", size.as_str()), ("nr_inodes", &inodes), ("mode", mode), ("uid", &uid), ("gid", &gid)];
            let mount = tmpfs(&options, plain).map_err(ViewError::at(format!("make /{folder} (tmpfs)")))?;
            let target = handle(&root, folder).map_err(ViewError::at(format!("open /{folder}")))?;
            attach(mount, target).map_err(ViewError::at(format!("attach /{folder}")))?;
        }
        Ok(root)
    }
}

/// A system folder: bound if it is one, linked again if it is a link.
fn system(tree: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let path = format!("/{name}");
    match std::fs::read_link(&path) {
        Ok(target) => return symlinkat(target.as_path(), tree, name),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    mkdirat(tree, name, FOLDER)?;
    attach(bind(host(&path)?, true)?, handle(tree, name)?)
}

fn device(tree: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let source = host(&format!("/dev/{name}"))?;
    // The one place where devices stay devices; everything else is nodev.
    let mount = clone_mount(source, false).and_then(|mount| {
        sys::set_mount_attributes(&mount, sys::ATTR_NOSUID | sys::ATTR_NOEXEC, false)?;
        Ok(mount)
    });
    place_file(tree, &format!("dev/{name}"), mount)
}

fn etc(tree: &OwnedFd, name: &str) -> rustix::io::Result<()> {
    let path = format!("/etc/{name}");
    let inside = format!("etc/{name}");
    let Ok(metadata) = std::fs::metadata(&path) else { return Ok(()) };
    let mount = bind(host(&path)?, true);
    if metadata.is_dir() {
        mkdirat(tree, &inside, FOLDER)?;
        attach(mount?, handle(tree, &inside)?)
    } else {
        place_file(tree, &inside, mount)
    }
}

fn place_file(tree: &OwnedFd, path: &str, mount: rustix::io::Result<OwnedFd>) -> rustix::io::Result<()> {
    mknodat(tree, path, FileType::RegularFile, Mode::from_raw_mode(0o444), 0)?;
    attach(mount?, handle(tree, path)?)
}

fn write(tree: &OwnedFd, path: &str, content: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(tree, path, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(content).map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

/// The accounts that exist inside, and name look-up without any network.
fn accounts() -> [(&'static str, String); 5] {
    [
        (
            "etc/passwd",
            format!(
                "agent:x:{INSIDE_ID}:{INSIDE_ID}:agent:/tmp/home:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("etc/group", format!("agent:x:{INSIDE_ID}:\nnogroup:x:65534:\n")),
        ("etc/hosts", "127.0.0.1 localhost cloister\n::1 localhost\n".to_owned()),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files\n".to_owned()),
        ("etc/gitconfig", "[safe]\n\tdirectory = *\n".to_owned()),
    ]
}
