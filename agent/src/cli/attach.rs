//! Attached to a container: its streams here, ours there, until it ends.
//!
//! One thread and one `poll` over the attach socket, standard input and the signals. A client that does not read makes
//! the monitor wait, so standard input is read only when the socket takes it: neither side ever holds more than one
//! read of the other.
//!
//! ```text
//! frame   u8 kind, u32be length, payload
//! to us   1 stdout, 2 stderr, 3 exit (u32be code)
//! from us 0 stdin (empty: closed), 4 resize (u16be rows, u16be columns)
//! ```

use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::failure::Failure;
use super::terminal;
use crate::sys::Signals;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const RESIZE: u8 = 4;
const HEADER: usize = 5;
/// Longest payload that a monitor may announce.
const PAYLOAD_MAX: usize = 1 << 20;
/// Bytes moved at once.
const CHUNK: usize = 32 << 10;
/// The terminal has another size.
const SIGWINCH: u8 = 28;

/// The signals that are handed on to the container's process.
const PROXIED: [u8; 7] = [1, 2, 3, 10, 12, 15, 18];

/// Blocks what an attached client handles. Call it before the container is made: nothing is lost between.
pub(super) fn block_signals() -> Result<Signals, Failure> {
    let signals: Vec<u8> = PROXIED.into_iter().chain([SIGWINCH]).collect();
    Signals::block(&signals).map_err(|error| Failure::about("cannot block signals", &error))
}

/// Connects to a container's monitor. The path may be longer than a socket's address, so it goes through a descriptor.
pub(super) fn connect(directory: &Path) -> Result<UnixStream, Failure> {
    let failed = |error: io::Error| {
        Failure::about(
            format!("cannot attach to {}", directory.join("attach.sock").display()),
            &error,
        )
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let fd = rustix::fs::open(directory, flags, Mode::empty()).map_err(|error| failed(error.into()))?;
    UnixStream::connect(format!("/proc/self/fd/{}/attach.sock", fd.as_raw_fd())).map_err(failed)
}

/// What of ours is connected.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ours {
    /// Standard input goes to the container.
    pub(super) stdin: bool,
    /// The container has a terminal, which takes the size of ours.
    pub(super) tty: bool,
}

