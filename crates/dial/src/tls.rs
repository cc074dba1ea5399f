//! Whom we trust, and as whom we speak.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::ResolvesClientCert;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

/// Why nobody can be trusted.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file of certificates is none.
    #[error("{0}: {1}")]
    File(PathBuf, String),
    /// The library's.
    #[error("{0}")]
    Rustls(#[from] rustls::Error),
}

/// The cryptography that everything here uses.
#[must_use]
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

/// Certificates of authorities: the machine's own, and those that the operator
/// added.
#[derive(Debug, Clone)]
pub struct Roots(Arc<RootCertStore>);

impl Roots {
    /// Reads them.
    ///
    /// # Errors
    /// The operator's file cannot be read, or holds no certificate.
    pub fn read(extra: Option<&Path>) -> Result<Self, TlsError> {
        let mut store = RootCertStore::empty();
        // One that cannot be parsed is trusted by nobody; the others are.
        store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if let Some(path) = extra {
            let wrong = |why: &dyn std::fmt::Display| TlsError::File(path.to_owned(), why.to_string());
            let mut any = false;
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| wrong(&error))? {
                store.add(certificate.map_err(|error| wrong(&error))?).map_err(|error| wrong(&error))?;
                any = true;
            }
            if !any {
                return Err(wrong(&"no certificate in it"));
            }
        }
        Ok(Self(Arc::new(store)))
    }
}

/// How to speak TLS to the outside: 1.2 or 1.3, the name verified, HTTP/1.1
/// and, if wanted, HTTP/2.
///
/// # Errors
/// The library's.
pub fn client_config(
    roots: &Roots,
    identity: Option<Arc<dyn ResolvesClientCert>>,
    h2: bool,
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_root_certificates(roots.0.clone());
    let mut config = match identity {
        Some(identity) => builder.with_client_cert_resolver(identity),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = if h2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
    Ok(Arc::new(config))
}
