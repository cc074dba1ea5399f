//! From a host to a connected socket.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::Duration;

use cloister_types::Host;
use cloister_types::address::is_public;
use tokio::net::TcpStream;

/// How long a connection, look-up included, may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why a host was not connected to. Told to sessions by its kind alone.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It has no address.
    #[error("the name cannot be resolved: {0}")]
    Resolve(std::io::Error),
    /// One of its addresses is not public, or is this machine's own.
    #[error("the name leads to {0}, which is not a public address")]
    Private(IpAddr),
    /// It is public, and the operator allowed this only for a private one.
    #[error("{0} is a public address: nothing is sent there in the clear")]
    Public(IpAddr),
    /// It does not answer.
    #[error("no connection: {0}")]
    Connect(std::io::Error),
    /// It did not answer in time.
    #[error("no connection within {} s", PATIENCE.as_secs())]
    Slow,
    /// TLS failed.
    #[error("no secure connection: {0}")]
    Tls(std::io::Error),
}

/// Which addresses may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reach {
    /// Public ones: whatever a session asks for.
    Public,
    /// Any: the operator named the host.
    Any,
    /// Private ones: the operator named the host, and what goes there goes in
    /// the clear.
    Private,
}

/// Where hosts are.
#[derive(Debug, Clone, Default)]
pub struct Dialer {
    /// Hosts that the operator has placed, and where.
    placed: BTreeMap<Host, SocketAddr>,
}

impl Dialer {
    /// With the hosts that the operator has placed.
    #[must_use]
    pub fn new(placed: BTreeMap<Host, SocketAddr>) -> Self {
        Self { placed }
    }

    /// Connects to a host, or to an address that the operator named.
    ///
    /// # Errors
    /// Why not.
    pub async fn dial(&self, host: &str, port: u16, reach: Reach) -> Result<TcpStream, DialError> {
        match tokio::time::timeout(PATIENCE, self.connect(host, port, reach)).await {
            Ok(outcome) => outcome,
            Err(_) => Err(DialError::Slow),
        }
    }

    async fn connect(&self, host: &str, port: u16, reach: Reach) -> Result<TcpStream, DialError> {
        let addresses = match host.parse::<Host>().ok().and_then(|host| self.placed.get(&host)) {
            Some(address) => vec![*address],
            None => {
                let literal = host.trim_matches(['[', ']']).parse::<IpAddr>();
                let found: Vec<SocketAddr> = match literal {
                    Ok(address) => vec![SocketAddr::new(address, port)],
                    Err(_) => tokio::net::lookup_host((host, port)).await.map_err(DialError::Resolve)?.collect(),
                };
                // All of them: an answer that mixes good and bad is a trap.
                found.iter().try_for_each(|address| check(address.ip(), reach))?;
                found
            }
        };
        let mut last = std::io::Error::from(std::io::ErrorKind::NotFound);
        for address in addresses {
            match TcpStream::connect(address).await {
                Ok(socket) => {
                    let _ = socket.set_nodelay(true);
                    return Ok(socket);
                }
                Err(error) => last = error,
            }
        }
        Err(DialError::Connect(last))
    }
}

fn check(address: IpAddr, reach: Reach) -> Result<(), DialError> {
    match reach {
        Reach::Public if !is_public(address) || is_own(address) => Err(DialError::Private(address)),
        Reach::Private if is_public(address) => Err(DialError::Public(address)),
        _ => Ok(()),
    }
}

/// Is it an address of this machine? Only those can be bound to. What listens
/// here is not for sessions, even at a public address.
fn is_own(address: IpAddr) -> bool {
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn private_addresses_are_refused_before_anything_is_sent() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let dialer = Dialer::default();
        for host in ["127.0.0.1", "localhost", "[::1]", "169.254.169.254", "[::ffff:127.0.0.1]"] {
            let refused = dialer.dial(host, port, Reach::Public).await;
            assert!(matches!(refused, Err(DialError::Private(_) | DialError::Resolve(_))), "{host}: {refused:?}");
        }
        assert!(dialer.dial("127.0.0.1", port, Reach::Private).await.is_ok());
        assert!(matches!(dialer.dial("1.1.1.1", port, Reach::Private).await, Err(DialError::Public(_))));
        let placed = Dialer::new([("api.internal".parse().unwrap(), listener.local_addr().unwrap())].into());
        assert!(placed.dial("api.internal", 443, Reach::Public).await.is_ok());
    }
}
