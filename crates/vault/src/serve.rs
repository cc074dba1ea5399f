//! The role: takes links, answers on each what may be asked there, and ends
//! with the last of them.

use std::collections::{BTreeMap, HashMap};
use std::os::fd::OwnedFd;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use cloister_dial::{Dialer, Https, Reach};
use cloister_types::egress::{AuditEntry, ConnectionName, Decision, Secret};
use cloister_types::{Host, SessionId};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use zeroize::Zeroize;

use crate::VaultError;
use crate::audit::Chain;
use crate::client::{frame, read_frame};
use crate::desk::Desk;
use crate::process::{check_peer, close_up};
use crate::records::{Opened, Records, Refusal};
use crate::scribe::{Scribe, now};
use crate::sign::{AwsKeys, Signer, aws, is_now};
use crate::token::Issuers;
use crate::wire::{self, MAX_FRAME, Material, ModelKey, Order, Permitted, Purpose, Reply, Request, Role, Setup, With};

/// Questions of one link that are worked on at once.
const AT_ONCE: usize = 2048;
/// Between looks for versions whose grace is over.
const UPKEEP: Duration = Duration::from_secs(5);

struct Vault {
    desk: Desk,
    scribe: Scribe,
    issuers: Issuers,
    models: BTreeMap<String, ModelKey>,
    /// Models of each session; told anew by every server.
    model_permits: RwLock<HashMap<SessionId, Vec<String>>>,
}

/// Runs the role on the control socket.
///
/// # Errors
/// The vault cannot be opened; the reason is for the operator.
pub async fn main(control: OwnedFd) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    close_up();
    let mut orders = listen(control);
    let Some((Order::Setup(setup), _)) = orders.recv().await else {
        return Err("the server did not say what to open".into());
    };
    let vault = Arc::new(Vault::open(*setup)?);
    let upkeep = tokio::spawn(keep_up(vault.clone()));
    let mut links = JoinSet::new();
    loop {
        tokio::select! {
            order = orders.recv() => match order {
                Some((Order::Link(role), Some(link))) => {
                    if let Err(error) = check_peer(&link) {
                        tracing::error!(%error, "a link that is not the server's");
                        continue;
                    }
                    links.spawn(serve(vault.clone(), role, link));
                }
                Some((order, _)) => tracing::error!(?order, "an order that makes no sense"),
                None => break,
            },
            Some(_) = links.join_next() => {}
        }
    }
    // Turns that go on without a server still call out.
    while links.join_next().await.is_some() {}
    upkeep.abort();
    let _ = vault.scribe.sign().await;
    Ok(())
}

