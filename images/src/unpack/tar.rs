//! A reader of tar archives: POSIX ustar and PAX, GNU long names, every form of GNU sparse files, and the old V7 form.
//!
//! It reads what GNU tar, bsdtar, Go's `archive/tar` and the image builders write, and refuses everything else by name rather
//! than guess. Every length is bounded before memory is reserved for it: extension headers by [`MAX_EXTENSION`], sparse maps by
//! [`MAX_SEGMENTS`]. Names are only bytes here; [`super::tree`] decides what they may mean.

use std::io::Read;

use super::Error;
use super::decompress::Source;

/// Tar's unit.
const BLOCK: usize = 512;
/// The longest PAX or GNU extension taken: extended attributes may be 64 KiB each.
const MAX_EXTENSION: u64 = 1 << 20;
/// The most data segments of a sparse file.
const MAX_SEGMENTS: usize = 65_536;
/// The largest file, holes counted: what ext4 takes.
const MAX_FILE: u64 = 16 << 40;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One member of the archive.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// Permission bits, set-id and sticky included.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub(super) mtime: (i64, u32),
    pub(super) device: (u32, u32),
    /// The file's length, holes counted.
    pub(super) size: u64,
    /// Where the data goes: offset and length each, ascending; the whole file when it is not sparse.
    pub(super) segments: Vec<(u64, u64)>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What extension headers said about the entry that follows them.
#[derive(Debug, Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
    pax: bool,
    sparse: Sparse,
}

/// The PAX forms of a sparse file: 0.0 and 0.1 carry the map in the header, 1.0 in front of the data.
#[derive(Debug, Default)]
struct Sparse {
    major: Option<u64>,
    name: Option<Vec<u8>>,
    size: Option<u64>,
    /// Offsets and lengths, alternating.
    map: Vec<u64>,
}

/// An archive being read.
pub(super) struct Archive<'a, R: Read> {
    source: &'a mut Source<R>,
    /// Data bytes of the current entry that were not read.
    left: u64,
    /// Bytes of padding behind them.
    padding: u64,
}

impl<'a, R: Read> Archive<'a, R> {
    pub(super) fn new(source: &'a mut Source<R>) -> Self {
        Self {
            source,
            left: 0,
            padding: 0,
        }
    }

    fn error(&self, reason: impl Into<String>) -> Error {
        Error::Tar {
            offset: self.source.position(),
            reason: reason.into(),
        }
    }

