//! What a process loses before the first instruction of anything foreign:
//! capabilities, new privileges, most system calls, limits.

mod checks;
mod filter;
mod landlock;
mod limits;
mod syscalls;

use std::sync::LazyLock;

use cloister_types::link::Enforced;
use rustix::thread::set_no_new_privs;

pub use limits::Limits;

use crate::sys;

/// A step that failed; each names itself, so a report from the field says
/// which one it was.
#[derive(Debug, thiserror::Error)]
pub enum ConfineError {
    /// A kernel call.
    #[error("{step}: {errno}")]
    Kernel {
        /// What was tried.
        step: &'static str,
        /// The answer.
        errno: rustix::io::Errno,
    },
    /// Landlock's library.
    #[error("landlock: {0}")]
    Landlock(String),
}

/// Does what need not be done in each process that is to be confined: those
/// that are forked from here on have it.
pub(crate) fn get_ready() {
    LazyLock::force(&filter::FILTER);
}

/// Puts the calling process under every restriction there is, for good.
/// Returns the Landlock version in force (0: the kernel has none).
pub(crate) fn close(limits: &Limits, enforced: &Enforced) -> Result<u32, ConfineError> {
    let step = |step| move |errno| ConfineError::Kernel { step, errno };
    limits::apply(limits, enforced)?;
    set_no_new_privs(true).map_err(step("no_new_privs"))?;
    sys::drop_bounding_set().map_err(step("drop the bounding set"))?;
    // Without this a fellow process of the same user could read init's memory.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(step("undumpable"))?;
    let abi = landlock::restrict(enforced.image)?;
    sys::drop_capabilities().map_err(step("drop capabilities"))?;
    sys::install(&filter::FILTER).map_err(step("seccomp"))?;
    Ok(abi)
}
