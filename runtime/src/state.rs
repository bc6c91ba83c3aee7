//! What is kept of a container between two calls: `ROOT/ID/` with `state.json`, `exec.sock`, `cgroup` and `lock`.
//!
//! The directory is volatile state of this boot: it is replaced by rename, so that a reader sees the old or the new
//! record, but not synced. A directory without `state.json` is a creation under way, or what a killed one left; where the
//! directory outlives the boot, a power cut leaves an empty file, which says as little.
//! Processes are named by id and start time, so a recycled id (or another boot's) is never signalled.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::process::{Pid, PidfdFlags, Signal};
use serde::{Deserialize, Serialize};

use crate::cgroup::Cgroup;
use crate::config::Hooks;
use crate::error::{Context, Error};
use crate::launch::Message;
use crate::wire;

/// The format this code writes. A higher one is refused untouched.
const VERSION: u32 = 1;

/// The largest record that is read.
const MAX_RECORD: u64 = 4 << 20;

/// Longest container id: a file name.
const MAX_ID: usize = 255;

/// How often a lock is tried again, and a process looked at where the kernel has no pidfd.
const LOOK: Duration = Duration::from_millis(10);

/// A process that cannot be mistaken for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProcessId {
    pub(crate) pid: i32,
    /// Clock ticks after boot.
    pub(crate) start: u64,
}

impl ProcessId {
    /// Names a process that is alive now.
    pub(crate) fn of(pid: Pid) -> Result<Self, Error> {
        let pid = pid.as_raw_nonzero().get();
        let (start, _) = stat(pid).context(|| format!("process {pid}"))?;
        Ok(Self { pid, start })
    }

    /// Whether it is there and no zombie.
    pub(crate) fn is_alive(self) -> bool {
        stat(self.pid).is_ok_and(|(start, state)| start == self.start && !matches!(state, 'Z' | 'X' | 'x'))
    }

    /// Sends a signal to this very process.
    pub(crate) fn signal(self, signal: i32) -> Result<(), Error> {
        let what = || format!("signal {signal} to process {}", self.pid);
        let gone = || Error::Io {
            what: what(),
            source: std::io::Error::from_raw_os_error(libc::ESRCH),
        };
        let pid = Pid::from_raw(self.pid).ok_or_else(gone)?;
        let signal = signal_of(signal)?;
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(pidfd) => {
                if !self.is_alive() {
                    return Err(gone());
                }
                rustix::process::pidfd_send_signal(pidfd, signal).context(what)
            }
            Err(rustix::io::Errno::NOSYS) if self.is_alive() => {
                rustix::process::kill_process(pid, signal).context(what)
            }
            Err(_) => Err(gone()),
        }
    }

    /// Waits until it has ended; false if it has not within `limit`.
    pub(crate) fn wait_end(self, limit: Duration) -> bool {
        let pidfd = Pid::from_raw(self.pid)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        let start = std::time::Instant::now();
        while self.is_alive() {
            let left = limit.saturating_sub(start.elapsed());
            if left.is_zero() {
                return false;
            }
            let mut fds: Vec<PollFd<'_>> = pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
            // The descriptor speaks a moment before the process is a zombie for /proc: look again soon in any case.
            let nap = if fds.is_empty() { left.min(LOOK) } else { left };
            let nap = Timespec {
                tv_sec: nap.as_secs() as i64,
                tv_nsec: i64::from(nap.subsec_nanos()),
            };
            let _ = rustix::event::poll(&mut fds, Some(&nap));
        }
        true
    }
}

/// A signal by number, real-time ones included.
pub(crate) fn signal_of(number: i32) -> Result<Signal, Error> {
    crate::sys::signal(number).ok_or_else(|| Error::Usage(format!("signal {number}: expected 1 to 64")))
}

/// The parent of a process.
pub(crate) fn parent(pid: i32) -> std::io::Result<i32> {
    let rest = stat_fields(pid)?;
    let parent = rest.split_ascii_whitespace().nth(1).and_then(|s| s.parse().ok());
    parent.ok_or_else(|| std::io::ErrorKind::InvalidData.into())
}

/// The fields of `/proc/PID/stat` after the name, which, in parentheses, may hold anything.
fn stat_fields(pid: i32) -> std::io::Result<String> {
    let mut text = String::new();
    std::fs::File::open(format!("/proc/{pid}/stat"))?.read_to_string(&mut text)?;
    match text.rsplit_once(')') {
        Some((_, rest)) => Ok(rest.to_owned()),
        None => Err(std::io::ErrorKind::InvalidData.into()),
    }
}

