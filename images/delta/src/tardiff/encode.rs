//! The encoder: the new tar as operations over the old image's files.
//!
//! The operations follow the new tar from its first byte to its last. Headers, padding and whatever is not understood are DATA. A regular
//! file is, in this order: a copy of an old file with the same bytes; aligned with the old file of the same path; with one of a similar
//! name; with the one that shares the most chunks with it; or DATA.

use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;

use super::{MAGIC_V1, WINDOW_LOG_MAX, code};
use crate::EncodeError;
use crate::align::align;
use crate::chunk::chunks;
use crate::image::{Image, load};
use crate::tar::{Entries, Entry};
use crate::tree::File;

/// The longest file that is aligned byte by byte; longer ones are compared by chunks. Aligning takes five bytes for each byte of the old file (a
/// suffix array and itself) and one for each of the new, so that encoding stays below 1.5 GB whatever the layers are.
const MAX_ALIGNED: u64 = 192 << 20;

/// zstd's level. 19 is the highest whose window is [`WINDOW_LOG_MAX`].
const LEVEL: i32 = 19;

/// The shortest run of equal bytes inside aligned bytes that is a COPY of its own. To zstd a shorter one is cheaper as zeros: 1 KiB made the
/// smallest patches of a Rust binary and of 60 Debian packages, 2 to 4 % smaller than 32 bytes.
const MIN_COPY: usize = 1 << 10;

/// The longest DATA and ADD_DATA operation. Other decoders hold an ADD_DATA in memory and refuse more than 100 MiB.
const MAX_DATA: usize = 1 << 20;

/// The most bytes of operations that are held back: a window's worth.
const MAX_HELD: usize = 1 << WINDOW_LOG_MAX;

/// How much is read of a tar at a time.
const BUFFER: usize = 1 << 16;

/// What a patch is made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Encoded {
    /// The length of the tar that the patch makes.
    pub output: u64,
    /// Bytes of it that are copied from old files.
    pub copied: u64,
    /// Bytes of it that are made of old bytes and differences.
    pub added: u64,
    /// Bytes of it that the patch carries as they are.
    pub data: u64,
}

/// Makes tar-diffs against one old image. The same input gives the same patch.
pub struct Encoder<R> {
    image: Image<R>,
}

impl<R: Read + Seek> Encoder<R> {
    /// An encoder against the image of these uncompressed layer tars, the lowest first.
    ///
    /// # Errors
    /// [`EncodeError::Old`] when one of them is not a tar or cannot be read.
    pub fn new(layers: Vec<R>) -> Result<Self, EncodeError> {
        Image::new(layers, MAX_ALIGNED).map(|image| Self { image })
    }

    /// Writes the tar-diff that makes the uncompressed layer tar `new` to `patch`.
    ///
    /// # Errors
    /// Any of [`EncodeError`].
    pub fn encode<N: Read + Seek, W: Write>(
        &mut self,
        new: &mut N,
        mut patch: W,
    ) -> Result<Encoded, EncodeError> {
        let end = new.seek(SeekFrom::End(0)).map_err(EncodeError::New)?;
        let wanted = wanted(new, end);
        patch.write_all(&MAGIC_V1).map_err(EncodeError::Patch)?;
        let mut operations = Operations::new(Compressor::new(patch));
        let mut at = 0;
        for entry in wanted {
            copy_data(new, at..entry.offset, &mut operations)?;
            self.file(new, &entry, &mut operations)?;
            at = entry.offset + entry.size;
        }
        copy_data(new, at..end, &mut operations)?;
        let (compressor, encoded) = operations.finish().map_err(EncodeError::Patch)?;
        compressor.finish().map_err(EncodeError::Patch)?;
        debug_assert_eq!(encoded.output, end);
        Ok(encoded)
    }

