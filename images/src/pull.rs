//! Pulling: an image out of a registry or a layout into the store, nothing twice, nothing half visible.
//!
//! ```text
//!   tag --resolved once--> (index -> this platform's) manifest -> config -> layers in order -> tag in the store
//!                                                                   |
//!                     for each: there already? | a delta that fits and is smaller | the whole blob
//!                                                     |  anything fails
//!                                                     +---------------> the whole blob, and the reason is told
//! ```
//!
//! What always holds: the image's name appears last, when everything it needs is in the store and durable; a pull that ends in
//! between leaves layers that are whole and partials that the next pull goes on from.

mod plan;

use std::path::{Path, PathBuf};

use crate::Class;
use crate::cage;
use crate::delta::{self, Candidate};
use crate::digest::{DiffId, Digest, Hasher};
use crate::layout::{self, Layout};
use crate::manifest::{self, Descriptor, Document, Manifest};
use crate::platform::{self, Platform};
use crate::reference::Reference;
use crate::registry::{self, Client};
use crate::store::{self, Image, Input, Partial, Store};
use crate::unpack::{Encoding, Limits};

pub use plan::{Plan, PlannedLayer, plan};

/// Indexes may list indexes; deeper is nobody's image.
const MAX_INDEXES: usize = 3;

/// Why an image was not pulled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The registry.
    #[error(transparent)]
    Registry(#[from] registry::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The layout.
    #[error(transparent)]
    Layout(#[from] layout::Error),
    /// The image's documents.
    #[error("{image}: {source}")]
    Document {
        /// Which image.
        image: String,
        /// What is wrong with it.
        source: manifest::Error,
    },
    /// There is nothing for this board in it.
    #[error("{image}: {source}")]
    Platform {
        /// Which image.
        image: String,
        /// What was looked for and what is there.
        source: platform::Error,
    },
    /// The name is not one that can be pulled.
    #[error("{0}")]
    Name(String),
    /// It cannot fit on the disk.
    #[error(
        "{image} cannot fit: {} bytes to fetch, at least {} bytes of disk at the peak (likely {}), {} bytes are free",
        plan.fetch, plan.disk_least, plan.disk_likely, plan.disk_free
    )]
    NoRoom {
        /// Which image.
        image: String,
        /// What it would take.
        plan: Box<Plan>,
    },
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Error::Registry(e) => e.class(),
            Error::Store(e) => e.class(),
            Error::Layout(e) => e.class(),
            Error::Document { source, .. } => source.class(),
            Error::Platform { .. } | Error::Name(_) => Class::Permanent,
            // As a disk that is full in the middle.
            Error::NoRoom { .. } => Class::Transient,
        }
    }
}

/// How to pull.
#[derive(Debug, Clone)]
pub struct PullOptions {
    /// Which image of an index.
    pub platform: Platform,
    /// Whether the layers' blobs stay beside the unpacked layers, as a publisher needs them; a board does not.
    pub keep_blobs: bool,
    /// Whether deltas are looked for.
    pub use_deltas: bool,
}

impl Default for PullOptions {
    fn default() -> Self {
        PullOptions {
            platform: Platform::host(),
            keep_blobs: false,
            use_deltas: true,
        }
    }
}

/// Where an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A registry.
    Registry(Reference),
    /// An OCI image layout.
    Layout {
        /// Its directory.
        folder: PathBuf,
        /// The tag in it, where it has several.
        tag: Option<String>,
        /// The name the image gets in the store.
        name: Reference,
    },
}

impl Source {
    /// Reads what a person typed: a reference, or `oci:DIR[:TAG]`. An image out of a layout is named by its tag when that is a
    /// whole reference, else `localhost/DIR:TAG`.
    pub fn parse(text: &str) -> Result<Source, Error> {
        let Some((folder, tag)) = layout::parse_place(text) else {
            let reference = Reference::parse(text).map_err(|e| Error::Name(e.to_string()))?;
            return Ok(Source::Registry(reference));
        };
        let whole = tag
            .as_deref()
            .filter(|t| t.contains('/'))
            .and_then(|t| Reference::parse(t).ok());
        let name = match whole {
            Some(name) => name,
            None => {
                let absolute = folder.canonicalize().unwrap_or_else(|_| folder.clone());
                let base = absolute
                    .file_name()
                    .map(|n| repository_word(&n.to_string_lossy()))
                    .unwrap_or_default();
                let text = format!("localhost/{base}:{}", tag.as_deref().unwrap_or("latest"));
                Reference::parse(&text)
                    .map_err(|e| Error::Name(format!("{}: no name for its image: {e}", folder.display())))?
            }
        };
        Ok(Source::Layout { folder, tag, name })
    }
}

