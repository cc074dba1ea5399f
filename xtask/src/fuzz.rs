//! Builds the fuzzer's program with what it needs to see which branches an input
//! reaches, and runs its targets.

use std::fs;

use crate::run::{Outcome, cargo, done, root, target};

const SECONDS: u32 = 60;
/// Passes and counters of LLVM that libFuzzer reads. Given for the target alone, so
/// that build scripts go without.
const FLAGS: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
                     -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
                     -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions=yes -Coverflow-checks=yes \
                     -Ccodegen-units=1";

/// `fuzz [target] [seconds]`: one target or all of them, each for so long. What is
/// found stays in `target/fuzz`, for the next time too.
pub(crate) fn run(arguments: &[String]) -> Outcome {
    let (mut wanted, mut seconds) = (None, SECONDS);
    for argument in arguments {
        match argument.parse() {
            Ok(number) => seconds = number,
            Err(_) => wanted = Some(argument.as_str()),
        }
    }
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let folder = target().join("fuzz");
    let mut build = cargo(&["build", "--quiet", "--release", "-p", "cloister-fuzz", "--target", &triple]);
    done(build.env("RUSTFLAGS", FLAGS).env("CARGO_PROFILE_RELEASE_LTO", "off").env("CARGO_TARGET_DIR", &folder))?;
    let source = fs::read_to_string(root().join("fuzz/src/main.rs")).map_err(|error| error.to_string())?;
    let named = source.lines().filter_map(|line| line.trim().strip_prefix("(\"")?.split('"').next());
    let targets: Vec<&str> = named.filter(|name| wanted.is_none_or(|wanted| wanted == *name)).collect();
    if targets.is_empty() {
        return Err(format!("there is no target {wanted:?}"));
    }
    for name in targets {
        let corpus = folder.join("corpus").join(name);
        fs::create_dir_all(&corpus).map_err(|error| format!("{}: {error}", corpus.display()))?;
        let mut command = std::process::Command::new(folder.join(&triple).join("release/fuzz"));
        command.env("CLOISTER_FUZZ", name).arg(&corpus).arg(format!("-max_total_time={seconds}"));
        command.args(["-max_len=512", "-timeout=5", "-print_final_stats=1", "-verbosity=0"]);
        command.arg(format!("-artifact_prefix={}/{name}-", folder.display()));
        done(&mut command).map_err(|error| format!("{name}: {error}"))?;
        let found = fs::read_dir(&corpus).map_or(0, Iterator::count);
        eprintln!("xtask: {name}: {seconds} s without a fault, {found} inputs that reach something of their own");
    }
    Ok(())
}
