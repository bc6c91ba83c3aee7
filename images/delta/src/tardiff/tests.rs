#[cfg(feature = "publish")]
mod roundtrip;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io::Read as _;
use std::path::PathBuf;

use embedded_io::{ErrorType, Read, Seek, SeekFrom};

use super::*;
use crate::{Error, PathFault, Source, check_path};

/// Old files in memory. It insists that the decoder checks paths.
#[derive(Debug, Default, Clone)]
pub(super) struct Memory(pub(super) BTreeMap<Vec<u8>, Vec<u8>>);

#[derive(Debug)]
pub(super) struct MemoryFile {
    bytes: Vec<u8>,
    at: usize,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Missing;

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no such file")
    }
}

impl std::error::Error for Missing {}

impl embedded_io::Error for Missing {
    fn kind(&self) -> embedded_io::ErrorKind {
        embedded_io::ErrorKind::NotFound
    }
}

impl ErrorType for MemoryFile {
    type Error = Missing;
}

impl Read for MemoryFile {
    fn read(&mut self, buf: &mut [u8]) -> Result<usize, Missing> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        // Short reads are a file system's right.
        let length = rest.len().min(buf.len()).min(4999);
        buf[..length].copy_from_slice(&rest[..length]);
        self.at += length;
        Ok(length)
    }
}

impl Seek for MemoryFile {
    fn seek(&mut self, pos: SeekFrom) -> Result<u64, Missing> {
        let SeekFrom::Start(at) = pos else {
            panic!("the decoder seeks from the start")
        };
        self.at = usize::try_from(at).unwrap_or(usize::MAX);
        Ok(at)
    }
}

impl Source for Memory {
    type Error = Missing;
    type File = MemoryFile;

    fn open(&mut self, path: &[u8]) -> Result<MemoryFile, Missing> {
        assert_eq!(check_path(path), Ok(()));
        self.0
            .get(path)
            .map(|bytes| MemoryFile {
                bytes: bytes.clone(),
                at: 0,
            })
            .ok_or(Missing)
    }
}

const LIMITS: Limits = Limits { output: 1 << 20 };

fn operations(operations: &[u8], source: Memory) -> Result<Vec<u8>, Error<Infallible, Missing>> {
    let mut decoder = Decoder::new(operations, source, LIMITS);
    let mut tar = Vec::new();
    let mut buf = [0; 1000];
    loop {
        match decoder.read(&mut buf)? {
            0 => return Ok(tar),
            length => tar.extend_from_slice(&buf[..length]),
        }
    }
}

/// A whole tar-diff file.
pub(super) fn file(mut patch: &[u8], source: Memory) -> Result<Vec<u8>, Error<Infallible, Missing>> {
    read_magic(&mut patch)?;
    let mut decompressor = zstd::Decoder::new(patch).unwrap();
    decompressor.window_log_max(WINDOW_LOG_MAX).unwrap();
    let mut decompressed = Vec::new();
    decompressor.read_to_end(&mut decompressed).unwrap();
    let mut tar = Vec::new();
    let length = Decoder::new(&decompressed[..], source, Limits { output: u64::MAX })
        .write_to(&mut tar)
        .map_err(|error| {
            // The output is memory: only the type differs.
            match error {
                Error::Source(error) => Error::Source(error),
                other => panic!("{other:?}"),
            }
        })?;
    assert_eq!(length, tar.len() as u64);
    Ok(tar)
}

fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors")
}

fn vector_tree() -> Memory {
    let old = vectors().join("old");
    let read = |path: &str| (path.as_bytes().to_vec(), std::fs::read(old.join(path)).unwrap());
    Memory(
        ["bin/tool", "etc/motd", "lib/long"]
            .into_iter()
            .map(read)
            .collect(),
    )
}

/// `vectors/make.py` writes them.
#[test]
fn golden_vectors() {
    let mut count = 0;
    for entry in std::fs::read_dir(vectors()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "tardiff") {
            let found = file(&std::fs::read(&path).unwrap(), vector_tree()).unwrap();
            assert!(
                found == std::fs::read(path.with_extension("out")).unwrap(),
                "{}",
                path.display()
            );
            count += 1;
        }
    }
    assert_eq!(count, 8);
}

fn op(code: u8, mut size: u64, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![code];
    while size >= 0x80 {
        bytes.push(size as u8 | 0x80);
        size >>= 7;
    }
    bytes.push(size as u8);
    bytes.extend_from_slice(payload);
    bytes
}

fn open(path: &str) -> Vec<u8> {
    op(code::OPEN, path.len() as u64, path.as_bytes())
}

