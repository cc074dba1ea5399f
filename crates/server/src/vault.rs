//! The vault as the server's child: started, told, given links, started again
//! if it dies.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cloister_vault::wire::{Order, Role, Setup, send};
use cloister_vault::{Place, VaultError};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::ServerError;
use crate::audit::act;
use crate::config::Config;
use crate::files::take;
use crate::stamp::belong;

/// Longer than it takes from permitting a session to serving it.
const NEW: Duration = Duration::from_secs(30);
/// Between two starts.
const PAUSE: Duration = Duration::from_millis(500);

/// The server's handle.
pub(crate) struct Vault {
    executable: PathBuf,
    setup: Setup,
    control: OwnedFd,
    child: Child,
    started: Instant,
}

impl Vault {
    /// Starts the process.
    pub(crate) fn start(executable: PathBuf, setup: Setup) -> std::io::Result<Self> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child =
            Command::new(&executable).arg("vault-process").stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn()?;
        send(&ours, &Order::Setup(Box::new(setup.clone())), None)?;
        Ok(Self { executable, setup, control: ours, child, started: Instant::now() })
    }

    /// Starts another in place of one that ended.
    pub(crate) fn start_again(&mut self) -> std::io::Result<()> {
        *self = Self::start(self.executable.clone(), self.setup.clone())?;
        Ok(())
    }

    /// A new link, for whoever is at its other end.
    pub(crate) fn link(&self, role: Role) -> std::io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        send(&self.control, &Order::Link(role), Some(&theirs))?;
        Ok(ours)
    }

    /// One that ends as soon as it has begun is not begun again at once.
    pub(crate) fn may_start_again(&self) -> bool {
        self.started.elapsed() >= PAUSE
    }

    /// Could somebody still believe that its predecessor is there?
    pub(crate) fn is_new(&self) -> bool {
        self.started.elapsed() < NEW
    }

    /// For how long it has been there.
    pub(crate) fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// Ends it at once.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Hangs up; the process ends with its last link.
    pub(crate) fn hang_up(self) -> Child {
        self.child
    }
}

/// Does something to a vault, while no server runs; what is done is written down first.
fn change<T>(
    (config, data): (&Config, &Path),
    rule: &str,
    does: impl FnOnce(&Place, &dyn Fn() -> std::io::Result<()>) -> Result<T, VaultError>,
) -> Result<T, ServerError> {
    let mut config = config.clone();
    belong(&mut config, data)?;
    let _lock = take(data)?;
    let place = config.vault_place(data)?;
    let what = format!("key-file:{}", place.key_file.display());
    let written = || act(data, &place.region, rule, what.clone()).map_err(std::io::Error::other);
    does(&place, &written).map_err(|error| ServerError::Start(error.to_string()))
}

/// Closes every credential with a new root key, while no server runs.
///
/// # Errors
/// A server runs, or something does not open.
pub fn rotate_vault(config: &Config, data: &Path) -> Result<usize, ServerError> {
    change((config, data), "vault_rotated", |place, written| cloister_vault::rotate(place, written))
}

/// Opens a vault whose key is lost with a recovery key, while no server runs.
///
/// # Errors
/// A server runs, or it is not one of the vault's recovery keys.
pub fn recover_vault(config: &Config, data: &Path, key: &str) -> Result<(), ServerError> {
    change((config, data), "vault_recovered", |place, written| cloister_vault::recover(place, key, written))
}

/// Takes the present data for the newest, while no server runs.
///
/// # Errors
/// A server runs, or the key does not fit.
pub fn accept_rollback(config: &Config, data: &Path) -> Result<(), ServerError> {
    change((config, data), "rollback_accepted", |place, written| cloister_vault::accept_rollback(place, written))
}
