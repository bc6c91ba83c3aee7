//! The decoder: a reader of the new tar over a patch and the source layers' extracted files.

use alloc::vec;
use alloc::vec::Vec;
use core::hash::Hasher as _;

use embedded_io::{ErrorType, Read, Seek, Write};
use twox_hash::XxHash64;

use super::header::{FrameKind, Header, Limits, exact};
use super::listing::Listing;
use super::old::{Old, OldError, WINDOW};
use super::part::{self, From, Part, TILE};
use super::style::BLOCK;
use super::table::{self, Item, Method, Table};
use super::wire::{Account, Cursor};
use super::{CHUNK, Error, Fault, MAX_FRAME};
use crate::check_path;

/// The source layers' extracted files, the layers numbered as in [`Header::sources`].
pub trait Layers {
    /// What opening, listing, reading and seeking may fail with.
    type Error: embedded_io::Error;
    /// An open old file.
    type File: Read<Error = Self::Error> + Seek<Error = Self::Error>;

    /// Opens the regular file at `path` in a layer's own tree, its position at the first byte.
    ///
    /// `path` has passed [`check_path`]: relative, normalised, no `..`. It is still foreign: an implementation over a real file system
    /// must resolve it beneath the layer's root and follow no symbolic link.
    ///
    /// # Errors
    /// There is no such regular file, or it cannot be opened.
    fn open(&mut self, layer: usize, path: &[u8]) -> Result<Self::File, Self::Error>;

    /// Adds every regular file, directory and symbolic link of a layer's own tree to `listing`, until that wants no more.
    ///
    /// # Errors
    /// The layer cannot be read.
    fn list(&mut self, layer: usize, listing: &mut Listing<'_>) -> Result<(), Self::Error>;
}

impl<L: Layers> Layers for &mut L {
    type Error = L::Error;
    type File = L::File;

    fn open(&mut self, layer: usize, path: &[u8]) -> Result<L::File, L::Error> {
        (**self).open(layer, path)
    }

    fn list(&mut self, layer: usize, listing: &mut Listing<'_>) -> Result<(), L::Error> {
        (**self).list(layer, listing)
    }
}

/// A zstd decoder. Which one is for whoever knows the platform to choose.
pub trait Decompress {
    /// Decompresses one zstd frame into `to`; false when it is damaged or does not fill `to` exactly.
    ///
    /// Its memory comes on top of what a patch declares. `to` is the frame's window: an implementation needs none of its own.
    fn decompress(&mut self, from: &[u8], to: &mut [u8]) -> bool;
}

/// The error of a decoder; `W` is the output's.
type Failure<R, L, W = core::convert::Infallible> = Error<<R as ErrorType>::Error, <L as Layers>::Error, W>;

impl<P, S> core::convert::From<OldError<S>> for Error<P, S> {
    fn from(error: OldError<S>) -> Self {
        match error {
            OldError::Fault(fault) => Self::Fault(fault),
            OldError::Source(error) => Self::Source(error),
        }
    }
}

/// Which bytes of the present entry come next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The entry has not begun.
    Next,
    Header(usize),
    Content(u64),
    Padding(usize),
}

/// Rebuilds a tar from a patch and old files. Read it with [`Decoder::read`], or let [`Decoder::write_to`] run it.
#[derive(Debug)]
pub struct Decoder<R: Read, L: Layers, D> {
    patch: R,
    layers: L,
    zstd: D,
    header: Header,
    account: Account,
    /// The frame that is read next.
    frame: usize,
    /// What the present frame has still to make.
    frame_left: u64,
    /// The present frame, decompressed, and its streams.
    raw: Vec<u8>,
    packed: Vec<u8>,
    streams: part::Streams,
    /// The hashes of the present frame's chunks, and which is next.
    hashes: Vec<u8>,
    chunk_number: usize,
    /// A chunk of output, how much of it is verified, and how much of that is handed out.
    chunk: Vec<u8>,
    verified: usize,
    handed: usize,
    /// Where in the output the chunk begins.
    chunk_at: u64,
    table: Table,
    place: usize,
    stage: Stage,
    item: Item,
    /// The present entry's header.
    head: Vec<u8>,
    old: Option<Old<L::File>>,
    window: Vec<u8>,
    part: Option<Part>,
    tile: Vec<u8>,
    failed: bool,
}

