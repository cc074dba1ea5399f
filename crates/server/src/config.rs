//! The configuration file: TOML, unknown keys are errors, secrets are only
//! ever paths of files. Parsed and checked before anything is opened.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cloister_egress::control::{Setup, Upstream};
use cloister_egress::limits::Limits as EgressLimits;
use cloister_session::{Allowance, Defaults, Model, SandboxLimits};
use cloister_types::Host;
use cloister_types::address::is_public;
use cloister_types::egress::{Mode, Policy};
use cloister_types::link::TurnLimits;
use cloister_types::model::{ModelSpec, Price, Wire};
use cloister_vault::wire::{self, ModelKey, Place};
use serde::{Deserialize, Serialize};

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
    pub listen: SocketAddr,
    /// The data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<PathBuf>,
    /// Tell agents to use `.memory/`.
    pub memory_hint: bool,
    /// Certificate and key, for anything but loopback.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls: Option<Tls>,
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

/// `[tls]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// PEM, the server's certificate first.
    pub certificate: PathBuf,
    /// PEM.
    pub key: PathBuf,
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
    /// bytes. Left out: the systemd credential `cloister-vault-key`, or else
    /// `vault.key` in the data directory, which is made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
    /// The key before, while it is being replaced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_key_file: Option<PathBuf>,
    /// Where the vault notes how far it has come; beside the key if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub guard_file: Option<PathBuf>,
}

