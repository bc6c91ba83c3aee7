//! The tar-diff decoder: any bytes are operations over a small tree. It must end, stay within its limit, and make the same whatever the
//! reader's buffer is.
#![no_main]

use std::convert::Infallible;

use embedded_io::{ErrorKind, ErrorType, Read, Seek, SeekFrom};
use libfuzzer_sys::fuzz_target;
use wherry_delta::tardiff::{Decoder, Limits, read_magic};
use wherry_delta::{Error, MAX_PATH, Source, check_path};

/// The files that the golden vectors (images/delta/vectors) are about, so that these can be seeds.
#[derive(Clone, Copy)]
struct Tree;

struct File {
    content: &'static [u8],
    at: u64,
}

static TOOL: [u8; 1024] = {
    let mut bytes = [0; 1024];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = at as u8;
        at += 1;
    }
    bytes
};
static LONG: [u8; 70_000] = [7; 70_000];

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

impl Source for Tree {
    type Error = ErrorKind;
    type File = File;

    fn open(&mut self, path: &[u8]) -> Result<File, ErrorKind> {
        assert!(path.len() <= MAX_PATH && check_path(path).is_ok(), "an unchecked path was opened");
        let content: &[u8] = match path {
            b"bin/tool" => &TOOL,
            b"etc/motd" => b"Welcome aboard the first boat.\n",
            b"lib/long" => &LONG,
            _ => return Err(ErrorKind::NotFound),
        };
        Ok(File { content, at: 0 })
    }
}

const LIMITS: Limits = Limits { output: 1 << 20 };

type Outcome = Result<(), Error<Infallible, ErrorKind>>;

fn decode(operations: &[u8], buffer: usize) -> (Vec<u8>, Outcome) {
    let mut decoder = Decoder::new(operations, Tree, LIMITS);
    let mut tar = Vec::new();
    let mut buf = vec![0; buffer];
    loop {
        match decoder.read(&mut buf) {
            Ok(0) => return (tar, Ok(())),
            Ok(length) => tar.extend_from_slice(&buf[..length]),
            Err(error) => return (tar, Err(error)),
        }
        assert!(tar.len() as u64 <= LIMITS.output);
    }
}

fuzz_target!(|bytes: &[u8]| {
    let mut head = bytes;
    let _ = read_magic::<_, Infallible>(&mut head);
    let (large, end) = decode(bytes, 1 << 16);
    let (small, other_end) = decode(bytes, 61);
    assert_eq!(end, other_end);
    // Before an error the larger buffer may hold back a little more.
    assert!(if end.is_ok() { large == small } else { small.starts_with(&large) });
});
