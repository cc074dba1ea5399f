//! JSON shapes of the public API.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::egress::{ConnectionName, Policy};
use crate::link::Enforced;
use crate::scope::FileAccess;
use crate::transcript::{Entry, Usage};
use crate::{ErrorCode, ResponseId, SessionId};

/// Body of `POST /v1/sessions`. Every field may be left out, and so may the body.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(default)]
pub struct CreateSession {
    /// `false`: destroyed five minutes after its last answer. `true`: lives
    /// until its `ttl` or `DELETE`. Left out: the tenant's `session_defaults`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub persistent: Option<bool>,
    /// Longest life in seconds, more than 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<u64>,
    /// Anything; echoed on reads.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Object>))]
    pub metadata: Option<Map<String, Value>>,
    /// The session's scope. Left out: the whole workspace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_access: Option<FileAccess>,
    /// A model of the catalogue. Left out: the tenant's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// How far its programs reach. Left out: the tenant's default, which is
    /// `offline` unless the operator says otherwise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub egress: Option<Policy>,
    /// Connections whose credentials are attached to its calls.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<Vec<String>>))]
    pub connections: Option<Vec<ConnectionName>>,
}

/// State of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum SessionStatus {
    /// It takes messages.
    Ready,
    /// It is being deleted.
    Destroying,
}

/// State of a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum TurnStatus {
    /// It waits for the session to finish another.
    Queued,
    /// It runs.
    InProgress,
    /// It succeeded.
    Completed,
    /// It was cancelled.
    Cancelled,
    /// It failed.
    Failed,
}

impl TurnStatus {
    /// The name on the wire and in the store.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Cancelled => "cancelled",
            Self::Failed => "failed",
        }
    }

    /// Reads the name.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        [Self::Queued, Self::InProgress, Self::Completed, Self::Cancelled, Self::Failed]
            .into_iter()
            .find(|status| status.as_str() == text)
    }

    /// Has the turn its terminal event?
    #[must_use]
    pub const fn is_over(self) -> bool {
        !matches!(self, Self::Queued | Self::InProgress)
    }
}

/// The last finished turn, kept with the session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct LastResponse {
    /// The turn.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: ResponseId,
    /// How it ended.
    pub status: TurnStatus,
    /// Text of the final answer.
    pub output_text: String,
    /// Tokens used.
    pub usage: Usage,
    /// When it ended, Unix seconds.
    pub completed_at: f64,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
}

/// One restriction of a live sandbox, as the kernel says it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Measured {
    /// The restriction: `capabilities`, `namespaces`, ...
    pub what: String,
    /// What was read.
    pub seen: String,
    /// Is it as it must be?
    pub verdict: Verdict,
}

/// What to think of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it must be.
    Holds,
    /// Less than there could be on another machine, or as root; `cloister
    /// doctor` says how to get it.
    Weaker,
    /// This server may not look.
    Unknown,
    /// Not as it must be: the sandbox is not one.
    Broken,
}

/// A session's sandbox, measured while it lives.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SandboxReport {
    /// Is there a sandbox? A session that is asleep has none.
    pub live: bool,
    /// Every restriction that can be seen from outside.
    pub measured: Vec<Measured>,
}

/// A session, as created and as read.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SessionRecord {
    /// The session's id.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: SessionId,
    /// The same id under the name of the architecture page.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub session_id: SessionId,
    /// Unix seconds.
    pub created_at: f64,
    /// Unix seconds of the last message, answer or file call.
    pub last_activity: f64,
    /// Is a turn running?
    pub busy: bool,
    /// See [`CreateSession::persistent`].
    pub persistent: bool,
    /// See [`CreateSession::ttl`]; `null` is no limit.
    pub ttl: Option<u64>,
    /// The state.
    pub status: SessionStatus,
    /// As sent at creation.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    pub metadata: Map<String, Value>,
    /// Client-side tools; this version has none.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<Object>))]
    pub tools: Vec<Value>,
    /// The scope as declared.
    pub file_access: FileAccess,
    /// The model in use.
    pub model: String,
    /// How far its programs reach.
    #[serde(default)]
    pub egress: Policy,
    /// Its connections.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub connections: Vec<ConnectionName>,
    /// Messages that wait for the running one.
    #[serde(default)]
    pub queued: u32,
    /// The running turn, if there is one.
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub current_response_id: Option<ResponseId>,
    /// The last finished turn, if there is one.
    pub last_response: Option<LastResponse>,
    /// What the kernel enforces for the live sandbox; `null` while it sleeps.
    pub sandbox: Option<Enforced>,
}

