//! API keys: made here, shown once, stored as a hash.

use std::path::{Path, PathBuf};

use cloister_store::{Maker, Store};
use cloister_types::access::{NewKey, Role};
use cloister_types::key::ApiKey;

use crate::ServerError;
use crate::audit::act;
use crate::config::Config;
use crate::stamp::adopt;

fn unix_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn failed(error: impl std::fmt::Display) -> ServerError {
    ServerError::Start(error.to_string())
}

/// Nobody has said where the data is.
pub(crate) fn no_data() -> ServerError {
    ServerError::Config("no data directory: set data in the configuration, or --data".into())
}

fn admin(caller: &str) -> NewKey {
    NewKey::new(caller, Role::Admin)
}

/// Makes a key and stores its hash. The returned key is the only copy. `written` gets
/// its id before it works.
async fn make(
    store: &Store,
    tenant: &str,
    what: NewKey,
    written: impl FnOnce(&str) -> Result<(), ServerError>,
) -> Result<ApiKey, ServerError> {
    what.check().map_err(ServerError::Config)?;
    let (id, key) = Store::fresh_key(tenant).map_err(failed)?;
    written(&id)?;
    store.add_key(&id, &key, what, Maker::default(), unix_now()).await.map_err(failed)?;
    Ok(key)
}

/// The key of a development server: kept in a file of the data directory, so
/// that it stays the same over restarts.
pub(crate) async fn development(store: &Store, tenant: &str, data: &Path) -> Result<ApiKey, ServerError> {
    let path = data.join("dev-key");
    if let Ok(text) = std::fs::read_to_string(&path)
        && let Ok(key) = text.trim().parse::<ApiKey>()
        && key.tenant() == tenant
    {
        // Known already, unless the store is another: a full disk keeps nobody out.
        if store.known(&key, unix_now()).await.map_err(failed)?.is_none() {
            let (id, _) = Store::fresh_key(tenant).map_err(failed)?;
            store.add_key(&id, &key, admin("default"), Maker::default(), unix_now()).await.map_err(failed)?;
        }
        return Ok(key);
    }
    let key = make(store, tenant, admin("default"), |_| Ok(())).await?;
    crate::files::write_private(&path, key.reveal().as_bytes())
        .map_err(ServerError::start("write the development key"))?;
    Ok(key)
}

/// Makes a key of a tenant's, by the configuration of its server, which may be
/// running.
///
/// # Errors
/// There is no data directory, or it is another tenant's.
pub async fn new_key(config: &Path, data: Option<PathBuf>, what: NewKey) -> Result<ApiKey, ServerError> {
    let mut config = Config::read(config)?;
    let data = data.or_else(|| config.data.clone()).ok_or_else(no_data)?;
    adopt(&mut config, &data)?;
    let region = config.region.unwrap_or_default();
    first_key(&data, (&config.tenant, &region), what).await
}

/// The same in the store of a data directory.
pub(crate) async fn first_key(
    data: &Path,
    (tenant, region): (&str, &str),
    what: NewKey,
) -> Result<ApiKey, ServerError> {
    crate::files::make_private_folder(data).map_err(ServerError::start("make the data directory"))?;
    let store = Store::open(&data.join("tenant.db"), tenant).map_err(failed)?;
    make(&store, tenant, what, |id| act(data, region, "key_made", format!("key:{id}"))).await
}
