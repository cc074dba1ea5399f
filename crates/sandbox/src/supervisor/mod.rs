//! One process per live session, outside its sandbox: parent of init, keeper
//! of the turn's numbers and deadlines. It has one thread and no secret, and
//! takes nothing that comes from inside on trust.

mod channel;
mod turn;

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use cloister_types::ErrorCode;
use cloister_types::link::{Command, Fact, FromAgent, MAX_FACT, Outcome, TurnStart, encode};
use cloister_types::transcript::Usage;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType};
use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};

use self::channel::{Channel, Closed};
use self::turn::{TooMuch, Turn};
use crate::cgroup::SessionGroups;
use crate::init::{self, AgentExited};
use crate::launch::{Refused, Sandbox};
use crate::{protocol, sys};

/// How long an agent may take to end its turn after a cancel, before the
/// sandbox is ended for it.
const CANCEL_GRACE: Duration = Duration::from_millis(700);
/// How long an agent that hung up may take to be gone.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);
/// How long the last facts may take to reach the server.
const FLUSH: Duration = Duration::from_secs(10);
/// Pieces of 64 KiB read from an agent before time and server are looked at.
const READS: usize = 16;
/// Pieces that may be left in the socket of an agent that has ended.
const LAST_READS: usize = 64;
/// Bytes of the agent's error output kept for the report of its death.
const LOG_TAIL: usize = 2048;

/// Reports the launch on the link and, if it stands, supervises until the
/// session's sandbox ends. Descriptors travel with the first frame.
pub(crate) fn run(link: OwnedFd, launched: Result<Sandbox, Refused>, groups: SessionGroups) {
    let sandbox = match launched {
        Ok(sandbox) => sandbox,
        Err(refused) => {
            let _ = first_frame(&link, &Fact::Unready { message: refused.to_string() }, None);
            groups.remove();
            return;
        }
    };
    // From here on the only right it needs is to end what it started.
    let dropped = rustix::thread::set_no_new_privs(true)
        .and_then(|()| sys::drop_bounding_set())
        .and_then(|()| sys::keep_only_kill());
    let started = match dropped {
        Ok(()) => first_frame(&link, &Fact::Ready(sandbox.enforced.clone()), Some(&sandbox.listener)),
        Err(errno) => {
            first_frame(&link, &Fact::Unready { message: format!("drop the supervisor's rights: {errno}") }, None)
                .and(Err(errno))
        }
    };
    if let (Ok(()), Ok(channel)) = (started, Channel::new(link)) {
        let Sandbox { init, control, .. } = sandbox;
        let mut supervisor =
            Supervisor { link: channel, init, control, groups: groups.clone(), live: None, serial: 0, dead: false };
        // Ends with the link, with a stop, or with the sandbox.
        let _ = supervisor.supervise();
        supervisor.kill();
    }
    groups.remove();
}

