//! `[listen]` and `[[listener]]`: how callers come in.

use std::net::SocketAddr;
use std::path::PathBuf;

use cloister_api::{Require, Scheme};
use cloister_types::Host;
use ipnet::IpNet;
use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

use super::{Auth, MtlsRule};

/// `[listen]`, where an address alone is one as well; or one of `[[listener]]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Listen {
    /// Where the API listens.
    pub address: SocketAddr,
    /// PEM file, the server's certificate first. Without one, plain HTTP, which is
    /// for loopback alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_cert: Option<PathBuf>,
    /// PEM file of its key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tls_key: Option<PathBuf>,
    /// Certificates that the server gets by itself, instead of those files.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub acme: Option<Acme>,
    /// PEM file of authorities whose client certificates are taken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_ca: Option<PathBuf>,
    /// PEM file of their lists of revoked certificates.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_crl: Option<PathBuf>,
    /// Networks that may call; all if none is named.
    #[serde(deserialize_with = "networks", skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<IpNet>,
    /// Do balancers in front say who calls (PROXY protocol, version 1 or 2)?
    pub proxy_protocol: ProxyProtocol,
    /// Networks of those balancers; nobody else is believed.
    #[serde(deserialize_with = "networks", skip_serializing_if = "Vec::is_empty")]
    pub trusted_proxies: Vec<IpNet>,
    /// Endpoints of a cloud's private link that may call, by its own ids: `vpce-...`,
    /// or the number of Azure or Google. Nobody else may then.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub endpoint_ids: Vec<String>,
    /// Which schemes suffice here, if not those of `auth.require`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub require: Option<Require>,
    /// Whose a client certificate is here, if not by `auth.mtls`; the first that fits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mtls: Vec<MtlsRule>,
}

/// `[listen.acme]`: an authority that gives certificates to whoever shows that they
/// hold a name (RFC 8555), by a handshake on port 443 (RFC 8737).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Acme {
    /// The names of the certificate. Whoever asks for one of them at port 443 must
    /// end here.
    pub hosts: Vec<Host>,
    /// Where the authority may write to, such as `mailto:ops@example.com`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub contact: Vec<String>,
    /// URL of the authority's directory. Whoever names it agrees to its terms.
    pub directory: String,
    /// PEM file of authorities to trust besides the machine's, when it is asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra_ca: Option<PathBuf>,
}

/// Is a header expected before anything else?
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ProxyProtocol {
    /// No.
    #[default]
    Off,
    /// From trusted proxies that send one.
    Optional,
    /// Always, and from trusted proxies alone.
    Required,
}

impl Default for Listen {
    fn default() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 8420)),
            tls_cert: None,
            tls_key: None,
            acme: None,
            client_ca: None,
            client_crl: None,
            allow: Vec::new(),
            proxy_protocol: ProxyProtocol::Off,
            trusted_proxies: Vec::new(),
            endpoint_ids: Vec::new(),
            require: None,
            mtls: Vec::new(),
        }
    }
}

/// Networks; an address alone is one of one address.
fn networks<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<IpNet>, D::Error> {
    let parse = |text: &String| {
        let parsed = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
        parsed.map(|network| network.trunc()).map_err(|_| {
            serde::de::Error::custom(format!("{text:?} is not a network such as 10.0.0.0/8 or 2001:db8::/32"))
        })
    };
    Vec::<String>::deserialize(deserializer)?.iter().map(parse).collect()
}

/// The table, or an address alone.
pub(super) fn address_or_table<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Listen, D::Error> {
    struct Either;

    impl<'de> Visitor<'de> for Either {
        type Value = Listen;

        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an address such as 0.0.0.0:8443, or a table")
        }

        fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Listen, E> {
            let address = text.parse().map_err(|_| E::custom(format!("{text:?} is not ip:port")))?;
            Ok(Listen { address, ..Listen::default() })
        }

        fn visit_map<M: MapAccess<'de>>(self, map: M) -> Result<Listen, M::Error> {
            Listen::deserialize(MapAccessDeserializer::new(map))
        }
    }

    deserializer.deserialize_any(Either)
}

