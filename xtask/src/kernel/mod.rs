//! Tests on the kernel that Debian ships, older than many a developer's, in a
//! virtual machine: views without detached trees, control groups of version 2,
//! project quotas, systemd. It sees this machine's files and changes none of them.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::run::{Outcome, cargo, done, install, target};

const PACKAGES: [&str; 8] =
    ["busybox-static", "cpio", "dbus", "e2fsprogs", "kmod", "qemu-system-x86", "systemd", "xz-utils"];
/// What depends on the present kernel.
const KERNEL: &str = "linux-image-amd64";
/// What the machine needs before it has its files, and what tests use.
const MODULES: [&str; 9] =
    ["virtio_pci", "virtio_blk", "9pnet_virtio", "9p", "ext4", "quota_v2", "overlay", "loop", "btrfs"];
/// Tests that are run if none are named: everything that the kernel decides.
/// Those that count seconds are not: the processor is emulated.
const TESTS: [&str; 9] = [
    "images::",
    "limits::a_memory_hog",
    "limits::limits_hold",
    "probes::",
    "quota::a_file_system",
    "quota::btrfs",
    "scope::",
    "units::they",
    "users::",
];
/// See [`newer_systemd`].
const SYSTEMD: [&str; 3] = ["systemd", "libsystemd-shared", "libsystemd0"];
/// Hundreds of calls of each surface: ten minutes on an emulated processor.
const TOO_LONG: &str = "scope::both_surfaces";
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(25 * 60);
/// Said at the end if all tests passed.
const PASSED: &str = "kernel: all of it passed";

/// Runs the named tests, or those that the kernel decides.
pub(crate) fn run(tests: &[String]) -> Outcome {
    install(&PACKAGES)?;
    done(&mut cargo(&["build", "--quiet", "--workspace", "--bins"]))?;
    let folder = target().join("kernel");
    let machine = folder.join("machine");
    let _ = fs::remove_dir_all(&machine);
    fs::create_dir_all(machine.join("modules")).map_err(|error| format!("{}: {error}", machine.display()))?;
    let kernel = fetch(&folder)?;
    let defaults = TESTS.into_iter().chain(["--skip", TOO_LONG]);
    let tests = if tests.is_empty() { defaults.map(str::to_owned).collect() } else { tests.to_vec() };
    let newer = newer_systemd(&folder).unwrap_or_else(|error| {
        eprintln!("xtask: no newer systemd, so the machine's own is tried instead: {error}");
        Vec::new()
    });
    fill(&machine, &kernel, &second(&program()?, &tests, &newer))?;
    let began = Instant::now();
    let outcome = boot(&folder, &kernel);
    eprintln!("xtask: on {} for {} s", kernel.release, began.elapsed().as_secs());
    outcome
}

struct Kernel {
    folder: PathBuf,
    release: String,
}

/// Downloads and unpacks the kernel; nothing of it is installed.
fn fetch(folder: &Path) -> Result<Kernel, String> {
    let depends = output(Command::new("apt-cache").args(["depends", KERNEL]))?;
    let package = depends.lines().find_map(|line| line.trim().strip_prefix("Depends: "));
    let package = package.ok_or_else(|| format!("{KERNEL} depends on no kernel"))?.to_owned();
    let unpacked = folder.join(&package);
    if !unpacked.join("boot").exists() {
        done(Command::new("apt-get").args(["download", "-q", &package]).current_dir(folder))?;
        let archive = entries(folder)
            .into_iter()
            .find(|path| path.extension().is_some_and(|end| end == "deb") && path.to_string_lossy().contains(&package));
        let archive = archive.ok_or_else(|| format!("{package} was not downloaded"))?;
        done(Command::new("dpkg-deb").arg("-x").args([&archive, &unpacked]))?;
    }
    let release = entries(&unpacked.join("lib/modules")).into_iter().find_map(|path| path.file_name().map(Into::into));
    let release: std::ffi::OsString = release.ok_or_else(|| format!("{package} has no modules"))?;
    let release = release.to_string_lossy().into_owned();
    done(system("depmod").arg("-b").arg(&unpacked).arg(&release))?;
    Ok(Kernel { folder: unpacked, release })
}

