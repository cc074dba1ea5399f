//! The end of a turn: its last rows, and what the session does next, at one
//! stroke.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_store::{Append, Finish, LogItem, Mark, StoreError};
use cloister_types::event::{StoredEvent, data_line, terminal};
use cloister_types::link::Outcome;
use cloister_types::transcript::Usage;
use cloister_types::wire::{ErrorBody, TurnStatus};
use cloister_types::{ErrorCode, ResponseId};

use crate::clock;
use crate::feed::Head;
use crate::live::Sandbox;
use crate::registry::{Inner, Session, Sessions};
use crate::resume::Standing;
use crate::state::Ask;
use crate::turn::Begin;

impl Sessions {
    /// Appends a turn's last rows and lets the session go on. Nobody can come
    /// between the two: a cancel is either before, and holds, or too late.
    pub(crate) async fn conclude(
        self: &Arc<Self>,
        session: &Arc<Session>,
        turn: &ResponseId,
        append: Append,
        sandbox: Option<Sandbox>,
    ) -> Result<(), StoreError> {
        let scripted = self.config.model(&session.stored.model).is_some_and(|model| model.scripted);
        // Of its own calls and those of what it left running.
        let metered = self.gateway.usage(&session.stored.id).await;
        let mut inner = session.inner.lock().await;
        let mut sandbox = sandbox;
        let mut append = append;
        if inner.state.is_cancelling() && append.status() != Some(TurnStatus::Cancelled) {
            // It was promised, though the agent was faster. As after any
            // cancel, nothing of the turn stays at work.
            let finish = self.finished(Outcome::Cancelled, Usage::default(), String::new());
            append = append.end_with(|seq| cancelled_event(turn, seq, scripted), finish);
            if let Some(sandbox) = sandbox.take() {
                self.put_to_sleep(session, sandbox).await;
            }
        }
        let usage = match append.usage() {
            // A cancelled turn is charged with nothing.
            _ if append.status() == Some(TurnStatus::Cancelled) => Usage::default(),
            said => metered.map_or(Usage { estimated: true, ..said }, |metered| metered.since(&inner.metered)),
        };
        append.meter(usage, metered)?;
        let at = append.ends_at().unwrap_or_else(|| (clock::now(), self.life()));
        let next_turn = match self.store.append(append).await {
            Ok(next_turn) => {
                inner.metered = metered.unwrap_or(inner.metered);
                next_turn
            }
            Err(error) => {
                drop(inner);
                if let Some(sandbox) = sandbox {
                    self.put_to_sleep(session, sandbox).await;
                }
                return Err(error);
            }
        };
        if let Some(sandbox) = &mut sandbox {
            sandbox.idle_since = Instant::now();
            sandbox.acknowledge_end().await;
        } else {
            session.set_enforced(None);
            self.gateway.detach(&session.stored.id);
        }
        self.finish(session, &mut inner, turn, at, sandbox, next_turn);
        drop(inner);
        let next = self.store.next_seq(turn).await.ok().flatten().unwrap_or_default();
        // Only now may clients see the end: whoever does may send the next
        // message at once.
        self.feeds.advance(turn, Head { next, done: true });
        Ok(())
    }

    /// The turn's end is durable: the session rests, or goes on with the turn
    /// that has waited.
    fn finish(
        self: &Arc<Self>,
        session: &Arc<Session>,
        inner: &mut Inner,
        turn: &ResponseId,
        at: (f64, f64),
        sandbox: Option<Sandbox>,
        next_turn: Option<ResponseId>,
    ) {
        inner.state.ask(Ask::Finish(turn.clone()));
        inner.stop = None;
        inner.rested = at.1;
        session.touch(at.0, at.1);
        match next_turn {
            Some(next) => {
                inner.state.ask(Ask::Start(next.clone()));
                self.drive(session, inner, next, Begin::Waited { sandbox });
            }
            None => inner.sandbox = sandbox,
        }
    }

    /// Ends a turn for its supervisor: closes what its log leaves open and
    /// appends the end. A full disk must not leave the turn open for ever, so
    /// this tries until the store takes it.
    pub(crate) async fn end_for_it(
        self: &Arc<Self>,
        session: &Arc<Session>,
        turn: &ResponseId,
        outcome: &Outcome,
        scripted: bool,
    ) {
        let mut said = false;
        loop {
            let append = match self.ending(turn, outcome, scripted).await {
                Ok(append) => append,
                Err(StoreError::Ended) => return,
                Err(error) => {
                    tracing::error!(%turn, %error, "the log of a turn that is to be ended");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            match self.conclude(session, turn, append, None).await {
                Ok(()) | Err(StoreError::Ended) => return,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::error!(%turn, %error, "the end of the turn cannot be recorded yet");
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    /// What ends a turn as its log stands.
    pub(crate) async fn ending(
        &self,
        turn: &ResponseId,
        outcome: &Outcome,
        scripted: bool,
    ) -> Result<Append, StoreError> {
        match self.store.log_of_open(turn).await {
            Ok((items, mark)) => {
                let items = Standing::read(&items).end(turn, outcome, scripted);
                let finish = self.finished(outcome.clone(), Usage::default(), String::new());
                Ok(Append::at(turn.clone(), items, mark).finish(finish))
            }
            Err(StoreError::Damaged(what)) => {
                // No event can be added to what cannot be read; the turn ends
                // all the same, and the damage is what it ends with.
                tracing::error!(%turn, what, "ALARM: a turn's log is damaged; it is kept as it is");
                let damaged = Outcome::Failed { code: ErrorCode::LogDamaged, message: what };
                let mark = Mark { attempt: 1, offset: 0, at_ms: 0 };
                let finish = self.finished(damaged, Usage::default(), String::new());
                Ok(Append::at(turn.clone(), Vec::new(), mark).finish(finish))
            }
            Err(error) => Err(error),
        }
    }

    pub(crate) fn finished(&self, outcome: Outcome, usage: Usage, output_text: String) -> Finish {
        let (status, error) = match outcome {
            Outcome::Completed { .. } => (TurnStatus::Completed, None),
            Outcome::Cancelled => (TurnStatus::Cancelled, None),
            Outcome::Failed { code, message } => {
                (TurnStatus::Failed, Some(ErrorBody { error: code, message, hint: None }))
            }
        };
        Finish { status, output_text, usage, metered: None, error, now: clock::now(), life: self.life() }
    }
}

fn cancelled_event(turn: &ResponseId, seq: u64, scripted: bool) -> LogItem {
    let (kind, fields) = terminal(turn, &Outcome::Cancelled, &Usage::default());
    LogItem::Event(StoredEvent { seq, kind, data: data_line(fields, seq, scripted).into() })
}
