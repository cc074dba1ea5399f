//! Other people's programs that tests talk to, from npm and PyPI by name and
//! version.

use std::process::Command;

use crate::run::{Outcome, done, root, target};

/// Asks everything that an OpenAPI document says, and more.
const SCHEMATHESIS: &str = "schemathesis==4.32.5";

pub(crate) fn install() -> Outcome {
    let folder = target().join("peers");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let wanted = std::fs::read(root().join("crates/cli/tests/peers/package.json")).map_err(failed)?;
    std::fs::create_dir_all(&folder).map_err(failed)?;
    if !folder.join("python/bin/st").exists() {
        done(Command::new("python3").args(["-m", "venv", "python"]).current_dir(&folder))?;
        let pip = ["install", "--quiet", "--disable-pip-version-check", SCHEMATHESIS];
        done(Command::new(folder.join("python/bin/pip")).args(pip))?;
    }
    let there = std::fs::read(folder.join("package.json")).ok();
    if there.as_ref() == Some(&wanted) && folder.join("node_modules").exists() {
        return Ok(());
    }
    std::fs::write(folder.join("package.json"), wanted).map_err(failed)?;
    done(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder))
}