    /// Encodes the bytes of one regular file.
    fn file<N: Read + Seek, W: Write>(
        &mut self,
        new: &mut N,
        entry: &Entry,
        operations: &mut Operations<W>,
    ) -> Result<(), EncodeError> {
        let place = entry.offset..entry.offset + entry.size;
        if entry.size > MAX_ALIGNED {
            return self.by_chunks(new, place, operations);
        }
        let bytes = load(new, place).map_err(EncodeError::New)?;
        if let Some(old) = self.image.equal(&bytes)? {
            return operations
                .copy(&self.image.tree.files[old], 0, entry.size)
                .map_err(EncodeError::Patch);
        }
        let Some(source) = self.image.source(entry, &bytes)? else {
            return operations.data(&bytes).map_err(EncodeError::Patch);
        };
        let file = &self.image.tree.files[source];
        let old = load(&mut self.image.layers[file.layer], file.place()).map_err(EncodeError::Old)?;
        for piece in align(&old, &bytes) {
            operations
                .like(
                    file,
                    piece.old,
                    &old[piece.old..piece.old + piece.like.len()],
                    &bytes[piece.like],
                )
                .and_then(|()| operations.data(&bytes[piece.fresh]))
                .map_err(EncodeError::Patch)?;
        }
        Ok(())
    }

    /// Encodes a file that is too long to be aligned: chunks that an old file has are copied.
    fn by_chunks<N: Read + Seek, W: Write>(
        &mut self,
        new: &mut N,
        place: Range<u64>,
        operations: &mut Operations<W>,
    ) -> Result<(), EncodeError> {
        let mut at = place.start;
        while at < place.end {
            let part = at..place.end.min(at + MAX_ALIGNED);
            at = part.end;
            let bytes = load(new, part).map_err(EncodeError::New)?;
            for chunk in chunks(&bytes) {
                let fresh = &bytes[chunk.offset..chunk.offset + chunk.size];
                if let Some((file, old)) = self
                    .image
                    .chunks()?
                    .get(&chunk.hash)
                    .copied()
                    .filter(|(_, old)| old.size == chunk.size)
                {
                    let file = &self.image.tree.files[file];
                    let start = file.offset + old.offset as u64;
                    let known = load(&mut self.image.layers[file.layer], start..start + old.size as u64)
                        .map_err(EncodeError::Old)?;
                    if known == fresh {
                        operations
                            .copy(file, old.offset as u64, old.size as u64)
                            .map_err(EncodeError::Patch)?;
                        continue;
                    }
                }
                operations.data(fresh).map_err(EncodeError::Patch)?;
            }
        }
        Ok(())
    }
}

/// The entries of the new tar whose bytes may come from old files. What follows something that is no tar is carried as it is.
fn wanted<N: Read + Seek>(new: &mut N, end: u64) -> Vec<Entry> {
    let mut entries = Entries::new(new);
    let mut wanted = Vec::new();
    while let Ok(Some(entry)) = entries.next() {
        if entry.offset.checked_add(entry.size).is_none_or(|last| last > end) {
            break;
        }
        if entry.kind == b'0' && !entry.sparse && entry.size > 0 {
            wanted.push(entry);
        }
    }
    wanted
}

fn copy_data<N: Read + Seek, W: Write>(
    new: &mut N,
    place: Range<u64>,
    operations: &mut Operations<W>,
) -> Result<(), EncodeError> {
    let mut at = place.start;
    while at < place.end {
        let part = at..place.end.min(at + BUFFER as u64);
        at = part.end;
        let bytes = load(new, part).map_err(EncodeError::New)?;
        operations.data(&bytes).map_err(EncodeError::Patch)?;
    }
    Ok(())
}

/// Compresses operations. Few of them are held back until their number is known, because zstd then takes a smaller window and smaller tables, here and
/// on the board.
enum Compressor<W: Write> {
    Held(Vec<u8>, W),
    Streaming(zstd::stream::write::Encoder<'static, W>),
    /// Only while one state becomes the other, and after a failure in between.
    Broken,
}

impl<W: Write> Compressor<W> {
    fn new(patch: W) -> Self {
        Self::Held(Vec::new(), patch)
    }

