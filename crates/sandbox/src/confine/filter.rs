//! Compiles the allow-list to a balanced tree of BPF instructions: attaching
//! and running it costs a third of the usual chain of comparisons.

use std::sync::LazyLock;

use super::checks::{self, REFUSE, UNKNOWN};
use super::syscalls::{Check, GROUPS, NEWEST_KNOWN};
use crate::sys::Instruction;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Low half of argument `n` on a little-endian machine.
pub(super) const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

#[cfg(target_arch = "x86_64")]
const THIS_ARCHITECTURE: u32 = 0xc000_003e; // AUDIT_ARCH_X86_64
#[cfg(target_arch = "aarch64")]
const THIS_ARCHITECTURE: u32 = 0xc000_00b7; // AUDIT_ARCH_AARCH64

/// First number of the x32 variants on x86-64.
const X32: u32 = 0x4000_0000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    Return(u32),
    Check(Check),
}

/// Call numbers from `first` up to the next range's first.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: u32,
    action: Action,
}

fn ranges() -> Vec<Range> {
    let of = |number: u32| {
        let group = GROUPS.iter().find(|group| group.calls.contains(&i64::from(number)));
        match group.map(|group| group.check) {
            Some(check) => Action::Check(check),
            None if number <= NEWEST_KNOWN => Action::Return(REFUSE),
            None => Action::Return(UNKNOWN),
        }
    };
    let mut ranges: Vec<Range> = Vec::new();
    for number in 0..=NEWEST_KNOWN + 1 {
        let action = of(number);
        if ranges.last().is_none_or(|last| last.action != action) {
            ranges.push(Range { first: number, action });
        }
    }
    ranges.push(Range { first: X32, action: Action::Return(libc::SECCOMP_RET_KILL_PROCESS) });
    ranges
}

pub(super) const fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

pub(super) const fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

fn tree(ranges: &[Range]) -> Vec<Instruction> {
    let [only] = ranges else {
        let middle = ranges.len() / 2;
        let (low, high) = ranges.split_at(middle);
        let (low, high) = (tree(low), tree(high));
        let mut code = Vec::with_capacity(low.len() + high.len() + 2);
        match u8::try_from(low.len()) {
            Ok(offset) => code.push(branch(IF_GE, ranges[middle].first, offset, 0)),
            // A conditional jump reaches 255 instructions, the plain one any.
            Err(_) => code.extend([branch(IF_GE, ranges[middle].first, 0, 1), plain(JUMP, low.len() as u32)]),
        }
        code.extend(low);
        code.extend(high);
        return code;
    };
    match only.action {
        Action::Return(value) => vec![plain(RETURN, value)],
        Action::Check(check) => checks::program(check),
    }
}

/// The whole filter, the same for every sandbox.
pub(super) static FILTER: LazyLock<Vec<Instruction>> = LazyLock::new(compile);

