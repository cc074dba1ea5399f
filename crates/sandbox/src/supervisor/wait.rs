//! What a supervisor waits for.

use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::channel::Closed;
use super::{CANCEL_GRACE, LOOK, SWEEP_GRACE, Supervisor};

/// What a descriptor in the poll set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Listener,
    Link,
    Control,
    Agent,
    Log,
    Meter,
}

/// What has happened.
pub(super) struct Ready {
    pub(super) listener: bool,
    pub(super) link: bool,
    pub(super) control: bool,
    pub(super) agent: bool,
    pub(super) log: bool,
    pub(super) meter: bool,
}

impl Supervisor {
    /// Until something happens, or it is time for something.
    pub(super) fn wait(&self) -> Result<Ready, Closed> {
        let mut fds = vec![PollFd::new(self.link.listener(), PollFlags::IN)];
        let mut roles = vec![Role::Listener];
        // What becomes of an agent is heard when there is a turn to tell it of.
        if self.ahead.is_none() {
            fds.push(PollFd::new(&self.control, PollFlags::IN));
            roles.push(Role::Control);
        }
        if let Some(meter) = &self.meter {
            fds.push(PollFd::new(&meter.0, PollFlags::IN));
            roles.push(Role::Meter);
        }
        if let Some(channel) = self.link.channel() {
            fds.push(PollFd::from_borrowed_fd(channel.fd(), channel.interest(true)));
            roles.push(Role::Link);
        }
        let mut timeout = None;
        if let Some(work) = &self.work {
            // A hung-up descriptor would wake us for ever, so it is left out:
            // init's report is what is waited for then. While the log is
            // behind, the agent waits: the disk is bounded, and so are we.
            if !work.agent_gone && work.ending.is_none() {
                fds.push(PollFd::from_borrowed_fd(work.agent.fd(), work.agent.interest(!work.is_full())));
                roles.push(Role::Agent);
            }
            if !work.log_closed {
                fds.push(PollFd::new(&work.log, PollFlags::IN));
                roles.push(Role::Log);
            }
            let grace = work.cancelled.map(|at| at + CANCEL_GRACE);
            let swept = work.ending.as_ref().map(|ending| ending.since + SWEEP_GRACE);
            let end = if let Some(swept) = swept { swept } else { work.deadline };
            let end = grace.map_or(end, |grace| grace.min(end));
            timeout = Some(end.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        }
        if !self.link.is_attached() {
            timeout = Some(timeout.map_or(LOOK, |timeout| timeout.min(LOOK)));
        }
        let timeout =
            timeout.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Err(Closed),
        }
        let woken = |role| fds.iter().zip(&roles).any(|(fd, of)| *of == role && !fd.revents().is_empty());
        Ok(Ready {
            listener: woken(Role::Listener),
            link: woken(Role::Link),
            control: woken(Role::Control),
            agent: woken(Role::Agent),
            log: woken(Role::Log),
            meter: woken(Role::Meter),
        })
    }
}
