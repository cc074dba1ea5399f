//! The egress process: the one program that both reads a model's key and
//! faces the session. It accepts on sockets that were made *inside* a
//! session's network namespace, so the socket itself says who calls; nothing
//! that a caller can send does.
//!
//! identify -> match rule -> attach -> forward -> strip -> answer.

pub mod control;
pub mod rules;

mod attach;
mod forward;
mod resolve;
mod serve;

pub use serve::main;
