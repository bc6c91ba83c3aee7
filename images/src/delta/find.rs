//! Which delta makes an image out of one that is here, and how one of its layers becomes a layer of the store.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;

use super::Error;
use super::envelope::{ARTIFACT_TYPE, Codec, Envelope, Layer, SOURCE_CONFIG};
use crate::digest::{DiffId, Digest};
use crate::manifest::{Descriptor, Document};
use crate::reference::Reference;
use crate::registry::Client;
use crate::store::{self, Image, Input, Store};
use crate::unpack::{Encoding, Limits};

/// How many artifacts are looked into before what was found has to do. Each costs a request on a bad link.
const MAX_ARTIFACTS: usize = 8;

/// A delta whose source image is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate {
    /// The artifact's manifest.
    pub artifact: Digest,
    /// What it says.
    pub envelope: Envelope,
    /// The unpacked layers of the source image, the lowest first.
    pub trees: Vec<PathBuf>,
    /// Their diffIDs.
    pub diff_ids: Vec<DiffId>,
    /// The bytes of these layers' tars.
    pub source_size: u64,
}

impl Candidate {
    /// The patch that makes the target's layer `to`; none when there is only the layer itself.
    pub fn layer(&self, to: &Digest) -> Option<&Layer> {
        self.envelope
            .layers
            .iter()
            .find(|layer| layer.to == *to && layer.is_patch())
    }
}

/// Finds the delta with the fewest bytes that makes the image with the manifest `target` out of one whose layers are all in the store.
///
/// Asks the registry nothing when no image is here. An artifact that cannot be read or used is passed over.
///
/// # Errors
/// The registry cannot be asked, or the store cannot be read. The caller goes on without a delta.
pub fn find(
    client: &Client,
    reference: &Reference,
    target: &Digest,
    store: &Store,
) -> Result<Option<Candidate>, Error> {
    let sources = sources(store)?;
    if sources.is_empty() {
        return Ok(None);
    }
    let mut best: Option<Candidate> = None;
    let listed = client.list_referrers(reference, target, Some(ARTIFACT_TYPE))?;
    // Some registries copy the artifact's annotations into the list: then nothing is fetched that does not fit.
    let usable = listed.into_iter().filter(|entry| {
        let said = entry.annotations.get(SOURCE_CONFIG);
        said.is_none_or(|said| Digest::parse(said).is_ok_and(|config| sources.contains_key(&config)))
    });
    for entry in usable.take(MAX_ARTIFACTS) {
        let envelope = match fetch(client, reference, target, &entry) {
            Ok(envelope) => envelope,
            Err(error) => {
                tracing::warn!(artifact = %entry.digest, %error, "delta passed over");
                continue;
            }
        };
        let Some((trees, diff_ids, source_size)) = sources.get(&envelope.source_config) else {
            continue;
        };
        if best
            .as_ref()
            .is_none_or(|best| envelope.size < best.envelope.size)
        {
            best = Some(Candidate {
                artifact: entry.digest,
                envelope,
                trees: trees.clone(),
                diff_ids: diff_ids.clone(),
                source_size: *source_size,
            });
        }
    }
    Ok(best)
}

/// Lists the deltas that make the image with the manifest `target`: their artifacts and what these say.
///
/// # Errors
/// The registry cannot be asked, or an artifact cannot be read.
pub fn list(
    client: &Client,
    reference: &Reference,
    target: &Digest,
) -> Result<Vec<(Digest, Envelope)>, Error> {
    let listed = client.list_referrers(reference, target, Some(ARTIFACT_TYPE))?;
    listed
        .iter()
        // An entry without a type may be anything, and most often is.
        .filter(|entry| entry.artifact_type.as_deref() == Some(ARTIFACT_TYPE))
        .map(|entry| Ok((entry.digest, fetch(client, reference, target, entry)?)))
        .collect()
}

/// The unpacked layers of an image, the lowest first, their diffIDs, and the bytes of their tars.
type Layers = (Vec<PathBuf>, Vec<DiffId>, u64);

/// The layers of every image that is here whole, by its config.
fn sources(store: &Store) -> Result<BTreeMap<Digest, Layers>, Error> {
    let mut sources = BTreeMap::new();
    for record in store.images()? {
        let found = store
            .image(&record.digest)
            .and_then(|image| Ok((image.config_digest, layers(store, &image)?)));
        match found {
            Ok((config, Some(layers))) => drop(sources.insert(config, layers)),
            Ok((_, None)) => {}
            // One damaged image is no reason to do without the others.
            Err(error) => tracing::warn!(image = %record.digest, %error, "no source for a delta"),
        }
    }
    Ok(sources)
}

/// None when a layer is missing.
fn layers(store: &Store, image: &Image) -> Result<Option<Layers>, store::Error> {
    let (mut trees, mut size) = (Vec::new(), 0_u64);
    for diff_id in &image.diff_ids {
        let (Some(tree), Some(info)) = (store.layer(diff_id)?, store.layer_info(diff_id)?) else {
            return Ok(None);
        };
        trees.push(tree);
        size = size.saturating_add(info.tar_size);
    }
    Ok(Some((trees, image.diff_ids.clone(), size)))
}

fn fetch(
    client: &Client,
    reference: &Reference,
    target: &Digest,
    entry: &Descriptor,
) -> Result<Envelope, Error> {
    let artifact = entry.digest;
    let fetched = client.get_manifest(&reference.with_digest(artifact))?;
    let refused = |reason: String| Error::Refused { artifact, reason };
    let manifest = match fetched
        .document()
        .map_err(|source| Error::Manifest { artifact, source })?
    {
        Document::Manifest(manifest) => manifest,
        Document::Index(_) => return Err(refused("it is an index".to_owned())),
    };
    let envelope = Envelope::parse(&manifest).map_err(refused)?;
    if envelope.target != *target {
        return Err(refused(format!(
            "it makes {}, expected {target}",
            envelope.target
        )));
    }
    Ok(envelope)
}

/// Makes a layer of the store out of a patch.
///
/// `patch` holds the bytes of `layer.blob`, already verified by their digest. What it may make is bounded by its own size and its
/// source's, and by `full_size`, the target's layer blob's: that alone is only the manifest's word. When this returns, the layer is in
/// the store under `diff_id`, proved by it.
///
/// # Errors
/// Whatever went wrong, nothing is left in the store, and the full layer is to be pulled.
pub fn apply(
    store: &Store,
    candidate: &Candidate,
    layer: &Layer,
    patch: &File,
    full_size: u64,
    diff_id: &DiffId,
) -> Result<(), Error> {
    let sources = candidate.trees.clone();
    let encoding = match layer.codec() {
        Some(Codec::TarDiff) => Encoding::TarDiff { sources },
        Some(Codec::Wherry) => Encoding::Wherry {
            sources,
            diff_ids: candidate.diff_ids.clone(),
        },
        None => {
            return Err(Error::Refused {
                artifact: candidate.artifact,
                reason: format!("layer {} is not a patch but {}", layer.to, layer.blob.media_type),
            });
        }
    };
    let mut limits = Limits::for_blob(full_size);
    let made_of = Limits::of(patch).tar_bytes.saturating_add(candidate.source_size);
    limits.tar_bytes = limits.tar_bytes.min(made_of);
    store.unpack_layer(diff_id, Input::Blob(patch), &encoding, &limits)?;
    Ok(())
}
