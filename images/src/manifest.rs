//! What a registry sends to describe an image: indexes, manifests and configs, OCI and Docker schema 2.
//!
//! The bytes are what counts: a document's digest is over the bytes as they came, so they are stored and sent on as they
//! are and these types are only the reading of them. A document made here (an artifact, a sample's config) is serialised
//! once and its bytes kept. Everything is bounded before it is trusted: [`MAX_DOCUMENT`] bytes, [`MAX_LAYERS`] layers.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};

use crate::Class;
use crate::digest::{DiffId, Digest};
use crate::platform::Platform;

/// The largest manifest, index or config that is read; registries limit manifests to about the same.
pub const MAX_DOCUMENT: u64 = 4 << 20;
/// The most layers of one image; overlay takes about 500 lower directories.
pub const MAX_LAYERS: usize = 500;

/// An OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image config.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// The config `{}` of an artifact that has none.
pub const OCI_EMPTY: &str = "application/vnd.oci.empty.v1+json";
/// An OCI layer, uncompressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// An OCI layer, gzip.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// An OCI layer, zstd.
pub const OCI_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";
/// Docker's index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker's manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image config.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// Docker's layer, gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker's layer, uncompressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// Docker's layer, zstd.
pub const DOCKER_LAYER_ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// What a manifest request should accept, best first.
pub const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_INDEX, DOCKER_MANIFEST];

/// Why a document is not one that can be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More bytes than any honest document has.
    #[error("{what} of {size} bytes: at most {MAX_DOCUMENT} are read")]
    TooLarge {
        /// The kind of document.
        what: &'static str,
        /// How long it is.
        size: u64,
    },
    /// Not the JSON that its kind wants.
    #[error("{what}: {source}")]
    Json {
        /// The kind of document.
        what: &'static str,
        /// Where the JSON goes wrong.
        source: serde_json::Error,
    },
    /// Well-formed, but not usable as it is.
    #[error("{what}: {reason}")]
    Refused {
        /// The kind of document.
        what: &'static str,
        /// What is wrong, and with which part.
        reason: String,
    },
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Self::Json { .. } => Class::Corrupt,
            Self::TooLarge { .. } | Self::Refused { .. } => Class::Permanent,
        }
    }
}

/// Go writes `null` for an empty list or map; here that is the empty value.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// A pointer to a blob: what kind, which bytes, how many.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The kind of the blob.
    pub media_type: String,
    /// The blob's digest.
    pub digest: Digest,
    /// The blob's length in bytes.
    pub size: u64,
    /// Free-form facts about it.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
    /// What the manifest is for, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// What kind of artifact the manifest is, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
}

impl Descriptor {
    /// A pointer to bytes that are in memory.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// A pointer with nothing but the three required fields.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.to_owned(),
            digest,
            size,
            annotations: BTreeMap::new(),
            platform: None,
            artifact_type: None,
        }
    }
}

/// An image manifest or an artifact in manifest form.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_MANIFEST`] or [`DOCKER_MANIFEST`]; OCI allows leaving it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What kind of artifact this is, when it is not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The image's config.
    pub config: Descriptor,
    /// The layers, lowest first.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub layers: Vec<Descriptor>,
    /// The manifest that this artifact is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form facts about it.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

impl Manifest {
    /// Whether this is an image that can be unpacked and run, by its config's kind.
    pub fn is_image(&self) -> bool {
        matches!(self.config.media_type.as_str(), OCI_CONFIG | DOCKER_CONFIG)
    }

    /// Fails, naming the part, unless every layer is one that can be unpacked here.
    pub fn check_image(&self) -> Result<(), Error> {
        let refused = |reason| Error::Refused {
            what: "manifest",
            reason,
        };
        if !self.is_image() {
            let kind = self.artifact_type.as_ref().unwrap_or(&self.config.media_type);
            return Err(refused(format!(
                "it is an artifact of type {kind:?}, not an image"
            )));
        }
        if self.config.size > MAX_DOCUMENT {
            return Err(refused(format!(
                "config of {} bytes: at most {MAX_DOCUMENT} are read",
                self.config.size
            )));
        }
        for layer in &self.layers {
            check_layer_type(&layer.media_type)
                .map_err(|reason| refused(format!("layer {}: {reason}", layer.digest)))?;
        }
        Ok(())
    }

