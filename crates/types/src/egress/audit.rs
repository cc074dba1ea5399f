//! Records of what left, and of what was done to credentials.

use serde::{Deserialize, Serialize};

/// What was decided about a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Decision {
    /// It went out.
    Allowed,
    /// It did not.
    Denied,
    /// It was to go out, and failed.
    Failed,
    /// An act: a credential was set, used for a token, removed; a key was made,
    /// replaced, ended.
    Vault,
}

/// One record of the audit. There is no value in it, and no query.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditRecord {
    /// Its place in the chain, without gaps.
    pub seq: u64,
    /// Unix seconds.
    pub time: f64,
    /// The tenant's region; empty if it has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub region: String,
    /// What happened.
    #[serde(flatten)]
    pub entry: AuditEntry,
    /// Hash of the record before, hexadecimal.
    pub previous: String,
    /// Hash of this one over the one before, hexadecimal.
    pub hash: String,
}

/// What a record says.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct AuditEntry {
    /// The session, if one is concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    /// `http`, `dns`, `tls`, `websocket`, `model`, `vault`, `access` (API keys, and callers
    /// without one), or `host`: acts on the command line of the host itself.
    pub stream: String,
    /// What was decided.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub decision: Option<Decision>,
    /// Why: a stable word.
    pub rule: String,
    /// The method.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub method: String,
    /// The host.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host: String,
    /// The port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The canonical path.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// Names in the query.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub query: Vec<String>,
    /// The answer's status.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// Bytes of the request's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_up: Option<u64>,
    /// Bytes of the answer's body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_down: Option<u64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<f64>,
    /// The connection whose credential went along.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The credential's version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    /// The address that was connected to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// `reflected`, `stripped_auth`, `withheld_cookie`, `withheld_token`, ...
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
    /// What a model call used, as the provider says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<crate::transcript::Usage>,
    /// What that costs, in millionths of a dollar.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cost: Option<u64>,
    /// Who did it, of acts; at the host, `uid:` and a number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
}

/// A head of the chain, signed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditHead {
    /// The last record that it covers.
    pub seq: u64,
    /// That record's hash, hexadecimal.
    pub hash: String,
    /// Unix seconds.
    pub time: f64,
    /// Ed25519 over tenant, sequence, hash and time; hexadecimal.
    pub signature: String,
    /// The key that it is checked with, hexadecimal.
    pub key: String,
}

/// A page of the audit.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Audit {
    /// Records, oldest first.
    pub data: Vec<AuditRecord>,
    /// Cursor of the next page: pass it as `after`. None at the end.
    pub next: Option<u64>,
    /// The newest signed head. Keep it: no later change of what it covers can
    /// be hidden from whoever has it.
    pub head: Option<AuditHead>,
}
