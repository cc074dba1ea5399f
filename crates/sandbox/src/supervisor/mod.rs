//! One process per live session, outside its sandbox: parent of init, keeper
//! of the turn's numbers, spool and limits. It has one thread and no secret,
//! and takes nothing that comes from inside on trust.
//!
//! ```text
//! agent --frames--> turn (numbers) --> spool (file) <--reads-- server
//!                                          \--- "it reaches to here" --^
//! ```
//!
//! It does not need a server: when the server dies, the turn goes on into the
//! spool, and the next server finds the supervisor by its folder. Without a
//! turn and without a server it ends.

mod agent;
mod channel;
mod limits;
mod server;
mod turn;
mod wait;
mod work;

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use cloister_types::ErrorCode;
use cloister_types::link::{Command, Fact, Outcome, Signal, Spooling, ToAgent, TurnStart};
use cloister_types::transcript::Usage;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use self::agent::Started;
use self::server::{Link, hand_over, listen, send_with};
use self::work::{Ending, Work};
use crate::cgroup::SessionGroups;
use crate::extent;
use crate::init;
use crate::launch::{self, Refused, Sandbox};
use crate::quota::Meter;
use crate::run::{About, Known, spool_name};
use crate::spare::Claimed;
use crate::spool::Spool;
use crate::sys;

/// How long an agent may take to end its turn after a cancel, before the
/// sandbox is ended for it.
const CANCEL_GRACE: Duration = Duration::from_millis(700);
/// How long an agent that hung up may take to be gone.
const HANG_UP_GRACE: Duration = Duration::from_secs(1);
/// How long a sandbox may take to be swept, before it is ended.
const SWEEP_GRACE: Duration = Duration::from_secs(5);
/// How long the last words may take to reach the server.
const FLUSH: Duration = Duration::from_secs(1);
/// How often it is looked whether the folder is still there, without a server.
const LOOK: Duration = Duration::from_secs(1);
/// Pieces of 64 KiB read from an agent before time and server are looked at.
const READS: usize = 16;
/// Pieces that may be left in the socket of an agent that has ended.
const LAST_READS: usize = 64;

/// Who a supervisor works for, and where.
pub(crate) struct Post {
    pub(crate) link: OwnedFd,
    pub(crate) folder: OwnedFd,
    pub(crate) session: cloister_types::SessionId,
    pub(crate) launch: String,
    /// A turn is on its way.
    pub(crate) at_once: bool,
}

/// Reports the launch on the link and, if it stands, supervises until the
/// session's sandbox ends. Descriptors travel with the first frame.
pub(crate) fn run(post: Post, claimed: Result<Claimed, Refused>, groups: SessionGroups, meter: Meter) {
    let begun = claimed.map_err(NotBegun::Refused);
    match begun.and_then(|claimed| Supervisor::new(&post, claimed, groups, meter)) {
        Ok(mut supervisor) => {
            supervisor.supervise();
            supervisor.kill();
        }
        Err(NotBegun::Refused(refused)) => refuse(&post.link, &refused),
        Err(NotBegun::Announced) => {}
    }
}

/// Gives up what no supervisor needs, not even to take its sandbox over.
pub(crate) fn give_up() -> rustix::io::Result<()> {
    rustix::thread::set_no_new_privs(true)?;
    sys::drop_bounding_set()
}

/// Reports a launch that was refused. The asker may be gone.
pub(crate) fn refuse(link: &OwnedFd, refused: &Refused) {
    let _ = send_with(link, &Signal::Unready { message: refused.to_string() }, &[]);
}

/// Listens for the next server, and writes down what it must know.
fn be_found(post: &Post, known: &Known) -> rustix::io::Result<OwnedFd> {
    let listener = listen(&post.folder)?;
    let about = About::new(post.session.clone(), post.launch.clone(), known);
    about.write(&post.folder).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(listener)
}

/// Why a supervisor has nothing to supervise.
enum NotBegun {
    Refused(Refused),
    /// It was said to stand; the link, as it closes, says that it does not.
    Announced,
}

struct Supervisor {
    link: Link,
    folder: OwnedFd,
    init: OwnedFd,
    control: OwnedFd,
    /// The sandbox's root tree, which takes a moment to be taken down.
    _root: OwnedFd,
    groups: SessionGroups,
    /// `None`: it is gone, and no other turn begins here.
    meter: Option<Meter>,
    /// What the meter was last told.
    told_busy: bool,
    work: Option<Work>,
    /// A turn that has ended, until the log holds it whole.
    ended: Option<(Spooling, Spool)>,
    /// Number of the last agent that was started.
    serial: u64,
    /// An agent that was started before its turn was read.
    ahead: Option<Started>,
    /// The turn that came along with the launch, and whether it may begin.
    along: Option<Box<TurnStart>>,
    begun: bool,
    dead: bool,
}

/// Something that cannot be gone on from. What is to be said has been said.
struct Over;