/// Start time and state letter of a process.
fn stat(pid: i32) -> std::io::Result<(u64, char)> {
    let malformed = || std::io::Error::from(std::io::ErrorKind::InvalidData);
    let rest = stat_fields(pid)?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields
        .next()
        .and_then(|s| s.chars().next())
        .ok_or_else(malformed)?;
    let start = fields
        .nth(18)
        .and_then(|s| s.parse().ok())
        .ok_or_else(malformed)?;
    Ok((start, state))
}

/// The record of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) version: u32,
    pub(crate) oci_version: String,
    pub(crate) bundle: PathBuf,
    pub(crate) init: ProcessId,
    pub(crate) spawner: ProcessId,
    #[serde(default)]
    pub(crate) annotations: BTreeMap<String, String>,
    /// Guarantees lost and fields not honoured.
    #[serde(default)]
    pub(crate) warnings: Vec<String>,
    #[serde(default)]
    pub(crate) hooks: Hooks,
    /// The container's cgroup, where there is one.
    #[serde(default)]
    pub(crate) cgroup: Option<Cgroup>,
}

impl Record {
    pub(crate) const VERSION: u32 = VERSION;
}

/// The OCI state of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    Creating,
    Created,
    Running,
    Paused,
    Stopped,
}

impl Status {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

/// The directory of all containers.
#[derive(Debug)]
pub struct Root(PathBuf);

impl Root {
    /// The directory given, or the default one: `/run` for the host's root, else beneath `XDG_RUNTIME_DIR`, or `/tmp`.
    ///
    /// # Errors
    ///
    /// If it cannot be made, or if it is another user's or writable for others.
    pub fn open(given: Option<&Path>) -> Result<Self, Error> {
        let uid = rustix::process::geteuid();
        let path = match (given, std::env::var_os("XDG_RUNTIME_DIR")) {
            (Some(path), _) => path.to_owned(),
            (None, _) if crate::launch::is_host_root() => PathBuf::from("/run/wherry"),
            (None, Some(directory)) if !directory.is_empty() => Path::new(&directory).join("wherry"),
            (None, _) => PathBuf::from(format!("/tmp/wherry-{}", uid.as_raw())),
        };
        let what = || format!("root directory {}", path.display());
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .context(what)?;
        let path = std::path::absolute(&path).context(what)?;
        let metadata = std::fs::symlink_metadata(&path).context(what)?;
        // In /tmp somebody else may have been first. A directory of the caller's own choice may be a link.
        if given.is_none() && !metadata.is_dir() {
            return Err(Error::Usage(format!("{}: not a directory", what())));
        }
        let metadata = std::fs::metadata(&path).context(what)?;
        if metadata.uid() != uid.as_raw() && !uid.is_root() {
            return Err(Error::Usage(format!(
                "{}: belongs to user {}",
                what(),
                metadata.uid()
            )));
        }
        if metadata.mode() & 0o022 != 0 {
            return Err(Error::Usage(format!(
                "{}: writable for others (mode {:o})",
                what(),
                metadata.mode() & 0o7777
            )));
        }
        Ok(Self(path))
    }

    /// Makes the directory of a new container and takes its lock.
    pub(crate) fn make(&self, id: &str) -> Result<Directory, Error> {
        check_id(id)?;
        let path = self.0.join(id);
        match std::fs::DirBuilder::new().mode(0o700).create(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                return Err(Error::Exists(id.to_owned()));
            }
            Err(e) => return Err(e).context(|| path.display().to_string()),
        }
        let directory = Directory::open(id, path)?;
        directory.lock(Duration::ZERO)?;
        Ok(directory)
    }

    /// The directory of a container.
    pub(crate) fn find(&self, id: &str) -> Result<Directory, Error> {
        check_id(id)?;
        Directory::open(id, self.0.join(id))
    }

    /// The ids of all containers, sorted.
    pub(crate) fn ids(&self) -> Result<Vec<String>, Error> {
        let mut ids = Vec::new();
        for entry in std::fs::read_dir(&self.0).context(|| self.0.display().to_string())? {
            let entry = entry.context(|| self.0.display().to_string())?;
            if let Ok(name) = entry.file_name().into_string()
                && check_id(&name).is_ok()
                && entry.file_type().is_ok_and(|kind| kind.is_dir())
            {
                ids.push(name);
            }
        }
        ids.sort();
        Ok(ids)
    }
}

fn check_id(id: &str) -> Result<(), Error> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    if id.is_empty() || id.len() > MAX_ID || id.starts_with('.') || !id.bytes().all(valid) {
        return Err(Error::Usage(format!(
            "container id {id:?}: expected letters, digits, _ . + -"
        )));
    }
    Ok(())
}

/// The directory of one container.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) id: String,
    path: PathBuf,
    fd: OwnedFd,
    lock: OwnedFd,
}

