//! The old image as an encoder sees it: its files by path, by name, by content, and by what they share.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::Class;
use crate::chunk::{Chunk, chunks};
use crate::similar::{self, Name};
use crate::tar::Entry;
use crate::tree::Tree;

/// How much of a file is cut into chunks at once.
const PART: u64 = 192 << 20;

/// Why a patch was not made.
#[derive(Debug)]
#[non_exhaustive]
pub enum EncodeError {
    /// An old layer is not a tar.
    Old(io::Error),
    /// The new layer cannot be read.
    New(io::Error),
    /// The patch cannot be written.
    Patch(io::Error),
}

impl EncodeError {
    /// What retry logic may do.
    pub fn class(&self) -> Class {
        match self {
            Self::Old(error) if error.kind() == io::ErrorKind::InvalidData => Class::Corrupt,
            _ => Class::Transient,
        }
    }
}

impl fmt::Display for EncodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Old(_) => "delta: cannot read the old layer",
            Self::New(_) => "delta: cannot read the new layer",
            Self::Patch(_) => "delta: cannot write the patch",
        })
    }
}

impl std::error::Error for EncodeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Old(error) | Self::New(error) | Self::Patch(error) => Some(error),
        }
    }
}

/// The old image.
pub(crate) struct Image<R> {
    pub(crate) layers: Vec<R>,
    pub(crate) tree: Tree,
    /// The longest file that is a source of its own.
    most: u64,
    /// All old files' chunks, made when they are first asked for: hash to file and place.
    chunks: Option<BTreeMap<u64, (usize, Chunk)>>,
    names: BTreeMap<Name, Vec<usize>>,
}

impl<R: Read + Seek> Image<R> {
    /// The image of these uncompressed layer tars, the lowest first. Files longer than `most` are no sources but by their chunks.
    pub(crate) fn new(mut layers: Vec<R>, most: u64) -> Result<Self, EncodeError> {
        let tree = Tree::of_layers(&mut layers).map_err(EncodeError::Old)?;
        let names = similar::index(&tree.files);
        Ok(Self {
            layers,
            tree,
            most,
            chunks: None,
            names,
        })
    }

    /// The old file with exactly these bytes.
    pub(crate) fn equal(&mut self, bytes: &[u8]) -> Result<Option<usize>, EncodeError> {
        let Some(old) = self.tree.by_content(bytes) else {
            return Ok(None);
        };
        let file = &self.tree.files[old];
        let equal = load(&mut self.layers[file.layer], file.place()).map_err(EncodeError::Old)? == bytes;
        Ok(equal.then_some(old))
    }

    /// The old file to align this one with.
    pub(crate) fn source(&mut self, entry: &Entry, bytes: &[u8]) -> Result<Option<usize>, EncodeError> {
        let most = self.most;
        let files = &self.tree.files;
        let fits = |&file: &usize| files[file].size <= most && similar::in_size(files[file].size, entry.size);
        let path = crate::tree::normal(&entry.path);
        let by_path = path
            .as_ref()
            .and_then(|path| self.tree.by_path(path))
            .filter(fits);
        let by_name = || {
            let path = path.as_ref()?;
            similar::keys(path).into_iter().find_map(|name| {
                let same = self.names.get(&name)?.iter().copied().filter(fits);
                same.min_by_key(|&file| (files[file].size.abs_diff(entry.size), file))
            })
        };
        if let Some(found) = by_path.or_else(by_name) {
            return Ok(Some(found));
        }
        // The file that shares the most bytes with it, if these are worth the work.
        let mut votes = BTreeMap::<usize, u64>::new();
        let index = self.chunks()?;
        for chunk in chunks(bytes) {
            if let Some((file, _)) = index.get(&chunk.hash) {
                *votes.entry(*file).or_default() += chunk.size as u64;
            }
        }
        let best = votes
            .into_iter()
            .max_by_key(|&(file, bytes)| (bytes, std::cmp::Reverse(file)));
        let files = &self.tree.files;
        Ok(best
            .filter(|&(file, bytes)| bytes * 10 >= entry.size && files[file].size <= most)
            .map(|(file, _)| file))
    }

    /// All old files' chunks.
    pub(crate) fn chunks(&mut self) -> Result<&BTreeMap<u64, (usize, Chunk)>, EncodeError> {
        if self.chunks.is_none() {
            let mut index = BTreeMap::new();
            for (number, file) in self.tree.files.iter().enumerate() {
                let mut at = file.offset;
                let end = file.offset + file.size;
                while at < end {
                    let part = at..end.min(at + PART);
                    let base = (at - file.offset) as usize;
                    at = part.end;
                    let bytes = load(&mut self.layers[file.layer], part).map_err(EncodeError::Old)?;
                    for chunk in chunks(&bytes) {
                        let chunk = Chunk {
                            offset: base + chunk.offset,
                            ..chunk
                        };
                        index.entry(chunk.hash).or_insert((number, chunk));
                    }
                }
            }
            self.chunks = Some(index);
        }
        Ok(self.chunks.get_or_insert_default())
    }
}

/// Reads a part of a tar.
pub(crate) fn load<T: Read + Seek>(tar: &mut T, place: Range<u64>) -> io::Result<Vec<u8>> {
    tar.seek(SeekFrom::Start(place.start))?;
    let mut bytes = vec![0; (place.end - place.start) as usize];
    tar.read_exact(&mut bytes)?;
    Ok(bytes)
}
