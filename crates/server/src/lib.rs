//! The roles of a tenant's server and how they are wired together. `dev` is
//! all of them on loopback; `serve` is the tenant's server; both start the
//! spawner, egress and the vault as children.

mod audit;
mod backup;
mod dev;
mod dev_ca;
mod egress;
mod entrances;
mod files;
mod gate;
mod given;
mod keys;
mod listen;
mod protocols;
mod provision;
mod proxy;
mod region;
mod serve;
mod shares;
mod stamp;
mod tenant;
mod tls;
mod user;
mod vault;

pub mod config;
pub mod doctor;

pub use audit::{acts, verify_audit};
pub use backup::{Summary, backup, restore};
pub use cloister_vault::make_recovery_key;
pub use dev::{Dev, dev};
pub use dev_ca::{Issued, Kind, issue};
pub use given::Given;
pub use keys::new_key;
pub use provision::{Listed, Provisioned, create, list, remove, resume, suspend};
pub use region::region;
pub use serve::{Serve, serve};
pub use stamp::Stamp;
pub use tenant::{go_ahead, lower, settle};
pub use user::{HostUser, become_owner};
pub use vault::{accept_rollback, recover_vault, rotate_vault};

/// The role of the egress process: control socket on standard input.
///
/// # Errors
/// See [`cloister_egress::main`].
pub async fn egress() -> Result<(), ServerError> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|errno| ServerError::Start(errno.to_string()))?;
    cloister_egress::main(control).await.map_err(|error| ServerError::Start(error.to_string()))
}

/// The role of the vault: control socket on standard input.
///
/// # Errors
/// See [`cloister_vault::main`].
pub async fn vault() -> Result<(), ServerError> {
    let control = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|errno| ServerError::Start(errno.to_string()))?;
    cloister_vault::main(control).await.map_err(|error| ServerError::Start(error.to_string()))
}

/// Why a role did not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The configuration: with the place and the remedy.
    #[error("{0}")]
    Config(String),
    /// Anything else.
    #[error("{0}")]
    Start(String),
}

impl ServerError {
    fn start(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        move |error| Self::Start(format!("{what}: {error}"))
    }
}
