//! How much of the disk the store may take: what it leaves free, and how large it may become.

use std::path::Path;

use super::durable;
use super::{Error, Image, Store};

/// The part of the file system that is left free unless something else is said: one twentieth ...
const RESERVE_SHARE: u64 = 20;
/// ... but not more than this: what an agent, a log and a database need to go on.
const RESERVE_MOST: u64 = 256 << 20;

/// What the store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Budget {
    /// Bytes of the file system that stay free; one twentieth of it, at most 256 MiB, unless something else is said.
    pub reserve: Option<u64>,
    /// The most bytes of layers, blobs and partial blobs together; without one the file system is the limit.
    pub quota: Option<u64>,
}

impl Store {
    /// The same store with another budget.
    pub fn with_budget(self, budget: Budget) -> Self {
        Self { budget, ..self }
    }

    /// The bytes that may still be written: down to the reserve, up to the quota.
    pub fn room(&self) -> Result<u64, Error> {
        let (free, reserve) = self.free()?;
        let room = free.saturating_sub(reserve);
        Ok(match self.budget.quota {
            Some(quota) => room.min(quota.saturating_sub(self.used()?)),
            None => room,
        })
    }

    /// Refuses what cannot fit, with the numbers, before anything moves: the layers of `image` that are missing, each
    /// as its blob and unpacked, the blobs one after the other unless they are kept. How much larger a layer unpacks is not known
    /// before; that it is no smaller than its blob is. What turns out larger stops at the reserve while it is unpacked.
    pub fn check_room(&self, image: &Image, keep_blobs: bool) -> Result<(), Error> {
        let missing = self.missing_layers(image);
        if missing.is_empty() {
            return Ok(());
        }
        let (mut blobs, mut largest, mut unpacked) = (0_u64, 0_u64, 0_u64);
        for (descriptor, _) in &missing {
            let here = std::fs::metadata(self.partial_dir().join(descriptor.digest.hex()));
            let rest = descriptor.size.saturating_sub(here.map_or(0, |meta| meta.len()));
            blobs = blobs.saturating_add(rest);
            largest = largest.max(rest);
            unpacked = unpacked.saturating_add(descriptor.size);
        }
        let needed = unpacked.saturating_add(if keep_blobs { blobs } else { largest });
        let room = self.room()?;
        if needed <= room {
            return Ok(());
        }
        let (free, reserve) = self.free()?;
        Err(Error::Room {
            image: image.digest,
            needed,
            room,
            free,
            reserve,
            quota: self.budget.quota,
        })
    }

    /// Free bytes of the file system for this user, and how many of them are not the store's to take.
    fn free(&self) -> Result<(u64, u64), Error> {
        let stat = rustix::fs::statvfs(&self.root).map_err(|e| Error::io("measure", &self.root, e.into()))?;
        let total = stat.f_blocks.saturating_mul(stat.f_frsize);
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let usual = (total / RESERVE_SHARE).min(RESERVE_MOST);
        Ok((free, self.budget.reserve.unwrap_or(usual)))
    }

    /// Bytes of layers, blobs and partial blobs.
    pub fn used(&self) -> Result<u64, Error> {
        let mut used = files_in(&self.blob_dir())?.saturating_add(files_in(&self.partial_dir())?);
        for diff_id in self.layers()? {
            // One that is being removed, or damaged, counts for nothing here.
            if let Ok(Some(info)) = self.layer_info(&diff_id) {
                used = used.saturating_add(info.data_size);
            }
        }
        Ok(used)
    }
}

fn files_in(dir: &Path) -> Result<u64, Error> {
    let names = durable::names(dir)?;
    let sizes = names.iter().filter_map(|(_, path)| path.symlink_metadata().ok());
    Ok(sizes.fold(0, |sum, meta| sum.saturating_add(meta.len())))
}
