//! The caller's side of a process that runs in the foreground: signals are passed on, and a terminal is relayed.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios};

use crate::error::{Context, Error};
use crate::sys::{self, Signals};

/// Bytes relayed at once.
const CHUNK: usize = 16 * 1024;

/// What the relay is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A signal for this process.
    Signal(i32),
    /// The descriptor given to [`Foreground::run`] is readable.
    Answer,
}

/// A terminal's controlling end, and what was typed but not yet taken.
struct Terminal {
    master: OwnedFd,
    typed: Vec<u8>,
    /// Stdin has more to give.
    reading: bool,
    /// The caller's terminal as it was.
    before: Option<Termios>,
}

/// Signals blocked and collected, a terminal relayed.
pub(crate) struct Foreground {
    signals: OwnedFd,
    terminal: Option<Terminal>,
}

impl Foreground {
    /// Collects all signals from here on.
    pub(crate) fn new() -> Result<Self, Error> {
        let all = Signals::new(None);
        all.block().context(|| "signals")?;
        Ok(Self {
            signals: all.descriptor().context(|| "signalfd")?,
            terminal: None,
        })
    }

    /// Relays between the standard streams and a terminal; the caller's terminal becomes raw.
    pub(crate) fn attach(&mut self, master: OwnedFd) -> Result<(), Error> {
        rustix::io::ioctl_fionbio(&master, true).context(|| "terminal")?;
        let stdin = rustix::stdio::stdin();
        let before = rustix::termios::tcgetattr(stdin).ok();
        if let Some(before) = &before {
            let mut raw = before.clone();
            raw.make_raw();
            rustix::termios::tcsetattr(stdin, OptionalActions::Now, &raw).context(|| "terminal")?;
        }
        self.terminal = Some(Terminal {
            master,
            typed: Vec::new(),
            reading: true,
            before,
        });
        self.resize();
        Ok(())
    }

    fn resize(&self) {
        if let Some(terminal) = &self.terminal
            && let Ok(size) = rustix::termios::tcgetwinsize(rustix::stdio::stdin())
        {
            let _ = rustix::termios::tcsetwinsize(&terminal.master, size);
        }
    }

    /// Relays until `event` gives a result; what the terminal still holds is then written out.
    pub(crate) fn run(
        &mut self,
        answer: Option<BorrowedFd<'_>>,
        mut event: impl FnMut(Event) -> Result<Option<i32>, Error>,
    ) -> Result<i32, Error> {
        loop {
            let (signalled, answered, typed, output, writable) = self.wait(answer)?;
            if writable && let Some(terminal) = &mut self.terminal {
                terminal.push();
            }
            if output {
                self.pull();
            }
            if typed && let Some(terminal) = &mut self.terminal {
                terminal.read();
            }
            let mut result = None;
            while signalled && result.is_none() {
                match sys::next_signal(self.signals.as_fd()) {
                    Some(libc::SIGWINCH) => self.resize(),
                    Some(signal) => result = event(Event::Signal(signal))?,
                    None => break,
                }
            }
            if answered && result.is_none() {
                result = event(Event::Answer)?;
            }
            if let Some(result) = result {
                while self.pull() {}
                return Ok(result);
            }
        }
    }

    fn wait(&self, answer: Option<BorrowedFd<'_>>) -> Result<(bool, bool, bool, bool, bool), Error> {
        let stdin = rustix::stdio::stdin();
        let mut fds = vec![PollFd::new(&self.signals, PollFlags::IN)];
        fds.extend(answer.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)));
        let (mut master_at, mut stdin_at) = (usize::MAX, usize::MAX);
        if let Some(terminal) = &self.terminal {
            master_at = fds.len();
            let writing = if terminal.typed.is_empty() {
                PollFlags::empty()
            } else {
                PollFlags::OUT
            };
            fds.push(PollFd::new(&terminal.master, PollFlags::IN | writing));
            if terminal.reading && terminal.typed.is_empty() {
                stdin_at = fds.len();
                fds.push(PollFd::from_borrowed_fd(stdin, PollFlags::IN));
            }
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e).context(|| "poll"),
        }
        let events = |index: usize| fds.get(index).map_or(PollFlags::empty(), PollFd::revents);
        let readable = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        Ok((
            events(0).intersects(readable),
            answer.is_some() && events(1).intersects(readable),
            events(stdin_at).intersects(readable),
            events(master_at).intersects(readable),
            events(master_at).intersects(PollFlags::OUT),
        ))
    }

    /// Writes out what the terminal gives; false when there is nothing now. At its end it is dropped.
    fn pull(&mut self) -> bool {
        let Some(terminal) = &self.terminal else {
            return false;
        };
        let mut buffer = [0u8; CHUNK];
        match rustix::io::read(&terminal.master, &mut buffer) {
            Ok(length) if length > 0 => {
                let mut rest = buffer.get(..length).unwrap_or_default();
                while !rest.is_empty() {
                    match rustix::io::write(rustix::stdio::stdout(), rest) {
                        Ok(written) => rest = rest.get(written..).unwrap_or_default(),
                        Err(Errno::INTR) => {}
                        // Nobody reads any more; the process goes on.
                        Err(_) => break,
                    }
                }
                true
            }
            Err(Errno::AGAIN | Errno::INTR) => false,
            Ok(_) | Err(_) => {
                // The last process closed it: an end, which poll would report for ever.
                if let Some(terminal) = self.terminal.take() {
                    terminal.restore();
                }
                false
            }
        }
    }
}

impl Terminal {
    fn read(&mut self) {
        let mut buffer = [0u8; CHUNK];
        match rustix::io::read(rustix::stdio::stdin(), &mut buffer) {
            Ok(length) if length > 0 => {
                self.typed
                    .extend_from_slice(buffer.get(..length).unwrap_or_default());
                self.push();
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(_) | Err(_) => self.reading = false,
        }
    }

    fn push(&mut self) {
        match rustix::io::write(&self.master, &self.typed) {
            Ok(written) => drop(self.typed.drain(..written.min(self.typed.len()))),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.typed.clear(),
        }
    }

    fn restore(&self) {
        if let Some(before) = &self.before {
            let _ = rustix::termios::tcsetattr(rustix::stdio::stdin(), OptionalActions::Now, before);
        }
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Some(terminal) = &self.terminal {
            terminal.restore();
        }
    }
}
