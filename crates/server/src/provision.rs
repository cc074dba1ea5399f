//! Tenants of a host: made, listed, suspended, removed.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloister_types::access::{NewKey, Role};
use serde::Serialize;

use crate::ServerError;
use crate::audit::{act, acts};
use crate::files::{DataLock, make_private_folder, own_file, take, write_private};
use crate::stamp::{Stamp, is_name, suspension};
use crate::user::HostUser;

/// What an act is about, as the audit says it.
const TENANT: &str = "tenant:";
/// Where a tenant is made, before it is one.
const MAKING: &str = ".making";
/// How long a server may take to hear that its tenant is suspended.
const PATIENCE: Duration = Duration::from_secs(20);

/// A tenant that was just made.
#[derive(Debug, Clone, Serialize)]
pub struct Provisioned {
    /// Its name.
    pub tenant: String,
    /// Its region, for good.
    pub region: String,
    /// An admin's key; shown this once.
    pub key: String,
    /// Its data directory.
    pub data: PathBuf,
    /// Whose its files are, if it has a user of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<HostUser>,
}

/// A tenant, as it is listed.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// Its name.
    pub tenant: String,
    /// Its region; empty if its stamp is spoilt.
    pub region: String,
    /// Whose its files are, if it has a user of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<HostUser>,
    /// `active`, `suspended`, or `spoilt`: its stamp is not what was written.
    pub state: &'static str,
    /// What is wrong with its stamp.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Its data directory.
    pub data: PathBuf,
}

fn about(name: &str) -> String {
    format!("{TENANT}{name}")
}

/// A tenant's data, and its region as far as its stamp says it: what the tenant has done
/// to that keeps nobody from closing it.
fn of(root: &Path, name: &str) -> Result<(PathBuf, String), ServerError> {
    if !is_name(name) {
        return Err(ServerError::Config(format!("tenant {name:?} must be 1 to 63 of a-z, 0-9 and -")));
    }
    let data = std::path::absolute(root.join(name)).map_err(ServerError::start("find the folder"))?;
    let stamp = Stamp::read(&data);
    let is_one =
        data.is_dir() && (!matches!(stamp, Ok(None)) || suspension(&data).exists() || made(root).contains(name));
    if !is_one {
        return Err(ServerError::Config(format!("there is no tenant {name:?} in {}", root.display())));
    }
    Ok((data, stamp.ok().flatten().map(|stamp| stamp.region).unwrap_or_default()))
}

/// The tenants that were made in a folder, and not removed, by the chain beside them,
/// which is not theirs.
fn made(root: &Path) -> BTreeSet<String> {
    let (mut all, mut after) = (BTreeSet::new(), Some(0));
    while let Some(page) = after.and_then(|after| acts(root, after).ok()) {
        for entry in page.data.iter().map(|record| &record.entry) {
            let Some(name) = entry.flags.first().and_then(|flag| flag.strip_prefix(TENANT)) else { continue };
            match entry.rule.as_str() {
                "tenant_made" => _ = all.insert(name.to_owned()),
                "tenant_removed" => _ = all.remove(name),
                _ => {}
            }
        }
        after = page.next;
    }
    all
}

/// Makes a tenant: its directory, its region for good, and a first key.
///
/// # Errors
/// There is one of that name, or something in its place.
pub async fn create(root: &Path, name: &str, region: &str, user: Option<HostUser>) -> Result<Provisioned, ServerError> {
    if !is_name(name) || !is_name(region) {
        return Err(ServerError::Config("tenant and region are each 1 to 63 of a-z, 0-9 and -".into()));
    }
    if user.is_some() && !rustix::process::geteuid().is_root() {
        return Err(ServerError::Config("only root gives a tenant a user of its own".into()));
    }
    make_private_folder(root).map_err(ServerError::start(format!("make {}", root.display())))?;
    if user.is_some() {
        // Passed through by each tenant's user, and listed by none.
        std::fs::set_permissions(root, std::fs::Permissions::from_mode(0o711))
            .map_err(ServerError::start(format!("open {}", root.display())))?;
    }
    let root = std::path::absolute(root).map_err(ServerError::start("find the folder"))?;
    // One at a time, so that what is half made is nobody's: its maker was killed.
    let held = std::fs::File::open(&root).map_err(ServerError::start(format!("open {}", root.display())))?;
    rustix::fs::flock(&held, rustix::fs::FlockOperation::LockExclusive)
        .map_err(|error| ServerError::Start(format!("lock {}: {error}", root.display())))?;
    let (data, making) = (root.join(name), root.join(MAKING));
    if data.symlink_metadata().is_ok() {
        return Err(ServerError::Config(format!("there is something at {} already", data.display())));
    }
    let _ = std::fs::remove_dir_all(&making);
    make_private_folder(&making).map_err(ServerError::start(format!("make {}", making.display())))?;
    let stamp = Stamp { tenant: name.to_owned(), region: region.to_owned(), user };
    stamp.write(&making)?;
    let key = crate::keys::first_key(&making, (name, region), NewKey::new("admin", Role::Admin)).await?;
    act(&root, region, "tenant_made", about(name))?;
    // Of one of that name whose removal was interrupted.
    take_away(&suspension(&data))?;
    let given = user.map_or(Ok(()), |user| user.own(&making));
    // All of it at once, or nothing.
    given
        .and_then(|()| std::fs::rename(&making, &data))
        .map_err(ServerError::start(format!("make {}", data.display())))?;
    Ok(Provisioned { tenant: stamp.tenant, region: stamp.region, key: key.reveal().to_owned(), data, user })
}

