//! The one thread that writes.
//!
//! ```text
//! queue --> a batch --> one transaction --> one sync --> everybody is told
//! ```
//!
//! What queues up while a commit syncs is the next batch. Appends, which are
//! nearly everything, are judged in memory before they touch the database;
//! other changes run in savepoints, so that one that fails undoes itself alone.

use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use rusqlite::Connection;
use tokio::sync::oneshot;

use crate::append::{Append, Batch, Staging};
use crate::checkpoint::Checkpointer;
use crate::live::Lives;
use crate::reserve::Reserve;
use crate::{Result, StoreError};

/// Most changes in one commit.
const BATCH: usize = 1024;
/// Most changes that may wait; callers beyond wait to queue.
const QUEUE: usize = 4096;

/// A change and how its outcome is delivered.
pub(crate) enum Job {
    /// Runs in the batch's transaction, or not at all.
    Change(Box<dyn Change>),
    /// Goes to a turn's log.
    Append(Box<Append>, oneshot::Sender<Result<Option<cloister_types::ResponseId>>>),
}

impl Job {
    /// Roughly what it adds to the write-ahead log.
    fn bytes(&self) -> usize {
        match self {
            Self::Change(_) => 16 << 10,
            Self::Append(append, _) => append.bytes(),
        }
    }
}

/// A change of any other kind.
pub(crate) trait Change: Send {
    /// May it run when the disk is full? Only what ends or removes something.
    fn is_essential(&self) -> bool;
    /// Runs it; may be called again if the first commit fails.
    fn run(&mut self, db: &Connection);
    /// Did it fail for want of space?
    fn is_full(&self) -> bool;
    /// Will not be run: the disk is full.
    fn refuse(&mut self);
    /// Tells the outcome.
    fn deliver(self: Box<Self>, committed: Result<()>);
}

struct Closure<F, A, T> {
    essential: bool,
    work: F,
    and_then: A,
    outcome: Option<Result<T>>,
    sender: oneshot::Sender<Result<T>>,
}

impl<F, A, T> Change for Closure<F, A, T>
where
    F: FnMut(&Connection) -> Result<T> + Send,
    A: FnOnce(&T) + Send,
    T: Send,
{
    fn is_essential(&self) -> bool {
        self.essential
    }

    fn run(&mut self, db: &Connection) {
        self.outcome = Some(in_savepoint(db, &mut self.work));
    }

    fn is_full(&self) -> bool {
        matches!(self.outcome, Some(Err(StoreError::Full)))
    }

    fn refuse(&mut self) {
        self.outcome = Some(Err(StoreError::Full));
    }

    fn deliver(self: Box<Self>, committed: Result<()>) {
        let never = || Err(StoreError::Broken("the change never ran".into()));
        let outcome = committed.and(self.outcome.unwrap_or_else(never));
        if let Ok(value) = &outcome {
            (self.and_then)(value);
        }
        // The caller may have gone away; the change stands all the same.
        let _ = self.sender.send(outcome);
    }
}

pub(crate) struct Writer {
    queue: Option<mpsc::SyncSender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(crate) fn start(
        connection: Connection,
        lives: Arc<Lives>,
        reserve: Arc<Reserve>,
        checkpointer: Checkpointer,
    ) -> Result<Self> {
        let (queue, jobs) = mpsc::sync_channel::<Job>(QUEUE);
        let mut committer = Committer { connection, lives, reserve, checkpointer };
        let thread = std::thread::Builder::new()
            .name("committer".into())
            .spawn(move || committer.serve(&jobs))
            .map_err(|error| StoreError::Broken(error.to_string()))?;
        Ok(Self { queue: Some(queue), thread: Some(thread) })
    }

    /// Queues a change and waits until it is durable; `and_then` runs once it
    /// is, before anybody else's change.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        essential: bool,
        work: impl FnMut(&Connection) -> Result<T> + Send + 'static,
        and_then: impl FnOnce(&T) + Send + 'static,
    ) -> Result<T> {
        let (sender, receiver) = oneshot::channel();
        self.queue(Job::Change(Box::new(Closure { essential, work, and_then, outcome: None, sender }))).await?;
        receiver.await.map_err(|_| stopped())?
    }

    /// Queues an append and waits until it is durable. The turn that begins
    /// because this one has ended.
    pub(crate) async fn append(&self, append: Append) -> Result<Option<cloister_types::ResponseId>> {
        let (sender, receiver) = oneshot::channel();
        self.queue(Job::Append(Box::new(append), sender)).await?;
        receiver.await.map_err(|_| stopped())?
    }

    async fn queue(&self, job: Job) -> Result<()> {
        let queue = self.queue.clone().ok_or_else(stopped)?;
        match queue.try_send(job) {
            Ok(()) => Ok(()),
            Err(mpsc::TrySendError::Full(job)) => {
                let send = tokio::task::spawn_blocking(move || queue.send(job));
                send.await.map_err(|_| stopped())?.map_err(|_| stopped())
            }
            Err(mpsc::TrySendError::Disconnected(_)) => Err(stopped()),
        }
    }
}