/// A directory's name as a repository's: lower case, what is neither letter nor digit as a single dash.
fn repository_word(name: &str) -> String {
    let words = name
        .split(|c: char| !c.is_ascii_alphanumeric())
        .filter(|word| !word.is_empty());
    words.collect::<Vec<_>>().join("-").to_ascii_lowercase()
}

/// What a pull is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Bytes are arriving.
    Fetching,
    /// The layer is being unpacked.
    Unpacking,
    /// The layer is in the store.
    Done,
}

/// Told while a pull runs.
#[derive(Debug, Clone, Copy)]
pub struct Progress<'a> {
    /// What is happening.
    pub phase: Phase,
    /// The layer's place, from 0.
    pub layer: usize,
    /// How many layers the image has.
    pub layers: usize,
    /// The layer's blob, or its delta's while that is fetched.
    pub digest: &'a Digest,
    /// Bytes of it that are here; goes back when a transfer has to start over.
    pub offset: u64,
    /// Its size.
    pub size: u64,
    /// How the layer comes.
    pub how: How,
}

/// How a layer came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// It was there.
    Present,
    /// As its whole blob.
    Full,
    /// As a delta.
    Delta,
}

/// What became of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerOutcome {
    /// The unpacked layer.
    pub diff_id: DiffId,
    /// The blob that the manifest names.
    pub digest: Digest,
    /// How it came.
    pub how: How,
    /// The size of what had to be fetched for it: the blob's, the delta's, or 0.
    pub bytes: u64,
    /// Why a delta that was there was not used.
    pub reason: Option<String>,
}

/// What a pull did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pulled {
    /// The image's manifest: what is run and reported.
    pub digest: Digest,
    /// Bytes that had to come: the documents and blobs that were not there, as long as they are.
    pub needed: u64,
    /// Bytes that did come, as the client's sockets saw them: headers, TLS, what was fetched in vain. What a cut threw away
    /// before it was read is not known here.
    pub wire: u64,
    /// Bytes that a pull onto an empty board costs: documents and all layers' blobs.
    pub full: u64,
    /// The layers, lowest first.
    pub layers: Vec<LayerOutcome>,
    /// What whoever asked for the image should know, a line each: that it is for another platform than this board's, or that
    /// its layers were unpacked without the full confinement.
    pub warnings: Vec<String>,
}

