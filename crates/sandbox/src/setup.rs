//! The child's side of a launch: a fresh clone in new namespaces makes itself the
//! confined PID 1 of a sandbox.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloister_types::link::Enforced;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountAttrFlags;

use crate::cgroup::Doors;
use crate::confine::{self, Limits};
use crate::launch::{Refused, Standing};
use crate::view::mounts;
use crate::{INSIDE_ID, WORKSPACE, init, protocol, sys};

/// Never returns: it serves as init or exits.
pub(crate) fn child(
    root: OwnedFd,
    control: OwnedFd,
    go: OwnedFd,
    doors: Doors,
    limits: &Limits,
    enforced: &Enforced,
) -> ! {
    // The supervisor's own socket end must close here, or init would never
    // notice that the supervisor is gone.
    let kept = sys::keep_only([root, control, go].into_iter().chain(doors.0).collect());
    let Ok(mut kept) = kept else { std::process::exit(1) };
    let doors = Doors(kept.split_off(3));
    let Ok([root, control, go]) = <[OwnedFd; 3]>::try_from(kept) else { std::process::exit(1) };
    if !may_go(&control, go) {
        std::process::exit(1);
    }
    let entered = doors.enter().map_err(Refused::at("move init into its control groups"));
    let mut used_up = Vec::new();
    let standing = match entered.and_then(|()| set_up(root, limits, enforced, &mut used_up)) {
        Ok(landlock_abi) => Standing::Prepared { landlock_abi },
        Err(refused) => Standing::Failed(refused),
    };
    let fds: Vec<BorrowedFd<'_>> = used_up.iter().map(AsFd::as_fd).collect();
    if protocol::send(&control, &standing, &fds).is_err() || matches!(standing, Standing::Failed(_)) {
        std::process::exit(1);
    }
    drop(used_up);
    // Either there is a workspace now, or nobody needs this sandbox.
    let Ok(children) = sys::watch_children() else { std::process::exit(1) };
    let Some(first) = init::wait_for_workspace(&control) else { std::process::exit(0) };
    if rustix::process::chdir(format!("/{WORKSPACE}")).is_err() {
        std::process::exit(1);
    }
    init::serve(control, children, first, enforced.image)
}

/// Waits for the starting signal; false if the supervisor hangs up. Not a word
/// on the socket: the kernel would take that for the sender's last before it
/// sleeps, and wake init on the sender's processor, where it would wait.
fn may_go(control: &OwnedFd, go: OwnedFd) -> bool {
    let mut waiting = [PollFd::new(&go, PollFlags::IN), PollFd::new(control, PollFlags::IN)];
    let woken = rustix::io::retry_on_intr(|| poll(&mut waiting, None));
    woken.is_ok() && !waiting[0].revents().is_empty()
}