fn stopped() -> StoreError {
    StoreError::Broken("the committer has stopped".into())
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
fn in_savepoint<T>(db: &Connection, work: &mut impl FnMut(&Connection) -> Result<T>) -> Result<T> {
    db.prepare_cached("SAVEPOINT job")?.execute([])?;
    match work(db) {
        Ok(value) => {
            db.prepare_cached("RELEASE job")?.execute([])?;
            Ok(value)
        }
        Err(error) => {
            db.execute_batch("ROLLBACK TO job; RELEASE job")?;
            Err(error)
        }
    }
}

struct Committer {
    connection: Connection,
    lives: Arc<Lives>,
    reserve: Arc<Reserve>,
    checkpointer: Checkpointer,
}

impl Committer {
    fn serve(&mut self, jobs: &mpsc::Receiver<Job>) {
        while let Ok(first) = jobs.recv() {
            let batch: Vec<Job> = std::iter::once(first).chain(jobs.try_iter()).take(BATCH).collect();
            self.batch(batch);
        }
    }

    fn batch(&mut self, mut batch: Vec<Job>) {
        let mut staging = Staging::default();
        let mut committed = self.commit(&mut batch, &mut staging);
        if matches!(committed, Err(StoreError::Full)) && self.reserve.release() {
            tracing::error!("the disk is full; the reserve is given up, and only what ends or removes something runs");
            staging = Staging::default();
            committed = self.commit(&mut batch, &mut staging);
        }
        if let Err(error) = &committed {
            tracing::error!(%error, "commit failed");
        }
        // The page at the end of the log is written anew with each commit.
        let bytes = 4096 + batch.iter().map(Job::bytes).sum::<usize>();
        for (index, job) in batch.into_iter().enumerate() {
            match job {
                Job::Change(change) => change.deliver(committed.clone()),
                Job::Append(append, sender) => {
                    let outcome = staging.remove(&index).unwrap_or(Err(StoreError::Full));
                    let outcome = committed.clone().and(outcome).map(|staged| staged.settle(&append, &self.lives));
                    let _ = sender.send(outcome);
                }
            }
        }
        self.checkpointer.committed(bytes, &self.connection);
    }

    /// Runs a batch in one transaction.
    fn commit(&self, batch: &mut [Job], staging: &mut Staging) -> Result<()> {
        let db = &self.connection;
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        let outcome = self.run(batch, staging);
        let outcome = outcome.and_then(|()| {
            db.prepare_cached("COMMIT")?.execute([])?;
            Ok(())
        });
        // SQLite rolls back by itself when the disk is full, or does not.
        if outcome.is_err() && !db.is_autocommit() {
            let _ = db.execute_batch("ROLLBACK");
        }
        outcome
    }

    fn run(&self, batch: &mut [Job], staging: &mut Staging) -> Result<()> {
        let mut shared = Batch::new(&self.connection)?;
        for (index, job) in batch.iter_mut().enumerate() {
            let essential = match job {
                Job::Change(change) => change.is_essential(),
                Job::Append(append, _) => append.is_essential(),
            };
            let refused = !essential && self.reserve.is_released();
            match job {
                Job::Change(change) if refused => change.refuse(),
                Job::Append(..) if refused => _ = staging.insert(index, Err(StoreError::Full)),
                Job::Change(change) => {
                    change.run(&self.connection);
                    if change.is_full() && !self.reserve.is_released() {
                        return Err(StoreError::Full);
                    }
                }
                Job::Append(append, _) => {
                    let staged = append.stage(&mut shared, &self.lives);
                    if let Err(error @ (StoreError::Full | StoreError::Broken(_))) = &staged {
                        // Half of it may be in the transaction.
                        return Err(error.clone());
                    }
                    staging.insert(index, staged);
                }
            }
            // Whatever comes after a roll-back would stand alone.
            if self.connection.is_autocommit() {
                return Err(StoreError::Full);
            }
        }
        Ok(())
    }
}
