//! Paths inside the workspace.

use std::fmt;

/// A path relative to the workspace root: zero or more components, none of
/// them empty, `.`, `..` or holding NUL or `/`. Bytes, because Linux names
/// are bytes. The empty path is the root.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct WorkspacePath {
    // Compared component-wise through this order: see `Ord` of Vec.
    components: Vec<Vec<u8>>,
}

/// Longest path, in bytes, that the kernel takes in one call (`PATH_MAX`).
pub const MAX_PATH: usize = 4095;
/// Longest single name, in bytes (`NAME_MAX`).
pub const MAX_NAME: usize = 255;

/// Why bytes are not a workspace path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// It begins with `/`.
    #[error("the path must be relative to the workspace: leave out the leading slash")]
    Absolute,
    /// It has a `..` component.
    #[error("the path must not contain '..'")]
    Parent,
    /// It has a NUL byte.
    #[error("the path must not contain a NUL byte")]
    Nul,
    /// It, or one name in it, is longer than the kernel allows.
    #[error("the path, or a name in it, is too long")]
    TooLong,
    /// A scope path with a backslash, which is almost always a mistake.
    #[error("the path must not contain a backslash")]
    Backslash,
}

impl WorkspacePath {
    /// The workspace root.
    pub const ROOT: Self = Self { components: Vec::new() };

    /// Parses and normalises: `.` components, doubled and trailing slashes
    /// vanish; everything that could climb is an error.
    ///
    /// # Errors
    /// [`BadPath`] names the first rule that is broken.
    pub fn parse(raw: &[u8]) -> Result<Self, BadPath> {
        if raw.contains(&0) {
            return Err(BadPath::Nul);
        }
        if raw.first() == Some(&b'/') {
            return Err(BadPath::Absolute);
        }
        if raw.len() > MAX_PATH {
            return Err(BadPath::TooLong);
        }
        let mut components = Vec::new();
        for part in raw.split(|b| *b == b'/') {
            match part {
                b"" | b"." => {}
                b".." => return Err(BadPath::Parent),
                name if name.len() > MAX_NAME => return Err(BadPath::TooLong),
                name => components.push(name.to_vec()),
            }
        }
        Ok(Self { components })
    }

    /// Is this the workspace root itself?
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.components.is_empty()
    }

    /// The names from the root downwards.
    pub fn components(&self) -> impl ExactSizeIterator<Item = &[u8]> {
        self.components.iter().map(Vec::as_slice)
    }

    /// The path one level up and the last name; `None` for the root.
    #[must_use]
    pub fn split_last(&self) -> Option<(Self, &[u8])> {
        let (last, parents) = self.components.split_last()?;
        Some((Self { components: parents.to_vec() }, last))
    }

    /// Does `self` lie at or below `ancestor`, by whole components?
    #[must_use]
    pub fn is_within(&self, ancestor: &Self) -> bool {
        self.components.starts_with(&ancestor.components)
    }

    /// Every proper ancestor but the root, shortest first.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> + '_ {
        (1..self.components.len()).map(|n| Self { components: self.components[..n].to_vec() })
    }

    /// The path with one more name, which must already be a single valid name.
    ///
    /// # Errors
    /// As for [`WorkspacePath::parse`].
    pub fn join(&self, name: &[u8]) -> Result<Self, BadPath> {
        let mut bytes = self.to_bytes();
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self::parse(&bytes)
    }

    /// The bytes as the kernel takes them; empty for the root.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.components.join(&b'/')
    }

    /// For people and JSON: bytes that are not UTF-8 are replaced.
    #[must_use]
    pub fn to_text(&self) -> String {
        String::from_utf8_lossy(&self.to_bytes()).into_owned()
    }
}

impl fmt::Debug for WorkspacePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_text())
    }
}

impl fmt::Display for WorkspacePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_text())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn normalises_what_is_harmless() {
        for (raw, want) in [("", ""), (".", ""), ("a", "a"), ("a/", "a"), ("./a//b/./c/", "a/b/c"), ("a/...", "a/...")]
        {
            assert_eq!(WorkspacePath::parse(raw.as_bytes()).unwrap().to_text(), want, "{raw}");
        }
    }

    #[test]
    fn refuses_what_could_climb() {
        for (raw, want) in [
            ("/a", BadPath::Absolute),
            ("//", BadPath::Absolute),
            ("..", BadPath::Parent),
            ("a/../b", BadPath::Parent),
            ("a/..", BadPath::Parent),
            ("a\0b", BadPath::Nul),
        ] {
            assert_eq!(WorkspacePath::parse(raw.as_bytes()), Err(want), "{raw}");
        }
        assert_eq!(WorkspacePath::parse(&[b'a'; 256]), Err(BadPath::TooLong));
        assert_eq!(WorkspacePath::parse("a/".repeat(3000).as_bytes()), Err(BadPath::TooLong));
    }

    #[test]
    fn prefixes_match_by_component() {
        let path = |text: &str| WorkspacePath::parse(text.as_bytes()).unwrap();
        assert!(path("a/b").is_within(&path("a")));
        assert!(path("a").is_within(&path("")));
        assert!(path("a").is_within(&path("a")));
        assert!(!path("acme-corp").is_within(&path("acme")));
        assert!(!path("a").is_within(&path("a/b")));
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_is_idempotent(raw in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(path) = WorkspacePath::parse(&raw) {
                let again = WorkspacePath::parse(&path.to_bytes()).unwrap();
                prop_assert_eq!(&again, &path);
                for name in path.components() {
                    prop_assert!(!name.is_empty() && name != b"." && name != b"..");
                    prop_assert!(!name.contains(&0) && !name.contains(&b'/'));
                }
            }
        }
    }
}
