//! OCI image layouts: an image in a directory, as `skopeo copy ... oci:DIR:TAG` and `podman save` write it.
//!
//! The directory is as hostile as a registry: every document is bounded and matched with its digest, layers are matched by their
//! diffID when they are unpacked, and no path is made from anything but a parsed digest.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::Class;
use crate::digest::Digest;
use crate::manifest::{self, Descriptor, Document, Index, MAX_DOCUMENT};
use crate::platform::{self, Platform};
use crate::reference::Reference;
use crate::store::{self, Image, Input, Store};
use crate::unpack::{Encoding, Limits};

/// How a layout's place is written: `oci:DIR` or `oci:DIR:TAG`.
pub const SCHEME: &str = "oci:";
/// The annotation that carries a tag.
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The only version of the layout there is.
const LAYOUT_VERSION: &str = "1.0.0";

/// Why an image cannot be taken from a layout.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The directory is not a layout that can be read.
    #[error("{dir}: not an OCI image layout: {reason}")]
    NotLayout {
        /// The directory.
        dir: PathBuf,
        /// Why not.
        reason: String,
    },
    /// No such tag.
    #[error("{dir}: no image {wanted:?} in the layout, only: {present}")]
    NoImage {
        /// The directory.
        dir: PathBuf,
        /// The tag asked for.
        wanted: String,
        /// The tags there.
        present: String,
    },
    /// A blob that is listed and not there.
    #[error("{dir}: blob {digest} is listed but missing")]
    NoBlob {
        /// The directory.
        dir: PathBuf,
        /// The blob.
        digest: Digest,
    },
    /// A blob that is not what its name says.
    #[error("{path}: expected {expected}, got {got} after {bytes} bytes")]
    Digest {
        /// The file.
        path: PathBuf,
        /// The digest wanted.
        expected: Digest,
        /// The digest of what is there.
        got: Digest,
        /// How many bytes are there.
        bytes: u64,
    },
    /// A manifest, index or config that cannot be used.
    #[error(transparent)]
    Document(#[from] manifest::Error),
    /// Nothing for this board.
    #[error(transparent)]
    Platform(#[from] platform::Error),
    /// The store did not take it.
    #[error(transparent)]
    Store(#[from] store::Error),
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Self::Io { .. } => Class::Transient,
            Self::NotLayout { .. } | Self::NoImage { .. } | Self::NoBlob { .. } | Self::Platform(_) => {
                Class::Permanent
            }
            Self::Digest { .. } => Class::Corrupt,
            Self::Document(source) => source.class(),
            Self::Store(source) => source.class(),
        }
    }
}

/// Splits `oci:DIR:TAG` into directory and tag; `None` when the text names something else. The tag may be left out where the
/// layout holds one image.
pub fn parse_place(text: &str) -> Option<(PathBuf, Option<String>)> {
    let rest = text.strip_prefix(SCHEME).filter(|rest| !rest.is_empty())?;
    match rest.split_once(':') {
        Some((dir, tag)) if !dir.is_empty() => {
            Some((dir.into(), Some(tag.to_owned()).filter(|t| !t.is_empty())))
        }
        Some(_) => None,
        None => Some((rest.into(), None)),
    }
}

