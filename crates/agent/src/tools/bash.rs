//! The shell. A call ends when its shell ends, not when the last holder of
//! its output does: a background child must not hang the turn.

use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio::sync::watch;

use super::capture::{Capture, FLOOD};
use super::terminal::{self, Terminal};
use super::{Output, WORKSPACE};
use crate::history::Call;

#[derive(Deserialize)]
struct Input {
    command: String,
    timeout: Option<f64>,
    #[serde(default)]
    pty: bool,
    #[serde(default)]
    input: String,
}

const DEFAULT_TIMEOUT: f64 = 120.0;
const MAX_TIMEOUT: f64 = 600.0;
/// Most that is read at once.
pub(super) const PIECE: usize = 64 << 10;
/// What is still in the pipe when the shell has ended.
const DRAIN: Duration = Duration::from_millis(100);
/// Between the polite and the final signal.
const GRACE: Duration = Duration::from_millis(200);
/// Marks every descendant of a call, wherever it hides.
const MARK: &str = "CLOISTER_CALL";

enum Ended {
    Status(std::io::Result<ExitStatus>),
    TimedOut,
    Flooded,
    Cancelled,
}

pub(super) async fn run(call: &Call, id: &str, scratch: &Path, cancel: &mut watch::Receiver<bool>) -> Output {
    let input: Input = match serde_json::from_value(call.input.clone()) {
        Ok(input) => input,
        Err(error) => return Output::error(format!("Bad arguments for bash: {error}.")),
    };
    let seconds = input.timeout.unwrap_or(DEFAULT_TIMEOUT);
    if seconds.is_nan() || seconds <= 0.0 {
        return Output::error("Bad arguments for bash: timeout must be more than 0.");
    }
    if !input.pty && !input.input.is_empty() {
        return Output::error("Bad arguments for bash: input needs pty.");
    }
    if terminal::is_too_long(&input.input) {
        return Output::error(format!(
            "Bad arguments for bash: a terminal takes lines of at most {} bytes.",
            terminal::LINE
        ));
    }
    match execute(&input, seconds.min(MAX_TIMEOUT), id, scratch, cancel).await {
        Ok(output) => output,
        Err(error) => Output::error(format!("The shell could not be started: {error}")),
    }
}

async fn execute(
    input: &Input,
    seconds: f64,
    id: &str,
    scratch: &Path,
    cancel: &mut watch::Receiver<bool>,
) -> std::io::Result<Output> {
    let (mut said, command) = if input.pty { on_terminal(input)? } else { on_pipe(&input.command)? };
    let mut child = tokio::process::Command::from(command).current_dir(WORKSPACE).env(MARK, id).spawn()?;
    // On a terminal it leads a session, and so a group as well.
    let group = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let mut capture = Capture::new(scratch.join("output").join(format!("{}.txt", file_name(id))));
    let mut buffer = vec![0; PIECE];
    let mut open = true;
    let ended = {
        let deadline = tokio::time::sleep(Duration::from_secs_f64(seconds));
        tokio::pin!(deadline);
        loop {
            tokio::select! {
                status = child.wait() => break Ended::Status(status),
                got = said.read(&mut buffer), if open => {
                    let got = got.unwrap_or(0);
                    open = got > 0;
                    capture.push(&buffer[..got]);
                    if capture.is_flood() {
                        break Ended::Flooded;
                    }
                }
                () = &mut deadline => break Ended::TimedOut,
                _ = cancel.wait_for(|cancelled| *cancelled) => break Ended::Cancelled,
            }
        }
    };
    if !matches!(ended, Ended::Status(_)) {
        end(group, id, &mut child).await;
    }
    let drained = tokio::time::timeout(DRAIN, async {
        while open && !capture.is_flood() {
            let got = said.read(&mut buffer).await.unwrap_or(0);
            open = got > 0;
            capture.push(&buffer[..got]);
        }
    });
    let _ = drained.await;
    Ok(describe(ended, &mut capture, seconds, id))
}

/// What a call prints.
enum Said {
    Pipe(Receiver),
    Terminal(Terminal),
}

impl Said {
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Pipe(pipe) => pipe.read(buffer).await,
            Self::Terminal(terminal) => {
                let said = terminal.read().await.unwrap_or_default();
                buffer[..said.len()].copy_from_slice(&said);
                Ok(said.len())
            }
        }
    }
}

/// bash, or what an image has instead.
pub(super) fn shell() -> &'static str {
    if Path::new("/bin/bash").exists() { "bash" } else { "sh" }
}

fn on_pipe(command: &str) -> std::io::Result<(Said, Command)> {
    // One pipe for both streams keeps their order.
    let (reader, writer) = std::io::pipe()?;
    let mut program = Command::new(shell());
    program.args(["-c", command]).stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer).process_group(0);
    Ok((Said::Pipe(Receiver::from_owned_fd(reader.into())?), program))
}

fn on_terminal(input: &Input) -> std::io::Result<(Said, Command)> {
    let (terminal, leader) = Terminal::open(&input.command, &input.input)?;
    Ok((Said::Terminal(terminal), leader))
}

/// Ends the call's process group politely, then everything that bears its
/// mark: children that made a session of their own have left the group.
async fn end(group: Option<Pid>, id: &str, child: &mut tokio::process::Child) {
    if let Some(group) = group {
        let _ = kill_process_group(group, Signal::TERM);
        let _ = tokio::time::timeout(GRACE, child.wait()).await;
        let _ = kill_process_group(group, Signal::KILL);
    }
    for pid in marked(id) {
        let _ = kill_process(pid, Signal::KILL);
    }
    let _ = child.wait().await;
}

/// Processes of this sandbox that a call has left, by its mark.
fn marked(id: &str) -> Vec<Pid> {
    let mark = format!("{MARK}={id}");
    let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let bears_mark = |pid: &i32| {
        let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
        environment.split(|byte| *byte == 0).any(|variable| variable == mark.as_bytes())
    };
    pids.filter(bears_mark).filter_map(Pid::from_raw).collect()
}

fn describe(ended: Ended, capture: &mut Capture, seconds: f64, id: &str) -> Output {
    let mut content = capture.text();
    let mut note = |text: String| {
        if !content.is_empty() && !content.ends_with('\n') {
            content.push('\n');
        }
        content.push_str(&text);
    };
    let is_error = match ended {
        Ended::Status(Ok(status)) => {
            let failed = !status.success();
            if let Some(code) = status.code().filter(|code| *code != 0) {
                note(format!("[exit status {code}]"));
            } else if let Some(signal) = status.signal() {
                let cause =
                    if signal == Signal::XFSZ.as_raw() { ": a file reached the largest size allowed" } else { "" };
                note(format!("[killed by signal {signal}{cause}]"));
            }
            let left = marked(id).len();
            if left > 0 {
                note(format!("[{left} process(es) left running in the background; they end with this turn]"));
            }
            failed
        }
        Ended::Status(Err(error)) => {
            note(format!("[the exit status is unknown: {error}]"));
            true
        }
        Ended::TimedOut => {
            note(format!("[timed out after {seconds} s and was killed]"));
            true
        }
        Ended::Flooded => {
            note(format!("[killed: more than {} MB of output]", FLOOD >> 20));
            true
        }
        Ended::Cancelled => {
            note("[cancelled and killed; it may have had effects]".into());
            true
        }
    };
    if content.is_empty() {
        content.push_str("(no output)");
    }
    Output { content, is_error }
}

/// Providers choose call ids; only plain ones become file names.
fn file_name(id: &str) -> String {
    id.chars().filter(|c| c.is_ascii_alphanumeric() || *c == '_' || *c == '-').take(128).collect()
}
