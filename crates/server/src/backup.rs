//! Backups: one file with the store as of one moment and the files as they
//! are read, made while the server works; and the way back.
//!
//! The file is a tar archive. Its last entry says how many entries came before
//! and what their digest is, so half an archive, or a changed one, is told.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path, PathBuf};

use cloister_session::Identity;
use cloister_store::Store;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::ServerError;

const DATABASE: &str = "tenant.db";
const WORKSPACE: &str = "workspace";
const MANIFEST: &str = "manifest.json";
/// Copied as the store is. The vault is closed with a key that is not in the
/// backup, unless the operator left it in the data directory.
const BESIDE: [&str; 2] = ["vault.db", "audit.db"];
/// What `cloister dev` keeps beside, so that its keys stay the same.
const KEYS: [&str; 3] = ["dev-key", "tenant.db-pepper", "vault.key"];
/// Longest path in bytes; deeper ones cannot be opened by any one name.
const LONGEST_PATH: usize = 4000;
/// Version of the archive's layout.
const FORMAT: u32 = 1;

/// What a backup holds, or what was restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Files, folders and links.
    pub entries: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Events in ended turns, each checked.
    pub events: u64,
    /// What no archive can hold, or nobody may read: paths, at most 20.
    pub skipped: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Manifest {
    format: u32,
    version: String,
    entries: u64,
    digest: String,
}

fn failed(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> ServerError {
    ServerError::start(what)
}

fn broken(error: impl std::fmt::Display) -> ServerError {
    ServerError::Start(error.to_string())
}

/// Digest of entries in their order: kind, path, content.
#[derive(Default)]
struct Account {
    digest: Sha256,
    entries: u64,
    bytes: u64,
}

impl Account {
    fn begin(&mut self, kind: tar::EntryType, path: &Path, size: u64) {
        let path = path.as_os_str().as_bytes();
        self.digest.update([kind.as_byte()]);
        self.digest.update((path.len() as u64).to_be_bytes());
        self.digest.update(path);
        self.digest.update(size.to_be_bytes());
        self.entries += 1;
        self.bytes += size;
    }

    fn hex(&self) -> String {
        self.digest.clone().finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Reads exactly `left` bytes: a file that shrinks meanwhile is filled up with
/// zeros, one that grows is cut.
struct Exactly<'a, R> {
    inner: R,
    left: u64,
    digest: &'a mut Sha256,
}

impl<R: Read> Read for Exactly<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let mut got = self.inner.read(&mut buffer[..most])?;
        if got == 0 {
            buffer[..most].fill(0);
            got = most;
        }
        self.digest.update(&buffer[..got]);
        self.left -= got as u64;
        Ok(got)
    }
}

struct Writer {
    archive: tar::Builder<File>,
    account: Account,
    skipped: Vec<String>,
}

impl Writer {
    fn header(kind: tar::EntryType, mode: u32, mtime: i64, size: u64) -> tar::Header {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(mode & 0o7777);
        header.set_mtime(u64::try_from(mtime).unwrap_or(0));
        header.set_size(size);
        header
    }

    fn file(&mut self, path: &Path, file: File) -> std::io::Result<()> {
        let stat = rustix::fs::fstat(&file)?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.account.begin(tar::EntryType::Regular, path, size);
        let mut header = Self::header(tar::EntryType::Regular, stat.st_mode, stat.st_mtime, size);
        let content = Exactly { inner: file, left: size, digest: &mut self.account.digest };
        self.archive.append_data(&mut header, path, content)
    }

    fn skip(&mut self, path: &Path) {
        if self.skipped.len() < 20 {
            self.skipped.push(path.display().to_string());
        }
    }

