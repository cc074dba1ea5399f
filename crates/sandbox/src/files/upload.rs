//! Writing: into a nameless file first, then into place in one step.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use cloister_types::WorkspacePath;
use cloister_types::scope::MEMORY;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, fsync, linkat, mkdirat, openat, openat2, renameat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;

use super::remove::{entry, refuse_mount};
use super::{FileError, Result, View, is_mount_root, kind, modified, reopen, tag};

const FILE: Mode = Mode::from_raw_mode(0o644);
const FOLDER: Mode = Mode::from_raw_mode(0o755);

/// Two conditional writers of this server must not both find their condition
/// true. The agent is not held up by this: it knows no conditions.
static COMMITS: Mutex<()> = Mutex::new(());

/// What must hold before a write or a delete.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// `If-Match: *`, the file exists; or it has one of these tags.
    Match(Option<Vec<String>>),
    /// `If-None-Match: *`, the file does not exist; or has none of these tags.
    NoneMatch(Option<Vec<String>>),
}

impl Condition {
    pub(super) fn holds(&self, tag: Option<&str>) -> bool {
        let among = |tags: &[String]| tag.is_some_and(|tag| tags.iter().any(|other| other == tag));
        match self {
            Self::None => true,
            Self::Match(None) => tag.is_some(),
            Self::Match(Some(tags)) => among(tags),
            Self::NoneMatch(None) => tag.is_none(),
            Self::NoneMatch(Some(tags)) => !among(tags),
        }
    }
}

/// Where the bytes go once they are complete.
#[derive(Debug)]
enum Target {
    /// A name in a folder, to be given to the new file.
    Name { folder: OwnedFd, name: Vec<u8> },
    /// The content of an existing file: it is a mount of its own, or reached
    /// through a link, so nothing can be put in its place.
    Content(OwnedFd),
}

/// An upload under way.
#[derive(Debug)]
pub struct Upload {
    /// Write here, in order.
    pub file: File,
    target: Target,
    condition: Condition,
}

/// An upload that is in place.
#[derive(Debug, Clone, PartialEq)]
pub struct Written {
    /// Bytes.
    pub size: u64,
    /// Unix seconds.
    pub modified: f64,
    /// The new validator.
    pub tag: String,
    /// The file did not exist before.
    pub created: bool,
}

impl View {
    /// Begins an upload; missing folders on the way are made.
    ///
    /// # Errors
    /// [`FileError::NotFound`] outside the scope, [`FileError::ReadOnly`] on
    /// visible paths that are not writable, [`FileError::WrongKind`] on a folder.
    pub fn upload(&self, path: &WorkspacePath, condition: Condition) -> Result<Upload> {
        self.act(|| {
            let (parent, name) = path.split_last().ok_or(FileError::WrongKind)?;
            let folder = self.make_parents(&parent)?;
            // From here on the folder is the one that was opened: whatever is
            // renamed or linked meanwhile, the name is looked up in it alone.
            match entry(&folder, name) {
                Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno.into()),
                Ok(found) => match kind(&fstat(&found)?) {
                    FileType::RegularFile if is_mount_root(&found)? => return self.upload_content(found, condition),
                    FileType::RegularFile => {}
                    FileType::Symlink => return self.upload_content(self.open(path, OFlags::PATH)?, condition),
                    FileType::Directory if self.is_sealed(&fstat(&found)?) => return Err(FileError::ReadOnly),
                    _ => return Err(FileError::WrongKind),
                },
            }
            let file = nameless(&folder).map_err(|errno| match errno {
                Errno::ROFS => self.read_only_at(&folder),
                errno => errno.into(),
            })?;
            Ok(Upload { file, target: Target::Name { folder, name: name.to_vec() }, condition })
        })
    }

    /// An upload that will become the content of what is there.
    fn upload_content(&self, target: OwnedFd, condition: Condition) -> Result<Upload> {
        if kind(&fstat(&target)?) != FileType::RegularFile {
            return Err(FileError::WrongKind);
        }
        // Opened now so that a refusal comes before the bytes do.
        let target = reopen(&target, OFlags::WRONLY)?;
        let memory = WorkspacePath::ROOT.join(MEMORY.as_bytes()).unwrap_or_default();
        // Any writable folder serves to hold a file without a name.
        let folder = self.open(&memory, OFlags::RDONLY | OFlags::DIRECTORY)?;
        Ok(Upload { file: nameless(&folder)?, target: Target::Content(target), condition })
    }

    /// Opens the folder, making what is missing on the way to it.
    fn make_parents(&self, path: &WorkspacePath) -> Result<OwnedFd> {
        let open = |path: &WorkspacePath| self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK);
        // The deepest folder that is there, then one by one.
        let mut missing = Vec::new();
        let mut at = path.clone();
        let mut folder = loop {
            match open(&at) {
                Ok(folder) => break folder,
                Err(Errno::NOENT) => {}
                // A file in the way: a plain conflict, and visible as such.
                Err(Errno::NOTDIR) => return Err(FileError::WrongKind),
                Err(errno) => return Err(errno.into()),
            }
            let (above, name) = at.split_last().ok_or(FileError::NotFound)?;
            missing.push(name.to_vec());
            at = above;
        };
        while let Some(name) = missing.pop() {
            match mkdirat(&folder, name.as_slice(), FOLDER) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(Errno::ROFS) => return Err(self.read_only_at(&folder)),
                Err(errno) => return Err(errno.into()),
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
            folder = openat2(&folder, name.as_slice(), flags, Mode::empty(), resolve)?;
        }
        Ok(folder)
    }

    /// Puts a complete upload in place, durably.
    ///
    /// # Errors
    /// [`FileError::Precondition`] if the file changed against the condition.
    pub fn commit(&self, upload: Upload) -> Result<Written> {
        self.act(|| {
            let Upload { mut file, target, condition } = upload;
            let _commit = COMMITS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            match target {
                Target::Name { folder, name } => {
                    fsync(&file)?;
                    let created = name_it(&file, &folder, &name, &condition)?;
                    fsync(&folder)?;
                    written(&file, created)
                }
                Target::Content(target) => {
                    if !condition.holds(Some(&tag(&fstat(&target)?))) {
                        return Err(FileError::Precondition);
                    }
                    let mut target = File::from(target);
                    let mut source = File::from(reopen(&file, OFlags::RDONLY)?);
                    std::io::Seek::rewind(&mut file)?;
                    target.set_len(0)?;
                    std::io::copy(&mut source, &mut target)?;
                    fsync(&target)?;
                    written(&target, false)
                }
            }
        })
    }
}

