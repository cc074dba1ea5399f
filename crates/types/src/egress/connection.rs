//! Connections: where a credential may go, and how it is attached.

use serde::{Deserialize, Serialize};

use super::{MOST_CONNECTIONS, VersionRecord};
use crate::host::{Host, HostPattern};

/// Name of a connection: 1 to 64 of `a-z`, `0-9`, `-` and `_`, a letter first.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(try_from = "String", into = "String")]
pub struct ConnectionName(String);

impl ConnectionName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::str::FromStr for ConnectionName {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'_';
        let fits = (1..=64).contains(&text.len()) && text.bytes().all(plain) && text.as_bytes()[0].is_ascii_lowercase();
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err("a connection's name is 1 to 64 of a-z, 0-9, - and _, a letter first")
        }
    }
}

impl TryFrom<String> for ConnectionName {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<ConnectionName> for String {
    fn from(name: ConnectionName) -> Self {
        name.0
    }
}

impl std::fmt::Display for ConnectionName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a credential may go.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// The host, or `*.domain`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub host: HostPattern,
    /// The port; 443 if left out.
    #[serde(default = "https", skip_serializing_if = "is_https")]
    pub port: u16,
    /// Paths: `/v1/charges` is that path and all below it. All if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paths: Vec<String>,
    /// Methods, upper case. All but `CONNECT`, `TRACE` and `TRACK` if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub methods: Vec<String>,
    /// The region that the target lies in. A tenant of another region does not
    /// take the connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<String>,
}

fn https() -> u16 {
    443
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's shape")]
fn is_https(port: &u16) -> bool {
    *port == 443
}

impl Target {
    /// Does it lie there?
    #[must_use]
    pub fn is_at(&self, host: &Host, port: u16) -> bool {
        self.port == port && self.host.matches(host)
    }

    /// Does it mean this request? The path is in its canonical form.
    #[must_use]
    pub fn takes(&self, method: &str, path: &str) -> bool {
        let below = |prefix: &String| {
            path.strip_prefix(prefix.trim_end_matches('/')).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        (self.paths.is_empty() || self.paths.iter().any(below))
            && (self.methods.is_empty() || self.methods.iter().any(|allowed| allowed == method))
    }
}

/// How a credential is attached to a request. `{secret}` stands for its value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Attach {
    /// A header.
    Header {
        /// Its name; `authorization` if left out.
        #[serde(default = "authorization")]
        name: String,
        /// Its value, with `{secret}` once; `Bearer {secret}` if left out.
        #[serde(default = "bearer", alias = "value")]
        template: String,
    },
    /// HTTP's basic scheme.
    Basic {
        /// The user; the credential is the password. If left out, the
        /// credential is `user:password`.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        username: Option<String>,
    },
    /// A parameter of the query.
    Query {
        /// Its name.
        name: String,
    },
    /// A cookie.
    Cookie {
        /// Its name.
        name: String,
    },
    /// A place in a JSON body.
    Body {
        /// Where: a JSON pointer (RFC 6901).
        pointer: String,
    },
    /// A text frame of ours, before any of the session's, on a WebSocket.
    WebsocketFrame {
        /// The frame, with `{secret}` once.
        template: String,
    },
    /// AWS Signature Version 4.
    Sigv4 {
        /// The service, as it stands in the signature's scope.
        service: String,
        /// The region.
        region: String,
    },
    /// A client certificate in the TLS handshake.
    ClientCertificate,
}

fn authorization() -> String {
    "authorization".to_owned()
}

fn bearer() -> String {
    "Bearer {secret}".to_owned()
}

/// What becomes of credentials that the agent itself sends to a host.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum ClientAuth {
    /// They are taken out.
    #[default]
    Strip,
    /// The request is refused.
    Deny,
    /// They pass.
    Allow,
}

/// What of an answer reaches the session, besides the scrubbing that always
/// happens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default, deny_unknown_fields)]
pub struct ResponseRules {
    /// Let cookies pass, which are credentials as a rule.
    pub cookies: bool,
    /// Let the session ask for parts of a body.
    pub ranges: bool,
    /// Let newly made tokens pass (`access_token` and its like in JSON).
    pub tokens: bool,
}

