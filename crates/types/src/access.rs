//! Who may do what: roles, rights, and API keys as they are listed.

use serde::{Deserialize, Serialize};

use crate::SessionId;

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
}

impl NewKey {
    /// Says what is wrong with it.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), &'static str> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"._@-".contains(&byte);
        if !(1..=64).contains(&self.caller.len()) || !self.caller.bytes().all(plain) {
            return Err("a caller is 1 to 64 of letters, digits, '.', '_', '@' and '-'");
        }
        // Ten years: beyond that, it is a mistake of units.
        if self.expires_in.is_some_and(|seconds| seconds == 0 || seconds > 315_360_000) {
            return Err("expires_in is 1 to 315360000 seconds");
        }
        if self.session.is_some() && matches!(self.role, Role::Security | Role::Admin) {
            return Err("a key for one session is a viewer's, an operator's or a developer's");
        }
        Ok(())
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