impl<R: Read, L: Layers, D: Decompress> Decoder<R, L, D> {
    /// A decoder of a whole patch. `patch` stands behind the header, which was read by [`Header::read`].
    ///
    /// # Errors
    /// The patch declares more memory or output than `limits` allow.
    pub fn new(header: Header, patch: R, layers: L, zstd: D, limits: &Limits) -> Result<Self, Fault> {
        header.check(limits)?;
        let mut account = Account::new(header.memory);
        header.book(&mut account)?;
        Ok(Self {
            patch,
            layers,
            zstd,
            header,
            account,
            frame: 0,
            frame_left: 0,
            raw: Vec::new(),
            packed: Vec::new(),
            streams: part::Streams::default(),
            hashes: Vec::new(),
            chunk_number: 0,
            chunk: vec![0; CHUNK],
            verified: 0,
            handed: 0,
            chunk_at: 0,
            table: Table::default(),
            place: 0,
            stage: Stage::Next,
            item: Item::default(),
            head: Vec::new(),
            old: None,
            window: vec![0; WINDOW],
            part: None,
            tile: vec![0; TILE],
            failed: false,
        })
    }

    /// Skips to the last frame that begins at or before byte `done` of the output, and returns where that is. What lies between in the
    /// patch is read and thrown away, except the table; a caller that can seek gives a `patch` that seeks.
    ///
    /// # Errors
    /// The patch ends early, the table is damaged, or decoding has begun already.
    pub fn restart(&mut self, done: u64) -> Result<u64, Failure<R, L>> {
        let restart = self
            .header
            .restart(done)
            .filter(|_| self.frame == 0)
            .ok_or(Fault::Restart)?;
        while self.frame < restart.frame {
            let number = self.frame;
            if restart.table == Some(number) {
                self.next_table()?;
                continue;
            }
            let size = self.header.frames.get(number).map_or(0, |frame| frame.size);
            self.skip(size)?;
            self.frame += 1;
        }
        self.chunk_at = restart.output;
        Ok(restart.output)
    }

    fn skip(&mut self, mut size: u64) -> Result<(), Failure<R, L>> {
        while size > 0 {
            let most = size.min(self.tile.len() as u64) as usize;
            exact(&mut self.patch, self.tile.get_mut(..most).unwrap_or_default())?;
            size -= most as u64;
        }
        Ok(())
    }

    /// What the patch says about itself.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Fills the front of `out` with the next verified bytes of the tar; 0 is the end.
    ///
    /// # Errors
    /// Any of [`Error`] but the output's. After an error the decoder is at its end for good.
    pub fn read(&mut self, out: &mut [u8]) -> Result<usize, Failure<R, L>> {
        if out.is_empty() || self.failed {
            return Ok(0);
        }
        if self.handed == self.verified {
            // Set first: whatever returns early below is final.
            self.failed = true;
            if !self.fill()? {
                return Ok(0);
            }
            self.failed = false;
        }
        let bytes = self.chunk.get(self.handed..self.verified).unwrap_or_default();
        let length = bytes.len().min(out.len());
        for (to, byte) in out.iter_mut().zip(bytes) {
            *to = *byte;
        }
        self.handed += length;
        Ok(length)
    }

