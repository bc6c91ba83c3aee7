//! Writing the containers/oci-delta envelope, as its README publishes it.

use std::collections::BTreeMap;

use super::envelope::{
    ARTIFACT_TYPE, CONTENT, CONTENT_CONFIG, CONTENT_LAYER, CONTENT_MANIFEST, Layer, SOURCE, SOURCE_CONFIG,
    TARGET, TO,
};
use crate::digest::{DiffId, Digest};
use crate::manifest::{Descriptor, Manifest, OCI_CONFIG, OCI_EMPTY, OCI_MANIFEST};

/// The config of every artifact.
pub(super) const EMPTY_CONFIG: &[u8] = b"{}";

/// Annotations that readers here have no use for: the layers that the source has are known by their diffIDs.
const REUSED: &str = "io.github.containers.delta.reused";
const REUSED_DIFF_ID: &str = "io.github.containers.delta.reused-diff-id";

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

impl Parts<'_> {
    /// Makes the manifest.
    pub(super) fn manifest(self) -> Manifest {
        let embed = |mut descriptor: Descriptor, content: &str| {
            descriptor.annotations = BTreeMap::from([(CONTENT.to_owned(), content.to_owned())]);
            descriptor
        };
        let subject = Descriptor::new(OCI_MANIFEST, self.target.digest, self.target.size);
        let subject = Descriptor {
            media_type: self.target.media_type.clone(),
            ..subject
        };
        let config = Descriptor::new(OCI_CONFIG, self.target_config.digest, self.target_config.size);
        let mut layers = vec![
            embed(subject.clone(), CONTENT_MANIFEST),
            embed(config, CONTENT_CONFIG),
        ];
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
            let (digests, diff_ids): (Vec<_>, Vec<_>) = self
                .reused
                .iter()
                .map(|(digest, diff_id)| (digest.to_string(), diff_id.to_string()))
                .unzip();
            // Arrays of plain texts: `Value`'s display form is their JSON.
            annotations.insert(REUSED.to_owned(), serde_json::Value::from(digests).to_string());
            annotations.insert(
                REUSED_DIFF_ID.to_owned(),
                serde_json::Value::from(diff_ids).to_string(),
            );
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delta::Envelope;
    use crate::manifest::{Document, OCI_LAYER_GZIP};

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    #[test]
    fn what_is_written_is_read() {
        let patch = Descriptor::new(wherry_delta::tardiff::MEDIA_TYPE, digest("patch"), 1000);
        let full = Descriptor::new(OCI_LAYER_GZIP, digest("layer 2"), 2000);
        let written = Parts {
            source: digest("old manifest"),
            source_config: digest("old config"),
            target: Descriptor::of(OCI_MANIFEST, b"new manifest"),
            target_config: &Descriptor::of(OCI_CONFIG, b"new config"),
            layers: vec![
                Layer {
                    to: digest("layer 1"),
                    blob: patch,
                },
                Layer {
                    to: digest("layer 2"),
                    blob: full,
                },
            ],
            reused: vec![(digest("layer 0"), DiffId::of(b"tar 0"))],
        }
        .manifest();
        let bytes = serde_json::to_vec(&written).unwrap();
        let Document::Manifest(read) = Document::parse(&bytes, Some(OCI_MANIFEST)).unwrap() else {
            panic!("an index")
        };
        assert_eq!(read, written);
        assert_eq!(read.annotations[REUSED], format!("[\"{}\"]", digest("layer 0")));
        assert_eq!(
            read.annotations[REUSED_DIFF_ID],
            format!("[\"{}\"]", DiffId::of(b"tar 0"))
        );
        assert_eq!(read.subject.as_ref().unwrap().digest, digest("new manifest"));
        let envelope = Envelope::parse(&read).unwrap();
        assert_eq!(envelope.target, digest("new manifest"));
        assert_eq!(envelope.source, Some(digest("old manifest")));
        assert_eq!(envelope.source_config, digest("old config"));
        assert_eq!(envelope.size, 12 + 10 + 3000);
        let found: Vec<_> = envelope
            .layers
            .iter()
            .map(|layer| (layer.to, layer.blob.digest, layer.is_patch()))
            .collect();
        assert_eq!(
            found,
            [
                (digest("layer 1"), digest("patch"), true),
                (digest("layer 2"), digest("layer 2"), false)
            ]
        );
    }
}
