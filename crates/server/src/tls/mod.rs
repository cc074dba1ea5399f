//! TLS: 1.2 and 1.3, HTTP/1.1 and HTTP/2, certificates from files that may
//! change at any time.

#[cfg_attr(not(feature = "acme"), path = "no_acme.rs")]
pub(crate) mod acme;

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime};

use cloister_api::{Require, Scheme};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{Acceptor, ClientHello, NoServerSessionStorage, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio_rustls::server::TlsStream;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor};
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use crate::ServerError;
use crate::config::Listen;

/// HTTP/2, as it is called when a protocol is agreed on (RFC 7301).
pub(crate) const HTTP2: &[u8] = b"h2";
/// Between looks at the files.
const LOOK: Duration = Duration::from_secs(1);

/// Who answers some handshakes in a way of its own.
pub(crate) type Answers = Arc<dyn Fn(&ClientHello<'_>) -> Option<Arc<ServerConfig>> + Send + Sync>;

/// How connections are secured.
#[derive(Clone)]
pub(crate) struct Tls {
    /// At present; none while the first certificate is on its way.
    config: Arc<RwLock<Option<Arc<ServerConfig>>>>,
    answers: Option<Answers>,
}

impl Tls {
    /// From a configuration's files; none if it has no certificate. Whoever changes
    /// the files is heard within a second or two: new connections have the new
    /// ones, those that cannot be used are said and left. With somebody who
    /// answers, the certificate may be missing yet.
    pub(crate) fn open(
        listen: &Listen,
        require: &Require,
        answers: Option<Answers>,
    ) -> Result<Option<Self>, ServerError> {
        let (Some(certificate), Some(key)) = (listen.tls_cert.clone(), listen.tls_key.clone()) else {
            return Ok(None);
        };
        let files = Files { certificate, key, listen: listen.clone(), require: require.clone() };
        let mut seen = files.stamps();
        let mut ends = None;
        let first = match files.config() {
            Ok((config, next)) => {
                ends = next;
                Some(config)
            }
            Err(error) if answers.is_none() => return Err(error),
            Err(error) => {
                // Whoever answers gets another certificate, but no other authorities of clients.
                client_verifier(listen, true)?;
                tracing::warn!(%error, "there is no certificate yet");
                None
            }
        };
        let tls = Self { config: Arc::new(RwLock::new(first)), answers };
        let kept = Arc::downgrade(&tls.config);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK).await;
                let Some(kept) = kept.upgrade() else { return };
                if ends.is_some_and(|ends| ends < UnixTime::now().as_secs().cast_signed()) {
                    ends = None;
                    tracing::error!(
                        "a list in listen.client_crl is past its nextUpdate: certificates of its authority are refused"
                    );
                }
                let now = files.stamps();
                if now == seen {
                    continue;
                }
                match files.config() {
                    Ok((config, next)) => {
                        ends = next;
                        *kept.write().unwrap_or_else(PoisonError::into_inner) = Some(config);
                        tracing::info!("new certificates are in use");
                        seen = now;
                    }
                    // Half of a change, perhaps: the other half is waited for.
                    Err(error) => tracing::warn!(%error, "the new certificates are not used"),
                }
            }
        });
        Ok(Some(tls))
    }

    /// Shakes hands; none with whoever wanted no more than that.
    pub(crate) async fn accept<S>(&self, socket: S) -> io::Result<Option<TlsStream<S>>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let none = || io::Error::other("there is no certificate yet");
        let config = || self.config.read().unwrap_or_else(PoisonError::into_inner).clone().ok_or_else(none);
        let Some(answers) = &self.answers else {
            return TlsAcceptor::from(config()?).accept(socket).await.map(Some);
        };
        let hello = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let answer = answers(&hello.client_hello());
        match answer {
            Some(config) => {
                hello.into_stream(config).await?.shutdown().await?;
                Ok(None)
            }
            None => hello.into_stream(config()?).await.map(Some),
        }
    }
}

/// The files that connections are secured with.
struct Files {
    certificate: PathBuf,
    key: PathBuf,
    listen: Listen,
    require: Require,
}

