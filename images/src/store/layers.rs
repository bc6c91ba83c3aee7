//! Layers: unpacked once, by diffID, and never changed.
//!
//! ```text
//! layers/.work-<hex>   flocked by whoever unpacks; swept when its lock is free
//!    tree/ metadata    made in the cage
//!    layer.json        written when the diffID was right; then everything is synced at once
//! layers/<hex>         the same directory, renamed: from here on it counts
//! ```

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::durable::{self, Lock, Want};
use super::{Error, Store, to_json};
use crate::digest::DiffId;
use crate::disk;
use crate::unpack::{Encoding, Limits, RECIPE, Summary, TREE};

pub use crate::cage::Input;

/// The layer's description, beside its tree.
const LAYER_FILE: &str = "layer.json";
/// It is a few numbers.
const MAX_LAYER_FILE: u64 = 64 << 10;
/// What a directory is called while it is not yet a layer.
pub(super) const WORK_PREFIX: &str = ".work-";
/// What it is called when it is a layer no more.
const GONE_PREFIX: &str = ".gone-";

/// `layer.json`: what is known about an unpacked layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct LayerInfo {
    version: u32,
    /// The digest of the uncompressed tar.
    pub diff_id: DiffId,
    /// Whose the files are.
    pub ownership: Ownership,
    /// The length of the uncompressed tar.
    pub tar_size: u64,
    /// Bytes of file contents.
    pub data_size: u64,
    /// Files, directories, links and whiteouts.
    pub entries: u64,
    /// Device nodes left out.
    pub devices: u64,
}

/// Whose the files of a tree are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Ownership {
    /// All of them the user's that unpacked; the owners that the tar names are in `metadata`.
    Single,
}

impl Store {
    /// The unpacked tree of a layer, to be used as a lower directory and never to be written to.
    pub fn layer(&self, diff_id: &DiffId) -> Result<Option<PathBuf>, Error> {
        Ok(self
            .layer_info(diff_id)?
            .map(|_| self.layers_dir().join(diff_id.hex()).join(TREE)))
    }

    /// Whether a layer is here, whole.
    pub fn has_layer(&self, diff_id: &DiffId) -> bool {
        // What cannot be leased may be gone before it is used.
        self.hold_layer(diff_id).is_ok() && self.layers_dir().join(diff_id.hex()).is_dir()
    }

    /// Whether a layer's tar can be made again.
    pub fn has_recipe(&self, diff_id: &DiffId) -> bool {
        self.has_layer(diff_id) && self.layers_dir().join(diff_id.hex()).join(RECIPE).is_file()
    }

