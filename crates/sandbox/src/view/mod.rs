//! Detached mount trees, built by descriptor. No path is resolved twice and
//! none through a symlink, so there is nothing to race.

mod base;
mod image;
mod lent;
pub(crate) mod mounts;
mod places;
mod private;
mod seen;
mod site;
mod workspace;

pub(crate) use base::{Base, PLAIN};
pub(crate) use image::Image;
pub(crate) use lent::Lent;
pub(crate) use mounts::open_strictly;
pub(crate) use seen::Seen;
pub(crate) use site::Site;
pub(crate) use workspace::{Built, make_folders, restore_modes, still_shows};

/// Why a view could not be built.
#[derive(Debug, thiserror::Error)]
pub enum ViewError {
    /// The scope itself: the client's to mend.
    #[error("{0}")]
    Scope(String),
    /// The kernel refused a step.
    #[error("{step}: {errno}")]
    Kernel {
        /// What was tried.
        step: String,
        /// The answer.
        errno: rustix::io::Errno,
    },
}

impl ViewError {
    fn at(step: impl Into<String>) -> impl FnOnce(rustix::io::Errno) -> Self {
        let step = step.into();
        move |errno| Self::Kernel { step, errno }
    }
}
