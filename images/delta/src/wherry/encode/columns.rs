//! The table frame: the new tar's headers as columns.

use std::io;

use super::super::listing::{Kind, Listing, order};
use super::super::style::{
    BLOCK, DOT, Fields, GID, LONG, MODE, MTIME, NAME, PREFIX, ROOT, SIZE, SLASH, SPLIT, SUM, Style, TARGET,
    UID,
};
use super::super::table::{
    COPY_OTHER, COPY_SAME, Columns, FRESH, MAX_STYLES, PATCH_OTHER, PATCH_SAME, SOURCE_LISTED,
    SOURCE_SAME_PATH, SOURCE_TEXT, STYLE_VERBATIM, TIME_GIVEN, TIME_LISTED, TIME_PREVIOUS, Table, stream,
};
use super::super::walk::Walk;
use super::super::wire::{Account, zigzag};
use super::layers::normal;
use super::streams::Streams;
use crate::tar::{Entry, number};

/// What an entry's content is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) enum Source {
    /// Nothing old.
    #[default]
    Fresh,
    /// An old file: its layer and path, and whether it is copied as it is.
    Old { layer: usize, path: Vec<u8>, copy: bool },
}

/// A header that the columns make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Styled {
    style: Style,
    link: Vec<u8>,
    mode: u32,
    uid: u32,
    gid: u32,
    size: u64,
    mtime: u64,
}

/// One entry of the new tar.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct NewItem {
    /// Its header blocks.
    pub(super) header: Vec<u8>,
    /// Its normal path, or nothing.
    pub(super) path: Vec<u8>,
    /// Where its content begins in the tar, and how long it is.
    pub(super) begin: u64,
    pub(super) content: u64,
    pub(super) source: Source,
    pub(super) styled: Option<Styled>,
}

impl NewItem {
    /// When the entry was changed, by its header.
    pub(super) fn mtime(&self) -> Option<u64> {
        self.styled.as_ref().map(|styled| styled.mtime)
    }

    /// Finds out whether columns can make the header.
    pub(super) fn find_style(&mut self, entry: &Entry) {
        self.styled = styled(&self.header, entry).filter(|styled| {
            let content = if styled.style.has_content() {
                styled.size
            } else {
                0
            };
            let mut made = Vec::new();
            content == self.content
                && styled.style.write(&styled.fields(&self.path), &mut made).is_ok()
                && made == self.header
        });
    }
}

impl Styled {
    fn fields<'a>(&'a self, path: &'a [u8]) -> Fields<'a> {
        Fields {
            path,
            link: &self.link,
            mode: u64::from(self.mode),
            uid: u64::from(self.uid),
            gid: u64::from(self.gid),
            size: self.size,
            mtime: self.mtime,
        }
    }
}

fn styled(header: &[u8], entry: &Entry) -> Option<Styled> {
    let (first, last) = (header.first_chunk::<BLOCK>()?, header.last_chunk::<BLOCK>()?);
    let path = normal(&entry.path)?;
    let mut flags = 0;
    let mut written = &entry.path[..];
    if let Some(rest) = written.strip_prefix(b"./") {
        (flags, written) = (DOT, rest);
    } else if let Some(rest) = written.strip_prefix(b"/") {
        (flags, written) = (ROOT, rest);
    }
    if let Some(rest) = written.strip_suffix(b"/") {
        (flags, written) = (flags | SLASH, rest);
    }
    if written != path {
        return None;
    }
    let clear =
        |block: &mut [u8; BLOCK], (offset, length): (usize, usize)| block[offset..offset + length].fill(0);
    let mut long = [0; BLOCK];
    if header.len() > BLOCK {
        flags |= LONG;
        long = *first;
        clear(&mut long, SIZE);
        clear(&mut long, SUM);
    } else if last[PREFIX.0] != 0 && last[257..263] == *b"ustar\0" {
        flags |= SPLIT;
    }
    let mut main = *last;
    for field in [NAME, MODE, UID, GID, SIZE, MTIME, SUM] {
        clear(&mut main, field);
    }
    if flags & SPLIT != 0 {
        clear(&mut main, PREFIX);
    }
    let mut style = Style { flags, main, long };
    if style.has_link() {
        clear(&mut style.main, TARGET);
    }
    let field = |(offset, length): (usize, usize)| number(&last[offset..offset + length]).ok();
    let small = |place: (usize, usize)| u32::try_from(field(place)?).ok();
    Some(Styled {
        link: if style.has_link() {
            entry.link.clone()
        } else {
            Vec::new()
        },
        style,
        mode: small(MODE)?,
        uid: small(UID)?,
        gid: small(GID)?,
        size: field(SIZE)?,
        mtime: field(MTIME)?,
    })
}