impl Directory {
    fn open(id: &str, path: PathBuf) -> Result<Self, Error> {
        let what = || path.display().to_string();
        let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
        let fd = match rustix::fs::open(&path, flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Err(Error::NotFound(id.to_owned())),
            fd => fd.context(what)?,
        };
        let lock = match rustix::fs::openat(
            &fd,
            "lock",
            OFlags::CREATE | OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::RUSR | Mode::WUSR,
        ) {
            // Removed between the two calls.
            Err(rustix::io::Errno::NOENT) => return Err(Error::NotFound(id.to_owned())),
            lock => lock.context(what)?,
        };
        Ok(Self {
            id: id.to_owned(),
            path,
            fd,
            lock,
        })
    }

    /// Takes the container's lock until this value is dropped; false if somebody else still has it after `patience`.
    ///
    /// A creation holds it, and the processes of one whose creator was killed until they notice.
    pub(crate) fn lock(&self, patience: Duration) -> Result<bool, Error> {
        let start = std::time::Instant::now();
        loop {
            match rustix::fs::flock(&self.lock, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(true),
                Err(rustix::io::Errno::WOULDBLOCK) if start.elapsed() >= patience => return Ok(false),
                // There is no lock with a timeout.
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOOK),
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e).context(|| format!("lock container {}", self.id)),
            }
        }
    }

    /// Gives the lock back, also for processes that inherited it.
    pub(crate) fn unlock(&self) -> Result<(), Error> {
        rustix::fs::flock(&self.lock, FlockOperation::Unlock)
            .context(|| format!("unlock container {}", self.id))
    }

    /// Whether the name still stands for this directory: somebody may have deleted it before the lock was taken.
    pub(crate) fn is_current(&self) -> Result<bool, Error> {
        let what = || self.path.display().to_string();
        match rustix::fs::lstat(&self.path) {
            Ok(named) => {
                let held = rustix::fs::fstat(&self.fd).context(what)?;
                Ok((named.st_dev, named.st_ino) == (held.st_dev, held.st_ino))
            }
            Err(rustix::io::Errno::NOENT) => Ok(false),
            Err(e) => Err(e).context(what),
        }
    }

    /// Reads the record; `None` while the container is being created.
    pub(crate) fn record(&self) -> Result<Option<Record>, Error> {
        let what = || self.path.join("state.json").display().to_string();
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(&self.fd, "state.json", flags, Mode::empty()) {
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            file => std::fs::File::from(file.context(what)?),
        };
        let mut text = Vec::new();
        file.take(MAX_RECORD).read_to_end(&mut text).context(what)?;
        // Never synced: what a power cut leaves of it. Nothing that it named is alive.
        if text.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        #[derive(Deserialize)]
        struct Header {
            version: u32,
        }
        let damaged = |e: serde_json::Error| Error::Corrupt(format!("{}: {e}", what()));
        let header: Header = serde_json::from_slice(&text).map_err(damaged)?;
        if header.version > VERSION {
            return Err(Error::Corrupt(format!(
                "{}: written by a newer version (format {}, this one knows {VERSION})",
                what(),
                header.version
            )));
        }
        serde_json::from_slice(&text).map_err(damaged).map(Some)
    }

    /// Writes down where the container's cgroup is about to be, for whoever cleans up after a killed creation.
    pub(crate) fn write_cgroup(&self, cgroup: &Cgroup) -> Result<(), Error> {
        let what = || self.path.join("cgroup").display().to_string();
        let text = serde_json::to_vec(cgroup).map_err(|e| Error::Corrupt(format!("{}: {e}", what())))?;
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, "cgroup", flags, Mode::RUSR | Mode::WUSR).context(what)?;
        std::fs::File::from(file).write_all(&text).context(what)
    }

    /// Where a creation that was not completed has put the cgroup.
    pub(crate) fn cgroup(&self) -> Option<Cgroup> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.fd, "cgroup", flags, Mode::empty()).ok()?;
        let mut text = Vec::new();
        let file = std::fs::File::from(file);
        file.take(MAX_RECORD).read_to_end(&mut text).ok()?;
        // Cut off: it was killed while writing, before anything was made.
        serde_json::from_slice(&text).ok()
    }

    /// Replaces the record.
    pub(crate) fn write(&self, record: &Record) -> Result<(), Error> {
        let what = || self.path.join("state.json").display().to_string();
        let text = serde_json::to_vec(record).map_err(|e| Error::Corrupt(format!("{}: {e}", what())))?;
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file =
            rustix::fs::openat(&self.fd, "state.json.new", flags, Mode::RUSR | Mode::WUSR).context(what)?;
        std::fs::File::from(file).write_all(&text).context(what)?;
        rustix::fs::renameat(&self.fd, "state.json.new", &self.fd, "state.json").context(what)
    }

    /// The address of `exec.sock`, through our descriptor: the path may be longer than an address can be.
    fn address(&self) -> Result<SocketAddrUnix, Error> {
        SocketAddrUnix::new(format!("/proc/self/fd/{}/exec.sock", self.fd.as_raw_fd()))
            .context(|| "exec.sock")
    }

    /// Makes `exec.sock`.
    pub(crate) fn listen(&self) -> Result<OwnedFd, Error> {
        let what = || self.path.join("exec.sock").display().to_string();
        let socket = socket().context(what)?;
        rustix::net::bind(&socket, &self.address()?).context(what)?;
        rustix::net::listen(&socket, 16).context(what)?;
        Ok(socket)
    }

    /// Connects to the spawner.
    pub(crate) fn connect(&self) -> Result<OwnedFd, Error> {
        let what = || format!("container {}: its spawner does not answer", self.id);
        let socket = socket().context(what)?;
        rustix::net::connect(&socket, &self.address()?).context(what)?;
        Ok(socket)
    }

    /// The status of a container with this record.
    pub(crate) fn status(&self, record: Option<&Record>) -> Status {
        let Some(record) = record else {
            return Status::Creating;
        };
        if !record.init.is_alive() {
            return Status::Stopped;
        }
        // The spawner knows whether it told init to start. Without it, init can only be one that was started: a waiting
        // init ends with its spawner.
        let asked = self.connect().and_then(|spawner| {
            wire::send(&spawner, Message::Status as u8, &[], &[]).context(|| "spawner")?;
            wire::receive(&spawner).context(|| "spawner")
        });
        match asked {
            Ok(Some(packet)) if packet.number(0) == Some(0) => Status::Created,
            _ if !record.init.is_alive() => Status::Stopped,
            _ if record.cgroup.as_ref().is_some_and(Cgroup::is_frozen) => Status::Paused,
            _ => Status::Running,
        }
    }

    /// Removes the directory and what is in it.
    pub(crate) fn remove(&self) -> Result<(), Error> {
        for file in ["exec.sock", "state.json", "state.json.new", "cgroup", "lock"] {
            match rustix::fs::unlinkat(&self.fd, file, rustix::fs::AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(e) => return Err(e).context(|| self.path.join(file).display().to_string()),
            }
        }
        std::fs::remove_dir(&self.path).context(|| self.path.display().to_string())
    }
}