impl Supervisor {
    /// Gives the sandbox its workspace, says that it stands, and only then
    /// writes down what the next server must know: nothing has been done yet
    /// that it would have to know of. An agent that comes up meanwhile is told
    /// its turn afterwards.
    fn new(post: &Post, claimed: Claimed, groups: SessionGroups, meter: Meter) -> Result<Self, NotBegun> {
        let refused = |step: &str, errno: Errno| Refused { step: step.into(), answer: errno.to_string() };
        // An agent that cannot be started now is tried with its turn.
        let ahead = post.at_once.then(|| Started::new().ok()).flatten();
        let (ahead, fds) = ahead.map_or((None, Vec::new()), |(ahead, fds)| (Some(ahead), fds.into()));
        let init = rustix::io::fcntl_dupfd_cloexec(claimed.prepared.init(), 3)
            .inspect_err(|_| launch::end(claimed.prepared.init()))
            .map_err(|errno| NotBegun::Refused(refused("keep init's handle", errno)))?;
        let end = |because: NotBegun| {
            launch::end(&init);
            because
        };
        let Sandbox { known, control, exits, enforced, root, used_up, .. } =
            claimed.begin(1, &fds).map_err(|refused| end(NotBegun::Refused(refused)))?;
        drop(fds);
        // Init was woken on this processor, where it would wait for us.
        rustix::thread::sched_yield();
        let lifeline = sys::keep_only_capability(sys::CAP_KILL)
            .and_then(|()| hand_over(&post.link, &Signal::Ready(enforced.clone()), &exits))
            .map_err(|errno| end(NotBegun::Refused(refused("set the supervisor up", errno))))?;
        let stand = || -> rustix::io::Result<(Link, OwnedFd)> {
            let listener = be_found(post, &known)?;
            let link = rustix::io::fcntl_dupfd_cloexec(&post.link, 3)?;
            let link = Link::new(link, listener, exits, lifeline, enforced, post.launch.clone())?;
            Ok((link, rustix::io::fcntl_dupfd_cloexec(&post.folder, 3)?))
        };
        let (link, folder) = stand().map_err(|_| end(NotBegun::Announced))?;
        drop(used_up);
        let serial = u64::from(ahead.is_some());
        let (meter, told_busy) = (Some(meter), false);
        let (work, ended, along, begun, dead) = (None, None, None, !post.at_once, false);
        Ok(Self {
            link,
            folder,
            init,
            control,
            _root: root,
            groups,
            meter,
            told_busy,
            work,
            ended,
            serial,
            ahead,
            along,
            begun,
            dead,
        })
    }

    /// Ends with the sandbox, with a stop, or when there is nobody to work for.
    fn supervise(&mut self) {
        while !self.dead {
            let Ok(ready) = self.wait() else { break };
            if ready.listener {
                self.link.accept();
            }
            if ready.link {
                self.hear_server();
            }
            let heard = if ready.agent { self.hear_agent(READS) } else { Ok(()) };
            if ready.log {
                self.hear_log();
            }
            if ready.meter {
                self.hear_meter();
            }
            if heard.is_ok() && ready.control {
                let _ = self.hear_init();
            }
            self.check_time();
            self.settle();
        }
        self.flush_all();
    }

    fn hear_server(&mut self) {
        let spooling = self.spooling();
        let (commands, closed) = self.link.commands(|| spooling);
        for command in commands {
            match command {
                Command::Adopt { .. } => {}
                Command::Start(start) if self.begun => self.start(*start),
                Command::Start(start) => self.along = Some(start),
                Command::Begin => {
                    self.begun = true;
                    if let Some(start) = self.along.take() {
                        self.start(*start);
                    }
                }
                Command::Cancel { response_id } => {
                    if let Some(work) = self.work.as_mut().filter(|work| *work.turn.id() == response_id)
                        && work.cancelled.is_none()
                    {
                        work.cancelled = Some(Instant::now());
                        // An agent that does not listen is ended after the grace.
                        let _ = work.agent.send(&ToAgent::Cancel);
                    }
                }
                Command::Stored { response_id, attempt, offset } => self.stored(&response_id, attempt, offset),
                Command::Stop => self.dead = true,
            }
        }
        if closed {
            self.link.detach();
        }
    }

    fn stored(&mut self, turn: &cloister_types::ResponseId, attempt: u32, offset: u64) {
        let fits = |spooling: &Spooling| spooling.response_id == *turn && spooling.attempt == attempt;
        if let Some(work) = &mut self.work
            && fits(&work.spooling())
        {
            work.spool.note_stored(offset);
        }
        if self.ended.as_ref().is_some_and(|(spooling, _)| fits(spooling) && offset >= spooling.offset) {
            self.ended = None;
            let spool = spool_name(turn, attempt);
            for name in [&spool, &extent::name(&spool)] {
                let _ = rustix::fs::unlinkat(&self.folder, name, AtFlags::empty());
            }
        }
    }

