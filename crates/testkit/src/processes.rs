//! The processes of a stack, told by what the kernel and the run folder say.

use std::path::Path;

use serde_json::Value;

/// A sandbox's outside processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sandbox {
    /// The session.
    pub session: String,
    /// Pid of its supervisor.
    pub supervisor: u32,
    /// Pid of its first process, seen from outside.
    pub init: u32,
}

/// What runs of a stack.
#[derive(Debug, Clone, Default)]
pub struct Processes {
    server: u32,
    sandboxes: Vec<Sandbox>,
}

impl Processes {
    pub(crate) fn of(server: u32, run: &Path) -> Self {
        let folders = std::fs::read_dir(run).into_iter().flatten().flatten();
        let sandboxes = folders.filter_map(|folder| {
            let about: Value = serde_json::from_slice(&std::fs::read(folder.path().join("about.json")).ok()?).ok()?;
            let pid = |name: &str| {
                let pid = u32::try_from(about[name]["pid"].as_u64()?).ok()?;
                (start_of(pid)? == about[name]["start"].as_u64()?).then_some(pid)
            };
            let session = about["session"].as_str()?.to_owned();
            Some(Sandbox { session, supervisor: pid("supervisor").unwrap_or(0), init: pid("init").unwrap_or(0) })
        });
        Self { server, sandboxes: sandboxes.collect() }
    }

    /// Supervisors that are alive.
    pub fn supervisors(&self) -> impl Iterator<Item = u32> {
        self.sandboxes.iter().map(|sandbox| sandbox.supervisor).filter(|pid| *pid != 0)
    }

    /// The live sandbox of a session.
    #[must_use]
    pub fn sandbox(&self, session: &str) -> Option<Sandbox> {
        self.sandboxes.iter().find(|sandbox| sandbox.session == session && sandbox.init != 0).cloned()
    }

    /// The egress process that the server started.
    #[must_use]
    pub fn egress(&self) -> Option<u32> {
        let is_egress = |pid: &u32| command_line(*pid).ends_with(b"\0egress-process\0");
        children(self.server).into_iter().find(is_egress)
    }

    /// The vault that the server started.
    #[must_use]
    pub fn vault(&self) -> Option<u32> {
        let is_vault = |pid: &u32| command_line(*pid).ends_with(b"\0vault-process\0");
        children(self.server).into_iter().find(is_vault)
    }

    /// The spawner that the server started.
    #[must_use]
    pub fn spawner(&self) -> Option<u32> {
        let is_spawner = |pid: &u32| command_line(*pid).starts_with(b"cloister-sandbox\0");
        children(self.server).into_iter().find(is_spawner)
    }

    /// The process that keeps the workspace's account.
    #[must_use]
    pub fn meter(&self) -> Option<u32> {
        children(self.spawner()?).into_iter().find(|pid| is_meter(*pid))
    }

    /// The agent of a session, if one runs.
    #[must_use]
    pub fn agent(&self, session: &str) -> Option<u32> {
        let is_agent = |pid: &u32| command_line(*pid).ends_with(b"cloister-agent\0");
        children(self.sandbox(session)?.init).into_iter().find(is_agent)
    }
}

/// Is this a meter, not a spare or a supervisor?
#[must_use]
pub fn is_meter(pid: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "cloister-meter")
}

fn command_line(pid: u32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// When a process was started, if it is alive.
fn start_of(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") { None } else { fields.nth(18)?.parse().ok() }
}

/// Children of all threads of a process.
#[must_use]
pub fn children(pid: u32) -> Vec<u32> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let mut all = Vec::new();
    for task in tasks {
        let text = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(text.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all
}

/// A process and everything below it.
#[must_use]
pub fn descendants(pid: u32) -> Vec<u32> {
    let mut all = vec![pid];
    let mut index = 0;
    while index < all.len() {
        all.extend(children(all[index]));
        index += 1;
    }
    all
}

/// Is the process gone, or a zombie that its parent has yet to collect?
#[must_use]
pub fn is_gone(pid: u32) -> bool {
    start_of(pid).is_none()
}
