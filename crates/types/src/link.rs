//! What travels between the server, a session's supervisor and its agent:
//! JSON frames, each after its length as four big-endian bytes.
//!
//! ```text
//! server --Command--> supervisor --ToAgent--> agent
//! server <--Signal--- supervisor <--FromAgent-- agent
//!      \--- reads --- spool of Facts <--/
//! ```
//!
//! Facts of a turn do not travel over the link: the supervisor writes them to
//! the turn's spool and signals how far it reaches.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The address, in every session, at which names are resolved and models are
/// called: of loopback, and one that no program binds by chance.
pub const RESOLVER: [u8; 4] = [127, 127, 127, 127];
/// What the agent's helpers read there besides models: the session's own
/// authority, in PEM.
pub const AUTHORITY_PATH: &str = "/.cloister/ca.pem";
/// The same, in the form that Java reads.
pub const AUTHORITY_STORE_PATH: &str = "/.cloister/cacerts";
/// Where tools find that authority inside.
pub const AUTHORITY_FILE: &str = "/tmp/.cloister/ca.pem";
/// And in the form that Java reads.
pub const AUTHORITY_STORE: &str = "/tmp/.cloister/cacerts";

use crate::error::ErrorCode;
use crate::event::EventKind;
use crate::model::{ModelSpec, Price};
use crate::transcript::{Entry, Usage};
use crate::{ResponseId, SessionId};

/// Largest frame in bytes. A conversation travels in one frame at the start
/// of a turn, so this bounds a conversation's size.
pub const MAX_FRAME: usize = 64 << 20;

/// Largest frame that comes from an agent. Parsed JSON takes a multiple of its
/// text, and the supervisor's memory is not the session's.
pub const MAX_FACT: usize = 4 << 20;

/// Encodes a frame: length, then JSON.
///
/// # Errors
/// The value does not serialise, or is larger than [`MAX_FRAME`].
pub fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, FrameError> {
    let mut out = vec![0; 4];
    serde_json::to_writer(&mut out, value)?;
    let length = out.len() - 4;
    if length > MAX_FRAME {
        return Err(FrameError::TooLarge(length));
    }
    out[..4].copy_from_slice(&(length as u32).to_be_bytes());
    Ok(out)
}

/// What is wrong with a frame.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// It claims to be larger than its reader takes.
    #[error("a frame of {0} bytes is over the limit")]
    TooLarge(usize),
    /// It is not the JSON that was expected.
    #[error("a malformed frame: {0}")]
    Malformed(#[from] serde_json::Error),
}

/// Cuts a byte stream into frames.
#[derive(Debug)]
pub struct FrameReader {
    buffer: Vec<u8>,
    start: usize,
    limit: usize,
}

impl Default for FrameReader {
    fn default() -> Self {
        Self::with_limit(MAX_FRAME)
    }
}

impl FrameReader {
    /// A reader that refuses frames of more than `limit` bytes.
    #[must_use]
    pub fn with_limit(limit: usize) -> Self {
        Self { buffer: Vec::new(), start: 0, limit }
    }

    /// Takes what was read from the stream.
    pub fn push(&mut self, bytes: &[u8]) {
        if self.start > 0 && self.start == self.buffer.len() {
            self.buffer.clear();
            self.start = 0;
        } else if self.start > 1 << 20 {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, if it has arrived.
    ///
    /// # Errors
    /// The stream is not one of frames; nothing after this can be trusted.
    pub fn next_frame<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some((head, body)) = rest.split_first_chunk::<4>() else { return Ok(None) };
        let length = u32::from_be_bytes(*head) as usize;
        if length > self.limit {
            return Err(FrameError::TooLarge(length));
        }
        let Some(body) = body.get(..length) else { return Ok(None) };
        let value = serde_json::from_slice(body)?;
        self.start += 4 + length;
        Ok(Some(value))
    }
}

/// Ceilings of one turn, all attempts together. The agent keeps to them by
/// itself; the supervisor enforces them whatever the agent does, and whether or
/// not a server is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct TurnLimits {
    /// Most model calls.
    pub steps: u32,
    /// Most tokens, all calls together.
    pub tokens: u64,
    /// Most money in millionths of a dollar, by the model's prices; no limit
    /// if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spend: Option<u64>,
    /// Longest time in milliseconds; what is left of it for a turn that goes on.
    pub time_ms: u64,
}

