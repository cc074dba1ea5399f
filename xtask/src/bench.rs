//! Measurements. The programs are in `bench/`; this installs what they
//! compare with, builds a release and runs them, all or the one that is named.

use std::process::Command;

use crate::run::{Outcome, cargo, done, install, root, target};

/// What is measured from outside.
const SCRIPTS: [&str; 3] = ["session", "egress", "front"];
/// Programs beside those.
const PROGRAMS: [&str; 4] = ["append", "recover", "sandbox", "streams"];

pub(crate) fn run(only: Option<&str>) -> Outcome {
    let named = |name: &str| only.is_none_or(|only| only == name);
    if only.is_some_and(|only| !SCRIPTS.contains(&only) && !PROGRAMS.contains(&only)) {
        return Err(format!("cargo xtask bench [{}|{}]", SCRIPTS.join("|"), PROGRAMS.join("|")));
    }
    install(&["bubblewrap", "gcc", "haproxy", "nginx-light", "openssl", "python3", "python3-venv"])?;
    done(&mut cargo(&["build", "--quiet", "--release", "--workspace"]))?;
    let release = target().join("release");
    let script = |name: &str| {
        let mut command = Command::new("python3");
        command.arg(root().join(format!("bench/{name}.py"))).arg(&release).current_dir(root());
        command
    };
    if named("session") {
        done(&mut script("session"))?;
    }
    if named("front") {
        done(&mut script("front"))?;
    }
    if named("egress") {
        done(script("egress").arg(mitmproxy()?))?;
    }
    // In the folder for artefacts: on the disk that the project is on.
    PROGRAMS
        .iter()
        .filter(|name| named(name))
        .try_for_each(|name| done(Command::new(release.join(name)).current_dir(target())))
}

/// mitmproxy, in a folder of its own.
fn mitmproxy() -> Result<std::path::PathBuf, String> {
    let folder = target().join("mitmproxy");
    let program = folder.join("bin/mitmdump");
    if !program.exists() {
        done(Command::new("/usr/bin/python3").args(["-m", "venv"]).arg(&folder))?;
        done(Command::new(folder.join("bin/pip")).args(["install", "--quiet", "mitmproxy"]))?;
    }
    Ok(program)
}