    /// The next entry; what was left of the previous one's data is skipped.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        let mut extension = Extension::default();
        let mut begun = false;
        loop {
            self.skip()?;
            let Some(header) = self.header()? else {
                return if begun {
                    Err(self.error("an extension header with no entry behind it"))
                } else {
                    Ok(None)
                };
            };
            let kind = header.bytes[156];
            match kind {
                b'x' | b'L' | b'K' | b'g' => {
                    let size = self.number(&header, 124, 12, "size")?;
                    let body = self.extension(size)?;
                    begun |= kind != b'g';
                    let twice = match kind {
                        b'x' if extension.pax => true,
                        b'L' if extension.long_path.is_some() => true,
                        b'K' if extension.long_link.is_some() => true,
                        _ => false,
                    };
                    if twice {
                        return Err(self.error("two extension headers of one kind for one entry"));
                    }
                    match kind {
                        b'L' => extension.long_path = Some(until_nul(&body).to_vec()),
                        b'K' => extension.long_link = Some(until_nul(&body).to_vec()),
                        b'x' => self.pax(&body, &mut extension)?,
                        // A global header says nothing that applies to a layer (`git archive` writes a comment).
                        _ => {}
                    }
                }
                _ => return self.entry(&header, extension).map(Some),
            }
        }
    }

    /// Copies the next data of the current entry to `take`, which puts it into the tree's file of that path and offset; 0 at
    /// its end.
    pub(super) fn data(
        &mut self,
        max: u64,
        file: (&[u8], u64),
        take: impl FnOnce(&[u8]) -> Result<(), Error>,
    ) -> Result<u64, Error> {
        let max = usize::try_from(self.left.min(max)).unwrap_or(usize::MAX);
        if max == 0 {
            return Ok(0);
        }
        let (n, taken) = self.source.with_content(max, file, take)?;
        if n == 0 {
            return Err(self.error("the archive ends inside a file"));
        }
        taken?;
        self.left -= n as u64;
        Ok(n as u64)
    }

    fn skip(&mut self) -> Result<(), Error> {
        let mut rest = self.left.saturating_add(self.padding);
        (self.left, self.padding) = (0, 0);
        while rest > 0 {
            let (n, ()) = self
                .source
                .with_next(usize::try_from(rest).unwrap_or(usize::MAX), |_| ())?;
            if n == 0 {
                return Err(self.error("the archive ends inside a file"));
            }
            rest -= n as u64;
        }
        Ok(())
    }

    fn block(&mut self) -> Result<Option<Header>, Error> {
        let mut bytes = [0; BLOCK];
        match self.source.fill(&mut bytes)? {
            0 => Ok(None),
            BLOCK => Ok(Some(Header { bytes })),
            n => Err(self.error(format!("{n} bytes where a block of 512 should be"))),
        }
    }

    /// The next header, `None` at the end: two zero blocks, or simply no more bytes (the diffID tells a truncation).
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let Some(header) = self.block()? else {
            return Ok(None);
        };
        if !header.is_zero() {
            self.check(&header)?;
            return Ok(Some(header));
        }
        match self.block()? {
            Some(next) if !next.is_zero() => Err(self.error("a single zero block inside the archive")),
            _ => Ok(None),
        }
    }

    fn check(&self, header: &Header) -> Result<(), Error> {
        let bytes = header.bytes.iter().enumerate();
        let of = |sum: &mut (u64, i64), (at, byte): (usize, &u8)| {
            let byte = if (148..156).contains(&at) { b' ' } else { *byte };
            *sum = (sum.0 + u64::from(byte), sum.1 + i64::from(byte as i8));
        };
        let sums = bytes.fold((0, 0), |mut sum, item| {
            of(&mut sum, item);
            sum
        });
        let wanted = self.number(header, 148, 8, "checksum")?;
        // Some old writers summed signed bytes.
        if wanted == sums.0 || i64::try_from(wanted).ok() == Some(sums.1) {
            return Ok(());
        }
        Err(self.error(format!(
            "header checksum is {}, it says {wanted}: not a tar header",
            sums.0
        )))
    }

    fn number(&self, header: &Header, at: usize, len: usize, what: &str) -> Result<u64, Error> {
        let value = parse_number(header.field(at, len)).and_then(|n| u64::try_from(n).ok());
        value.ok_or_else(|| self.error(format!("the header's {what} is not a number that makes sense")))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > MAX_EXTENSION {
            return Err(self.error(format!(
                "an extension header of {size} bytes: at most {MAX_EXTENSION} are read"
            )));
        }
        let mut body = vec![0; usize::try_from(size).unwrap_or(0)];
        if self.source.fill(&mut body)? != body.len() {
            return Err(self.error("the archive ends inside an extension header"));
        }
        self.padding = padding(size);
        Ok(body)
    }

    fn pax(&self, mut body: &[u8], extension: &mut Extension) -> Result<(), Error> {
        extension.pax = true;
        while !body.is_empty() {
            let Some((key, value, rest)) = pax_record(body) else {
                return Err(self.error("a PAX record that is not LENGTH KEY=VALUE"));
            };
            body = rest;
            self.pax_value(key, value, extension)?;
        }
        if !extension.sparse.map.len().is_multiple_of(2) {
            return Err(self.error("a sparse map with an offset and no length"));
        }
        Ok(())
    }

    fn pax_value(&self, key: &[u8], value: &[u8], extension: &mut Extension) -> Result<(), Error> {
        // An empty value takes back what a global header said; those say nothing here.
        if value.is_empty() {
            return Ok(());
        }
        let wrong = || self.error(format!("PAX {:?}: the value makes no sense", super::quote(key)));
        let decimal = || parse_decimal(value).ok_or_else(wrong);
        let name = || {
            if value.contains(&0) {
                Err(wrong())
            } else {
                Ok(value.to_vec())
            }
        };
        let sparse = &mut extension.sparse;
        match key {
            b"path" => extension.path = Some(name()?),
            b"linkpath" => extension.link = Some(name()?),
            b"size" => extension.size = Some(decimal()?),
            b"uid" => extension.uid = Some(decimal()?),
            b"gid" => extension.gid = Some(decimal()?),
            b"mtime" => extension.mtime = Some(parse_time(value).ok_or_else(wrong)?),
            b"GNU.sparse.major" => sparse.major = Some(decimal()?),
            b"GNU.sparse.name" => sparse.name = Some(name()?),
            b"GNU.sparse.size" | b"GNU.sparse.realsize" => sparse.size = Some(decimal()?),
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => sparse.map.push(decimal()?),
            b"GNU.sparse.map" => {
                for number in value.split(|b| *b == b',') {
                    sparse.map.push(parse_decimal(number).ok_or_else(wrong)?);
                }
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    if name.is_empty() || name.len() > 255 || name.contains(&0) {
                        return Err(wrong());
                    }
                    extension.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
        if sparse.map.len() > 2 * MAX_SEGMENTS {
            return Err(self.error(format!("a sparse file of more than {MAX_SEGMENTS} segments")));
        }
        Ok(())
    }

    fn entry(&mut self, header: &Header, extension: Extension) -> Result<Entry, Error> {
        let pick =
            |a: Option<Vec<u8>>, b: Option<Vec<u8>>, or: &dyn Fn() -> Vec<u8>| a.or(b).unwrap_or_else(or);
        let path = pick(extension.path, extension.long_path, &|| header.path());
        let path = extension.sparse.name.clone().unwrap_or(path);
        let link = pick(extension.link, extension.long_link, &|| {
            until_nul(header.field(157, 100)).to_vec()
        });
        let flag = header.bytes[156];
        let kind = match flag {
            // Before POSIX a directory was a name with a slash behind it.
            0 | b'0' if path.ends_with(b"/") => Kind::Directory,
            0 | b'0' | b'7' | b'S' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' => Kind::CharDevice,
            b'4' => Kind::BlockDevice,
            b'5' => Kind::Directory,
            b'6' => Kind::Fifo,
            other => {
                let reason = format!("entries of type {:?} are not supported", char::from(other));
                return Err(Error::entry(&path, reason));
            }
        };
        // Only files have data, whatever the header of another kind says (as Go's reader holds it).
        let stored = match (kind, extension.size) {
            (Kind::File, Some(size)) => size,
            (Kind::File, None) => self.number(header, 124, 12, "size")?,
            _ => 0,
        };
        if stored > MAX_FILE {
            return Err(Error::entry(
                &path,
                format!("a file of {stored} bytes: at most {MAX_FILE} are taken"),
            ));
        }
        let id = |pax: Option<u64>, at: usize, what: &str| -> Result<u32, Error> {
            let id = pax.map_or_else(|| self.number(header, at, 8, what), Ok)?;
            u32::try_from(id)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| Error::entry(&path, format!("{what} {id} is not one that Linux has")))
        };
        let (uid, gid) = (id(extension.uid, 108, "uid")?, id(extension.gid, 116, "gid")?);
        let mode = (self.number(header, 100, 8, "mode")? & 0o7777) as u32;
        let mtime = match extension.mtime {
            Some(mtime) => mtime,
            None => (
                parse_number(header.field(136, 12)).ok_or_else(|| self.error("mtime is not a number"))?,
                0,
            ),
        };
        let device = match kind {
            Kind::CharDevice | Kind::BlockDevice => {
                let part = |at, what| {
                    let n = self.number(header, at, 8, what)?;
                    u32::try_from(n).map_err(|_| Error::entry(&path, format!("{what} {n} is too large")))
                };
                (part(329, "major number")?, part(337, "minor number")?)
            }
            _ => (0, 0),
        };
        self.left = stored;
        self.padding = padding(stored);
        let (size, segments) = match (kind, flag) {
            (Kind::File, b'S') => self.gnu_segments(header)?,
            (Kind::File, _) => self.pax_segments(extension.sparse, stored)?,
            _ => (0, Vec::new()),
        };
        self.check_segments(&path, size, &segments)?;
        Ok(Entry {
            kind,
            path,
            link,
            mode,
            uid,
            gid,
            mtime,
            device,
            size,
            segments,
            xattrs: extension.xattrs,
        })
    }

    /// The map of an old GNU sparse file: four segments in the header, twenty-one in each block behind it.
    fn gnu_segments(&mut self, header: &Header) -> Result<(u64, Vec<(u64, u64)>), Error> {
        let size = self.number(header, 483, 12, "real size")?;
        let mut segments = Vec::new();
        self.gnu_map(header, 386, 4, &mut segments)?;
        let mut more = header.bytes[482] != 0;
        while more {
            let Some(block) = self.block()? else {
                return Err(self.error("the archive ends inside a sparse map"));
            };
            self.gnu_map(&block, 0, 21, &mut segments)?;
            more = block.bytes[504] != 0;
            if segments.len() > MAX_SEGMENTS {
                return Err(self.error(format!("a sparse file of more than {MAX_SEGMENTS} segments")));
            }
        }
        Ok((size, segments))
    }

    fn gnu_map(
        &self,
        block: &Header,
        at: usize,
        count: usize,
        to: &mut Vec<(u64, u64)>,
    ) -> Result<(), Error> {
        for at in (0..count).map(|i| at + i * 24) {
            if block.bytes.get(at).is_none_or(|b| *b == 0) {
                break;
            }
            to.push((
                self.number(block, at, 12, "sparse offset")?,
                self.number(block, at + 12, 12, "sparse length")?,
            ));
        }
        Ok(())
    }

    fn pax_segments(&mut self, sparse: Sparse, stored: u64) -> Result<(u64, Vec<(u64, u64)>), Error> {
        let Some(size) = sparse.size else {
            let plain = sparse.major.is_none() && sparse.map.is_empty() && sparse.name.is_none();
            return match plain {
                true => Ok((stored, vec![(0, stored)])),
                false => Err(self.error("a sparse file without its real size")),
            };
        };
        let map = match sparse.major {
            None | Some(0) => sparse.map,
            Some(1) => self.map_before_data()?,
            Some(major) => return Err(self.error(format!("sparse format {major} is not supported"))),
        };
        let segments = map
            .chunks_exact(2)
            .filter_map(|pair| Some((*pair.first()?, *pair.get(1)?)))
            .collect();
        Ok((size, segments))
    }

    /// GNU sparse 1.0: decimal numbers, one a line, the first is how many segments follow; padded to a block.
    fn map_before_data(&mut self) -> Result<Vec<u64>, Error> {
        let mut numbers: Vec<u64> = Vec::new();
        let mut digits: Vec<u8> = Vec::new();
        let mut wanted = None;
        while wanted.is_none_or(|wanted| numbers.len() < wanted) {
            if self.left < BLOCK as u64 {
                return Err(self.error("a sparse map that does not end"));
            }
            let Some(block) = self.block()? else {
                return Err(self.error("the archive ends inside a sparse map"));
            };
            self.left -= BLOCK as u64;
            for byte in block.bytes {
                if wanted.is_some_and(|wanted| numbers.len() >= wanted) {
                    break;
                }
                if byte != b'\n' {
                    digits.push(byte);
                    if digits.len() > 20 {
                        return Err(self.error("a sparse map with something else than numbers"));
                    }
                    continue;
                }
                let number = parse_decimal(&digits)
                    .ok_or_else(|| self.error("a sparse map with something else than numbers"))?;
                digits.clear();
                match wanted {
                    Some(_) => numbers.push(number),
                    None if number > MAX_SEGMENTS as u64 => {
                        return Err(self.error(format!("a sparse file of more than {MAX_SEGMENTS} segments")));
                    }
                    None => wanted = Some(number as usize * 2),
                }
            }
        }
        Ok(numbers)
    }

    fn check_segments(&self, path: &[u8], size: u64, segments: &[(u64, u64)]) -> Result<(), Error> {
        if size > MAX_FILE {
            return Err(Error::entry(
                path,
                format!("a file of {size} bytes: at most {MAX_FILE} are taken"),
            ));
        }
        let (mut end, mut stored) = (0_u64, 0_u64);
        for (offset, len) in segments {
            let next = offset
                .checked_add(*len)
                .filter(|next| *offset >= end && *next <= size);
            let Some(next) = next else {
                return Err(Error::entry(
                    path,
                    "its sparse segments overlap or lie beyond its end",
                ));
            };
            (end, stored) = (next, stored.saturating_add(*len));
        }
        if stored != self.left {
            return Err(Error::entry(
                path,
                format!("its sparse map wants {stored} bytes and {} follow", self.left),
            ));
        }
        Ok(())
    }
}

