//! What the store takes, by what it is for.

use std::collections::BTreeMap;

use super::durable::{self, Want};
use super::{Error, Image, Store};
use crate::digest::{DiffId, Digest};
use crate::reference::Reference;

/// An image's part in it; one for each name that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageUse {
    /// Its name, if it has one.
    pub reference: Option<Reference>,
    /// Its manifest.
    pub digest: Digest,
    /// Its config: the image ID.
    pub config_digest: Digest,
    /// When it was made, as RFC 3339, if it says.
    pub created: Option<String>,
    /// Its layers.
    pub diff_ids: Vec<DiffId>,
}

impl From<Image> for ImageUse {
    fn from(image: Image) -> Self {
        Self {
            reference: image.reference,
            digest: image.digest,
            config_digest: image.config_digest,
            created: image.config.created,
            diff_ids: image.diff_ids,
        }
    }
}

/// What the store takes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The images, those without a name too.
    pub images: Vec<ImageUse>,
    /// The bytes of each layer's files.
    pub layers: BTreeMap<DiffId, u64>,
    /// How many blobs there are.
    pub blobs: usize,
    /// Their bytes.
    pub blob_bytes: u64,
    /// How many blobs were begun and not finished.
    pub partials: usize,
    /// Their bytes.
    pub partial_bytes: u64,
    /// How many of them somebody works on.
    pub held_partials: usize,
    /// The bytes of these.
    pub held_partial_bytes: u64,
}

impl Store {
    /// Measures what the store takes.
    pub fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage::default();
        for record in self.images()? {
            // Removed since it was listed.
            if let Ok(image) = self.image(&record.digest) {
                let reference = Some(record.reference);
                usage.images.push(Image { reference, ..image }.into());
            }
        }
        usage
            .images
            .extend(self.dangling()?.into_iter().map(ImageUse::from));
        for diff_id in self.layers()? {
            if let Ok(Some(info)) = self.layer_info(&diff_id) {
                usage.layers.insert(diff_id, info.data_size);
            }
        }
        for (_, path) in durable::names(&self.blob_dir())? {
            if let Ok(meta) = path.symlink_metadata() {
                usage.blobs += 1;
                usage.blob_bytes = usage.blob_bytes.saturating_add(meta.len());
            }
        }
        for (name, path) in durable::names(&self.partial_dir())? {
            if name.starts_with('.') || name.ends_with(".json") {
                continue;
            }
            let Ok(meta) = path.symlink_metadata() else {
                continue;
            };
            usage.partials += 1;
            usage.partial_bytes = usage.partial_bytes.saturating_add(meta.len());
            let open = |path: &std::path::Path| std::fs::File::open(path);
            if durable::lock(&path, Want::Try, open)?.is_none() {
                usage.held_partials += 1;
                usage.held_partial_bytes = usage.held_partial_bytes.saturating_add(meta.len());
            }
        }
        Ok(usage)
    }
}