/// Packages of a systemd that can start services below their own groups (254), from
/// Debian's backports; none are needed where this machine has one.
fn newer_systemd(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let version = output(Command::new("/lib/systemd/systemd").arg("--version"))?;
    if version.split_whitespace().nth(1).and_then(|number| number.parse().ok()).unwrap_or(0) >= 254 {
        return Ok(Vec::new());
    }
    let folder = folder.join("systemd");
    let debs = || -> Vec<PathBuf> {
        entries(&folder).into_iter().filter(|path| path.extension().is_some_and(|end| end == "deb")).collect()
    };
    if debs().len() < SYSTEMD.len() {
        fs::create_dir_all(folder.join("lists")).map_err(|error| format!("{}: {error}", folder.display()))?;
        // Where this machine has its packages from.
        let targets = ["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(COMPONENT)", "Created-By: Packages"];
        let known = output(Command::new("apt-get").args(targets))?;
        let archive = known.lines().find_map(|line| line.strip_suffix(" main")).ok_or("no archive is known")?;
        let backports = format!("{}-backports", archive.rsplit(' ').next().unwrap_or_default());
        let list = folder.join("backports.list");
        fs::write(&list, format!("deb {archive}-backports main\n"))
            .map_err(|error| format!("{}: {error}", list.display()))?;
        let apt = || {
            let mut apt = Command::new("apt-get");
            apt.arg("-q").arg("-o").arg(format!("Dir::Etc::sourcelist={}", list.display()));
            apt.args(["-o", "Dir::Etc::sourceparts=-", "-o"])
                .arg(format!("Dir::State::lists={}/lists", folder.display()));
            apt.current_dir(&folder);
            apt
        };
        done(apt().arg("update"))?;
        done(apt().args(["-t", &backports, "download"]).args(SYSTEMD))?;
    }
    Ok(debs())
}

