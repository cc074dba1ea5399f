//! Threads for the file API alone, each with the identity that the workspace's
//! files have. Nothing else runs on them.

use cloister_sandbox::identity::Identity;
use tokio::runtime::{Builder, Runtime};

use crate::SessionError;
use crate::live::outcome;

/// The threads; they come and go with the work.
pub(crate) struct FileThreads(Option<Runtime>);

impl FileThreads {
    pub(crate) fn new(identity: Identity) -> std::io::Result<Self> {
        let mut builder = Builder::new_multi_thread();
        let runtime =
            builder.worker_threads(1).thread_name("files").on_thread_start(move || identity.keep()).build()?;
        Ok(Self(Some(runtime)))
    }

    /// Runs a call of the file API.
    pub(crate) async fn run<T, E>(
        &self,
        work: impl FnOnce() -> Result<T, E> + Send + 'static,
    ) -> Result<T, SessionError>
    where
        T: Send + 'static,
        E: Into<SessionError> + Send + 'static,
    {
        match &self.0 {
            Some(runtime) => outcome(runtime.spawn_blocking(work).await),
            None => Err(SessionError::new(cloister_types::ErrorCode::Unavailable, "the server is stopping")),
        }
    }
}

impl Drop for FileThreads {
    fn drop(&mut self) {
        // Not waited for: this may be an async thread.
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
