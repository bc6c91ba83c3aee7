//! What the predictor has to know of a 64-bit little-endian AArch64 ELF file. A file that is anything else, or damaged, is not predicted.

use alloc::vec::Vec;

/// Random access to a file.
pub(super) trait Bytes {
    /// What reading fails with.
    type Error;
    /// Fills `out` from `at`; false when the file ends before.
    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<bool, Self::Error>;
}

impl Bytes for &[u8] {
    type Error = core::convert::Infallible;

    fn read_at(&mut self, at: u64, out: &mut [u8]) -> Result<bool, Self::Error> {
        let from = usize::try_from(at)
            .ok()
            .and_then(|at| self.get(at..)?.get(..out.len()));
        if let Some(from) = from {
            out.copy_from_slice(from);
        }
        Ok(from.is_some())
    }
}

/// The most loaded segments that are looked at.
pub(super) const MAX_SEGMENTS: usize = 16;
/// The most sections that are looked at.
const MAX_SECTIONS: u64 = 256;
/// The most program headers that are looked at.
const MAX_PROGRAM_HEADERS: u64 = 64;
/// The most frame descriptions that are predicted: 256 KiB of them.
pub(super) const MAX_FRAMES: usize = 1 << 16;

/// A loaded segment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) in_file: u64,
    pub(super) in_memory: u64,
}

/// Loaded segments in the file's order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Segments(pub(super) Vec<Segment>);

impl Segments {
    /// The address of a byte of the file.
    pub(super) fn address(&self, offset: u64) -> Option<u64> {
        let inside = |s: &&Segment| offset.checked_sub(s.offset).is_some_and(|at| at < s.in_file);
        let segment = self.0.iter().find(inside)?;
        Some(segment.address.wrapping_add(offset - segment.offset))
    }

    /// Where in the file an address lies.
    pub(super) fn offset(&self, address: u64) -> Option<u64> {
        let inside = |s: &&Segment| {
            address
                .checked_sub(s.address)
                .is_some_and(|at| at < s.in_file.max(1))
        };
        let segment = self.0.iter().find(inside)?;
        Some(segment.offset.wrapping_add(address - segment.address))
    }

    /// The lowest address and the first behind the highest.
    pub(super) fn bounds(&self) -> (u64, u64) {
        let low = self.0.iter().map(|s| s.address).min().unwrap_or(0);
        let high = self
            .0
            .iter()
            .map(|s| s.address.saturating_add(s.in_memory))
            .max()
            .unwrap_or(0);
        (low, high)
    }
}

/// What is predicted in a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Content {
    /// Instructions.
    Code,
    /// Words of 64 bits, some of them addresses.
    Words,
    /// `.eh_frame`: locations relative to themselves.
    Frames,
    /// `.eh_frame_hdr`: pairs of 32 bits relative to the section.
    FrameTable,
}

/// A section in which something is predicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Section {
    pub(super) content: Content,
    pub(super) offset: u64,
    pub(super) size: u64,
    pub(super) address: u64,
}

/// One ELF file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Elf {
    pub(super) segments: Segments,
    pub(super) sections: Vec<Section>,
    /// The address of the table of frames; 0 when there is none.
    pub(super) frame_table: u64,
    /// Where in the file the locations of frame descriptions stand, in order.
    pub(super) frames: Vec<u32>,
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    let mut number = 0;
    for &byte in bytes.get(at..at + N).unwrap_or_default().iter().rev() {
        number = number << 8 | u64::from(byte);
    }
    number
}

const LOAD: u64 = 1;
const FRAME_TABLE: u64 = 0x6474_e550;
const EXECUTABLE: u64 = 4;
const NO_BITS: u64 = 8;
const PROGRAM_HEADER: u64 = 56;
const SECTION_HEADER: u64 = 64;
const AARCH64: u64 = 183;
/// PROGBITS, RELA, DYNAMIC, DYNSYM, SYMTAB, INIT_ARRAY, FINI_ARRAY, PREINIT_ARRAY, RELR, GNU_HASH.
const WORDS: [u64; 10] = [1, 4, 6, 11, 2, 14, 15, 16, 19, 0x6fff_fff6];

impl Elf {
    /// Reads the headers of a file, and frame descriptions for as long as `most` bytes; `None` when it is not one that is predicted.
    pub(super) fn read<B: Bytes>(file: &mut B, most: u64) -> Result<Option<Self>, B::Error> {
        let mut header = [0; 64];
        if !file.read_at(0, &mut header)?
            || !header.starts_with(b"\x7fELF\x02\x01")
            || number::<2>(&header, 18) != AARCH64
        {
            return Ok(None);
        }
        let mut elf = Self::default();
        if !elf.program_headers(file, &header)? || elf.segments.0.is_empty() {
            return Ok(None);
        }
        if !elf.section_headers(file, &header)? {
            return Ok(None);
        }
        elf.find_frames(file, most)?;
        Ok(Some(elf))
    }