/// Body of `PUT /v1/connections/{name}`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Connection {
    /// Where the credential may go.
    pub targets: Vec<Target>,
    /// How it is attached.
    pub attach: Attach,
    /// What becomes of credentials of the agent's own.
    #[serde(default)]
    pub client_auth: ClientAuth,
    /// What of an answer passes.
    #[serde(default)]
    pub response: ResponseRules,
}

/// Most paths, and most methods, of one target; and bytes of a path.
const MOST_PATHS: usize = 64;
const LONGEST_PATH: usize = 512;

impl Target {
    /// Is everything that it means meant by another as well?
    fn is_within(&self, other: &Self) -> bool {
        let host = self.host == other.host || self.host.host().is_some_and(|host| other.host.matches(host));
        let paths = other.paths.is_empty()
            || (!self.paths.is_empty()
                && self.paths.iter().all(|path| Self { methods: Vec::new(), ..other.clone() }.takes("", path)));
        let methods = other.methods.is_empty()
            || (!self.methods.is_empty() && self.methods.iter().all(|method| other.methods.contains(method)));
        host && self.port == other.port && paths && methods
    }
}

impl Connection {
    /// May a credential that was given for `old` be used by these rules: to no
    /// place that it was not given for, attached in the same way, and with
    /// nothing more let through of what comes back?
    #[must_use]
    pub fn is_within(&self, old: &Self) -> bool {
        let ResponseRules { cookies, ranges, tokens } = self.response;
        let looser =
            (cookies && !old.response.cookies) || (ranges && !old.response.ranges) || (tokens && !old.response.tokens);
        let covered = |target: &Target| old.targets.iter().any(|known| target.is_within(known));
        self.attach == old.attach && !looser && self.targets.iter().all(covered)
    }

    /// Checks what the types do not say.
    ///
    /// # Errors
    /// What is wrong, for people.
    pub fn check(&self) -> Result<(), String> {
        if !(1..=MOST_CONNECTIONS).contains(&self.targets.len()) {
            return Err(format!("a connection has 1 to {MOST_CONNECTIONS} targets"));
        }
        for target in &self.targets {
            if target.port == 0 {
                return Err("0 is not a port".into());
            }
            if target.paths.len() > MOST_PATHS || target.methods.len() > MOST_PATHS {
                return Err(format!("a target has at most {MOST_PATHS} paths and methods"));
            }
            if target.paths.iter().any(|path| path.len() > LONGEST_PATH) {
                return Err(format!("a path has at most {LONGEST_PATH} bytes"));
            }
            for path in &target.paths {
                if !path.starts_with('/')
                    || path.contains(['?', '#', '%', '\\'])
                    || path.contains("/..")
                    || path.contains("//")
                {
                    return Err(format!("path {path:?} must begin with / and be plain: no ?, #, %, \\, // or dots"));
                }
            }
            for method in &target.methods {
                if method.is_empty() || !method.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'-') {
                    return Err(format!("method {method:?} must be upper case"));
                }
            }
        }
        let name = |text: &str| {
            !text.is_empty()
                && text.len() <= 128
                && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        };
        let one_hole = |text: &str| {
            text.matches("{secret}").count() == 1
                && text.len() <= 1024
                && text.bytes().all(|byte| (0x20..0x7f).contains(&byte))
        };
        match &self.attach {
            Attach::Header { name: header, template } => {
                let reserved =
                    ["host", "content-length", "transfer-encoding", "connection", "upgrade", "te", "trailer"];
                if !name(header) || reserved.contains(&header.to_ascii_lowercase().as_str()) {
                    return Err(format!("{header:?} is not a header that can carry a credential"));
                }
                if !one_hole(template) {
                    return Err("a header's template has {secret} in it, once, and plain characters else".into());
                }
            }
            Attach::Basic { username } => {
                if username.as_ref().is_some_and(|user| user.contains(':') || user.chars().any(char::is_control)) {
                    return Err("a user name has no colon and no control character".into());
                }
            }
            Attach::Query { name: key } | Attach::Cookie { name: key } => {
                if !name(key) {
                    return Err(format!("{key:?} is not a name of letters, digits, '-', '_' and '.'"));
                }
            }
            Attach::Body { pointer } => {
                if !pointer.starts_with('/') || pointer.len() > 256 {
                    return Err("a JSON pointer begins with / (RFC 6901)".into());
                }
            }
            Attach::WebsocketFrame { template } => {
                if template.matches("{secret}").count() != 1 || template.len() > 4096 {
                    return Err("a frame's template has {secret} in it, once".into());
                }
            }
            Attach::Sigv4 { service, region } => {
                if !name(service) || !name(region) {
                    return Err("service and region are written as in AWS's own host names".into());
                }
            }
            Attach::ClientCertificate => {}
        }
        Ok(())
    }
}

