//! `cloister-sandbox`: the spawner of a tenant's sandboxes. Started by the
//! server with the control socket as standard input; not meant for people.

use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    match cloister_sandbox::spawner::main(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cloister-sandbox: {error}");
            ExitCode::FAILURE
        }
    }
}