    /// Writes the whole tar to `out` and returns its length.
    ///
    /// # Errors
    /// Any of [`Error`]. What was written before an error is verified by its hashes, not by the diffID.
    pub fn write_to<W: Write>(mut self, out: &mut W) -> Result<u64, Failure<R, L, W::Error>> {
        let mut made = 0;
        loop {
            let mut buffer = [0; 4096];
            let length = self.read(&mut buffer).map_err(Error::with_output)?;
            if length == 0 {
                out.flush().map_err(Error::Output)?;
                return Ok(made);
            }
            out.write_all(buffer.get(..length).unwrap_or_default())
                .map_err(Error::Output)?;
            made += length as u64;
        }
    }

    /// Makes and verifies the next chunk; false at the end.
    fn fill(&mut self) -> Result<bool, Failure<R, L>> {
        self.chunk_at += self.verified as u64;
        (self.verified, self.handed) = (0, 0);
        while self.frame_left == 0 {
            let Some(frame) = self.header.frames.get(self.frame) else {
                return Ok(false);
            };
            match frame.kind {
                FrameKind::Table => self.next_table()?,
                FrameKind::Content => self.next_content()?,
            }
        }
        let wanted = self.frame_left.min(CHUNK as u64) as usize;
        // The chunk leaves `self` while the rest makes its bytes.
        let mut chunk = core::mem::take(&mut self.chunk);
        let made = self.make(chunk.get_mut(..wanted).unwrap_or_default());
        self.chunk = chunk;
        made?;
        let bytes = self.chunk.get(..wanted).unwrap_or_default();
        let from = self.chunk_number * HASH;
        if self.hashes.get(from..from + HASH) != Some(&hash(bytes)[..]) {
            return Err(Fault::Chunk {
                offset: self.chunk_at,
            }
            .into());
        }
        self.chunk_number += 1;
        self.frame_left -= wanted as u64;
        self.verified = wanted;
        Ok(true)
    }

    fn make(&mut self, mut out: &mut [u8]) -> Result<(), Failure<R, L>> {
        while !out.is_empty() {
            let length = self.step(out)?;
            out = out.get_mut(length..).unwrap_or_default();
        }
        Ok(())
    }

    /// Makes some of the next bytes; 0 only when the next step makes more.
    fn step(&mut self, out: &mut [u8]) -> Result<usize, Failure<R, L>> {
        match self.stage {
            Stage::Next => {
                self.begin_item()?;
                Ok(0)
            }
            Stage::Header(at) => {
                let length = copy(self.head.get(at..).unwrap_or_default(), out);
                self.stage = if at + length < self.head.len() {
                    Stage::Header(at + length)
                } else {
                    Stage::Content(0)
                };
                Ok(length)
            }
            Stage::Content(at) if at >= self.item.content => {
                let over = (self.item.content % BLOCK as u64) as usize;
                self.stage = Stage::Padding((BLOCK - over) % BLOCK);
                self.end_content();
                Ok(0)
            }
            Stage::Content(at) => {
                let most = usize::try_from(self.item.content - at)
                    .unwrap_or(usize::MAX)
                    .min(out.len());
                let length = self.content(at, out.get_mut(..most).unwrap_or_default())?;
                self.stage = Stage::Content(at + length as u64);
                Ok(length)
            }
            Stage::Padding(0) => {
                self.place += 1;
                self.stage = Stage::Next;
                Ok(0)
            }
            Stage::Padding(left) => {
                let length = left.min(out.len());
                out.get_mut(..length).unwrap_or_default().fill(0);
                self.stage = Stage::Padding(left - length);
                Ok(length)
            }
        }
    }

    fn begin_item(&mut self) -> Result<(), Fault> {
        self.item = *self
            .table
            .at(self.place)
            .ok_or(Fault::Corrupt("a frame makes more than the table has"))?;
        let before = self.head.capacity();
        self.head.clear();
        self.table.header(&self.item, &mut self.head)?;
        self.account.take(self.head.capacity() - before)?;
        if self.head.is_empty() && self.item.content == 0 {
            return Err(Fault::Corrupt("an entry has no bytes"));
        }
        self.stage = if self.head.is_empty() {
            Stage::Content(0)
        } else {
            Stage::Header(0)
        };
        Ok(())
    }

