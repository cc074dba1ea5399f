//! The driver of a turn on the server's side: starts it, copies facts into the
//! log, wakes readers. It decides nothing; the supervisor numbers, the store
//! orders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_sandbox::files::View;
use cloister_store::{Finish, LogItem};
use cloister_types::event::{StoredEvent, data_line, terminal};
use cloister_types::link::{Command, Fact, Outcome, TurnStart, encode};
use cloister_types::transcript::Usage;
use cloister_types::wire::{ErrorBody, TurnStatus};
use cloister_types::{ErrorCode, ResponseId};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::feed::Head;
use crate::live::{Sandbox, model_url};
use crate::registry::{Session, Sessions, Stop};
use crate::state::Ask;
use crate::{Model, SessionError, clock};

/// What ended a turn, and what is left of its sandbox.
struct Ended {
    sandbox: Option<Sandbox>,
    next: u64,
}

impl Sessions {
    /// Runs a turn that was accepted, to its terminal event.
    #[expect(clippy::too_many_arguments, reason = "everything that acceptance has gathered, handed over once")]
    pub(crate) async fn run_turn(
        self: Arc<Self>,
        session: Arc<Session>,
        turn: ResponseId,
        model: Model,
        sandbox: Option<Sandbox>,
        slot: Option<OwnedSemaphorePermit>,
        view: Arc<View>,
        stopped: watch::Receiver<Stop>,
    ) {
        let ended = match self.start(&session, &turn, &model, sandbox, slot, view).await {
            Ok(sandbox) => self.follow(&session, &turn, &model, sandbox, stopped).await,
            Err(error) => {
                let next = self.fail(&turn, error.code, &error.message, model.scripted).await;
                Ended { sandbox: None, next }
            }
        };
        let mut inner = session.inner.lock().await;
        inner.state.ask(Ask::Finish(turn.clone()));
        inner.stop = None;
        inner.idle_since = clock::now();
        session.touch(inner.idle_since);
        match ended.sandbox {
            Some(mut sandbox) => {
                sandbox.idle_since = Instant::now();
                inner.sandbox = Some(sandbox);
            }
            None => {
                session.set_enforced(None);
                self.gateway.detach(&session.stored.id);
            }
        }
        drop(inner);
        // Only now may clients see the end: whoever does may send the next
        // message at once.
        self.feeds.advance(&turn, Head { next: ended.next, done: true });
    }

    /// Sends the turn to a sandbox: the idle one if it still lives, or a new one.
    async fn start(
        &self,
        session: &Session,
        turn: &ResponseId,
        model: &Model,
        sandbox: Option<Sandbox>,
        slot: Option<OwnedSemaphorePermit>,
        view: Arc<View>,
    ) -> Result<Sandbox, SessionError> {
        let start = TurnStart {
            session_id: session.stored.id.clone(),
            response_id: turn.clone(),
            next_seq: 1,
            model: model.spec.clone(),
            model_url: model_url(),
            scripted: model.scripted,
            limits: self.config.turn,
            context: session.stored.context.clone(),
            memory_hint: self.config.memory_hint,
            conversation: self.store.conversation(&session.stored.id).await?,
        };
        let command = encode(&Command::Start(Box::new(start))).map_err(|_| {
            let message = "the conversation has grown beyond what one turn can carry; go on in a new session";
            SessionError::new(ErrorCode::ModelRejected, message)
        })?;
        if let Some(mut sandbox) = sandbox {
            if !sandbox.is_closed() && sandbox.send(&command).await.is_ok() {
                return Ok(sandbox);
            }
            tracing::info!(session = %session.stored.id, "the idle sandbox had ended; starting another");
        }
        let slot = match slot {
            Some(slot) => slot,
            None => self.slot().await?,
        };
        let mut sandbox = self.launch(session, view, slot).await?;
        sandbox.send(&command).await.map_err(|error| {
            tracing::error!(%error, "a fresh sandbox hung up");
            SessionError::new(ErrorCode::AgentDied, "the sandbox ended before the turn began")
        })?;
        Ok(sandbox)
    }

