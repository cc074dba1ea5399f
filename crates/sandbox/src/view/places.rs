//! Where private folders are mounted: a `.sessions` for each view, which holds
//! that one name. A file system is dear (each takes memory in every control
//! group of the machine), so that many views have theirs in one.

use std::os::fd::OwnedFd;

use rustix::fs::{Mode, mkdirat};

use super::ViewError;
use super::base::PLAIN;
use super::mounts::{clone_mount, handle, tmpfs};
use super::site::{Site, Tree};

/// How many lie in one: as long as one of them is in use, all take memory.
const TOGETHER: usize = 64;
const FOLDER: Mode = Mode::from_raw_mode(0o755);

/// Places still to be given out.
#[derive(Default)]
pub(super) struct Places {
    /// The file system, and how many of it are given out.
    open: Option<(Tree, usize)>,
}

impl Places {
    /// A folder that holds an empty one of this name, as a tree of its own.
    pub(super) fn take(&mut self, site: &Site, name: &[u8]) -> Result<OwnedFd, ViewError> {
        let at = |what: &'static str| ViewError::at(format!("{what} .sessions"));
        let (tree, count) = match self.open.take().filter(|(_, count)| *count < TOGETHER) {
            Some(open) => open,
            None => {
                // Twice what they are: where each has a label, that takes room as well.
                let inodes = (4 * TOGETHER).to_string();
                let tree = tmpfs(&[("size", "16k"), ("nr_inodes", &inodes), ("mode", "0755")], PLAIN);
                (tree.and_then(|tree| site.stand(tree)).map_err(at("make room for"))?, 0)
            }
        };
        let own = count.to_string();
        mkdirat(&tree, &own, FOLDER).map_err(at("make"))?;
        let folder = handle(&tree, &own).map_err(at("open"))?;
        mkdirat(&folder, name, FOLDER).map_err(at("make the mount point in"))?;
        let place = clone_mount(folder, false).map_err(at("take"))?;
        self.open = Some((tree, count + 1));
        Ok(place)
    }
}
