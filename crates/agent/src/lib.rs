//! The agent: what runs inside a sandbox and works on a message.
//!
//! ```text
//! link --> turn (driver) --> step (pure) --> call the model --> model, wire, http
//!                                       \--> run tools -------> tools
//! ```
//!
//! It has no key, no store and no network but its session's model listener.
//! Whatever it wants to be remembered it sends over the link; it keeps nothing.

pub mod history;
pub mod step;
pub mod wire;

mod http;
mod link;
mod model;
mod prompt;
mod tools;
mod turn;

pub use turn::run;
