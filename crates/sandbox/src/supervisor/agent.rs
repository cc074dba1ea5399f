//! The supervisor's side of the agent: started, heard, and what it says
//! written down. Nothing of it is taken on trust.

use std::os::fd::OwnedFd;
use std::time::Instant;

use cloister_types::ErrorCode;
use cloister_types::link::{Fact, FromAgent, MAX_FACT, Outcome, Spooling, ToAgent, TurnStart};
use cloister_types::transcript::{Entry, Usage};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::channel::{Channel, Closed};
use super::turn::TooMuch;
use super::work::{Ending, Work};
use super::{HANG_UP_GRACE, LAST_READS, Over, Supervisor};
use crate::init::{self, FromInit};
use crate::protocol;
use crate::run::spool_name;
use crate::spool::Spool;

/// An agent whose program runs, or is about to; it waits for its turn.
pub(super) struct Started {
    agent: Channel,
    log: OwnedFd,
}

impl Started {
    /// One that runs when init is given its descriptors, which come along.
    pub(super) fn new() -> std::io::Result<(Self, [OwnedFd; 2])> {
        let (ours, theirs) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        let (log, their_log) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
        rustix::io::ioctl_fionbio(&log, true)?;
        Ok((Self { agent: Channel::with_limit(ours, MAX_FACT)?, log }, [theirs, their_log]))
    }
}

impl Supervisor {
    pub(super) fn start(&mut self, start: TurnStart) {
        let name = spool_name(&start.response_id, start.attempt);
        let spool = match Spool::create(&self.folder, &name) {
            Ok(spool) => spool,
            Err(error) => {
                let Over = self.spool_failed(&error);
                return;
            }
        };
        let turn = (start.response_id.clone(), start.attempt);
        match self.start_agent(start, spool) {
            Ok(work) => self.work = Some(work),
            Err((error, mut spool)) => {
                // As if it had died at once.
                self.kill();
                let _ = spool.append(0, vec![Fact::Lost { cause: format!("the agent could not be started: {error}") }]);
                let spooling = Spooling { response_id: turn.0, attempt: turn.1, offset: spool.offset() };
                self.ended = Some((spooling, spool));
            }
        }
    }

    fn start_agent(&mut self, start: TurnStart, spool: Spool) -> Result<Work, (std::io::Error, Spool)> {
        let started = match self.ahead.take() {
            Some(started) => Ok(started),
            None => {
                self.serial += 1;
                Started::new().and_then(|(started, fds)| {
                    init::run_agent(&self.control, self.serial, &fds)?;
                    Ok(started)
                })
            }
        };
        match started {
            Ok(Started { agent, log }) => {
                let mut work = Work::new(&start, spool, agent, log, self.groups.met());
                match work.agent.send(&ToAgent::Start(Box::new(start))) {
                    Ok(()) => Ok(work),
                    Err(Closed) => Err((std::io::Error::other("it hung up"), work.spool)),
                }
            }
            Err(error) => Err((error, spool)),
        }
    }

    /// Takes up to `reads` pieces from the agent and acts on whole frames.
    pub(super) fn hear_agent(&mut self, reads: usize) -> Result<(), Over> {
        let Some(work) = &mut self.work else { return Ok(()) };
        // One that does not listen may still have something to say.
        let _ = work.agent.flush();
        let mut more = work.ending.is_none();
        for _ in 0..reads {
            if !more {
                break;
            }
            match work.agent.fill() {
                Ok(got) => more = got,
                Err(Closed) => more = false,
            }
            if !more && work.agent.is_closed() && !work.agent_gone {
                // Frames that are already here still count. Init will report
                // the agent's end; one that only hung up gets no longer life.
                work.agent_gone = true;
                work.deadline = work.deadline.min(Instant::now() + HANG_UP_GRACE);
            }
        }
        let mut facts = Vec::new();
        let outcome = self.take_frames(&mut facts);
        self.write(facts)?;
        self.answer_limits();
        match outcome {
            Ok(()) => Ok(()),
            Err(End::Announced(ending)) => self.sweep(ending),
            Err(End::Over(code, message)) => self.fail(code, message),
            Err(End::Lost(cause)) => self.lost(cause),
            Err(End::Spool(error)) => Err(self.spool_failed(&error)),
        }
    }

