//! Connecting to the outside, for the processes that may: egress; the vault,
//! which fetches tokens; the server, which asks issuers for their keys. A name is resolved once, every address of the
//! answer is checked, and what is connected to is one that was checked.

mod connect;
mod https;
mod resolve;
mod tls;

pub use connect::{Connector, Peer};
pub use https::{Failure, Https};
pub use resolve::{DialError, Dialer, Reach};
pub use tls::{Roots, TlsError, client_config, provider};
