//! `[auth]`: how callers show who they are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cloister_api::{Require, Scheme};
use cloister_oidc::{Algorithm, IssuerUrl};
use cloister_types::access::{Role, is_caller};
use serde::{Deserialize, Deserializer, Serialize};

use super::Listen;

/// `[auth]`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Auth {
    /// Any of these, each all of: `bearer`, `mtls`, `sso`.
    pub require: Require,
    /// Whose a client certificate is; the first that fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mtls: Vec<MtlsRule>,
    /// The identity provider of people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oidc: Option<Oidc>,
    /// Platforms whose tokens are exchanged for ours; the first that fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub workload: Vec<WorkloadRule>,
    /// Sites whose pages may read what tokens reach: `https://host[:port]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub browser_origins: Vec<String>,
}

/// `[[auth.mtls]]`, or `mtls` of one listener.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MtlsRule {
    /// A name in the certificate: of its alternative names (DNS, e-mail, URI), or,
    /// if it has none, its common name. `*` stands for one label of a DNS name,
    /// or for the rest of a URI.
    pub san: String,
    /// What the caller may.
    pub role: Role,
    /// Who the caller is; the name itself if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// SHA-256 of the certificate's public key (SPKI), hexadecimal: no other key
    /// will do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spki: Option<String>,
}

/// `[auth.oidc]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Oidc {
    /// The identity provider, as its tokens name it.
    pub issuer: IssuerUrl,
    /// For whom tokens must be: one name, or any of several.
    #[serde(deserialize_with = "one_or_more")]
    pub audience: Vec<String>,
    /// How tokens must be signed.
    #[serde(default = "usual")]
    pub algorithms: Vec<Algorithm>,
    /// The claim that names groups; dots lead into objects.
    #[serde(default = "groups")]
    pub groups_claim: String,
    /// The claim that names the caller.
    #[serde(default = "sub")]
    pub caller_claim: String,
    /// What the members of a group are; who is in several is all of it.
    pub roles: BTreeMap<String, Role>,
    /// What this server is to the provider; with it, people sign in with a
    /// browser.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// File that holds what proves that; none for a public client.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret_file: Option<PathBuf>,
    /// What is asked for at sign-in.
    #[serde(default = "openid")]
    pub scope: String,
    /// Seconds that people stay signed in with a browser.
    #[serde(default = "working_day")]
    pub session_seconds: u64,
    /// What the command line is to the provider; with it, `cloister login` works.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cli_client_id: Option<String>,
    /// Where callers find this server: `https://host[:port]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub public_url: Option<String>,
}

/// `[[auth.workload]]`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkloadRule {
    /// The platform, as its tokens name it.
    pub issuer: IssuerUrl,
    /// For whom tokens must be: one name, or any of several.
    #[serde(deserialize_with = "one_or_more")]
    pub audience: Vec<String>,
    /// How tokens must be signed.
    #[serde(default = "usual")]
    pub algorithms: Vec<Algorithm>,
    /// Whose tokens: what `sub` says; `*` stands for anything, in one place.
    pub subject: String,
    /// What else tokens must say.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub claims: BTreeMap<String, String>,
    /// What the caller may.
    pub role: Role,
    /// Who the caller is; what `sub` says if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// Seconds that the token lives that they get.
    #[serde(default = "quarter")]
    pub seconds: u64,
}

fn one_or_more<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        One(String),
        More(Vec<String>),
    }
    Ok(match Either::deserialize(deserializer)? {
        Either::One(one) => vec![one],
        Either::More(more) => more,
    })
}

fn usual() -> Vec<Algorithm> {
    Algorithm::USUAL.to_vec()
}

fn groups() -> String {
    "groups".into()
}

fn sub() -> String {
    "sub".into()
}

fn openid() -> String {
    "openid".into()
}

fn working_day() -> u64 {
    8 * 3600
}

fn quarter() -> u64 {
    900
}

/// Is it scheme, host and port alone, as a browser writes it? In the clear on this
/// machine alone.
fn is_origin(text: &str) -> bool {
    let local = ["http://localhost", "http://127.0.0.1", "http://[::1]"];
    let plain =
        local.iter().any(|local| text.strip_prefix(local).is_some_and(|rest| rest.is_empty() || rest.starts_with(':')));
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let fits = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-:[]".contains(&byte);
    (plain || text.starts_with("https://"))
        && !rest.is_empty()
        && rest.bytes().all(fits)
        && !(text.starts_with("https://") && rest.ends_with(":443"))
}

