//! The whole stack for tests: `cloister dev` or `cloister serve` with a data
//! directory of its own, as root or as an ordinary user; its processes, to be
//! killed; raw HTTP that no client library tidies up; and a model provider
//! that misbehaves on request.

mod issuer;
mod kms;
mod network;
mod processes;
mod provider;
mod raw;
mod stack;
mod turn;
mod upstream;
mod wait;

pub use issuer::{Issuer, unix_now};
pub use kms::TRANSIT_TOKEN;
pub use network::{Ended, Network, Running};
pub use processes::{Processes, Sandbox, children, descendants, is_gone, is_meter};
pub use provider::{Provider, Received, Reply};
pub use raw::{Answer, raw};
pub use stack::{As, ORDINARY, Options, Stack, executable, freeze, kill, peers, thaw};
pub use turn::{Turn, script};
pub use upstream::{Seen, Upstream};
pub use wait::until;

/// Major and minor version of the kernel, for what older ones lack.
#[must_use]
pub fn kernel() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split('.').map(|number| number.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}