    fn program_headers<B: Bytes>(&mut self, file: &mut B, header: &[u8]) -> Result<bool, B::Error> {
        let (at, size, count) = (
            number::<8>(header, 32),
            number::<2>(header, 54),
            number::<2>(header, 56),
        );
        if size != PROGRAM_HEADER || count > MAX_PROGRAM_HEADERS {
            return Ok(false);
        }
        for index in 0..count {
            let mut entry = [0; PROGRAM_HEADER as usize];
            let Some(at) = at.checked_add(index * size) else {
                return Ok(false);
            };
            if !file.read_at(at, &mut entry)? {
                return Ok(false);
            }
            match number::<4>(&entry, 0) {
                LOAD if self.segments.0.len() < MAX_SEGMENTS => self.segments.0.push(Segment {
                    offset: number::<8>(&entry, 8),
                    address: number::<8>(&entry, 16),
                    in_file: number::<8>(&entry, 32),
                    in_memory: number::<8>(&entry, 40),
                }),
                FRAME_TABLE => self.frame_table = number::<8>(&entry, 16),
                _ => {}
            }
        }
        Ok(true)
    }

    fn section_headers<B: Bytes>(&mut self, file: &mut B, header: &[u8]) -> Result<bool, B::Error> {
        let (at, size, count) = (
            number::<8>(header, 40),
            number::<2>(header, 58),
            number::<2>(header, 60),
        );
        let names = number::<2>(header, 62);
        if at == 0 || size != SECTION_HEADER || count > MAX_SECTIONS {
            return Ok(false);
        }
        let mut entry = [0; SECTION_HEADER as usize];
        let place = |index: u64| at.checked_add(index * size);
        let Some(names) = place(names) else {
            return Ok(false);
        };
        if !file.read_at(names, &mut entry)? {
            return Ok(false);
        }
        let names = number::<8>(&entry, 24);
        // First all headers, then all names: two places in the file, not to and fro.
        let mut entries = Vec::new();
        for index in 0..count {
            let Some(at) = place(index) else { return Ok(false) };
            if !file.read_at(at, &mut entry)? {
                return Ok(false);
            }
            entries.push(entry);
        }
        for entry in &entries {
            let mut name = [0; 14];
            if let Some(at) = names.checked_add(number::<4>(entry, 0)) {
                // A name at the end of the file is shorter: then it is none of those looked for.
                file.read_at(at, &mut name)?;
            }
            self.section(entry, &name);
        }
        Ok(true)
    }

    fn section(&mut self, entry: &[u8], name: &[u8]) {
        let kind = number::<4>(entry, 4);
        let (flags, address) = (number::<8>(entry, 8), number::<8>(entry, 16));
        let (offset, size) = (number::<8>(entry, 24), number::<8>(entry, 32));
        if kind == NO_BITS
            || size < 8
            || offset.checked_add(size).is_none()
            || address.checked_add(size).is_none()
        {
            return;
        }
        let content = if flags & EXECUTABLE != 0 && offset % 4 == 0 && address % 4 == 0 {
            Content::Code
        } else if name.starts_with(b".eh_frame_hdr\0") {
            Content::FrameTable
        } else if name.starts_with(b".eh_frame\0") {
            Content::Frames
        } else if WORDS.contains(&kind) && offset % 8 == 0 && !name.starts_with(b".comment\0") {
            Content::Words
        } else {
            return;
        };
        self.sections.push(Section {
            content,
            offset,
            size,
            address,
        });
    }

    /// Walks the records of `.eh_frame`: those that are descriptions have a location behind their second word.
    fn find_frames<B: Bytes>(&mut self, file: &mut B, most: u64) -> Result<(), B::Error> {
        let Some(section) = self.sections.iter().find(|s| s.content == Content::Frames) else {
            return Ok(());
        };
        let (mut at, end) = (section.offset, section.offset + section.size.min(most));
        while self.frames.len() < MAX_FRAMES {
            let mut head = [0; 8];
            if at.checked_add(12).is_none_or(|last| last > end) || !file.read_at(at, &mut head)? {
                break;
            }
            let (length, parent) = (number::<4>(&head, 0), number::<4>(&head, 4));
            if length == 0 {
                break;
            }
            let Ok(location) = u32::try_from(at + 8) else {
                break;
            };
            if parent != 0 && location % 4 == 0 {
                self.frames.push(location);
            }
            at += 4 + length;
        }
        Ok(())
    }
}
