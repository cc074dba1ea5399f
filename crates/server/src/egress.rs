//! The egress process as the server's child: started, told, started again if
//! it dies. Listeners are kept here as duplicates, so a new process serves the
//! very sockets that the old one did.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cloister_egress::control::{self, Order, Upstream};
use cloister_session::{Gateway, WayOut};
use cloister_types::SessionId;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

/// Between the death of a process and the start of the next.
const PAUSE: Duration = Duration::from_millis(100);

/// How long it may take to end with the sessions that it serves.
const GOODBYE: Duration = Duration::from_secs(5);

/// The server's handle.
pub(crate) struct Egress {
    executable: PathBuf,
    models: std::collections::BTreeMap<String, Upstream>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    control: Option<OwnedFd>,
    child: Option<Child>,
    ways: HashMap<SessionId, (WayOut, Vec<String>)>,
    stopping: bool,
}

impl Egress {
    /// Starts the process and the watch over it.
    pub(crate) fn start(
        executable: PathBuf,
        models: std::collections::BTreeMap<String, Upstream>,
    ) -> std::io::Result<Arc<Self>> {
        let egress = Arc::new(Self { executable, models, state: Mutex::default() });
        egress.spawn(&mut egress.lock())?;
        let watched = Arc::downgrade(&egress);
        std::thread::Builder::new().name("egress-watch".into()).spawn(move || {
            while let Some(egress) = watched.upgrade() {
                if !egress.look_after() {
                    return;
                }
                drop(egress);
                std::thread::sleep(PAUSE);
            }
        })?;
        Ok(egress)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn spawn(&self, state: &mut State) -> std::io::Result<()> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
        let child =
            Command::new(&self.executable).arg("egress").stdin(Stdio::from(theirs)).stdout(Stdio::null()).spawn()?;
        control::send(&ours, &Order::Models(self.models.clone()), &[])?;
        for (session, (way, models)) in &state.ways {
            let order = Order::Attach { session: session.clone(), models: models.clone() };
            control::send(&ours, &order, &[way.listener.as_fd(), way.lifeline.as_fd()])?;
        }
        state.control = Some(ours);
        state.child = Some(child);
        Ok(())
    }

    /// Restarts a dead process; false once it is to stay dead.
    fn look_after(&self) -> bool {
        let mut state = self.lock();
        if state.stopping {
            return false;
        }
        let ended = state.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)));
        if ended {
            tracing::error!("the egress process ended; starting another");
            if let Err(error) = self.spawn(&mut state) {
                tracing::error!(%error, "egress cannot be started");
                state.child = None;
            }
        }
        true
    }

    /// Hangs up and waits for the process to end.
    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.control = None;
        state.ways.clear();
        if let Some(mut child) = state.child.take() {
            drop(state);
            let end = Instant::now() + GOODBYE;
            while matches!(child.try_wait(), Ok(None)) {
                if Instant::now() >= end {
                    let _ = child.kill();
                }
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }

    /// Hangs up; calls of turns that go on without a server are served on.
    pub(crate) fn let_go(&self) {
        let mut state = self.lock();
        state.stopping = true;
        state.control = None;
    }
}

impl Gateway for Egress {
    fn attach(&self, session: &SessionId, way: WayOut, models: Vec<String>) -> std::io::Result<()> {
        let mut state = self.lock();
        let order = Order::Attach { session: session.clone(), models: models.clone() };
        // If the process has just died, its successor is told with the rest.
        if let Some(control) = &state.control
            && let Err(error) = control::send(control, &order, &[way.listener.as_fd(), way.lifeline.as_fd()])
        {
            tracing::warn!(%error, "egress is away; its successor will serve this session");
        }
        state.ways.insert(session.clone(), (way, models));
        Ok(())
    }

    fn detach(&self, session: &SessionId) {
        let mut state = self.lock();
        if state.ways.remove(session).is_some()
            && let Some(control) = &state.control
        {
            let _ = control::send(control, &Order::Detach { session: session.clone() }, &[]);
        }
    }
}
