//! Accepting a message, and cancelling what it started.

use std::sync::Arc;

use cloister_sandbox::files::View;
use cloister_store::{Accept, Acceptance, Idempotency, LogItem};
use cloister_types::event::{EventKind, StoredEvent, data_line};
use cloister_types::link::Outcome;
use cloister_types::transcript::Entry;
use cloister_types::wire::{CancelAnswer, OnBusy, TurnStatus};
use cloister_types::{ErrorCode, ResponseId, SessionId};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::OwnedSemaphorePermit;

use crate::feed::Head;
use crate::live::Sandbox;
use crate::registry::{Inner, Session, Sessions, Stop, random};
use crate::state::{Ask, Verdict};
use crate::turn::Begin;
use crate::{SessionError, clock};

/// How long an idempotency key is kept, in seconds.
const KEY_LIFE: f64 = 24.0 * 3600.0;

/// A message, parsed.
#[derive(Debug, Clone)]
pub struct Message {
    /// The text.
    pub text: String,
    /// Who sends it.
    pub caller: String,
    /// What to do if the session is at work.
    pub on_busy: OnBusy,
    /// `Idempotency-Key`, already checked for form.
    pub key: Option<String>,
    /// The body as JSON, for the fingerprint.
    pub body: Value,
}

/// What became of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Sent {
    /// A turn: new, or the one that the key stands for.
    Turn(ResponseId),
    /// The key's turn belongs to a session that is no more.
    Evicted(ResponseId),
}

fn fingerprint(session: &SessionId, body: &Value) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(session.as_str());
    hash.update([0]);
    // Object keys come out sorted, so spelling and order do not matter.
    hash.update(body.to_string());
    hash.finalize().into()
}

impl Sessions {
    /// Accepts a message. When this returns, the turn is durable and runs,
    /// whatever becomes of the caller.
    ///
    /// # Errors
    /// `session_busy`, `idempotency_mismatch`, `session_limit`, `not_found`.
    pub async fn send(self: &Arc<Self>, id: &SessionId, message: Message) -> Result<Sent, SessionError> {
        let (now, life) = (clock::now(), self.life());
        let idempotency = message.key.map(|key| Idempotency { key, fingerprint: fingerprint(id, &message.body) });
        if let Some(idempotency) = &idempotency
            && let Some(known) = self.store.find_key(&message.caller, idempotency.clone(), life).await?
        {
            return self.replay(id, known);
        }
        self.check_open()?;
        self.check_room().await?;
        let session = self.find(id)?;
        self.is_over_age(&session)?;
        let mut inner = session.inner.lock().await;
        // Again, now that nothing can come in between.
        self.check_open()?;
        let model = self.config.model(&session.stored.model).cloned();
        let model = model.ok_or_else(|| SessionError::model_gone(&session.stored.model))?;
        let turn = ResponseId::from_random(random()?);
        let mut next = inner.state.clone();
        let mut ready = match next.ask(Ask::Start(turn.clone())) {
            Verdict::Gone => return Err(SessionError::no_session()),
            // What a turn needs is at hand before it is accepted.
            Verdict::Accepted => Some(self.make_ready(&session, &mut inner).await?),
            // The store has the last word: the very turn that runs may be
            // this key's.
            _ => None,
        };
        let waits = ready.is_none();
        let fields = [
            ("id", Value::from(turn.as_str())),
            ("session_id", id.as_str().into()),
            ("status", "in_progress".into()),
            ("model", model.spec.name.as_str().into()),
            ("queued", true.into()),
        ];
        let fields = fields.into_iter().take(if waits { 5 } else { 4 });
        let created = fields.map(|(name, value)| (name.to_owned(), value)).collect();
        let data = data_line(created, 0, model.scripted).into();
        let accept = Accept {
            turn: turn.clone(),
            session: id.clone(),
            caller: message.caller,
            idempotency,
            on_busy: message.on_busy,
            most_waiting: self.config.queued_messages,
            items: vec![
                LogItem::Event(StoredEvent { seq: 0, kind: EventKind::MessageCreated, data }),
                LogItem::Entry(Entry::User { text: message.text }),
            ],
            now,
            life,
            key_life: KEY_LIFE,
        };
        // Before the turn can be found in the store, so that whoever finds it
        // can follow it.
        self.feeds.open(&turn, 1);
        let accepted = self.store.accept_turn(accept).await;
        if !matches!(accepted, Ok(Acceptance::Begun | Acceptance::Waiting)) {
            self.feeds.advance(&turn, Head { next: 0, done: true });
            inner.sandbox = ready.as_mut().and_then(|ready| ready.sandbox.take());
        }
        match (accepted?, ready) {
            (Acceptance::Begun, Some(Ready { sandbox, slot, view })) => {
                inner.state = next;
                self.drive(&session, &mut inner, turn.clone(), Begin::Now { sandbox, slot, view });
            }
            (Acceptance::Waiting, ready) => {
                if let Some(Ready { sandbox, .. }) = ready {
                    inner.sandbox = sandbox;
                }
                if message.on_busy == OnBusy::Interrupt
                    && let Some(running) = inner.state.turn().cloned()
                {
                    self.stop_turn(&mut inner, &running);
                }
            }
            (Acceptance::Begun, None) => {
                // The session was at work a moment ago, under this very lock.
                return Err(SessionError::new(ErrorCode::Internal, "the session and its log disagree"));
            }
            (known, _) => return self.replay(id, known),
        }
        session.touch(now, life);
        Ok(Sent::Turn(turn))
    }