/// A program that ordinary users do not find by themselves.
fn system(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin");
    command
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn output(command: &mut Command) -> Result<String, String> {
    let shown = format!("{command:?}");
    match command.stderr(Stdio::inherit()).output() {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => Err(format!("{shown}: {}", output.status)),
        Err(error) => Err(format!("{shown}: {error}")),
    }
}

/// The test program of the whole stack.
fn program() -> Result<PathBuf, String> {
    // With all others: alone, it would be built once more, with other features.
    let arguments = ["test", "--workspace", "--test", "it", "--no-run", "--message-format=json"];
    let said = output(&mut cargo(&arguments))?;
    let built = said.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let is_ours = |message: &serde_json::Value| {
        let source = message["target"]["src_path"].as_str().unwrap_or_default();
        message["target"]["name"] == "it" && source.ends_with("crates/cli/tests/it/main.rs")
    };
    let mut programs = built.filter(is_ours);
    let found = programs.find_map(|message| message["executable"].as_str().map(PathBuf::from));
    found.ok_or_else(|| "cargo names no test program".to_owned())
}

/// What the machine does when it has its files: first the tests that need nothing but
/// the kernel, then, with systemd in charge, those of its units.
fn second(program: &Path, tests: &[String], newer: &[PathBuf]) -> String {
    let program = program.display();
    let (under_systemd, alone): (Vec<&str>, Vec<&str>) =
        tests.iter().map(String::as_str).partition(|test| test.starts_with("units::"));
    let mut steps =
        "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tests\n\
                     off() { sync; echo o > /proc/sysrq-trigger; while :; do sleep 60; done; }\n\
                     uname -r\n"
            .to_owned();
    if !alone.is_empty() {
        steps += &format!("'{program}' {} || off\n", alone.join(" "));
    }
    if under_systemd.is_empty() {
        return steps + &format!("echo '{PASSED}'\noff\n");
    }
    let unit = format!(
        "[Unit]\nWants=dbus.socket\nAfter=dbus.socket\nSuccessAction=poweroff-force\nFailureAction=poweroff-force\n[Service]\nType=exec\n\
         Environment=HOME=/root TMPDIR=/tests CLOISTER_OWN_MACHINE=1\n\
         ExecStart=/bin/sh -c \"('{program}' --ignored {} && echo '{PASSED}'; sync) > /dev/console 2>&1\"\n",
        under_systemd.join(" ")
    );
    // The host's disks are not this machine's, nor is it a container if the host is one.
    steps += ": > /etc/fstab; rm -f /.dockerenv /run/.containerenv\n";
    // What this was built from may lie in /tmp, which systemd would empty.
    steps += "mkdir -p /etc/tmpfiles.d\n\
              ln -sf /dev/null /etc/tmpfiles.d/tmp.conf; ln -sf /dev/null /etc/systemd/system/tmp.mount\n";
    for deb in newer {
        // `/lib` is a link, and stays one.
        steps +=
            &format!("dpkg-deb --fsys-tarfile '{}' | tar -x --keep-directory-symlink -C / || off\n", deb.display());
    }
    steps += &format!("cat > /etc/systemd/system/cloister-tests.service << 'END'\n{unit}END\n");
    steps + "exec /lib/systemd/systemd --unit=cloister-tests.service --show-status=no\n"
}

/// Makes the files that the machine starts with.
fn fill(machine: &Path, kernel: &Kernel, second: &str) -> Outcome {
    let failed = |error: std::io::Error| format!("{}: {error}", machine.display());
    let mut order = String::new();
    for module in MODULES {
        let mut command = system("modprobe");
        command.arg("-d").arg(&kernel.folder).args(["-S", &kernel.release, "--show-depends", module]);
        for path in output(&mut command)?.lines().filter_map(|line| line.strip_prefix("insmod ")) {
            let path = Path::new(path.trim());
            let packed = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            let name = packed.trim_end_matches(".xz").to_owned();
            if order.lines().any(|line| line == name) {
                continue;
            }
            fs::copy(path, machine.join("modules").join(&packed)).map_err(failed)?;
            if packed != name {
                done(Command::new("xz").arg("-d").arg(machine.join("modules").join(packed)))?;
            }
            order += &format!("{name}\n");
        }
    }
    fs::write(machine.join("modules/order"), order).map_err(failed)?;
    for folder in ["bin", "dev", "proc"] {
        fs::create_dir(machine.join(folder)).map_err(failed)?;
    }
    fs::copy("/bin/busybox", machine.join("bin/busybox")).map_err(failed)?;
    fs::write(machine.join("init"), include_str!("first.sh")).map_err(failed)?;
    fs::write(machine.join("second.sh"), second).map_err(failed)?;
    let pack = "chmod +x init && find . | cpio -o -H newc --quiet > ../machine.cpio";
    done(Command::new("sh").args(["-c", pack]).current_dir(machine))
}

/// Starts the machine, shows what it says, and waits for its end.
fn boot(folder: &Path, kernel: &Kernel) -> Outcome {
    let disk = folder.join("disk");
    let _ = fs::remove_file(&disk);
    let made = fs::File::create(&disk).and_then(|file| file.set_len(6 << 30));
    made.map_err(|error| format!("{}: {error}", disk.display()))?;
    done(system("mke2fs").args(["-q", "-t", "ext4"]).arg(&disk))?;
    let mut command = Command::new("qemu-system-x86_64");
    command.args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2", "-m", "6G", "-nodefaults"]);
    command.args(["-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(kernel.folder.join(format!("boot/vmlinuz-{}", kernel.release)));
    command.arg("-initrd").arg(folder.join("machine.cpio"));
    command.args(["-append", "console=ttyS0 panic=-1 quiet mitigations=off"]);
    command.args(["-fsdev", "local,id=host,path=/,security_model=none,readonly=on,multidevs=remap"]);
    command.args(["-device", "virtio-9p-pci,fsdev=host,mount_tag=host"]);
    command.arg("-drive").arg(format!("file={},format=raw,if=virtio,cache=unsafe", disk.display()));
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("qemu-system-x86_64: {error}"))?;
    let passed = listen(&mut child);
    let _ = fs::remove_file(&disk);
    if passed { Ok(()) } else { Err(format!("tests failed on {}", kernel.release)) }
}

/// Did the machine say that all passed before its time was over?
fn listen(child: &mut Child) -> bool {
    let said = child.stdout.take().map(|out| {
        std::thread::spawn(move || {
            let (mut passed, mut some, mut none) = (false, false, false);
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                passed |= line == PASSED;
                some |= line.contains(" passed;");
                none |= line.contains(" 0 passed;");
                println!("{line}");
            }
            passed && some && !none
        })
    });
    let began = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > PATIENCE {
            let _ = child.kill();
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    said.is_some_and(|said| said.join().unwrap_or(false))
}
