//! Collection: what nothing needs any more goes, what anything needs stays.
//!
//! ```text
//! roots:  tags, what the caller says is in use (containers, desired pods), leases, for a narrow scope other images too
//! marked: the roots' documents, their configs, their layers, what refers to them, and so on
//! gone:   the scope's tags --sync--> documents and blobs, layers out of sight --sync--> layers' files
//! ```
//!
//! The store's lock is held alone from the first look until everything is out of sight, so nobody can name, lease or find
//! anything in between; files are deleted after it is given back. A document that is needed and damaged hides what it needs: then
//! no blob and no layer is touched at all. A cut at any point leaves complete things under their names: tags go first, durably,
//! and a layer has no name when its files go.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use rustix::fs::FlockOperation;

use super::durable::{self, Want};
use super::lease::Held;
use super::tags::{Record, read_record};
use super::{Error, Image, Store};
use crate::digest::{DiffId, Digest};
use crate::disk;
use crate::manifest::{Descriptor, Document, ImageConfig, MAX_DOCUMENT};
use crate::reference::Reference;

/// How long a partial blob that nobody holds is kept for a pull that goes on: a board may be offline for days.
const PARTIAL_AGE: Duration = Duration::from_secs(7 * 24 * 3600);
/// How long a blob that nothing names is kept while this store is served: it may be a part of a push whose manifest comes last.
const PUSH_AGE: Duration = Duration::from_secs(24 * 3600);

/// What is in use for reasons that the store does not know.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct InUse {
    /// Manifests that containers are made of, or that pods want or fall back to.
    pub images: BTreeSet<Digest>,
    /// Names that pods want: their tags stay.
    pub names: BTreeSet<Reference>,
}

