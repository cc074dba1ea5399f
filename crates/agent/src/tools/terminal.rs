//! A terminal for programs that want one: made in the sandbox, so that it
//! leads to nothing outside.

use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};
use tokio::sync::mpsc;

use super::bash::shell;

/// This program's own path; it cannot ask `/proc` for it, being undumpable.
const AGENT: &str = "/opt/sandbox/bin/cloister-agent";
/// What starts it in an image, where it brings its own C library.
const LOADER: &str = "/opt/sandbox/lib/loader";
const LIBRARIES: &str = "/opt/sandbox/lib";
/// First argument with which it only leads a terminal.
pub(crate) const LEAD: &str = "lead-terminal";
/// What programs find; wide enough for tables.
const SIZE: Winsize = Winsize { ws_row: 40, ws_col: 120, ws_xpixel: 0, ws_ypixel: 0 };
/// Longest line that a terminal takes (`N_TTY_BUF_SIZE` of the kernel, less its end).
pub(super) const LINE: usize = 4095;
/// What a person types to end the input.
const END_OF_INPUT: u8 = 4;

/// A terminal, from the side that reads. A thread does it, as terminals do not
/// tell when there is something to read in a way that safe code could wait for.
pub(super) struct Terminal {
    heard: mpsc::Receiver<Vec<u8>>,
    /// Open for as long as the call lasts: a program may let go of its terminal
    /// before it ends, and would be hung up on.
    _ours: Arc<OwnedFd>,
}

impl Terminal {
    /// Makes one, and prepares `command` to run on it. `input` is typed in
    /// advance, and after it the end of the input.
    pub(super) fn open(command: &str, input: &str) -> std::io::Result<(Self, Command)> {
        let ours = Arc::new(openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?);
        grantpt(&ours)?;
        unlockpt(&ours)?;
        let theirs = ioctl_tiocgptpeer(&ours, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
        tcsetwinsize(&theirs, SIZE)?;
        let mut modes = tcgetattr(&theirs)?;
        // Lines end as everywhere else in results.
        modes.output_modes -= OutputModes::ONLCR;
        tcsetattr(&theirs, OptionalActions::Now, &modes)?;
        type_in(ours.clone(), input);
        let mut leader = own_program();
        leader.args([LEAD, shell(), "-c", command]).env("TERM", "xterm-256color");
        let stdio = || theirs.try_clone().map(Stdio::from);
        leader.stdin(stdio()?).stdout(stdio()?).stderr(stdio()?);
        let (said, heard) = mpsc::channel(1);
        let read_from = ours.clone();
        std::thread::spawn(move || {
            let mut buffer = vec![0; super::bash::PIECE];
            // Once nobody has the terminal any more, reading it fails.
            while let Ok(got @ 1..) = rustix::io::retry_on_intr(|| rustix::io::read(&read_from, &mut *buffer)) {
                if said.blocking_send(buffer[..got].to_vec()).is_err() {
                    break;
                }
            }
        });
        Ok((Self { heard, _ours: ours }, leader))
    }

    /// What the programs print next; `None` once none of them has it any more.
    pub(super) async fn read(&mut self) -> Option<Vec<u8>> {
        self.heard.recv().await
    }
}

fn own_program() -> Command {
    if !Path::new(LOADER).exists() {
        return Command::new(AGENT);
    }
    let mut program = Command::new(LOADER);
    program.args(["--library-path", LIBRARIES, "--argv0", AGENT, AGENT]);
    program
}

/// Types while the program reads, in a thread of its own: a terminal takes no
/// more than some kilobytes in advance. It ends with the terminal at the latest.
fn type_in(terminal: Arc<OwnedFd>, input: &str) {
    let mut text = input.as_bytes().to_vec();
    // In the middle of a line, what ends the input only hands the line over.
    let ends = if text.is_empty() || text.ends_with(b"\n") { 1 } else { 2 };
    text.extend([END_OF_INPUT].repeat(ends));
    std::thread::spawn(move || {
        let mut rest = text.as_slice();
        while let Ok(done @ 1..) = rustix::io::retry_on_intr(|| rustix::io::write(&terminal, rest)) {
            rest = &rest[done..];
        }
    });
}

/// Is there a line that a terminal would cut off?
pub(super) fn is_too_long(input: &str) -> bool {
    input.split('\n').any(|line| line.len() > LINE)
}

/// Becomes the leader of a session on the terminal that is standard input,
/// and then the program. Returns only if that fails.
pub(crate) fn lead(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> std::io::Error {
    let Some(program) = arguments.next() else { return std::io::ErrorKind::InvalidInput.into() };
    if let Err(errno) = rustix::process::setsid().and_then(|_| rustix::process::ioctl_tiocsctty(rustix::stdio::stdin()))
    {
        return errno.into();
    }
    Command::new(program).args(arguments).exec()
}
