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
    path: PathBuf,
    /// What connections go by.
    tenants: RwLock<HashMap<Host, Arc<Path>>>,
}

/// What a file says.
struct Read {
    address: SocketAddr,
    tenants: HashMap<Host, Arc<Path>>,
    /// Of the file, and of the stamps of all that it names.
    changes: Vec<(PathBuf, Change)>,
    /// The first of those that nobody is let through to, if there is nobody else.
    refused: Result<(), ServerError>,
}

impl Table {
    /// Reads the file for the first time, and from then on whenever it changes; with the
    /// door's address.
    ///
    /// # Errors
    /// The file, or no tenant in it is one of the region's.
    pub(super) fn open(path: &Path) -> Result<(Arc<Self>, SocketAddr), ServerError> {
        let Read { address, tenants, mut changes, refused } = read(path)?;
        if tenants.is_empty() {
            refused?;
        }
        let table = Arc::new(Self { path: path.to_owned(), tenants: RwLock::new(tenants) });
        let kept = Arc::downgrade(&table);
        // On a thread of its own: there may be many files, on a disk that is slow.
        std::thread::spawn(move || {
            let mut seen = None;
            loop {
                std::thread::sleep(LOOK);
                let Some(table) = kept.upgrade() else { return };
                let now: Vec<_> = changes.iter().map(|(path, _)| (path.clone(), change(path))).collect();
                // Once nobody is writing any more.
                if now != changes && seen.as_ref() == Some(&now) {
                    changes = table.read_again(address).unwrap_or(now);
                    seen = None;
                } else {
                    seen = Some(now);
                }
            }
        });
        Ok((table, address))
    }

    /// The data of the tenant that has a host.
    pub(super) fn data(&self, host: &Host) -> Option<Arc<Path>> {
        self.tenants.read().unwrap_or_else(PoisonError::into_inner).get(host).cloned()
    }

    /// Goes by the file as it is now. None, and the tenants stay as they are until it
    /// changes again, if it cannot be used.
    fn read_again(&self, address: SocketAddr) -> Option<Vec<(PathBuf, Change)>> {
        match read(&self.path) {
            Ok(read) => {
                if read.address != address {
                    tracing::warn!("region.address has changed; the door moves when it is started again");
                }
                tracing::info!(tenants = read.tenants.len(), "the region's tenants have changed");
                *self.tenants.write().unwrap_or_else(PoisonError::into_inner) = read.tenants;
                Some(read.changes)
            }
            Err(error) => {
                tracing::warn!(%error, "the region's tenants stay as they were");
                None
            }
        }
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
    let (mut tenants, mut refused) = (HashMap::new(), Ok(()));
    for Place { host, data } in tenant {
        let data = folder.join(data);
        let stamp = stamp::path(&data);
        changes.push((stamp.clone(), change(&stamp)));
        // One that is gone, or has spoilt its own stamp, closes nobody else's door.
        if let Err(why) = belongs(&data, &name) {
            tracing::error!(%host, "{why}; nobody is let through to it");
            refused = Err(bad(&why));
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
