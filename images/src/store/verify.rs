//! Verification: everything that is here read back and hashed, and what is not what its name says told.

use std::fs::File;
use std::io::{self, Read, Write};

use super::durable::{self, Want};
use super::tags::read_record;
use super::{Error, Store};
use crate::digest::{DiffId, Digest, Hasher};
use crate::disk;
use crate::manifest::{Descriptor, Document, ImageConfig};
use crate::reference::Reference;

/// How much is read at once.
const CHUNK: usize = 128 << 10;

/// A thing that is verified.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Item {
    /// A blob: a document, or a layer's that was kept.
    Blob(Digest),
    /// An unpacked layer.
    Layer(DiffId),
    /// A tag's file, by its name.
    Tag(String),
}

/// What is wrong with it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is what its name says.
    Whole,
    /// It is not, and how.
    Damaged(String),
    /// It is there and nobody can say: a layer that was made before layers had recipes.
    Unknown,
    /// A tag or an image of one needs it and it is not here.
    Missing(String),
}

/// Everything there is to verify: blobs, layers and tags that are here, and what tags need that is not.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Verified {
    /// How many things were whole.
    pub whole: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Layers without a recipe.
    pub unknown: Vec<DiffId>,
    /// What is not as it should be, with the reason.
    pub bad: Vec<(Item, String)>,
}

impl Verified {
    /// Whether nothing is wrong.
    pub fn is_clean(&self) -> bool {
        self.bad.is_empty()
    }
}

impl Store {
    /// Reads everything back. `progress` is told of each thing and what was found.
    pub fn verify(&self, progress: &mut dyn FnMut(&Item, &Finding)) -> Result<Verified, Error> {
        let mut verified = Verified::default();
        let mut tell = |item: Item, finding: Finding| {
            progress(&item, &finding);
            match (finding, &item) {
                (Finding::Whole, _) => verified.whole += 1,
                (Finding::Unknown, Item::Layer(diff_id)) => verified.unknown.push(*diff_id),
                (Finding::Unknown, _) => {}
                (Finding::Damaged(why) | Finding::Missing(why), _) => verified.bad.push((item, why)),
            }
        };
        let mut bytes = 0;
        for (name, path) in durable::names(&self.blob_dir())? {
            let Some(digest) = Digest::from_hex(&name) else {
                continue;
            };
            if let Some(finding) = check_blob(&path, &digest, &mut bytes)? {
                tell(Item::Blob(digest), finding);
            }
        }
        for diff_id in self.layers()? {
            if let Some(finding) = self.check_layer(&diff_id, &mut bytes)? {
                tell(Item::Layer(diff_id), finding);
            }
        }
        for (name, path) in durable::names(&self.image_dir())? {
            if name.starts_with('.') {
                continue;
            }
            match read_record(path) {
                Ok(Some(record)) => {
                    tell(Item::Tag(record.reference.familiar()), Finding::Whole);
                    let lacking = self.lacking(&record.reference, &record.target)?;
                    // The name may have been given up while this looked.
                    if lacking.is_empty() || self.tagged(&record.reference).ok() != Some(Some(record)) {
                        continue;
                    }
                    for (item, why) in lacking {
                        tell(item, Finding::Missing(why));
                    }
                }
                Ok(None) => {}
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => tell(Item::Tag(name), Finding::Damaged(e.to_string())),
            }
        }
        verified.bytes = bytes;
        Ok(verified)
    }

    /// Reads one layer back in the cage; `None` when it is gone.
    fn check_layer(&self, diff_id: &DiffId, bytes: &mut u64) -> Result<Option<Finding>, Error> {
        let path = self.layers_dir().join(diff_id.hex());
        let dir = match File::open(&path) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        let gone = || !path.exists();
        let info = match self.layer_info(diff_id) {
            Ok(Some(info)) => info,
            Ok(None) | Err(_) if gone() => return Ok(None),
            Ok(None) => return Ok(Some(Finding::Damaged("it has no description".into()))),
            Err(e @ Error::Io { .. }) => return Err(e),
            Err(e) => return Ok(Some(Finding::Damaged(e.to_string()))),
        };
        let checked = match self.cage.check(&dir) {
            Ok(checked) => checked,
            // Collected while it was read.
            Err(_) if gone() => return Ok(None),
            Err(source) => {
                return Err(Error::Layer {
                    diff_id: *diff_id,
                    source,
                });
            }
        };
        if gone() {
            return Ok(None);
        }
        *bytes = bytes.saturating_add(checked.tar_size);
        Ok(Some(match checked.diff_id {
            None => Finding::Unknown,
            Some(_) if !checked.faults.is_empty() => Finding::Damaged(checked.faults.join("; ")),
            Some(got) if got != *diff_id => Finding::Damaged(format!("its tar is {got} now")),
            Some(_) if checked.nodes > info.entries => {
                let more = checked.nodes - info.entries;
                Finding::Damaged(format!("its tree has {more} entries more than its tar"))
            }
            Some(_) => Finding::Whole,
        }))
    }

