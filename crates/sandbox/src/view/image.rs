//! A root folder of the operator's choice instead of the host's programs: made
//! by debootstrap, say, or unpacked from a container image. Every sandbox may
//! change all of it: what it writes lands in a layer of its own, which is
//! memory, and ends with the sandbox.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use cloister_types::path::WorkspacePath;
use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid, chownat, mkdirat, openat2, unlinkat};
use rustix::io::{Errno, Result};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};

use super::ViewError;
use super::base::{PLAIN, place_host_file, resolver, write};
use super::mounts::{STRICT, attach, bind, clone_mount, handle, host, tmpfs};
use super::site::{Part, Site, Tree};
use super::workspace::make_folders;
use crate::confine::Limits;
use crate::identity::{self, Identity};
use crate::{INSIDE_ID, sys};

/// Folders that something is mounted on.
const MOUNT_POINTS: [&str; 4] = ["dev", "opt/sandbox", "proc", "tmp"];

/// Where the image is put together, in the memory of its layer.
const LAYERED: &str = "layered";

/// The folder.
pub(crate) struct Image {
    folder: OwnedFd,
}

impl Image {
    /// Opens the folder, if it looks like the root of a system.
    pub(crate) fn open(path: &Path) -> std::result::Result<Self, ViewError> {
        let shown = path.display();
        let folder = host(path).map_err(ViewError::at(format!("open the image {shown}")))?;
        let resolve = rustix::fs::ResolveFlags::IN_ROOT | rustix::fs::ResolveFlags::NO_MAGICLINKS;
        openat2(&folder, "bin/sh", OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
            .map_err(ViewError::at(format!("find /bin/sh in the image {shown}")))?;
        Ok(Self { folder })
    }

    /// Holds the folder as a mount of its own, where there are such: it outlives
    /// the host's.
    pub(super) fn taken_along(self, site: &Site) -> Result<Self> {
        if site.is_nowhere() { Ok(Self { folder: clone_mount(&self.folder, false)? }) } else { Ok(self) }
    }

    /// The image under a layer of its own, with what a sandbox needs in it:
    /// parts of `base` among it.
    pub(super) fn layered(
        &self,
        site: &Site,
        base: &Tree,
        user: Identity,
        limits: &Limits,
    ) -> std::result::Result<OwnedFd, ViewError> {
        let memory = self.layer(site, user, limits);
        let memory = memory.map_err(ViewError::at("put a writable layer on the image (overlay)"))?;
        let layered = handle(&memory, LAYERED).map_err(ViewError::at("open the layered image"))?;
        for folder in MOUNT_POINTS {
            let path = WorkspacePath::parse(folder.as_bytes()).unwrap_or_default();
            make_folders(&layered, &path).map_err(ViewError::at(format!("make /{folder} in the image")))?;
        }
        accounts(&layered).map_err(ViewError::at("write the image's /etc"))?;
        // A folder can be moved away with what is mounted in it, unless it is a
        // mount itself.
        let fixed = handle(&layered, "opt").and_then(|opt| attach(clone_mount(&opt, false)?, opt));
        fixed.map_err(ViewError::at("keep the image's /opt in its place"))?;
        for folder in ["dev", "opt/sandbox"] {
            let part = handle(base, folder).and_then(|part| clone_mount(part, true));
            part.and_then(|part| attach(part, handle(&layered, folder)?))
                .map_err(ViewError::at(format!("put /{folder} into the image")))?;
        }
        clone_mount(layered, true).map_err(ViewError::at("clone the layered image"))
    }

    /// A tree of memory, with what the layer is made of and the layered image.
    fn layer(&self, site: &Site, user: Identity, limits: &Limits) -> Result<Tree> {
        let lower = bind(&self.folder, true)?;
        if user.root_mode {
            // Root's files are the sandbox's user's, who may thus change them all.
            let root = Identity { uid: 0, gid: 0, root_mode: true };
            let (map, _) =
                identity::owners_map(root, user).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
            sys::map_mount_owners(&lower, map)?;
        }
        let memory = tmpfs(&[("size", &limits.tmp_bytes.to_string()), ("mode", "0755")], PLAIN)?;
        let (lower, memory) = (site.stand_in_fork(lower, Part::Image)?, site.stand_in_fork(memory, Part::Memory)?);
        for folder in ["upper", "work", LAYERED] {
            mkdirat(&memory, folder, Mode::from_raw_mode(0o755))?;
        }
        if user.root_mode {
            let (uid, gid) = (Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)));
            chownat(&memory, "upper", uid, gid, AtFlags::empty())?;
        }
        let overlay = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
        fsconfig_set_string(&overlay, "source", "image")?;
        // Mount information shows these words, which say nothing of the host.
        let own = |tree: &Tree, folder: &str| format!("/proc/self/fd/{}{folder}", tree.as_fd().as_raw_fd());
        fsconfig_set_string(&overlay, "lowerdir", own(&lower, ""))?;
        fsconfig_set_string(&overlay, "upperdir", own(&memory, "/upper"))?;
        fsconfig_set_string(&overlay, "workdir", own(&memory, "/work"))?;
        if !user.root_mode {
            // An ordinary user may not write the attributes that it uses else.
            fsconfig_set_flag(&overlay, "userxattr")?;
        }
        fsconfig_create(&overlay)?;
        attach(fsmount(&overlay, FsMountFlags::FSMOUNT_CLOEXEC, PLAIN)?, handle(&memory, LAYERED)?)?;
        Ok(memory)
    }
}

