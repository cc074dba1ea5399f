//! "There is more": a wake-up without data for every running turn. Readers
//! take the data from the log, so there is no hand-over from history to live.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use cloister_store::Store;
use cloister_types::ResponseId;
use cloister_types::event::StoredEvent;
use tokio::sync::watch;

use crate::SessionError;

/// How far a turn's log reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    /// Number that the next event will have.
    pub(crate) next: u64,
    /// The terminal event is in.
    pub(crate) done: bool,
}

/// The running turns.
#[derive(Debug, Default)]
pub(crate) struct Feeds {
    heads: Mutex<HashMap<ResponseId, watch::Sender<Head>>>,
}

impl Feeds {
    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<ResponseId, watch::Sender<Head>>> {
        self.heads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, turn: &ResponseId, next: u64) {
        self.lock().insert(turn.clone(), watch::channel(Head { next, done: false }).0);
    }

    /// Tells that events are durable; the last call of a turn closes it.
    pub(crate) fn advance(&self, turn: &ResponseId, head: Head) {
        let mut heads = self.lock();
        if let Some(sender) = heads.get(turn) {
            sender.send_replace(head);
        }
        if head.done {
            heads.remove(turn);
        }
    }

    pub(crate) fn subscribe(&self, turn: &ResponseId) -> Option<watch::Receiver<Head>> {
        self.lock().get(turn).map(watch::Sender::subscribe)
    }
}

/// Events of one page.
const PAGE: usize = 256;

/// A reader of one turn, from a cursor to the terminal event.
pub struct Subscription {
    store: Store,
    turn: ResponseId,
    next: u64,
    head: watch::Receiver<Head>,
    // Keeps the channel of an ended turn open.
    _ended: Option<watch::Sender<Head>>,
}

impl Subscription {
    pub(crate) fn live(store: Store, turn: ResponseId, next: u64, head: watch::Receiver<Head>) -> Self {
        Self { store, turn, next, head, _ended: None }
    }

    pub(crate) fn ended(store: Store, turn: ResponseId, next: u64, end: u64) -> Self {
        let (sender, head) = watch::channel(Head { next: end, done: true });
        Self { store, turn, next, head, _ended: Some(sender) }
    }

    /// The turn that is read.
    #[must_use]
    pub fn turn(&self) -> &ResponseId {
        &self.turn
    }

    /// The events that are there already, if there are any.
    ///
    /// # Errors
    /// The store's.
    pub async fn ready(&mut self) -> Result<Option<Vec<StoredEvent>>, SessionError> {
        if self.next < self.head.borrow().next { self.page().await } else { Ok(None) }
    }

    /// The next events, at least one; `None` after the terminal event. Waits
    /// while the turn runs and has nothing new.
    ///
    /// # Errors
    /// The store's.
    pub async fn page(&mut self) -> Result<Option<Vec<StoredEvent>>, SessionError> {
        loop {
            let head = *self.head.borrow_and_update();
            if self.next < head.next {
                let mut events = self.store.events(&self.turn, self.next, PAGE).await?;
                // The log may already hold more than was announced. The end of
                // a turn is announced once its session takes the next message.
                events.retain(|event| event.seq < head.next);
                match events.last() {
                    Some(last) => {
                        self.next = last.seq + 1;
                        return Ok(Some(events));
                    }
                    // The rows were purged under a reader that slept for long.
                    None => return Ok(None),
                }
            }
            if head.done || self.head.changed().await.is_err() && !self.head.borrow().done {
                return Ok(None);
            }
        }
    }
}