    /// Copies facts into the log until the turn has ended.
    async fn follow(
        &self,
        session: &Session,
        turn: &ResponseId,
        model: &Model,
        mut sandbox: Sandbox,
        mut stopped: watch::Receiver<Stop>,
    ) -> Ended {
        let mut next = 1;
        let mut told = false;
        let mut items = Vec::new();
        loop {
            let facts = tokio::select! {
                facts = sandbox.facts() => facts,
                stop = asked_to_stop(&mut stopped, told) => {
                    if stop == Stop::Interrupt {
                        // Letting go of the link ends the sandbox.
                        drop(sandbox);
                        let message = "the server was stopped in the middle of the turn";
                        next = self.fail(turn, ErrorCode::Interrupted, message, model.scripted).await;
                        return Ended { sandbox: None, next };
                    }
                    told = true;
                    let command = Command::Cancel { response_id: turn.clone() };
                    // If the supervisor is gone, the next read says so.
                    let _ = sandbox.command(&command).await;
                    continue;
                }
            };
            let facts = match facts {
                Ok(Some(facts)) => facts,
                Ok(None) | Err(_) => {
                    let message = "the session's supervisor ended in the middle of the turn";
                    next = self.fail(turn, ErrorCode::AgentDied, message, model.scripted).await;
                    return Ended { sandbox: None, next };
                }
            };
            let mut finish = None;
            let mut sandbox_gone = false;
            for fact in facts {
                match fact {
                    Fact::Event { response_id, seq, kind, data } if response_id == *turn => {
                        next = seq + 1;
                        items.push(LogItem::Event(StoredEvent { seq, kind, data }));
                    }
                    Fact::Entry { response_id, entry } if response_id == *turn => items.push(LogItem::Entry(entry)),
                    Fact::Ended { response_id, outcome, usage, output_text, sandbox_gone: gone }
                        if response_id == *turn =>
                    {
                        sandbox_gone = gone;
                        finish = Some(finished(outcome, usage, output_text));
                    }
                    other => tracing::warn!(session = %session.stored.id, ?other, "a fact out of place"),
                }
            }
            let done = finish.is_some();
            if !done && matches!(items.last(), Some(LogItem::Event(event)) if event.kind.is_terminal()) {
                // How the turn ended comes right behind. The two are stored as
                // one, so that nobody sees an ended turn that is still open.
                continue;
            }
            if let (Some(finish), Some(last)) = (&mut finish, items.last_mut()) {
                // From here on a cancel comes too late. One that came in time
                // holds, though the agent was faster: it was promised.
                let mut inner = session.inner.lock().await;
                inner.ending = true;
                if inner.state.is_cancelling() && finish.status != TurnStatus::Cancelled {
                    *last = cancelled_event(turn, next - 1, model.scripted);
                    *finish = finished(Outcome::Cancelled, Usage::default(), String::new());
                    // As after any cancel, nothing of the turn stays at work.
                    sandbox_gone = true;
                }
            }
            if let Err(error) = self.store.append(turn, std::mem::take(&mut items), finish).await {
                tracing::error!(session = %session.stored.id, %turn, %error, "the log refuses the turn's events");
                let error = SessionError::from(error);
                next = self.fail(turn, error.code, &error.message, model.scripted).await;
                return Ended { sandbox: None, next };
            }
            if done {
                return Ended { sandbox: (!sandbox_gone).then_some(sandbox), next };
            }
            self.feeds.advance(turn, Head { next, done: false });
        }
    }

    /// Ends a turn for its supervisor: closes what its log leaves open and
    /// appends the error. A full disk must not leave the turn open for ever,
    /// so this tries until the store takes it. Returns the log's new length.
    pub(crate) async fn fail(&self, turn: &ResponseId, code: ErrorCode, message: &str, scripted: bool) -> u64 {
        loop {
            match self.try_fail(turn, code, message, scripted).await {
                Ok(next) => return next,
                Err(error) => {
                    tracing::error!(%turn, %error, "the end of the turn cannot be recorded yet");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }
}

/// Waits until the turn is asked to end early; for ever if nobody can ask any
/// more. A cancel that was passed on already does not count again.
async fn asked_to_stop(stopped: &mut watch::Receiver<Stop>, told: bool) -> Stop {
    let wanted = |stop: &Stop| *stop == Stop::Interrupt || (*stop == Stop::Cancel && !told);
    match stopped.wait_for(wanted).await.map(|stop| *stop) {
        Ok(stop) => stop,
        Err(_) => std::future::pending().await,
    }
}

fn cancelled_event(turn: &ResponseId, seq: u64, scripted: bool) -> LogItem {
    let (kind, fields) = terminal(turn, &Outcome::Cancelled, &Usage::default());
    LogItem::Event(StoredEvent { seq, kind, data: data_line(fields, seq, scripted) })
}

pub(crate) fn finished(outcome: Outcome, usage: Usage, output_text: String) -> Finish {
    let (status, error) = match outcome {
        Outcome::Completed { .. } => (TurnStatus::Completed, None),
        Outcome::Cancelled => (TurnStatus::Cancelled, None),
        Outcome::Failed { code, message } => (TurnStatus::Failed, Some(ErrorBody { error: code, message, hint: None })),
    };
    Finish { status, output_text, usage, error, now: clock::now() }
}
