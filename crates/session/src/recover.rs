//! Ending turns whose supervisor cannot: it died, or the server did and took
//! it along.

use cloister_store::{LogItem, Result, StoreError};
use cloister_types::event::{EventKind, StoredEvent, data_line, terminal};
use cloister_types::link::Outcome;
use cloister_types::transcript::Usage;
use cloister_types::{ErrorCode, ResponseId};
use serde_json::{Map, Value};

use crate::SessionError;
use crate::registry::Sessions;
use crate::turn::finished;

impl Sessions {
    /// Ends every turn that the log shows open: nothing works on them.
    pub(crate) async fn recover(&self) -> std::result::Result<(), SessionError> {
        for turn in self.store.open_turns().await? {
            tracing::warn!(session = %turn.session, turn = %turn.id, "ending a turn that the last server left open");
            let message = "the server ended in the middle of the turn; send the message again to go on";
            let scripted =
                self.find(&turn.session).ok().and_then(|s| self.config.model(&s.stored.model).map(|m| m.scripted));
            self.fail(&turn.id, ErrorCode::Interrupted, message, scripted.unwrap_or_default()).await;
        }
        Ok(())
    }

    /// Closes the open block of a turn's log and appends the error event.
    pub(crate) async fn try_fail(
        &self,
        turn: &ResponseId,
        code: ErrorCode,
        message: &str,
        scripted: bool,
    ) -> Result<u64> {
        let (mut next, open) = self.tail(turn).await?;
        let mut items = Vec::new();
        let mut push = |kind, fields: Map<String, Value>| {
            items.push(LogItem::Event(StoredEvent { seq: next, kind, data: data_line(fields, next, scripted) }));
            next += 1;
        };
        if let Some(stop) = open.and_then(EventKind::closed_by) {
            push(stop, Map::new());
        }
        let outcome = Outcome::Failed { code, message: message.to_owned() };
        let (kind, fields) = terminal(turn, &outcome, &Usage::default());
        push(kind, fields);
        let finish = finished(outcome, Usage::default(), String::new());
        match self.store.append(turn, items, Some(finish)).await {
            // Its terminal event came after all, and stands.
            Err(StoreError::Ended) => self.tail(turn).await.map(|(next, _)| next),
            other => other.map(|()| next),
        }
    }

    /// Number of the next event, and the block that stands open.
    async fn tail(&self, turn: &ResponseId) -> Result<(u64, Option<EventKind>)> {
        const PAGE: usize = 1024;
        let (mut next, mut open) = (0, None);
        loop {
            let events = self.store.events(turn, next, PAGE).await?;
            for event in &events {
                next = event.seq + 1;
                if event.kind.closed_by().is_some() {
                    open = Some(event.kind);
                } else if open.and_then(EventKind::closed_by) == Some(event.kind) {
                    open = None;
                }
            }
            if events.is_empty() {
                return Ok((next, open));
            }
        }
    }
}
