//! Callers that another issuer vouches for: people, by their groups; programs, by
//! what their tokens say of them.

use std::collections::BTreeMap;

use cloister_oidc::{Claims, Flow, Issuer, Rejected};
use cloister_types::access::Role;
use serde_json::Value;

use crate::principal::Principal;

/// Characters of a caller's name.
const LONGEST_NAME: usize = 256;

/// Sign-in by an issuer.
pub struct Sso {
    /// Who vouches.
    pub issuer: Issuer,
    /// The claim that names groups; dots lead into objects.
    pub groups_claim: String,
    /// The claim that names the caller.
    pub caller_claim: String,
    /// What members of a group are.
    pub roles: BTreeMap<String, Role>,
    /// Sign-in by a browser, if it is offered.
    pub browser: Option<Browser>,
    /// What the command line is to the issuer, if it may sign in.
    pub cli_client_id: Option<String>,
    /// Where callers find this server, as `https://host[:port]`.
    pub public_url: Option<String>,
}

/// Sign-in by a browser.
pub struct Browser {
    /// How people are sent to the issuer.
    pub flow: Flow,
    /// How long they stay signed in.
    pub seconds: u64,
}

impl Sso {
    /// Whom claims stand for, that were verified.
    pub(crate) fn principal(&self, claims: &Claims) -> Result<Principal, Rejected> {
        let caller = claims.get(&self.caller_claim).and_then(Value::as_str).and_then(name);
        let caller = caller.ok_or(Rejected::Claim("caller_claim"))?;
        let groups = groups(claims, &self.groups_claim);
        let mut roles: Vec<Role> = groups.iter().filter_map(|group| self.roles.get(*group)).copied().collect();
        roles.sort_unstable();
        roles.dedup();
        let ends = claims.get("exp").and_then(Value::as_f64);
        Ok(Principal { ends, ..Principal::new(caller, roles, "sso") })
    }

    /// Where it is said what callers need to know to sign in (RFC 9728).
    pub(crate) fn metadata_url(&self) -> Option<String> {
        self.public_url.as_ref().map(|url| format!("{url}{METADATA}"))
    }
}

/// Where a protected resource says of itself who vouches for its callers.
pub(crate) const METADATA: &str = "/.well-known/oauth-protected-resource";

/// A caller's name as it may be kept and shown.
fn name(text: &str) -> Option<String> {
    let fits = !text.is_empty() && text.chars().count() <= LONGEST_NAME && !text.chars().any(char::is_control);
    fits.then(|| text.to_owned())
}

/// What a claim says, by its whole name or by the way to it.
fn at<'c>(claims: &'c Claims, name: &str) -> Option<&'c Value> {
    claims.get(name).or_else(|| {
        let mut way = name.split('.');
        let first = claims.get(way.next()?)?;
        way.try_fold(first, |value, name| value.get(name))
    })
}

fn groups<'c>(claims: &'c Claims, name: &str) -> Vec<&'c str> {
    match at(claims, name) {
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(all)) => all.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    }
}

/// Programs that come with a token of their own platform, and leave with one of
/// ours.
pub struct Workload {
    /// Who vouches.
    pub issuer: Issuer,
    /// Whose tokens: what `sub` says, `*` standing for anything in one place.
    pub subject: String,
    /// What else tokens must say, word for word.
    pub claims: BTreeMap<String, String>,
    /// What they are.
    pub role: Role,
    /// Who they are; what `sub` says if left out.
    pub caller: Option<String>,
    /// How long the token lives that they get.
    pub seconds: u64,
}

impl Workload {
    /// Who a token is from, if it is one of these.
    pub(crate) fn caller(&self, claims: &Claims) -> Option<String> {
        let subject = claims.get("sub").and_then(Value::as_str)?;
        let says = |(name, wanted): (&String, &String)| match at(claims, name) {
            Some(Value::String(text)) => text == wanted,
            Some(Value::Bool(value)) => value.to_string() == *wanted,
            Some(Value::Number(value)) => value.to_string() == *wanted,
            _ => false,
        };
        let fits = fits(&self.subject, subject) && self.claims.iter().all(says);
        self.caller.clone().or_else(|| name(subject)).filter(|_| fits)
    }
}

fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == text,
        Some((start, end)) => text.len() > start.len() + end.len() && text.starts_with(start) && text.ends_with(end),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn groups_are_found_where_issuers_put_them() {
        let claims = json!({
            "groups": ["a", 7, "b"], "role": "one", "https://x.example/roles": ["c"], "realm_access": {"roles": ["d"]}
        });
        let claims = claims.as_object().unwrap();
        for (claim, expected) in [
            ("groups", &["a", "b"][..]),
            ("role", &["one"]),
            ("https://x.example/roles", &["c"]),
            ("realm_access.roles", &["d"]),
            ("realm_access", &[]),
            ("other.roles", &[]),
        ] {
            assert_eq!(groups(claims, claim), expected, "{claim}");
        }
    }

    #[test]
    fn subjects_fit_whole_or_in_one_place() {
        for (pattern, text, expected) in [
            ("repo:acme/app:ref:refs/heads/main", "repo:acme/app:ref:refs/heads/main", true),
            ("repo:acme/app:*", "repo:acme/app:ref:refs/heads/main", true),
            ("repo:acme/app:*", "repo:acme/app:", false),
            ("repo:acme/app:*", "repo:acme/app2:ref", false),
            ("a*a", "aa", false),
            ("a*a", "aba", true),
        ] {
            assert_eq!(fits(pattern, text), expected, "{pattern} {text}");
        }
    }
}
