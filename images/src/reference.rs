//! Image references as people type them: `iris`, `localhost:5000/iris:v2`, `iris@sha256:...`.
//!
//! The grammar is that of the distribution project's `reference` package, and so are the defaults: no registry means
//! `docker.io`, a single name there lives under `library/`, neither tag nor digest means `latest`.

use std::fmt;
use std::net::Ipv6Addr;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::digest::Digest;

/// The registry meant when none is named.
const DEFAULT_REGISTRY: &str = "docker.io";
/// Where that registry's API answers.
const DEFAULT_REGISTRY_API: &str = "registry-1.docker.io";
/// The old name of the same registry, still in scripts.
const LEGACY_REGISTRY: &str = "index.docker.io";
/// The namespace of single-name repositories at the default registry.
const OFFICIAL: &str = "library/";
/// The tag meant when neither tag nor digest is named.
const DEFAULT_TAG: &str = "latest";
/// The distribution specification's limit on host and repository together.
const MAX_NAME_LEN: usize = 255;
/// The distribution specification's limit on a tag.
const MAX_TAG_LEN: usize = 128;
/// A name, a tag and a digest, each at its longest; longer input is not looked at.
const MAX_LEN: usize = 512;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {text:?}: {reason}")]
pub struct Error {
    text: String,
    reason: String,
}

