//! The configuration file: TOML, unknown keys are errors, secrets are only
//! ever paths of files. Parsed and checked before anything is opened.

mod auth;
mod check;
mod listen;
mod parts;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use cloister_egress::limits::Limits as EgressLimits;
use cloister_session::{Allowance, SandboxLimits};
use cloister_types::Host;
use cloister_types::egress::{Mode, Policy};
use cloister_types::model::{Price, Wire};
use cloister_vault::{Kms, Recipient};
use serde::{Deserialize, Serialize};

pub use auth::{Auth, MtlsRule, Oidc, WorkloadRule};
pub use listen::{Acme, Listen, ProxyProtocol};

use crate::ServerError;

/// The whole file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// The tenant's name, as in its API keys: `[a-z0-9-]{1,63}`.
    pub tenant: String,
    /// The region that the tenant lies in; targets of connections that name
    /// another are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// Where the API listens.
    #[serde(deserialize_with = "listen::address_or_table")]
    pub listen: Listen,
    /// Where else, and how callers come in there.
    #[serde(rename = "listener", skip_serializing_if = "Vec::is_empty")]
    pub listeners: Vec<Listen>,
    /// How callers show who they are.
    pub auth: Auth,
    /// The data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Tell agents to use `.memory/`.
    pub memory_hint: bool,
    /// For sessions that do not say.
    pub session_defaults: SessionDefaults,
    /// Ceilings.
    pub limits: Limits,
    /// Limits of one sandbox.
    pub sandbox: SandboxLimits,
    /// Programs of the sandboxes, instead of the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image: Option<Image>,
    /// What all sessions may keep together.
    pub workspace: Allowance,
    /// How far sessions reach.
    pub egress: EgressTable,
    /// The vault.
    pub vault: VaultTable,
    /// The catalogue.
    #[serde(rename = "model", skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<ModelTable>,
}

/// `[image]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Image {
    /// The root folder of a system, such as debootstrap makes.
    pub root: PathBuf,
}

/// `[session_defaults]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SessionDefaults {
    /// Lives on when idle.
    pub persistent: bool,
    /// Longest life in seconds; none if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
}

impl Default for SessionDefaults {
    fn default() -> Self {
        Self { persistent: true, ttl: None }
    }
}

/// `[egress]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EgressTable {
    /// For sessions that do not say.
    pub default: Policy,
    /// As far as any session may reach.
    pub ceiling: Policy,
    /// Hosts that are placed by hand: a name, and `ip:port`. Only these may lie
    /// on private addresses.
    pub hosts: BTreeMap<Host, SocketAddr>,
    /// PEM file of authorities to trust besides the machine's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub extra_ca: Option<PathBuf>,
    /// How much may leave.
    pub limits: EgressLimits,
}

impl Default for EgressTable {
    fn default() -> Self {
        Self {
            default: Policy::default(),
            ceiling: Policy { mode: Mode::Open, allow: Vec::new() },
            hosts: BTreeMap::new(),
            extra_ca: None,
            limits: EgressLimits::default(),
        }
    }
}

/// `[vault]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaultTable {
    /// The key that the vault is wrapped with: 64 hexadecimal digits or 32
    /// bytes. Left out: the systemd credential `cloister-vault-key`, or without
    /// systemd credentials `vault.key` in the data directory, which is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The key before, while it is being replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_key_file: Option<PathBuf>,
    /// Where the vault notes how far it has come; beside the key if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_file: Option<PathBuf>,
    /// The key service that opens the key file, whose content is then made by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kms: Option<Kms>,
    /// Recovery keys: whoever has the private half of one can open the vault if
    /// its key is lost.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub recovery: Vec<Recipient>,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// API calls of one caller in a minute; 0 is no limit.
    pub caller_requests_per_minute: u64,
    /// API calls of all callers in a minute; 0 is no limit.
    pub requests_per_minute: u64,
    /// Sandboxes alive at once; idle ones make room.
    pub live_sessions: usize,
    /// Model calls of a turn.
    pub steps: u32,
    /// Tokens of a turn.
    pub tokens: u64,
    /// Dollars of a turn, by the models' prices; no limit if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub turn_dollars: Option<f64>,
    /// Seconds of a turn.
    pub turn_seconds: u64,
    /// Messages that may wait for one session.
    pub queued_messages: u32,
    /// Bytes of an upload.
    pub upload_bytes: u64,
    /// Seconds that an idle sandbox stays.
    pub sandbox_idle_seconds: u64,
    /// Seconds that a session with `persistent: false` stays after its last answer.
    pub session_idle_seconds: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            caller_requests_per_minute: 0,
            requests_per_minute: 0,
            live_sessions: 64,
            steps: 200,
            tokens: 20_000_000,
            turn_dollars: None,
            turn_seconds: 90 * 60,
            queued_messages: 16,
            upload_bytes: 100 << 20,
            sandbox_idle_seconds: 60,
            session_idle_seconds: 5 * 60,
        }
    }
}