impl Acme {
    /// Says what is wrong first.
    pub(super) fn check(&self, listen: &Listen) -> Result<(), String> {
        if listen.tls_cert.is_some() {
            return Err("listen.acme gets certificates: leave listen.tls_cert and listen.tls_key out".into());
        }
        if self.hosts.is_empty() {
            return Err("listen.acme.hosts names no host".into());
        }
        if !self.directory.starts_with("https://") {
            return Err(format!("listen.acme.directory: {:?} is no https:// URL", self.directory));
        }
        if !listen.endpoint_ids.is_empty() {
            return Err("listen.acme: its authority does not come over one of listen.endpoint_ids".into());
        }
        Ok(())
    }
}

impl Listen {
    /// Its files.
    pub(super) fn paths(&mut self) -> impl Iterator<Item = &mut PathBuf> {
        let Self { tls_cert, tls_key, acme, client_ca, client_crl, .. } = self;
        let extra_ca = acme.as_mut().and_then(|acme| acme.extra_ca.as_mut());
        [tls_cert, tls_key, client_ca, client_crl].into_iter().flatten().chain(extra_ca)
    }

    /// Which schemes suffice here.
    pub(crate) fn require<'a>(&'a self, auth: &'a Auth) -> &'a Require {
        self.require.as_ref().unwrap_or(&auth.require)
    }

    /// Has what it does not say of certificates from the first one.
    pub(super) fn like(mut self, first: &Self, auth: &Auth) -> Self {
        if !self.is_secure() && self.tls_key.is_none() {
            (self.tls_cert, self.tls_key) = (first.tls_cert.clone(), first.tls_key.clone());
            self.acme.clone_from(&first.acme);
        }
        // Nobody is asked for a certificate where none counts.
        let counts = self.require(auth).names(Scheme::Mtls);
        if counts && (self.client_ca.is_none() || self.client_ca == first.client_ca) {
            self.client_ca.clone_from(&first.client_ca);
            self.client_crl = self.client_crl.or_else(|| first.client_crl.clone());
            if self.mtls.is_empty() {
                self.mtls.clone_from(&first.mtls);
            }
        }
        self
    }

    /// Whose certificates the rules of `auth.mtls` are about here, if they count here.
    pub(super) fn authorities(&self) -> Option<&PathBuf> {
        self.client_ca.as_ref().filter(|_| self.mtls.is_empty())
    }

    /// Is there TLS?
    pub(super) fn is_secure(&self) -> bool {
        self.tls_cert.is_some() || self.acme.is_some()
    }

    /// Says what is wrong first.
    pub(super) fn check(&self, auth: &Auth) -> Result<(), String> {
        if self.tls_cert.is_some() != self.tls_key.is_some() {
            return Err("listen.tls_cert and listen.tls_key go together".into());
        }
        if !self.is_secure() && (self.client_ca.is_some() || self.client_crl.is_some()) {
            return Err("client certificates need TLS: set listen.tls_cert and listen.tls_key".into());
        }
        if self.client_crl.is_some() && self.client_ca.is_none() {
            return Err("listen.client_crl is of the authorities in listen.client_ca".into());
        }
        if self.proxy_protocol == ProxyProtocol::Off && !self.endpoint_ids.is_empty() {
            return Err("listen.endpoint_ids come with listen.proxy_protocol = \"required\"".into());
        }
        if self.proxy_protocol == ProxyProtocol::Optional && !self.endpoint_ids.is_empty() {
            return Err("with listen.endpoint_ids, listen.proxy_protocol must be \"required\"".into());
        }
        if self.proxy_protocol != ProxyProtocol::Off && self.trusted_proxies.is_empty() {
            return Err("listen.proxy_protocol needs listen.trusted_proxies: whom to believe".into());
        }
        self.mtls.iter().try_for_each(MtlsRule::check)?;
        let require = self.require(auth);
        require.check()?;
        if require.names(Scheme::Mtls) && self.client_ca.is_none() {
            return Err("auth.require has mtls, and listen.client_ca names no authority".into());
        }
        if require.names(Scheme::Sso) && auth.oidc.is_none() {
            return Err("auth.require has sso, and auth.oidc names no identity provider".into());
        }
        Ok(())
    }
}