    /// Begins in the middle of an entry, as a frame may.
    fn begin_at(&mut self, place: usize, offset: u64) -> Result<(), Fault> {
        self.end_content();
        self.place = place;
        self.stage = Stage::Next;
        if offset > 0 {
            self.begin_item()?;
            let at = offset
                .checked_sub(self.head.len() as u64)
                .filter(|&at| at < self.item.content);
            self.stage =
                Stage::Content(at.ok_or(Fault::Corrupt("a frame begins outside of an entry's content"))?);
        }
        Ok(())
    }

    /// Makes at least one byte of content.
    fn content(&mut self, at: u64, out: &mut [u8]) -> Result<usize, Failure<R, L>> {
        if self.old.is_none() && self.item.method != Method::Fresh {
            self.open()?;
        }
        if self.item.method == Method::Copy {
            let old = self.old.as_mut().ok_or(Fault::Restart)?;
            return Ok(old.read(at, out)?);
        }
        let mut from = From {
            raw: &self.raw,
            streams: &mut self.streams,
            old: self.old.as_mut(),
            account: &mut self.account,
            tile: &mut self.tile,
        };
        let mut part = match self.part.take() {
            Some(part) => part,
            None => Part::begin(&mut from, at, self.item.content)?,
        };
        let length = part.read(&mut from, out)?;
        if part.left() > 0 {
            self.part = Some(part);
        } else {
            part.release(&mut self.account);
        }
        Ok(length)
    }

    /// Opens the present entry's old file.
    fn open(&mut self) -> Result<(), Failure<R, L>> {
        const BAD: Fault = Fault::Corrupt("an old file is in a layer that is not named");
        let layer = match usize::from(self.item.source_layer).checked_sub(1) {
            None => self.header.base.ok_or(BAD)?.source,
            Some(layer) if layer < self.header.sources.len() => layer,
            Some(_) => return Err(BAD.into()),
        };
        let path = self.table.span(self.item.source_path);
        check_path(path).map_err(Fault::Path)?;
        let file = self.layers.open(layer, path).map_err(Error::Source)?;
        let mut old = Old::new(file, core::mem::take(&mut self.window));
        if let Some(time) = self.table.source_time(&self.item) {
            old.set_time(time).map_err(Error::Source)?;
        }
        self.old = Some(old);
        Ok(())
    }

    fn end_content(&mut self) {
        if let Some(part) = self.part.take() {
            part.release(&mut self.account);
        }
        // The old file is closed before the next is opened: never more than one.
        if let Some(old) = self.old.take() {
            self.window = old.into_buffer();
        }
    }

    fn next_table(&mut self) -> Result<(), Failure<R, L>> {
        let mut size = self.header.frames.get(self.frame).map_or(0, |frame| frame.size);
        self.end_content();
        core::mem::take(&mut self.table).release(&mut self.account);
        let mut streams = [Cursor::default(); table::stream::COUNT];
        self.load(&mut streams, &mut size)?;
        let (entries, names) = self.header.base.map_or((0, 0), |base| (base.entries, base.names));
        let mut listing = Listing::new(&mut self.account, entries, names)?;
        if let Some(base) = self.header.base {
            self.layers
                .list(base.source, &mut listing)
                .map_err(Error::Source)?;
            if listing.finish()? != base.hash {
                return Err(Fault::Listing.into());
            }
        }
        let table = Table::decode(&self.raw, streams, &mut listing);
        drop(listing);
        self.table = table?;
        self.place = 0;
        self.stage = Stage::Next;
        self.frame += 1;
        Ok(())
    }

