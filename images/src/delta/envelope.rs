//! The containers/oci-delta envelope: how one manifest says which layers of which image a set of patches makes.
//!
//! Written as its README publishes it ("Delta file format"). The layers of the target that the source has, by diffID, are not in it. Of the
//! others each is one blob: a tar-diff, a patch of our own codec, or the layer as it is where a patch would not be smaller. The source is an image, named by
//! its config's digest: patches refer to files of its whole root file system.

use std::collections::BTreeMap;

use crate::digest::Digest;
use crate::manifest::{Descriptor, Manifest};

/// The artifactType.
pub const ARTIFACT_TYPE: &str = "application/vnd.io.github.containers.oci-delta.v1";

/// Annotations of the manifest.
pub(super) const TARGET: &str = "io.github.containers.delta.target";
pub(super) const SOURCE: &str = "io.github.containers.delta.source";
pub(super) const SOURCE_CONFIG: &str = "io.github.containers.delta.source-config";
/// Annotations of its layers.
pub(super) const CONTENT: &str = "io.github.containers.delta.content";
pub(super) const TO: &str = "io.github.containers.delta.to";
pub(super) const CONTENT_MANIFEST: &str = "image-manifest";
pub(super) const CONTENT_CONFIG: &str = "image-config";
pub(super) const CONTENT_LAYER: &str = "image-layer";

/// A kind of patch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// The codec that containers/oci-delta describes.
    TarDiff,
    /// Our own.
    Wherry,
}

impl Codec {
    /// The media type of its patches.
    pub const fn media_type(self) -> &'static str {
        match self {
            Self::TarDiff => wherry_delta::tardiff::MEDIA_TYPE,
            Self::Wherry => wherry_delta::wherry::MEDIA_TYPE,
        }
    }

    /// Its name on the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Self::TarDiff => "tar-diff",
            Self::Wherry => "wherry",
        }
    }
}

/// One changed layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The digest of the target's layer that it makes.
    pub to: Digest,
    /// The blob to fetch.
    pub blob: Descriptor,
}

impl Layer {
    /// How the blob is a patch; none when it is the layer itself, or a patch of a kind that is not known here.
    pub fn codec(&self) -> Option<Codec> {
        [Codec::TarDiff, Codec::Wherry]
            .into_iter()
            .find(|codec| codec.media_type() == self.blob.media_type)
    }