impl TurnLimits {
    /// The ceiling that a turn has reached which has made so many calls and
    /// used so many tokens: it may make no more.
    #[must_use]
    pub fn reached(&self, calls: u32, usage: &Usage, price: &Price) -> Option<(ErrorCode, String)> {
        if calls >= self.steps {
            return Some((ErrorCode::StepLimit, format!("the turn reached its limit of {} model calls", self.steps)));
        }
        if usage.total_tokens >= self.tokens {
            return Some((ErrorCode::TokenLimit, format!("the turn reached its limit of {} tokens", self.tokens)));
        }
        match self.spend {
            Some(most) if price.of(usage) >= most => {
                let dollars = most as f64 / 1e6;
                Some((ErrorCode::SpendLimit, format!("the turn reached its limit of {dollars} dollars")))
            }
            _ => None,
        }
    }
}

/// Everything that a turn needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TurnStart {
    /// The session.
    pub session_id: SessionId,
    /// The turn.
    pub response_id: ResponseId,
    /// Which attempt at the turn this is, from 1.
    pub attempt: u32,
    /// Number of the first event that the supervisor assigns.
    pub next_seq: u64,
    /// Milliseconds that earlier attempts took.
    pub elapsed_ms: u64,
    /// The model.
    pub model: ModelSpec,
    /// Base URL of the session's model listener.
    pub model_url: String,
    /// Does a script play the model?
    pub scripted: bool,
    /// The ceilings.
    pub limits: TurnLimits,
    /// The tenant's `.pokee/*.md`, already joined.
    pub context: String,
    /// Tell the agent about its memory?
    pub memory_hint: bool,
    /// Earlier turns, then this turn's message and what earlier attempts have
    /// added to it.
    pub conversation: Vec<Entry>,
    /// Where in the conversation this turn's message stands.
    pub turn_from: usize,
}

/// From the server to the supervisor.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum Command {
    /// First on a connection to a supervisor that lost its server.
    Adopt {
        /// Proves that the server knows which sandbox it talks to.
        launch: String,
    },
    /// Run a turn. One that came along with the launch waits for
    /// [`Command::Begin`].
    Start(Box<TurnStart>),
    /// The launch is whole, on the server's side as well: without this word
    /// the turn that came along with it is begun by somebody else.
    Begin,
    /// Cancel the turn that runs.
    Cancel {
        /// Which one: a late cancel must not hit the next turn.
        response_id: ResponseId,
    },
    /// The log holds the turn's spool up to here.
    Stored {
        /// The turn.
        response_id: ResponseId,
        /// The attempt.
        attempt: u32,
        /// Bytes.
        offset: u64,
    },
    /// End the sandbox and everything in it.
    Stop,
}

/// From the supervisor to the agent.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum ToAgent {
    /// Run a turn.
    Start(Box<TurnStart>),
    /// Stop working on it.
    Cancel,
    /// Everything sent before the [`FromAgent::Await`] of this ticket is on disk.
    Durable {
        /// The ticket.
        ticket: u64,
    },
    /// The answer to [`FromAgent::AskLimits`].
    Limits {
        /// In words; nothing if none was met.
        met: Vec<String>,
    },
}

/// How a turn ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "status", rename_all = "snake_case")]
pub enum Outcome {
    /// The model finished.
    Completed {
        /// Why it stopped: `end`, `max_tokens`, ...
        stop_reason: String,
    },
    /// A cancel was asked for.
    Cancelled,
    /// It failed.
    Failed {
        /// The stable code.
        code: ErrorCode,
        /// What happened, for people.
        message: String,
    },
}

/// From the agent to its supervisor. The agent is not trusted: the supervisor
/// numbers, checks the order and decides what is terminal.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum FromAgent {
    /// Something for the stream.
    Event {
        /// Its type; terminal ones are refused, they come through `End`.
        kind: EventKind,
        /// Its fields.
        data: Map<String, Value>,
    },
    /// An entry of the conversation, complete.
    Entry(Entry),
    /// These calls are about to start. Without their results, whoever comes
    /// after knows that they may have had effects.
    Intent {
        /// Ids of the calls.
        calls: Vec<String>,
    },
    /// Asks which limits the session has met since this was last asked.
    AskLimits,
    /// Asks to be told once everything before this is on disk.
    Await {
        /// Comes back with the answer.
        ticket: u64,
    },
    /// The turn is over.
    End {
        /// How.
        outcome: Outcome,
        /// Tokens used.
        usage: Usage,
        /// The final answer's text.
        output_text: String,
    },
}

