//! Whether a caller who is being answered at length is still one.

use std::time::Duration;

use cloister_session::SessionError;
use cloister_store::{Proof, Store};
use cloister_types::ErrorCode;
use tokio::sync::watch;

use crate::auth::unix_now;
use crate::error::{Answer, ApiError};
use crate::principal::Principal;

/// What a caller has shown has ended meanwhile.
pub(crate) fn ended() -> ApiError {
    ApiError::new(ErrorCode::Unauthorized, "what this caller has shown has ended meanwhile")
}

/// What somebody has shown, while it stands.
pub(crate) struct Standing {
    store: Store,
    proofs: Vec<Proof>,
    ends: Option<f64>,
    endings: watch::Receiver<()>,
}

impl Standing {
    /// From now on.
    pub(crate) fn of(principal: &Principal, store: &Store) -> Self {
        Self { store: store.clone(), proofs: principal.proofs(), ends: principal.ends, endings: store.endings() }
    }

    /// Fails if it has ended.
    pub(crate) async fn check(&self) -> Answer<()> {
        let by_itself = self.ends.is_some_and(|ends| ends <= unix_now());
        let stands = self.store.stands(self.proofs.clone(), unix_now()).await.map_err(SessionError::from)?;
        if stands && !by_itself { Ok(()) } else { Err(ended()) }
    }

    /// Waits until it has ended: by itself, or because somebody has ended it.
    pub(crate) async fn end(&mut self) {
        loop {
            let left = self.ends.map_or(Duration::MAX, |ends| {
                Duration::try_from_secs_f64((ends - unix_now()).max(0.0)).unwrap_or(Duration::MAX)
            });
            tokio::select! {
                // A clock that was set back has it wait again.
                () = tokio::time::sleep(left), if left < Duration::MAX => {
                    if self.ends.is_some_and(|ends| ends <= unix_now()) {
                        return;
                    }
                }
                changed = self.endings.changed() => {
                    let stands = self.store.stands(self.proofs.clone(), unix_now()).await;
                    // What cannot be asked any more stands no more.
                    if changed.is_err() || !stands.unwrap_or(false) {
                        return;
                    }
                }
            }
        }
    }
}
