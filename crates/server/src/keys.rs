//! API keys: made here, shown once, stored as a hash.

use std::path::Path;

use cloister_store::Store;
use cloister_types::access::{NewKey, Role};
use cloister_types::key::ApiKey;

use crate::ServerError;

fn unix_now() -> f64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

fn failed(error: impl std::fmt::Display) -> ServerError {
    ServerError::Start(error.to_string())
}

fn admin(caller: &str) -> NewKey {
    NewKey::new(caller, Role::Admin)
}

/// Makes a key and stores its hash. The returned key is the only copy.
pub(crate) async fn make(store: &Store, tenant: &str, what: NewKey) -> Result<ApiKey, ServerError> {
    what.check().map_err(ServerError::Config)?;
    let (id, key) = Store::fresh_key(tenant).map_err(failed)?;
    store.add_key(&id, &key, what, None, unix_now()).await.map_err(failed)?;
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
            store.add_key(&id, &key, admin("default"), None, unix_now()).await.map_err(failed)?;
        }
        return Ok(key);
    }
    let key = make(store, tenant, admin("default")).await?;
    crate::files::write_private(&path, key.reveal().as_bytes())
        .map_err(ServerError::start("write the development key"))?;
    Ok(key)
}

/// Makes a key in the store of a data directory; the server may be running.
///
/// # Errors
/// The data directory is not this tenant's.
pub async fn new_key(data: &Path, tenant: &str, what: NewKey) -> Result<ApiKey, ServerError> {
    crate::files::make_private_folder(data).map_err(ServerError::start("make the data directory"))?;
    let store = Store::open(&data.join("tenant.db"), tenant).map_err(failed)?;
    make(&store, tenant, what).await
}