/// How much is collected. Whatever is in use stays in each.
#[derive(Clone, Copy)]
pub enum Scope<'a> {
    /// What belongs to this manifest or index alone.
    Document(Digest),
    /// Images without a name (those that the predicate admits), and what belongs to no image.
    Dangling(&'a dyn Fn(&Image) -> bool),
    /// The same, and images whose names nobody uses: these are forgotten.
    Unused(&'a dyn Fn(&Image) -> bool),
    /// The same, and every partial blob that nobody holds: what was fetched of it is fetched again.
    All(&'a dyn Fn(&Image) -> bool),
}

/// What a collection did.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Collected {
    /// Names that were forgotten.
    pub untagged: Vec<Reference>,
    /// Blobs that are gone: documents and layers' blobs.
    pub blobs: Vec<Digest>,
    /// The configs among them: image IDs.
    pub images: Vec<Digest>,
    /// Layers that are gone.
    pub layers: Vec<DiffId>,
    /// Partial blobs that are gone.
    pub partials: usize,
    /// The bytes that all of it took.
    pub bytes: u64,
    /// A document that is needed and damaged: on its account no blob and no layer was touched.
    pub damaged: Option<String>,
}

/// What is reachable, and whether something on the way was unreadable.
#[derive(Default)]
struct Marks {
    held: Held,
    damaged: Option<String>,
}

impl Store {
    /// Removes what the scope covers and nothing needs. `in_use` is asked under the store's lock; where it cannot tell, nothing
    /// is touched.
    pub fn collect(
        &self,
        scope: Scope<'_>,
        in_use: &mut dyn FnMut() -> Result<InUse, Error>,
    ) -> Result<Collected, Error> {
        let lock = self.lock(Want::Wait)?;
        let in_use = in_use()?;
        let leases = self.leases()?;
        let mut done = Collected::default();
        let mut roots = leases.blobs.clone();
        roots.extend(&in_use.images);
        let damaged_tag = self.untag(scope, &in_use, &leases, &mut roots, &mut done)?;
        let mut marks = Marks {
            held: leases,
            damaged: damaged_tag,
        };
        self.mark(roots, &mut marks)?;
        let kept = self.kept_images(scope, &marks)?;
        self.mark(kept, &mut marks)?;
        self.mark_referrers(&mut marks)?;
        done.damaged = marks.damaged.take();
        if done.damaged.is_none() {
            let candidates = self.candidates(scope)?;
            self.drop_blobs(&candidates, &marks.held, &mut done)?;
            self.drop_layers(&candidates, &marks.held, &mut done)?;
        }
        let age = match scope {
            Scope::Document(_) => None,
            Scope::Dangling(_) | Scope::Unused(_) => Some(PARTIAL_AGE),
            Scope::All(_) => Some(Duration::ZERO),
        };
        if let Some(age) = age {
            self.drop_partials(age, &mut done)?;
        }
        drop(lock);
        self.sweep()?;
        Ok(done)
    }

    /// Forgets the names that the scope gives up, durably, and adds what the others mean to the roots. A record that cannot be
    /// read means who knows what: that is answered.
    fn untag(
        &self,
        scope: Scope<'_>,
        in_use: &InUse,
        leases: &Held,
        roots: &mut BTreeSet<Digest>,
        done: &mut Collected,
    ) -> Result<Option<String>, Error> {
        let mut damaged = None;
        for (name, path) in durable::names(&self.image_dir())? {
            if name.starts_with('.') {
                continue;
            }
            let record = match read_record(path.clone()) {
                Ok(Some(record)) => record,
                Ok(None) => continue,
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(e) => {
                    damaged = Some(e.to_string());
                    continue;
                }
            };
            if let Scope::Unused(admits) | Scope::All(admits) = scope
                && !in_use.names.contains(&record.reference)
                && self.is_unused(&record, in_use, leases, admits)?
            {
                disk::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
                done.untagged.push(record.reference);
            } else {
                roots.insert(record.target.digest);
            }
        }
        if !done.untagged.is_empty() {
            // Before anything goes: a name that came back after a power cut would be one of nothing.
            durable::sync_dir(&self.image_dir())?;
        }
        Ok(damaged)
    }

    fn is_unused(
        &self,
        record: &Record,
        in_use: &InUse,
        leases: &Held,
        admits: &dyn Fn(&Image) -> bool,
    ) -> Result<bool, Error> {
        let mut reached = Marks::default();
        self.mark(BTreeSet::from([record.target.digest]), &mut reached)?;
        if reached.damaged.is_some() {
            return Ok(false);
        }
        let blobs = &reached.held.blobs;
        let used = !blobs.is_disjoint(&in_use.images) || leases.blobs.contains(&record.target.digest);
        // An artifact is no image: whoever stored it says when it goes.
        Ok(!used && self.image_of(record)?.is_some_and(|image| admits(&image)))
    }

    /// Images without a name that stay although nothing needs them: all that the scope is not about.
    fn kept_images(&self, scope: Scope<'_>, marks: &Marks) -> Result<BTreeSet<Digest>, Error> {
        let mut kept = BTreeSet::new();
        for (digest, document) in self.documents()? {
            if marks.held.blobs.contains(&digest) {
                continue;
            }
            let stays = match (scope, &document) {
                (Scope::Document(own), _) => digest != own,
                (
                    Scope::Dangling(admits) | Scope::Unused(admits) | Scope::All(admits),
                    Document::Manifest(m),
                ) if m.is_image() => {
                    // One that is not whole is no image that anybody could want back.
                    self.image(&digest).is_ok_and(|image| !admits(&image))
                }
                _ => false,
            };
            if stays {
                kept.insert(digest);
            }
        }
        let Scope::Document(own) = scope else {
            return Ok(kept);
        };
        // What the document itself consists of is what this is about.
        let mut own_parts = Marks::default();
        self.mark(BTreeSet::from([own]), &mut own_parts)?;
        kept.retain(|digest| !own_parts.held.blobs.contains(digest));
        Ok(kept)
    }

    /// The images that no name leads to, as far as they are whole documents. What they take goes with a collection.
    pub fn dangling(&self) -> Result<Vec<Image>, Error> {
        let mut named = Marks::default();
        let targets = self.tags()?.into_iter().map(|record| record.target.digest);
        self.mark(targets.collect(), &mut named)?;
        let documents = self.documents()?.into_iter();
        let unnamed = documents.filter(|(digest, document)| {
            matches!(document, Document::Manifest(m) if m.is_image()) && !named.held.blobs.contains(digest)
        });
        Ok(unnamed
            .filter_map(|(digest, _)| self.image(&digest).ok())
            .collect())
    }

    /// Every manifest and index that is here.
    fn documents(&self) -> Result<Vec<(Digest, Document)>, Error> {
        let mut found = Vec::new();
        for (name, path) in durable::names(&self.blob_dir())? {
            let Some(digest) = Digest::from_hex(&name) else {
                continue;
            };
            if !path.metadata().is_ok_and(|meta| meta.len() <= MAX_DOCUMENT) {
                continue;
            }
            // A layer's blob, a config, a damaged one: not a document that keeps anything.
            let Ok(Some(bytes)) = self.unleased_document(&digest) else {
                continue;
            };
            if let Ok(document) = Document::parse(&bytes, None) {
                found.push((digest, document));
            }
        }
        Ok(found)
    }

    /// Marks what the roots reach.
    fn mark(&self, roots: BTreeSet<Digest>, marks: &mut Marks) -> Result<(), Error> {
        let mut todo: Vec<(Digest, Option<String>)> = roots.into_iter().map(|root| (root, None)).collect();
        let mut seen = BTreeSet::new();
        while let Some((digest, media_type)) = todo.pop() {
            marks.held.blobs.insert(digest);
            if !seen.insert(digest) {
                continue;
            }
            let leaf = media_type
                .as_deref()
                .is_some_and(|kind| !crate::manifest::ACCEPT.contains(&kind));
            if leaf {
                continue;
            }
            let bytes = match self.unleased_document(&digest) {
                Ok(Some(bytes)) => bytes,
                Ok(None) => continue,
                Err(e @ Error::Io { .. }) => return Err(e),
                // Larger than any document: a layer's blob that is leased.
                Err(Error::Broken { .. }) => continue,
                Err(e) => {
                    marks.damaged = Some(e.to_string());
                    continue;
                }
            };
            // Whatever else a lease may name: a config, a layer's blob.
            let Ok(document) = Document::parse(&bytes, None) else {
                continue;
            };
            let next = |d: &Descriptor| (d.digest, Some(d.media_type.clone()));
            match document {
                Document::Index(index) => todo.extend(index.manifests.iter().chain(&index.subject).map(next)),
                Document::Manifest(manifest) => {
                    if manifest.is_image() {
                        self.mark_layers(&manifest.config.digest, marks)?;
                    }
                    let parts = manifest.layers.iter().chain([&manifest.config]);
                    marks.held.blobs.extend(parts.map(|part| part.digest));
                    todo.extend(manifest.subject.iter().map(next));
                }
            }
        }
        Ok(())
    }

    fn mark_layers(&self, config: &Digest, marks: &mut Marks) -> Result<(), Error> {
        match self.unleased_document(config) {
            Ok(Some(bytes)) => {
                if let Ok(config) = ImageConfig::parse(&bytes) {
                    marks.held.layers.extend(config.rootfs.diff_ids);
                }
                Ok(())
            }
            Ok(None) => Ok(()),
            Err(e @ Error::Io { .. }) => Err(e),
            Err(e) => {
                marks.damaged = Some(e.to_string());
                Ok(())
            }
        }
    }

    /// As [`document`](Self::document), without taking a lease on it: this is the one who asks for leases.
    fn unleased_document(&self, digest: &Digest) -> Result<Option<Vec<u8>>, Error> {
        let plain = Self {
            lease: None,
            ..self.clone()
        };
        plain.document(digest)
    }

    /// Marks what refers to what is marked: signatures, deltas and the like, as a served store lists them.
    fn mark_referrers(&self, marks: &mut Marks) -> Result<(), Error> {
        let dir = self.root.join("referrers");
        loop {
            let before = marks.held.blobs.len();
            for (name, path) in durable::names(&dir)? {
                let subject = name.strip_suffix(".json").and_then(Digest::from_hex);
                if !subject.is_some_and(|subject| marks.held.blobs.contains(&subject)) {
                    continue;
                }
                let Some(bytes) = durable::read_bounded(&path, MAX_DOCUMENT)? else {
                    continue;
                };
                match Document::parse(&bytes, None) {
                    Ok(Document::Index(index)) => {
                        self.mark(index.manifests.iter().map(|d| d.digest).collect(), marks)?;
                    }
                    _ => marks.damaged = Some(format!("{}: it is not an index", path.display())),
                }
            }
            if marks.held.blobs.len() == before {
                return Ok(());
            }
        }
    }

    /// What the scope may remove; `None` is everything.
    fn candidates(&self, scope: Scope<'_>) -> Result<Option<Held>, Error> {
        let Scope::Document(digest) = scope else {
            return Ok(None);
        };
        let mut marks = Marks::default();
        self.mark(BTreeSet::from([digest]), &mut marks)?;
        Ok(Some(marks.held))
    }

    fn drop_blobs(&self, candidates: &Option<Held>, kept: &Held, done: &mut Collected) -> Result<(), Error> {
        let dir = self.blob_dir();
        let served = self.is_served()?;
        for (name, path) in durable::names(&dir)? {
            let Some(digest) = Digest::from_hex(&name) else {
                continue;
            };
            let covered = candidates.as_ref().is_none_or(|c| c.blobs.contains(&digest));
            if !covered || kept.blobs.contains(&digest) || (served && !is_older(&path, PUSH_AGE)) {
                continue;
            }
            let is_config = matches!(self.unleased_document(&digest), Ok(Some(bytes)) if is_config(&bytes));
            let size = path.metadata().map_or(0, |meta| meta.len());
            disk::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            done.bytes = done.bytes.saturating_add(size);
            done.blobs.push(digest);
            if is_config {
                done.images.push(digest);
            }
        }
        if done.blobs.is_empty() {
            return Ok(());
        }
        durable::sync_dir(&dir)
    }

    fn drop_layers(&self, candidates: &Option<Held>, kept: &Held, done: &mut Collected) -> Result<(), Error> {
        for diff_id in self.layers()? {
            let covered = candidates.as_ref().is_none_or(|c| c.layers.contains(&diff_id));
            if !covered || kept.layers.contains(&diff_id) {
                continue;
            }
            let size = match self.layer_size(&diff_id) {
                Ok(size) => size,
                Err(e @ Error::Io { .. }) => return Err(e),
                Err(_) => 0,
            };
            self.hide_layer(&diff_id)?;
            done.bytes = done.bytes.saturating_add(size);
            done.layers.push(diff_id);
        }
        if done.layers.is_empty() {
            return Ok(());
        }
        // Before a file of theirs goes: a layer that came back after a power cut would be one with holes.
        durable::sync_dir(&self.layers_dir())
    }

    /// Removes partial blobs that nobody holds and nobody has written to for that long.
    fn drop_partials(&self, age: Duration, done: &mut Collected) -> Result<(), Error> {
        let dir = self.partial_dir();
        for (name, path) in durable::names(&dir)? {
            if name.starts_with('.') || name.ends_with(".json") || !is_older(&path, age) {
                continue;
            }
            let open = |path: &std::path::Path| std::fs::OpenOptions::new().read(true).open(path);
            let Some(lock) = durable::lock(&path, Want::Try, open)? else {
                continue;
            };
            let size = lock.file.metadata().map_or(0, |meta| meta.len());
            disk::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
            // Facts without their bytes mean nothing; these are swept below if this fails.
            let _ = disk::remove_file(&dir.join(format!("{name}.json")));
            done.bytes = done.bytes.saturating_add(size);
            done.partials += 1;
        }
        self.drop_facts(age)
    }

    /// Removes facts whose bytes went away without them, and halves of them.
    fn drop_facts(&self, age: Duration) -> Result<(), Error> {
        let dir = self.partial_dir();
        for (name, path) in durable::names(&dir)? {
            let bytes = name
                .strip_suffix(".json.tmp")
                .or_else(|| name.strip_suffix(".json"));
            let Some(bytes) = bytes.map(|name| dir.join(name.trim_start_matches('.'))) else {
                continue;
            };
            if bytes.exists() || !is_older(&path, age) {
                continue;
            }
            // Whoever begins this blob now makes its bytes first, and holds them: these facts are not read any more.
            let Some(_lock) = durable::lock(&bytes, Want::Try, disk::open_or_make)? else {
                continue;
            };
            let _ = disk::remove_file(&path);
            let _ = disk::remove_file(&bytes);
        }
        Ok(())
    }

    /// Whether a registry serves this store.
    fn is_served(&self) -> Result<bool, Error> {
        let path = self.root.join("serving");
        let file = match std::fs::File::open(&path) {
            Ok(file) => file,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(e) => return Err(Error::io("open", &path, e)),
        };
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(true),
            Err(e) => Err(Error::io("lock", &path, e.into())),
        }
    }

    fn layer_size(&self, diff_id: &DiffId) -> Result<u64, Error> {
        let plain = Self {
            lease: None,
            ..self.clone()
        };
        Ok(plain.layer_info(diff_id)?.map_or(0, |info| info.data_size))
    }
}

fn is_config(bytes: &[u8]) -> bool {
    Document::parse(bytes, None).is_err()
        && ImageConfig::parse(bytes).is_ok_and(|config| !config.rootfs.diff_ids.is_empty())
}

/// Whether a file was last written that long ago. One from the future, on a board without a clock, was not.
fn is_older(path: &std::path::Path, age: Duration) -> bool {
    let written = path.symlink_metadata().and_then(|meta| meta.modified());
    let since = written
        .ok()
        .and_then(|written| SystemTime::now().duration_since(written).ok());
    age.is_zero() || since.is_some_and(|since| since >= age)
}

#[cfg(test)]
mod tests;
