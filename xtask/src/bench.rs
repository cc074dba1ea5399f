//! Measurements. The programs are in `bench/`; this installs what they
//! compare with, builds a release and runs them, all or the one that is named.

use std::process::Command;

use crate::run::{Outcome, cargo, done, install, root, target};

/// Programs beside `session.py`.
const PROGRAMS: [&str; 4] = ["append", "recover", "sandbox", "streams"];

pub(crate) fn run(only: Option<&str>) -> Outcome {
    let named = |name: &str| only.is_none_or(|only| only == name);
    if only.is_some_and(|only| only != "session" && !PROGRAMS.contains(&only)) {
        return Err(format!("cargo xtask bench [session|{}]", PROGRAMS.join("|")));
    }
    install(&["bubblewrap", "gcc", "python3"])?;
    done(&mut cargo(&["build", "--quiet", "--release", "--workspace"]))?;
    let release = target().join("release");
    if named("session") {
        let mut command = Command::new("python3");
        done(command.arg(root().join("bench/session.py")).arg(&release).current_dir(root()))?;
    }
    // In the folder for artefacts: on the disk that the project is on.
    PROGRAMS
        .iter()
        .filter(|name| named(name))
        .try_for_each(|name| done(Command::new(release.join(name)).current_dir(target())))
}
