//! Views that the server holds, where they do not end with its descriptors:
//! each takes a pipe along, and is taken down when the other end is gone.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use rustix::io::Result;
use rustix::pipe::{PipeFlags, pipe_with};

use super::site::Stand;

pub(crate) struct Lent {
    /// Readable when a borrower has gone.
    gone: OwnedFd,
    held: HashMap<u64, (OwnedFd, Stand)>,
    count: u64,
}

impl Lent {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self { gone: epoll::create(epoll::CreateFlags::CLOEXEC)?, held: HashMap::new(), count: 0 })
    }

    /// Keeps it for as long as the borrower keeps the descriptor.
    pub(crate) fn lend(&mut self, stand: Stand) -> Result<OwnedFd> {
        let (ours, theirs) = pipe_with(PipeFlags::CLOEXEC)?;
        self.count += 1;
        // A hang-up is told without being asked for.
        epoll::add(&self.gone, &ours, epoll::EventData::new_u64(self.count), epoll::EventFlags::empty())?;
        self.held.insert(self.count, (ours, stand));
        Ok(theirs)
    }

    /// Takes down what nobody holds any more.
    pub(crate) fn take_back(&mut self) {
        let mut events = Vec::with_capacity(64);
        while matches!(epoll::wait(&self.gone, spare_capacity(&mut events), Some(&Timespec::default())), Ok(1..)) {
            for event in events.drain(..) {
                let event: epoll::Event = event;
                // A fork may have a copy for a moment, which would be told of again.
                if let Some((ours, _)) = self.held.remove(&event.data.u64()) {
                    let _ = epoll::delete(&self.gone, &ours);
                }
            }
        }
    }
}

impl AsFd for Lent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.gone.as_fd()
    }
}
