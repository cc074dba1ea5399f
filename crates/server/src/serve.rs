//! `cloister serve`: the tenant's server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::UnixListener;

use crate::config::Config;
use crate::files::{take, write_private};
use crate::gate::Gate;
use crate::given::listen as listen_on;
use crate::keys::no_data;
use crate::listen::Front;
use crate::stamp::{adopt, door, suspension};
use crate::tenant::{Tenant, stop_signal};
use crate::tls::Tls;
use crate::tls::acme::Orders;
use crate::{ServerError, listen};

/// What `serve` is told.
#[derive(Debug)]
pub struct Serve {
    /// The configuration file.
    pub config: PathBuf,
    /// Overrides the configuration.
    pub data: Option<PathBuf>,
    /// Overrides the configuration.
    pub listen: Option<SocketAddr>,
    /// Written when the API answers: the URL.
    pub ready_file: Option<PathBuf>,
    /// A socket that came with the process, to be listened on instead.
    pub given: Option<std::net::TcpListener>,
    /// Models that the operator knows to be scripted, and wants all the same.
    pub allow_scripted: bool,
}

/// Runs until SIGTERM or Ctrl-C; turns go on, and the next server takes them
/// over. `announce` is called with the URL once the
/// API answers.
///
/// # Errors
/// What kept it from starting: plain HTTP on anything but loopback, say.
pub async fn serve(options: Serve, announce: impl FnOnce(&str)) -> Result<(), ServerError> {
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let mut config = Config::read(&options.config)?;
    let mut address = options.listen.unwrap_or(config.listen.address);
    if let Some(given) = &options.given {
        address = given.local_addr().map_err(ServerError::start("read the address"))?;
    }
    let data = options.data.or_else(|| config.data.clone());
    let data = data.ok_or_else(no_data)?;
    adopt(&mut config, &data)?;
    config.check_region()?;
    let orders = Orders::of(&mut config, &data)?;
    let scripted: Vec<&str> =
        config.models.iter().map(|model| model.name.as_str()).filter(|name| name.starts_with("scripted")).collect();
    if !scripted.is_empty() && !options.allow_scripted {
        return Err(ServerError::Config(format!(
            "model {:?} is a scripted one, which is no language model: remove it, or say --allow-scripted",
            scripted[0]
        )));
    }
    let tls = Tls::open(&config.listen, &config.auth.require, orders.as_ref().map(Orders::answers))?;
    if tls.is_none() && !address.ip().is_loopback() {
        return Err(ServerError::Config(format!(
            "plain HTTP is for loopback alone; {address} needs listen.tls_cert and listen.tls_key, or listen.acme"
        )));
    }
    let lock = take(&data)?;
    let listener = listen_on(options.given, address).await?;
    let door = tls.as_ref().map(|_| open_door(&data)).transpose()?;
    let gate = Arc::new(Gate::new(config.listen.clone(), &config.auth));
    let tenant = Tenant::open(&config, &data, &scripted, gate.clone()).await?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let url = format!("{scheme}://{}", listener.local_addr().map_err(ServerError::start("read the address"))?);
    if let Some(path) = &options.ready_file {
        let ready = serde_json::json!({ "url": url }).to_string();
        write_private(path, ready.as_bytes()).map_err(ServerError::start(format!("write {}", path.display())))?;
    }
    announce(&url);
    let ordering = orders.map(|orders| tokio::spawn(orders.keep()));
    // Turns go on without us: whoever serves next takes them over.
    let suspended = suspension(&data);
    let ended = {
        let stop = async {
            tokio::select! {
                () = stop => {
                    tenant.send_away();
                    false
                }
                () = until_suspended(&suspended, &data) => {
                    // Nothing of it stays reachable, nor at work.
                    tenant.shut_down().await;
                    true
                }
            }
        };
        listen::serve((listener, door), Front { gate, tls }, tenant.router.clone(), stop).await
    };
    // What was begun is begun again by the next server.
    ordering.inspect(tokio::task::JoinHandle::abort);
    if ended {
        tenant.end().await;
        return Ok(());
    }
    tenant.let_go();
    // Held until this process has ended, and with it whatever still runs in it.
    std::mem::forget(lock);
    Ok(())
}

/// Where the region's door comes in. Only this process's user can.
fn open_door(data: &Path) -> Result<UnixListener, ServerError> {
    let path = door(data);
    let _ = std::fs::remove_file(&path);
    let opened = UnixListener::bind(&path).and_then(|door| {
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        Ok(door)
    });
    opened.map_err(ServerError::start(format!("open {}", path.display())))
}

/// Waits until the tenant is suspended, or its data is gone.
async fn until_suspended(mark: &Path, data: &Path) {
    while !mark.exists() && data.exists() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