    /// Everything below a folder, then the folder: its mode must not keep its
    /// content from being restored. Sessions are at work in there, so every
    /// step goes by handle and follows no link.
    fn tree(&mut self, folder: OwnedFd, path: &Path) -> std::io::Result<()> {
        let mut open = vec![(rustix::fs::Dir::read_from(&folder)?, folder, path.to_owned())];
        while let Some((entries, folder, path)) = open.last_mut() {
            let Some(entry) = entries.next() else {
                let stat = rustix::fs::fstat(&*folder)?;
                let path = std::mem::take(path);
                self.account.begin(tar::EntryType::Directory, &path, 0);
                let mut header = Self::header(tar::EntryType::Directory, stat.st_mode, stat.st_mtime, 0);
                self.archive.append_data(&mut header, &path, std::io::empty())?;
                open.pop();
                continue;
            };
            let name = entry?.file_name().to_owned();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let below = path.join(std::ffi::OsStr::from_bytes(name.to_bytes()));
            let folder = rustix::io::fcntl_dupfd_cloexec(&*folder, 0)?;
            if let Some(deeper) = self.entry(&folder, &name, &below)? {
                // Each level holds a handle; nobody needs more levels.
                match rustix::fs::Dir::read_from(&deeper) {
                    Ok(entries) if open.len() < 200 => open.push((entries, deeper, below)),
                    _ => self.skip(&below),
                }
            }
        }
        Ok(())
    }

    /// One entry of a folder; the folder that it is, if it is one.
    fn entry(&mut self, folder: &OwnedFd, name: &std::ffi::CStr, path: &Path) -> std::io::Result<Option<OwnedFd>> {
        if path.as_os_str().len() > LONGEST_PATH {
            self.skip(path);
            return Ok(None);
        }
        let Ok(stat) = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) else { return Ok(None) };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => match rustix::fs::openat(folder, name, flags | OFlags::DIRECTORY, Mode::empty()) {
                Ok(deeper) => return Ok(Some(deeper)),
                Err(_) => self.skip(path),
            },
            FileType::Symlink => match rustix::fs::readlinkat(folder, name, Vec::new()) {
                Ok(target) => {
                    let target = PathBuf::from(std::ffi::OsStr::from_bytes(target.as_bytes()));
                    self.account.begin(tar::EntryType::Symlink, path, 0);
                    self.account.digest.update(target.as_os_str().as_bytes());
                    let mut header = Self::header(tar::EntryType::Symlink, 0o777, stat.st_mtime, 0);
                    // As it stands, where it fits: `a//b` is not to become `a/b`.
                    match header.set_link_name_literal(target.as_os_str().as_bytes()) {
                        Ok(()) => self.archive.append_data(&mut header, path, std::io::empty())?,
                        Err(_) => self.archive.append_link(&mut header, path, target)?,
                    }
                }
                Err(_) => self.skip(path),
            },
            FileType::RegularFile => match rustix::fs::openat(folder, name, flags, Mode::empty()) {
                // It may be something else by now.
                Ok(file) if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) == FileType::RegularFile => {
                    self.file(path, file.into())?;
                }
                _ => self.skip(path),
            },
            _ => self.skip(path),
        }
        Ok(None)
    }

    fn finish(mut self) -> Result<(u64, u64, Vec<String>), std::io::Error> {
        let manifest = Manifest {
            format: FORMAT,
            version: env!("CARGO_PKG_VERSION").into(),
            entries: self.account.entries,
            digest: self.account.hex(),
        };
        let text = serde_json::to_vec(&manifest)?;
        let mut header = Self::header(tar::EntryType::Regular, 0o600, 0, text.len() as u64);
        self.archive.append_data(&mut header, MANIFEST, &text[..])?;
        let mut file = self.archive.into_inner()?;
        file.flush()?;
        file.sync_all()?;
        Ok((self.account.entries, self.account.bytes, self.skipped))
    }
}

/// A file beside another, removed when this is dropped.
struct Beside(PathBuf);

impl Beside {
    fn new(path: &Path, ending: &str) -> Self {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        name.push(format!(".{ending}-{}", std::process::id()));
        Self(path.with_file_name(name))
    }
}

impl Drop for Beside {
    fn drop(&mut self) {
        let _ = if self.0.is_dir() { std::fs::remove_dir_all(&self.0) } else { std::fs::remove_file(&self.0) };
    }
}

