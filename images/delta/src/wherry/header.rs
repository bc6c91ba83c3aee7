//! The first bytes of a patch: what it needs, what it makes, and where its frames lie.

use alloc::vec::Vec;

use embedded_io::{Read, ReadExactError};

use super::wire::{Account, Cursor};
use super::{CHUNK, Error, Fault, MAGIC, MAX_HEADER, MAX_SOURCES, PREDICTOR};

/// A source layer's diffID: the SHA-256 of its uncompressed tar.
pub type SourceId = [u8; 32];

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FrameKind {
    /// Headers of the entries that follow it; makes no output itself.
    Table,
    /// Output.
    Content,
}

/// One frame of a patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: FrameKind,
    /// Its bytes in the patch.
    pub size: u64,
    /// The bytes that it makes.
    pub output: u64,
}

/// The layer whose list of files the headers are predicted from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Base {
    /// Which of the sources.
    pub(super) source: usize,
    /// The hash of its list.
    pub(super) hash: u64,
    /// The list's length: entries, and bytes of paths and targets.
    pub(super) entries: usize,
    pub(super) names: usize,
}

/// What a patch says about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The bytes of memory a decoder takes at most beside its own fixed ones.
    pub memory: u64,
    /// The length of the tar.
    pub output: u64,
    /// The layers that old files are taken from.
    pub sources: Vec<SourceId>,
    /// The frames in their order.
    pub frames: Vec<Frame>,
    pub(super) base: Option<Base>,
    /// The bytes of magic and header.
    pub(super) length: u64,
}

/// What the caller allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The most bytes of memory, by the patch's declaration, which is then enforced.
    pub memory: u64,
    /// The most bytes of output.
    pub output: u64,
}

/// From where decoding can start again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Restart {
    /// The number of the table frame that is read first, if it is not the one read last.
    pub table: Option<usize>,
    /// The number of the frame that comes then.
    pub frame: usize,
    /// Where in the output that frame begins.
    pub output: u64,
}

/// How many frames a patch may have whatever it makes, and one more for so much output.
const MIN_FRAMES: u64 = 8;
const TABLE_OUTPUT: u64 = 4 << 20;
const FRAME_OUTPUT: u64 = 256 << 10;

/// Reads exactly, with the end of the patch as a fault.
pub(super) fn exact<R: Read, S>(patch: &mut R, out: &mut [u8]) -> Result<(), Error<R::Error, S>> {
    patch.read_exact(out).map_err(|error| match error {
        ReadExactError::UnexpectedEof => Fault::Truncated.into(),
        ReadExactError::Other(error) => Error::Patch(error),
    })
}

impl Header {
    /// Reads magic and header; the first frame follows.
    ///
    /// # Errors
    /// It is not a patch of this format and version, or not a well-formed one. What the caller does not allow is refused by
    /// [`Header::check`].
    pub fn read<R: Read, S>(patch: &mut R) -> Result<Self, Error<R::Error, S>> {
        let mut start = [0; 12];
        exact(patch, &mut start)?;
        let (magic, length) = start.split_at(8);
        if magic != MAGIC {
            return Err(Fault::Magic(magic.try_into().unwrap_or_default()).into());
        }
        let length = u32::from_le_bytes(length.try_into().unwrap_or_default()) as usize;
        if length > MAX_HEADER {
            return Err(Fault::Corrupt("the header is too long").into());
        }
        let mut bytes = Vec::new();
        let mut part = [0; 512];
        // In steps: a length that nothing stands behind costs no memory.
        while bytes.len() < length {
            let most = part.len().min(length - bytes.len());
            let part = part.get_mut(..most).unwrap_or_default();
            exact(patch, part)?;
            bytes.extend_from_slice(part);
        }
        Ok(Self::parse(&bytes)?)
    }

