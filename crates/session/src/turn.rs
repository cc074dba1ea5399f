//! The driver of a turn on the server's side, over all its attempts: starts
//! it, copies its spool into the log, wakes readers, and takes it up again
//! from the log when its agent is lost. It decides nothing; the supervisor
//! numbers, the store orders.

use std::sync::Arc;
use std::time::{Duration, Instant};

use cloister_sandbox::files::View;
use cloister_sandbox::run::RunFolder;
use cloister_sandbox::spool::{Reader, SpoolError};
use cloister_store::{Append, Finish, LogItem, Mark, StoreError};
use cloister_types::event::{EventKind, StoredEvent, data_line, terminal};
use cloister_types::link::{Command, Fact, Outcome, Signal, TurnStart, encode};
use cloister_types::transcript::{Entry, Usage};
use cloister_types::wire::{ErrorBody, TurnStatus};
use cloister_types::{ErrorCode, ResponseId};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::feed::Head;
use crate::live::{Sandbox, blocking, model_url};
use crate::registry::{Inner, Session, Sessions, Stop};
use crate::resume::Standing;
use crate::state::Ask;
use crate::{Model, SessionError, clock};

/// Attempts in a row that may be lost without having got anywhere.
const BARREN: u32 = 5;
/// Before an attempt that follows a barren one.
const PAUSE: Duration = Duration::from_millis(200);

/// How a driver comes to its turn.
pub(crate) enum Begin {
    /// It was just accepted, with everything it needs at hand.
    Now { sandbox: Option<Sandbox>, slot: Option<OwnedSemaphorePermit>, view: Arc<View> },
    /// It had waited for others; a sandbox may be left from them.
    Waited { sandbox: Option<Sandbox> },
    /// It is running in a sandbox that an earlier server launched.
    Adopted(Sandbox),
    /// Its sandbox is gone; what it left may hold more than the log does.
    Orphaned { folder: Option<RunFolder>, cause: String },
    /// It cannot be gone on with.
    Lost(SessionError),
}

/// How following an attempt ended.
enum Followed {
    /// With the turn; its sandbox may live on.
    Ended(Box<Ending>),
    /// The agent is lost.
    Lost { cause: String },
    /// The turn cannot go on.
    Failed(SessionError),
}

/// A turn's last rows, not yet in the log.
struct Ending {
    append: Append,
    sandbox: Option<Sandbox>,
    /// Of a sandbox that is gone: to be removed once the log holds the end.
    folder: Option<RunFolder>,
}

/// What a driver works on.
struct Driver {
    session: Arc<Session>,
    turn: ResponseId,
    model: Model,
    stopped: watch::Receiver<Stop>,
    /// Where the log stands.
    mark: Mark,
    /// Entries that the present attempt has added.
    progress: u32,
}

impl Sessions {
    /// Starts the driver of a turn that the state machine has let begin.
    pub(crate) fn drive(self: &Arc<Self>, session: &Arc<Session>, inner: &mut Inner, turn: ResponseId, begin: Begin) {
        let (stop, stopped) = watch::channel(if inner.state.is_cancelling() { Stop::Cancel } else { Stop::No });
        inner.stop = Some(stop);
        tokio::spawn(self.clone().run_turn(session.clone(), turn, begin, stopped));
    }

    /// Runs a turn to its terminal event.
    async fn run_turn(
        self: Arc<Self>,
        session: Arc<Session>,
        turn: ResponseId,
        begin: Begin,
        stopped: watch::Receiver<Stop>,
    ) {
        let scripted = self.config.model(&session.stored.model).is_some_and(|model| model.scripted);
        let ended = match self.config.model(&session.stored.model).cloned() {
            Some(model) => {
                let mark = Mark { attempt: 1, offset: 0, at_ms: 0 };
                let mut driver =
                    Driver { session: session.clone(), turn: turn.clone(), model, stopped, mark, progress: 0 };
                self.attempts(&mut driver, begin).await
            }
            None => Err(SessionError::model_gone(&session.stored.model)),
        };
        let outcome = match ended {
            Ok(ending) => {
                let Ending { append, sandbox, folder } = *ending;
                match self.conclude(&session, &turn, append, sandbox).await {
                    Ok(()) => {
                        if let Some(folder) = folder {
                            folder.remove();
                        }
                        return;
                    }
                    Err(error) => Outcome::from(SessionError::from(error)),
                }
            }
            Err(error) => error.into(),
        };
        self.end_for_it(&session, &turn, &outcome, scripted).await;
    }

