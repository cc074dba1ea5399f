//! A network of a test's own, made of namespaces: each is a host with addresses
//! that nobody else has. As root.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A host of its own. It ends when dropped, or when the test does.
pub struct Network {
    holder: Child,
    /// Does it have mounts of its own?
    mounts: bool,
}

impl Default for Network {
    fn default() -> Self {
        Self::new()
    }
}

impl Network {
    /// A host that reaches itself alone.
    #[must_use]
    pub fn new() -> Self {
        Self::made(&["--net"], None)
    }

    /// The same, with the names in a file of the form of `/etc/hosts` and no others.
    /// Programs are run in the folder `/`.
    #[must_use]
    pub fn with_hosts(hosts: &Path) -> Self {
        Self::made(&["--net", "--mount"], Some(hosts))
    }

    fn made(namespaces: &[&str], hosts: Option<&Path>) -> Self {
        // Ends with its input, which ends with the test.
        let script =
            "if [ $# = 1 ]; then mount --bind \"$1\" /etc/hosts; fi && ip link set lo up && echo made && exec cat";
        let mut holder = Command::new("unshare");
        holder.args(namespaces).args(["sh", "-c", script, "holder"]).args(hosts);
        let mut holder = holder.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("unshare, of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "made", "a network of one's own takes root, and iproute2");
        Self { holder, mounts: hosts.is_some() }
    }

    /// A program to be run on it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let of = |namespace: &str| format!("/proc/{}/ns/{namespace}", self.holder.id());
        command.arg(format!("--net={}", of("net")));
        if self.mounts {
            command.arg(format!("--mount={}", of("mnt")));
        }
        command.arg(program);
        command
    }

    /// A cable to another host, by the addresses of both ends, such as
    /// `10.9.1.1/24`.
    pub fn join(&self, own: &str, other: &Self, its: &str) {
        static CABLES: AtomicU32 = AtomicU32::new(0);
        let cable = CABLES.fetch_add(1, Ordering::Relaxed);
        let (here, there) = (format!("cable{cable}"), format!("cable{cable}-"));
        let peer = other.holder.id().to_string();
        self.ip(&["link", "add", &here, "type", "veth", "peer", "name", &there, "netns", &peer]);
        for (host, name, address) in [(self, &here, own), (other, &there, its)] {
            host.ip(&["address", "add", address, "dev", name]);
            host.ip(&["link", "set", name, "up"]);
        }
    }

    fn ip(&self, arguments: &[&str]) {
        let output = self.command("ip").args(arguments).output().expect("ip, of iproute2");
        assert!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
    }
}

/// A program that a test has started and that ends with it.
pub struct Running(pub Child);

impl Running {
    /// Starts it and waits for a line of what it prints.
    ///
    /// # Panics
    /// It ends without having printed it.
    pub fn until_said(command: &mut Command, line: &str) -> Self {
        let mut started = Self(command.stdout(Stdio::piped()).spawn().expect("a program"));
        let mut output = BufReader::new(started.0.stdout.take().expect("a pipe"));
        let mut said = String::new();
        while output.read_line(&mut said).is_ok_and(|count| count > 0) {
            if said.lines().last() == Some(line) {
                // Whatever else it says is not kept, and does not block it.
                std::thread::spawn(move || std::io::copy(&mut output.by_ref(), &mut std::io::sink()));
                return started;
            }
        }
        panic!("it has ended, and said {said:?}");
    }
}

/// A server that is asked to end when dropped, and takes along what it has started.
pub struct Ended(pub Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = Command::new("kill").arg(self.0.id().to_string()).status();
        let _ = self.0.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
