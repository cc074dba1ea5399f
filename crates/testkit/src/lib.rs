//! The whole stack for tests: `cloister dev` on port 0 with a data directory
//! of its own, as root or as an ordinary user; raw HTTP that no client
//! library tidies up; and a model provider that misbehaves on request.

mod provider;
mod raw;
mod stack;

pub use provider::{Provider, Received, Reply};
pub use raw::{Answer, raw};
pub use stack::{As, Options, Stack, Turn, script};
