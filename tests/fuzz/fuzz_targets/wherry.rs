//! The decoder of our own codec: any bytes are a patch over the tree of the golden vectors. It must end, stay within the memory and output that
//! it was allowed, hand out the same whatever the reader's buffer is, and the same from the last frame on when it starts again there.
//!
//! zstd is left out: a compressed stream is its first bytes and zeros, so that what is changed reaches the decoder.
#![no_main]

use std::convert::Infallible;

use embedded_io::{ErrorKind, ErrorType, Read, Seek, SeekFrom};
use libfuzzer_sys::fuzz_target;
use wherry_delta::wherry::{Decoder, Decompress, Error, Fault, Header, Kind, Layers, Limits, Listing};
use wherry_delta::{MAX_PATH, check_path};

macro_rules! old {
    ($name:literal) => {
        include_bytes!(concat!("../../../images/delta/vectors/wherry/old/", $name))
    };
}

static FILES: [(&[u8], &[u8]); 5] = [
    (b"bin/tool", old!("tool")),
    (b"etc/text", old!("text")),
    (b"lib/m.py", old!("source")),
    (b"lib/__pycache__/m.cpython-311.pyc", old!("compiled")),
    (b"weights", old!("weights")),
];
static DIRECTORIES: [&[u8]; 4] = [b"bin", b"etc", b"lib", b"lib/__pycache__"];

#[derive(Clone, Copy)]
struct Tree;

struct File {
    content: &'static [u8],
    at: u64,
}

impl ErrorType for File {
    type Error = ErrorKind;
}

impl Read for File {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, ErrorKind> {
        let rest = usize::try_from(self.at).ok().and_then(|at| self.content.get(at..)).unwrap_or_default();
        let length = rest.len().min(buf.len());
        buf[..length].copy_from_slice(&rest[..length]);
        self.at += length as u64;
        Ok(length)
    }
}

impl Seek for File {
    fn seek(&mut self, pos: SeekFrom) -> Result<u64, ErrorKind> {
        let SeekFrom::Start(at) = pos else { return Err(ErrorKind::Unsupported) };
        self.at = at;
        Ok(at)
    }
}

impl Layers for Tree {
    type Error = ErrorKind;
    type File = File;

    fn open(&mut self, layer: usize, path: &[u8]) -> Result<File, ErrorKind> {
        assert!(path.len() <= MAX_PATH && check_path(path).is_ok(), "an unchecked path was opened");
        let found = FILES.iter().find(|(known, _)| *known == path && layer == 0);
        found.map(|&(_, content)| File { content, at: 0 }).ok_or(ErrorKind::NotFound)
    }

    fn list(&mut self, _layer: usize, listing: &mut Listing<'_>) -> Result<(), ErrorKind> {
        for (path, content) in FILES {
            listing.add(path, Kind::File, content.len() as u64, 1, b"");
        }
        for path in DIRECTORIES {
            listing.add(path, Kind::Directory, 0, 0, b"");
        }
        Ok(())
    }
}

struct Zeros;

impl Decompress for Zeros {
    fn decompress(&mut self, from: &[u8], to: &mut [u8]) -> bool {
        to[..from.len()].copy_from_slice(from);
        true
    }
}

const LIMITS: Limits = Limits { memory: 32 << 20, output: 4 << 20 };

type Outcome = Result<(), Error<Infallible, ErrorKind>>;

fn run(mut patch: &[u8], buffer: usize, from: Option<u64>, out: &mut Vec<u8>) -> Result<u64, Error<Infallible, ErrorKind>> {
    let header = Header::read(&mut patch)?;
    let mut decoder = Decoder::new(header, patch, Tree, Zeros, &LIMITS)?;
    let begin = match from {
        Some(done) => decoder.restart(done)?,
        None => 0,
    };
    let mut buf = vec![0; buffer];
    loop {
        match decoder.read(&mut buf)? {
            0 => return Ok(begin),
            length => out.extend_from_slice(&buf[..length]),
        }
        assert!(out.len() as u64 <= LIMITS.output);
    }
}

fn decode(patch: &[u8], buffer: usize) -> (Vec<u8>, Outcome) {
    let mut out = Vec::new();
    let end = run(patch, buffer, None, &mut out).map(drop);
    (out, end)
}

fuzz_target!(|bytes: &[u8]| {
    let (large, end) = decode(bytes, 1 << 16);
    let (small, other_end) = decode(bytes, 4099);
    assert_eq!(end, other_end);
    assert_eq!(large, small);
    if end.is_ok() {
        let mut again = Vec::new();
        match run(bytes, 1 << 16, Some(large.len() as u64 / 2), &mut again) {
            Ok(begin) => assert_eq!(again, large[begin as usize..]),
            Err(Error::Fault(Fault::Restart)) => assert!(large.is_empty()),
            Err(error) => panic!("a restart failed: {error:?}"),
        }
    }
});
