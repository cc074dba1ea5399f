//! When the server starts: what earlier servers have left is taken up. What
//! runs is adopted, what was lost goes on from the log, what waits begins. No
//! table says that something is running; the kernel does.

use std::collections::HashMap;
use std::sync::Arc;

use cloister_sandbox::host::{Left, Standing};
use cloister_sandbox::run::RunFolder;
use cloister_store::StoredTurn;
use cloister_types::link::{Command, Outcome, encode};
use cloister_types::wire::TurnStatus;
use cloister_types::{ErrorCode, SessionId};

use crate::SessionError;
use crate::live::blocking;
use crate::registry::Sessions;
use crate::state::Ask;
use crate::turn::Begin;

/// What is left of one session's sandboxes.
#[derive(Default)]
struct Remains {
    standing: Vec<Standing>,
    gone: Vec<RunFolder>,
    stuck: bool,
}

impl Sessions {
    /// Takes up everything. Drivers work on from then on in their own time.
    pub(crate) async fn adopt(self: &Arc<Self>) -> Result<(), SessionError> {
        let host = self.host.clone();
        let left = blocking(move || host.survivors().map_err(SessionError::from)).await?;
        let mut remains: HashMap<SessionId, Remains> = HashMap::new();
        for left in left {
            match left {
                Left::Standing(standing) => {
                    let standing = *standing;
                    remains.entry(standing.session.clone()).or_default().standing.push(standing);
                }
                Left::Gone { session: Some(session), folder } => remains.entry(session).or_default().gone.push(folder),
                Left::Gone { session: None, folder } => folder.remove(),
                Left::Stuck { session } => remains.entry(session).or_default().stuck = true,
            }
        }
        let open = self.store.open_turns().await?;
        // All before any is driven: one that waits may begin, and end, at once.
        for turn in &open {
            let next = self.store.next_seq(&turn.id).await?.unwrap_or_default();
            self.feeds.open(&turn.id, next);
        }
        for turn in open.into_iter().filter(|turn| turn.status == TurnStatus::InProgress) {
            let remains = remains.remove(&turn.session).unwrap_or_default();
            let id = turn.id.clone();
            if let Err(error) = self.take_up(turn, remains).await {
                tracing::error!(turn = %id, %error, "a turn that cannot be taken up");
            }
        }
        self.begin_all_waiting().await;
        // Nothing of what remains has a turn that is open.
        for remains in remains.into_values() {
            for standing in remains.standing {
                dismiss(standing).await;
            }
            remains.gone.iter().for_each(RunFolder::remove);
        }
        let (host, sessions) = (self.host.clone(), self.clone());
        blocking(move || {
            sessions.gateway.prune(sessions.all().iter().map(|session| session.stored.id.to_string()).collect());
            host.sweep_private(|name| name.parse().is_ok_and(|id| sessions.find(&id).is_ok()));
            Ok::<_, SessionError>(())
        })
        .await
    }

    async fn take_up(self: &Arc<Self>, turn: StoredTurn, remains: Remains) -> Result<(), SessionError> {
        let session = match self.find(&turn.session) {
            Ok(session) => session,
            Err(_) => {
                // Deleted under its turn by hand, or by damage: nobody can
                // follow it, and nothing may run for it.
                tracing::error!(turn = %turn.id, session = %turn.session, "an open turn without its session");
                for standing in remains.standing {
                    dismiss(standing).await;
                }
                remains.gone.iter().for_each(RunFolder::remove);
                let ending = self.ending(&turn.id, &Outcome::Cancelled, false).await?;
                self.store.append(ending).await?;
                return Ok(());
            }
        };
        let mut begin = None;
        for standing in remains.standing {
            let fits = standing.turn.as_ref().is_some_and(|at| at.response_id == turn.id && at.attempt == turn.attempt);
            if fits && begin.is_none() {
                tracing::info!(session = %turn.session, turn = %turn.id, "a running turn is taken over");
                begin = Some(match self.take_over(&session, standing).await {
                    Ok(sandbox) => Begin::Adopted(sandbox),
                    Err(error) => Begin::Lost(error),
                });
            } else {
                dismiss(standing).await;
            }
        }
        let mut of_turn = None;
        for folder in remains.gone {
            match holds_spool(&folder, &turn) {
                Ok(true) => of_turn = Some(folder),
                Ok(false) => folder.remove(),
                // What it holds may be what the log lacks.
                Err(error) => begin = Some(Begin::Lost(error.into())),
            }
        }
        let begin = begin.unwrap_or_else(|| {
            if remains.stuck {
                let message =
                    "a process of the turn's sandbox cannot be ended; the turn is not run a second time beside it";
                Begin::Lost(SessionError::new(ErrorCode::Internal, message))
            } else {
                let cause = "the processes of the turn were lost".to_owned();
                Begin::Orphaned { folder: of_turn, cause }
            }
        });
        let mut inner = session.inner.lock().await;
        inner.state.ask(Ask::Start(turn.id.clone()));
        if turn.cancelling {
            inner.state.ask(Ask::Cancel(turn.id.clone()));
        }
        self.drive(&session, &mut inner, turn.id, begin);
        Ok(())
    }

    /// Lets turns begin that wait for sessions in which none is open: those
    /// that a server left, and those that a full disk kept.
    pub(crate) async fn begin_all_waiting(self: &Arc<Self>) {
        let open = match self.store.open_turns().await {
            Ok(open) => open,
            Err(error) => {
                tracing::error!(%error, "turns that wait cannot be listed");
                return;
            }
        };
        for turn in open.into_iter().filter(|turn| turn.status == TurnStatus::Queued) {
            if self.find(&turn.session).is_ok()
                && let Err(error) = self.begin_waiting(&turn.session).await
            {
                tracing::warn!(turn = %turn.id, %error, "a turn that waits cannot begin yet");
            }
        }
    }

    /// Lets a turn begin that waits for a session in which none is open.
    async fn begin_waiting(self: &Arc<Self>, id: &SessionId) -> Result<(), SessionError> {
        let session = self.find(id)?;
        let mut inner = session.inner.lock().await;
        if inner.state.turn().is_none()
            && let Some(next) = self.store.begin_next(id).await?
        {
            inner.state.ask(Ask::Start(next.clone()));
            self.drive(&session, &mut inner, next, Begin::Waited { sandbox: None });
        }
        Ok(())
    }
}

/// Is or was the spool of the turn's present attempt in there?
fn holds_spool(folder: &RunFolder, turn: &StoredTurn) -> std::io::Result<bool> {
    let nothing_said = matches!(folder.written(&turn.id, turn.attempt), Ok(0));
    Ok(folder.spool(&turn.id, turn.attempt, 0)?.is_some() || !nothing_said)
}

/// Ends a sandbox that nobody needs.
async fn dismiss(standing: Standing) {
    let ended = blocking(move || {
        if let Ok(stop) = encode(&Command::Stop) {
            let _ = std::io::Write::write_all(&mut &standing.link, &stop);
        }
        let gone = standing.folder.make_sure_it_is_gone();
        standing.folder.remove();
        Ok::<_, SessionError>(gone)
    });
    if !ended.await.unwrap_or(false) {
        tracing::error!("a sandbox without a turn does not end");
    }
}
