//! A body that must come at a pace: a drip of a byte now and then is no transfer, however long it goes on.

use std::io::{self, Read};
use std::time::{Duration, Instant};

/// Bytes in a second below which a body is given up on. The slowest real links have ten times that.
const SLOWEST: u64 = 200;
/// How long a body may be slow before its pace counts: a hand-over, a cell at its edge.
pub(crate) const GRACE: Duration = Duration::from_secs(60);

/// A body, read as it comes.
pub(crate) struct Steady<R> {
    inner: R,
    begun: Instant,
    grace: Duration,
    bytes: u64,
}

impl<R: Read> Steady<R> {
    pub(crate) fn new(inner: R, grace: Duration) -> Steady<R> {
        Steady {
            inner,
            begun: Instant::now(),
            grace,
            bytes: 0,
        }
    }
}

impl<R: Read> Read for Steady<R> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        let got = self.inner.read(out)?;
        self.bytes += got as u64;
        if got > 0 && is_drip(self.bytes, self.begun.elapsed(), self.grace) {
            let reason = format!("slower than {SLOWEST} bytes a second");
            return Err(io::Error::new(io::ErrorKind::TimedOut, reason));
        }
        Ok(got)
    }
}

/// Whether so many bytes in that time are too few.
pub(crate) fn is_drip(bytes: u64, spent: Duration, grace: Duration) -> bool {
    spent > grace && (bytes as f64) < spent.as_secs_f64() * SLOWEST as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drips() {
        let seconds = Duration::from_secs;
        for (bytes, spent, drip) in [
            (0, 60, false),
            (1, 61, true),
            (SLOWEST * 61, 61, false),
            (SLOWEST * 99, 100, true),
            (SLOWEST * 3600, 3600, false),
        ] {
            assert_eq!(is_drip(bytes, seconds(spent), GRACE), drip, "{bytes} {spent}");
        }
        let bytes = vec![7; 1000];
        let mut steady = Steady::new(&bytes[..], GRACE);
        let mut out = Vec::new();
        steady.read_to_end(&mut out).unwrap();
        assert_eq!(out, bytes);
    }
}
