//! Listening sockets that whoever started this process has made (systemd's socket
//! activation): connections wait in them while one server is replaced by the next.

use std::net::{SocketAddr, TcpListener as Std};

use tokio::net::TcpListener;

use crate::ServerError;

/// The sockets that came with this process.
#[derive(Debug, Default)]
pub struct Given(Vec<(SocketAddr, Std)>);

impl Given {
    /// Takes them. Called before any thread exists, because what says so is taken from
    /// the environment.
    ///
    /// # Errors
    /// One is no TCP socket.
    pub fn take() -> Result<Self, ServerError> {
        let mut given = listenfd::ListenFd::from_env();
        let mut all = Vec::new();
        for at in 0..given.len() {
            let failed = ServerError::start("take the socket that was passed");
            if let Some(socket) = given.take_tcp_listener(at).map_err(failed)? {
                let address = socket.local_addr().map_err(ServerError::start("read the address"))?;
                all.push((address, socket));
            }
        }
        Ok(Self(all))
    }

    /// The ones for these addresses, in their order; where there is one place to listen at
    /// and one socket, that.
    ///
    /// # Errors
    /// One is left that nobody listens on.
    pub(crate) fn assign(mut self, addresses: &[SocketAddr]) -> Result<Vec<Option<(SocketAddr, Std)>>, ServerError> {
        if addresses.len() == 1 && self.0.len() == 1 {
            return Ok(vec![self.0.pop()]);
        }
        let mut assigned: Vec<Option<(SocketAddr, Std)>> = addresses.iter().map(|_| None).collect();
        // systemd's `ListenStream=443` is of version 6, and takes callers of both.
        let any = |one: &SocketAddr| one.ip().is_unspecified().then_some(one.port());
        let same = |given: &SocketAddr, wanted: &SocketAddr| given == wanted;
        let both = |given: &SocketAddr, wanted: &SocketAddr| any(given).is_some() && any(given) == any(wanted);
        for fits in [&same as &dyn Fn(&SocketAddr, &SocketAddr) -> bool, &both] {
            for (place, wanted) in assigned.iter_mut().zip(addresses).filter(|(place, _)| place.is_none()) {
                *place = self.0.iter().position(|(given, _)| fits(given, wanted)).map(|at| self.0.remove(at));
            }
        }
        let Some((address, _)) = self.0.first() else { return Ok(assigned) };
        Err(ServerError::Config(format!("a socket for {address} was passed, where the configuration has no listener")))
    }
}

/// The socket that came along, or one that listens on an address.
pub(crate) async fn listen(given: Option<Std>, address: SocketAddr) -> Result<TcpListener, ServerError> {
    match given {
        Some(given) => given
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(given))
            .map_err(ServerError::start("use the socket that was passed")),
        None => TcpListener::bind(address).await.map_err(ServerError::start(format!("listen on {address}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_goes_to_the_listener_that_it_is_for() {
        let address = |text: &&str| text.parse::<SocketAddr>().unwrap();
        let assign = |given: &[&str], wanted: &[&str]| {
            let socket = || Std::bind("127.0.0.1:0").unwrap();
            let given = Given(given.iter().map(|text| (address(text), socket())).collect());
            let assigned = given.assign(&wanted.iter().map(address).collect::<Vec<_>>()).ok()?;
            let shown =
                |one: Option<(SocketAddr, Std)>| one.map_or("own".to_owned(), |(address, _)| address.to_string());
            Some(assigned.into_iter().map(shown).collect::<Vec<_>>().join(" "))
        };
        let both = ["0.0.0.0:443", "[::]:443"];
        for (given, wanted, expected) in [
            (&[][..], &both[..], Some("own own")),
            (&["[::]:443", "0.0.0.0:443"], &both, Some("0.0.0.0:443 [::]:443")),
            (&["[::]:443"], &["0.0.0.0:443", "10.0.0.1:443"], Some("[::]:443 own")),
            (&["[::]:8443"], &["127.0.0.1:8420"], Some("[::]:8443")),
            (&["10.0.0.2:443"], &["0.0.0.0:443", "10.0.0.1:443"], None),
            (&["[::]:443", "[::]:444"], &["0.0.0.0:443"], None),
        ] {
            assert_eq!(assign(given, wanted).as_deref(), expected, "{given:?} {wanted:?}");
        }
    }
}
