//! The egress process: the only way out of a session. It accepts on sockets
//! that were made *inside* a session's network namespace, so the socket itself
//! says who calls; nothing that a caller can send does.
//!
//! identify -> decide -> strip -> ask the vault -> attach -> send -> scrub -> write down.

pub mod control;
pub mod limits;
pub mod model;
pub mod names;
pub mod path;
pub mod rules;
pub mod scrub;

mod attach;
mod authority;
mod body;
mod headers;
mod identity;
mod ledger;
mod meter;
mod needles;
mod pool;
mod record;
mod refuse;
mod serve;
mod session;
mod sync;
mod web;
mod websocket;
mod withhold;

pub use serve::main;