    /// One attempt after another, until one ends the turn.
    async fn attempts(&self, driver: &mut Driver, begin: Begin) -> Result<Box<Ending>, SessionError> {
        let (items, mark) = self.store.log_of_open(&driver.turn).await?;
        driver.mark = mark;
        drop(items);
        let mut barren = 0;
        let mut followed = match begin {
            Begin::Now { sandbox, slot, view } => self.launch_and_follow(driver, sandbox, slot, view).await?,
            Begin::Waited { sandbox } => {
                self.say_started(driver).await?;
                let (sandbox, slot, view) = self.prepare(driver, sandbox).await?;
                self.launch_and_follow(driver, sandbox, slot, view).await?
            }
            Begin::Adopted(sandbox) => self.follow(driver, sandbox).await?,
            Begin::Orphaned { folder, cause } => match folder {
                Some(folder) => self.drain(driver, &folder, None, cause).await?,
                None => Followed::Lost { cause },
            },
            Begin::Lost(error) => Followed::Failed(error),
        };
        loop {
            let cause = match followed {
                Followed::Ended(ending) => return Ok(ending),
                Followed::Failed(error) => return Err(error),
                Followed::Lost { cause } => cause,
            };
            match *driver.stopped.borrow() {
                Stop::No => {}
                Stop::Cancel => return Err(SessionError::cancelled()),
                Stop::Interrupt => return Err(SessionError::interrupted()),
            }
            barren = if driver.progress > 0 { 0 } else { barren + 1 };
            if barren >= BARREN {
                let message = format!("the agent was lost {BARREN} times without getting anywhere: {cause}");
                return Err(SessionError::new(ErrorCode::AgentDied, message));
            }
            tracing::warn!(session = %driver.session.stored.id, turn = %driver.turn, cause, "taking the turn up from the log");
            if barren > 1 {
                tokio::time::sleep(PAUSE * barren).await;
            }
            self.renew(driver, &cause).await?;
            let (sandbox, slot, view) = self.prepare(driver, None).await?;
            followed = self.launch_and_follow(driver, sandbox, slot, view).await?;
        }
    }

    /// Appends what clients and the next agent must know, and takes the turn
    /// out of the hands of whoever may still believe to have it.
    async fn renew(&self, driver: &mut Driver, cause: &str) -> Result<(), SessionError> {
        let (items, mark) = self.store.log_of_open(&driver.turn).await?;
        let standing = Standing::read(&items);
        let items = standing.resume(mark.attempt + 1, cause, driver.model.scripted);
        let next = items.iter().rev().find_map(LogItem::seq).map_or(0, |seq| seq + 1);
        self.store.append(Append::at(driver.turn.clone(), items, mark).renew()).await?;
        driver.mark = Mark { attempt: mark.attempt + 1, offset: 0, ..mark };
        driver.progress = 0;
        self.feeds.advance(&driver.turn, Head { next, done: false });
        Ok(())
    }

    async fn say_started(&self, driver: &Driver) -> Result<(), SessionError> {
        let seq = self.store.next_seq(&driver.turn).await?.unwrap_or_default();
        let fields = [("id", Value::from(driver.turn.as_str())), ("status", "in_progress".into())];
        let fields: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let data = data_line(fields, seq, driver.model.scripted).into();
        let items = vec![LogItem::Event(StoredEvent { seq, kind: EventKind::TurnStarted, data })];
        self.store.append(Append::at(driver.turn.clone(), items, driver.mark)).await?;
        self.feeds.advance(&driver.turn, Head { next: seq + 1, done: false });
        Ok(())
    }

