//! What may leave a session, and with which credential: the shapes of the API,
//! which the server, egress and the vault share. No shape here can hold a
//! credential's value except [`Secret`], which is only ever sent in.

mod audit;
mod connection;
mod secret;

pub use audit::{Audit, AuditEntry, AuditHead, AuditRecord, Decision};
pub use connection::{
    Attach, ClientAuth, Connection, ConnectionName, ConnectionRecord, ResponseRules, Target, TestResult,
};
pub use secret::{Secret, SecretKind, VersionRecord, VersionState};

use serde::{Deserialize, Serialize};

use crate::host::{Host, HostPattern};

/// How far a session reaches.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Its model, and what its connections name. Nothing else.
    #[default]
    Offline,
    /// That, and the hosts in `allow`.
    Allow,
    /// Every public host. Private, link-local and metadata addresses stay out
    /// of reach.
    Open,
}

/// `egress` of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct Policy {
    /// How far it reaches.
    pub mode: Mode,
    /// Hosts: `api.example.com`, or `*.example.com` for those one label below.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub allow: Vec<HostPattern>,
}

/// Most hosts of one policy.
pub const MOST_HOSTS: usize = 256;
/// Most connections of one session, and targets of one connection.
pub const MOST_CONNECTIONS: usize = 32;

impl Policy {
    /// May a request without a credential go to this host?
    #[must_use]
    pub fn allows(&self, host: &Host) -> bool {
        match self.mode {
            Mode::Offline => false,
            Mode::Allow => self.allow.iter().any(|pattern| pattern.matches(host)),
            Mode::Open => true,
        }
    }

    /// Does it reach no further than another?
    #[must_use]
    pub fn is_within(&self, ceiling: &Self) -> bool {
        match (self.mode, ceiling.mode) {
            (Mode::Offline, _) | (_, Mode::Open) => true,
            (Mode::Allow, Mode::Allow) => self.allow.iter().all(|pattern| ceiling.covers(pattern)),
            _ => false,
        }
    }

    fn covers(&self, pattern: &HostPattern) -> bool {
        self.allow.contains(pattern) || pattern.host().is_some_and(|host| self.allows(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(text: &str) -> Policy {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn ceilings_hold() {
        let open = policy(r#"{"mode":"open"}"#);
        let some = policy(r#"{"mode":"allow","allow":["a.example","*.b.example"]}"#);
        let within = |text: &str, ceiling: &Policy| policy(text).is_within(ceiling);
        assert!(some.is_within(&open) && !open.is_within(&some) && Policy::default().is_within(&some));
        assert!(within(r#"{"mode":"allow","allow":["x.b.example","*.b.example"]}"#, &some));
        assert!(!within(r#"{"mode":"allow","allow":["b.example"]}"#, &some));
        assert!(!within(r#"{"mode":"allow","allow":["*.a.example"]}"#, &some));
        assert!(!within(r#"{"mode":"allow"}"#, &Policy::default()));
    }
}
