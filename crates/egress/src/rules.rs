//! What may leave, and with whose credential: pure functions of the policy, the
//! session's connections and the request.

use cloister_types::Host;
use cloister_types::egress::{Mode, Policy, Target};
use cloister_types::model::Wire;
use cloister_vault::wire::Permitted;
use http::Method;

/// Why a request does not leave. The words are stable: the audit, the answer to
/// the agent and the documentation share them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// Not `/<model>` and the wire's one path.
    #[error("only model calls can be made at this address")]
    NotAModelCall,
    /// Not a method of the wire, or one that no request may have.
    #[error("this method is not passed on")]
    Method,
    /// The session was not given that model, or there is none of that name.
    #[error("this session may not call that model")]
    Model,
    /// The session's policy does not include the host.
    #[error("this session may not reach {0}")]
    Host(Host),
    /// The connection's targets do not include the request.
    #[error("the connection {0:?} does not cover this method and path")]
    Uncovered(String),
    /// The session has no connection of that name for the host.
    #[error("this session has no connection {0:?} for this host")]
    Connection(String),
    /// Several connections fit.
    #[error("several connections fit; name one of {} in the header x-cloister-connection", .0.join(", "))]
    Several(Vec<String>),
    /// The agent's own credential, where none may be brought along.
    #[error("credentials of one's own are not passed on to this host")]
    AgentCredential,
}

impl Refusal {
    /// The stable word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::NotAModelCall => "not_a_model_call",
            Self::Method => "method_not_passed",
            Self::Model => "model_not_granted",
            Self::Host(_) => "host_not_allowed",
            Self::Uncovered(_) => "not_covered",
            Self::Connection(_) => "connection_not_granted",
            Self::Several(_) => "connection_ambiguous",
            Self::AgentCredential => "agent_credential",
        }
    }

    /// The status of the answer.
    #[must_use]
    pub const fn status(&self) -> u16 {
        match self {
            Self::Method => 405,
            Self::Several(_) => 409,
            _ => 403,
        }
    }
}

/// The model that a request means: `POST /<model><path of its wire>`.
///
/// # Errors
/// The first rule that the request breaks.
pub fn model_of<'p>(
    method: &Method,
    path: &'p str,
    granted: impl Fn(&str) -> Option<Wire>,
) -> Result<&'p str, Refusal> {
    let rest = path.strip_prefix('/').ok_or(Refusal::NotAModelCall)?;
    let slash = rest.find('/').ok_or(Refusal::NotAModelCall)?;
    let (name, tail) = rest.split_at(slash);
    let wire = granted(name).ok_or(Refusal::Model)?;
    if tail != wire.path() {
        return Err(Refusal::NotAModelCall);
    }
    if method == Method::POST { Ok(name) } else { Err(Refusal::Method) }
}

/// May a request without a credential go to this host? One that the operator has
/// placed, on a private address perhaps, must be named: `open` means the public.
fn allows(policy: &Policy, host: &Host, placed: bool) -> bool {
    if placed { policy.mode == Mode::Allow && policy.allows(host) } else { policy.allows(host) }
}

/// May the session's programs know that a host exists?
#[must_use]
pub fn may_resolve(policy: &Policy, permitted: &[Permitted], host: &Host, placed: bool) -> bool {
    allows(policy, host, placed)
        || permitted.iter().any(|one| one.connection.targets.iter().any(|target| target.host.matches(host)))
}

/// A request, as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    /// The host.
    pub host: &'a Host,
    /// The method.
    pub method: &'a str,
    /// The canonical path, without parameters.
    pub path: &'a str,
    /// The connection that the agent named.
    pub named: Option<&'a str>,
    /// The path with its parameters.
    pub whole: &'a str,
    /// The operator has placed the host.
    pub placed: bool,
}

