//! The HTTPS surface. A request is authenticated, parsed to typed values and
//! handed to `session`; what comes back is put into the wire's words. Nothing
//! is decided here.

mod access;
mod auth;
mod body;
mod error;
mod failures;
mod openapi;
mod principal;
mod quotas;
mod range;
mod require;
mod routes;
mod shown;
mod sse;
mod sso;
mod standing;

use std::net::{IpAddr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use axum::http::HeaderValue;
use cloister_session::Sessions;
use cloister_types::SessionId;
use cloister_vault::SealingKey;
use cloister_vault::client::Client;
use tokio::sync::watch;

pub use failures::Failures;
pub use openapi::document;
pub use principal::{Certified, Origin};
pub use quotas::{Quotas, Rates};
pub use require::{Require, Scheme};
pub use routes::router;
pub use sso::{Browser, Sso, Workload};

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
    /// The issuer that vouches for people, if there is one.
    pub sso: Option<Sso>,
    /// Those that vouch for programs.
    pub workloads: Vec<Workload>,
    /// Sites whose pages may read what their tokens reach, as `https://host[:port]`.
    pub browser_origins: Vec<HeaderValue>,
    /// What is before all this, a listener each, to be asked about. `[listen]` is first.
    pub doors: Vec<Arc<dyn Door>>,
    /// Callers that failed to show who they are.
    pub failures: Failures,
    /// How often callers may call.
    pub quotas: Quotas,
    /// Becomes true when the server is about to be replaced: streams say so and end.
    pub leaving: watch::Receiver<bool>,
    /// The way out, to try connections on.
    pub outside: Arc<dyn Outside>,
}

/// A listener and its policy, as this crate sees them.
pub trait Door: Send + Sync {
    /// Its address in the configuration.
    fn address(&self) -> SocketAddr;

    /// Which schemes suffice.
    fn require(&self) -> &Require;

    /// May this address call? With the rule that says so.
    fn admits(&self, address: IpAddr) -> (bool, String);

    /// May calls come over this endpoint of a private link, or over none? With the
    /// rule that says so; none if endpoints do not matter.
    fn links(&self, endpoint: Option<&str>) -> Option<(bool, String)>;

    /// Whose certificate it is, in PEM, if anybody's; with the rule that says so.
    ///
    /// # Errors
    /// The handshake fails with it, and why.
    fn certifies(&self, pem: &str) -> Result<(Option<Certified>, String), String>;
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
