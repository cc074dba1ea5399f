//! What is known of a connection before anything is asked on it: where it comes
//! from, whether it may, and whose certificate it showed.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use cloister_api::{Certified, Door, Origin, Require};
use ipnet::IpNet;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, UnixTime};
use tokio::io::AsyncRead;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::config::{Auth, Listen, MtlsRule, ProxyProtocol};
use crate::proxy::{self, NoHeader};
use crate::tls;

/// How callers come in at one listener.
pub(crate) struct Gate {
    listen: Listen,
    rules: Vec<MtlsRule>,
    require: Arc<Require>,
}

impl Gate {
    pub(crate) fn new(listen: Listen, auth: &Auth) -> Self {
        let require = Arc::new(listen.require(auth).clone());
        let rules = if listen.mtls.is_empty() { auth.mtls.clone() } else { listen.mtls.clone() };
        Self { listen, rules, require }
    }

    /// Finds out who is at the other end, before TLS. An error: not even that is
    /// talked about.
    ///
    /// `begins` says whether the connection begins like a header, without taking
    /// anything from it.
    pub(crate) async fn greet<S: AsyncRead + Unpin>(
        &self,
        stream: &mut S,
        peer: Option<IpAddr>,
        begins: bool,
    ) -> Result<Origin, NoHeader> {
        let peer = peer.map(|peer| peer.to_canonical());
        // What has no address is a socket that only its owner can open.
        let trusted = peer.is_none_or(|peer| is_in(&self.listen.trusted_proxies, peer));
        let header = match self.listen.proxy_protocol {
            _ if peer.is_none() => Some(proxy::read(stream).await?),
            ProxyProtocol::Required if trusted => Some(proxy::read(stream).await?),
            ProxyProtocol::Required => return Err(NoHeader),
            ProxyProtocol::Optional if trusted && begins => Some(proxy::read(stream).await?),
            _ => None,
        };
        let address = match &header {
            Some(header) => header.source.or(peer),
            None => peer,
        };
        let by_endpoint = self.listen.endpoint_ids.is_empty()
            || header
                .as_ref()
                .and_then(|header| header.endpoint.as_ref())
                .is_some_and(|endpoint| self.listen.endpoint_ids.contains(endpoint));
        if !by_endpoint {
            return Err(NoHeader);
        }
        let allowed = self.listen.allow.is_empty() || address.is_some_and(|address| is_in(&self.listen.allow, address));
        Ok(Origin { address, allowed, certified: None, require: self.require.clone() })
    }

    /// Must the first bytes be looked at?
    pub(crate) fn looks(&self, peer: Option<IpAddr>) -> bool {
        let trusted = peer.is_some_and(|peer| is_in(&self.listen.trusted_proxies, peer));
        trusted && self.listen.proxy_protocol == ProxyProtocol::Optional
    }

    /// Do several clients come from that address, as far as is known?
    pub(crate) fn speaks_for_many(&self, address: IpAddr) -> bool {
        address.is_loopback() || is_in(&self.listen.trusted_proxies, address)
    }

    /// Whose a certificate is, that the handshake has found to be good.
    pub(crate) fn certified(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<Certified> {
        self.rule_for(certificates).map(|(certified, _)| certified)
    }

    /// The same, with the number of the rule that says so, from 1.
    fn rule_for(&self, certificates: Option<&[CertificateDer<'_>]>) -> Option<(Certified, usize)> {
        let (_, certificate) = X509Certificate::from_der(certificates?.first()?).ok()?;
        let names = names_of(&certificate);
        let spki = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, certificate.public_key().raw);
        let spki: String = spki.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        for (at, rule) in self.rules.iter().enumerate() {
            if rule.spki.as_ref().is_some_and(|pin| !pin.eq_ignore_ascii_case(&spki)) {
                continue;
            }
            if let Some(name) = names.iter().find(|name| fits(&rule.san, name)) {
                let caller = rule.caller.clone().unwrap_or_else(|| name.clone());
                let ends = certificate.validity().not_after.timestamp() as f64;
                return Some((Certified { caller, role: rule.role, ends }, at + 1));
            }
        }
        None
    }
}

impl Door for Gate {
    fn address(&self) -> SocketAddr {
        self.listen.address
    }

    fn require(&self) -> &Require {
        &self.require
    }

