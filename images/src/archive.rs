//! Images in one file: what `save` writes and `load` reads.
//!
//! An archive is a tar that is at once an OCI image layout (`oci-layout`, `index.json`) and what docker calls a docker-archive
//! (`manifest.json`), over the same `blobs/sha256/`. A digest is never changed on the way: manifests and configs are in it byte by
//! byte, and so are layers' blobs where the store has them. A board has dropped a compressed layer once it was unpacked;
//! then its uncompressed tar is in the archive instead, made again from the tree. Such an archive is no OCI layout, so it has the file
//! `index.wherry.json` in the place of `index.json`: docker and podman read it by its `manifest.json`, and [`load`] gives the
//! image its own manifest back, whose layers are proved by their diffIDs.

mod load;
mod write;

use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use self::write::Tar;
use crate::Class;
use crate::digest::{DiffId, Digest};
use crate::manifest::{self, Descriptor};
use crate::platform;
use crate::reference::Reference;
use crate::store::{self, Image, Store};

pub use self::load::{LoadOptions, Loaded, load};

/// Docker's list of images.
const DOCKER_LIST: &str = "manifest.json";
/// The layout's list of images.
const LAYOUT_LIST: &str = "index.json";
/// The same, of an archive that lacks blobs which its manifests name.
const OWN_LIST: &str = "index.wherry.json";
/// Where the layout's annotations keep the whole name, for docker and containerd.
const FULL_NAME: &str = "io.containerd.image.name";

/// Why an archive was not written or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The archive could not be written.
    #[error("write the archive: {0}")]
    Write(io::Error),
    /// A layer that is neither here as a blob nor as a tree that its tar can be made from.
    #[error("{image}: layer {digest} is not in the store as it was fetched, and cannot be made again")]
    NoLayer {
        /// Which image.
        image: String,
        /// The blob.
        digest: Digest,
    },
    /// A file of the archive could not be read.
    #[error("{path:?} in the archive: {source}")]
    Read {
        /// Its name there.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The archive is none, or a damaged one.
    #[error("the archive: {0}")]
    Archive(String),
    /// A manifest, index or config that cannot be used.
    #[error(transparent)]
    Document(#[from] manifest::Error),
    /// Nothing for this board.
    #[error(transparent)]
    Platform(#[from] platform::Error),
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Self::Store(e) => e.class(),
            Self::Write(_) | Self::Read { .. } => Class::Transient,
            Self::NoLayer { .. } | Self::Platform(_) => Class::Permanent,
            Self::Archive(_) => Class::Corrupt,
            Self::Document(e) => e.class(),
        }
    }
}

/// An entry of docker's list.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Option<Vec<String>>,
}

/// What was written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Saved {
    /// Bytes of the archive.
    pub bytes: u64,
    /// Layers that are in it uncompressed, because the store has no longer what was fetched.
    pub remade: usize,
}

/// Where a file of the archive comes from.
enum From {
    Bytes(Vec<u8>),
    Blob(Digest),
    Tree(DiffId),
}

/// A file of the archive.
struct Part {
    name: String,
    size: u64,
    from: From,
}

