//! Deleting: tags, manifests and blobs. What something else in the store needs stays, and is said to.
//!
//! A store is one pool for all names and for the containers of the board: a manifest goes from a repository when the repository's
//! tags no longer mean it, and its bytes go when no name at all does; a blob that a named image needs is not deleted.

use std::collections::BTreeSet;
use std::sync::PoisonError;

use super::api::{Api, error};
use super::http::Answer;
use super::route::HOME;
use crate::digest::Digest;
use crate::manifest::Document;
use crate::reference::Reference;
use crate::store;

/// Indexes may list indexes; deeper is nobody's image.
const MAX_INDEXES: usize = 4;

impl Api {
    pub(super) fn remove_tag(&self, name: &Reference, tag: &str) -> Result<Answer, store::Error> {
        let Ok(reference) = name.with_tag(tag) else {
            return Ok(error(400, "TAG_INVALID", "not a tag"));
        };
        let _lock = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        match self.store.remove_tag(&reference) {
            Ok(()) => Ok(Answer::new(202)),
            Err(store::Error::NoImage(_)) => Ok(error(404, "MANIFEST_UNKNOWN", "no such tag")),
            Err(e) => Err(e),
        }
    }

    pub(super) fn remove_manifest(&self, name: &Reference, digest: &Digest) -> Result<Answer, store::Error> {
        let _lock = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = self.document_bytes(digest)?;
        if bytes.is_none_or(|bytes| Document::parse(&bytes, None).is_err()) {
            return Ok(error(404, "MANIFEST_UNKNOWN", "no such manifest"));
        }
        let records = self.store.tags()?;
        let pushed = records.iter().filter(|record| {
            let reference = &record.reference;
            record.target.digest == *digest
                && reference.registry() == HOME
                && reference.repository() == name.repository()
        });
        let mut removed = 0;
        for record in pushed {
            self.store.remove_tag(&record.reference)?;
            removed += 1;
        }
        if !self.needed()?.contains(digest) {
            self.store.remove_blob(digest)?;
        } else if removed == 0 {
            let message = "an image of the store needs it; remove that first";
            return Ok(error(405, "UNSUPPORTED", message));
        }
        Ok(Answer::new(202))
    }

    pub(super) fn remove_blob(&self, digest: &Digest) -> Result<Answer, store::Error> {
        let _lock = self.tags.lock().unwrap_or_else(PoisonError::into_inner);
        if !self.store.has_blob(digest) {
            return Ok(error(404, "BLOB_UNKNOWN", "no such blob"));
        }
        if self.needed()?.contains(digest) {
            let message = "an image of the store needs it; remove that first";
            return Ok(error(405, "UNSUPPORTED", message));
        }
        self.store.remove_blob(digest)?;
        Ok(Answer::new(202))
    }

    /// Everything that the store's names lead to: manifests, configs and layers.
    fn needed(&self) -> Result<BTreeSet<Digest>, store::Error> {
        let mut needed = BTreeSet::new();
        let records = self.store.tags()?.into_iter();
        let mut next: Vec<Digest> = records.map(|record| record.target.digest).collect();
        for _ in 0..MAX_INDEXES {
            let mut found = Vec::new();
            for digest in next {
                if !needed.insert(digest) {
                    continue;
                }
                let Some(bytes) = self.document_bytes(&digest)? else {
                    continue;
                };
                match Document::parse(&bytes, None) {
                    Ok(Document::Manifest(m)) => {
                        needed.extend(m.layers.iter().chain([&m.config]).map(|d| d.digest));
                    }
                    Ok(Document::Index(index)) => found.extend(index.manifests.iter().map(|d| d.digest)),
                    Err(_) => {}
                }
            }
            next = found;
        }
        needed.extend(next);
        Ok(needed)
    }
}
