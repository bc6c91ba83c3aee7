//! What a source layer holds, by path: the new layer's headers are predicted from it.

use alloc::vec::Vec;
use core::cmp::Ordering;
use core::hash::Hasher as _;

use twox_hash::XxHash64;

use super::Fault;
use super::wire::Account;
use crate::check_path;

/// What an entry of a listing is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A regular file, under any of its names.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

/// One entry, its path and target in the listing's arena.
#[derive(Debug, Clone, Copy)]
pub(super) struct Listed {
    path: u32,
    path_len: u16,
    link_len: u16,
    pub(super) kind: Kind,
    pub(super) size: u64,
    pub(super) mtime: i64,
}

/// The regular files, directories and symbolic links of one layer. Devices, sockets and whiteouts are not in it.
///
/// Its memory is booked beforehand: a layer with more entries than the patch was made from ends in an error.
#[derive(Debug)]
pub struct Listing<'a> {
    account: &'a mut Account,
    names: Vec<u8>,
    entries: Vec<Listed>,
    /// The first thing that was wrong with what was added.
    fault: Option<Fault>,
}

/// The order of paths in this format: component by component, so that a directory is followed by what is in it.
pub(super) fn order(a: &[u8], b: &[u8]) -> Ordering {
    let rank = |&byte: &u8| if byte == b'/' { 0 } else { u16::from(byte) + 1 };
    a.iter().map(rank).cmp(b.iter().map(rank))
}

impl<'a> Listing<'a> {
    /// A listing with room for so many entries and bytes of paths and targets: not one more is taken, because the order in which they come
    /// would decide how much memory that needs.
    pub(super) fn new(account: &'a mut Account, entries: usize, names: usize) -> Result<Self, Fault> {
        let names = account.room(names)?;
        let entries = match account.room(entries) {
            Ok(entries) => entries,
            Err(fault) => {
                account.release(names);
                return Err(fault);
            }
        };
        Ok(Self {
            account,
            names,
            entries,
            fault: None,
        })
    }

    /// Adds one entry, in any order. `size` counts for files, `link` (the target) for symbolic links, `mtime` (in whole seconds) for
    /// both.
    ///
    /// False when nothing more is wanted, because there are more entries than the patch was made from or a path is not a normal one:
    /// the decoder then reports it.
    pub fn add(&mut self, path: &[u8], kind: Kind, size: u64, mtime: i64, link: &[u8]) -> bool {
        if self.fault.is_none() {
            self.fault = self.try_add(path, kind, size, mtime, link).err();
        }
        self.fault.is_none()
    }

    fn try_add(&mut self, path: &[u8], kind: Kind, size: u64, mtime: i64, link: &[u8]) -> Result<(), Fault> {
        check_path(path).map_err(Fault::Path)?;
        let at = u32::try_from(self.names.len()).map_err(|_| Fault::Listing)?;
        let link = if kind == Kind::Link { link } else { &[] };
        let entry = Listed {
            path: at,
            path_len: path.len() as u16,
            link_len: u16::try_from(link.len()).map_err(|_| Fault::Listing)?,
            kind,
            size: if kind == Kind::File { size } else { 0 },
            // A directory's changes with every entry made in it: few programs that unpack restore it.
            mtime: if kind == Kind::Directory { 0 } else { mtime },
        };
        let room = self.names.capacity() - self.names.len();
        if path.len() + link.len() > room || self.entries.len() == self.entries.capacity() {
            return Err(Fault::Listing);
        }
        self.names.extend_from_slice(path);
        self.names.extend_from_slice(link);
        self.entries.push(entry);
        Ok(())
    }

    /// Sorts the entries and returns the hash of all of them.
    pub(super) fn finish(&mut self) -> Result<u64, Fault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut entries = core::mem::take(&mut self.entries);
        entries.sort_unstable_by(|a, b| order(self.path_of(a), self.path_of(b)));
        self.entries = entries;
        let mut hasher = XxHash64::with_seed(0);
        for entry in &self.entries {
            for bytes in [self.path_of(entry), self.link_of(entry)] {
                hasher.write(&(bytes.len() as u64).to_le_bytes());
                hasher.write(bytes);
            }
            hasher.write(&[entry.kind as u8]);
            hasher.write(&entry.size.to_le_bytes());
            hasher.write(&entry.mtime.to_le_bytes());
        }
        Ok(hasher.finish())
    }

    pub(super) fn get(&self, number: usize) -> Option<&Listed> {
        self.entries.get(number)
    }

    /// The path of an entry of this listing.
    pub(super) fn path_of(&self, entry: &Listed) -> &[u8] {
        let from = entry.path as usize;
        self.names
            .get(from..from + usize::from(entry.path_len))
            .unwrap_or_default()
    }

    /// The target of an entry of this listing.
    pub(super) fn link_of(&self, entry: &Listed) -> &[u8] {
        let from = entry.path as usize + usize::from(entry.path_len);
        self.names
            .get(from..from + usize::from(entry.link_len))
            .unwrap_or_default()
    }

    /// The memory account, for what is made beside the listing.
    pub(super) fn account(&mut self) -> &mut Account {
        self.account
    }

    /// The number of the entry at `path`.
    #[cfg(feature = "publish")]
    pub(super) fn find(&self, path: &[u8]) -> Option<usize> {
        self.entries
            .binary_search_by(|entry| order(self.path_of(entry), path))
            .ok()
    }
}

impl Drop for Listing<'_> {
    fn drop(&mut self) {
        let (names, entries) = (
            core::mem::take(&mut self.names),
            core::mem::take(&mut self.entries),
        );
        self.account.release(names);
        self.account.release(entries);
    }
}