    fn take_frames(&mut self, facts: &mut Vec<Fact>) -> Result<(), End> {
        let flooded =
            |TooMuch| End::Over(ErrorCode::AgentDied, "the agent produced more output than a turn may hold".to_owned());
        let Some(work) = &mut self.work else { return Ok(()) };
        while work.ending.is_none() {
            match work.agent.next::<FromAgent>() {
                Ok(Some(FromAgent::Event { kind, data })) => {
                    facts.extend(work.turn.event(kind, data).map_err(flooded)?);
                }
                // Messages come from clients alone.
                Ok(Some(FromAgent::Entry(Entry::User { .. }))) => {}
                Ok(Some(FromAgent::Entry(entry))) => {
                    let reached = work.count(&entry);
                    facts.push(work.turn.entry(entry).map_err(flooded)?);
                    if let Some((code, message)) = reached {
                        return Err(End::Over(code, message));
                    }
                }
                Ok(Some(FromAgent::Intent { calls })) => facts.push(work.turn.intent(calls).map_err(flooded)?),
                Ok(Some(FromAgent::Await { ticket })) => {
                    work.turn.question().map_err(flooded)?;
                    // What comes before it is written first.
                    let at_ms = work.at_ms();
                    work.spool.append(at_ms, std::mem::take(facts)).map_err(End::Spool)?;
                    work.wait_for(ticket);
                }
                Ok(Some(FromAgent::AskLimits)) => {
                    work.turn.question().map_err(flooded)?;
                    work.asks_limits = true;
                }
                Ok(Some(FromAgent::End { outcome, usage, output_text })) => {
                    return Err(End::Announced(Ending { outcome, usage, output_text, since: Instant::now() }));
                }
                Ok(None) => break,
                Err(Closed) => return Err(End::Lost("the agent sent something that is not a frame".to_owned())),
            }
        }
        Ok(())
    }

    /// Writes facts to the spool.
    pub(super) fn write(&mut self, facts: Vec<Fact>) -> Result<(), Over> {
        let Some(work) = self.work.as_mut().filter(|_| !facts.is_empty()) else { return Ok(()) };
        let at_ms = work.at_ms();
        match work.spool.append(at_ms, facts) {
            Ok(()) => Ok(()),
            Err(error) => Err(self.spool_failed(&error)),
        }
    }

    pub(super) fn hear_log(&mut self) {
        let Some(work) = &mut self.work else { return };
        let mut buffer = [0; 4096];
        if let Ok(got) = rustix::io::read(&work.log, &mut buffer) {
            work.log_closed = got == 0;
            work.keep_log(&buffer[..got]);
        }
    }

    pub(super) fn hear_init(&mut self) -> Result<(), Over> {
        let how = match protocol::receive::<FromInit>(&self.control) {
            // The agent of an earlier turn, which had said all it had to say.
            Ok(Some((FromInit::AgentExited { serial, .. }, _))) if serial != self.serial => return Ok(()),
            Ok(Some((FromInit::AgentExited { how, .. }, _))) => how,
            Ok(Some((FromInit::Swept, _))) => return self.swept(false),
            Ok(Some((FromInit::Quelled { count, wrote }, _))) => return self.quelled(count, wrote),
            // Init is gone, and with it everything inside.
            _ => {
                self.dead = true;
                "the sandbox ended".to_owned()
            }
        };
        // Its last words may still be in the socket, which holds only so much.
        self.hear_agent(LAST_READS)?;
        self.hear_log();
        let Some(work) = &self.work else { return Ok(()) };
        if work.ending.is_some() {
            return if self.dead { self.swept(true) } else { Ok(()) };
        }
        if work.cancelled.is_some() {
            return self.finish(Outcome::Cancelled, Usage::default(), String::new(), true);
        }
        let tail = work.last_words();
        let cause = match self.groups.met().since(work.groups_met).first() {
            Some(met) => met.clone(),
            None => "the agent ended early".to_owned(),
        };
        let said = if tail.is_empty() { String::new() } else { format!("; its last words: {tail}") };
        self.lost(format!("{cause} ({how}){said}"))
    }
}

/// Why frames of an agent are read no further.
enum End {
    /// It says that its turn is over.
    Announced(Ending),
    /// The turn ends here.
    Over(ErrorCode, String),
    /// The spool takes no more.
    Spool(std::io::Error),
    /// The agent cannot be gone on with.
    Lost(String),
}
