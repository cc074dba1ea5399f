//! Certificates from an authority that speaks ACME (RFC 8555). It asks for a name's
//! proof on the port that is served anyway (RFC 8737), also through the region's
//! door; what it gives is written to a file, from which it is read as any other.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cloister_dial::{Dialer, Failure, Https, Reach};
use cloister_types::Host;
use http::uri::Scheme;
use http::{HeaderValue, Request, header};
use http_body_util::BodyExt;
use instant_acme::{
    Account, AccountCredentials, AuthorizationStatus, BodyWrapper, BytesResponse, Challenge, ChallengeStatus,
    ChallengeType, HttpClient, Identifier, NewAccount, NewOrder, Order, OrderStatus, RetryPolicy,
};
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use serde::{Deserialize, Serialize};
use tokio::task::JoinSet;
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use super::Answers;
use crate::ServerError;
use crate::config::{Acme, Config};
use crate::files::{make_private_folder, write_private};

/// How an authority says that it wants a proof and nothing else.
const PROOF: &[u8] = b"acme-tls/1";
/// How long an authority may take to sign, once it has its proofs.
const SIGNING: RetryPolicy = RetryPolicy::new().timeout(Duration::from_secs(90));
/// Most time between questions whether it has.
const SLOWEST: Duration = Duration::from_secs(8);
/// How long an order may take.
const PATIENCE: Duration = Duration::from_secs(300);
/// Between attempts after the first, second and further failures. Authorities count
/// failures: Let's Encrypt takes five an hour.
const AGAIN: [Duration; 4] =
    [Duration::from_secs(60), Duration::from_secs(15 * 60), Duration::from_secs(3600), Duration::from_secs(6 * 3600)];
/// After so many failures in a row, the next server waits as well.
const FREE: usize = 3;
/// At least between orders that succeed, whatever the certificates say of themselves.
const REST: Duration = Duration::from_secs(600);
/// Between looks at the clock, which may be set.
const LOOK: Duration = Duration::from_secs(3600);

/// Proofs that are shown now, by host.
type Proofs = Arc<Mutex<HashMap<String, Arc<ServerConfig>>>>;

/// Gets certificates, and new ones before they end.
pub(crate) struct Orders {
    settings: Acme,
    https: Https,
    /// Certificate, chain and key.
    file: PathBuf,
    /// The account with the authority.
    account: PathBuf,
    /// For whom it has failed, and how often in a row.
    failed: PathBuf,
    proofs: Proofs,
}

/// An account, and whose.
#[derive(Serialize, Deserialize)]
struct Kept {
    directory: String,
    credentials: AccountCredentials,
}

impl Orders {
    /// As a configuration has it, which is then told where certificates are.
    ///
    /// # Errors
    /// The file of authorities cannot be read.
    pub(crate) fn of(config: &mut Config, data: &Path) -> Result<Option<Self>, ServerError> {
        let Some(settings) = config.listen.acme.clone() else { return Ok(None) };
        let folder = data.join("acme");
        let https = Https::new(Dialer::new(config.egress.hosts.clone()), Reach::Any, settings.extra_ca.as_deref());
        let https = https.map_err(|error| ServerError::Config(format!("listen.acme.extra_ca: {error}")))?;
        let file = folder.join("certificate.pem");
        config.listen.tls_cert = Some(file.clone());
        config.listen.tls_key = Some(file.clone());
        let (account, failed) = (folder.join("account.json"), folder.join("failed"));
        Ok(Some(Self { settings, https, file, account, failed, proofs: Proofs::default() }))
    }

    /// What an authority is answered that wants a proof.
    pub(crate) fn answers(&self) -> Answers {
        let proofs = self.proofs.clone();
        Arc::new(move |hello| {
            let wants_proof = hello.alpn().is_some_and(|mut all| all.next() == Some(PROOF) && all.next().is_none());
            let host = hello.server_name().filter(|_| wants_proof)?;
            proofs.lock().unwrap_or_else(PoisonError::into_inner).get(&host.to_ascii_lowercase()).cloned()
        })
    }

