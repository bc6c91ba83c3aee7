//! One container's directory: its files, its locks, and how they are read and replaced.
//!
//! `lock` serialises whoever changes the container. The directory may be gone, or renamed away for removal, by the time
//! the lock is granted, so a lock counts only if the path still leads to the file that was locked. `monitor.lock` is
//! held by the monitor for its life and only ever probed here.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::Error;
use super::observed::{Observed, Timestamp, VERSION};
use super::spec::{Id, Spec};

/// No record is larger; more is not read into memory.
const RECORD_MAX: u64 = 4 << 20;

/// The record in `desired`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Desired {
    pub(crate) version: u32,
    pub(crate) id: Id,
    pub(crate) created_at: Timestamp,
    pub(crate) spec: Spec,
}

impl Desired {
    /// Reads a record; a newer version is refused as such and not as damage.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Problem> {
        check_version(bytes)?;
        serde_json::from_slice(bytes).map_err(|error| Problem::Damaged(error.to_string()))
    }
}

/// Why the bytes of a record are of no use here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Newer(u32),
    Damaged(String),
}

fn check_version(bytes: &[u8]) -> Result<(), Problem> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    match serde_json::from_slice::<Versioned>(bytes) {
        Ok(Versioned { version: VERSION }) => Ok(()),
        Ok(Versioned { version }) if version > VERSION => Err(Problem::Newer(version)),
        Ok(Versioned { version }) => Err(Problem::Damaged(format!("version {version} never existed"))),
        Err(error) => Err(Problem::Damaged(error.to_string())),
    }
}

fn parse_observed(bytes: &[u8]) -> Result<Observed, Problem> {
    check_version(bytes)?;
    serde_json::from_slice(bytes).map_err(|error| Problem::Damaged(error.to_string()))
}

/// A held `flock`, given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: OwnedFd,
}

/// A container's directory, which may vanish at any time while no [`Lock`] is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Directory {
    path: PathBuf,
}

impl Directory {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Waits for the container's lock.
    pub(crate) fn lock(&self) -> Result<Lock, Error> {
        match self.try_flock("lock", FlockOperation::LockExclusive)? {
            Some(lock) => Ok(lock),
            None => Err(Error::Busy {
                container: self.name(),
            }),
        }
    }

    /// The container's lock, unless someone else has it.
    pub(crate) fn try_lock(&self) -> Result<Option<Lock>, Error> {
        self.try_flock("lock", FlockOperation::NonBlockingLockExclusive)
    }

