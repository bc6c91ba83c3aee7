//! What refers to a manifest: deltas, signatures, chunk hashes. By the referrers API, else by its fallback tag.
//!
//! A registry without the API (docker-registry 2.8, Docker Hub for some accounts) answers 404 to it; the referrers are then an
//! index under the tag `sha256-<hex of the subject>`, which clients keep themselves. Two publishers at once can lose one entry
//! there: where the registry gives an ETag the write is conditional and tried again, elsewhere the index is read back after.

use ureq::http::Method;
use ureq::http::header::{ACCEPT, CONTENT_TYPE, ETAG, IF_MATCH, IF_NONE_MATCH, LINK};

use super::endpoint::escape;
use super::exchange::{COMMIT_WAIT, Failure, Request};
use super::retry::Fault;
use super::{Client, Error, range};
use crate::digest::Digest;
use crate::manifest::{self, Descriptor, Document, Index, MAX_DOCUMENT, Manifest, OCI_EMPTY, OCI_INDEX};
use crate::reference::Reference;

/// A list longer than this many pages is cut off there.
const MAX_PAGES: usize = 16;
/// How often an entry is written again after another publisher's write took its place.
const MAX_RACES: u32 = 5;

/// Where a fallback index begins.
const EMPTY_INDEX: &[u8] =
    br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;

/// What stands under a fallback tag.
enum Fallback {
    Absent,
    /// An index as it came, and its ETag.
    Index {
        bytes: Vec<u8>,
        etag: Option<String>,
    },
    /// A single manifest (some versions of cosign): nothing to list, and nothing to write over.
    Other,
}

/// The tag that stands for the referrers API where there is none (distribution specification, "Referrers Tag Schema").
fn fallback_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}

