//! Numbers and byte strings in memory, each read checked; and the account of the memory they take.

use alloc::vec::Vec;

use super::Fault;

/// A place in a slice that is handed in anew with each call, so that many can stand in one buffer.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Cursor {
    at: usize,
    end: usize,
}

impl Cursor {
    /// A cursor over `from..to` of the slice that later calls are given.
    pub(super) fn new(from: usize, to: usize) -> Self {
        Self { at: from, end: to }
    }

    /// Where it stands.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// How many bytes are left.
    pub(super) fn left(&self) -> usize {
        self.end.saturating_sub(self.at)
    }

    pub(super) fn bytes<'a>(&mut self, all: &'a [u8], length: usize) -> Result<&'a [u8], Fault> {
        let end = self.at.checked_add(length).filter(|&end| end <= self.end);
        let end = end.ok_or(Fault::Corrupt("a stream ends too early"))?;
        let bytes = all
            .get(self.at..end)
            .ok_or(Fault::Corrupt("a stream ends too early"))?;
        self.at = end;
        Ok(bytes)
    }

    pub(super) fn byte(&mut self, all: &[u8]) -> Result<u8, Fault> {
        self.bytes(all, 1)
            .map(|bytes| bytes.first().copied().unwrap_or_default())
    }

    /// An unsigned LEB128 number of at most 64 bits.
    pub(super) fn number(&mut self, all: &[u8]) -> Result<u64, Fault> {
        let mut number = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(all)?;
            let bits = u64::from(byte & 0x7f);
            if bits > u64::MAX >> shift {
                break;
            }
            number |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(number);
            }
        }
        Err(Fault::Corrupt("a number does not fit 64 bits"))
    }

    /// A number that counts things in memory.
    pub(super) fn size(&mut self, all: &[u8]) -> Result<usize, Fault> {
        usize::try_from(self.number(all)?).map_err(|_| Fault::Corrupt("a size does not fit this machine"))
    }

    /// A signed number: its lowest bit is the sign.
    pub(super) fn signed(&mut self, all: &[u8]) -> Result<i64, Fault> {
        Ok(unzigzag(self.number(all)?))
    }
}

pub(super) fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

#[cfg(feature = "publish")]
pub(super) fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

/// Appends an unsigned LEB128 number.
#[cfg(feature = "publish")]
pub(super) fn put(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push(number as u8 | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

/// What may still be taken of the memory that the header declares.
#[derive(Debug, Clone)]
pub(super) struct Account {
    declared: u64,
    taken: u64,
    /// The most that was taken at once: what an encoder declares.
    peak: u64,
}

impl Account {
    pub(super) fn new(declared: u64) -> Self {
        Self {
            declared,
            taken: 0,
            peak: 0,
        }
    }

    /// Books `bytes`.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(), Fault> {
        let taken = self.taken.checked_add(bytes as u64);
        match taken.filter(|&taken| taken <= self.declared) {
            Some(taken) => {
                self.taken = taken;
                self.peak = self.peak.max(taken);
                Ok(())
            }
            None => Err(Fault::Memory {
                declared: self.declared,
            }),
        }
    }

    pub(super) fn give(&mut self, bytes: usize) {
        self.taken = self.taken.saturating_sub(bytes as u64);
    }

    #[cfg(feature = "publish")]
    pub(super) fn peak(&self) -> u64 {
        self.peak
    }

    /// Makes `vec` exactly `length` long, filled with zeros, and books the growth of its memory.
    pub(super) fn resize(&mut self, vec: &mut Vec<u8>, length: usize) -> Result<(), Fault> {
        if length > vec.capacity() {
            // Given back first, or both would be held at once.
            self.give(vec.capacity());
            *vec = Vec::new();
            self.take(length)?;
            if vec.try_reserve_exact(length).is_err() {
                return Err(Fault::Memory {
                    declared: self.declared,
                });
            }
            self.take(vec.capacity().saturating_sub(length))?;
        }
        vec.clear();
        vec.resize(length, 0);
        Ok(())
    }

    /// A vector with room for `count` values.
    pub(super) fn room<T>(&mut self, count: usize) -> Result<Vec<T>, Fault> {
        let mut vec = Vec::new();
        self.take(count.saturating_mul(size_of::<T>()))?;
        if vec.try_reserve_exact(count).is_err() {
            return Err(Fault::Memory {
                declared: self.declared,
            });
        }
        self.take((vec.capacity() - count).saturating_mul(size_of::<T>()))?;
        Ok(vec)
    }

    /// Appends to a vector whose memory is booked as it grows.
    pub(super) fn push<T>(&mut self, vec: &mut Vec<T>, value: T) -> Result<(), Fault> {
        if vec.len() == vec.capacity() {
            self.grow(vec, 1)?;
        }
        vec.push(value);
        Ok(())
    }

    /// Appends bytes to a vector whose memory is booked as it grows.
    pub(super) fn extend(&mut self, vec: &mut Vec<u8>, bytes: &[u8]) -> Result<(), Fault> {
        if vec.capacity() - vec.len() < bytes.len() {
            self.grow(vec, bytes.len())?;
        }
        vec.extend_from_slice(bytes);
        Ok(())
    }

    fn grow<T>(&mut self, vec: &mut Vec<T>, more: usize) -> Result<(), Fault> {
        let before = vec.capacity();
        // A quarter more each time: half-empty vectors are memory declared in vain.
        let wanted = (before / 4).max(more).max(16);
        self.take(wanted.saturating_mul(size_of::<T>()))?;
        if vec.try_reserve_exact(before - vec.len() + wanted).is_err() {
            return Err(Fault::Memory {
                declared: self.declared,
            });
        }
        self.take(
            vec.capacity()
                .saturating_sub(before + wanted)
                .saturating_mul(size_of::<T>()),
        )
    }

    /// Returns the booked memory of a vector.
    pub(super) fn release<T>(&mut self, vec: Vec<T>) {
        self.give(vec.capacity().saturating_mul(size_of::<T>()));
    }
}
