//! The recipe beside a tree: how its tar is made again, bit by bit.
//!
//! A tar is headers, padding and the contents of files. The contents are in the tree; the recipe is the rest, in order:
//!
//! ```text
//! zstd( "wherry-recipe 1\n"  record*  0 )
//! record: 1 LEN bytes               these bytes
//!         2 LEN path OFFSET LEN     that many bytes of a file of the tree, from there
//! ```
//!
//! Numbers are LEB128. A path is relative to the tree, its components separated by single slashes, and leads through no
//! symbolic link. A recipe is read in the cage, as the layer's own tar is: a bad card may have made anything of it.

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{FileType, Mode, OFlags};

use crate::disk::Output;

/// What every recipe begins with.
const MAGIC: &[u8] = b"wherry-recipe 1\n";
const END: u8 = 0;
const BYTES: u8 = 1;
const COPY: u8 = 2;
/// Bytes gathered into one record, and the most that one may have.
const MAX_BYTES: usize = 64 << 10;
/// The longest path that a layer may have.
const MAX_PATH: u64 = 4096;
/// The fastest level: headers are so alike that others gain little.
const LEVEL: i32 = 1;
/// The window: 512 KiB, which a reader has to keep.
const WINDOW_LOG: u32 = 19;

/// A recipe being written.
pub(super) struct Writer {
    output: zstd::stream::write::Encoder<'static, Output>,
    bytes: Vec<u8>,
    copy: Option<Copy>,
}

/// A piece of a file.
struct Copy {
    path: Vec<u8>,
    offset: u64,
    len: u64,
}

impl Writer {
    /// Begins a recipe in an empty file.
    pub(super) fn new(file: File) -> io::Result<Self> {
        let mut output = zstd::stream::write::Encoder::new(Output::new(file), LEVEL)?;
        output.window_log(WINDOW_LOG)?;
        output.write_all(MAGIC)?;
        Ok(Self {
            output,
            bytes: Vec::new(),
            copy: None,
        })
    }

    /// The next bytes of the tar, as they are.
    pub(super) fn bytes(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        self.end_copy()?;
        while !bytes.is_empty() {
            let n = bytes.len().min(MAX_BYTES - self.bytes.len());
            let (now, later) = bytes.split_at(n);
            self.bytes.extend_from_slice(now);
            bytes = later;
            if self.bytes.len() == MAX_BYTES {
                self.end_bytes()?;
            }
        }
        Ok(())
    }

    /// The next bytes of the tar are those of a file.
    pub(super) fn copy(&mut self, path: &[u8], offset: u64, len: u64) -> io::Result<()> {
        if let Some(copy) = &mut self.copy
            && copy.path == path
            && copy.offset + copy.len == offset
        {
            copy.len += len;
            return Ok(());
        }
        self.end_copy()?;
        self.end_bytes()?;
        self.copy = Some(Copy {
            path: path.to_vec(),
            offset,
            len,
        });
        Ok(())
    }

    fn end_bytes(&mut self) -> io::Result<()> {
        if self.bytes.is_empty() {
            return Ok(());
        }
        self.output.write_all(&[BYTES])?;
        number(&mut self.output, self.bytes.len() as u64)?;
        self.output.write_all(&self.bytes)?;
        self.bytes.clear();
        Ok(())
    }

    fn end_copy(&mut self) -> io::Result<()> {
        let Some(copy) = self.copy.take() else {
            return Ok(());
        };
        self.output.write_all(&[COPY])?;
        number(&mut self.output, copy.path.len() as u64)?;
        self.output.write_all(&copy.path)?;
        number(&mut self.output, copy.offset)?;
        number(&mut self.output, copy.len)
    }

    /// Ends it.
    pub(super) fn finish(mut self) -> io::Result<()> {
        self.end_copy()?;
        self.end_bytes()?;
        self.output.write_all(&[END])?;
        self.output.finish().map(|_| ())
    }
}

fn number(out: &mut impl Write, mut value: u64) -> io::Result<()> {
    loop {
        let low = (value & 0x7f) as u8;
        value >>= 7;
        if value == 0 {
            return out.write_all(&[low]);
        }
        out.write_all(&[low | 0x80])?;
    }
}

