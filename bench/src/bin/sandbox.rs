//! Sandboxes beside what a user would start instead: a plain process, and
//! `bwrap`. Rounds alternate, so that a busy machine is busy for all. As root
//! it measures twice, the second time as an ordinary user.

use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use cloister_bench::{median, quantiles};
use cloister_sandbox::confine::Limits;
use cloister_sandbox::files::{Found, View};
use cloister_sandbox::host::{Ground, Host, Launched};
use cloister_sandbox::quota::Allowance;
use cloister_types::link::{Command as Order, Fact, TurnLimits, TurnStart, encode};
use cloister_types::model::{ModelSpec, Wire};
use cloister_types::scope::FileAccess;
use cloister_types::{ResponseId, SessionId, WorkspacePath};

const PROBE: &str = include_str!("../../probe.c");
const ROUNDS: usize = 150;
/// Nobody's, as a rule.
const ORDINARY: u32 = 54_321;
/// Sandboxes that a spawner keeps ready.
const SPARES: usize = 3;
/// Long enough for them to be made again.
const LULL: Duration = Duration::from_millis(40);

struct Bench {
    folder: PathBuf,
    host: Host,
    next: u64,
    /// How the probe is started without any sandbox.
    probe: PathBuf,
}

fn now() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn compile(folder: &Path, name: &str, flags: &[&str]) -> PathBuf {
    let (source, target) = (folder.join("probe.c"), folder.join(name));
    std::fs::write(&source, PROBE).expect("the probe's source");
    let status = Command::new("gcc")
        .args(["-O2", "-static", "-nostdlib", "-fno-stack-protector", "-o"])
        .args([&target, &source])
        .args(flags)
        .status();
    assert!(status.expect("gcc").success(), "the probe does not compile");
    target
}

fn host(folder: &Path, agent: &Path) -> Host {
    let own = std::env::current_exe().expect("the own path");
    Host::start(Ground {
        executable: own.with_file_name("cloister-sandbox"),
        agent: agent.to_owned(),
        workspace: folder.join("workspace"),
        run: folder.join("run"),
        image: None,
        limits: Limits::default(),
        allowance: Allowance::default(),
    })
    .expect("a spawner")
}

fn start(session: &SessionId) -> TurnStart {
    let model = ModelSpec {
        name: "m".into(),
        wire: Wire::AnthropicMessages,
        upstream_model: "m".into(),
        max_output_tokens: 1,
        thinking_tokens: None,
        price: Default::default(),
    };
    TurnStart {
        session_id: session.clone(),
        response_id: ResponseId::from_random([2; 12]),
        attempt: 1,
        next_seq: 1,
        elapsed_ms: 0,
        model,
        model_url: String::new(),
        scripted: false,
        limits: TurnLimits { steps: 1, tokens: 1, spend: None, time_ms: 60_000 },
        context: String::new(),
        memory_hint: false,
        conversation: Vec::new(),
        turn_from: 0,
    }
}

fn scope(paths: usize, also: &str) -> FileAccess {
    let mut write: Vec<String> = (0..paths).map(|n| format!("p{n}")).collect();
    write.extend((!also.is_empty()).then(|| also.to_owned()));
    FileAccess { read: vec![], write }
}

impl Bench {
    fn session(&mut self) -> SessionId {
        self.next += 1;
        let mut id = [0; 6];
        id.copy_from_slice(&self.next.to_be_bytes()[2..]);
        SessionId::from_random(id)
    }

    /// A sandbox on a scope: milliseconds until it stood, and until the probe's
    /// first instruction.
    fn sandbox(&mut self, scope: &FileAccess, view: Option<&View>) -> (f64, f64) {
        let session = self.session();
        let order = encode(&Order::Start(Box::new(start(&session)))).expect("a frame");
        let began = now();
        let built;
        let mut launched = match view {
            Some(view) => self.host.launch(&session, view, &order).expect("a sandbox"),
            None => {
                let (view, launched) = self.host.open(&session, scope, &order).expect("a sandbox");
                built = view;
                let _ = &built;
                launched
            }
        };
        let stood = now();
        launched.link.write_all(&encode(&Order::Begin).expect("a frame")).expect("the link");
        let mut rest = Vec::new();
        let _ = launched.link.read_to_end(&mut rest);
        let spool = launched.folder.spool(&ResponseId::from_random([2; 12]), 1, 0).expect("a spool");
        let facts = spool.expect("a spool").next_facts().expect("facts");
        let cause = facts.iter().find_map(|spooled| match &spooled.fact {
            Fact::Lost { cause } => Some(cause.clone()),
            _ => None,
        });
        let cause = cause.expect("the probe's words");
        let first: f64 =
            cause.rsplit(' ').next().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{cause}"));
        end(launched);
        let _ = self.host.remove_private(&session);
        (stood - began, first / 1e6 - began)
    }

