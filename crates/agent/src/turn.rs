//! The driver of a turn: does what [`crate::step`] decides.

use std::fmt::Write;

use cloister_types::event::EventKind;
use cloister_types::link::{FromAgent, Outcome, ToAgent, TurnStart};
use cloister_types::transcript::{Entry, Stop, Usage};
use serde_json::json;
use tokio::sync::watch;

use crate::history::{Call, repair};
use crate::link::{self, Facts};
use crate::model::{self, CallError};
use crate::step::{Action, Steps, Task};
use crate::tools::{self, Output, Toolbox};
use crate::{trust, wire};

/// Waits for the turn on the link and runs it to its end.
///
/// # Errors
/// The link is broken; the supervisor reports the turn as failed.
pub async fn run() -> std::io::Result<()> {
    // Tools run as the same user; they must not read or write our memory.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    // Orphans of tools come to us instead of init, so they can be found.
    rustix::process::set_child_subreaper(rustix::process::Pid::from_raw(1))?;
    let (mut commands, socket) = link::take()?;
    let start = match commands.next().await? {
        Some(ToAgent::Start(start)) => *start,
        _ => return Err(std::io::Error::other("expected a turn")),
    };
    let (cancel, durable, limits) = commands.listen();
    let mut facts = Facts::new(socket, durable, limits);
    let (steps, action) = Steps::take_up(start.limits, start.model.price, turn_so_far(&start));
    let mut turn = Turn {
        toolbox: Toolbox::new(&start.session_id, &start.response_id, start.attempt),
        steps,
        output_text: turn_so_far(&start).iter().rev().find_map(text_of).unwrap_or_default(),
        conversation: start.conversation.clone(),
        start,
        trusts: false,
    };
    let outcome = turn.work(&mut facts, action, cancel).await?;
    let end = FromAgent::End { outcome, usage: turn.steps.usage(), output_text: turn.output_text };
    facts.send(&end).await
}

/// What earlier attempts have added to this turn, its message first.
fn turn_so_far(start: &TurnStart) -> &[Entry] {
    start.conversation.get(start.turn_from..).unwrap_or_default()
}

/// The text of an answer, if it has one.
fn text_of(entry: &Entry) -> Option<String> {
    let Entry::Assistant { blocks, .. } = entry else { return None };
    let texts = blocks.iter().filter(|block| block["type"] == "text").filter_map(|block| block["text"].as_str());
    Some(texts.collect::<String>()).filter(|text| !text.is_empty())
}

struct Turn {
    start: TurnStart,
    conversation: Vec<Entry>,
    steps: Steps,
    toolbox: Toolbox,
    output_text: String,
    /// The session's authority is where tools look for it.
    trusts: bool,
}

impl Turn {
    async fn work(
        &mut self,
        facts: &mut Facts,
        mut action: Action,
        mut cancel: watch::Receiver<bool>,
    ) -> std::io::Result<Outcome> {
        let system = crate::prompt::system(&self.start);
        let schemas = tools::schemas();
        loop {
            action = match action {
                Action::End(outcome) => return Ok(outcome),
                // The results that the call is about to show the model are on
                // disk before the model can act on them.
                Action::CallModel if self.steps.taken() > 1 && !facts.settled(&mut cancel).await? => {
                    return Ok(Outcome::Cancelled);
                }
                Action::CallModel => {
                    let body = wire::request(&self.start.model, &system, &repair(&self.conversation), &schemas);
                    let mut partial = String::new();
                    let called = tokio::select! {
                        called = model::call(facts, &self.start, self.steps.taken(), &body, &mut partial) => Some(called),
                        _ = cancel.wait_for(|cancelled| *cancelled) => None,
                    };
                    match called {
                        // The open block is closed by the supervisor.
                        None => {
                            self.remember_partial(facts, partial).await?;
                            return Ok(Outcome::Cancelled);
                        }
                        Some(Err(CallError::Link(error))) => return Err(error),
                        Some(Err(CallError::Failed(code, message))) => return Ok(Outcome::Failed { code, message }),
                        Some(Ok(answer)) => {
                            self.remember_answer(facts, &answer).await?;
                            self.steps.answered(&answer)
                        }
                    }
                }
                Action::RunTools(tasks) => {
                    if self.run_tools(facts, tasks, &mut cancel).await? {
                        return Ok(Outcome::Cancelled);
                    }
                    self.steps.before_call()
                }
            };
        }
    }