/// A connection, as read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConnectionRecord {
    /// Its name.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub name: ConnectionName,
    /// What it is.
    #[serde(flatten)]
    pub connection: Connection,
    /// Unix seconds.
    pub created_at: f64,
    /// Unix seconds.
    pub updated_at: f64,
    /// Versions of its credential, newest first. None: it has no credential yet.
    pub versions: Vec<VersionRecord>,
}

/// Answer of `POST /v1/connections/{name}/test`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TestResult {
    /// The target answered, and not with 401 or 403.
    pub ok: bool,
    /// Its status, if it answered.
    pub status: Option<u16>,
    /// The target sent the credential back. Whoever may call it there can read
    /// whatever it makes of it: choose paths that do not.
    pub reflected: bool,
    /// What happened, in words.
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_within_others_only_if_they_allow_nothing_new() {
        let connection = |targets: &str, more: &str| -> Connection {
            serde_json::from_str(&format!(r#"{{"targets":{targets},"attach":{{"kind":"header"}}{more}}}"#)).unwrap()
        };
        let old =
            connection(r#"[{"host":"*.a.example"},{"host":"b.example","paths":["/v1"],"methods":["GET","POST"]}]"#, "");
        for (targets, more, within) in [
            (r#"[{"host":"*.a.example"}]"#, "", true),
            (r#"[{"host":"x.a.example","paths":["/y"]}]"#, "", true),
            (r#"[{"host":"b.example","paths":["/v1/x"],"methods":["GET"]}]"#, "", true),
            (r#"[{"host":"b.example","paths":["/v1"]}]"#, "", false),
            (r#"[{"host":"b.example","paths":["/v2"],"methods":["GET"]}]"#, "", false),
            (r#"[{"host":"b.example","methods":["GET"]}]"#, "", false),
            (r#"[{"host":"evil.test"}]"#, "", false),
            (r#"[{"host":"x.a.example","port":8443}]"#, "", false),
            (r#"[{"host":"*.a.example"}]"#, r#","response":{"tokens":true}"#, false),
        ] {
            assert_eq!(connection(targets, more).is_within(&old), within, "{targets}{more}");
        }
    }

    #[test]
    fn targets_take_whole_segments() {
        let target: Target =
            serde_json::from_str(r#"{"host":"a.example","paths":["/v1/x"],"methods":["GET"]}"#).unwrap();
        for (method, path, takes) in [
            ("GET", "/v1/x", true),
            ("GET", "/v1/x/y", true),
            ("GET", "/v1/xy", false),
            ("GET", "/v1", false),
            ("POST", "/v1/x", false),
        ] {
            assert_eq!(target.takes(method, path), takes, "{method} {path}");
        }
        assert!(!target.is_at(&"a.example".parse().unwrap(), 444));
    }

    #[test]
    fn bad_connections_are_refused() {
        let connection = |attach: &str| -> Result<(), String> {
            let text = format!(r#"{{"targets":[{{"host":"a.example"}}],"attach":{attach}}}"#);
            serde_json::from_str::<Connection>(&text).map_err(|error| error.to_string())?.check()
        };
        assert_eq!(connection(r#"{"kind":"header"}"#), Ok(()));
        assert_eq!(connection(r#"{"kind":"header","name":"x-key","value":"{secret}"}"#), Ok(()));
        for bad in [
            r#"{"kind":"header","name":"host"}"#,
            r#"{"kind":"header","template":"no hole"}"#,
            r#"{"kind":"header","template":"{secret}{secret}"}"#,
            r#"{"kind":"header","name":"a b"}"#,
            r#"{"kind":"query","name":"a&b"}"#,
            r#"{"kind":"body","pointer":"a"}"#,
            r#"{"kind":"basic","username":"a:b"}"#,
            r#"{"kind":"other"}"#,
        ] {
            assert!(connection(bad).is_err(), "{bad}");
        }
    }
}
