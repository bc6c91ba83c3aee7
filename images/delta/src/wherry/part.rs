//! A part of one file's content: made of old bytes and of what a content frame holds.

use alloc::vec::Vec;

use embedded_io::{Read, Seek};

use super::Fault;
use super::elf::{Elf, MAX_SEGMENTS, Segment, Segments};
use super::map::{Block, MAX_BLOCKS, Map};
use super::old::{Old, OldError};
use super::predict::{MARGIN, Predictor, Window};
use super::wire::{Account, Cursor, unzigzag};

/// The streams of a content frame.
pub(super) mod stream {
    /// Where the frame begins, and what its parts are.
    pub(crate) const PARTS: usize = 0;
    /// Pieces: the lengths of what resembles old bytes.
    pub(crate) const LIKE: usize = 1;
    /// Pieces: the lengths of what follows and resembles nothing.
    pub(crate) const FRESH_LENGTHS: usize = 2;
    /// Pieces: how far to go in the old file.
    pub(crate) const SEEK: usize = 3;
    /// Differences: how many bytes in between are as predicted.
    pub(crate) const GAPS: usize = 4;
    /// Differences.
    pub(crate) const VALUES: usize = 5;
    /// Bytes that resemble nothing.
    pub(crate) const FRESH: usize = 6;
    /// Bytes of numbers, by their place in the number.
    pub(crate) const PLANES: usize = 7;
    /// Where new programs' segments lie.
    pub(crate) const SEGMENTS: usize = 8;
    pub(crate) const COUNT: usize = 9;
}

/// A content frame's cursors.
pub(super) type Streams = [Cursor; stream::COUNT];

/// How much is made at once of old bytes.
pub(super) const TILE: usize = 16 << 10;

/// What kinds of parts there are.
pub(super) const PIECES: u64 = 0;
pub(super) const PREDICTED: u64 = 1;
/// The shortest predicted part: reading the old program's headers costs as much as making some thousand bytes.
pub(super) const MIN_PREDICTED: u64 = 4 << 10;
/// Numbers of 4 or 2 bytes, subtracted from old ones.
pub(super) const NUMBERS_4: u64 = 2;
pub(super) const NUMBERS_2: u64 = 3;
/// Numbers of 4 or 2 bytes as they are, in planes.
pub(super) const PLANES_4: u64 = 4;
pub(super) const PLANES_2: u64 = 5;

#[derive(Debug)]
struct Pieces {
    left: u64,
    /// The present piece: what is left of it.
    like: u64,
    fresh: u64,
    block: Block,
    /// The position in the old file and in the new one.
    old_at: u64,
    new_at: u64,
    /// Changed bytes left, and bytes in front of the next one.
    changes: u64,
    gap: u64,
    predictor: Option<Predictor>,
}

#[derive(Debug)]
struct Planes {
    width: usize,
    /// The numbers' bytes in the frame: those of the first plane, of the second, ...
    bytes: (usize, usize),
    done: usize,
    /// Where in the old file the numbers lie that these are subtracted from.
    old: Option<u64>,
}

#[derive(Debug)]
enum Make {
    Pieces(Pieces),
    Planes(Planes),
}

/// The part that is being made.
#[derive(Debug)]
pub(super) struct Part {
    left: u64,
    make: Make,
    /// What is made and not handed out, in the buffer that the caller keeps.
    ready: (usize, usize),
}

/// What a part is made from.
pub(super) struct From<'a, F> {
    pub(super) raw: &'a [u8],
    pub(super) streams: &'a mut Streams,
    pub(super) old: Option<&'a mut Old<F>>,
    pub(super) account: &'a mut Account,
    /// A buffer of [`TILE`] bytes.
    pub(super) tile: &'a mut Vec<u8>,
}

const NO_FILE: Fault = Fault::Corrupt("a part needs an old file, but none is named");

impl<F: Read + Seek> From<'_, F> {
    fn number(&mut self, stream: usize) -> Result<u64, Fault> {
        let raw = self.raw;
        self.cursor(stream)?.number(raw)
    }

    fn cursor(&mut self, stream: usize) -> Result<&mut Cursor, Fault> {
        self.streams
            .get_mut(stream)
            .ok_or(Fault::Corrupt("a stream is missing"))
    }

    fn old(&mut self) -> Result<&mut Old<F>, Fault> {
        self.old.as_deref_mut().ok_or(NO_FILE)
    }
}

impl<E> core::convert::From<Fault> for OldError<E> {
    fn from(fault: Fault) -> Self {
        Self::Fault(fault)
    }
}

