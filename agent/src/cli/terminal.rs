//! The terminal of the person at the keyboard: raw while a container's terminal is shown in it, and as it was
//! afterwards, whichever way that ends.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use rustix::termios::{LocalModes, OptionalActions, Termios, Winsize};

/// The mode to return to, while the terminal is raw. A panic hook must find it.
static BEFORE: Mutex<Option<Termios>> = Mutex::new(None);

/// Standard input as a terminal in raw mode; dropping it restores the mode.
#[derive(Debug)]
pub(super) struct Raw;

impl Raw {
    /// Puts standard input into raw mode.
    pub(super) fn enter() -> io::Result<Self> {
        let terminal = io::stdin();
        let before = rustix::termios::tcgetattr(&terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        if let Ok(mut slot) = BEFORE.lock() {
            *slot = Some(before);
        }
        let hook = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        rustix::termios::tcsetattr(&terminal, OptionalActions::Drain, &raw)?;
        Ok(Self)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        restore();
    }
}

/// Standard input as a terminal that does not show what is typed; dropping it restores the mode.
#[derive(Debug)]
pub(super) struct Hidden(Termios);

impl Hidden {
    /// Stops showing what is typed, all but the end of the line.
    pub(super) fn enter() -> io::Result<Self> {
        let before = rustix::termios::tcgetattr(io::stdin())?;
        let mut hidden = before.clone();
        hidden.local_modes.remove(LocalModes::ECHO);
        rustix::termios::tcsetattr(io::stdin(), OptionalActions::Flush, &hidden)?;
        Ok(Self(before))
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Drain, &self.0);
    }
}

fn restore() {
    if let Ok(mut slot) = BEFORE.try_lock()
        && let Some(before) = slot.take()
    {
        let _ = rustix::termios::tcsetattr(io::stdin(), OptionalActions::Drain, &before);
    }
}

/// Rows and columns of the terminal, if it is one.
pub(super) fn size(terminal: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let Winsize { ws_row, ws_col, .. } = rustix::termios::tcgetwinsize(terminal).ok()?;
    Some((ws_row, ws_col))
}

/// Whether standard input is a terminal.
pub(super) fn is_stdin() -> bool {
    rustix::termios::isatty(io::stdin().as_fd())
}
