//! The container's terminal: its master side arrives from the runtime over the console socket.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::io::{Errno, IoSliceMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, sockopt};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use super::attach;

/// The socket's name in the container's directory while the container is being made.
pub(crate) const NAME: &str = "console.sock";

/// How long the runtime may take between connecting and sending the terminal.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Listens for the runtime.
pub(crate) fn listen(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    attach::listen(directory, NAME, 1)
}

/// The socket's path as another process of this user can open it, short enough for a socket address.
pub(crate) fn path(directory: &OwnedFd) -> PathBuf {
    let own = rustix::process::getpid().as_raw_nonzero();
    PathBuf::from(format!("/proc/{own}/fd/{}/{NAME}", directory.as_raw_fd()))
}

/// Takes the terminal from the runtime that has connected to `listener`; non-blocking.
pub(crate) fn receive(listener: impl std::os::fd::AsFd) -> Result<OwnedFd, Errno> {
    let stream = rustix::net::accept_with(listener, SocketFlags::CLOEXEC)?;
    sockopt::set_socket_timeout(&stream, sockopt::Timeout::Recv, Some(TIMEOUT))?;
    let mut name = [0u8; 256];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC)?;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(mut fds) = message
            && let Some(master) = fds.next()
        {
            rustix::io::ioctl_fionbio(&master, true)?;
            return Ok(master);
        }
    }
    Err(Errno::NOMSG)
}

/// Opens the other side as well, so that the terminal is not hung up between two processes that use it. Kernels before
/// 4.13 cannot; there, output after such a moment is read when the container ends.
pub(crate) fn peer(master: &OwnedFd) -> Option<OwnedFd> {
    rustix::pty::ioctl_tiocgptpeer(
        master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .ok()
}

/// Tells the terminal its size.
pub(crate) fn resize(master: impl std::os::fd::AsFd, rows: u16, columns: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // A terminal whose container has just ended has no size any more.
    let _ = rustix::termios::tcsetwinsize(master, size);
}
