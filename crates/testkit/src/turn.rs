//! Turns of the scripted model: what is sent, and what came of it.

use cloister_client::Event;
use cloister_types::ResponseId;
use cloister_types::event::EventKind;
use serde_json::Value;

/// A message that holds a script.
#[must_use]
pub fn script(lines: &[Value]) -> String {
    let lines: Vec<String> = lines.iter().map(Value::to_string).collect();
    format!("```script\n{}\n```", lines.join("\n"))
}

/// A turn, whole.
#[derive(Debug)]
pub struct Turn {
    /// Its id.
    pub id: ResponseId,
    /// All its events.
    pub events: Vec<Event>,
}

impl Turn {
    /// Follows a stream to its end.
    ///
    /// # Panics
    /// The stream breaks for good.
    pub async fn collect(mut stream: cloister_client::Events) -> Self {
        let mut events = Vec::new();
        while let Some(event) = stream.next().await.expect("an unbroken stream") {
            events.push(event);
        }
        Self { id: stream.turn().clone(), events }
    }

    /// Type of the last event.
    ///
    /// # Panics
    /// There are no events.
    #[must_use]
    pub fn end(&self) -> EventKind {
        self.events.last().and_then(|event| event.kind).expect("a last event of a known type")
    }

    /// The events of one type.
    #[must_use]
    pub fn of(&self, kind: EventKind) -> Vec<&Event> {
        self.events.iter().filter(|event| event.kind == Some(kind)).collect()
    }

    /// All text, joined.
    #[must_use]
    pub fn text(&self) -> String {
        self.of(EventKind::TextDelta).iter().filter_map(|event| event.data["content"].as_str()).collect()
    }

    /// Contents of the tool results.
    #[must_use]
    pub fn results(&self) -> Vec<String> {
        self.of(EventKind::ToolResult)
            .iter()
            .map(|event| event.data["content"].as_str().unwrap_or_default().to_owned())
            .collect()
    }
}
