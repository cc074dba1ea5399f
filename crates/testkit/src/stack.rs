//! A running `cloister dev`.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use cloister_client::Client;
use cloister_types::SessionId;
use cloister_types::event::EventKind;
use cloister_types::wire::{CreateSession, SessionRecord};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::processes::Processes;
use crate::raw::{Answer, raw};
use crate::turn::{Turn, script};

/// As whom the stack runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum As {
    /// Root; possible only where the test is.
    Root,
    /// An ordinary user: the test's own, or one without a name if it is root.
    User,
}

impl As {
    /// Every way that is possible here.
    #[must_use]
    pub fn all() -> Vec<Self> {
        if rustix::process::geteuid().is_root() {
            vec![Self::Root, Self::User]
        } else {
            eprintln!("SKIPPED as root: the tests run as an ordinary user");
            vec![Self::User]
        }
    }
}

/// Host user of the stack when root runs the tests as an ordinary user.
pub const ORDINARY: u32 = 54_321;

/// How to start a stack.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Configuration, as TOML.
    pub config: Option<String>,
    /// As an ordinary user even if the test is root.
    pub as_user: bool,
    /// `cloister serve` instead of `cloister dev`: its turns outlive it.
    pub serve: bool,
    /// Variables of the server's environment.
    pub environment: Vec<(String, String)>,
    /// Control group that the server is started in.
    pub group: Option<PathBuf>,
    /// Where it listens; a free port of loopback if left out.
    pub address: Option<String>,
}

/// A running stack; ended when dropped.
pub struct Stack {
    child: Option<Child>,
    address: String,
    folder: TempDir,
    options: Options,
    /// Base URL.
    pub url: String,
    /// API key.
    pub key: String,
    /// A client with that key.
    pub client: Client,
}

/// The `cloister` executable.
#[must_use]
pub fn executable() -> PathBuf {
    executables().join("cloister")
}

/// The executables, copied where any user can run them.
fn executables() -> &'static Path {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let test = std::env::current_exe().expect("the test's own path");
            let built = test.ancestors().nth(2).expect("a target folder").to_owned();
            let folder = tempfile::Builder::new().prefix("testkit-").tempdir().expect("a folder");
            open_up(folder.path());
            for name in ["cloister", "cloister-sandbox", "cloister-agent"] {
                let from = built.join(name);
                std::fs::copy(&from, folder.path().join(name))
                    .unwrap_or_else(|error| panic!("{}: {error}; build it first: cargo build", from.display()));
            }
            folder
        })
        .path()
}

fn open_up(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).expect("permissions");
}

/// A program that begins as root, which may move it, in a control group.
fn in_group(group: &Path, as_ordinary: bool, program: &Path) -> Command {
    let user = if as_ordinary { ORDINARY } else { 0 };
    let become_user = format!("setpriv --reuid {user} --regid {user} --clear-groups");
    let script = format!("echo $$ > \"$0/cgroup.procs\" && exec {become_user} \"$@\"");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).arg(group).arg(program);
    command
}

/// The folder in which `cargo xtask test` installs other people's servers.
///
/// # Panics
/// It has not.
#[must_use]
pub fn peers() -> PathBuf {
    // target/debug/deps/it-0123
    let program = std::env::current_exe().unwrap_or_default();
    let folder = program.ancestors().nth(3).map(|target| target.join("peers")).unwrap_or_default();
    assert!(
        folder.join("node_modules").exists(),
        "no peers in {}: `cargo xtask peers` installs them",
        folder.display()
    );
    folder
}

impl Stack {
    /// Starts a stack with nothing but defaults.
    pub async fn start() -> Self {
        Self::with(Options::default()).await
    }

    /// Starts a stack as somebody.
    pub async fn start_as(who: As) -> Self {
        Self::with(Options { as_user: who == As::User, ..Options::default() }).await
    }

