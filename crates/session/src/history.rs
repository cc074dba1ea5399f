//! What has been said and done, for those who ask later: transcripts and
//! turns, page by page, and waiting for something to end.

use std::time::Duration;

use cloister_store::StoredTurn;
use cloister_types::transcript::Entry;
use cloister_types::wire::{Response, Responses, Transcript, TranscriptEntry};
use cloister_types::{ErrorCode, ResponseId, SessionId};

use crate::SessionError;
use crate::registry::Sessions;

/// Turns looked at together for a page.
const TURNS: usize = 16;

/// A place in a session's transcript: the turn by its order, the entry by its
/// place in the turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    turn: u64,
    entry: u64,
}

impl Cursor {
    fn parse(text: &str) -> Result<Self, SessionError> {
        let parsed = text.split_once('.').and_then(|(turn, entry)| {
            let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
            Some(Self { turn: number(turn)?, entry: number(entry)? })
        });
        parsed.ok_or_else(|| SessionError::new(ErrorCode::InvalidRequest, "after takes a cursor that a page has named"))
    }
}

impl std::fmt::Display for Cursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.turn, self.entry)
    }
}

/// A page under construction.
struct Page {
    after: Option<Cursor>,
    limit: usize,
    entries: Vec<TranscriptEntry>,
    more: bool,
}

impl Page {
    fn new(after: Option<&str>, limit: usize) -> Result<Self, SessionError> {
        let after = after.map(Cursor::parse).transpose()?;
        Ok(Self { after, limit, entries: Vec::new(), more: false })
    }

    /// Takes a turn's entries, as many as still fit.
    fn take(&mut self, turn: &StoredTurn, entries: Vec<Entry>) {
        for (entry, index) in entries.into_iter().zip(0..) {
            let cursor = Cursor { turn: turn.started.unwrap_or_default(), entry: index };
            if self.after.is_some_and(|after| cursor <= after) {
                continue;
            }
            if self.entries.len() == self.limit {
                self.more = true;
                return;
            }
            self.entries.push(TranscriptEntry { response_id: turn.id.clone(), cursor: cursor.to_string(), entry });
        }
    }

    fn next(&self) -> Option<String> {
        self.entries.last().filter(|_| self.more).map(|last| last.cursor.clone())
    }
}

impl Sessions {
    /// A page of the session's transcript, oldest first.
    ///
    /// # Errors
    /// Not found; `invalid_request` for a cursor that is none.
    pub async fn transcript(
        &self,
        id: &SessionId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Transcript, SessionError> {
        self.find(id)?;
        let mut page = Page::new(after, limit)?;
        let mut from = page.after.map_or(0, |after| after.turn);
        while !page.more {
            let turns = self.store.begun_turns(id, from, TURNS).await?;
            let Some(last) = turns.last() else { break };
            from = last.started.unwrap_or_default() + 1;
            for turn in &turns {
                page.take(turn, self.store.entries(&turn.id).await?);
            }
        }
        let next = page.next();
        Ok(Transcript { data: page.entries, next })
    }

    /// One turn, with a page of its part of the transcript. If it has not
    /// ended, this waits for that, but no longer than `wait`.
    ///
    /// # Errors
    /// Not found, for a turn of another session too.
    pub async fn response(
        &self,
        id: &SessionId,
        turn: &ResponseId,
        after: Option<&str>,
        limit: usize,
        wait: Duration,
    ) -> Result<Response, SessionError> {
        self.find(id)?;
        let mut page = Page::new(after, limit)?;
        let read = async || {
            let stored = self.store.turn(turn).await?.filter(|turn| turn.session == *id);
            stored.ok_or_else(SessionError::no_turn)
        };
        let mut stored = read().await?;
        if !stored.status.is_over() && !wait.is_zero() {
            self.wait_for(turn, wait).await;
            stored = read().await?;
        }
        page.take(&stored, self.store.entries(turn).await?);
        let next = page.next();
        Ok(Response { output: page.entries, next, ..self.as_response(stored).await? })
    }

    /// A page of the session's turns that have begun, oldest first.
    ///
    /// # Errors
    /// Not found; `invalid_request` for a cursor that is none.
    pub async fn responses(
        &self,
        id: &SessionId,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Responses, SessionError> {
        self.find(id)?;
        let from = after.map(Cursor::parse).transpose()?.map_or(0, |after| after.turn.saturating_add(1));
        let mut turns = self.store.begun_turns(id, from, limit + 1).await?;
        let more = turns.len() > limit;
        turns.truncate(limit);
        let last = turns.last().filter(|_| more).and_then(|turn| turn.started);
        let mut data = Vec::with_capacity(turns.len());
        for turn in turns {
            data.push(self.as_response(turn).await?);
        }
        Ok(Responses { data, next: last.map(|turn| Cursor { turn, entry: 0 }.to_string()) })
    }

    async fn as_response(&self, turn: StoredTurn) -> Result<Response, SessionError> {
        let next = self.store.next_seq(&turn.id).await?;
        Ok(Response {
            last_sequence_number: next.unwrap_or_default().saturating_sub(1),
            id: turn.id,
            session_id: turn.session,
            status: turn.status,
            created_at: turn.created_at,
            completed_at: turn.completed_at,
            output_text: turn.output_text,
            usage: turn.usage,
            error: turn.error,
            attempts: turn.attempt,
            output: Vec::new(),
            next: None,
        })
    }

    /// Waits until the turn has ended and its session takes the next message,
    /// but no longer than `wait`.
    async fn wait_for(&self, turn: &ResponseId, wait: Duration) {
        let Some(mut head) = self.feeds.subscribe(turn) else { return };
        let done = async { while !head.borrow_and_update().done && head.changed().await.is_ok() {} };
        let _ = tokio::time::timeout(wait, done).await;
    }

    /// A session's record. If it is at work, this waits until it is not, but
    /// no longer than `wait`.
    ///
    /// # Errors
    /// Not found; also if it was deleted meanwhile.
    pub async fn get_when_idle(
        &self,
        id: &SessionId,
        wait: Duration,
    ) -> Result<cloister_types::wire::SessionRecord, SessionError> {
        let session = self.find(id)?;
        let idle = async {
            loop {
                // Not held while waiting: the turn's end needs it.
                let running = session.inner.lock().await.state.turn().cloned();
                let Some(turn) = running else { return };
                self.wait_for(&turn, wait).await;
            }
        };
        let _ = tokio::time::timeout(wait, idle).await;
        self.get(id).await
    }
}
