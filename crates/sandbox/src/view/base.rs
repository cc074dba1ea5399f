//! What every sandbox of a tenant has in common: programs (the host's with a
//! minimal `/etc`, or an image's), the agent, a few devices. Built once and
//! cloned for each sandbox.

use std::io::Write;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use cloister_types::link::{AUTHORITY_FILE, AUTHORITY_STORE, RESOLVER};
use rustix::fs::{FileType, Mode, OFlags, mkdirat, mknodat, openat, symlinkat};
use rustix::mount::MountAttrFlags;

use super::ViewError;
use super::image::{self, Image};
use super::mounts::{attach, bind, clone_mount, handle, host, seal, tmpfs};
use super::site::{Site, Tree};
use crate::confine::Limits;
use crate::identity::Identity;
use crate::{AGENT, INSIDE_ID, WORKSPACE, sys};

/// Folders of the root that hold programs and libraries.
const SYSTEM: [&str; 7] = ["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32"];
/// Devices that programs expect; none of them leads to hardware.
const DEVICES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of the host's `/etc` that its programs need to start. Nothing about
/// users, machines or the network.
const ETC: [&str; 10] = [
    "alternatives",
    "fonts",
    "ld.so.cache",
    "localtime",
    "magic",
    "magic.mime",
    "mime.types",
    "perl",
    "ssl/openssl.cnf",
    "terminfo",
];
/// And those whose names carry a version: what these languages keep there is
/// part of their installation.
const ETC_BEGINNINGS: [&str; 2] = ["java-", "python3"];

/// Where programs look for authorities, and the session's own, which is the only
/// one that it can meet: whatever it dials is answered by egress.
const AUTHORITIES: [(&str, &str); 2] =
    [("etc/ssl/certs/ca-certificates.crt", AUTHORITY_FILE), ("etc/ssl/certs/java/cacerts", AUTHORITY_STORE)];

const FOLDER: Mode = Mode::from_raw_mode(0o755);
pub(crate) const PLAIN: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID.union(MountAttrFlags::MOUNT_ATTR_NODEV);

/// The tenant's common tree.
pub(crate) struct Base {
    /// Of the host's programs, a whole root; beside an image, what is put into
    /// it: `/dev` and `/opt/sandbox`.
    tree: Tree,
    image: Option<Image>,
}

impl Base {
    /// Opens the agent's executable.
    pub(crate) fn agent(path: &Path) -> Result<OwnedFd, ViewError> {
        rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(ViewError::at(format!("open the agent at {}", path.display())))
    }

    /// Builds the tree, with the agent's executable in its place.
    pub(crate) fn build(site: &Site, agent: OwnedFd, image: Option<Image>) -> Result<Self, ViewError> {
        let tree = tmpfs(&[("size", "2m"), ("mode", "0755")], PLAIN).and_then(|tree| site.stand(tree));
        let tree = tree.map_err(ViewError::at("make the root (tmpfs)"))?;
        for folder in
            ["dev", "dev/pts", "dev/shm", "opt", "opt/sandbox", "opt/sandbox/bin", "opt/sandbox/lib", WORKSPACE]
        {
            mkdirat(&tree, folder, FOLDER).map_err(ViewError::at(format!("make /{folder}")))?;
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
        place_file(&tree, AGENT.trim_start_matches('/'), bind(agent, true)).map_err(ViewError::at("bind the agent"))?;
        match image {
            Some(_) => image::bring_libraries(&tree).map_err(ViewError::at("bind the agent's libraries"))?,
            None => host_programs(&tree)?,
        }
        // All sandboxes share it: the flags of a mount are not all that it depends on.
        sys::set_mount_attributes(&tree, sys::ATTR_RDONLY, false)
            .and_then(|()| seal(&tree))
            .map_err(ViewError::at("seal the root"))?;
        let image = image.map(|image| image.taken_along(site)).transpose();
        Ok(Self { tree, image: image.map_err(ViewError::at("take the image along"))? })
    }

    /// The root of one sandbox. Mount points of what is its own are empty.
    pub(crate) fn sandbox_root(&self, site: &Site, user: Identity, limits: &Limits) -> Result<OwnedFd, ViewError> {
        match &self.image {
            None => clone_mount(&self.tree, true).map_err(ViewError::at("clone the base tree")),
            Some(image) => image.layered(site, &self.tree, user, limits),
        }
    }

    /// Do sandboxes have an image of their own, which they may change?
    pub(crate) fn is_image(&self) -> bool {
        self.image.is_some()
    }
}

/// The host's programs, and the little of its `/etc` that they need.
fn host_programs(tree: &Tree) -> Result<(), ViewError> {
    for folder in ["etc", "etc/ssl", "etc/ssl/certs", "etc/ssl/certs/java", "proc", "tmp"] {
        mkdirat(tree, folder, FOLDER).map_err(ViewError::at(format!("make /{folder}")))?;
    }
    for (link, target) in AUTHORITIES {
        symlinkat(target, tree, link).map_err(ViewError::at(format!("link /{link}")))?;
    }
    for name in SYSTEM {
        system(tree, name).map_err(ViewError::at(format!("bind /{name}")))?;
    }
    let listed = std::fs::read_dir("/etc").into_iter().flatten().flatten();
    let found = listed.filter_map(|entry| entry.file_name().into_string().ok());
    let found = found.filter(|name| ETC_BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)));
    for name in ETC.map(str::to_owned).into_iter().chain(found) {
        etc(tree, &name).map_err(ViewError::at(format!("bind /etc/{name}")))?;
    }
    for (name, text) in accounts() {
        write(tree, name, text.as_bytes()).map_err(ViewError::at(format!("write /{name}")))?;
    }
    Ok(())
}

