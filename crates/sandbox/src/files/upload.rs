//! Writing: into a nameless file first, then into place in one step.

use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Mutex;

use cloister_types::WorkspacePath;
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, fstat, fsync, linkat, mkdirat, openat, openat2, renameat,
    renameat_with, unlinkat,
};
use rustix::io::Errno;

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

/// Where the bytes go until they are complete.
#[derive(Debug)]
enum Target {
    /// A nameless file in the folder, to be given the name at the end.
    Replace { folder: OwnedFd, name: Vec<u8> },
    /// The file itself: it is a mount of its own, or reached through a link,
    /// so nothing can be put in its place.
    InPlace,
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
            let existing = match self.open(path, OFlags::PATH) {
                Ok(handle) => Some(handle),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => None,
                Err(errno) => return Err(errno.into()),
            };
            if let Some(handle) = &existing {
                let stat = fstat(handle)?;
                if kind(&stat) != FileType::RegularFile {
                    return Err(match fstat(self.open(&parent, OFlags::PATH)?) {
                        Ok(above) if above.st_dev == self.skeleton && stat.st_dev == self.skeleton => {
                            FileError::ReadOnly
                        }
                        _ => FileError::WrongKind,
                    });
                }
                let link = self.open(path, OFlags::PATH | OFlags::NOFOLLOW).and_then(fstat)?;
                if is_mount_root(handle)? || kind(&link) == FileType::Symlink {
                    if !condition.holds(Some(&tag(&stat))) {
                        return Err(FileError::Precondition);
                    }
                    let file = File::from(reopen(handle, OFlags::WRONLY | OFlags::TRUNC)?);
                    return Ok(Upload { file, target: Target::InPlace, condition: Condition::None });
                }
            }
            let folder = self.make_parents(&parent)?;
            let flags = OFlags::TMPFILE | OFlags::WRONLY | OFlags::CLOEXEC;
            match openat(&folder, ".", flags, FILE) {
                Ok(file) => {
                    Ok(Upload { file: file.into(), target: Target::Replace { folder, name: name.to_vec() }, condition })
                }
                Err(Errno::ROFS) => Err(self.read_only_at(&folder)),
                Err(errno) => Err(errno.into()),
            }
        })
    }

    /// Opens the folder, making what is missing on the way to it.
    fn make_parents(&self, path: &WorkspacePath) -> Result<OwnedFd> {
        let open = |path: &WorkspacePath| self.open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK);
        match open(path) {
            Ok(folder) => return Ok(folder),
            Err(Errno::NOENT) => {}
            // A file in the way: a plain conflict, and visible as such.
            Err(Errno::NOTDIR) => return Err(FileError::WrongKind),
            Err(errno) => return Err(errno.into()),
        }
        let (above, name) = path.split_last().ok_or(FileError::NotFound)?;
        let above = self.make_parents(&above)?;
        match mkdirat(&above, name, FOLDER) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(Errno::ROFS) => return Err(self.read_only_at(&above)),
            Err(errno) => return Err(errno.into()),
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let resolve = rustix::fs::ResolveFlags::BENEATH | rustix::fs::ResolveFlags::NO_SYMLINKS;
        Ok(openat2(&above, name, flags, Mode::empty(), resolve)?)
    }

    /// Puts a complete upload in place, durably.
    ///
    /// # Errors
    /// [`FileError::Precondition`] if the file changed against the condition.
    pub fn commit(&self, upload: Upload) -> Result<Written> {
        self.act(|| {
            fsync(&upload.file)?;
            let Upload { file, target, condition } = upload;
            let Target::Replace { folder, name } = target else {
                let stat = fstat(&file)?;
                return Ok(Written {
                    size: stat.st_size.cast_unsigned(),
                    modified: modified(&stat),
                    tag: tag(&stat),
                    created: false,
                });
            };
            let _commit = COMMITS.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            let handle =
                openat(&folder, name.as_slice(), OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty());
            let before = match handle {
                Ok(handle) => Some(fstat(handle)?),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(errno.into()),
            };
            if !condition.holds(before.as_ref().map(tag).as_deref()) {
                return Err(FileError::Precondition);
            }
            // A hidden name first: link(2) cannot replace, rename(2) can.
            let temporary = format!(".cloister-upload-{:x}-{}", fstat(&file)?.st_ino, std::process::id());
            let source = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
            linkat(rustix::fs::CWD, source, &folder, temporary.as_str(), AtFlags::SYMLINK_FOLLOW)?;
            let moved = if before.is_none() {
                renameat_with(&folder, temporary.as_str(), &folder, name.as_slice(), RenameFlags::NOREPLACE)
            } else {
                renameat(&folder, temporary.as_str(), &folder, name.as_slice())
            };
            let moved = match moved {
                // Somebody was faster; without a condition the last writer wins.
                Err(Errno::EXIST) if condition == Condition::None => {
                    renameat(&folder, temporary.as_str(), &folder, name.as_slice())
                }
                Err(Errno::EXIST) => {
                    let _ = unlinkat(&folder, temporary.as_str(), AtFlags::empty());
                    return Err(FileError::Precondition);
                }
                other => other,
            };
            if let Err(errno) = moved {
                let _ = unlinkat(&folder, temporary.as_str(), AtFlags::empty());
                return Err(errno.into());
            }
            fsync(&folder)?;
            let stat = fstat(&file)?;
            Ok(Written {
                size: stat.st_size.cast_unsigned(),
                modified: modified(&stat),
                tag: tag(&stat),
                created: before.is_none(),
            })
        })
    }
}
