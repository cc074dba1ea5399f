//! The one thread that writes.

use std::sync::mpsc;
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::{Result, StoreError};

/// Most changes in one commit.
const BATCH: usize = 1024;
/// Most changes that may wait; callers beyond wait to queue.
const QUEUE: usize = 4096;

/// Runs in the batch's transaction, or not at all, and keeps its outcome;
/// what it returns delivers that once the batch is committed.
struct Job(Box<dyn FnOnce(Transaction<'_>) -> Deliver + Send>);

/// The batch's open transaction, or why there is none.
type Transaction<'c> = std::result::Result<&'c Connection, StoreError>;

impl Job {
    fn run(self, connection: &Connection) -> Deliver {
        (self.0)(Ok(connection))
    }

    fn refuse(self, error: StoreError) -> Deliver {
        (self.0)(Err(error))
    }
}

type Deliver = Box<dyn FnOnce(std::result::Result<(), StoreError>) + Send>;

pub(crate) struct Writer {
    queue: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(connection: Connection) -> Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE);
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || commit_loop(&connection, &jobs))
            .map_err(|error| StoreError::Broken(error.to_string()))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    pub(crate) async fn run<T: Send + 'static>(
        &self,
        change: impl FnOnce(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        let job = Job(Box::new(move |connection: Transaction<'_>| {
            let outcome = connection.and_then(|connection| in_savepoint(connection, change));
            let deliver: Deliver = Box::new(move |committed| {
                // The caller may have gone away; the change stands all the same.
                let _ = sender.send(committed.and(outcome));
            });
            deliver
        }));
        let stopped = || StoreError::Broken("the committer has stopped".into());
        let queue = self.queue.clone().ok_or_else(stopped)?;
        match queue.try_send(job) {
            Ok(()) => {}
            Err(mpsc::TrySendError::Full(job)) => {
                let send = tokio::task::spawn_blocking(move || queue.send(job));
                send.await.map_err(|_| stopped())?.map_err(|_| stopped())?;
            }
            Err(mpsc::TrySendError::Disconnected(_)) => return Err(stopped()),
        }
        receiver.await.map_err(|_| stopped())?
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One change must not undo its neighbours in the batch.
fn in_savepoint<T>(connection: &Connection, change: impl FnOnce(&Connection) -> Result<T>) -> Result<T> {
    connection.execute_batch("SAVEPOINT job")?;
    match change(connection) {
        Ok(value) => {
            connection.execute_batch("RELEASE job")?;
            Ok(value)
        }
        Err(error) => {
            connection.execute_batch("ROLLBACK TO job; RELEASE job")?;
            Err(error)
        }
    }
}

fn commit_loop(connection: &Connection, jobs: &mpsc::Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut open = connection.execute_batch("BEGIN IMMEDIATE").map_err(StoreError::from);
        let mut deliveries = Vec::new();
        for job in std::iter::once(first).chain(jobs.try_iter()).take(BATCH) {
            match &open {
                Ok(()) => deliveries.push(job.run(connection)),
                // Without a transaction nothing may run: it would stand alone.
                Err(error) => deliveries.push(job.refuse(error.clone())),
            }
            // SQLite rolls back by itself when the disk is full.
            if open.is_ok() && connection.is_autocommit() {
                open = Err(StoreError::Full);
            }
        }
        let committed = open.and_then(|()| connection.execute_batch("COMMIT").map_err(StoreError::from));
        if let Err(error) = &committed {
            tracing::error!(%error, "commit failed");
            // Fails if SQLite has rolled back by itself, as on a full disk.
            let _ = connection.execute_batch("ROLLBACK");
        }
        for deliver in deliveries {
            deliver(committed.clone());
        }
    }
}