    /// View, and a sandbox on it or a place for one, which is waited for: the
    /// turn was accepted and is owed one.
    async fn prepare(
        &self,
        driver: &mut Driver,
        sandbox: Option<Sandbox>,
    ) -> Result<(Option<Sandbox>, Option<OwnedSemaphorePermit>, Arc<View>), SessionError> {
        let mut view = self.view(&driver.session, true).await;
        for tries in 1..BARREN {
            if !matches!(&view, Err(error) if error.code == ErrorCode::Unavailable) {
                break;
            }
            tokio::time::sleep(PAUSE * tries).await;
            view = self.view(&driver.session, true).await;
        }
        let view = view?;
        let fits = |sandbox: &Sandbox| sandbox.view.as_ref().is_some_and(|of| Arc::ptr_eq(of, &view));
        match sandbox {
            Some(sandbox) if fits(&sandbox) => return Ok((Some(sandbox), None, view)),
            Some(stale) => self.put_to_sleep(&driver.session, stale).await,
            None => {}
        }
        loop {
            match self.slot().await {
                Ok(slot) => return Ok((None, Some(slot), view)),
                Err(_) => {
                    let stopped = driver.stopped.wait_for(|stop| *stop != Stop::No);
                    if let Ok(Ok(stop)) = tokio::time::timeout(PAUSE, stopped).await.map(|stop| stop.map(|stop| *stop))
                    {
                        return Err(if stop == Stop::Cancel {
                            SessionError::cancelled()
                        } else {
                            SessionError::interrupted()
                        });
                    }
                }
            }
        }
    }

    /// Sends the turn to a sandbox, the idle one if it still lives or a new
    /// one, and follows it.
    async fn launch_and_follow(
        &self,
        driver: &mut Driver,
        sandbox: Option<Sandbox>,
        slot: Option<OwnedSemaphorePermit>,
        view: Arc<View>,
    ) -> Result<Followed, SessionError> {
        let left = self.config.turn.time_ms.saturating_sub(driver.mark.at_ms);
        if left == 0 {
            let seconds = self.config.turn.time_ms as f64 / 1e3;
            let message = format!("the turn reached its time limit of {seconds} s");
            return Err(SessionError::new(ErrorCode::TimeLimit, message));
        }
        let command = self.start_command(driver, left).await?;
        if let Some(mut sandbox) = sandbox {
            if !sandbox.is_closed() && sandbox.send(&command).await.is_ok() {
                return self.follow(driver, sandbox).await;
            }
            tracing::info!(session = %driver.session.stored.id, "the idle sandbox had ended; starting another");
            sandbox.wait_until_gone().await.remove();
        }
        let mut sandbox = self.launch_for_sure(driver, slot, view).await?;
        // If it hangs up at once, following it says so.
        let _ = sandbox.send(&command).await;
        self.follow(driver, sandbox).await
    }

    /// A new sandbox. The turn was accepted: whoever is away for a moment and
    /// is needed for this, such as the spawner, is waited for.
    async fn launch_for_sure(
        &self,
        driver: &mut Driver,
        slot: Option<OwnedSemaphorePermit>,
        view: Arc<View>,
    ) -> Result<Sandbox, SessionError> {
        let (mut slot, mut view) = (slot, Some(view));
        for tries in 1.. {
            let launched = async {
                let view = match view.take() {
                    Some(view) => view,
                    None => self.view(&driver.session, true).await?,
                };
                let slot = match slot.take() {
                    Some(slot) => slot,
                    None => self.slot().await?,
                };
                self.launch(&driver.session, view, slot).await
            };
            match launched.await {
                Err(error) if error.code == ErrorCode::Unavailable && tries < BARREN => {
                    tracing::warn!(session = %driver.session.stored.id, %error, "trying again");
                    tokio::time::sleep(PAUSE * tries).await;
                }
                outcome => return outcome,
            }
        }
        Err(SessionError::new(ErrorCode::Unavailable, "no sandbox could be launched"))
    }

