//! Faults in every system call that builds and confines a sandbox: either it is
//! refused, or it is as confined as any; and nothing is left. `CLOISTER_FAULTS`
//! for more of them than a sample (root alone: others may not trace what has
//! closed itself).

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use cloister_sandbox::host::{Host, HostError};
use cloister_types::link::{Command, Fact, encode};
use cloister_types::scope::FileAccess;
use cloister_types::{ResponseId, SessionId};

use crate::stand::{ground, start};

/// Says how it is held.
const AGENT: &str = r#"#!/bin/sh
{
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t'
echo "user $(id -u) $(id -g)"
echo "files $(ls -A | tr '\n' ' ')"
for escape in 'touch ro/x' 'cat secret' 'ls /etc/shadow' 'ls /sys/kernel' 'ls /home' 'unshare -U true' 'mount -t tmpfs x /tmp' \
    'touch /usr/x' 'hostname x' 'ls .sessions/other' 'chroot /tmp true' 'setpriv --reuid=0 true'; do
    $escape >/dev/null 2>&1 && echo "ESCAPED by $escape"
done
echo "nproc $(ls -d /proc/[0-9]* | wc -l | awk '{ print ($1 < 20) }') core $(ulimit -c) net $(tail -n +3 /proc/self/net/dev | wc -l)"
} > .memory/report 2>&1
"#;

/// What it says if all holds.
const HELD: &str = "CapInh:0000000000000000\nCapPrm:0000000000000000\nCapEff:0000000000000000\nCapBnd:0000000000000000\n\
                    CapAmb:0000000000000000\nNoNewPrivs:1\nSeccomp:2\nuser 1000 1000\nfiles .memory .sessions ro rw \nnproc 1 core 0 net 1\n";

/// Calls that build or confine, and how many of each are looked at.
const CALLS: [(&str, usize); 41] = [
    ("openat", 40),
    ("unshare", 3),
    ("clone3", 6),
    ("setns", 4),
    ("fsopen", 9),
    ("fsconfig", 40),
    ("fsmount", 9),
    ("open_tree", 40),
    ("mount_setattr", 30),
    ("move_mount", 40),
    ("chroot", 1),
    ("eventfd2", 3),
    ("fchdir", 2),
    ("fspick", 1),
    ("pivot_root", 1),
    ("umount2", 1),
    ("mount", 2),
    ("prctl", 90),
    ("seccomp", 2),
    ("capset", 4),
    ("landlock_create_ruleset", 4),
    ("landlock_add_rule", 5),
    ("landlock_restrict_self", 1),
    ("prlimit64", 20),
    ("setresuid", 2),
    ("setresgid", 2),
    ("setgroups", 1),
    ("setfsuid", 8),
    ("setfsgid", 8),
    ("setsid", 3),
    ("sethostname", 1),
    ("setdomainname", 1),
    ("write", 30),
    ("mkdirat", 40),
    ("mknodat", 10),
    ("symlinkat", 10),
    ("bind", 3),
    ("listen", 3),
    ("socketpair", 8),
    ("dup3", 12),
    ("openat2", 60),
];
const ERRORS: [&str; 4] = ["EPERM", "ENOMEM", "ENOSPC", "EMFILE"];

/// Processes that run a copy of the executable in `folder`.
fn processes(folder: &Path) -> Vec<PathBuf> {
    let all = std::fs::read_dir("/proc").unwrap().flatten().map(|entry| entry.path());
    all.filter(|path| std::fs::read_link(path.join("exe")).is_ok_and(|exe| exe.starts_with(folder))).collect()
}