    /// The bytes of all layers as they travel.
    pub fn layers_size(&self) -> u64 {
        self.layers
            .iter()
            .fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

fn check_layer_type(media_type: &str) -> Result<(), String> {
    match media_type {
        OCI_LAYER | OCI_LAYER_GZIP | OCI_LAYER_ZSTD | DOCKER_LAYER | DOCKER_LAYER_GZIP
        | DOCKER_LAYER_ZSTD => Ok(()),
        foreign if foreign.contains("nondistributable") || foreign.contains("foreign") => Err(format!(
            "{foreign:?} is a foreign layer, which a registry does not carry"
        )),
        encrypted if encrypted.ends_with("+encrypted") => {
            Err(format!("{encrypted:?}: encrypted layers are not supported"))
        }
        other => Err(format!("media type {other:?} is not a layer's")),
    }
}

/// A list of manifests, one for each platform, or of the artifacts that refer to a subject.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// [`OCI_INDEX`] or [`DOCKER_INDEX`]; OCI allows leaving it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What kind of artifact this is, when it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The manifests.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub manifests: Vec<Descriptor>,
    /// The manifest that this index is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free-form facts about it.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub annotations: BTreeMap<String, String>,
}

/// What a registry's manifest endpoint answers with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Document {
    /// A list of manifests.
    Index(Index),
    /// One image or artifact.
    Manifest(Manifest),
}

/// The two fields that tell the kinds apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Probe {
    schema_version: Option<u32>,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// Reads a document. `media_type` is the `Content-Type` it came with, if any; when the document names its own kind the
    /// two must agree, and a document that looks like both kinds is refused.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, Error> {
        const WHAT: &str = "manifest";
        check_size(WHAT, bytes)?;
        let refused = |reason: String| Error::Refused { what: WHAT, reason };
        let probe: Probe = from_json(WHAT, bytes)?;
        // A parameter such as a charset may follow; a type that is not a manifest's says nothing (text/plain, say).
        let header = media_type
            .map(|t| t.split(';').next().unwrap_or(t).trim())
            .filter(|t| ACCEPT.contains(t) || t.contains("manifest.v1"));
        let own = probe.media_type.as_deref();
        if let (Some(header), Some(own)) = (header, own)
            && header != own
        {
            return Err(refused(format!(
                "it calls itself {own:?} but was sent as {header:?}"
            )));
        }
        let kind = own.or(header);
        if probe.schema_version != Some(2) {
            let reason = if probe.schema_version == Some(1) {
                "docker schema 1 is not supported: push the image again with a current tool".to_owned()
            } else {
                "schemaVersion must be 2".to_owned()
            };
            return Err(refused(reason));
        }
        let index = match (kind, probe.manifests.is_some(), probe.config.is_some()) {
            (_, true, true) => return Err(refused("it has both manifests and config".into())),
            (Some(OCI_INDEX | DOCKER_INDEX), _, false) | (None, true, false) => true,
            (Some(OCI_MANIFEST | DOCKER_MANIFEST) | None, false, true) => false,
            (Some(OCI_INDEX | DOCKER_INDEX), ..) => return Err(refused("an index has no config".into())),
            (Some(OCI_MANIFEST | DOCKER_MANIFEST), ..) => return Err(refused("config is missing".into())),
            (Some(other), ..) => return Err(refused(format!("media type {other:?} is not supported"))),
            (None, false, false) => return Err(refused("neither manifests nor config is there".into())),
        };
        if index {
            let index: Index = from_json("index", bytes)?;
            return Ok(Self::Index(index));
        }
        let manifest: Manifest = from_json(WHAT, bytes)?;
        if manifest.layers.len() > MAX_LAYERS {
            return Err(refused(format!(
                "{} layers: at most {MAX_LAYERS} are read",
                manifest.layers.len()
            )));
        }
        Ok(Self::Manifest(manifest))
    }

    /// The kind to store and send the document under.
    pub fn media_type(&self) -> &str {
        match self {
            Self::Index(index) => index.media_type.as_deref().unwrap_or(OCI_INDEX),
            Self::Manifest(manifest) => manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST),
        }
    }
}

