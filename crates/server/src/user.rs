//! The operating system's user of a tenant. Whatever opens the tenant's data as
//! root becomes that user first, and for good: a fault in one tenant's server is
//! then no way to another's data.

use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::process::{Gid, Uid, geteuid};
use serde::{Deserialize, Serialize};

use crate::ServerError;
use crate::config::Config;
use crate::stamp::Stamp;

/// A user by its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostUser {
    /// Of the user.
    pub uid: u32,
    /// Of its group.
    pub gid: u32,
}

impl FromStr for HostUser {
    type Err = String;

    /// A name of `/etc/passwd`, or a number, whose group is the same if nobody has
    /// it.
    fn from_str(text: &str) -> Result<Self, String> {
        let known = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
        let number = text.parse::<u32>().ok();
        let found = known.lines().find_map(|line| {
            let mut fields = line.split(':');
            let (name, uid, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
            (name == text || number == Some(uid)).then_some(Self { uid, gid })
        });
        let user =
            found.or(number.map(|uid| Self { uid, gid: uid })).ok_or_else(|| format!("no user is called {text:?}"))?;
        if user.uid == 0 || user.uid == u32::MAX { Err("a tenant's user is not root".into()) } else { Ok(user) }
    }
}

impl HostUser {
    /// Gives a file or a folder to it, with all that is in it.
    pub(crate) fn own(self, path: &Path) -> std::io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))?;
        if std::fs::symlink_metadata(path)?.is_dir() {
            for entry in std::fs::read_dir(path)? {
                self.own(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// Becomes it, and begins this program anew as it: nothing that root had is
    /// left in memory.
    fn become_it(self) -> ServerError {
        let (user, group) = (Uid::from_raw(self.uid), Gid::from_raw(self.gid));
        let became = rustix::thread::set_thread_groups(&[])
            .and_then(|()| rustix::thread::set_thread_res_gid(group, group, group))
            .and_then(|()| rustix::thread::set_thread_res_uid(user, user, user));
        if let Err(error) = became {
            return ServerError::Start(format!("become user {}: {error}", self.uid));
        }
        let this = std::env::current_exe().unwrap_or_else(|_| PathBuf::from("cloister"));
        let error = std::process::Command::new(&this).args(std::env::args_os().skip(1)).exec();
        ServerError::Start(format!("user {} cannot run {}: {error}", self.uid, this.display()))
    }
}

/// Becomes the user of the tenant whose data is about to be opened, if it has one
/// of its own. Called before any thread exists.
///
/// # Errors
/// It has, and this is neither that user nor root; or the configuration cannot be
/// read.
pub fn become_owner(config: Option<&Path>, data: Option<&Path>) -> Result<(), ServerError> {
    let data = match (data, config) {
        (Some(data), _) => data.to_owned(),
        (None, Some(config)) => match Config::read(config)?.data {
            Some(data) => data,
            None => return Ok(()),
        },
        (None, None) => return Ok(()),
    };
    // What cannot even be looked at is somebody else's; opening it says so.
    let Ok(folder) = std::fs::metadata(&data) else { return Ok(()) };
    let stamped = Stamp::read(&data).ok().flatten().and_then(|stamp| stamp.user);
    let owner = HostUser { uid: folder.uid(), gid: folder.gid() };
    let other = |uid: u32| Err(ServerError::Start(format!("{} is user {uid}'s", data.display())));
    match (geteuid().as_raw(), stamped) {
        // What its user has written into it does not make root stay, nor anybody else.
        (0, Some(user)) if owner.uid != 0 && user.uid != owner.uid => other(owner.uid),
        (0, _) if owner.uid != 0 => Err(owner.become_it()),
        (0, Some(user)) => Err(user.become_it()),
        (uid, Some(user)) if uid != user.uid => other(user.uid),
        _ => Ok(()),
    }
}