/// A tar as its recipe and its tree give it.
pub(crate) struct Reader<'a> {
    input: zstd::stream::read::Decoder<'static, BufReader<File>>,
    tree: BorrowedFd<'a>,
    now: Part,
}

/// What the next bytes are.
enum Part {
    /// A record has to be read.
    Next,
    /// So many bytes of the recipe.
    Bytes(u64),
    /// So many bytes of a file, from an offset.
    File(File, u64, u64),
    End,
}

impl<'a> Reader<'a> {
    /// Begins with the recipe and the tree of one layer.
    pub(crate) fn new(recipe: File, tree: BorrowedFd<'a>) -> io::Result<Self> {
        let mut input = zstd::stream::read::Decoder::new(recipe)?;
        input.window_log_max(WINDOW_LOG)?;
        let mut magic = [0; MAGIC.len()];
        input.read_exact(&mut magic)?;
        if magic != MAGIC {
            return Err(broken("it is not one, or of a later version"));
        }
        Ok(Self {
            input,
            tree,
            now: Part::Next,
        })
    }

    fn next(&mut self) -> io::Result<Part> {
        let mut kind = [0];
        self.input.read_exact(&mut kind)?;
        match kind {
            [END] => Ok(Part::End),
            [BYTES] => match self.number()? {
                len if len <= MAX_BYTES as u64 => Ok(Part::Bytes(len)),
                _ => Err(broken("a record is too long")),
            },
            [COPY] => {
                let len = self.number()?;
                if len > MAX_PATH {
                    return Err(broken("a path is too long"));
                }
                let mut path = vec![0; len as usize];
                self.input.read_exact(&mut path)?;
                let (offset, len) = (self.number()?, self.number()?);
                Ok(Part::File(self.open(&path)?, offset, len))
            }
            _ => Err(broken("a record of no known kind")),
        }
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut value = 0_u64;
        for shift in (0..63).step_by(7) {
            let mut byte = [0];
            self.input.read_exact(&mut byte)?;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(broken("a number is too large"))
    }

    fn open(&self, path: &[u8]) -> io::Result<File> {
        let name = || super::quote(path);
        let failed = |e: rustix::io::Errno| {
            let e = io::Error::from(e);
            io::Error::new(e.kind(), format!("{:?}: {e}", name()))
        };
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let mut names = path.split(|b| *b == b'/').peekable();
        let mut dir: Option<OwnedFd> = None;
        while let Some(part) = names.next() {
            if matches!(part, b"" | b"." | b"..") {
                return Err(broken("a path that is none"));
            }
            let at = dir.as_ref().map_or(self.tree, AsFd::as_fd);
            let is_last = names.peek().is_none();
            let kind = if is_last {
                OFlags::empty()
            } else {
                OFlags::DIRECTORY
            };
            let opened = rustix::fs::openat(at, part, flags | kind, Mode::empty()).map_err(failed)?;
            if !is_last {
                dir = Some(opened);
                continue;
            }
            let stat = rustix::fs::fstat(&opened).map_err(failed)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
                return Err(io::Error::other(format!("{:?}: it is not a file", name())));
            }
            return Ok(File::from(opened));
        }
        Err(broken("a path that is none"))
    }
}

fn broken(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the recipe: {what}"))
}

impl Read for Reader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let limit = |left: u64| usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            match &mut self.now {
                Part::Bytes(0) | Part::File(_, _, 0) | Part::Next => self.now = self.next()?,
                Part::End => return Ok(0),
                Part::Bytes(left) => {
                    let n = self
                        .input
                        .read(buffer.get_mut(..limit(*left)).unwrap_or_default())?;
                    if n == 0 {
                        return Err(broken("it ends early"));
                    }
                    *left -= n as u64;
                    return Ok(n);
                }
                Part::File(file, offset, left) => {
                    let n = file.read_at(buffer.get_mut(..limit(*left)).unwrap_or_default(), *offset)?;
                    if n == 0 {
                        return Err(broken("a file of the tree is shorter than it was"));
                    }
                    *offset += n as u64;
                    *left -= n as u64;
                    return Ok(n);
                }
            }
        }
    }
}
