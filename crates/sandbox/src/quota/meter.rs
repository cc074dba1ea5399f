//! The meter's process: forked from the spawner, with its rights, and without
//! any other descriptor than the workspace and its members' sockets.

use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fstat, fstatvfs, openat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use rustix::process::{Pid, WaitOptions, waitpid};
use serde::{Deserialize, Serialize};

use super::gauge::Gauge;
use super::{Allowance, Amount, Full, Meter, Said, Word, usage};
use crate::protocol;
use crate::sys::{self, Forked};

/// How often the disk is looked at while programs are at work.
const TICK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// How long a supervisor that was told of a full workspace has to say whether
/// it saw somebody write; one that is held up has not seen that nobody did.
const ANSWER: Duration = Duration::from_secs(2);

/// From the spawner: here is one more who writes. The socket comes along.
#[derive(Debug, Serialize, Deserialize)]
struct Join;

/// The meter, as its spawner holds it.
pub(crate) struct Office {
    control: OwnedFd,
    pid: Pid,
}

impl Office {
    /// Starts the meter of a workspace.
    pub(crate) fn open(workspace: &OwnedFd, allowance: Allowance) -> rustix::io::Result<Self> {
        let (control, theirs) = pair()?;
        let Place { workspace, disk } = Place::of(workspace)?;
        match sys::fork()? {
            Forked::Child => {
                let _ = sys::unblock_signals();
                let _ = rustix::thread::set_name(c"cloister-meter");
                let kept = sys::keep_only(vec![theirs, workspace, disk]).map(<[OwnedFd; 3]>::try_from);
                if let Ok(Ok([control, workspace, disk])) = kept
                    && sys::drop_bounding_set()
                        .and_then(|()| sys::keep_only_capability(sys::CAP_DAC_READ_SEARCH))
                        .is_ok()
                {
                    run(control, &Place { workspace, disk }, allowance, ANSWER);
                }
                std::process::exit(0)
            }
            Forked::Parent { pid, .. } => {
                let pid = Pid::from_raw(pid).ok_or(Errno::SRCH)?;
                Ok(Self { control, pid })
            }
        }
    }

    /// Is this its process?
    pub(crate) fn is(&self, pid: Pid) -> bool {
        self.pid == pid
    }

    /// Lets go of it, and collects it once its last member is gone.
    pub(crate) fn close(self) {
        drop(self.control);
        let _ = rustix::io::retry_on_intr(|| waitpid(Some(self.pid), WaitOptions::empty()));
    }

    /// One more who writes.
    pub(crate) fn join(&self) -> std::io::Result<Meter> {
        let (ours, theirs) = pair()?;
        protocol::send(&self.control, &Join, &[theirs.as_fd()])?;
        Ok(Meter(ours))
    }
}

fn pair() -> rustix::io::Result<(OwnedFd, OwnedFd)> {
    socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
}

struct Member {
    socket: OwnedFd,
    busy: bool,
    /// When it was told that the workspace is full, until it has answered.
    told: Option<Instant>,
    /// Granted to its uploads under way.
    live: Amount,
}

impl Member {
    fn new(socket: OwnedFd) -> Self {
        Self { socket, busy: false, told: None, live: Amount::default() }
    }

    /// Has it answered what it was told, or had the time to?
    fn has_answered(&self, now: Instant, patience: Duration) -> bool {
        self.told.is_none_or(|told| now.saturating_duration_since(told) > patience)
    }
}

/// What is measured.
struct Place {
    workspace: OwnedFd,
    /// Something else on the same disk: the folder above. Where a project is
    /// limited, its folders give the project's room for the disk's.
    disk: OwnedFd,
}

impl Place {
    fn of(workspace: &OwnedFd) -> rustix::io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let device = |folder: &OwnedFd| fstat(folder).map(|stat| stat.st_dev);
        let own = device(workspace)?;
        let above = openat(workspace, "..", flags, Mode::empty()).ok();
        let copy = || rustix::io::fcntl_dupfd_cloexec(workspace, 3);
        let disk = above.filter(|above| device(above) == Ok(own)).map_or_else(copy, Ok)?;
        Ok(Self { workspace: copy()?, disk })
    }
}

