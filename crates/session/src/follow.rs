//! From a spool into the log: while its supervisor writes, and once that is
//! gone. Nothing is shown that is not in the log, and what the log holds is
//! told to the supervisor, which lets the agent go on by it.

use std::time::Duration;

use cloister_sandbox::run::RunFolder;
use cloister_sandbox::spool::{Reader, SpoolError};
use cloister_store::{Append, Finish, LogItem, Mark, StoreError};
use cloister_types::ErrorCode;
use cloister_types::event::StoredEvent;
use cloister_types::link::{Command, Fact, Signal};
use cloister_types::transcript::Entry;
use tokio::sync::watch;
use tokio::time::Instant;

use crate::SessionError;
use crate::feed::Head;
use crate::live::{Sandbox, blocking};
use crate::registry::{Sessions, Stop};
use crate::turn::{Driver, Ending, Followed};

/// How much longer than the turn's time its supervisor may take, and than a
/// cancel; then it is ended itself. It has nothing else to do.
const DEADLINE_PATIENCE: Duration = Duration::from_secs(30);
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);

impl Sessions {
    /// Copies the spool into the log as it grows, to its end.
    pub(crate) async fn follow(&self, driver: &mut Driver, mut sandbox: Sandbox) -> Result<Followed, SessionError> {
        let mut reader = None;
        let mut told = false;
        let mut failed = None;
        let left = self.config.turn.time_ms.saturating_sub(driver.mark.at_ms);
        let mut overdue = Instant::now() + Duration::from_millis(left) + DEADLINE_PATIENCE;
        // Of one that was taken over, the spool may have grown unnoticed, and the
        // supervisor may not know what the log holds.
        let _ = sandbox.command(&driver.stored()).await;
        let (mut grown, mut claimed) = (true, 0);
        loop {
            if std::mem::take(&mut grown) {
                let opened = match reader {
                    Some(_) => Ok(()),
                    None => {
                        let spool = sandbox.folder.spool(&driver.turn, driver.mark.attempt, driver.mark.offset);
                        spool.map(|spool| reader = spool)
                    }
                };
                let copied = match (opened, &mut reader) {
                    (Err(error), _) => Err(CopyError::Other(error.into())),
                    (_, Some(reader)) => self.copy(driver, reader, Some(&mut sandbox)).await,
                    // It begins with the first thing that happens.
                    (_, None) => Ok(None),
                };
                let copied = match copied {
                    // What the supervisor has written is there, or was changed.
                    Ok(None) => driver.reaches(claimed).map(|()| None),
                    copied => copied,
                };
                match copied {
                    Ok(None) => {}
                    Ok(Some(Copied::Ended { append, offset, sandbox_gone })) => {
                        if sandbox_gone {
                            let folder = Some(sandbox.wait_until_gone().await);
                            return Ok(Followed::Ended(Box::new(Ending { append: *append, sandbox: None, folder })));
                        }
                        sandbox.ended = Some((driver.turn.clone(), driver.mark.attempt, offset));
                        let ending = Ending { append: *append, sandbox: Some(sandbox), folder: None };
                        return Ok(Followed::Ended(Box::new(ending)));
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
            let signals = tokio::select! {
                signals = sandbox.signals() => signals,
                () = tokio::time::sleep_until(overdue) => {
                    tracing::error!(session = %driver.session.stored.id, turn = %driver.turn, "the supervisor does not keep the turn's time");
                    Ok(None)
                }
                stop = asked_to_stop(&mut driver.stopped, told) => {
                    if stop == Stop::Interrupt {
                        sandbox.stop().await;
                        return Ok(Followed::Failed(SessionError::interrupted()));
                    }
                    told = true;
                    overdue = overdue.min(Instant::now() + CANCEL_PATIENCE);
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
            for signal in signals {
                match signal {
                    Signal::Spooled(to) if to.response_id == driver.turn && to.attempt == driver.mark.attempt => {
                        (grown, claimed) = (true, claimed.max(to.offset));
                    }
                    Signal::Spooled(_) => {}
                    Signal::SpoolFailed { message } => {
                        self.store.note_full();
                        let message = format!("the turn's spool cannot be written: {message}");
                        failed = Some(SessionError::new(ErrorCode::StorageFull, message));
                    }
                    other => tracing::warn!(session = %driver.session.stored.id, ?other, "a signal out of place"),
                }
            }
        }
    }

    /// Copies what a supervisor that is gone has left.
    pub(crate) async fn drain(
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
        let copied = match copied {
            Ok(None) => {
                let written = folder.written(&driver.turn, driver.mark.attempt);
                written.map_err(CopyError::from).and_then(|written| driver.reaches(written)).map(|()| None)
            }
            copied => copied,
        };
        let followed = match copied {
            Ok(Some(Copied::Ended { append, .. })) => {
                Followed::Ended(Box::new(Ending { append: *append, sandbox: None, folder: Some(folder.clone()) }))
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
        loop {
            let mut items = Vec::new();
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
                    Fact::Ended { seq, kind, data, outcome, usage, output_text, sandbox_gone } => {
                        items.push(LogItem::Event(StoredEvent { seq, kind, data: data.into() }));
                        last = Some(Last::Ended { finish: self.finished(outcome, usage, output_text), sandbox_gone });
                    }
                    Fact::Lost { cause } => last = Some(Last::Lost { cause }),
                }
            }
            let to = Mark { offset: reader.offset(), at_ms, ..driver.mark };
            let next = items.iter().rev().find_map(LogItem::seq).map(|seq| seq + 1);
            let append = Append::new(driver.turn.clone(), items, driver.mark.offset, to);
            if let Some(Last::Ended { finish, sandbox_gone }) = last {
                let append = Box::new(append.finish(finish));
                return Ok(Some(Copied::Ended { append, offset: to.offset, sandbox_gone }));
            }
            self.store.append(append).await?;
            driver.mark = to;
            driver.progress += entries;
            if let Some(next) = next {
                self.feeds.advance(&driver.turn, Head { next, done: false });
            }
            if let Some(sandbox) = &mut sandbox {
                // If the supervisor is gone, the next read says so.
                let _ = sandbox.command(&driver.stored()).await;
            }
            if let Some(Last::Lost { cause }) = last {
                return Ok(Some(Copied::Lost { cause }));
            }
        }
    }
}

impl Driver {
    /// Nothing more is in the spool: is that all that was written to it?
    fn reaches(&self, written: u64) -> Result<(), CopyError> {
        match self.mark.offset {
            at if at < written => Err(CopyError::Damaged(SpoolError::Short { at, written })),
            _ => Ok(()),
        }
    }
}

/// The last fact of an attempt.
enum Last {
    Ended { finish: Finish, sandbox_gone: bool },
    Lost { cause: String },
}

/// How a spool ended.
enum Copied {
    Ended { append: Box<Append>, offset: u64, sandbox_gone: bool },
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
            SpoolError::Damaged(_) | SpoolError::Short { .. } | SpoolError::Length => Self::Damaged(error),
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