impl Part {
    /// Begins the next part of a file with `size` bytes, of which `done` are made.
    pub(super) fn begin<F: Read + Seek>(
        from: &mut From<'_, F>,
        done: u64,
        size: u64,
    ) -> Result<Self, OldError<F::Error>> {
        let kind = from.number(stream::PARTS)?;
        let length = from.number(stream::PARTS)?;
        if length == 0 || length > size - done {
            return Err(Fault::Corrupt("a part is longer than its file").into());
        }
        if kind == PREDICTED && length < MIN_PREDICTED {
            return Err(Fault::Corrupt("a predicted part is too short").into());
        }
        let make = match kind {
            PIECES | PREDICTED => Make::Pieces(Pieces::begin(from, kind == PREDICTED, done, length, size)?),
            NUMBERS_4 | NUMBERS_2 | PLANES_4 | PLANES_2 => Make::Planes(Planes::begin(from, kind, length)?),
            _ => return Err(Fault::Corrupt("a part is of an unknown kind").into()),
        };
        Ok(Self {
            left: length,
            make,
            ready: (0, 0),
        })
    }

    /// How many bytes are left of it.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// Makes at least one byte and at most `out`, which is not empty.
    pub(super) fn read<F: Read + Seek>(
        &mut self,
        from: &mut From<'_, F>,
        out: &mut [u8],
    ) -> Result<usize, OldError<F::Error>> {
        let length = loop {
            let (begin, end) = self.ready;
            if begin < end {
                let most = out.len().min(end - begin);
                let bytes = from.tile.get(begin..begin + most).unwrap_or_default();
                for (to, byte) in out.iter_mut().zip(bytes) {
                    *to = *byte;
                }
                self.ready.0 += most;
                break most;
            }
            match &mut self.make {
                Make::Planes(planes) => self.ready = (0, planes.tile(from)?),
                Make::Pieces(pieces) if pieces.like > 0 => self.ready = (0, pieces.tile(from)?),
                Make::Pieces(pieces) if pieces.fresh > 0 => {
                    let most = out.len().min(usize::try_from(pieces.fresh).unwrap_or(usize::MAX));
                    let raw = from.raw;
                    let bytes = from.cursor(stream::FRESH)?.bytes(raw, most)?;
                    for (to, byte) in out.iter_mut().zip(bytes) {
                        *to = *byte;
                    }
                    pieces.fresh -= most as u64;
                    pieces.new_at += most as u64;
                    break most;
                }
                Make::Pieces(pieces) => pieces.next(from, self.left)?,
            }
        };
        self.left = self
            .left
            .checked_sub(length as u64)
            .ok_or(Fault::Corrupt("a part is too long"))?;
        Ok(length)
    }

    pub(super) fn release(self, account: &mut Account) {
        if let Make::Pieces(Pieces {
            predictor: Some(predictor),
            ..
        }) = self.make
        {
            predictor.release(account);
        }
    }
}

impl Pieces {
    fn begin<F: Read + Seek>(
        from: &mut From<'_, F>,
        predicted: bool,
        done: u64,
        length: u64,
        size: u64,
    ) -> Result<Self, OldError<F::Error>> {
        let left = from.number(stream::PARTS)?;
        let changes = from.number(stream::PARTS)?;
        let mut pieces = Self {
            left,
            like: 0,
            fresh: 0,
            block: Block {
                old: 0,
                new: 0,
                length: 0,
            },
            old_at: 0,
            new_at: done,
            changes,
            gap: 0,
            predictor: None,
        };
        if predicted {
            pieces.predictor = Some(predictor(from, left, done, length, size)?);
        }
        pieces.next_gap(from)?;
        Ok(pieces)
    }

    fn next_gap<F: Read + Seek>(&mut self, from: &mut From<'_, F>) -> Result<(), Fault> {
        if self.changes > 0 {
            self.gap = from.number(stream::GAPS)?;
        }
        Ok(())
    }

    /// Reads the next piece, which has bytes.
    fn next<F: Read + Seek>(&mut self, from: &mut From<'_, F>, part_left: u64) -> Result<(), Fault> {
        const BAD: Fault = Fault::Corrupt("a part's pieces do not make the part");
        self.left = self.left.checked_sub(1).ok_or(BAD)?;
        let (old, like, fresh) = piece(from.raw, from.streams, self.old_at)?;
        let length = like.checked_add(fresh).ok_or(BAD)?;
        if length == 0 || length > part_left {
            return Err(BAD);
        }
        (self.like, self.fresh, self.old_at) = (like, fresh, old);
        if self.predictor.is_some() && like > 0 {
            self.block = block(old, self.new_at, like)?;
        }
        Ok(())
    }