    async fn start_command(&self, driver: &Driver, left: u64) -> Result<Vec<u8>, SessionError> {
        let Driver { session, turn, model, mark, .. } = driver;
        let mut conversation = self.store.conversation(&session.stored.id).await?;
        let turn_from = conversation.len();
        conversation.extend(self.store.entries(turn).await?);
        let start = TurnStart {
            session_id: session.stored.id.clone(),
            response_id: turn.clone(),
            attempt: mark.attempt,
            next_seq: self.store.next_seq(turn).await?.unwrap_or_default(),
            elapsed_ms: mark.at_ms,
            model: model.spec.clone(),
            model_url: model_url(),
            scripted: model.scripted,
            limits: cloister_types::link::TurnLimits { time_ms: left, ..self.config.turn },
            context: session.stored.context.clone(),
            memory_hint: self.config.memory_hint,
            conversation,
            turn_from,
        };
        encode(&Command::Start(Box::new(start))).map_err(|_| {
            let message = "the conversation has grown beyond what one turn can carry; go on in a new session";
            SessionError::new(ErrorCode::ModelRejected, message)
        })
    }

    /// Copies the spool into the log as it grows, to its end.
    async fn follow(&self, driver: &mut Driver, mut sandbox: Sandbox) -> Result<Followed, SessionError> {
        let mut reader = None;
        let mut told = false;
        let mut failed = None;
        loop {
            let signals = tokio::select! {
                signals = sandbox.signals() => signals,
                stop = asked_to_stop(&mut driver.stopped, told) => {
                    if stop == Stop::Interrupt {
                        sandbox.stop().await;
                        return Ok(Followed::Failed(SessionError::interrupted()));
                    }
                    told = true;
                    let command = Command::Cancel { response_id: driver.turn.clone() };
                    // If the supervisor is gone, the next read says so.
                    let _ = sandbox.command(&command).await;
                    continue;
                }
            };
            let Ok(Some(signals)) = signals else {
                let cause = "the session's supervisor ended".to_owned();
                let folder = sandbox.folder.clone();
                let drained = self.drain(driver, &folder, reader, cause).await?;
                return Ok(match (drained, failed) {
                    (Followed::Lost { .. }, Some(error)) => Followed::Failed(error),
                    (drained, _) => drained,
                });
            };
            let mut grown = false;
            for signal in signals {
                match signal {
                    Signal::Spooled(to) => grown |= to.response_id == driver.turn && to.attempt == driver.mark.attempt,
                    Signal::SpoolFailed { message } => {
                        let message = format!("the turn's spool cannot be written: {message}");
                        failed = Some(SessionError::new(ErrorCode::StorageFull, message));
                    }
                    other => tracing::warn!(session = %driver.session.stored.id, ?other, "a signal out of place"),
                }
            }
            if !grown {
                continue;
            }
            if reader.is_none() {
                reader = sandbox.folder.spool(&driver.turn, driver.mark.attempt, driver.mark.offset)?;
            }
            let Some(reader) = &mut reader else { continue };
            match self.copy(driver, reader, Some(&mut sandbox)).await {
                Ok(None) => {}
                Ok(Some(Copied::Ended { append, offset, sandbox_gone })) => {
                    if sandbox_gone {
                        let folder = Some(sandbox.wait_until_gone().await);
                        return Ok(Followed::Ended(Box::new(Ending { append, sandbox: None, folder })));
                    }
                    sandbox.ended = Some((driver.turn.clone(), driver.mark.attempt, offset));
                    return Ok(Followed::Ended(Box::new(Ending { append, sandbox: Some(sandbox), folder: None })));
                }
                Ok(Some(Copied::Lost { cause })) => {
                    sandbox.wait_until_gone().await.remove();
                    return Ok(Followed::Lost { cause });
                }
                Err(CopyError::Damaged(error)) => {
                    return Ok(Followed::Failed(damaged(&sandbox.end().await, &error)));
                }
                Err(CopyError::Other(error)) => {
                    sandbox.stop().await;
                    return Ok(Followed::Failed(error));
                }
            }
        }
    }