/// A layout, opened for reading.
#[derive(Debug)]
pub struct Layout {
    dir: PathBuf,
    index: Index,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Version {
    image_layout_version: String,
}

impl Layout {
    /// Opens a layout and reads its index.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let not_layout = |reason: String| Error::NotLayout {
            dir: dir.to_owned(),
            reason,
        };
        let path = dir.join("oci-layout");
        let bytes = read(&path)?.ok_or_else(|| not_layout("there is no file oci-layout".into()))?;
        let version: Version =
            serde_json::from_slice(&bytes).map_err(|e| not_layout(format!("oci-layout: {e}")))?;
        if version.image_layout_version != LAYOUT_VERSION {
            return Err(not_layout(format!(
                "version {:?} is not supported",
                version.image_layout_version
            )));
        }
        let bytes =
            read(&dir.join("index.json"))?.ok_or_else(|| not_layout("there is no file index.json".into()))?;
        match Document::parse(&bytes, Some(manifest::OCI_INDEX))? {
            Document::Index(index) => Ok(Self {
                dir: dir.to_owned(),
                index,
            }),
            Document::Manifest(_) => Err(not_layout("index.json is not an index".into())),
        }
    }

    /// What a tag names; without a tag, the only entry.
    pub fn find(&self, tag: Option<&str>) -> Result<&Descriptor, Error> {
        let name = |d: &Descriptor| d.annotations.get(REF_NAME).cloned();
        let mut matching = self
            .index
            .manifests
            .iter()
            .filter(|d| tag.is_none_or(|tag| name(d).as_deref() == Some(tag)));
        if let (Some(only), None) = (matching.next(), matching.next()) {
            return Ok(only);
        }
        let present: Vec<String> = self
            .index
            .manifests
            .iter()
            .take(20)
            .map(|d| name(d).unwrap_or_else(|| d.digest.to_string()))
            .collect();
        let present = if present.is_empty() {
            "nothing".into()
        } else {
            present.join(", ")
        };
        let wanted = tag.unwrap_or("(no tag given)").to_owned();
        Err(Error::NoImage {
            dir: self.dir.clone(),
            wanted,
            present,
        })
    }

    /// The image that a tag names: its manifest's descriptor, the platform's where the tag names an index.
    pub fn image(&self, tag: Option<&str>, platform: &Platform) -> Result<(Descriptor, Vec<u8>), Error> {
        let mut descriptor = self.find(tag)?.clone();
        // An index may list indexes; more than a few levels are nobody's intention.
        for _ in 0..3 {
            let bytes = self.document(&descriptor.digest)?;
            match Document::parse(&bytes, Some(&descriptor.media_type))? {
                Document::Manifest(_) => return Ok((descriptor, bytes)),
                Document::Index(index) => descriptor = platform.select(&index)?.clone(),
            }
        }
        Err(Error::NotLayout {
            dir: self.dir.clone(),
            reason: "indexes are nested too deep".into(),
        })
    }

    /// A blob's bytes, unverified.
    pub fn blob(&self, digest: &Digest) -> Result<File, Error> {
        let path = self.blob_path(digest);
        match File::open(&path) {
            Ok(file) => Ok(file),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Err(Error::NoBlob {
                dir: self.dir.clone(),
                digest: *digest,
            }),
            Err(source) => Err(Error::Io { path, source }),
        }
    }

    /// A manifest's, index's or config's bytes, verified.
    pub fn document(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        let path = self.blob_path(digest);
        let bytes = read(&path)?.ok_or_else(|| Error::NoBlob {
            dir: self.dir.clone(),
            digest: *digest,
        })?;
        let got = Digest::of(&bytes);
        if got != *digest {
            return Err(Error::Digest {
                path,
                expected: *digest,
                got,
                bytes: bytes.len() as u64,
            });
        }
        Ok(bytes)
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.dir.join("blobs/sha256").join(digest.hex())
    }
}

impl Store {
    /// Takes an image out of a layout: its documents, its layers unpacked and, with `keep_blobs`, its layers' blobs; then names it
    /// `reference`, when one is given.
    pub fn import_layout(
        &self,
        layout: &Layout,
        tag: Option<&str>,
        platform: &Platform,
        reference: Option<&Reference>,
        keep_blobs: bool,
    ) -> Result<Image, Error> {
        let (descriptor, bytes) = layout.image(tag, platform)?;
        let store = &self.leased()?;
        let Document::Manifest(manifest) = Document::parse(&bytes, Some(&descriptor.media_type))? else {
            return Err(manifest::Error::Refused {
                what: "manifest",
                reason: "it is an index".into(),
            }
            .into());
        };
        manifest.check_image()?;
        store.put_document(&layout.document(&manifest.config.digest)?)?;
        store.put_document(&bytes)?;
        let image = store.image(&descriptor.digest)?;
        platform.admit(&image.config, &Platform::host())?;
        store.check_room(&image, keep_blobs)?;
        for (layer, diff_id) in image.manifest.layers.iter().zip(&image.diff_ids) {
            if keep_blobs {
                store.put_blob(&layer.digest, layer.size, &mut layout.blob(&layer.digest)?)?;
            }
            let blob = layout.blob(&layer.digest)?;
            store.unpack_layer(diff_id, Input::Blob(&blob), &Encoding::Layer, &Limits::of(&blob))?;
        }
        if let Some(reference) = reference {
            store.tag(&image, reference)?;
        }
        Ok(Image {
            reference: reference.cloned(),
            ..image
        })
    }
}

/// A document read whole, unless it is longer than any may be; `None` where there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::Io {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_DOCUMENT + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_DOCUMENT {
        return Err(manifest::Error::TooLarge {
            what: "document",
            size: bytes.len() as u64,
        }
        .into());
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places() {
        let table = [
            ("oci:dir:tag", Some(("dir", Some("tag")))),
            ("oci:/a/b", Some(("/a/b", None))),
            ("oci:dir:a/b:c", Some(("dir", Some("a/b:c")))),
            ("oci:dir:", Some(("dir", None))),
            ("oci:", None),
            ("oci::tag", None),
            ("dir:tag", None),
        ];
        for (text, want) in table {
            let want = want.map(|(dir, tag)| (PathBuf::from(dir), tag.map(str::to_owned)));
            assert_eq!(parse_place(text), want, "{text}");
        }
    }
}
