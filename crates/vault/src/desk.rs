//! The database on a thread of its own: calls wait in line.

use std::sync::mpsc;

use tokio::sync::oneshot;

use crate::VaultError;
use crate::records::Records;

/// Calls that may wait.
const LINE: usize = 1024;

type Work = Box<dyn FnOnce(&mut Records) + Send>;

#[derive(Clone)]
pub(crate) struct Desk(mpsc::SyncSender<Work>);

impl Desk {
    pub(crate) fn start(mut records: Records) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::sync_channel::<Work>(LINE);
        std::thread::Builder::new().name("vault-records".into()).spawn(move || {
            while let Ok(work) = receiver.recv() {
                work(&mut records);
            }
        })?;
        Ok(Self(sender))
    }

    /// Runs a call.
    pub(crate) async fn run<T: Send + 'static>(
        &self,
        call: impl FnOnce(&mut Records) -> Result<T, VaultError> + Send + 'static,
    ) -> Result<T, VaultError> {
        let (answer, heard) = oneshot::channel();
        let busy = || VaultError::Io(std::io::Error::other("too many calls at once"));
        let work: Work = Box::new(move |records| {
            let _ = answer.send(call(records));
        });
        self.0.try_send(work).map_err(|_| busy())?;
        heard.await.map_err(|_| busy())?
    }
}