/// A system folder: bound if it is one, linked again if it is a link.
fn system(tree: &Tree, name: &str) -> rustix::io::Result<()> {
    let path = format!("/{name}");
    match std::fs::read_link(&path) {
        Ok(target) => return symlinkat(target.as_path(), tree, name),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(_) => {}
    }
    mkdirat(tree, name, FOLDER)?;
    attach(bind(host(&path)?, true)?, handle(tree, name)?)
}

fn device(tree: &Tree, name: &str) -> rustix::io::Result<()> {
    let source = host(format!("/dev/{name}"))?;
    // The one place where devices stay devices; everything else is nodev.
    let mount = clone_mount(source, false).and_then(|mount| {
        sys::set_mount_attributes(&mount, sys::ATTR_NOSUID | sys::ATTR_NOEXEC, false)?;
        Ok(mount)
    });
    place_file(tree, &format!("dev/{name}"), mount)
}

fn etc(tree: &Tree, name: &str) -> rustix::io::Result<()> {
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

/// Binds a file of the host, read-only.
pub(super) fn place_host_file(tree: &Tree, path: &str, source: &Path) -> rustix::io::Result<()> {
    let source = openat(rustix::fs::CWD, source, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    place_file(tree, path, bind(source, true))
}

fn place_file(tree: &Tree, path: &str, mount: rustix::io::Result<OwnedFd>) -> rustix::io::Result<()> {
    mknodat(tree, path, FileType::RegularFile, Mode::from_raw_mode(0o444), 0)?;
    attach(mount?, handle(tree, path)?)
}

pub(super) fn write(tree: impl AsFd, path: &str, content: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let mut file = std::fs::File::from(openat(tree, path, flags, Mode::from_raw_mode(0o644))?);
    file.write_all(content).map_err(|error| rustix::io::Errno::from_io_error(&error).unwrap_or(rustix::io::Errno::IO))
}

/// The accounts that exist inside, and where names are looked up.
fn accounts() -> [(&'static str, String); 6] {
    [
        (
            "etc/passwd",
            format!(
                "agent:x:{INSIDE_ID}:{INSIDE_ID}:agent:/tmp/home:/bin/bash\nnobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
            ),
        ),
        ("etc/group", format!("agent:x:{INSIDE_ID}:\nnogroup:x:65534:\n")),
        ("etc/hosts", "127.0.0.1 localhost cloister\n::1 localhost\n".to_owned()),
        ("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n".to_owned()),
        ("etc/resolv.conf", resolver()),
        ("etc/gitconfig", "[safe]\n\tdirectory = *\n".to_owned()),
    ]
}

/// Where names are looked up: what the answers there are worth is egress's to say.
pub(super) fn resolver() -> String {
    let [a, b, c, d] = RESOLVER;
    format!("nameserver {a}.{b}.{c}.{d}\noptions timeout:3 attempts:2\n")
}
