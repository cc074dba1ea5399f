//! A session's own certificate authority. It answers for every host that the
//! session may reach, to the session alone, and only here is its key.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use cloister_types::Host;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::ServerConfig;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// Hosts for which that is kept.
const KEPT: usize = 512;

/// What does not come about.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityError {
    /// The key's bytes are none.
    #[error("the session's key is not one")]
    Key,
    /// A certificate cannot be made.
    #[error("{0}")]
    Certificate(#[from] rcgen::Error),
    /// The library's.
    #[error("{0}")]
    Tls(#[from] rustls::Error),
}

/// A session's authority.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// One key for all hosts: they are all us.
    key: KeyPair,
    signing: Arc<dyn rustls::sign::SigningKey>,
    /// How to speak TLS about each host: what all connections about it share.
    made: Mutex<VecDeque<(Host, Arc<ServerConfig>)>>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

/// PKCS #8 (RFC 5208) of a P-256 key with this scalar. The public half is left
/// out; whoever reads it works it out.
fn pkcs8(scalar: &[u8; 32]) -> Vec<u8> {
    const HEAD: [u8; 35] = [
        0x30, 0x41, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08,
        0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x27, 0x30, 0x25, 0x02, 0x01, 0x01, 0x04, 0x20,
    ];
    [&HEAD[..], scalar].concat()
}

impl Authority {
    /// The authority that follows from a seed: the same key for the same seed,
    /// so that programs that trust it go on trusting it when this process is
    /// replaced.
    ///
    /// # Errors
    /// One seed in 2^32 is no key.
    pub(crate) fn from_seed(seed: &[u8]) -> Result<Self, AuthorityError> {
        let scalar: &[u8; 32] = seed.try_into().map_err(|_| AuthorityError::Key)?;
        let read = aws_lc_rs::signature::EcdsaKeyPair::from_private_key_der(
            &aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            &pkcs8(scalar),
        );
        let whole = read.map_err(|_| AuthorityError::Key)?.to_pkcs8v1().map_err(|_| AuthorityError::Key)?;
        let ca_key = KeyPair::try_from(whole.as_ref())?;
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Cloister session");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        // A date in the past, so that clocks inside may be late.
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2049, 1, 1);
        let certificate = params.self_signed(&ca_key)?.der().clone();
        let key = KeyPair::generate()?;
        let der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::aws_lc_rs::sign::any_supported_type(&der)?;
        Ok(Self { issuer: Issuer::new(params, ca_key), certificate, key, signing, made: Mutex::default() })
    }

    /// Its certificate, in PEM.
    #[must_use]
    pub(crate) fn pem(&self) -> String {
        use base64::Engine;
        let text = base64::engine::general_purpose::STANDARD.encode(&self.certificate);
        let lines: Vec<&str> = text.as_bytes().chunks(64).filter_map(|line| std::str::from_utf8(line).ok()).collect();
        format!("-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n", lines.join("\n"))
    }

    /// Its certificate, as a key store of Java's (JKS, version 2, one entry).
    /// Java checks the digest at the end only if it is given a password, and it
    /// is given none for the authorities that it trusts.
    #[must_use]
    pub(crate) fn java_store(&self) -> Vec<u8> {
        let mut store = Vec::new();
        let text = |store: &mut Vec<u8>, text: &str| {
            store.extend((text.len() as u16).to_be_bytes());
            store.extend(text.as_bytes());
        };
        store.extend(0xfeed_feed_u32.to_be_bytes());
        for word in [2_u32, 1, 2] {
            store.extend(word.to_be_bytes());
        }
        text(&mut store, "cloister");
        store.extend(1_704_067_200_000_u64.to_be_bytes());
        text(&mut store, "X.509");
        store.extend((self.certificate.len() as u32).to_be_bytes());
        store.extend(self.certificate.iter());
        // The digest of Java's own format.
        let mut digested: Vec<u8> = "changeit".encode_utf16().flat_map(u16::to_be_bytes).collect();
        digested.extend(b"Mighty Aphrodite");
        digested.extend(&store);
        store.extend(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, &digested).as_ref());
        store
    }

    /// A certificate for a host that the session may reach.
    fn certificate_for(&self, host: &Host) -> Result<Arc<CertifiedKey>, AuthorityError> {
        let mut params = CertificateParams::default();
        params.distinguished_name = name("Cloister");
        params.subject_alt_names = vec![SanType::DnsName(host.as_str().try_into()?)];
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = rcgen::date_time_ymd(2024, 1, 1);
        params.not_after = rcgen::date_time_ymd(2049, 1, 1);
        let mut serial = [0; 16];
        aws_lc_rs::rand::fill(&mut serial).map_err(|_| AuthorityError::Key)?;
        serial[0] &= 0x7f;
        params.serial_number = Some(SerialNumber::from_slice(&serial));
        let leaf = params.signed_by(&self.key, &self.issuer)?.der().clone();
        Ok(Arc::new(CertifiedKey::new(vec![leaf, self.certificate.clone()], self.signing.clone())))
    }

    /// How to speak TLS with the session about one host.
    ///
    /// # Errors
    /// The certificate cannot be made.
    pub(crate) fn server_config(&self, host: &Host) -> Result<Arc<ServerConfig>, AuthorityError> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, config)) = made.iter().find(|(of, _)| of == host) {
            return Ok(config.clone());
        }
        let certificate = self.certificate_for(host)?;
        let builder = ServerConfig::builder_with_provider(cloister_dial::provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?;
        let mut config = builder.with_no_client_auth().with_cert_resolver(Arc::new(Only(certificate)));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        // The name was looked at before the handshake; a resumed one skips that.
        config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        let config = Arc::new(config);
        if made.len() >= KEPT {
            made.pop_front();
        }
        made.push_back((host.clone(), config.clone()));
        Ok(config)
    }
}

fn name(text: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, text);
    name
}

/// The certificate of the one host that a connection is about.
#[derive(Debug)]
struct Only(Arc<CertifiedKey>);

impl ResolvesServerCert for Only {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_is_the_same_authority() {
        let (one, again) = (Authority::from_seed(&[7; 32]).unwrap(), Authority::from_seed(&[7; 32]).unwrap());
        let host: Host = "api.example.com".parse().unwrap();
        // What the new one signs, whoever trusts the old one trusts.
        let mut roots = rustls::RootCertStore::empty();
        roots.add(one.certificate.clone()).unwrap();
        let leaf = again.certificate_for(&host).unwrap();
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), cloister_dial::provider());
        let verify = |name: &str| {
            use rustls::client::danger::ServerCertVerifier;
            let verifier = verifier.clone().build().unwrap();
            let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
            verifier
                .verify_server_cert(&leaf.cert[0], &leaf.cert[1..], &name, &[], rustls::pki_types::UnixTime::now())
                .is_ok()
        };
        assert!(verify("api.example.com") && !verify("other.example.com"));
        assert!(Authority::from_seed(&[8; 32]).unwrap().certificate != one.certificate);
        assert!(Authority::from_seed(&[0; 32]).is_err() && Authority::from_seed(&[0xff; 32]).is_err());
        assert!(one.pem().starts_with("-----BEGIN CERTIFICATE-----\nMII"));
    }
}