    /// Reads what stands behind magic and length.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let mut at = Cursor::new(0, bytes.len());
        let predictor = at.number(bytes)?;
        if predictor != PREDICTOR {
            return Err(Fault::Predictor(predictor));
        }
        let (memory, output) = (at.number(bytes)?, at.number(bytes)?);
        let count = at.size(bytes)?;
        if count > MAX_SOURCES {
            return Err(Fault::Corrupt("there are too many sources"));
        }
        let mut sources = Vec::new();
        for _ in 0..count {
            sources.push(at.bytes(bytes, 32)?.try_into().unwrap_or_default());
        }
        let base = match at.size(bytes)? {
            0 => None,
            number if number <= count => Some(Base {
                source: number - 1,
                hash: u64::from_le_bytes(at.bytes(bytes, 8)?.try_into().unwrap_or_default()),
                entries: at.size(bytes)?,
                names: at.size(bytes)?,
            }),
            _ => return Err(Fault::Corrupt("the listed source is not one of the sources")),
        };
        let mut frames = Vec::new();
        let mut made = 0u64;
        while at.left() > 0 {
            let frame = frame(bytes, &mut at)?;
            made = made
                .checked_add(frame.output)
                .filter(|&made| made <= output)
                .ok_or(Fault::Corrupt("the frames make more than the output"))?;
            frames.push(frame);
        }
        // Tables and frames cost work without output: not more of them than an encoder makes.
        let tables = frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Table)
            .count() as u64;
        if tables > MIN_FRAMES + output / TABLE_OUTPUT
            || frames.len() as u64 > MIN_FRAMES + output / FRAME_OUTPUT
        {
            return Err(Fault::Corrupt("there are too many frames"));
        }
        if made != output {
            return Err(Fault::Corrupt("the frames make less than the output"));
        }
        Ok(Self {
            memory,
            output,
            sources,
            frames,
            base,
            length: bytes.len() as u64 + 12,
        })
    }

    /// Compares what the patch declares with what is allowed.
    ///
    /// # Errors
    /// [`Fault::Declared`] or [`Fault::TooMuch`].
    pub fn check(&self, limits: &Limits) -> Result<(), Fault> {
        if self.memory > limits.memory {
            return Err(Fault::Declared {
                needed: self.memory,
                allowed: limits.memory,
            });
        }
        if self.output > limits.output {
            return Err(Fault::TooMuch { limit: limits.output });
        }
        Ok(())
    }

    /// Where to start again when the first `done` bytes of the output are there: the last frame that begins at or before them.
    pub fn restart(&self, done: u64) -> Option<Restart> {
        let (mut table, mut at, mut found) = (None, 0u64, None);
        for (number, frame) in self.frames.iter().enumerate() {
            match frame.kind {
                FrameKind::Table => table = Some(number),
                FrameKind::Content if at <= done => {
                    found = Some(Restart {
                        table,
                        frame: number,
                        output: at,
                    });
                }
                FrameKind::Content => break,
            }
            at += frame.output;
        }
        found
    }

    /// The bytes of the patch that a frame lies in.
    pub fn place(&self, frame: usize) -> Option<core::ops::Range<u64>> {
        let from = self
            .frames
            .get(..frame)?
            .iter()
            .try_fold(self.length, |sum, frame| sum.checked_add(frame.size))?;
        Some(from..from.checked_add(self.frames.get(frame)?.size)?)
    }

    /// What is booked for the header itself.
    pub(super) fn book(&self, account: &mut Account) -> Result<(), Fault> {
        account.take(
            self.frames.capacity() * size_of::<Frame>() + self.sources.capacity() * size_of::<SourceId>(),
        )
    }
}

fn frame(bytes: &[u8], at: &mut Cursor) -> Result<Frame, Fault> {
    let size = at.number(bytes)?;
    let output = at.number(bytes)?;
    // A table makes no output; every other frame makes some, or a patch could have frames without end.
    let kind = if output == 0 {
        FrameKind::Table
    } else {
        FrameKind::Content
    };
    Ok(Frame { kind, size, output })
}

impl Frame {
    /// How many hashes of chunks it begins with.
    pub(super) fn chunks(&self) -> u64 {
        self.output.div_ceil(CHUNK as u64)
    }
}
