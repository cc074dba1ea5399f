//! Durable truth, in one SQLite file.
//!
//! One thread writes, and commits whatever has queued up while the last
//! commit was syncing (group commit); a call returns when its change is on
//! disk. Reads use connections of their own.

mod keys;
mod log;
mod sessions;
mod turns;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};

pub use log::LogItem;
pub use sessions::StoredSession;
pub use turns::{Accept, Acceptance, Finish, Idempotency, StoredTurn};

use writer::Writer;

/// What can go wrong below.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// No space left for the change; nothing of it was done.
    #[error("the disk is full")]
    Full,
    /// The data directory belongs to another tenant or a newer version.
    #[error("{0}")]
    Foreign(String),
    /// The turn has its terminal event already; nothing was appended.
    #[error("the turn has already ended")]
    Ended,
    /// Anything else.
    #[error("store: {0}")]
    Broken(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Handle of the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writer: Writer,
    readers: Mutex<Vec<Connection>>,
}

const MIGRATIONS: &[&str] = &[include_str!("../migrations/0001_init.sql")];

impl Store {
    /// Opens or creates the store at `path` for `tenant`.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] if it is another tenant's or from a newer version.
    pub fn open(path: &Path, tenant: &str) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: a commit that was reported survives a power cut (the weaker
        // NORMAL loses acknowledged events).
        connection.pragma_update(None, "synchronous", "FULL")?;
        migrate(&mut connection)?;
        claim(&connection, tenant)?;
        let writer = Writer::start(connection)?;
        Ok(Self { inner: Arc::new(Inner { path: path.to_owned(), writer, readers: Mutex::new(Vec::new()) }) })
    }

    /// Queues a change and waits until it is durable.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.inner.writer.run(change).await
    }

    /// Runs a query on a connection of its own, off the async threads.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        let task = tokio::task::spawn_blocking(move || {
            let pooled = inner.readers.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let connection = match pooled {
                Some(connection) => connection,
                None => Connection::open_with_flags(
                    &inner.path,
                    OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
                )?,
            };
            let outcome = query(&connection);
            inner.readers.lock().unwrap_or_else(PoisonError::into_inner).push(connection);
            outcome
        });
        task.await.map_err(|error| StoreError::Broken(error.to_string()))?
    }
}

fn migrate(connection: &mut Connection) -> Result<()> {
    let version: usize =
        connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))?.try_into().unwrap_or(usize::MAX);
    if version > MIGRATIONS.len() {
        return Err(StoreError::Foreign("the data directory was written by a newer version of Cloister".into()));
    }
    for (index, migration) in MIGRATIONS.iter().enumerate().skip(version) {
        let transaction = connection.transaction()?;
        transaction.execute_batch(migration)?;
        transaction.pragma_update(None, "user_version", index as i64 + 1)?;
        transaction.commit()?;
    }
    Ok(())
}

/// Stamps the store with its tenant, once; refuses another tenant's.
fn claim(connection: &Connection, tenant: &str) -> Result<()> {
    connection.execute("INSERT OR IGNORE INTO meta (name, value) VALUES ('tenant', ?1)", [tenant])?;
    let owner: String = connection.query_row("SELECT value FROM meta WHERE name = 'tenant'", [], |row| row.get(0))?;
    if owner == tenant {
        Ok(())
    } else {
        Err(StoreError::Foreign(format!("the data directory belongs to tenant {owner:?}, not {tenant:?}")))
    }
}

#[cfg(test)]
mod tests;
