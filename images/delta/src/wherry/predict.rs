//! The predictor, version 1: what becomes of the addresses in an AArch64 program whose code and data moved.
//!
//! The old file's words are read as instructions, pointers and frame descriptions; what they point at is mapped to where it went, and
//! they are written for their new place. A wrong guess costs bytes in the patch, never correctness, as long as encoder and decoder guess
//! alike: a change of anything in this module, in `elf` or in `map` is a new version ([`super::PREDICTOR`]).

use super::elf::{Content, Elf, Section, Segments};
use super::map::{Block, Map};
use super::wire::Account;

/// How many bytes in front of and behind a tile decide about its words.
pub(super) const MARGIN: u64 = 40;
/// How many instructions behind an ADRP its other half is looked for.
const REACH: usize = 8;

/// One file's prediction.
#[derive(Debug)]
pub(super) struct Predictor {
    pub(super) old: Elf,
    pub(super) new: Segments,
    /// The address of the new file's table of frames.
    pub(super) frame_table: u64,
    pub(super) new_length: u64,
    pub(super) map: Map,
}

/// The bytes around a tile.
pub(super) struct Window<'a> {
    pub(super) base: u64,
    pub(super) bytes: &'a [u8],
}

impl Window<'_> {
    fn array<const N: usize>(&self, at: u64) -> Option<[u8; N]> {
        let from = usize::try_from(at.checked_sub(self.base)?).ok()?;
        self.bytes.get(from..from.checked_add(N)?)?.try_into().ok()
    }

    fn word(&self, at: u64) -> Option<u32> {
        self.array(at).map(u32::from_le_bytes)
    }
}

/// The present tile: where its bytes come from and go to.
struct Tile<'a> {
    block: Block,
    /// The old offset of its first byte.
    from: u64,
    out: &'a mut [u8],
}

impl Tile<'_> {
    fn end(&self) -> u64 {
        self.from + self.out.len() as u64
    }

    /// The new offset of an old one.
    fn new_offset(&self, old: u64) -> u64 {
        (old.wrapping_sub(u64::from(self.block.old))).wrapping_add(u64::from(self.block.new))
    }

    fn put(&mut self, old: u64, bytes: &[u8]) {
        let at = old.checked_sub(self.from).and_then(|at| usize::try_from(at).ok());
        let to = at.and_then(|at| self.out.get_mut(at..at.checked_add(bytes.len())?));
        if let Some(to) = to {
            to.copy_from_slice(bytes);
        }
    }

    /// The aligned places in a section that lie whole in the tile.
    fn places(&self, section: &Section, skip: u64, step: u64) -> core::ops::Range<u64> {
        let first = (section.offset + skip).max(self.from).next_multiple_of(step);
        let end = (section.offset + section.size).min(self.end());
        let count = end.saturating_sub(first) / step;
        first..first + count * step
    }
}

/// An instruction of the old file.
struct At {
    word: u32,
    /// Its address, and the new one.
    pc: u64,
    new_pc: u64,
    /// Where in the old file it stands.
    place: u64,
}

/// The bits `from..from + length` of a word as a signed number.
fn signed(word: u32, from: u32, length: u32) -> i64 {
    i64::from((word << (32 - from - length)) as i32 >> (32 - length))
}

/// An instruction whose address is one number in it: its field, its length and how far that is shifted.
fn relative(word: u32) -> Option<(u32, u32)> {
    match word {
        // B, BL
        w if w & 0x7c00_0000 == 0x1400_0000 => Some((0, 26)),
        // B.cond; CBZ, CBNZ; LDR (literal)
        w if w & 0xff00_0000 == 0x5400_0000
            || w & 0x7e00_0000 == 0x3400_0000
            || w & 0x3b00_0000 == 0x1800_0000 =>
        {
            Some((5, 19))
        }
        // TBZ, TBNZ
        w if w & 0x7e00_0000 == 0x3600_0000 => Some((5, 14)),
        _ => None,
    }
}

/// The number in ADR and ADRP.
fn page_number(word: u32) -> i64 {
    signed(word, 5, 19) << 2 | i64::from(word >> 29 & 3)
}

fn with_page_number(word: u32, number: u64) -> u32 {
    let number = number as u32;
    word & 0x9f00_001f | (number & 3) << 29 | (number >> 2 & 0x7_ffff) << 5
}

