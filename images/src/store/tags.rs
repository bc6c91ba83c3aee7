//! Tags: `images/<sha256 of the reference>.json`, one small file each.
//!
//! The file's name is derived from the reference because references may be longer than a file name; the reference itself
//! stands inside and counts.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::durable::{self, Lock, Want};
use super::{Error, Image, Store, to_json};
use crate::Class;
use crate::digest::Digest;
use crate::disk;
use crate::manifest::{Descriptor, Document, MAX_DOCUMENT};
use crate::platform::Platform;
use crate::reference::Reference;

/// A record is a reference and a descriptor, both bounded.
const MAX_RECORD_LEN: u64 = 64 << 10;
/// An ID prefix shorter than this is taken for a name only.
const MIN_PREFIX: usize = 2;

/// What a tag means: any document, an artifact's or an index's too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    version: u32,
    /// The name.
    pub reference: Reference,
    /// The manifest or index that it names.
    pub target: Descriptor,
}

/// A tag that names an image, as `images` lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRecord {
    /// The name.
    pub reference: Reference,
    /// The manifest's digest.
    pub digest: Digest,
    /// The config's digest: Docker's image ID.
    pub config_digest: Digest,
    /// When the image was made, as RFC 3339, if it says.
    pub created: Option<String>,
    /// Bytes of its files, over all layers that are unpacked here.
    pub size: u64,
}

impl Store {
    pub(super) fn record_name(reference: &Reference) -> String {
        format!("{}.json", Digest::of(reference.to_string().as_bytes()).hex())
    }

    /// The store's lock: alone while a tag changes and while a collection decides, shared while a lease grows.
    pub(super) fn lock(&self, want: Want) -> Result<Lock, Error> {
        let path = self.root().join("lock");
        durable::lock(&path, want, disk::open_or_make)?
            .ok_or_else(|| Error::io("lock", &path, std::io::ErrorKind::WouldBlock.into()))
    }

    /// Makes `reference` name an image.
    pub fn tag(&self, image: &Image, reference: &Reference) -> Result<(), Error> {
        let bytes = self.document(&image.digest)?.ok_or(Error::NoBlob {
            what: "manifest",
            digest: image.digest,
        })?;
        self.set_tag(
            reference,
            &Descriptor::new(&image.media_type, image.digest, bytes.len() as u64),
        )
    }

    /// Makes `reference` name any document that is in the store.
    pub fn set_tag(&self, reference: &Reference, target: &Descriptor) -> Result<(), Error> {
        let record = Record {
            version: 1,
            reference: reference.clone(),
            target: target.clone(),
        };
        let (dir, name) = (self.image_dir(), Self::record_name(reference));
        let _lock = self.lock(Want::Wait)?;
        // Under the lock: a collection in between would have taken it away.
        if !self.has_blob(&target.digest) {
            return Err(Error::NoBlob {
                what: "manifest",
                digest: target.digest,
            });
        }
        durable::replace(&dir, &name, &to_json(&record, &dir.join(&name))?)
    }