    /// Milliseconds until the probe's first instruction, without a sandbox.
    fn plain(&self) -> f64 {
        let began = now();
        let output = Command::new(&self.probe).stdin(Stdio::null()).stderr(Stdio::null()).output().expect("the probe");
        first(&output.stdout) - began
    }

    fn bwrap(&self) -> f64 {
        let mut command = Command::new("bwrap");
        command.args([
            "--unshare-all",
            "--ro-bind",
            "/usr",
            "/usr",
            "--proc",
            "/proc",
            "--dev",
            "/dev",
            "--tmpfs",
            "/tmp",
        ]);
        command.arg("--bind").arg(&self.folder).args(["/box", "--die-with-parent"]);
        for name in ["bin", "lib", "lib64", "sbin"] {
            if let Ok(target) = std::fs::read_link(Path::new("/").join(name)) {
                command.arg("--symlink").arg(target).arg(format!("/{name}"));
            }
        }
        let began = now();
        let output = command.arg("/box/probe").stdin(Stdio::null()).output().expect("bwrap");
        assert!(output.status.success(), "bwrap: {}", String::from_utf8_lossy(&output.stderr));
        first(&output.stdout) - began
    }
}

fn first(text: &[u8]) -> f64 {
    String::from_utf8_lossy(text).trim().parse::<f64>().expect("nanoseconds") / 1e6
}

fn end(launched: Launched) {
    let Launched { link, exits, lifeline, folder, .. } = launched;
    drop((link, exits, lifeline));
    assert!(folder.see_it_off(), "a sandbox stays");
    folder.remove();
}

fn row(what: &str, values: &mut [f64]) -> f64 {
    let (p50, p99) = quantiles(values);
    println!("| {what} | {p50:.3} | {p99:.3} |");
    p50
}

fn kernel_memory() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
        line.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0)
    };
    ["Slab:", "KernelStack:", "PageTables:", "Percpu:"].map(of).iter().sum()
}

/// Proportional set size in KiB of all processes below this one.
fn user_memory() -> f64 {
    let mut parents: Vec<(u32, u32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1)?.parse().ok());
        parents.extend(parent.map(|parent| (pid, parent)));
    }
    let (mut below, mut total) = (vec![std::process::id()], 0.0);
    while let Some(pid) = below.pop() {
        below.extend(parents.iter().filter(|(_, parent)| *parent == pid).map(|(pid, _)| *pid));
        let smaps = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
        let pss = smaps.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap_or_default();
        total += pss.split_whitespace().next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0);
    }
    total
}

fn launches(bench: &mut Bench) {
    let ten = scope(10, "");
    let view_of = bench.session();
    let whole = bench.host.view(&view_of, &FileAccess::everything()).expect("a view");
    let (mut plain, mut stood, mut pool, mut ready, mut cold, mut boxed) =
        (vec![], vec![], vec![], vec![], vec![], vec![]);
    for n in 0..ROUNDS + 5 {
        std::thread::sleep(LULL);
        let a = bench.plain();
        let (b, c) = bench.sandbox(&ten, None);
        std::thread::sleep(LULL);
        let (d, _) = bench.sandbox(&ten, Some(&whole));
        // Nothing is ready once the spares are used up.
        let used: Vec<Launched> = (0..SPARES)
            .map(|_| {
                let session = bench.session();
                bench.host.launch(&session, &whole, &[]).expect("a sandbox")
            })
            .collect();
        let (_, e) = bench.sandbox(&ten, None);
        used.into_iter().for_each(end);
        std::thread::sleep(LULL);
        let f = bench.bwrap();
        if n >= 5 {
            for (values, value) in
                [(&mut plain, a), (&mut stood, b), (&mut pool, c), (&mut ready, d), (&mut cold, e), (&mut boxed, f)]
            {
                values.push(value);
            }
        }
    }
    println!("\n| ms to the probe's first instruction | p50 | p99 |\n|---|---|---|");
    let plain = row("a plain process (posix_spawn)", &mut plain);
    row("(a ready sandbox stands, its view known)", &mut ready);
    row("(a ready sandbox stands, with a scope of 10 paths)", &mut stood);
    let pool = row("a ready sandbox, with a scope of 10 paths", &mut pool);
    let cold = row("a sandbox with nothing prepared, with a scope of 10 paths", &mut cold);
    let boxed = row("bwrap, all namespaces, one bind", &mut boxed);
    println!(
        "\n* ready {:.1}x a plain process (goal 2.5), nothing prepared {:.1}x (goal 12)",
        pool / plain,
        cold / plain
    );
    println!("* bwrap {:.1}x nothing prepared (goal 2), {:.1}x ready (goal 8)", boxed / cold, boxed / pool);
}