fn is_adrp(word: u32) -> bool {
    word & 0x9f00_0000 == 0x9000_0000
}

fn is_adr(word: u32) -> bool {
    word & 0x9f00_0000 == 0x1000_0000
}

fn is_add(word: u32) -> bool {
    word & 0xffc0_0000 == 0x9100_0000
}

fn page(address: u64) -> u64 {
    address & !0xfff
}

/// The page an ADRP at an address makes.
fn adrp_target(word: u32, address: u64) -> u64 {
    page(address).wrapping_add((page_number(word) as u64) << 12)
}

/// An instruction that adds the low bits to a page in a register: the register, and how far the number is shifted.
fn low_part(word: u32) -> Option<(u32, u32)> {
    let register = word >> 5 & 31;
    if is_add(word) {
        return Some((register, 0));
    }
    // LDR and STR with an unsigned offset, which counts in units of what is loaded.
    (word & 0x3b00_0000 == 0x3900_0000).then(|| {
        let wide = word & 0x0480_0000 == 0x0480_0000;
        (register, if wide { 4 } else { word >> 30 })
    })
}

fn low_bits(word: u32, shift: u32) -> u64 {
    u64::from(word >> 10 & 0xfff) << shift
}

impl Predictor {
    /// Whether anything is to be predicted between two old offsets.
    pub(super) fn apply(&self, block: Block, from: u64, window: &Window<'_>, out: &mut [u8]) {
        let mut tile = Tile { block, from, out };
        for section in &self.old.sections {
            if section.offset >= tile.end() || section.offset + section.size <= from {
                continue;
            }
            match section.content {
                Content::Code => self.code(section, window, &mut tile),
                Content::Words => self.words(section, window, &mut tile),
                Content::Frames => self.frames(window, &mut tile),
                Content::FrameTable => self.frame_table(section, window, &mut tile),
            }
        }
    }

    /// Where what an old address points at went.
    fn target(&self, address: u64) -> u64 {
        let mapped = self
            .old
            .segments
            .offset(address)
            .and_then(|offset| u32::try_from(offset).ok());
        if let Some(offset) = mapped {
            let offset = u64::from(self.map.at(offset)).min(self.new_length.saturating_sub(1));
            return self.new.address(offset).unwrap_or(address);
        }
        // Behind the bytes of the file: memory that begins as zeros.
        for (old, new) in self.old.segments.0.iter().zip(&self.new.0) {
            let (from, to) = (
                old.address.wrapping_add(old.in_file),
                old.address.saturating_add(old.in_memory),
            );
            if (from..=to).contains(&address) {
                return (address - from)
                    .wrapping_add(new.address)
                    .wrapping_add(new.in_file);
            }
        }
        address
    }

    /// As [`Self::target`] for code that points into its own block: that moved with it.
    fn near_target(&self, address: u64, block: &Block) -> u64 {
        let offset = self.old.segments.offset(address);
        let inside = offset.and_then(|offset| offset.checked_sub(u64::from(block.old)));
        inside
            .filter(|&at| at < u64::from(block.length))
            .and_then(|at| self.new.address(u64::from(block.new) + at))
            .unwrap_or_else(|| self.target(address))
    }

    fn code(&self, section: &Section, window: &Window<'_>, tile: &mut Tile<'_>) {
        let places = tile.places(section, 0, 4);
        let Some(start) = self.new.address(tile.new_offset(places.start)) else {
            return;
        };
        if places.is_empty() || !tile.new_offset(places.start).is_multiple_of(4) {
            return;
        }
        let address = |place: u64| section.address.wrapping_add(place.wrapping_sub(section.offset));
        // The page that each register was given last, and by the instruction at which place.
        let mut pages = [(u64::MAX, 0u64); 32];
        let warm = places.start.saturating_sub(4 * REACH as u64).max(section.offset);
        let mut place = warm;
        while place < places.end {
            let Some(word) = window.word(place) else { return };
            let pc = address(place);
            if place >= places.start {
                let new_pc = start.wrapping_add(place - places.start);
                let at = At {
                    word,
                    pc,
                    new_pc,
                    place,
                };
                if let Some(word) = self.instruction(&at, section, window, tile, &pages) {
                    tile.put(place, &word.to_le_bytes());
                }
            }
            let register = (word & 31) as usize;
            if is_adrp(word) {
                pages[register] = (place, adrp_target(word, pc));
            } else if is_add(word) {
                pages[register] = (u64::MAX, 0);
            }
            place += 4;
        }
    }

