//! Frames as they are written: streams of bytes, each compressed alone.

use std::io;

use super::super::wire::put;

/// zstd's best. Streams are at most [`super::super::MAX_FRAME`] long, so its window never is longer.
const LEVEL: i32 = 22;

/// The streams of one frame or part.
#[derive(Debug, Clone)]
pub(super) struct Streams<const N: usize>(pub(super) [Vec<u8>; N]);

impl<const N: usize> Default for Streams<N> {
    fn default() -> Self {
        Self(std::array::from_fn(|_| Vec::new()))
    }
}

impl<const N: usize> Streams<N> {
    pub(super) fn number(&mut self, stream: usize, number: u64) {
        put(&mut self.0[stream], number);
    }

    pub(super) fn bytes(&mut self, stream: usize, bytes: &[u8]) {
        self.0[stream].extend_from_slice(bytes);
    }

    pub(super) fn append(&mut self, other: &Self) {
        for (to, from) in self.0.iter_mut().zip(&other.0) {
            to.extend_from_slice(from);
        }
    }

    /// Its bytes before compression.
    pub(super) fn len(&self) -> usize {
        self.0.iter().map(Vec::len).sum()
    }

    /// The lengths and the compressed streams.
    pub(super) fn pack(&self) -> io::Result<Vec<u8>> {
        let mut lengths = Vec::new();
        let mut bodies = Vec::new();
        for stream in &self.0 {
            let packed = compress(stream)?;
            put(&mut lengths, stream.len() as u64);
            if packed.len() < stream.len() {
                put(&mut lengths, packed.len() as u64);
                bodies.extend_from_slice(&packed);
            } else {
                put(&mut lengths, 0);
                bodies.extend_from_slice(stream);
            }
        }
        lengths.extend_from_slice(&bodies);
        Ok(lengths)
    }
}

fn compress(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut compressor = zstd::bulk::Compressor::new(LEVEL)?;
    compressor.include_contentsize(false)?;
    compressor.include_checksum(false)?;
    compressor.compress(bytes)
}

/// The compressed size of some bytes, quickly and roughly.
pub(super) fn rough_size(bytes: &[u8]) -> usize {
    zstd::bulk::compress(bytes, 3).map_or(bytes.len(), |packed| packed.len().min(bytes.len()))
}
