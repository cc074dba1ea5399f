//! What the vault's process does to itself, and whom it listens to.

use std::os::fd::OwnedFd;

/// Nobody reads this process: no core, no debugger, no swap.
pub(crate) fn close_up() {
    use rustix::process::{DumpableBehavior, Resource, Rlimit, getrlimit, set_dumpable_behavior, setrlimit};
    let _ = set_dumpable_behavior(DumpableBehavior::NotDumpable);
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    let _ = rustix::thread::set_no_new_privs(true);
    // With a limit, memory that is needed later would be refused.
    if getrlimit(Resource::Memlock).current.is_none() || rustix::process::geteuid().is_root() {
        let flags =
            rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE | rustix::mm::MlockAllFlags::ONFAULT;
        if let Err(error) = rustix::mm::mlockall(flags) {
            tracing::warn!(%error, "the vault's memory can be swapped out");
        }
    } else {
        tracing::info!("the vault's memory can be swapped out: the limit of locked memory is too low");
    }
}

/// Links are made by the server, who is this process's own user.
pub(crate) fn check_peer(link: &OwnedFd) -> std::io::Result<()> {
    let peer = rustix::net::sockopt::socket_peercred(link)?;
    if peer.uid == rustix::process::geteuid() { Ok(()) } else { Err(std::io::ErrorKind::PermissionDenied.into()) }
}
