//! Other people's programs that tests talk to, from npm and PyPI by name and
//! version.

use std::process::Command;

use crate::run::{Outcome, done, root, target};

/// One asks everything that an OpenAPI document says, and more; one is an authority
/// that speaks ACME. What each wants of others differs, so each has a folder.
const PYTHON: [(&str, &str); 2] = [("python", "schemathesis==4.32.5"), ("acme", "acme2certifier==0.46.3")];

pub(crate) fn install() -> Outcome {
    let folder = target().join("peers");
    let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
    let wanted = std::fs::read(root().join("crates/cli/tests/peers/package.json")).map_err(failed)?;
    std::fs::create_dir_all(&folder).map_err(failed)?;
    for (name, package) in PYTHON {
        let (place, whole) = (folder.join(name), folder.join(format!("{name}.txt")));
        if std::fs::read_to_string(&whole).is_ok_and(|there| there == package) {
            continue;
        }
        done(Command::new("python3").args(["-m", "venv", "--clear"]).arg(&place))?;
        let pip = ["install", "--quiet", "--disable-pip-version-check", package];
        done(Command::new(place.join("bin/pip")).args(pip))?;
        std::fs::write(&whole, package).map_err(failed)?;
    }
    let there = std::fs::read(folder.join("package.json")).ok();
    if there.as_ref() == Some(&wanted) && folder.join("node_modules").exists() {
        return Ok(());
    }
    std::fs::write(folder.join("package.json"), wanted).map_err(failed)?;
    done(Command::new("npm").args(["install", "--silent", "--no-audit", "--no-fund"]).current_dir(&folder))
}
