//! The parts of a configuration that the roles are given.

use std::path::Path;
use std::time::Duration;

use axum::http::HeaderValue;
use cloister_api::{Browser, Sso, Workload};
use cloister_dial::{Dialer, Https, Reach};
use cloister_egress::control::{Setup, Upstream};
use cloister_oidc::{Flow, Issuer};
use cloister_session::{Defaults, Model};
use cloister_types::link::TurnLimits;
use cloister_types::model::ModelSpec;
use cloister_vault::wire::{self, ModelKey, Place};

use super::{Config, ModelTable, Oidc, VaultTable, WorkloadRule};
use crate::ServerError;

impl Config {
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

    /// Who vouches for people, and who for programs.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn for_sign_in(&self) -> Result<(Option<Sso>, Vec<Workload>), ServerError> {
        if self.auth.oidc.is_none() && self.auth.workload.is_empty() {
            return Ok((None, Vec::new()));
        }
        let https = Https::new(Dialer::new(self.egress.hosts.clone()), Reach::Any, self.egress.extra_ca.as_deref())
            .map_err(|error| ServerError::Config(error.to_string()))?;
        // Rules about one platform ask it once.
        let mut issuers: Vec<Issuer> = Vec::new();
        let mut issuer = |rule: &WorkloadRule| {
            let issuer =
                Issuer::new(rule.issuer.clone(), rule.audience.clone(), rule.algorithms.clone(), https.clone());
            let known = issuers.iter().find(|known| known.expects_as(&issuer)).cloned();
            known.unwrap_or_else(|| {
                issuers.push(issuer.clone());
                issuer
            })
        };
        let workloads = self.auth.workload.iter().cloned().map(|rule| Workload {
            issuer: issuer(&rule),
            subject: rule.subject,
            claims: rule.claims,
            role: rule.role,
            caller: rule.caller,
            seconds: rule.seconds,
        });
        let workloads = workloads.collect::<Vec<_>>();
        let sso = self.auth.oidc.clone().map(|oidc| oidc.sso(https)).transpose()?;
        Ok((sso, workloads))
    }

    /// Sites whose pages may read what tokens reach.
    #[must_use]
    pub fn browser_origins(&self) -> Vec<HeaderValue> {
        self.auth.browser_origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok()).collect()
    }

    /// What the vault must know, for a data directory.
    ///
    /// # Errors
    /// It is to get its key from systemd and gets none, or is not told where to note
    /// what it has seen.
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
        let given = credential.is_some();
        let credential = credential.filter(|path| self.vault.key_file.is_none() && path.exists());
        let made = data.join("vault.key");
        let Config { vault: VaultTable { key_file, kms, .. }, .. } = self;
        if given && credential.is_none() && key_file.is_none() && kms.is_none() && !made.exists() {
            // A unit that was to bring one and did not: a key beside the data is not the same.
            return Err(ServerError::Config(
                "of the systemd credentials, none that this user can read is `cloister-vault-key`: add LoadCredential= \
                 for it to the unit, with User= for whom it is, or set [vault] key_file"
                    .into(),
            ));
        }
        if credential.is_some() && self.vault.guard_file.is_none() {
            return Err(ServerError::Config(
                "the vault's key is a systemd credential, beside which nothing can be written: set [vault] guard_file"
                    .into(),
            ));
        }
        let key_file = self.vault.key_file.clone().or(credential).unwrap_or(made);
        let guard_file = self.vault.guard_file.clone();
        let previous_key_file = self.vault.previous_key_file.clone();
        let (tenant, region) = (self.tenant.clone(), self.region.clone().unwrap_or_default());
        let VaultTable { kms, recovery, .. } = self.vault.clone();
        let extra_ca = self.egress.extra_ca.clone();
        // One that the operator names and no service closes is the operator's.
        let makes_key = kms.is_some() || (self.vault.key_file.is_none() && key_file.starts_with(&data));
        Ok(Place { data, tenant, region, key_file, previous_key_file, kms, extra_ca, makes_key, recovery, guard_file })
    }
}

impl Oidc {
    fn sso(self, https: Https) -> Result<Sso, ServerError> {
        let issuer = Issuer::new(self.issuer, self.audience, self.algorithms, https);
        let secret = self.client_secret_file.map(|path| {
            let text = std::fs::read_to_string(&path);
            text.map(|text| text.trim_end().to_owned())
                .map_err(|error| ServerError::Config(format!("{}: {error}", path.display())))
        });
        let client_secret = secret.transpose()?;
        let browser = self.client_id.zip(self.public_url.as_ref()).map(|(client_id, url)| Browser {
            flow: Flow {
                issuer: issuer.clone(),
                client_id,
                client_secret,
                redirect_uri: format!("{url}/auth/callback"),
                scope: self.scope,
            },
            seconds: self.session_seconds,
        });
        Ok(Sso {
            issuer,
            groups_claim: self.groups_claim,
            caller_claim: self.caller_claim,
            roles: self.roles,
            browser,
            cli_client_id: self.cli_client_id,
            public_url: self.public_url,
        })
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
}