/// Foreign architectures and x32 end the process.
fn compile() -> Vec<Instruction> {
    let mut code = vec![
        plain(LOAD, ARCHITECTURE),
        branch(IF_EQ, THIS_ARCHITECTURE, 1, 0),
        plain(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
        plain(LOAD, NUMBER),
    ];
    code.extend(tree(&ranges()));
    code
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::confine::checks::{ALLOW, NO_FAMILY, NO_PROTOCOL, NO_REQUEST, PRETEND};

    const AND: u16 = 0x54;
    const IF_SET: u16 = 0x45;

    /// Runs the filter as the kernel would.
    fn run(filter: &[Instruction], architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_le_bytes());
        data.extend(architecture.to_le_bytes());
        data.extend(0u64.to_le_bytes());
        for argument in arguments {
            data.extend(argument.to_le_bytes());
        }
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let step = filter[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { step.if_true } else { step.if_false });
            match step.code {
                LOAD => accumulator = u32::from_le_bytes(data[step.value as usize..][..4].try_into().unwrap()),
                AND => accumulator &= step.value,
                JUMP => at += step.value as usize,
                IF_EQ => at += jump(accumulator == step.value),
                IF_GE => at += jump(accumulator >= step.value),
                IF_SET => at += jump(accumulator & step.value != 0),
                RETURN => return step.value,
                other => panic!("unknown instruction {other}"),
            }
        }
    }

    /// Arguments that pass every check.
    fn arguments_for(number: u32) -> [u64; 6] {
        match i64::from(number) {
            libc::SYS_socket | libc::SYS_socketpair => [libc::AF_UNIX as u64, 0, 0, 0, 0, 0],
            libc::SYS_ioctl => [0, libc::TCGETS, 0, 0, 0, 0],
            _ => [0; 6],
        }
    }

    fn here(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        run(&compile(), THIS_ARCHITECTURE, number as u32, arguments)
    }

    #[test]
    fn every_number_gets_what_the_list_says() {
        let filter = compile();
        for number in 0..NEWEST_KNOWN + 50 {
            let got = run(&filter, THIS_ARCHITECTURE, number, arguments_for(number));
            let group = GROUPS.iter().find(|group| group.calls.contains(&i64::from(number)));
            let want = match group.map(|group| group.check) {
                Some(Check::Absent) => UNKNOWN,
                Some(Check::Pretend) => PRETEND,
                Some(_) => ALLOW,
                None if number <= NEWEST_KNOWN => REFUSE,
                None => UNKNOWN,
            };
            assert_eq!(got, want, "call {number}");
        }
        assert!(filter.len() < 4096, "the kernel's limit");
    }

    #[test]
    fn no_call_is_listed_twice_and_each_group_has_a_reason() {
        let mut all: Vec<_> = GROUPS.iter().flat_map(|group| group.calls).collect();
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
        assert!(GROUPS.iter().all(|group| group.why.len() > 4));
    }

    #[test]
    fn arguments_are_looked_at() {
        let thread = (libc::CLONE_VM | libc::CLONE_THREAD | libc::CLONE_SIGHAND) as u64;
        assert_eq!(here(libc::SYS_clone, [thread, 0, 0, 0, 0, 0]), ALLOW);
        for flag in [libc::CLONE_NEWUSER, libc::CLONE_NEWNS, libc::CLONE_NEWNET, libc::CLONE_NEWPID] {
            assert_eq!(here(libc::SYS_clone, [thread | flag as u64, 0, 0, 0, 0, 0]), REFUSE);
        }
        assert_eq!(here(libc::SYS_prlimit64, [0; 6]), ALLOW);
        // Core limits: read by anybody, set by nobody.
        assert_eq!(here(libc::SYS_prlimit64, [0, 4, 0, 1, 0, 0]), ALLOW);
        assert_eq!(here(libc::SYS_prlimit64, [0, 4, 1, 0, 0, 0]), PRETEND);
        assert_eq!(here(libc::SYS_prlimit64, [0, 4, 1 << 32, 0, 0, 0]), PRETEND);
        assert_eq!(here(libc::SYS_prlimit64, [0, 7, 1, 0, 0, 0]), ALLOW);
        assert_eq!(here(libc::SYS_setrlimit, [4, 1, 0, 0, 0, 0]), PRETEND);
        assert_eq!(here(libc::SYS_setrlimit, [7, 1, 0, 0, 0, 0]), ALLOW);
        for (kind, answer) in [
            (libc::S_IFREG, ALLOW),
            (libc::S_IFIFO, ALLOW),
            (libc::S_IFSOCK, ALLOW),
            (0, ALLOW),
            (libc::S_IFCHR, REFUSE),
            (libc::S_IFBLK, REFUSE),
        ] {
            assert_eq!(here(libc::SYS_mknodat, [0, 0, u64::from(kind | 0o600), 0, 0, 0]), answer);
        }
        assert_eq!(here(libc::SYS_sync, [0; 6]), PRETEND);
        for (command, answer) in
            [(1, ALLOW), (38, ALLOW), (1024, REFUSE), (1026, REFUSE), (1030, ALLOW), (1040, REFUSE)]
        {
            assert_eq!(here(libc::SYS_fcntl, [0, command, 0, 0, 0, 0]), answer);
        }
        for (flags, answer) in [(0, ALLOW), (1, ALLOW), (2, ALLOW), (4, REFUSE), (6, REFUSE)] {
            assert_eq!(here(libc::SYS_renameat2, [0, 0, 0, 0, flags, 0]), answer);
        }
        for (request, answer) in [
            (0x541b, ALLOW),
            (0x8008_6601, ALLOW),
            (0x4008_6602, ALLOW),
            (0x4004_9409, ALLOW),
            (0x8008_662c, NO_REQUEST),
            (0x8011_1500, NO_REQUEST),
            (0x8081_1501, NO_REQUEST),
            (0x8100_9431, NO_REQUEST),
            (0xc0c0_583b, NO_REQUEST),
            (0xc020_660b, NO_REQUEST),
            (0x1268, NO_REQUEST),
            (0x8913, ALLOW),
            (0x8940, NO_REQUEST),
            (0x8982, NO_REQUEST),
            (0x89a0, NO_REQUEST),
        ] {
            assert_eq!(here(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]), answer, "{request:x}");
        }
        for (family, answer) in [(1, ALLOW), (16, NO_FAMILY), (40, NO_FAMILY), (30, NO_FAMILY)] {
            assert_eq!(here(libc::SYS_socketpair, [family, 1, 0, 0, 0, 0]), answer);
        }
        assert_eq!(here(libc::SYS_prlimit64, [1, 0, 0, 1, 0, 0]), ALLOW, "read");
        assert_eq!(here(libc::SYS_prlimit64, [1, 0, 1, 0, 0, 0]), REFUSE);
        assert_eq!(here(libc::SYS_prlimit64, [1, 0, 1 << 32, 0, 0, 0]), REFUSE);
        assert_eq!(here(libc::SYS_prlimit64, [0, 4, 1, 1, 0, 0]), REFUSE, "the old one could not be told");
        assert_eq!(here(libc::SYS_ioctl, [0, libc::TCGETS, 0, 0, 0, 0]), ALLOW);
        for request in [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSETD] {
            assert_eq!(here(libc::SYS_ioctl, [0, request, 0, 0, 0, 0]), REFUSE);
        }
        assert_eq!(here(libc::SYS_ioctl, [0, libc::TIOCSTI | 1 << 40, 0, 0, 0, 0]), REFUSE);
        assert_eq!(here(libc::SYS_ioctl, [0, libc::TIOCLINUX, 0, 0, 0, 0]), REFUSE);
        let socket = |family: libc::c_int, protocol: u64| here(libc::SYS_socket, [family as u64, 1, protocol, 0, 0, 0]);
        for family in [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6] {
            assert_eq!(socket(family, 6), ALLOW);
        }
        for kind in [0, libc::SOCK_RAW, libc::SOCK_DCCP, libc::SOCK_SEQPACKET] {
            assert_eq!(here(libc::SYS_socket, [libc::AF_INET as u64, kind as u64, 0, 0, 0, 0]), NO_PROTOCOL);
        }
        let flags = (libc::SOCK_STREAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK) as u64;
        assert_eq!(here(libc::SYS_socket, [libc::AF_INET6 as u64, flags, 0, 0, 0, 0]), ALLOW);
        for protocol in [1, 33, 132, 136, 262] {
            assert_eq!(socket(libc::AF_INET, protocol), NO_PROTOCOL);
        }
        assert_eq!(socket(libc::AF_NETLINK, 0), ALLOW);
        for (family, protocol) in [
            (libc::AF_NETLINK, 12),
            (libc::AF_NETLINK, 16),
            (libc::AF_PACKET, 3),
            (libc::AF_VSOCK, 0),
            (libc::AF_ALG, 0),
        ] {
            assert_eq!(socket(family, protocol), NO_FAMILY, "{family} {protocol}");
        }
    }

    #[test]
    fn foreign_architectures_and_x32_die() {
        assert_eq!(run(&compile(), 0x4000_0003, libc::SYS_read as u32, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
        assert_eq!(here(i64::from(X32) + libc::SYS_read, [0; 6]), libc::SECCOMP_RET_KILL_PROCESS);
    }

    #[test]
    fn what_opens_the_kernel_is_not_listed() {
        for call in [
            libc::SYS_mount,
            libc::SYS_umount2,
            libc::SYS_move_mount,
            libc::SYS_fsopen,
            libc::SYS_open_tree,
            libc::SYS_mount_setattr,
            libc::SYS_pivot_root,
            libc::SYS_chroot,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_ptrace,
            libc::SYS_process_vm_readv,
            libc::SYS_process_vm_writev,
            libc::SYS_pidfd_getfd,
            libc::SYS_bpf,
            libc::SYS_perf_event_open,
            libc::SYS_userfaultfd,
            libc::SYS_io_uring_setup,
            libc::SYS_keyctl,
            libc::SYS_add_key,
            libc::SYS_request_key,
            libc::SYS_init_module,
            libc::SYS_finit_module,
            libc::SYS_kexec_load,
            libc::SYS_reboot,
            libc::SYS_swapon,
            libc::SYS_acct,
            libc::SYS_quotactl,
            libc::SYS_settimeofday,
            libc::SYS_clock_settime,
            libc::SYS_sethostname,
            libc::SYS_syslog,
            libc::SYS_personality,
            libc::SYS_open_by_handle_at,
            libc::SYS_name_to_handle_at,
            libc::SYS_seccomp,
            libc::SYS_fanotify_init,
            libc::SYS_kcmp,
            457,
            /* statmount */ 458, /* listmount */
        ] {
            assert_eq!(here(call, [0; 6]), REFUSE, "call {call}");
        }
    }
}