    fn links(&self, endpoint: Option<&str>) -> Option<(bool, String)> {
        let known = &self.listen.endpoint_ids;
        (!known.is_empty()).then(|| match endpoint {
            Some(one) if known.iter().any(|known| known == one) => (true, format!("{one} is in listen.endpoint_ids")),
            Some(one) => (false, format!("{one} is not in listen.endpoint_ids: nothing is answered")),
            None => (false, "only calls over one of listen.endpoint_ids are answered".into()),
        })
    }

    fn admits(&self, address: IpAddr) -> (bool, String) {
        let Listen { allow, .. } = &self.listen;
        if allow.is_empty() {
            return (true, "listen.allow names no network: every address may call".into());
        }
        let address = address.to_canonical();
        match allow.iter().find(|network| network.contains(&address)) {
            Some(network) => (true, format!("{address} is in {network} of listen.allow")),
            None => (false, format!("{address} is in no network of listen.allow")),
        }
    }

    fn certifies(&self, pem: &str) -> Result<(Option<Certified>, String), String> {
        let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        let chain = chain.map_err(|error| format!("it is no certificate in PEM: {error}"))?;
        let (first, others) = chain.split_first().ok_or("there is no certificate in it")?;
        let verifier = tls::client_verifier(&self.listen, true).map_err(|error| error.to_string())?;
        let Some(tls::Verifier { verifier, .. }) = verifier else {
            return Ok((None, "listen.client_ca names no authority, so that it is not looked at".into()));
        };
        let verified = verifier.verify_client_cert(first, others, UnixTime::now());
        verified.map_err(|error| format!("the handshake refuses it: {error}"))?;
        let rules = if self.listen.mtls.is_empty() { "auth.mtls" } else { "the listener's mtls" };
        Ok(match self.rule_for(Some(&chain)) {
            Some((certified, at)) => (Some(certified), format!("it is good, and fits rule {at} of {rules}")),
            None => (None, format!("it is good, and fits no rule of {rules}")),
        })
    }
}

fn is_in(networks: &[IpNet], address: IpAddr) -> bool {
    networks.iter().any(|network| network.contains(&address.to_canonical()))
}

/// The names that a certificate speaks for: its alternative ones, and the common
/// one only if it has none of those (RFC 6125, 6.4.4).
fn names_of(certificate: &X509Certificate<'_>) -> Vec<String> {
    let alternative = certificate.subject_alternative_name().ok().flatten();
    let Some(alternative) = alternative else {
        let common = certificate.subject().iter_common_name().filter_map(|name| name.as_str().ok());
        return common.map(str::to_owned).collect();
    };
    let names = alternative.value.general_names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        GeneralName::RFC822Name(name) | GeneralName::URI(name) => Some((*name).to_owned()),
        _ => None,
    });
    names.collect()
}

/// Does a name fit what a rule says?
fn fits(rule: &str, name: &str) -> bool {
    match rule.split_once('*') {
        None => rule.eq_ignore_ascii_case(name),
        // One label, and not an empty one.
        Some(("", rest)) if rest.starts_with('.') => name
            .get(name.len().saturating_sub(rest.len())..)
            .filter(|end| end.eq_ignore_ascii_case(rest))
            .is_some_and(|_| {
                let label = &name[..name.len() - rest.len()];
                !label.is_empty() && !label.contains('.')
            }),
        Some((start, "")) if start.contains("://") => name.len() > start.len() && name.starts_with(start),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_whole_or_in_one_place() {
        for (rule, name, expected) in [
            ("ci.example.com", "CI.example.com", true),
            ("ci.example.com", "ci.example.com.evil.test", false),
            ("*.example.com", "ci.example.com", true),
            ("*.example.com", "a.b.example.com", false),
            ("*.example.com", ".example.com", false),
            ("*.example.com", "example.com", false),
            ("spiffe://org/ns/*", "spiffe://org/ns/ci", true),
            ("spiffe://org/ns/*", "spiffe://org/ns/", false),
            ("spiffe://org/ns/*", "spiffe://other/ns/ci", false),
            ("c*.example.com", "ci.example.com", false),
        ] {
            assert_eq!(fits(rule, name), expected, "{rule} {name}");
        }
    }

    #[test]
    fn a_network_holds_its_addresses_however_they_are_written() {
        let networks = ["10.0.0.0/8".parse().unwrap(), "2001:db8::/32".parse().unwrap()];
        for (address, expected) in
            [("10.1.2.3", true), ("::ffff:10.1.2.3", true), ("11.0.0.1", false), ("2001:db8::1", true), ("::1", false)]
        {
            assert_eq!(is_in(&networks, address.parse().unwrap()), expected, "{address}");
        }
    }
}
