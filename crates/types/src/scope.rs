//! `file_access`: what a session may see, as a value.
//!
//! The longest declared prefix of a path decides; a path in both lists is
//! writable. `.memory` is writable in every session and `.sessions` shows the
//! session's own folder alone, whatever is declared.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::path::{BadPath, WorkspacePath};

/// What may be done at and below a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Read only.
    Read,
    /// Read and write.
    Write,
}

/// Folder that survives every session; mounted in all of them.
pub const MEMORY: &str = ".memory";
/// Folder that holds one private folder a session.
pub const SESSIONS: &str = ".sessions";
/// Folder whose markdown files extend the system prompt.
pub const CONTEXT: &str = ".pokee";

/// Most paths that one scope may list, so that a request cannot ask for an
/// unbounded mount table (the kernel's own limit is 100,000 a namespace).
pub const MAX_ENTRIES: usize = 2048;

/// Most folders on the way to one scope path.
pub const MAX_DEPTH: usize = 64;

/// `file_access` as it is sent and echoed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FileAccess {
    /// Paths, relative to the workspace, that may be read. `""` is all of it.
    #[serde(default)]
    pub read: Vec<String>,
    /// Paths that may be written, and therefore read.
    #[serde(default)]
    pub write: Vec<String>,
}

impl FileAccess {
    /// The whole workspace, which is what a session without `file_access` has.
    #[must_use]
    pub fn everything() -> Self {
        Self { read: vec![String::new()], write: vec![String::new()] }
    }
}

/// Why a `file_access` cannot be honoured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadScope {
    /// A path that breaks the path rules.
    #[error("file_access path {path:?}: {why}")]
    Path {
        /// The path as it was sent.
        path: String,
        /// The rule that it breaks.
        why: BadPath,
    },
    /// A path of more than [`MAX_DEPTH`] names.
    #[error("file_access path {0:?} has more than {MAX_DEPTH} names")]
    TooDeep(String),
    /// More than [`MAX_ENTRIES`] paths.
    #[error("file_access lists more than {MAX_ENTRIES} paths")]
    TooMany,
}

/// A scope in normal form: no entry repeats what the entry above it grants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Scope {
    entries: BTreeMap<WorkspacePath, Access>,
}

impl Scope {
    /// Parses the declared lists into normal form.
    ///
    /// # Errors
    /// [`BadScope`] names the offending path.
    pub fn parse(declared: &FileAccess) -> Result<Self, BadScope> {
        if declared.read.len() + declared.write.len() > MAX_ENTRIES {
            return Err(BadScope::TooMany);
        }
        let mut all = BTreeMap::new();
        for (list, access) in [(&declared.read, Access::Read), (&declared.write, Access::Write)] {
            for text in list {
                let bad = |why| BadScope::Path { path: text.clone(), why };
                if text.contains('\\') {
                    return Err(bad(BadPath::Backslash));
                }
                let path = WorkspacePath::parse(text.as_bytes()).map_err(bad)?;
                if path.components().len() > MAX_DEPTH {
                    return Err(BadScope::TooDeep(text.chars().take(100).collect()));
                }
                let slot = all.entry(path).or_insert(access);
                *slot = (*slot).max(access);
            }
        }
        Ok(Self::reduce(all))
    }

    /// Does it show nothing, and let nothing be changed, that `ceiling` does not?
    #[must_use]
    pub fn is_within(&self, ceiling: &Self) -> bool {
        // What is declared changes at entries alone, of the one or the other.
        let mut turns = self.entries.keys().chain(ceiling.entries.keys());
        turns.all(|path| self.declared(path) <= ceiling.declared(path))
    }

    /// Drops what needs no mount of its own: entries below the two reserved
    /// folders, and entries that grant what their nearest ancestor grants.
    fn reduce(all: BTreeMap<WorkspacePath, Access>) -> Self {
        let mut scope = Self::default();
        // Ancestors sort before what lies below them.
        for (path, access) in all {
            let reserved = matches!(path.components().next(), Some(first) if first == MEMORY.as_bytes() || first == SESSIONS.as_bytes());
            if !reserved && scope.declared(&path) != Some(access) {
                scope.entries.insert(path, access);
            }
        }
        scope
    }

    /// The entries in path order, ancestors first.
    pub fn entries(&self) -> impl ExactSizeIterator<Item = (&WorkspacePath, Access)> {
        self.entries.iter().map(|(path, access)| (path, *access))
    }

