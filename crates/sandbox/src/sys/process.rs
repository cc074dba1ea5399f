//! Making, limiting and watching processes.

use std::convert::Infallible;
use std::ffi::CStr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::{Errno, Result};

use super::check;

/// The two ways in which a fork returns.
pub(crate) enum Forked {
    /// In the new process.
    Child,
    /// In the old one.
    Parent {
        /// The new process, as this PID namespace numbers it.
        pid: i32,
        /// A handle that cannot be confused with a later process.
        pidfd: OwnedFd,
    },
}

/// `fork`, with a process handle.
pub(crate) fn fork() -> Result<Forked> {
    fork_into(0)
}

/// `fork` into new namespaces (`CLONE_NEW*` flags).
pub(crate) fn fork_into(namespaces: i32) -> Result<Forked> {
    let mut pidfd: RawFd = -1;
    // SAFETY: clone_args is plain integers, for which zero means "not used".
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from((namespaces | libc::CLONE_PIDFD).cast_unsigned());
    arguments.pidfd = (&raw mut pidfd).addr() as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    // SAFETY: no CLONE_VM, so this is a fork: the child has its own copy of
    // everything. Spawner, supervisor and init are single-threaded, so no
    // lock can be held by a thread that the child lacks. `pidfd` outlives the
    // call and is written in the parent alone.
    let pid = check(unsafe { libc::syscall(libc::SYS_clone3, &raw mut arguments, size_of::<libc::clone_args>()) });
    match pid {
        Err(errno) => Err(errno),
        Ok(0) => Ok(Forked::Child),
        Ok(pid) => {
            // SAFETY: the kernel has just made this descriptor for us.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            Ok(Forked::Parent { pid: pid as i32, pidfd })
        }
    }
}

/// Bytes of stack for a child that only starts a program.
const CHILD_STACK: usize = 64 << 10;

/// Starts a child that shares this process's memory until `run` has executed
/// another program; if `run` returns, the child ends with status 127. This
/// process, which must have one thread, stands still meanwhile. Copying the
/// memory's page tables would take longer than all the rest.
pub(crate) fn start_program(run: &dyn Fn()) -> Result<i32> {
    extern "C" fn child(argument: *mut libc::c_void) -> libc::c_int {
        // SAFETY: `argument` points to the reference below, which outlives the
        // child's use of this memory: the parent waits in clone(2).
        let run = unsafe { *argument.cast::<&dyn Fn()>() };
        run();
        // SAFETY: ends this process at once. Nothing may be cleaned up here:
        // it is the parent's.
        unsafe { libc::_exit(127) }
    }
    // Not cleared: of most of it no page is ever touched.
    let mut stack: Vec<u128> = Vec::with_capacity(CHILD_STACK / size_of::<u128>());
    let mut argument: &dyn Fn() = run;
    let flags = libc::CLONE_VM | libc::CLONE_VFORK | libc::SIGCHLD;
    // SAFETY: the stack is large enough for a few system calls, aligned, and
    // grows down from its end; it and the argument live until clone returns,
    // and with CLONE_VFORK that is when the child has let go of the memory. No
    // other thread is there to see what the child does meanwhile; signal
    // handlers are not installed in these processes.
    let pid = unsafe {
        libc::clone(
            child,
            stack.spare_capacity_mut().as_mut_ptr_range().end.cast(),
            flags,
            (&raw mut argument).cast::<libc::c_void>(),
        )
    };
    check(pid.into()).map(|pid| pid as i32)
}

/// Leaves namespaces for new ones.
pub(crate) fn unshare(namespaces: i32) -> Result<()> {
    // SAFETY: a plain integer; no file descriptor table is unshared.
    check(unsafe { libc::unshare(namespaces) }.into()).map(drop)
}

