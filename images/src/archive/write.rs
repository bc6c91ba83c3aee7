//! The few lines of tar that `save` needs: plain files with short names, the same bytes every time.

use std::io::{self, Write};

const BLOCK: u64 = 512;
/// The largest size that fits into a header's twelve bytes as octal digits.
const MAX_OCTAL: u64 = 0o777_7777_7777;

/// An archive being written.
pub(super) struct Tar<'a> {
    out: &'a mut dyn Write,
    written: u64,
    /// Bytes that the current file still lacks.
    left: u64,
    size: u64,
}

impl<'a> Tar<'a> {
    pub(super) fn new(out: &'a mut dyn Write) -> Self {
        Self {
            out,
            written: 0,
            left: 0,
            size: 0,
        }
    }

    /// Begins a file of `size` bytes, which are then written to this.
    pub(super) fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        let mut block = [0; BLOCK as usize];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = block.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        if name.len() > 100 {
            return Err(io::Error::other("a name too long for an archive"));
        }
        put(0, name.as_bytes());
        put(100, b"0000644\x000000000\x000000000\0");
        if size <= MAX_OCTAL {
            put(124, format!("{size:011o}\0").as_bytes());
        } else {
            put(124, &[0x80, 0, 0, 0]);
            put(128, &size.to_be_bytes());
        }
        put(136, b"00000000000\0");
        put(148, b"        ");
        put(156, b"0");
        put(257, b"ustar\x0000");
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        if let Some(field) = block.get_mut(148..156) {
            field.copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        self.out.write_all(&block)?;
        self.written += BLOCK;
        (self.left, self.size) = (size, size);
        Ok(())
    }

    /// Ends the file.
    pub(super) fn end(&mut self) -> io::Result<()> {
        if self.left != 0 {
            return Err(io::Error::other(format!(
                "a file of {} bytes is {} short",
                self.size, self.left
            )));
        }
        let padding = self.size.next_multiple_of(BLOCK) - self.size;
        self.zeros(padding)
    }

    fn zeros(&mut self, count: u64) -> io::Result<()> {
        let zeros = [0; 2 * BLOCK as usize];
        self.out
            .write_all(zeros.get(..count as usize).unwrap_or(&zeros))?;
        self.written += count;
        Ok(())
    }

    /// Ends the archive; how long it is.
    pub(super) fn finish(mut self) -> io::Result<u64> {
        self.zeros(2 * BLOCK)?;
        self.out.flush()?;
        Ok(self.written)
    }
}

impl Write for Tar<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let len = bytes.len() as u64;
        if len > self.left {
            return Err(io::Error::other("a file is longer than it was"));
        }
        self.out.write_all(bytes)?;
        self.left -= len;
        self.written += len;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