    /// What the declared lists alone grant at `path`: the longest prefix decides.
    #[must_use]
    pub fn declared(&self, path: &WorkspacePath) -> Option<Access> {
        let mut at = path.clone();
        loop {
            if let Some(access) = self.entries.get(&at) {
                return Some(*access);
            }
            at = at.split_last()?.0;
        }
    }

    /// Is the path itself an entry?
    #[must_use]
    pub fn names(&self, path: &WorkspacePath) -> bool {
        self.entries.contains_key(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn scope(read: &[&str], write: &[&str]) -> Scope {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        Scope::parse(&FileAccess { read: own(read), write: own(write) }).unwrap()
    }

    fn list(scope: &Scope) -> Vec<(String, Access)> {
        scope.entries().map(|(path, access)| (path.to_text(), access)).collect()
    }

    #[test]
    fn equal_and_redundant_entries_collapse() {
        assert_eq!(list(&scope(&[""], &[""])), [(String::new(), Access::Write)]);
        assert_eq!(list(&scope(&["a", "a/b", "./a/"], &[])), [("a".into(), Access::Read)]);
        assert_eq!(list(&scope(&[], &["a", "a/b/c"])), [("a".into(), Access::Write)]);
    }

    #[test]
    fn the_longest_prefix_decides() {
        let s = scope(&["p/acme", "p/acme/out/frozen"], &["p/acme/out"]);
        let at = |text: &str| s.declared(&WorkspacePath::parse(text.as_bytes()).unwrap());
        assert_eq!(at("p/acme/x"), Some(Access::Read));
        assert_eq!(at("p/acme/out/x"), Some(Access::Write));
        assert_eq!(at("p/acme/out/frozen/x"), Some(Access::Read));
        assert_eq!(at("p/acme-corp"), None);
        assert_eq!(at("p"), None);
    }

    #[test]
    fn reserved_folders_cannot_be_declared() {
        assert!(list(&scope(&[".memory/a", ".sessions"], &[".sessions/sess_0123456789ab"])).is_empty());
    }

    #[test]
    fn bad_paths_are_named() {
        for bad in ["/etc", "a/../b", "a\\b", "a\0b"] {
            let error = Scope::parse(&FileAccess { read: vec![bad.into()], write: vec![] }).unwrap_err();
            assert!(matches!(error, BadScope::Path { path, .. } if path == bad));
        }
    }

    fn any_path() -> impl Strategy<Value = String> {
        proptest::collection::vec(prop_oneof!["a", "b", "ab", "\\.", ""], 0..5)
            .prop_map(|parts| parts.join("/").trim_start_matches('/').to_owned())
    }

    proptest! {
        // Within a ceiling is what the ceiling grants at every path.
        #[test]
        fn within_a_ceiling_is_within_it_everywhere(read in proptest::collection::vec(any_path(), 0..4), write in proptest::collection::vec(any_path(), 0..4), above in proptest::collection::vec(any_path(), 0..4), below in proptest::collection::vec(any_path(), 0..4), probes in proptest::collection::vec(any_path(), 1..30)) {
            let scope = Scope::parse(&FileAccess { read, write }).unwrap();
            let ceiling = Scope::parse(&FileAccess { read: above, write: below }).unwrap();
            prop_assert!(scope.is_within(&scope) && scope.is_within(&Scope::parse(&FileAccess::everything()).unwrap()));
            let parsed = probes.iter().map(|probe| WorkspacePath::parse(probe.as_bytes()).unwrap());
            let all = parsed.chain(scope.entries.keys().cloned()).chain(ceiling.entries.keys().cloned());
            let everywhere = all.into_iter().all(|path| scope.declared(&path) <= ceiling.declared(&path));
            prop_assert_eq!(scope.is_within(&ceiling), everywhere);
        }

        // The normal form grants exactly what the lists as sent grant.
        #[test]
        fn reducing_changes_no_grant(read in proptest::collection::vec(any_path(), 0..6), write in proptest::collection::vec(any_path(), 0..6), probe in any_path()) {
            let declared = FileAccess { read: read.clone(), write: write.clone() };
            let scope = Scope::parse(&declared).unwrap();
            let probe = WorkspacePath::parse(probe.as_bytes()).unwrap();
            let mut best: Option<(usize, Access)> = None;
            for (list, access) in [(&read, Access::Read), (&write, Access::Write)] {
                for text in list {
                    let entry = WorkspacePath::parse(text.as_bytes()).unwrap();
                    if probe.is_within(&entry) {
                        best = best.max(Some((entry.components().len(), access)));
                    }
                }
            }
            prop_assert_eq!(scope.declared(&probe), best.map(|(_, access)| access));
        }
    }
}
