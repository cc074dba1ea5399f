//! Limits of a session that were met, as its groups count them.

/// How often limits were met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Met {
    /// Processes that were killed for want of memory.
    pub(crate) killed_for_memory: u64,
    /// Processes and threads that could not be started.
    pub(crate) forks_refused: u64,
}

impl Met {
    /// What was met since `earlier`, for people and for models.
    pub(crate) fn since(self, earlier: Self) -> Vec<String> {
        let mut said = Vec::new();
        if self.killed_for_memory > earlier.killed_for_memory {
            let count = self.killed_for_memory - earlier.killed_for_memory;
            said.push(format!(
                "out of memory: the session reached its memory limit, and {count} of its processes were killed"
            ));
        }
        if self.forks_refused > earlier.forks_refused {
            said.push("the session reached its limit of processes and threads".to_owned());
        }
        said
    }
}
