//! The regular files that a running container of the old image would see, by path.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hasher};
use std::io::{self, Read, Seek, SeekFrom};
use std::ops::Range;

use crate::check_path;
use crate::tar::{Entries, Entry};

/// Layers mark removed paths with this prefix (OCI image layer specification, "Whiteouts").
const WHITEOUT: &str = ".wh.";
/// Everything that lower layers have beside this file is removed.
const OPAQUE: &str = ".wh..wh..opq";
/// Owner and others may read. Files that others may not read are no sources: another tool that applies the patch may not be root.
const READABLE: u32 = 0o404;

/// One old file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct File {
    /// Its path in the old image.
    pub(crate) path: String,
    /// Which layer it is in.
    pub(crate) layer: usize,
    /// Where its bytes begin in that layer's tar.
    pub(crate) offset: u64,
    /// How many they are.
    pub(crate) size: u64,
}

impl File {
    pub(crate) fn place(&self) -> Range<u64> {
        self.offset..self.offset + self.size
    }
}

/// The old image's files, sorted by path.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    pub(crate) files: Vec<File>,
    /// By hash and size of the content. A hit is compared before it is used.
    content: BTreeMap<(u64, u64), usize>,
}

impl Tree {
    /// The files of these layer tars, the lowest first.
    pub(crate) fn of_layers<R: Read + Seek>(layers: &mut [R]) -> io::Result<Self> {
        let mut overlay = Overlay::default();
        for (number, tar) in layers.iter_mut().enumerate() {
            overlay.add(number, tar)?;
        }
        let mut tree = Self {
            files: overlay.files(),
            content: BTreeMap::new(),
        };
        for (number, file) in tree.files.iter().enumerate() {
            let key = (hash_range(&mut layers[file.layer], file.place())?, file.size);
            tree.content.entry(key).or_insert(number);
        }
        Ok(tree)
    }

    /// The file at a normal path.
    pub(crate) fn by_path(&self, path: &str) -> Option<usize> {
        self.files
            .binary_search_by(|file| file.path.as_str().cmp(path))
            .ok()
    }

    /// A file whose content has the same hash and size.
    pub(crate) fn by_content(&self, bytes: &[u8]) -> Option<usize> {
        let mut hasher = DefaultHasher::new();
        hasher.write(bytes);
        self.content.get(&(hasher.finish(), bytes.len() as u64)).copied()
    }
}

/// `DefaultHasher::new` has fixed keys; its value is used in this process only.
fn hash_range<R: Read + Seek>(tar: &mut R, place: Range<u64>) -> io::Result<u64> {
    tar.seek(SeekFrom::Start(place.start))?;
    let mut hasher = DefaultHasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut left = place.end - place.start;
    while left > 0 {
        let part = &mut buffer[..left.min(1 << 16) as usize];
        tar.read_exact(part)?;
        hasher.write(part);
        left -= part.len() as u64;
    }
    Ok(hasher.finish())
}

/// An entry's path without `/` and `./` in front and `/` at the end; `None` when it is not a path that a patch may name, or not UTF-8
/// (which other implementations refuse).
pub(crate) fn normal(path: &[u8]) -> Option<String> {
    let parts: Vec<&[u8]> = path
        .split(|&byte| byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    let path = String::from_utf8(parts.join(&b'/')).ok()?;
    check_path(path.as_bytes()).is_ok().then_some(path)
}

/// Layers laid over each other.
#[derive(Default)]
struct Overlay {
    files: BTreeMap<String, File>,
    /// A symbolic link on the way makes a path mean different files to different tools: such files are no sources.
    links: BTreeSet<String>,
}

impl Overlay {
    fn add<R: Read + Seek>(&mut self, layer: usize, tar: &mut R) -> io::Result<()> {
        let mut upper = Self::default();
        let mut entries = Entries::new(tar);
        while let Some(entry) = entries.next()? {
            let Some(path) = normal(&entry.path) else { continue };
            let (parent, name) = path
                .rsplit_once('/')
                .map_or(("", path.as_str()), |(parent, name)| (parent, name));
            if name == OPAQUE {
                self.remove_beneath(parent);
            } else if let Some(name) = name.strip_prefix(WHITEOUT) {
                let path = if parent.is_empty() {
                    name.to_owned()
                } else {
                    format!("{parent}/{name}")
                };
                self.remove(&path);
            } else {
                if entry.kind != b'5' {
                    self.remove(&path);
                }
                upper.entry(layer, path, &entry);
            }
        }
        self.files.append(&mut upper.files);
        self.links.append(&mut upper.links);
        Ok(())
    }

    /// Adds one entry of the layer itself: a later entry replaces an earlier one.
    fn entry(&mut self, layer: usize, path: String, entry: &Entry) {
        self.files.remove(&path);
        self.links.remove(&path);
        match entry.kind {
            b'0' if !entry.sparse && entry.size > 0 && entry.mode & READABLE == READABLE => {
                let file = File {
                    path: path.clone(),
                    layer,
                    offset: entry.offset,
                    size: entry.size,
                };
                self.files.insert(path, file);
            }
            b'1' => {
                let target = normal(&entry.link).and_then(|target| self.files.get(&target).cloned());
                if let Some(target) = target {
                    self.files.insert(path.clone(), File { path, ..target });
                }
            }
            b'2' => {
                self.links.insert(path);
            }
            _ => {}
        }
    }

    fn remove(&mut self, path: &str) {
        self.files.remove(path);
        self.links.remove(path);
        self.remove_beneath(path);
    }

    fn remove_beneath(&mut self, directory: &str) {
        let beneath = |path: &str| {
            directory.is_empty()
                || path
                    .strip_prefix(directory)
                    .is_some_and(|rest| rest.starts_with('/'))
        };
        // A linear walk for each removed path would be quadratic: only the range of the prefix is looked at.
        let prefix = if directory.is_empty() {
            String::new()
        } else {
            format!("{directory}/")
        };
        let gone: Vec<String> = self
            .files
            .range(prefix.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| beneath(path))
            .cloned()
            .collect();
        for path in &gone {
            self.files.remove(path);
        }
        let gone: Vec<String> = self
            .links
            .range(prefix..)
            .take_while(|path| beneath(path))
            .cloned()
            .collect();
        for path in &gone {
            self.links.remove(path);
        }
    }

    fn files(self) -> Vec<File> {
        let links = self.links;
        let through_link = |path: &str| path.match_indices('/').any(|(at, _)| links.contains(&path[..at]));
        self.files
            .into_values()
            .filter(|file| !through_link(&file.path))
            .collect()
    }
}
