//! Creating a session.

use std::sync::Arc;

use cloister_store::{Life, StoredSession};
use cloister_types::egress::{MOST_CONNECTIONS, MOST_HOSTS, Policy};
use cloister_types::scope::{FileAccess, Scope};
use cloister_types::wire::{CreateSession, SessionRecord};
use cloister_types::{ErrorCode, SessionId};

use crate::live::blocking;
use crate::registry::{Session, Sessions, random};
use crate::{SessionError, clock};

/// Bytes of a session's metadata.
const MAX_METADATA: usize = 64 << 10;

impl Sessions {
    /// Creates a session: its view is built and its sandbox started, so what
    /// the machine lacks is said here and not in the middle of a turn.
    ///
    /// # Errors
    /// `invalid_request` for a bad scope, model or ttl; `sandbox_unavailable`
    /// with the remedy if the kernel refuses.
    pub async fn create(self: &Arc<Self>, ask: CreateSession) -> Result<SessionRecord, SessionError> {
        self.check_open()?;
        self.check_room().await?;
        let invalid = |message: String| SessionError::new(ErrorCode::InvalidRequest, message);
        let file_access = ask.file_access.unwrap_or_else(FileAccess::everything);
        Scope::parse(&file_access).map_err(|error| invalid(error.to_string()))?;
        if ask.ttl == Some(0) || ask.ttl.is_some_and(|ttl| i64::try_from(ttl).is_err()) {
            return Err(invalid("ttl must be a positive number of seconds".into()));
        }
        let metadata = ask.metadata.unwrap_or_default();
        if serde_json::to_vec(&metadata).map_or(usize::MAX, |bytes| bytes.len()) > MAX_METADATA {
            return Err(invalid(format!("metadata is over {MAX_METADATA} bytes")));
        }
        let model = ask.model.unwrap_or_else(|| self.config.default_model.clone());
        if self.config.model(&model).is_none() {
            let names: Vec<&str> = self.config.models.iter().map(|model| model.spec.name.as_str()).collect();
            return Err(SessionError {
                code: ErrorCode::InvalidRequest,
                message: format!("no model named {model:?}"),
                hint: Some(format!("configured models: {}", names.join(", "))),
            });
        }
        let egress = ask.egress.unwrap_or_else(|| self.config.egress.clone());
        let connections = ask.connections.unwrap_or_default();
        self.check_reach(&egress, connections.len())?;
        let host = self.host.clone();
        let (context, skipped) = blocking(move || Ok::<_, SessionError>(host.context())).await?;
        if !skipped.is_empty() {
            tracing::warn!(?skipped, "context files left out of the prompt");
        }
        let (now, life) = (clock::now(), self.life());
        let session = Arc::new(Session::new(StoredSession {
            id: SessionId::from_random(random()?),
            created_at: now,
            last_activity: now,
            life: Life { born: life, active: life, rested: life },
            persistent: ask.persistent.unwrap_or(self.config.defaults.persistent),
            ttl: ask.ttl.or(self.config.defaults.ttl),
            metadata,
            file_access,
            model,
            context,
            egress,
            connections,
            metered: Default::default(),
        }));
        self.permit(&session, true).await?;
        if let Err(error) = self.first_launch(&session).await {
            // What was made for it goes with it.
            let (host, id) = (self.host.clone(), session.stored.id.clone());
            self.gateway.forget(&id);
            let _ = blocking(move || host.remove_private(&id).map_err(SessionError::from)).await;
            return Err(error);
        }
        if let Err(error) = self.store.add_session(session.stored.clone()).await {
            if let Some(sandbox) = session.inner.lock().await.sandbox.take() {
                self.put_to_sleep(&session, sandbox).await;
            }
            return Err(error.into());
        }
        self.insert(session.clone());
        if self.is_ending() {
            // It came between the end of all others and its own beginning.
            if let Some(sandbox) = session.inner.lock().await.sandbox.take() {
                self.put_to_sleep(&session, sandbox).await;
            }
            self.check_open()?;
        }
        self.record(&session).await
    }

    /// How far sessions reach that do not say.
    #[must_use]
    pub fn default_egress(&self) -> &Policy {
        &self.config.egress
    }

    fn check_reach(&self, egress: &Policy, connections: usize) -> Result<(), SessionError> {
        if egress.allow.len() > MOST_HOSTS || connections > MOST_CONNECTIONS {
            let message = format!("a session has at most {MOST_HOSTS} hosts and {MOST_CONNECTIONS} connections");
            return Err(SessionError::new(ErrorCode::InvalidRequest, message));
        }
        if !egress.is_within(&self.config.egress_ceiling) {
            return Err(SessionError {
                code: ErrorCode::Forbidden,
                message: "egress reaches further than this tenant's sessions may".into(),
                hint: Some("the operator's limit is egress.ceiling".into()),
            });
        }
        Ok(())
    }

    async fn first_launch(&self, session: &Arc<Session>) -> Result<(), SessionError> {
        // With a place at hand, all at once. Otherwise the view first: a scope
        // that is refused must not cost somebody else a sandbox.
        let sandbox = match self.slots.clone().try_acquire_owned() {
            Ok(slot) => self.launch_first(session, slot).await?,
            Err(_) => {
                let view = self.view(session, true).await?;
                // All places taken by working sessions: this one starts with
                // its first message, when there may be one.
                let Ok(slot) = self.slot().await else { return Ok(()) };
                self.launch(session, view, slot, [].into()).await?
            }
        };
        session.inner.lock().await.sandbox = Some(sandbox);
        Ok(())
    }
}