    /// Copies what a supervisor that is gone has left.
    async fn drain(
        &self,
        driver: &mut Driver,
        folder: &RunFolder,
        reader: Option<Reader>,
        cause: String,
    ) -> Result<Followed, SessionError> {
        // Nothing of it may be at work any more when the next attempt begins.
        let of_it = folder.clone();
        if !blocking(move || Ok::<_, SessionError>(of_it.make_sure_it_is_gone())).await? {
            let message =
                "a process of the turn's sandbox cannot be ended; the turn is not run a second time beside it";
            return Ok(Followed::Failed(SessionError::new(ErrorCode::Internal, message)));
        }
        let reader = match reader {
            Some(reader) => Some(reader),
            None => folder.spool(&driver.turn, driver.mark.attempt, driver.mark.offset)?,
        };
        let copied = match reader {
            Some(mut reader) => self.copy(driver, &mut reader, None).await,
            None => Ok(None),
        };
        let followed = match copied {
            Ok(Some(Copied::Ended { append, .. })) => {
                Followed::Ended(Box::new(Ending { append, sandbox: None, folder: Some(folder.clone()) }))
            }
            Ok(Some(Copied::Lost { cause })) => Followed::Lost { cause },
            Ok(None) => Followed::Lost { cause },
            Err(CopyError::Damaged(error)) => return Ok(Followed::Failed(damaged(folder, &error))),
            Err(CopyError::Other(error)) => Followed::Failed(error),
        };
        if !matches!(followed, Followed::Ended(_)) {
            // With an end, the log must hold it first.
            folder.remove();
        }
        Ok(followed)
    }

    /// Copies what the spool holds now into the log, tells readers and
    /// supervisor, and returns how the attempt ended, if it has.
    async fn copy(
        &self,
        driver: &mut Driver,
        reader: &mut Reader,
        mut sandbox: Option<&mut Sandbox>,
    ) -> Result<Option<Copied>, CopyError> {
        let mut items = Vec::new();
        loop {
            // A local file whose bytes were written a moment ago.
            let facts = reader.next_facts()?;
            if facts.is_empty() {
                return Ok(None);
            }
            let mut last = None;
            let mut entries = 0;
            let mut at_ms = driver.mark.at_ms;
            for spooled in facts {
                at_ms = at_ms.max(spooled.at_ms);
                match spooled.fact {
                    Fact::Event { seq, kind, data } => {
                        items.push(LogItem::Event(StoredEvent { seq, kind, data: data.into() }));
                    }
                    Fact::Entry(entry) => {
                        entries += u32::from(!matches!(entry, Entry::User { .. }));
                        items.push(LogItem::Entry(entry));
                    }
                    Fact::Intent { calls } => items.push(LogItem::Intent(calls)),
                    Fact::Ended { outcome, usage, output_text, sandbox_gone } => {
                        last = Some(Last::Ended { finish: self.finished(outcome, usage, output_text), sandbox_gone });
                    }
                    Fact::Lost { cause } => last = Some(Last::Lost { cause }),
                }
            }
            if last.is_none() && matches!(items.last(), Some(LogItem::Event(event)) if event.kind.is_terminal()) {
                // How the turn ended comes right behind. The two are stored as
                // one, so that nobody sees an ended turn that is still open.
                continue;
            }
            let to = Mark { offset: reader.offset(), at_ms, ..driver.mark };
            let next = items.iter().rev().find_map(LogItem::seq).map(|seq| seq + 1);
            let append = Append::new(driver.turn.clone(), std::mem::take(&mut items), driver.mark.offset, to);
            if let Some(Last::Ended { finish, sandbox_gone }) = last {
                let append = append.finish(finish);
                return Ok(Some(Copied::Ended { append, offset: to.offset, sandbox_gone }));
            }
            self.store.append(append).await?;
            driver.mark = to;
            driver.progress += entries;
            if let Some(next) = next {
                self.feeds.advance(&driver.turn, Head { next, done: false });
            }
            if let Some(sandbox) = &mut sandbox {
                let stored =
                    Command::Stored { response_id: driver.turn.clone(), attempt: to.attempt, offset: to.offset };
                // If the supervisor is gone, the next read says so.
                let _ = sandbox.command(&stored).await;
            }
            if let Some(Last::Lost { cause }) = last {
                return Ok(Some(Copied::Lost { cause }));
            }
        }
    }