#[test]
fn hostile_operations() {
    let motd = open("etc/motd");
    let path = |fault| Error::Path { fault, at: 0 };
    let varint = |bytes: &[u8]| [&[code::COPY][..], bytes].concat();
    let cases: Vec<(&str, Vec<u8>, Error<Infallible, Missing>)> = vec![
        (
            "unknown operation",
            vec![6, 0],
            Error::Operation { code: 6, at: 0 },
        ),
        (
            "unknown operation later",
            [op(code::DATA, 1, b"x"), vec![255, 0]].concat(),
            Error::Operation { code: 255, at: 3 },
        ),
        (
            "dictionary",
            op(code::ZSTD_DICT, 1, b"x"),
            Error::Unsupported {
                name: "ZSTD_DICT",
                at: 0,
            },
        ),
        (
            "copy before open",
            op(code::COPY, 1, b""),
            Error::NoFile { at: 0 },
        ),
        (
            "add before open",
            op(code::ADD_DATA, 1, b"x"),
            Error::NoFile { at: 0 },
        ),
        (
            "seek before open",
            op(code::SEEK, 1, b""),
            Error::NoFile { at: 0 },
        ),
        (
            "copy past the end",
            [motd.clone(), op(code::COPY, 32, b"")].concat(),
            Error::SourceShort { at: 10, offset: 31 },
        ),
        (
            "add past the end",
            [motd.clone(), op(code::ADD_DATA, 32, &[0; 32])].concat(),
            Error::SourceShort { at: 10, offset: 31 },
        ),
        (
            "seek past the end",
            [motd.clone(), op(code::SEEK, 1 << 40, b""), op(code::COPY, 1, b"")].concat(),
            Error::SourceShort {
                at: 17,
                offset: 1 << 40,
            },
        ),
        (
            "seek past an off_t",
            [motd.clone(), op(code::SEEK, u64::MAX, b"")].concat(),
            Error::SourceShort { at: 10, offset: 0 },
        ),
        (
            "too much output",
            [motd.clone(), op(code::COPY, (1 << 20) + 1, b"")].concat(),
            Error::TooMuch { limit: 1 << 20 },
        ),
        (
            "output that wraps",
            [op(code::DATA, 1, b"x"), op(code::DATA, u64::MAX, b"")].concat(),
            Error::TooMuch { limit: 1 << 20 },
        ),
        (
            "much output in many operations",
            op(code::DATA, 1 << 19, &[0; 1 << 19]).repeat(3),
            Error::TooMuch { limit: 1 << 20 },
        ),
        ("no size", vec![code::COPY], Error::Truncated { at: 0 }),
        ("half a size", varint(&[0x80]), Error::Truncated { at: 0 }),
        ("short data", op(code::DATA, 3, b"ab"), Error::Truncated { at: 0 }),
        (
            "short path",
            op(code::OPEN, 9, b"etc/motd"),
            Error::Truncated { at: 0 },
        ),
        (
            "short add",
            [motd, op(code::ADD_DATA, 3, b"ab")].concat(),
            Error::Truncated { at: 10 },
        ),
        (
            "size of 65 bits",
            varint(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]),
            Error::Varint { at: 0 },
        ),
        ("size without end", varint(&[0x80; 64]), Error::Varint { at: 0 }),
        (
            "path of 4 GB",
            op(code::OPEN, 1 << 32, b"a"),
            path(PathFault::TooLong(1 << 32)),
        ),
        ("no path", open(""), path(PathFault::Empty)),
        ("absolute path", open("/etc/passwd"), path(PathFault::Absolute)),
        (
            "path to a parent",
            open("../../etc/passwd"),
            path(PathFault::Parent),
        ),
        (
            "path to a parent inside",
            open("etc/../../passwd"),
            path(PathFault::Parent),
        ),
        ("path with NUL", open("etc\0/motd"), path(PathFault::Nul)),
        ("no such file", open("etc/shadow"), Error::Source(Missing)),
        (
            "seeks for ever",
            [open("etc/motd"), op(code::SEEK, 1, b"").repeat(2000)].concat(),
            Error::Idle {
                at: 2056,
                limit: MAX_IDLE,
            },
        ),
        (
            "empty data for ever",
            op(code::DATA, 0, b"").repeat(2000),
            Error::Idle {
                at: 2048,
                limit: MAX_IDLE,
            },
        ),
    ];
    for (what, patch, expected) in cases {
        let found = operations(&patch, vector_tree());
        assert_eq!(found, Err(expected.clone()), "{what}");
        assert!(expected.to_string().starts_with("delta: "), "{what}: {expected}");
    }
}

#[test]
fn foreign_files_are_refused() {
    for (bytes, expected) in [
        (&b"tardf3\n\0"[..], Error::Magic(*b"tardf3\n\0")),
        (
            b"\x1f\x8b\x08\0\0\0\0\0",
            Error::Magic([0x1f, 0x8b, 8, 0, 0, 0, 0, 0]),
        ),
        (b"tardf1\n", Error::Truncated { at: 0 }),
        (b"", Error::Truncated { at: 0 }),
    ] {
        assert_eq!(file(bytes, Memory::default()), Err(expected));
    }
}

/// Every prefix of a valid patch is either a whole number of operations or an error, never a panic; and an error is final.
#[test]
fn every_cut() {
    let patch = std::fs::read(vectors().join("add.tardiff")).unwrap();
    // Magic, frame header and block header are 8 + 6 + 3 bytes: the block is raw.
    let whole = &patch[17..];
    let expected = std::fs::read(vectors().join("add.out")).unwrap();
    let mut boundaries = 0;
    for length in 0..whole.len() {
        match operations(&whole[..length], vector_tree()) {
            Ok(tar) => {
                assert!(expected.starts_with(&tar));
                boundaries += 1;
            }
            Err(error) => assert_eq!(error.class(), crate::Class::Corrupt, "{error}"),
        }
    }
    assert_eq!(boundaries, 4);
}

#[test]
fn an_error_is_final() {
    let patch = [op(code::DATA, 2, b"ab"), vec![9, 9], op(code::DATA, 2, b"cd")].concat();
    let mut decoder = Decoder::new(&patch[..], Memory::default(), LIMITS);
    let mut buf = [0; 8];
    assert_eq!(decoder.read(&mut buf).unwrap(), 2);
    assert!(decoder.read(&mut buf).is_err());
    assert_eq!(decoder.read(&mut buf).unwrap(), 0);
}