/// What is decided about a request that may leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Without a credential; the connection that is for this host, but not for
    /// this request, if there is one.
    Plain(Option<&'a Permitted>),
    /// With this connection's credential, at this port: sessions reach a host at
    /// its ordinary port, wherever the target lies.
    With(&'a Permitted, u16),
}

/// Do rules about paths or methods depend on how the request is read?
#[must_use]
pub fn is_ruled(permitted: &[Permitted], host: &Host) -> bool {
    let mut targets = permitted.iter().flat_map(|one| &one.connection.targets);
    targets.any(|target| target.host.matches(host) && !(target.paths.is_empty() && target.methods.is_empty()))
}

/// Is it a method that requests may have? Never one that tunnels, or shows a
/// request to whoever made it.
///
/// # Errors
/// It is not.
pub fn check_method(method: &str) -> Result<(), Refusal> {
    let upper = method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-');
    if upper && !matches!(method, "CONNECT" | "TRACE" | "TRACK") { Ok(()) } else { Err(Refusal::Method) }
}

/// Decides about a request.
///
/// # Errors
/// Why it does not leave.
pub fn decide<'a>(policy: &Policy, permitted: &'a [Permitted], asked: Asked<'_>) -> Result<Verdict<'a>, Refusal> {
    check_method(asked.method)?;
    let here = |one: &&Permitted| one.connection.targets.iter().any(|target| target.host.matches(asked.host));
    let port = |one: &Permitted| {
        let mut targets = one.connection.targets.iter().filter(|target| target.host.matches(asked.host));
        // With its parameters and without: servers differ in what they read.
        let takes =
            |target: &&Target| target.takes(asked.method, asked.path) && target.takes(asked.method, asked.whole);
        targets.find(takes).map(|target| target.port)
    };
    if let Some(named) = asked.named {
        let found = permitted.iter().filter(here).find(|one| one.name.as_str() == named);
        let found = found.ok_or_else(|| Refusal::Connection(named.to_owned()))?;
        return port(found).map(|port| Verdict::With(found, port)).ok_or_else(|| Refusal::Uncovered(named.to_owned()));
    }
    let fit: Vec<(&Permitted, u16)> = permitted.iter().filter_map(|one| Some((one, port(one)?))).collect();
    match fit.as_slice() {
        [(one, port)] => Ok(Verdict::With(one, *port)),
        [] => {
            let other = permitted.iter().find(here);
            match (allows(policy, asked.host, asked.placed), other) {
                (true, other) => Ok(Verdict::Plain(other)),
                (false, Some(other)) => Err(Refusal::Uncovered(other.name.to_string())),
                (false, None) => Err(Refusal::Host(asked.host.clone())),
            }
        }
        several => Err(Refusal::Several(several.iter().map(|(one, _)| one.name.to_string()).collect())),
    }
}

/// Hosts that serve everybody, each with an account of his own: there, a
/// credential that the agent brings along is somebody's way to take data out.
const EVERYBODYS: [&str; 34] = [
    "api.anthropic.com",
    "api.openai.com",
    "generativelanguage.googleapis.com",
    "api.mistral.ai",
    "api.groq.com",
    "openrouter.ai",
    "huggingface.co",
    "github.com",
    "api.github.com",
    "uploads.github.com",
    "gist.github.com",
    "gitlab.com",
    "bitbucket.org",
    "api.bitbucket.org",
    "codeberg.org",
    "storage.googleapis.com",
    "www.googleapis.com",
    "amazonaws.com",
    "blob.core.windows.net",
    "r2.cloudflarestorage.com",
    "digitaloceanspaces.com",
    "api.dropboxapi.com",
    "content.dropboxapi.com",
    "pastebin.com",
    "api.telegram.org",
    "slack.com",
    "hooks.slack.com",
    "discord.com",
    "api.notion.com",
    "api.airtable.com",
    "upload.pypi.org",
    "registry.npmjs.org",
    "crates.io",
    "webhook.site",
];

/// Is it one of them?
#[must_use]
pub fn is_everybodys(host: &Host) -> bool {
    EVERYBODYS
        .iter()
        .any(|known| host.as_str().strip_suffix(known).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_granted_models_one_path_passes() {
        let granted = |name: &str| (name == "m").then_some(Wire::AnthropicMessages);
        let of = |method: &Method, path| model_of(method, path, granted);
        assert_eq!(of(&Method::POST, "/m/v1/messages"), Ok("m"));
        for (method, path, why) in [
            (Method::GET, "/m/v1/messages", Refusal::Method),
            (Method::POST, "/m/v1/messages/", Refusal::NotAModelCall),
            (Method::POST, "/m/v1/messages/../files", Refusal::NotAModelCall),
            (Method::POST, "/m/v1/models", Refusal::NotAModelCall),
            (Method::POST, "/m", Refusal::NotAModelCall),
            (Method::POST, "//v1/messages", Refusal::Model),
            (Method::POST, "/other/v1/messages", Refusal::Model),
            (Method::POST, "http://x/m/v1/messages", Refusal::NotAModelCall),
        ] {
            assert_eq!(of(&method, path), Err(why), "{method} {path}");
        }
    }

    fn permitted(text: &str) -> Vec<Permitted> {
        serde_json::from_str(text).unwrap()
    }

    const TWO: &str = r#"[
        {"name":"read","version":1,"connection":{"targets":[{"host":"api.example.com","methods":["GET"]}],"attach":{"kind":"header"}}},
        {"name":"charge","version":1,"connection":{"targets":[{"host":"api.example.com","port":8443,"paths":["/v1/charges"]}],"attach":{"kind":"header"}}}
    ]"#;

    #[test]
    fn the_destination_chooses_the_credential() {
        let connections = permitted(TWO);
        let closed = Policy::default();
        let open: Policy = serde_json::from_str(r#"{"mode":"open"}"#).unwrap();
        let decided = |policy: &Policy, host: &str, method, path, named| {
            let host: Host = host.parse().unwrap();
            let verdict =
                decide(policy, &connections, Asked { host: &host, method, path, whole: path, named, placed: false });
            match verdict {
                Ok(Verdict::With(one, port)) => format!("{}:{port}", one.name),
                Ok(Verdict::Plain(_)) => "plain".to_owned(),
                Err(refusal) => refusal.word().to_owned(),
            }
        };
        for (policy, host, method, path, named, want) in [
            (&closed, "api.example.com", "GET", "/x", None, "read:443"),
            (&closed, "api.example.com", "POST", "/v1/charges/1", None, "charge:8443"),
            (&closed, "api.example.com", "GET", "/v1/charges", None, "connection_ambiguous"),
            (&closed, "api.example.com", "GET", "/v1/charges", Some("charge"), "charge:8443"),
            (&closed, "api.example.com", "POST", "/v1/charges", Some("read"), "not_covered"),
            (&closed, "api.example.com", "GET", "/x", Some("other"), "connection_not_granted"),
            (&closed, "api.example.com", "POST", "/x", None, "not_covered"),
            (&open, "api.example.com", "POST", "/x", None, "plain"),
            (&closed, "www.example.com", "GET", "/x", None, "host_not_allowed"),
            (&closed, "www.example.com", "GET", "/x", Some("read"), "connection_not_granted"),
            (&open, "www.example.com", "GET", "/x", None, "plain"),
            (&open, "www.example.com", "TRACE", "/x", None, "method_not_passed"),
            (&open, "www.example.com", "get", "/x", None, "method_not_passed"),
            (&closed, "api.example.com", "CONNECT", "/", None, "method_not_passed"),
        ] {
            assert_eq!(decided(policy, host, method, path, named), want, "{host} {method} {path} {named:?}");
        }
        assert!(is_ruled(&connections, &"api.example.com".parse().unwrap()));
        // Placed hosts are for who names them.
        let named: Policy = serde_json::from_str(r#"{"mode":"allow","allow":["in.example.com"]}"#).unwrap();
        let inside: Host = "in.example.com".parse().unwrap();
        assert!(may_resolve(&named, &[], &inside, true) && !may_resolve(&open, &[], &inside, true));
        let host: Host = "api.example.com".parse().unwrap();
        assert!(may_resolve(&closed, &connections, &host, true) && !may_resolve(&closed, &[], &host, false));
    }

    use proptest::prelude::*;

    proptest! {
        // Whatever is asked for: a credential goes only where a target of its
        // own says, and what has a credential can be found by name.
        #[test]
        fn what_is_attached_is_covered(
            host in prop_oneof!["(api|www|x)\\.example\\.com", "[a-z]{1,5}\\.test"],
            method in "(GET|POST|DELETE|TRACE|get)",
            path in "/(v1|v2|x)?(/charges)?(/[a-z]{0,2})?",
            named in proptest::option::of("(read|charge|other)"),
            open: bool,
        ) {
            let connections = permitted(TWO);
            let policy: Policy = serde_json::from_str(if open { r#"{"mode":"open"}"# } else { "{}" }).unwrap();
            let host: Host = host.parse().unwrap();
            let asked = Asked { host: &host, method: &method, path: &path, whole: &path, named: named.as_deref(), placed: false };
            if let Ok(Verdict::With(one, port)) = decide(&policy, &connections, asked) {
                let covered = one.connection.targets.iter().any(|target| target.is_at(&host, port) && target.takes(&method, &path));
                prop_assert!(covered && may_resolve(&policy, &connections, &host, false));
                prop_assert!(named.is_none_or(|named| named == one.name.as_str()));
            }
        }
    }

    #[test]
    fn hosts_for_everybody_are_told_by_whole_labels() {
        for (host, want) in [
            ("api.github.com", true),
            ("b.s3.amazonaws.com", true),
            ("notgithub.com", false),
            ("github.com.evil.test", false),
        ] {
            assert_eq!(is_everybodys(&host.parse().unwrap()), want, "{host}");
        }
    }
}
