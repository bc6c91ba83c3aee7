//! The monitor: one small process for each container, which outlives whoever started the container.
//!
//! It owns the container's standard streams and its log, the attach socket, the published ports' forwarder, and the
//! record of how the container ended. Its protocol with the rest of the world is files and one socket in the container's
//! directory: see `MONITOR.md` beside this crate's manifest. It trusts `monitor.json` (its owner wrote it), and neither
//! the container's output nor attached clients.

mod attach;
mod console;
mod frame;
mod init;
mod log;
mod observed;
mod poll;
mod settings;
mod streams;
mod supervise;
pub(crate) mod sys;
mod timestamp;
mod verb;

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use argh::FromArgs;
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;

use self::settings::Settings;
use self::sys::Forked;
use crate::{Class, forward};

pub use self::settings::VERSION;

/// Supervise one container until it ends: see MONITOR.md.
#[derive(FromArgs, Debug)]
#[argh(subcommand, name = "monitor")]
pub struct Args {
    /// the container's directory, which holds monitor.json and the bundle
    #[argh(option)]
    pub dir: PathBuf,
}

/// Why a container was not started.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The monitor's process could not be made.
    #[error("monitor: {0}")]
    Fork(#[source] Errno),
    /// The monitor said why. The text names the object.
    #[error("{reason}")]
    Refused {
        /// One line.
        reason: String,
        /// The exit code: the runtime's own where the runtime refused (126, 127), else 1.
        code: u8,
    },
    /// The monitor ended before it said anything.
    #[error("monitor: it was ended before the container was running")]
    Lost,
}

impl Error {
    /// Whether trying again is of use.
    pub fn class(&self) -> Class {
        match self {
            Self::Fork(_) | Self::Lost => Class::Transient,
            Self::Refused { .. } => Class::Permanent,
        }
    }

    /// The process's exit code for this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Fork(_) | Self::Lost => 1,
            Self::Refused { code, .. } => *code,
        }
    }
}

/// How long a held lock is tried again: who only looks whether a container is supervised holds it for microseconds.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// Longest reason that travels from the monitor to its creator.
const MAX_REASON: u64 = 4096;

/// Starts the monitor of the container in `args.dir` and returns once the container runs (or, with `waitAttach`, waits
/// for its first client).
///
/// Must be called from a single-threaded process: it forks.
pub fn run(args: Args) -> Result<ExitCode, Error> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(Error::Fork)?;
    match sys::fork().map_err(Error::Fork)? {
        Forked::Parent(_) => {
            drop(write);
            verdict(read)
        }
        Forked::Child => {
            let report = Report(write);
            match prepare(&args.dir, &report) {
                Ok(monitor) => monitor.run(report),
                Err(reason) => report.send(1, &reason),
            }
            sys::exit(0)
        }
    }
}

/// Reads what the monitor reports.
fn verdict(read: OwnedFd) -> Result<ExitCode, Error> {
    let mut report = Vec::new();
    let read = std::fs::File::from(read)
        .take(MAX_REASON)
        .read_to_end(&mut report);
    match (read, report.split_first()) {
        (Ok(_), Some((0, _))) => Ok(ExitCode::SUCCESS),
        (Ok(_), Some((&code, reason))) => Err(Error::Refused {
            reason: String::from_utf8_lossy(reason).into_owned(),
            code,
        }),
        _ => Err(Error::Lost),
    }
}

/// The way back to the creator: one message, `u8 code, reason`.
#[derive(Debug)]
struct Report(OwnedFd);

impl Report {
    /// Reports and closes. The creator may be gone, which is its own affair.
    fn send(self, code: u8, reason: &str) {
        let mut message = vec![code];
        message.extend_from_slice(reason.as_bytes());
        let _ = rustix::io::write(&self.0, &message);
    }
}

/// Everything that can fail before anything has been made. An error names what was wrong.
fn prepare(dir: &Path, report: &Report) -> Result<supervise::Monitor, String> {
    let path = std::fs::canonicalize(dir).map_err(|error| format!("{}: {error}", dir.display()))?;
    detach(report).map_err(|error| format!("monitor: {error}"))?;
    let at = |name: &str, error: &dyn std::fmt::Display| format!("{}: {error}", path.join(name).display());

    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::open(&path, flags, Mode::empty()).map_err(|error| at("", &error))?;
    let lock = lock(&directory).map_err(|error| match error {
        Errno::WOULDBLOCK => at("monitor.lock", &"held: the container has a monitor already"),
        error => at("monitor.lock", &error),
    })?;
    let settings = read_settings(&directory).map_err(|reason| at("monitor.json", &reason))?;
    let listeners = forward::listen(&settings.published()).map_err(|error| error.to_string())?;
    supervise::Monitor::new(path.clone(), Rc::new(directory), lock, settings, listeners)
        .map_err(|error| format!("monitor: {}: {error}", path.display()))
}

/// Leaves the creator's session, its descriptors and its terminal, and adopts what the runtime leaves behind.
fn detach(report: &Report) -> std::io::Result<()> {
    rustix::process::setsid()?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?;
    sys::close_all_except(&[0, 1, 2, report.0.as_raw_fd()])?;
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Takes the lock that says "this container has a monitor", for the life of the returned descriptor.
fn lock(directory: &OwnedFd) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let lock = rustix::fs::openat(directory, "monitor.lock", flags, Mode::from_raw_mode(0o600))?;
    let begin = Instant::now();
    loop {
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) if begin.elapsed() < LOCK_PATIENCE => std::thread::sleep(LOCK_INTERVAL),
            result => return result.map(|()| lock),
        }
    }
}

fn read_settings(directory: &OwnedFd) -> Result<Settings, String> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = rustix::fs::openat(directory, "monitor.json", flags, Mode::empty())
        .map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    let mut file = std::fs::File::from(file).take(settings::MAX_LENGTH + 1);
    file.read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    if bytes.len() as u64 > settings::MAX_LENGTH {
        return Err(format!("longer than {} bytes", settings::MAX_LENGTH));
    }
    settings::parse(&bytes)
}
