//! Landlock: a second wall behind the mount tree, with few, coarse rules.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

use super::ConfineError;

/// Newest version that the rules below were written for.
const NEWEST: ABI = ABI::V6;

/// Folders of the view in which everything that the mounts allow is allowed.
const WRITABLE: [&str; 3] = ["/opt/sandbox/workspace", "/tmp", "/dev"];

/// Restricts this process: reading and running anywhere, changing in
/// [`WRITABLE`] alone (in an image anywhere: there the mounts decide), no signal and no abstract socket to the outside.
pub(super) fn restrict(image: bool) -> Result<u32, ConfineError> {
    let abi = crate::doctor::landlock_abi();
    if abi == 0 {
        return Ok(0);
    }
    let failed = |error: &dyn std::fmt::Display| ConfineError::Landlock(error.to_string());
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(NEWEST))
        .and_then(|rules| rules.scope(Scope::from_all(NEWEST)))
        .and_then(Ruleset::create)
        .map_err(|error| failed(&error))?;
    let grants = WRITABLE.into_iter().map(|path| (path, AccessFs::from_all(NEWEST)));
    let everywhere = if image { AccessFs::from_all(NEWEST) } else { AccessFs::from_read(NEWEST) };
    for (path, access) in std::iter::once(("/", everywhere)).chain(grants) {
        let folder = PathFd::new(path).map_err(|error| failed(&error))?;
        rules = rules.add_rule(PathBeneath::new(folder, access)).map_err(|error| failed(&error))?;
    }
    let status = rules.restrict_self().map_err(|error| failed(&error))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(ConfineError::Landlock("the kernel offers it and did not enforce the rules".into()));
    }
    Ok(abi.min(6))
}
