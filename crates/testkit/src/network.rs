//! A network of a test's own, made of namespaces: each is a host with addresses
//! that nobody else has. As root.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

/// A host of its own. It ends when dropped, or when the test does.
pub struct Network {
    holder: Child,
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
        // Ends with its input, which ends with the test.
        let script = "ip link set lo up && echo made && exec cat";
        let mut holder = Command::new("unshare");
        holder.args(["--net", "sh", "-c", script]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = holder.spawn().expect("unshare, of util-linux");
        let mut line = String::new();
        BufReader::new(holder.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        assert_eq!(line.trim(), "made", "a network of one's own takes root, and iproute2");
        Self { holder }
    }

    /// A program to be run on it.
    #[must_use]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/proc/{}/ns/net", self.holder.id())).arg(program);
        command
    }

    /// A cable to another host, by the addresses of both ends, such as
    /// `10.9.1.1/24`.
    pub fn join(&self, own: &str, other: &Self, its: &str) {
        let address = |text: &str| text.split('/').next().unwrap_or_default().replace('.', "-");
        let (here, there) = (format!("t{}", address(own)), format!("t{}", address(its)));
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

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