fn socket() -> rustix::io::Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )
}

/// Passes the descriptor of a client's socket to a function that needs it borrowed.
pub(crate) fn ask(
    connection: &OwnedFd,
    message: Message,
    payload: &[i32],
) -> Result<Option<wire::Packet>, Error> {
    wire::send_numbers(connection.as_fd(), message as u8, payload).context(|| "spawner")?;
    wire::receive(connection).context(|| "spawner")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_file_names_that_cannot_climb() {
        for good in ["a", "A-1_b.c+d", &"x".repeat(255)] {
            assert!(check_id(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            ".hidden",
            "a/b",
            "a b",
            "a\0",
            "ü",
            &"x".repeat(256),
        ] {
            assert!(check_id(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let me = ProcessId::of(rustix::process::getpid()).unwrap();
        assert!(me.is_alive());
        let other = ProcessId {
            start: me.start + 1,
            ..me
        };
        assert!(!other.is_alive());
        assert!(other.signal(libc::SIGKILL).is_err());
        assert!(other.wait_end(Duration::ZERO));
    }

    #[test]
    fn a_root_of_somebody_else_or_open_to_others_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        let root = Root::open(Some(&path)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o700);
        root.make("a").unwrap();
        assert!(matches!(root.make("a"), Err(Error::Exists(_))));
        assert!(matches!(root.find("b"), Err(Error::NotFound(_))));
        assert_eq!(root.ids().unwrap(), ["a"]);
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
        assert!(
            Root::open(Some(&path))
                .unwrap_err()
                .to_string()
                .contains("writable for others")
        );
    }

    #[test]
    fn what_a_power_cut_leaves_of_a_record_is_none() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(Some(&directory.path().join("r"))).unwrap();
        let container = root.make("a").unwrap();
        for left in [&b""[..], &[0; 4096]] {
            std::fs::write(container.path.join("state.json"), left).unwrap();
            assert!(container.record().unwrap().is_none());
        }
        std::fs::write(container.path.join("state.json"), "{").unwrap();
        assert!(matches!(container.record(), Err(Error::Corrupt(_))));
    }

    #[test]
    fn a_newer_record_is_refused_and_left() {
        let directory = tempfile::tempdir().unwrap();
        let root = Root::open(Some(&directory.path().join("r"))).unwrap();
        let container = root.make("a").unwrap();
        assert!(container.record().unwrap().is_none());
        std::fs::write(
            container.path.join("state.json"),
            r#"{"version":2,"shape":"unknown"}"#,
        )
        .unwrap();
        assert!(
            container
                .record()
                .unwrap_err()
                .to_string()
                .contains("newer version")
        );
        assert!(container.path.join("state.json").exists());
    }
}