/// Writes the table of `items`, which stand in the tar's order. `base` is the layer that `listing` lists.
pub(super) fn table(
    items: &[NewItem],
    listing: &Listing<'_>,
    base: Option<usize>,
) -> io::Result<Streams<{ stream::COUNT }>> {
    let mut sorted: Vec<usize> = (0..items.len()).collect();
    sorted.sort_by(|&a, &b| order(&items[a].path, &items[b].path));
    let mut writer = Writer {
        items,
        sorted,
        listing,
        base,
        styles: Vec::new(),
        streams: Streams::default(),
    };
    writer.collect_styles();
    let known = writer.paths();
    writer.columns(&known)?;
    writer.order()?;
    Ok(writer.streams)
}

struct Writer<'a> {
    items: &'a [NewItem],
    /// The items by their paths.
    sorted: Vec<usize>,
    listing: &'a Listing<'a>,
    base: Option<usize>,
    styles: Vec<Style>,
    streams: Streams<{ stream::COUNT }>,
}

impl Writer<'_> {
    fn collect_styles(&mut self) {
        let mut counted: Vec<(usize, Style)> = Vec::new();
        for item in self.items {
            let Some(styled) = &item.styled else { continue };
            if let Some((count, _)) = counted.iter_mut().find(|(_, style)| *style == styled.style) {
                *count += 1;
            } else if counted.len() < 4 * MAX_STYLES {
                counted.push((1, styled.style.clone()));
            }
        }
        // A style of one entry costs more than its header.
        counted.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        counted.truncate(MAX_STYLES);
        self.styles = counted.into_iter().map(|(_, style)| style).collect();
        for style in &self.styles {
            self.streams.0[stream::TEMPLATES].push(style.flags);
            self.streams.0[stream::TEMPLATES].extend_from_slice(&style.main);
            if style.flags & LONG != 0 {
                self.streams.0[stream::TEMPLATES].extend_from_slice(&style.long);
            }
        }
    }

    /// Writes the paths and returns each one's number in the listing.
    fn paths(&mut self) -> Vec<Option<usize>> {
        let mut known = Vec::with_capacity(self.sorted.len());
        let mut next = 0;
        for &index in &self.sorted {
            // A path that comes twice is the listing's only once.
            let found = self
                .listing
                .find(&self.items[index].path)
                .filter(|&number| number >= next);
            next = found.map_or(next, |number| number + 1);
            known.push(found);
        }
        self.streams.number(stream::RUNS, self.items.len() as u64);
        self.streams.number(stream::RUNS, self.styles.len() as u64);
        let mut at = 0;
        let mut next = 0;
        let mut before: &[u8] = &[];
        while at < known.len() {
            let skip = known[at].map_or(0, |number| number - next);
            let keep = known[at..]
                .iter()
                .zip(next + skip..)
                .take_while(|&(known, number)| *known == Some(number))
                .count();
            let insert = known[at + keep..]
                .iter()
                .take_while(|known| known.is_none())
                .count();
            for number in [skip, keep, insert] {
                self.streams.number(stream::RUNS, number as u64);
            }
            next += skip + keep;
            at += keep;
            if keep > 0 {
                before = &self.items[self.sorted[at - 1]].path;
            }
            for _ in 0..insert {
                let path = &self.items[self.sorted[at]].path;
                let shared = path.iter().zip(before).take_while(|(a, b)| a == b).count();
                self.streams.number(stream::LENGTHS, shared as u64);
                self.streams.number(stream::LENGTHS, (path.len() - shared) as u64);
                self.streams.bytes(stream::TEXT, &path[shared..]);
                before = path;
                at += 1;
            }
        }
        known
    }

    fn columns(&mut self, known: &[Option<usize>]) -> io::Result<()> {
        let mut columns = Columns::default();
        let mut times = Vec::new();
        for (index, &known) in self.sorted.clone().iter().zip(known) {
            let item = &self.items[*index];
            let listed = known.and_then(|number| self.listing.get(number));
            let styled = item.styled.as_ref();
            let style = styled.and_then(|styled| self.styles.iter().position(|style| *style == styled.style));
            if let (Some(styled), Some(style)) = (styled, style) {
                let style = style as u8;
                let predicted = columns.predicted_style(listed) == style;
                self.streams.0[stream::STYLE].push(if predicted { 0 } else { style + 1 });
                columns.used_style(listed, style);
                let mode = columns
                    .mode(style)
                    .map_err(|fault| io::Error::other(fault.to_string()))?;
                self.streams.number(stream::MODE, u64::from(*mode ^ styled.mode));
                *mode = styled.mode;
                self.streams
                    .number(stream::OWNER, u64::from(columns.last_owner.0 ^ styled.uid));
                self.streams
                    .number(stream::OWNER, u64::from(columns.last_owner.1 ^ styled.gid));
                columns.last_owner = (styled.uid, styled.gid);
                if styled.style.has_content() {
                    let expected = listed
                        .filter(|listed| listed.kind == Kind::File)
                        .map_or(0, |listed| listed.size);
                    self.streams
                        .number(stream::SIZE, zigzag(styled.size.wrapping_sub(expected) as i64));
                }
                times.push((listed.map(|listed| listed.mtime as u64), styled.mtime));
                if styled.style.has_link() {
                    if listed.is_some_and(|listed| self.listing.link_of(listed) == styled.link) {
                        self.streams.number(stream::LENGTHS, 0);
                    } else {
                        self.streams.number(stream::LENGTHS, styled.link.len() as u64 + 1);
                        self.streams.bytes(stream::TEXT, &styled.link);
                    }
                }
            } else {
                self.streams.0[stream::STYLE].push(STYLE_VERBATIM);
                self.streams.number(stream::LENGTHS, item.header.len() as u64);
                self.streams.bytes(stream::VERBATIM, &item.header);
                self.streams.number(stream::SIZE, item.content);
            }
            if item.content > 0 {
                self.method(item, known);
            }
        }
        self.times(&times)
    }

    fn method(&mut self, item: &NewItem, known: Option<usize>) {
        let Source::Old { layer, path, copy } = &item.source else {
            self.streams.0[stream::METHOD].push(FRESH);
            return;
        };
        let (layer, copy) = (*layer, *copy);
        let listed_layer = self.base == Some(layer);
        if listed_layer && *path == item.path && known.is_some() {
            self.streams.0[stream::METHOD].push(if copy { COPY_SAME } else { PATCH_SAME });
            return;
        }
        self.streams.0[stream::METHOD].push(if copy { COPY_OTHER } else { PATCH_OTHER });
        if let Some(number) = self.listing.find(path).filter(|_| listed_layer) {
            self.streams.number(stream::SOURCE, SOURCE_LISTED + number as u64);
            return;
        }
        let number = if listed_layer { 0 } else { layer as u64 + 1 };
        if *path == item.path {
            self.streams.number(stream::SOURCE, SOURCE_SAME_PATH);
            self.streams.number(stream::SOURCE, number);
        } else {
            self.streams.number(stream::SOURCE, SOURCE_TEXT);
            self.streams.number(stream::SOURCE, number);
            self.streams.number(stream::LENGTHS, path.len() as u64);
            self.streams.bytes(stream::TEXT, path);
        }
    }

    /// Writes the times in the way that takes the fewest bytes.
    fn times(&mut self, times: &[(Option<u64>, u64)]) -> io::Result<()> {
        let base = times.iter().map(|&(_, time)| time).min().unwrap_or(0);
        let mut best: Option<(usize, Streams<2>)> = None;
        for (use_listed, use_previous) in [(true, true), (true, false), (false, true), (false, false)] {
            let mut streams = Streams::<2>::default();
            streams.number(1, base);
            let mut last = 0;
            for &(listed, time) in times {
                if use_listed && listed == Some(time) {
                    streams.0[0].push(TIME_LISTED);
                } else if use_previous && time == last {
                    streams.0[0].push(TIME_PREVIOUS);
                } else {
                    streams.0[0].push(TIME_GIVEN);
                    streams.number(1, time - base);
                }
                last = time;
            }
            let size = streams.pack()?.len();
            if best.as_ref().is_none_or(|(least, _)| size < *least) {
                best = Some((size, streams));
            }
        }
        if let Some((_, Streams([kinds, given]))) = best.filter(|_| !self.items.is_empty()) {
            self.streams.0[stream::TIME_KIND] = kinds;
            self.streams.0[stream::TIME] = given;
        }
        Ok(())
    }

    fn order(&mut self) -> io::Result<()> {
        let failed = |fault: super::super::Fault| io::Error::other(fault.to_string());
        let account = &mut Account::new(u64::MAX);
        let paths = self.sorted.iter().map(|&index| &self.items[index].path[..]);
        let table = Table::of_paths(paths, account).map_err(failed)?;
        let mut walk = Walk::new(&table, account).map_err(failed)?;
        let mut numbers = vec![0u32; self.items.len()];
        for (number, &index) in self.sorted.iter().enumerate() {
            numbers[index] = number as u32;
        }
        for number in numbers {
            let (up, rank) = walk.name(number);
            self.streams.number(stream::UP, up);
            self.streams.number(stream::RANK, rank);
            walk.next(up, rank as usize).map_err(failed)?;
        }
        Ok(())
    }
}