    /// View, and a sandbox on it or a place for one.
    async fn make_ready(&self, session: &Arc<Session>, inner: &mut Inner) -> Result<Ready, SessionError> {
        let view = self.view(session, true).await?;
        let fits = |sandbox: &Sandbox| sandbox.view.as_ref().is_some_and(|of| Arc::ptr_eq(of, &view));
        if let Some(stale) = inner.sandbox.take_if(|sandbox| !fits(sandbox)) {
            self.put_to_sleep(session, stale).await;
        }
        let slot = if inner.sandbox.is_some() { None } else { Some(self.slot().await?) };
        Ok(Ready { sandbox: inner.sandbox.take(), slot, view })
    }

    fn replay(&self, id: &SessionId, known: Acceptance) -> Result<Sent, SessionError> {
        match known {
            Acceptance::Replayed(turn) if self.find(id).is_err() => Ok(Sent::Evicted(turn)),
            Acceptance::Replayed(turn) => Ok(Sent::Turn(turn)),
            Acceptance::Mismatch => {
                let message = "this idempotency key was used with another body or session";
                Err(SessionError::new(ErrorCode::IdempotencyMismatch, message))
            }
            Acceptance::QueueFull => Err(SessionError {
                code: ErrorCode::QueueFull,
                message: format!("{} messages wait for this session, which is the limit", self.config.queued_messages),
                hint: Some("wait for one to end, or cancel one".into()),
            }),
            Acceptance::Begun | Acceptance::Waiting | Acceptance::Busy => Err(busy()),
        }
    }

    /// Asks a turn to stop.
    ///
    /// # Errors
    /// Not found, for a turn of another session too.
    pub async fn cancel(&self, id: &SessionId, turn: &ResponseId) -> Result<CancelAnswer, SessionError> {
        let session = self.find(id)?;
        let mut inner = session.inner.lock().await;
        // Read under the lock: a turn that waits begins under it, too.
        let stored = self.store.turn(turn).await?.filter(|turn| turn.session == *id);
        let stored = stored.ok_or_else(SessionError::no_turn)?;
        let cancelling = match stored.status {
            TurnStatus::InProgress => {
                // On disk before it is promised: whoever comes after us keeps it.
                let noted = self.store.note_cancel(turn).await?;
                noted && self.stop_turn(&mut inner, turn)
            }
            TurnStatus::Queued => {
                self.end_waiting(&session, turn).await?;
                true
            }
            _ => false,
        };
        let status = if cancelling { "cancelling" } else { "already_complete" };
        Ok(CancelAnswer { response_id: turn.clone(), status: status.to_owned() })
    }

    /// Tells the running turn to stop; false if it is not the one that runs.
    pub(crate) fn stop_turn(&self, inner: &mut Inner, turn: &ResponseId) -> bool {
        let verdict = inner.state.ask(Ask::Cancel(turn.clone()));
        if verdict == Verdict::Accepted
            && let Some(stop) = &inner.stop
        {
            let _ = stop.send(Stop::Cancel);
        }
        matches!(verdict, Verdict::Accepted | Verdict::AlreadySo)
    }

    /// Ends a turn that waits. Called under its session's lock.
    pub(crate) async fn end_waiting(&self, session: &Session, turn: &ResponseId) -> Result<(), SessionError> {
        let scripted = self.config.model(&session.stored.model).is_some_and(|model| model.scripted);
        let append = self.ending(turn, &Outcome::Cancelled, scripted).await?;
        self.store.append(append).await?;
        let next = self.store.next_seq(turn).await?.unwrap_or_default();
        self.feeds.advance(turn, Head { next, done: true });
        Ok(())
    }
}

/// What a turn needs to begin.
struct Ready {
    sandbox: Option<Sandbox>,
    slot: Option<OwnedSemaphorePermit>,
    view: Arc<View>,
}

fn busy() -> SessionError {
    SessionError {
        code: ErrorCode::SessionBusy,
        message: "the session is working on another message".into(),
        hint: Some("follow current_response_id of the session, cancel it, or send on_busy queue or interrupt".into()),
    }
}
