//! Manifests and indexes: small documents, fetched whole and verified, sent with their bytes unchanged.

use ureq::http::Method;
use ureq::http::header::{ACCEPT, CONTENT_TYPE, HeaderName};

use super::exchange::{COMMIT_WAIT, Failure, Request};
use super::retry::Fault;
use super::{Client, Error};
use crate::digest::Digest;
use crate::manifest::{self, Descriptor, Document, MAX_DOCUMENT};
use crate::reference::Reference;

const DOCKER_CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");
const OCI_SUBJECT: HeaderName = HeaderName::from_static("oci-subject");

/// A document as the registry sent it.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// Its bytes, of which the digest is one.
    pub bytes: Vec<u8>,
    /// What the registry called it; `Document::parse` has the last word.
    pub media_type: String,
    /// The digest of the bytes. When the reference named one, it is this one.
    pub digest: Digest,
}

impl Fetched {
    /// Reads the document.
    pub fn document(&self) -> Result<Document, manifest::Error> {
        let known = manifest::ACCEPT.contains(&self.media_type.as_str());
        Document::parse(&self.bytes, known.then_some(self.media_type.as_str()))
    }
}

/// What a HEAD told about a manifest. Not verified: nothing was read that could be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// The digest the registry says it has.
    pub digest: Option<Digest>,
    /// Its media type.
    pub media_type: String,
    /// Its length in bytes, 0 when unknown.
    pub size: u64,
}

/// How an error names a document: `manifest localhost:5000/iris:v1`.
fn name(reference: &Reference) -> String {
    format!("manifest {}", reference.familiar())
}

impl Client {
    /// Fetches the manifest or index that `reference` names; by its digest when it has one, which is then verified.
    pub fn get_manifest(&self, reference: &Reference) -> Result<Fetched, Error> {
        self.through(reference, |from| self.manifest_at(from))
    }

    fn manifest_at(&self, reference: &Reference) -> Result<Fetched, Error> {
        let what = name(reference);
        self.persist(reference, &what, || {
            let url = self.url(reference, &format!("manifests/{}", reference.target()))?;
            let request =
                Request::new(reference, &what, Method::GET, url).header(ACCEPT, manifest::ACCEPT.join(", "));
            let exchange = self.exchange(&request)?;
            if exchange.status() != 200 {
                return Err(exchange.refuse(self, reference, &what));
            }
            let media_type = exchange.header(&CONTENT_TYPE).unwrap_or_default();
            let media_type = media_type.split(';').next().unwrap_or_default().trim().to_owned();
            if media_type == "text/html" {
                let reason =
                    "a web page instead of a manifest: a captive portal or a proxy answers for the registry";
                return Err(Failure::Retry(Fault::Foreign, reason.to_owned()));
            }
            let announced = exchange
                .header(&DOCKER_CONTENT_DIGEST)
                .and_then(|d| Digest::parse(d).ok());
            let Some(bytes) = exchange.read(MAX_DOCUMENT)? else {
                let host = reference.registry().to_owned();
                let reason = format!("larger than {MAX_DOCUMENT} bytes, which no manifest is");
                return Err(Error::Protocol {
                    what: what.clone(),
                    host,
                    reason,
                }
                .into());
            };
            let digest = Digest::of(&bytes);
            // By tag the registry's own header is the only check there is against a flipped bit on the way.
            if let Some(expected) = reference.digest().copied().or(announced)
                && expected != digest
            {
                let size = bytes.len() as u64;
                return Err(Error::Digest {
                    what: what.clone(),
                    expected,
                    got: digest,
                    size,
                }
                .into());
            }
            Ok(Fetched {
                bytes,
                media_type,
                digest,
            })
        })
    }

    /// Asks whether the manifest is there, and which it is, without fetching it. Registries do not count HEADs as pulls.
    pub fn head_manifest(&self, reference: &Reference) -> Result<Option<Head>, Error> {
        let found = self.through(reference, |from| {
            self.head_at(from)?.ok_or_else(|| Error::NotFound {
                what: name(from),
                host: from.registry().to_owned(),
            })
        });
        match found {
            Err(Error::NotFound { .. }) => Ok(None),
            other => other.map(Some),
        }
    }

    fn head_at(&self, reference: &Reference) -> Result<Option<Head>, Error> {
        let what = name(reference);
        self.persist(reference, &what, || {
            let url = self.url(reference, &format!("manifests/{}", reference.target()))?;
            let request =
                Request::new(reference, &what, Method::HEAD, url).header(ACCEPT, manifest::ACCEPT.join(", "));
            let exchange = self.exchange(&request)?;
            match exchange.status() {
                200 => Ok(Some(Head {
                    digest: exchange
                        .header(&DOCKER_CONTENT_DIGEST)
                        .and_then(|d| Digest::parse(d).ok()),
                    media_type: exchange.header(&CONTENT_TYPE).unwrap_or_default().to_owned(),
                    size: exchange.length().unwrap_or(0),
                })),
                404 => Ok(None),
                _ => Err(exchange.refuse(self, reference, &what)),
            }
        })
    }

    /// Sends a manifest or index under what `reference` names, its bytes unchanged. What it lists must be there already.
    ///
    /// With a `subject` it becomes findable by [`Client::list_referrers`]: where the registry does not keep referrers itself,
    /// the subject's fallback tag is written too.
    pub fn put_manifest(
        &self,
        reference: &Reference,
        media_type: &str,
        bytes: &[u8],
        subject: Option<&Descriptor>,
    ) -> Result<Digest, Error> {
        let what = name(reference);
        let digest = Digest::of(bytes);
        if let Some(expected) = reference.digest().copied().filter(|expected| *expected != digest) {
            return Err(Error::Digest {
                what,
                expected,
                got: digest,
                size: bytes.len() as u64,
            });
        }
        let keeps_referrers = self.persist(reference, &what, || {
            let url = self.url(reference, &format!("manifests/{}", reference.target()))?;
            let request = Request::new(reference, &what, Method::PUT, url)
                .header(CONTENT_TYPE, media_type)
                .writing(bytes, COMMIT_WAIT);
            let exchange = self.exchange(&request)?;
            match exchange.status() {
                200..=202 => {
                    let keeps = exchange.header(&OCI_SUBJECT).is_some();
                    let answered = exchange
                        .header(&DOCKER_CONTENT_DIGEST)
                        .and_then(|d| Digest::parse(d).ok());
                    exchange.drain();
                    if let Some(got) = answered.filter(|got| *got != digest) {
                        let size = bytes.len() as u64;
                        return Err(Error::Digest {
                            what: what.clone(),
                            expected: digest,
                            got,
                            size,
                        }
                        .into());
                    }
                    Ok(keeps)
                }
                _ => Err(exchange.refuse(self, reference, &what)),
            }
        })?;
        if let Some(subject) = subject
            && !keeps_referrers
        {
            self.add_fallback(reference, subject, media_type, bytes)?;
        }
        Ok(digest)
    }
}