/// One run; what it came to.
fn run(call: &str, which: usize, error: &str) -> String {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    let executable = |name: &str, text: &str| {
        std::fs::write(path(name), text).unwrap();
        std::fs::set_permissions(path(name), std::fs::Permissions::from_mode(0o755)).unwrap();
    };
    std::fs::create_dir_all(path("workspace")).unwrap();
    for name in ["ro", "rw", "secret"] {
        std::fs::create_dir(path("workspace").join(name)).unwrap();
    }
    let real = path("real");
    std::fs::copy(env!("CARGO_BIN_EXE_cloister-sandbox"), &real).unwrap();
    let inject = format!("-e trace={call} -e inject={call}:error={error}:when={which}");
    executable("agent", AGENT);
    executable(
        "traced",
        &format!("#!/bin/sh\nexec /usr/bin/strace -f -qq -o /dev/null {inject} -- {} \"$@\"\n", real.display()),
    );
    let began = Instant::now();
    let outcome = sandbox(folder.path(), error);
    assert!(began.elapsed() < Duration::from_secs(20), "{call} {which} {error}: {:?}", began.elapsed());
    while !processes(folder.path()).is_empty() {
        assert!(
            began.elapsed() < Duration::from_secs(30),
            "{call} {which} {error}: {:?} are left",
            processes(folder.path())
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    outcome
}

fn sandbox(folder: &Path, error: &str) -> String {
    let said = |error: HostError| match error {
        HostError::Refused { message, .. } => format!("refused: {message}"),
        HostError::Scope(message) => format!("scope: {message}"),
        HostError::Gone(error) => format!("gone: {error}"),
    };
    let host = match Host::start(ground(folder.join("traced"), folder.join("agent"), folder)) {
        Ok(host) => host,
        Err(error) => return said(error),
    };
    let session = SessionId::from_random([1; 6]);
    let access = FileAccess { read: vec!["ro".into()], write: vec!["rw".into()] };
    let order = encode(&Command::Start(Box::new(start(&session)))).unwrap();
    let (_view, mut launched) = match host.open(&session, &access, &order) {
        Ok(opened) => opened,
        Err(error) => return said(error),
    };
    let _ = launched.link.write_all(&encode(&Command::Begin).unwrap());
    let _ = launched.link.read_to_end(&mut Vec::new());
    let report = std::fs::read_to_string(folder.join("workspace/.memory/report"));
    let spool = launched.folder.spool(&ResponseId::from_random([2; 12]), 1, 0);
    let cause = spool.ok().flatten().and_then(|mut spool| spool.next_facts().ok());
    let cause = cause.and_then(|facts| match &facts.first()?.fact {
        Fact::Lost { cause } => Some(cause.clone()),
        _ => None,
    });
    assert!(launched.folder.make_sure_it_is_gone());
    // What a machine enforces is found out once, and no fault makes it less.
    static ENFORCED: std::sync::OnceLock<cloister_types::link::Enforced> = std::sync::OnceLock::new();
    match report {
        // The fault met the agent's own shell: the tracer puts an invalid call
        // in the place of a failing one, which the filter kills.
        Ok(report) if report.contains("Bad system call") => {
            assert!(!report.contains("ESCAPED"), "{report}");
            "lost: the agent met it".into()
        }
        // Or its supervisor, which ended while the agent came up.
        Ok(report) if report != HELD && HELD.starts_with(&report) => "lost: before the agent had its say".into(),
        Ok(report) => {
            assert_eq!(report, HELD, "not as it must be");
            let usual = ENFORCED.get_or_init(|| launched.enforced.clone());
            // EPERM is the kernel's word for a workspace that cannot be shown as
            // another user's; then that is what is said.
            let host_user = match (error, launched.enforced.host_user.as_str()) {
                ("EPERM", "tenant") => "tenant".to_owned(),
                _ => usual.host_user.clone(),
            };
            assert_eq!(launched.enforced, cloister_types::link::Enforced { host_user, ..usual.clone() });
            "held".into()
        }
        Err(_) => format!("lost: {cause:?}"),
    }
}

#[test]
fn a_fault_in_any_call_of_the_builder_refuses_or_changes_nothing() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("SKIPPED: faults can be injected by root alone");
        return;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // The harness itself: without a fault that meets anything, all holds.
    assert_eq!(run("acct", 1, "EPERM"), "held");
    let all: Vec<(&str, usize)> =
        CALLS.iter().flat_map(|(call, count)| (1..=*count).map(move |which| (*call, which))).collect();
    let most = std::env::var("CLOISTER_FAULTS").ok().and_then(|text| text.parse().ok()).unwrap_or(60usize);
    let step = (all.len() / most).max(1);
    let offset = std::process::id() as usize % step;
    let mut outcomes = std::collections::BTreeMap::<&str, usize>::new();
    for (n, (call, which)) in all.iter().enumerate().skip(offset).step_by(step) {
        let error = ERRORS[n / step % ERRORS.len()];
        let outcome = run(call, *which, error);
        let kind =
            ["held", "refused", "lost", "gone", "scope"].into_iter().find(|kind| outcome.starts_with(kind)).unwrap();
        eprintln!("{call} {which} {error}: {outcome}");
        *outcomes.entry(kind).or_default() += 1;
    }
    eprintln!("{outcomes:?}");
    assert!(outcomes.get("refused").is_some_and(|count| *count > 0), "nothing was refused: {outcomes:?}");
    assert_eq!(std::fs::read_to_string("/proc/self/mountinfo").unwrap(), mounts);
}