/// Until spawner and members are gone. `patience`: what an answer may take.
fn run(control: OwnedFd, place: &Place, allowance: Allowance, patience: Duration) {
    let mut control = Some(control);
    let mut members: Vec<Member> = Vec::new();
    let mut gauge = Gauge::new(allowance);
    while control.is_some() || !members.is_empty() {
        let mut waiting: Vec<PollFd<'_>> =
            members.iter().map(|member| PollFd::new(&member.socket, PollFlags::IN)).collect();
        waiting.extend(control.as_ref().map(|control| PollFd::new(control, PollFlags::IN)));
        let tick = members.iter().any(|member| member.busy).then_some(&TICK);
        match poll(&mut waiting, tick) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        let ready: Vec<bool> = waiting.iter().map(|fd| !fd.revents().is_empty()).collect();
        drop(waiting);
        let mut woken = ready.iter().copied();
        members.retain_mut(|member| {
            let stays = !woken.next().unwrap_or_default() || hear(member, &mut gauge, place).is_some();
            if !stays {
                gauge.settle(member.live, false);
            }
            stays
        });
        if woken.next().unwrap_or_default() {
            match control.as_ref().map(protocol::receive::<Join>) {
                Some(Ok(Some((Join, fds)))) => {
                    // Nobody who does not read may hold up the others.
                    let joined = fds.into_iter().filter(|socket| rustix::io::ioctl_fionbio(socket, true).is_ok());
                    members.extend(joined.map(Member::new));
                }
                _ => control = None,
            }
        }
        if members.iter().any(|member| member.busy) {
            look(&mut gauge, place, &mut members, patience);
        }
    }
}

/// What a member says; `None` if it is gone.
fn hear(member: &mut Member, gauge: &mut Gauge, place: &Place) -> Option<()> {
    match protocol::receive::<Word>(&member.socket).ok()??.0 {
        Word::Busy(busy) => (member.busy, member.told) = (busy, None),
        Word::Found(wrote) => {
            member.told = None;
            gauge.found(wrote);
        }
        Word::Reserve(more) => {
            let said = match reserve(gauge, place, more) {
                None => {
                    member.live = member.live.plus(more);
                    Said::Granted
                }
                Some(why) => Said::Full { why, stage: 0 },
            };
            protocol::send(&member.socket, &said, &[]).ok()?;
        }
        Word::Settle { granted, kept } => {
            member.live = member.live.minus(granted);
            gauge.settle(granted, kept);
        }
    }
    Some(())
}

/// Grants room, or says why not.
fn reserve(gauge: &mut Gauge, place: &Place, more: Amount) -> Option<Full> {
    // A workspace that cannot be looked at cannot be written either; the write
    // itself says why.
    let (free, size) = disk(&place.disk).ok()?;
    if let Some(full) = gauge.disk(free.bytes.saturating_sub(more.bytes), size) {
        return Some(full);
    }
    let mut fits = gauge.fits(more, free);
    if fits != Some(true) {
        count(gauge, &place.workspace, free);
        fits = gauge.fits(more, free);
    }
    if fits == Some(false) {
        return gauge.refusal(more);
    }
    gauge.grant(more);
    None
}

/// Counts if it is time to, and tells the busy what they must know.
fn look(gauge: &mut Gauge, place: &Place, members: &mut [Member], patience: Duration) {
    let Ok((free, size)) = disk(&place.disk) else { return };
    let now = Instant::now();
    if gauge.is_due(free, now) {
        count(gauge, &place.workspace, free);
    }
    // What there is to say waits for somebody to say it to.
    if !members.iter().any(|member| member.busy && member.has_answered(now, patience)) {
        return;
    }
    let answered = members.iter().all(|member| member.has_answered(now, patience));
    if let Some((why, stage)) = gauge.news(gauge.disk(free.bytes, size), free.bytes, answered) {
        for member in members.iter_mut().filter(|member| member.busy && member.has_answered(now, patience)) {
            member.told = Some(now);
            // One that is gone is noticed where it is heard.
            let _ = protocol::send(&member.socket, &Said::Full { why, stage }, &[]);
        }
    }
}

