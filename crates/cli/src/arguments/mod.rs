//! The words of the command line.

mod operate;

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use cloister_types::egress::ConnectionName;
use cloister_types::host::HostPattern;
use cloister_types::{ResponseId, SessionId};

pub(crate) use operate::{AuditCommand, AuthCommand, KeyCommand, TenantCommand, VaultCommand};

/// Sessions of long-running agents in kernel-enforced workspaces.
#[derive(Debug, Parser)]
#[command(name = "cloister", version, arg_required_else_help = true)]
pub(crate) struct Arguments {
    /// Print JSON on standard output instead of text.
    #[arg(long, global = true)]
    pub(crate) json: bool,
    #[command(flatten)]
    pub(crate) server: ServerArguments,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which server; by default the one that `cloister dev` started here.
#[derive(Debug, Clone, Args)]
pub(crate) struct ServerArguments {
    /// Base URL of the server.
    #[arg(long, global = true, env = "CLOISTER_URL")]
    pub(crate) url: Option<String>,
    /// API key.
    #[arg(long, global = true, env = "CLOISTER_KEY", hide_env_values = true)]
    pub(crate) key: Option<String>,
    /// PEM file of an authority to trust besides the system's.
    #[arg(long, global = true, env = "CLOISTER_CA")]
    pub(crate) ca: Option<PathBuf>,
    /// Data directory of the development server.
    #[arg(long, global = true, env = "CLOISTER_DATA")]
    pub(crate) data: Option<PathBuf>,
}

impl ServerArguments {
    /// The flags that say which server, as they would be typed again. Never
    /// the key, and nothing that the environment holds anyway.
    pub(crate) fn as_typed(&self) -> String {
        let from_environment = |name: &str| std::env::var_os(name).is_some();
        let mut flags = String::new();
        if let Some(url) = self.url.as_ref().filter(|_| !from_environment("CLOISTER_URL")) {
            flags.push_str(&format!("--url {url} "));
        }
        if let Some(data) = self.data.as_ref().filter(|_| !from_environment("CLOISTER_DATA")) {
            flags.push_str(&format!("--data {} ", data.display()));
        }
        flags
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start everything on loopback, with the scripted model.
    Dev(DevArguments),
    /// Start a tenant's server.
    Serve(ServeArguments),
    /// Check what this machine offers, and how to get what is missing.
    Doctor,
    /// Create a session, send a message, show the work.
    Run(RunArguments),
    /// Work with sessions.
    #[command(subcommand)]
    Session(SessionCommand),
    /// Work with files, as a session sees them.
    #[command(subcommand)]
    Files(FilesCommand),
    /// Sign in with the tenant's identity provider, by a browser.
    Login {
        /// By a code that is typed in on another machine.
        #[arg(long)]
        device: bool,
    },
    /// Forget the sign-in to a server.
    Logout,
    /// Who the caller is, why, and who is signed in.
    #[command(subcommand)]
    Auth(AuthCommand),
    /// Work with API keys.
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make, list, suspend and remove the tenants of this host.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// Make a certificate for development, by an authority of this folder's own.
    DevCa {
        /// Names of the certificate: hosts, addresses; for clients, URIs and mail
        /// addresses as well.
        #[arg(required = true)]
        names: Vec<String>,
        /// For a client.
        #[arg(long)]
        client: bool,
        /// Folder of the authority, made if need be.
        #[arg(long, default_value = "dev-ca")]
        dir: PathBuf,
    },
    /// Run the region's door: one address for many tenants.
    Region {
        /// Configuration file.
        #[arg(long)]
        config: PathBuf,
        /// File to write, once connections are taken, with {"address"}.
        #[arg(long)]
        ready_file: Option<PathBuf>,
    },
    /// Write a backup of a data directory to a new file; the server may be at work.
    Backup {
        /// The file.
        to: PathBuf,
    },
    /// Restore a backup into a data directory that does not exist yet.
    Restore {
        /// The backup.
        from: PathBuf,
    },
    /// Explain an error code; or, with `session` and an id, what holds a live
    /// session, measured from its process.
    Explain {
        /// The code, such as session_busy; all of them if left out.
        code: Option<String>,
        /// The session to measure.
        #[arg(requires = "code")]
        session: Option<SessionId>,
    },
    /// Work with the configuration.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Work with connections: where credentials may go, and the credentials.
    #[command(subcommand)]
    Connection(ConnectionCommand),
    /// Show what left, what was refused, and what was done to credentials.
    #[command(name = "egress")]
    EgressLog(EgressArguments),
    /// Work with the audit, on the data directory itself.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Work with the vault's keys, while no server runs.
    #[command(subcommand, name = "vault")]
    VaultKeys(VaultCommand),
    /// The egress process; started by the server.
    #[command(hide = true, name = "egress-process")]
    Egress,
    /// The vault process; started by the server.
    #[command(hide = true, name = "vault-process")]
    Vault,
}

#[derive(Debug, Args)]
pub(crate) struct DevArguments {
    /// Address to listen on; port 0 picks a free one.
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// Configuration file; its models are added to the scripted one.
    #[arg(long)]
    pub(crate) config: Option<PathBuf>,
    /// File to write, once the API answers, with {"url","key"}.
    #[arg(long)]
    pub(crate) ready_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct ServeArguments {
    /// Configuration file.
    #[arg(long)]
    pub(crate) config: PathBuf,
    /// Address to listen on.
    #[arg(long)]
    pub(crate) listen: Option<SocketAddr>,
    /// File to write, once the API answers, with {"url"}.
    #[arg(long)]
    pub(crate) ready_file: Option<PathBuf>,
    /// Accept models that are no language models.
    #[arg(long)]
    pub(crate) allow_scripted: bool,
}

#[derive(Debug, Clone, Default, Args)]
pub(crate) struct NewArguments {
    /// Path that the session may read; repeat for more. Neither this nor
    /// --write: the whole workspace.
    #[arg(long)]
    pub(crate) read: Vec<String>,
    /// Path that the session may read and write; repeat for more.
    #[arg(long)]
    pub(crate) write: Vec<String>,
    /// Model of the catalogue.
    #[arg(long)]
    pub(crate) model: Option<String>,
    /// Longest life in seconds.
    #[arg(long)]
    pub(crate) ttl: Option<u64>,
    /// Destroy the session five minutes after its last answer.
    #[arg(long)]
    pub(crate) transient: bool,
    /// Host that the session may reach, or *.domain; repeat for more.
    #[arg(long)]
    pub(crate) allow: Vec<HostPattern>,
    /// Every public host.
    #[arg(long, conflicts_with = "allow")]
    pub(crate) open: bool,
    /// Connection that the session may use; repeat for more.
    #[arg(long)]
    pub(crate) connection: Vec<ConnectionName>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The message; `tour` is shown by the scripted model.
    pub(crate) message: String,
    #[command(flatten)]
    pub(crate) new: NewArguments,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SessionCommand {
    /// Create a session and print its id.
    New(NewArguments),
    /// List sessions.
    Ls,
    /// Show a session.
    Show {
        /// The session.
        id: SessionId,
    },
    /// Destroy a session; workspace and memory stay.
    Rm {
        /// The session.
        #[arg(required_unless_present = "idle")]
        id: Option<SessionId>,
        /// All that are not working.
        #[arg(long, conflicts_with = "id")]
        idle: bool,
    },
    /// Show a turn from its beginning, then follow it.
    Attach {
        /// The session.
        id: SessionId,
        /// The turn; the running or the last one if left out.
        turn: Option<ResponseId>,
    },
    /// Send a message to a session and follow the turn.
    Send {
        /// The session.
        id: SessionId,
        /// The message.
        message: String,
        /// Sent twice with the same key, a message is one turn.
        #[arg(long)]
        idempotency_key: Option<String>,
        /// If the session is at work: wait for it.
        #[arg(long)]
        queue: bool,
        /// If the session is at work: cancel that first.
        #[arg(long, conflicts_with = "queue")]
        interrupt: bool,
    },
    /// Cancel the running turn, or another.
    Cancel {
        /// The session.
        id: SessionId,
        /// The turn; the running one if left out.
        turn: Option<ResponseId>,
    },
    /// Print the conversation so far.
    Log {
        /// The session.
        id: SessionId,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum FilesCommand {
    /// List a folder.
    Ls {
        /// The session.
        id: SessionId,
        /// The folder, relative to the workspace.
        #[arg(default_value = "")]
        path: String,
    },
    /// Download a file.
    Get {
        /// The session.
        id: SessionId,
        /// The file, relative to the workspace.
        path: String,
        /// Where to put it; standard output if left out.
        to: Option<PathBuf>,
    },
    /// Upload a file.
    Put {
        /// The session.
        id: SessionId,
        /// The local file.
        from: PathBuf,
        /// Where to put it, relative to the workspace; under its own name if
        /// left out.
        path: Option<String>,
    },
    /// Delete a file or an empty folder.
    Rm {
        /// The session.
        id: SessionId,
        /// The file, relative to the workspace.
        path: String,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConnectionCommand {
    /// List connections.
    Ls,
    /// Show a connection: everything but its credential.
    Show {
        /// Its name.
        name: ConnectionName,
    },
    /// Set a connection, from JSON: targets, attach, client_auth, response.
    Set {
        /// Its name.
        name: ConnectionName,
        /// The file; - for standard input.
        #[arg(long)]
        from: PathBuf,
    },
    /// Set a connection's credential. It cannot be read again.
    Secret {
        /// The connection.
        name: ConnectionName,
        /// The file that holds it; - for standard input.
        #[arg(long, default_value = "-")]
        from: PathBuf,
        /// It is JSON with a kind, not the value itself.
        #[arg(long)]
        json: bool,
        /// Seconds for which the version before stays known.
        #[arg(long)]
        grace: Option<f64>,
    },
    /// Revoke a connection's credential.
    Revoke {
        /// The connection.
        name: ConnectionName,
        /// This version alone.
        #[arg(long)]
        version: Option<u64>,
    },
    /// Remove a connection and its credential.
    Rm {
        /// Its name.
        name: ConnectionName,
    },
    /// Try a connection: one GET of its first target.
    Test {
        /// Its name.
        name: ConnectionName,
    },
}

#[derive(Debug, Args)]
pub(crate) struct EgressArguments {
    /// Of this session alone.
    #[arg(long)]
    pub(crate) session: Option<SessionId>,
    /// Records after this one.
    #[arg(long, default_value_t = 0)]
    pub(crate) after: u64,
}

#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print the configuration in force, defaults included.
    Show {
        /// The file; without one, the defaults.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_words_are_well_formed() {
        Arguments::command().debug_assert();
    }
}