    /// Starts zstd with what is held; `whole` says that nothing follows.
    fn start(&mut self, whole: bool) -> io::Result<()> {
        if let Self::Held(held, patch) = std::mem::replace(self, Self::Broken) {
            let mut encoder = zstd::stream::write::Encoder::new(patch, LEVEL)?;
            encoder.window_log(WINDOW_LOG_MAX)?;
            if whole {
                encoder.set_pledged_src_size(Some(held.len() as u64))?;
            }
            encoder.write_all(&held)?;
            *self = Self::Streaming(encoder);
        }
        Ok(())
    }

    fn finish(mut self) -> io::Result<()> {
        if matches!(self, Self::Held(..)) {
            self.start(true)?;
        }
        match self {
            Self::Streaming(encoder) => encoder.finish()?.flush(),
            _ => Err(io::Error::other("the compressor failed before")),
        }
    }
}

impl<W: Write> Write for Compressor<W> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if let Self::Held(held, _) = self {
            if held.len() + buf.len() <= MAX_HELD {
                held.extend_from_slice(buf);
                return Ok(buf.len());
            }
            self.start(false)?;
        }
        match self {
            Self::Streaming(encoder) => encoder.write(buf),
            _ => Err(io::Error::other("the compressor failed before")),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes operations; leaves out what changes nothing and joins what belongs together.
struct Operations<W> {
    out: W,
    data: Vec<u8>,
    /// A COPY that may still grow.
    copy: u64,
    open: Option<String>,
    offset: u64,
    encoded: Encoded,
}

impl<W: Write> Operations<W> {
    fn new(out: W) -> Self {
        Self {
            out,
            data: Vec::new(),
            copy: 0,
            open: None,
            offset: 0,
            encoded: Encoded::default(),
        }
    }

    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.flush_copy()?;
        self.encoded.output += bytes.len() as u64;
        self.encoded.data += bytes.len() as u64;
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(MAX_DATA - self.data.len()));
            self.data.extend_from_slice(now);
            if self.data.len() == MAX_DATA {
                self.flush_data()?;
            }
            bytes = later;
        }
        Ok(())
    }

    fn copy(&mut self, file: &File, offset: u64, size: u64) -> io::Result<()> {
        self.seek(file, offset)?;
        self.copy += size;
        self.offset += size;
        self.encoded.output += size;
        self.encoded.copied += size;
        Ok(())
    }

    /// Bytes that resemble the old bytes at `offset`: equal runs are copied, the rest is added.
    fn like(&mut self, file: &File, offset: usize, old: &[u8], new: &[u8]) -> io::Result<()> {
        let mut at = 0;
        while at < new.len() {
            let equal = old[at..]
                .iter()
                .zip(&new[at..])
                .take_while(|(old, new)| old == new)
                .count();
            if equal >= MIN_COPY || at + equal == new.len() {
                self.copy(file, (offset + at) as u64, equal as u64)?;
                at += equal;
                continue;
            }
            let most = new.len().min(at + MAX_DATA);
            let end = at + unlike(&old[at..most], &new[at..most]);
            self.seek(file, (offset + at) as u64)?;
            self.flush_copy()?;
            self.operation(code::ADD_DATA, (end - at) as u64)?;
            let added: Vec<u8> = new[at..end]
                .iter()
                .zip(&old[at..end])
                .map(|(new, old)| new.wrapping_sub(*old))
                .collect();
            self.out.write_all(&added)?;
            self.offset += added.len() as u64;
            self.encoded.output += added.len() as u64;
            self.encoded.added += added.len() as u64;
            at = end;
        }
        Ok(())
    }

    /// Makes `offset` of `file` the place that the next operation reads from.
    fn seek(&mut self, file: &File, offset: u64) -> io::Result<()> {
        self.flush_data()?;
        if self.open.as_ref() != Some(&file.path) {
            self.flush_copy()?;
            self.operation(code::OPEN, file.path.len() as u64)?;
            self.out.write_all(file.path.as_bytes())?;
            self.open = Some(file.path.clone());
            self.offset = 0;
        }
        if self.offset != offset {
            self.flush_copy()?;
            self.operation(code::SEEK, offset)?;
            self.offset = offset;
        }
        Ok(())
    }

    fn flush_data(&mut self) -> io::Result<()> {
        if !self.data.is_empty() {
            self.operation(code::DATA, self.data.len() as u64)?;
            self.out.write_all(&self.data)?;
            self.data.clear();
        }
        Ok(())
    }

    fn flush_copy(&mut self) -> io::Result<()> {
        if self.copy > 0 {
            self.operation(code::COPY, self.copy)?;
            self.copy = 0;
        }
        Ok(())
    }

    fn operation(&mut self, code: u8, mut size: u64) -> io::Result<()> {
        let mut bytes = vec![code];
        while size >= 0x80 {
            bytes.push(size as u8 | 0x80);
            size >>= 7;
        }
        bytes.push(size as u8);
        self.out.write_all(&bytes)
    }

    fn finish(mut self) -> io::Result<(W, Encoded)> {
        self.flush_data()?;
        self.flush_copy()?;
        Ok((self.out, self.encoded))
    }
}