impl Auth {
    /// Its files.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        self.oidc.as_mut().and_then(|oidc| oidc.client_secret_file.as_mut()).into_iter()
    }

    /// Says what is wrong first; for these listeners.
    pub(super) fn check(&self, listeners: &[Listen]) -> Result<(), String> {
        self.require.check()?;
        let somewhere = |scheme| listeners.iter().any(|listen| listen.require(self).names(scheme));
        self.mtls.iter().try_for_each(MtlsRule::check)?;
        if let Some(oidc) = &self.oidc {
            oidc.check(listeners.iter().any(Listen::is_secure))?;
            if !somewhere(Scheme::Sso) {
                return Err("auth.oidc is set, and no list of auth.require has sso: nobody would come in by it".into());
            }
        }
        self.workload.iter().try_for_each(WorkloadRule::check)?;
        if !self.workload.is_empty() && !somewhere(Scheme::Bearer) {
            return Err("auth.workload gives tokens that are shown as bearer, which no list of auth.require has".into());
        }
        match self.browser_origins.iter().find(|origin| !is_origin(origin)) {
            Some(bad) => Err(format!("auth.browser_origins: {bad:?} is not https://host[:port] in small letters")),
            None => Ok(()),
        }
    }
}

impl MtlsRule {
    /// Says what is wrong first.
    pub(super) fn check(&self) -> Result<(), String> {
        if self.san.is_empty() || self.san == "*" {
            return Err("a rule for certificates (mtls): san names somebody".into());
        }
        let digits = |text: &String| text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        if self.spki.as_ref().is_some_and(|spki| !digits(spki)) {
            return Err("a rule for certificates (mtls): spki is 64 hexadecimal digits".into());
        }
        Ok(())
    }
}

/// What of an issuer's tokens is pinned.
fn check_pins(what: &str, audience: &[String], algorithms: &[Algorithm]) -> Result<(), String> {
    if audience.is_empty() || audience.iter().any(String::is_empty) {
        return Err(format!("{what}: audience says for whom tokens must be"));
    }
    if algorithms.is_empty() {
        return Err(format!("{what}: algorithms names at least one"));
    }
    Ok(())
}

impl Oidc {
    fn check(&self, secure: bool) -> Result<(), String> {
        check_pins("auth.oidc", &self.audience, &self.algorithms)?;
        if self.roles.is_empty() {
            return Err("auth.oidc.roles says what members of a group are: nobody would be anything".into());
        }
        if self.client_secret_file.is_some() && self.client_id.is_none() {
            return Err("auth.oidc.client_secret_file goes with auth.oidc.client_id".into());
        }
        if (self.client_id.is_some() || self.cli_client_id.is_some()) && self.public_url.is_none() {
            return Err("auth.oidc needs public_url for sign-in: where people are sent back to".into());
        }
        if self.client_id.is_some() && !secure {
            return Err("sign-in with a browser needs TLS: set listen.tls_cert and listen.tls_key".into());
        }
        if self.public_url.as_ref().is_some_and(|url| !is_origin(url) || !url.starts_with("https://")) {
            return Err("auth.oidc.public_url is https://host[:port] in small letters".into());
        }
        if !self.scope.split(' ').any(|word| word == "openid") {
            return Err("auth.oidc.scope has openid in it".into());
        }
        if !(60..=30 * 86_400).contains(&self.session_seconds) {
            return Err("auth.oidc.session_seconds is 60 to 2592000".into());
        }
        Ok(())
    }
}

impl WorkloadRule {
    fn check(&self) -> Result<(), String> {
        check_pins("auth.workload", &self.audience, &self.algorithms)?;
        if self.subject.is_empty() || self.subject.matches('*').count() > 1 || self.subject == "*" {
            return Err("auth.workload: subject names somebody, with one * at most".into());
        }
        if matches!(self.role, Role::Security | Role::Admin) {
            return Err("auth.workload: a program is a viewer, an operator or a developer".into());
        }
        if self.caller.as_ref().is_some_and(|caller| !is_caller(caller)) {
            return Err("auth.workload: a caller is 1 to 64 of letters, digits, '.', '_', '@' and '-'".into());
        }
        if !(60..=86_400).contains(&self.seconds) {
            return Err("auth.workload: seconds is 60 to 86400".into());
        }
        Ok(())
    }
}
