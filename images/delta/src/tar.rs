//! Where the entries of an uncompressed tar lie: enough to find the regular files in it, no more.
//!
//! Reads ustar, GNU long names and sparse entries, and pax headers. What is not understood is an error; the encoder then
//! carries the rest of the tar as it is.

use std::io::{self, Read, Seek, SeekFrom};

/// A tar's unit.
const BLOCK: u64 = 512;
/// The most bytes of a long name or pax header that are looked at. Paths are at most 4096 bytes; pax headers also carry xattrs.
const MAX_EXTENSION: u64 = 1 << 20;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The path as it is written.
    pub(crate) path: Vec<u8>,
    /// The target of a link as it is written.
    pub(crate) link: Vec<u8>,
    /// The type flag; `0` for a regular file in any spelling.
    pub(crate) kind: u8,
    /// The permission bits.
    pub(crate) mode: u32,
    /// Whether the bytes in the tar are not the bytes of the file.
    pub(crate) sparse: bool,
    /// When it was changed, in whole seconds.
    pub(crate) mtime: i64,
    /// Where its first header begins in the tar.
    pub(crate) begin: u64,
    /// Where its bytes begin in the tar.
    pub(crate) offset: u64,
    /// How many bytes it has in the tar.
    pub(crate) size: u64,
}

/// What the extension headers in front of an entry say about it.
#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    mtime: Option<i64>,
    sparse: bool,
}

/// The entries of a tar in their order.
pub(crate) struct Entries<R> {
    tar: R,
    next: u64,
}

impl<R: Read + Seek> Entries<R> {
    pub(crate) fn new(tar: R) -> Self {
        Self { tar, next: 0 }
    }

    /// The next entry; `None` at the end-of-archive block or at the end of the file.
    pub(crate) fn next(&mut self) -> io::Result<Option<Entry>> {
        let mut extension = Extension::default();
        let begin = self.next;
        loop {
            let Some(header) = self.block()? else {
                return Ok(None);
            };
            let stored = number(&header[124..136])?;
            match header[156] {
                kind @ (b'L' | b'K' | b'x') => {
                    let body = self.body(stored)?;
                    match kind {
                        b'L' => extension.path = Some(until_nul(&body).to_vec()),
                        b'K' => extension.link = Some(until_nul(&body).to_vec()),
                        _ => pax(&body, &mut extension)?,
                    }
                }
                b'g' => {
                    self.skip(stored)?;
                }
                kind => return self.entry(&header, kind, extension, begin).map(Some),
            }
        }
    }

    fn entry(&mut self, header: &[u8; 512], kind: u8, extension: Extension, begin: u64) -> io::Result<Entry> {
        let mut sparse = extension.sparse;
        if kind == b'S' {
            sparse = true;
            let mut more = header[482] != 0;
            while more {
                more = self.block()?.ok_or_else(|| bad("ends inside a sparse map"))?[504] != 0;
            }
        }
        let size = match kind {
            // These have no bytes whatever their size field says.
            b'1'..=b'6' => 0,
            _ => match extension.size {
                Some(size) => size,
                None => number(&header[124..136])?,
            },
        };
        let path = extension.path.unwrap_or_else(|| {
            let name = until_nul(&header[..100]);
            let prefix = if &header[257..263] == b"ustar\0" {
                until_nul(&header[345..500])
            } else {
                &[]
            };
            if prefix.is_empty() {
                name.to_vec()
            } else {
                [prefix, b"/", name].concat()
            }
        });
        let offset = self.skip(size)?;
        Ok(Entry {
            path,
            link: extension
                .link
                .unwrap_or_else(|| until_nul(&header[157..257]).to_vec()),
            kind: if matches!(kind, 0 | b'7' | b'S') {
                b'0'
            } else {
                kind
            },
            mode: number(&header[100..108]).unwrap_or(0) as u32,
            mtime: extension
                .mtime
                .unwrap_or_else(|| number(&header[136..148]).map_or(0, |mtime| mtime as i64)),
            sparse,
            begin,
            offset,
            size,
        })
    }