    /// Forgets a name. What it named stays.
    pub fn remove_tag(&self, reference: &Reference) -> Result<(), Error> {
        let path = self.image_dir().join(Self::record_name(reference));
        let _lock = self.lock(Want::Wait)?;
        match disk::remove_file(&path) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::NoImage(reference.familiar())),
            Err(e) => Err(Error::io("remove", &path, e)),
            Ok(()) => durable::sync_dir(&self.image_dir()),
        }
    }

    /// What a name means here.
    pub fn tagged(&self, reference: &Reference) -> Result<Option<Record>, Error> {
        read_record(self.image_dir().join(Self::record_name(reference)))
    }

    /// Every name, in order, but those whose files are damaged.
    pub fn tags(&self) -> Result<Vec<Record>, Error> {
        let mut records = Vec::new();
        for (name, path) in durable::names(&self.image_dir())? {
            if name.starts_with('.') {
                continue;
            }
            // Removed since it was listed: gone is gone. One that is damaged must not hide the others.
            records.extend(unless_damaged(&name, read_record(path))?.flatten());
        }
        records.sort_by(|a, b| a.reference.cmp(&b.reference));
        Ok(records)
    }

    /// Every name that means an image which can run here, in order.
    pub fn images(&self) -> Result<Vec<ImageRecord>, Error> {
        let mut images = Vec::new();
        for record in self.tags()? {
            let name = record.reference.familiar();
            let Some(image) = unless_damaged(&name, self.image_of(&record))?.flatten() else {
                continue;
            };
            let mut size = 0_u64;
            for diff_id in &image.diff_ids {
                let info = unless_damaged(&name, self.layer_info(diff_id))?.flatten();
                size = size.saturating_add(info.map_or(0, |info| info.data_size));
            }
            images.push(ImageRecord {
                reference: record.reference,
                digest: image.digest,
                config_digest: image.config_digest,
                created: image.config.created,
                size,
            });
        }
        Ok(images)
    }

    /// The image that a record means: itself, or this board's of an index; `None` for an artifact and for an image that is
    /// not here.
    pub(super) fn image_of(&self, record: &Record) -> Result<Option<Image>, Error> {
        let Some(bytes) = self.document(&record.target.digest)? else {
            return Ok(None);
        };
        let digest = match Document::parse(&bytes, Some(&record.target.media_type))? {
            Document::Manifest(manifest) if manifest.is_image() => record.target.digest,
            Document::Manifest(_) => return Ok(None),
            Document::Index(index) => match Platform::host().select(&index) {
                Ok(descriptor) if self.has_blob(&descriptor.digest) => descriptor.digest,
                _ => return Ok(None),
            },
        };
        match self.image(&digest) {
            Ok(image) => Ok(Some(Image {
                reference: Some(record.reference.clone()),
                ..image
            })),
            Err(Error::NoBlob { .. }) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The image that a person means: by name, by manifest digest, by image ID or the beginning of either. A short name
    /// that is not here as docker.io's may be that of an image made here: `iris:v1` is `localhost/iris:v1` then.
    pub fn resolve(&self, text: &str) -> Result<Image, Error> {
        let no_image = || Error::NoImage(text.chars().take(100).collect());
        if let Ok(reference) = Reference::parse(text) {
            let made_here = (reference.registry() == "docker.io" && !text.starts_with("docker.io/"))
                .then(|| Reference::parse(&format!("localhost/{text}")).ok())
                .flatten();
            for name in [Some(&reference), made_here.as_ref()].into_iter().flatten() {
                if let Some(record) = self.tagged(name)? {
                    return self.image_of(&record)?.ok_or_else(no_image);
                }
            }
            if let Some(digest) = reference.digest().filter(|digest| self.has_blob(digest)) {
                let target = Descriptor::new("", *digest, 0);
                let record = Record {
                    version: 1,
                    reference: reference.clone(),
                    target,
                };
                return self.image_of(&record)?.ok_or_else(no_image);
            }
        }
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        if hex.len() < MIN_PREFIX
            || hex.len() > 64
            || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        {
            return Err(no_image());
        }
        // A whole manifest digest needs no tag: containers refer to what they run after its tag has moved on.
        if let Some(digest) = Digest::from_hex(hex)
            && self.has_blob(&digest)
            && let Some(image) = self.manifest_image(&digest)?
        {
            return Ok(image);
        }
        let mut found: Vec<Image> = Vec::new();
        for record in self.tags()? {
            let name = record.reference.familiar();
            let Some(image) = unless_damaged(&name, self.image_of(&record))?.flatten() else {
                continue;
            };
            let matches = [&image.digest, &image.config_digest]
                .iter()
                .any(|d| d.hex().starts_with(hex));
            if matches
                && found
                    .iter()
                    .all(|other| other.config_digest != image.config_digest)
            {
                found.push(image);
            }
        }
        match found.len() {
            0 => Err(no_image()),
            1 => found.pop().ok_or_else(no_image),
            _ => {
                let found: Vec<String> = found.iter().map(|image| image.config_digest.short()).collect();
                Err(Error::Ambiguous {
                    prefix: text.to_owned(),
                    found: found.join(", "),
                })
            }
        }
    }

    fn manifest_image(&self, digest: &Digest) -> Result<Option<Image>, Error> {
        let Some(bytes) = self.document(digest)? else {
            return Ok(None);
        };
        match Document::parse(&bytes, None) {
            Ok(Document::Manifest(manifest)) if manifest.is_image() => self.image(digest).map(Some),
            // A config's digest, say: the search goes on among the tags.
            _ => Ok(None),
        }
    }
}

/// Where many are looked at: what is damaged counts as not there, and is told.
fn unless_damaged<T>(name: &str, found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Err(error) if error.class() != Class::Transient => {
            tracing::warn!(name, %error, "passed over");
            Ok(None)
        }
        other => other.map(Some),
    }
}

pub(super) fn read_record(path: PathBuf) -> Result<Option<Record>, Error> {
    let limit = MAX_RECORD_LEN.min(MAX_DOCUMENT);
    let Some(bytes) = durable::read_bounded(&path, limit)? else {
        return Ok(None);
    };
    let record: Record = serde_json::from_slice(&bytes).map_err(|e| Error::Broken {
        path: path.clone(),
        reason: e.to_string(),
    })?;
    if record.version != 1 {
        let reason = format!("record version {} is not known here", record.version);
        return Err(Error::Broken { path, reason });
    }
    Ok(Some(record))
}
