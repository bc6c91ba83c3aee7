//! A layer's tar as the tree that it becomes when it is unpacked: what a decoder will find.

use std::collections::BTreeMap;
use std::io::{self, Read, Seek};
use std::ops::Range;

use super::super::listing::{Kind, Listing};
use crate::check_path;
use crate::tar::{Entries, Entry};

/// Names of entries that mark removed paths begin so.
const WHITEOUT: &[u8] = b".wh.";

/// One entry of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    /// Where a file's bytes lie in the tar.
    pub(super) place: Range<u64>,
    mtime: i64,
    link: Vec<u8>,
}

/// The tree of one layer.
#[derive(Debug, Default)]
pub(super) struct Layer {
    pub(super) nodes: BTreeMap<Vec<u8>, Node>,
    /// Whether nothing in it is such that programs unpack it differently: only then its list is relied upon.
    pub(super) plain: bool,
}

/// An entry's path without `/` and `./` in front and `/` at the end, the root's empty; `None` when it is not a path that a patch may name.
pub(super) fn normal(path: &[u8]) -> Option<Vec<u8>> {
    let parts: Vec<&[u8]> = path
        .split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    let path = parts.join(&b'/');
    (path.is_empty() || check_path(&path).is_ok()).then_some(path)
}

impl Layer {
    /// Reads a layer's tar.
    pub(super) fn read<R: Read + Seek>(tar: &mut R) -> io::Result<Self> {
        let mut layer = Self {
            plain: true,
            ..Self::default()
        };
        let mut entries = Entries::new(tar);
        while let Some(entry) = entries.next()? {
            match normal(&entry.path) {
                Some(path) if path.is_empty() => {}
                Some(path) => layer.add(path, &entry),
                None => layer.plain = false,
            }
        }
        Ok(layer)
    }

    fn add(&mut self, path: Vec<u8>, entry: &Entry) {
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or_default();
        if name.starts_with(WHITEOUT) {
            return;
        }
        self.make_parents(&path);
        let mut node = Node {
            kind: Kind::File,
            place: 0..0,
            mtime: entry.mtime,
            link: Vec::new(),
        };
        match entry.kind {
            b'0' if entry.sparse => self.plain = false,
            b'0' => node.place = entry.offset..entry.offset + entry.size,
            b'5' => node.kind = Kind::Directory,
            b'2' => {
                node.kind = Kind::Link;
                node.link = entry.link.clone();
            }
            b'1' => match normal(&entry.link).and_then(|target| self.nodes.get(&target)) {
                Some(target) if target.kind == Kind::File => node = target.clone(),
                _ => {
                    self.plain = false;
                    return;
                }
            },
            // Devices and pipes are not listed.
            _ => return,
        }
        let directory = node.kind == Kind::Directory;
        if let Some(before) = self.nodes.insert(path, node) {
            self.plain &= directory && before.kind == Kind::Directory;
        }
    }

    /// Directories that no entry describes are made when they are needed.
    fn make_parents(&mut self, path: &[u8]) {
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            let parent = self.nodes.entry(path[..at].to_vec()).or_insert_with(|| Node {
                kind: Kind::Directory,
                place: 0..0,
                mtime: 0,
                link: Vec::new(),
            });
            self.plain &= parent.kind == Kind::Directory;
        }
    }

    /// How many entries its list has, and bytes of paths and targets.
    pub(super) fn listing_size(&self) -> (usize, usize) {
        let names = self.nodes.iter().map(|(path, node)| path.len() + node.link.len());
        (self.nodes.len(), names.sum())
    }

    /// About how much memory its list takes.
    pub(super) fn listing_memory(&self) -> u64 {
        const ENTRY: usize = 32;
        let (entries, names) = self.listing_size();
        (entries * ENTRY + names) as u64
    }

    /// Adds everything to a listing.
    pub(super) fn list(&self, listing: &mut Listing<'_>) {
        for (path, node) in &self.nodes {
            let size = node.place.end - node.place.start;
            if !listing.add(path, node.kind, size, node.mtime, &node.link) {
                break;
            }
        }
    }
}