fn first_frame(link: &OwnedFd, fact: &Fact, listener: Option<&OwnedFd>) -> rustix::io::Result<()> {
    let bytes = encode(fact).map_err(|_| Errno::INVAL)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds: Vec<_> = listener.iter().map(|fd| fd.as_fd()).collect();
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::NOBUFS);
    }
    rustix::net::sendmsg(link, &[std::io::IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// The turn that runs, and the agent that runs it.
struct Live {
    turn: Turn,
    agent: Channel,
    log: OwnedFd,
    log_tail: VecDeque<u8>,
    log_closed: bool,
    agent_gone: bool,
    deadline: Instant,
    limit: Duration,
    cancelled: Option<Instant>,
}

struct Supervisor {
    link: Channel,
    init: OwnedFd,
    control: OwnedFd,
    groups: SessionGroups,
    live: Option<Live>,
    /// Number of the last agent that was started.
    serial: u64,
    dead: bool,
}

impl Supervisor {
    fn supervise(&mut self) -> Result<(), Closed> {
        while !self.dead {
            let ready = self.wait()?;
            self.link.flush()?;
            if ready.link {
                self.hear_server()?;
            }
            if ready.agent {
                self.hear_agent(READS)?;
            }
            if ready.log {
                self.hear_log();
            }
            if ready.control {
                self.hear_init()?;
            }
            self.check_time()?;
        }
        self.flush_all()
    }

    fn wait(&self) -> Result<Ready, Closed> {
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.link.fd(), self.link.interest(true)),
            PollFd::new(&self.control, PollFlags::IN),
        ];
        let mut roles = vec![Role::Link, Role::Control];
        let mut timeout = None;
        if let Some(live) = &self.live {
            // A hung-up descriptor would wake us for ever, so it is left out:
            // init's report is what is waited for then. While the server is
            // behind, the agent waits: memory is bounded.
            if !live.agent_gone && !self.link.is_full() {
                fds.push(PollFd::from_borrowed_fd(live.agent.fd(), live.agent.interest(true)));
                roles.push(Role::Agent);
            }
            if !live.log_closed {
                fds.push(PollFd::new(&live.log, PollFlags::IN));
                roles.push(Role::Log);
            }
            let end = live.cancelled.map_or(live.deadline, |at| (at + CANCEL_GRACE).min(live.deadline));
            timeout = Some(end.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        }
        let timeout =
            timeout.map(|left| Timespec { tv_sec: left.as_secs() as i64, tv_nsec: i64::from(left.subsec_nanos()) });
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(_) => return Err(Closed),
        }
        let woken = |role| fds.iter().zip(&roles).any(|(fd, of)| *of == role && !fd.revents().is_empty());
        Ok(Ready {
            link: woken(Role::Link),
            control: woken(Role::Control),
            agent: woken(Role::Agent),
            log: woken(Role::Log),
        })
    }

    fn hear_server(&mut self) -> Result<(), Closed> {
        self.link.fill()?;
        while let Some(command) = self.link.next::<Command>()? {
            match command {
                Command::Start(start) => self.start(*start)?,
                Command::Cancel { response_id } => {
                    if let Some(live) =
                        self.live.as_mut().filter(|live| *live.turn.id() == response_id && live.cancelled.is_none())
                    {
                        live.cancelled = Some(Instant::now());
                        // An agent that does not listen is ended after the grace.
                        let _ = live.agent.send(&Command::Cancel { response_id });
                    }
                }
                Command::Stop => self.dead = true,
            }
        }
        Ok(())
    }

    fn start(&mut self, start: TurnStart) -> Result<(), Closed> {
        let limit = Duration::from_millis(start.limits.time_ms);
        let turn = Turn::new(start.response_id.clone(), start.next_seq, start.scripted);
        match self.start_agent(&Command::Start(Box::new(start))) {
            Ok((agent, log)) => {
                self.live = Some(Live {
                    turn,
                    agent,
                    log,
                    log_tail: VecDeque::new(),
                    log_closed: false,
                    agent_gone: false,
                    deadline: Instant::now() + limit,
                    limit,
                    cancelled: None,
                });
                Ok(())
            }
            Err(error) => {
                let outcome = Outcome::Failed {
                    code: ErrorCode::AgentDied,
                    message: format!("the agent could not be started: {error}"),
                };
                self.report(turn, outcome, Usage::default(), String::new(), true)
            }
        }
    }

    fn start_agent(&mut self, command: &Command) -> Result<(Channel, OwnedFd), std::io::Error> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let (log, their_log) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&log, true)?;
        self.serial += 1;
        init::run_agent(&self.control, self.serial, &theirs, &their_log)?;
        let mut agent = Channel::with_limit(ours, MAX_FACT)?;
        agent.send(command).map_err(|Closed| std::io::Error::other("it hung up"))?;
        Ok((agent, log))
    }

    /// Takes up to `reads` pieces from the agent and acts on whole frames.
    fn hear_agent(&mut self, reads: usize) -> Result<(), Closed> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let mut more = live.agent.flush().is_ok();
        for _ in 0..reads {
            if !more {
                break;
            }
            match live.agent.fill() {
                Ok(got) => more = got,
                Err(Closed) => more = false,
            }
            if !more && live.agent.is_closed() && !live.agent_gone {
                // Frames that are already here still count. Init will report
                // the agent's end; one that only hung up gets no longer life.
                live.agent_gone = true;
                live.deadline = live.deadline.min(Instant::now() + HANG_UP_GRACE);
            }
        }
        loop {
            let Some(live) = &mut self.live else { return Ok(()) };
            match live.agent.next::<FromAgent>() {
                Ok(Some(FromAgent::Event { kind, data })) => match live.turn.event(kind, data) {
                    Ok(facts) => facts.iter().try_for_each(|fact| self.link.send(fact))?,
                    Err(TooMuch) => return self.flooded(),
                },
                Ok(Some(FromAgent::Entry(entry))) => match live.turn.entry(entry) {
                    Ok(fact) => self.link.send(&fact)?,
                    Err(TooMuch) => return self.flooded(),
                },
                Ok(Some(FromAgent::End { outcome, usage, output_text })) => {
                    // After a cancel nothing of the turn may be left at work,
                    // children that slipped away included.
                    let cancelled = live.cancelled.is_some() || outcome == Outcome::Cancelled;
                    let outcome = if live.cancelled.is_some() { Outcome::Cancelled } else { outcome };
                    // What was cancelled costs nothing.
                    let usage = if outcome == Outcome::Cancelled { Usage::default() } else { usage };
                    return self.finish(outcome, usage, output_text, cancelled);
                }
                Ok(None) => break,
                Err(Closed) => {
                    let message = "the agent sent something that is not a frame".to_owned();
                    return self.fail(ErrorCode::AgentDied, message);
                }
            }
        }
        Ok(())
    }

    fn flooded(&mut self) -> Result<(), Closed> {
        self.fail(ErrorCode::AgentDied, "the agent produced more output than a turn may hold".into())
    }

    fn hear_log(&mut self) {
        let Some(live) = &mut self.live else { return };
        let mut buffer = [0; 4096];
        if let Ok(got) = rustix::io::read(&live.log, &mut buffer) {
            live.log_closed = got == 0;
            live.log_tail.extend(&buffer[..got]);
            let excess = live.log_tail.len().saturating_sub(LOG_TAIL);
            live.log_tail.drain(..excess);
        }
    }

    fn hear_init(&mut self) -> Result<(), Closed> {
        let how = match protocol::receive::<AgentExited>(&self.control) {
            // The agent of an earlier turn, which had said all it had to say.
            Ok(Some((AgentExited { serial, .. }, _))) if serial != self.serial => return Ok(()),
            Ok(Some((AgentExited { how, .. }, _))) => how,
            // Init is gone, and with it everything inside.
            _ => {
                self.dead = true;
                "the sandbox ended".to_owned()
            }
        };
        // Its last words may still be in the socket, which holds only so much.
        self.hear_agent(LAST_READS)?;
        self.hear_log();
        let Some(live) = &mut self.live else { return Ok(()) };
        if live.cancelled.is_some() {
            return self.finish(Outcome::Cancelled, Usage::default(), String::new(), true);
        }
        let tail: Vec<u8> = live.log_tail.iter().copied().collect();
        let tail = String::from_utf8_lossy(&tail).trim().to_owned();
        let cause = if self.groups.out_of_memory() {
            "out of memory: the session reached its memory limit"
        } else {
            "the agent ended early"
        };
        let said = if tail.is_empty() { String::new() } else { format!("; its last words: {tail}") };
        self.fail(ErrorCode::AgentDied, format!("{cause} ({how}){said}"))
    }

    fn check_time(&mut self) -> Result<(), Closed> {
        let Some(live) = &self.live else { return Ok(()) };
        let now = Instant::now();
        if live.cancelled.is_some_and(|at| now >= at + CANCEL_GRACE) {
            return self.finish(Outcome::Cancelled, Usage::default(), String::new(), true);
        }
        if now >= live.deadline && live.agent_gone {
            return self.fail(ErrorCode::AgentDied, "the agent hung up in the middle of the turn".into());
        }
        if now >= live.deadline {
            let message = format!("the turn reached its time limit of {} s", live.limit.as_secs_f64());
            return self.fail(ErrorCode::TimeLimit, message);
        }
        Ok(())
    }

    fn fail(&mut self, code: ErrorCode, message: String) -> Result<(), Closed> {
        self.finish(Outcome::Failed { code, message }, Usage::default(), String::new(), true)
    }

    /// Ends the live turn; with `kill`, the sandbox first, so that nothing
    /// acts any more once the terminal event can be seen.
    fn finish(&mut self, outcome: Outcome, usage: Usage, output_text: String, kill: bool) -> Result<(), Closed> {
        let Some(live) = self.live.take() else { return Ok(()) };
        self.report(live.turn, outcome, usage, output_text, kill)
    }

    fn report(
        &mut self,
        turn: Turn,
        outcome: Outcome,
        usage: Usage,
        output_text: String,
        kill: bool,
    ) -> Result<(), Closed> {
        if kill {
            self.kill();
        }
        turn.end(outcome, usage, output_text, kill).iter().try_for_each(|fact| self.link.send(fact))
    }

    /// Ends init, which takes everything inside along, and waits for it.
    fn kill(&mut self) {
        self.dead = true;
        let _ = pidfd_send_signal(&self.init, Signal::KILL);
        let _ = rustix::io::retry_on_intr(|| waitid(WaitId::PidFd(self.init.as_fd()), WaitIdOptions::EXITED));
    }

    fn flush_all(&mut self) -> Result<(), Closed> {
        let end = Instant::now() + FLUSH;
        while !self.link.is_flushed() && Instant::now() < end {
            let mut fds = [PollFd::from_borrowed_fd(self.link.fd(), PollFlags::OUT)];
            let _ = poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 }));
            self.link.flush()?;
        }
        Ok(())
    }
}

/// What a descriptor in the poll set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    Link,
    Control,
    Agent,
    Log,
}

struct Ready {
    link: bool,
    control: bool,
    agent: bool,
    log: bool,
}
