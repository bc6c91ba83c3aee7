//! The headers of a run of tar entries, as columns.
//!
//! Entries stand in the order of their paths, because neighbours are alike there; a column of its own says in which order they are in the
//! tar. A header that the columns cannot make is carried as it is.

use alloc::vec::Vec;

use super::listing::{Kind, Listed, Listing, order};
use super::style::{BLOCK, FLAGS, Fields, LONG, Style};
use super::walk::Walk;
use super::wire::{Account, Cursor};
use super::{Fault, MAX_ITEMS};

/// The streams of a table frame.
pub(super) mod stream {
    /// Counts, and which paths are the listing's.
    pub(crate) const RUNS: usize = 0;
    /// The bytes of all strings.
    pub(crate) const TEXT: usize = 1;
    /// The lengths of all strings.
    pub(crate) const LENGTHS: usize = 2;
    pub(crate) const TEMPLATES: usize = 3;
    pub(crate) const STYLE: usize = 4;
    pub(crate) const MODE: usize = 5;
    pub(crate) const OWNER: usize = 6;
    pub(crate) const SIZE: usize = 7;
    pub(crate) const TIME_KIND: usize = 8;
    pub(crate) const TIME: usize = 9;
    /// What content is made of.
    pub(crate) const METHOD: usize = 10;
    /// From which old file.
    pub(crate) const SOURCE: usize = 11;
    /// The order in the tar: how far up.
    pub(crate) const UP: usize = 12;
    /// The order in the tar: which of those that are left.
    pub(crate) const RANK: usize = 13;
    /// Headers as they are.
    pub(crate) const VERBATIM: usize = 14;
    pub(crate) const COUNT: usize = 15;
}

/// The style column's values: as predicted, the style with this number less one, or a header as it is.
pub(super) const STYLE_VERBATIM: u8 = 255;
/// The most styles of a table.
pub(super) const MAX_STYLES: usize = 250;

/// The time column's values.
pub(super) const TIME_LISTED: u8 = 0;
pub(super) const TIME_PREVIOUS: u8 = 1;
pub(super) const TIME_GIVEN: u8 = 2;

/// The method column's values.
pub(super) const COPY_SAME: u8 = 0;
pub(super) const PATCH_SAME: u8 = 1;
pub(super) const COPY_OTHER: u8 = 2;
pub(super) const PATCH_OTHER: u8 = 3;
pub(super) const FRESH: u8 = 4;

/// The source column's values: a path in the text; the entry's own path; else the listing's entry with this number less two.
pub(super) const SOURCE_TEXT: u64 = 0;
pub(super) const SOURCE_SAME_PATH: u64 = 1;
pub(super) const SOURCE_LISTED: u64 = 2;

/// A string in the table's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Span {
    from: u32,
    length: u32,
}

/// How an entry's content is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Method {
    /// It has none, or the frames hold it without an old file.
    #[default]
    Fresh,
    /// An old file as it is.
    Copy,
    /// An old file and what the frames hold.
    Patch,
}

/// One entry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Item {
    pub(super) path: Span,
    link: Span,
    pub(super) source_path: Span,
    /// With the style [`STYLE_VERBATIM`] a header as it is.
    header: Span,
    style: u8,
    pub(super) method: Method,
    pub(super) source_layer: u16,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    size: u64,
    /// The bytes of content in the tar, without padding.
    pub(super) content: u64,
}

/// The headers of a run of entries.
#[derive(Debug, Default)]
pub(super) struct Table {
    pub(super) names: Vec<u8>,
    styles: Vec<Style>,
    /// By path.
    pub(super) items: Vec<Item>,
    /// By their place in the tar: numbers of `items`.
    pub(super) order: Vec<u32>,
}

const BAD: Fault = Fault::Corrupt("a table names something that is not there");

/// A frame's streams while they are read.
struct Reader<'a> {
    raw: &'a [u8],
    streams: [Cursor; stream::COUNT],
}

impl<'a> Reader<'a> {
    fn number(&mut self, stream: usize) -> Result<u64, Fault> {
        self.streams.get_mut(stream).ok_or(BAD)?.number(self.raw)
    }

    fn size(&mut self, stream: usize) -> Result<usize, Fault> {
        self.streams.get_mut(stream).ok_or(BAD)?.size(self.raw)
    }

    fn signed(&mut self, stream: usize) -> Result<i64, Fault> {
        self.streams.get_mut(stream).ok_or(BAD)?.signed(self.raw)
    }

    fn byte(&mut self, stream: usize) -> Result<u8, Fault> {
        self.streams.get_mut(stream).ok_or(BAD)?.byte(self.raw)
    }

    fn bytes(&mut self, stream: usize, length: usize) -> Result<&'a [u8], Fault> {
        self.streams.get_mut(stream).ok_or(BAD)?.bytes(self.raw, length)
    }
}

