//! The words of Cloister. Everything that more than one process must agree
//! on is spelled here once: identifiers, paths and scopes, events, error
//! codes, wire shapes, and the frames that travel between the processes.
//!
//! Nothing in this crate does I/O or knows an async runtime.

pub mod access;
pub mod address;
pub mod duration;
pub mod egress;
pub mod error;
pub mod event;
pub mod host;
pub mod id;
pub mod key;
pub mod link;
pub mod model;
pub mod path;
pub mod scope;
pub mod sse;
pub mod transcript;
pub mod wire;

pub use error::ErrorCode;
pub use host::Host;
pub use id::{ResponseId, SessionId};
pub use path::WorkspacePath;
pub use scope::{Access, Scope};