/// Writes images, each with the names it is to have, as one archive.
pub fn save(store: &Store, images: &[(Image, Vec<Reference>)], out: &mut dyn Write) -> Result<Saved, Error> {
    let store = &store.leased()?;
    let mut parts: Vec<Part> = Vec::new();
    let mut saved = Saved::default();
    let mut add = |part: Part| {
        if !parts.iter().any(|other| other.name == part.name) {
            parts.push(part);
        }
    };
    let (mut docker, mut listed) = (Vec::new(), Vec::new());
    for (image, names) in images {
        let mut layers = Vec::new();
        for (descriptor, diff_id) in image.manifest.layers.iter().zip(&image.diff_ids) {
            let part = layer(store, image, descriptor, diff_id)?;
            if matches!(part.from, From::Tree(_)) && part.name != blob_name(&descriptor.digest) {
                saved.remade += 1;
            }
            layers.push(part.name.clone());
            add(part);
        }
        let manifest = document(store, &image.digest)?;
        let descriptor = Descriptor::new(&image.media_type, image.digest, manifest.len() as u64);
        for part in [document(store, &image.config_digest)?, manifest] {
            add(Part {
                name: blob_name(&Digest::of(&part)),
                size: part.len() as u64,
                from: From::Bytes(part),
            });
        }
        docker.push(DockerImage {
            config: blob_name(&image.config_digest),
            repo_tags: Some(names.iter().map(Reference::familiar).collect()),
            layers: Some(layers),
        });
        listed.extend(named(&descriptor, names));
    }
    let list = if saved.remade == 0 { LAYOUT_LIST } else { OWN_LIST };
    let index = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": listed,
    });
    let docker = serde_json::to_vec(&docker).map_err(|e| Error::Write(e.into()))?;
    for (name, bytes) in [
        (list, index.to_string().into_bytes()),
        (DOCKER_LIST, docker),
        ("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
    ] {
        add(Part {
            name: name.into(),
            size: bytes.len() as u64,
            from: From::Bytes(bytes),
        });
    }
    // The lists first: whoever reads the archive as it comes knows then what will.
    parts.reverse();
    let mut tar = Tar::new(out);
    for part in &parts {
        tar.begin(&part.name, part.size).map_err(Error::Write)?;
        write_part(store, part, &mut tar)?;
        tar.end().map_err(Error::Write)?;
    }
    saved.bytes = tar.finish().map_err(Error::Write)?;
    Ok(saved)
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn document(store: &Store, digest: &Digest) -> Result<Vec<u8>, store::Error> {
    store.document(digest)?.ok_or(store::Error::NoBlob {
        what: "document",
        digest: *digest,
    })
}

/// A layer as its manifest names it where that can be had, else as its tar.
fn layer(store: &Store, image: &Image, descriptor: &Descriptor, diff_id: &DiffId) -> Result<Part, Error> {
    if store.has_blob(&descriptor.digest) {
        return Ok(Part {
            name: blob_name(&descriptor.digest),
            size: descriptor.size,
            from: From::Blob(descriptor.digest),
        });
    }
    match store.layer_info(diff_id)? {
        Some(info) if store.has_recipe(diff_id) => Ok(Part {
            name: format!("blobs/sha256/{}", diff_id.hex()),
            size: info.tar_size,
            from: From::Tree(*diff_id),
        }),
        _ => Err(Error::NoLayer {
            image: image
                .reference
                .as_ref()
                .map_or(image.config_digest.short(), Reference::familiar),
            digest: descriptor.digest,
        }),
    }
}

/// The manifest under each of its names; once without one where it has none.
fn named(descriptor: &Descriptor, names: &[Reference]) -> Vec<Descriptor> {
    if names.is_empty() {
        return vec![descriptor.clone()];
    }
    let named = |name: &Reference| {
        let mut descriptor = descriptor.clone();
        let mut note = |key: &str, value: String| descriptor.annotations.insert(key.into(), value);
        note(FULL_NAME, name.to_string());
        if let Some(tag) = name.tag() {
            note(crate::layout::REF_NAME, tag.to_owned());
        }
        descriptor
    };
    names.iter().map(named).collect()
}

fn write_part(store: &Store, part: &Part, tar: &mut Tar<'_>) -> Result<(), Error> {
    match &part.from {
        From::Bytes(bytes) => tar.write_all(bytes).map_err(Error::Write),
        From::Blob(digest) => {
            let mut blob = store.blob(digest)?.ok_or(store::Error::NoBlob {
                what: "layer",
                digest: *digest,
            })?;
            let mut hasher = crate::Hasher::new();
            io::copy(
                &mut blob,
                &mut Tee {
                    hasher: &mut hasher,
                    tar,
                },
            )
            .map_err(Error::Write)?;
            let got = hasher.digest();
            if got != *digest {
                let bytes = part.size;
                let expected = *digest;
                return Err(store::Error::Digest { expected, got, bytes }.into());
            }
            Ok(())
        }
        From::Tree(diff_id) => match store.layer_tar(diff_id, tar)? {
            Some(_) => Ok(()),
            None => Err(Error::Archive(format!("layer {diff_id} went away"))),
        },
    }
}

/// Writes to the archive and hashes: what a bad card made of a blob must not travel under its name.
struct Tee<'a, 'b> {
    hasher: &'a mut crate::Hasher,
    tar: &'a mut Tar<'b>,
}

impl Write for Tee<'_, '_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.tar.write_all(bytes)?;
        self.hasher.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.tar.flush()
    }
}

#[cfg(test)]
mod tests;
