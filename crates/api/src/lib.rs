//! The HTTPS surface. A request is authenticated, parsed to typed values and
//! handed to `session`; what comes back is put into the wire's words. Nothing
//! is decided here.

mod auth;
mod body;
mod error;
mod openapi;
mod range;
mod routes;
mod sse;

use std::sync::Arc;

use cloister_session::Sessions;

pub use openapi::document;
pub use routes::router;

/// What handlers share.
pub struct Api {
    /// The tenant's sessions.
    pub sessions: Arc<Sessions>,
    /// The tenant's name, as in its API keys.
    pub tenant: String,
    /// Bytes of one upload.
    pub upload_limit: u64,
}