/// The tenants of a root folder.
///
/// # Errors
/// The folder cannot be read.
pub fn list(root: &Path) -> Result<Vec<Listed>, ServerError> {
    let root = &std::path::absolute(root).map_err(ServerError::start("find the folder"))?;
    let entries = std::fs::read_dir(root).map_err(ServerError::start(format!("read {}", root.display())))?;
    let (mut all, made) = (Vec::new(), made(root));
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    for entry in folders.filter(|entry| entry.file_name() != MAKING) {
        let (data, tenant) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let suspended = suspension(&data).exists();
        let (stamp, problem) = match Stamp::read(&data) {
            Ok(Some(stamp)) if stamp.tenant == tenant => (Some(stamp), None),
            Ok(Some(stamp)) => (None, Some(format!("its stamp says {:?}", stamp.tenant))),
            Ok(None) if suspended || made.contains(&tenant) => (None, Some("it has no stamp".into())),
            Ok(None) => continue,
            Err(error) => (None, Some(error.to_string())),
        };
        let (region, user) = stamp.map(|stamp| (stamp.region, stamp.user)).unwrap_or_default();
        let state = match &problem {
            _ if suspended => "suspended",
            Some(_) => "spoilt",
            None => "active",
        };
        all.push(Listed { tenant, region, user, state, problem, data });
    }
    all.sort_by(|one, other| one.tenant.cmp(&other.tenant));
    Ok(all)
}

/// Suspends a tenant. Its server, if one is at work, ends with its turns.
///
/// # Errors
/// There is none, or its server does not end.
pub fn suspend(root: &Path, name: &str) -> Result<(), ServerError> {
    let (data, region) = of(root, name)?;
    let mark = suspension(&data);
    write_private(&mark, b"").map_err(ServerError::start(format!("write {}", mark.display())))?;
    // What closes something is done even if it cannot be written down.
    let written = act(root, &region, "tenant_suspended", about(name));
    drop(alone(&data)?);
    written
}

/// Lets a suspended tenant serve again.
///
/// # Errors
/// There is none.
pub fn resume(root: &Path, name: &str) -> Result<(), ServerError> {
    let (data, region) = of(root, name)?;
    act(root, &region, "tenant_resumed", about(name))?;
    take_away(&suspension(&data))
}

fn take_away(mark: &Path) -> Result<(), ServerError> {
    match std::fs::remove_file(mark) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(ServerError::start("take the suspension away")(error))
        }
        _ => Ok(()),
    }
}

/// Removes a suspended tenant for good: first what opens anything, then the rest.
///
/// # Errors
/// There is none, it is not suspended, or something of it is at work.
pub fn remove(root: &Path, name: &str) -> Result<(), ServerError> {
    let (data, region) = of(root, name)?;
    if !suspension(&data).exists() {
        return Err(ServerError::Config(format!("tenant {name:?} is not suspended; suspend it first")));
    }
    let _lock = alone(&data)?;
    let written = act(root, &region, "tenant_removed", about(name));
    for file in ["vault.key", "tenant.db-pepper"] {
        wipe(&data.join(file)).map_err(ServerError::start(format!("remove {file}")))?;
    }
    std::fs::remove_dir_all(&data).map_err(ServerError::start(format!("remove {}", data.display())))?;
    take_away(&suspension(&data))?;
    written
}

/// Overwrites a file and removes it.
fn wipe(path: &Path) -> std::io::Result<()> {
    // Whatever else is in its place goes with the folder.
    let Ok(mut file) = own_file(&mut std::fs::OpenOptions::new(), path) else { return Ok(()) };
    let length = usize::try_from(file.metadata()?.len()).unwrap_or(0).min(1 << 20);
    file.write_all(&vec![0; length])?;
    file.sync_all()?;
    std::fs::remove_file(path)
}

/// Waits until nothing of a tenant is at work: no server, and no vault that serves
/// turns which outlived one. The locks keep it so.
fn alone(data: &Path) -> Result<(DataLock, Option<std::fs::File>), ServerError> {
    let end = Instant::now() + PATIENCE;
    let lock = loop {
        match take(data) {
            Ok(lock) => break lock,
            Err(error) if Instant::now() >= end => return Err(error),
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    };
    let vault = own_file(&mut std::fs::OpenOptions::new(), &data.join("vault.lock")).ok();
    while let Some(vault) = &vault {
        match rustix::fs::flock(vault, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => break,
            Err(_) if Instant::now() >= end => {
                return Err(ServerError::Start("turns of an earlier server are still at work on this tenant".into()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(50)),
        }
    }
    Ok((lock, vault))
}