    /// Does so for as long as it is awaited.
    pub(crate) async fn keep(self) {
        let this = Arc::new(self);
        let directory = &this.settings.directory;
        let (mut failures, since) = this.failures();
        if failures >= FREE {
            tokio::time::sleep(AGAIN[failures.min(AGAIN.len()) - 1].saturating_sub(since)).await;
        }
        loop {
            let left = this.due();
            if left > Duration::ZERO {
                tokio::time::sleep(left.min(LOOK)).await;
                continue;
            }
            // A task of its own: whatever an authority says, the next order comes. It
            // ends with this one.
            let (mut attempt, own) = (JoinSet::new(), this.clone());
            attempt.spawn(async move { tokio::time::timeout(PATIENCE, own.order()).await });
            let ordered = attempt.join_next().await;
            this.proofs.lock().unwrap_or_else(PoisonError::into_inner).clear();
            let why = match ordered {
                Some(Ok(Ok(Ok(())))) => {
                    failures = 0;
                    let _ = std::fs::remove_file(&this.failed);
                    tracing::info!(directory, "there is a new certificate");
                    tokio::time::sleep(REST).await;
                    continue;
                }
                Some(Ok(Ok(Err(error)))) => error.to_string(),
                Some(Ok(Err(_))) => "it takes too long".into(),
                Some(Err(_)) | None => "what it says cannot be worked with".into(),
            };
            let again = AGAIN[failures.min(AGAIN.len() - 1)];
            failures += 1;
            let _ = write_private(&this.failed, format!("{failures} {}", this.whom()).as_bytes());
            tracing::error!(directory, "no new certificate: {why}; asked again in {} s", again.as_secs());
            tokio::time::sleep(again).await;
        }
    }

    /// Who is asked, and for what.
    fn whom(&self) -> String {
        let hosts: Vec<&str> = self.settings.hosts.iter().map(Host::as_str).collect();
        format!("{} {}", self.settings.directory, hosts.join(" "))
    }

    /// Failures in a row with these settings, and how long ago the last one was.
    fn failures(&self) -> (usize, Duration) {
        let text = std::fs::read_to_string(&self.failed).unwrap_or_default();
        let count = text.split_once(' ').filter(|(_, whom)| *whom == self.whom());
        let count = count.and_then(|(count, _)| count.parse().ok()).unwrap_or(0);
        let at = std::fs::metadata(&self.failed).and_then(|about| about.modified()).ok();
        (count, at.and_then(|at| at.elapsed().ok()).unwrap_or_default())
    }

    /// What the file begins with: whose the certificate is.
    fn mark(&self) -> String {
        format!("# {}\n", self.settings.directory)
    }

    /// How long the certificate serves yet: until two thirds of its time are over.
    /// Not at all if there is none of this authority's that can be used.
    fn due(&self) -> Duration {
        let text = std::fs::read_to_string(&self.file).unwrap_or_default();
        let times = if text.starts_with(&self.mark()) { self.usable(&text).ok() } else { None };
        let Some((from, to)) = times else { return Duration::ZERO };
        let renew = from.saturating_add(to.saturating_sub(from) / 3 * 2);
        Duration::from_secs(u64::try_from(renew).unwrap_or(0)).saturating_sub(unix_now())
    }

    /// From when to when a certificate serves, in Unix seconds, that stands in a text
    /// with its key; an error if it does not serve here.
    fn usable(&self, text: &str) -> Result<(i64, i64), Failure> {
        let chain = CertificateDer::pem_slice_iter(text.as_bytes()).collect::<Result<Vec<_>, _>>()?;
        let key = PrivateKeyDer::from_pem_slice(text.as_bytes())?;
        let first = chain.first().ok_or("there is no certificate in it")?.clone();
        // Says whether they belong together.
        CertifiedKey::from_der(chain, key, &rustls::crypto::aws_lc_rs::default_provider())?;
        let (_, leaf) = X509Certificate::from_der(&first)?;
        let names = leaf.subject_alternative_name()?;
        let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
        let has = |host: &Host| {
            let is_it = |name: &GeneralName<'_>| matches!(name, GeneralName::DNSName(name) if name.eq_ignore_ascii_case(host.as_str()));
            names.iter().any(is_it)
        };
        if let Some(missing) = self.settings.hosts.iter().find(|host| !has(host)) {
            return Err(format!("the certificate is not for {missing}").into());
        }
        let (from, to) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        if u64::try_from(to).unwrap_or(0) <= unix_now().as_secs() {
            return Err("the certificate has ended".into());
        }
        Ok((from, to))
    }

