//! An open old file: reads of a few bytes here and there through one buffer.

use alloc::vec::Vec;

use embedded_io::{Read, Seek, SeekFrom};

use super::Fault;
use super::elf::Bytes;

/// How much is read at once.
pub(super) const WINDOW: usize = 32 << 10;

/// Why old bytes were not read.
#[derive(Debug)]
pub(super) enum OldError<E> {
    Fault(Fault),
    Source(E),
}

/// An open old file.
#[derive(Debug)]
pub(super) struct Old<F> {
    file: F,
    /// The file's position.
    at: u64,
    /// Where in the file the buffer's bytes begin.
    base: u64,
    filled: usize,
    buffer: Vec<u8>,
    /// What stands in bytes 8 to 12 instead: the time of a `.pyc`'s source.
    time: Option<u32>,
}

impl<F: Read + Seek> Old<F> {
    /// `buffer` is [`WINDOW`] bytes long.
    pub(super) fn new(file: F, buffer: Vec<u8>) -> Self {
        Self {
            file,
            at: 0,
            base: 0,
            filled: 0,
            buffer,
            time: None,
        }
    }

    /// Gives the buffer back.
    pub(super) fn into_buffer(self) -> Vec<u8> {
        self.buffer
    }

    /// The bytes of `from..to`, fewer at the end of the file. The range is at most [`WINDOW`] long.
    pub(super) fn some(&mut self, from: u64, to: u64) -> Result<&[u8], F::Error> {
        let held = |old: &Self| from >= old.base && to <= old.base + old.filled as u64;
        if !held(self) {
            self.fill(from)?;
        }
        let start = from.saturating_sub(self.base) as usize;
        let end = (to.saturating_sub(self.base) as usize).min(self.filled);
        Ok(self.buffer.get(start..end).unwrap_or_default())
    }

    fn fill(&mut self, from: u64) -> Result<(), F::Error> {
        if self.at != from {
            // On an error the position is unknown.
            self.at = u64::MAX;
            self.file.seek(SeekFrom::Start(from))?;
            self.at = from;
        }
        (self.base, self.filled) = (from, 0);
        while let Some(rest) = self.buffer.get_mut(self.filled..).filter(|rest| !rest.is_empty()) {
            let length = self.file.read(rest)?;
            if length == 0 {
                break;
            }
            self.filled += length;
            self.at += length as u64;
        }
        if let Some(time) = self.time {
            with_time(from, self.buffer.get_mut(..self.filled).unwrap_or_default(), time);
        }
        Ok(())
    }

    /// As [`Self::some`], but all of it.
    pub(super) fn all(&mut self, from: u64, to: u64) -> Result<&[u8], OldError<F::Error>> {
        let bytes = self.some(from, to).map_err(OldError::Source)?;
        if bytes.len() as u64 == to - from {
            Ok(bytes)
        } else {
            Err(OldError::Fault(Fault::SourceShort { offset: to }))
        }
    }

    /// Reads straight into `out`; not more than are left, and an error when none are.
    pub(super) fn read(&mut self, from: u64, out: &mut [u8]) -> Result<usize, OldError<F::Error>> {
        if self.at != from {
            self.at = u64::MAX;
            self.file.seek(SeekFrom::Start(from)).map_err(OldError::Source)?;
            self.at = from;
        }
        let length = self.file.read(out).map_err(OldError::Source)?;
        if length == 0 {
            return Err(OldError::Fault(Fault::SourceShort { offset: from }));
        }
        self.at += length as u64;
        if let Some(time) = self.time {
            with_time(from, out.get_mut(..length).unwrap_or_default(), time);
        }
        Ok(length)
    }

    /// Takes the time of a `.pyc`'s source into the file's head, if the file has one there.
    pub(super) fn set_time(&mut self, time: u32) -> Result<(), F::Error> {
        if has_time(self.some(0, PYC_HEADER as u64)?) {
            self.time = Some(time);
            self.filled = 0;
        }
        Ok(())
    }
}

impl<F: Read + Seek> Bytes for Old<F> {
    type Error = F::Error;

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<bool, F::Error> {
        let Some(to) = at.checked_add(out.len() as u64) else {
            return Ok(false);
        };
        let bytes = self.some(at, to)?;
        if bytes.len() < out.len() {
            return Ok(false);
        }
        out.copy_from_slice(bytes);
        Ok(true)
    }
}

/// The length of the header of a `.pyc` (PEP 552): magic, flags, the source's time, its size.
const PYC_HEADER: usize = 16;

/// Whether a `.pyc` that begins so is checked by its source's time: its flags are zero.
pub(super) fn has_time(start: &[u8]) -> bool {
    start.len() >= PYC_HEADER && start.get(4..8) == Some(&[0; 4])
}

/// Puts a source's time into the bytes of a `.pyc` that begin at `from`.
pub(super) fn with_time(from: u64, bytes: &mut [u8], time: u32) {
    for (at, byte) in (8u64..).zip(time.to_le_bytes()) {
        let at = at.checked_sub(from).and_then(|at| usize::try_from(at).ok());
        if let Some(to) = at.and_then(|at| bytes.get_mut(at)) {
            *to = byte;
        }
    }
}
