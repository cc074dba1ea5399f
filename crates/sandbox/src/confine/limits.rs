//! Resource limits of a sandbox.

use cloister_types::link::Enforced;
use serde::{Deserialize, Serialize};

use super::ConfineError;
use crate::sys;

/// What one session may use. Enforced by control groups where the machine has
/// them, else by resource limits; [`Enforced`] says which.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes of memory, `/tmp` included.
    pub memory_bytes: u64,
    /// Processes and threads.
    pub processes: u64,
    /// CPUs' worth of time; 1.5 is one and a half.
    pub cpus: f64,
    /// Bytes in `/tmp`.
    pub tmp_bytes: u64,
    /// Open files a process.
    pub open_files: u64,
    /// Bytes of one file.
    pub file_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 2 << 30,
            processes: 1024,
            cpus: 2.0,
            tmp_bytes: 512 << 20,
            open_files: 4096,
            file_bytes: 4 << 30,
        }
    }
}

/// Linux's own default since 5.16.
const LOCKED_BYTES: u64 = 8 << 20;
const WAITING_SIGNALS: u64 = 4096;
/// How far behind the server what runs in a sandbox is, in nice values: a
/// session at work must not keep those waiting who serve the others.
const BEHIND: i32 = 10;
/// How far the second limit of processes is behind the first.
const NPROC_SPARE: u64 = 64;

/// A server that could has gone ahead, and this process has begun where it is;
/// else it is this one that goes back.
fn step_behind() -> rustix::io::Result<()> {
    let inherited = rustix::process::getpriority_process(None)?;
    rustix::process::setpriority_process(None, (inherited + BEHIND).min(19))
}

/// Sets what a process can set for itself.
pub(super) fn apply(limits: &Limits, enforced: &Enforced) -> Result<(), ConfineError> {
    let set = |step, resource, to| sys::lower_limit(resource, to).map_err(|errno| ConfineError::Kernel { step, errno });
    // 1, not 0: with 0 a machine whose core files go to a program would still
    // run it, as root, on what a tool has prepared (core(5)).
    set("limit core dumps", libc::RLIMIT_CORE, 1)?;
    step_behind().map_err(|errno| ConfineError::Kernel { step: "step behind the server", errno })?;
    set("limit real-time priority", libc::RLIMIT_RTPRIO, 0)?;
    set("limit nice values", libc::RLIMIT_NICE, 0)?;
    set("limit locked memory", libc::RLIMIT_MEMLOCK, LOCKED_BYTES)?;
    set("limit waiting signals", libc::RLIMIT_SIGPENDING, WAITING_SIGNALS)?;
    set("limit open files", libc::RLIMIT_NOFILE, limits.open_files)?;
    set("limit file size", libc::RLIMIT_FSIZE, limits.file_bytes)?;
    set("limit message queues", libc::RLIMIT_MSGQUEUE, 0)?;
    // Inside a user namespace this counts the namespace's own processes, so
    // it is a limit per session even where all sessions share a host user.
    // Where a control group counts them it comes first: it tells when it refuses.
    let spare = if enforced.pids == crate::cgroup::PIDS_FALLBACK { 0 } else { NPROC_SPARE };
    set("limit processes", libc::RLIMIT_NPROC, limits.processes + spare)?;
    if enforced.memory == crate::cgroup::MEMORY_FALLBACK {
        set("limit data", libc::RLIMIT_DATA, limits.memory_bytes)?;
    }
    Ok(())
}
