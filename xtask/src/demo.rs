//! The first minute: build, start, show, say how to go on.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{Outcome, cargo, done, root, target};

/// A file beside the session's scope, to show that it does not exist inside.
const PRIVATE: &str = "name,salary\nA. Other,1\n";

pub(crate) fn run() -> Outcome {
    eprintln!("Building Cloister (a few minutes the first time) ...");
    done(&mut cargo(&["build", "--quiet"]))?;
    let folder = target().join("debug");
    let cloister = folder.join("cloister");
    let data = target().join("demo");
    let ready = data.join("ready.json");
    let _ = std::fs::remove_file(&ready);
    std::fs::create_dir_all(&data).map_err(|error| error.to_string())?;
    let child = Command::new(&cloister)
        .args(["dev", "--listen", "127.0.0.1:0"])
        .arg("--data")
        .arg(&data)
        .arg("--ready-file")
        .arg(&ready)
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("{}: {error}", cloister.display()))?;
    let mut server = Server(child);
    let outcome = wait_for(&ready, &mut server).and_then(|()| show(&cloister, &data));
    server.end()?;
    outcome?;
    let shown = cloister.strip_prefix(root()).unwrap_or(&cloister).display().to_string();
    eprintln!("\nThat was a real sandbox; only the model was a script. To go on:\n");
    eprintln!("  {shown} dev                      start it again, here, and leave it running");
    eprintln!("  {shown} run tour                 the tour, in another terminal");
    eprintln!("  {shown} doctor                   what this machine enforces");
    eprintln!("  docs/quickstart.md                        curl and Python, and a real model");
    eprintln!("\nnext: cargo xtask test");
    Ok(())
}

/// The demo's server; ended even when a step fails.
struct Server(Child);

impl Server {
    /// SIGTERM by the system's own `kill`: std knows only SIGKILL.
    fn end(&mut self) -> Outcome {
        done(Command::new("kill").arg(self.0.id().to_string()))?;
        let status = self.0.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("cloister dev ended with {status}")) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn wait_for(ready: &Path, server: &mut Server) -> Outcome {
    let began = Instant::now();
    while !ready.exists() {
        if let Ok(Some(status)) = server.0.try_wait() {
            return Err(format!(
                "cloister dev did not start ({status}); see what is missing with: target/debug/cloister doctor"
            ));
        }
        if began.elapsed() > Duration::from_secs(30) {
            return Err("cloister dev does not get ready".into());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn show(cloister: &Path, data: &Path) -> Outcome {
    let command = |arguments: &[&str]| {
        let mut command = Command::new(cloister);
        command.arg("--data").arg(data).args(arguments);
        command
    };
    // Someone else's file, put there through a session that may see all.
    let output = command(&["session", "new"]).stderr(Stdio::null()).output().map_err(|error| error.to_string())?;
    let session = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let local = data.join("salaries.csv");
    std::fs::write(&local, PRIVATE).map_err(|error| error.to_string())?;
    let local = local.to_string_lossy();
    done(
        command(&["files", "put", &session, &local, "tour/private/salaries.csv"])
            .stdout(Stdio::null())
            .stderr(Stdio::null()),
    )?;
    eprintln!("\n$ cloister run --write tour/data --write tour/report tour\n");
    done(&mut command(&["run", "--write", "tour/data", "--write", "tour/report", "tour"]))?;
    eprintln!("\nFor comparison, a session with the whole workspace sees the file that did not exist:");
    eprintln!("$ cloister files get {session} tour/private/salaries.csv");
    done(&mut command(&["files", "get", &session, "tour/private/salaries.csv"]))
}
