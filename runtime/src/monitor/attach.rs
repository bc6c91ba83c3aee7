//! The clients of `attach.sock`.
//!
//! Memory is bounded by refusing work, not by dropping bytes: while a client has not taken what it was sent, the
//! container's output is not read, so a backlog is never more than one read of each stream. A client that takes
//! nothing for `attachStallSeconds` is dropped, and the container goes on.

use std::io::IoSlice;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::fs::{AtFlags, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::frame::{self, Decoder};
use super::poll::{Poll, Source};

/// More clients at once than people watch one container; each may hold a backlog.
const MAX_CLIENTS: usize = 8;

/// The first client's token; below lie those of the monitor's own descriptors.
pub(crate) const FIRST_TOKEN: u64 = 16;

/// One attached client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) source: Source,
    pub(crate) token: u64,
    pub(crate) decoder: Decoder,
    /// The client will send nothing more.
    pub(crate) silent: bool,
    /// The client takes nothing more; only what it has sent is still of use.
    pub(crate) deaf: bool,
    backlog: Vec<u8>,
    sent: usize,
    stalled_since: Option<Instant>,
}

impl Client {
    /// Sends a frame, or keeps what the socket does not take now.
    fn send(&mut self, kind: u8, payload: &[u8], now: Instant) -> Result<(), Errno> {
        let header = frame::header(kind, u32::try_from(payload.len()).map_err(|_| Errno::MSGSIZE)?);
        let mut sent = 0;
        if self.backlog.is_empty() {
            let parts = [IoSlice::new(&header), IoSlice::new(payload)];
            sent = match rustix::io::retry_on_intr(|| rustix::io::writev(&self.source, &parts)) {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => 0,
                Err(error) => return Err(error),
            };
            if sent == header.len() + payload.len() {
                return Ok(());
            }
            self.stalled_since = Some(now);
        }
        self.backlog.extend_from_slice(&header[sent.min(header.len())..]);
        self.backlog
            .extend_from_slice(&payload[sent.saturating_sub(header.len())..]);
        Ok(())
    }

    /// Sends more of the backlog.
    pub(crate) fn flush(&mut self, now: Instant) -> Result<(), Errno> {
        while self.has_backlog() {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.source, &self.backlog[self.sent..])) {
                Ok(count) => {
                    self.sent += count;
                    self.stalled_since = Some(now);
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.backlog = Vec::new();
        self.sent = 0;
        self.stalled_since = None;
        Ok(())
    }

    fn has_backlog(&self) -> bool {
        self.sent < self.backlog.len()
    }
}

/// The listening socket and its clients.
#[derive(Debug)]
pub(crate) struct Attach {
    listener: Option<Source>,
    pub(crate) clients: Vec<Client>,
    stall: Duration,
    next_token: u64,
}

impl Attach {
    /// Listens on the socket `name` in `directory`, in place of one that a killed monitor left.
    pub(crate) fn listen(
        poll: &Poll,
        directory: &OwnedFd,
        name: &str,
        token: u64,
        stall: Duration,
    ) -> Result<Self, Errno> {
        let listener = listen(directory, name, 8)?;
        let mut listener = Source::new(listener, token);
        listener.want(poll, EventFlags::IN)?;
        Ok(Self {
            listener: Some(listener),
            clients: Vec::new(),
            stall,
            next_token: FIRST_TOKEN,
        })
    }

    /// Accepts who is waiting. True when a client was taken; strangers and too many are sent away.
    pub(crate) fn accept(&mut self, poll: &Poll) -> bool {
        let Some(listener) = &self.listener else {
            return false;
        };
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let Ok(stream) = rustix::net::accept_with(listener, flags) else {
            return false;
        };
        let own = rustix::process::geteuid();
        let known = rustix::net::sockopt::socket_peercred(&stream).is_ok_and(|peer| peer.uid == own);
        if !known || self.clients.len() >= MAX_CLIENTS {
            return false;
        }
        let token = self.next_token;
        self.next_token += 1;
        let mut source = Source::new(stream, token);
        if source.want(poll, EventFlags::IN).is_err() {
            return false;
        }
        self.clients.push(Client {
            source,
            token,
            decoder: Decoder::default(),
            silent: false,
            deaf: false,
            backlog: Vec::new(),
            sent: 0,
            stalled_since: None,
        });
        true
    }

    /// Takes no more clients.
    pub(crate) fn close(&mut self) {
        self.listener = None;
    }

    /// Sends a frame to every client.
    pub(crate) fn broadcast(&mut self, kind: u8, payload: &[u8]) {
        if self.clients.is_empty() {
            return;
        }
        let now = Instant::now();
        for client in self.clients.iter_mut().filter(|client| !client.deaf) {
            client.deaf = client.send(kind, payload, now).is_err();
        }
    }

    /// True while a client has not taken what it was sent.
    pub(crate) fn has_backlog(&self) -> bool {
        self.clients
            .iter()
            .any(|client| !client.deaf && client.has_backlog())
    }

    /// Waits on each client for what it needs next and drops those that are done: gone, or silent and deaf. Input is
    /// waited for only while `reading`. True when the last of them has gone.
    pub(crate) fn settle(&mut self, poll: &Poll, reading: bool) -> bool {
        let before = self.clients.len();
        self.clients.retain_mut(|client| {
            let mut interest = EventFlags::empty();
            if reading && !client.silent {
                interest |= EventFlags::IN;
            }
            if !client.deaf && client.has_backlog() {
                interest |= EventFlags::OUT;
            }
            if interest.is_empty() && !client.deaf {
                // Nothing to do but to notice that it goes, which epoll reports unasked.
                interest = EventFlags::ERR;
            }
            !(client.silent && client.deaf) && client.source.want(poll, interest).is_ok()
        });
        before > 0 && self.clients.is_empty()
    }

    /// When the first stalled client's patience ends.
    pub(crate) fn deadline(&self) -> Option<Instant> {
        let stalled = self
            .clients
            .iter()
            .filter(|client| !client.deaf)
            .filter_map(|client| client.stalled_since);
        stalled.min().map(|since| since + self.stall)
    }

    /// Drops the clients that have taken nothing for too long.
    pub(crate) fn expire(&mut self, now: Instant) {
        for client in &mut self.clients {
            if client
                .stalled_since
                .is_some_and(|since| now >= since + self.stall)
            {
                (client.silent, client.deaf) = (true, true);
            }
        }
    }
}

/// Binds a stream socket of this user alone at `name` in `directory`, whose path may be longer than a socket address.
pub(crate) fn listen(directory: &OwnedFd, name: &str, backlog: i32) -> Result<OwnedFd, Errno> {
    let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", directory.as_raw_fd()))?;
    let umask = rustix::process::umask(Mode::from_raw_mode(0o177));
    let bound = rustix::net::bind(&socket, &address);
    rustix::process::umask(umask);
    bound?;
    rustix::net::listen(&socket, backlog)?;
    Ok(socket)
}