    /// Whether the blob is a patch that can be applied here.
    pub fn is_patch(&self) -> bool {
        self.codec().is_some()
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

impl Envelope {
    /// Reads an artifact's manifest. Layers with contents that are not known are left aside, as the format demands.
    ///
    /// # Errors
    /// What is missing or wrong in it, in words.
    pub fn parse(manifest: &Manifest) -> Result<Self, String> {
        match manifest.artifact_type.as_deref() {
            Some(ARTIFACT_TYPE) => {}
            other => {
                return Err(format!(
                    "artifactType is {:?}, expected {ARTIFACT_TYPE:?}",
                    other.unwrap_or_default()
                ));
            }
        }
        let digest = |annotations: &BTreeMap<String, String>, name: &str| match annotations.get(name) {
            None => Ok(None),
            Some(text) => Digest::parse(text)
                .map(Some)
                .map_err(|error| format!("annotation {name}: {error}")),
        };
        let source_config = digest(&manifest.annotations, SOURCE_CONFIG)?
            .ok_or_else(|| format!("annotation {SOURCE_CONFIG} is missing"))?;
        let embedded = |content: &str| {
            let mut found = manifest
                .layers
                .iter()
                .filter(|layer| layer.annotations.get(CONTENT).is_some_and(|is| is == content));
            found
                .next()
                .map(|layer| layer.digest)
                .ok_or_else(|| format!("it has no layer with the content {content}"))
        };
        let target = embedded(CONTENT_MANIFEST)?;
        embedded(CONTENT_CONFIG)?;
        if let Some(said) = digest(&manifest.annotations, TARGET)?.filter(|said| *said != target) {
            return Err(format!(
                "annotation {TARGET} is {said}, but the embedded manifest is {target}"
            ));
        }
        let mut layers = Vec::new();
        for layer in &manifest.layers {
            if layer
                .annotations
                .get(CONTENT)
                .is_none_or(|content| content != CONTENT_LAYER)
            {
                continue;
            }
            if let Some(to) = digest(&layer.annotations, TO)? {
                layers.push(Layer {
                    to,
                    blob: layer.clone(),
                });
            }
        }
        let size = manifest
            .layers
            .iter()
            .fold(0u64, |sum, layer| sum.saturating_add(layer.size));
        Ok(Self {
            source_config,
            source: digest(&manifest.annotations, SOURCE)?,
            target,
            layers,
            size,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Document;

    /// The example of the format's description: its digests are shortened there and filled up with zeros here.
    const EXAMPLE: &str = r#"{"schemaVersion":2,"artifactType":"application/vnd.io.github.containers.oci-delta.v1",
            "config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},
            "layers":[
             {"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:867b4193920b8192000000000000000000000000000000000000000000000000","size":715,
              "annotations":{"io.github.containers.delta.content":"image-manifest"}},
             {"mediaType":"application/vnd.oci.image.config.v1+json","digest":"sha256:49dc3229d8ed7b49000000000000000000000000000000000000000000000000","size":299,
              "annotations":{"io.github.containers.delta.content":"image-config"}},
             {"mediaType":"application/vnd.tar-diff","digest":"sha256:453b6a6f17f0ab18000000000000000000000000000000000000000000000000","size":674,
              "annotations":{"io.github.containers.delta.content":"image-layer",
               "io.github.containers.delta.to":"sha256:dc2c7d87dce684ab000000000000000000000000000000000000000000000000"}},
             {"mediaType":"application/vnd.dev.cosign.simplesigning.v1+json","digest":"sha256:41e82de5226ac000000000000000000000000000000000000000000000000000","size":241,
              "annotations":{"io.github.containers.delta.content":"cosign-signature-content"}}],
            "subject":{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"sha256:867b4193920b8192000000000000000000000000000000000000000000000000","size":715},
            "annotations":{"io.github.containers.delta.reused":"[\"sha256:ba4dfb8600000000000000000000000000000000000000000000000000000000\"]",
             "io.github.containers.delta.source":"sha256:cf1de3f5d45cff6b000000000000000000000000000000000000000000000000",
             "io.github.containers.delta.source-config":"sha256:88e577dc6d4ab25c000000000000000000000000000000000000000000000000",
             "io.github.containers.delta.target":"sha256:867b4193920b8192000000000000000000000000000000000000000000000000"}}"#;

    fn example() -> Manifest {
        let Document::Manifest(read) = Document::parse(EXAMPLE.as_bytes(), None).unwrap() else {
            panic!("an index")
        };
        read
    }

    #[test]
    fn the_published_example() {
        let envelope = Envelope::parse(&example()).unwrap();
        assert!(envelope.source_config.hex().starts_with("88e577dc6d4ab25c"));
        assert!(envelope.target.hex().starts_with("867b4193920b8192"));
        assert_eq!(envelope.layers.len(), 1);
        assert!(envelope.layers[0].is_patch() && envelope.layers[0].to.hex().starts_with("dc2c7d87dce684ab"));
    }

    #[test]
    fn what_is_not_a_delta_is_named() {
        type Change = fn(&mut Manifest);
        let cases: [(&str, Change, &str); 7] = [
            ("no type", |m| m.artifact_type = None, "artifactType is \"\""),
            (
                "another type",
                |m| m.artifact_type = Some("text/plain".into()),
                "artifactType is \"text/plain\"",
            ),
            (
                "no source",
                |m| drop(m.annotations.remove(SOURCE_CONFIG)),
                "source-config is missing",
            ),
            (
                "a source that is no digest",
                |m| drop(m.annotations.insert(SOURCE_CONFIG.into(), "x".into())),
                "source-config: ",
            ),
            ("no manifest", |m| drop(m.layers.remove(0)), "image-manifest"),
            ("no config", |m| drop(m.layers.remove(1)), "image-config"),
            (
                "another target",
                |m| drop(m.annotations.insert(TARGET.into(), Digest::of(b"").to_string())),
                "embedded manifest",
            ),
        ];
        for (what, change, expected) in cases {
            let mut changed = example();
            change(&mut changed);
            let error = Envelope::parse(&changed).unwrap_err();
            assert!(error.contains(expected), "{what}: {error}");
        }
    }
}
