//! Sessions: who may start what, the life of sandboxes, and the way that
//! events take from a supervisor into the log.
//!
//! ```text
//! request --> registry --> state (pure) --> store (durable) --> answer
//!                               \--> turn (driver) --> supervisor
//!            readers <-- feed <-- store <-- spool <------/
//! ```
//!
//! When the server starts, `adopt` finds what the last one left, and `resume`
//! (pure) says how a turn goes on whose agent is lost.
//!
//! Whoever serves a client reads the log from a cursor; nothing of it holds a
//! channel to an agent.

mod adopt;
mod clock;
mod conclude;
mod config;
mod create;
mod delete;
mod error;
mod expire;
mod feed;
mod file_threads;
mod files;
mod follow;
mod history;
mod live;
mod message;
mod registry;
mod resume;
mod state;
mod turn;

pub use cloister_sandbox::confine::Limits as SandboxLimits;
pub use cloister_sandbox::doctor;
pub use cloister_sandbox::files::{Condition, Entry as FolderEntry, Found, Opened, Written};
pub use cloister_sandbox::host::{Ground, Host, HostError};
pub use cloister_sandbox::identity::Identity;
pub use cloister_sandbox::network::{EXITS, Exits};
pub use cloister_sandbox::quota::Allowance;
pub use config::{Config, Defaults, Model};
pub use error::SessionError;
pub use feed::Subscription;
pub use files::{Files, Upload};
pub use live::{Gateway, Metering, Permitting, Rights, WayOut};
pub use message::{Message, Sent};
pub use registry::Sessions;