    /// Fills the tile with the next bytes that resemble old ones.
    fn tile<F: Read + Seek>(&mut self, from: &mut From<'_, F>) -> Result<usize, OldError<F::Error>> {
        let length = tile_length(self.old_at, self.like);
        let (at, end) = (self.old_at, self.old_at.checked_add(length));
        let end = end
            .filter(|end| end.checked_add(MARGIN).is_some())
            .ok_or(Fault::Corrupt("an old offset is too large"))?;
        let count = length as usize;
        let tile = from.tile.get_mut(..count).unwrap_or_default();
        let old = from.old.as_deref_mut().ok_or(NO_FILE)?;
        if let Some(predictor) = &self.predictor {
            let base = at.saturating_sub(MARGIN);
            let bytes = old.some(base, end + MARGIN).map_err(OldError::Source)?;
            let skip = (at - base) as usize;
            let same = bytes
                .get(skip..skip + count)
                .ok_or(Fault::SourceShort { offset: end })?;
            tile.copy_from_slice(same);
            predictor.apply(self.block, at, &Window { base, bytes }, tile);
        } else {
            tile.copy_from_slice(old.all(at, end)?);
        }
        self.old_at = end;
        self.new_at += length;
        self.like -= length;
        self.change(from, count)?;
        Ok(count)
    }

    /// Adds the differences that lie in the tile.
    fn change<F: Read + Seek>(&mut self, from: &mut From<'_, F>, count: usize) -> Result<(), Fault> {
        let mut at = 0u64;
        while self.changes > 0 {
            let place = at
                .checked_add(self.gap)
                .ok_or(Fault::Corrupt("a gap is too long"))?;
            if place >= count as u64 {
                self.gap = place - count as u64;
                break;
            }
            let raw = from.raw;
            let value = from.cursor(stream::VALUES)?.byte(raw)?;
            if let Some(byte) = from.tile.get_mut(place as usize) {
                *byte = byte.wrapping_add(value);
            }
            at = place + 1;
            self.changes -= 1;
            self.next_gap(from)?;
        }
        Ok(())
    }
}

/// How many bytes of a stretch of old bytes are made at once. Encoder and decoder cut alike: predictions may depend on it.
pub(super) fn tile_length(old_at: u64, like: u64) -> u64 {
    let length = like.min(TILE as u64);
    // The next tile begins at a word.
    if length < like {
        length - old_at.wrapping_add(length) % 8
    } else {
        length
    }
}

/// One piece: its old offset and its two lengths.
fn piece(raw: &[u8], streams: &mut Streams, old_at: u64) -> Result<(u64, u64, u64), Fault> {
    const BAD: Fault = Fault::Corrupt("a piece lies outside of the old file");
    let mut cursor = |stream: usize| streams.get_mut(stream).map(core::mem::take).unwrap_or_default();
    let (mut like, mut fresh, mut seek) = (
        cursor(stream::LIKE),
        cursor(stream::FRESH_LENGTHS),
        cursor(stream::SEEK),
    );
    let old = old_at.checked_add_signed(seek.signed(raw)?).ok_or(BAD)?;
    let found = (old, like.number(raw)?, fresh.number(raw)?);
    for (number, cursor) in [
        (stream::LIKE, like),
        (stream::FRESH_LENGTHS, fresh),
        (stream::SEEK, seek),
    ] {
        if let Some(to) = streams.get_mut(number) {
            *to = cursor;
        }
    }
    Ok(found)
}

fn block(old: u64, new: u64, length: u64) -> Result<Block, Fault> {
    let small =
        |number: u64| u32::try_from(number).map_err(|_| Fault::Corrupt("a predicted file is too long"));
    small(old.saturating_add(length))?;
    Ok(Block {
        old: small(old)?,
        new: small(new)?,
        length: small(length)?,
    })
}

/// Reads what the predictor needs to know beside the old file.
fn predictor<F: Read + Seek>(
    from: &mut From<'_, F>,
    count: u64,
    done: u64,
    length: u64,
    size: u64,
) -> Result<Predictor, OldError<F::Error>> {
    let shortest = from.number(stream::PARTS)?;
    let Some(old) = Elf::read(from.old()?, length).map_err(OldError::Source)? else {
        return Err(Fault::Corrupt("a predicted file's old file is not a program").into());
    };
    let (new, frame_table) = segments(from.raw, from.cursor(stream::SEGMENTS)?, &old)?;
    let mut blocks = Vec::new();
    // Read ahead: the pieces themselves are read again while they are made.
    let mut ahead = *from.streams;
    let (mut old_at, mut new_at) = (0u64, done);
    for _ in 0..count {
        let (at, like, fresh) = piece(from.raw, &mut ahead, old_at)?;
        if like >= shortest && like > 0 {
            if blocks.len() >= MAX_BLOCKS {
                return Err(Fault::Corrupt("a map has too many blocks").into());
            }
            from.account.push(&mut blocks, block(at, new_at, like)?)?;
        }
        let sum = |a: u64, b: u64| a.checked_add(b).ok_or(Fault::Corrupt("a piece is too long"));
        old_at = sum(at, like)?;
        new_at = sum(sum(new_at, like)?, fresh)?;
        if like | fresh == 0 || new_at - done > length {
            return Err(Fault::Corrupt("a part's pieces do not make the part").into());
        }
    }
    let map = Map::new(&mut blocks, from.account)?;
    from.account.release(blocks);
    Ok(Predictor {
        old,
        new,
        frame_table,
        new_length: size,
        map,
    })
}

