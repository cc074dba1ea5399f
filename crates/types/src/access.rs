//! Who may do what: roles, rights, and API keys as they are listed.

use serde::{Deserialize, Serialize};

use crate::SessionId;
use crate::egress::Policy;
use crate::scope::{FileAccess, Scope};

/// What a caller is to the tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Looks at sessions, their work and their files.
    Viewer,
    /// Looks, ends turns and sessions, and reads the audit.
    Operator,
    /// Has agents work.
    Developer,
    /// Manages keys, connections and credentials, and reads the audit; sees no
    /// session's work.
    Security,
    /// Everything.
    Admin,
}

/// Something that an operation needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Right {
    /// See sessions, their work and their files.
    View,
    /// Create sessions, send messages, write files.
    Work,
    /// End turns and sessions.
    End,
    /// See connections, which hold no credential.
    ViewConnections,
    /// Set connections and credentials.
    Credentials,
    /// Read the audit.
    Audit,
    /// Manage API keys.
    Keys,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Viewer, Self::Operator, Self::Developer, Self::Security, Self::Admin];

    /// May it?
    #[must_use]
    pub fn may(self, right: Right) -> bool {
        match self {
            Self::Admin => true,
            Self::Viewer => right == Right::View,
            Self::Operator => matches!(right, Right::View | Right::End | Right::ViewConnections | Right::Audit),
            Self::Developer => matches!(right, Right::View | Right::Work | Right::End | Right::ViewConnections),
            Self::Security => {
                matches!(right, Right::ViewConnections | Right::Credentials | Right::Audit | Right::Keys)
            }
        }
    }

    /// As it is written.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Operator => "operator",
            Self::Developer => "developer",
            Self::Security => "security",
            Self::Admin => "admin",
        }
    }
}

impl std::str::FromStr for Role {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let found = Self::ALL.into_iter().find(|role| role.as_str() == text);
        found.ok_or("a role is viewer, operator, developer, security or admin")
    }
}

/// What a new key is to be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// Who calls with it: 1 to 64 of letters, digits, `.`, `_`, `@` and `-`.
    pub caller: String,
    /// What the caller may.
    pub role: Role,
    /// Seconds until it ends by itself; never if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
    /// The one session that it reaches; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub session: Option<SessionId>,
    /// The most that sessions may see that are made or reached with it, besides
    /// `.memory` and `.pokee`, which all have; the whole workspace if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_access: Option<FileAccess>,
    /// As far as sessions may reach that are made or reached with it, without any
    /// connection; as far as the tenant's if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Policy>,
}

/// The longest life of anything that ends by itself, in seconds: ten years. Beyond
/// that, it is a mistake of units.
const LONGEST_LIFE: u64 = 315_360_000;
/// The longest life of a token for one session, in seconds: a day.
const LONGEST_TOKEN: u64 = 86_400;

/// Is it a caller's name?
#[must_use]
pub fn is_caller(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(plain)
}

impl NewKey {
    /// One that never ends and reaches as far as its role.
    #[must_use]
    pub fn new(caller: impl Into<String>, role: Role) -> Self {
        Self { caller: caller.into(), role, expires_in: None, session: None, file_access: None, egress: None }
    }

    /// Says what is wrong with it.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        if !is_caller(&self.caller) {
            return Err("a caller is 1 to 64 of letters, digits, '.', '_', '@' and '-'".into());
        }
        if self.expires_in.is_some_and(|seconds| seconds == 0 || seconds > LONGEST_LIFE) {
            return Err(format!("expires_in is 1 to {LONGEST_LIFE} seconds"));
        }
        let narrow = self.session.is_some() || self.file_access.is_some() || self.egress.is_some();
        if narrow && matches!(self.role, Role::Security | Role::Admin) {
            return Err("a key with a session or a ceiling is a viewer's, an operator's or a developer's".into());
        }
        if let Some(access) = &self.file_access {
            Scope::parse(access).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// What a token for one session is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct NewToken {
    /// What its holder may: `viewer`, if left out, or `developer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<Role>,
    /// Seconds until it ends: 1 to 86400; 900 if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_in: Option<u64>,
}

