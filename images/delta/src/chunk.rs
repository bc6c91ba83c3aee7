//! Content-defined chunks: bytes that two files share are found again wherever they moved to.

use std::hash::{DefaultHasher, Hasher};

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) offset: usize,
    pub(crate) size: usize,
    /// Of its bytes; a hit is compared before it is copied.
    pub(crate) hash: u64,
}

/// Boundaries fall where twelve bits of the rolling sum are zero: 4 KB on average behind the least size.
const MASK: u64 = 0xfff << 48;
const MIN: usize = 1 << 10;
const MAX: usize = 32 << 10;

/// A fixed random number for each byte (splitmix64), from which the rolling sum is made.
const GEAR: [u64; 256] = {
    let mut table = [0; 256];
    let mut seed = 0u64;
    let mut at = 0;
    while at < 256 {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = seed;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        table[at] = mixed ^ (mixed >> 31);
        at += 1;
    }
    table
};

/// The chunks of `bytes` in order.
pub(crate) fn chunks(bytes: &[u8]) -> impl Iterator<Item = Chunk> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = &bytes[offset..];
        if rest.is_empty() {
            return None;
        }
        let size = boundary(rest);
        let mut hasher = DefaultHasher::new();
        hasher.write(&rest[..size]);
        let chunk = Chunk {
            offset,
            size,
            hash: hasher.finish(),
        };
        offset += size;
        Some(chunk)
    })
}

fn boundary(bytes: &[u8]) -> usize {
    let most = bytes.len().min(MAX);
    let mut sum = 0u64;
    for (at, &byte) in bytes[..most].iter().enumerate() {
        sum = (sum << 1).wrapping_add(GEAR[usize::from(byte)]);
        if at >= MIN && sum & MASK == 0 {
            return at + 1;
        }
    }
    most
}
