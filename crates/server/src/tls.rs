//! TLS: 1.2 and 1.3, HTTP/1.1 and HTTP/2, certificates from files that may
//! change at any time.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use cloister_api::{Require, Scheme};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio_rustls::TlsAcceptor;

use crate::ServerError;
use crate::config::Listen;

/// HTTP/2, as it is called when a protocol is agreed on (RFC 7301).
pub(crate) const HTTP2: &[u8] = b"h2";
/// Between looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// How connections are secured at present.
#[derive(Clone)]
pub(crate) struct Tls(Arc<RwLock<TlsAcceptor>>);

impl Tls {
    /// From a configuration's files; none without a certificate. Whoever changes
    /// the files is heard within a second or two: new connections have the new
    /// ones, those that cannot be used are said and left.
    pub(crate) fn open(listen: &Listen, require: &Require) -> Result<Option<Self>, ServerError> {
        let Some(first) = acceptor(listen, require)? else { return Ok(None) };
        let tls = Self(Arc::new(RwLock::new(first)));
        let (kept, listen, require) = (Arc::downgrade(&tls.0), listen.clone(), require.clone());
        let mut seen = stamps(&listen);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(kept) = kept.upgrade() else { return };
                let now = stamps(&listen);
                if now == seen {
                    continue;
                }
                match acceptor(&listen, &require) {
                    Ok(Some(acceptor)) => {
                        *kept.write().unwrap_or_else(PoisonError::into_inner) = acceptor;
                        tracing::info!("new certificates are in use");
                        seen = now;
                    }
                    // Half of a change, perhaps: the other half is waited for.
                    Ok(None) => {}
                    Err(error) => tracing::warn!(%error, "the new certificates are not used"),
                }
            }
        });
        Ok(Some(tls))
    }

    pub(crate) fn acceptor(&self) -> TlsAcceptor {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// When each of the files was changed, and how long it is.
fn stamps(listen: &Listen) -> Vec<Option<(SystemTime, u64)>> {
    let files = [&listen.tls_cert, &listen.tls_key, &listen.client_ca, &listen.client_crl];
    let stamp = |path: &PathBuf| {
        let about = std::fs::metadata(path).ok()?;
        Some((about.modified().ok()?, about.len()))
    };
    files.into_iter().map(|path| path.as_ref().and_then(stamp)).collect()
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> ServerError {
    ServerError::Config(format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| bad(path, &error))?;
    if found.is_empty() { Err(bad(path, &"no certificate in it")) } else { Ok(found) }
}

fn acceptor(listen: &Listen, require: &Require) -> Result<Option<TlsAcceptor>, ServerError> {
    let (Some(certificate), Some(key_file)) = (&listen.tls_cert, &listen.tls_key) else { return Ok(None) };
    let chain = certificates(certificate)?;
    let key = PrivateKeyDer::from_pem_file(key_file).map_err(|error| bad(key_file, &error))?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
        .map_err(|error| ServerError::Start(error.to_string()))?;
    // Where nobody comes in without one, the handshake says so.
    let optional = !require.0.iter().all(|all| all.contains(&Scheme::Mtls));
    let builder = match client_verifier(listen, optional)? {
        None => builder.with_no_client_auth(),
        Some(verifier) => builder.with_client_cert_verifier(verifier),
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|error| bad(certificate, &error))?;
    config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// What finds out whether a client's certificate is good; none if none is asked
/// for.
pub(crate) fn client_verifier(
    listen: &Listen,
    optional: bool,
) -> Result<Option<Arc<dyn ClientCertVerifier>>, ServerError> {
    let Some(path) = &listen.client_ca else { return Ok(None) };
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| bad(path, &error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(path) = &listen.client_crl {
        let lists: Vec<_> = CertificateRevocationListDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| bad(path, &error))?;
        verifier = verifier.with_crls(lists).only_check_end_entity_revocation();
    }
    if optional {
        verifier = verifier.allow_unauthenticated();
    }
    verifier.build().map(Some).map_err(|error| bad(path, &error))
}