/// How many bytes there are before the next run of equal ones that is worth a COPY.
fn unlike(old: &[u8], new: &[u8]) -> usize {
    let mut run = 0;
    for (at, (old, new)) in old.iter().zip(new).enumerate() {
        run = if old == new { run + 1 } else { 0 };
        if run == MIN_COPY {
            return at + 1 - run;
        }
    }
    new.len() - run
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Codes and sizes of the operations.
    fn listed(mut bytes: &[u8]) -> Vec<(u8, usize)> {
        let mut list = Vec::new();
        while let [operation, rest @ ..] = bytes {
            let length = rest.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
            let size = rest[..length]
                .iter()
                .rev()
                .fold(0, |size, byte| size << 7 | usize::from(byte & 0x7f));
            let payload = if matches!(*operation, code::COPY | code::SEEK) {
                0
            } else {
                size
            };
            list.push((*operation, size));
            bytes = &rest[length + payload..];
        }
        list
    }

    #[test]
    fn operations_are_joined_and_split() {
        let file = File {
            path: "a".into(),
            layer: 0,
            offset: 0,
            size: 4 << 20,
        };
        let old = vec![0; 4 << 20];
        let mut new = vec![1; 4 << 20];
        // Two runs of equal bytes: one worth a COPY, one not.
        new[..2000].fill(0);
        new[(3 << 20) + 10..(3 << 20) + 500].fill(0);
        let mut operations = Operations::new(Vec::new());
        operations.copy(&file, 0, 1000).unwrap();
        operations.copy(&file, 1000, 1000).unwrap();
        operations.like(&file, 0, &old, &new).unwrap();
        operations.data(b"ab").unwrap();
        operations.data(b"cd").unwrap();
        operations.data(&vec![0; 1 << 20]).unwrap();
        operations.copy(&file, 7, 1).unwrap();
        operations.copy(&file, 9, 1).unwrap();
        let (bytes, encoded) = operations.finish().unwrap();
        let adds = (4 << 20) - 2000 - 3 * (1 << 20);
        assert_eq!(
            listed(&bytes),
            [
                (code::OPEN, 1),
                (code::COPY, 2000),
                (code::SEEK, 0),
                (code::COPY, 2000),
                (code::ADD_DATA, 1 << 20),
                (code::ADD_DATA, 1 << 20),
                (code::ADD_DATA, 1 << 20),
                (code::ADD_DATA, adds),
                (code::DATA, 1 << 20),
                (code::DATA, 4),
                (code::SEEK, 7),
                (code::COPY, 1),
                (code::SEEK, 9),
                (code::COPY, 1),
            ]
        );
        assert_eq!(encoded.output, 2000 + (4 << 20) + 4 + (1 << 20) + 2);
    }
}
