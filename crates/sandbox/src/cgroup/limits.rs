//! Limits of a group, written and read.

use std::fs;
use std::io;
use std::path::Path;

use super::find::{Group, groups_of};
use crate::confine::Limits;

/// Length of the accounting period in microseconds, the kernel's default.
const PERIOD: u64 = 100_000;
/// Of the memory limit, one part in so many may be sockets' buffers.
const SOCKET_SHARE: u64 = 4;

/// Sets what one controller limits.
pub(super) fn set_limit(version: u8, controller: &str, folder: &Path, limits: &Limits) -> io::Result<()> {
    let quota = (limits.cpus * PERIOD as f64) as u64;
    let set = |file: &str, value: String| fs::write(folder.join(file), value);
    match (version, controller) {
        (1, "memory") => {
            set("memory.limit_in_bytes", limits.memory_bytes.to_string())?;
            // Memory of sockets is not in it; swap may be counted, or not be there.
            set("memory.kmem.tcp.limit_in_bytes", (limits.memory_bytes / SOCKET_SHARE).to_string()).or_else(absent)?;
            set("memory.memsw.limit_in_bytes", limits.memory_bytes.to_string()).or_else(absent)
        }
        (1, "pids") | (2, "pids") => set("pids.max", limits.processes.to_string()),
        (1, "cpu") => {
            set("cpu.cfs_period_us", PERIOD.to_string())?;
            set("cpu.cfs_quota_us", quota.to_string())
        }
        (2, "memory") => {
            set("memory.max", limits.memory_bytes.to_string())?;
            set("memory.swap.max", "0".to_owned()).or_else(absent)?;
            set("memory.oom.group", "0".to_owned())
        }
        (2, "cpu") => set("cpu.max", format!("{quota} {PERIOD}")),
        _ => Ok(()),
    }
}

/// What a kernel was built without needs no limit.
fn absent(error: io::Error) -> io::Result<()> {
    if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) }
}

/// The limits that hold for a process, as its groups say now: controller, and
/// limit with its unit.
pub(crate) fn in_force(pid: i32) -> Vec<(&'static str, String)> {
    let mut limits = Vec::new();
    for Group { version, folder, .. } in groups_of(&pid.to_string()).unwrap_or_default() {
        let read = |file: &str| Some(fs::read_to_string(folder.join(file)).ok()?.trim().to_owned());
        let (memory, cpu) = match version {
            1 => {
                let quota = read("cpu.cfs_quota_us").filter(|quota| quota != "-1");
                (read("memory.limit_in_bytes"), quota.zip(read("cpu.cfs_period_us")))
            }
            _ => {
                let cpu = read("cpu.max");
                let cpu = cpu.as_deref().and_then(|cpu| cpu.split_once(' ')).filter(|(quota, _)| *quota != "max");
                (read("memory.max"), cpu.map(|(quota, period)| (quota.to_owned(), period.to_owned())))
            }
        };
        // Version 1 has no word for "no limit": it is a number near 2^63.
        let limited = |limit: &String| limit.parse::<u64>().is_ok_and(|bytes| bytes < 1 << 60);
        limits.extend(memory.filter(limited).map(|bytes| ("memory", format!("{bytes} bytes"))));
        limits.extend(cpu.map(|(quota, period)| ("cpu", format!("{quota} of every {period} µs"))));
        limits.extend(read("pids.max").filter(|most| most != "max").map(|most| ("pids", most)));
    }
    limits
}
