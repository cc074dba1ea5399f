//! Counting what lies below a folder, whatever is done to it meanwhile.

use std::collections::HashSet;
use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, StatxFlags, openat, statx};
use rustix::io::{Errno, Result};

use super::Amount;

/// Folders renamed away under the walk make it climb to where it has not come
/// from; then it begins again, this often at most.
const TRIES: usize = 3;

/// Bytes and files below `root`, on its file system alone; a file with several
/// names counts once.
pub(super) fn count(root: &OwnedFd) -> Result<Amount> {
    let mut best = Amount::default();
    for _ in 0..TRIES {
        match walk(root) {
            Ok((amount, true)) => return Ok(amount),
            Ok((amount, false)) => {
                best = Amount { bytes: best.bytes.max(amount.bytes), files: best.files.max(amount.files) }
            }
            Err(errno) => return Err(errno),
        }
    }
    Ok(best)
}

/// A folder that the walk is in: what it is, and what is still to be entered.
struct Level {
    inode: u64,
    rest: Vec<CString>,
}

/// Walks with one descriptor, so that depth costs none: down by name, up by
/// `..`. False: it was led astray, and what it has counted is not all.
fn walk(root: &OwnedFd) -> Result<(Amount, bool)> {
    let device = device_and_inode(root)?.0;
    let mut total = Amount::default();
    let mut links = HashSet::new();
    let mut at = open(root, c".")?;
    let mut levels = vec![level(&at, device, &mut total, &mut links)?];
    loop {
        let Some(top) = levels.last_mut() else { return Ok((total, true)) };
        match top.rest.pop() {
            Some(name) => match open(&at, &name) {
                Ok(folder) => {
                    if device_and_inode(&folder)?.0 == device {
                        levels.push(level(&folder, device, &mut total, &mut links)?);
                        at = folder;
                    }
                }
                // Gone, or replaced, or shut: counted as an entry, not entered.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => {}
                Err(errno) => return Err(errno),
            },
            None => {
                levels.pop();
                let Some(above) = levels.last() else { return Ok((total, true)) };
                at = open(&at, c"..")?;
                if device_and_inode(&at)? != (device, above.inode) {
                    return Ok((total, false));
                }
            }
        }
    }
}

fn open(folder: &OwnedFd, name: &std::ffi::CStr) -> Result<OwnedFd> {
    openat(folder, name, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn device_and_inode(folder: &OwnedFd) -> Result<(u64, u64)> {
    let stat = rustix::fs::fstat(folder)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Counts the entries of a folder and notes those to be entered.
fn level(folder: &OwnedFd, device: u64, total: &mut Amount, links: &mut HashSet<u64>) -> Result<Level> {
    let inode = device_and_inode(folder)?.1;
    let mut rest = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let wanted = StatxFlags::TYPE | StatxFlags::BLOCKS | StatxFlags::NLINK | StatxFlags::INO;
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        let Ok(stat) = statx(folder, name, flags, wanted) else { continue };
        if rustix::fs::makedev(stat.stx_dev_major, stat.stx_dev_minor) != device {
            continue;
        }
        let is_folder = FileType::from_raw_mode(u32::from(stat.stx_mode)) == FileType::Directory;
        if is_folder {
            rest.push(name.to_owned());
        } else if stat.stx_nlink > 1 && !links.insert(stat.stx_ino) {
            continue;
        }
        total.bytes += stat.stx_blocks * 512;
        total.files += 1;
    }
    Ok(Level { inode, rest })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn counted(path: &std::path::Path) -> Amount {
        count(&std::fs::File::open(path).unwrap().into()).unwrap()
    }

    #[test]
    fn everything_is_counted_once_and_no_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        assert_eq!(counted(folder.path()), Amount::default());
        std::fs::create_dir_all(path("a/b")).unwrap();
        std::fs::write(path("a/b/file"), vec![1; 300_000]).unwrap();
        let one = counted(folder.path());
        assert_eq!(one.files, 3);
        assert!((300_000..330_000).contains(&one.bytes), "{one:?}");
        std::fs::hard_link(path("a/b/file"), path("again")).unwrap();
        symlink("/usr", path("out")).unwrap();
        symlink("..", path("a/up")).unwrap();
        let more = counted(folder.path());
        assert_eq!(more.files, 5);
        assert!(more.bytes < one.bytes + 10_000);
        // A hole takes no space.
        std::fs::File::create(path("hole")).unwrap().set_len(1 << 40).unwrap();
        assert!(counted(folder.path()).bytes < one.bytes + 20_000);
    }

    #[test]
    fn depth_costs_no_descriptors_and_no_path_is_too_long() {
        let folder = tempfile::tempdir().unwrap();
        let mut at: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
        for _ in 0..5000 {
            rustix::fs::mkdirat(&at, "deep", Mode::from_raw_mode(0o755)).unwrap();
            at = open(&at, c"deep").unwrap();
        }
        assert_eq!(counted(folder.path()).files, 5000);
        let top: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
        crate::files::remove_tree(&top, b"deep").unwrap();
    }

    #[test]
    fn folders_that_move_meanwhile_do_not_lead_it_out() {
        let folder = tempfile::tempdir().unwrap();
        let inside = folder.path().join("in");
        for n in 0..200 {
            std::fs::create_dir_all(inside.join(format!("a/{n}/x/y"))).unwrap();
            std::fs::create_dir_all(folder.path().join(format!("outside/{n}"))).unwrap();
        }
        let stop = std::sync::atomic::AtomicBool::new(false);
        let stopped = &stop;
        std::thread::scope(|scope| {
            let (source, target) = (inside.join("a"), folder.path().join("outside/moved"));
            scope.spawn(move || {
                while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    let _ = std::fs::rename(&source, &target).and_then(|()| std::fs::rename(&target, &source));
                }
            });
            for _ in 0..50 {
                assert!(counted(&inside).files <= 601);
            }
            stop.store(true, std::sync::atomic::Ordering::Relaxed);
        });
    }
}
