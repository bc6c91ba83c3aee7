//! The store: the one directory that everything fetched is kept in, shared by all processes of one user.
//!
//! ```text
//! STATE/version            the format of everything below                              store/format.rs
//! STATE/lock               flock: held while a tag changes, or a collection decides    store/tags.rs
//! STATE/images/<hex>.json  one tag: a reference and the manifest it means              store/tags.rs
//! STATE/blobs/sha256/<hex> a whole, verified blob                                      store.rs
//! STATE/partial/<name>     a blob on its way in, and `<name>.json`                     store/partial.rs
//! STATE/layers/<hex>/      a whole, verified layer, unpacked                           store/layers.rs
//! STATE/layers/.work-<hex> a layer on its way in, flocked by whoever unpacks it        store/layers.rs
//! STATE/leases/<name>      what somebody works on, kept from collection                store/lease.rs, collect.rs
//! ```
//!
//! What always holds: a name without a leading dot in `images`, `blobs` and `layers` stands for something complete,
//! verified and durable, because it came there by a rename after a sync. Nothing there is changed later. A process may be killed
//! and the power may go at any instant; what was half-made is invisible then, and is finished or swept away by the next
//! one. Locks are `flock`s, which a dead process cannot hold. `STORE.md` beside this crate has every file's shape.

mod collect;
pub(crate) mod durable;
mod error;
mod format;
mod layers;
mod lease;
mod loading;
mod partial;
mod room;
mod tags;
mod usage;
mod verify;

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Serialize;

pub use collect::{Collected, InUse, Scope};
pub use error::Error;
pub use format::FORMAT;
pub use layers::{Input, LayerInfo};
pub(crate) use loading::Loading;
pub use partial::Partial;
pub use room::Budget;
pub use tags::{ImageRecord, Record};
pub use usage::{ImageUse, Usage};
pub use verify::{Finding, Item, Verified};

use crate::cage::Cage;
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::manifest::{Descriptor, Document, ImageConfig, MAX_DOCUMENT, Manifest};
use crate::reference::Reference;

/// What a file system's root directory holds of its own.
const LOST_AND_FOUND: &str = "lost+found";

/// The state directory, opened. Cheap to clone; every method may be called from any thread or process at once.
#[derive(Debug, Clone)]
pub struct Store {
    root: PathBuf,
    cage: Cage,
    budget: Budget,
    lease: Option<Arc<lease::Lease>>,
}

/// An image that is in the store: its manifest and config, read and matched with each other.
#[derive(Debug, Clone, PartialEq)]
pub struct Image {
    /// The name it was found by.
    pub reference: Option<Reference>,
    /// The manifest's digest: what a pod reports as its image.
    pub digest: Digest,
    /// The kind that the manifest is stored and sent under.
    pub media_type: String,
    /// The manifest.
    pub manifest: Manifest,
    /// The config.
    pub config: ImageConfig,
    /// The config's digest: what Docker calls the image ID.
    pub config_digest: Digest,
    /// The layers by content, lowest first, as many as the manifest has.
    pub diff_ids: Vec<DiffId>,
}

impl Store {
    /// Opens the state directory, making it when there is none. A directory of a newer format is refused untouched, one
    /// of an older format is migrated, one that is something else or somebody else's is refused.
    pub fn open(root: &Path) -> Result<Self, Error> {
        let root = std::path::absolute(root).map_err(|e| Error::io("resolve", root, e))?;
        format::prepare(&root)?;
        let store = Self {
            root,
            cage: Cage::own(),
            budget: Budget::default(),
            lease: None,
        };
        durable::make_dir(&store.root.join("blobs"))?;
        for dir in [
            store.image_dir(),
            store.blob_dir(),
            store.partial_dir(),
            store.layers_dir(),
        ] {
            durable::make_dir(&dir)?;
        }
        store.sweep()?;
        Ok(store)
    }

    /// The same store, with another program than this one as the cage.
    pub fn with_cage(self, cage: Cage) -> Self {
        Self { cage, ..self }
    }