/// Moves bytes until the container ends. `signal` hands a signal on. Returns the exit code, or `None` if the monitor
/// went away without a word.
pub(super) fn session(
    socket: UnixStream,
    signals: &Signals,
    ours: Ours,
    mut signal: impl FnMut(u8),
) -> Result<Option<u8>, Failure> {
    let failed = |error: io::Error| Failure::about("attach", &error);
    socket.set_nonblocking(true).map_err(failed)?;
    let mut session = Session {
        socket,
        pending: Vec::new(),
        decoder: Decoder::default(),
    };
    if ours.tty {
        session.resize();
    }
    let mut reading = ours.stdin;
    let mut buffer = vec![0; CHUNK];
    let stdin = io::stdin();
    loop {
        let more = if session.pending.is_empty() {
            PollFlags::IN
        } else {
            PollFlags::IN | PollFlags::OUT
        };
        let mut fds = vec![
            PollFd::new(&session.socket, more),
            PollFd::new(signals, PollFlags::IN),
        ];
        if reading && session.pending.is_empty() {
            fds.push(PollFd::from_borrowed_fd(stdin.as_fd(), PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(failed(error.into())),
        }
        let came: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if came.get(1) == Some(&true) {
            while let Some(number) = signals.next().map_err(failed)? {
                match number {
                    SIGWINCH if ours.tty => session.resize(),
                    SIGWINCH => {}
                    number => signal(number),
                }
            }
        }
        if came.get(2) == Some(&true) {
            match rustix::io::read(&stdin, &mut buffer) {
                Ok(count) => {
                    session.queue(STDIN, buffer.get(..count).unwrap_or_default());
                    reading = count > 0;
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                // A terminal that hung up reads as an error: to the container it is an end.
                Err(_) => {
                    session.queue(STDIN, &[]);
                    reading = false;
                }
            }
        }
        if came.first() == Some(&true) {
            session.flush().map_err(failed)?;
            match rustix::io::read(&session.socket, &mut buffer) {
                Ok(0) | Err(Errno::CONNRESET | Errno::PIPE) => return Ok(None),
                Ok(count) => {
                    let code = session
                        .decoder
                        .feed(buffer.get(..count).unwrap_or_default(), &mut show)
                        .map_err(failed)?;
                    if code.is_some() {
                        return Ok(code);
                    }
                }
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(failed(error.into())),
            }
        }
    }
}

/// Writes a stream's bytes where they belong. A reader of ours that has gone away ends nothing: the container goes on.
fn show(kind: u8, bytes: &[u8]) -> io::Result<()> {
    let written = if kind == STDOUT {
        let mut out = io::stdout().lock();
        out.write_all(bytes).and_then(|()| out.flush())
    } else {
        io::stderr().lock().write_all(bytes)
    };
    match written {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => written,
    }
}

struct Session {
    socket: UnixStream,
    pending: Vec<u8>,
    decoder: Decoder,
}

impl Session {
    fn queue(&mut self, kind: u8, payload: &[u8]) {
        self.pending.push(kind);
        self.pending
            .extend_from_slice(&u32::try_from(payload.len()).unwrap_or(0).to_be_bytes());
        self.pending.extend_from_slice(payload);
    }

    fn resize(&mut self) {
        if let Some((rows, columns)) = terminal::size(io::stdin().as_fd()) {
            let [a, b] = rows.to_be_bytes();
            let [c, d] = columns.to_be_bytes();
            self.queue(RESIZE, &[a, b, c, d]);
        }
    }

    /// Sends what the socket takes now. A monitor that closed has said why in what is still to be read.
    fn flush(&mut self) -> io::Result<()> {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.socket, &self.pending) {
                Ok(count) => {
                    self.pending.drain(..count);
                }
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(Errno::PIPE | Errno::CONNRESET) => self.pending.clear(),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

/// Takes frames apart as they arrive: a stream's bytes are handed on at once, whatever length was announced.
#[derive(Debug, Default)]
struct Decoder {
    header: Vec<u8>,
    left: usize,
    kind: u8,
    code: Vec<u8>,
}

impl Decoder {
    /// The exit code once its frame is complete.
    fn feed(
        &mut self,
        mut bytes: &[u8],
        show: &mut dyn FnMut(u8, &[u8]) -> io::Result<()>,
    ) -> io::Result<Option<u8>> {
        while !bytes.is_empty() {
            if self.left == 0 {
                let (head, rest) = bytes.split_at(bytes.len().min(HEADER - self.header.len()));
                self.header.extend_from_slice(head);
                bytes = rest;
                if let [kind, a, b, c, d] = *self.header {
                    self.header.clear();
                    self.kind = kind;
                    self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                    let fits = match kind {
                        STDOUT | STDERR => self.left <= PAYLOAD_MAX,
                        EXIT => self.left == 4,
                        _ => false,
                    };
                    if !fits {
                        let what =
                            format!("the monitor sent a frame of kind {kind} and length {}", self.left);
                        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
                    }
                }
                continue;
            }
            let (payload, rest) = bytes.split_at(bytes.len().min(self.left));
            bytes = rest;
            self.left -= payload.len();
            if self.kind != EXIT {
                show(self.kind, payload)?;
                continue;
            }
            self.code.extend_from_slice(payload);
            if let [_, _, _, code] = *self.code {
                return Ok(Some(code));
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_apart_wherever_they_are_cut() {
        let stream = b"\x01\0\0\0\x02hi\x02\0\0\0\x03err\x01\0\0\0\0\x01\0\0\0\x01!\x03\0\0\0\x04\0\0\0\x89";
        for step in 1..=stream.len() {
            let mut decoder = Decoder::default();
            let (mut out, mut err, mut code) = (Vec::new(), Vec::new(), None);
            for piece in stream.chunks(step) {
                let mut show = |kind, bytes: &[u8]| {
                    if kind == STDOUT {
                        out.extend_from_slice(bytes)
                    } else {
                        err.extend_from_slice(bytes)
                    }
                    Ok(())
                };
                code = decoder.feed(piece, &mut show).unwrap();
            }
            assert_eq!(
                (out.as_slice(), err.as_slice(), code),
                (&b"hi!"[..], &b"err"[..], Some(137)),
                "{step}"
            );
        }
        for bad in [&b"\x09\0\0\0\x01"[..], b"\x01\xff\xff\xff\xff", b"\x03\0\0\0\x01"] {
            assert!(Decoder::default().feed(bad, &mut |_, _| Ok(())).is_err());
        }
    }
}
