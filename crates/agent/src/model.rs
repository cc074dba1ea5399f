//! A model call with its repetitions. Only the request is repeated, never a
//! tool; what a failed attempt has streamed is declared void.

use std::time::{Duration, Instant};

use cloister_types::ErrorCode;
use cloister_types::event::EventKind;
use cloister_types::link::TurnStart;
use serde_json::{Value, json};

use crate::http::{self, HttpError};
use crate::link::Facts;
use crate::wire::{Answer, Block, Decoder, Piece, WireError};
use cloister_types::sse;

/// Attempts for one call, and the time in which they may be begun.
const ATTEMPTS: u32 = 8;
const PATIENCE: Duration = Duration::from_secs(600);
/// First delay and longest delay of the back-off.
const BASE: Duration = Duration::from_secs(1);
const CAP: Duration = Duration::from_secs(60);

/// A call that gave no answer.
#[derive(Debug)]
pub(crate) enum CallError {
    /// The turn fails with this.
    Failed(ErrorCode, String),
    /// The link broke: nobody listens any more.
    Link(std::io::Error),
}

impl From<std::io::Error> for CallError {
    fn from(error: std::io::Error) -> Self {
        Self::Link(error)
    }
}

/// Why one attempt failed.
struct Failure {
    message: String,
    retry: bool,
    after: Option<Duration>,
    /// The session may not spend more.
    spent: bool,
}

impl Failure {
    fn code(&self) -> ErrorCode {
        match (self.spent, self.retry) {
            (true, _) => ErrorCode::SpendLimit,
            (false, true) => ErrorCode::ModelUnavailable,
            (false, false) => ErrorCode::ModelRejected,
        }
    }

    fn passing(message: String) -> Self {
        Self { message, retry: true, after: None, spent: false }
    }
}

/// Calls the model until it answers.
/// `partial` is the text of the present attempt, for whoever gives up waiting.
pub(crate) async fn call(
    facts: &mut Facts,
    start: &TurnStart,
    step: u32,
    body: &Value,
    partial: &mut String,
) -> Result<Answer, CallError> {
    let url = format!("{}/{}{}", start.model_url.trim_end_matches('/'), start.model.name, start.model.wire.path());
    let bytes = body.to_string().into_bytes();
    let began = Instant::now();
    for attempt in 1.. {
        partial.clear();
        let mut shown = Shown { any: false, open: None, text: partial };
        let failure = match try_once(facts, start, step, &url, bytes.clone(), &mut shown).await? {
            Ok(answer) => return Ok(answer),
            Err(failure) => failure,
        };
        let delay = failure.after.unwrap_or_else(|| backoff(attempt));
        let last = !failure.retry || attempt >= ATTEMPTS || began.elapsed() + delay > PATIENCE;
        shown.void(facts, &failure.message).await?;
        if last {
            return Err(CallError::Failed(failure.code(), format!("model {}: {}", start.model.name, failure.message)));
        }
        let delay_ms = u64::try_from(delay.as_millis()).unwrap_or(u64::MAX);
        let fields = json!({"attempt": attempt, "of": ATTEMPTS, "delay_ms": delay_ms, "cause": failure.message});
        facts.event(EventKind::RetryScheduled, fields).await?;
        tokio::time::sleep(delay).await;
    }
    unreachable!("the loop ends by returning")
}

/// Full jitter: sessions that failed together do not come back together.
fn backoff(attempt: u32) -> Duration {
    let most = BASE.saturating_mul(1 << (attempt - 1).min(10)).min(CAP);
    let mut random = [0; 4];
    let share = if getrandom::fill(&mut random).is_ok() {
        f64::from(u32::from_ne_bytes(random)) / f64::from(u32::MAX)
    } else {
        1.0
    };
    most.mul_f64(share).max(Duration::from_millis(50))
}

/// What clients have been shown of an attempt.
struct Shown<'t> {
    any: bool,
    open: Option<Block>,
    text: &'t mut String,
}

