#[cfg(feature = "publish")]
mod codec;
#[cfg(feature = "publish")]
mod golden;
#[cfg(feature = "publish")]
mod hostile;
#[cfg(feature = "publish")]
mod roundtrip;
mod vectors;

use std::collections::BTreeMap;
use std::io::{self, Cursor};

use super::*;
use crate::adapt::Std;
use crate::check_path;

/// A decompressor that needs no standard library: what a board without one would use.
pub(super) struct Portable;

impl Decompress for Portable {
    fn decompress(&mut self, from: &[u8], to: &mut [u8]) -> bool {
        let wanted = to.len();
        let made = ruzstd::decoding::FrameDecoder::new().decode_all(from, to);
        made.is_ok_and(|made| made == wanted)
    }
}

/// One node of an unpacked layer.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) bytes: Vec<u8>,
    pub(super) mtime: i64,
    pub(super) link: Vec<u8>,
}

/// An unpacked layer in memory. It insists that the decoder checks paths.
#[derive(Debug, Clone, Default)]
pub(super) struct Unpacked(pub(super) BTreeMap<Vec<u8>, Node>);

/// Layers in memory.
#[derive(Debug, Clone, Default)]
pub(super) struct Memory(pub(super) Vec<Unpacked>);

impl Layers for Memory {
    type Error = io::Error;
    type File = Std<Cursor<Vec<u8>>>;

    fn open(&mut self, layer: usize, path: &[u8]) -> io::Result<Self::File> {
        assert_eq!(check_path(path), Ok(()));
        let node = self.0[layer].0.get(path).filter(|node| node.kind == Kind::File);
        let node = node.ok_or(io::ErrorKind::NotFound)?;
        Ok(Std(Cursor::new(node.bytes.clone())))
    }

    fn list(&mut self, layer: usize, listing: &mut Listing<'_>) -> io::Result<()> {
        // In another order than the encoder's.
        for (path, node) in self.0[layer].0.iter().rev() {
            if !listing.add(path, node.kind, node.bytes.len() as u64, node.mtime, &node.link) {
                break;
            }
        }
        Ok(())
    }
}

pub(super) const ALL: Limits = Limits {
    memory: 1 << 30,
    output: u64::MAX,
};

pub(super) type Outcome = Result<(), Error<io::Error, io::Error>>;

/// Decodes a whole patch: what came out, and how it ended.
pub(super) fn decode(patch: &[u8], old: &Memory, limits: &Limits) -> (Vec<u8>, Outcome) {
    let mut out = Vec::new();
    let mut run = || {
        let mut patch = Std(patch);
        let header = Header::read(&mut patch)?;
        let mut decoder = Decoder::new(header, patch, old.clone(), Portable, limits)?;
        let mut buffer = [0; 10_007];
        loop {
            match decoder.read(&mut buffer)? {
                0 => return Ok(()),
                length => out.extend_from_slice(&buffer[..length]),
            }
        }
    };
    let end = run();
    (out, end)
}

pub(super) fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    (0..length)
        .map(|_| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .collect()
}
