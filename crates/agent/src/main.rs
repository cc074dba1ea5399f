//! `cloister-agent`: started by a sandbox's init, with its link as standard
//! input. Not meant for people.

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(error) = cloister_agent::lead_terminal() {
        eprintln!("cloister-agent: {error}");
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let outcome = runtime.and_then(|runtime| runtime.block_on(cloister_agent::run()));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloister-agent: {error}");
            ExitCode::FAILURE
        }
    }
}
