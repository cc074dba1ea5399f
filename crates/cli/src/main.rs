//! `cloister`: what people type. Data goes to standard output, talk to
//! standard error; the last line says what to do next.

mod arguments;
mod commands;
mod connect;
mod explain;
mod logins;
mod output;
mod show;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;

use arguments::{Arguments, Command, KeyCommand, VaultCommand};
use output::{Failure, Output};

/// A server lives for months and holds thousands of connections, each with
/// buffers of which the first page is used: this one gives the rest no memory.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    cloister_server::settle();
    let arguments = Arguments::parse();
    logging(&arguments.command);
    if matches!(arguments.command, Command::Dev(_) | Command::Serve(_) | Command::Egress | Command::Vault) {
        cloister_server::go_ahead();
    }
    if matches!(arguments.command, Command::Egress) {
        cloister_server::lower();
    }
    let output = Output::new(arguments.json, arguments.server.as_typed());
    if let Some((config, data)) = opens(&arguments)
        && let Err(error) = cloister_server::become_owner(config, data)
    {
        return output.failure(&error.into());
    }
    let given = match arguments.command {
        Command::Serve(_) | Command::Region { .. } => match cloister_server::Given::take() {
            Ok(given) => given,
            Err(error) => return output.failure(&error.into()),
        },
        _ => cloister_server::Given::default(),
    };
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    // A call passes through few threads: each hop between two costs more than
    // the work of either.
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    match arguments.command {
        Command::Egress => _ = builder.worker_threads((processors / 2).clamp(1, 8)),
        Command::Vault => _ = builder.worker_threads(1),
        _ => {}
    }
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cloister: cannot start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let outcome = runtime.block_on(commands::run(arguments, given, output));
    // A blocking read must not hold up the end.
    runtime.shutdown_background();
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => output.failure(&failure),
    }
}

/// Where a command that opens a tenant's data finds it: the configuration, and the
/// directory itself.
fn opens(arguments: &Arguments) -> Option<(Option<&Path>, Option<&Path>)> {
    let data = arguments.server.data.as_deref();
    let config = match &arguments.command {
        Command::Serve(options) => Some(&options.config),
        Command::Key(KeyCommand::New { config, .. }) => Some(config),
        Command::VaultKeys(
            VaultCommand::Rotate { config }
            | VaultCommand::Recover { config, .. }
            | VaultCommand::AcceptRollback { config },
        ) => config.as_ref(),
        Command::Audit(_) => None,
        _ => return None,
    };
    Some((config.map(PathBuf::as_path), data))
}

/// Servers log to standard error; `CLOISTER_LOG` takes a filter such as
/// `info` or `cloister_session=debug`.
fn logging(command: &Command) {
    let default = match command {
        Command::Dev(_) | Command::Serve(_) | Command::Region { .. } | Command::Egress | Command::Vault => "warn",
        _ => "off",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_env("CLOISTER_LOG").unwrap_or_else(|_| default.into());
    // Said aloud, that the log cannot be written would end whoever logs: it would
    // be written to the same place.
    let log = tracing_subscriber::fmt().log_internal_errors(false);
    log.with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

impl From<cloister_server::ServerError> for Failure {
    fn from(error: cloister_server::ServerError) -> Self {
        let usage = matches!(error, cloister_server::ServerError::Config(_));
        Self { message: error.to_string(), hint: None, code: None, usage }
    }
}
