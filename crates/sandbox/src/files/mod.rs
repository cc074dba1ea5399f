//! The file API's side of a session's view. Every operation opens through the
//! very mount tree that the sandbox has, with the identity that the agent has,
//! so the kernel gives both the same answer.
//!
//! All calls block; paths are relative to the workspace.

mod context;
mod list;
mod read;
mod remove;
mod upload;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use cloister_types::WorkspacePath;
use cloister_types::scope::SESSIONS;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, StatxFlags, fstat, openat, openat2, statat, statx,
};
use rustix::io::Errno;
use rustix::path::DecInt;

use crate::WORKSPACE;
use crate::identity::Identity;
use crate::protocol::{Source, shows_only};
use crate::view::still_shows;

pub use context::{MAX_CONTEXT, read_context};
pub use list::Entry;
pub use read::{Found, Opened};
pub(crate) use remove::remove_tree;
pub use upload::{Condition, Upload, Written};

/// Why a file operation was not done. One table for all operations; the API
/// maps it to status codes in one place.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Nothing there, as far as this session can see.
    #[error("no such file")]
    NotFound,
    /// Visible and not writable.
    #[error("read-only path")]
    ReadOnly,
    /// The file's own mode denies it.
    #[error("permission denied")]
    Denied,
    /// A folder that holds something.
    #[error("directory is not empty")]
    NotEmpty,
    /// A folder where a file is needed, or the other way round.
    #[error("exists and is of another kind")]
    WrongKind,
    /// A mount of the view: its removal would change the scope.
    #[error("is part of the session's scope")]
    Pinned,
    /// `If-Match` or `If-None-Match` did not hold.
    #[error("precondition failed")]
    Precondition,
    /// No space.
    #[error("no space left")]
    NoSpace,
    /// The workspace holds as much as it may.
    #[error("quota exceeded")]
    Quota,
    /// The name is one that the file system cannot hold.
    #[error("invalid name")]
    BadName,
    /// Renames all around made the path impossible to resolve.
    #[error("busy")]
    Busy,
    /// Anything else.
    #[error("input/output error: {0}")]
    Io(Errno),
}

impl From<Errno> for FileError {
    fn from(errno: Errno) -> Self {
        match errno {
            // A link that leaves the view is as absent as what it points to.
            Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::XDEV => Self::NotFound,
            Errno::ROFS => Self::ReadOnly,
            Errno::ACCESS | Errno::PERM => Self::Denied,
            Errno::NOTEMPTY => Self::NotEmpty,
            Errno::ISDIR | Errno::EXIST => Self::WrongKind,
            Errno::BUSY => Self::Pinned,
            Errno::NOSPC | Errno::FBIG => Self::NoSpace,
            Errno::DQUOT => Self::Quota,
            Errno::NAMETOOLONG | Errno::INVAL | Errno::ILSEQ => Self::BadName,
            Errno::AGAIN => Self::Busy,
            other => Self::Io(other),
        }
    }
}

impl From<std::io::Error> for FileError {
    fn from(error: std::io::Error) -> Self {
        Errno::from_io_error(&error).map_or(Self::Io(Errno::IO), Self::from)
    }
}

/// A result of this module.
pub type Result<T> = std::result::Result<T, FileError>;

/// Look-ups with `..` in a link may meet a rename; the kernel then says
/// "again". 128 tries is what the Go library filepath-securejoin settled on.
const TRIES: usize = 128;

/// A session's view of the workspace.
#[derive(Debug)]
pub struct View {
    tree: OwnedFd,
    /// Keeps the tree standing, on kernels where it does not by itself.
    lease: Option<OwnedFd>,
    sources: Vec<Source>,
    pinned: bool,
    identity: Identity,
    /// Device of the sealed skeleton: read-only there means "not in scope".
    skeleton: u64,
    /// Device of the sealed `.sessions`, where the same holds.
    sessions: u64,
    /// Inodes of the skeleton that lie above or beside the workspace. A link
    /// may lead there; for the file API nothing exists outside the workspace.
    outside: Vec<u64>,
    /// The skeleton's own mount; its folders also appear as parts of others.
    root_mount: u64,
    generation: u64,
}

impl View {
    pub(crate) fn new(
        tree: OwnedFd,
        lease: Option<OwnedFd>,
        sources: Vec<Source>,
        pinned: bool,
        identity: Identity,
        generation: u64,
    ) -> rustix::io::Result<Self> {
        let skeleton = fstat(&tree)?.st_dev;
        let sessions = statat(&tree, format!("{WORKSPACE}/{SESSIONS}"), AtFlags::SYMLINK_NOFOLLOW)?.st_dev;
        let mut outside = Vec::new();
        for path in [".", "opt", "opt/sandbox"] {
            outside.push(statat(&tree, path, AtFlags::SYMLINK_NOFOLLOW)?.st_ino);
        }
        let root_mount = mount_of(&tree)?;
        Ok(Self { tree, lease, sources, pinned, identity, skeleton, sessions, outside, root_mount, generation })
    }

    /// Does everything that it shows lie on one device?
    pub(crate) fn is_on_device(&self, device: u64) -> bool {
        shows_only(&self.sources, device)
    }

    /// Has it mount points in folders that can be changed?
    pub(crate) fn is_pinned(&self) -> bool {
        self.pinned
    }

    /// Which of the host's spawners built it.
    pub(crate) fn generation(&self) -> u64 {
        self.generation
    }

