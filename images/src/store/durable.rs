//! The few ways in which the store changes the disk, each safe against a power cut at any point.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use rustix::fs::FlockOperation;

use super::Error;
use crate::disk;

/// Makes the names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<(), Error> {
    disk::sync_dir(dir).map_err(|e| Error::io("sync", dir, e))
}

/// Makes a directory that only its owner may enter, unless it is there. Its name is durable: a blob that is synced in a
/// directory that is not would go with it.
pub(crate) fn make_dir(dir: &Path) -> Result<(), Error> {
    match disk::make_dir(dir) {
        Ok(()) => dir.parent().map_or(Ok(()), sync_dir),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(e) => Err(Error::io("create", dir, e)),
    }
}

/// Replaces `dir/name` by `bytes`: after a power cut the file has its previous bytes or these, never others. Callers hold
/// a lock that keeps a second writer of the same name away; what a cut leaves behind is overwritten by the next call.
pub(crate) fn replace(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    put(dir, name, bytes, true)?;
    sync_dir(dir)
}

/// As [`replace`], for what a power cut may take away but a killed process may not.
pub(super) fn replace_for_this_boot(dir: &Path, name: &str, bytes: &[u8]) -> Result<(), Error> {
    put(dir, name, bytes, false)
}

fn put(dir: &Path, name: &str, bytes: &[u8], durably: bool) -> Result<(), Error> {
    let temporary = dir.join(format!(".{name}.tmp"));
    let path = dir.join(name);
    let write = || {
        let file = disk::write_new(&temporary, bytes)?;
        if durably {
            disk::sync_data(&file)?;
        }
        disk::rename(&temporary, &path)
    };
    write().map_err(|e| {
        // Best effort: the name is overwritten next time anyway.
        let _ = disk::remove_file(&temporary);
        Error::io("write", &path, e)
    })
}

/// A file read whole, unless it is longer than `limit`; `None` where there is no such file.
pub(crate) fn read_bounded(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    use std::io::Read;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let mut bytes = Vec::new();
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Error::io("read", path, e))?;
    if bytes.len() as u64 > limit {
        return Err(Error::Broken {
            path: path.to_owned(),
            reason: format!("longer than {limit} bytes"),
        });
    }
    Ok(Some(bytes))
}

/// A `flock` on a file or directory, held until dropped; a dead process holds none.
#[derive(Debug)]
pub(super) struct Lock {
    /// What is locked.
    pub(super) file: File,
}

/// How a lock is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// Alone, waiting for whoever holds it.
    Wait,
    /// Alone, if nobody holds it.
    Try,
    /// Together with others that want it so, waiting for whoever holds it alone.
    Share,
}

/// Locks what `open` opens at `path` and makes sure that the name still means what was locked: the previous holder may
/// have renamed or removed it. `None` for [`Want::Try`] alone: another holds it, or there is nothing.
pub(super) fn lock(
    path: &Path,
    want: Want,
    mut open: impl FnMut(&Path) -> io::Result<File>,
) -> Result<Option<Lock>, Error> {
    let failed = |e: io::Error| Error::io("lock", path, e);
    let operation = match want {
        Want::Wait => FlockOperation::LockExclusive,
        Want::Try => FlockOperation::NonBlockingLockExclusive,
        Want::Share => FlockOperation::LockShared,
    };
    let wait = want != Want::Try;
    loop {
        let file = match open(path) {
            // Between making it and opening it somebody may have swept it away as abandoned. Where it cannot be made at
            // all, because its directory is gone, the error is told.
            Err(e)
                if e.kind() == io::ErrorKind::NotFound && wait && path.parent().is_some_and(Path::exists) =>
            {
                continue;
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound && wait => return Err(failed(e)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.map_err(failed)?,
        };
        match rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation)) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
            Err(e) => return Err(failed(e.into())),
        }
        let held = file.metadata().map_err(failed)?;
        match fs::symlink_metadata(path) {
            Ok(named) if (named.dev(), named.ino()) == (held.dev(), held.ino()) => {
                return Ok(Some(Lock { file }));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(failed(e)),
        }
    }
}

/// Removes a directory and all in it; nothing there is fine.
pub(super) fn remove_tree(dir: &Path) -> Result<(), Error> {
    match disk::remove_tree(dir) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", dir, e)),
        _ => Ok(()),
    }
}

/// The names in a directory, none when it is not there.
pub(super) fn names(dir: &Path) -> Result<Vec<(String, PathBuf)>, Error> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(e) => return Err(Error::io("list", dir, e)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|e| Error::io("list", dir, e))?;
        // The store's own names are ASCII; others are not its business.
        if let Ok(name) = entry.file_name().into_string() {
            names.push((name, entry.path()));
        }
    }
    names.sort();
    Ok(names)
}
