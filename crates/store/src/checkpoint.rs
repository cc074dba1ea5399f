//! Folding the write-ahead log into the database, beside the committer: it
//! copies while commits go on, and leaves to the committer only the moment at
//! which the log begins anew.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;

use rusqlite::Connection;

use crate::{BUSY, Result, StoreError};

/// Bytes appended after which it is time.
const EVERY: usize = 8 << 20;
/// Pages after which a commit does it itself, should this thread be stuck.
pub(crate) const LAST_RESORT_PAGES: i32 = 64_000;

/// The thread, as the committer sees it.
pub(crate) struct Checkpointer {
    bell: Option<mpsc::SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
    copied: Arc<AtomicBool>,
    bytes: usize,
}

impl Checkpointer {
    pub(crate) fn start(path: &Path) -> Result<Self> {
        let connection = Connection::open(path)?;
        connection.busy_timeout(BUSY)?;
        let (bell, rung) = mpsc::sync_channel(1);
        let copied = Arc::new(AtomicBool::new(false));
        let done = copied.clone();
        let thread = std::thread::Builder::new().name("checkpointer".into()).spawn(move || {
            while rung.recv().is_ok() {
                match checkpoint(&connection, "PASSIVE") {
                    Ok(()) => done.store(true, Ordering::Release),
                    Err(error) => tracing::warn!(%error, "checkpoint"),
                }
            }
        });
        let thread = thread.map_err(|error| StoreError::Broken(error.to_string()))?;
        Ok(Self { bell: Some(bell), thread: Some(thread), copied, bytes: 0 })
    }

    /// After a commit of so many bytes. Nearly everything has been copied when
    /// the committer's own part comes, so that is short.
    pub(crate) fn committed(&mut self, bytes: usize, connection: &Connection) {
        if self.copied.swap(false, Ordering::AcqRel)
            && let Err(error) = checkpoint(connection, "RESTART")
        {
            tracing::warn!(%error, "checkpoint");
        }
        self.bytes += bytes;
        if self.bytes >= EVERY {
            self.bytes = 0;
            // It is at it already, if the bell is still ringing.
            let _ = self.bell.as_ref().map(|bell| bell.try_send(()));
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.bell = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn checkpoint(connection: &Connection, mode: &str) -> rusqlite::Result<()> {
    connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(()))
}
