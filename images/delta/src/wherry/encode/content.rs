//! One file's content as parts: which old bytes it resembles, and what differs.

use super::super::elf::Elf;
use super::super::map::{Block, MAX_BLOCKS, Map};
use super::super::part::{
    MIN_PREDICTED, NUMBERS_2, NUMBERS_4, PIECES, PLANES_2, PLANES_4, PREDICTED, stream, tile_length,
};
use super::super::predict::{MARGIN, Predictor, Window};
use super::super::wire::{Account, put, zigzag};
use super::numbers;
use super::streams::{Streams, rough_size};
use crate::align::align;

/// The longest file that is aligned in one go: aligning takes five bytes for each byte of the old file and one for each of the new.
pub(super) const MAX_ALIGNED: usize = 128 << 20;
/// Longer files are aligned window by window with the old bytes around the same place.
const WINDOW: usize = 64 << 20;
/// Files up to this length that look like numbers are aligned as well: small tables may look so, too.
const MAX_TWICE: usize = 4 << 20;
/// Blocks shorter than this say little about where old bytes went.
const SHORTEST_BLOCK: u64 = 24;

/// One part, before compression.
#[derive(Debug, Clone, Default)]
pub(super) struct PartData {
    pub(super) length: u64,
    pub(super) streams: Streams<{ stream::COUNT }>,
}

/// A stretch that resembles old bytes, and the bytes behind it that do not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    old: u64,
    like: u64,
    fresh: u64,
}

/// The parts that make `new` out of `old`, none of them with more than `most` bytes in a frame.
pub(super) fn parts(old: &[u8], new: &[u8], most: usize) -> Vec<PartData> {
    let numbers = numbers::blocks(old, new).map(|blocks| {
        let parts = blocks.iter().flat_map(|block| number_part(block, old, new, most));
        parts.collect::<Vec<_>>()
    });
    match numbers {
        // Numbers resemble nothing: to look for it takes long and is in vain.
        Some(parts) if new.len() > MAX_TWICE => parts,
        Some(parts) => {
            let pieces = piece_parts(old, new, most);
            if rough(&parts) < rough(&pieces) {
                parts
            } else {
                pieces
            }
        }
        None => piece_parts(old, new, most),
    }
}

fn rough(parts: &[PartData]) -> usize {
    parts
        .iter()
        .flat_map(|part| &part.streams.0)
        .map(|stream| rough_size(stream))
        .sum()
}

fn piece_parts(old: &[u8], new: &[u8], most: usize) -> Vec<PartData> {
    let pieces = if old.is_empty() {
        vec![Piece {
            old: 0,
            like: 0,
            fresh: new.len() as u64,
        }]
    } else {
        aligned(old, new)
    };
    let programs = programs(old, new);
    let mut parts = Vec::new();
    split(&Whole { old, new, programs }, 0, pieces, most, &mut parts);
    parts
}

fn programs(old: &[u8], new: &[u8]) -> Option<Elf> {
    let fits = |bytes: &[u8]| u32::try_from(bytes.len()).is_ok();
    if !fits(old) || !fits(new) {
        return None;
    }
    let Ok(old) = Elf::read(&mut &*old, 0);
    let Ok(new) = Elf::read(&mut &*new, 0);
    new.filter(|_| old.is_some())
}

fn aligned(old: &[u8], new: &[u8]) -> Vec<Piece> {
    let mut pieces = Vec::new();
    let mut window = |old_from: usize, old_part: &[u8], new_part: &[u8]| {
        for piece in align(old_part, new_part) {
            pieces.push(Piece {
                old: (old_from + piece.old) as u64,
                like: piece.like.len() as u64,
                fresh: piece.fresh.len() as u64,
            });
        }
    };
    if old.len() <= MAX_ALIGNED && new.len() <= MAX_ALIGNED {
        window(0, old, new);
        return pieces;
    }
    for at in (0..new.len()).step_by(WINDOW) {
        let new_part = &new[at..new.len().min(at + WINDOW)];
        // The same share of both files, and half a window around it.
        let middle = (at as u128 * old.len() as u128 / new.len() as u128) as usize;
        let from = middle.saturating_sub(WINDOW / 2).min(old.len());
        let to = old.len().min(middle + WINDOW + WINDOW / 2);
        window(from, &old[from..to], new_part);
    }
    pieces
}

