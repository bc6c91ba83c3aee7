//! Making a delta between two images of the store and publishing it beside the new one.
//!
//! The layers' blobs have to be in the store (a publisher keeps them). They are uncompressed into unlinked files beside it, so the
//! encoder's memory does not depend on the layers' number. A patch that is not smaller than the layer is not published: the layer's own
//! blob takes its place, and costs nothing because the registry has it.

use std::fs::{File, OpenOptions};
use std::io::{self, Cursor, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::sync::atomic::{AtomicU32, Ordering};

use wherry_delta::{EncodeError, tardiff, wherry};

use super::compose::{EMPTY_CONFIG, Parts};
use super::envelope::{Codec, Layer};
use super::{EncodeFailure, Error};
use crate::digest::{DiffId, Digest, Hasher};
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::reference::Reference;
use crate::registry::Client;
use crate::store::{self, Image, Store};
use crate::unpack::{self, Limits};

/// What was published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Published {
    /// The artifact's manifest.
    pub artifact: Digest,
    /// The bytes of the whole artifact: its manifest and every blob in it.
    pub size: u64,
    /// The bytes of the same layers in full.
    pub full: u64,
    /// Each layer that the old image does not have.
    pub layers: Vec<PublishedLayer>,
}

/// One layer of a [`Published`] delta.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PublishedLayer {
    /// The new image's layer.
    pub layer: Digest,
    /// Its size.
    pub full: u64,
    /// The patch's size; none when the layer itself is smaller.
    pub patch: Option<u64>,
    /// The patch's kind.
    pub codec: Option<Codec>,
}

/// Publishes the delta that makes `new` out of `old` in the repository of `target`, where `new` already is. Without a `codec` each layer gets
/// the one whose patch is smaller.
///
/// # Errors
/// [`Error::Publish`] when the images are not a pair or a layer's blob is not in the store; else whatever the store, the encoder or
/// the registry says.
pub fn push(
    store: &Store,
    client: &Client,
    old: &Image,
    new: &Image,
    target: &Reference,
    codec: Option<Codec>,
) -> Result<Published, Error> {
    if old.config_digest == new.config_digest {
        return Err(Error::Publish(format!(
            "both are the image {}",
            new.config_digest
        )));
    }
    if client.head_manifest(&target.with_digest(new.digest))?.is_none() {
        let name = target.familiar_name();
        return Err(Error::Publish(format!(
            "{name} does not have the new image {}: push it first",
            new.digest
        )));
    }
    let (mut changed, mut reused) = (Vec::new(), Vec::new());
    for (layer, diff_id) in new.manifest.layers.iter().zip(&new.diff_ids) {
        if old.diff_ids.contains(diff_id) {
            reused.push((layer.digest, *diff_id));
        } else if !changed
            .iter()
            .any(|(known, _): &(&Descriptor, _)| known.digest == layer.digest)
        {
            changed.push((layer, *diff_id));
        }
    }
    let scratch = Scratch { store };
    let mut layers = Vec::new();
    let mut published = Vec::new();
    if !changed.is_empty() {
        let mut encoders = Encoders::new(&scratch, old, codec)?;
        for (layer, diff_id) in changed {
            let patch = encoders.smallest(layer, &diff_id)?;
            published.push(PublishedLayer {
                layer: layer.digest,
                full: layer.size,
                patch: patch.as_ref().map(|(_, patch)| patch.size),
                codec: patch.as_ref().map(|(codec, _)| *codec),
            });
            let blob = if let Some((codec, mut patch)) = patch {
                let blob = Descriptor::new(codec.media_type(), patch.hasher.digest(), patch.size);
                client.put_blob(target, &blob.digest, blob.size, &mut patch.file, &mut |_| {})?;
                blob
            } else {
                let blob = Descriptor::new(&layer.media_type, layer.digest, layer.size);
                client.put_blob(
                    target,
                    &blob.digest,
                    blob.size,
                    &mut scratch.blob(layer)?,
                    &mut |_| {},
                )?;
                blob
            };
            layers.push(Layer {
                to: layer.digest,
                blob,
            });
        }
    }
    let document = |digest: &Digest, what| {
        store.document(digest)?.ok_or(Error::Store(store::Error::NoBlob {
            what,
            digest: *digest,
        }))
    };
    let manifest = document(&new.digest, "manifest")?;
    let config = document(&new.config_digest, "config")?;
    for bytes in [&manifest[..], &config, EMPTY_CONFIG] {
        client.put_blob(
            target,
            &Digest::of(bytes),
            bytes.len() as u64,
            &mut Cursor::new(bytes),
            &mut |_| {},
        )?;
    }
    let envelope = Parts {
        source: old.digest,
        source_config: old.config_digest,
        target: Descriptor::of(&new.media_type, &manifest),
        target_config: &new.manifest.config,
        layers,
        reused,
    }
    .manifest();
    let blobs = envelope
        .layers
        .iter()
        .fold(0u64, |sum, layer| sum.saturating_add(layer.size));
    let bytes = serde_json::to_vec(&envelope).map_err(|error| Error::Publish(error.to_string()))?;
    let artifact = Digest::of(&bytes);
    client.put_manifest(
        &target.with_digest(artifact),
        OCI_MANIFEST,
        &bytes,
        envelope.subject.as_ref(),
    )?;
    Ok(Published {
        artifact,
        size: blobs.saturating_add(bytes.len() as u64),
        full: published.iter().map(|layer| layer.full).sum(),
        layers: published,
    })
}

/// The encoders of the codecs that are asked for, over the layers of one image.
struct Encoders<'a> {
    scratch: &'a Scratch<'a>,
    tar_diff: Option<tardiff::Encoder<File>>,
    wherry: Option<wherry::Encoder<File>>,
}