/// Writes a backup of a data directory to a new file. Servers may be at work.
///
/// # Errors
/// The file exists, or something cannot be read or written; then there is none.
pub fn backup(data: &Path, to: &Path) -> Result<Summary, ServerError> {
    if to.exists() {
        return Err(ServerError::Start(format!("{} exists already; a backup is a new file", to.display())));
    }
    let database = data.join(DATABASE);
    if !database.is_file() {
        return Err(ServerError::Start(format!("{} is no data directory: there is no {DATABASE}", data.display())));
    }
    let (copy, partial) = (Beside::new(to, "store"), Beside::new(to, "partial"));
    Store::copy(&database, &copy.0).map_err(broken)?;
    let mut beside = Vec::new();
    for name in BESIDE.into_iter().filter(|name| data.join(name).is_file()) {
        let copy = Beside::new(to, name);
        Store::copy(&data.join(name), &copy.0).map_err(broken)?;
        beside.push((name, copy));
    }
    let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&partial.0);
    let file = made.map_err(failed(format!("make {}", partial.0.display())))?;
    let mut writer = Writer { archive: tar::Builder::new(file), account: Account::default(), skipped: Vec::new() };
    let write = |writer: &mut Writer| -> std::io::Result<()> {
        writer.file(Path::new(DATABASE), File::open(&copy.0)?)?;
        for (name, copy) in &beside {
            writer.file(Path::new(name), File::open(&copy.0)?)?;
        }
        for name in KEYS {
            if let Ok(key) = File::open(data.join(name)) {
                writer.file(Path::new(name), key)?;
            }
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let workspace = rustix::fs::openat(CWD, data.join(WORKSPACE), flags, Mode::empty())?;
        writer.tree(workspace, Path::new(WORKSPACE))
    };
    write(&mut writer).map_err(failed("write the backup"))?;
    let (entries, bytes, skipped) = writer.finish().map_err(failed("write the backup"))?;
    // Read again before it is called a backup.
    let written = File::open(&partial.0).and_then(|file| unpack(file, None));
    written.map_err(failed("read the backup that was just written"))?;
    std::fs::rename(&partial.0, to).map_err(failed(format!("name {}", to.display())))?;
    sync_name(to)?;
    Ok(Summary { entries, bytes, events: 0, skipped })
}

/// Makes a name that was just given durable.
fn sync_name(path: &Path) -> Result<(), ServerError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(failed(format!("sync {}", folder.display())))
}

/// Restores a backup into a data directory that does not exist yet, or is
/// empty. Turns that were open in it go on when a server starts there.
///
/// # Errors
/// The archive is not whole, or not what was written; then nothing is there.
pub async fn restore(from: &Path, data: &Path) -> Result<Summary, ServerError> {
    let data = std::path::absolute(data).map_err(failed("find the data directory"))?;
    if std::fs::read_dir(&data).is_ok_and(|mut entries| entries.next().is_some()) || data.is_file() {
        return Err(ServerError::Start(format!("{} is not empty; nothing is overwritten", data.display())));
    }
    if let Some(parent) = data.parent() {
        std::fs::create_dir_all(parent).map_err(failed(format!("make {}", parent.display())))?;
    }
    let partial = Beside::new(&data, "partial");
    crate::files::make_private_folder(&partial.0).map_err(failed(format!("make {}", partial.0.display())))?;
    let file = File::open(from).map_err(failed(format!("open {}", from.display())))?;
    let account = unpack(file, Some(&partial.0)).map_err(failed(format!("read {}", from.display())))?;
    own(&partial.0.join(WORKSPACE)).map_err(failed("hand the workspace to its owner"))?;
    let events = {
        let store = Store::open_any(&partial.0.join(DATABASE)).map_err(broken)?;
        store.verify().await.map_err(broken)?
    };
    rustix::fs::sync();
    let _ = std::fs::remove_dir(&data);
    std::fs::rename(&partial.0, &data).map_err(failed(format!("name {}", data.display())))?;
    sync_name(&data)?;
    Ok(Summary { entries: account.entries, bytes: account.bytes, events, skipped: Vec::new() })
}

