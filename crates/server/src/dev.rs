//! `cloister dev`: every role on loopback, the scripted model included, ready
//! with no configuration at all.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use cloister_types::model::Wire;
use serde_json::json;
use tokio::net::TcpListener;

use crate::config::{Config, ModelTable};
use crate::files::{take, write_private};
use crate::gate::Gate;
use crate::listen::{Entrance, Front};
use crate::tenant::{Tenant, stop_signal};
use crate::{ServerError, keys, listen};

/// What `dev` is told.
#[derive(Debug, Clone)]
pub struct Dev {
    /// The data directory.
    pub data: PathBuf,
    /// Overrides the configuration.
    pub listen: Option<SocketAddr>,
    /// A configuration file, to which the scripted models are added.
    pub config: Option<PathBuf>,
    /// Written when the API answers: URL and key.
    pub ready_file: Option<PathBuf>,
}

/// Where clients on this machine find a development server.
const CLIENT_FILE: &str = "client.json";
/// The scripted model, once for each wire.
const SCRIPTED: [(&str, Wire, &str); 2] =
    [("scripted", Wire::AnthropicMessages, ""), ("scripted-chat", Wire::OpenaiChat, "/v1")];

/// Runs until SIGTERM or Ctrl-C, then ends everything that it started.
/// `announce` is called once the API answers, with its URL and key.
///
/// # Errors
/// What kept it from starting.
pub async fn dev(options: Dev, announce: impl FnOnce(&str, &str)) -> Result<(), ServerError> {
    // From the first moment on, so that an early signal is not lost.
    let stop = stop_signal()?;
    tokio::pin!(stop);
    let mut config = match &options.config {
        Some(path) => Config::read(path)?,
        None => Config::default(),
    };
    let address = options.listen.unwrap_or(config.listen.address);
    if !address.ip().is_loopback() {
        return Err(ServerError::Config(format!(
            "dev listens on loopback alone, not on {address}; use cloister serve"
        )));
    }
    // Both before anything is written: another server may be at work.
    let lock = take(&options.data)?;
    let listener = TcpListener::bind(address).await.map_err(ServerError::start(format!("listen on {address}")))?;
    let provider = scripted_provider(&mut config, &options.data).await?;
    let scripted: Vec<&str> = SCRIPTED.iter().map(|(name, ..)| *name).collect();
    let gate = Arc::new(Gate::new(config.listen.clone(), &config.auth));
    let tenant = Tenant::open(&config, &options.data, &scripted, vec![gate.clone()]).await?;
    let key = keys::development(&tenant.store, &config.tenant, &options.data).await?;
    let url = format!("http://{}", listener.local_addr().map_err(ServerError::start("read the address"))?);
    let serving = async {
        let ready = json!({"url": url, "key": key.reveal()}).to_string();
        if let Some(path) = &options.ready_file {
            write_private(path, ready.as_bytes()).map_err(ServerError::start(format!("write {}", path.display())))?;
        }
        if let Err(error) = write_private(&options.data.join(CLIENT_FILE), ready.as_bytes()) {
            // Clients on this machine must be told where the server is.
            tracing::error!(%error, "{CLIENT_FILE} cannot be written");
        }
        announce(&url, key.reveal());
        let entrance = Entrance { listener, is_given: false, door: None, front: Front { gate, tls: None } };
        listen::serve(vec![entrance], tenant.router.clone(), async {
            stop.await;
            // While connections still stand, so that streams see their end.
            tenant.shut_down().await;
        })
        .await;
        Ok(())
    };
    let outcome = serving.await;
    provider.abort();
    tenant.end().await;
    drop(lock);
    outcome
}

/// Starts the scripted provider and adds its models, unless the configuration
/// has models of those names.
async fn scripted_provider(
    config: &mut Config,
    data: &std::path::Path,
) -> Result<tokio::task::JoinHandle<()>, ServerError> {
    let key_file =
        std::path::absolute(data.join("scripted-key")).map_err(ServerError::start("find the data directory"))?;
    // Kept over restarts: turns that are taken over go on with it.
    let key = match std::fs::read_to_string(&key_file) {
        Ok(key) if key.len() == 32 => key,
        _ => {
            let mut random = [0; 16];
            getrandom::fill(&mut random).map_err(|error| ServerError::Start(error.to_string()))?;
            let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
            write_private(&key_file, key.as_bytes())
                .map_err(ServerError::start("write the scripted provider's key"))?;
            key
        }
    };
    let listener =
        TcpListener::bind(("127.0.0.1", 0)).await.map_err(ServerError::start("start the scripted provider"))?;
    let address = listener.local_addr().map_err(ServerError::start("start the scripted provider"))?;
    let has_default = config.models.iter().any(|model| model.default);
    for (index, (name, wire, path)) in SCRIPTED.into_iter().enumerate() {
        if config.models.iter().any(|model| model.name == name) {
            return Err(ServerError::Config(format!("a model may not be named {name:?} here: dev adds its own")));
        }
        config.models.push(ModelTable {
            region: None,
            name: name.into(),
            wire,
            base_url: format!("http://{address}{path}"),
            upstream_model: Some("scripted".into()),
            key_file: Some(key_file.clone()),
            allow_private: true,
            default: index == 0 && !has_default,
            max_output_tokens: 8192,
            thinking_tokens: None,
            price: None,
        });
    }
    Ok(tokio::spawn(async move {
        if let Err(error) = cloister_scripted::serve(listener, key).await {
            tracing::error!(%error, "the scripted provider ended");
        }
    }))
}