fn written(file: &File, created: bool) -> Result<Written> {
    let stat = fstat(file)?;
    Ok(Written { size: stat.st_size.cast_unsigned(), modified: modified(&stat), tag: tag(&stat), created })
}

fn nameless(folder: &OwnedFd) -> rustix::io::Result<File> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    Ok(openat(folder, ".", flags, FILE)?.into())
}

/// Gives a nameless file its name; true if nothing had that name before.
fn name_it(file: &File, folder: &OwnedFd, name: &[u8], condition: &Condition) -> Result<bool> {
    let before = match entry(folder, name) {
        Ok(found) => {
            refuse_mount(folder, &found)?;
            let stat = fstat(&found)?;
            if kind(&stat) == FileType::Directory {
                return Err(FileError::WrongKind);
            }
            Some(stat)
        }
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(errno.into()),
    };
    if !condition.holds(before.as_ref().map(tag).as_deref()) {
        return Err(FileError::Precondition);
    }
    // A hidden name first: link(2) cannot replace, rename(2) can.
    let temporary = hidden_name(file, folder)?;
    let moved = match before {
        Some(_) => renameat(folder, temporary.as_str(), folder, name),
        None => match renameat_with(folder, temporary.as_str(), folder, name, RenameFlags::NOREPLACE) {
            // The agent was faster; without a condition the last writer wins.
            Err(Errno::EXIST) if *condition == Condition::None => renameat(folder, temporary.as_str(), folder, name),
            other => other,
        },
    };
    moved.map_err(|errno| {
        let _ = unlinkat(folder, temporary.as_str(), AtFlags::empty());
        if errno == Errno::EXIST { FileError::Precondition } else { errno.into() }
    })?;
    Ok(before.is_none())
}

/// Links a nameless file under a hidden name that nobody can foresee.
fn hidden_name(file: &File, folder: &OwnedFd) -> Result<String> {
    let source = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
    for _ in 0..8 {
        let mut random = [0_u8; 8];
        rustix::rand::getrandom(&mut random, rustix::rand::GetRandomFlags::empty())?;
        let name = format!(".cloister-upload-{:016x}", u64::from_ne_bytes(random));
        match linkat(rustix::fs::CWD, source.as_str(), folder, name.as_str(), AtFlags::SYMLINK_FOLLOW) {
            Err(Errno::EXIST) => {}
            other => return Ok(other.map(|()| name)?),
        }
    }
    Err(FileError::Busy)
}