    /// What a tag needs and the store lacks. An index needs none of its manifests: a board has one of them.
    fn lacking(&self, reference: &Reference, target: &Descriptor) -> Result<Vec<(Item, String)>, Error> {
        let of = |what: &str| format!("the {what} of {} is not here", reference.familiar());
        let Some(Document::Manifest(manifest)) = self.readable(&target.digest)? else {
            let here = self.has_blob(&target.digest);
            let lacking = (!here).then(|| (Item::Blob(target.digest), of("manifest")));
            return Ok(lacking.into_iter().collect());
        };
        if !manifest.is_image() {
            return Ok(Vec::new());
        }
        let config = match self.document(&manifest.config.digest) {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return Ok(vec![(Item::Blob(manifest.config.digest), of("config"))]),
            Err(e @ Error::Io { .. }) => return Err(e),
            // Told where the blobs are read.
            Err(_) => return Ok(Vec::new()),
        };
        let Ok(config) = ImageConfig::parse(&config) else {
            return Ok(Vec::new());
        };
        // A registry's image may be here as blobs alone.
        let is_here = |(descriptor, diff_id): &(&Descriptor, &DiffId)| {
            self.has_layer(diff_id) || self.has_blob(&descriptor.digest)
        };
        let pairs = manifest.layers.iter().zip(&config.rootfs.diff_ids);
        let missing = pairs.filter(|pair| !is_here(pair));
        Ok(missing
            .map(|(_, diff_id)| (Item::Layer(*diff_id), of("layer")))
            .collect())
    }

    fn readable(&self, digest: &Digest) -> Result<Option<Document>, Error> {
        match self.document(digest) {
            Ok(Some(bytes)) => Ok(Document::parse(&bytes, None).ok()),
            Ok(None) => Ok(None),
            Err(e @ Error::Io { .. }) => Err(e),
            Err(_) => Ok(None),
        }
    }

    /// Takes a damaged thing out of the way, so that it is fetched again. Whoever uses a layer must have let it go: its files vanish.
    pub fn discard(&self, item: &Item) -> Result<(), Error> {
        match item {
            Item::Blob(digest) => self.remove_blob(digest),
            Item::Layer(diff_id) => {
                {
                    let _lock = self.lock(Want::Wait)?;
                    self.hide_layer(diff_id)?;
                    durable::sync_dir(&self.layers_dir())?;
                }
                self.sweep()
            }
            Item::Tag(name) => {
                let path = self.image_dir().join(name);
                let _lock = self.lock(Want::Wait)?;
                match disk::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
                    _ => durable::sync_dir(&self.image_dir()),
                }
            }
        }
    }

    /// Writes the tar of a layer, made again from its tree and its recipe, to `out`. What was written is not the layer's tar when
    /// this fails. `None`, and nothing written, where the layer is not here or has no recipe.
    pub fn layer_tar(&self, diff_id: &DiffId, out: &mut dyn Write) -> Result<Option<u64>, Error> {
        self.hold_layer(diff_id)?;
        let path = self.layers_dir().join(diff_id.hex());
        let dir = match File::open(&path) {
            Ok(dir) => dir,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        let made = self.cage.regenerate(&dir, out).map_err(|source| Error::Layer {
            diff_id: *diff_id,
            source,
        })?;
        match made {
            None => Ok(None),
            Some((got, size)) if got == *diff_id => Ok(Some(size)),
            Some((got, bytes)) => Err(Error::DiffId {
                expected: *diff_id,
                got,
                bytes,
            }),
        }
    }
}

/// Hashes a blob; `None` when it is gone.
fn check_blob(path: &std::path::Path, digest: &Digest, bytes: &mut u64) -> Result<Option<Finding>, Error> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io("open", path, e)),
    };
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; CHUNK];
    let mut read = 0_u64;
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => {
                hasher.update(buffer.get(..n).unwrap_or_default());
                read += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            // What a card cannot read any more.
            Err(e) => return Ok(Some(Finding::Damaged(format!("after {read} bytes: {e}")))),
        }
    }
    *bytes = bytes.saturating_add(read);
    let got = hasher.digest();
    Ok(Some(if got == *digest {
        Finding::Whole
    } else {
        Finding::Damaged(format!("its {read} bytes are {got} now"))
    }))
}

#[cfg(test)]
mod tests;
