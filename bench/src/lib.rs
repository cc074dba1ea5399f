//! What the measuring programs share: quantiles, and a server of their own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_client::Client;
use serde_json::Value;

/// The median and the 99th percentile.
///
/// # Panics
/// There are no values.
#[must_use]
pub fn quantiles(values: &mut [f64]) -> (f64, f64) {
    values.sort_by(f64::total_cmp);
    (values[values.len() / 2], values[(values.len() * 99 / 100).min(values.len() - 1)])
}

/// The median.
#[must_use]
pub fn median(values: &mut [f64]) -> f64 {
    quantiles(values).0
}

/// A `cloister dev`, ended when dropped.
#[derive(Debug)]
pub struct Server {
    child: Option<Child>,
    folder: tempfile::TempDir,
    address: String,
    /// Base URL.
    pub url: String,
    /// API key.
    pub key: String,
}

/// Where the executables were built: beside this program.
fn executable() -> PathBuf {
    let own = std::env::current_exe().expect("the own path");
    own.parent().unwrap_or(Path::new("/")).join("cloister")
}

impl Server {
    /// Starts one and waits until it answers.
    ///
    /// # Panics
    /// It does not get ready.
    #[must_use]
    pub fn start(config: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("cloister-bench-").tempdir().expect("a folder");
        std::fs::write(folder.path().join("config.toml"), config).expect("the configuration");
        let nothing = String::new();
        let mut server =
            Self { child: None, folder, address: "127.0.0.1:0".into(), url: nothing.clone(), key: nothing };
        server.launch();
        server
    }

    /// Starts it, on the address that it had; how long until it answered.
    ///
    /// # Panics
    /// It does not get ready.
    pub fn launch(&mut self) -> Duration {
        let ready = self.folder.path().join("ready");
        let _ = std::fs::remove_file(&ready);
        let began = Instant::now();
        let child = Command::new(executable())
            .args([
                "dev",
                "--listen",
                &self.address,
                "--config",
                "config.toml",
                "--data",
                "data",
                "--ready-file",
                "ready",
            ])
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("cloister; build a release first");
        self.child = Some(child);
        let text = loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                break text;
            }
            assert!(began.elapsed() < Duration::from_secs(60), "the server does not get ready");
            std::thread::sleep(Duration::from_micros(500));
        };
        let took = began.elapsed();
        let known: Value = serde_json::from_str(&text).expect("the ready file");
        self.url = known["url"].as_str().unwrap_or_default().to_owned();
        self.key = known["key"].as_str().unwrap_or_default().to_owned();
        self.address = self.url.trim_start_matches("http://").to_owned();
        took
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A client of it.
    ///
    /// # Panics
    /// Never for a server that answered.
    #[must_use]
    pub fn client(&self) -> Client {
        Client::new(&self.url, &self.key, None).expect("a client")
    }

    /// The tenant's workspace.
    #[must_use]
    pub fn workspace(&self) -> PathBuf {
        self.folder.path().join("data/workspace")
    }

    /// Host and port.
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Resident memory of the server alone, in KiB.
    #[must_use]
    pub fn resident(&self) -> f64 {
        let pid = self.child.as_ref().map_or(0, Child::id);
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse().ok()).unwrap_or(0.0)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            if let Some(pid) = rustix::process::Pid::from_raw(child.id().cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
            let _ = child.wait();
        }
    }
}

/// A script as a message.
#[must_use]
pub fn script(lines: &[Value]) -> String {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    format!("```script\n{}\n```", lines.join("\n"))
}