/// Replaces this process. Returns only if that failed.
pub(crate) fn exec(program: &CStr, arguments: &[&CStr], environment: &[&CStr]) -> Result<Infallible> {
    let list = |strings: &[&CStr]| -> Vec<*const libc::c_char> {
        strings.iter().map(|s| s.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
    };
    let (arguments, environment) = (list(arguments), list(environment));
    // SAFETY: both lists end in a null pointer and their strings outlive the
    // call.
    check(unsafe { libc::execve(program.as_ptr(), arguments.as_ptr(), environment.as_ptr()) }.into())?;
    Err(Errno::IO)
}

/// Gives back to a process that is about to exec what [`watch_children`] took.
pub(crate) fn unblock_signals() -> Result<()> {
    // SAFETY: as in `watch_children`.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        check(libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut()).into()).map(drop)
    }
}

/// Moves `keep` to descriptors 3, 4, ... and closes all others but the
/// standard three. For a fresh fork that owes nothing to its parent's.
pub(crate) fn keep_only(keep: Vec<OwnedFd>) -> Result<Vec<OwnedFd>> {
    // Out of the way first, so that no move overwrites one yet to be moved.
    let count = keep.len() as RawFd;
    let aside = keep.iter().map(std::os::fd::AsRawFd::as_raw_fd).max().unwrap_or(0).max(3 + count) + 1;
    for (target, fd) in (aside..).zip(keep) {
        let fd = std::os::fd::IntoRawFd::into_raw_fd(fd);
        // SAFETY: plain integers; whatever was at the target is given up.
        check(unsafe { libc::dup3(fd, target, libc::O_CLOEXEC) }.into())?;
    }
    for index in 0..count {
        // SAFETY: as above.
        check(unsafe { libc::dup3(aside + index, 3 + index, libc::O_CLOEXEC) }.into())?;
    }
    close_from(3 + count.unsigned_abs())?;
    // SAFETY: exactly these descriptors are open now, and nothing else in this
    // process knows them: whoever owned the numbers before is gone.
    Ok((3..3 + count).map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }).collect())
}

/// Makes `fd` standard input (0), output (1) or error (2).
pub(crate) fn set_standard(fd: impl AsFd, number: RawFd) -> Result<()> {
    // SAFETY: plain integers; descriptors 0 to 2 are owned by nobody in the
    // processes of this crate. No close-on-exec: they are meant to pass on.
    check(unsafe { libc::dup2(fd.as_fd().as_raw_fd(), number) }.into()).map(drop)
}

/// Closes every descriptor from `first` upwards.
pub(crate) fn close_from(first: u32) -> Result<()> {
    // SAFETY: the callers own no descriptor at or above `first` that they
    // use afterwards; owned ones were leaked on purpose or are below.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, u32::MAX, 0) }).map(drop)
}

/// Blocks SIGCHLD and returns a descriptor that is readable when a child ended.
pub(crate) fn watch_children() -> Result<OwnedFd> {
    // SAFETY: the set is initialised by sigemptyset before use; the calls
    // only read and write that local.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, libc::SIGCHLD);
        check(libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()).into())?;
        let fd = check(libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK).into())?;
        Ok(OwnedFd::from_raw_fd(fd as RawFd))
    }
}

/// Lowers a resource limit, soft and hard; never raises one, which would need
/// a capability that even root may lack.
pub(crate) fn lower_limit(resource: libc::__rlimit_resource_t, to: u64) -> Result<()> {
    let mut now = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: a local of the right type, written and read by the calls.
    unsafe {
        check(libc::getrlimit(resource, &raw mut now).into())?;
        let limit = to.min(now.rlim_max);
        now = libc::rlimit { rlim_cur: limit, rlim_max: limit };
        check(libc::setrlimit(resource, &raw const now).into())?;
    }
    Ok(())
}

/// Brings the loopback interface of this network namespace up.
pub(crate) fn loopback_up(socket: impl AsFd) -> Result<()> {
    // SAFETY: ifreq is plain data; the name is set before use and the kernel
    // reads the flags member of the union that is set right here.
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        check(libc::ioctl(socket.as_fd().as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request).into())?;
    }
    Ok(())
}

/// Signals every process of this PID namespace but its first, which calls this.
pub(crate) fn signal_all_others(signal: i32) -> Result<()> {
    // SAFETY: plain integers. The kernel spares the caller and PID 1.
    check(unsafe { libc::kill(-1, signal) }.into()).map(drop)
}
