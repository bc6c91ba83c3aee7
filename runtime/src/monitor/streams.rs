//! The container's standard streams: from its pipes or its terminal to the log and the attached clients, and back.

use std::os::fd::{AsFd, OwnedFd};
use std::process::Stdio;
use std::time::Instant;

use rustix::event::epoll::EventFlags;
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use super::attach::Attach;
use super::console;
use super::frame::{self, Input};
use super::log::{Log, MAX_CONTENT, Stream};
use super::poll::{Poll, Source};
use super::settings::Settings;

pub(crate) const STDOUT: u64 = 3;
pub(crate) const STDERR: u64 = 4;
pub(crate) const STDIN: u64 = 5;

/// One read: room for the beginning of a line of up to `MAX_CONTENT` and as much again.
const BUFFER: usize = 2 * MAX_CONTENT;

/// One read from a client, and so the most input that is held for the container.
const INPUT: usize = 4096;

/// Reads from one stream before the others have their turn.
const ROUNDS: usize = 8;

/// Reads after init has ended: all that a pipe of the largest permitted size can hold. A process outside the
/// container's PID namespace could write for ever.
const DRAIN_ROUNDS: usize = (1 << 20) / MAX_CONTENT;

/// The monitor's ends of the container's streams, and where they lead.
#[derive(Debug)]
pub(crate) struct Streams {
    stdout: Option<Source>,
    stderr: Option<Source>,
    stdin: Option<Source>,
    terminal: bool,
    /// Keeps the terminal from being hung up while no process of the container has it open.
    _peer: Option<OwnedFd>,
    /// Standard input ends with the client that was waited for.
    stdin_once: bool,
    /// Input that the container has not taken yet: what is left of one read from one client.
    input: Vec<u8>,
    close_stdin: bool,
    pub(crate) log: Log,
    pub(crate) attach: Attach,
    buffer: Box<[u8; BUFFER]>,
}

/// The container's ends, to be given to the runtime, and the monitor's end of standard error.
pub(crate) struct Ends {
    pub(crate) stdin: Stdio,
    pub(crate) stdout: Stdio,
    pub(crate) stderr: Stdio,
    pub(crate) errors: OwnedFd,
}

impl Streams {
    /// Streams that are not connected yet.
    pub(crate) fn new(settings: &Settings, log: Log, attach: Attach) -> Self {
        Self {
            stdout: None,
            stderr: None,
            stdin: None,
            terminal: settings.terminal,
            _peer: None,
            stdin_once: settings.wait_attach && !settings.terminal,
            input: Vec::new(),
            close_stdin: false,
            log,
            attach,
            buffer: Box::new([0; BUFFER]),
        }
    }

    /// Makes the container's ends. A container with a terminal gets `/dev/null` for the time until it has it; what is
    /// written to the standard error then is the runtime's.
    pub(crate) fn ends(&mut self, open_stdin: bool) -> Result<Ends, Errno> {
        let (errors, stderr) = output_pipe()?;
        let mut ends = Ends {
            stdin: Stdio::null(),
            stdout: Stdio::null(),
            stderr: stderr.into(),
            errors,
        };
        if !self.terminal {
            let (stdout, end) = output_pipe()?;
            self.stdout = Some(Source::new(stdout, STDOUT));
            ends.stdout = end.into();
            if open_stdin {
                let (end, stdin) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
                rustix::io::ioctl_fionbio(&stdin, true)?;
                self.stdin = Some(Source::new(stdin, STDIN));
                ends.stdin = end.into();
            }
        }
        Ok(ends)
    }

    /// Takes over the monitor's end of standard error, after `create` has used it for its own messages.
    pub(crate) fn take_stderr(&mut self, errors: OwnedFd) {
        if !self.terminal {
            self.stderr = Some(Source::new(errors, STDERR));
        }
    }

    /// Takes the container's terminal.
    pub(crate) fn take_terminal(&mut self, master: OwnedFd, open_stdin: bool) -> Result<(), Errno> {
        self._peer = console::peer(&master);
        if open_stdin {
            let copy = rustix::io::fcntl_dupfd_cloexec(&master, 0)?;
            self.stdin = Some(Source::new(copy, STDIN));
        }
        self.stdout = Some(Source::new(master, STDOUT));
        Ok(())
    }

    /// True once the terminal has arrived.
    pub(crate) fn has_output(&self) -> bool {
        self.stdout.is_some()
    }

    /// Asks for the events that are needed next.
    pub(crate) fn settle(&mut self, poll: &Poll) {
        let ready_for_input = self.input.is_empty();
        if self.attach.settle(poll, ready_for_input) && self.stdin_once {
            self.close_stdin = true;
        }
        if self.close_stdin && ready_for_input && !self.terminal {
            self.stdin = None;
        }
        // A client that is behind holds the container's output back, for a limited time: see `attach`.
        let reading = if self.attach.has_backlog() {
            EventFlags::empty()
        } else {
            EventFlags::IN
        };
        for output in [&mut self.stdout, &mut self.stderr] {
            if output
                .as_mut()
                .is_some_and(|source| source.want(poll, reading).is_err())
            {
                *output = None;
            }
        }
        // Even without anything to write, epoll tells that the container has closed its end.
        let writing = if ready_for_input {
            EventFlags::ERR
        } else {
            EventFlags::OUT
        };
        let writing = if self.terminal && ready_for_input {
            EventFlags::empty()
        } else {
            writing
        };
        if self
            .stdin
            .as_mut()
            .is_some_and(|source| source.want(poll, writing).is_err())
        {
            self.stdin = None;
        }
    }