    /// Appends a turn's last rows and lets the session go on. Nobody can come
    /// between the two: a cancel is either before, and holds, or too late.
    pub(crate) async fn conclude(
        self: &Arc<Self>,
        session: &Arc<Session>,
        turn: &ResponseId,
        append: Append,
        sandbox: Option<Sandbox>,
    ) -> Result<(), StoreError> {
        let scripted = self.config.model(&session.stored.model).is_some_and(|model| model.scripted);
        let mut inner = session.inner.lock().await;
        let mut sandbox = sandbox;
        let mut append = append;
        if inner.state.is_cancelling() && append.status() != Some(TurnStatus::Cancelled) {
            // It was promised, though the agent was faster. As after any
            // cancel, nothing of the turn stays at work.
            let finish = self.finished(Outcome::Cancelled, Usage::default(), String::new());
            append = append.end_with(|seq| cancelled_event(turn, seq, scripted), finish);
            if let Some(sandbox) = sandbox.take() {
                self.put_to_sleep(session, sandbox).await;
            }
        }
        let next_turn = match self.store.append(append).await {
            Ok(next_turn) => next_turn,
            Err(error) => {
                drop(inner);
                if let Some(sandbox) = sandbox {
                    self.put_to_sleep(session, sandbox).await;
                }
                return Err(error);
            }
        };
        if let Some(sandbox) = &mut sandbox {
            sandbox.idle_since = Instant::now();
            sandbox.acknowledge_end().await;
        } else {
            session.set_enforced(None);
            self.gateway.detach(&session.stored.id);
        }
        self.finish(session, &mut inner, turn, sandbox, next_turn);
        drop(inner);
        let next = self.store.next_seq(turn).await.ok().flatten().unwrap_or_default();
        // Only now may clients see the end: whoever does may send the next
        // message at once.
        self.feeds.advance(turn, Head { next, done: true });
        Ok(())
    }

    /// The turn's end is durable: the session rests, or goes on with the turn
    /// that has waited.
    fn finish(
        self: &Arc<Self>,
        session: &Arc<Session>,
        inner: &mut Inner,
        turn: &ResponseId,
        sandbox: Option<Sandbox>,
        next_turn: Option<ResponseId>,
    ) {
        inner.state.ask(Ask::Finish(turn.clone()));
        inner.stop = None;
        inner.rested = self.life();
        session.touch(clock::now(), inner.rested);
        match next_turn {
            Some(next) => {
                inner.state.ask(Ask::Start(next.clone()));
                self.drive(session, inner, next, Begin::Waited { sandbox });
            }
            None => inner.sandbox = sandbox,
        }
    }

