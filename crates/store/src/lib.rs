//! Durable truth, in one SQLite file.
//!
//! ```text
//! append --> writer: judged in memory, one commit for all that wait --> live (rows in memory)
//! events <-- live, or chunk <-- rows are packed when a turn ends, or has many
//! ```
//!
//! A call that changes something returns when the change is on disk, and
//! nothing can be read before. Reads use connections of their own.

mod append;
mod checkpoint;
mod endings;
mod keys;
mod live;
mod log;
mod migrate;
mod notes;
mod pepper;
mod reserve;
mod row;
mod sessions;
mod sign_ins;
mod turns;
mod writer;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use rusqlite::{Connection, OpenFlags};
use tokio::sync::Semaphore;

pub use append::{Append, Finish};
pub use keys::{Known, Maker, Proof};
pub use pepper::pepper_of;
pub use row::{LogItem, Mark};
pub use sessions::{Life, StoredSession};
pub use sign_ins::SIGN_IN;
pub use turns::{Accept, Acceptance, Idempotency, StoredTurn};

use checkpoint::Checkpointer;
use endings::Endings;
use live::Lives;
use pepper::Pepper;
use reserve::Reserve;
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
    /// The append is not for the turn's present attempt, or not for where it
    /// stands; nothing was appended.
    #[error("another attempt at the turn has taken over")]
    Stale,
    /// What is stored is not what was written. Nothing of it is touched.
    #[error("{0}")]
    Damaged(String),
    /// Anything else.
    #[error("store: {0}")]
    Broken(String),
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        // Room for the shared index of the write-ahead log is asked for on its own.
        const SHM_FULL: i32 = rusqlite::ffi::SQLITE_IOERR_SHMSIZE;
        match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => Self::Full,
            _ if error.sqlite_error().is_some_and(|error| error.extended_code == SHM_FULL) => Self::Full,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase) => {
                Self::Damaged(format!("the database is damaged: {error}"))
            }
            _ => Self::Broken(error.to_string()),
        }
    }
}

impl From<std::io::Error> for StoreError {
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::StorageFull { Self::Full } else { Self::Broken(error.to_string()) }
    }
}

impl From<serde_json::Error> for StoreError {
    fn from(error: serde_json::Error) -> Self {
        Self::Broken(error.to_string())
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Reads at once: each has a connection with a cache of its own, and a thread.
const READERS: usize = 8;
/// How long to wait for another process's transaction: `cloister key new` and
/// `cloister backup` work beside a server.
const BUSY: std::time::Duration = std::time::Duration::from_secs(10);

/// Handle of the store; cheap to clone.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    path: PathBuf,
    writer: Writer,
    lives: Arc<Lives>,
    reserve: Arc<Reserve>,
    pepper: Pepper,
    readers: Mutex<Vec<Connection>>,
    reading: Semaphore,
    endings: Arc<Endings>,
}

impl Store {
    /// Opens or creates the store at `path` for `tenant`.
    ///
    /// # Errors
    /// [`StoreError::Foreign`] if it is another tenant's or from a newer version.
    pub fn open(path: &Path, tenant: &str) -> Result<Self> {
        Self::open_for(path, Some(tenant))
    }

    /// Opens the store at `path`, whichever tenant's it is.
    ///
    /// # Errors
    /// As for [`Store::open`].
    pub fn open_any(path: &Path) -> Result<Self> {
        Self::open_for(path, None)
    }

    fn open_for(path: &Path, tenant: Option<&str>) -> Result<Self> {
        let mut connection = Connection::open(path)?;
        connection.pragma_update(None, "journal_mode", "WAL")?;
        // FULL: a commit that was reported survives a power cut (the weaker
        // NORMAL loses acknowledged events).
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", checkpoint::LAST_RESORT_PAGES)?;
        connection.set_prepared_statement_cache_capacity(64);
        connection.busy_timeout(BUSY)?;
        migrate::migrate(&mut connection)?;
        if let Some(tenant) = tenant {
            claim(&connection, tenant)?;
        }
        let lives = Arc::new(Lives::load(&connection)?);
        let reserve = Arc::new(Reserve::take(path));
        let checkpointer = Checkpointer::start(path)?;
        let pepper = Pepper::open(path)?;
        let writer = Writer::start(connection, lives.clone(), reserve.clone(), checkpointer)?;
        Ok(Self {
            inner: Arc::new(Inner {
                path: path.to_owned(),
                writer,
                lives,
                reserve,
                pepper,
                readers: Mutex::default(),
                reading: Semaphore::new(READERS),
                endings: Arc::new(Endings::new()),
            }),
        })
    }

    /// Writes a consistent copy of the store, as of one moment, to a file that
    /// does not exist yet. Servers may be at work on it meanwhile.
    ///
    /// # Errors
    /// The store's.
    pub fn copy(from: &Path, to: &Path) -> Result<()> {
        let connection = Connection::open_with_flags(from, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        connection.busy_timeout(BUSY)?;
        let to = to.to_str().ok_or_else(|| StoreError::Broken("a path that is not UTF-8".into()))?;
        connection.execute("VACUUM INTO ?1", [to])?;
        Ok(())
    }

    /// Somebody else has found the disk full: the reserve is given up, so that
    /// what runs can be ended, and nothing new begins.
    pub fn note_full(&self) {
        self.inner.reserve.release();
    }

    /// Is there room for new work? Tries to get the reserve back if it had to
    /// be given up.
    pub async fn has_room(&self) -> bool {
        if !self.inner.reserve.is_released() {
            return true;
        }
        let inner = self.inner.clone();
        tokio::task::spawn_blocking(move || inner.reserve.restore()).await.unwrap_or(false)
    }

    /// Queues a change and waits until it is durable.
    async fn write<T: Send + 'static>(
        &self,
        change: impl FnMut(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.inner.writer.run(false, change, |_| ()).await
    }

    /// The same for what ends or removes something, and so must go on when
    /// the disk is full.
    async fn write_essential<T: Send + 'static>(
        &self,
        change: impl FnMut(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.inner.writer.run(true, change, |_| ()).await
    }

    /// Runs a query on a connection of its own, off the async threads.
    async fn read<T: Send + 'static>(
        &self,
        query: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let inner = self.inner.clone();
        let _turn = self.inner.reading.acquire().await.map_err(|error| StoreError::Broken(error.to_string()))?;
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