/// Reads an archive, checks it against its manifest, and unpacks it if told
/// where.
fn unpack(file: File, into: Option<&Path>) -> std::io::Result<Account> {
    let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_owned());
    let mut archive = tar::Archive::new(std::io::BufReader::new(file));
    let mut account = Account::default();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let plain = path.components().all(|component| matches!(component, Component::Normal(_)));
        if !plain || !entry.header().entry_type().is_file() && !path.starts_with(WORKSPACE) {
            return Err(invalid("an entry that no backup has"));
        }
        if path == Path::new(MANIFEST) {
            let manifest: Manifest = serde_json::from_reader(&mut entry)?;
            let whole = manifest.entries == account.entries && manifest.digest == account.hex();
            return match manifest.format {
                FORMAT if whole => Ok(account),
                FORMAT => Err(invalid("the archive is not what was written")),
                other => Err(invalid(&format!(
                    "the archive's layout is of version {other}, which this program does not know"
                ))),
            };
        }
        let (kind, size) = (entry.header().entry_type(), entry.size());
        account.begin(kind, &path, size);
        let mode = entry.header().mode()?;
        match kind {
            tar::EntryType::Regular if into.is_none() => {
                let mut content = Exactly { inner: &mut entry, left: size, digest: &mut account.digest };
                std::io::copy(&mut content, &mut std::io::sink())?;
            }
            tar::EntryType::Regular => {
                let into = into.unwrap_or(Path::new(""));
                // Its folder is within, whatever links stand in the archive.
                let folder = beneath(into, path.parent().unwrap_or(Path::new("")))?;
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let name = path.file_name().unwrap_or_default();
                let mut file = File::from(rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o600))?);
                let mut content = Exactly { inner: &mut entry, left: size, digest: &mut account.digest };
                std::io::copy(&mut content, &mut file)?;
                file.set_permissions(std::fs::Permissions::from_mode(mode & 0o7777))?;
                set_time(&file, entry.header().mtime()?)?;
            }
            tar::EntryType::Symlink => {
                let target = entry.link_name()?.ok_or_else(|| invalid("a link without a target"))?.into_owned();
                account.digest.update(target.as_os_str().as_bytes());
                let Some(into) = into else { continue };
                let folder = beneath(into, path.parent().unwrap_or(Path::new("")))?;
                rustix::fs::symlinkat(target, &folder, path.file_name().unwrap_or_default())?;
            }
            tar::EntryType::Directory => {
                let Some(into) = into else { continue };
                let folder = beneath(into, &path)?;
                rustix::fs::fchmod(&folder, Mode::from_raw_mode(mode & 0o7777))?;
                set_time(&folder, entry.header().mtime()?)?;
            }
            _ => return Err(invalid("an entry of a kind that no backup has")),
        }
    }
    Err(invalid("the archive ends before its end"))
}

fn set_time(file: impl AsFd, mtime: u64) -> std::io::Result<()> {
    let time = rustix::fs::Timespec { tv_sec: mtime.cast_signed(), tv_nsec: 0 };
    Ok(rustix::fs::futimens(file, &rustix::fs::Timestamps { last_access: time, last_modification: time })?)
}

/// A folder of the new tree, made if need be; links are not followed.
fn beneath(root: &Path, path: &Path) -> std::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = rustix::fs::openat(CWD, root, flags, Mode::empty())?;
    for name in path.components() {
        match rustix::fs::mkdirat(&folder, name.as_os_str(), Mode::from_raw_mode(0o700)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(errno) => return Err(errno.into()),
        }
        folder = rustix::fs::openat(&folder, name.as_os_str(), flags, Mode::empty())?;
    }
    Ok(folder)
}

/// As root, gives everything to the user as whom sandboxes run.
fn own(folder: &Path) -> std::io::Result<()> {
    let identity = Identity::current()?;
    let mut open = vec![folder.to_owned()];
    while let Some(folder) = open.pop() {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        identity.own(rustix::fs::openat(CWD, &folder, flags, Mode::empty())?)?;
        for entry in std::fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                open.push(entry.path());
            } else {
                let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                identity.own(rustix::fs::openat(CWD, entry.path(), flags, Mode::empty())?)?;
            }
        }
    }
    Ok(())
}
