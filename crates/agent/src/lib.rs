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
mod trust;
mod turn;

pub use turn::run;

/// Does this program's other duty if its arguments say so: to lead the
/// terminal of a tool. What comes back is why it could not.
#[must_use]
pub fn lead_terminal() -> Option<std::io::Error> {
    let mut arguments = std::env::args_os().skip(1);
    (arguments.next()? == tools::terminal::LEAD).then(|| tools::terminal::lead(arguments))
}