    pub(crate) fn tree(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }

    /// Has a declared path appeared, vanished or been replaced since the view
    /// was built? Compared by device and inode in the workspace itself; and is
    /// it still mounted in the view?
    #[must_use]
    pub fn is_stale(&self, workspace: impl AsFd) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let Ok(shown) = openat2(&self.tree, WORKSPACE, flags, Mode::empty(), ResolveFlags::IN_ROOT) else {
            return true;
        };
        self.sources.iter().any(|source| {
            let now = openat2(
                workspace.as_fd(),
                source.path.as_slice(),
                flags,
                Mode::empty(),
                ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
            );
            let now = now.and_then(fstat).ok().map(|stat| (stat.st_dev, stat.st_ino));
            now != source.identity || !still_shows(&shown, source)
        })
    }

    /// Opens a path of the workspace through the tree.
    fn open(&self, path: &WorkspacePath, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let mut full = WORKSPACE.as_bytes().to_vec();
        for name in path.components() {
            full.push(b'/');
            full.extend_from_slice(name);
        }
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        // The kernel refuses flags that mean nothing to a mere handle.
        let extra = if flags.contains(OFlags::PATH) { OFlags::empty() } else { OFlags::NOCTTY };
        let mut tries = 0;
        loop {
            match openat2(&self.tree, full.as_slice(), flags | OFlags::CLOEXEC | extra, Mode::empty(), resolve) {
                Err(Errno::AGAIN) if tries < TRIES => tries += 1,
                // It has fallen, and shows nothing of what it did.
                Err(Errno::NOENT) if self.has_fallen() => return Err(Errno::AGAIN),
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(found) => {
                    let stat = fstat(&found)?;
                    let outside = stat.st_dev == self.skeleton
                        && self.outside.contains(&stat.st_ino)
                        && mount_of(&found)? == self.root_mount;
                    return if outside { Err(Errno::NOENT) } else { Ok(found) };
                }
            }
        }
    }

    /// Did the process end that keeps the tree standing?
    fn has_fallen(&self) -> bool {
        self.lease.as_ref().is_some_and(|lease| {
            let mut lease = [PollFd::new(lease, PollFlags::empty())];
            let _ = poll(&mut lease, Some(&Timespec::default()));
            lease[0].revents().contains(PollFlags::ERR)
        })
    }

    /// The folder that holds `path`, and the name in it.
    fn parent<'p>(&self, path: &'p WorkspacePath) -> Result<(OwnedFd, &'p [u8])> {
        let (parent, name) = path.split_last().ok_or(FileError::Pinned)?;
        Ok((self.open(&parent, OFlags::PATH | OFlags::DIRECTORY)?, name))
    }

    /// Is this one of the view's own folders, in which nobody can make anything?
    fn is_sealed(&self, stat: &Stat) -> bool {
        stat.st_dev == self.skeleton || stat.st_dev == self.sessions
    }

    /// What a refusal with EROFS means at `folder`: in the skeleton there is
    /// nothing but the way to the scope, so anything else does not exist.
    fn read_only_at(&self, folder: impl AsFd) -> FileError {
        match fstat(folder) {
            Ok(stat) if self.is_sealed(&stat) => FileError::NotFound,
            _ => FileError::ReadOnly,
        }
    }

    fn act<T>(&self, work: impl FnOnce() -> T) -> T {
        self.identity.act(work)
    }
}

/// The mount that a handle was reached through.
fn mount_of(handle: impl AsFd) -> rustix::io::Result<u64> {
    Ok(statx(handle, "", AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW, StatxFlags::MNT_ID)?.stx_mnt_id)
}

/// Is this the root of a mount, that is, an entry of the scope?
fn is_mount_root(handle: impl AsFd) -> rustix::io::Result<bool> {
    let flags = AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW;
    let stat = statx(handle, "", flags, StatxFlags::BASIC_STATS)?;
    Ok(stat.stx_attributes.contains(rustix::fs::StatxAttributes::MOUNT_ROOT))
}

/// A strong validator: identity, size and both clocks of the inode.
fn tag(stat: &Stat) -> String {
    format!(
        "\"{:x}-{:x}-{:x}-{:x}\"",
        stat.st_ino,
        stat.st_size,
        i128::from(stat.st_mtime) * 1_000_000_000 + i128::from(stat.st_mtime_nsec),
        i128::from(stat.st_ctime) * 1_000_000_000 + i128::from(stat.st_ctime_nsec)
    )
}

/// Unix seconds of the last change of content.
fn modified(stat: &Stat) -> f64 {
    stat.st_mtime as f64 + stat.st_mtime_nsec as f64 / 1e9
}

fn kind(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

/// Opens again, for data, what a handle points to. Only for handles whose
/// kind was checked: opening a FIFO or a device can hang or act.
fn reopen(handle: impl AsFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    // The way to it is looked up once; it is the same for all threads.
    static OWN: OnceLock<OwnedFd> = OnceLock::new();
    let own = match OWN.get() {
        Some(own) => own,
        None => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let pid = rustix::process::getpid().as_raw_nonzero();
            let opened = rustix::fs::open(format!("/proc/{pid}/fd"), flags, Mode::empty())?;
            OWN.get_or_init(|| opened)
        }
    };
    let name = DecInt::new(handle.as_fd().as_raw_fd());
    openat(own, name, flags | OFlags::CLOEXEC | OFlags::NOCTTY | OFlags::NONBLOCK, Mode::empty())
}