/// `[[model]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelTable {
    /// Name in the catalogue: `[A-Za-z0-9._-]{1,64}`.
    pub name: String,
    /// `anthropic-messages` or `openai-chat`.
    pub wire: Wire,
    /// What the vendor's own SDK calls base URL.
    pub base_url: String,
    /// The provider's name for the model; the same as `name` if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub upstream_model: Option<String>,
    /// File that holds the API key. Read by the egress process alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The region that it lies in; a tenant in another does not start with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
    /// The upstream may lie on loopback or a private address.
    #[serde(default)]
    pub allow_private: bool,
    /// For sessions that name no model.
    #[serde(default)]
    pub default: bool,
    /// Tokens of one answer.
    #[serde(default = "default_output")]
    pub max_output_tokens: u32,
    /// Tokens to think, on wires that ask for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking_tokens: Option<u32>,
    /// Dollars a million tokens: `input`, `output`, `cache_read`, `cache_write`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub price: Option<Price>,
}

fn default_output() -> u32 {
    8192
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tenant: "dev".into(),
            region: None,
            listen: Listen::default(),
            listeners: Vec::new(),
            auth: Auth::default(),
            data: None,
            memory_hint: true,
            session_defaults: SessionDefaults::default(),
            limits: Limits::default(),
            sandbox: SandboxLimits::default(),
            image: None,
            workspace: Allowance::default(),
            egress: EgressTable::default(),
            vault: VaultTable::default(),
            models: Vec::new(),
        }
    }
}

impl Config {
    /// Reads a file; paths in it are relative to its folder.
    ///
    /// # Errors
    /// With the file, the place and what is wrong.
    pub fn read(path: &Path) -> Result<Self, ServerError> {
        let bad = |error: &dyn std::fmt::Display| ServerError::Config(format!("{}: {error}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| bad(&error))?;
        let mut config: Self = toml::from_str(&text).map_err(|error| bad(&error))?;
        // Made absolute first: a bare name has an empty folder.
        let absolute = std::path::absolute(path).map_err(|error| bad(&error))?;
        let folder = absolute.parent().unwrap_or(Path::new("/"));
        let paths = config.models.iter_mut().filter_map(|model| model.key_file.as_mut()).chain(config.data.as_mut());
        let paths = paths.chain(config.image.as_mut().map(|image| &mut image.root));
        let VaultTable { key_file, previous_key_file, guard_file, kms, .. } = &mut config.vault;
        let paths = paths.chain(kms.as_mut().map(Kms::file));
        let paths = paths.chain(config.egress.extra_ca.as_mut());
        let paths = paths.chain(key_file.as_mut()).chain(previous_key_file.as_mut()).chain(guard_file.as_mut());
        let paths = paths.chain(config.listen.paths()).chain(config.listeners.iter_mut().flat_map(Listen::paths));
        for path in paths.chain(config.auth.paths()) {
            *path = folder.join(&*path);
        }
        config.check().map_err(|error| bad(&error))?;
        Ok(config)
    }

    /// All listeners, `[listen]` first. Those that say nothing of certificates have its.
    pub(crate) fn all_listeners(&self) -> Vec<Listen> {
        let others = self.listeners.iter().map(|other| other.clone().like(&self.listen, &self.auth));
        std::iter::once(self.listen.clone()).chain(others).collect()
    }
}