/// Both files.
struct Whole<'a> {
    old: &'a [u8],
    new: &'a [u8],
    /// The new one, where both are programs that are predicted.
    programs: Option<Elf>,
}

/// Makes one part of the pieces, or two parts of their halves where one would be too large for a frame.
fn split(whole: &Whole<'_>, at: u64, pieces: Vec<Piece>, most: usize, parts: &mut Vec<PartData>) {
    let length: u64 = pieces.iter().map(|piece| piece.like + piece.fresh).sum();
    if length == 0 {
        return;
    }
    // What certainly does not fit is not tried.
    let fresh: u64 = pieces.iter().map(|piece| piece.fresh).sum();
    if fresh <= most as u64 {
        let part = best(whole, at, &pieces, length);
        if part.streams.len() <= most || length == 1 {
            parts.push(part);
            return;
        }
    }
    let (first, second) = halves(&pieces, length / 2);
    split(whole, at, first, most, parts);
    split(whole, at + length / 2, second, most, parts);
}

fn halves(pieces: &[Piece], middle: u64) -> (Vec<Piece>, Vec<Piece>) {
    let (mut first, mut second) = (Vec::new(), Vec::new());
    let mut left = middle;
    for piece in pieces {
        let (like, fresh) = (
            piece.like.min(left),
            piece.fresh.min(left.saturating_sub(piece.like)),
        );
        left -= like + fresh;
        let rest = Piece {
            old: piece.old + like,
            like: piece.like - like,
            fresh: piece.fresh - fresh,
        };
        if like + fresh > 0 {
            first.push(Piece {
                old: piece.old,
                like,
                fresh,
            });
        }
        if rest.like + rest.fresh > 0 {
            second.push(rest);
        }
    }
    (first, second)
}

fn best(whole: &Whole<'_>, at: u64, pieces: &[Piece], length: u64) -> PartData {
    let plain = piece_part(whole, at, pieces, length, None);
    let Some(prediction) = prediction(whole, at, pieces, length) else {
        return plain;
    };
    let predicted = piece_part(whole, at, pieces, length, Some(prediction));
    if predicted.streams.len() < plain.streams.len() {
        predicted
    } else {
        plain
    }
}

/// The predictor for a part, and its shortest block.
fn prediction(whole: &Whole<'_>, at: u64, pieces: &[Piece], length: u64) -> Option<(Predictor, u64)> {
    let new = whole.programs.as_ref().filter(|_| length >= MIN_PREDICTED)?;
    let Ok(old) = Elf::read(&mut &*whole.old, length);
    let mut shortest = SHORTEST_BLOCK;
    let count = |shortest: u64| pieces.iter().filter(|piece| piece.like >= shortest).count();
    if count(shortest) == 0 {
        shortest = 1;
    }
    while count(shortest) > MAX_BLOCKS {
        shortest *= 2;
    }
    let (mut blocks, mut new_at) = (Vec::new(), at);
    for piece in pieces {
        if piece.like >= shortest {
            blocks.push(Block {
                old: piece.old as u32,
                new: new_at as u32,
                length: piece.like as u32,
            });
        }
        new_at += piece.like + piece.fresh;
    }
    if blocks.is_empty() {
        return None;
    }
    // The encoder's memory is not the decoder's: what the decoder takes is found when the patch is tried.
    let map = Map::new(&mut blocks, &mut Account::new(u64::MAX)).ok()?;
    let predictor = Predictor {
        old: old?,
        new: new.segments.clone(),
        frame_table: new.frame_table,
        new_length: whole.new.len() as u64,
        map,
    };
    Some((predictor, shortest))
}