/// Body of `POST /v1/sessions/{id}/messages`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SendMessage {
    /// Text or markdown, not empty.
    pub message: String,
    /// What to do if the session is working on another message.
    #[serde(default, skip_serializing_if = "OnBusy::is_reject")]
    pub on_busy: OnBusy,
}

/// What becomes of a message to a session that is working.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnBusy {
    /// 409 `session_busy`.
    #[default]
    Reject,
    /// It waits, durably, and runs when those before it have ended.
    Queue,
    /// The running turn is cancelled; then this one runs, before any that wait.
    Interrupt,
}

impl OnBusy {
    /// Is it the default?
    #[must_use]
    pub fn is_reject(&self) -> bool {
        *self == Self::Reject
    }
}

/// A turn, running or ended: `GET /v1/sessions/{id}/responses/{rid}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Response {
    /// The turn.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub id: ResponseId,
    /// Its session.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub session_id: SessionId,
    /// Where it stands.
    pub status: TurnStatus,
    /// When it was accepted, Unix seconds.
    pub created_at: f64,
    /// When it ended, Unix seconds.
    pub completed_at: Option<f64>,
    /// Text of the final answer, once it has ended.
    pub output_text: String,
    /// Tokens used, once it has ended.
    pub usage: Usage,
    /// Why it failed, if it did.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    /// Number of the last event so far.
    pub last_sequence_number: u64,
    /// How often it was begun: more than 1 after a process was lost.
    pub attempts: u32,
    /// The turn's part of the transcript, one page.
    pub output: Vec<TranscriptEntry>,
    /// Cursor of the next page, if there is one.
    pub next: Option<String>,
}

/// A page of a session's transcript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Transcript {
    /// The entries, oldest first.
    pub data: Vec<TranscriptEntry>,
    /// Cursor of the next page: pass it as `after`. None at the end.
    pub next: Option<String>,
}

/// A page of a session's turns.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Responses {
    /// The turns, oldest first, without their output.
    pub data: Vec<Response>,
    /// Cursor of the next page: pass it as `after`. None at the end.
    pub next: Option<String>,
}

/// One entry of a transcript.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TranscriptEntry {
    /// The turn.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub response_id: ResponseId,
    /// Its place in the transcript, as a cursor.
    pub cursor: String,
    /// `user`, `assistant` or `tool_result`, with the fields of that role:
    /// `text`; `model` and `blocks`; `id`, `content` and `is_error`.
    #[cfg_attr(feature = "openapi", schema(value_type = Object))]
    #[serde(flatten)]
    pub entry: Entry,
}

/// Answer to a cancel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CancelAnswer {
    /// The turn.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub response_id: ResponseId,
    /// `cancelling` or `already_complete`.
    pub status: String,
}

/// Answer to the bulk delete.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deleted {
    /// How many sessions were destroyed.
    pub deleted: u64,
}

/// Kind of a directory entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "lowercase")]
pub enum FileType {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link; it is listed, and followed inside the view alone.
    Symlink,
    /// A FIFO, socket or device, which the API does not open.
    Other,
}

/// An entry of a directory listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileEntry {
    /// The name; bytes that are not UTF-8 are shown replaced.
    pub name: String,
    /// Present if the name is not UTF-8: its percent-encoded form, for URLs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name_encoded: Option<String>,
    /// The kind.
    #[serde(rename = "type")]
    pub kind: FileType,
    /// Bytes; 0 for anything but a file.
    pub size: u64,
    /// Unix seconds.
    pub modified: f64,
}

/// Answer to an upload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileWritten {
    /// The path, relative to the workspace.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Unix seconds.
    pub modified: f64,
}

/// Body of every error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ErrorBody {
    /// The stable code: `cloister explain <code>`.
    #[cfg_attr(feature = "openapi", schema(value_type = String))]
    pub error: ErrorCode,
    /// What happened, for people.
    pub message: String,
    /// What to do about it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// Answer of `GET /health`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The server's version.
    pub version: String,
}

/// Who a caller is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Me {
    /// The name that is kept with what they do.
    pub caller: String,
    /// What they are.
    pub roles: Vec<crate::access::Role>,
    /// The one session that they reach; all if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<String>))]
    pub session: Option<SessionId>,
    /// How they have shown who they are.
    pub scheme: String,
    /// Whoever has signed in with a browser sends this as `X-CSRF-Token` with
    /// whatever changes something.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub csrf_token: Option<String>,
}
