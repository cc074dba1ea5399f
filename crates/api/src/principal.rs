//! Who a request is from, and how far they reach.

use std::net::IpAddr;
use std::sync::Arc;

use cloister_store::{Maker, Proof};
use cloister_types::SessionId;
use cloister_types::access::{Right, Role};
use cloister_types::egress::Policy;
use cloister_types::scope::FileAccess;

use crate::require::Require;

/// Where a request comes from, as the listener knows it.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The client's address; none where the connection has none.
    pub address: Option<IpAddr>,
    /// Is it one that may call at all?
    pub allowed: bool,
    /// Whose certificate came with the connection.
    pub certified: Option<Certified>,
    /// What suffices where it came in.
    pub require: Arc<Require>,
}

/// Whom a client certificate stands for.
#[derive(Debug, Clone, PartialEq)]
pub struct Certified {
    /// The name that is kept with what they do.
    pub caller: String,
    /// What they may.
    pub role: Role,
    /// When the certificate ends, in Unix seconds.
    pub ends: f64,
}

/// Who a request is from.
#[derive(Clone)]
pub(crate) struct Principal {
    /// The name that is kept with what they do.
    pub(crate) caller: String,
    /// What they are, by each scheme by which they have shown it: each must allow,
    /// by one of its roles.
    pub(crate) roles: Vec<Vec<Role>>,
    /// How far they reach, whatever their roles.
    pub(crate) reach: Reach,
    /// How they have shown who they are.
    pub(crate) scheme: String,
    /// The keys and sign-ins by which they have: their ids, and by what it is asked
    /// whether they still stand.
    pub(crate) by: Vec<(String, Proof)>,
    /// When that ends by itself, in Unix seconds.
    pub(crate) ends: Option<f64>,
    /// It was itself made by another, and makes no more.
    pub(crate) is_token: bool,
    /// It came as a cookie: this must come with what changes something.
    pub(crate) csrf: Option<String>,
}

/// A ceiling of what is reached, beside roles.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Reach {
    /// The one session.
    pub(crate) session: Option<SessionId>,
    /// The most that sessions may see.
    pub(crate) file_access: Option<FileAccess>,
    /// As far as sessions may reach.
    pub(crate) egress: Option<Policy>,
}

impl Reach {
    pub(crate) fn has_ceiling(&self) -> bool {
        self.file_access.is_some() || self.egress.is_some()
    }

    fn is_limited(&self) -> bool {
        self.session.is_some() || self.has_ceiling()
    }
}

impl Principal {
    /// One who has shown it in one way, and reaches as far as their roles.
    pub(crate) fn new(caller: String, roles: Vec<Role>, scheme: &str) -> Self {
        Self {
            caller,
            roles: vec![roles],
            reach: Reach::default(),
            scheme: scheme.into(),
            by: Vec::new(),
            ends: None,
            is_token: false,
            csrf: None,
        }
    }

    pub(crate) fn may(&self, right: Right) -> bool {
        !self.roles.is_empty() && self.roles.iter().all(|roles| roles.iter().any(|role| role.may(right)))
    }

    /// Is it an admin, whichever way one looks?
    pub(crate) fn is_admin(&self) -> bool {
        !self.roles.is_empty() && self.roles.iter().all(|roles| roles.contains(&Role::Admin))
    }

    /// As the maker of a key; of a token, if it is to end with what they have shown.
    pub(crate) fn maker(&self, of_token: bool) -> Maker {
        let ids: Vec<&str> = self.by.iter().map(|(id, _)| id.as_str()).collect();
        let parent = if ids.is_empty() { self.scheme.clone() } else { ids.join(" ") };
        Maker { proofs: self.proofs(), parent: of_token.then_some(parent), ends: self.ends.filter(|_| of_token) }
    }

    /// What must stand for them to go on.
    pub(crate) fn proofs(&self) -> Vec<Proof> {
        self.by.iter().map(|(_, proof)| proof.clone()).collect()
    }

    /// What they are, each once.
    pub(crate) fn all_roles(&self) -> Vec<Role> {
        let mut all: Vec<Role> = self.roles.iter().flatten().copied().collect();
        all.sort_unstable();
        all.dedup();
        all
    }

    /// The same caller, who has shown it in another way as well: what one of them
    /// does not allow, neither does. The first names the caller.
    pub(crate) fn and(self, other: Self) -> Self {
        let earlier = |one: Option<f64>, other: Option<f64>| match (one, other) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
        Self {
            roles: self.roles.into_iter().chain(other.roles).collect(),
            // API keys alone have limits, and there is one at most.
            reach: if self.reach.is_limited() { self.reach } else { other.reach },
            scheme: format!("{}+{}", self.scheme, other.scheme),
            ends: earlier(self.ends, other.ends),
            is_token: self.is_token || other.is_token,
            csrf: self.csrf.or(other.csrf),
            caller: self.caller,
            by: self.by.into_iter().chain(other.by).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_one_scheme_add_up_and_schemes_restrict_each_other() {
        let principal = |roles: &[Role]| Principal::new("c".into(), roles.to_vec(), "sso");
        let both = principal(&[Role::Viewer, Role::Security]);
        assert!(both.may(Right::View) && both.may(Right::Keys) && !both.may(Right::Work));
        let together = both.and(principal(&[Role::Developer]));
        assert!(together.may(Right::View) && !together.may(Right::Keys) && !together.may(Right::Work));
        assert!(!principal(&[]).may(Right::View) && !together.is_admin());
    }
}