fn count(gauge: &mut Gauge, workspace: &OwnedFd, free: Amount) {
    let began = Instant::now();
    if let Ok(used) = usage::count(workspace) {
        gauge.counted(used, free, Instant::now(), began.elapsed());
    }
}

/// What the disk has free, and its size in bytes.
fn disk(folder: &OwnedFd) -> rustix::io::Result<(Amount, u64)> {
    let stat = fstatvfs(folder)?;
    let free = Amount { bytes: stat.f_bavail.saturating_mul(stat.f_frsize), files: stat.f_ffree };
    Ok((free, stat.f_blocks.saturating_mul(stat.f_frsize)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const MB: u64 = 1 << 20;

    #[test]
    fn whoever_goes_leaves_the_room_that_it_was_granted() {
        let folder = tempfile::tempdir().unwrap();
        let workspace: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
        let (control, theirs) = pair().unwrap();
        let allowance = Allowance { bytes: 20 * MB, files: 100, free_bytes: 0 };
        let meter = std::thread::spawn(move || run(theirs, &Place::of(&workspace).unwrap(), allowance, ANSWER));
        let join = || {
            let (ours, theirs) = pair().unwrap();
            protocol::send(&control, &Join, &[theirs.as_fd()]).unwrap();
            Meter(ours)
        };
        let upload = Amount { bytes: 15 * MB, files: 1 };
        let (first, second) = (join(), join());
        assert!(first.reserve(upload).unwrap().is_ok());
        assert!(second.reserve(upload).unwrap().is_err());
        drop(first);
        let began = Instant::now();
        while second.reserve(upload).unwrap().is_err() {
            assert!(began.elapsed() < Duration::from_secs(2), "the room is lost");
        }
        drop((second, control));
        meter.join().unwrap();
    }

    #[test]
    fn who_has_not_answered_yet_has_not_said_that_nobody_writes() {
        let folder = tempfile::tempdir().unwrap();
        let workspace: OwnedFd = std::fs::File::open(folder.path()).unwrap().into();
        let (control, theirs) = pair().unwrap();
        let allowance = Allowance { bytes: MB, files: 100, free_bytes: 0 };
        // Longer than the test may take.
        let patience = Duration::from_secs(600);
        let meter = std::thread::spawn(move || run(theirs, &Place::of(&workspace).unwrap(), allowance, patience));
        let [slow, quick] = [(); 2].map(|()| {
            let (ours, theirs) = pair().unwrap();
            protocol::send(&control, &Join, &[theirs.as_fd()]).unwrap();
            let member = Meter(ours);
            member.busy(true).unwrap();
            // Who is answered has been heard to be at work.
            assert!(member.reserve(Amount::default()).unwrap().is_ok());
            member
        });
        let told = |member: &Meter| match member.hear().unwrap() {
            Said::Full { stage, .. } => stage,
            Said::Granted => panic!("not asked for room"),
        };
        // More than a step, and less than two: seen half done, it is news once all the same.
        let grow = |name: &str| {
            let file = std::fs::File::create(folder.path().join(name)).unwrap();
            rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, MB + MB / 2).unwrap();
        };
        for name in ["1", "2", "3"] {
            grow(name);
            assert_eq!(told(&quick), 0);
            quick.found(false).unwrap();
        }
        assert_eq!(told(&slow), 0);
        slow.found(false).unwrap();
        // What it is asked for after that says that it has heard.
        assert!(slow.reserve(Amount::default()).unwrap().is_err());
        grow("more");
        assert_eq!(told(&quick), 1);
        drop((slow, quick, control));
        meter.join().unwrap();
    }
}
