//! Accepting a message, and cancelling what it started.

use std::sync::Arc;

use cloister_store::{Accept, Acceptance, Idempotency, LogItem};
use cloister_types::event::{EventKind, StoredEvent, data_line};
use cloister_types::transcript::Entry;
use cloister_types::wire::CancelAnswer;
use cloister_types::{ErrorCode, ResponseId, SessionId};
use serde_json::Value;
use sha2::{Digest, Sha256};
use tokio::sync::watch;

use crate::feed::Head;
use crate::registry::{Sessions, Stop, random};
use crate::state::{Ask, Verdict};
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
        let now = clock::now();
        let idempotency = message.key.map(|key| Idempotency { key, fingerprint: fingerprint(id, &message.body) });
        if let Some(idempotency) = &idempotency
            && let Some(known) = self.store.find_key(&message.caller, idempotency.clone(), now).await?
        {
            return self.replay(id, known);
        }
        self.check_open()?;
        let session = self.find(id)?;
        Self::is_over_age(&session)?;
        let mut inner = session.inner.lock().await;
        // Again, now that nothing can come in between.
        self.check_open()?;
        let turn = ResponseId::from_random(random()?);
        let mut next = inner.state.clone();
        match next.ask(Ask::Start(turn.clone())) {
            Verdict::Accepted => {}
            Verdict::Gone => return Err(SessionError::no_session()),
            _ => {
                // The very turn that runs may be this key's.
                if let Some(idempotency) = idempotency
                    && let Some(known) = self.store.find_key(&message.caller, idempotency, now).await?
                {
                    return self.replay(id, known);
                }
                return Err(busy());
            }
        }
        let model = self.config.model(&session.stored.model).cloned().ok_or_else(|| SessionError {
            code: ErrorCode::InvalidRequest,
            message: format!("the session's model {:?} is no longer configured", session.stored.model),
            hint: Some("configure it again, or create a session with another".into()),
        })?;
        let view = self.view(&session, true).await?;
        if let Some(stale) = inner.sandbox.take_if(|sandbox| !Arc::ptr_eq(&sandbox.view, &view)) {
            self.put_to_sleep(&session, stale).await;
        }
        let slot = if inner.sandbox.is_some() { None } else { Some(self.slot().await?) };
        let fields = [
            ("id", turn.as_str()),
            ("session_id", id.as_str()),
            ("status", "in_progress"),
            ("model", &model.spec.name),
        ];
        let created = fields.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect();
        let data = data_line(created, 0, model.scripted);
        let accept = Accept {
            turn: turn.clone(),
            session: id.clone(),
            caller: message.caller,
            idempotency,
            items: vec![
                LogItem::Event(StoredEvent { seq: 0, kind: EventKind::MessageCreated, data }),
                LogItem::Entry(Entry::User { text: message.text }),
            ],
            now,
            key_life: KEY_LIFE,
        };
        // Before the turn can be found in the store, so that whoever finds it
        // can follow it.
        self.feeds.open(&turn, 1);
        let accepted = self.store.accept_turn(accept).await;
        if !matches!(accepted, Ok(Acceptance::Accepted)) {
            self.feeds.advance(&turn, Head { next: 0, done: true });
        }
        match accepted? {
            Acceptance::Accepted => {}
            Acceptance::Busy => return Err(busy()),
            known => return self.replay(id, known),
        }
        session.touch(now);
        let (stop, stopped) = watch::channel(Stop::No);
        inner.state = next;
        inner.stop = Some(stop);
        inner.ending = false;
        let sandbox = inner.sandbox.take();
        drop(inner);
        tokio::spawn(self.clone().run_turn(session, turn.clone(), model, sandbox, slot, view, stopped));
        Ok(Sent::Turn(turn))
    }

    fn replay(&self, id: &SessionId, known: Acceptance) -> Result<Sent, SessionError> {
        match known {
            Acceptance::Replayed(turn) if self.find(id).is_err() => Ok(Sent::Evicted(turn)),
            Acceptance::Replayed(turn) => Ok(Sent::Turn(turn)),
            Acceptance::Mismatch => {
                let message = "this idempotency key was used with another body or session";
                Err(SessionError::new(ErrorCode::IdempotencyMismatch, message))
            }
            Acceptance::Accepted | Acceptance::Busy => Err(busy()),
        }
    }

    /// Asks a turn to stop.
    ///
    /// # Errors
    /// Not found, for a turn of another session too.
    pub async fn cancel(&self, id: &SessionId, turn: &ResponseId) -> Result<CancelAnswer, SessionError> {
        let session = self.find(id)?;
        self.store.turn(turn).await?.filter(|turn| turn.session == *id).ok_or_else(SessionError::no_turn)?;
        let mut inner = session.inner.lock().await;
        let ending = inner.ending && inner.state.turn() == Some(turn);
        let verdict = if ending { Verdict::NotRunning } else { inner.state.ask(Ask::Cancel(turn.clone())) };
        let status = match verdict {
            Verdict::Accepted => {
                if let Some(stop) = &inner.stop {
                    let _ = stop.send(Stop::Cancel);
                }
                "cancelling"
            }
            Verdict::AlreadySo => "cancelling",
            _ => "already_complete",
        };
        Ok(CancelAnswer { response_id: turn.clone(), status: status.to_owned() })
    }
}

fn busy() -> SessionError {
    SessionError {
        code: ErrorCode::SessionBusy,
        message: "the session is working on another message".into(),
        hint: Some("follow current_response_id of the session, or cancel it".into()),
    }
}
