//! What a live sandbox is held by, read from the kernel's account of its first
//! process, never from what was meant to be.

mod mounts;

use std::collections::BTreeMap;
use std::fs;

use cloister_types::wire::{Measured, Verdict};

use self::mounts::Mount;
use crate::cgroup;

/// Restrictions to look at, in the order in which they are shown.
type Check = fn(&Process) -> Measured;
const CHECKS: [Check; 10] = [
    host_user,
    capabilities,
    privileges,
    system_calls,
    namespaces,
    network,
    mounts,
    control_groups,
    resource_limits,
    out_of_memory,
];

/// A process, by its folder in `/proc`.
struct Process {
    pid: i32,
    status: BTreeMap<String, String>,
}

/// Measures the sandbox whose first process is `pid`; nothing if that is gone.
pub(crate) fn measure(pid: i32) -> Vec<Measured> {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else { return Vec::new() };
    let lines = status.lines().filter_map(|line| line.split_once(':'));
    let status = lines.map(|(name, value)| (name.to_owned(), value.trim().to_owned())).collect();
    let process = Process { pid, status };
    CHECKS.iter().map(|check| check(&process)).collect()
}

fn measured(what: &str, seen: impl Into<String>, holds: bool) -> Measured {
    let verdict = if holds { Verdict::Holds } else { Verdict::Broken };
    Measured { what: what.to_owned(), seen: seen.into(), verdict }
}

/// Something that this server may not look at.
fn unreadable(what: &str) -> Measured {
    let seen = "cannot be read from outside by a server that is not root".to_owned();
    Measured { what: what.to_owned(), seen, verdict: Verdict::Unknown }
}

/// What does not hold is less than there could be, and not a fault.
fn at_worst_weaker(measured: Measured) -> Measured {
    let verdict = if measured.verdict == Verdict::Broken { Verdict::Weaker } else { measured.verdict };
    Measured { verdict, ..measured }
}

impl Process {
    fn field(&self, name: &str) -> &str {
        self.status.get(name).map_or("", String::as_str)
    }

    fn read(&self, file: &str) -> Option<String> {
        fs::read_to_string(format!("/proc/{}/{file}", self.pid)).ok()
    }
}

fn host_user(process: &Process) -> Measured {
    let own = rustix::process::geteuid().as_raw();
    let uid = process.field("Uid").split_whitespace().next().and_then(|uid| uid.parse::<u32>().ok());
    let Some(uid) = uid else { return unreadable("host user") };
    if uid == own {
        let shared = measured("host user", format!("{uid}, the server's own"), false);
        // Only root can give another one.
        return if own == 0 { shared } else { at_worst_weaker(shared) };
    }
    measured("host user", format!("{uid}, not the server's"), uid != 0)
}

fn capabilities(process: &Process) -> Measured {
    let sets = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
    let left: Vec<_> = sets.iter().filter(|set| !process.field(set).trim_matches('0').is_empty()).collect();
    let seen = if left.is_empty() {
        "none: inheritable, permitted, effective, bounding and ambient sets are empty".to_owned()
    } else {
        left.iter().map(|set| format!("{set} {}", process.field(set))).collect::<Vec<_>>().join(", ")
    };
    // A field that is missing is not an empty set.
    measured("capabilities", seen, left.is_empty() && sets.iter().all(|set| !process.field(set).is_empty()))
}

fn privileges(process: &Process) -> Measured {
    let holds = process.field("NoNewPrivs") == "1";
    measured("new privileges", if holds { "none can be gained (no_new_privs)" } else { "can be gained" }, holds)
}

fn system_calls(process: &Process) -> Measured {
    let (mode, filters) = (process.field("Seccomp"), process.field("Seccomp_filters"));
    measured("system calls", format!("seccomp mode {mode} (2 is a filter), filters: {filters}"), mode == "2")
}

fn namespaces(process: &Process) -> Measured {
    const KINDS: [&str; 7] = ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"];
    let link = |pid: &str, kind: &str| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok();
    let pid = process.pid.to_string();
    let mut shared = Vec::new();
    for kind in KINDS {
        match (link(&pid, kind), link("self", kind)) {
            (Some(its), Some(ours)) if its != ours => {}
            (Some(_), Some(_)) => shared.push(kind),
            _ => return unreadable("namespaces"),
        }
    }
    let seen = if shared.is_empty() {
        format!("its own: {}", KINDS.join(", "))
    } else {
        format!("shared: {}", shared.join(", "))
    };
    measured("namespaces", seen, shared.is_empty())
}

fn network(process: &Process) -> Measured {
    let Some(table) = process.read("net/dev") else { return unreadable("network") };
    let names: Vec<_> = table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim()).collect();
    measured("network", format!("interfaces: {}", names.join(", ")), names == ["lo"])
}

fn mounts(process: &Process) -> Measured {
    let Some(mounts) = mounts::of(process) else { return unreadable("mounts") };
    let paths = |pick: &dyn Fn(&Mount) -> bool| -> Vec<&str> {
        mounts.iter().filter(|mount| pick(mount)).map(|mount| mount.path.as_str()).collect()
    };
    let (faults, writable) = (paths(&Mount::is_faulty), paths(&Mount::is_writable));
    let seen = if faults.is_empty() {
        let count = mounts.len();
        format!("{count} found, none with setuid files or devices but /dev's own; writable: {}", writable.join(" "))
    } else {
        format!("{} found; not as they must be: {}", mounts.len(), faults.join(" "))
    };
    measured("mounts", seen, faults.is_empty())
}

fn control_groups(process: &Process) -> Measured {
    let limits = cgroup::in_force(process.pid);
    let seen: Vec<_> = limits.iter().map(|(name, limit)| format!("{name} {limit}")).collect();
    let seen = if seen.is_empty() { "none".to_owned() } else { seen.join(", ") };
    let holds = ["memory", "cpu", "pids"].iter().all(|name| limits.iter().any(|(of, _)| of == name));
    at_worst_weaker(measured("control groups", seen, holds))
}

fn resource_limits(process: &Process) -> Measured {
    const WANTED: [&str; 4] = ["Max core file size", "Max processes", "Max open files", "Max file size"];
    let Some(table) = process.read("limits") else { return unreadable("resource limits") };
    // Columns: name, soft limit, hard limit, unit.
    let hard = |name: &str| {
        table.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().nth(1).map(str::to_owned))
    };
    let limits: Vec<_> = WANTED.into_iter().filter_map(|name| Some((name, hard(name)?))).collect();
    let seen: Vec<_> = limits.iter().map(|(name, limit)| format!("{} {limit}", &name[4..])).collect();
    let holds = limits.len() == WANTED.len()
        && limits.iter().all(|(_, limit)| limit != "unlimited")
        && matches!(limits[0].1.as_str(), "0" | "1");
    measured("resource limits", seen.join(", "), holds)
}

fn out_of_memory(process: &Process) -> Measured {
    let score = process.read("oom_score_adj").and_then(|text| text.trim().parse::<i32>().ok());
    let Some(score) = score else { return unreadable("out of memory") };
    measured("out of memory", format!("goes before the server (oom_score_adj {score})"), score > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_not_confined_is_not_said_to_be() {
        let found = measure(std::process::id().cast_signed());
        let verdict = |what: &str| found.iter().find(|measured| measured.what == what).unwrap().verdict;
        for what in ["new privileges", "system calls", "namespaces", "resource limits", "mounts"] {
            assert_eq!(verdict(what), Verdict::Broken, "{what}");
        }
        assert_ne!(verdict("host user"), Verdict::Holds);
        assert!(measure(i32::MAX).is_empty());
    }
}
