//! The file API of a session, off the async threads.

use std::sync::Arc;

use cloister_sandbox::files::{self, Condition, Found, View, Written};
use cloister_sandbox::host::Host;
use cloister_sandbox::quota::Grant;
use cloister_types::scope::CONTEXT;
use cloister_types::wire::FileType;
use cloister_types::{ErrorCode, SessionId, WorkspacePath};

use crate::SessionError;
use crate::file_threads::FileThreads;
use crate::live::blocking;
use crate::registry::Sessions;

/// A session's files, as its agent sees them.
pub struct Files {
    view: Arc<View>,
    host: Arc<Host>,
    threads: Arc<FileThreads>,
}

/// An upload under way.
pub struct Upload {
    view: Arc<View>,
    threads: Arc<FileThreads>,
    grant: Grant,
    inner: files::Upload,
    written: u64,
    /// Bytes that `.pokee` may still take, if that is where this goes.
    pub room: Option<u64>,
}

impl Sessions {
    /// The files of a session. The session must exist before any path is
    /// looked at.
    ///
    /// # Errors
    /// Not found.
    pub async fn files(&self, id: &SessionId) -> Result<Files, SessionError> {
        let session = self.find(id)?;
        let idle = match session.inner.try_lock() {
            Ok(inner) => inner.state.turn().is_none(),
            Err(_) => false,
        };
        let view = self.view(&session, idle).await?;
        self.touch(&session).await;
        Ok(Files { view, host: self.host.clone(), threads: self.file_threads.clone() })
    }
}

impl Files {
    /// Opens a file or lists a folder.
    ///
    /// # Errors
    /// `not_found`, `conflict` for what is neither.
    pub async fn read(&self, path: WorkspacePath) -> Result<Found, SessionError> {
        let view = self.view.clone();
        self.threads.run(move || view.read(&path)).await
    }

    /// Deletes a file or an empty folder.
    ///
    /// # Errors
    /// By the access matrix.
    pub async fn remove(&self, path: WorkspacePath, condition: Condition) -> Result<(), SessionError> {
        let view = self.view.clone();
        self.threads.run(move || view.remove(&path, &condition)).await
    }

    /// Begins an upload of `announced` bytes, as far as is known.
    ///
    /// # Errors
    /// By the access matrix; `quota_exceeded`.
    pub async fn upload(
        &self,
        path: WorkspacePath,
        condition: Condition,
        announced: Option<u64>,
    ) -> Result<Upload, SessionError> {
        // On an ordinary thread: it may have to start a spawner. And before
        // any folder is made on the way.
        let host = self.host.clone();
        let grant = blocking(move || Ok::<_, SessionError>(host.room_for(announced.unwrap_or(0))??)).await?;
        let (view, threads) = (self.view.clone(), self.threads.clone());
        let run = move || {
            let inner = view.upload(&path, condition)?;
            let room = context_room(&view, &path)?;
            Ok::<_, SessionError>(Upload { view, threads, grant, inner, written: 0, room })
        };
        self.threads.run(run).await
    }
}

/// What `.pokee` may still hold, not counting the file that is replaced. Only
/// plain files right in the folder count: nothing else reaches a prompt, and
/// links would make this a walk without an end.
fn context_room(view: &View, path: &WorkspacePath) -> Result<Option<u64>, SessionError> {
    let context = WorkspacePath::ROOT.join(CONTEXT.as_bytes()).unwrap_or_default();
    if !path.is_within(&context) {
        return Ok(None);
    }
    let entries = match view.list(&context) {
        Ok(entries) => entries,
        Err(files::FileError::NotFound) => Vec::new(),
        Err(error) => return Err(error.into()),
    };
    let others = entries.iter().filter(|entry| entry.kind == FileType::File && !entry.link);
    let others = others.filter(|entry| context.join(&entry.name).is_ok_and(|other| other != *path));
    let used = others.map(|entry| entry.size).sum();
    Ok(Some(files::MAX_CONTEXT.saturating_sub(used)))
}

impl Upload {
    /// Appends bytes.
    ///
    /// # Errors
    /// The disk is full, or broken; `quota_exceeded`.
    pub async fn write(mut self, bytes: impl AsRef<[u8]> + Send + 'static) -> Result<Self, SessionError> {
        let threads = self.threads.clone();
        let run = move || {
            self.written += bytes.as_ref().len() as u64;
            self.grant.cover(self.written)?;
            std::io::Write::write_all(&mut self.inner.file, bytes.as_ref())
                .map_err(|error| SessionError::from(files::FileError::from(error)))?;
            Ok::<_, SessionError>(self)
        };
        threads.run(run).await
    }

    /// Puts the file in place.
    ///
    /// # Errors
    /// `precondition_failed`, or by the access matrix.
    pub async fn commit(self) -> Result<Written, SessionError> {
        let Self { view, inner, threads, grant, .. } = self;
        let run = move || {
            let written = view.commit(inner)?;
            grant.keep();
            Ok::<_, SessionError>(written)
        };
        threads.run(run).await
    }

    /// The error for more bytes than may come.
    #[must_use]
    pub fn too_large(limit: u64) -> SessionError {
        SessionError::new(ErrorCode::PayloadTooLarge, format!("the upload is over {limit} bytes"))
    }
}
