//! The bytes of a tar out of the bytes of a blob, counted and hashed on the way.

use std::io::{self, BufRead, BufReader, Read};

use super::{Error, recipe};
use crate::digest::{DiffId, Hasher};

/// Largest zstd window taken, as a power of two: 64 MiB. A board has 512 MB in all.
const ZSTD_WINDOW_LOG: u32 = 26;
/// How much is read at once.
const CHUNK: usize = 128 << 10;
/// As many bytes as tell the formats apart.
const MAGIC_LEN: usize = 6;

/// A tar, decompressed as its first bytes demand.
pub(super) enum Decoder<R: Read> {
    Plain(Joined<R>),
    Gzip(Box<flate2::bufread::MultiGzDecoder<BufReader<Joined<R>>>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, BufReader<Joined<R>>>>),
}

type Joined<R> = io::Chain<io::Cursor<Vec<u8>>, R>;

impl<R: Read> Decoder<R> {
    pub(super) fn new(mut input: R) -> Result<Self, Error> {
        let mut magic = Vec::with_capacity(MAGIC_LEN);
        (&mut input)
            .take(MAGIC_LEN as u64)
            .read_to_end(&mut magic)
            .map_err(Error::Input)?;
        let refused = |kind| {
            Err(Error::Compression(format!(
                "{kind} compression is not supported, only gzip, zstd and plain tar"
            )))
        };
        let m = magic.clone();
        let joined = io::Cursor::new(magic).chain(input);
        match m.as_slice() {
            [0x1f, 0x8b, ..] => {
                let buffered = BufReader::with_capacity(CHUNK, joined);
                Ok(Self::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(
                    buffered,
                ))))
            }
            // A zstd frame, or a skippable one in front of it.
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => {
                let buffered = BufReader::with_capacity(CHUNK, joined);
                let mut decoder = zstd::stream::read::Decoder::with_buffer(buffered)
                    .map_err(|e| Error::Compression(e.to_string()))?;
                decoder
                    .window_log_max(ZSTD_WINDOW_LOG)
                    .map_err(|e| Error::Compression(e.to_string()))?;
                Ok(Self::Zstd(Box::new(decoder)))
            }
            [0xfd, b'7', b'z', b'X', b'Z', 0] => refused("xz"),
            [b'B', b'Z', b'h', ..] => refused("bzip2"),
            [0x04, 0x22, 0x4d, 0x18, ..] => refused("lz4"),
            _ => Ok(Self::Plain(joined)),
        }
    }
}

impl<R: Read> Read for Decoder<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(input) => input.read(buffer),
            Self::Gzip(decoder) => decoder.read(buffer).map_err(|e| named("gzip", e)),
            Self::Zstd(decoder) => decoder.read(buffer).map_err(|e| {
                if e.to_string().contains("too much memory") {
                    let limit = 1_u32 << (ZSTD_WINDOW_LOG - 20);
                    return named(
                        "zstd",
                        io::Error::other(format!("its window is larger than {limit} MiB")),
                    );
                }
                named("zstd", e)
            }),
        }
    }
}

/// Decoder errors come as I/O errors of these kinds; others are the input's own.
fn named(format: &str, e: io::Error) -> io::Error {
    use io::ErrorKind::{InvalidData, InvalidInput, Other, UnexpectedEof};
    match e.kind() {
        UnexpectedEof => io::Error::new(InvalidData, format!("{format}: the stream ends early")),
        InvalidData | InvalidInput | Other => io::Error::new(InvalidData, format!("{format}: {e}")),
        _ => e,
    }
}

/// The uncompressed tar as it comes by: bounded, counted, hashed.
pub(super) struct Source<R: Read> {
    input: BufReader<R>,
    hasher: Hasher,
    position: u64,
    limit: u64,
    /// Told of all that is not a file's content.
    recipe: Option<recipe::Writer>,
}

impl<R: Read> Source<R> {
    pub(super) fn new(input: R, limit: u64, recipe: Option<recipe::Writer>) -> Self {
        Self {
            input: BufReader::with_capacity(CHUNK, input),
            hasher: Hasher::new(),
            position: 0,
            limit,
            recipe,
        }
    }

    /// How many bytes were taken.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// Up to `max` of the next bytes, none at the end, through `take`.
    pub(super) fn with_next<T>(
        &mut self,
        max: usize,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<(usize, T), Error> {
        self.with_either(max, None, take)
    }

    /// As [`with_next`](Self::with_next), for bytes that go into a file of the tree, at that offset.
    pub(super) fn with_content<T>(
        &mut self,
        max: usize,
        file: (&[u8], u64),
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<(usize, T), Error> {
        self.with_either(max, Some(file), take)
    }

    fn with_either<T>(
        &mut self,
        max: usize,
        file: Option<(&[u8], u64)>,
        take: impl FnOnce(&[u8]) -> T,
    ) -> Result<(usize, T), Error> {
        let bytes = loop {
            match self.input.fill_buf() {
                Ok(_) => break self.input.buffer(),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::InvalidData => {
                    return Err(Error::Compression(e.to_string()));
                }
                Err(e) => return Err(Error::Input(e)),
            }
        };
        let bytes = bytes.get(..max).unwrap_or(bytes);
        let n = bytes.len();
        self.position += n as u64;
        if self.position > self.limit {
            return Err(Error::Limit {
                what: "bytes",
                limit: self.limit,
            });
        }
        self.hasher.update(bytes);
        if let Some(recipe) = &mut self.recipe {
            let noted = match file {
                Some((path, offset)) => recipe.copy(path, offset, n as u64),
                None => recipe.bytes(bytes),
            };
            noted.map_err(|e| Error::io("write", super::RECIPE.as_bytes(), e))?;
        }
        let taken = take(bytes);
        self.input.consume(n);
        Ok((n, taken))
    }

    /// Fills `buffer` as far as there are bytes.
    pub(super) fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            let (n, ()) = self.with_next(rest.len(), |bytes| {
                if let Some(to) = rest.get_mut(..bytes.len()) {
                    to.copy_from_slice(bytes);
                }
            })?;
            if n == 0 {
                break;
            }
            filled += n;
        }
        Ok(filled)
    }

    /// Takes the rest: padding behind the archive's end is part of what the diffID is over.
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        while self.with_next(CHUNK, |_| ())?.0 > 0 {}
        Ok(())
    }

    /// The digest over everything taken, and how much it was.
    pub(super) fn finish(self) -> Result<(DiffId, u64), Error> {
        if let Some(recipe) = self.recipe {
            let ended = recipe.finish();
            ended.map_err(|e| Error::io("write", super::RECIPE.as_bytes(), e))?;
        }
        Ok((self.hasher.diff_id(), self.position))
    }
}