/// The new program's segments, as differences from the old one's, and the address of its table of frames.
fn segments(raw: &[u8], cursor: &mut Cursor, old: &Elf) -> Result<(Segments, u64), Fault> {
    let count = cursor.size(raw)?;
    if count > MAX_SEGMENTS {
        return Err(Fault::Corrupt("a program has too many segments"));
    }
    let mut segments = Segments::default();
    for index in 0..count {
        let base = old.segments.0.get(index).copied().unwrap_or_default();
        let mut field = |base: u64| Ok::<_, Fault>(base.wrapping_add(cursor.signed(raw)? as u64));
        segments.0.push(Segment {
            offset: field(base.offset)?,
            address: field(base.address)?,
            in_file: field(base.in_file)?,
            in_memory: field(base.in_memory)?,
        });
    }
    Ok((segments, old.frame_table.wrapping_add(cursor.signed(raw)? as u64)))
}

impl Planes {
    fn begin<F: Read + Seek>(from: &mut From<'_, F>, kind: u64, length: u64) -> Result<Self, Fault> {
        let width = if matches!(kind, NUMBERS_4 | PLANES_4) {
            4
        } else {
            2
        };
        let old = if matches!(kind, NUMBERS_4 | NUMBERS_2) {
            Some(from.number(stream::PARTS)?)
        } else {
            None
        };
        let length =
            usize::try_from(length).map_err(|_| Fault::Corrupt("a part is longer than its frame"))?;
        if length % width != 0 {
            return Err(Fault::Corrupt("a part of numbers ends inside one"));
        }
        let raw = from.raw;
        let cursor = from.cursor(stream::PLANES)?;
        let bytes = cursor.place();
        cursor.bytes(raw, length)?;
        Ok(Self {
            width,
            bytes: (bytes, length),
            done: 0,
            old,
        })
    }

    fn tile<F: Read + Seek>(&mut self, from: &mut From<'_, F>) -> Result<usize, OldError<F::Error>> {
        let (begin, length) = self.bytes;
        let count = (length - self.done).min(TILE);
        if count == 0 {
            return Err(Fault::Corrupt("a part of numbers is too short").into());
        }
        let tile = from.tile.get_mut(..count).unwrap_or_default();
        let (first, plane) = (self.done / self.width, length / self.width);
        for (place, out) in (0..self.width).map(|place| (place, begin + place * plane + first)) {
            let bytes = from.raw.get(out..out + count / self.width).unwrap_or_default();
            for (to, byte) in tile.iter_mut().skip(place).step_by(self.width).zip(bytes) {
                *to = *byte;
            }
        }
        if let Some(old_at) = self.old {
            let at = old_at.checked_add(self.done as u64);
            let end = at
                .and_then(|at| at.checked_add(count as u64))
                .ok_or(Fault::Corrupt("an old offset is too large"))?;
            let old = from
                .old
                .as_deref_mut()
                .ok_or(NO_FILE)?
                .all(end - count as u64, end)?;
            add(tile, old, self.width);
        }
        self.done += count;
        Ok(count)
    }
}

/// Adds differences, whose lowest bit is the sign, to old numbers.
fn add(tile: &mut [u8], old: &[u8], width: usize) {
    if width == 4 {
        for (to, old) in tile.as_chunks_mut::<4>().0.iter_mut().zip(old.as_chunks::<4>().0) {
            let difference = u32::from_le_bytes(*to);
            let difference = (difference >> 1) ^ (difference & 1).wrapping_neg();
            *to = u32::from_le_bytes(*old).wrapping_add(difference).to_le_bytes();
        }
    } else {
        for (to, old) in tile.as_chunks_mut::<2>().0.iter_mut().zip(old.as_chunks::<2>().0) {
            let difference = unzigzag(u64::from(u16::from_le_bytes(*to))) as u16;
            *to = u16::from_le_bytes(*old).wrapping_add(difference).to_le_bytes();
        }
    }
}