    /// Ends a turn for its supervisor: closes what its log leaves open and
    /// appends the end. A full disk must not leave the turn open for ever, so
    /// this tries until the store takes it.
    pub(crate) async fn end_for_it(
        self: &Arc<Self>,
        session: &Arc<Session>,
        turn: &ResponseId,
        outcome: &Outcome,
        scripted: bool,
    ) {
        let mut said = false;
        loop {
            let finish = self.finished(outcome.clone(), Usage::default(), String::new());
            let append = match self.store.log_of_open(turn).await {
                Ok((items, mark)) => {
                    let items = Standing::read(&items).end(turn, outcome, scripted);
                    Append::at(turn.clone(), items, mark).finish(finish)
                }
                Err(StoreError::Damaged(what)) => {
                    // No event can be added to what cannot be read; the turn
                    // ends all the same, and the damage is what it ends with.
                    tracing::error!(%turn, what, "ALARM: a turn's log is damaged; it is kept as it is");
                    let damaged = Outcome::Failed { code: ErrorCode::LogDamaged, message: what };
                    let mark = Mark { attempt: 1, offset: 0, at_ms: 0 };
                    let finish = self.finished(damaged, Usage::default(), String::new());
                    Append::at(turn.clone(), Vec::new(), mark).finish(finish)
                }
                Err(StoreError::Ended) => return,
                Err(error) => {
                    tracing::error!(%turn, %error, "the log of a turn that is to be ended");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            match self.conclude(session, turn, append, None).await {
                Ok(()) | Err(StoreError::Ended) => return,
                Err(error) => {
                    if !std::mem::replace(&mut said, true) {
                        tracing::error!(%turn, %error, "the end of the turn cannot be recorded yet");
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    }

    pub(crate) fn finished(&self, outcome: Outcome, usage: Usage, output_text: String) -> Finish {
        let (status, error) = match outcome {
            Outcome::Completed { .. } => (TurnStatus::Completed, None),
            Outcome::Cancelled => (TurnStatus::Cancelled, None),
            Outcome::Failed { code, message } => {
                (TurnStatus::Failed, Some(ErrorBody { error: code, message, hint: None }))
            }
        };
        Finish { status, output_text, usage, error, now: clock::now(), life: self.life() }
    }
}

/// The last fact of an attempt.
enum Last {
    Ended { finish: Finish, sandbox_gone: bool },
    Lost { cause: String },
}

/// How a spool ended.
enum Copied {
    Ended { append: Append, offset: u64, sandbox_gone: bool },
    Lost { cause: String },
}

/// Why a spool is copied no further.
enum CopyError {
    Damaged(SpoolError),
    Other(SessionError),
}

impl From<SpoolError> for CopyError {
    fn from(error: SpoolError) -> Self {
        match error {
            SpoolError::Damaged(_) => Self::Damaged(error),
            SpoolError::Io(error) => Self::Other(error.into()),
        }
    }
}

impl From<StoreError> for CopyError {
    fn from(error: StoreError) -> Self {
        Self::Other(error.into())
    }
}

/// A spool that is not what was written: nothing of it is thrown away.
fn damaged(folder: &RunFolder, error: &SpoolError) -> SessionError {
    let kept = folder.put_aside();
    tracing::error!(%error, ?kept, "ALARM: a turn's spool is damaged; it is kept as it is");
    SessionError {
        hint: Some("the operator finds the spool in the data directory's run/damaged-* folder".into()),
        ..SessionError::new(ErrorCode::LogDamaged, error.to_string())
    }
}

/// Waits until the turn is asked to end early; for ever if nobody can ask any
/// more. A cancel that was passed on already does not count again.
async fn asked_to_stop(stopped: &mut watch::Receiver<Stop>, told: bool) -> Stop {
    let wanted = |stop: &Stop| *stop == Stop::Interrupt || (*stop == Stop::Cancel && !told);
    match stopped.wait_for(wanted).await.map(|stop| *stop) {
        Ok(stop) => stop,
        Err(_) => std::future::pending().await,
    }
}

fn cancelled_event(turn: &ResponseId, seq: u64, scripted: bool) -> LogItem {
    let (kind, fields) = terminal(turn, &Outcome::Cancelled, &Usage::default());
    LogItem::Event(StoredEvent { seq, kind, data: data_line(fields, seq, scripted).into() })
}