impl NewToken {
    /// As a key for a session, of a caller.
    ///
    /// # Errors
    /// The reason why it cannot be, in words.
    pub fn key(self, caller: String, session: SessionId) -> Result<NewKey, String> {
        let role = self.role.unwrap_or(Role::Viewer);
        if !matches!(role, Role::Viewer | Role::Developer) {
            return Err("a token for one session is a viewer's or a developer's".into());
        }
        let expires_in = self.expires_in.unwrap_or(900);
        if !(1..=LONGEST_TOKEN).contains(&expires_in) {
            return Err(format!("expires_in is 1 to {LONGEST_TOKEN} seconds"));
        }
        Ok(NewKey { expires_in: Some(expires_in), session: Some(session), ..NewKey::new(caller, role) })
    }
}

/// A key as it is listed: never the key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyRecord {
    /// Its id.
    pub id: String,
    /// Who calls with it.
    pub caller: String,
    /// What the caller may.
    pub role: Role,
    /// The one session that it reaches; all if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub session: Option<SessionId>,
    /// The most that sessions may see that are made or reached with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_access: Option<FileAccess>,
    /// As far as sessions may reach that are made or reached with it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub egress: Option<Policy>,
    /// The key or the sign-in that made it, and with which it ends.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// Unix seconds.
    pub created_at: f64,
    /// Unix seconds at which it ends by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<f64>,
    /// Unix seconds of the last rotation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rotated_at: Option<f64>,
    /// Until when the key before the last rotation works, in Unix seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grace_until: Option<f64>,
    /// Calls with a replaced key since the last rotation: whoever makes them has
    /// to be told.
    pub late_uses: u64,
    /// `active`, `expired` or `revoked`.
    pub state: KeyState,
}

/// Does a key work?
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum KeyState {
    /// It does.
    Active,
    /// It has ended by itself.
    Expired,
    /// It was ended.
    Revoked,
}

/// All keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KeyList {
    /// Oldest first.
    pub data: Vec<KeyRecord>,
}

/// A key that was just made. The only time that it is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct MadeKey {
    /// The key.
    pub key: String,
    /// What is listed of it.
    #[serde(flatten)]
    pub record: KeyRecord,
}

/// How a key is replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Rotation {
    /// Seconds for which the present key works on: 0 to 2592000.
    pub grace: f64,
}

/// Somebody who has signed in with a browser.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SignIn {
    /// Its id.
    pub id: String,
    /// Who.
    pub caller: String,
    /// What they were when they signed in.
    pub roles: Vec<Role>,
    /// Unix seconds.
    pub created_at: f64,
    /// Unix seconds at which it ends by itself.
    pub expires_at: f64,
}

/// Those who are signed in.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SignInList {
    /// Oldest first.
    pub data: Vec<SignIn>,
}

/// A token that was exchanged for another issuer's (RFC 8693, section 2.2).
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Exchanged {
    /// The token: to be sent as an API key is.
    pub access_token: String,
    /// `urn:ietf:params:oauth:token-type:access_token`.
    pub issued_token_type: String,
    /// `Bearer`.
    pub token_type: String,
    /// Seconds until it ends.
    pub expires_in: u64,
}

/// Something to be explained: a call as it would come.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Explain {
    /// The listener, by its address in the configuration; `[listen]` if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub listener: Option<std::net::SocketAddr>,
    /// The endpoint of a private link that it comes over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<String>,
    /// An API key or a token, as it would follow `Bearer`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bearer: Option<String>,
    /// A token of the issuer's, as it would be in `X-SSO-Token` beside an API key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// The value of the cookie `__Host-cloister`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cookie: Option<String>,
    /// A client certificate, in PEM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate: Option<String>,
    /// Where the call comes from.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub address: Option<std::net::IpAddr>,
}

/// What would become of it, and which rule decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explained {
    /// Would it be let in?
    pub admitted: bool,
    /// As whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub caller: Option<String>,
    /// With which roles.
    pub roles: Vec<Role>,
    /// What was looked at, in order, each with what came of it.
    pub steps: Vec<ExplainedStep>,
}

/// Something that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplainedStep {
    /// `endpoint`, `allow`, `bearer`, `mtls`, `sso`, `require` or `workload`.
    pub rule: String,
    /// What came of it, for people.
    pub outcome: String,
}