/// One block of 512 bytes.
struct Header {
    bytes: [u8; BLOCK],
}

impl Header {
    fn field(&self, at: usize, len: usize) -> &[u8] {
        self.bytes.get(at..at + len).unwrap_or_default()
    }

    fn is_zero(&self) -> bool {
        self.bytes.iter().all(|b| *b == 0)
    }

    fn path(&self) -> Vec<u8> {
        let name = until_nul(self.field(0, 100));
        let prefix = until_nul(self.field(345, 155));
        // Only POSIX has a prefix there; GNU's own form has other fields in its place.
        if self.field(257, 6) != b"ustar\0" || prefix.is_empty() {
            return name.to_vec();
        }
        [prefix, b"/", name].concat()
    }
}

fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|b| *b == 0).next().unwrap_or_default()
}

/// A header's number: octal text, or GNU's base 256 with the first bit set.
fn parse_number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 != 0 {
        let start = if first & 0x40 != 0 {
            -1_i64 << 6 | i64::from(first & 0x3f)
        } else {
            i64::from(first & 0x3f)
        };
        return rest.iter().try_fold(start, |value, byte| {
            value.checked_mul(256)?.checked_add(i64::from(*byte))
        });
    }
    let text = until_nul(field).trim_ascii();
    text.iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

fn parse_decimal(text: &[u8]) -> Option<u64> {
    if text.is_empty() || !text.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `[-]SECONDS[.FRACTION]`, with the nanoseconds counted upwards from the whole second below.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let (negative, text) = match text.strip_prefix(b"-") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let mut parts = text.splitn(2, |b| *b == b'.');
    let seconds = i64::try_from(parse_decimal(parts.next()?)?).ok()?;
    let fraction = parts.next().unwrap_or_default();
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanos = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    match (negative, nanos) {
        (false, _) => Some((seconds, nanos)),
        (true, 0) => Some((-seconds, 0)),
        (true, _) => Some((-seconds - 1, 1_000_000_000 - nanos)),
    }
}