/// An object with nothing in it: the value that Go's sets have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Empty {}

/// What an image says about running it. Field names in JSON are Docker's, in `PascalCase`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct Execution {
    /// User, or `user:group`, by name or number.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Ports such as `80/tcp`.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub exposed_ports: BTreeMap<String, Empty>,
    /// `NAME=value` each.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<String>,
    /// The words before the command's.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub entrypoint: Vec<String>,
    /// The command, or its default arguments after an entry point.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "Vec::is_empty")]
    pub cmd: Vec<String>,
    /// Directories that should outlive the container.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub volumes: BTreeMap<String, Empty>,
    /// Where the process starts.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Free-form facts about the image.
    #[serde(
        deserialize_with = "null_is_empty",
        skip_serializing_if = "BTreeMap::is_empty"
    )]
    pub labels: BTreeMap<String, String>,
    /// The signal that asks the process to end.
    #[serde(deserialize_with = "null_is_empty", skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
}

/// The layers of an image, by what is in them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootFs {
    /// Always `layers`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The diffID of each layer, lowest first.
    pub diff_ids: Vec<DiffId>,
}

/// One step that made the image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct History {
    /// When, as RFC 3339.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// By which command.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_by: Option<String>,
    /// By whom.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub author: Option<String>,
    /// With which remark.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<String>,
    /// Whether the step made no layer.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub empty_layer: bool,
}

/// An image's config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageConfig {
    /// When the image was made, as RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub created: Option<String>,
    /// Go's name of the architecture.
    pub architecture: String,
    /// Go's name of the operating system.
    pub os: String,
    /// The architecture's variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// How to run it.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub config: Execution,
    /// What is in it.
    pub rootfs: RootFs,
    /// How it was made.
    #[serde(
        default,
        deserialize_with = "null_is_empty",
        skip_serializing_if = "Vec::is_empty"
    )]
    pub history: Vec<History>,
}

impl ImageConfig {
    /// Reads a config.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        const WHAT: &str = "image config";
        check_size(WHAT, bytes)?;
        let config: Self = from_json(WHAT, bytes)?;
        let refused = |reason: String| Error::Refused { what: WHAT, reason };
        if config.rootfs.kind != "layers" {
            return Err(refused(format!(
                "rootfs.type is {:?}, not \"layers\"",
                config.rootfs.kind
            )));
        }
        if config.rootfs.diff_ids.len() > MAX_LAYERS {
            return Err(refused(format!("more than {MAX_LAYERS} layers")));
        }
        Ok(config)
    }

    /// What the image runs on.
    pub fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, self.variant.as_deref())
    }
}

fn check_size(what: &'static str, bytes: &[u8]) -> Result<(), Error> {
    let size = bytes.len() as u64;
    if size > MAX_DOCUMENT {
        Err(Error::TooLarge { what, size })
    } else {
        Ok(())
    }
}

