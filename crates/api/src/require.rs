//! Which ways to show who one is suffice, and which are needed together.

use serde::{Deserialize, Serialize};

/// A way to show who one is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheme {
    /// An API key.
    Bearer,
    /// A client certificate.
    Mtls,
    /// A token of the issuer in `auth.oidc`, or a sign-in with it.
    Sso,
}

/// Any of these, each all of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Require(pub Vec<Vec<Scheme>>);

impl Default for Require {
    fn default() -> Self {
        Self(vec![vec![Scheme::Bearer]])
    }
}

impl Require {
    /// What is needed, for people.
    pub(crate) fn words(&self) -> String {
        let name = |scheme: &Scheme| match scheme {
            Scheme::Bearer => "a valid API key",
            Scheme::Mtls => "a client certificate that is known here",
            Scheme::Sso => "a token of this tenant's identity provider",
        };
        let all = |all: &Vec<Scheme>| all.iter().map(name).collect::<Vec<_>>().join(" together with ");
        let any = self.0.iter().map(all).collect::<Vec<_>>();
        format!("{} is required", any.join(", or "))
    }

    /// Does a list name it?
    #[must_use]
    pub fn names(&self, scheme: Scheme) -> bool {
        self.0.iter().any(|all| all.contains(&scheme))
    }

    /// Says what is wrong with it.
    ///
    /// # Errors
    /// The reason, in words.
    pub fn check(&self) -> Result<(), String> {
        if self.0.is_empty() || self.0.iter().any(Vec::is_empty) {
            return Err("auth.require names at least one scheme in each list: nobody comes in without one".into());
        }
        for all in &self.0 {
            let twice = all.iter().enumerate().any(|(at, scheme)| all[..at].contains(scheme));
            if twice {
                return Err("auth.require names a scheme twice in one list".into());
            }
        }
        Ok(())
    }
}