impl<'a> Encoders<'a> {
    fn new(scratch: &'a Scratch<'a>, old: &Image, codec: Option<Codec>) -> Result<Self, Error> {
        let tars = old.manifest.layers.iter().zip(&old.diff_ids);
        let tars = tars
            .map(|(layer, diff_id)| scratch.tar(layer, diff_id))
            .collect::<Result<Vec<_>, _>>()?;
        let failed = failed(format!("image {}", old.digest));
        let cannot_read = |source| EncodeError::Old(source);
        let wanted = |one| codec.is_none_or(|codec| codec == one);
        let wherry = if wanted(Codec::Wherry) {
            // The encoders share the files' positions, and take turns.
            let clones = tars.iter().map(File::try_clone).collect::<io::Result<Vec<_>>>();
            let clones = clones.map_err(|error| failed(cannot_read(error)))?;
            let ids = old.diff_ids.iter().map(|diff_id| *diff_id.bytes());
            Some(wherry::Encoder::new(ids.zip(clones).collect()).map_err(&failed)?)
        } else {
            None
        };
        let tar_diff = if wanted(Codec::TarDiff) {
            Some(tardiff::Encoder::new(tars).map_err(&failed)?)
        } else {
            None
        };
        Ok(Self {
            scratch,
            tar_diff,
            wherry,
        })
    }

    /// The smallest patch for a layer, if there is one smaller than the layer.
    fn smallest(&mut self, layer: &Descriptor, diff_id: &DiffId) -> Result<Option<(Codec, Hashed)>, Error> {
        let mut tar = self.scratch.tar(layer, diff_id)?;
        let failed = failed(format!("layer {}", layer.digest));
        let mut best: Option<(Codec, Hashed)> = None;
        if let Some(encoder) = &mut self.wherry {
            let mut patch = self.scratch.hashed()?;
            let options = wherry::Options {
                smaller_than: layer.size,
                ..wherry::Options::default()
            };
            if encoder
                .encode(&mut tar, &mut patch, &options)
                .map_err(&failed)?
                .is_some()
            {
                best = Some((Codec::Wherry, patch));
            }
        }
        if let Some(encoder) = &mut self.tar_diff {
            let mut patch = self.scratch.hashed()?;
            encoder.encode(&mut tar, &mut patch).map_err(&failed)?;
            let least = best.as_ref().map_or(layer.size, |(_, best)| best.size);
            if patch.size < least {
                best = Some((Codec::TarDiff, patch));
            }
        }
        Ok(best)
    }
}

fn failed(what: String) -> impl Fn(EncodeError) -> Error {
    move |source| Error::Encode {
        what: what.clone(),
        source: EncodeFailure(source),
    }
}

/// Where tars and patches lie while a delta is made: files without a name on the store's file system, gone with the process.
struct Scratch<'a> {
    store: &'a Store,
}

impl Scratch<'_> {
    fn file(&self) -> Result<File, Error> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self
            .store
            .root()
            .join(format!(".delta-{}-{number}", std::process::id()));
        let failed = |source| store::Error::Io {
            action: "make",
            path: path.clone(),
            source,
        };
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        std::fs::remove_file(&path).map_err(failed)?;
        Ok(file)
    }

    fn hashed(&self) -> Result<Hashed, Error> {
        Ok(Hashed {
            file: self.file()?,
            hasher: Hasher::new(),
            size: 0,
        })
    }

    fn blob(&self, layer: &Descriptor) -> Result<File, Error> {
        self.store.blob(&layer.digest)?.ok_or_else(|| {
            Error::Publish(format!(
                "layer {} is not in the store: pull its image with --keep-blobs",
                layer.digest
            ))
        })
    }

    /// A layer's tar, uncompressed, its diffID checked.
    fn tar(&self, layer: &Descriptor, diff_id: &DiffId) -> Result<File, Error> {
        let blob = self.blob(layer)?;
        let mut tar = self.hashed()?;
        let failed =
            |error: &dyn std::fmt::Display| Error::Publish(format!("layer {}: {error}", layer.digest));
        let limits = Limits::of(&blob);
        let mut bytes = unpack::tar_of(blob, &limits).map_err(|e| failed(&e))?;
        io::copy(&mut bytes, &mut tar).map_err(|e| failed(&e))?;
        if tar.size > limits.tar_bytes {
            let more = format!(
                "it becomes more than {} bytes, the limit for its compressed size",
                limits.tar_bytes
            );
            return Err(failed(&more));
        }
        let got = tar.hasher.diff_id();
        if got != *diff_id {
            return Err(store::Error::DiffId {
                expected: *diff_id,
                got,
                bytes: tar.size,
            }
            .into());
        }
        Ok(tar.file)
    }
}

/// A file whose bytes are hashed and counted as they are written.
struct Hashed {
    file: File,
    hasher: Hasher,
    size: u64,
}

impl Write for Hashed {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let length = self.file.write(buf)?;
        self.hasher.update(&buf[..length]);
        self.size += length as u64;
        Ok(length)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::OCI_LAYER_ZSTD;

    #[test]
    fn a_layer_that_becomes_absurdly_long_fills_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let mut zeros = io::Read::take(io::repeat(0), 300 << 20);
        let mut blob = Vec::new();
        zstd::stream::copy_encode(&mut zeros, &mut blob, 1).unwrap();
        let layer = Descriptor::of(OCI_LAYER_ZSTD, &blob);
        store.put_blob(&layer.digest, layer.size, &mut &blob[..]).unwrap();
        let error = Scratch { store: &store }
            .tar(&layer, &DiffId::of(b""))
            .unwrap_err();
        assert!(error.to_string().contains("more than 268435456 bytes"), "{error}");
    }
}