/// An image's name: always a registry and a repository, and a tag, a digest, or both.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads what a person typed and fills in the defaults.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let error = |reason: &str| Error {
            text: text.chars().take(100).collect(),
            reason: reason.into(),
        };
        if text.is_empty() {
            return Err(error("it is empty"));
        }
        if text.len() > MAX_LEN {
            return Err(error("it is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest = Digest::parse(digest).map_err(|e| error(&e.to_string()))?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash is the tag's; one before it is the port's.
        let last = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match rest[last..].find(':') {
            Some(colon) => (&rest[..last + colon], Some(&rest[last + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(error(
                "the tag must be [A-Za-z0-9_][A-Za-z0-9_.-]*, at most 128 characters",
            ));
        }
        if is_id(name) {
            return Err(error("64 hex digits are an image ID, not a name"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if names_a_host(first) => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        if !is_host(registry) {
            return Err(error(
                "the registry must be a host name or address with an optional port",
            ));
        }
        let registry = if registry == LEGACY_REGISTRY {
            DEFAULT_REGISTRY
        } else {
            registry
        };
        if !is_repository(path) {
            let reason = if path.bytes().any(|b| b.is_ascii_uppercase()) {
                "the repository must be lower case"
            } else {
                "the repository must be lower-case words joined by . _ - and separated by /"
            };
            return Err(error(reason));
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{OFFICIAL}{path}")
        } else {
            path.to_owned()
        };
        if registry.len() + 1 + repository.len() > MAX_NAME_LEN {
            return Err(error("the name is longer than 255 characters"));
        }
        let tag = match (tag, digest) {
            (Some(tag), _) => Some(tag.to_owned()),
            (None, Some(_)) => None,
            (None, None) => Some(DEFAULT_TAG.to_owned()),
        };
        Ok(Self {
            registry: registry.to_owned(),
            repository,
            tag,
            digest,
        })
    }

    /// The registry as named: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host and port where the registry's API answers.
    pub fn api_host(&self) -> &str {
        if self.registry == DEFAULT_REGISTRY {
            DEFAULT_REGISTRY_API
        } else {
            &self.registry
        }
    }

    /// The repository within the registry: `library/iris`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, when one is named.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, when one is pinned.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// What the registry's manifest endpoint is asked for: the digest where there is one, else the tag.
    pub fn target(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => DEFAULT_TAG.to_owned(),
        }
    }

    /// The same repository, pinned to a digest and without a tag.
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// The same repository, tag and digest at another registry.
    pub fn at_registry(&self, registry: &str) -> Result<Self, Error> {
        let error = |reason: &str| Error {
            text: registry.chars().take(100).collect(),
            reason: reason.into(),
        };
        if !is_host(registry) {
            return Err(error("it is not a host name or address with an optional port"));
        }
        if registry.len() + 1 + self.repository.len() > MAX_NAME_LEN {
            return Err(error("the name is longer than 255 characters"));
        }
        Ok(Self {
            registry: registry.to_owned(),
            ..self.clone()
        })
    }

    /// The same repository under another tag and without a digest.
    pub fn with_tag(&self, tag: &str) -> Result<Self, Error> {
        if !is_tag(tag) {
            return Err(Error {
                text: tag.chars().take(100).collect(),
                reason: "it is not a tag".into(),
            });
        }
        Ok(Self {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// Host and repository as people write them: without `docker.io` and `library/`.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.repository);
        }
        let short = match self.repository.strip_prefix(OFFICIAL) {
            Some(single) if !single.contains('/') => single,
            _ => &self.repository,
        };
        // What would be read as something else is written in full: a namespace like a host, a name like an image ID.
        let first = short.split_once('/').map(|(first, _)| first);
        if first.is_some_and(names_a_host) || is_id(short) {
            return format!("{}/{}", self.registry, self.repository);
        }
        short.to_owned()
    }

    /// The whole reference as people write it: `iris:latest`.
    pub fn familiar(&self) -> String {
        let mut text = self.familiar_name();
        self.push_suffix(&mut text);
        text
    }

    fn push_suffix(&self, text: &mut String) {
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(&digest.to_string());
        }
    }
}

/// Whether a name is as long as an image's ID, and of its letters.
fn is_id(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether the part before the first slash is a host and not a namespace: `a.b`, `a:1`, `localhost`, `Upper`, `[::1]`.
fn names_a_host(part: &str) -> bool {
    part == "localhost"
        || part.starts_with('[')
        || part
            .bytes()
            .any(|b| matches!(b, b'.' | b':') || b.is_ascii_uppercase())
}

fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let Some((address, rest)) = rest.split_once(']') else {
                return false;
            };
            if address.parse::<Ipv6Addr>().is_err() {
                return false;
            }
            match rest.strip_prefix(':') {
                Some(port) => ("", Some(port)),
                None if rest.is_empty() => ("", None),
                None => return false,
            }
        }
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let port_ok =
        port.is_none_or(|p| p.bytes().all(|b| b.is_ascii_digit()) && p.parse::<u16>().is_ok_and(|p| p > 0));
    let label_ok = |label: &str| {
        label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    port_ok && (text.starts_with('[') || host.split('.').all(label_ok))
}

fn is_repository(path: &str) -> bool {
    path.split('/').all(is_component)
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or any number of `-`.
fn is_component(text: &str) -> bool {
    let mut separator = String::new();
    let mut words = 0;
    for c in text.chars() {
        match c {
            'a'..='z' | '0'..='9' => {
                let joined = match separator.as_str() {
                    "" | "." | "_" | "__" => true,
                    dashes => dashes.bytes().all(|b| b == b'-'),
                };
                if !joined || (words == 0 && !separator.is_empty()) {
                    return false;
                }
                separator.clear();
                words += 1;
            }
            '.' | '_' | '-' => separator.push(c),
            _ => return false,
        }
    }
    words > 0 && separator.is_empty()
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    text.len() <= MAX_TAG_LEN
        && text.bytes().next().is_some_and(word)
        && text.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{}/{}", self.registry, self.repository);
        self.push_suffix(&mut text);
        f.write_str(&text)
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Reference {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self, Error> {
        Self::parse(text)
    }
}

impl Serialize for Reference {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Reference {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const D: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn defaults_and_familiar_forms() {
        let pinned = format!("iris@{D}");
        let both = format!("iris:v1@{D}");
        let (pinned_full, both_full) = (
            format!("docker.io/library/iris@{D}"),
            format!("docker.io/library/iris:v1@{D}"),
        );
        let id = format!("docker.io/library/{}:latest", "a".repeat(64));
        let table = [
            (id.as_str(), id.as_str(), id.as_str()),
            (
                "docker.io/mirror.io/iris:v1",
                "docker.io/mirror.io/iris:v1",
                "docker.io/mirror.io/iris:v1",
            ),
            (
                "docker.io/localhost/iris:v1",
                "docker.io/localhost/iris:v1",
                "docker.io/localhost/iris:v1",
            ),
            ("iris", "docker.io/library/iris:latest", "iris:latest"),
            ("iris:v1", "docker.io/library/iris:v1", "iris:v1"),
            ("me/iris", "docker.io/me/iris:latest", "me/iris:latest"),
            ("docker.io/iris", "docker.io/library/iris:latest", "iris:latest"),
            (
                "index.docker.io/iris",
                "docker.io/library/iris:latest",
                "iris:latest",
            ),
            ("localhost/iris", "localhost/iris:latest", "localhost/iris:latest"),
            (
                "localhost:5000/iris:v2",
                "localhost:5000/iris:v2",
                "localhost:5000/iris:v2",
            ),
            (
                "127.0.0.1:5000/a/b/c",
                "127.0.0.1:5000/a/b/c:latest",
                "127.0.0.1:5000/a/b/c:latest",
            ),
            (
                "[::1]:5000/iris",
                "[::1]:5000/iris:latest",
                "[::1]:5000/iris:latest",
            ),
            ("Host/iris", "Host/iris:latest", "Host/iris:latest"),
            (
                "a.b/c__d/e-f--g.h:T_1.x-",
                "a.b/c__d/e-f--g.h:T_1.x-",
                "a.b/c__d/e-f--g.h:T_1.x-",
            ),
            (&pinned, &pinned_full, &pinned),
            (&both, &both_full, &both),
        ];
        for (text, canonical, familiar) in table {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), canonical, "{text}");
            assert_eq!(reference.familiar(), familiar, "{text}");
            assert_eq!(Reference::parse(canonical).unwrap(), reference, "{text}");
            assert_eq!(Reference::parse(familiar).unwrap(), reference, "{text}");
        }
    }

    #[test]
    fn what_is_refused() {
        let hex = "a".repeat(64);
        let long = format!("a.b/{}", "a/".repeat(130) + "a");
        let tag = format!("a:{}", "t".repeat(129));
        let table = [
            "",
            ":",
            "/",
            "a/",
            "/a",
            "a//b",
            "Iris",
            "a/B",
            "-a",
            "a-",
            "a..b",
            "a___b",
            "a._b",
            "a:",
            "a:-x",
            "a:b c",
            "a@",
            "a@sha256:12",
            "a@sha512:12",
            "a b",
            "a\nb",
            "../a",
            "a/../b",
            "a.b:0/c",
            "a.b:99999/c",
            "a.b:x/c",
            "[::g]/a",
            "[::1/a",
            "[::1]x/a",
            "-a.b/c",
            "a..b/c",
            "é",
            "oci:dir:tag",
            "http://a.b/c",
            &hex,
            &long,
            &tag,
        ];
        for text in table {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn targets() {
        let reference = Reference::parse("iris:v1").unwrap();
        assert_eq!(
            (reference.api_host(), reference.target().as_str()),
            ("registry-1.docker.io", "v1")
        );
        let pinned = reference.with_digest(Digest::parse(D).unwrap());
        assert_eq!((pinned.tag(), pinned.target().as_str()), (None, D));
        assert_eq!(pinned.with_tag("v2").unwrap().familiar(), "iris:v2");
        assert!(pinned.with_tag("no/slash").is_err());
    }
}