/// Pulls from wherever `source` says.
pub fn pull_from(
    store: &Store,
    client: &Client,
    source: &Source,
    options: &PullOptions,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Pulled, Error> {
    match source {
        Source::Registry(reference) => pull(store, client, reference, options, progress),
        Source::Layout { folder, tag, name } => pull_layout(store, folder, tag.as_deref(), name, options),
    }
}

/// Pulls `reference` from its registry and names it so in the store.
pub fn pull(
    store: &Store,
    client: &Client,
    reference: &Reference,
    options: &PullOptions,
    progress: &mut dyn FnMut(&Progress<'_>),
) -> Result<Pulled, Error> {
    let wire_before = client.wire().down;
    // Nothing of it has a name before its end: a collection leaves alone what this pull relies on.
    let store = &store.leased()?;
    let mut pull = Pull {
        store,
        client,
        reference,
        options,
        progress,
        needed: 0,
        full: 0,
        moved: plan::Moved::default(),
    };
    let image = pull.documents()?;
    let admitted = options.platform.admit(&image.config, &Platform::host());
    let admitted = admitted.map_err(|source| Error::Platform {
        image: reference.familiar(),
        source,
    })?;
    let layers = pull.layers(&image)?;
    let (needed, full) = (pull.needed, pull.full);
    pull.moved.remember(store, reference.registry());
    store.tag(&image, reference)?;
    let wire = client.wire().down - wire_before;
    tracing::info!(image = %reference, digest = %image.digest, needed, wire, "pulled");
    Ok(Pulled {
        digest: image.digest,
        needed,
        wire,
        full,
        warnings: warnings(admitted, &layers),
        layers,
    })
}

fn warnings(platform: Option<String>, layers: &[LayerOutcome]) -> Vec<String> {
    let mut warnings: Vec<String> = platform.into_iter().collect();
    if layers.iter().any(|layer| layer.how != How::Present) {
        let missing = cage::missing().into_iter();
        warnings.extend(missing.map(|what| format!("its layers were unpacked without {what}")));
    }
    for warning in &warnings {
        tracing::warn!("{warning}");
    }
    warnings
}

/// Takes an image out of an OCI layout and names it `name`.
fn pull_layout(
    store: &Store,
    folder: &Path,
    tag: Option<&str>,
    name: &Reference,
    options: &PullOptions,
) -> Result<Pulled, Error> {
    let layout = Layout::open(folder)?;
    let present = store.layers()?;
    let image = store.import_layout(&layout, tag, &options.platform, Some(name), options.keep_blobs)?;
    let outcome = |(descriptor, diff_id): (&Descriptor, &DiffId)| {
        let how = if present.contains(diff_id) {
            How::Present
        } else {
            How::Full
        };
        LayerOutcome {
            diff_id: *diff_id,
            digest: descriptor.digest,
            how,
            bytes: 0,
            reason: None,
        }
    };
    let layers = image.manifest.layers.iter().zip(&image.diff_ids);
    let layers: Vec<LayerOutcome> = layers.map(outcome).collect();
    // It was admitted when it was imported.
    let admitted = options.platform.admit(&image.config, &Platform::host());
    let full = image
        .manifest
        .layers_size()
        .saturating_add(image.manifest.config.size);
    Ok(Pulled {
        digest: image.digest,
        needed: 0,
        wire: 0,
        full,
        warnings: warnings(admitted.ok().flatten(), &layers),
        layers,
    })
}

struct Pull<'a> {
    store: &'a Store,
    client: &'a Client,
    reference: &'a Reference,
    options: &'a PullOptions,
    progress: &'a mut dyn FnMut(&Progress<'_>),
    needed: u64,
    full: u64,
    moved: plan::Moved,
}

