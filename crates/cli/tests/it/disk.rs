//! A small file system of the test's own, which only root can mount; without
//! root this says that it was skipped.

use std::path::{Path, PathBuf};
use std::process::Command;

/// An ext4 in a file, mounted.
pub(crate) struct SmallDisk {
    folder: tempfile::TempDir,
    pub(crate) at: PathBuf,
}

fn run(program: &str, arguments: &[&std::ffi::OsStr]) {
    let output = Command::new(program).args(arguments).output().expect(program);
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_root() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

/// A folder, and in it an empty file of so many mebibytes.
fn blank(mebibytes: u64) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::Builder::new().prefix("disk-").tempdir().unwrap();
    let image = folder.path().join("image");
    std::fs::File::create(&image).unwrap().set_len(mebibytes << 20).unwrap();
    (folder, image)
}

impl SmallDisk {
    /// Makes and mounts one of so many mebibytes.
    pub(crate) fn mount(mebibytes: u64) -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED: only root can mount a file system");
            return None;
        }
        let (folder, image) = blank(mebibytes);
        run("mkfs.ext4", &["-q".as_ref(), "-m".as_ref(), "0".as_ref(), image.as_ref()]);
        Some(Self::mounted(folder))
    }

    /// Makes and mounts one that keeps to limits of projects, where root and the
    /// kernel can.
    pub(crate) fn mount_with_projects(mebibytes: u64) -> Option<Self> {
        if !is_root() {
            eprintln!("SKIPPED: only root can mount a file system");
            return None;
        }
        let (folder, image) = blank(mebibytes);
        run("mkfs.ext4", &["-q".as_ref(), "-O".as_ref(), "project,quota".as_ref(), image.as_ref()]);
        let at = folder.path().join("testkit-disk");
        std::fs::create_dir(&at).unwrap();
        let mounted = Command::new("mount").args(["-o", "loop,prjquota"]).args([&image, &at]).output().unwrap();
        if mounted.status.success() {
            return Some(Self { folder, at });
        }
        eprintln!("SKIPPED: the kernel must know project quotas: {}", String::from_utf8_lossy(&mounted.stderr));
        None
    }

    /// Makes and mounts a btrfs, where root and the kernel can.
    pub(crate) fn mount_btrfs(mebibytes: u64) -> Option<Self> {
        if !is_root() || !std::fs::read_to_string("/proc/filesystems").unwrap_or_default().contains("btrfs") {
            eprintln!("SKIPPED: only root can mount a file system, and the kernel must know btrfs");
            return None;
        }
        let (folder, image) = blank(mebibytes);
        run("mkfs.btrfs", &["-q".as_ref(), image.as_ref()]);
        Some(Self::mounted(folder))
    }

    fn mounted(folder: tempfile::TempDir) -> Self {
        let at = folder.path().join("testkit-disk");
        std::fs::create_dir(&at).unwrap();
        run("mount", &["-o".as_ref(), "loop".as_ref(), folder.path().join("image").as_ref(), at.as_ref()]);
        Self { folder, at }
    }

    /// A folder for a stack on it.
    pub(crate) fn folder(&self) -> tempfile::TempDir {
        tempfile::Builder::new().prefix("testkit-").tempdir_in(&self.at).unwrap()
    }

    /// Takes all the space that is left, but not what the server gives up when
    /// it notices.
    pub(crate) fn fill(&self) -> PathBuf {
        let path = self.at.join("filler");
        let mut file = std::fs::File::create(&path).unwrap();
        let block = vec![1; 64 << 10];
        while std::io::Write::write_all(&mut file, &block).is_ok() {}
        let left = block.len() / 512;
        let _ = (0..left).try_for_each(|_| std::io::Write::write_all(&mut file, &[1; 512]));
        path
    }

    /// Cuts the power: from now on nothing that was not on the disk will ever
    /// be, the file system's journal included.
    pub(crate) fn cut_power(&self) {
        // EXT4_IOC_SHUTDOWN with EXT4_GOING_FLAGS_NOLOGFLUSH.
        let script =
            "import fcntl,os,struct,sys; fcntl.ioctl(os.open(sys.argv[1],os.O_RDONLY),0x8004587d,struct.pack('I',2))";
        run("python3", &["-c".as_ref(), script.as_ref(), self.at.as_ref()]);
    }

    /// What the machine finds when it is switched on again: the disk's content
    /// on a mount of its own, since somebody may still hold the dead one.
    pub(crate) fn after_the_cut(&self) -> Self {
        let folder = tempfile::Builder::new().prefix("disk-").tempdir().unwrap();
        std::fs::copy(self.folder.path().join("image"), folder.path().join("image")).unwrap();
        Self::mounted(folder)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).output();
    }
}

/// Moves a folder that a dead disk had to where it is on the new one.
pub(crate) fn same_folder(on: &SmallDisk, was: &Path) -> tempfile::TempDir {
    let found = on.at.join(was.file_name().unwrap());
    let folder = on.folder();
    for entry in std::fs::read_dir(found).unwrap().flatten() {
        std::fs::rename(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}
