//! Following a turn. A stream that breaks off before its terminal event is
//! opened again after the last number that arrived.

use std::time::Duration;

use cloister_types::event::EventKind;
use cloister_types::sse::Parser;
use cloister_types::{ResponseId, SessionId};
use reqwest::Response;
use serde_json::Value;

use crate::{Client, ClientError, Result};

/// Attempts to reconnect in a row, and the pause before each.
const ATTEMPTS: u32 = 20;
const PAUSE: Duration = Duration::from_millis(500);
/// Servers send a heartbeat every ten seconds; without one the connection is
/// dead, whatever it looks like.
const SILENCE: Duration = Duration::from_secs(30);
/// Orderly ends in a row without an event in between, after which there is
/// nothing more to come.
const ENDS: u32 = 2;
/// After the first of them: what servers that are being replaced ask for (`retry`),
/// and a little.
const LEFT: Duration = Duration::from_millis(300);

/// An event of a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number.
    pub seq: u64,
    /// Its type on the wire; newer servers may know more types than we do.
    pub name: String,
    /// The type, if we know it.
    pub kind: Option<EventKind>,
    /// The data line as it came.
    pub raw: String,
    /// The same, parsed.
    pub data: Value,
}

/// The events of a turn, in order, each once.
#[derive(Debug)]
pub struct Events {
    client: Client,
    session: SessionId,
    turn: ResponseId,
    last: Option<u64>,
    response: Option<Response>,
    parser: Parser,
    ready: std::collections::VecDeque<Event>,
    ended: bool,
}

impl Events {
    pub(crate) fn new(
        client: Client,
        session: SessionId,
        turn: ResponseId,
        last: Option<u64>,
        response: Option<Response>,
    ) -> Self {
        Self {
            client,
            session,
            turn,
            last,
            response,
            parser: Parser::default(),
            ready: Default::default(),
            ended: false,
        }
    }

    /// The turn that is followed.
    #[must_use]
    pub fn turn(&self) -> &ResponseId {
        &self.turn
    }

    /// Number of the last event returned.
    #[must_use]
    pub fn last(&self) -> Option<u64> {
        self.last
    }

    /// The next event; `None` after the terminal one, or when the cursor was
    /// already past it.
    ///
    /// # Errors
    /// The server is gone for good, or the session is.
    pub async fn next(&mut self) -> Result<Option<Event>> {
        let (mut attempts, mut ends) = (0, 0);
        loop {
            if let Some(event) = self.ready.pop_front() {
                self.last = Some(event.seq);
                self.ended = event.kind.is_some_and(EventKind::is_terminal);
                return Ok(Some(event));
            }
            if self.ended {
                return Ok(None);
            }
            match &mut self.response {
                Some(response) => match tokio::time::timeout(SILENCE, response.chunk()).await {
                    Ok(Ok(Some(bytes))) => self.take(&bytes)?,
                    // An orderly end without a terminal event: either the
                    // cursor was past it, or the server is going down.
                    Ok(Ok(None)) => {
                        ends += 1;
                        if self.last.is_some() && ends >= ENDS {
                            return Ok(None);
                        }
                        self.response = None;
                        // One that goes down needs a moment to be gone.
                        tokio::time::sleep(LEFT).await;
                    }
                    Ok(Err(_)) | Err(_) => self.response = None,
                },
                None => {
                    attempts += 1;
                    self.parser = Parser::default();
                    match self.client.open_events(&self.session, &self.turn, self.last).await {
                        Ok(response) => self.response = Some(response),
                        Err(ClientError::Unreachable { .. }) if attempts < ATTEMPTS => tokio::time::sleep(PAUSE).await,
                        // It is starting, or stopping.
                        Err(ClientError::Refused { status: 500.., code, .. })
                            if code.retryable() && attempts < ATTEMPTS =>
                        {
                            tokio::time::sleep(PAUSE).await;
                        }
                        Err(error) => return Err(error),
                    }
                }
            }
        }
    }

    fn take(&mut self, bytes: &[u8]) -> Result<()> {
        for event in self.parser.push(bytes).map_err(|error| ClientError::Malformed(error.to_string()))? {
            let malformed = |what: &str| ClientError::Malformed(format!("an event with a bad {what}"));
            let seq = event.id.parse().map_err(|_| malformed("id"))?;
            let data = serde_json::from_str(&event.data).map_err(|_| malformed("data line"))?;
            self.ready.push_back(Event {
                seq,
                kind: EventKind::parse(&event.name),
                name: event.name,
                raw: event.data,
                data,
            });
        }
        Ok(())
    }
}
