//! The HTTPS surface. A request is authenticated, parsed to typed values and
//! handed to `session`; what comes back is put into the wire's words. Nothing
//! is decided here.

mod access;
mod auth;
mod body;
mod error;
mod failures;
mod openapi;
mod quotas;
mod range;
mod require;
mod routes;
mod sse;

use std::os::unix::net::UnixStream;
use std::sync::Arc;

use cloister_session::Sessions;
use cloister_types::SessionId;
use cloister_vault::SealingKey;
use cloister_vault::client::Client;

pub use auth::{Certified, Origin};
pub use failures::Failures;
pub use openapi::document;
pub use quotas::{Quotas, Rates};
pub use require::{Require, Scheme};
pub use routes::router;

/// What handlers share.
pub struct Api {
    /// The tenant's sessions.
    pub sessions: Arc<Sessions>,
    /// The tenant's name, as in its API keys.
    pub tenant: String,
    /// The tenant's region, if it has one.
    pub region: Option<String>,
    /// Bytes of one upload.
    pub upload_limit: u64,
    /// The vault, which answers about credentials and returns none.
    pub vault: Client,
    /// What closes secrets for the vault; nothing here opens them again.
    pub sealing: SealingKey,
    /// How callers show who they are.
    pub require: Require,
    /// Callers that failed to show who they are.
    pub failures: Failures,
    /// How often callers may call.
    pub quotas: Quotas,
    /// The way out, to try connections on.
    pub outside: Arc<dyn Outside>,
}

/// The way out, as this crate sees it.
pub trait Outside: Send + Sync {
    /// A link on which requests are made as by a session with connections and
    /// nothing else: whatever the vault permits to that name.
    ///
    /// # Errors
    /// Egress is not there.
    fn try_link(&self, session: &SessionId) -> std::io::Result<UnixStream>;
}
