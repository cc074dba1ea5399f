//! Compiles the allow-list to a balanced tree of BPF instructions: attaching
//! and running it costs a third of the usual chain of comparisons.

use super::syscalls::{Check, FAMILIES, GROUPS, NAMESPACE_FLAGS, NEWEST_KNOWN, TERMINAL};
use crate::sys::Instruction;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const IF_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_GE: u16 = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const IF_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

/// Offsets in `struct seccomp_data`.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// Low half of argument `n` on a little-endian machine.
const fn argument(n: u32) -> u32 {
    16 + 8 * n
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const REFUSE: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
const UNKNOWN: u32 = libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32;
const NO_FAMILY: u32 = libc::SECCOMP_RET_ERRNO | libc::EAFNOSUPPORT as u32;

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
            Some(Check::None) => Action::Return(ALLOW),
            Some(Check::Absent) => Action::Return(UNKNOWN),
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

const fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, if_true: 0, if_false: 0, value }
}

const fn branch(code: u16, value: u32, if_true: u8, if_false: u8) -> Instruction {
    Instruction { code, if_true, if_false, value }
}

fn leaf(action: Action) -> Vec<Instruction> {
    match action {
        Action::Return(value) => vec![plain(RETURN, value)],
        Action::Check(Check::NoNamespaces) => {
            vec![
                plain(LOAD, argument(0)),
                branch(IF_SET, NAMESPACE_FLAGS, 0, 1),
                plain(RETURN, REFUSE),
                plain(RETURN, ALLOW),
            ]
        }
        Action::Check(Check::PlainTerminal) => vec![
            plain(LOAD, argument(1)),
            branch(IF_EQ, TERMINAL[0], 2, 0),
            branch(IF_EQ, TERMINAL[1], 1, 0),
            branch(IF_EQ, TERMINAL[2], 0, 1),
            plain(RETURN, REFUSE),
            plain(RETURN, ALLOW),
        ],
        Action::Check(Check::OwnProcess) => {
            vec![plain(LOAD, argument(0)), branch(IF_EQ, 0, 1, 0), plain(RETURN, REFUSE), plain(RETURN, ALLOW)]
        }
        Action::Check(Check::Family) => vec![
            plain(LOAD, argument(0)),
            branch(IF_EQ, FAMILIES[0], 6, 0),
            branch(IF_EQ, FAMILIES[1], 5, 0),
            branch(IF_EQ, FAMILIES[2], 4, 0),
            branch(IF_EQ, libc::AF_NETLINK as u32, 0, 2),
            plain(LOAD, argument(2)),
            branch(IF_EQ, libc::NETLINK_ROUTE as u32, 1, 0),
            plain(RETURN, NO_FAMILY),
            plain(RETURN, ALLOW),
        ],
        Action::Check(Check::None | Check::Absent) => unreachable!("ranges() turns these into plain returns"),
    }
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
    leaf(only.action)
}

/// The whole filter. Foreign architectures and x32 end the process.
pub(super) fn compile() -> Vec<Instruction> {
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
                JUMP => at += step.value as usize,
                IF_EQ => at += jump(accumulator == step.value),
                IF_GE => at += jump(accumulator >= step.value),
                IF_SET => at += jump(accumulator & step.value != 0),
                RETURN => return step.value,
                other => panic!("unknown instruction {other}"),
            }
        }
    }

    /// A first argument that passes every check.
    fn argument_for(number: u32) -> u64 {
        if i64::from(number) == libc::SYS_socket { libc::AF_UNIX as u64 } else { 0 }
    }

    fn here(number: libc::c_long, arguments: [u64; 6]) -> u32 {
        run(&compile(), THIS_ARCHITECTURE, number as u32, arguments)
    }

    #[test]
    fn every_number_gets_what_the_list_says() {
        let filter = compile();
        for number in 0..NEWEST_KNOWN + 50 {
            let got = run(&filter, THIS_ARCHITECTURE, number, [argument_for(number), 0, 0, 0, 0, 0]);
            let group = GROUPS.iter().find(|group| group.calls.contains(&i64::from(number)));
            let want = match group.map(|group| group.check) {
                Some(Check::None | Check::Family | Check::NoNamespaces | Check::PlainTerminal | Check::OwnProcess) => {
                    ALLOW
                }
                Some(Check::Absent) => UNKNOWN,
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
        assert_eq!(here(libc::SYS_prlimit64, [1, 0, 0, 0, 0, 0]), REFUSE);
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