impl Files {
    /// When each of the files was changed, and how long it is.
    fn stamps(&self) -> Vec<Option<(SystemTime, u64)>> {
        let Listen { client_ca, client_crl, .. } = &self.listen;
        let stamp = |path: &PathBuf| {
            let about = std::fs::metadata(path).ok()?;
            Some((about.modified().ok()?, about.len()))
        };
        let files = [Some(&self.certificate), Some(&self.key), client_ca.as_ref(), client_crl.as_ref()];
        files.into_iter().map(|path| path.and_then(stamp)).collect()
    }

    /// What they come to, and until when (Unix seconds) no list of the revoked is too old.
    fn config(&self) -> Result<(Arc<ServerConfig>, Option<i64>), ServerError> {
        let chain = certificates(&self.certificate)?;
        let key = PrivateKeyDer::from_pem_file(&self.key).map_err(|error| bad(&self.key, &error))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|error| ServerError::Start(error.to_string()))?;
        // Where nobody comes in without one, the handshake says so.
        let optional = !self.require.0.iter().all(|all| all.contains(&Scheme::Mtls));
        let (builder, ends) = match client_verifier(&self.listen, optional)? {
            None => (builder.with_no_client_auth(), None),
            Some(Verifier { verifier, ends }) => (builder.with_client_cert_verifier(verifier), ends),
        };
        let mut config = builder.with_single_cert(chain, key).map_err(|error| bad(&self.certificate, &error))?;
        config.alpn_protocols = vec![HTTP2.to_vec(), b"http/1.1".to_vec()];
        if self.listen.client_crl.is_some() {
            // Whoever goes on with an earlier handshake shows no certificate again: who has
            // been revoked since would not be found out.
            config.session_storage = Arc::new(NoServerSessionStorage {});
            config.send_tls13_tickets = 0;
        }
        Ok((Arc::new(config), ends))
    }
}

fn bad(path: &Path, error: &dyn std::fmt::Display) -> ServerError {
    ServerError::Config(format!("{}: {error}", path.display()))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ServerError> {
    let found: Vec<_> =
        CertificateDer::pem_file_iter(path).and_then(Iterator::collect).map_err(|error| bad(path, &error))?;
    if found.is_empty() { Err(bad(path, &"no certificate in it")) } else { Ok(found) }
}

/// A file's lists of revoked certificates, and when the first of them ends (Unix
/// seconds). There is one at least, and one at most of each authority: of several, the
/// first alone would count.
fn revoked(path: &Path) -> Result<(Vec<CertificateRevocationListDer<'static>>, Option<i64>), ServerError> {
    let lists = CertificateRevocationListDer::pem_file_iter(path).and_then(Iterator::collect);
    let lists: Vec<CertificateRevocationListDer<'static>> = lists.map_err(|error| bad(path, &error))?;
    let (mut issuers, mut ends) = (HashSet::new(), None);
    for list in &lists {
        let (_, list) = CertificateRevocationList::from_der(list).map_err(|error| bad(path, &error))?;
        if !issuers.insert(list.issuer().as_raw().to_vec()) {
            return Err(bad(path, &"two lists of one authority in it: leave the newest"));
        }
        let next = list.next_update().map(|next| next.timestamp());
        ends = ends.into_iter().chain(next).min();
    }
    if lists.is_empty() { Err(bad(path, &"no list of revoked certificates in it")) } else { Ok((lists, ends)) }
}

/// What finds out whether a client's certificate is good.
pub(crate) struct Verifier {
    pub(crate) verifier: Arc<dyn ClientCertVerifier>,
    /// Until when (Unix seconds) none of its lists of the revoked is too old.
    ends: Option<i64>,
}

/// That of a listener; none if no certificate is asked for.
pub(crate) fn client_verifier(listen: &Listen, optional: bool) -> Result<Option<Verifier>, ServerError> {
    let Some(path) = &listen.client_ca else { return Ok(None) };
    let mut ends = None;
    let mut roots = RootCertStore::empty();
    for authority in certificates(path)? {
        roots.add(authority).map_err(|error| bad(path, &error))?;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
    if let Some(path) = &listen.client_crl {
        let (lists, first) = revoked(path)?;
        ends = first;
        // What was revoked since a list should have been replaced, nobody knows.
        verifier = verifier.with_crls(lists).only_check_end_entity_revocation().enforce_revocation_expiration();
    }
    if optional {
        verifier = verifier.allow_unauthenticated();
    }
    let verifier = verifier.build().map_err(|error| bad(path, &error))?;
    Ok(Some(Verifier { verifier, ends }))
}
