//! What earlier servers have left: sandboxes that are still at work are taken
//! over, dead ones told from them by facts of the kernel, never by a note that
//! they were running.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use cloister_types::SessionId;
use cloister_types::link::{Command, Enforced, Signal, Spooling, encode};

use crate::host::{exits_and_lifeline, first_signal};
use crate::network::Exits;
use crate::run::{About, PATIENCE, RunFolder, VERSION, boot_id, connect};

/// Sandboxes asked at once.
const SIDE_BY_SIDE: usize = 32;

/// What is left of a sandbox that an earlier server launched.
#[derive(Debug)]
pub enum Left {
    /// It is at work and answers to us now.
    Standing(Box<Standing>),
    /// It is gone, with every process in it; its spools may hold what the log
    /// does not.
    Gone {
        /// Whose it was, if that can be told.
        session: Option<SessionId>,
        /// What it left.
        folder: RunFolder,
    },
    /// A process of it does not end, whatever is done.
    Stuck {
        /// Whose it is.
        session: SessionId,
    },
}

/// A sandbox that was taken over.
#[derive(Debug)]
pub struct Standing {
    /// Whose it is.
    pub session: SessionId,
    /// Frames to and from the supervisor.
    pub link: UnixStream,
    /// The ways out.
    pub exits: Exits,
    /// Ends with the supervisor.
    pub lifeline: OwnedFd,
    /// What holds for it.
    pub enforced: Enforced,
    /// The turn that it is at.
    pub turn: Option<Spooling>,
    /// Its folder.
    pub folder: RunFolder,
}

/// Looks after everything below the run folder, many at a time.
pub(crate) fn survivors(run: &Path) -> std::io::Result<Vec<Left>> {
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(run)? {
        let entry = entry?;
        // What was put aside stays for people to look at.
        if !entry.file_name().to_string_lossy().starts_with("damaged-") {
            folders.push(RunFolder::new(entry.path()));
        }
    }
    let boot = boot_id();
    let share = folders.len().div_ceil(SIDE_BY_SIDE).max(1);
    let mut left = Vec::new();
    std::thread::scope(|scope| {
        let tasks: Vec<_> = folders
            .chunks(share)
            .map(|folders| scope.spawn(|| folders.iter().map(|folder| look_after(folder, &boot)).collect::<Vec<_>>()))
            .collect();
        for task in tasks {
            left.extend(task.join().unwrap_or_default());
        }
    });
    Ok(left)
}

fn look_after(folder: &RunFolder, boot: &str) -> Left {
    let Some(about) = folder.about() else {
        // It never stood, or its description was lost; whoever listens there
        // must not go on beside the next attempt.
        let session = folder.session();
        return match (folder.make_sure_it_is_gone(), session) {
            (false, Some(session)) => Left::Stuck { session },
            (_, session) => Left::Gone { session, folder: folder.clone() },
        };
    };
    let gone = || Left::Gone { session: Some(about.session.clone()), folder: folder.clone() };
    if about.boot != boot {
        return gone();
    }
    if about.version == VERSION
        && let Ok(standing) = adopt(folder, &about)
    {
        return Left::Standing(Box::new(standing));
    }
    // It does not answer. Before anybody else works on its turn, it must be
    // gone for certain: it, and everything inside with its first process.
    if folder.make_sure_it_is_gone() { gone() } else { Left::Stuck { session: about.session.clone() } }
}

fn adopt(folder: &RunFolder, about: &About) -> std::io::Result<Standing> {
    let wrong = |what: &str| std::io::Error::other(what.to_owned());
    let link = connect(folder.path())?;
    let peer = rustix::net::sockopt::socket_peercred(&link)?;
    if peer.pid.as_raw_nonzero().get() != about.supervisor.pid() || !about.supervisor.is_alive() {
        return Err(wrong("another process listens there"));
    }
    link.set_read_timeout(Some(PATIENCE))?;
    link.set_write_timeout(Some(PATIENCE))?;
    let hello = encode(&Command::Adopt { launch: about.launch.clone() }).map_err(std::io::Error::other)?;
    std::io::Write::write_all(&mut &link, &hello)?;
    let (signal, fds) = first_signal(&link)?;
    let (exits, lifeline) = exits_and_lifeline(fds).ok_or_else(|| wrong("descriptors are missing"))?;
    let Signal::Standing { enforced, turn } = signal else { return Err(wrong("an answer that makes no sense")) };
    link.set_read_timeout(None)?;
    link.set_write_timeout(None)?;
    let (session, folder) = (about.session.clone(), folder.clone());
    Ok(Standing { session, link, exits, lifeline, enforced, turn, folder })
}
