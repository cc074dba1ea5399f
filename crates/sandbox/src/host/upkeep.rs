//! What the server does in the workspace and about sandboxes by itself.

use cloister_types::SessionId;
use cloister_types::scope::SESSIONS;
use cloister_types::wire::Measured;

use super::{Host, HostError};
use crate::files::{View, remove_tree};
use crate::identity::Identity;
use crate::measure;
use crate::quota::{Grant, NoRoom};
use crate::run::RunFolder;
use crate::survive::{Left, survivors};

impl Host {
    /// As whom the file API acts.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Asks for room in the workspace for one file of so many bytes.
    ///
    /// # Errors
    /// The spawner is gone; or, inside, why there is no room.
    pub fn room_for(&self, bytes: u64) -> Result<Result<Grant, NoRoom>, HostError> {
        let asker = {
            let mut state = self.lock();
            self.ensure(&mut state)?;
            state.running.as_ref().map(|running| running.meter.clone())
        };
        let asker = asker.ok_or_else(|| std::io::Error::other("it was stopped"))?;
        Ok(Grant::ask(asker, bytes))
    }

    /// What earlier servers have left, looked after: whoever is at work is
    /// taken over, the rest is gone for certain. Called once, before anything
    /// is launched.
    ///
    /// # Errors
    /// The run folder cannot be read.
    pub fn survivors(&self) -> std::io::Result<Vec<Left>> {
        survivors(&self.run)
    }

    /// What the kernel says of a session's sandbox; nothing if none is alive.
    #[must_use]
    pub fn measure(&self, session: &SessionId) -> Vec<Measured> {
        let folders = std::fs::read_dir(&self.run).into_iter().flatten().flatten();
        let folders = folders.map(|entry| RunFolder::new(entry.path()));
        let mut of_session = folders.filter(|folder| folder.session().as_ref() == Some(session));
        of_session.find_map(|folder| folder.init()).map(measure::measure).unwrap_or_default()
    }

    /// Removes the private folders of sessions that `lives` does not know.
    pub fn sweep_private(&self, lives: impl Fn(&str) -> bool) {
        let Ok(sessions) = crate::view::open_strictly(&self.workspace, SESSIONS) else { return };
        let Ok(entries) = rustix::fs::Dir::read_from(&sessions) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name().to_bytes();
            let is_session = std::str::from_utf8(name).is_ok_and(|name| name.starts_with("sess_") && !lives(name));
            if is_session {
                let _ = self.identity.act(|| remove_tree(&sessions, name));
            }
        }
    }

    /// The tenant's `.pokee/*.md`, joined; and what had to be left out.
    #[must_use]
    pub fn context(&self) -> (String, Vec<String>) {
        crate::files::read_context(&self.workspace, self.identity)
    }

    /// Would building this view anew show something else, or has the spawner
    /// that built it died?
    #[must_use]
    pub fn is_stale(&self, view: &View) -> bool {
        let mut state = self.lock();
        let current = state.generation == view.generation() && state.runs();
        drop(state);
        !current || view.is_stale(&self.workspace)
    }

    /// Removes the private folder of a session that is no more.
    ///
    /// # Errors
    /// What the file system answers; a missing folder is no error.
    pub fn remove_private(&self, session: &SessionId) -> std::io::Result<()> {
        let sessions = crate::view::open_strictly(&self.workspace, SESSIONS)?;
        Ok(self.identity.act(|| remove_tree(&sessions, session.as_str().as_bytes()))?)
    }
}
