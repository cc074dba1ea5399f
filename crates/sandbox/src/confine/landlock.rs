//! Landlock: a second wall behind the mount tree, with few, coarse rules.

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};

use super::ConfineError;

/// Newest version that the rules below were written for.
const NEWEST: ABI = ABI::V6;

/// The folder that the workspace will be in: a rule for the place of a mount
/// says nothing of what is mounted there later. What else is in it cannot be
/// changed, as its mount is read-only.
const SHARED: &str = "/opt/sandbox";
/// Where a sandbox is by itself, and its root's child that holds [`SHARED`].
const OWN: [&str; 2] = ["/tmp", "/dev"];
const ABOVE_SHARED: &str = "opt";

/// Restricts this process: reading and running anywhere, changing in
/// [`SHARED`] and [`OWN`] alone (in an image anywhere: there the mounts
/// decide), no signal and no abstract socket to the outside. In the workspace,
/// which sessions share, no sockets either: by one, two sessions could pass
/// each other descriptors of what only one of them may see.
pub(super) fn restrict(image: bool) -> Result<u32, ConfineError> {
    let abi = crate::doctor::landlock_abi().map_err(|errno| ConfineError::Landlock(errno.to_string()))?;
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
    // Nobody makes devices; whiteouts are some that need no right.
    let all = AccessFs::from_all(NEWEST) & !(AccessFs::MakeChar | AccessFs::MakeBlock);
    let without_sockets = all & !AccessFs::MakeSock;
    let everywhere = if image { without_sockets } else { AccessFs::from_read(NEWEST) };
    let own = if image { layers() } else { OWN.map(str::to_owned).to_vec() };
    let grants = [("/", everywhere), (SHARED, without_sockets)].into_iter();
    for (path, access) in grants.chain(own.iter().map(|path| (path.as_str(), all))) {
        let folder = PathFd::new(path).map_err(|error| failed(&error))?;
        rules = rules.add_rule(PathBeneath::new(folder, access)).map_err(|error| failed(&error))?;
    }
    let status = rules.restrict_self().map_err(|error| failed(&error))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(ConfineError::Landlock("the kernel offers it and did not enforce the rules".into()));
    }
    Ok(abi.min(6))
}

/// What an image has at its root, but for what holds the workspace.
fn layers() -> Vec<String> {
    let entries = std::fs::read_dir("/").into_iter().flatten().flatten();
    let folders = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let names = folders.filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name != ABOVE_SHARED && name != "proc").map(|name| format!("/{name}")).collect()
}
