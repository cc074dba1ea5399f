//! One module for each kind of command.

mod access;
mod egress;
mod files;
mod machine;
mod servers;
mod session;
mod tenant;

use crate::arguments::{Arguments, Command};
use crate::connect::client;
use crate::output::{Failure, Output};

/// Runs the command. Servers listen on the socket that came along, if one did.
pub(crate) async fn run(arguments: Arguments, given: cloister_server::Given, output: Output) -> Result<(), Failure> {
    let server = &arguments.server;
    match arguments.command {
        Command::Dev(options) => servers::dev(server, options, output).await,
        Command::Serve(options) => servers::serve(server, options, given, output).await,
        Command::Egress => Ok(cloister_server::egress().await?),
        Command::Vault => Ok(cloister_server::vault().await?),
        Command::Doctor => machine::doctor(output),
        Command::Backup { to } => servers::backup(server, &to, output),
        Command::Restore { from } => servers::restore(server, &from, output).await,
        Command::Explain { code, session: Some(id) } if code.as_deref() == Some("session") => {
            session::explain(&client(server).await?, &id, output).await
        }
        Command::Explain { code, .. } => machine::explain(code.as_deref(), output),
        Command::Config(command) => machine::config(command, output),
        Command::Connection(command) => egress::connection(&client(server).await?, command, output).await,
        Command::EgressLog(options) => egress::egress(&client(server).await?, options, output).await,
        Command::Audit(command) => egress::audit(server, command, output),
        Command::VaultKeys(command) => egress::vault(server, command, output),
        Command::DevCa { names, client, dir } => machine::dev_ca(&names, client, &dir, output),
        Command::Tenant(command) => tenant::tenant(command, output).await,
        Command::Region { config, ready_file } => tenant::region(&config, ready_file.as_deref(), given, output).await,
        Command::Login { device } => access::login(server, device, output).await,
        Command::Logout => access::logout(server, output),
        Command::Auth(command) => access::auth(&client(server).await?, command, output).await,
        Command::Key(command) => servers::key(server, command, output).await,
        Command::Run(options) => session::run(&client(server).await?, options, output).await,
        Command::Session(command) => session::session(&client(server).await?, command, output).await,
        Command::Files(command) => files::files(&client(server).await?, command, output).await,
    }
}
