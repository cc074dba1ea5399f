//! Space kept back for the day on which the disk is full: given up then, so
//! that turns can still be ended and sessions deleted, and taken again as soon
//! as there is room. While it is gone, nothing new is begun.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Bytes kept back. The end of a turn takes a few pages; a thousand turns end
/// with this.
const BYTES: u64 = 16 << 20;

/// The file that takes the space.
#[derive(Debug)]
pub(crate) struct Reserve {
    path: PathBuf,
    released: AtomicBool,
}

impl Reserve {
    /// Takes the space beside the database, or notes that there is none.
    pub(crate) fn take(database: &Path) -> Self {
        let mut path = database.as_os_str().to_owned();
        path.push("-reserve");
        let reserve = Self { path: path.into(), released: AtomicBool::new(true) };
        reserve.restore();
        reserve
    }

    pub(crate) fn is_released(&self) -> bool {
        self.released.load(Ordering::Acquire)
    }

    /// Gives the space up; false if that was done before.
    pub(crate) fn release(&self) -> bool {
        if self.released.swap(true, Ordering::AcqRel) {
            return false;
        }
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::error!(%error, "the reserve cannot be removed");
        }
        true
    }

    /// Takes the space again if there is enough; true if it is held.
    pub(crate) fn restore(&self) -> bool {
        if !self.is_released() {
            return true;
        }
        // What was given up is free now, and must stay so until there is more.
        if !self.path.exists() && !self.has_twice_the_space() {
            return false;
        }
        let made = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.path);
        let held = made.and_then(|file| fill(&file));
        match held {
            Ok(()) => self.released.store(false, Ordering::Release),
            // Half of it would only be in the way.
            Err(_) => _ = std::fs::remove_file(&self.path),
        }
        !self.is_released()
    }
}

impl Reserve {
    fn has_twice_the_space(&self) -> bool {
        let folder = self.path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        rustix::fs::statvfs(folder).is_ok_and(|disk| disk.f_bavail.saturating_mul(disk.f_frsize) >= 2 * BYTES)
    }
}

/// Makes the file take its bytes on the disk.
fn fill(file: &File) -> std::io::Result<()> {
    if file.metadata()?.len() == BYTES {
        return Ok(());
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, BYTES) {
        Err(rustix::io::Errno::OPNOTSUPP) => {
            let block = vec![0xa5; 1 << 20];
            (0..BYTES).step_by(block.len()).try_for_each(|at| file.write_all_at(&block, at))
        }
        outcome => Ok(outcome?),
    }
}
