//! What the agent does next: pure, so that every path can be tested.
//!
//! ```text
//!             answer without calls
//!   Call model ---------------------> End
//!     ^   |  \ pause -> Call model
//!     |   v answer with calls
//!   Run tools
//! ```
//!
//! The driver performs the action and feeds the result back.

use cloister_types::ErrorCode;
use cloister_types::link::{Outcome, TurnLimits};
use cloister_types::transcript::Usage;

use crate::history::{Call, calls};
use crate::wire::{Answer, Stop};

/// A tool call, ready to run or already answered.
#[derive(Debug, Clone, PartialEq)]
pub enum Task {
    /// Run it.
    Run(Call),
    /// Do not: answer with this error instead.
    Refuse {
        /// The call.
        call: Call,
        /// What the model reads.
        why: String,
    },
}

/// What to do next.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    /// Call the model with the conversation as it stands.
    CallModel,
    /// Run these, in order, then call the model.
    RunTools(Vec<Task>),
    /// The turn is over.
    End(Outcome),
}

/// Turns in a row in which nothing but malformed calls came.
const MALFORMED_IN_A_ROW: u32 = 3;

/// The state of a turn as far as decisions need it.
#[derive(Debug, Clone)]
pub struct Steps {
    limits: TurnLimits,
    taken: u32,
    malformed: u32,
    usage: Usage,
}

impl Steps {
    /// A turn that has just begun.
    #[must_use]
    pub fn new(limits: TurnLimits) -> Self {
        Self { limits, taken: 0, malformed: 0, usage: Usage::default() }
    }

    /// Tokens so far.
    #[must_use]
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// Model calls so far.
    #[must_use]
    pub fn taken(&self) -> u32 {
        self.taken
    }

    /// Before a model call: may it be made?
    pub fn before_call(&mut self) -> Action {
        let failed = |code, message| Action::End(Outcome::Failed { code, message });
        if self.taken >= self.limits.steps {
            return failed(
                ErrorCode::StepLimit,
                format!("the turn reached its limit of {} model calls", self.limits.steps),
            );
        }
        if self.usage.total_tokens >= self.limits.tokens {
            return failed(
                ErrorCode::TokenLimit,
                format!("the turn reached its limit of {} tokens", self.limits.tokens),
            );
        }
        self.taken += 1;
        Action::CallModel
    }

    /// After an answer.
    pub fn answered(&mut self, answer: &Answer) -> Action {
        self.usage.add(&answer.usage);
        let end = |reason: &str| Action::End(Outcome::Completed { stop_reason: reason.to_owned() });
        let failed = |code, message: &str| Action::End(Outcome::Failed { code, message: message.to_owned() });
        let calls = calls(&answer.blocks);
        match answer.stop {
            Stop::Refusal => return failed(ErrorCode::ModelRefusal, "the model declined to answer"),
            Stop::ContextFull => {
                return failed(ErrorCode::ModelRejected, "the conversation no longer fits the model's context window");
            }
            Stop::Pause if calls.is_empty() => return self.before_call(),
            // "Tools" without a call: there is nothing to wait for.
            Stop::End | Stop::Tools if calls.is_empty() => return end("end"),
            Stop::MaxTokens if calls.is_empty() => return end("max_tokens"),
            _ => {}
        }
        let last = calls.len() - 1;
        let tasks: Vec<Task> = calls
            .into_iter()
            .enumerate()
            .map(|(index, call)| {
                let malformed = answer.malformed.iter().find(|(id, _)| *id == call.id);
                match malformed {
                    // The limit cut the last call; half a command must not run.
                    _ if answer.stop == Stop::MaxTokens && index == last => Task::Refuse {
                        call,
                        why: "Not run: the answer reached its token limit inside this call. Make the call shorter, or split it.".into(),
                    },
                    Some((_, text)) => {
                        let start: String = text.chars().take(200).collect();
                        Task::Refuse { call, why: format!("Not run: the arguments are not a JSON object. They began: {start}") }
                    }
                    None => Task::Run(call),
                }
            })
            .collect();
        self.malformed =
            if tasks.iter().all(|task| matches!(task, Task::Refuse { .. })) { self.malformed + 1 } else { 0 };
        if self.malformed >= MALFORMED_IN_A_ROW {
            return failed(ErrorCode::ModelRejected, "the model made malformed tool calls three times in a row");
        }
        Action::RunTools(tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn steps(steps: u32, tokens: u64) -> Steps {
        Steps::new(TurnLimits { steps, tokens, time_ms: 1 })
    }

    fn answer(stop: Stop, ids: &[&str]) -> Answer {
        let call = |id: &&str| json!({"type": "tool_use", "id": id, "name": "bash", "input": {}});
        let blocks: Vec<Value> = ids.iter().map(call).collect();
        Answer {
            blocks,
            malformed: vec![],
            stop,
            usage: Usage { total_tokens: 10, input_tokens: 10, ..Usage::default() },
        }
    }

    fn ends_with(action: &Action) -> Option<ErrorCode> {
        match action {
            Action::End(Outcome::Failed { code, .. }) => Some(*code),
            _ => None,
        }
    }

    #[test]
    fn ceilings_end_the_turn_with_their_code() {
        let mut turn = steps(1, 100);
        assert_eq!(turn.before_call(), Action::CallModel);
        assert_eq!(ends_with(&turn.before_call()), Some(ErrorCode::StepLimit));
        let mut turn = steps(9, 10);
        assert_eq!(turn.before_call(), Action::CallModel);
        assert!(matches!(turn.answered(&answer(Stop::Tools, &["a"])), Action::RunTools(_)));
        assert_eq!(ends_with(&turn.before_call()), Some(ErrorCode::TokenLimit));
    }

    #[test]
    fn every_stop_without_calls_has_its_end() {
        let done = |reason: &str| Action::End(Outcome::Completed { stop_reason: reason.into() });
        for (stop, want) in [
            (Stop::End, done("end")),
            (Stop::Tools, done("end")),
            (Stop::MaxTokens, done("max_tokens")),
            (Stop::Pause, Action::CallModel),
        ] {
            assert_eq!(steps(9, 100).answered(&answer(stop, &[])), want);
        }
        assert_eq!(ends_with(&steps(9, 100).answered(&answer(Stop::Refusal, &[]))), Some(ErrorCode::ModelRefusal));
        assert_eq!(ends_with(&steps(9, 100).answered(&answer(Stop::ContextFull, &[]))), Some(ErrorCode::ModelRejected));
    }

    #[test]
    fn a_cut_call_does_not_run_and_the_ones_before_it_do() {
        let Action::RunTools(tasks) = steps(9, 100).answered(&answer(Stop::MaxTokens, &["a", "b"])) else { panic!() };
        assert!(matches!(tasks[..], [Task::Run(_), Task::Refuse { .. }]));
    }

    #[test]
    fn malformed_calls_are_answered_and_three_in_a_row_end_the_turn() {
        let mut turn = steps(9, 1000);
        let mut bad = answer(Stop::Tools, &["a"]);
        bad.malformed = vec![("a".into(), "{oops".into())];
        assert!(matches!(turn.answered(&bad), Action::RunTools(tasks) if matches!(tasks[..], [Task::Refuse { .. }])));
        assert!(matches!(turn.answered(&bad), Action::RunTools(_)));
        assert_eq!(ends_with(&turn.answered(&bad)), Some(ErrorCode::ModelRejected));
    }
}
