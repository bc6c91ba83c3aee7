//! The containers/oci-delta envelope: how one manifest says which layers of which image a set of patches makes.
//!
//! Written as its README publishes it ("Delta file format"). The layers of the target that the source has, by diffID, are not in it. Of the
//! others each is one blob: a tar-diff, or the layer as it is where a patch would not be smaller. The source is an image, named by
//! its config's digest: patches refer to files of its whole root file system.

use std::collections::BTreeMap;

use crate::digest::{DiffId, Digest};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_EMPTY, OCI_MANIFEST};

/// The artifactType.
pub const ARTIFACT_TYPE: &str = "application/vnd.io.github.containers.oci-delta.v1";

/// The config of every artifact.
pub(super) const EMPTY_CONFIG: &[u8] = b"{}";

/// Annotations of the manifest.
pub(super) const TARGET: &str = "io.github.containers.delta.target";
pub(super) const SOURCE: &str = "io.github.containers.delta.source";
pub(super) const SOURCE_CONFIG: &str = "io.github.containers.delta.source-config";
const REUSED: &str = "io.github.containers.delta.reused";
const REUSED_DIFF_ID: &str = "io.github.containers.delta.reused-diff-id";
/// Annotations of its layers.
const CONTENT: &str = "io.github.containers.delta.content";
const TO: &str = "io.github.containers.delta.to";
const CONTENT_MANIFEST: &str = "image-manifest";
const CONTENT_CONFIG: &str = "image-config";
const CONTENT_LAYER: &str = "image-layer";

/// One changed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the target's layer that it makes.
    pub to: Digest,
    /// The blob to fetch.
    pub blob: Descriptor,
}

impl Layer {
    /// Whether the blob is a tar-diff; otherwise it is the layer itself.
    pub fn is_patch(&self) -> bool {
        self.blob.media_type == wherry_delta::tardiff::MEDIA_TYPE
    }
}

/// What an artifact's manifest says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Envelope {
    /// The config of the image that the patches are against.
    pub source_config: Digest,
    /// The manifest of that image, when it is said.
    pub source: Option<Digest>,
    /// The manifest of the image that the patches make.
    pub target: Digest,
    /// The changed layers.
    pub layers: Vec<Layer>,
    /// The bytes of every blob in it, the embedded manifest's and config's among them.
    pub size: u64,
}

/// What an envelope is made of.
pub(super) struct Parts<'a> {
    pub(super) source: Digest,
    pub(super) source_config: Digest,
    /// The target's manifest.
    pub(super) target: Descriptor,
    pub(super) target_config: &'a Descriptor,
    pub(super) layers: Vec<Layer>,
    /// The layers that the source has too.
    pub(super) reused: Vec<(Digest, DiffId)>,
}

impl Envelope {
    /// Reads an artifact's manifest. Layers with contents that are not known are left aside, as the format demands.
    ///
    /// # Errors
    /// What is missing or wrong in it, in words.
    pub fn parse(manifest: &Manifest) -> Result<Self, String> {
        match manifest.artifact_type.as_deref() {
            Some(ARTIFACT_TYPE) => {}
            other => return Err(format!("artifactType is {:?}, expected {ARTIFACT_TYPE:?}", other.unwrap_or_default())),
        }
        let digest = |annotations: &BTreeMap<String, String>, name: &str| match annotations.get(name) {
            None => Ok(None),
            Some(text) => Digest::parse(text).map(Some).map_err(|error| format!("annotation {name}: {error}")),
        };
        let source_config = digest(&manifest.annotations, SOURCE_CONFIG)?
            .ok_or_else(|| format!("annotation {SOURCE_CONFIG} is missing"))?;
        let embedded = |content: &str| {
            let mut found = manifest.layers.iter().filter(|layer| layer.annotations.get(CONTENT).is_some_and(|is| is == content));
            found.next().map(|layer| layer.digest).ok_or_else(|| format!("it has no layer with the content {content}"))
        };
        let target = embedded(CONTENT_MANIFEST)?;
        embedded(CONTENT_CONFIG)?;
        if let Some(said) = digest(&manifest.annotations, TARGET)?.filter(|said| *said != target) {
            return Err(format!("annotation {TARGET} is {said}, but the embedded manifest is {target}"));
        }
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            if layer.annotations.get(CONTENT).is_none_or(|content| content != CONTENT_LAYER) {
                continue;
            }
            if let Some(to) = digest(&layer.annotations, TO)? {
                layers.push(Layer { to, blob: layer.clone() });
            }
        }
        let size = manifest.layers.iter().fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        Ok(Self { source_config, source: digest(&manifest.annotations, SOURCE)?, target, layers, size })
    }
}

impl Parts<'_> {
    /// Makes the manifest.
    pub(super) fn manifest(self) -> Manifest {
        let embed = |mut descriptor: Descriptor, content: &str| {
            descriptor.annotations = BTreeMap::from([(CONTENT.to_owned(), content.to_owned())]);
            descriptor
        };
        let subject = Descriptor::new(OCI_MANIFEST, self.target.digest, self.target.size);
        let subject = Descriptor { media_type: self.target.media_type.clone(), ..subject };
        let config = Descriptor::new(OCI_CONFIG, self.target_config.digest, self.target_config.size);
        let mut layers = vec![embed(subject.clone(), CONTENT_MANIFEST), embed(config, CONTENT_CONFIG)];
        for layer in self.layers {
            let mut blob = embed(layer.blob, CONTENT_LAYER);
            blob.annotations.insert(TO.to_owned(), layer.to.to_string());
            layers.push(blob);
        }
        let mut annotations = BTreeMap::from([
            (TARGET.to_owned(), subject.digest.to_string()),
            (SOURCE.to_owned(), self.source.to_string()),
            (SOURCE_CONFIG.to_owned(), self.source_config.to_string()),
        ]);
        if !self.reused.is_empty() {
            let (digests, diff_ids): (Vec<_>, Vec<_>) =
                self.reused.iter().map(|(digest, diff_id)| (digest.to_string(), diff_id.to_string())).unzip();
            // Arrays of plain texts: `Value`'s display form is their JSON.
            annotations.insert(REUSED.to_owned(), serde_json::Value::from(digests).to_string());
            annotations.insert(REUSED_DIFF_ID.to_owned(), serde_json::Value::from(diff_ids).to_string());
        }
        Manifest {
            schema_version: 2,
            media_type: Some(OCI_MANIFEST.to_owned()),
            artifact_type: Some(ARTIFACT_TYPE.to_owned()),
            config: Descriptor::of(OCI_EMPTY, EMPTY_CONFIG),
            layers,
            subject: Some(subject),
            annotations,
        }
    }
}