    /// Whether a monitor holds `monitor.lock`. A directory without that file has never had one.
    pub(crate) fn supervised(&self) -> Result<bool, Error> {
        match self.try_flock("monitor.lock", FlockOperation::NonBlockingLockShared) {
            Ok(lock) => Ok(lock.is_none()),
            Err(Error::Gone { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the monitor's lock, so that no monitor can come, unless there is one.
    pub(crate) fn keep_monitors_out(&self) -> Result<Option<Lock>, Error> {
        let path = self.join("monitor.lock");
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        rustix::fs::open(&path, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| Error::io("open", &path, error))?;
        self.try_flock("monitor.lock", FlockOperation::NonBlockingLockExclusive)
    }

    fn try_flock(&self, name: &str, operation: FlockOperation) -> Result<Option<Lock>, Error> {
        let path = self.join(name);
        let gone = || Error::Gone {
            container: self.name(),
        };
        loop {
            let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            let file = match rustix::fs::open(&path, flags, Mode::empty()) {
                Ok(file) => file,
                Err(Errno::NOENT) => return Err(gone()),
                Err(error) => return Err(Error::io("open", &path, error)),
            };
            match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)) {
                Ok(()) => {}
                Err(Errno::WOULDBLOCK) => return Ok(None),
                Err(error) => return Err(Error::io("lock", &path, error)),
            }
            let locked = rustix::fs::fstat(&file).map_err(|error| Error::io("stat", &path, error))?;
            match rustix::fs::lstat(&path) {
                Ok(there) if (there.st_dev, there.st_ino) == (locked.st_dev, locked.st_ino) => {
                    return Ok(Some(Lock { _file: file }));
                }
                Ok(_) => {}
                Err(Errno::NOENT) => return Err(gone()),
                Err(error) => return Err(Error::io("stat", &path, error)),
            }
        }
    }

    /// The owner's record.
    pub(crate) fn desired(&self) -> Result<Desired, Error> {
        let path = self.join("desired");
        let Some(bytes) = read_bounded(&path, RECORD_MAX)? else {
            return Err(Error::Gone {
                container: self.name(),
            });
        };
        let desired = Desired::parse(&bytes).map_err(|problem| Error::record(&path, problem))?;
        if self.path.file_name().and_then(|name| name.to_str()) == Some(desired.id.hex().as_str()) {
            return Ok(desired);
        }
        Err(Error::record(
            &path,
            Problem::Damaged("it is the record of another container".into()),
        ))
    }

    /// The monitor's record, if there has been a monitor.
    pub(crate) fn observed(&self) -> Result<Option<Observed>, Error> {
        let path = self.join("observed");
        let Some(bytes) = read_bounded(&path, RECORD_MAX)? else {
            return Ok(None);
        };
        parse_observed(&bytes)
            .map(Some)
            .map_err(|problem| Error::record(&path, problem))
    }

    /// When the container last gave a sign of life, as far as its files tell.
    pub(crate) fn last_sign(&self) -> Timestamp {
        let written = |name| {
            fs::metadata(self.join(name))
                .and_then(|meta| meta.modified())
                .ok()
        };
        let latest = written("log")
            .max(written("observed"))
            .unwrap_or(SystemTime::UNIX_EPOCH);
        Timestamp::new(latest.into())
    }

    fn name(&self) -> String {
        let name = self
            .path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default();
        name.get(..12).map_or(name.clone(), str::to_owned)
    }
}

/// Reads a whole small file that must be a regular one. `None` when there is no such file.
pub(crate) fn read_bounded(path: &Path, max: u64) -> Result<Option<Vec<u8>>, Error> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(Error::io("open", path, error)),
    };
    let mut bytes = Vec::new();
    file.take(max + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| Error::io("read", path, error))?;
    if bytes.len() as u64 > max {
        return Err(Error::record(
            path,
            Problem::Damaged(format!("it is larger than {max} bytes")),
        ));
    }
    Ok(Some(bytes))
}

/// Replaces a file so that after a power cut it holds the one or the other content.
pub(crate) fn write_durably(path: &Path, bytes: &[u8]) -> Result<(), Error> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let partial = dir.join(format!(".{name}.{}", std::process::id()));
    let written = (|| -> io::Result<()> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut file = File::from(rustix::fs::open(&partial, flags, Mode::RUSR | Mode::WUSR)?);
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&partial, path)
    })();
    if let Err(error) = written {
        let _ = fs::remove_file(&partial);
        return Err(Error::io("write", path, error));
    }
    sync_directory(dir)
}

/// Makes what was renamed or made in a directory durable.
pub(crate) fn sync_directory(dir: &Path) -> Result<(), Error> {
    File::open(dir)
        .and_then(|dir| dir.sync_all())
        .map_err(|error| Error::io("sync", dir, error))
}

/// A directory for this user alone; one that is there stays as it is.
pub(crate) fn make_directory(path: &Path) -> Result<(), Error> {
    match rustix::fs::mkdir(path, Mode::RWXU) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(Error::io("make the directory", path, error)),
    }
}

/// An exclusive `flock` on a file that is made when it is missing and never removed.
pub(crate) fn lock_file(path: &Path) -> Result<Lock, Error> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let file = rustix::fs::open(path, flags, Mode::RUSR | Mode::WUSR)
        .map_err(|error| Error::io("open", path, error))?;
    rustix::io::retry_on_intr(|| rustix::fs::flock(file.as_fd(), FlockOperation::LockExclusive))
        .map_err(|error| Error::io("lock", path, error))?;
    Ok(Lock { _file: file })
}
