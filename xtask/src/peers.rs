//! Other people's programs that tests talk to, from npm by name and version.

use std::process::Command;

use crate::run::{Outcome, done, root, target};

pub(crate) fn install() -> Outcome {
    let folder = target().join("peers");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let wanted = std::fs::read(root().join("crates/cli/tests/peers/package.json")).map_err(failed)?;
    let there = std::fs::read(folder.join("package.json")).ok();
    if there.as_ref() == Some(&wanted) && folder.join("node_modules").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(&folder).map_err(failed)?;
    std::fs::write(folder.join("package.json"), wanted).map_err(failed)?;
    done(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder))
}
