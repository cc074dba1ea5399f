//! The vault: credentials at rest and in use. It listens nowhere; it speaks on
//! sockets that the server hands it, each with what may be asked there. It
//! decides again itself whether a session may use a connection for a target,
//! and no verb of the server's returns a credential.

pub mod audit;
pub mod client;
pub mod wire;

mod desk;
mod guard;
mod kek;
mod key;
mod kms;
mod lease;
mod permits;
mod place;
mod process;
mod records;
mod recovery;
mod root;
mod rotate;
mod scribe;
mod seal;
mod serve;
mod sign;
mod token;
mod usage;
mod version;

pub use kek::KekError;
pub use key::{NotOpened, SealingKey, hex, unhex};
pub use kms::Kms;
pub use place::Place;
pub use records::about_secret;
pub use recovery::{NoRecoveryKey, Recipient, make as make_recovery_key, recover};
pub use rotate::{accept_rollback, rotate};
pub use serve::main;
pub use sign::aws_time;

/// What a vault cannot do.
#[derive(Debug, thiserror::Error)]
pub enum VaultError {
    /// The database's.
    #[error("the vault's database: {0}")]
    Database(#[from] rusqlite::Error),
    /// A record is not what was written.
    #[error("the vault's records: {0}")]
    Json(#[from] serde_json::Error),
    /// A text does not open.
    #[error("{0}")]
    NotOpened(#[from] NotOpened),
    /// The key file's.
    #[error("{0}")]
    Kek(#[from] KekError),
    /// A text is no recovery key.
    #[error("{0}")]
    NoRecoveryKey(#[from] NoRecoveryKey),
    /// The root key does not open with the key file.
    #[error("the vault's key does not fit {file}: {hint}")]
    WrongKey {
        /// The key file.
        file: String,
        /// What to do.
        hint: &'static str,
    },
    /// The database is older than what was seen before.
    #[error(
        "the vault's database is older than the last one seen ({0}); revoked credentials would come back. If it was restored on purpose: cloister vault accept-rollback"
    )]
    RolledBack(String),
    /// The database was changed by somebody else than a vault.
    #[error("the vault's database was changed by hand: nothing of it is used. Restore it from a backup")]
    Tampered,
    /// The system's.
    #[error("{0}")]
    Io(#[from] std::io::Error),
    /// The cryptography's.
    #[error("a cryptographic operation failed")]
    Crypto,
}