    /// The state directory, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    fn image_dir(&self) -> PathBuf {
        self.root.join("images")
    }

    fn blob_dir(&self) -> PathBuf {
        self.root.join("blobs/sha256")
    }

    fn partial_dir(&self) -> PathBuf {
        self.root.join("partial")
    }

    fn layers_dir(&self) -> PathBuf {
        self.root.join("layers")
    }

    /// A blob's bytes and length, when it is here.
    pub fn blob(&self, digest: &Digest) -> Result<Option<File>, Error> {
        self.hold_blob(digest)?;
        let path = self.blob_dir().join(digest.hex());
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(Error::io("open", &path, e)),
        }
    }

    /// Whether a blob is here, whole.
    pub fn has_blob(&self, digest: &Digest) -> bool {
        // What cannot be leased may be gone before it is used.
        self.hold_blob(digest).is_ok() && self.blob_dir().join(digest.hex()).is_file()
    }

    /// A manifest's, index's or config's bytes, verified once more against the digest.
    pub fn document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        self.hold_blob(digest)?;
        let path = self.blob_dir().join(digest.hex());
        let Some(bytes) = durable::read_bounded(&path, MAX_DOCUMENT)? else {
            return Ok(None);
        };
        let got = Digest::of(&bytes);
        if got != *digest {
            return Err(Error::Digest {
                expected: *digest,
                got,
                bytes: bytes.len() as u64,
            });
        }
        Ok(Some(bytes))
    }

    /// Takes a small blob that is in memory: a manifest, an index, a config.
    pub fn put_document(&self, bytes: &[u8]) -> Result<Digest, Error> {
        let size = bytes.len() as u64;
        if size > MAX_DOCUMENT {
            return Err(crate::manifest::Error::TooLarge {
                what: "document",
                size,
            }
            .into());
        }
        let digest = Digest::of(bytes);
        // One that a bad card has changed is replaced.
        if matches!(self.document(&digest), Ok(Some(_))) {
            return Ok(digest);
        }
        let mut partial = self.partial(&digest, size)?;
        partial.truncate(0)?;
        partial.append(bytes)?;
        self.commit_blob(partial)
    }

    /// Takes a blob from a reader, streaming; `size` and `digest` are what it has to be.
    pub fn put_blob(&self, digest: &Digest, size: u64, reader: &mut dyn Read) -> Result<(), Error> {
        if self.has_blob(digest) {
            return Ok(());
        }
        let mut partial = self.partial(digest, size)?;
        partial.truncate(0)?;
        let mut buffer = vec![0; 128 << 10];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => partial.append(buffer.get(..n).unwrap_or_default())?,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let path = self.partial_dir().join(digest.hex());
                    return Err(Error::Io {
                        action: "receive",
                        path,
                        source,
                    });
                }
            }
        }
        self.commit_blob(partial).map(|_| ())
    }

    /// Drops a blob, as a board does with a layer's once it is unpacked. Not there is fine.
    pub fn remove_blob(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.blob_dir().join(digest.hex());
        match disk::remove_file(&path) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
            _ => durable::sync_dir(&self.blob_dir()),
        }
    }

    /// The image whose manifest has this digest. Its layers may or may not be here.
    pub fn image(&self, digest: &Digest) -> Result<Image, Error> {
        let bytes = self.document(digest)?.ok_or(Error::NoBlob {
            what: "manifest",
            digest: *digest,
        })?;
        let document = Document::parse(&bytes, None)?;
        let media_type = document.media_type().to_owned();
        let Document::Manifest(manifest) = document else {
            return Err(Error::Image {
                digest: *digest,
                reason: "it is an index, not one platform's image".into(),
            });
        };
        manifest.check_image()?;
        let config_digest = manifest.config.digest;
        let bytes = self.document(&config_digest)?.ok_or(Error::NoBlob {
            what: "config",
            digest: config_digest,
        })?;
        let config = ImageConfig::parse(&bytes)?;
        let diff_ids = config.rootfs.diff_ids.clone();
        if diff_ids.len() != manifest.layers.len() {
            let reason = format!(
                "the manifest has {} layers and the config {}",
                manifest.layers.len(),
                diff_ids.len()
            );
            return Err(Error::Image {
                digest: *digest,
                reason,
            });
        }
        Ok(Image {
            reference: None,
            digest: *digest,
            media_type,
            manifest,
            config,
            config_digest,
            diff_ids,
        })
    }

    /// The layers of an image that would have to be fetched, lowest first; their sizes are the bytes needed.
    pub fn missing_layers(&self, image: &Image) -> Vec<(Descriptor, DiffId)> {
        let pairs = image.manifest.layers.iter().zip(&image.diff_ids);
        pairs
            .filter(|(_, diff_id)| !self.has_layer(diff_id))
            .map(|(d, diff_id)| (d.clone(), *diff_id))
            .collect()
    }
}

pub(crate) fn to_json(value: &impl Serialize, path: &Path) -> Result<Vec<u8>, Error> {
    serde_json::to_vec(value).map_err(|e| Error::Broken {
        path: path.to_owned(),
        reason: e.to_string(),
    })
}

#[cfg(test)]
mod crash;
#[cfg(test)]
pub(crate) mod tests;
