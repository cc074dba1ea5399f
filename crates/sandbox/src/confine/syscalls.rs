//! The system calls that a sandbox may make, as data. What is not here is
//! refused: EPERM for calls that the kernel knows, ENOSYS for numbers newer
//! than this list, so that C libraries fall back as on an older kernel.

/// What to look at before a call is let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Check {
    /// Nothing: the call is harmless whatever its arguments.
    None,
    /// `clone`: no namespace flag.
    NoNamespaces,
    /// `socket`: unix; IPv4 and IPv6 for TCP and UDP; netlink for routes alone.
    /// Packet, vsock (a line to the hypervisor) and the rest are refused.
    Family,
    /// `socketpair`: unix alone. The kernel loads families for it, too.
    UnixFamily,
    /// `ioctl`: terminals, sockets, file attributes, shared content. Not what
    /// pushes input into a terminal, nor line disciplines, which are drivers.
    PlainRequest,
    /// `fcntl`: no leases, which stop others, the file API among them.
    NoLease,
    /// `renameat2`: no whiteouts, which are devices.
    NoWhiteout,
    /// No device: the mode is the third argument.
    NoDevice,
    /// The same; it is the second.
    NoDeviceByPath,
    /// `setrlimit`: not of core files, which the machine may pipe to a program
    /// of its own whatever the limit, unless that is 1.
    NoCoreLimit,
    /// `prlimit64`: the caller's own limits alone, as init's are not a tool's to
    /// lower; and not of core files.
    OwnLimits,
    /// Answered as if done: what it does concerns the whole machine.
    Pretend,
    /// `clone3`: answered with ENOSYS. Its flags lie in memory, where a
    /// filter cannot see them; libraries then use `clone`.
    Absent,
}

/// A group of calls that share one reason.
pub(super) struct Group {
    #[cfg_attr(not(test), expect(dead_code, reason = "for readers and the tests"))]
    pub(super) why: &'static str,
    pub(super) check: Check,
    pub(super) calls: &'static [libc::c_long],
}

macro_rules! group {
    ($why:literal, $check:ident: $($call:ident)*) => {
        Group { why: $why, check: Check::$check, calls: &[$(libc::$call),*] }
    };
}

