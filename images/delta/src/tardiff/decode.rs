//! The decoder: a reader of the new tar over a reader of operations.
//!
//! ```text
//!            DATA n            bytes left
//!   ┌──────┐ COPY n   ┌──────┐ ┌────┐
//!   │ Next ├─────────►│ Emit ├─┘    │
//!   └┬─┬─▲─┘ ADD n    └──┬─▲─┘◄─────┘
//!    │ └─┘ OPEN, SEEK    └─┼── 0 left: Next
//!    └ end of patch: Done
//! ```

use alloc::vec;
use alloc::vec::Vec;
use core::convert::Infallible;

use embedded_io::{ErrorType, Read, ReadExactError, Seek, SeekFrom, Write};

use super::{BUFFER, MAGIC_V1, MAGIC_V2, MAX_IDLE, code};
use crate::source::PathFault;
use crate::{Error, MAX_PATH, Source, check_path};

/// What the caller allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of output.
    pub output: u64,
}

/// Reads the file's first eight bytes; what follows in `patch` is the zstd frame of operations.
///
/// # Errors
/// [`Error::Magic`] when it is neither version 1 nor version 2, [`Error::Truncated`] when it is shorter.
pub fn read_magic<R: Read, S>(patch: &mut R) -> Result<(), Error<R::Error, S>> {
    let mut magic = [0; 8];
    patch.read_exact(&mut magic).map_err(|error| match error {
        ReadExactError::UnexpectedEof => Error::Truncated { at: 0 },
        ReadExactError::Other(error) => Error::Patch(error),
    })?;
    if magic == MAGIC_V1 || magic == MAGIC_V2 {
        Ok(())
    } else {
        Err(Error::Magic(magic))
    }
}

/// Where the bytes of an emitting operation come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Emit {
    Data,
    Copy,
    Add,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Next,
    Emit(Emit, u64),
    Done,
}

/// The error of a decoder; `W` is the output's.
type Fault<R, S, W = Infallible> = Error<<R as ErrorType>::Error, <S as Source>::Error, W>;

/// Rebuilds a tar from operations and old files. Read it with [`Decoder::read`], or let [`Decoder::write_to`] run it.
///
/// Give it a *buffered* stream of operations: codes and lengths are read byte by byte.
#[derive(Debug)]
pub struct Decoder<R: Read, S: Source> {
    operations: R,
    source: S,
    file: Option<S::File>,
    /// The position in `file`.
    offset: u64,
    state: State,
    /// Bytes of operations read.
    read: u64,
    /// Where the present operation begins.
    at: u64,
    /// Bytes of output of the operations begun.
    made: u64,
    idle: u32,
    limits: Limits,
    buffer: Vec<u8>,
    path: Vec<u8>,
}

impl<R: Read, S: Source> Decoder<R, S> {
    /// A decoder of the decompressed `operations` that takes old files from `source`.
    pub fn new(operations: R, source: S, limits: Limits) -> Self {
        Self {
            operations,
            source,
            file: None,
            offset: 0,
            state: State::Next,
            read: 0,
            at: 0,
            made: 0,
            idle: 0,
            limits,
            buffer: vec![0; BUFFER],
            path: vec![0; MAX_PATH],
        }
    }

    /// How many bytes of output the operations begun so far make: at the end, the length of the tar.
    pub fn made(&self) -> u64 {
        self.made
    }