fn scopes(bench: &mut Bench) {
    println!("\n| ms to stand | new scope | seen scope |\n|---|---|---|");
    for (paths, rounds) in [(100, 15), (1000, 11)] {
        let (mut new, mut seen) = (vec![], vec![]);
        for n in 0..rounds {
            std::thread::sleep(LULL);
            let scope = scope(paths, &format!("new{n}"));
            new.push(bench.sandbox(&scope, None).0);
            std::thread::sleep(LULL);
            seen.push(bench.sandbox(&scope, None).0);
        }
        let (new, seen) = (median(&mut new), median(&mut seen));
        println!("| {paths} paths | {new:.2} | {seen:.2} ({:.2} of new; goal 0.25 for 1,000) |", seen / new);
    }
}

fn sustained(bench: &mut Bench) {
    let session = bench.session();
    let view = bench.host.view(&session, &FileAccess::everything()).expect("a view");
    for threads in [1, 2] {
        let (host, view) = (&bench.host, &view);
        let began = Instant::now();
        let counts: Vec<usize> = std::thread::scope(|scope| {
            let run = |thread: u8| {
                let mut count = 0;
                while began.elapsed() < Duration::from_secs(10) {
                    let session = SessionId::from_random([thread, 0, 0, 0, (count >> 8) as u8, count as u8]);
                    end(host.launch(&session, view, &[]).expect("a sandbox"));
                    count += 1;
                }
                count
            };
            let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || run(200 + thread))).collect();
            all.into_iter().map(|thread| thread.join().expect("a thread")).collect()
        });
        let rate = counts.iter().sum::<usize>() as f64 / began.elapsed().as_secs_f64();
        println!("* {rate:.0} sandboxes a second made and destroyed, for 10 s by {threads} thread(s) (goal 500)");
    }
}

fn destroy(bench: &mut Bench) {
    let folder = bench.folder.join("forks");
    std::fs::create_dir_all(&folder).expect("a folder");
    let host = host(&folder, &compile(&bench.folder, "forker", &["-DFORKS=20"]));
    let mut took = vec![];
    for _ in 0..40 {
        let session = bench.session();
        let view = host.view(&session, &FileAccess::everything()).expect("a view");
        let mut launched = host.launch(&session, &view, &[]).expect("a sandbox");
        let order = encode(&Order::Start(Box::new(start(&session)))).expect("a frame");
        launched.link.write_all(&order).expect("the link");
        std::thread::sleep(LULL);
        let began = now();
        launched.link.write_all(&encode(&Order::Stop).expect("a frame")).expect("the link");
        let _ = launched.link.read_to_end(&mut Vec::new());
        end(launched);
        took.push(now() - began);
    }
    let (p50, p99) = quantiles(&mut took);
    println!(
        "* a sandbox with 20 processes is destroyed, supervisor and all, in {p50:.1} ms (p99 {p99:.1}; goal 5, 40)"
    );
    host.stop();
}

