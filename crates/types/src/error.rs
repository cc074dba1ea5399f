//! The closed list of public error codes. Each has a page in
//! `docs/errors/<code>.md`, which `cloister explain <code>` prints.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose fault an error is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The request.
    Client,
    /// The operator's configuration or machine.
    Configuration,
    /// A model provider or another service that we call.
    Upstream,
    /// Cloister itself.
    Ours,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $fault:ident, $retry:literal;)*) => {
        /// A public error code. Stable: never renamed, never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "&'static str")]
        pub enum ErrorCode { $($(#[$doc])* $name,)* }

        impl ErrorCode {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as it appears on the wire.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status. Codes that only end a turn travel inside a
            /// `message.error` event; theirs is what a request would get.
            #[must_use]
            pub const fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Whose fault it is.
            #[must_use]
            pub const fn fault(self) -> Fault {
                match self { $(Self::$name => Fault::$fault,)* }
            }

            /// May the same request succeed later, unchanged?
            #[must_use]
            pub const fn retryable(self) -> bool {
                match self { $(Self::$name => $retry,)* }
            }
        }
    };
}

codes! {
    /// The request's body, query or headers break the contract.
    InvalidRequest = "invalid_request", 400, Client, false;
    /// A directory that holds something cannot be deleted or replaced.
    IsDirectory = "is_directory", 400, Client, false;
    /// No valid API key came with the request.
    Unauthorized = "unauthorized", 401, Client, false;
    /// A file path that could climb out, decided on its syntax.
    InvalidPath = "invalid_path", 403, Client, false;
    /// The caller's role does not allow it, the address is not allowed, or a file's
    /// own mode denies it.
    Forbidden = "forbidden", 403, Client, false;
    /// The path is visible in the session and not writable.
    ReadOnlyPath = "read_only_path", 403, Client, false;
    /// There is no such thing, as far as the caller can see.
    NotFound = "not_found", 404, Client, false;
    /// The path exists and takes other methods.
    MethodNotAllowed = "method_not_allowed", 405, Client, false;
    /// The session is working on another message.
    SessionBusy = "session_busy", 409, Client, true;
    /// The target is of another kind, or pinned.
    Conflict = "conflict", 409, Client, false;
    /// `If-Match` or `If-None-Match` did not hold.
    PreconditionFailed = "precondition_failed", 412, Client, false;
    /// The body is larger than the limit.
    PayloadTooLarge = "payload_too_large", 413, Client, false;
    /// The tenant's workspace holds as much as it may.
    QuotaExceeded = "quota_exceeded", 413, Client, true;
    /// The `Range` lies outside the file.
    RangeNotSatisfiable = "range_not_satisfiable", 416, Client, false;
    /// The idempotency key was used with another body or session.
    IdempotencyMismatch = "idempotency_mismatch", 422, Client, false;
    /// The caller, or all callers together, have made as many calls as they may.
    RateLimited = "rate_limited", 429, Client, true;
    /// As many messages wait for the session as may.
    QueueFull = "queue_full", 429, Client, true;
    /// Too many sessions are at work at once.
    SessionLimit = "session_limit", 429, Client, true;
    /// The kernel lacks, or refuses, what the sandbox needs.
    SandboxUnavailable = "sandbox_unavailable", 503, Configuration, false;
    /// The server is starting, stopping or overloaded.
    Unavailable = "unavailable", 503, Ours, true;
    /// The disk is full.
    StorageFull = "storage_full", 507, Configuration, true;
    /// Stored bytes are not what was written: the disk, or somebody, changed them.
    LogDamaged = "log_damaged", 500, Configuration, false;
    /// A fault of ours.
    Internal = "internal", 500, Ours, true;

    /// The turn reached its ceiling of model calls.
    StepLimit = "step_limit", 500, Client, false;
    /// The turn reached its ceiling of time.
    TimeLimit = "time_limit", 500, Client, false;
    /// The turn reached its ceiling of tokens.
    TokenLimit = "token_limit", 500, Client, false;
    /// The turn reached its ceiling of money.
    SpendLimit = "spend_limit", 500, Client, false;
    /// The model provider refused the request, for good.
    ModelRejected = "model_rejected", 502, Upstream, false;
    /// The model provider could not be reached, or kept failing.
    ModelUnavailable = "model_unavailable", 503, Upstream, true;
    /// The model declined to answer.
    ModelRefusal = "model_refusal", 502, Upstream, false;
    /// The agent process ended without finishing its turn.
    AgentDied = "agent_died", 500, Ours, true;
    /// The server was killed or stopped in the middle of the turn.
    Interrupted = "interrupted", 500, Ours, true;
}

impl From<ErrorCode> for &'static str {
    fn from(code: ErrorCode) -> Self {
        code.as_str()
    }
}

impl TryFrom<String> for ErrorCode {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        Self::ALL.iter().copied().find(|code| code.as_str() == text).ok_or(format!("unknown error code {text:?}"))
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_round_trip() {
        for code in ErrorCode::ALL {
            assert_eq!(ErrorCode::try_from(code.as_str().to_owned()), Ok(*code));
        }
        let mut names: Vec<_> = ErrorCode::ALL.iter().map(|code| code.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ErrorCode::ALL.len());
    }
}