    /// The next block, if it is a header.
    fn block(&mut self) -> io::Result<Option<[u8; 512]>> {
        self.tar.seek(SeekFrom::Start(self.next))?;
        let mut block = [0; 512];
        let mut have = 0;
        while have < block.len() {
            match self.tar.read(&mut block[have..])? {
                0 => break,
                length => have += length,
            }
        }
        match have {
            0 => return Ok(None),
            512 => self.next += BLOCK,
            _ => return Err(bad("ends inside a header")),
        }
        Ok(block.iter().any(|&byte| byte != 0).then_some(block))
    }

    fn body(&mut self, size: u64) -> io::Result<Vec<u8>> {
        if size > MAX_EXTENSION {
            return Err(bad("an extension header is too long"));
        }
        let mut body = vec![0; size as usize];
        self.tar.read_exact(&mut body)?;
        self.skip(size)?;
        Ok(body)
    }

    /// Steps over `size` bytes and their padding; returns where they begin.
    fn skip(&mut self, size: u64) -> io::Result<u64> {
        let begin = self.next;
        let padded = size
            .checked_next_multiple_of(BLOCK)
            .and_then(|padded| begin.checked_add(padded));
        self.next = padded.ok_or_else(|| bad("an entry is too long"))?;
        Ok(begin)
    }
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("tar: {what}"))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or(field)
}

/// A number field: octal, or GNU's big-endian binary.
pub(crate) fn number(field: &[u8]) -> io::Result<u64> {
    if field[0] & 0x80 != 0 {
        let mut value = u64::from(field[0] & 0x7f);
        for &byte in &field[1..] {
            value = value
                .checked_mul(256)
                .ok_or_else(|| bad("a number is too large"))?
                | u64::from(byte);
        }
        return Ok(value);
    }
    let text = until_nul(field).trim_ascii();
    let mut value = 0u64;
    for &digit in text {
        if !(b'0'..=b'7').contains(&digit) {
            return Err(bad("a number is not octal"));
        }
        // Twelve octal digits fit.
        value = value * 8 + u64::from(digit - b'0');
    }
    Ok(value)
}

/// Reads the records `LENGTH KEY=VALUE\n`.
fn pax(mut body: &[u8], extension: &mut Extension) -> io::Result<()> {
    while !body.is_empty() {
        let space = body
            .iter()
            .position(|&byte| byte == b' ')
            .ok_or_else(|| bad("a pax record has no length"))?;
        let length = decimal(&body[..space])? as usize;
        if length <= space || length > body.len() {
            return Err(bad("a pax record has a wrong length"));
        }
        let record = body[space + 1..length]
            .strip_suffix(b"\n")
            .ok_or_else(|| bad("a pax record does not end"))?;
        let equals = record
            .iter()
            .position(|&byte| byte == b'=')
            .ok_or_else(|| bad("a pax record has no value"))?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        match key {
            b"path" => extension.path = Some(value.to_vec()),
            b"linkpath" => extension.link = Some(value.to_vec()),
            b"mtime" => extension.mtime = Some(seconds(value)),
            b"size" => extension.size = Some(decimal(value)?),
            key if key.starts_with(b"GNU.sparse.") => extension.sparse = true,
            _ => {}
        }
        body = &body[length..];
    }
    Ok(())
}

/// The whole seconds of a time, downwards; 0 for what is none.
fn seconds(text: &[u8]) -> i64 {
    let (whole, part) = match text.iter().position(|&byte| byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let whole: i64 = std::str::from_utf8(whole)
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0);
    let below = text.first() == Some(&b'-') && part.iter().any(|&digit| digit != b'0');
    whole - i64::from(below)
}

fn decimal(text: &[u8]) -> io::Result<u64> {
    std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| bad("a pax number is not decimal"))
}
