//! What refers to a served manifest: `STATE/referrers/<hex of the subject>.json`, an image index, replaced by rename.
//!
//! The file is a finding aid and no truth of its own: an entry whose manifest is gone is left out of an answer.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, Index, MAX_DOCUMENT, OCI_INDEX};
use crate::store::Store;

/// All referrers of a server. One process writes them: the server holds the store's serving lock.
pub(super) struct Referrers {
    folder: PathBuf,
    lock: Mutex<()>,
}

impl Referrers {
    pub(super) fn open(store: &Store) -> std::io::Result<Referrers> {
        let folder = store.root().join("referrers");
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => return Err(e),
            _ => {}
        }
        Ok(Referrers {
            folder,
            lock: Mutex::default(),
        })
    }

    fn path(&self, subject: &Digest) -> PathBuf {
        self.folder.join(format!("{}.json", subject.hex()))
    }

    /// The manifests that refer to `subject`, in the order they came.
    pub(super) fn of(&self, subject: &Digest) -> std::io::Result<Vec<Descriptor>> {
        let file = match File::open(self.path(subject)) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(e) => return Err(e),
        };
        let mut bytes = Vec::new();
        file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes)?;
        match Document::parse(&bytes, Some(OCI_INDEX)) {
            Ok(Document::Index(index)) => Ok(index.manifests),
            _ => Err(std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                "referrers file is not an index",
            )),
        }
    }

    /// Adds one, durably.
    pub(super) fn add(&self, subject: &Digest, entry: Descriptor) -> std::io::Result<()> {
        let _lock = self.lock.lock().unwrap_or_else(PoisonError::into_inner);
        let mut manifests = self.of(subject)?;
        if manifests.iter().any(|d| d.digest == entry.digest) {
            return Ok(());
        }
        manifests.push(entry);
        let bytes = serde_json::to_vec(&index(manifests))?;
        if bytes.len() as u64 > MAX_DOCUMENT {
            return Err(std::io::Error::new(
                std::io::ErrorKind::QuotaExceeded,
                "too many referrers of one manifest",
            ));
        }
        let temporary = self.folder.join(format!(".{}.tmp", subject.hex()));
        let mut options = fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, self.path(subject))?;
        File::open(&self.folder)?.sync_all()
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