/// `[limits]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
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
            listen: SocketAddr::from(([127, 0, 0, 1], 8420)),
            data: None,
            memory_hint: true,
            tls: None,
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
        let VaultTable { key_file, previous_key_file, guard_file } = &mut config.vault;
        let paths = paths.chain(config.egress.extra_ca.as_mut());
        let paths = paths.chain(key_file.as_mut()).chain(previous_key_file.as_mut()).chain(guard_file.as_mut());
        let tls = config.tls.as_mut().map(|tls| [&mut tls.certificate, &mut tls.key]).into_iter().flatten();
        for path in paths.chain(tls) {
            *path = folder.join(&*path);
        }
        config.check().map_err(|error| bad(&error))?;
        Ok(config)
    }

    /// Everything that can be checked without opening anything.
    fn check(&self) -> Result<(), String> {
        let plain = |text: &str, most: usize, also: &[u8]| {
            (1..=most).contains(&text.len())
                && text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || also.contains(&byte))
        };
        if !plain(&self.tenant, 63, b"-") {
            return Err(format!("tenant {:?} must be 1 to 63 of a-z, 0-9 and -", self.tenant));
        }
        let mut names = BTreeMap::new();
        for model in &self.models {
            if !plain(&model.name.to_ascii_lowercase(), 64, b"._-") || model.name.starts_with('.') {
                return Err(format!(
                    "model name {:?} must be 1 to 64 of letters, digits, '.', '_' and '-'",
                    model.name
                ));
            }
            if names.insert(&model.name, ()).is_some() {
                return Err(format!("two models are named {:?}", model.name));
            }
            model.check().map_err(|why| format!("model {:?}: {why}", model.name))?;
        }
        if self.models.iter().filter(|model| model.default).count() > 1 {
            return Err("more than one model says default = true".into());
        }
        let bad = |dollars: f64| !dollars.is_finite() || dollars < 0.0;
        let metered = [self.egress.limits.session_dollars, self.egress.limits.dollars_per_day];
        let dollars = metered.into_iter().chain([self.limits.turn_dollars]).flatten();
        if dollars.into_iter().any(|dollars| bad(dollars) || dollars == 0.0) {
            return Err("limits in dollars must be more than 0".into());
        }
        if let Some(free) = self.models.iter().find(|model| model.price.is_none())
            && metered.iter().any(Option::is_some)
        {
            return Err(format!("egress.limits has a limit in dollars, and model {:?} no price", free.name));
        }
        for price in self.models.iter().filter_map(|model| model.price) {
            if [price.input, price.output, price.cache_read, price.cache_write].into_iter().any(bad) {
                return Err("prices must be 0 or more".into());
            }
        }
        if !self.egress.default.is_within(&self.egress.ceiling) {
            return Err("egress.default reaches further than egress.ceiling".into());
        }
        if self.limits.live_sessions == 0 || self.limits.steps == 0 || self.limits.turn_seconds == 0 {
            return Err("limits must be more than 0".into());
        }
        Ok(())
    }

    /// The session crate's part of the configuration. `scripted` names the
    /// models that a script plays.
    #[must_use]
    pub fn for_sessions(&self, scripted: &[&str]) -> cloister_session::Config {
        let models: Vec<Model> = self
            .models
            .iter()
            .map(|model| Model { spec: model.spec(), scripted: scripted.contains(&model.name.as_str()) })
            .collect();
        let chosen = self.models.iter().find(|model| model.default).or(self.models.first());
        cloister_session::Config {
            default_model: chosen.map_or_else(String::new, |model| model.name.clone()),
            models,
            defaults: Defaults { persistent: self.session_defaults.persistent, ttl: self.session_defaults.ttl },
            turn: TurnLimits {
                steps: self.limits.steps,
                tokens: self.limits.tokens,
                spend: self.limits.turn_dollars.map(|dollars| (dollars * 1e6) as u64),
                time_ms: self.limits.turn_seconds.saturating_mul(1000),
            },
            live_sessions: self.limits.live_sessions,
            sandbox_idle: Duration::from_secs(self.limits.sandbox_idle_seconds),
            session_idle: Duration::from_secs(self.limits.session_idle_seconds),
            queued_messages: self.limits.queued_messages,
            memory_hint: self.memory_hint,
            egress: self.egress.default.clone(),
            egress_ceiling: self.egress.ceiling.clone(),
        }
    }

    /// What egress must know: nothing of it is a key, nor says where one is.
    #[must_use]
    pub fn for_egress(&self) -> Setup {
        let upstream = |model: &ModelTable| Upstream {
            wire: model.wire,
            base_url: model.base_url.clone(),
            upstream_model: model.upstream_model.clone().unwrap_or_else(|| model.name.clone()),
            keyed: model.key_file.is_some(),
            allow_private: model.allow_private,
            price: model.spec().price,
        };
        Setup {
            models: self.models.iter().map(|model| (model.name.clone(), upstream(model))).collect(),
            hosts: self.egress.hosts.clone(),
            extra_ca: self.egress.extra_ca.clone(),
            limits: self.egress.limits.clone(),
        }
    }

    /// What the vault must know, for a data directory.
    ///
    /// # Errors
    /// It is to get its key from systemd and is not told where to note what it
    /// has seen.
    pub fn for_vault(&self, data: &Path) -> Result<wire::Setup, ServerError> {
        let models = self.models.iter().filter_map(|model| {
            let (key_file, target) = (model.key_file.clone()?, cloister_egress::model::target(&model.base_url)?);
            Some((model.name.clone(), ModelKey { key_file, target }))
        });
        Ok(wire::Setup {
            place: self.vault_place(data)?,
            models: models.collect(),
            hosts: self.egress.hosts.clone(),
            extra_ca: self.egress.extra_ca.clone(),
        })
    }

    /// Where the vault's things are, for a data directory.
    ///
    /// # Errors
    /// As for [`Config::for_vault`].
    pub fn vault_place(&self, data: &Path) -> Result<Place, ServerError> {
        let data = std::path::absolute(data).map_err(ServerError::start("find the data directory"))?;
        let credential =
            std::env::var_os("CREDENTIALS_DIRECTORY").map(|folder| Path::new(&folder).join("cloister-vault-key"));
        let credential = credential.filter(|path| self.vault.key_file.is_none() && path.exists());
        if credential.is_some() && self.vault.guard_file.is_none() {
            return Err(ServerError::Config(
                "the vault's key is a systemd credential, beside which nothing can be written: set [vault] guard_file"
                    .into(),
            ));
        }
        let key_file = self.vault.key_file.clone().or(credential).unwrap_or_else(|| data.join("vault.key"));
        let guard_file = self.vault.guard_file.clone();
        let previous_key_file = self.vault.previous_key_file.clone();
        let (tenant, region) = (self.tenant.clone(), self.region.clone().unwrap_or_default());
        Ok(Place { data, tenant, region, key_file, previous_key_file, guard_file })
    }
}

