//! A frame channel over a non-blocking stream socket.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloister_types::link::{FrameError, FrameReader, MAX_FRAME, encode};
use rustix::event::PollFlags;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

pub(super) struct Channel {
    socket: OwnedFd,
    reader: FrameReader,
    unsent: VecDeque<u8>,
    closed: bool,
}

/// The other side hung up, or does not speak frames.
#[derive(Debug)]
pub(super) struct Closed;

impl From<FrameError> for Closed {
    fn from(_: FrameError) -> Self {
        Self
    }
}

impl Channel {
    pub(super) fn new(socket: OwnedFd) -> rustix::io::Result<Self> {
        Self::with_limit(socket, MAX_FRAME)
    }

    /// A channel that takes frames up to `limit` bytes.
    pub(super) fn with_limit(socket: OwnedFd, limit: usize) -> rustix::io::Result<Self> {
        rustix::io::ioctl_fionbio(&socket, true)?;
        Ok(Self { socket, reader: FrameReader::with_limit(limit), unsent: VecDeque::new(), closed: false })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// What to wait for on this socket.
    pub(super) fn interest(&self, reading: bool) -> PollFlags {
        let mut flags = PollFlags::empty();
        flags.set(PollFlags::IN, reading);
        flags.set(PollFlags::OUT, !self.unsent.is_empty());
        flags
    }

    pub(super) fn is_flushed(&self) -> bool {
        self.unsent.is_empty()
    }

    /// Queues a frame and sends what the socket takes.
    pub(super) fn send<T: Serialize>(&mut self, value: &T) -> Result<(), Closed> {
        self.unsent.extend(encode(value)?);
        self.flush()
    }

    pub(super) fn flush(&mut self) -> Result<(), Closed> {
        while !self.unsent.is_empty() {
            match rustix::net::send(&self.socket, self.unsent.as_slices().0, rustix::net::SendFlags::NOSIGNAL) {
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(error) => {
                    // What nobody will read must not keep us awake. Who merely
                    // stopped listening still has its say; but where a part
                    // got lost, both sides must know that it is over.
                    self.unsent.clear();
                    if error != Errno::PIPE {
                        let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Both);
                    }
                    return Err(Closed);
                }
            }
        }
        Ok(())
    }

    /// Reads a piece of what has arrived. `false`: nothing more for now;
    /// `Closed` at the end of the stream.
    pub(super) fn fill(&mut self) -> Result<bool, Closed> {
        let mut buffer = [0; 64 << 10];
        match rustix::io::read(&self.socket, &mut buffer) {
            Ok(got @ 1..) => {
                self.reader.push(&buffer[..got]);
                Ok(true)
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(false),
            Ok(0) | Err(_) => {
                self.closed = true;
                Err(Closed)
            }
        }
    }

    /// Has the end of the stream been seen?
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// The next whole frame that has been read.
    pub(super) fn next<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<T>, Closed> {
        Ok(self.reader.next_frame()?)
    }
}
