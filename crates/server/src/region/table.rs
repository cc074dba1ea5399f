//! Which tenants the door leads to: the file of `cloister region`, read again when it
//! changes.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use cloister_types::Host;
use serde::Deserialize;

use crate::ServerError;
use crate::stamp::{self, Stamp};

/// Between looks at the file.
const LOOK: Duration = Duration::from_secs(1);

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    region: Region,
}

/// `[region]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Region {
    name: String,
    address: SocketAddr,
    #[serde(default)]
    tenant: Vec<Place>,
}

/// `[[region.tenant]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Place {
    host: Host,
    data: PathBuf,
}

/// When a file was changed, and how long it is.
type Change = Option<(SystemTime, u64)>;

/// The tenants, as the file has them at present.
pub(super) struct Table {
    /// Where each one's data is.
    tenants: RwLock<HashMap<Host, Arc<Path>>>,
}

/// What a file says.
struct Read {
    address: SocketAddr,
    tenants: HashMap<Host, Arc<Path>>,
    /// Of the file, and of the stamps of all that it names.
    changes: Vec<(PathBuf, Change)>,
    /// Those that nobody is let through to, and why.
    refused: Vec<(Host, String)>,
}

impl Table {
    /// Reads the file for the first time, and from then on whenever it changes; with the
    /// door's address.
    ///
    /// # Errors
    /// The file, or no tenant in it is one of the region's.
    pub(super) fn open(path: &Path) -> Result<(Arc<Self>, SocketAddr), ServerError> {
        let Read { address, tenants, changes, refused } = read(path)?;
        if let (true, Some((_, why))) = (tenants.is_empty(), refused.first()) {
            return Err(ServerError::Config(format!("{}: {why}", path.display())));
        }
        say(&refused, &[]);
        let table = Arc::new(Self { tenants: RwLock::new(tenants) });
        let (kept, path) = (Arc::downgrade(&table), path.to_owned());
        // On a thread of its own: there may be many files, on a disk that is slow.
        std::thread::spawn(move || {
            let mut looks = Looks { path, address, changes, refused, seen: None, failed: String::new() };
            loop {
                std::thread::sleep(LOOK);
                let Some(table) = kept.upgrade() else { return };
                if let Some(tenants) = looks.look() {
                    *table.tenants.write().unwrap_or_else(PoisonError::into_inner) = tenants;
                }
            }
        });
        Ok((table, address))
    }

    /// The data of the tenant that has a host.
    pub(super) fn data(&self, host: &Host) -> Option<Arc<Path>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }
}

/// How the files were when they were looked at.
struct Looks {
    path: PathBuf,
    address: SocketAddr,
    /// When they were read.
    changes: Vec<(PathBuf, Change)>,
    refused: Vec<(Host, String)>,
    /// The file itself, at the last look.
    seen: Option<Change>,
    /// What was said last of why it cannot be used.
    failed: String,
}

impl Looks {
    /// The tenants, if they are others than before. What cannot be used is looked at
    /// again, and the tenants stay as they are.
    fn look(&mut self) -> Option<HashMap<Host, Arc<Path>>> {
        let now = change(&self.path);
        // Once nobody is writing it any more.
        let settled = self.seen.replace(now) == Some(now);
        if !settled || self.changes.iter().all(|(path, before)| change(path) == *before) {
            return None;
        }
        match read(&self.path) {
            Ok(read) => {
                if read.address != self.address {
                    tracing::warn!("region.address has changed; the door moves when it is started again");
                }
                say(&read.refused, &self.refused);
                (self.changes, self.refused, self.failed) = (read.changes, read.refused, String::new());
                tracing::info!(tenants = read.tenants.len(), "the region's tenants have been read again");
                Some(read.tenants)
            }
            Err(error) => {
                let failed = error.to_string();
                if failed != self.failed {
                    tracing::warn!(%error, "the region's tenants stay as they were");
                    self.failed = failed;
                }
                None
            }
        }
    }
}

/// Logs to whom nobody is let through, as far as that is new.
fn say(refused: &[(Host, String)], before: &[(Host, String)]) {
    for (host, why) in refused.iter().filter(|one| !before.contains(one)) {
        tracing::error!(%host, "{why}; nobody is let through to it");
    }
}

fn change(path: &Path) -> Change {
    let about = std::fs::metadata(path).ok()?;
    Some((about.modified().ok()?, about.len()))
}

fn read(path: &Path) -> Result<Read, ServerError> {
    let bad = |error: &dyn std::fmt::Display| ServerError::Config(format!("{}: {error}", path.display()));
    // Seen before it is read: what changes meanwhile is read once more.
    let mut changes = vec![(path.to_owned(), change(path))];
    let text = std::fs::read_to_string(path).map_err(|error| bad(&error))?;
    let File { region: Region { name, address, tenant } } = toml::from_str(&text).map_err(|error| bad(&error))?;
    let absolute = std::path::absolute(path).map_err(|error| bad(&error))?;
    let folder = absolute.parent().unwrap_or(Path::new("/"));
    let (mut tenants, mut refused) = (HashMap::new(), Vec::new());
    for Place { host, data } in tenant {
        let data = folder.join(data);
        let stamp = stamp::path(&data);
        changes.push((stamp.clone(), change(&stamp)));
        // One that is gone, or has spoilt its own stamp, closes nobody else's door.
        if let Err(why) = belongs(&data, &name) {
            refused.push((host, why));
            continue;
        }
        if tenants.insert(host.clone(), data.into()).is_some() {
            return Err(bad(&format!("two tenants have the host {host}")));
        }
    }
    Ok(Read { address, tenants, changes, refused })
}

/// Is this the data of one of the region's tenants?
fn belongs(data: &Path, region: &str) -> Result<(), String> {
    match Stamp::read(data).map_err(|error| error.to_string())? {
        Some(stamp) if stamp.region == region => Ok(()),
        Some(Stamp { tenant, region: other, .. }) => {
            Err(format!("tenant {tenant:?} belongs to region {other:?}, not to {region:?}"))
        }
        None => Err(format!("{} is no tenant's: `cloister tenant create` makes one", data.display())),
    }
}
