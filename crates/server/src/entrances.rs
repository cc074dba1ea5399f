//! The listeners of a configuration, opened: `[listen]`, then each `[[listener]]`.

use std::net::{SocketAddr, TcpListener as Std};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use tokio::net::UnixListener;

use crate::ServerError;
use crate::config::Config;
use crate::gate::Gate;
use crate::given::{Given, listen};
use crate::listen::{Door, Entrance, Front};
use crate::stamp::door;
use crate::tls::{Answers, Tls};

/// One that is not open yet.
pub(crate) struct Place {
    address: SocketAddr,
    given: Option<Std>,
    front: Front,
}

/// What is to be opened, with the sockets that came along. Nothing is, yet.
///
/// # Errors
/// A certificate cannot be used, a socket is nobody's, or one would be plain HTTP on
/// anything but loopback.
pub(crate) fn plan(config: &Config, given: Given, answers: Option<Answers>) -> Result<Vec<Place>, ServerError> {
    let all = config.all_listeners();
    let addresses: Vec<SocketAddr> = all.iter().map(|place| place.address).collect();
    let mut places = Vec::with_capacity(all.len());
    for (place, given) in all.into_iter().zip(given.assign(&addresses)?) {
        let (address, given) = match given {
            Some((address, socket)) => (address, Some(socket)),
            None => (place.address, None),
        };
        // An authority asks at any of those that use its certificates.
        let answers = answers.clone().filter(|_| place.acme.is_some());
        let tls = Tls::open(&place, place.require(&config.auth), answers)?;
        if tls.is_none() && !address.ip().is_loopback() {
            return Err(ServerError::Config(format!(
                "plain HTTP is for loopback alone; {address} needs listen.tls_cert and listen.tls_key, or listen.acme"
            )));
        }
        places.push(Place { address, given, front: Front { gate: Arc::new(Gate::new(place, &config.auth)), tls } });
    }
    Ok(places)
}

/// Opens them, and the region's door to the first if that has TLS; with their URLs.
///
/// # Errors
/// An address is in use, say.
pub(crate) async fn open(places: Vec<Place>, data: &Path) -> Result<(Vec<Entrance>, Vec<String>), ServerError> {
    let (mut entrances, mut urls) = (Vec::new(), Vec::new());
    for Place { address, given, front } in places {
        let is_given = given.is_some();
        let listener = listen(given, address).await?;
        let address = listener.local_addr().map_err(ServerError::start("read the address"))?;
        let scheme = if front.tls.is_some() { "https" } else { "http" };
        urls.push(format!("{scheme}://{address}"));
        let door = if entrances.is_empty() && front.tls.is_some() { Some(open_door(data)?) } else { None };
        entrances.push(Entrance { listener, is_given, door, front });
    }
    Ok((entrances, urls))
}

/// Where the region's door comes in. Only this process's user can.
fn open_door(data: &Path) -> Result<Door, ServerError> {
    let path = door(data);
    let _ = std::fs::remove_file(&path);
    let opened = UnixListener::bind(&path).and_then(|door| {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
        Ok(door)
    });
    let listener = opened.map_err(ServerError::start(format!("open {}", path.display())))?;
    Ok(Door { listener, path })
}
