//! A turn as a person watches it: the answer on standard output, what the
//! agent does on standard error.

use cloister_client::{Event, Events};
use cloister_types::event::EventKind;
use serde_json::Value;

use crate::output::{Failure, Output};

/// Lines of a tool's result that are shown.
const RESULT_LINES: usize = 18;

/// How a turn ended, for the summary.
pub(crate) struct Summary {
    pub(crate) tools: usize,
    pub(crate) failed: Option<String>,
    pub(crate) usage: Value,
}

/// Follows the turn to its end.
pub(crate) async fn follow(output: Output, events: &mut Events) -> Result<Summary, Failure> {
    let mut screen = Screen { output, column: false, in_text: false };
    let mut summary = Summary { tools: 0, failed: None, usage: Value::Null };
    while let Some(event) = events.next().await? {
        if output.json {
            output.data(&event.raw)?;
        } else {
            screen.event(&event)?;
        }
        match event.kind {
            Some(EventKind::ToolResult) => summary.tools += 1,
            Some(EventKind::MessageCompleted) => summary.usage = event.data["usage"].clone(),
            Some(EventKind::MessageCancelled) => summary.failed = Some("the turn was cancelled".into()),
            Some(EventKind::MessageError) => {
                summary.failed = Some(event.data["error"].as_str().unwrap_or("the turn failed").to_owned())
            }
            _ => {}
        }
    }
    Ok(summary)
}

struct Screen {
    output: Output,
    /// The cursor stands in the middle of a line.
    column: bool,
    in_text: bool,
}

impl Screen {
    fn fresh_line(&mut self) -> Result<(), Failure> {
        if std::mem::take(&mut self.column) {
            if self.in_text {
                self.output.raw(b"\n")?;
            } else {
                self.output.mutter("\n");
            }
        }
        Ok(())
    }

    fn event(&mut self, event: &Event) -> Result<(), Failure> {
        let text = |field: &str| event.data[field].as_str().unwrap_or_default();
        match event.kind {
            Some(EventKind::MessageCreated) if event.data["scripted"] == true => {
                self.output.aside("(the scripted model: it plays a script and is no language model)");
            }
            Some(EventKind::MessageCreated) if event.data["queued"] == true => {
                self.output.aside("(the session is at work; this waits)");
            }
            Some(EventKind::TextStart) => {
                self.fresh_line()?;
                self.in_text = true;
            }
            Some(EventKind::TextDelta) => {
                self.output.raw(text("content").as_bytes())?;
                self.column = !text("content").ends_with('\n');
            }
            Some(EventKind::ThinkingStart) => self.fresh_line()?,
            Some(EventKind::ThinkingDelta) => {
                self.in_text = false;
                self.output.mutter(&self.output.paint("2;3", text("content")));
                self.column = true;
            }
            Some(EventKind::ToolUseExecuting) => {
                self.fresh_line()?;
                let line = format!("> {} {}", text("name"), arguments(&event.data["input"]));
                self.output.talk(&self.output.paint("36", &line));
            }
            Some(EventKind::ToolResult) => {
                self.fresh_line()?;
                self.result(text("content"), event.data["is_error"] == true);
            }
            Some(EventKind::RetryScheduled) => {
                self.fresh_line()?;
                self.output.aside(&format!(
                    "  (model: {}; trying again in {} ms)",
                    text("cause"),
                    event.data["delay_ms"]
                ));
            }
            Some(EventKind::AttemptDiscarded) => {
                self.fresh_line()?;
                self.output.aside("  (what the model had said just now is void)");
            }
            Some(EventKind::TurnStarted) => self.output.aside("(its turn has come)"),
            Some(EventKind::TurnResumed) => {
                self.fresh_line()?;
                let void = if event.data["discard_from"].is_null() { "" } else { "; what was said just now is void" };
                self.output.aside(&format!("  (the turn goes on: {}{void})", text("cause")));
            }
            Some(kind) if kind.is_terminal() => self.fresh_line()?,
            _ => {}
        }
        Ok(())
    }

    fn result(&self, content: &str, is_error: bool) {
        let lines: Vec<&str> = content.lines().collect();
        let mark = if is_error { self.output.paint("31", "  ! ") } else { "    ".to_owned() };
        for line in lines.iter().take(RESULT_LINES) {
            self.output.talk(&format!("{mark}{}", self.output.paint("2", line)));
        }
        if lines.len() > RESULT_LINES {
            self.output.aside(&format!("    ... {} more lines", lines.len() - RESULT_LINES));
        }
    }
}

/// A call's arguments on one line.
fn arguments(input: &Value) -> String {
    let text = match input {
        Value::Object(fields) if fields.contains_key("command") => {
            fields["command"].as_str().unwrap_or_default().to_owned()
        }
        Value::Object(fields) if fields.contains_key("path") => fields["path"].as_str().unwrap_or_default().to_owned(),
        other => other.to_string(),
    };
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let cut: String = line.chars().take(160).collect();
    if cut.len() < line.len() { format!("{cut}...") } else { cut }
}