/// The allow-list.
pub(super) const GROUPS: &[Group] = &[
    group!("files: open, read, write, position, sync", None:
        SYS_openat SYS_openat2 SYS_close SYS_close_range SYS_read SYS_write SYS_readv SYS_writev SYS_pread64 SYS_pwrite64 SYS_preadv
        SYS_pwritev SYS_preadv2 SYS_pwritev2 SYS_lseek SYS_fsync SYS_fdatasync SYS_sync_file_range SYS_fallocate
        SYS_ftruncate SYS_truncate SYS_copy_file_range SYS_sendfile SYS_splice SYS_tee SYS_vmsplice SYS_readahead SYS_fadvise64 SYS_flock
        SYS_dup SYS_dup3),
    group!("descriptors: flags, locks, pipes", NoLease: SYS_fcntl),
    group!("every disk of the machine at once; fsync is for one's own files", Pretend: SYS_sync SYS_syncfs),
    group!("names and metadata: the mount tree decides what is reachable", None:
        SYS_getdents64 SYS_getcwd SYS_chdir SYS_fchdir SYS_mkdirat SYS_unlinkat SYS_linkat SYS_symlinkat SYS_readlinkat SYS_renameat
        SYS_newfstatat SYS_fstat SYS_statx SYS_statfs SYS_fstatfs SYS_faccessat SYS_faccessat2 SYS_fchmod SYS_fchmodat
        SYS_fchmodat2 SYS_fchown SYS_fchownat SYS_utimensat SYS_umask SYS_inotify_init1 SYS_inotify_add_watch
        SYS_inotify_rm_watch),
    group!("FIFOs and sockets, and no device", NoDevice: SYS_mknodat),
    group!("exchange, and not over what is there", NoWhiteout: SYS_renameat2),
    group!("extended attributes: tools copy them", None:
        SYS_getxattr SYS_lgetxattr SYS_fgetxattr SYS_listxattr SYS_llistxattr SYS_flistxattr SYS_setxattr SYS_lsetxattr SYS_fsetxattr
        SYS_removexattr SYS_lremovexattr SYS_fremovexattr),
    group!("memory of the process itself", None:
        SYS_brk SYS_mmap SYS_munmap SYS_mremap SYS_mprotect SYS_madvise SYS_msync SYS_mincore SYS_mlock SYS_mlock2 SYS_munlock
        SYS_mlockall SYS_munlockall SYS_membarrier SYS_memfd_create SYS_pkey_alloc SYS_pkey_free SYS_pkey_mprotect SYS_remap_file_pages
        SYS_mseal SYS_get_mempolicy SYS_set_mempolicy SYS_mbind SYS_process_madvise SYS_process_mrelease),
    group!("processes and threads, all of this PID namespace", None:
        SYS_execve SYS_execveat SYS_exit SYS_exit_group SYS_wait4 SYS_waitid SYS_kill SYS_tkill SYS_tgkill SYS_getpid SYS_getppid SYS_gettid
        SYS_getpgid SYS_setpgid SYS_getsid SYS_setsid SYS_set_tid_address SYS_set_robust_list SYS_get_robust_list SYS_rseq SYS_futex
        SYS_futex_waitv SYS_sched_yield SYS_sched_getaffinity SYS_sched_setaffinity SYS_sched_getparam SYS_sched_setparam
        SYS_sched_getscheduler SYS_sched_setscheduler SYS_sched_getattr SYS_sched_setattr SYS_sched_get_priority_max
        SYS_sched_get_priority_min SYS_sched_rr_get_interval SYS_getpriority SYS_setpriority SYS_ioprio_get SYS_ioprio_set
        SYS_getrusage SYS_times SYS_getrlimit SYS_prctl SYS_getcpu SYS_pidfd_open SYS_pidfd_send_signal
        SYS_restart_syscall),
    group!("limits of the caller itself", NoCoreLimit: SYS_setrlimit),
    group!("limits of the caller itself, by another call", OwnLimits: SYS_prlimit64),
    group!("namespaces are the sandbox's own business", NoNamespaces: SYS_clone),
    group!("flags in memory, out of a filter's sight", Absent: SYS_clone3),
    group!("signals", None:
        SYS_rt_sigaction SYS_rt_sigprocmask SYS_rt_sigreturn SYS_rt_sigpending SYS_rt_sigsuspend SYS_rt_sigtimedwait SYS_rt_sigqueueinfo
        SYS_rt_tgsigqueueinfo SYS_sigaltstack SYS_signalfd4),
    group!("ids: one user inside, so changing them gains nothing", None:
        SYS_getuid SYS_geteuid SYS_getgid SYS_getegid SYS_getgroups SYS_getresuid SYS_getresgid SYS_setuid SYS_setgid SYS_setreuid
        SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid SYS_capget SYS_capset),
    group!("time and timers, reading clocks", None:
        SYS_clock_gettime SYS_clock_getres SYS_clock_nanosleep SYS_nanosleep SYS_gettimeofday SYS_getitimer SYS_setitimer SYS_timer_create
        SYS_timer_settime SYS_timer_gettime SYS_timer_getoverrun SYS_timer_delete SYS_timerfd_create SYS_timerfd_settime
        SYS_timerfd_gettime),
    group!("waiting", None:
        SYS_epoll_create1 SYS_epoll_ctl SYS_epoll_pwait SYS_epoll_pwait2 SYS_ppoll SYS_pselect6 SYS_eventfd2 SYS_pipe2),
    group!("sockets of the allowed families; blocking single calls breaks event loops and gains nothing", None:
        SYS_bind SYS_listen SYS_accept SYS_accept4 SYS_connect SYS_getsockname SYS_getpeername SYS_sendto SYS_recvfrom
        SYS_sendmsg SYS_recvmsg SYS_sendmmsg SYS_recvmmsg SYS_setsockopt SYS_getsockopt SYS_shutdown),
    group!("which families", Family: SYS_socket),
    group!("pairs of them", UnixFamily: SYS_socketpair),
    group!("devices and terminals", PlainRequest: SYS_ioctl),
    group!("System V and POSIX queues, in the sandbox's own IPC namespace", None:
        SYS_shmget SYS_shmat SYS_shmctl SYS_shmdt SYS_semget SYS_semop SYS_semtimedop SYS_semctl SYS_msgget SYS_msgsnd SYS_msgrcv SYS_msgctl
        SYS_mq_open SYS_mq_unlink SYS_mq_timedsend SYS_mq_timedreceive SYS_mq_notify SYS_mq_getsetattr),
    group!("facts about the machine", None: SYS_uname SYS_sysinfo SYS_getrandom),
    group!("further self-restriction", None: SYS_landlock_create_ruleset SYS_landlock_add_rule SYS_landlock_restrict_self),
    #[cfg(target_arch = "x86_64")]
    group!("older spellings of the above that only this architecture has", None:
        SYS_open SYS_creat SYS_stat SYS_lstat SYS_access SYS_mkdir SYS_rmdir SYS_unlink SYS_link SYS_symlink SYS_readlink SYS_rename
        SYS_chmod SYS_chown SYS_lchown SYS_utime SYS_utimes SYS_futimesat SYS_getdents SYS_dup2 SYS_pipe SYS_poll SYS_select
        SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_signalfd SYS_inotify_init SYS_fork SYS_vfork SYS_getpgrp SYS_alarm SYS_pause
        SYS_time SYS_arch_prctl),
    #[cfg(target_arch = "x86_64")]
    group!("FIFOs and sockets, and no device, by the older spelling", NoDeviceByPath: SYS_mknod),
];

/// Highest number that this list's author knew: above it, ENOSYS.
pub(super) const NEWEST_KNOWN: u32 = 462;

/// `CLONE_NEW*`, all of them.
pub(super) const NAMESPACE_FLAGS: u32 = (libc::CLONE_NEWNS
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS
    | libc::CLONE_NEWCGROUP
    | 0x80/* CLONE_NEWTIME */) as u32;
