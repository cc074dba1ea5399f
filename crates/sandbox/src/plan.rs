//! From a scope to the mounts that make it: pure, so that every rule of the
//! view can be tested without a kernel.
//!
//! The steps are in the order in which they must be done: what lies below
//! comes after what it lies in.

use std::collections::{BTreeSet, HashSet};

use cloister_types::SessionId;
use cloister_types::path::WorkspacePath;
use cloister_types::scope::{Access, MEMORY, SESSIONS, Scope};

/// What the workspace mount point itself holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// The workspace folder.
    Workspace(Access),
    /// A sealed folder that holds the way to the declared paths and no more.
    Skeleton,
}

/// What to do about a source that does not exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IfAbsent {
    /// Make it, as an empty folder.
    Create,
    /// Leave it out; it appears when the view is built again.
    Skip,
    /// Refuse the scope: it lies in a writable folder, where leaving a
    /// read-only path out would let the session plant it.
    Refuse,
}

/// One bind of a workspace path onto the same path of the view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bind {
    /// The path, in the workspace and in the view.
    pub path: WorkspacePath,
    /// What the mount allows.
    pub access: Access,
    /// What to do if it is not there.
    pub absent: IfAbsent,
}

/// All mounts of a session's workspace view.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The mount point itself.
    pub root: Root,
    /// The session's private folder, the one thing visible in `.sessions`.
    pub own: WorkspacePath,
    /// Binds in order, `.memory` among them; without the private folder.
    pub binds: Vec<Bind>,
}

impl Plan {
    /// Is something mounted in a folder that is itself bound?
    pub(crate) fn has_mounts_in_mounts(&self) -> bool {
        let bound: HashSet<&WorkspacePath> = self.binds.iter().map(|bind| &bind.path).collect();
        self.root != Root::Skeleton
            || self.binds.iter().any(|bind| bind.path.ancestors().any(|above| bound.contains(&above)))
    }
}

/// Plans the view of `session` under `scope`.
#[must_use]
pub fn plan(scope: &Scope, session: &SessionId) -> Plan {
    let mut root = Root::Skeleton;
    let mut binds: Vec<Bind> = Vec::new();
    let mut seen = BTreeSet::new();
    let mut push = |binds: &mut Vec<Bind>, path: WorkspacePath, access, absent| {
        if seen.insert(path.clone()) {
            binds.push(Bind { path, access, absent });
        }
    };
    for (path, access) in scope.entries() {
        if path.is_root() {
            root = Root::Workspace(access);
            continue;
        }
        let above = path.split_last().and_then(|(parent, _)| scope.declared(&parent));
        let absent = match (access, above) {
            (Access::Write, _) => IfAbsent::Create,
            (Access::Read, Some(Access::Write)) => IfAbsent::Refuse,
            (Access::Read, _) => IfAbsent::Skip,
        };
        if access == Access::Read && above == Some(Access::Write) {
            // Pins: while a folder between the writable root and the protected
            // path is a mount of its own, it cannot be renamed away, and so
            // nothing can be planted at the protected path.
            for between in path.ancestors().filter(|ancestor| is_pin(scope, ancestor)) {
                push(&mut binds, between, Access::Write, IfAbsent::Refuse);
            }
        }
        push(&mut binds, path.clone(), access, absent);
    }
    let reserved = |name: &str| WorkspacePath::ROOT.join(name.as_bytes()).unwrap_or_default();
    push(&mut binds, reserved(MEMORY), Access::Write, IfAbsent::Create);
    Plan { root, own: private(session), binds }
}

/// The private folder of a session.
#[must_use]
pub fn private(session: &SessionId) -> WorkspacePath {
    let of_all = WorkspacePath::ROOT.join(SESSIONS.as_bytes()).unwrap_or_default();
    of_all.join(session.as_str().as_bytes()).unwrap_or_default()
}

/// Strictly below a writable entry, and not an entry itself.
fn is_pin(scope: &Scope, path: &WorkspacePath) -> bool {
    scope.declared(path) == Some(Access::Write) && !scope.names(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cloister_types::scope::FileAccess;
    use proptest::prelude::*;

    fn session() -> SessionId {
        SessionId::from_random([1; 6])
    }

    fn planned(read: &[&str], write: &[&str]) -> Plan {
        let own = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect();
        plan(&Scope::parse(&FileAccess { read: own(read), write: own(write) }).unwrap(), &session())
    }

    fn paths(plan: &Plan) -> Vec<(String, Access)> {
        plan.binds.iter().map(|bind| (bind.path.to_text(), bind.access)).collect()
    }

    #[test]
    fn the_whole_workspace_still_hides_other_sessions() {
        let plan = planned(&[""], &[""]);
        assert_eq!(plan.root, Root::Workspace(Access::Write));
        assert_eq!(paths(&plan), [(".memory".to_owned(), Access::Write)]);
        assert_eq!(plan.own.to_text(), ".sessions/sess_010101010101");
    }

    #[test]
    fn the_worked_example_of_the_contract() {
        let plan = planned(&["projects/acme-corp", "shared/templates"], &["projects/acme-corp/output"]);
        assert_eq!(plan.root, Root::Skeleton);
        assert_eq!(
            paths(&plan),
            [
                ("projects/acme-corp".to_owned(), Access::Read),
                ("projects/acme-corp/output".to_owned(), Access::Write),
                ("shared/templates".to_owned(), Access::Read),
                (".memory".to_owned(), Access::Write),
            ]
        );
    }

    #[test]
    fn a_protected_path_is_pinned_up_to_its_writable_root() {
        let plan = planned(&["a/b/c/d"], &["a"]);
        let got: Vec<_> = plan.binds.iter().map(|bind| (bind.path.to_text(), bind.access, bind.absent)).collect();
        assert_eq!(
            got[..4],
            [
                ("a".to_owned(), Access::Write, IfAbsent::Create),
                ("a/b".to_owned(), Access::Write, IfAbsent::Refuse),
                ("a/b/c".to_owned(), Access::Write, IfAbsent::Refuse),
                ("a/b/c/d".to_owned(), Access::Read, IfAbsent::Refuse),
            ]
        );
    }

    proptest! {
        // Whoever resolves a path through the plan gets what the scope declares.
        #[test]
        fn the_deepest_bind_grants_what_the_scope_declares(
            read in proptest::collection::vec("[ab](/[ab]){0,3}|", 0..5),
            write in proptest::collection::vec("[ab](/[ab]){0,3}|", 0..5),
            probe in "[ab](/[ab]){0,4}",
        ) {
            let scope = Scope::parse(&FileAccess { read, write }).unwrap();
            let plan = plan(&scope, &session());
            let probe = WorkspacePath::parse(probe.as_bytes()).unwrap();
            let root = match plan.root { Root::Workspace(access) => Some(access), Root::Skeleton => None };
            let deepest = plan.binds.iter().filter(|bind| probe.is_within(&bind.path)).max_by_key(|bind| bind.path.components().len());
            prop_assert_eq!(deepest.map(|bind| bind.access).or(root), scope.declared(&probe));
            // And every bind comes after the binds it lies in.
            for (i, bind) in plan.binds.iter().enumerate() {
                for later in &plan.binds[i + 1..] {
                    prop_assert!(!(bind.path.is_within(&later.path)));
                }
            }
        }
    }
}