fn from_json<'a, T: Deserialize<'a>>(what: &'static str, bytes: &'a [u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { what, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn manifest(config: &str, layer: &str) -> String {
        format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{config}","digest":"{D}","size":2}},
               "layers":[{{"mediaType":"{layer}","digest":"{D}","size":7,"annotations":null}}]}}"#
        )
    }

    #[test]
    fn kinds_are_told_apart() {
        let index = format!(r#"{{"schemaVersion":2,"mediaType":"{DOCKER_INDEX}","manifests":[]}}"#);
        let bare_index = r#"{"schemaVersion":2,"manifests":null}"#;
        let bare = manifest(OCI_CONFIG, OCI_LAYER_ZSTD);
        assert!(matches!(
            Document::parse(index.as_bytes(), None),
            Ok(Document::Index(_))
        ));
        assert!(matches!(
            Document::parse(bare_index.as_bytes(), Some(OCI_INDEX)),
            Ok(Document::Index(_))
        ));
        for header in [
            None,
            Some(OCI_MANIFEST),
            Some("application/json; charset=utf-8"),
            Some(DOCKER_MANIFEST),
        ] {
            assert!(
                matches!(
                    Document::parse(bare.as_bytes(), header),
                    Ok(Document::Manifest(_))
                ),
                "{header:?}"
            );
        }
        let Ok(Document::Manifest(m)) = Document::parse(bare.as_bytes(), None) else {
            panic!()
        };
        assert!(m.check_image().is_ok());
        assert_eq!(m.layers_size(), 7);
        assert_eq!(Document::Manifest(m).media_type(), OCI_MANIFEST);
    }

    #[test]
    fn what_is_refused() {
        let both = bare_with(r#","manifests":[]"#);
        let own = bare_with(&format!(r#","mediaType":"{DOCKER_MANIFEST}""#));
        let table: [(&str, Option<&str>, &str); 9] = [
            (r#"{"schemaVersion":1,"signatures":[]}"#, None, "docker schema 1"),
            (
                r#"{"schemaVersion":3,"config":{}}"#,
                None,
                "schemaVersion must be 2",
            ),
            (r#"{"schemaVersion":2}"#, None, "neither manifests nor config"),
            (
                r#"{"schemaVersion":2,"manifests":[]}"#,
                Some(OCI_MANIFEST),
                "config is missing",
            ),
            (
                r#"{"schemaVersion":2,"mediaType":"text/x","config":{}}"#,
                None,
                "not supported",
            ),
            (&both, None, "both manifests and config"),
            (&own, Some(OCI_MANIFEST), "calls itself"),
            ("<html>", None, "expected value"),
            (
                r#"{"schemaVersion":2,"config":{"mediaType":"x","digest":"sha256:0","size":-1}}"#,
                None,
                "64 lower-case",
            ),
        ];
        for (text, header, want) in table {
            let error = Document::parse(text.as_bytes(), header).unwrap_err().to_string();
            assert!(error.contains(want), "{text}: {error}");
        }
        let long = vec![b' '; MAX_DOCUMENT as usize + 1];
        assert!(matches!(
            Document::parse(&long, None),
            Err(Error::TooLarge { .. })
        ));
    }

    fn bare_with(extra: &str) -> String {
        let mut text = manifest(OCI_CONFIG, OCI_LAYER);
        text.truncate(text.len() - 1);
        format!("{text}{extra}}}")
    }

    #[test]
    fn layers_that_cannot_be_unpacked() {
        let table = [
            (
                OCI_CONFIG,
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                "foreign layer",
            ),
            (
                OCI_CONFIG,
                "application/vnd.oci.image.layer.nondistributable.v1.tar",
                "foreign layer",
            ),
            (
                OCI_CONFIG,
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                "encrypted",
            ),
            (OCI_CONFIG, "text/plain", "not a layer's"),
            (OCI_EMPTY, OCI_LAYER, "not an image"),
        ];
        for (config, layer, want) in table {
            let text = manifest(config, layer);
            let Document::Manifest(m) = Document::parse(text.as_bytes(), None).unwrap() else {
                panic!()
            };
            let error = m.check_image().unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }

    #[test]
    fn configs_as_docker_writes_them() {
        let text = format!(
            r#"{{"architecture":"arm","variant":"v7","os":"linux","config":{{"Env":["A=b"],"Cmd":null,"Entrypoint":["/x"],
               "ExposedPorts":{{"80/tcp":{{}}}},"Labels":null,"OnBuild":null,"Unknown":1}},"container":"abc",
               "rootfs":{{"type":"layers","diff_ids":["{D}"]}},"history":[{{"empty_layer":true}}]}}"#
        );
        let config = ImageConfig::parse(text.as_bytes()).unwrap();
        assert_eq!(config.platform().to_string(), "linux/arm/v7");
        assert_eq!(config.config.entrypoint, ["/x"]);
        assert!(config.config.cmd.is_empty() && config.config.exposed_ports.contains_key("80/tcp"));
        let again = ImageConfig::parse(&serde_json::to_vec(&config).unwrap()).unwrap();
        assert_eq!(again, config);
        assert!(
            ImageConfig::parse(br#"{"architecture":"a","os":"b","rootfs":{"type":"x","diff_ids":[]}}"#)
                .is_err()
        );
    }
}
