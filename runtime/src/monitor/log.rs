//! The container's log: CRI records in a file of bounded size, rotated, written so that a full disk costs lines but
//! never the container.
//!
//! A record is `<30 byte timestamp> <stdout|stderr> <F|P> <content>\n`; `P` marks content that its line goes on after.
//! What always holds: a file never grows beyond `maxSize`, holds whole records only (a record that was written in part
//! is cut off again), and what could not be written is counted and named in the next record that can be.

use std::io::IoSlice;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use super::settings::LogSettings;
use super::timestamp;

/// Longest content of one record; longer lines become several, all but the last marked `P`.
pub(crate) const MAX_CONTENT: usize = 16 * 1024;

/// Bytes before the content: timestamp, space, stream, space, tag, space.
const PREFIX: usize = timestamp::LENGTH + 1 + 6 + 1 + 1 + 1;

/// Records are gathered up to this size and written with one call.
const BATCH: usize = 32 * 1024;

/// The stream that a record came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, or the terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

/// The log of one container.
#[derive(Debug)]
pub(crate) struct Log {
    directory: Rc<OwnedFd>,
    settings: LogSettings,
    file: Option<OwnedFd>,
    /// Bytes in the current file.
    length: u64,
    batch: Vec<u8>,
    /// Length of the record at the front of `batch` that tells of `untold`, or 0.
    notice: usize,
    /// Not yet told in the log.
    untold: Loss,
    /// Since the beginning.
    total: Loss,
}

/// Output that could not be written.
#[derive(Debug, Default, Clone, Copy)]
struct Loss {
    bytes: u64,
    records: u64,
    cause: Option<Errno>,
}

impl Loss {
    fn add(&mut self, records: &[u8], cause: Errno) {
        for record in records.split_inclusive(|&byte| byte == b'\n') {
            let tag = record.get(PREFIX - 2).copied();
            // The line feed that ends an `F` record was the container's, the one of a `P` record is ours.
            self.bytes += (record.len() - PREFIX - usize::from(tag != Some(b'F'))) as u64;
            self.records += 1;
        }
        self.cause = Some(cause);
    }

    fn describe(&self) -> Option<String> {
        let cause = self.cause?;
        Some(format!(
            "{} bytes of output in {} records were not logged: {cause}",
            self.bytes, self.records
        ))
    }

    /// The record that says in the log what is missing from it; empty when nothing is.
    fn notice(&self, now: &[u8; timestamp::LENGTH]) -> Vec<u8> {
        let mut record = Vec::new();
        if let Some(text) = self.describe() {
            record.extend_from_slice(now);
            record.extend_from_slice(b" stderr F wherry: ");
            record.extend_from_slice(text.as_bytes());
            record.push(b'\n');
        }
        record
    }
}

impl Log {
    /// The log in `directory`. The file is opened with the first record.
    pub(crate) fn new(directory: Rc<OwnedFd>, settings: LogSettings) -> Self {
        Self {
            directory,
            settings,
            file: None,
            length: 0,
            batch: Vec::with_capacity(BATCH),
            notice: 0,
            untold: Loss::default(),
            total: Loss::default(),
        }
    }

    /// Takes the complete lines, and pieces of `MAX_CONTENT` of a longer one, from the front of `bytes`. Returns how
    /// many bytes were taken; the rest is the beginning of a line.
    pub(crate) fn lines(&mut self, stream: Stream, bytes: &[u8]) -> usize {
        let now = timestamp::now();
        let mut taken = 0;
        loop {
            let rest = &bytes[taken..];
            let window = &rest[..rest.len().min(MAX_CONTENT + 1)];
            if let Some(end) = window.iter().position(|&byte| byte == b'\n') {
                self.record(&now, stream, b'F', &window[..end]);
                taken += end + 1;
            } else if window.len() > MAX_CONTENT {
                self.record(&now, stream, b'P', &window[..MAX_CONTENT]);
                taken += MAX_CONTENT;
            } else {
                return taken;
            }
        }
    }

    /// Logs the beginning of a line whose end has not come yet (and may never come).
    pub(crate) fn partial(&mut self, stream: Stream, content: &[u8]) {
        let now = timestamp::now();
        for piece in content.chunks(MAX_CONTENT) {
            self.record(&now, stream, b'P', piece);
        }
    }