    /// What is known about a layer.
    pub fn layer_info(&self, diff_id: &DiffId) -> Result<Option<LayerInfo>, Error> {
        self.hold_layer(diff_id)?;
        let dir = self.layers_dir().join(diff_id.hex());
        let path = dir.join(LAYER_FILE);
        let Some(bytes) = durable::read_bounded(&path, MAX_LAYER_FILE)? else {
            return Ok(None);
        };
        let broken = |reason: String| Error::Broken {
            path: path.clone(),
            reason,
        };
        let info: LayerInfo = serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()))?;
        if info.version != 1 || info.diff_id != *diff_id {
            return Err(broken(format!(
                "it describes layer {} in version {}",
                info.diff_id, info.version
            )));
        }
        Ok(Some(info))
    }

    /// Every layer that is here.
    pub fn layers(&self) -> Result<BTreeSet<DiffId>, Error> {
        let names = durable::names(&self.layers_dir())?;
        Ok(names
            .iter()
            .filter_map(|(name, _)| DiffId::from_hex(name))
            .collect())
    }

    /// Every layer that a tagged image wants, here or not.
    pub fn layers_in_use(&self) -> Result<BTreeSet<DiffId>, Error> {
        let mut used = BTreeSet::new();
        for record in self.images()? {
            used.extend(self.image(&record.digest)?.diff_ids);
        }
        Ok(used)
    }

    /// Unpacks a layer in the cage and makes it the store's, if its diffID is right. A layer that is there already costs nothing;
    /// one that another process is unpacking is waited for.
    pub fn unpack_layer(
        &self,
        diff_id: &DiffId,
        input: Input<'_>,
        encoding: &Encoding,
        limits: &Limits,
    ) -> Result<LayerInfo, Error> {
        if let Some(info) = self.layer_info(diff_id)? {
            return Ok(info);
        }
        let work = self.layers_dir().join(format!("{WORK_PREFIX}{}", diff_id.hex()));
        let lock = begin(&work)?;
        if let Some(info) = self.layer_info(diff_id)? {
            durable::remove_tree(&work)?;
            return Ok(info);
        }
        let made = self.make_layer(diff_id, input, encoding, limits, &work, &lock);
        if made.is_err() {
            // The first error is the one to tell; what cannot be removed now is swept later.
            let _ = durable::remove_tree(&work);
        }
        made
    }

    fn make_layer(
        &self,
        diff_id: &DiffId,
        input: Input<'_>,
        encoding: &Encoding,
        limits: &Limits,
        work: &Path,
        lock: &Lock,
    ) -> Result<LayerInfo, Error> {
        let limits = &Limits {
            room: limits.room.min(self.room()?),
            ..*limits
        };
        let unpacked = self.cage.unpack(input, encoding, limits, &lock.file);
        let summary = unpacked.map_err(|source| match source {
            crate::cage::Error::Refused { no_space: true, .. } => Error::NoSpace {
                action: "unpack a layer into",
                path: work.to_owned(),
            },
            source => Error::Layer {
                diff_id: *diff_id,
                source,
            },
        })?;
        let Summary {
            diff_id: got,
            tar_size,
            data_size,
            entries,
            devices,
        } = summary;
        if got != *diff_id {
            return Err(Error::DiffId {
                expected: *diff_id,
                got,
                bytes: tar_size,
            });
        }
        let ownership = Ownership::Single;
        let info = LayerInfo {
            version: 1,
            diff_id: got,
            ownership,
            tar_size,
            data_size,
            entries,
            devices,
        };
        let path = work.join(LAYER_FILE);
        disk::write_new(&path, &to_json(&info, &path)?).map_err(|e| Error::io("write", &path, e))?;
        // One call for a tree of thousands of files, where a sync for each would wear the card.
        disk::sync_file_system(&lock.file).map_err(|e| Error::io("sync", work, e))?;
        let dir = self.layers_dir();
        disk::rename(work, &dir.join(diff_id.hex())).map_err(|e| Error::io("rename", work, e))?;
        durable::sync_dir(&dir)?;
        Ok(info)
    }

    /// Takes a layer out of sight, under the store's lock; [`sweep`](Self::sweep) removes it once the directory is synced.
    pub(super) fn hide_layer(&self, diff_id: &DiffId) -> Result<(), Error> {
        let dir = self.layers_dir();
        let path = dir.join(diff_id.hex());
        for n in 0_u32..u32::MAX {
            let gone = dir.join(format!("{GONE_PREFIX}{}-{n}", diff_id.hex()));
            if gone.symlink_metadata().is_ok() {
                continue;
            }
            return match disk::rename(&path, &gone) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io("remove", &path, e)),
                _ => Ok(()),
            };
        }
        Err(Error::io("remove", &path, io::ErrorKind::AlreadyExists.into()))
    }

    /// Removes what dead processes left half-made, and layers that were taken out of sight.
    pub(super) fn sweep(&self) -> Result<(), Error> {
        for (name, path) in durable::names(&self.layers_dir())? {
            if !name.starts_with(WORK_PREFIX) && !name.starts_with(GONE_PREFIX) {
                continue;
            }
            if let Some(_lock) = durable::lock(&path, Want::Try, open_dir)? {
                durable::remove_tree(&path)?;
                tracing::info!(path = %path.display(), "swept a layer that was left half-made or half-removed");
            }
        }
        Ok(())
    }
}

fn open_dir(path: &Path) -> io::Result<File> {
    fs::OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECTORY | libc::O_NOFOLLOW)
        .open(path)
}

/// An empty work directory, locked.
pub(super) fn begin(work: &Path) -> Result<Lock, Error> {
    let make_and_open = |path: &Path| match disk::make_dir(path) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => Err(e),
        _ => open_dir(path),
    };
    let lock = durable::lock(work, Want::Wait, make_and_open)?
        .ok_or_else(|| Error::io("lock", work, io::ErrorKind::WouldBlock.into()))?;
    for entry in fs::read_dir(work).map_err(|e| Error::io("list", work, e))? {
        let entry = entry.map_err(|e| Error::io("list", work, e))?;
        let is_dir = entry.file_type().is_ok_and(|t| t.is_dir());
        let removed = if is_dir {
            disk::remove_tree(&entry.path())
        } else {
            disk::remove_file(&entry.path())
        };
        removed.map_err(|e| Error::io("remove", &entry.path(), e))?;
    }
    Ok(lock)
}
