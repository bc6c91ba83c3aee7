//! `std::io` streams as [`embedded_io`] streams.

use std::io;

use embedded_io::{ErrorType, Read, Seek, SeekFrom, Write};

/// A `std::io` stream with the [`embedded_io`] traits.
#[derive(Debug, Clone)]
pub struct Std<T>(pub T);

impl<T> ErrorType for Std<T> {
    type Error = io::Error;
}

/// The reference implementation of zstd as a decompressor of frames.
#[cfg(feature = "zstd")]
#[derive(Default)]
pub struct Zstd(zstd::zstd_safe::DCtx<'static>);

#[cfg(feature = "zstd")]
impl crate::wherry::Decompress for Zstd {
    fn decompress(&mut self, from: &[u8], to: &mut [u8]) -> bool {
        let wanted = to.len();
        self.0.decompress(to, from).is_ok_and(|made| made == wanted)
    }
}

/// Calls until it is not interrupted by a signal.
fn uninterrupted<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl<T: io::Read> Read for Std<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        uninterrupted(|| self.0.read(buf))
    }
}

impl<T: io::Write> Write for Std<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        match uninterrupted(|| self.0.write(buf))? {
            // embedded-io's write_all asks for at least one byte.
            0 if !buf.is_empty() => Err(io::ErrorKind::WriteZero.into()),
            written => Ok(written),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        uninterrupted(|| self.0.flush())
    }
}

impl<T: io::Seek> Seek for Std<T> {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.0.seek(pos.into())
    }
}