    /// Writes what has been gathered.
    pub(crate) fn flush(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut self.batch);
        let notice = std::mem::take(&mut self.notice);
        let (written, cause) = match self.write(&batch) {
            Ok(()) => (batch.len(), None),
            Err((written, cause)) => (written, Some(cause)),
        };
        if notice > 0 && written >= notice {
            self.untold = Loss::default();
        }
        if let Some(cause) = cause {
            let lost = &batch[written.max(notice)..];
            self.untold.add(lost, cause);
            self.total.add(lost, cause);
        }
        batch.clear();
        self.batch = batch;
    }

    /// What was lost in all, for the container's `observed.error`.
    pub(crate) fn loss(&self) -> Option<String> {
        self.total.describe()
    }

    /// Gives up the rotated files, for a more important record on a full disk.
    pub(crate) fn drop_rotated(&self) {
        for index in 1..self.settings.max_files {
            let _ = rustix::fs::unlinkat(
                &*self.directory,
                self.rotated(index),
                rustix::fs::AtFlags::empty(),
            );
        }
    }

    fn record(&mut self, now: &[u8; timestamp::LENGTH], stream: Stream, tag: u8, content: &[u8]) {
        let length = PREFIX + content.len() + 1;
        if self.batch.len() + length > BATCH {
            self.flush();
        }
        let notice = if self.batch.is_empty() {
            self.untold.notice(now)
        } else {
            Vec::new()
        };
        if self.file.is_none() {
            // The length is needed now; a failure comes back with the write and is counted there.
            let _ = self.open();
        }
        let filled = self.length + self.batch.len() as u64;
        if filled > 0 && filled + (notice.len() + length) as u64 > self.settings.max_size {
            self.flush();
            self.rotate();
        }
        if self.batch.is_empty() {
            // What the flush for the rotation could not write is to be told, too.
            let notice = self.untold.notice(now);
            self.notice = notice.len();
            self.batch.extend_from_slice(&notice);
        }
        self.batch.extend_from_slice(now);
        self.batch.extend_from_slice(match stream {
            Stream::Stdout => b" stdout ",
            Stream::Stderr => b" stderr ",
        });
        self.batch.extend_from_slice(&[tag, b' ']);
        self.batch.extend_from_slice(content);
        self.batch.push(b'\n');
    }

    /// Appends whole records. On failure says how many bytes of them, up to the end of a record, are in the file.
    fn write(&mut self, records: &[u8]) -> Result<(), (usize, Errno)> {
        let mut written = 0;
        while written < records.len() {
            let result = self.open().and_then(|file| {
                rustix::io::retry_on_intr(|| rustix::io::writev(file, &[IoSlice::new(&records[written..])]))
            });
            match result {
                Ok(0) => return Err(self.cut(records, written, Errno::NOSPC)),
                Ok(count) => {
                    written += count;
                    self.length += count as u64;
                }
                Err(cause) => return Err(self.cut(records, written, cause)),
            }
        }
        Ok(())
    }

    /// Takes a record that was written in part out of the file again.
    fn cut(&mut self, records: &[u8], written: usize, cause: Errno) -> (usize, Errno) {
        let whole = records[..written]
            .iter()
            .rposition(|&byte| byte == b'\n')
            .map_or(0, |end| end + 1);
        if whole < written {
            self.length -= (written - whole) as u64;
            let cut = self
                .file
                .as_ref()
                .map(|file| rustix::fs::ftruncate(file, self.length));
            if cut != Some(Ok(())) {
                // The next record must not continue a torn one: reopening ends it with a line feed.
                self.file = None;
            }
        }
        (whole, cause)
    }

    fn open(&mut self) -> Result<&OwnedFd, Errno> {
        if self.file.is_none() {
            let flags = OFlags::RDWR
                | OFlags::APPEND
                | OFlags::CREATE
                | OFlags::CLOEXEC
                | OFlags::NOFOLLOW
                | OFlags::NOCTTY;
            let file = rustix::fs::openat(
                &*self.directory,
                &self.settings.path,
                flags,
                Mode::from_raw_mode(0o600),
            )?;
            let stat = rustix::fs::fstat(&file)?;
            if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
                return Err(Errno::INVAL);
            }
            self.length = u64::try_from(stat.st_size).unwrap_or(0);
            let mut last = [b'\n'];
            if self.length > 0 {
                rustix::io::pread(file.as_fd(), &mut last, self.length - 1)?;
            }
            if last != [b'\n'] {
                // Power was lost while a record was written.
                self.length += rustix::io::write(&file, b"\n")? as u64;
            }
            self.file = Some(file);
        }
        self.file.as_ref().ok_or(Errno::BADF)
    }

    /// `log` becomes `log.1` and so on; the oldest goes.
    fn rotate(&mut self) {
        self.file = None;
        self.length = 0;
        let directory = &*self.directory;
        for index in (0..self.settings.max_files).rev() {
            let from = self.rotated(index);
            let _ = if index + 1 == self.settings.max_files {
                rustix::fs::unlinkat(directory, from, rustix::fs::AtFlags::empty())
            } else {
                rustix::fs::renameat(directory, from, directory, self.rotated(index + 1))
            };
        }
    }

    fn rotated(&self, index: u32) -> String {
        if index == 0 {
            self.settings.path.clone()
        } else {
            format!("{}.{index}", self.settings.path)
        }
    }
}

#[cfg(test)]
mod tests;
