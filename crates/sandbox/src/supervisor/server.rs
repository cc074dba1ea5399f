//! The supervisor's side of the server: a link while there is one, a socket to
//! listen on while there is none.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use cloister_types::link::{Command, Enforced, Signal, Spooling, encode};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use super::channel::{Channel, Closed};
use crate::network::Exits;
use crate::run::SOCKET;

/// Who is at the other end.
pub(super) enum Server {
    /// A server that may command.
    Attached(Channel),
    /// Somebody who has connected and not yet said what it must know.
    Greeting(Channel),
    /// Nobody.
    Detached,
}

/// The link to the server, whichever server that is at the moment.
pub(super) struct Link {
    pub(super) server: Server,
    listener: OwnedFd,
    /// The ways out, for whoever serves them.
    exits: Exits,
    /// Ends with this process, or when the next server has taken over: that
    /// one has a way out of its own, and the old one's is to end.
    lifeline: OwnedFd,
    enforced: Enforced,
    launch: String,
    /// What was last said of the spool.
    said: Option<Spooling>,
}

/// Binds the socket in the folder; its path may be too long for an address.
pub(super) fn listen(folder: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    use std::os::fd::AsRawFd;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{SOCKET}", folder.as_raw_fd()))?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, 4)?;
    Ok(socket)
}

/// Sends a frame with descriptors, on a socket that takes it at once.
pub(super) fn send_with(link: impl AsFd, signal: &Signal, gifts: &[BorrowedFd<'_>]) -> rustix::io::Result<()> {
    let bytes = encode(signal).map_err(|_| Errno::INVAL)?;
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(5))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !gifts.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(gifts)) {
        return Err(Errno::NOBUFS);
    }
    rustix::net::sendmsg(link, &[std::io::IoSlice::new(&bytes)], &mut ancillary, SendFlags::NOSIGNAL).map(drop)
}

/// Sends the first frame of a connection, with what belongs to it. Returns
/// the end of the pipe that keeps the other one silent.
pub(super) fn hand_over(link: impl AsFd, signal: &Signal, exits: &Exits) -> rustix::io::Result<OwnedFd> {
    let (read, write) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let [http, https, names, names_tcp] = exits.as_fds();
    send_with(link, signal, &[http, https, names, names_tcp, read.as_fd()])?;
    Ok(write)
}

impl Link {
    /// The link to the server that launched the sandbox, to which it has been
    /// said that it stands.
    pub(super) fn new(
        link: OwnedFd,
        listener: OwnedFd,
        exits: Exits,
        lifeline: OwnedFd,
        enforced: Enforced,
        launch: String,
    ) -> rustix::io::Result<Self> {
        let server = Server::Attached(Channel::new(link)?);
        Ok(Self { server, listener, exits, lifeline, enforced, launch, said: None })
    }

    pub(super) fn listener(&self) -> &OwnedFd {
        &self.listener
    }

    pub(super) fn channel(&self) -> Option<&Channel> {
        match &self.server {
            Server::Attached(channel) | Server::Greeting(channel) => Some(channel),
            Server::Detached => None,
        }
    }

    pub(super) fn is_attached(&self) -> bool {
        matches!(self.server, Server::Attached(_))
    }

    /// Takes a connection. The server that has connected last is the one that
    /// runs: the data directory has one at a time.
    pub(super) fn accept(&mut self) {
        let Ok(socket) = rustix::net::accept_with(&self.listener, SocketFlags::CLOEXEC) else { return };
        let own = rustix::process::geteuid();
        let peer = rustix::net::sockopt::socket_peercred(&socket);
        if peer.is_ok_and(|peer| peer.uid == own)
            && let Ok(channel) = Channel::new(socket)
        {
            self.server = Server::Greeting(channel);
        }
    }

    /// Commands that have arrived, and whether the other side has hung up. The
    /// first one of a connection must be the right [`Command::Adopt`].
    pub(super) fn commands(&mut self, turn: impl FnOnce() -> Option<Spooling>) -> (Vec<Command>, bool) {
        let mut commands = Vec::new();
        let closed = self.hear(&mut commands).is_err();
        if let Server::Greeting(_) = self.server
            && !commands.is_empty()
        {
            let welcome = matches!(commands.remove(0), Command::Adopt { launch } if launch == self.launch);
            self.welcome(welcome, turn());
        }
        if !self.is_attached() {
            commands.clear();
        }
        (commands, closed)
    }

    fn hear(&mut self, commands: &mut Vec<Command>) -> Result<(), Closed> {
        let (Server::Attached(channel) | Server::Greeting(channel)) = &mut self.server else { return Ok(()) };
        channel.flush()?;
        let filled = channel.fill();
        while let Some(command) = channel.next::<Command>()? {
            commands.push(command);
        }
        filled.map(drop)
    }

    fn welcome(&mut self, welcome: bool, turn: Option<Spooling>) {
        let Server::Greeting(channel) = std::mem::replace(&mut self.server, Server::Detached) else { return };
        self.said = None;
        let standing = Signal::Standing { enforced: self.enforced.clone(), turn };
        if welcome && let Ok(lifeline) = hand_over(channel.fd(), &standing, &self.exits) {
            self.lifeline = lifeline;
            self.server = Server::Attached(channel);
        }
    }

    /// Sends what is unsent; true if nothing is left.
    pub(super) fn flush(&mut self) -> bool {
        match &mut self.server {
            Server::Attached(channel) => channel.flush().is_err() || channel.is_flushed(),
            _ => true,
        }
    }

    /// The server is gone.
    pub(super) fn detach(&mut self) {
        self.server = Server::Detached;
        self.said = None;
    }

    /// Says how far the spool reaches, once what was said before is sent: it
    /// is the last word that counts.
    pub(super) fn ring(&mut self, spooling: Spooling) {
        if let Server::Attached(channel) = &mut self.server
            && channel.is_flushed()
            && self.said.as_ref() != Some(&spooling)
        {
            // A server that is gone shows when it is read from.
            let _ = channel.send(&Signal::Spooled(spooling.clone()));
            self.said = Some(spooling);
        }
    }

    /// Sends a last word, within reason.
    pub(super) fn say(&mut self, signal: &Signal) {
        if let Server::Attached(channel) = &mut self.server {
            let _ = channel.send(signal);
        }
    }
}