impl Pull<'_> {
    /// Brings manifest and config into the store and reads them together.
    fn documents(&mut self) -> Result<Image, Error> {
        let name = self.reference.familiar();
        let in_document = |source| Error::Document {
            image: name.clone(),
            source,
        };
        let mut wanted = self.reference.clone();
        if wanted.digest().is_none()
            && self.store.tagged(&wanted)?.is_some()
            && let Some(head) = self.client.head_manifest(&wanted)?
            && let Some(digest) = head.digest.filter(|digest| self.store.has_blob(digest))
        {
            // Pulled before and unchanged: the document is here.
            wanted = wanted.with_digest(digest);
        }
        for _ in 0..=MAX_INDEXES {
            let (bytes, media_type) = self.document(&wanted)?;
            let digest = Digest::of(&bytes);
            self.full += bytes.len() as u64;
            let media_type = manifest::ACCEPT
                .contains(&media_type.as_str())
                .then_some(media_type);
            match Document::parse(&bytes, media_type.as_deref()).map_err(in_document)? {
                Document::Manifest(manifest) => {
                    manifest.check_image().map_err(in_document)?;
                    self.config(&manifest)?;
                    self.store.put_document(&bytes)?;
                    return Ok(self.store.image(&digest)?);
                }
                Document::Index(index) => {
                    let chosen = self.options.platform.select(&index);
                    let chosen = chosen.map_err(|source| Error::Platform {
                        image: name.clone(),
                        source,
                    })?;
                    wanted = self.reference.with_digest(chosen.digest);
                    self.store.put_document(&bytes)?;
                }
            }
        }
        Err(Error::Name(format!(
            "{name}: its indexes are nested more than {MAX_INDEXES} deep"
        )))
    }

    /// A manifest or index, from the store where it is named by digest and here.
    fn document(&mut self, wanted: &Reference) -> Result<(Vec<u8>, String), Error> {
        if let Some(digest) = wanted.digest()
            && let Some(bytes) = self.kept(digest)?
        {
            return Ok((bytes, String::new()));
        }
        let fetched = self.client.get_manifest(wanted)?;
        self.needed += fetched.bytes.len() as u64;
        Ok((fetched.bytes, fetched.media_type))
    }

    /// A document that is here and whole. One that a bad card has changed is as good as none: it is fetched again.
    fn kept(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        match self.store.document(digest) {
            Err(e) if e.class() == Class::Corrupt => {
                tracing::warn!(%digest, error = %e, "fetching it again");
                Ok(None)
            }
            other => Ok(other?),
        }
    }

    fn config(&mut self, manifest: &Manifest) -> Result<(), Error> {
        self.full = self.full.saturating_add(manifest.config.size);
        if self.kept(&manifest.config.digest)?.is_some() {
            return Ok(());
        }
        let bytes = self.client.blob_bytes(self.reference, &manifest.config)?;
        self.needed += bytes.len() as u64;
        self.store.put_document(&bytes)?;
        Ok(())
    }

    fn layers(&mut self, image: &Image) -> Result<Vec<LayerOutcome>, Error> {
        let count = image.manifest.layers.len();
        self.full = self.full.saturating_add(image.manifest.layers_size());
        let (candidate, no_delta) = self.candidate(image)?;
        self.check_room(image, candidate.as_ref())?;
        // Beyond the disk itself: what is kept in reserve, and a quota.
        self.store.check_room(image, self.options.keep_blobs)?;
        let mut outcomes = Vec::with_capacity(count);
        for (at, (descriptor, diff_id)) in image.manifest.layers.iter().zip(&image.diff_ids).enumerate() {
            let place = Place {
                at,
                count,
                image: &image.digest,
                descriptor,
                diff_id,
            };
            let mut outcome = self.layer(&place, candidate.as_ref())?;
            if outcome.how == How::Full && outcome.reason.is_none() {
                outcome.reason.clone_from(&no_delta);
            }
            self.report(
                &place,
                Phase::Done,
                &descriptor.digest,
                descriptor.size,
                descriptor.size,
                outcome.how,
            );
            outcomes.push(outcome);
        }
        Ok(outcomes)
    }

    /// The delta to use, and why there is none when looking for one failed.
    fn candidate(&self, image: &Image) -> Result<(Option<Candidate>, Option<String>), Error> {
        if !self.options.use_deltas || self.store.missing_layers(image).is_empty() {
            return Ok((None, None));
        }
        match delta::find(self.client, self.reference, &image.digest, self.store) {
            Ok(found) => Ok((found, None)),
            Err(delta::Error::Registry(e)) if e.ends_all() => Err(e.into()),
            Err(e) => {
                tracing::warn!(image = %self.reference, error = %e, "no delta: the layers are pulled in full");
                Ok((None, Some(e.to_string())))
            }
        }
    }

    fn report(&mut self, place: &Place<'_>, phase: Phase, digest: &Digest, offset: u64, size: u64, how: How) {
        (self.progress)(&Progress {
            phase,
            layer: place.at,
            layers: place.count,
            digest,
            offset,
            size,
            how,
        });
    }

    fn layer(&mut self, place: &Place<'_>, candidate: Option<&Candidate>) -> Result<LayerOutcome, Error> {
        let (descriptor, diff_id) = (place.descriptor, place.diff_id);
        let outcome = |how, bytes, reason| LayerOutcome {
            diff_id: *diff_id,
            digest: descriptor.digest,
            how,
            bytes,
            reason,
        };
        if let Some(outcome) = self.ready(place)? {
            return Ok(outcome);
        }
        let blob_wanted = self.blob_wanted(place);
        let mut reason = None;
        let patch = candidate.and_then(|c| Some((c, c.layer(&descriptor.digest)?)));
        if let Some((candidate, patch)) = patch
            && !blob_wanted
        {
            if patch.blob.size >= descriptor.size {
                reason = Some(format!("its delta of {} bytes is not smaller", patch.blob.size));
            } else {
                match self.delta(place, candidate, patch) {
                    Ok(How::Present) => return Ok(outcome(How::Present, 0, None)),
                    Ok(how) => {
                        self.needed += patch.blob.size;
                        return Ok(outcome(how, patch.blob.size, None));
                    }
                    // Without the registry there is no full layer either, and what arrived is kept for the next pull.
                    Err(delta::Error::Registry(e))
                        if e.ends_all() || matches!(e, registry::Error::Unreachable { .. }) =>
                    {
                        return Err(e.into());
                    }
                    Err(e) => {
                        tracing::warn!(layer = %descriptor.digest, error = %e, "delta failed: the layer is pulled in full");
                        reason = Some(e.to_string());
                    }
                }
            }
        }
        let mut partial = self.store.partial(&descriptor.digest, descriptor.size)?;
        // Another process may have been at it while its partial was waited for.
        if let Some(outcome) = self.ready(place)? {
            partial.discard()?;
            return Ok(outcome);
        }
        let fetched = self.fetch(place, descriptor, &mut partial, How::Full);
        self.needed += descriptor.size;
        if let Err(e) = fetched {
            return Err(give_back(partial, e));
        }
        if self.options.keep_blobs {
            let digest = self.store.commit_blob(partial)?;
            let blob = self.store.blob(&digest)?.ok_or(store::Error::NoBlob {
                what: "layer",
                digest,
            })?;
            if let Err(e) = self.unpack(place, &blob) {
                if matches!(&e, Error::Store(e) if drops(e)) {
                    self.store.remove_blob(&digest)?;
                }
                return Err(e);
            }
        } else {
            let blob = partial.file()?;
            match self.unpack(place, &blob) {
                Ok(()) => partial.discard()?,
                Err(e) => return Err(give_back(partial, e)),
            }
        }
        Ok(outcome(How::Full, descriptor.size, reason))
    }

    /// A publisher needs the blob as well: an unpacked layer alone is not enough for it.
    fn blob_wanted(&self, place: &Place<'_>) -> bool {
        self.options.keep_blobs && !self.store.has_blob(&place.descriptor.digest)
    }

    /// The outcome for a layer that needs nothing fetched: it is here, or its blob was kept.
    fn ready(&mut self, place: &Place<'_>) -> Result<Option<LayerOutcome>, Error> {
        let digest = place.descriptor.digest;
        let outcome = |how| LayerOutcome {
            diff_id: *place.diff_id,
            digest,
            how,
            bytes: 0,
            reason: None,
        };
        if self.store.has_layer(place.diff_id) && !self.blob_wanted(place) {
            return Ok(Some(outcome(How::Present)));
        }
        let Some(blob) = self.store.blob(&digest)? else {
            return Ok(None);
        };
        match self.unpack(place, &blob) {
            Ok(()) => Ok(Some(outcome(How::Full))),
            // What a bad card has changed is fetched again; a layer that is no good as it was published is not.
            Err(Error::Store(e)) if e.class() != Class::Transient && !self.is_whole(&digest)? => {
                tracing::warn!(layer = %digest, error = %e, "its kept blob is damaged: fetching it again");
                self.store.remove_blob(&digest)?;
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Whether a kept blob still has the bytes that its name says.
    fn is_whole(&self, digest: &Digest) -> Result<bool, Error> {
        let mut hasher = Hasher::new();
        let blob = self.store.blob(digest)?;
        let read = blob.map(|mut blob| std::io::copy(&mut blob, &mut hasher));
        Ok(matches!(read, Some(Ok(_))) && hasher.digest() == *digest)
    }

    fn unpack(&mut self, place: &Place<'_>, blob: &std::fs::File) -> Result<(), Error> {
        let (descriptor, size) = (place.descriptor, place.descriptor.size);
        self.report(place, Phase::Unpacking, &descriptor.digest, size, size, How::Full);
        let limits = Limits::of(blob);
        self.store
            .unpack_layer(place.diff_id, Input::Blob(blob), &Encoding::Layer, &limits)?;
        Ok(())
    }

    fn delta(
        &mut self,
        place: &Place<'_>,
        candidate: &Candidate,
        patch: &delta::Layer,
    ) -> Result<How, delta::Error> {
        let blob = &patch.blob;
        let mut partial = self.store.partial(&blob.digest, blob.size)?;
        // As below: another process may have used the same patch.
        if self.store.has_layer(place.diff_id) {
            partial.discard()?;
            return Ok(How::Present);
        }
        if let Err(e) = self.fetch(place, blob, &mut partial, How::Delta) {
            return Err(match give_back(partial, e) {
                Error::Registry(e) => e.into(),
                Error::Store(e) => e.into(),
                e => delta::Error::Patch(e.to_string()),
            });
        }
        self.report(
            place,
            Phase::Unpacking,
            &blob.digest,
            blob.size,
            blob.size,
            How::Delta,
        );
        let applied = partial.file().map_err(delta::Error::from).and_then(|file| {
            delta::apply(
                self.store,
                candidate,
                patch,
                &file,
                place.descriptor.size,
                place.diff_id,
            )
        });
        // Used or useless: either way it is not needed again.
        partial.discard()?;
        applied.map(|()| How::Delta)
    }

    fn fetch(
        &mut self,
        place: &Place<'_>,
        blob: &Descriptor,
        partial: &mut Partial,
        how: How,
    ) -> Result<(), registry::Error> {
        self.report(
            place,
            Phase::Fetching,
            &blob.digest,
            partial.offset(),
            blob.size,
            how,
        );
        let (progress, client, reference) = (&mut *self.progress, self.client, self.reference);
        let image = (how == How::Full).then_some(place.image);
        let mut told = |offset| {
            let (layer, layers) = (place.at, place.count);
            progress(&Progress {
                phase: Phase::Fetching,
                layer,
                layers,
                digest: &blob.digest,
                offset,
                size: blob.size,
                how,
            });
        };
        self.moved.during(client, || {
            client.fetch_layer(reference, image, blob, partial, &mut told)
        })
    }
}

/// Which layer is at hand.
struct Place<'a> {
    at: usize,
    count: usize,
    image: &'a Digest,
    descriptor: &'a Descriptor,
    diff_id: &'a DiffId,
}

/// After a failure: keeps what arrived where the next try can go on from it, and drops it where it is useless or in the way.
fn give_back(partial: Partial, error: impl Into<Error>) -> Error {
    let error = error.into();
    let useless = match &error {
        Error::Store(e) => drops(e),
        Error::Registry(registry::Error::Store(e)) => drops(e),
        Error::Registry(registry::Error::Digest { .. }) => true,
        _ => partial.offset() == 0,
    };
    if useless {
        // The first error is the one to tell.
        let _ = partial.discard();
    }
    error
}

/// Whether a blob that met this error in the store is better gone: with the disk full it is in the way, and right bytes of a layer
/// that cannot be unpacked are of no use.
fn drops(error: &store::Error) -> bool {
    matches!(error, store::Error::NoSpace { .. }) || error.class() != Class::Transient
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources() {
        for (text, name) in [
            ("oci:/nowhere/My_App.v2:v1", "localhost/my-app-v2:v1"),
            ("oci:/nowhere/iris", "localhost/iris:latest"),
            ("oci:/nowhere/x:reg.example/a/b:c", "reg.example/a/b:c"),
        ] {
            assert!(
                matches!(Source::parse(text), Ok(Source::Layout { name: n, .. }) if n.to_string() == name),
                "{text}"
            );
        }
        assert!(matches!(Source::parse("iris"), Ok(Source::Registry(r)) if r.familiar() == "iris:latest"));
        for text in ["", "oci:/nowhere/---:v1", "oci:/nowhere/x:no tag", "Iris"] {
            assert!(matches!(Source::parse(text), Err(Error::Name(_))), "{text}");
        }
    }
}
