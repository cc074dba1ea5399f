//! A tenant on disk, as it was provisioned: whose the data is, and where it may
//! lie. Written once.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::ServerError;
use crate::config::Config;
use crate::files::read_others;
use crate::user::HostUser;

/// What a data directory is stamped with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stamp {
    /// The tenant.
    pub tenant: String,
    /// The region that it was made in.
    pub region: String,
    /// Whose its files are on this host, if it has a user of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<HostUser>,
}

/// Most bytes of a stamp. The tenant's own user could write more.
const MOST: u64 = 4096;

/// Is it the name of a tenant or of a region?
pub(crate) fn is_name(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-')
}

/// Where the stamp is.
pub(crate) fn path(data: &Path) -> PathBuf {
    data.join("tenant.json")
}

/// There, the tenant is suspended: beside its data, where a tenant with a user of its
/// own cannot write.
pub(crate) fn suspension(data: &Path) -> PathBuf {
    let mut name = data.file_name().unwrap_or_default().to_owned();
    name.push(".suspended");
    data.with_file_name(name)
}

/// Where the region's door finds a tenant's server.
pub(crate) fn door(data: &Path) -> PathBuf {
    data.join("door")
}

impl Stamp {
    /// Reads a data directory's; none if it was not provisioned.
    ///
    /// # Errors
    /// It is not what was written.
    pub fn read(data: &Path) -> Result<Option<Self>, ServerError> {
        let path = path(data);
        let text = match read_others(&path, MOST) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ServerError::Start(format!("{}: {error}", path.display()))),
        };
        let bad = |why: &dyn std::fmt::Display| ServerError::Start(format!("{}: {why}", path.display()));
        let stamp: Self = serde_json::from_str(&text).map_err(|error| bad(&error))?;
        if !is_name(&stamp.tenant) || !is_name(&stamp.region) {
            return Err(bad(&"tenant and region are each 1 to 63 of a-z, 0-9 and -"));
        }
        Ok(Some(stamp))
    }

    /// Stamps a data directory.
    pub(crate) fn write(&self, data: &Path) -> Result<(), ServerError> {
        let text = serde_json::to_string(self).map_err(|error| ServerError::Start(error.to_string()))?;
        let path = path(data);
        crate::files::write_private(&path, text.as_bytes())
            .map_err(ServerError::start(format!("write {}", path.display())))
    }
}

/// Makes a configuration that of the tenant whose the data is, if it may serve.
///
/// # Errors
/// The data is another tenant's, lies in another region, or is suspended.
pub(crate) fn adopt(config: &mut Config, data: &Path) -> Result<(), ServerError> {
    if suspension(data).exists() {
        return Err(ServerError::Start(format!(
            "the tenant of {} is suspended; `cloister tenant resume` lets it serve again",
            data.display()
        )));
    }
    belong(config, data)
}

/// Makes a configuration that of the tenant whose the data is.
///
/// # Errors
/// The data is another tenant's, or lies in another region.
pub(crate) fn belong(config: &mut Config, data: &Path) -> Result<(), ServerError> {
    let Some(stamp) = Stamp::read(data)? else { return Ok(()) };
    if config.tenant != Config::default().tenant && config.tenant != stamp.tenant {
        return Err(ServerError::Config(format!(
            "the data is tenant {:?}'s, and the configuration tenant {:?}'s",
            stamp.tenant, config.tenant
        )));
    }
    if config.region.as_ref().is_some_and(|region| *region != stamp.region) {
        return Err(ServerError::Config(format!(
            "the data belongs to region {:?} and is not opened in another, such as {:?}",
            stamp.region,
            config.region.as_deref().unwrap_or_default()
        )));
    }
    config.tenant = stamp.tenant;
    config.region = Some(stamp.region);
    Ok(())
}