    fn next_content(&mut self) -> Result<(), Failure<R, L>> {
        let frame = *self.header.frames.get(self.frame).ok_or(Fault::Restart)?;
        let hashes = frame.chunks().saturating_mul(HASH as u64);
        let mut size = frame
            .size
            .checked_sub(hashes)
            .ok_or(Fault::Corrupt("a frame is shorter than its hashes"))?;
        let hashes = usize::try_from(hashes).map_err(|_| Fault::Corrupt("a frame is too long"))?;
        self.account.resize(&mut self.hashes, hashes)?;
        exact(&mut self.patch, &mut self.hashes)?;
        let mut streams = part::Streams::default();
        self.load(&mut streams, &mut size)?;
        self.streams = streams;
        let parts = self.streams.get_mut(part::stream::PARTS).ok_or(Fault::Restart)?;
        let (place, offset) = (parts.size(&self.raw)?, parts.number(&self.raw)?);
        self.begin_at(place, offset)?;
        self.chunk_number = 0;
        self.frame_left = frame.output;
        self.frame += 1;
        Ok(())
    }

    /// Reads and decompresses the streams of a frame of which `size` bytes are left.
    fn load(&mut self, streams: &mut [Cursor], size: &mut u64) -> Result<(), Failure<R, L>> {
        let mut lengths = [(0usize, 0usize); table::stream::COUNT];
        let lengths = lengths.get_mut(..streams.len()).unwrap_or_default();
        let (mut total, mut largest) = (0usize, 0usize);
        for (raw, packed) in lengths.iter_mut() {
            *raw = self.length(size)?;
            *packed = self.length(size)?;
            if *packed > *raw {
                return Err(Fault::Corrupt("a stream is longer than what it holds").into());
            }
            total += *raw;
            largest = largest.max(*packed);
        }
        if total > MAX_FRAME {
            return Err(Fault::Corrupt("a frame holds more than 8 MiB").into());
        }
        self.account.resize(&mut self.raw, total)?;
        self.account.resize(&mut self.packed, largest)?;
        let mut at = 0;
        for (&mut (raw, packed), stream) in lengths.iter_mut().zip(streams) {
            let to = self.raw.get_mut(at..at + raw).unwrap_or_default();
            let length = if packed == 0 { raw } else { packed };
            *size = size
                .checked_sub(length as u64)
                .ok_or(Fault::Corrupt("a frame ends too early"))?;
            if packed == 0 {
                exact(&mut self.patch, to)?;
            } else {
                let from = self.packed.get_mut(..packed).unwrap_or_default();
                exact(&mut self.patch, from)?;
                if !self.zstd.decompress(from, to) {
                    return Err(Fault::Compression.into());
                }
            }
            *stream = Cursor::new(at, at + raw);
            at += raw;
        }
        if *size > 0 {
            return Err(Fault::Corrupt("a frame is longer than its streams").into());
        }
        Ok(())
    }

    /// Reads a length of at most [`MAX_FRAME`] from the patch itself.
    fn length(&mut self, size: &mut u64) -> Result<usize, Failure<R, L>> {
        const BAD: Fault = Fault::Corrupt("a frame's lengths are damaged");
        let mut number = 0usize;
        for shift in (0..28).step_by(7) {
            let mut byte = [0];
            *size = size.checked_sub(1).ok_or(BAD)?;
            exact(&mut self.patch, &mut byte)?;
            number |= usize::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return if number <= MAX_FRAME {
                    Ok(number)
                } else {
                    Err(BAD.into())
                };
            }
        }
        Err(BAD.into())
    }

    /// The most memory that was booked so far.
    #[cfg(feature = "publish")]
    pub(super) fn peak(&self) -> u64 {
        self.account.peak()
    }
}

/// The bytes of a chunk's hash in the patch.
pub(super) const HASH: usize = 8;

/// The hash of a chunk of output.
pub(super) fn hash(chunk: &[u8]) -> [u8; HASH] {
    let mut hasher = XxHash64::with_seed(0);
    hasher.write(chunk);
    hasher.finish().to_le_bytes()
}

fn copy(from: &[u8], to: &mut [u8]) -> usize {
    let length = from.len().min(to.len());
    for (to, from) in to.iter_mut().zip(from) {
        *to = *from;
    }
    length
}
