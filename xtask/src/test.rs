//! Everything that CI runs.

use std::time::Instant;

use crate::run::{Outcome, cargo, done, install};
use crate::{leftovers, tidy};

/// `unicode-data` is the real data set of a test; probes are Python; `procps`
/// finds processes.
const PACKAGES: [&str; 3] = ["procps", "python3", "unicode-data"];

pub(crate) fn run() -> Outcome {
    install(&PACKAGES)?;
    let began = Instant::now();
    let mut doc = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    step("format", done(&mut cargo(&["fmt", "--all", "--", "--check"])))?;
    step("tidy", tidy::run())?;
    step("build", done(&mut cargo(&["build", "--quiet", "--workspace", "--all-targets"])))?;
    step("lints", done(&mut cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"])))?;
    step("docs", done(&mut doc))?;
    let before = leftovers::list();
    step("tests", done(&mut cargo(&["test", "--workspace"])))?;
    step("nothing left behind", leftovers::check(&before))?;
    eprintln!("xtask: all of it passed in {} s", began.elapsed().as_secs());
    Ok(())
}

fn step(name: &str, outcome: Outcome) -> Outcome {
    match &outcome {
        Ok(()) => eprintln!("xtask: {name}: ok"),
        Err(_) => eprintln!("xtask: {name}: FAILED"),
    }
    outcome
}
