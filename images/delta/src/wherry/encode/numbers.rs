//! Files of numbers, as trained weights are: numbers of 4 or 2 bytes that all changed a little. Their bytes resemble no old bytes, but
//! their differences are small, and bytes of the same weight in the number resemble each other.

use super::streams::rough_size;

/// Smaller files are not looked at.
const SMALLEST: usize = 64 << 10;
/// A block gets one treatment.
const BLOCK: usize = 1 << 20;
/// What is looked at of a file before it is taken for numbers: so many samples of so many bytes.
const SAMPLES: usize = 9;
const SAMPLE: usize = 16 << 10;

/// How a block is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// As it is.
    Bytes,
    /// As differences from the old numbers at an offset, in planes.
    Subtracted {
        /// Bytes of a number.
        width: usize,
        /// Where the old ones are.
        old: usize,
    },
    /// In planes.
    Planes {
        /// Bytes of a number.
        width: usize,
    },
}

/// A block of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) from: usize,
    pub(super) to: usize,
    pub(super) how: How,
}

/// The file in blocks, if it is one of numbers.
pub(super) fn blocks(old: &[u8], new: &[u8]) -> Option<Vec<Block>> {
    if new.len() < SMALLEST {
        return None;
    }
    // Numbers keep their distance from the file's begin, or from its end.
    let mut shifts = vec![0i64];
    let from_end = old.len() as i64 - new.len() as i64;
    if from_end != 0 && from_end % 4 == 0 {
        shifts.push(from_end);
    }
    let step = (new.len() - SAMPLE) / (SAMPLES - 1);
    let mut found = 0;
    for sample in 0..SAMPLES {
        let from = sample * step / 8 * 8;
        let bytes = &new[from..from + SAMPLE];
        let same = |&shift: &i64| {
            old_at(old, from, bytes.len(), shift).map_or(0, |at| {
                old[at..].iter().zip(bytes).filter(|(a, b)| a == b).count()
            })
        };
        // Bytes that are mostly the same are the aligner's.
        if shifts.iter().map(same).max().unwrap_or(0) > SAMPLE / 2 {
            return None;
        }
        let (how, size) = best(old, new, from, from + SAMPLE, &shifts);
        let plain = rough_size(bytes);
        if how != How::Bytes && size * 16 < plain * 15 {
            found += 1;
        }
    }
    if found * 3 < SAMPLES * 2 {
        return None;
    }
    let mut blocks = Vec::new();
    let whole = new.len() / 4 * 4;
    for from in (0..whole).step_by(BLOCK) {
        let to = whole.min(from + BLOCK);
        let (how, _) = best(old, new, from, to, &shifts);
        blocks.push(Block { from, to, how });
    }
    if whole < new.len() {
        blocks.push(Block {
            from: whole,
            to: new.len(),
            how: How::Bytes,
        });
    }
    Some(blocks)
}

fn old_at(old: &[u8], from: usize, length: usize, shift: i64) -> Option<usize> {
    let at = usize::try_from(from as i64 + shift).ok()?;
    (at.checked_add(length)? <= old.len()).then_some(at)
}

/// The treatment that makes a block smallest.
fn best(old: &[u8], new: &[u8], from: usize, to: usize, shifts: &[i64]) -> (How, usize) {
    let bytes = &new[from..to];
    let mut best = (How::Bytes, rough_size(bytes));
    let mut candidates = Vec::new();
    for width in [4, 2] {
        for &shift in shifts {
            if let Some(old) = old_at(old, from, bytes.len(), shift) {
                candidates.push(How::Subtracted { width, old });
            }
        }
        candidates.push(How::Planes { width });
    }
    for how in candidates {
        let size = rough_size(&planes(how, old, bytes));
        if size < best.1 {
            best = (how, size);
        }
    }
    best
}

/// The block's bytes in planes: the first of each number, the second of each, ...
pub(super) fn planes(how: How, old: &[u8], new: &[u8]) -> Vec<u8> {
    let (width, old) = match how {
        How::Bytes => return new.to_vec(),
        How::Subtracted { width, old: at } => (width, Some(&old[at..at + new.len()])),
        How::Planes { width } => (width, None),
    };
    let count = new.len() / width;
    let mut out = vec![0; count * width];
    for index in 0..count {
        let place = index * width..(index + 1) * width;
        let number = |bytes: &[u8]| {
            bytes
                .iter()
                .rev()
                .fold(0u32, |sum, &byte| sum << 8 | u32::from(byte))
        };
        let mut value = number(&new[place.clone()]);
        if let Some(old) = old {
            let difference = value.wrapping_sub(number(&old[place]));
            value = if width == 4 {
                (difference << 1) ^ ((difference as i32) >> 31) as u32
            } else {
                let difference = difference as i16;
                u32::from(((difference << 1) ^ (difference >> 15)) as u16)
            };
        }
        for (plane, byte) in value.to_le_bytes().into_iter().take(width).enumerate() {
            out[plane * count + index] = byte;
        }
    }
    out
}