impl Shown<'_> {
    async fn piece(&mut self, facts: &mut Facts, piece: Piece) -> std::io::Result<()> {
        self.any = true;
        match piece {
            Piece::Open(block) => {
                let (kind, fields) = match &block {
                    Block::Text => (EventKind::TextStart, json!({})),
                    Block::Thinking => (EventKind::ThinkingStart, json!({})),
                    Block::Tool { id, name } => (EventKind::ToolUseStart, json!({"id": id, "name": name})),
                };
                self.open = Some(block);
                facts.event(kind, fields).await
            }
            Piece::More(text) => {
                let kind = match self.open {
                    Some(Block::Text) => {
                        self.text.push_str(&text);
                        EventKind::TextDelta
                    }
                    Some(Block::Thinking) => EventKind::ThinkingDelta,
                    _ => EventKind::ToolUseInputDelta,
                };
                facts.event(kind, json!({"content": text})).await
            }
            Piece::Close(input) => {
                let stop = match self.open.take() {
                    Some(Block::Text) => EventKind::TextStop,
                    Some(Block::Thinking) => EventKind::ThinkingStop,
                    Some(Block::Tool { id, name }) => {
                        if let Some(input) = input {
                            facts
                                .event(EventKind::ToolUseExecuting, json!({"id": id, "name": name, "input": input}))
                                .await?;
                        }
                        EventKind::ToolUseStop
                    }
                    None => return Ok(()),
                };
                facts.event(stop, json!({})).await
            }
        }
    }

    /// Tells clients to drop what this attempt showed.
    async fn void(self, facts: &mut Facts, reason: &str) -> std::io::Result<()> {
        if !self.any {
            return Ok(());
        }
        let stop = match self.open {
            Some(Block::Text) => Some(EventKind::TextStop),
            Some(Block::Thinking) => Some(EventKind::ThinkingStop),
            Some(Block::Tool { .. }) => Some(EventKind::ToolUseStop),
            None => None,
        };
        if let Some(stop) = stop {
            facts.event(stop, json!({})).await?;
        }
        facts.event(EventKind::AttemptDiscarded, json!({"reason": reason})).await
    }
}

async fn try_once(
    facts: &mut Facts,
    start: &TurnStart,
    step: u32,
    url: &str,
    body: Vec<u8>,
    shown: &mut Shown<'_>,
) -> std::io::Result<Result<Answer, Failure>> {
    // The same for every attempt at this call, and for no other.
    let key = format!("{}-{step}", start.response_id);
    let mut reply = match http::post(url, &key, body).await {
        Ok(reply) => reply,
        Err(error @ HttpError::Address(_)) => {
            return Ok(Err(Failure { retry: false, ..Failure::passing(error.to_string()) }));
        }
        Err(error) => return Ok(Err(Failure::passing(format!("cannot be reached: {error}")))),
    };
    if reply.status != 200 {
        return Ok(Err(refused(&mut reply).await));
    }
    let mut parser = sse::Parser::default();
    let mut decoder = Decoder::new(start.model.wire, step);
    loop {
        match reply.chunk().await {
            Ok(Some(bytes)) => {
                let events = match parser.push(&bytes) {
                    Ok(events) => events,
                    Err(error) => return Ok(Err(Failure::passing(error.to_string()))),
                };
                for event in events {
                    match decoder.event(&event) {
                        Ok(pieces) => {
                            for piece in pieces {
                                shown.piece(facts, piece).await?;
                            }
                        }
                        Err(error) => return Ok(Err(in_band(&error))),
                    }
                }
                if decoder.is_complete() {
                    break;
                }
            }
            Ok(None) => break,
            Err(error) => return Ok(Err(Failure::passing(format!("the stream broke: {error}")))),
        }
    }
    match decoder.finish() {
        Ok((pieces, answer)) => {
            for piece in pieces {
                shown.piece(facts, piece).await?;
            }
            Ok(Ok(answer))
        }
        Err(error) => Ok(Err(in_band(&error))),
    }
}

/// An error within a 200 stream. A cut stream and the provider's passing
/// troubles are worth another try; a bad request is not.
fn in_band(error: &WireError) -> Failure {
    let retry = match error {
        WireError::Incomplete | WireError::Malformed(_) => true,
        WireError::Reported { kind, .. } => {
            const FINAL: [&str; 8] = [
                "invalid_request_error",
                "authentication_error",
                "permission_error",
                "not_found_error",
                "request_too_large",
                "billing_error",
                "insufficient_quota",
                "content_filter",
            ];
            let client_fault = kind.parse::<u16>().is_ok_and(|status| !is_passing(status));
            !FINAL.contains(&kind.as_str()) && !client_fault
        }
    };
    Failure { retry, ..Failure::passing(error.to_string()) }
}

fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 409 | 425 | 429 | 500 | 502 | 503 | 504 | 529)
}

/// A status other than 200, with the provider's own words.
async fn refused(reply: &mut http::Reply) -> Failure {
    let text = reply.text().await;
    let parsed: Value = serde_json::from_str(&text).unwrap_or_default();
    let word = |value: &Value| value.as_str().map(str::to_owned);
    let message =
        word(&parsed["error"]["message"]).or_else(|| word(&parsed["message"])).or_else(|| word(&parsed["error"]));
    let message = message.unwrap_or_else(|| text.chars().take(300).collect());
    let exhausted = ["insufficient_quota", "billing_hard_limit_reached"]
        .iter()
        .any(|code| parsed["error"]["code"] == *code || parsed["error"]["type"] == *code);
    Failure {
        message: format!("status {}: {message}", reply.status),
        retry: is_passing(reply.status) && !exhausted,
        after: reply.retry_after,
        spent: parsed["error"]["type"] == "spend_limit",
    }
}
