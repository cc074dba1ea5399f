//! Connecting to the outside, for the two processes that may: egress, and the
//! vault, which fetches tokens. A name is resolved once, every address of the
//! answer is checked, and what is connected to is one that was checked.

mod connect;
mod resolve;
mod tls;

pub use connect::{Connector, Peer};
pub use resolve::{DialError, Dialer, Reach};
pub use tls::{Roots, TlsError, client_config, provider};