    /// The new word for an old one; `None` when nothing in it is an address.
    fn instruction(
        &self,
        at: &At,
        section: &Section,
        window: &Window<'_>,
        tile: &Tile<'_>,
        pages: &[(u64, u64); 32],
    ) -> Option<u32> {
        let &At {
            word,
            pc,
            new_pc,
            place,
        } = at;
        if let Some((from, length)) = relative(word) {
            let target = self.near_target(
                pc.wrapping_add((signed(word, from, length) << 2) as u64),
                &tile.block,
            );
            let mask = ((1u32 << length) - 1) << from;
            let number = (target.wrapping_sub(new_pc) >> 2) as u32;
            return Some(word & !mask | number << from & mask);
        }
        if is_adr(word) {
            let target = self.near_target(pc.wrapping_add(page_number(word) as u64), &tile.block);
            return Some(with_page_number(word, target.wrapping_sub(new_pc)));
        }
        if is_adrp(word) {
            let target = self.target(self.full_target(word, pc, place, section, window));
            return Some(with_page_number(word, (target >> 12).wrapping_sub(new_pc >> 12)));
        }
        let (register, shift) = low_part(word)?;
        let (set_at, page) = pages[register as usize & 31];
        if place.checked_sub(set_at)? > 4 * REACH as u64 {
            return None;
        }
        let target = self.target(page.wrapping_add(low_bits(word, shift)));
        let number = ((target & 0xfff) >> shift) as u32;
        Some(word & 0xffc0_03ff | (number & 0xfff) << 10)
    }

    /// What an ADRP and the first instruction that completes it point at.
    fn full_target(&self, word: u32, pc: u64, place: u64, section: &Section, window: &Window<'_>) -> u64 {
        let page = adrp_target(word, pc);
        let register = word & 31;
        for step in 1..=REACH as u64 {
            let next = place + 4 * step;
            if next + 4 > section.offset + section.size {
                break;
            }
            let Some(word) = window.word(next) else { break };
            if let Some((_, shift)) = low_part(word).filter(|&(used, _)| used == register) {
                return page.wrapping_add(low_bits(word, shift));
            }
            if (is_adrp(word) || is_add(word)) && word & 31 == register {
                break;
            }
        }
        page
    }

    fn words(&self, section: &Section, window: &Window<'_>, tile: &mut Tile<'_>) {
        let (low, high) = self.old.segments.bounds();
        let low = low.max(0x1000);
        for place in tile.places(section, 0, 8).step_by(8) {
            let Some(word) = window.array(place).map(u64::from_le_bytes) else {
                return;
            };
            if word > low && word < high {
                tile.put(place, &self.target(word).to_le_bytes());
            }
        }
    }

    fn frames(&self, window: &Window<'_>, tile: &mut Tile<'_>) {
        let frames = &self.old.frames;
        let first = frames.partition_point(|&place| u64::from(place) < tile.from);
        for &place in frames.get(first..).unwrap_or_default() {
            let place = u64::from(place);
            if place + 4 > tile.end() {
                break;
            }
            let Some(word) = window.word(place) else { return };
            let Some(pc) = self.old.segments.address(place) else {
                return;
            };
            let Some(new_pc) = self.new.address(tile.new_offset(place)) else {
                return;
            };
            let target = self.target(pc.wrapping_add(i64::from(word as i32) as u64));
            tile.put(place, &(target.wrapping_sub(new_pc) as u32).to_le_bytes());
        }
    }

    fn frame_table(&self, section: &Section, window: &Window<'_>, tile: &mut Tile<'_>) {
        // Behind version, encodings, the section's own address and the count.
        const HEAD: u64 = 12;
        let places = tile.places(section, HEAD, 4);
        if !tile.new_offset(places.start).is_multiple_of(4) {
            return;
        }
        for place in places.step_by(4) {
            let Some(word) = window.word(place) else { return };
            let target = self.target(section.address.wrapping_add(i64::from(word as i32) as u64));
            tile.put(
                place,
                &(target.wrapping_sub(self.frame_table) as u32).to_le_bytes(),
            );
        }
    }

    pub(super) fn release(self, account: &mut Account) {
        self.map.release(account);
    }
}
