//! What is looked at in the arguments of a call, as short programs.
//!
//! Only the low 32 bits of an argument are loaded: where the kernel takes an
//! `int` it looks at no more either (CVE-2019-10063 was a filter that did).

use super::filter::{argument, branch, plain};
use super::syscalls::Check;
use crate::sys::Instruction;

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const IF_EQ: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const IF_SET: u16 = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN: u16 = 0x06; // BPF_RET | BPF_K

const fn errno(number: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | number.unsigned_abs()
}

pub(super) const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
pub(super) const REFUSE: u32 = errno(libc::EPERM);
pub(super) const UNKNOWN: u32 = errno(libc::ENOSYS);
/// Said to be done, and not done.
pub(super) const PRETEND: u32 = errno(0);
pub(super) const NO_FAMILY: u32 = errno(libc::EAFNOSUPPORT);
pub(super) const NO_PROTOCOL: u32 = errno(libc::EPROTONOSUPPORT);
pub(super) const NO_REQUEST: u32 = errno(libc::ENOTTY);

/// Terminal requests that are refused: two push input, one loads drivers.
const TERMINAL: [u64; 3] = [libc::TIOCSTI, libc::TIOCLINUX, libc::TIOCSETD];
/// The kind of requests of which all others are taken: terminals and plain
/// descriptors (`FIONREAD`, `FIONBIO` and the like).
const KIND: u32 = 0x5400;
/// Kind and number of the rest: facts about sockets and interfaces (0x89); file
/// attributes (`FS_IOC_GETFLAGS` and `SETFLAGS`, `FSGETXATTR` and `FSSETXATTR`),
/// shared content (`FICLONE`, `FICLONERANGE`, `FIDEDUPERANGE`). What else a file
/// system answers tells of the machine: the disk's id and map, other sessions'
/// files among it; what else a socket takes loads drivers.
const REQUESTS: [u32; 21] = [
    0x8905, 0x8906, 0x8907, 0x8910, 0x8912, 0x8913, 0x8915, 0x8917, 0x8919, 0x891b, 0x891d, 0x8921, 0x8927, 0x8933,
    0x6601, 0x6602, 0x581f, 0x5820, 0x9409, 0x940d, 0x9436,
];
/// Descriptors, flags, locks, owners of signals, pipes, seals, write hints. Not
/// leases (`F_SETLEASE`, `F_SETDELEG`), which stop whoever else opens the file,
/// nor `F_NOTIFY`, which watches folders.
const FCNTL: [u32; 27] = [
    0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 15, 16, 36, 37, 38, 1025, 1027, 1030, 1031, 1032, 1033, 1034, 1035, 1036,
    1037,
];
/// Of IPv4 and IPv6: streams and datagrams.
const TYPES: [u32; 2] = [libc::SOCK_STREAM as u32, libc::SOCK_DGRAM as u32];
/// Any, TCP, UDP: others are rare code of the kernel's, or load it.
const PROTOCOLS: [u32; 3] = [0, libc::IPPROTO_TCP as u32, libc::IPPROTO_UDP as u32];
const WHITEOUT: u32 = libc::RENAME_WHITEOUT;
const CORE: u32 = libc::RLIMIT_CORE;

/// A step of a program.
enum Step {
    Load(u32),
    And(u32),
    Is(u32, To),
    HasAny(u32, To),
    Answer(u32),
    Mark(Mark),
}

/// Where a step leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Answer(u32),
    Mark(Mark),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    Internet,
    Protocol,
    Netlink,
    Own,
    Core,
    High,
}

/// FIFOs, sockets and files, by the mode that is loaded from there. The kernel
/// lets anybody make the device 0:0, an overlay's whiteout.
fn no_device(mode: u32) -> Vec<Step> {
    let refuse = To::Answer(REFUSE);
    let kinds = [libc::S_IFCHR, libc::S_IFBLK].map(|kind| Step::Is(kind, refuse));
    [Step::Load(mode), Step::And(libc::S_IFMT)].into_iter().chain(kinds).chain([Step::Answer(ALLOW)]).collect()
}

