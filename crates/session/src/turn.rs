//! The driver of a turn on the server's side, over all its attempts: starts
//! it, follows it (`follow`), takes it up again from the log when its agent is
//! lost, and ends it (`conclude`). It decides nothing; the supervisor numbers,
//! the store orders.

use std::sync::Arc;
use std::time::Duration;

use cloister_sandbox::files::View;
use cloister_sandbox::run::RunFolder;
use cloister_store::{Append, LogItem, Mark};
use cloister_types::event::{EventKind, StoredEvent, data_line};
use cloister_types::link::{Command, Outcome, TurnLimits, TurnStart, encode};
use cloister_types::{ErrorCode, ResponseId};
use serde_json::{Map, Value};
use tokio::sync::{OwnedSemaphorePermit, watch};

use crate::feed::Head;
use crate::live::{Sandbox, model_url};
use crate::registry::{Inner, Session, Sessions, Stop};
use crate::resume::Standing;
use crate::{Model, SessionError};

/// Attempts in a row that may be lost without having got anywhere.
const BARREN: u32 = 5;
/// Attempts of one turn, however far each of them got.
const MOST_ATTEMPTS: u32 = 100;
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
pub(crate) enum Followed {
    /// With the turn; its sandbox may live on.
    Ended(Box<Ending>),
    /// The agent is lost.
    Lost { cause: String },
    /// The turn cannot go on.
    Failed(SessionError),
}

/// A turn's last rows, not yet in the log.
pub(crate) struct Ending {
    pub(crate) append: Append,
    pub(crate) sandbox: Option<Sandbox>,
    /// Of a sandbox that is gone: to be removed once the log holds the end.
    pub(crate) folder: Option<RunFolder>,
}

/// What a driver works on.
pub(crate) struct Driver {
    pub(crate) session: Arc<Session>,
    pub(crate) turn: ResponseId,
    pub(crate) model: Model,
    pub(crate) stopped: watch::Receiver<Stop>,
    /// Where the log stands.
    pub(crate) mark: Mark,
    /// Entries that the present attempt has added.
    pub(crate) progress: u32,
}

impl Driver {
    /// How far the log holds the spool, for the supervisor.
    pub(crate) fn stored(&self) -> Command {
        let Mark { attempt, offset, .. } = self.mark;
        Command::Stored { response_id: self.turn.clone(), attempt, offset }
    }
}

impl Begin {
    /// Ends what it would have begun with: nothing may act for a turn that is
    /// not gone on with.
    async fn abandon(self) {
        if let Self::Adopted(sandbox)
        | Self::Now { sandbox: Some(sandbox), .. }
        | Self::Waited { sandbox: Some(sandbox) } = self
        {
            sandbox.stop().await;
        }
    }
}

impl Sessions {
    /// Starts the driver of a turn that the state machine has let begin.
    pub(crate) fn drive(self: &Arc<Self>, session: &Arc<Session>, inner: &mut Inner, turn: ResponseId, begin: Begin) {
        let wanted = match () {
            () if self.is_ending() => Stop::Interrupt,
            () if inner.state.is_cancelling() => Stop::Cancel,
            () => Stop::No,
        };
        let (stop, stopped) = watch::channel(wanted);
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
            None => {
                begin.abandon().await;
                Err(SessionError::model_gone(&session.stored.model))
            }
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
        driver.mark = match self.store.log_of_open(&driver.turn).await {
            Ok((_, mark)) => mark,
            Err(error) => {
                begin.abandon().await;
                return Err(error.into());
            }
        };
        if *driver.stopped.borrow() == Stop::Interrupt {
            begin.abandon().await;
            return Err(SessionError::interrupted());
        }
        let mut barren = 0;
        let mut followed = match begin {
            Begin::Now { sandbox, slot, view } => self.launch_and_follow(driver, sandbox, slot, view).await?,
            Begin::Waited { sandbox } => {
                if let Err(error) = self.say_started(driver).await {
                    if let Some(sandbox) = sandbox {
                        sandbox.stop().await;
                    }
                    return Err(error);
                }
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
            if driver.mark.attempt >= MOST_ATTEMPTS {
                let message = format!("the agent was lost {MOST_ATTEMPTS} times: {cause}");
                return Err(SessionError::new(ErrorCode::AgentDied, message));
            }
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
        let slot = self.slot_in_time(driver).await?;
        Ok((None, Some(slot), view))
    }

    /// A place for a sandbox, waited for.
    async fn slot_in_time(&self, driver: &mut Driver) -> Result<OwnedSemaphorePermit, SessionError> {
        loop {
            match self.slot().await {
                Ok(slot) => return Ok(slot),
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
        let command = match self.start_command(driver, left).await {
            Ok(command) => command,
            Err(error) => {
                if let Some(sandbox) = sandbox {
                    sandbox.stop().await;
                }
                return Err(error);
            }
        };
        if let Some(mut sandbox) = sandbox {
            if !sandbox.is_closed() && sandbox.send(&command).await.is_ok() {
                return self.follow(driver, sandbox).await;
            }
            tracing::info!(session = %driver.session.stored.id, "the idle sandbox had ended; starting another");
            sandbox.wait_until_gone().await.remove();
        }
        let sandbox = self.launch_for_sure(driver, slot, view, command.into()).await?;
        self.follow(driver, sandbox).await
    }

    /// A new sandbox. The turn was accepted: whoever is away for a moment and
    /// is needed for this, such as the spawner, is waited for.
    async fn launch_for_sure(
        &self,
        driver: &mut Driver,
        slot: Option<OwnedSemaphorePermit>,
        view: Arc<View>,
        order: Arc<[u8]>,
    ) -> Result<Sandbox, SessionError> {
        let (mut slot, mut view) = (slot, Some(view));
        for tries in 1.. {
            let slot = match slot.take() {
                Some(slot) => slot,
                None => self.slot_in_time(driver).await?,
            };
            let launched = async {
                let view = match view.take() {
                    Some(view) => view,
                    None => self.view(&driver.session, true).await?,
                };
                self.launch(&driver.session, view, slot, order.clone()).await
            };
            // A spawner that is killed under a launch makes it look refused.
            let passing = |code| matches!(code, ErrorCode::Unavailable | ErrorCode::SandboxUnavailable);
            match launched.await {
                Err(error) if passing(error.code) && tries < BARREN => {
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
            limits: TurnLimits { time_ms: left, ..self.config.turn },
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
}
