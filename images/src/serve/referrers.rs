//! What refers to a served manifest: `STATE/referrers/<hex of the subject>.json`, an image index, replaced by rename.
//!
//! The file is a finding aid and no truth of its own: an entry whose manifest is gone is left out of an answer.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, Index, MAX_DOCUMENT, OCI_INDEX};
use crate::store::{self, Store, durable};

/// All referrers of a server. One process writes them: the server holds the store's serving lock.
pub(super) struct Referrers {
    folder: PathBuf,
    lock: Mutex<()>,
}

impl Referrers {
    pub(super) fn open(store: &Store) -> Result<Referrers, store::Error> {
        let folder = store.root().join("referrers");
        durable::make_dir(&folder)?;
        Ok(Referrers {
            folder,
            lock: Mutex::default(),
        })
    }

    fn name(subject: &Digest) -> String {
        format!("{}.json", subject.hex())
    }

    /// The manifests that refer to `subject`, in the order they came.
    pub(super) fn of(&self, subject: &Digest) -> Result<Vec<Descriptor>, store::Error> {
        let path = self.folder.join(Self::name(subject));
        let Some(bytes) = durable::read_bounded(&path, MAX_DOCUMENT)? else {
            return Ok(Vec::new());
        };
        match Document::parse(&bytes, Some(OCI_INDEX))? {
            Document::Index(index) => Ok(index.manifests),
            Document::Manifest(_) => Err(store::Error::Broken {
                path,
                reason: "it is not an index".to_owned(),
            }),
        }
    }

    /// Adds one, durably.
    pub(super) fn add(&self, subject: &Digest, entry: Descriptor) -> Result<(), store::Error> {
        let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut manifests = self.of(subject)?;
        if manifests.iter().any(|d| d.digest == entry.digest) {
            return Ok(());
        }
        manifests.push(entry);
        let name = Self::name(subject);
        let bytes = store::to_json(&index(manifests), &self.folder.join(&name))?;
        let size = bytes.len() as u64;
        if size > MAX_DOCUMENT {
            let what = "list of referrers";
            return Err(crate::manifest::Error::TooLarge { what, size }.into());
        }
        durable::replace(&self.folder, &name, &bytes)
    }
}

/// An index over `manifests`, as the referrers API answers it.
pub(super) fn index(manifests: Vec<Descriptor>) -> Index {
    Index {
        schema_version: 2,
        media_type: Some(OCI_INDEX.to_owned()),
        artifact_type: None,
        manifests,
        subject: None,
        annotations: std::collections::BTreeMap::new(),
    }
}
