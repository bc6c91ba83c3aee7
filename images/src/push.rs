//! Pushing: an image out of the store into a registry, its digests unchanged.
//!
//! What always holds: every blob is asked for before it is sent; the manifest goes last, so that a push that ends in between has
//! published nothing; a layer whose blob was not kept is named before a byte moves, never compressed anew under another digest.
//! Chunk hashes (`CHUNKS.md`) come after the manifest: they are a help, and a registry that does not take them has the image all the same.

use std::io::Cursor;

use crate::Class;
use crate::chunks::{self, List};
use crate::digest::Digest;
use crate::manifest::{Descriptor, OCI_MANIFEST};
use crate::reference::Reference;
use crate::registry::{self, Client};
use crate::store::{self, Image, Store};

/// Why an image was not pushed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// A layer is only here unpacked.
    #[error(
        "layer {layer} of {image}: its blob is not in the store and not in the registry; pull the image with --keep-blobs"
    )]
    NoBlob {
        /// The image.
        image: String,
        /// The layer's blob.
        layer: Digest,
    },
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Error::Registry(e) => e.class(),
            Error::Store(e) => e.class(),
            Error::NoBlob { .. } => Class::Permanent,
        }
    }
}

/// Told while a push runs.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// The blob's place, from 0; the config is the last.
    pub blob: usize,
    /// How many blobs the image has.
    pub blobs: usize,
    /// Which one.
    pub digest: &'a Digest,
    /// Bytes of it that are there; goes back when an upload is lost.
    pub offset: u64,
    /// Its size.
    pub size: u64,
}

/// What a push did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pushed {
    /// The manifest's digest, the same as in the store.
    pub digest: Digest,
    /// Its size.
    pub size: u64,
    /// Bytes that went out, as the client's sockets saw them.
    pub wire: u64,
    /// Blobs that were not there and were sent.
    pub sent: Vec<Digest>,
    /// The chunk hashes that were attached, if the image has a layer that is worth it and they were not there.
    pub chunk_hashes: Option<Digest>,
    /// Why chunk hashes could not be attached, in one line.
    pub warning: Option<String>,
}

/// How to push.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PushOptions {
    /// Whether the hashes of the layers' chunks are attached, by which a client fetches a wrong chunk alone again.
    pub chunk_hashes: bool,
}

impl Default for PushOptions {
    fn default() -> Self {
        PushOptions { chunk_hashes: true }
    }
}

/// Pushes `image` as `target`.
pub fn push(
    store: &Store,
    client: &Client,
    image: &Image,
    target: &Reference,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Pushed, Error> {
    push_with(store, client, image, target, &PushOptions::default(), progress)
}

/// As [`push`], with options.
pub fn push_with(
    store: &Store,
    client: &Client,
    image: &Image,
    target: &Reference,
    options: &PushOptions,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Pushed, Error> {
    let wire_before = client.wire().up;
    let manifest = store.document(&image.digest)?;
    let manifest = manifest.ok_or(store::Error::NoBlob {
        what: "manifest",
        digest: image.digest,
    })?;
    let config = store.document(&image.config_digest)?;
    let config = config.ok_or(store::Error::NoBlob {
        what: "config",
        digest: image.config_digest,
    })?;
    let mut missing: Vec<(usize, &Descriptor)> = Vec::new();
    for (at, layer) in image.manifest.layers.iter().enumerate() {
        if missing.iter().any(|(_, m)| m.digest == layer.digest) || client.has_blob(target, &layer.digest)? {
            continue;
        }
        if !store.has_blob(&layer.digest) {
            let name = image
                .reference
                .as_ref()
                .map_or_else(|| image.digest.to_string(), Reference::familiar);
            return Err(Error::NoBlob {
                image: name,
                layer: layer.digest,
            });
        }
        missing.push((at, layer));
    }
    let blobs = image.manifest.layers.len() + 1;
    let mut sent = Vec::new();
    for (at, layer) in missing {
        let file = store.blob(&layer.digest)?;
        let mut file = file.ok_or(store::Error::NoBlob {
            what: "layer",
            digest: layer.digest,
        })?;
        client.put_blob(target, &layer.digest, layer.size, &mut file, &mut |offset| {
            progress(&Progress {
                blob: at,
                blobs,
                digest: &layer.digest,
                offset,
                size: layer.size,
            });
        })?;
        sent.push(layer.digest);
    }
    let size = config.len() as u64;
    client.put_blob(
        target,
        &image.config_digest,
        size,
        &mut Cursor::new(config),
        &mut |offset| {
            progress(&Progress {
                blob: blobs - 1,
                blobs,
                digest: &image.config_digest,
                offset,
                size,
            });
        },
    )?;
    let subject = image.manifest.subject.as_ref();
    let digest = client.put_manifest(target, &image.media_type, &manifest, subject)?;
    let (mut chunk_hashes, mut warning) = (None, None);
    if options.chunk_hashes {
        match attach(
            store,
            client,
            image,
            target,
            &Descriptor::of(&image.media_type, &manifest),
        ) {
            Ok(attached) => chunk_hashes = attached,
            Err(Error::Registry(error)) if error.ends_all() => return Err(error.into()),
            Err(error) => warning = Some(format!("chunk hashes are not attached: {error}")),
        }
    }
    let wire = client.wire().up - wire_before;
    tracing::info!(image = %target, %digest, wire, "pushed");
    Ok(Pushed {
        digest,
        size: manifest.len() as u64,
        wire,
        sent,
        chunk_hashes,
        warning,
    })
}

/// Attaches the chunk hashes of the layers whose blobs are here to the image that was just pushed, unless it has some.
fn attach(
    store: &Store,
    client: &Client,
    image: &Image,
    target: &Reference,
    subject: &Descriptor,
) -> Result<Option<Digest>, Error> {
    let layers = image.manifest.layers.iter();
    let mut worth: Vec<&Descriptor> = layers
        .filter(|layer| chunks::has_list(layer.size) && store.has_blob(&layer.digest))
        .collect();
    worth.dedup_by_key(|layer| layer.digest);
    if worth.is_empty() {
        return Ok(None);
    }
    let there = client.list_referrers(target, &subject.digest, Some(chunks::ARTIFACT_TYPE))?;
    if there
        .iter()
        .any(|d| d.artifact_type.as_deref() == Some(chunks::ARTIFACT_TYPE))
    {
        return Ok(None);
    }
    let put = |bytes: &[u8]| {
        let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
        client.put_blob(target, &digest, size, &mut Cursor::new(bytes), &mut |_| {})
    };
    let mut lists = Vec::new();
    for layer in worth {
        let Some(mut blob) = store.blob(&layer.digest)? else {
            continue;
        };
        let list = List::of(layer.size, &mut blob).map_err(|source| registry::Error::Local {
            what: format!("layer {}", layer.digest),
            source,
        })?;
        let bytes = list.to_bytes();
        put(&bytes)?;
        lists.push(chunks::entry(layer, &bytes));
    }
    put(chunks::EMPTY_CONFIG)?;
    let artifact = chunks::artifact(subject.clone(), lists);
    let bytes = store::to_json(&artifact, std::path::Path::new("chunk hashes"))?;
    let digest = Digest::of(&bytes);
    client.put_manifest(&target.with_digest(digest), OCI_MANIFEST, &bytes, Some(subject))?;
    Ok(Some(digest))
}