/// What is carried from one entry to the next while columns are read or written.
#[derive(Debug, Clone)]
pub(super) struct Columns {
    /// The style last used for each kind of the listing.
    listed_style: [u8; 3],
    last_style: u8,
    last_mode: [u32; MAX_STYLES],
    pub(super) last_owner: (u32, u32),
    pub(super) last_time: u64,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            listed_style: [0; 3],
            last_style: 0,
            last_mode: [0; MAX_STYLES],
            last_owner: (0, 0),
            last_time: 0,
        }
    }
}

impl Columns {
    pub(super) fn predicted_style(&self, listed: Option<&Listed>) -> u8 {
        let style = listed.and_then(|listed| self.listed_style.get(listed.kind as usize));
        style.copied().unwrap_or(self.last_style)
    }

    pub(super) fn used_style(&mut self, listed: Option<&Listed>, style: u8) {
        if let Some(last) = listed.and_then(|listed| self.listed_style.get_mut(listed.kind as usize)) {
            *last = style;
        }
        self.last_style = style;
    }

    /// The mode of the entry before with the same style.
    pub(super) fn mode(&mut self, style: u8) -> Result<&mut u32, Fault> {
        self.last_mode.get_mut(usize::from(style)).ok_or(BAD)
    }
}

impl Table {
    /// A table of nothing but paths.
    #[cfg(feature = "publish")]
    pub(super) fn of_paths<'a>(
        paths: impl Iterator<Item = &'a [u8]>,
        account: &mut Account,
    ) -> Result<Self, Fault> {
        let mut table = Self::default();
        let mut numbers = Vec::new();
        for path in paths {
            let path = table.text(path, &[], account)?;
            table.item(path, &mut numbers, 0, account)?;
        }
        Ok(table)
    }

    /// Reads a table frame's streams.
    pub(super) fn decode(
        raw: &[u8],
        streams: [Cursor; stream::COUNT],
        listing: &mut Listing<'_>,
    ) -> Result<Self, Fault> {
        let mut reader = Reader { raw, streams };
        let mut table = Self::default();
        let count = reader.size(stream::RUNS)?;
        let styles = reader.size(stream::RUNS)?;
        if count > MAX_ITEMS || styles > MAX_STYLES {
            return Err(Fault::Corrupt("a table has too many entries"));
        }
        table.templates(&mut reader, styles, listing.account())?;
        let listed = table.paths(&mut reader, count, listing)?;
        table.columns(&mut reader, &listed, listing)?;
        listing.account().release(listed);
        table.order(&mut reader, listing.account())?;
        Ok(table)
    }

    fn templates(
        &mut self,
        reader: &mut Reader<'_>,
        count: usize,
        account: &mut Account,
    ) -> Result<(), Fault> {
        for _ in 0..count {
            let flags = reader.byte(stream::TEMPLATES)?;
            if flags & !FLAGS != 0 {
                return Err(Fault::Corrupt("a style has an unknown flag"));
            }
            let mut block = |wanted: bool| -> Result<[u8; BLOCK], Fault> {
                let bytes = if wanted {
                    reader.bytes(stream::TEMPLATES, BLOCK)?
                } else {
                    &[0; BLOCK]
                };
                bytes.try_into().map_err(|_| BAD)
            };
            let style = Style {
                flags,
                main: block(true)?,
                long: block(flags & LONG != 0)?,
            };
            account.push(&mut self.styles, style)?;
        }
        Ok(())
    }

    /// Reads the paths; the result is each entry's number in the listing plus one, or 0.
    fn paths(
        &mut self,
        reader: &mut Reader<'_>,
        count: usize,
        listing: &mut Listing<'_>,
    ) -> Result<Vec<u32>, Fault> {
        let mut numbers = Vec::new();
        let mut next = 0usize;
        let (mut before, mut idle) = (Span::default(), 0);
        while self.items.len() < count {
            next = next.checked_add(reader.size(stream::RUNS)?).ok_or(BAD)?;
            let (keep, insert) = (reader.size(stream::RUNS)?, reader.size(stream::RUNS)?);
            let more = keep
                .checked_add(insert)
                .filter(|&more| more <= count - self.items.len())
                .ok_or(BAD)?;
            idle = if more == 0 { idle + 1 } else { 0 };
            if idle > 1 {
                return Err(Fault::Corrupt("a table goes on without entries"));
            }
            for _ in 0..keep {
                let entry = *listing.get(next).ok_or(BAD)?;
                next += 1;
                let path = listing.path_of(&entry).to_vec();
                before = self.text(&path, &[], listing.account())?;
                self.item(before, &mut numbers, next, listing.account())?;
            }
            for _ in 0..insert {
                let (shared, length) = (reader.size(stream::LENGTHS)?, reader.size(stream::LENGTHS)?);
                if shared > before.length as usize || length > crate::MAX_PATH {
                    return Err(Fault::Corrupt("a path is longer than allowed"));
                }
                let start = self.span(before).get(..shared).unwrap_or_default().to_vec();
                before = self.text(&start, reader.bytes(stream::TEXT, length)?, listing.account())?;
                self.item(before, &mut numbers, 0, listing.account())?;
            }
        }
        Ok(numbers)
    }

    fn item(
        &mut self,
        path: Span,
        numbers: &mut Vec<u32>,
        number: usize,
        account: &mut Account,
    ) -> Result<(), Fault> {
        if path.length as usize > crate::MAX_PATH {
            return Err(Fault::Corrupt("a path is longer than allowed"));
        }
        account.push(numbers, u32::try_from(number).map_err(|_| BAD)?)?;
        account.push(
            &mut self.items,
            Item {
                path,
                ..Item::default()
            },
        )
    }

    /// Keeps a string made of two parts.
    fn text(&mut self, start: &[u8], end: &[u8], account: &mut Account) -> Result<Span, Fault> {
        let from = u32::try_from(self.names.len()).map_err(|_| BAD)?;
        account.extend(&mut self.names, start)?;
        account.extend(&mut self.names, end)?;
        let length = u32::try_from(start.len() + end.len()).map_err(|_| BAD)?;
        Ok(Span { from, length })
    }

    fn columns(
        &mut self,
        reader: &mut Reader<'_>,
        listed: &[u32],
        listing: &mut Listing<'_>,
    ) -> Result<(), Fault> {
        let mut columns = Columns::default();
        let base = if self.items.is_empty() {
            0
        } else {
            reader.number(stream::TIME)?
        };
        for index in 0..self.items.len() {
            let number = listed.get(index).copied().unwrap_or_default();
            let known = (number as usize)
                .checked_sub(1)
                .and_then(|number| listing.get(number))
                .copied();
            let Some(mut item) = self.items.get(index).copied() else {
                return Err(BAD);
            };
            let style = match reader.byte(stream::STYLE)? {
                0 => columns.predicted_style(known.as_ref()),
                STYLE_VERBATIM => STYLE_VERBATIM,
                number => number - 1,
            };
            item.style = style;
            if style == STYLE_VERBATIM {
                let length = reader.size(stream::LENGTHS)?;
                let bytes = reader.bytes(stream::VERBATIM, length)?;
                item.header = self.text(bytes, &[], listing.account())?;
                item.content = reader.number(stream::SIZE)?;
            } else {
                columns.used_style(known.as_ref(), style);
                self.fields(reader, &mut item, known.as_ref(), &mut columns, base, listing)?;
            }
            if item.content > 0 {
                self.method(reader, &mut item, known.as_ref(), listing)?;
            }
            if let Some(to) = self.items.get_mut(index) {
                *to = item;
            }
        }
        Ok(())
    }

    fn fields(
        &mut self,
        reader: &mut Reader<'_>,
        item: &mut Item,
        known: Option<&Listed>,
        columns: &mut Columns,
        base: u64,
        listing: &mut Listing<'_>,
    ) -> Result<(), Fault> {
        let style = self.styles.get(usize::from(item.style)).ok_or(BAD)?;
        let (has_content, has_link) = (style.has_content(), style.has_link());
        let small =
            |number: u64| u32::try_from(number).map_err(|_| Fault::Corrupt("a header's number is too large"));
        let mode = columns.mode(item.style)?;
        *mode ^= small(reader.number(stream::MODE)?)?;
        item.mode = *mode;
        columns.last_owner.0 ^= small(reader.number(stream::OWNER)?)?;
        columns.last_owner.1 ^= small(reader.number(stream::OWNER)?)?;
        (item.uid, item.gid) = columns.last_owner;
        let expected = known
            .filter(|known| known.kind == Kind::File)
            .map_or(0, |known| known.size);
        if has_content {
            item.size = expected.wrapping_add(reader.signed(stream::SIZE)? as u64);
            item.content = item.size;
        }
        let time = match (reader.byte(stream::TIME_KIND)?, known) {
            (TIME_LISTED, Some(known)) => known.mtime as u64,
            (TIME_PREVIOUS, _) => columns.last_time,
            (TIME_GIVEN, _) => base.wrapping_add(reader.number(stream::TIME)?),
            _ => return Err(Fault::Corrupt("a time is of an unknown kind")),
        };
        item.mtime = time;
        columns.last_time = time;
        if has_link {
            item.link = match reader.size(stream::LENGTHS)? {
                0 => {
                    let link = known
                        .map(|known| listing.link_of(known).to_vec())
                        .unwrap_or_default();
                    self.text(&link, &[], listing.account())?
                }
                length => {
                    let bytes = reader.bytes(stream::TEXT, length - 1)?;
                    self.text(bytes, &[], listing.account())?
                }
            };
        }
        Ok(())
    }

    fn method(
        &mut self,
        reader: &mut Reader<'_>,
        item: &mut Item,
        known: Option<&Listed>,
        listing: &mut Listing<'_>,
    ) -> Result<(), Fault> {
        let method = reader.byte(stream::METHOD)?;
        item.method = match method {
            COPY_SAME | COPY_OTHER => Method::Copy,
            PATCH_SAME | PATCH_OTHER => Method::Patch,
            FRESH => return Ok(()),
            _ => return Err(Fault::Corrupt("content is made in an unknown way")),
        };
        if matches!(method, COPY_SAME | PATCH_SAME) {
            known.ok_or(BAD)?;
            item.source_path = item.path;
            item.source_layer = 0;
            return Ok(());
        }
        let layer = |number: u64| u16::try_from(number).map_err(|_| BAD);
        match reader.number(stream::SOURCE)? {
            SOURCE_TEXT => {
                // Layers are numbered from one: 0 is the listed one.
                item.source_layer = layer(reader.number(stream::SOURCE)?)?;
                let length = reader.size(stream::LENGTHS)?;
                let bytes = reader.bytes(stream::TEXT, length)?;
                item.source_path = self.text(bytes, &[], listing.account())?;
            }
            SOURCE_SAME_PATH => {
                item.source_layer = layer(reader.number(stream::SOURCE)?)?;
                item.source_path = item.path;
            }
            number => {
                let number = usize::try_from(number - SOURCE_LISTED).map_err(|_| BAD)?;
                let listed = *listing.get(number).ok_or(BAD)?;
                let path = listing.path_of(&listed).to_vec();
                item.source_path = self.text(&path, &[], listing.account())?;
            }
        }
        Ok(())
    }

    fn order(&mut self, reader: &mut Reader<'_>, account: &mut Account) -> Result<(), Fault> {
        let mut walk = Walk::new(self, account)?;
        for _ in 0..self.items.len() {
            let up = reader.number(stream::UP)?;
            let rank = reader.size(stream::RANK)?;
            let item = walk.next(up, rank)?;
            account.push(&mut self.order, item)?;
        }
        walk.release(account);
        Ok(())
    }

    /// A string of this table.
    pub(super) fn span(&self, span: Span) -> &[u8] {
        let from = span.from as usize;
        self.names
            .get(from..from + span.length as usize)
            .unwrap_or_default()
    }

    /// The entry at a place in the tar.
    pub(super) fn at(&self, place: usize) -> Option<&Item> {
        self.items.get(*self.order.get(place)? as usize)
    }

    /// Appends the header blocks of an entry to `out`.
    pub(super) fn header(&self, item: &Item, out: &mut Vec<u8>) -> Result<(), Fault> {
        if item.style == STYLE_VERBATIM {
            out.extend_from_slice(self.span(item.header));
            return Ok(());
        }
        let style = self.styles.get(usize::from(item.style)).ok_or(BAD)?;
        let fields = Fields {
            path: self.span(item.path),
            link: self.span(item.link),
            mode: u64::from(item.mode),
            uid: u64::from(item.uid),
            gid: u64::from(item.gid),
            size: item.size,
            mtime: item.mtime,
        };
        style.write(&fields, out)
    }

    /// The modification time of the source that a `.pyc` was compiled from, as it stands in the file: `d/__pycache__/m.cpython-311.pyc`
    /// comes from `d/m.py`.
    pub(super) fn source_time(&self, item: &Item) -> Option<u32> {
        let source = python_source(self.span(item.path))?;
        let at = self
            .items
            .partition_point(|item| order(self.span(item.path), &source) == core::cmp::Ordering::Less);
        let found = self.items.get(at).filter(|item| self.span(item.path) == source)?;
        (found.style != STYLE_VERBATIM).then_some(found.mtime as u32)
    }

    pub(super) fn release(self, account: &mut Account) {
        account.release(self.names);
        account.release(self.styles);
        account.release(self.items);
        account.release(self.order);
    }
}

/// The path of the source of a `.pyc`.
pub(super) fn python_source(path: &[u8]) -> Option<Vec<u8>> {
    path.strip_suffix(b".pyc")?;
    let slash = path.iter().rposition(|&byte| byte == b'/')?;
    let (directory, name) = (path.get(..slash)?, path.get(slash + 1..)?);
    let directory = directory.strip_suffix(b"__pycache__")?;
    let tag = b".cpython";
    let module = name.windows(tag.len()).position(|part| part == tag)?;
    Some([directory, name.get(..module)?, b".py"].concat())
}