    async fn order(&self) -> Result<(), Failure> {
        make_private_folder(self.file.parent().unwrap_or(Path::new(".")))?;
        let hosts: Vec<_> = self.settings.hosts.iter().map(|host| Identifier::Dns(host.to_string())).collect();
        let ordered = self.account().await?.new_order(&NewOrder::new(&hosts)).await;
        if let Err(instant_acme::Error::Api(problem)) = &ordered
            && problem.r#type.as_deref() == Some("urn:ietf:params:acme:error:accountDoesNotExist")
        {
            // The next attempt makes another.
            std::fs::remove_file(&self.account)?;
        }
        let mut order = ordered?;
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            let mut authorization = authorization?;
            if authorization.status == AuthorizationStatus::Valid {
                continue;
            }
            let challenge = authorization.challenge(ChallengeType::TlsAlpn01);
            let mut challenge = challenge.ok_or("the authority asks for no proof by TLS (tls-alpn-01)")?;
            let host = challenge.identifier().to_string().to_ascii_lowercase();
            let proof = proof(&host, challenge.key_authorization().digest().as_ref())?;
            self.proofs.lock().unwrap_or_else(PoisonError::into_inner).insert(host, proof);
            challenge.set_ready().await?;
        }
        proven(&mut order).await?;
        let key = order.finalize().await?;
        let chain = order.poll_certificate(&SIGNING).await?;
        // Our key is the first that is found, whatever came with the chain.
        let text = format!("{}{key}\n{chain}", self.mark());
        self.usable(&text).map_err(|error| format!("what the authority has given is not used: {error}"))?;
        write_private(&self.file, text.as_bytes())?;
        Ok(())
    }

    /// The account with the authority, which is made if there is none yet.
    async fn account(&self) -> Result<Account, Failure> {
        let directory = &self.settings.directory;
        let builder = Account::builder_with_http(Box::new(Calls(self.https.clone())));
        if let Ok(text) = std::fs::read(&self.account) {
            let kept: Kept = serde_json::from_slice(&text)
                .map_err(|error| format!("{}: {error}; without it, a new account is made", self.account.display()))?;
            if kept.directory == *directory {
                return Ok(builder.from_credentials(kept.credentials).await?);
            }
        }
        let contact: Vec<&str> = self.settings.contact.iter().map(String::as_str).collect();
        let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
        let (account, credentials) = builder.create(&new, directory.clone(), None).await?;
        write_private(&self.account, &serde_json::to_vec(&Kept { directory: directory.clone(), credentials })?)?;
        Ok(account)
    }
}

/// Waits until the authority has its proofs; an error as soon as it says why it does
/// not take one. Some never say so of the order as a whole.
async fn proven(order: &mut Order) -> Result<(), Failure> {
    let mut wait = Duration::from_millis(250);
    loop {
        let state = order.refresh().await?;
        if matches!(state.status, OrderStatus::Ready | OrderStatus::Valid) {
            return Ok(());
        }
        let is_refused = state.status == OrderStatus::Invalid;
        let mut against: Vec<String> = state.error.iter().map(ToString::to_string).collect();
        let mut authorizations = order.authorizations();
        while let Some(authorization) = authorizations.next().await {
            // Fetched anew: the order was.
            let state = authorization?;
            let failed = |challenge: &&Challenge| challenge.status == ChallengeStatus::Invalid;
            let failed = state.challenges.iter().find(failed);
            if failed.is_some() || state.status == AuthorizationStatus::Invalid {
                let why = failed.and_then(|challenge| challenge.error.as_ref()).map(ToString::to_string);
                let why = why.unwrap_or_else(|| "the authority takes no proof that it leads here".into());
                against.push(format!("{}: {why}", state.identifier()));
            }
        }
        if is_refused && against.is_empty() {
            against.push("the authority refuses the order".into());
        }
        if !against.is_empty() {
            return Err(against.join("; ").into());
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(SLOWEST);
    }
}

/// A certificate that says nothing but that this server has heard the authority.
fn proof(host: &str, digest: &[u8]) -> Result<Arc<ServerConfig>, Failure> {
    let key = KeyPair::generate()?;
    let mut certificate = CertificateParams::new(vec![host.to_owned()])?;
    certificate.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = certificate.self_signed(&key)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let signing = provider.key_provider.load_private_key(PrivatePkcs8KeyDer::from(key.serialize_der()).into())?;
    // Not read by rustls, which knows nothing of what only the authority must.
    let shown = CertifiedKey::new(vec![certificate.der().clone()], signing);
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(SingleCertAndKey::from(shown)));
    config.alpn_protocols = vec![PROOF.to_vec()];
    Ok(Arc::new(config))
}

/// Calls as the rest of the server makes them.
struct Calls(Https);

impl HttpClient for Calls {
    fn request(
        &self,
        request: Request<BodyWrapper<Bytes>>,
    ) -> Pin<Box<dyn Future<Output = Result<BytesResponse, instant_acme::Error>> + Send>> {
        let https = self.0.clone();
        Box::pin(async move {
            let (parts, body) = request.into_parts();
            if parts.uri.scheme() != Some(&Scheme::HTTPS) {
                return Err("the authority names a place that is no https:// URL".into());
            }
            let Ok(body) = body.collect().await;
            let answer = https.exchange(Request::from_parts(parts, body.to_bytes())).await;
            let (mut parts, body) = answer.map_err(instant_acme::Error::Other)?.into_parts();
            // Times that no clock has are not added to one.
            let far =
                |value: &HeaderValue| value.to_str().is_ok_and(|text| text.trim().len() > 9 && !text.contains(':'));
            if parts.headers.get(header::RETRY_AFTER).is_some_and(far) {
                parts.headers.remove(header::RETRY_AFTER);
            }
            Ok(BytesResponse { parts, body: Box::new(body) })
        })
    }
}

/// Since 1970.
fn unix_now() -> Duration {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
}
