//! The agent's tools. They run in the sandbox like the agent itself, so the
//! session's scope holds for them without any check of their own.

mod bash;
mod capture;
mod edit;
mod list;
mod read;
mod search;
pub(crate) mod terminal;
mod write;

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use cloister_types::{ResponseId, SessionId};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::history::Call;
use crate::step::Task;

/// A tool as described to a model.
#[derive(Debug, Clone)]
pub(crate) struct Schema {
    pub(crate) name: &'static str,
    pub(crate) description: &'static str,
    pub(crate) parameters: Value,
}

/// What a tool answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Output {
    pub(crate) content: String,
    pub(crate) is_error: bool,
}

impl Output {
    pub(crate) fn ok(content: impl Into<String>) -> Self {
        Self { content: content.into(), is_error: false }
    }

    pub(crate) fn error(content: impl Into<String>) -> Self {
        Self { content: content.into(), is_error: true }
    }
}

/// The folder that relative paths start from.
const WORKSPACE: &str = "/opt/sandbox/workspace";

/// Every tool, by name: a fixed order keeps the provider's cache valid.
pub(crate) fn schemas() -> Vec<Schema> {
    let object = |properties: Value, required: &[&str]| json!({"type": "object", "properties": properties, "required": required});
    let path = json!({"type": "string", "description": "Relative to the workspace, or absolute."});
    vec![
        Schema {
            name: "bash",
            description: "Run a command with bash -c in the workspace. Each call is a fresh shell, without input, and without a terminal unless pty is true. Answers with \
                          stdout and stderr in order and, if the command failed, its exit status or signal. Long output is cut in the \
                          middle and kept whole in a file that the answer names.",
            parameters: object(
                json!({
                    "command": {"type": "string"},
                    "timeout": {"type": "number", "description": "Seconds until the command is killed. Default 120, at most 600."},
                    "pty": {"type": "boolean", "description": "Run it on a terminal of its own, for programs that behave otherwise without one."},
                    "input": {"type": "string", "description": "Typed on the terminal (pty); then its input ends."},
                }),
                &["command"],
            ),
        },
        Schema {
            name: "edit_file",
            description: "Replace text in a file. The old text must occur exactly once, unless all is true.",
            parameters: object(
                json!({"path": path, "old": {"type": "string"}, "new": {"type": "string"}, "all": {"type": "boolean"}}),
                &["path", "old", "new"],
            ),
        },
        Schema {
            name: "list_files",
            description: "List a folder: type, size and name of each entry. With recursive, everything below it.",
            parameters: object(json!({"path": path, "recursive": {"type": "boolean"}}), &[]),
        },
        Schema {
            name: "read_file",
            description: "Read a text file, with line numbers. At most 2,000 lines or 50 KB at a time; use offset (first line, from 1) and \
                          limit (lines) for more.",
            parameters: object(
                json!({"path": path, "offset": {"type": "integer"}, "limit": {"type": "integer"}}),
                &["path"],
            ),
        },
        Schema {
            name: "search_files",
            description: "Search files below a folder for a regular expression. Answers with path:line:text, at most 200 of them. Files \
                          named by ignore files are skipped.",
            parameters: object(
                json!({"pattern": {"type": "string"}, "path": path, "glob": {"type": "string", "description": "Only files whose path fits, such as *.rs"}}),
                &["pattern"],
            ),
        },
        Schema {
            name: "write_file",
            description: "Write a file whole, replacing what was there; missing folders are made. At most 1 MB.",
            parameters: object(json!({"path": path, "content": {"type": "string"}}), &["path", "content"]),
        },
    ]
}

/// May calls of this tool run side by side?
pub(crate) fn only_reads(name: &str) -> bool {
    matches!(name, "read_file" | "list_files" | "search_files")
}

/// The tools of one turn.
pub(crate) struct Toolbox {
    scratch: PathBuf,
    /// With a number, the name of a call: a provider's ids may come again.
    turn: String,
    calls: AtomicU32,
}

impl Toolbox {
    pub(crate) fn new(session: &SessionId, turn: &ResponseId, attempt: u32) -> Self {
        Self {
            scratch: Path::new(WORKSPACE).join(".sessions").join(session.as_str()),
            turn: if attempt > 1 { format!("{turn}-{attempt}") } else { turn.to_string() },
            calls: AtomicU32::new(0),
        }
    }

    /// Runs calls that may run together. The flag tells that a cancel came;
    /// the outputs are truthful then, too.
    pub(crate) async fn run_batch(
        &self,
        batch: Vec<Task>,
        cancel: &mut watch::Receiver<bool>,
    ) -> (Vec<(Call, Output)>, bool) {
        let mut running = Vec::new();
        for task in batch {
            running.push(match task {
                Task::Refuse { call, why } => (call, Err(Output::error(why))),
                Task::Run(call) if call.name == "bash" => {
                    let number = self.calls.fetch_add(1, Ordering::Relaxed);
                    let id = format!("{}-{number}", self.turn);
                    let output = bash::run(&call, &id, &self.scratch, cancel).await;
                    (call, Err(output))
                }
                Task::Run(call) => {
                    let work = call.clone();
                    (call, Ok(tokio::task::spawn_blocking(move || run_file_tool(&work))))
                }
            });
        }
        let mut outputs = Vec::new();
        for (call, output) in running {
            let output = match output {
                Err(output) => output,
                Ok(task) => {
                    task.await.unwrap_or_else(|_| Output::error("The tool broke; this is a fault of the agent."))
                }
            };
            outputs.push((call, output));
        }
        (outputs, *cancel.borrow())
    }
}

fn run_file_tool(call: &Call) -> Output {
    match call.name.as_str() {
        "read_file" => parsed(call, read::run),
        "write_file" => parsed(call, write::run),
        "edit_file" => parsed(call, edit::run),
        "list_files" => parsed(call, list::run),
        "search_files" => parsed(call, search::run),
        other => Output::error(format!("There is no tool named {other:?}.")),
    }
}

fn parsed<T: DeserializeOwned>(call: &Call, run: impl FnOnce(T) -> Result<String, String>) -> Output {
    match serde_json::from_value::<T>(call.input.clone()) {
        Ok(input) => run(input).map_or_else(Output::error, Output::ok),
        Err(error) => Output::error(format!("Bad arguments for {}: {error}.", call.name)),
    }
}

/// Where a path argument points; the kernel decides what is there.
fn resolve(path: &str) -> PathBuf {
    Path::new(WORKSPACE).join(path)
}

/// An error in the words that a shell would use, so that a model knows them.
fn io_message(path: &str, error: &std::io::Error) -> String {
    let text = match error.raw_os_error().map(rustix::io::Errno::from_raw_os_error) {
        Some(rustix::io::Errno::NOENT) => "No such file or directory (ENOENT)".to_owned(),
        Some(rustix::io::Errno::ROFS) => "Read-only file system (EROFS)".to_owned(),
        _ => error.to_string(),
    };
    format!("{path}: {text}")
}
