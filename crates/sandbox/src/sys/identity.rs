//! Ids and capabilities of the calling thread.

use rustix::io::{Errno, Result};

use super::check;

/// The thread's file-system ids, put back when this is dropped.
pub(crate) struct FsIdentity {
    uid: libc::uid_t,
    gid: libc::gid_t,
}

impl FsIdentity {
    /// Sets the thread's file-system ids. With a file-system uid other than 0
    /// the kernel also takes the file capabilities (such as overriding file
    /// modes) out of the thread's effective set until they are put back.
    ///
    /// The calls do not say whether they succeeded, so it is asked. A process
    /// that cannot give up root's rights over files must not go on.
    pub(crate) fn assume(uid: u32, gid: u32) -> Self {
        // SAFETY: the calls only change credentials of the calling thread and
        // take plain integers. The group goes first: it needs rights that the
        // change of the user takes away. No user is called -1: with it, nothing
        // changes, and the present one is returned.
        let (old_gid, old_uid, now) = unsafe {
            let old = (libc::setfsgid(gid), libc::setfsuid(uid));
            (old.0, old.1, (libc::setfsuid(u32::MAX).cast_unsigned(), libc::setfsgid(u32::MAX).cast_unsigned()))
        };
        if now != (uid, gid) {
            eprintln!("cloister: the kernel does not let a thread act as user {uid} on files");
            std::process::abort();
        }
        Self { uid: old_uid.cast_unsigned(), gid: old_gid.cast_unsigned() }
    }
}

impl Drop for FsIdentity {
    fn drop(&mut self) {
        // SAFETY: as above; the user goes first, it brings the rights back.
        unsafe {
            libc::setfsuid(self.uid);
            libc::setfsgid(self.gid);
        }
    }
}

/// Becomes the inside user for good, keeping capabilities for the set-up.
pub(crate) fn become_inside(id: u32) -> Result<()> {
    // SAFETY: plain integer arguments; raw system calls, so that they affect
    // this single-threaded process alone and no library's bookkeeping.
    unsafe {
        check(libc::syscall(libc::SYS_prctl, libc::PR_SET_KEEPCAPS, 1, 0, 0, 0))?;
        // Refused in a user namespace made without root ("setgroups: deny");
        // then there is nothing that could be dropped either.
        let _ = libc::syscall(libc::SYS_setgroups, 0, std::ptr::null::<libc::gid_t>());
        check(libc::syscall(libc::SYS_setresgid, id, id, id))?;
        check(libc::syscall(libc::SYS_setresuid, id, id, id))?;
    }
    effective_from_permitted()
}

#[repr(C)]
#[derive(Default, Clone, Copy)]
struct CapData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

/// `_LINUX_CAPABILITY_VERSION_3` of capability.h: two words a set.
const CAP_VERSION: u32 = 0x2008_0522;
/// `CAP_DAC_READ_SEARCH` of capability.h: what a meter needs to count.
pub(crate) const CAP_DAC_READ_SEARCH: u32 = 2;
/// `CAP_KILL` of capability.h: what a supervisor needs to end its sandbox.
pub(crate) const CAP_KILL: u32 = 5;

fn capset(data: [CapData; 2]) -> Result<()> {
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    // SAFETY: both structures have the kernel's layout for version 3 and
    // outlive the call, which only reads them.
    check(unsafe { libc::syscall(libc::SYS_capset, &raw const header, data.as_ptr()) }).map(drop)
}

fn effective_from_permitted() -> Result<()> {
    let header = CapHeader { version: CAP_VERSION, pid: 0 };
    let mut data = [CapData::default(); 2];
    // SAFETY: layouts as above; the kernel writes two elements.
    check(unsafe { libc::syscall(libc::SYS_capget, &raw const header, data.as_mut_ptr()) })?;
    for word in &mut data {
        word.effective = word.permitted;
    }
    capset(data)
}

/// Drops every capability from the effective, permitted and inheritable sets.
pub(crate) fn drop_capabilities() -> Result<()> {
    capset([CapData::default(); 2])
}

/// Keeps one capability, of the first 32.
pub(crate) fn keep_only_capability(capability: u32) -> Result<()> {
    let low = CapData { effective: 1 << capability, permitted: 1 << capability, inheritable: 0 };
    capset([low, CapData::default()])
}

/// Empties the bounding and ambient sets, so that no later exec can gain.
pub(crate) fn drop_bounding_set() -> Result<()> {
    // SAFETY: plain integer arguments.
    unsafe {
        check(libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0).into())?;
        for capability in 0..64 {
            match check(libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0).into()) {
                // The kernel knows no more of them.
                Err(Errno::INVAL) => break,
                Err(errno) => return Err(errno),
                Ok(_) => {}
            }
            check(libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0).into())?;
        }
    }
    Ok(())
}