    /// Starts a stack.
    ///
    /// # Panics
    /// It does not get ready.
    pub async fn with(options: Options) -> Self {
        let folder = tempfile::Builder::new().prefix("testkit-").tempdir().expect("a folder");
        open_up(folder.path());
        if let Some(config) = &options.config {
            std::fs::write(folder.path().join("config.toml"), config).expect("the configuration");
        }
        if options.as_user && rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(folder.path(), Some(ORDINARY), Some(ORDINARY)).expect("chown");
        }
        let address = options.address.clone().unwrap_or_else(|| "127.0.0.1:0".into());
        Self::launch(folder, options, &address).await
    }

    /// Starts a stack on a folder that is already there.
    pub async fn on(folder: TempDir, options: Options) -> Self {
        Self::launch(folder, options, "127.0.0.1:0").await
    }

    async fn launch(folder: TempDir, options: Options, address: &str) -> Self {
        let ready = folder.path().join("ready.json");
        let _ = std::fs::remove_file(&ready);
        let as_ordinary = options.as_user && rustix::process::geteuid().is_root();
        let program = executables().join("cloister");
        let mut command = match &options.group {
            Some(group) => in_group(group, as_ordinary, &program),
            None => Command::new(program),
        };
        command.args([if options.serve { "serve" } else { "dev" }, "--listen", address, "--data"]);
        command.arg(folder.path().join("data"));
        if options.serve {
            command.arg("--allow-scripted");
        }
        command.arg("--ready-file").arg(&ready).current_dir(folder.path());
        command.env_clear().env("PATH", "/usr/bin:/bin").stdin(Stdio::null()).stdout(Stdio::null());
        let log = folder.path().join("log");
        match std::env::var("CLOISTER_LOG") {
            Ok(filter) => _ = command.env("CLOISTER_LOG", filter),
            Err(_) => _ = command.stderr(std::fs::File::create(&log).expect("the log")),
        }
        command.envs(options.environment.iter().map(|(name, value)| (name, value)));
        if options.config.is_some() {
            // A bare name, as people type it.
            command.args(["--config", "config.toml"]);
        }
        if as_ordinary && options.group.is_none() {
            command.uid(ORDINARY).gid(ORDINARY);
        }
        let mut child = command.spawn().expect("start cloister");
        let began = Instant::now();
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                break text;
            }
            if let Ok(Some(status)) = child.try_wait() {
                let log = std::fs::read_to_string(&log).unwrap_or_default();
                panic!("cloister ended: {status}\n{log}");
            }
            assert!(began.elapsed() < Duration::from_secs(120), "cloister does not get ready");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };
        let known: Value = serde_json::from_str(&text).expect("the ready file");
        let url = known["url"].as_str().expect("a URL").to_owned();
        let key = match known["key"].as_str() {
            Some(key) => key.to_owned(),
            None => new_key(folder.path(), &options),
        };
        let client = Client::new(&url, &key, None).expect("a client");
        let address = url.rsplit('/').next().unwrap_or_default().to_owned();
        Self { child: Some(child), address, folder, options, url, key, client }
    }

    /// Pid of the server.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().map_or(0, Child::id)
    }

    /// What the server has said on standard error.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("log")).unwrap_or_default()
    }

    /// URLs of all listeners, as the server says when it is ready.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.path().join("ready.json")).unwrap_or_default();
        let known: Value = serde_json::from_str(&text).unwrap_or_default();
        known["urls"].as_array().into_iter().flatten().filter_map(|url| url.as_str().map(str::to_owned)).collect()
    }

    /// The tenant's workspace on the host.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.folder.path().join("data/workspace")
    }

    /// The stack's folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The folders of sandboxes; not the one that is there for the next.
    #[must_use]
    pub fn run_folders(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.folder().join("data/run")).into_iter().flatten().flatten();
        entries
            .filter(|entry| !entry.file_name().to_string_lossy().starts_with("next."))
            .map(|entry| entry.path())
            .collect()
    }

    /// The names of sessions' private folders; not the one that is there for
    /// the next.
    #[must_use]
    pub fn private_folders(&self) -> Vec<OsString> {
        let entries = std::fs::read_dir(self.workspace().join(".sessions")).expect("the folder of private folders");
        let names = entries.map(|entry| entry.expect("an entry of it").file_name());
        names.filter(|name| name != ".next").collect()
    }

    /// The `cloister` executable that runs here.
    #[must_use]
    pub fn executable(&self) -> PathBuf {
        executable()
    }

    /// SIGTERM, and the status with which it ends.
    ///
    /// # Panics
    /// It does not end.
    pub async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait().await
    }

    /// SIGKILL to the server alone, then starts another on the same data.
    pub async fn kill_and_restart(mut self) -> Self {
        self.signal(Signal::KILL);
        self.wait().await;
        self.restart().await
    }

    /// Starts another on the same data, after this one has ended.
    ///
    /// # Panics
    /// The first one still runs.
    pub async fn restart(mut self) -> Self {
        assert!(self.child.is_none(), "still running");
        let folder = std::mem::replace(&mut self.folder, tempfile::tempdir().expect("a folder"));
        let options = self.options.clone();
        Self::launch(folder, options, &self.address).await
    }

    /// SIGKILL to the server alone; it is collected, and nothing is started.
    pub async fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait().await;
    }

    /// Processes that belong to this stack: what the server started, and what
    /// the run folder names.
    #[must_use]
    pub fn processes(&self) -> Processes {
        Processes::of(self.pid(), &self.folder.path().join("data/run"))
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = Pid::from_raw(self.pid().cast_signed()) {
            let _ = kill_process(pid, signal);
        }
    }

    async fn wait(&mut self) -> ExitStatus {
        let mut child = self.child.take().expect("a running server");
        let began = Instant::now();
        loop {
            if let Ok(Some(status)) = child.try_wait() {
                return status;
            }
            assert!(began.elapsed() < Duration::from_secs(20), "cloister dev does not end");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// A raw request with the key.
    pub async fn raw(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
        let bearer = format!("Bearer {}", self.key);
        let mut all = vec![("authorization", bearer.as_str())];
        all.extend_from_slice(headers);
        raw(&self.url, method, path, &all, body).await
    }

    /// A raw request with a JSON body.
    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.raw("POST", path, &[("content-type", "application/json")], body.to_string().as_bytes()).await
    }

    /// A session that sees everything.
    ///
    /// # Panics
    /// It cannot be made.
    pub async fn session(&self) -> SessionId {
        self.session_with(json!({})).await.id
    }

    /// A session made from a JSON body.
    ///
    /// # Panics
    /// It cannot be made.
    pub async fn session_with(&self, body: Value) -> SessionRecord {
        let ask: CreateSession = serde_json::from_value(body).expect("a creation body");
        self.client.create(&ask).await.expect("a session")
    }

    /// Sends a script and follows it to its end.
    ///
    /// # Panics
    /// The stream breaks.
    pub async fn play(&self, session: &SessionId, lines: &[Value]) -> Turn {
        let events = self.client.message(session, &script(lines), None).await.expect("accepted");
        Turn::collect(events).await
    }

    /// Runs one command in the sandbox: what it said, and whether it failed.
    ///
    /// # Panics
    /// The turn does not complete.
    pub async fn bash(&self, session: &SessionId, command: &str) -> (String, bool) {
        let turn = self.play(session, &[json!({"tool": "bash", "input": {"command": command}})]).await;
        assert_eq!(turn.end(), EventKind::MessageCompleted, "{:?}", turn.events.last());
        let result = &turn.of(EventKind::ToolResult)[0].data;
        (result["content"].as_str().unwrap_or_default().to_owned(), result["is_error"] == true)
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        if self.child.is_some() {
            self.signal(Signal::TERM);
            if let Some(child) = &mut self.child {
                // One that hangs must not keep the test from saying why it failed.
                let end = Instant::now() + Duration::from_secs(20);
                while matches!(child.try_wait(), Ok(None)) {
                    if Instant::now() >= end {
                        let _ = child.kill();
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
            }
        }
        // What was to outlive the server does not outlive the test.
        for pid in self.processes().supervisors() {
            kill(pid);
        }
    }
}

/// SIGKILL.
pub fn kill(pid: u32) {
    send(pid, Signal::KILL);
}

/// SIGSTOP: the process is there and does nothing. A thread that runs meanwhile
/// goes on for a moment, which is waited for.
///
/// # Panics
/// It does not stand still.
pub fn freeze(pid: u32) {
    send(pid, Signal::STOP);
    let is_stopped = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['T', 'Z', 'X']))
    };
    let tasks = || std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let began = Instant::now();
    while !tasks().all(is_stopped) {
        assert!(began.elapsed() < Duration::from_secs(20), "{pid} does not stand still");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// SIGCONT.
pub fn thaw(pid: u32) {
    send(pid, Signal::CONT);
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = Pid::from_raw(pid.cast_signed()) {
        let _ = kill_process(pid, signal);
    }
}

/// A key for a tenant whose server runs.
fn new_key(folder: &Path, options: &Options) -> String {
    let mut command = Command::new(executables().join("cloister"));
    command.args(["--json", "key", "new", "--config"]).arg(folder.join("config.toml"));
    command.arg("--data").arg(folder.join("data")).env_clear().env("PATH", "/usr/bin:/bin");
    if options.as_user && rustix::process::geteuid().is_root() {
        command.uid(ORDINARY).gid(ORDINARY);
    }
    let output = command.output().expect("cloister key new");
    let known: Value = serde_json::from_slice(&output.stdout).expect("a key");
    known["key"].as_str().expect("a key").to_owned()
}
