//! A session's state: pure, one value in, one value out.
//!
//! ```text
//!          start            cancel
//!   Idle --------> Working --------> Working (cancelling)
//!    ^               |  \                 |
//!    \----finish-----/   \----finish------+--> Idle
//!
//!   any --destroy--> Destroying, for good
//! ```

use cloister_types::ResponseId;

/// Where a session stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// It takes a message.
    Idle,
    /// A turn runs.
    Working {
        /// Which.
        turn: ResponseId,
        /// A cancel was asked for.
        cancelling: bool,
    },
    /// It is going away.
    Destroying {
        /// A turn that still has to end.
        turn: Option<ResponseId>,
    },
}

/// What is asked of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ask {
    /// A turn is to begin.
    Start(ResponseId),
    /// A turn is to be cancelled.
    Cancel(ResponseId),
    /// A turn has ended.
    Finish(ResponseId),
    /// The session is to go away.
    Destroy,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Done; the state has changed.
    Accepted,
    /// It is so already.
    AlreadySo,
    /// Not while a turn runs.
    Busy,
    /// Not any more.
    Gone,
    /// That turn does not run.
    NotRunning,
}

impl State {
    /// Is a turn running?
    pub(crate) fn turn(&self) -> Option<&ResponseId> {
        match self {
            Self::Working { turn, .. } | Self::Destroying { turn: Some(turn) } => Some(turn),
            Self::Idle | Self::Destroying { turn: None } => None,
        }
    }

    /// Was the running turn asked to stop?
    pub(crate) fn is_cancelling(&self) -> bool {
        matches!(self, Self::Working { cancelling: true, .. } | Self::Destroying { turn: Some(_) })
    }

    /// Decides, and changes on [`Verdict::Accepted`] alone.
    pub(crate) fn ask(&mut self, ask: Ask) -> Verdict {
        let (next, verdict) = match (&*self, ask) {
            (Self::Idle, Ask::Start(turn)) => (Self::Working { turn, cancelling: false }, Verdict::Accepted),
            (Self::Working { .. }, Ask::Start(_)) => return Verdict::Busy,
            (Self::Destroying { .. }, Ask::Start(_)) => return Verdict::Gone,

            (Self::Working { turn, cancelling: false }, Ask::Cancel(which)) if *turn == which => {
                (Self::Working { turn: which, cancelling: true }, Verdict::Accepted)
            }
            (Self::Working { turn, cancelling: true }, Ask::Cancel(which)) if *turn == which => {
                return Verdict::AlreadySo;
            }
            (Self::Destroying { turn: Some(turn) }, Ask::Cancel(which)) if *turn == which => return Verdict::AlreadySo,
            (_, Ask::Cancel(_)) => return Verdict::NotRunning,

            (Self::Working { turn, .. }, Ask::Finish(which)) if *turn == which => (Self::Idle, Verdict::Accepted),
            (Self::Destroying { turn: Some(turn) }, Ask::Finish(which)) if *turn == which => {
                (Self::Destroying { turn: None }, Verdict::Accepted)
            }
            (_, Ask::Finish(_)) => return Verdict::NotRunning,

            (Self::Idle, Ask::Destroy) => (Self::Destroying { turn: None }, Verdict::Accepted),
            (Self::Working { turn, .. }, Ask::Destroy) => {
                (Self::Destroying { turn: Some(turn.clone()) }, Verdict::Accepted)
            }
            (Self::Destroying { .. }, Ask::Destroy) => return Verdict::AlreadySo,
        };
        *self = next;
        verdict
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn id(n: u8) -> ResponseId {
        ResponseId::from_random([n; 12])
    }

    fn ask() -> impl Strategy<Value = Ask> {
        let turn = (0..3u8).prop_map(id);
        prop_oneof![
            3 => turn.clone().prop_map(Ask::Start),
            2 => turn.clone().prop_map(Ask::Cancel),
            2 => turn.prop_map(Ask::Finish),
            1 => Just(Ask::Destroy),
        ]
    }

    proptest! {
        // Against a model of three facts: the running turn, whether it is
        // being cancelled, whether the session is going.
        #[test]
        fn it_agrees_with_the_model(asks in proptest::collection::vec(ask(), 0..40)) {
            let mut state = State::Idle;
            let (mut running, mut cancelling, mut going) = (None, false, false);
            for ask in asks {
                let verdict = state.ask(ask.clone());
                match ask {
                    Ask::Start(turn) => {
                        let want = if going { Verdict::Gone } else if running.is_some() { Verdict::Busy } else { Verdict::Accepted };
                        prop_assert_eq!(verdict, want);
                        if verdict == Verdict::Accepted { running = Some(turn); cancelling = false; }
                    }
                    Ask::Cancel(turn) => {
                        let want = if running != Some(turn) { Verdict::NotRunning } else if cancelling || going { Verdict::AlreadySo } else { Verdict::Accepted };
                        prop_assert_eq!(verdict, want);
                        cancelling |= verdict == Verdict::Accepted;
                    }
                    Ask::Finish(turn) => {
                        prop_assert_eq!(verdict == Verdict::Accepted, running == Some(turn));
                        if verdict == Verdict::Accepted { running = None; cancelling = false; }
                    }
                    Ask::Destroy => { prop_assert_eq!(verdict, if going { Verdict::AlreadySo } else { Verdict::Accepted }); going = true; }
                }
                prop_assert_eq!(state.turn(), running.as_ref());
            }
        }
    }
}
