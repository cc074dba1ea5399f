//! Where words go.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::sync::OnceLock;

use cloister_client::ClientError;
use cloister_types::ErrorCode;
use serde::Serialize;
use serde_json::json;

/// A command that did not work.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) message: String,
    pub(crate) hint: Option<String>,
    pub(crate) code: Option<ErrorCode>,
    /// The caller's words or configuration were wrong.
    pub(crate) usage: bool,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: None, usage: false }
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        match error {
            ClientError::Refused { code, message, hint, .. } => Self { message, hint, code: Some(code), usage: false },
            ClientError::Unreachable { .. } => Self {
                hint: Some("is the server running? start one with: cloister dev".into()),
                ..Self::new(error.to_string())
            },
            error => Self::new(error.to_string()),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Flags that the next command needs to reach the same server.
static FLAGS: OnceLock<String> = OnceLock::new();

/// How to print.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Output {
    pub(crate) json: bool,
    colour: bool,
}

impl Output {
    pub(crate) fn new(json: bool, flags: String) -> Self {
        FLAGS.get_or_init(|| flags);
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { json, colour: wanted && std::io::stderr().is_terminal() }
    }

    /// A line of data.
    pub(crate) fn data(self, line: &str) -> Result<(), Failure> {
        self.raw(format!("{line}\n").as_bytes())
    }

    /// Bytes of data, at once.
    pub(crate) fn raw(self, bytes: &[u8]) -> Result<(), Failure> {
        let mut out = std::io::stdout().lock();
        Ok(out.write_all(bytes).and_then(|()| out.flush())?)
    }

    /// A value: JSON if asked for, else the text.
    pub(crate) fn value(self, value: &impl Serialize, text: &str) -> Result<(), Failure> {
        if !self.json {
            return self.data(text);
        }
        let value = serde_json::to_string(value).map_err(|error| Failure::new(error.to_string()))?;
        self.data(&value)
    }

    /// Talk, for people.
    pub(crate) fn talk(self, line: &str) {
        self.mutter(&format!("{line}\n"));
    }

    /// Talk without a line's end. Nobody needs to listen: a closed standard
    /// error is no reason to stop.
    pub(crate) fn mutter(self, text: &str) {
        let _ = std::io::stderr().lock().write_all(text.as_bytes());
    }

    /// Talk that is less important.
    pub(crate) fn aside(self, line: &str) {
        self.talk(&self.paint("2", line));
    }

    /// What to do next: the last line, with the flags that found this server.
    pub(crate) fn next(self, command: &str) {
        let command = match command.strip_prefix("cloister ") {
            Some(rest) => format!("cloister {}{rest}", FLAGS.get().map_or("", String::as_str)),
            None => command.to_owned(),
        };
        self.talk(&format!("{} {command}", self.paint("1", "next:")));
    }

    pub(crate) fn paint(self, style: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{style}m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// Says what failed; usage errors exit with 2, others with 1.
    pub(crate) fn failure(self, failure: &Failure) -> ExitCode {
        if self.json {
            let body = json!({"error": failure.code, "message": failure.message, "hint": failure.hint});
            // Nothing more can be said if even this cannot be.
            let _ = self.data(&body.to_string());
        }
        let code = failure.code.map_or(String::new(), |code| format!(" ({code})"));
        self.talk(&format!("{} {}{code}", self.paint("31", "error:"), failure.message));
        if let Some(hint) = &failure.hint {
            self.talk(&format!("hint: {hint}"));
        }
        if let Some(code) = failure.code {
            self.next(&format!("cloister explain {code}"));
        }
        ExitCode::from(if failure.usage { 2 } else { 1 })
    }
}
