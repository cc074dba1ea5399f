//! What this machine offers: each finding with its reason and its remedy.
//! Session creation relies on exactly these, and names them when they fail.

use std::path::Path;
use std::process::Command;

use cloister_types::link::Enforced;
use serde::{Deserialize, Serialize};

use crate::identity::Identity;
use crate::launch::{self, Parts, Preparing, Refused};
use crate::view::{self, Base, Site};
use crate::{cgroup::Cgroups, confine::Limits, grounds};

/// How much a missing feature matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// There.
    Ok,
    /// Missing; sessions work with less.
    Weaker,
    /// Missing; no session can be made.
    Missing,
}

/// One line of the doctor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The feature.
    pub feature: String,
    /// There or not.
    pub verdict: Verdict,
    /// What was seen.
    pub seen: String,
    /// What to do, if anything.
    pub fix: Option<String>,
}

impl Finding {
    fn ok(feature: &str, seen: impl Into<String>) -> Self {
        Self { feature: feature.into(), verdict: Verdict::Ok, seen: seen.into(), fix: None }
    }

    fn lacking(feature: &str, verdict: Verdict, seen: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { feature: feature.into(), verdict, seen: seen.into(), fix: Some(fix.into()) }
    }
}

/// Probes in a process of its own, because some steps cannot be undone.
///
/// # Errors
/// The executable cannot be run, or did not answer.
pub fn probe(executable: &Path) -> std::io::Result<Vec<Finding>> {
    let output = Command::new(executable).arg("probe").output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

/// Probes in this process, which is of no use afterwards.
pub(crate) fn probe_here() -> Vec<Finding> {
    let mut findings = vec![landlock()];
    let (identity, mut cgroups) = match Identity::current().and_then(|identity| Ok((identity, Cgroups::probe()?))) {
        Ok(found) => found,
        Err(error) => {
            let fix = "give this process a readable /proc".to_owned();
            findings.push(Finding::lacking("processes and groups", Verdict::Missing, error.to_string(), fix));
            return findings;
        }
    };
    let enforced = cgroups.enforced(identity);
    let by_group = |limit: &str| limit.starts_with("cgroup");
    findings.push(if by_group(&enforced.memory) && by_group(&enforced.cpu) && by_group(&enforced.pids) {
        Finding::ok("control groups", format!("memory {}, cpu {}, processes {}", enforced.memory, enforced.cpu, enforced.pids))
    } else {
        Finding::lacking(
            "control groups",
            Verdict::Weaker,
            format!("memory {}, cpu {}, processes {}", enforced.memory, enforced.cpu, enforced.pids),
            match identity.root_mode {
                true => "start Cloister in groups of its own: systemd-run --scope -p Delegate=yes cloister serve, or as a service with Delegate=yes and DelegateSubgroup=cloister-server (systemd 254)",
                false => "as a service, Delegate=yes and DelegateSubgroup=cloister-server (systemd 254); else run Cloister as root, or give your user delegated groups: systemd-run --user --scope -p Delegate=yes cloister serve",
            },
        )
    });
    let (shown, trial) = trial(identity, &mut cgroups);
    findings.push(host_users(identity, shown.own_users));
    findings.push(trial);
    cgroups.remove();
    findings
}

fn host_users(identity: Identity, own_users: bool) -> Finding {
    const FEATURE: &str = "host users";
    let uid = identity.uid;
    match (identity.root_mode, own_users) {
        (true, true) => Finding::ok(FEATURE, format!("each sandbox has its own, above {uid}; files belong to {uid}")),
        (true, false) => Finding::lacking(
            FEATURE,
            Verdict::Weaker,
            format!(
                "all sandboxes of a tenant run as host user {uid}: tmpfs (before Linux 6.3) or the temporary folder takes no id-mapped mount"
            ),
            "boot Linux 6.3 or newer, and keep data (and TMPDIR, for this test) on ext4, XFS, btrfs or tmpfs",
        ),
        (false, _) => Finding::lacking(
            FEATURE,
            Verdict::Weaker,
            format!("user {uid}: sandboxes run as the same host user as the server"),
            "run Cloister as root to give sandboxes host users of their own",
        ),
    }
}

/// Landlock's version in this kernel, as far as our rules know it; 0: it has
/// none.
///
/// # Errors
/// Any other answer: it says nothing of what the kernel has.
pub(crate) fn landlock_abi() -> rustix::io::Result<u32> {
    match crate::sys::landlock_version() {
        Ok(version) => Ok(version.min(6)),
        Err(rustix::io::Errno::NOSYS | rustix::io::Errno::OPNOTSUPP) => Ok(0),
        Err(errno) => Err(errno),
    }
}

fn landlock() -> Finding {
    match landlock_abi().unwrap_or(0) {
        0 => Finding::lacking(
            "Landlock",
            Verdict::Weaker,
            "not offered by this kernel",
            "boot a kernel with CONFIG_SECURITY_LANDLOCK and 'landlock' in its lsm= list",
        ),
        abi @ 1..=5 => Finding::lacking(
            "Landlock",
            Verdict::Weaker,
            format!("version {abi}; scopes for signals and abstract sockets need 6"),
            "boot Linux 6.12 or newer",
        ),
        abi => Finding::ok("Landlock", format!("version {abi}")),
    }
}

/// What a whole sandbox, made on trial, has shown.
#[derive(Default)]
struct Shown {
    /// Sandboxes can have host users of their own.
    own_users: bool,
    /// Trees need no place in the spawner's namespace.
    detached_trees: bool,
}

/// Makes a whole sandbox on an empty workspace and ends it: whatever the
/// machine refuses, it refuses here, by name.
fn trial(identity: Identity, cgroups: &mut Cgroups) -> (Shown, Finding) {
    const FEATURE: &str = "sandbox (user, mount, pid, net, ipc, uts, cgroup namespaces, mount trees, seccomp)";
    match try_sandbox(identity, cgroups) {
        Ok(shown) => {
            let trees = if shown.detached_trees { "detached" } else { "of the spawner (as before Linux 6.15)" };
            let finding = Finding::ok(FEATURE, format!("made one and ended it; mount trees: {trees}"));
            (shown, finding)
        }
        Err(refused) => {
            let fix = fix_for(&refused.step, &refused.answer);
            (Shown::default(), Finding::lacking(FEATURE, Verdict::Missing, refused.to_string(), fix))
        }
    }
}

fn try_sandbox(identity: Identity, cgroups: &mut Cgroups) -> Result<Shown, Refused> {
    let refused = |step: &str, error: &dyn std::fmt::Display| Refused { step: step.into(), answer: error.to_string() };
    let session = cloister_types::SessionId::from_random([0; 6]);
    let folder = std::env::temp_dir().join(format!("cloister-doctor-{}", std::process::id()));
    std::fs::create_dir_all(&folder).map_err(|error| refused("make a temporary folder", &error))?;
    let outcome = (|| {
        grounds::enter(identity)?;
        let workspace =
            std::fs::File::open(&folder).map_err(|error| refused("open the temporary folder", &error))?.into();
        identity.own(&workspace).map_err(|errno| refused("give the temporary folder away", &errno))?;
        let own_users = grounds::own_users(&workspace, identity)
            .map_err(|error| refused("find host users for sandboxes", &error))?
            .is_some();
        let executable = std::env::current_exe().map_err(|error| refused("find this executable", &error))?;
        let unbuilt = |error| refused("build the base view", &error);
        let agent = Base::agent(&executable).map_err(unbuilt)?;
        let site = Site::find().map_err(|errno| refused("find out how views are built", &errno))?;
        let base = Base::build(&site, agent, None).map_err(unbuilt)?;
        let nothing = cloister_types::scope::FileAccess { read: vec![], write: vec![] };
        let built = view::Seen::default()
            .view(&site, &workspace, &nothing, &session, identity)
            .map_err(|error| refused("build a view", &error))?;
        let limits = Limits::default();
        let workspace = view::mounts::workspace_of(&built.tree).map_err(|error| refused("open the view", &error))?;
        let root =
            base.sandbox_root(&site, identity, &limits).map_err(|error| refused("build the sandbox's root", &error))?;
        let groups = cgroups.take(&limits).map_err(|error| refused("make the control groups", &error))?;
        let enforced = Enforced { hidden_mounts: site.is_nowhere(), ..cgroups.enforced(identity) };
        let parts = Parts { root, network: None, groups: &groups, user: identity, limits: &limits, enforced };
        let launched = launch::prepare(parts).and_then(Preparing::wait);
        let launched = launched.and_then(|(prepared, _)| prepared.begin(workspace, built.pinned, 0, &[]));
        if let Ok(sandbox) = &launched {
            launch::end(&sandbox.init);
        }
        groups.remove();
        launched.map(|_| Shown { own_users, detached_trees: site.is_nowhere() })
    })();
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

/// The remedy for a refused step, from what the machine says about itself.
#[must_use]
pub fn fix_for(step: &str, answer: &str) -> String {
    let sysctl =
        |path: &str| std::fs::read_to_string(format!("/proc/sys/{path}")).unwrap_or_default().trim().to_owned();
    if sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1" {
        return "AppArmor forbids user namespaces to ordinary users here: sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0, \
                or run Cloister as root"
            .into();
    }
    if sysctl("kernel/unprivileged_userns_clone") == "0" {
        return "user namespaces are switched off for ordinary users: sudo sysctl kernel.unprivileged_userns_clone=1, or run as root".into();
    }
    if sysctl("user/max_user_namespaces") == "0" || answer.contains("No space left") {
        return "the machine allows no (more) namespaces: sudo sysctl user.max_user_namespaces=65536".into();
    }
    if step.contains("procfs") {
        return "the visible /proc is masked, as in a container: start the container with an unmasked /proc \
                (Docker: --security-opt systempaths=unconfined)"
            .into();
    }
    if step.contains("id-mapped") {
        return "a file system below the workspace takes no id-mapped mount: keep everything in it on ext4, XFS, btrfs or tmpfs".into();
    }
    if step.contains("view") || step.contains("tree") || step.contains("root") {
        return "mount trees need Linux 5.12 or newer (mount_setattr); check with: uname -r".into();
    }
    "see docs/errors/sandbox_unavailable.md (cloister explain sandbox_unavailable)".into()
}
