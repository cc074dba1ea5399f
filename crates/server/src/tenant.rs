//! A tenant's server, wired: store, spawner, egress, sessions, API.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::Router;
use cloister_session::{Ground, Host, HostError, Sessions};
use cloister_store::Store;
use tokio::sync::watch;

use crate::ServerError;
use crate::config::Config;
use crate::egress::Egress;
use crate::gate::Gate;

/// The two executables that are found beside this one.
pub(crate) struct Executables {
    pub(crate) cloister: PathBuf,
    pub(crate) sandbox: PathBuf,
    pub(crate) agent: PathBuf,
}

impl Executables {
    /// Finds them.
    pub(crate) fn find() -> Result<Self, ServerError> {
        let cloister = std::env::current_exe().map_err(ServerError::start("find this executable"))?;
        let folder = cloister.parent().unwrap_or(Path::new("/")).to_owned();
        let beside = |name: &str| {
            let path = folder.join(name);
            if path.is_file() {
                Ok(path)
            } else {
                Err(ServerError::Start(format!("{name} is missing: it must lie beside {}", cloister.display())))
            }
        };
        Ok(Self { sandbox: beside("cloister-sandbox")?, agent: beside("cloister-agent")?, cloister })
    }
}

/// Everything of a tenant that runs.
pub(crate) struct Tenant {
    pub(crate) router: Router,
    pub(crate) store: Store,
    sessions: Arc<Sessions>,
    egress: Arc<Egress>,
    clock: tokio::task::JoinHandle<()>,
    leaving: watch::Sender<bool>,
}

impl Tenant {
    /// Opens the data directory and starts the children.
    pub(crate) async fn open(
        config: &Config,
        data: &Path,
        scripted: &[&str],
        gates: Vec<Arc<Gate>>,
    ) -> Result<Self, ServerError> {
        let (sso, workloads) = config.for_sign_in()?;
        if config.models.is_empty() {
            return Err(ServerError::Config(
                "no model is configured: add a [[model]] table (docs/configuration.md)".into(),
            ));
        }
        let executables = Executables::find()?;
        let store = Store::open(&data.join("tenant.db"), &config.tenant)
            .map_err(|error| ServerError::Start(error.to_string()))?;
        let workspace =
            std::path::absolute(data.join("workspace")).map_err(ServerError::start("find the workspace"))?;
        let (sandbox, agent) = (executables.sandbox, executables.agent);
        let run = std::path::absolute(data.join("run")).map_err(ServerError::start("find the run folder"))?;
        let ground = Ground {
            executable: sandbox,
            agent,
            workspace,
            run,
            image: config.image.as_ref().map(|image| image.root.clone()),
            limits: config.sandbox,
            allowance: config.workspace,
        };
        let host = tokio::task::spawn_blocking(move || Host::start(ground))
            .await
            .map_err(|error| ServerError::Start(error.to_string()))?
            .map_err(|error| sandbox_missing(&error))?;
        let for_vault = config.for_vault(data)?;
        let egress = Egress::start(executables.cloister, config.for_egress(), for_vault)
            .map_err(ServerError::start("start egress and the vault"))?;
        let Ok(sealing) = egress.sealing_key().await else {
            egress.stop();
            let why = "the vault does not open: the line above says why, or it gave no answer in time";
            return Err(ServerError::Start(why.into()));
        };
        let sessions = Sessions::open(config.for_sessions(scripted), store.clone(), host, egress.clone())
            .await
            .map_err(|error| ServerError::Start(error.to_string()))?;
        let clock = tokio::spawn(sessions.clone().keep_time());
        let leaving = watch::Sender::new(false);
        let api = cloister_api::Api {
            sessions: sessions.clone(),
            tenant: config.tenant.clone(),
            region: config.region.clone(),
            upload_limit: config.limits.upload_bytes,
            vault: egress.vault.clone(),
            sealing,
            failures: cloister_api::Failures::default(),
            sso,
            workloads,
            browser_origins: config.browser_origins(),
            doors: gates.into_iter().map(|gate| gate as Arc<dyn cloister_api::Door>).collect(),
            quotas: cloister_api::Quotas::new(cloister_api::Rates {
                caller: config.limits.caller_requests_per_minute,
                tenant: config.limits.requests_per_minute,
            }),
            leaving: leaving.subscribe(),
            outside: egress.clone(),
        };
        Ok(Self { router: cloister_api::router(Arc::new(api)), store, sessions, egress, clock, leaving })
    }

    /// Tells those who follow turns to go on with the next server.
    pub(crate) fn send_away(&self) {
        let _ = self.leaving.send(true);
    }

    /// Refuses new work and ends what runs; streams get their terminal events.
    pub(crate) async fn shut_down(&self) {
        self.clock.abort();
        self.sessions.shut_down().await;
    }

    /// Leaves what runs to those who run it. The last thing to do.
    pub(crate) fn let_go(&self) {
        self.clock.abort();
        self.sessions.let_go();
        self.egress.let_go();
    }

    /// Ends the children. The last thing to do.
    pub(crate) async fn end(self) {
        let Self { sessions, egress, router, .. } = self;
        drop(router);
        let _ = tokio::task::spawn_blocking(move || {
            egress.stop();
            // The spawner goes with the last reference to the sessions.
            drop(sessions);
        })
        .await;
    }
}

/// Without sandboxes there is nothing to serve: say what is missing.
fn sandbox_missing(error: &HostError) -> ServerError {
    let fix = match error {
        HostError::Refused { fix, .. } => format!("\nfix: {fix}"),
        _ => String::new(),
    };
    ServerError::Start(format!("the sandbox spawner does not start: {error}{fix}"))
}

/// Gives up what the process has from whoever started it and does not need:
/// supplementary groups as root, which would open files to the file API that
/// the agent cannot open; and takes all the descriptors that it may have.
/// Called before any thread exists.
pub fn settle() {
    if rustix::process::geteuid().is_root() {
        let _ = rustix::thread::set_thread_groups(&[]);
    }
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
}

/// Goes ahead of what runs in sandboxes, where it may: a session at work must not
/// keep those waiting who serve the others. Called before any thread exists.
pub fn go_ahead() {
    if let Ok(now) = rustix::process::getpriority_process(None)
        && now >= 0
    {
        // As an ordinary user, what runs in sandboxes steps back instead.
        let _ = rustix::process::setpriority_process(None, now - 10);
    }
}

/// The host user of egress, where the server is root: nobody's, and not one of
/// those that sandboxes run as.
const EGRESS_USER: u32 = 1_899_999_999;

/// Gives up root, for the process that parses what hostile hosts send. Called
/// before any thread exists.
pub fn lower() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let (user, group) = (rustix::process::Uid::from_raw(EGRESS_USER), rustix::process::Gid::from_raw(EGRESS_USER));
    let lowered = rustix::thread::set_thread_res_gid(group, group, group)
        .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user));
    if let Err(error) = lowered {
        eprintln!("cloister: egress cannot give up root: {error}");
        std::process::exit(1);
    }
}

/// Listens for requests to stop from this call on, not from the first poll of
/// what it returns: an early signal must not end the process by itself.
pub(crate) fn stop_signal() -> Result<impl Future<Output = ()>, ServerError> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate()).map_err(ServerError::start("listen for SIGTERM"))?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(ServerError::start("listen for SIGINT"))?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}