impl ModelTable {
    fn spec(&self) -> ModelSpec {
        ModelSpec {
            name: self.name.clone(),
            wire: self.wire,
            upstream_model: self.upstream_model.clone().unwrap_or_else(|| self.name.clone()),
            max_output_tokens: self.max_output_tokens,
            thinking_tokens: self.thinking_tokens,
            price: self.price.unwrap_or_default(),
        }
    }

    fn check(&self) -> Result<(), String> {
        let rest = match self.base_url.split_once("://") {
            Some(("https", rest)) => rest,
            Some(("http", rest)) if self.allow_private => rest,
            Some(("http", _)) => {
                return Err("base_url is not https; a key would travel in the clear (allow_private = true permits it for a private host)".into());
            }
            _ => return Err(format!("base_url {:?} is not an https URL", self.base_url)),
        };
        let authority = rest.split('/').next().unwrap_or_default();
        if authority.is_empty() || authority.contains('@') || rest.contains(['?', '#']) {
            return Err(format!("base_url {:?} must be scheme, host and path alone", self.base_url));
        }
        if self.thinking_tokens.is_some_and(|thinking| thinking >= self.max_output_tokens) {
            return Err("thinking_tokens must be less than max_output_tokens".into());
        }
        let host = match authority.parse::<SocketAddr>() {
            Ok(address) => Some(address.ip()),
            Err(_) => authority.trim_matches(['[', ']']).parse().ok(),
        };
        match host {
            Some(address) if is_public(address) && self.base_url.starts_with("http:") => {
                Err(format!("{address} is public: a key would travel there in the clear; use https"))
            }
            Some(address) if !is_public(address) && !self.allow_private => {
                Err(format!("{address} is a private address; say allow_private = true if that is meant"))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, String> {
        let config: Config = toml::from_str(text).map_err(|error| error.to_string())?;
        config.check().map(|()| config)
    }

    const MODEL: &str = "[[model]]\nname = 'm'\nwire = 'openai-chat'\n";

    #[test]
    fn unknown_keys_are_errors_that_name_the_known_ones() {
        let error = parse("tenat = 'x'").unwrap_err();
        assert!(error.contains("tenat") && error.contains("tenant"), "{error}");
    }

    #[test]
    fn a_key_never_travels_in_the_clear_or_to_a_private_place_unasked() {
        assert!(parse(&format!("{MODEL}base_url = 'https://api.example.com/v1'")).is_ok());
        for bad in [
            "http://api.example.com",
            "https://127.0.0.1:9",
            "https://[::1]",
            "https://a@b",
            "ftp://x",
            "https://x/?q",
            "https://10.0.0.1/v1",
        ] {
            assert!(parse(&format!("{MODEL}base_url = '{bad}'")).is_err(), "{bad}");
        }
        assert!(parse(&format!("{MODEL}base_url = 'http://127.0.0.1:9'\nallow_private = true")).is_ok());
        assert!(parse(&format!("{MODEL}base_url = 'http://1.1.1.1'\nallow_private = true")).is_err());
    }

    #[test]
    fn the_default_is_shown_and_read_back() {
        let text = toml::to_string(&Config::default()).unwrap();
        assert_eq!(parse(&text), Ok(Config::default()));
    }
}
