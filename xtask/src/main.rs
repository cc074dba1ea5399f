//! `cargo xtask`: what developers and CI run. Each command is one module.

mod bench;
mod demo;
mod docs;
mod fuzz;
mod kernel;
mod leftovers;
mod peers;
mod run;
mod test;
mod tidy;

use std::process::ExitCode;

const HELP: &str = "\
cargo xtask <command>

  demo      build Cloister, start it, show an agent at work
  test      everything that CI runs: format, lints, tidy, docs, all tests
  kernel    tests on Debian's kernel, in a virtual machine; kernel probes::, say, for some
  fuzz      parsers and rules under libFuzzer; fuzz scrub 600, say, for one target and its seconds
  peers     install the programs that tests talk to, from npm
  tidy      layers, licences, duplicate versions, file heads and sizes
  openapi   write openapi/v1.json and docs/api.md from the source
  bench     measure; figures for docs/performance.md; bench append, say, for one program
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("demo") => demo::run(),
        Some("test") => test::run(),
        Some("kernel") => kernel::run(&arguments[1..]),
        Some("fuzz") => fuzz::run(&arguments[1..]),
        Some("peers") => peers::install(),
        Some("tidy") => tidy::run(),
        Some("openapi") => docs::write(),
        Some("bench") => bench::run(arguments.get(1).map(String::as_str)),
        _ => {
            print!("{HELP}");
            return ExitCode::from(2);
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}
