//! Small files of the server's own, written so that no reader sees half.

use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;

use crate::ServerError;

/// Writes a file for its owner's eyes alone, atomically.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}.tmp", std::process::id()));
    let beside = path.with_file_name(name);
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&beside)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&beside, path)
}

/// Makes a folder for its owner alone, with what leads to it.
pub(crate) fn make_private_folder(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

/// Opens a file of a data directory for writing. Root does so in directories of
/// others: what they have put in its place is not followed, and not waited for.
pub(crate) fn own_file(options: &mut std::fs::OpenOptions, path: &Path) -> std::io::Result<std::fs::File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = options.write(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::ErrorKind::InvalidInput.into()) }
}

/// Reads a file of somebody else's: what they have put in its place is not followed, not
/// waited for, and no more of it is read than `most` bytes.
pub(crate) fn read_others(path: &Path, most: u64) -> std::io::Result<String> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    let mut text = String::new();
    file.take(most).read_to_string(&mut text)?;
    Ok(text)
}

/// Opens a file of a folder for writing, making it if need be; whoever's the folder is
/// can open it next.
pub(crate) fn make_own(folder: &Path, name: &str) -> Result<std::fs::File, ServerError> {
    let path = folder.join(name);
    let file = own_file(std::fs::OpenOptions::new().create(true).truncate(false).mode(0o600), &path);
    let file = file.map_err(ServerError::start(format!("open {}", path.display())))?;
    if rustix::process::geteuid().is_root() {
        let about = std::fs::metadata(folder).map_err(ServerError::start(format!("look at {}", folder.display())))?;
        std::os::unix::fs::fchown(&file, Some(about.uid()), Some(about.gid()))
            .map_err(ServerError::start(format!("give {} away", path.display())))?;
    }
    Ok(file)
}

/// A data directory in use by this process alone, until this is dropped or
/// the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct DataLock(#[expect(dead_code, reason = "held for its lock")] std::fs::File);

/// Takes a data directory, making it if need be.
///
/// # Errors
/// Another server has it.
pub(crate) fn take(data: &Path) -> Result<DataLock, ServerError> {
    let shown = data.display();
    make_private_folder(data).map_err(ServerError::start(format!("make the data directory {shown}")))?;
    let file = make_own(data, "lock")?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(DataLock(file)),
        Err(_) => Err(ServerError::Start(format!("another server is using the data directory {shown}"))),
    }
}