    /// The answer is recorded before any of its tools runs.
    async fn remember_answer(&mut self, facts: &mut Facts, answer: &wire::Answer) -> std::io::Result<()> {
        let entry = Entry::Assistant {
            wire: self.start.model.wire,
            model: self.start.model.upstream_model.clone(),
            blocks: answer.blocks.clone(),
            malformed: answer.malformed.iter().map(|(id, text)| (id.clone(), beginning(text))).collect(),
            stop: answer.stop,
            usage: answer.usage,
        };
        if let Some(text) = text_of(&entry) {
            self.output_text = text;
        }
        facts.entry(&entry).await?;
        self.conversation.push(entry);
        Ok(())
    }

    /// What had been said when a cancel came stays in the conversation, marked.
    async fn remember_partial(&self, facts: &mut Facts, text: String) -> std::io::Result<()> {
        if text.trim().is_empty() {
            return Ok(());
        }
        let text = format!("{text}\n[cancelled here by the user]");
        let blocks = vec![json!({"type": "text", "text": text})];
        let (wire, model) = (self.start.model.wire, self.start.model.upstream_model.clone());
        let (malformed, stop, usage) = (Vec::new(), Stop::End, Usage::default());
        facts.entry(&Entry::Assistant { wire, model, blocks, malformed, stop, usage }).await
    }

    /// Runs the calls of one answer. Neighbours that only read run side by
    /// side, everything else alone; results keep the model's order. True: a
    /// cancel came, and every call has been answered truthfully.
    async fn run_tools(
        &mut self,
        facts: &mut Facts,
        tasks: Vec<Task>,
        cancel: &mut watch::Receiver<bool>,
    ) -> std::io::Result<bool> {
        let mut rest = tasks.into_iter().peekable();
        let mut cancelled = *cancel.borrow();
        while let Some(task) = rest.next() {
            let mut batch = vec![task];
            while is_shared(&batch[0]) && rest.peek().is_some_and(is_shared) {
                batch.extend(rest.next());
            }
            if !cancelled {
                // Before anything is done, it is on disk that it may be done.
                facts.send(&FromAgent::Intent { calls: batch.iter().filter_map(about_to_run).collect() }).await?;
                cancelled = !facts.settled(cancel).await?;
            }
            let outputs = if cancelled {
                batch
                    .into_iter()
                    .map(|task| (call_of(task), Output::error("Not started: the turn was cancelled.")))
                    .collect()
            } else {
                if !std::mem::replace(&mut self.trusts, true) {
                    trust::bring(&self.start.model_url).await;
                }
                let (outputs, now) = self.toolbox.run_batch(batch, cancel).await;
                cancelled = now;
                outputs
            };
            for (call, mut output) in outputs {
                // A program knows that it failed, not that a limit was the cause.
                if output.is_error && !cancelled && call.name == "bash" {
                    for met in facts.limits_met().await? {
                        let _ = write!(output.content, "\n[{met}]");
                    }
                }
                self.answer_call(facts, call, output).await?;
            }
        }
        Ok(cancelled)
    }

    async fn answer_call(&mut self, facts: &mut Facts, call: Call, output: Output) -> std::io::Result<()> {
        let Output { content, is_error } = output;
        let entry = Entry::ToolResult { id: call.id.clone(), content: content.clone(), is_error };
        facts.entry(&entry).await?;
        self.conversation.push(entry);
        facts.event(EventKind::ToolResult, json!({"id": call.id, "content": content, "is_error": is_error})).await
    }
}

/// Enough of a malformed call's text for a model to know it again.
fn beginning(text: &str) -> String {
    text.chars().take(200).collect()
}

fn about_to_run(task: &Task) -> Option<String> {
    match task {
        Task::Run(call) => Some(call.id.clone()),
        Task::Refuse { .. } => None,
    }
}

fn is_shared(task: &Task) -> bool {
    matches!(task, Task::Run(call) if tools::only_reads(&call.name))
}

fn call_of(task: Task) -> Call {
    match task {
        Task::Run(call) | Task::Refuse { call, .. } => call,
    }
}
