//! After the tests, nothing of ours may be left: no process, no control
//! group, no mount, no namespace (which only processes and mounts keep).

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::run::{Outcome, target};

/// How long the kernel may take to clean up behind killed sandboxes.
const PATIENCE: Duration = Duration::from_secs(10);

/// Everything of Cloister's that exists now.
pub(crate) fn list() -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(pid) = name.to_str().filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())) else { continue };
        let command = fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
        // Only what tests started: somebody may be using Cloister meanwhile.
        if !is_of_tests(&fs::read_link(entry.path().join("exe")).unwrap_or_default()) {
            continue;
        }
        // A zombie has ended; its parent, the machine's first process, is late.
        let ended = fs::read_to_string(entry.path().join("stat")).unwrap_or_default().contains(") Z ");
        if command.starts_with("cloister") && !ended {
            found.insert(format!("process {pid} ({})", command.trim()));
        }
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains("/testkit-")).map(|line| format!("mount {line}")));
    groups(Path::new("/sys/fs/cgroup"), 6, &mut found);
    found
}

fn groups(folder: &Path, depth: usize, found: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(spawner) = name.strip_prefix("cloister-") {
            let executable = fs::read_link(format!("/proc/{spawner}/exe"));
            if executable.is_ok_and(|path| !is_of_tests(&path)) {
                continue;
            }
            found.insert(format!("control group {}", entry.path().display()));
        } else if depth > 0 {
            groups(&entry.path(), depth - 1, found);
        }
    }
}

/// Tests run copies in folders of their own, or what was just built.
fn is_of_tests(executable: &Path) -> bool {
    executable.to_string_lossy().contains("/testkit-") || executable.starts_with(target())
}

/// Fails if anything exists that did not exist before.
pub(crate) fn check(before: &BTreeSet<String>) -> Outcome {
    let began = Instant::now();
    loop {
        let left: Vec<String> = list().difference(before).cloned().collect();
        if left.is_empty() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            return Err(format!("left behind:\n  {}", left.join("\n  ")));
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
