//! Installing a filter.

use rustix::io::Result;

use super::check;

/// One classic BPF instruction, in the kernel's layout.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Instruction {
    pub(crate) code: u16,
    pub(crate) if_true: u8,
    pub(crate) if_false: u8,
    pub(crate) value: u32,
}

#[repr(C)]
struct Program {
    length: u16,
    instructions: *const Instruction,
}

/// Installs the filter for this process and its children, for good.
/// `no_new_privs` must be set.
pub(crate) fn install(filter: &[Instruction]) -> Result<()> {
    let length = u16::try_from(filter.len()).map_err(|_| rustix::io::Errno::TOOBIG)?;
    let program = Program { length, instructions: filter.as_ptr() };
    // SAFETY: the program has the kernel's layout and points to `length`
    // instructions that outlive the call, which copies them.
    check(unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) }).map(drop)
}

/// Which version of Landlock the kernel has.
pub(crate) fn landlock_version() -> Result<u32> {
    const VERSION: libc::c_uint = 1;
    // SAFETY: with this flag the call takes no structure, and only answers.
    let version =
        unsafe { libc::syscall(libc::SYS_landlock_create_ruleset, std::ptr::null::<libc::c_void>(), 0_usize, VERSION) };
    check(version).map(|version| version as u32)
}
