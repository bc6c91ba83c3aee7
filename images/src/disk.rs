//! Every call by which the store and the unpacking change the disk, and nothing else changes it.
//!
//! They are here, and thin, so that a test can write down what really happened and in which order: the crash proof
//! (`store/crash`) replays each beginning of that list, with and without what was not yet synced, as a power cut may
//! leave it. In the product each is the one system call (or library call) that it is named for.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
#[cfg(test)]
use std::os::fd::AsFd;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawMode, Timestamps, XattrFlags};

#[cfg(test)]
pub(crate) mod record;

/// Tells the recorder, in tests; nothing otherwise.
macro_rules! told {
    ($($call:tt)*) => {
        #[cfg(test)]
        record::$($call)*;
    };
}

/// Makes a directory for this user alone.
pub(crate) fn make_dir(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().mode(0o700).create(path)?;
    told!(made(path));
    Ok(())
}

/// Opens a file for reading and writing, making it when it is not there. What is in it stays.
pub(crate) fn open_or_make(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW);
    loop {
        match options.clone().create_new(true).open(path) {
            Ok(file) => {
                told!(made(path));
                return Ok(file);
            }
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e),
        }
        match options.open(path) {
            // Removed in between by another process.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
    }
}

/// Writes a file anew, whatever was there under the name before.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> io::Result<File> {
    let file = open_or_make(path)?;
    set_len(&file, 0)?;
    write_at(&file, bytes, 0)?;
    Ok(file)
}

/// Writes all of `bytes` at `offset`.
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    file.write_all_at(bytes, offset)?;
    told!(wrote(file.as_fd(), offset, bytes));
    Ok(())
}

/// Cuts a file, or makes it longer by a hole.
pub(crate) fn set_len(file: &File, len: u64) -> io::Result<()> {
    file.set_len(len)?;
    told!(resized(file.as_fd(), len));
    Ok(())
}

/// Makes a file's content durable.
pub(crate) fn sync_data(file: &File) -> io::Result<()> {
    file.sync_data()?;
    told!(synced(file.as_fd()));
    Ok(())
}

/// Makes the names in a directory durable.
pub(crate) fn sync_dir(path: &Path) -> io::Result<()> {
    let dir = File::open(path)?;
    dir.sync_all()?;
    told!(synced(dir.as_fd()));
    Ok(())
}

/// Makes everything on a file's file system durable.
pub(crate) fn sync_file_system(file: &File) -> io::Result<()> {
    rustix::fs::syncfs(file)?;
    told!(synced_all());
    Ok(())
}

/// Gives a file or directory another name, atomically taking the place of a file there.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    told!(renamed(from, to));
    Ok(())
}

/// Removes a file.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    told!(removed(path));
    Ok(())
}

/// Removes a directory and all in it.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    told!(removing_tree(path));
    fs::remove_dir_all(path)
}

/// As [`make_dir`], by descriptor.
pub(crate) fn make_dir_at(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> rustix::io::Result<()> {
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(mode as RawMode))?;
    told!(made_at(dir, name));
    Ok(())
}

/// A new file, open for writing.
pub(crate) fn make_file_at(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600))?;
    told!(made_at(dir, name));
    Ok(file)
}

/// A symbolic link.
pub(crate) fn make_symlink_at(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::symlinkat(target, dir, name)?;
    told!(made_at(dir, name));
    Ok(())
}

/// A FIFO or a character device 0:0.
pub(crate) fn make_node_at(
    dir: BorrowedFd<'_>,
    name: &[u8],
    kind: FileType,
    mode: u32,
) -> rustix::io::Result<()> {
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(mode as RawMode), 0)?;
    told!(made_at(dir, name));
    Ok(())
}

/// A further name of a file.
pub(crate) fn link_at(
    from: BorrowedFd<'_>,
    old: &[u8],
    dir: BorrowedFd<'_>,
    name: &[u8],
) -> rustix::io::Result<()> {
    rustix::fs::linkat(from, old, dir, name, AtFlags::empty())?;
    told!(linked_at(from, old, dir, name));
    Ok(())
}

/// Removes what is no directory.
pub(crate) fn remove_at(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::empty())?;
    told!(removed_at(dir, name));
    Ok(())
}

/// Sets the permission bits of what is open.
pub(crate) fn set_mode(fd: BorrowedFd<'_>, mode: u32) -> rustix::io::Result<()> {
    rustix::fs::fchmod(fd, Mode::from_raw_mode(mode as RawMode))?;
    told!(described(fd));
    Ok(())
}

/// Sets the times of what is open.
pub(crate) fn set_times(fd: BorrowedFd<'_>, times: &Timestamps) -> rustix::io::Result<()> {
    rustix::fs::futimens(fd, times)?;
    told!(described(fd));
    Ok(())
}

/// Sets the times of what has a name, a symbolic link's own.
pub(crate) fn set_times_at(dir: BorrowedFd<'_>, name: &[u8], times: &Timestamps) -> rustix::io::Result<()> {
    rustix::fs::utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW)?;
    told!(described_at(dir, name));
    Ok(())
}

/// Sets an extended attribute of what is open.
pub(crate) fn set_xattr(fd: BorrowedFd<'_>, name: &[u8], value: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty())?;
    told!(described(fd));
    Ok(())
}

/// A file that is written from its beginning to its end.
pub(crate) struct Output {
    file: File,
    len: u64,
}

impl Output {
    /// Over a file that is empty.
    pub(crate) fn new(file: File) -> Self {
        Self { file, len: 0 }
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write_at(&self.file, bytes, self.len)?;
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
