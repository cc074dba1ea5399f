//! What callers of this crate are told.

use cloister_sandbox::files::FileError;
use cloister_sandbox::host::HostError;
use cloister_sandbox::quota::{Full, NoRoom};
use cloister_store::StoreError;
use cloister_types::ErrorCode;
use cloister_types::link::Outcome;

/// A public error: code, what happened, what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct SessionError {
    /// The stable code.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// What to do about it.
    pub hint: Option<String>,
}

impl SessionError {
    /// An error without a hint.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None }
    }

    pub(crate) fn no_session() -> Self {
        Self::new(ErrorCode::NotFound, "no such session")
    }

    pub(crate) fn no_turn() -> Self {
        Self::new(ErrorCode::NotFound, "no such response in this session")
    }
}

impl SessionError {
    pub(crate) fn model_gone(name: &str) -> Self {
        Self {
            code: ErrorCode::InvalidRequest,
            message: format!("the session's model {name:?} is no longer configured"),
            hint: Some("configure it again, or create a session with another".into()),
        }
    }

    pub(crate) fn log_damaged() -> Self {
        Self::new(ErrorCode::LogDamaged, "the turn's log is damaged; it is kept as it is")
    }

    pub(crate) fn interrupted() -> Self {
        Self::new(ErrorCode::Interrupted, "the server was stopped in the middle of the turn")
    }

    /// How a driver says that its turn ends because it was cancelled; no
    /// client sees it as an error.
    pub(crate) fn cancelled() -> Self {
        Self::new(ErrorCode::Conflict, "the turn was cancelled")
    }
}

impl From<SessionError> for Outcome {
    fn from(error: SessionError) -> Self {
        if error == SessionError::cancelled() {
            return Self::Cancelled;
        }
        Self::Failed { code: error.code, message: error.message }
    }
}

impl From<std::io::Error> for SessionError {
    fn from(error: std::io::Error) -> Self {
        tracing::error!(%error, "system");
        match error.kind() {
            std::io::ErrorKind::StorageFull => Self::new(ErrorCode::StorageFull, "the server's disk is full"),
            _ => Self::new(ErrorCode::Internal, format!("the system refused a step: {error}")),
        }
    }
}

impl From<StoreError> for SessionError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Ended => Self::new(ErrorCode::Conflict, "the turn has already ended"),
            StoreError::Full => Self::new(ErrorCode::StorageFull, "the server's disk is full"),
            StoreError::Damaged(what) => {
                tracing::error!(what, "ALARM: stored bytes are not what was written");
                Self {
                    hint: Some("other sessions are not affected; restore a backup to read this one again".into()),
                    ..Self::new(ErrorCode::LogDamaged, what)
                }
            }
            error => {
                tracing::error!(%error, "store");
                Self::new(ErrorCode::Internal, "the store failed")
            }
        }
    }
}

impl From<HostError> for SessionError {
    fn from(error: HostError) -> Self {
        match error {
            HostError::Scope(message) => Self::new(ErrorCode::InvalidRequest, message),
            HostError::Refused { message, fix } => {
                tracing::error!(%message, "sandbox refused");
                Self {
                    code: ErrorCode::SandboxUnavailable,
                    message: format!("the sandbox could not be made: {message}"),
                    hint: Some(fix),
                }
            }
            HostError::Gone(error) => {
                tracing::error!(%error, "spawner");
                Self::new(ErrorCode::Unavailable, "the sandbox spawner does not answer; try again")
            }
        }
    }
}

impl From<Full> for SessionError {
    fn from(full: Full) -> Self {
        let code = match full {
            Full::Bytes { .. } | Full::Files { .. } => ErrorCode::QuotaExceeded,
            Full::Disk { .. } => ErrorCode::StorageFull,
        };
        Self::new(code, full.to_string())
    }
}

impl From<NoRoom> for SessionError {
    fn from(error: NoRoom) -> Self {
        match error {
            NoRoom::Full(full) => full.into(),
            NoRoom::Gone(error) => {
                tracing::error!(%error, "meter");
                Self::new(ErrorCode::Unavailable, "the workspace's account does not answer; try again")
            }
        }
    }
}

/// One table for every file operation. The text of a missing file is the same
/// whether it lies outside the scope or nowhere.
impl From<FileError> for SessionError {
    fn from(error: FileError) -> Self {
        let (code, message) = match error {
            FileError::NotFound => (ErrorCode::NotFound, "no such file"),
            FileError::ReadOnly => (ErrorCode::ReadOnlyPath, "the path is read-only in this session"),
            FileError::Denied => (ErrorCode::Forbidden, "the file's mode denies this"),
            FileError::NotEmpty => (ErrorCode::IsDirectory, "the directory is not empty"),
            FileError::WrongKind => (ErrorCode::Conflict, "the path exists and is of another kind"),
            FileError::Pinned => (ErrorCode::Conflict, "the path is part of the session's scope and stays"),
            FileError::Precondition => {
                (ErrorCode::PreconditionFailed, "the file is not in the state that the request demands")
            }
            FileError::NoSpace => (ErrorCode::StorageFull, "no space is left for this file"),
            FileError::Quota => (ErrorCode::QuotaExceeded, "the workspace holds as much as it may"),
            FileError::BadName => (ErrorCode::InvalidPath, "the file system cannot hold this name"),
            FileError::Busy => (ErrorCode::Unavailable, "the path is being moved around; try again"),
            FileError::Io(error) => {
                tracing::error!(%error, "file operation");
                (ErrorCode::Internal, "the file operation failed")
            }
        };
        Self::new(code, message)
    }
}
