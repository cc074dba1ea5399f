//! Measurements. The programs are in `bench/`; this installs what they
//! compare with, builds a release and runs them.

use std::process::Command;

use crate::run::{Outcome, cargo, done, install, root, target};

pub(crate) fn run() -> Outcome {
    install(&["bubblewrap", "python3"])?;
    done(&mut cargo(&["build", "--quiet", "--release"]))?;
    let mut command = Command::new("python3");
    done(command.arg(root().join("bench/session.py")).arg(target().join("release")).current_dir(root()))
}
