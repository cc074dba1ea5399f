//! `cloister serve`: the tenant's server.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::config::Config;
use crate::files::{take, write_private};
use crate::given::Given;
use crate::keys::no_data;
use crate::stamp::{adopt, suspension};
use crate::tenant::{Tenant, stop_signal};
use crate::tls::acme::Orders;
use crate::{ServerError, entrances, listen};

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
    /// Sockets that came with the process, to be listened on instead.
    pub given: Given,
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
    if let Some(address) = options.listen {
        config.listen.address = address;
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
    let places = entrances::plan(&config, options.given, orders.as_ref().map(Orders::answers))?;
    let lock = take(&data)?;
    let (entrances, urls) = entrances::open(places, &data).await?;
    let gates = entrances.iter().map(|entrance| entrance.front.gate.clone()).collect();
    let tenant = tokio::select! {
        tenant = Tenant::open(&config, &data, &scripted, gates) => tenant?,
        // Children that have begun end with this process.
        () = &mut stop => return Ok(()),
    };
    let url = &urls[0];
    if let Some(path) = &options.ready_file {
        let ready = serde_json::json!({ "url": url, "urls": urls }).to_string();
        write_private(path, ready.as_bytes()).map_err(ServerError::start(format!("write {}", path.display())))?;
    }
    announce(url);
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
        listen::serve(entrances, tenant.router.clone(), stop).await
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

/// Waits until the tenant is suspended, or its data is gone.
async fn until_suspended(mark: &Path, data: &Path) {
    while !mark.exists() && data.exists() {
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