    /// Moves output that has arrived.
    pub(crate) fn pump(&mut self, stream: Stream) {
        self.read(stream, ROUNDS);
    }

    /// Moves the output that is left after the container's end, and closes the streams.
    pub(crate) fn drain(&mut self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.read(stream, DRAIN_ROUNDS);
        }
        self.stdout = None;
        self.stderr = None;
        self.stdin = None;
        self.input = Vec::new();
    }

    fn read(&mut self, stream: Stream, rounds: usize) {
        let (source, kind) = match stream {
            Stream::Stdout => (&mut self.stdout, frame::STDOUT),
            Stream::Stderr => (&mut self.stderr, frame::STDERR),
        };
        let Some(fd) = source else {
            return;
        };
        let mut open = true;
        // Bytes at the front of the buffer that begin a line.
        let mut held = 0;
        for _ in 0..rounds {
            let read = rustix::io::retry_on_intr(|| rustix::io::read(&*fd, &mut self.buffer[held..]));
            let count = match read {
                Ok(count) if count > 0 => count,
                Err(Errno::AGAIN) => break,
                // A terminal that nobody has open any more reports an error instead of its end.
                Ok(_) | Err(_) => {
                    open = false;
                    break;
                }
            };
            let filled = held + count;
            self.attach.broadcast(kind, &self.buffer[held..filled]);
            let taken = self.log.lines(stream, &self.buffer[..filled]);
            self.buffer.copy_within(taken..filled, 0);
            held = filled - taken;
            if rounds == ROUNDS && self.attach.has_backlog() {
                break;
            }
        }
        if held > 0 {
            self.log.partial(stream, &self.buffer[..held]);
        }
        self.log.flush();
        if !open {
            *source = None;
        }
    }

    /// Says something in the log, in the place of the container.
    pub(crate) fn log_text(&mut self, text: &[u8]) {
        let taken = self.log.lines(Stream::Stderr, text);
        if taken < text.len() {
            self.log.partial(Stream::Stderr, &text[taken..]);
        }
        self.log.flush();
    }

    /// Something happened on the socket of a client.
    pub(crate) fn client_event(&mut self, token: u64, flags: EventFlags) {
        let Some(index) = self
            .attach
            .clients
            .iter()
            .position(|client| client.token == token)
        else {
            return;
        };
        let client = &mut self.attach.clients[index];
        if flags.intersects(EventFlags::HUP | EventFlags::ERR) {
            client.deaf = true;
        }
        if flags.contains(EventFlags::OUT) && client.flush(Instant::now()).is_err() {
            client.deaf = true;
        }
        if flags.contains(EventFlags::IN) && self.input.is_empty() && !client.silent {
            self.read_client(index);
        }
    }

    fn read_client(&mut self, index: usize) {
        let client = &mut self.attach.clients[index];
        let mut bytes = [0; INPUT];
        let mut rest = match rustix::io::retry_on_intr(|| rustix::io::read(&client.source, &mut bytes)) {
            Ok(count) if count > 0 => &bytes[..count],
            Err(Errno::AGAIN) => return,
            Ok(_) => {
                client.silent = true;
                return;
            }
            Err(_) => {
                (client.silent, client.deaf) = (true, true);
                return;
            }
        };
        loop {
            match client.decoder.next(&mut rest) {
                Ok(None) => break,
                Ok(Some(Input::Stdin(piece))) if self.stdin.is_some() && !self.close_stdin => {
                    self.input.extend_from_slice(piece);
                }
                // Standard input is /dev/null, or closed: there is nobody to give it to.
                Ok(Some(Input::Stdin(_))) => {}
                // A terminal's end of input is a character, which the client sends as any other.
                Ok(Some(Input::CloseStdin)) => self.close_stdin |= !self.terminal,
                Ok(Some(Input::Resize { rows, columns })) => {
                    if let Some(terminal) = self.stdout.as_ref().filter(|_| self.terminal) {
                        console::resize(terminal, rows, columns);
                    }
                }
                Err(_) => {
                    // It speaks another protocol: nothing of it can be trusted, nor will it understand us.
                    (client.silent, client.deaf) = (true, true);
                    break;
                }
            }
        }
        self.write_input();
    }

    /// Gives the container as much input as it takes.
    pub(crate) fn write_input(&mut self) {
        let Some(stdin) = &self.stdin else {
            self.input.clear();
            return;
        };
        let mut written = 0;
        while written < self.input.len() {
            match rustix::io::retry_on_intr(|| rustix::io::write(stdin, &self.input[written..])) {
                Ok(count) => written += count,
                Err(Errno::AGAIN) => break,
                Err(_) => {
                    self.close_input();
                    return;
                }
            }
        }
        self.input.drain(..written);
    }

    /// The container reads no more input.
    pub(crate) fn close_input(&mut self) {
        self.stdin = None;
        self.input.clear();
    }
}

/// A pipe whose reading end does not block.
fn output_pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(read.as_fd(), true)?;
    Ok((read, write))
}