    fn spooling(&self) -> Option<Spooling> {
        let ended = self.ended.as_ref().map(|(spooling, _)| spooling.clone());
        self.work.as_ref().map(Work::spooling).or(ended)
    }

    /// After whatever has happened: lets the agent go on, tells the server,
    /// and looks whether there is still something to be here for.
    fn settle(&mut self) {
        let attached = self.link.is_attached();
        self.tell_meter();
        if !attached && rustix::fs::fstat(&self.folder).is_ok_and(|folder| folder.st_nlink == 0) {
            // Nobody will find us, or what we write.
            self.dead = true;
            return;
        }
        if let Some(Err(error)) = self.work.as_mut().map(|work| work.release(attached)) {
            let Over = self.spool_failed(&error);
        }
        if let Some(spooling) = self.spooling() {
            self.link.ring(spooling);
        }
        if self.meter.is_none() && self.work.is_none() {
            self.dead = true;
        }
        if !attached && self.work.is_none() {
            // What is left to say must outlast the machine as well.
            if let Some((_, spool)) = &self.ended {
                let _ = spool.sync();
            }
            self.dead = true;
        }
    }

    fn check_time(&mut self) {
        let Some(work) = &self.work else { return };
        let now = Instant::now();
        let over = if work.cancelled.is_some_and(|at| now >= at + CANCEL_GRACE) {
            self.finish(Outcome::Cancelled, Usage::default(), String::new(), true)
        } else if let Some(ending) = &work.ending {
            // It has said all it had to say, and may be gone already.
            if now >= ending.since + SWEEP_GRACE { self.swept(true) } else { Ok(()) }
        } else if now >= work.deadline && work.agent_gone {
            self.lost("the agent hung up in the middle of the turn".into())
        } else if now >= work.deadline {
            let message = format!("the turn reached its time limit of {} s", work.time_limit().as_secs_f64());
            self.fail(ErrorCode::TimeLimit, message)
        } else {
            Ok(())
        };
        drop(over);
    }

    fn fail(&mut self, code: ErrorCode, message: String) -> Result<(), Over> {
        self.finish(Outcome::Failed { code, message }, Usage::default(), String::new(), true)
    }

    /// The agent has ended its turn: nothing that it started stays at work.
    fn sweep(&mut self, ending: Ending) -> Result<(), Over> {
        let Some(work) = &mut self.work else { return Ok(()) };
        // After a cancel not even the sandbox stays. What was cancelled costs
        // nothing.
        if work.cancelled.is_some() || ending.outcome == Outcome::Cancelled {
            return self.finish(Outcome::Cancelled, Usage::default(), String::new(), true);
        }
        work.ending = Some(ending);
        match init::sweep_all(&self.control) {
            Ok(()) => Ok(()),
            Err(_) => self.swept(true),
        }
    }

    fn swept(&mut self, kill: bool) -> Result<(), Over> {
        let Some(Ending { outcome, usage, output_text, .. }) = self.work.as_mut().and_then(|work| work.ending.take())
        else {
            return Ok(());
        };
        self.finish(outcome, usage, output_text, kill)
    }

    /// Ends the turn; with `kill`, the sandbox first, so that nothing acts any
    /// more once the terminal event can be seen.
    fn finish(&mut self, outcome: Outcome, usage: Usage, output_text: String, kill: bool) -> Result<(), Over> {
        if kill {
            self.kill();
        }
        let Some(work) = &mut self.work else { return Ok(()) };
        let facts = work.turn.end(outcome, usage, output_text, kill);
        self.close(facts)
    }

    /// The agent is lost and the turn is not over: whoever reads this takes it
    /// up from the log.
    fn lost(&mut self, cause: String) -> Result<(), Over> {
        self.kill();
        self.close(vec![Fact::Lost { cause }])
    }

    /// Writes a turn's last facts.
    fn close(&mut self, facts: Vec<Fact>) -> Result<(), Over> {
        self.write(facts)?;
        // While a server is there, its log is what counts.
        if !self.link.is_attached()
            && let Some(Err(error)) = self.work.as_ref().map(|work| work.spool.sync())
        {
            return Err(self.spool_failed(&error));
        }
        if let Some(work) = self.work.take() {
            self.ended = Some((work.spooling(), work.spool));
        }
        Ok(())
    }

    /// Without a spool nothing more can be said of the turn.
    fn spool_failed(&mut self, error: &std::io::Error) -> Over {
        self.kill();
        self.link.say(&Signal::SpoolFailed { message: error.to_string() });
        self.work = None;
        Over
    }

    /// Ends init, which takes everything inside along, and waits for it.
    fn kill(&mut self) {
        self.dead = true;
        launch::end(&self.init);
    }

    /// The last words, within reason; the spool says the same.
    fn flush_all(&mut self) {
        if let Some(spooling) = self.spooling() {
            self.link.ring(spooling);
        }
        let end = Instant::now() + FLUSH;
        while Instant::now() < end && !self.link.flush() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
