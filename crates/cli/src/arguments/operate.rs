//! The words of those who run servers: tenants, callers, the vault and the audit.

use std::path::PathBuf;

use clap::Subcommand;
use cloister_server::HostUser;
use cloister_types::SessionId;
use cloister_types::access::Role;

#[derive(Debug, Subcommand)]
pub(crate) enum AuditCommand {
    /// Verify the chain: nothing missing, nothing changed, every head signed.
    Verify {
        /// The tenant whose audit it is.
        #[arg(long, default_value = "dev")]
        tenant: String,
        /// A head that was kept elsewhere, as JSON; - for standard input.
        #[arg(long)]
        head: Option<PathBuf>,
        /// The public key that heads must be signed with, hexadecimal.
        #[arg(long)]
        key: Option<String>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum VaultCommand {
    /// Close every credential with a new root key.
    Rotate {
        /// Configuration file of the server.
        #[arg(long)]
        config: Option<PathBuf>,
    },
    /// Make a recovery key: its public half for `[vault] recovery`, its private
    /// half to be kept offline.
    RecoveryKey,
    /// Open a vault whose key is lost with the private half of a recovery key, and
    /// close it with the present key file, which is made if there is none.
    Recover {
        /// Configuration file of the server.
        #[arg(long)]
        config: Option<PathBuf>,
        /// File with the private half; `-` reads it from standard input.
        #[arg(long)]
        recovery_key: PathBuf,
    },
    /// Take the present data for the newest, after a restore on purpose.
    AcceptRollback {
        /// Configuration file of the server.
        #[arg(long)]
        config: Option<PathBuf>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum TenantCommand {
    /// Make a tenant. Its region is for good; its first key is printed once.
    Create {
        /// Its name: 1 to 63 of a-z, 0-9 and -.
        name: String,
        /// Its region.
        #[arg(long)]
        region: String,
        /// Folder of this host's tenants.
        #[arg(long)]
        root: PathBuf,
        /// User of this host, name or number, that it is to belong to; as root.
        #[arg(long)]
        user: Option<HostUser>,
    },
    /// List the tenants.
    Ls {
        /// Folder of this host's tenants.
        #[arg(long)]
        root: PathBuf,
    },
    /// Suspend a tenant: its server ends with its turns, and does not start.
    Suspend {
        /// Its name.
        name: String,
        /// Folder of this host's tenants.
        #[arg(long)]
        root: PathBuf,
    },
    /// Let a suspended tenant serve again.
    Resume {
        /// Its name.
        name: String,
        /// Folder of this host's tenants.
        #[arg(long)]
        root: PathBuf,
    },
    /// Show what was done to tenants, from the audit beside them.
    Log {
        /// Folder of this host's tenants.
        #[arg(long)]
        root: PathBuf,
    },
    /// Remove a suspended tenant for good.
    Rm {
        /// Its name.
        name: String,
        /// Folder of this host's tenants.
        #[arg(long)]
        root: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum AuthCommand {
    /// Show who the caller is to the tenant.
    Me,
    /// Explain what would become of a call, and which rule decides.
    Explain {
        /// Listener that it comes to, by its address in the configuration; the first if
        /// left out.
        #[arg(long)]
        listener: Option<std::net::SocketAddr>,
        /// Endpoint of a private link that it comes over.
        #[arg(long)]
        endpoint: Option<String>,
        /// File with an API key or a token; - for standard input.
        #[arg(long)]
        token_file: Option<PathBuf>,
        /// File with a token of the identity provider's, where an API key comes as well.
        #[arg(long)]
        sso_token_file: Option<PathBuf>,
        /// File with the cookie of somebody who has signed in.
        #[arg(long)]
        cookie_file: Option<PathBuf>,
        /// PEM file with a client certificate.
        #[arg(long)]
        certificate: Option<PathBuf>,
        /// Address that the call comes from.
        #[arg(long)]
        address: Option<std::net::IpAddr>,
    },
    /// List who is signed in with a browser.
    Ls,
    /// Sign somebody out.
    End {
        /// The sign-in.
        id: String,
    },
    /// Make a token that reaches one session alone.
    Token {
        /// The session.
        session: SessionId,
        /// What its holder may: viewer or developer.
        #[arg(long)]
        role: Option<Role>,
        /// Seconds until it ends; 900 if left out.
        #[arg(long)]
        expires_in: Option<u64>,
    },
}

#[derive(Debug, Subcommand)]
pub(crate) enum KeyCommand {
    /// Make a key. It is printed once and stored as a hash.
    New {
        /// Configuration file of the server.
        #[arg(long)]
        config: PathBuf,
        /// Name of the caller.
        #[arg(long, default_value = "default")]
        caller: String,
        /// What the caller may: viewer, operator, developer, security or admin.
        #[arg(long, default_value = "admin")]
        role: Role,
        /// Seconds until it ends by itself.
        #[arg(long)]
        expires_in: Option<u64>,
    },
}
