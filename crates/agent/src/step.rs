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
use cloister_types::model::Price;
use cloister_types::transcript::{Entry, Usage};

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

impl Task {
    /// The call that it is about.
    #[must_use]
    pub fn call(&self) -> &Call {
        match self {
            Self::Run(call) | Self::Refuse { call, .. } => call,
        }
    }
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
    price: Price,
    taken: u32,
    malformed: u32,
    usage: Usage,
}

impl Steps {
    /// A turn that has just begun.
    #[must_use]
    pub fn new(limits: TurnLimits, price: Price) -> Self {
        Self { limits, price, taken: 0, malformed: 0, usage: Usage::default() }
    }

    /// A turn as its entries tell it, its message first, and what comes next.
    /// Every answer is judged again as it was the first time; calls that have
    /// their results are not made again.
    #[must_use]
    pub fn take_up(limits: TurnLimits, price: Price, so_far: &[Entry]) -> (Self, Action) {
        let mut steps = Self::new(limits, price);
        let mut action = None;
        for entry in so_far {
            match entry {
                Entry::User { .. } => {}
                Entry::Assistant { blocks, malformed, stop, usage, .. } => {
                    // An answer that asked for another call has counted it.
                    steps.taken += u32::from(!matches!(action, Some(Action::CallModel)));
                    let (blocks, malformed) = (blocks.clone(), malformed.clone());
                    action = Some(steps.answered(&Answer { blocks, malformed, stop: *stop, usage: *usage }));
                }
                Entry::ToolResult { id, .. } => {
                    if let Some(Action::RunTools(tasks)) = &mut action {
                        tasks.retain(|task| task.call().id != *id);
                    }
                }
            }
        }
        let action = match action {
            Some(Action::RunTools(tasks)) if tasks.is_empty() => steps.before_call(),
            Some(action) => action,
            None => steps.before_call(),
        };
        (steps, action)
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
        if let Some((code, message)) = self.limits.reached(self.taken, &self.usage, &self.price) {
            return failed(code, message);
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
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn limits(steps: u32, tokens: u64) -> TurnLimits {
        TurnLimits { steps, tokens, spend: None, time_ms: 1 }
    }

    fn steps(steps: u32, tokens: u64) -> Steps {
        Steps::new(limits(steps, tokens), Price::default())
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

    #[test]
    fn money_is_a_ceiling_too() {
        let limits = TurnLimits { spend: Some(30), ..limits(9, 1000) };
        let mut turn = Steps::new(limits, Price { input: 1.5, ..Price::default() });
        for want in [None, None, Some(ErrorCode::SpendLimit)] {
            let next = turn.before_call();
            assert_eq!(ends_with(&next), want);
            if want.is_none() {
                turn.answered(&answer(Stop::Tools, &["a"]));
            }
        }
    }

    fn stop() -> impl Strategy<Value = Stop> {
        prop_oneof![
            4 => Just(Stop::Tools),
            1 => Just(Stop::End),
            1 => Just(Stop::MaxTokens),
            1 => Just(Stop::Pause),
            1 => Just(Stop::Refusal),
        ]
    }

    proptest! {
        // An agent that is killed anywhere and one that is not decide the same.
        #[test]
        fn a_successor_goes_on_where_the_log_ends(
            stops in proptest::collection::vec((stop(), 0..3usize, any::<bool>()), 1..8),
            most in 1..6u32,
        ) {
            let mut entries = vec![Entry::User { text: "go".into() }];
            let mut turn = steps(most, 65);
            let mut next = turn.before_call();
            for (index, (stop, calls, bad)) in stops.into_iter().enumerate() {
                let (taken_up, action) = Steps::take_up(limits(most, 65), Price::default(), &entries);
                prop_assert_eq!(&action, &next);
                prop_assert_eq!((taken_up.taken(), taken_up.usage()), (turn.taken(), turn.usage()));
                if next != Action::CallModel {
                    break;
                }
                let ids: Vec<String> = (0..calls).map(|n| format!("{index}_{n}")).collect();
                let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
                let mut answer = answer(stop, &ids);
                if bad && let Some(id) = ids.first() {
                    answer.malformed.push(((*id).to_owned(), "{".to_owned()));
                }
                entries.push(Entry::Assistant {
                    wire: cloister_types::model::Wire::OpenaiChat,
                    model: "m".into(),
                    blocks: answer.blocks.clone(),
                    malformed: answer.malformed.clone(),
                    stop: answer.stop,
                    usage: answer.usage,
                });
                next = turn.answered(&answer);
                while let Action::RunTools(tasks) = &mut next {
                    let (_, action) = Steps::take_up(limits(most, 65), Price::default(), &entries);
                    if tasks.is_empty() {
                        next = turn.before_call();
                        break;
                    }
                    prop_assert_eq!(action, Action::RunTools(tasks.clone()));
                    let id = tasks.remove(0).call().id.clone();
                    entries.push(Entry::ToolResult { id, content: "r".into(), is_error: false });
                }
            }
        }
    }
}
