//! The descriptors that one event loop waits for.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::{Errno, Result};

/// An epoll instance.
#[derive(Debug)]
pub(crate) struct Poll(OwnedFd);

impl Poll {
    /// A new instance without sources.
    pub(crate) fn new() -> Result<Self> {
        epoll::create(CreateFlags::CLOEXEC).map(Self)
    }

    /// Waits until a source is ready or the time is over, and puts what happened into `events`.
    pub(crate) fn wait(&self, events: &mut Vec<Event>, timeout: Option<Duration>) -> Result<()> {
        events.clear();
        let timeout = timeout.map(|timeout| Timespec {
            tv_sec: timeout.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: timeout.subsec_nanos().into(),
        });
        match epoll::wait(&self.0, spare_capacity(events), timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// An owned descriptor and what is waited for on it.
#[derive(Debug)]
pub(crate) struct Source {
    fd: OwnedFd,
    token: u64,
    interest: EventFlags,
}

impl Source {
    /// A source that nothing is waited for on yet. Its events will carry `token`.
    pub(crate) fn new(fd: OwnedFd, token: u64) -> Self {
        Self {
            fd,
            token,
            interest: EventFlags::empty(),
        }
    }

    /// Changes what is waited for. With no flags the descriptor leaves the instance altogether: epoll reports a
    /// hang-up even where nothing was asked for, and a paused source must not spin the loop.
    pub(crate) fn want(&mut self, poll: &Poll, interest: EventFlags) -> Result<()> {
        if interest == self.interest {
            return Ok(());
        }
        let data = EventData::new_u64(self.token);
        if interest.is_empty() {
            epoll::delete(&poll.0, &self.fd)?;
        } else if self.interest.is_empty() {
            epoll::add(&poll.0, &self.fd, data, interest)?;
        } else {
            epoll::modify(&poll.0, &self.fd, data, interest)?;
        }
        self.interest = interest;
        Ok(())
    }

    /// The descriptor, no longer waited for.
    pub(crate) fn release(mut self, poll: &Poll) -> OwnedFd {
        // It fails only for a descriptor that is not in the instance.
        let _ = self.want(poll, EventFlags::empty());
        self.fd
    }
}

impl AsFd for Source {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
