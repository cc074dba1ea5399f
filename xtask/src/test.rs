//! Everything that CI runs.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;
use std::process::Stdio;
use std::time::Instant;

use crate::run::{Outcome, cargo, done, install};
use crate::{docs, kernel, leftovers, peers, tidy};

/// `unicode-data` is the real data set of a test; probes are Python; `procps`
/// finds processes; `faketime` sets clocks; `busybox-static` makes an image;
/// `strace` injects faults; `chromium` is whom people sign in with; `haproxy` and
/// `nginx` stand before tenants, `iproute2` connects hosts; `testssl.sh` judges TLS, `systemd` units; the others make and mount disks.
const PACKAGES: [&str; 24] = [
    "btrfs-progs",
    "busybox-static",
    "chromium",
    "curl",
    "e2fsprogs",
    "faketime",
    "haproxy",
    "iproute2",
    "libnginx-mod-stream",
    "mount",
    "nginx-light",
    "openssl",
    "procps",
    "python3",
    "python3-aiohttp",
    "python3-grpcio",
    "python3-httpx",
    "python3-pip",
    "python3-requests",
    "python3-venv",
    "strace",
    "systemd",
    "testssl.sh",
    "unicode-data",
];
/// Tool chains that must work in a sandbox, where it sees them (`g++` builds the
/// fuzzer): a program, and the package that has it if the machine has no other.
const TOOLCHAINS: [(&str, &str); 8] = [
    ("/usr/bin/cargo", "cargo"),
    ("/usr/bin/g++", "g++"),
    ("/usr/bin/gcc", "gcc"),
    ("/usr/bin/git", "git"),
    ("/usr/bin/go", "golang-go"),
    ("/usr/bin/javac", "default-jdk-headless"),
    ("/usr/bin/node", "nodejs"),
    ("/usr/bin/npm", "npm"),
];

pub(crate) fn run() -> Outcome {
    let missing = TOOLCHAINS.iter().filter(|(program, _)| !std::path::Path::new(program).exists());
    let packages: Vec<&str> = PACKAGES.into_iter().chain(missing.map(|(_, package)| *package)).collect();
    install(&packages)?;
    let mut steps = Steps::default();
    let mut doc = cargo(&["doc", "--quiet", "--workspace", "--no-deps"]);
    doc.env("RUSTDOCFLAGS", "-D warnings");
    steps.ended("format", done(&mut cargo(&["fmt", "--all", "--", "--check"])))?;
    steps.ended("tidy", tidy::run())?;
    steps.ended("reference", docs::check())?;
    steps.ended("build", done(&mut cargo(&["build", "--quiet", "--workspace", "--all-targets"])))?;
    let clippy = &["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"];
    steps.ended("lints", done(&mut cargo(clippy)))?;
    // Of the whole workspace: of one crate, its dependencies would be checked once more.
    let bare = &["clippy", "--quiet", "--workspace", "--no-default-features", "--", "-D", "warnings"];
    steps.ended("lints without features", done(&mut cargo(bare)))?;
    steps.ended("docs", done(&mut doc))?;
    steps.ended("peers", peers::install())?;
    let before = leftovers::list();
    let mut count = Count::default();
    steps.ended("tests", in_folder_of_its_own(&mut count))?;
    steps.ended("nothing left behind", leftovers::check(&before))?;
    steps.ended("older kernel", kernel::run(&[]))?;
    eprintln!("xtask: all of it passed in {} s", steps.began.elapsed().as_secs());
    println!("{} passed, {} failed", count.passed, count.failed);
    Ok(())
}

/// What was done, and how long it took.
struct Steps {
    began: Instant,
    last: Instant,
}

impl Default for Steps {
    fn default() -> Self {
        let now = Instant::now();
        Self { began: now, last: now }
    }
}

impl Steps {
    fn ended(&mut self, name: &str, outcome: Outcome) -> Outcome {
        let result = if outcome.is_ok() { "ok" } else { "FAILED" };
        eprintln!("xtask: {name}: {result}, {} s", self.last.elapsed().as_secs());
        self.last = Instant::now();
        outcome
    }
}

/// What all test programs together say.
#[derive(Default)]
struct Count {
    passed: u64,
    failed: u64,
}

/// Gives the tests a folder for their files, which any user may enter, and
/// takes it away again.
fn in_folder_of_its_own(count: &mut Count) -> Outcome {
    let folder = std::env::temp_dir().join(format!("testkit-run-{}", std::process::id()));
    let made = std::fs::DirBuilder::new().mode(0o777).create(&folder);
    let opened = made.and_then(|()| std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o1777)));
    opened.map_err(|error| format!("{}: {error}", folder.display()))?;
    let outcome = tests(count, &folder);
    let _ = std::fs::remove_dir_all(&folder);
    outcome
}

/// A line of a backtrace: they hide what a test said.
fn is_frame(line: &str) -> bool {
    let line = line.trim_start();
    let number = line.split(':').next().unwrap_or_default();
    line.starts_with("at ") || (!number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// Runs all tests, shows what they print, and adds up their results.
fn tests(count: &mut Count, folder: &Path) -> Outcome {
    let mut command = cargo(&["test", "--workspace", "--no-fail-fast"]);
    command.env("TMPDIR", folder);
    // Most of them wait more than they compute.
    if std::env::var_os("RUST_TEST_THREADS").is_none() {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        command.env("RUST_TEST_THREADS", (processors * 2).to_string());
    }
    let mut child = command.stdout(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    let (mut reasons, mut failing) = (Vec::new(), false);
    for line in child.stdout.take().into_iter().flat_map(|out| BufReader::new(out).lines()) {
        let line = line.map_err(|error| error.to_string())?;
        println!("{line}");
        failing = (failing || line == "failures:") && !line.starts_with("test result: ");
        reasons.extend((failing && !is_frame(&line)).then(|| line.clone()));
        if let Some(result) = line.strip_prefix("test result: ") {
            let number = |word: &str| -> u64 {
                let before = result.split(word).next().unwrap_or_default();
                before.split_whitespace().last().and_then(|number| number.parse().ok()).unwrap_or_default()
            };
            count.passed += number(" passed;");
            count.failed += number(" failed;");
        }
    }
    let status = child.wait().map_err(|error| error.to_string())?;
    if !status.success() || count.failed > 0 {
        // Once more at the end, where whoever looks for it looks first.
        eprintln!("{}", reasons.join("\n"));
        return Err(format!("{} tests failed ({status})", count.failed));
    }
    if count.passed == 0 { Err("no test ran".into()) } else { Ok(()) }
}