fn set_up(root: OwnedFd, limits: &Limits, enforced: &Enforced, used_up: &mut Vec<OwnedFd>) -> Result<u32, Refused> {
    sys::become_inside(INSIDE_ID).map_err(Refused::at("become the inside user"))?;
    rustix::process::setsid().map_err(Refused::at("start a session (setsid)"))?;
    sys::unshare(libc::CLONE_NEWCGROUP).map_err(Refused::at("make the cgroup namespace"))?;
    rustix::system::sethostname(b"cloister").map_err(Refused::at("set the host name"))?;
    rustix::system::setdomainname(b"(none)").map_err(Refused::at("set the domain name"))?;
    let last = forbid_namespaces(used_up).map_err(Refused::at("forbid nested namespaces"))?;

    // procfs must be made while the old, unmasked one is still visible.
    let proc = mounts::process_only_proc().map_err(Refused::at("make procfs (subset=pid)"))?;
    let empty = (enforced.hidden_mounts && !enforced.image).then(|| mounts::part(&root, "proc"));
    if !enforced.hidden_mounts {
        // The tree needs a place in this namespace before it can become the root.
        let spot = mounts::host("/proc").map_err(Refused::at("open /proc"))?;
        mounts::attach(&root, &spot).map_err(Refused::at("move the root tree in"))?;
    }
    let terminals = mounts::terminals().map_err(Refused::at("make the terminals (devpts)"))?;
    let [temporary, shared] =
        memory(limits.tmp_bytes, used_up).map_err(Refused::at("make the temporary folders (tmpfs)"))?;
    for (mount, folder) in [(proc, "proc"), (terminals, "dev/pts"), (temporary, "tmp"), (shared, "dev/shm")] {
        let target = rustix::fs::openat(&root, folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(Refused::at(&format!("open the new /{folder}")))?;
        mounts::attach(mount, target).map_err(Refused::at(&format!("attach /{folder}")))?;
    }
    rustix::process::fchdir(&root).map_err(Refused::at("enter the root tree"))?;
    if enforced.hidden_mounts {
        // An image can be changed, the places of its mounts among it.
        empty
            .unwrap_or_else(|| mounts::clone_mount(&root, true))
            .and_then(|cover| mounts::attach(cover, mounts::host("/")?))
            .map_err(Refused::at("cover the mount namespace"))?;
        rustix::process::chroot(".").map_err(Refused::at("make the tree the root (chroot)"))?;
    } else {
        sys::pivot_into_cwd().map_err(Refused::at("pivot the root"))?;
    }
    drop(root);

    rustix::process::umask(Mode::from_raw_mode(0o022));
    fs::create_dir("/tmp/home").map_err(Refused::at("make the home folder"))?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(Refused::at("open /dev/null"))?;
    for number in 0..3 {
        sys::set_standard(&null, number).map_err(Refused::at("set the standard descriptors"))?;
    }
    // The mount namespaces' limit comes last: it counts detached trees, too.
    rustix::io::write(&last, b"0").map_err(Refused::at("forbid nested mount namespaces"))?;
    drop(last);
    confine::close(limits, enforced).map_err(Refused::at("confine"))
}

/// Two folders for everybody in memory, with room for so many bytes together: a
/// file system of its own for either takes more of the kernel's memory.
fn memory(bytes: u64, used_up: &mut Vec<OwnedFd>) -> Result<[OwnedFd; 2], Errno> {
    let (size, inodes, id) = (bytes.to_string(), (bytes / 4096).max(1024).to_string(), INSIDE_ID.to_string());
    let options = [("size", &*size), ("nr_inodes", &inodes), ("mode", "0755"), ("uid", &id), ("gid", &id)];
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NODEV;
    let folder = |whole: &OwnedFd, name: &str| {
        let everybody = Mode::from_raw_mode(0o1777);
        rustix::fs::mkdirat(whole, name, everybody)?;
        rustix::fs::chmodat(whole, name, everybody, AtFlags::empty())?;
        mounts::part(whole, name)
    };
    let whole = mounts::tmpfs(&options, attributes)?;
    let temporary = folder(&whole, "tmp");
    if matches!(temporary, Err(Errno::INVAL)) {
        // Before Linux 6.15 what is mounted nowhere has no parts.
        let one = |bytes: u64| {
            let size = bytes.to_string();
            mounts::tmpfs(&[&[("size", &*size), ("mode", "1777")], &options[1..2], &options[3..]].concat(), attributes)
        };
        return Ok([one(bytes - bytes / 4)?, one(bytes / 4)?]);
    }
    let both = [temporary?, folder(&whole, "shm")?];
    used_up.push(whole);
    Ok(both)
}

/// Writes 0 to the per-namespace limits, so that nesting fails even if the
/// filter let it through. Returns the mount limit's file, to be written last.
fn forbid_namespaces(used_up: &mut Vec<OwnedFd>) -> Result<OwnedFd, Errno> {
    let proc = mounts::whole_proc()?;
    let open = |name: String| {
        rustix::fs::openat(&proc, format!("sys/user/max_{name}"), OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
    };
    for kind in ["user", "net", "pid", "ipc", "uts", "cgroup"] {
        rustix::io::write(open(format!("{kind}_namespaces"))?, b"0")?;
    }
    // These are charged to the user who made the namespace, too: one session
    // must not use up what the host's own programs need.
    for (kind, most) in [("instances", "32"), ("watches", "16384")] {
        rustix::io::write(open(format!("inotify_{kind}"))?, most.as_bytes())?;
    }
    let last = open("mnt_namespaces".to_owned());
    used_up.push(proc);
    last
}