/// What happened in a turn, as its supervisor saw it: the content of a spool.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Fact {
    /// An event, numbered.
    Event {
        /// Its number in the turn.
        seq: u64,
        /// Its type.
        kind: EventKind,
        /// The data line.
        data: String,
    },
    /// An entry of the conversation.
    Entry(Entry),
    /// Calls that are about to start.
    Intent {
        /// Their ids.
        calls: Vec<String>,
    },
    /// The turn's last fact: its terminal event, and how it ended. One frame, so
    /// that nothing can cut between the two.
    Ended {
        /// The event's number.
        seq: u64,
        /// Its type.
        kind: EventKind,
        /// The data line.
        data: String,
        /// How.
        outcome: Outcome,
        /// Tokens used.
        usage: Usage,
        /// The final answer's text.
        output_text: String,
        /// The sandbox was ended along with the turn.
        sandbox_gone: bool,
    },
    /// The agent is lost, and the sandbox with it; the turn has not ended.
    Lost {
        /// How, for people and for the model.
        cause: String,
    },
}

/// A fact with the time at which it happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Spooled {
    /// Milliseconds of work on the turn, all attempts together.
    pub at_ms: u64,
    /// The fact.
    pub fact: Fact,
}

/// The turn that a supervisor is at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spooling {
    /// The turn.
    pub response_id: ResponseId,
    /// The attempt.
    pub attempt: u32,
    /// Bytes in its spool.
    pub offset: u64,
}

/// From the supervisor to the server.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "snake_case")]
pub enum Signal {
    /// The sandbox stands. The frame carries descriptors: the sockets by
    /// which calls leave, and a pipe that ends with the supervisor.
    Ready(Enforced),
    /// The sandbox could not be made.
    Unready {
        /// What was tried, what the kernel answered, what to do.
        message: String,
    },
    /// The answer to [`Command::Adopt`], with the descriptors of `Ready`.
    Standing {
        /// What holds for the sandbox.
        enforced: Enforced,
        /// The turn that runs, if one does.
        turn: Option<Spooling>,
    },
    /// The turn's spool has grown.
    Spooled(Spooling),
    /// The spool takes no more: the disk is full, or broken. The sandbox has
    /// ended; what stands in the spool is whole.
    SpoolFailed {
        /// The system's words.
        message: String,
    },
}

/// What holds for a live sandbox, as its supervisor established it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Enforced {
    /// `root` or `user`: as whom the server runs.
    pub mode: String,
    /// Whose host uid the sandbox has: its `own`, one that all of the `tenant`
    /// share, or the `server`'s.
    pub host_user: String,
    /// Runs on an image of the operator's choice under a writable layer of its
    /// own, instead of the host's programs.
    #[serde(default)]
    pub image: bool,
    /// The sandbox sees no list of its mounts, which would tell where the host
    /// keeps the workspace (since Linux 6.15).
    #[serde(default)]
    pub hidden_mounts: bool,
    /// What limits memory: `cgroup-v1`, `cgroup-v2` or `rlimit-per-process`.
    pub memory: String,
    /// What limits CPU: `cgroup-v1`, `cgroup-v2` or `none`.
    pub cpu: String,
    /// What limits processes: `cgroup-v1`, `cgroup-v2` or `rlimit-per-namespace`.
    pub pids: String,
    /// What limits the workspace: the file system's own `quota`, and beside it
    /// as everywhere, `accounting`.
    #[serde(default)]
    pub disk: String,
    /// Landlock's ABI version in force, 0 if the kernel has none.
    pub landlock_abi: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_frame_that_claims_too_much_is_refused_before_it_is_read() {
        let mut reader = FrameReader::default();
        reader.push(&u32::MAX.to_be_bytes());
        assert!(matches!(reader.next_frame::<Value>(), Err(FrameError::TooLarge(_))));
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(texts in proptest::collection::vec(".{0,40}", 0..6), cut in 1usize..9) {
            let bytes: Vec<u8> = texts.iter().flat_map(|text| encode(text).unwrap()).collect();
            let mut reader = FrameReader::default();
            let mut seen: Vec<String> = Vec::new();
            for piece in bytes.chunks(cut) {
                reader.push(piece);
                while let Some(text) = reader.next_frame().unwrap() {
                    seen.push(text);
                }
            }
            prop_assert_eq!(seen, texts);
        }
    }
}