fn many(bench: &mut Bench) {
    std::thread::sleep(Duration::from_secs(6));
    let scope = scope(10, "");
    let (user, kernel) = (user_memory(), kernel_memory());
    let all: Vec<_> = (0..1000)
        .map(|_| {
            let session = bench.session();
            let view = bench.host.view(&session, &scope).expect("a view");
            (bench.host.launch(&session, &view, &[]).expect("a sandbox"), view)
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    let (user, kernel) = ((user_memory() - user) / 1024.0, (kernel_memory() - kernel) / 1024.0);
    println!(
        "* 1,000 live sandboxes with 10 paths each: {:.2} GiB ({user:.0} MiB of processes, {kernel:.0} MiB of the kernel's; goal 0.75 GiB)",
        (user + kernel) / 1024.0
    );
    let began = Instant::now();
    let (launched, views): (Vec<_>, Vec<_>) = all.into_iter().unzip();
    for launched in &launched {
        let _ = (&launched.link).write_all(&encode(&Order::Stop).expect("a frame"));
    }
    launched.into_iter().for_each(end);
    drop(views);
    println!("* all 1,000 ended after {:.1} s", began.elapsed().as_secs_f64());
}

fn files(bench: &mut Bench) {
    let session = bench.session();
    let view = bench.host.view(&session, &FileAccess::everything()).expect("a view");
    let path = bench.folder.join("workspace/.memory/file");
    std::fs::write(&path, vec![7; 4096]).expect("a file");
    let _ = std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644));
    let inside = WorkspacePath::parse(b".memory/file").expect("a path");
    // On a thread like those that the server has for the file API.
    let identity = bench.host.identity();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            identity.keep();
            read_through(&view, &path, &inside);
        });
    });
}

fn read_through(view: &View, path: &Path, inside: &WorkspacePath) {
    let (mut through, mut plain) = (vec![], vec![]);
    let mut buffer = [0; 4096];
    for _ in 0..40 {
        let began = now();
        for _ in 0..500 {
            let Ok(Found::File(mut opened)) = view.read(inside) else { panic!("no file") };
            opened.file.read_exact(&mut buffer).expect("4 KiB");
        }
        through.push(now() - began);
        let began = now();
        for _ in 0..500 {
            std::fs::File::open(path).expect("a file").read_exact(&mut buffer).expect("4 KiB");
        }
        plain.push(now() - began);
    }
    let (through, plain) = (median(&mut through) * 2.0, median(&mut plain) * 2.0);
    println!(
        "* a file of 4 KiB opened with its kind checked and read through the view: {through:.1} us, {:.1}x a plain open and read (goal 3)",
        through / plain
    );
}

fn main() {
    let temporary = tempfile::Builder::new().prefix("cloister-bench-").tempdir().expect("a folder");
    let folder = temporary.path().to_owned();
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).expect("permissions");
    let is_root = rustix::process::geteuid().is_root();
    println!("\n## As {}", if is_root { "root" } else { "an ordinary user" });
    let probe = compile(&folder, "probe", &[]);
    let mut bench = Bench { host: host(&folder, &probe), folder: folder.clone(), next: 0, probe };
    // Any of the parts by name, for whoever looks into one.
    let only: Vec<String> = std::env::args().skip(1).collect();
    type Part = (&'static str, fn(&mut Bench));
    let parts: [Part; 6] = [
        ("launches", launches),
        ("sustained", sustained),
        ("destroy", destroy),
        ("files", files),
        ("many", many),
        ("scopes", scopes),
    ];
    for (name, part) in parts {
        if only.is_empty() || only.iter().any(|only| only == name) {
            part(&mut bench);
        }
    }
    bench.host.stop();
    if is_root {
        again_as_a_user(&folder);
    }
}

/// The same, by copies that an ordinary user can reach.
fn again_as_a_user(folder: &Path) {
    let copies = folder.join("copies");
    std::fs::create_dir(&copies).expect("a folder");
    let own = std::env::current_exe().expect("the own path");
    for name in ["sandbox", "cloister-sandbox"] {
        std::fs::copy(own.with_file_name(name), copies.join(name)).expect("a copy");
    }
    let home = folder.join("user");
    std::fs::create_dir(&home).expect("a folder");
    std::os::unix::fs::chown(&home, Some(ORDINARY), Some(ORDINARY)).expect("chown");
    let status = Command::new(copies.join("sandbox"))
        .args(std::env::args().skip(1))
        .env("TMPDIR", &home)
        .uid(ORDINARY)
        .gid(ORDINARY)
        .status();
    assert!(status.expect("this program again").success());
}