/// Makes the agent's account known. Nothing of the image is followed on the
/// way: a link in it could lead to the host's own files.
fn accounts(root: &OwnedFd) -> Result<()> {
    let etc = WorkspacePath::parse(b"etc").unwrap_or_default();
    make_folders(root, &etc)?;
    for (name, line) in [
        ("etc/passwd", format!("agent:x:{INSIDE_ID}:{INSIDE_ID}:agent:/tmp/home:/bin/sh\n")),
        ("etc/group", format!("agent:x:{INSIDE_ID}:\n")),
        ("etc/hosts", "127.0.0.1 localhost cloister\n::1 localhost\n".to_owned()),
        ("etc/resolv.conf", resolver()),
    ] {
        let before =
            match openat2(root, name, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty(), STRICT) {
                Ok(file) if !matches!(name, "etc/hosts" | "etc/resolv.conf") => {
                    let mut text = String::new();
                    let read = std::io::Read::read_to_string(
                        &mut std::io::Read::take(std::fs::File::from(file), 1 << 20),
                        &mut text,
                    );
                    if read.is_ok() { text } else { String::new() }
                }
                _ => String::new(),
            };
        let id = format!(":{INSIDE_ID}:");
        let others: String =
            before.lines().filter(|known| !known.contains(&id)).map(|known| format!("{known}\n")).collect();
        match unlinkat(root, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
        write(root, name, (others + &line).as_bytes())?;
    }
    Ok(())
}

/// The host's C library for the agent, which the image's may be too old for,
/// or no C library of that kind at all: those that this very program has, and
/// the mathematical one.
pub(super) fn bring_libraries(tree: &Tree) -> Result<()> {
    let maps = std::fs::read_to_string("/proc/self/maps").map_err(|_| Errno::NOENT)?;
    let mut libraries: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.split_once('/').map(|(_, path)| PathBuf::from(format!("/{path}"))))
        .collect();
    libraries.retain(|path| path.file_name().is_some_and(|name| name.to_string_lossy().contains(".so")));
    libraries.sort();
    libraries.dedup();
    let folder =
        libraries.iter().find(|path| path.ends_with("libc.so.6")).and_then(|path| path.parent()).ok_or(Errno::NOENT)?;
    libraries.push(folder.join("libm.so.6"));
    for path in &libraries {
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with("ld-") {
            bring_loader(tree, path)?;
        } else {
            place_host_file(tree, &format!("opt/sandbox/lib/{name}"), path)?;
        }
    }
    Ok(())
}

/// What every loader reads whatever it is told, and the place that ours reads
/// instead: one that nobody can make.
const PRELOAD: &[u8] = b"/etc/ld.so.preload\0";
const NOWHERE: &[u8] = b"/opt/sandbox/lib/-\0";

/// The loader, as a copy that does not look into the image's `/etc`: a tool
/// could name a library there, and be in the next agent.
fn bring_loader(tree: &Tree, path: &Path) -> Result<()> {
    let mut loader = std::fs::read(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    let at = loader.windows(PRELOAD.len()).position(|bytes| bytes == PRELOAD).ok_or(Errno::NOEXEC)?;
    loader[at..at + NOWHERE.len()].copy_from_slice(NOWHERE);
    write(tree, "opt/sandbox/lib/loader", &loader)?;
    let loader = handle(tree, "opt/sandbox/lib/loader")?;
    let own = format!("/proc/self/fd/{}", loader.as_raw_fd());
    rustix::fs::chmod(own, Mode::from_raw_mode(0o755))
}