fn listen(control: OwnedFd) -> mpsc::Receiver<(Order, Option<OwnedFd>)> {
    let (sender, receiver) = mpsc::channel(16);
    tokio::task::spawn_blocking(move || {
        loop {
            match wire::receive(&control) {
                Ok(Some(order)) => {
                    if sender.blocking_send(order).is_err() {
                        break;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    tracing::error!(%error, "the control socket broke");
                    break;
                }
            }
        }
    });
    receiver
}

async fn keep_up(vault: Arc<Vault>) {
    loop {
        tokio::time::sleep(UPKEEP).await;
        if let Err(error) = vault.desk.run(|records| records.expire(now())).await {
            tracing::error!(%error, "old versions stay");
        }
    }
}

async fn serve(vault: Arc<Vault>, role: Role, link: OwnedFd) {
    let stream = std::os::unix::net::UnixStream::from(link);
    let Ok(stream) = stream.set_nonblocking(true).and_then(|()| UnixStream::from_std(stream)) else { return };
    let (mut read, mut write) = stream.into_split();
    let (answers, mut line) = mpsc::channel::<Vec<u8>>(AT_ONCE);
    let writer = tokio::spawn(async move {
        while let Some(mut answer) = line.recv().await {
            let sent = write.write_all(&answer).await;
            answer.zeroize();
            if sent.is_err() {
                break;
            }
        }
    });
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    while let Ok((number, mut body)) = read_frame(&mut read).await {
        let request = serde_json::from_slice::<Request>(&body);
        body.zeroize();
        let request = match request {
            Ok(request) => request,
            Err(error) => {
                tracing::error!(%error, ?role, "a question that cannot be read");
                break;
            }
        };
        let Ok(slot) = slots.clone().acquire_owned().await else { break };
        let (vault, answers) = (vault.clone(), answers.clone());
        tokio::spawn(async move {
            let reply = vault.answer(role, request).await;
            let body = serde_json::to_vec(&reply).ok().filter(|body| body.len() <= MAX_FRAME);
            let body = body.or_else(|| serde_json::to_vec(&Reply::Failed).ok());
            let _ = answers.send(frame(number, body.unwrap_or_default())).await;
            drop(slot);
        });
    }
    drop(answers);
    let _ = writer.await;
}

fn purpose_name(purpose: &Purpose) -> String {
    match &purpose.with {
        With::Connection(name) => name.to_string(),
        With::Model(model) => format!("model:{model}"),
    }
}

impl Vault {
    fn open(setup: Setup) -> Result<Self, Box<dyn std::error::Error + Send + Sync>> {
        let records = Records::open(&setup.place)?;
        let whose = (setup.place.tenant.as_str(), setup.place.region.as_str());
        let chain = Chain::open(&setup.place.audit(), whose, &records.audit_key()?)?;
        let desk = Desk::start(records)?;
        let scribe = Scribe::start(chain, desk.clone())?;
        let https = Https::new(Dialer::new(setup.hosts), Reach::Public, setup.extra_ca.as_deref())?;
        let issuers = Issuers::new(https);
        let model_permits = RwLock::default();
        Ok(Self { desk, scribe, issuers, models: setup.models, model_permits })
    }

    async fn answer(&self, role: Role, request: Request) -> Reply {
        let answered = match (role, request) {
            (Role::Server, Request::SealingKey) => {
                self.desk.run(|records| Ok(Reply::SealingKey(records.sealing_key()?))).await
            }
            (Role::Server, Request::Put { name, connection, caller }) => self.put(name, connection, caller).await,
            (Role::Server, Request::Remove { name, caller }) => self.remove(name, caller).await,
            (Role::Server, Request::List) => self.desk.run(|records| Ok(Reply::Connections(records.list()?))).await,
            (Role::Server, Request::Get(name)) => {
                let found = self.desk.run(move |records| records.get(&name)).await;
                found.map(|found| found.map_or(Reply::Absent, |found| Reply::Connection(Box::new(found))))
            }
            (Role::Server, Request::SetSecret { name, sealed, grace, caller }) => {
                self.set_secret(name, sealed, grace, caller).await
            }
            (Role::Server, Request::Revoke { name, version, caller }) => self.revoke(name, version, caller).await,
            (Role::Server, Request::Permit { session, connections, models, strict }) => {
                self.permit(session, connections, models, strict).await
            }
            (Role::Server, Request::Prune(sessions)) => {
                self.desk.run(move |records| records.prune(&sessions).map(|()| Reply::Done)).await
            }
            (Role::Server, Request::Audit { session, after, limit }) => {
                let session = session.map(|session| session.to_string());
                self.scribe.page(session, after, limit).await.map(|page| Reply::Audit(Box::new(page)))
            }
            (Role::Server, Request::Note(entry)) => {
                Ok(if self.scribe.write(*entry).await { Reply::Done } else { Reply::Failed })
            }
            (Role::Egress, Request::Record { source, first, entries }) => {
                Ok(if self.scribe.write_for(source, first, entries).await { Reply::Done } else { Reply::Failed })
            }
            (Role::Egress, Request::Used(session)) => {
                let used = self.scribe.used(session.to_string()).await;
                used.map(|(session, cost, today)| Reply::Used(wire::Used { session, cost, today }))
            }
            (Role::Egress, Request::Permitted(session)) => {
                let found = self.desk.run(move |records| records.permitted(session.as_str())).await;
                found.map(|found| {
                    let of = |(name, connection, version)| Permitted { name, connection, version };
                    Reply::Permitted(found.into_iter().map(of).collect())
                })
            }
            (Role::Egress, Request::Use(purpose)) => {
                Ok(self.material(&purpose).await.map_or_else(Reply::Refused, Reply::Material))
            }
            (Role::Egress, Request::SignAws(purpose, call)) => {
                Ok(self.sign_aws(&purpose, &call).await.map_or_else(Reply::Refused, Reply::Material))
            }
            (Role::Egress, Request::SignTls { purpose, scheme, message }) => {
                Ok(self.sign_tls(&purpose, scheme, &message).await.map_or_else(Reply::Refused, Reply::Signature))
            }
            (Role::Egress, Request::Rejected(purpose, version, token)) => self.rejected(purpose, version, token).await,
            (Role::Egress, Request::Authority(session)) => {
                self.desk
                    .run(move |records| Ok(Reply::Seed(records.authority_seed(session.as_str()).bytes().to_vec())))
                    .await
            }
            _ => Ok(Reply::Forbidden),
        };
        answered.unwrap_or_else(|error| {
            tracing::error!(%error, "the vault failed");
            Reply::Failed
        })
    }

    /// Writes down an act, before it is done; false if that fails.
    async fn act(&self, rule: &str, name: &ConnectionName, version: Option<u64>, caller: &str) -> bool {
        let entry = AuditEntry {
            stream: "vault".into(),
            decision: Some(Decision::Vault),
            rule: rule.into(),
            connection: Some(name.to_string()),
            version,
            caller: Some(caller.to_owned()),
            ..AuditEntry::default()
        };
        self.scribe.write(entry).await
    }

    async fn put(
        &self,
        name: ConnectionName,
        connection: cloister_types::egress::Connection,
        caller: String,
    ) -> Result<Reply, VaultError> {
        if let Err(why) = connection.check() {
            return Ok(Reply::Invalid(why));
        }
        let of = name.clone();
        let existing = self.desk.run(move |records| records.get(&of)).await?;
        let misfit = existing.iter().flat_map(|record| &record.versions).find(|version| {
            version.state == cloister_types::egress::VersionState::Active && !version.kind.fits(&connection.attach)
        });
        if let Some(version) = misfit {
            let kind = version.kind.as_str();
            return Ok(Reply::Invalid(format!(
                "the connection's credential, of kind {kind}, cannot be attached in that way"
            )));
        }
        if !self.act("connection_set", &name, None, &caller).await {
            return Ok(Reply::Refused(Refusal::AuditUnavailable));
        }
        self.desk.run(move |records| records.put(&name, &connection, now()).map(|()| Reply::Done)).await
    }

    async fn remove(&self, name: ConnectionName, caller: String) -> Result<Reply, VaultError> {
        // What ends a credential is done even if it cannot be written down.
        self.act("connection_removed", &name, None, &caller).await;
        let found = self.desk.run(move |records| records.remove(&name)).await?;
        Ok(if found { Reply::Done } else { Reply::Absent })
    }

    async fn set_secret(
        &self,
        name: ConnectionName,
        sealed: Vec<u8>,
        grace: f64,
        caller: String,
    ) -> Result<Reply, VaultError> {
        let of = name.clone();
        let (record, text) =
            self.desk.run(move |records| Ok((records.get(&of)?, records.unseal(&of, &sealed)?))).await?;
        let Some(record) = record else { return Ok(Reply::Absent) };
        let secret: Secret = match serde_json::from_slice(&text) {
            Ok(secret) => secret,
            Err(_) => return Ok(Reply::Invalid("the secret is not of a known form".into())),
        };
        if let Err(why) = secret.check() {
            return Ok(Reply::Invalid(why));
        }
        let key = match &secret {
            Secret::Oauth2JwtBearer { private_key, .. }
            | Secret::GithubApp { private_key, .. }
            | Secret::ClientCertificate { private_key, .. } => Some(private_key),
            _ => None,
        };
        if let Some(Err(error)) = key.map(|key| Signer::from_pem(key)) {
            return Ok(Reply::Invalid(error.to_string()));
        }
        if !secret.kind().fits(&record.connection.attach) {
            let kind = secret.kind().as_str();
            return Ok(Reply::Invalid(format!(
                "a credential of kind {kind} cannot be attached as the connection says"
            )));
        }
        if !self.act("credential_set", &name, None, &caller).await {
            return Ok(Reply::Refused(Refusal::AuditUnavailable));
        }
        let added = self.desk.run(move |records| records.add_version(&name, &secret, grace, now())).await?;
        Ok(added.map_or(Reply::Absent, Reply::Version))
    }

    async fn revoke(&self, name: ConnectionName, version: Option<u64>, caller: String) -> Result<Reply, VaultError> {
        self.act("credential_revoked", &name, version, &caller).await;
        let ended = self.desk.run(move |records| records.revoke(&name, version)).await?;
        Ok(if ended > 0 { Reply::Done } else { Reply::Absent })
    }

    async fn permit(
        &self,
        session: SessionId,
        connections: Vec<ConnectionName>,
        models: Vec<String>,
        strict: bool,
    ) -> Result<Reply, VaultError> {
        let of = session.clone();
        let unknown = self.desk.run(move |records| records.permit(of.as_str(), &connections, strict)).await?;
        if let Some(unknown) = unknown {
            return Ok(Reply::Invalid(format!("there is no connection named {:?}", unknown.as_str())));
        }
        let mut permits = self.model_permits.write().unwrap_or_else(std::sync::PoisonError::into_inner);
        if models.is_empty() {
            permits.remove(&session)
        } else {
            permits.insert(session, models)
        };
        Ok(Reply::Done)
    }

    /// The connection's credential, if session and target are those that it is for.
    async fn opened(&self, purpose: &Purpose, name: &ConnectionName) -> Result<Opened, Refusal> {
        if !self.scribe.is_healthy() {
            return Err(Refusal::AuditUnavailable);
        }
        let Ok(host) = purpose.host.parse::<Host>() else { return Err(Refusal::NotATarget) };
        let (session, name, port) = (purpose.session.clone(), name.clone(), purpose.port);
        let opened = self.desk.run(move |records| records.open_for(session.as_str(), &name, &host, port)).await;
        let opened = opened.map_err(|error| {
            tracing::error!(%error, "a credential cannot be opened");
            Refusal::Failed
        })??;
        self.given(purpose, purpose_name(purpose), opened.version);
        Ok(opened)
    }

    /// Notes that a credential is given out, before what is done with it is
    /// known: a call of which nothing more is heard is on record all the same.
    fn given(&self, purpose: &Purpose, name: String, version: u64) {
        self.scribe.note(AuditEntry {
            session: Some(purpose.session.to_string()),
            stream: "vault".into(),
            decision: Some(Decision::Vault),
            rule: "credential_given".into(),
            host: purpose.host.clone(),
            port: Some(purpose.port),
            connection: Some(name),
            version: Some(version),
            ..AuditEntry::default()
        });
    }

    async fn material(&self, purpose: &Purpose) -> Result<Material, Refusal> {
        let name = match &purpose.with {
            With::Model(model) => return self.model_key(purpose, model).await,
            With::Connection(name) => name,
        };
        let opened = self.opened(purpose, name).await?;
        let version = opened.version;
        let secret: Secret = serde_json::from_slice(&opened.secret).map_err(|_| Refusal::Failed)?;
        match secret {
            Secret::Static { value } => Ok(Material::Value(value, version)),
            Secret::ClientCertificate { certificate, .. } => {
                use rustls::pki_types::CertificateDer;
                use rustls::pki_types::pem::PemObject;
                let chain =
                    CertificateDer::pem_slice_iter(certificate.as_bytes()).map(|found| found.map(|der| der.to_vec()));
                let chain = chain.collect::<Result<Vec<_>, _>>().map_err(|_| Refusal::NoCredential)?;
                Ok(Material::Certificates(chain, version))
            }
            Secret::Aws { .. } => Err(Refusal::NoCredential),
            _ => Ok(Material::Value(self.issuers.token(&self.desk, name, opened).await?, version)),
        }
    }

    async fn model_key(&self, purpose: &Purpose, model: &str) -> Result<Material, Refusal> {
        if !self.scribe.is_healthy() {
            return Err(Refusal::AuditUnavailable);
        }
        let permitted = {
            let permits = self.model_permits.read().unwrap_or_else(std::sync::PoisonError::into_inner);
            permits.get(&purpose.session).is_some_and(|models| models.iter().any(|permitted| permitted == model))
        };
        if !permitted {
            return Err(Refusal::NotGranted);
        }
        let Some(key) = self.models.get(model) else { return Err(Refusal::NoCredential) };
        if key.target != (purpose.host.clone(), purpose.port) {
            return Err(Refusal::NotATarget);
        }
        match tokio::fs::read_to_string(&key.key_file).await {
            Ok(text) => {
                self.given(purpose, purpose_name(purpose), 1);
                Ok(Material::Value(text.trim().to_owned(), 1))
            }
            Err(error) => {
                tracing::error!(model, file = %key.key_file.display(), %error, "the key file cannot be read");
                Err(Refusal::NoCredential)
            }
        }
    }

    async fn sign_aws(&self, purpose: &Purpose, call: &wire::AwsCall) -> Result<Material, Refusal> {
        let With::Connection(name) = &purpose.with else { return Err(Refusal::NotGranted) };
        let opened = self.opened(purpose, name).await?;
        let cloister_types::egress::Attach::Sigv4 { service, region } = &opened.rules.attach else {
            return Err(Refusal::NotATarget);
        };
        let secret: Secret = serde_json::from_slice(&opened.secret).map_err(|_| Refusal::Failed)?;
        let Secret::Aws { access_key_id, secret_access_key, session_token } = &secret else {
            return Err(Refusal::NoCredential);
        };
        // What is signed is what was decided on: this host, a path and a method of
        // the connection's, now.
        let takes = opened.rules.targets.iter().any(|target| target.takes(&call.method, &call.path));
        let mut call = call.clone();
        call.headers.retain(|(name, _)| name != "host");
        let port = if purpose.port == 443 { String::new() } else { format!(":{}", purpose.port) };
        call.headers.push(("host".into(), format!("{}{port}", purpose.host)));
        if !takes || !is_now(&call.time) {
            return Err(Refusal::NotATarget);
        }
        let keys = AwsKeys { id: access_key_id, secret: secret_access_key, token: session_token.as_deref() };
        let headers = aws(&keys, service, region, &call);
        let hidden = session_token.iter().cloned().collect();
        Ok(Material::Signed(headers, hidden, opened.version))
    }

    async fn sign_tls(&self, purpose: &Purpose, scheme: u16, message: &[u8]) -> Result<Vec<u8>, Refusal> {
        let With::Connection(name) = &purpose.with else { return Err(Refusal::NotGranted) };
        let opened = self.opened(purpose, name).await?;
        let secret: Secret = serde_json::from_slice(&opened.secret).map_err(|_| Refusal::Failed)?;
        let Secret::ClientCertificate { private_key, .. } = &secret else { return Err(Refusal::NoCredential) };
        let signer = Signer::from_pem(private_key).map_err(|_| Refusal::NoCredential)?;
        signer.tls(scheme, message).map_err(|_| Refusal::NoCredential)
    }

    /// A token that the other side takes for invalid is made anew: that very
    /// one, and not again and again.
    async fn rejected(&self, purpose: Purpose, version: u64, token: String) -> Result<Reply, VaultError> {
        let With::Connection(name) = &purpose.with else { return Ok(Reply::Done) };
        if let Ok(opened) = self.opened(&purpose, name).await
            && opened.version == version
            && let Some(expired) = self.issuers.expire(name, &opened, &token)
        {
            let name = name.clone();
            self.desk.run(move |records| records.keep_token(&name, version, Some(&expired), None)).await?;
        }
        Ok(Reply::Done)
    }
}
