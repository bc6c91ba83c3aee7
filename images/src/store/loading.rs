//! An archive of images while it is being loaded: unpacked beside the layers, under a name that a sweep removes.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};

use super::durable::{self, Lock};
use super::layers::{WORK_PREFIX, begin};
use super::{Error, Store};
use crate::cage::{self, Input};
use crate::disk;
use crate::unpack::{Encoding, Limits, TREE};

/// More files than any archive of images has.
const MAX_ENTRIES: u64 = 100_000;

/// The unpacked archive; gone when this is dropped, or with the next sweep.
#[derive(Debug)]
pub(crate) struct Loading {
    dir: PathBuf,
    _lock: Lock,
}

impl Drop for Loading {
    fn drop(&mut self) {
        // What cannot be removed now is swept later.
        let _ = durable::remove_tree(&self.dir);
    }
}

impl Loading {
    /// Where its files are.
    pub(crate) fn tree(&self) -> Result<OwnedFd, Error> {
        let path = self.dir.join(TREE);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::open(&path, flags, Mode::empty()).map_err(|e| Error::io("open", &path, e.into()))
    }

    /// Gives back the space of a blob that is not needed any more. Another name than a blob's is left alone: it may be a link.
    pub(crate) fn release(&self, name: &str) {
        let hex = name.strip_prefix("blobs/sha256/");
        if hex.is_some_and(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())) {
            let _ = disk::remove_file(&self.dir.join(TREE).join(name));
        }
    }
}

impl Store {
    /// Unpacks an archive of images in the cage, as far as there is room for it.
    pub(crate) fn unpack_archive(&self, archive: Input<'_>) -> Result<Loading, Error> {
        let process = std::process::id();
        for n in 0_u32..u32::MAX {
            let dir = self.layers_dir().join(format!("{WORK_PREFIX}load-{process}-{n}"));
            if dir.exists() {
                continue;
            }
            let lock = begin(&dir)?;
            let loading = Loading { dir, _lock: lock };
            let room = self.room()?;
            let limits = Limits {
                tar_bytes: room,
                entries: MAX_ENTRIES,
                room,
            };
            let unpacked = self
                .cage
                .unpack(archive, &Encoding::Layer, &limits, &loading._lock.file);
            return match unpacked {
                Ok(_) => Ok(loading),
                Err(cage::Error::Refused { no_space: true, .. }) => Err(Error::NoSpace {
                    action: "unpack the archive into",
                    path: loading.dir.clone(),
                }),
                Err(source) => Err(Error::Archive(source)),
            };
        }
        let path = self.layers_dir();
        Err(Error::io("make", &path, std::io::ErrorKind::AlreadyExists.into()))
    }
}