/// The first record of a PAX header: key, value, and what follows it.
fn pax_record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().take(20).position(|b| *b == b' ')?;
    let len = usize::try_from(parse_decimal(body.get(..space)?)?).ok()?;
    let record = body.get(space + 1..len)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|b| *b == b'=')?;
    Some((record.get(..equals)?, record.get(equals + 1..)?, body.get(len..)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        let table: [(&[u8], Option<i64>); 9] = [
            (b"0000644\0", Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0", Some(0)),
            (b"77777777777\0", Some(0o77777777777)),
            (b"0000648\0", None),
            (b"-1", None),
            (&[0x80, 0, 0, 0, 0, 0, 0, 1, 0], Some(256)),
            (&[0xff; 12], Some(-1)),
            (
                &[
                    0x80, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
                ],
                None,
            ),
        ];
        for (field, want) in table {
            assert_eq!(parse_number(field), want, "{field:?}");
        }
    }

    #[test]
    fn times() {
        let table: [(&str, Option<(i64, u32)>); 8] = [
            ("0", Some((0, 0))),
            ("12.5", Some((12, 500_000_000))),
            ("12.1234567899", Some((12, 123_456_789))),
            ("-1", Some((-1, 0))),
            ("-1.25", Some((-2, 750_000_000))),
            ("", None),
            ("1.x", None),
            ("99999999999999999999", None),
        ];
        for (text, want) in table {
            assert_eq!(parse_time(text.as_bytes()), want, "{text}");
        }
    }

    #[test]
    fn pax_records() {
        assert_eq!(pax_record(b"9 a=b=c\nrest"), None);
        assert_eq!(
            pax_record(b"8 a=b=c\nrest"),
            Some((&b"a"[..], &b"b=c"[..], &b"rest"[..]))
        );
        for broken in [
            &b""[..],
            b"8",
            b"8 ",
            b"x a=b\n",
            b"99 a=b\n",
            b"7 a=b\n",
            b"5 ab\n",
            b"0 a=b\n",
            b"1 a=b\n",
        ] {
            assert_eq!(pax_record(broken), None, "{broken:?}");
        }
    }
}