    /// Fills the front of `out` with the next bytes of the tar; 0 is the end.
    ///
    /// # Errors
    /// Any of [`Error`] but the output's. After an error the decoder is at its end for good: the output so far is not to be used.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, Fault<R, S>> {
        let result = self.advance(out);
        if result.is_err() {
            self.state = State::Done;
        }
        result
    }

    /// Writes the whole tar to `out` and returns its length.
    ///
    /// # Errors
    /// Any of [`Error`]. What was written before an error is not to be used.
    pub fn write_to<W: Write>(mut self, out: &mut W) -> Result<u64, Fault<R, S, W::Error>> {
        let mut chunk = vec![0; BUFFER];
        loop {
            let length = self.read(&mut chunk).map_err(Error::with_output)?;
            if length == 0 {
                out.flush().map_err(Error::Output)?;
                return Ok(self.made);
            }
            out.write_all(&chunk[..length]).map_err(Error::Output)?;
        }
    }

    fn advance(&mut self, out: &mut [u8]) -> Result<usize, Fault<R, S>> {
        if out.is_empty() {
            return Ok(0);
        }
        loop {
            match self.state {
                State::Done => return Ok(0),
                State::Next => self.begin()?,
                State::Emit(_, 0) => self.state = State::Next,
                State::Emit(emit, left) => {
                    let most = left.min(out.len() as u64) as usize;
                    let length = self.emit(emit, &mut out[..most])?;
                    self.state = State::Emit(emit, left - length as u64);
                    self.idle = 0;
                    return Ok(length);
                }
            }
        }
    }

    /// Reads one operation up to the bytes that it emits.
    fn begin(&mut self) -> Result<(), Fault<R, S>> {
        self.at = self.read;
        let Some(operation) = self.byte()? else {
            self.state = State::Done;
            return Ok(());
        };
        let at = self.at;
        let name = match operation {
            code::DATA | code::OPEN | code::COPY | code::ADD_DATA | code::SEEK => operation,
            code::ZSTD_DICT => {
                return Err(Error::Unsupported {
                    name: "ZSTD_DICT",
                    at,
                });
            }
            code => return Err(Error::Operation { code, at }),
        };
        let size = self.size()?;
        self.idle += 1;
        if self.idle > MAX_IDLE {
            return Err(Error::Idle { at, limit: MAX_IDLE });
        }
        match name {
            code::OPEN => self.open(size),
            code::SEEK => self.seek(size),
            emitting => {
                let emit = match emitting {
                    code::DATA => Emit::Data,
                    code::COPY => Emit::Copy,
                    _ => Emit::Add,
                };
                if emit != Emit::Data && self.file.is_none() {
                    return Err(Error::NoFile { at });
                }
                match self.made.checked_add(size) {
                    Some(total) if total <= self.limits.output => self.made = total,
                    _ => {
                        return Err(Error::TooMuch {
                            limit: self.limits.output,
                        });
                    }
                }
                self.state = State::Emit(emit, size);
                Ok(())
            }
        }
    }

    fn open(&mut self, size: u64) -> Result<(), Fault<R, S>> {
        let at = self.at;
        if size > MAX_PATH as u64 {
            return Err(Error::Path {
                fault: PathFault::TooLong(size),
                at,
            });
        }
        let path = &mut self.path[..size as usize];
        self.operations
            .read_exact(path)
            .map_err(|error| exact(error, at))?;
        self.read += size;
        check_path(path).map_err(|fault| Error::Path { fault, at })?;
        // The old file is closed before the next is opened: never more than one.
        self.file = None;
        self.file = Some(self.source.open(path).map_err(Error::Source)?);
        self.offset = 0;
        Ok(())
    }

    fn seek(&mut self, offset: u64) -> Result<(), Fault<R, S>> {
        let file = self.file.as_mut().ok_or(Error::NoFile { at: self.at })?;
        // No file is longer than an off_t reaches, and a position past the end cannot be read from.
        if i64::try_from(offset).is_err() {
            return Err(Error::SourceShort {
                at: self.at,
                offset: self.offset,
            });
        }
        if offset != self.offset {
            file.seek(SeekFrom::Start(offset)).map_err(Error::Source)?;
            self.offset = offset;
        }
        Ok(())
    }

    /// Fills the front of `out`, which is not empty and not longer than the operation has left.
    fn emit(&mut self, emit: Emit, out: &mut [u8]) -> Result<usize, Fault<R, S>> {
        let at = self.at;
        match emit {
            Emit::Data => {
                let length = self.operations.read(out).map_err(Error::Patch)?;
                if length == 0 {
                    return Err(Error::Truncated { at });
                }
                self.read += length as u64;
                Ok(length)
            }
            Emit::Copy => self.old(out, at),
            Emit::Add => {
                let most = out.len().min(BUFFER);
                // The buffer leaves `self` while `old` borrows the rest.
                let mut buffer = core::mem::take(&mut self.buffer);
                let result = self.old(&mut buffer[..most], at);
                self.buffer = buffer;
                let out = &mut out[..result?];
                self.operations
                    .read_exact(out)
                    .map_err(|error| exact(error, at))?;
                self.read += out.len() as u64;
                for (new, old) in out.iter_mut().zip(&self.buffer) {
                    *new = new.wrapping_add(*old);
                }
                Ok(out.len())
            }
        }
    }

    /// Reads bytes of the old file.
    fn old(&mut self, out: &mut [u8], at: u64) -> Result<usize, Fault<R, S>> {
        let file = self.file.as_mut().ok_or(Error::NoFile { at })?;
        let length = file.read(out).map_err(Error::Source)?;
        if length == 0 {
            return Err(Error::SourceShort {
                at,
                offset: self.offset,
            });
        }
        self.offset += length as u64;
        Ok(length)
    }

    fn byte(&mut self) -> Result<Option<u8>, Fault<R, S>> {
        let mut byte = [0];
        let length = self.operations.read(&mut byte).map_err(Error::Patch)?;
        self.read += length as u64;
        Ok((length == 1).then_some(byte[0]))
    }

    /// Reads a LEB128 length of at most 64 bits.
    fn size(&mut self) -> Result<u64, Fault<R, S>> {
        let at = self.at;
        let mut size = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?.ok_or(Error::Truncated { at })?;
            let bits = u64::from(byte & 0x7f);
            if bits > u64::MAX >> shift {
                return Err(Error::Varint { at });
            }
            size |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(size);
            }
        }
        Err(Error::Varint { at })
    }
}

fn exact<P, S>(error: ReadExactError<P>, at: u64) -> Error<P, S> {
    match error {
        ReadExactError::UnexpectedEof => Error::Truncated { at },
        ReadExactError::Other(error) => Error::Patch(error),
    }
}