impl Client {
    /// Lists what refers to the manifest `subject` in `reference`'s repository, of `artifact_type` if given.
    ///
    /// The list is as the registry has it: hostile, unordered, and possibly naming manifests that are gone.
    pub fn list_referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        self.through(reference, |from| self.referrers_at(from, subject, artifact_type))
    }

    fn referrers_at(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, Error> {
        let mut found = match self.referrers_api(reference, subject, artifact_type)? {
            Some(found) => found,
            None => match self.fallback(reference, subject)? {
                Fallback::Index { bytes, .. } => {
                    let what = format!("referrers tag {}", fallback_tag(subject));
                    match Document::parse(&bytes, None) {
                        Ok(Document::Index(index)) => index.manifests,
                        Ok(Document::Manifest(_)) => Vec::new(),
                        Err(source) => return Err(Error::Document { what, source }),
                    }
                }
                Fallback::Absent | Fallback::Other => Vec::new(),
            },
        };
        // An index that some tool wrote without artifactType says nothing: its entry is left in for the caller to look at.
        found.retain(|d| match (&d.artifact_type, artifact_type) {
            (Some(is), Some(wanted)) => is == wanted,
            _ => true,
        });
        Ok(found)
    }

    fn referrers_api(
        &self,
        reference: &Reference,
        subject: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Option<Vec<Descriptor>>, Error> {
        let what = format!("referrers of {subject}");
        let filter = artifact_type
            .map(|t| format!("?artifactType={}", escape(t)))
            .unwrap_or_default();
        let mut found = Vec::new();
        let mut next = None;
        for _ in 0..MAX_PAGES {
            let page = self.persist(reference, &what, || {
                let url = match &next {
                    Some(url) => Clone::clone(url),
                    None => self.url(reference, &format!("referrers/{subject}{filter}"))?,
                };
                let request = Request::new(reference, &what, Method::GET, url).header(ACCEPT, OCI_INDEX);
                let exchange = self.exchange(&request)?;
                match exchange.status() {
                    200 => {}
                    // 404 is "no such API"; some registries say it with 400, 405 or 501.
                    400 | 404 | 405 | 501 => {
                        exchange.drain();
                        return Ok(None);
                    }
                    _ => return Err(exchange.refuse(self, reference, &what)),
                }
                let further = exchange
                    .header(&LINK)
                    .and_then(range::next_link)
                    .and_then(|to| exchange.url.join(to))
                    .filter(|to| to.same_origin(&exchange.url));
                let Some(bytes) = exchange.read(MAX_DOCUMENT)? else {
                    return Err(self.too_large(reference, &what));
                };
                Ok(Some((parse_index(&what, &bytes)?, further)))
            })?;
            let Some((index, further)) = page else {
                return Ok(None);
            };
            found.extend(index.manifests);
            match further {
                Some(url) => next = Some(url),
                None => break,
            }
        }
        Ok(Some(found))
    }

    fn fallback(&self, reference: &Reference, subject: &Digest) -> Result<Fallback, Error> {
        let tag = fallback_tag(subject);
        let what = format!("referrers tag {tag}");
        self.persist(reference, &what, || {
            let url = self.url(reference, &format!("manifests/{tag}"))?;
            let request =
                Request::new(reference, &what, Method::GET, url).header(ACCEPT, manifest::ACCEPT.join(", "));
            let exchange = self.exchange(&request)?;
            match exchange.status() {
                200 => {}
                404 => {
                    exchange.drain();
                    return Ok(Fallback::Absent);
                }
                _ => return Err(exchange.refuse(self, reference, &what)),
            }
            let etag = exchange.header(&ETAG).map(str::to_owned);
            let Some(bytes) = exchange.read(MAX_DOCUMENT)? else {
                return Err(self.too_large(reference, &what));
            };
            match Document::parse(&bytes, None) {
                Ok(Document::Index(_)) => Ok(Fallback::Index { bytes, etag }),
                Ok(Document::Manifest(_)) => Ok(Fallback::Other),
                Err(source) => Err(Error::Document {
                    what: what.clone(),
                    source,
                }
                .into()),
            }
        })
    }

    /// Adds a manifest that was just sent to its subject's fallback index.
    pub(super) fn add_fallback(
        &self,
        reference: &Reference,
        subject: &Descriptor,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let tag = fallback_tag(&subject.digest);
        let what = format!("referrers tag {tag}");
        let refuse = |reason: &str| Error::Protocol {
            what: what.clone(),
            host: reference.registry().to_owned(),
            reason: reason.to_owned(),
        };
        let mut entry = Descriptor::of(media_type, bytes);
        let document = Document::parse(bytes, Some(media_type)).map_err(|source| Error::Document {
            what: what.clone(),
            source,
        })?;
        if let Document::Manifest(manifest) = document {
            entry.artifact_type = Some(artifact_type(&manifest));
            entry.annotations = manifest.annotations;
        }
        for _ in 0..MAX_RACES {
            let (index, etag) = match self.fallback(reference, &subject.digest)? {
                Fallback::Index { bytes, etag } => (bytes, etag),
                Fallback::Absent => (EMPTY_INDEX.to_vec(), None),
                Fallback::Other => return Err(refuse("holds a single manifest, which is not written over")),
            };
            let Some(body) = with_entry(&index, &entry).map_err(|e| refuse(&e.to_string()))? else {
                return Ok(());
            };
            self.persist(reference, &what, || {
                let url = self.url(reference, &format!("manifests/{tag}"))?;
                let request =
                    Request::new(reference, &what, Method::PUT, url).header(CONTENT_TYPE, OCI_INDEX);
                let request = match &etag {
                    Some(etag) => request.header(IF_MATCH, etag.clone()),
                    None => request.header(IF_NONE_MATCH, "*"),
                };
                let exchange = self.exchange(&request.writing(&body, COMMIT_WAIT))?;
                match exchange.status() {
                    // 412: another publisher was faster; the next round reads what it wrote.
                    200 | 201 | 202 | 412 => {
                        exchange.drain();
                        Ok(())
                    }
                    _ => Err(exchange.refuse(self, reference, &what)),
                }
            })?;
        }
        Err(refuse("other publishers keep writing over it"))
    }

    pub(super) fn too_large(&self, reference: &Reference, what: &str) -> Failure {
        let (what, host) = (what.to_owned(), reference.registry().to_owned());
        Error::Protocol {
            what,
            host,
            reason: format!("larger than {MAX_DOCUMENT} bytes"),
        }
        .into()
    }
}

fn parse_index(what: &str, bytes: &[u8]) -> Result<Index, Failure> {
    match Document::parse(bytes, Some(OCI_INDEX)) {
        Ok(Document::Index(index)) => Ok(index),
        Ok(Document::Manifest(_)) => Err(Failure::Retry(Fault::Foreign, format!("{what}: not an index"))),
        Err(source) => Err(Error::Document {
            what: what.to_owned(),
            source,
        }
        .into()),
    }
}

/// A manifest's artifactType as its entry carries it: its own, else its config's media type.
fn artifact_type(manifest: &Manifest) -> String {
    match &manifest.artifact_type {
        Some(artifact_type) => artifact_type.clone(),
        None if manifest.config.media_type == OCI_EMPTY => String::new(),
        None => manifest.config.media_type.clone(),
    }
}

/// The index with one more entry, all else in it unchanged; none when the entry is in it already.
fn with_entry(index: &[u8], entry: &Descriptor) -> Result<Option<Vec<u8>>, serde_json::Error> {
    let mut index: serde_json::Value = serde_json::from_slice(index)?;
    let digest = entry.digest.to_string();
    let entry = serde_json::to_value(entry)?;
    let Some(object) = index.as_object_mut() else {
        return Ok(None);
    };
    let list = object
        .entry("manifests")
        .or_insert_with(|| serde_json::Value::Array(Vec::new()));
    if !list.is_array() {
        *list = serde_json::Value::Array(Vec::new());
    }
    if let Some(list) = list.as_array_mut() {
        if list
            .iter()
            .any(|d| d.get("digest").and_then(|d| d.as_str()) == Some(&digest))
        {
            return Ok(None);
        }
        list.push(entry);
    }
    serde_json::to_vec(&index).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_added_once_and_the_rest_is_kept() {
        let entry = Descriptor::of(manifest::OCI_MANIFEST, b"x");
        let first = with_entry(EMPTY_INDEX, &entry).unwrap().unwrap();
        assert!(
            matches!(Document::parse(&first, Some(OCI_INDEX)), Ok(Document::Index(i)) if i.manifests == [entry.clone()])
        );
        assert_eq!(with_entry(&first, &entry).unwrap(), None);
        let foreign = br#"{"schemaVersion":2,"manifests":[{"digest":"sha256:0","data":"eA=="}],"own":1}"#;
        let text = String::from_utf8(with_entry(foreign, &entry).unwrap().unwrap()).unwrap();
        assert!(
            text.contains(r#""data":"eA==""#)
                && text.contains(r#""own":1"#)
                && text.contains(&entry.digest.to_string())
        );
        assert!(with_entry(br#"{"manifests":null}"#, &entry).unwrap().is_some());
    }
}