fn piece_part(
    whole: &Whole<'_>,
    at: u64,
    pieces: &[Piece],
    length: u64,
    prediction: Option<(Predictor, u64)>,
) -> PartData {
    let mut part = PartData {
        length,
        ..PartData::default()
    };
    let streams = &mut part.streams;
    let (mut old_at, mut new_at, mut gap, mut changes) = (0u64, at, 0u64, 0u64);
    let mut tile = Vec::new();
    for piece in pieces {
        streams.number(stream::SEEK, zigzag(piece.old.wrapping_sub(old_at) as i64));
        streams.number(stream::LIKE, piece.like);
        streams.number(stream::FRESH_LENGTHS, piece.fresh);
        let block = Block {
            old: piece.old as u32,
            new: new_at as u32,
            length: piece.like as u32,
        };
        let mut done = 0;
        while done < piece.like {
            let from = piece.old + done;
            let count = tile_length(from, piece.like - done);
            tile.clear();
            tile.extend_from_slice(&whole.old[from as usize..(from + count) as usize]);
            if let Some((predictor, _)) = &prediction {
                let base = from.saturating_sub(MARGIN);
                let end = ((from + count + MARGIN) as usize).min(whole.old.len());
                let window = Window {
                    base,
                    bytes: &whole.old[base as usize..end],
                };
                predictor.apply(block, from, &window, &mut tile);
            }
            let new = &whole.new[(new_at + done) as usize..(new_at + done + count) as usize];
            for (new, expected) in new.iter().zip(&tile) {
                if new == expected {
                    gap += 1;
                } else {
                    put(&mut streams.0[stream::GAPS], gap);
                    streams.0[stream::VALUES].push(new.wrapping_sub(*expected));
                    (gap, changes) = (0, changes + 1);
                }
            }
            done += count;
        }
        new_at += piece.like;
        streams.bytes(
            stream::FRESH,
            &whole.new[new_at as usize..(new_at + piece.fresh) as usize],
        );
        new_at += piece.fresh;
        old_at = piece.old + piece.like;
    }
    streams.number(
        stream::PARTS,
        if prediction.is_some() { PREDICTED } else { PIECES },
    );
    for number in [length, pieces.len() as u64, changes] {
        streams.number(stream::PARTS, number);
    }
    if let Some((predictor, shortest)) = &prediction {
        streams.number(stream::PARTS, *shortest);
        segments(predictor, streams);
    }
    part
}

fn segments(predictor: &Predictor, streams: &mut Streams<{ stream::COUNT }>) {
    let (new, old) = (&predictor.new.0, &predictor.old.segments.0);
    let mut fields = Vec::new();
    for (index, segment) in new.iter().enumerate() {
        let base = old.get(index).copied().unwrap_or_default();
        fields.push(segment.offset.wrapping_sub(base.offset));
        fields.push(segment.address.wrapping_sub(base.address));
        fields.push(segment.in_file.wrapping_sub(base.in_file));
        fields.push(segment.in_memory.wrapping_sub(base.in_memory));
    }
    fields.push(predictor.frame_table.wrapping_sub(predictor.old.frame_table));
    streams.number(stream::SEGMENTS, new.len() as u64);
    for field in fields {
        streams.number(stream::SEGMENTS, zigzag(field as i64));
    }
}

/// A block of numbers as one part; raw bytes likewise.
fn number_part(block: &numbers::Block, old: &[u8], new: &[u8], most: usize) -> Vec<PartData> {
    let bytes = &new[block.from..block.to];
    let kind = match block.how {
        numbers::How::Bytes => {
            let whole = Whole {
                old: &[],
                new,
                programs: None,
            };
            let piece = Piece {
                old: 0,
                like: 0,
                fresh: bytes.len() as u64,
            };
            let mut parts = Vec::new();
            split(&whole, block.from as u64, vec![piece], most, &mut parts);
            return parts;
        }
        numbers::How::Subtracted { width: 4, .. } => NUMBERS_4,
        numbers::How::Subtracted { .. } => NUMBERS_2,
        numbers::How::Planes { width: 4 } => PLANES_4,
        numbers::How::Planes { .. } => PLANES_2,
    };
    let mut part = PartData {
        length: bytes.len() as u64,
        ..PartData::default()
    };
    part.streams.number(stream::PARTS, kind);
    part.streams.number(stream::PARTS, part.length);
    if let numbers::How::Subtracted { old: from, .. } = block.how {
        part.streams.number(stream::PARTS, from as u64);
    }
    part.streams
        .bytes(stream::PLANES, &numbers::planes(block.how, old, bytes));
    vec![part]
}
