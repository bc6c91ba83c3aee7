//! Tar headers out of fields. What differs from header to header is generated; the rest is a template of 512 bytes.

use alloc::vec::Vec;

use super::Fault;

/// A tar's unit.
pub(super) const BLOCK: usize = 512;

/// Written paths of directories end with a slash.
pub(super) const SLASH: u8 = 1;
/// Written paths begin with `./`.
pub(super) const DOT: u8 = 2;
/// Written paths begin with `/`.
pub(super) const ROOT: u8 = 4;
/// A path too long for its field is split at a slash into the field `prefix`.
pub(super) const SPLIT: u8 = 8;
/// A path too long for its field stands in a GNU long name in front, for which there is a second template.
pub(super) const LONG: u8 = 16;
/// All flags of this version.
pub(super) const FLAGS: u8 = SLASH | DOT | ROOT | SPLIT | LONG;

/// Fields of a header: offset and length.
pub(super) const NAME: (usize, usize) = (0, 100);
pub(super) const MODE: (usize, usize) = (100, 8);
pub(super) const UID: (usize, usize) = (108, 8);
pub(super) const GID: (usize, usize) = (116, 8);
pub(super) const SIZE: (usize, usize) = (124, 12);
pub(super) const MTIME: (usize, usize) = (136, 12);
pub(super) const SUM: (usize, usize) = (148, 8);
pub(super) const TYPE: usize = 156;
pub(super) const TARGET: (usize, usize) = (157, 100);
pub(super) const PREFIX: (usize, usize) = (345, 155);

/// How headers of one kind are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Style {
    pub(super) flags: u8,
    /// The header with the generated fields zero.
    pub(super) main: [u8; BLOCK],
    /// The header of a long name likewise; only with [`LONG`].
    pub(super) long: [u8; BLOCK],
}

/// What is generated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Fields<'a> {
    /// Normal: without what the flags add.
    pub(super) path: &'a [u8],
    pub(super) link: &'a [u8],
    pub(super) mode: u64,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) size: u64,
    pub(super) mtime: u64,
}

impl Style {
    pub(super) fn type_flag(&self) -> u8 {
        self.main.get(TYPE).copied().unwrap_or_default()
    }

    /// Whether entries of this kind have bytes.
    pub(super) fn has_content(&self) -> bool {
        matches!(self.type_flag(), 0 | b'0' | b'7')
    }

    pub(super) fn has_link(&self) -> bool {
        matches!(self.type_flag(), b'1' | b'2')
    }

    /// Appends the header blocks of one entry to `out`.
    pub(super) fn write(&self, fields: &Fields<'_>, out: &mut Vec<u8>) -> Result<(), Fault> {
        const BAD: Fault = Fault::Corrupt("a header's field is too long");
        let start: &[u8] = match self.flags & (DOT | ROOT) {
            0 => b"",
            DOT => b"./",
            ROOT => b"/",
            _ => return Err(Fault::Corrupt("a style has both beginnings of paths")),
        };
        let end: &[u8] = if self.flags & SLASH != 0 && !fields.path.is_empty() {
            b"/"
        } else {
            b""
        };
        let length = start.len() + fields.path.len() + end.len();
        let written = || start.iter().chain(fields.path).chain(end).copied();
        let mut block = self.main;
        let split = (length > NAME.1 && self.flags & SPLIT != 0)
            .then(|| split(&[start, fields.path, end].concat()))
            .flatten();
        if let Some(at) = split {
            text(&mut block, PREFIX, written().take(at));
            text(&mut block, NAME, written().skip(at + 1));
        } else {
            if length > NAME.1 {
                if self.flags & LONG == 0 {
                    return Err(BAD);
                }
                let mut long = self.long;
                number(&mut long, SIZE, length as u64 + 1)?;
                sum(&mut long)?;
                out.extend_from_slice(&long);
                out.extend(written());
                out.resize(out.len() + 1, 0);
                out.resize(out.len() + (length + 1).next_multiple_of(BLOCK) - (length + 1), 0);
            }
            text(&mut block, NAME, written());
        }
        if fields.link.len() > TARGET.1 {
            return Err(BAD);
        }
        if self.has_link() {
            text(&mut block, TARGET, fields.link.iter().copied());
        }
        number(&mut block, MODE, fields.mode)?;
        number(&mut block, UID, fields.uid)?;
        number(&mut block, GID, fields.gid)?;
        number(&mut block, SIZE, fields.size)?;
        number(&mut block, MTIME, fields.mtime)?;
        sum(&mut block)?;
        out.extend_from_slice(&block);
        Ok(())
    }
}

/// Where a long path is split into prefix and name, as Go's archive/tar does: at the last slash that leaves a prefix of at most 155 bytes.
fn split(path: &[u8]) -> Option<usize> {
    let mut most = path.len();
    if most > PREFIX.1 + 1 {
        most = PREFIX.1 + 1;
    } else if path.last() == Some(&b'/') {
        most -= 1;
    }
    let at = path.get(..most)?.iter().rposition(|&byte| byte == b'/')?;
    let name = path.len() - at - 1;
    (at > 0 && at <= PREFIX.1 && name > 0 && name <= NAME.1).then_some(at)
}

fn text(block: &mut [u8; BLOCK], (offset, length): (usize, usize), bytes: impl Iterator<Item = u8>) {
    for (to, from) in block.iter_mut().skip(offset).take(length).zip(bytes) {
        *to = from;
    }
}

/// Octal digits, filled up with zeros, and a NUL.
fn number(block: &mut [u8; BLOCK], (offset, length): (usize, usize), mut value: u64) -> Result<(), Fault> {
    let field = block.get_mut(offset..offset + length).unwrap_or_default();
    let Some((nul, digits)) = field.split_last_mut() else {
        return Ok(());
    };
    *nul = 0;
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value & 7) as u8;
        value >>= 3;
    }
    if value == 0 {
        Ok(())
    } else {
        Err(Fault::Corrupt("a header's number is too large"))
    }
}

/// Six octal digits, a NUL and a space.
fn sum(block: &mut [u8; BLOCK]) -> Result<(), Fault> {
    text(block, SUM, core::iter::repeat_n(b' ', SUM.1));
    let sum = block.iter().map(|&byte| u64::from(byte)).sum();
    number(block, (SUM.0, SUM.1 - 1), sum)
}
