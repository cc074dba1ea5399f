//! A listening socket that whoever started this process has made (systemd's socket
//! activation): connections wait in it while one server is replaced by the next.

use std::net::{SocketAddr, TcpListener as Given};

use tokio::net::TcpListener;

use crate::ServerError;

/// The socket that came with this process, if one did. Called before any thread
/// exists, because it takes what says so from the environment.
///
/// # Errors
/// It is no TCP socket, or there are several.
pub fn given_listener() -> Result<Option<Given>, ServerError> {
    let mut given = listenfd::ListenFd::from_env();
    if given.len() > 1 {
        return Err(ServerError::Start(format!("{} sockets were passed, and one is served", given.len())));
    }
    given.take_tcp_listener(0).map_err(ServerError::start("take the socket that was passed"))
}

/// The socket that came along, or one that listens on an address.
pub(crate) async fn listen(given: Option<Given>, address: SocketAddr) -> Result<TcpListener, ServerError> {
    match given {
        Some(given) => given
            .set_nonblocking(true)
            .and_then(|()| TcpListener::from_std(given))
            .map_err(ServerError::start("use the socket that was passed")),
        None => TcpListener::bind(address).await.map_err(ServerError::start(format!("listen on {address}"))),
    }
}