/// The program of a check.
pub(super) fn program(check: Check) -> Vec<Instruction> {
    use Step::{And, Answer, HasAny, Is, Load, Mark as Here};
    let allow = To::Answer(ALLOW);
    let refuse = To::Answer(REFUSE);
    let steps = match check {
        Check::None => vec![Answer(ALLOW)],
        Check::Absent => vec![Answer(UNKNOWN)],
        Check::Pretend => vec![Answer(PRETEND)],
        Check::NoNamespaces => {
            vec![Load(argument(0)), HasAny(super::syscalls::NAMESPACE_FLAGS, refuse), Answer(ALLOW)]
        }
        Check::PlainRequest => {
            let mut steps = vec![Load(argument(1))];
            steps.extend(TERMINAL.map(|request| Is(request as u32, refuse)));
            steps.push(And(0xffff));
            steps.extend(REQUESTS.map(|request| Is(request, allow)));
            steps.extend([And(0xff00), Is(KIND, allow), Answer(NO_REQUEST)]);
            steps
        }
        Check::NoLease => {
            let mut steps = vec![Load(argument(1))];
            steps.extend(FCNTL.map(|command| Is(command, allow)));
            steps.push(Answer(REFUSE));
            steps
        }
        Check::NoDevice => no_device(argument(2)),
        Check::NoDeviceByPath => no_device(argument(1)),
        Check::NoWhiteout => vec![Load(argument(4)), HasAny(WHITEOUT, refuse), Answer(ALLOW)],
        Check::Family => {
            let mut steps = vec![
                Load(argument(0)),
                Is(libc::AF_UNIX as u32, allow),
                Is(libc::AF_INET as u32, To::Mark(Mark::Internet)),
                Is(libc::AF_INET6 as u32, To::Mark(Mark::Internet)),
                Is(libc::AF_NETLINK as u32, To::Mark(Mark::Netlink)),
                Answer(NO_FAMILY),
                Here(Mark::Internet),
                Load(argument(1)),
                And(0xf),
            ];
            steps.extend(TYPES.map(|kind| Is(kind, To::Mark(Mark::Protocol))));
            steps.extend([Answer(NO_PROTOCOL), Here(Mark::Protocol), Load(argument(2))]);
            steps.extend(PROTOCOLS.map(|protocol| Is(protocol, allow)));
            steps.extend([
                Answer(NO_PROTOCOL),
                Here(Mark::Netlink),
                Load(argument(2)),
                Is(libc::NETLINK_ROUTE as u32, allow),
                Answer(NO_FAMILY),
            ]);
            steps
        }
        Check::UnixFamily => vec![Load(argument(0)), Is(libc::AF_UNIX as u32, allow), Answer(NO_FAMILY)],
        Check::NoCoreLimit => vec![Load(argument(0)), Is(CORE, To::Answer(PRETEND)), Answer(ALLOW)],
        Check::OwnLimits => vec![
            // What is only read may be anybody's. A pointer has two halves.
            Load(argument(2)),
            Is(0, To::Mark(Mark::High)),
            Load(argument(0)),
            Is(0, To::Mark(Mark::Own)),
            Answer(REFUSE),
            Here(Mark::High),
            Load(argument(2) + 4),
            Is(0, allow),
            // Low half 0, high half not: it is set after all.
            Load(argument(0)),
            Is(0, To::Mark(Mark::Own)),
            Answer(REFUSE),
            Here(Mark::Own),
            Load(argument(1)),
            Is(CORE, To::Mark(Mark::Core)),
            Answer(ALLOW),
            Here(Mark::Core),
            // Nobody could read the old one if it were said to be done.
            Load(argument(3)),
            Is(0, To::Answer(PRETEND)),
            Answer(REFUSE),
        ],
    };
    assemble(&steps)
}

/// Turns steps into instructions; jumps lead forward, to marks or to answers
/// at the end.
fn assemble(steps: &[Step]) -> Vec<Instruction> {
    let mut code: Vec<Instruction> = Vec::new();
    let mut jumps: Vec<(usize, To)> = Vec::new();
    let mut places: Vec<(To, usize)> = Vec::new();
    for step in steps {
        match *step {
            Step::Load(offset) => code.push(plain(LOAD, offset)),
            Step::And(mask) => code.push(plain(AND, mask)),
            Step::Answer(answer) => code.push(plain(RETURN, answer)),
            Step::Mark(mark) => places.push((To::Mark(mark), code.len())),
            Step::Is(value, to) => {
                jumps.push((code.len(), to));
                code.push(branch(IF_EQ, value, 0, 0));
            }
            Step::HasAny(bits, to) => {
                jumps.push((code.len(), to));
                code.push(branch(IF_SET, bits, 0, 0));
            }
        }
    }
    for (at, to) in jumps {
        let place = places.iter().find(|(known, _)| *known == to).map(|(_, place)| *place);
        let place = place.unwrap_or_else(|| {
            places.push((to, code.len()));
            let To::Answer(answer) = to else { unreachable!("every mark is in its program") };
            code.push(plain(RETURN, answer));
            code.len() - 1
        });
        code[at].if_true = u8::try_from(place - at - 1).expect("programs are short");
    }
    code
}
