//! Leases: what somebody is working on and has not named yet, kept from collection.
//!
//! `leases/<name>` is `flock`ed by its holder for as long as it works and lists what it relies on, a line each: `b` and a
//! blob's hex digits, or `l` and a layer's. Its holder adds a line before it looks whether the thing is there, under the shared
//! form of the lock that a collection holds alone: whatever it then finds stays until the lease ends. A lease whose lock is
//! free is a dead process's and counts for nothing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::durable::{self, Lock, Want};
use super::{Error, Store};
use crate::digest::{DiffId, Digest};
use crate::disk;

/// A lease of more than this is not a lease that this program wrote.
const MAX_LEASE: u64 = 64 << 20;

/// What is leased, or kept for another reason.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) blobs: BTreeSet<Digest>,
    pub(super) layers: BTreeSet<DiffId>,
}

/// A lease, held until dropped.
#[derive(Debug)]
pub(super) struct Lease {
    path: PathBuf,
    lock: Lock,
    /// The lines and their length together.
    held: Mutex<(BTreeSet<String>, u64)>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        // One that stays is swept by the next collection: its lock is free then.
        let _ = disk::remove_file(&self.path);
    }
}

impl Store {
    fn lease_dir(&self) -> PathBuf {
        self.root.join("leases")
    }

    /// The same store for one piece of work: whatever is asked for or put in through the returned value (and its clones)
    /// is kept from collection until the last of them is dropped. Whoever makes an image complete and then names it works so,
    /// and whoever finds an image and then makes something of it.
    pub fn leased(&self) -> Result<Self, Error> {
        let dir = self.lease_dir();
        durable::make_dir(&dir)?;
        let process = std::process::id();
        for n in 0_u32..u32::MAX {
            let path = dir.join(format!("{process}-{n}"));
            if path.exists() {
                continue;
            }
            // Not made exclusively: of two that take the same name at once the second waits for no one, it goes on to the next.
            if let Some(lock) = durable::lock(&path, Want::Try, disk::open_or_make)? {
                let held = Mutex::default();
                let lease = Some(Arc::new(Lease { path, lock, held }));
                return Ok(Self {
                    lease,
                    ..self.clone()
                });
            }
        }
        Err(Error::io("make", &dir, std::io::ErrorKind::AlreadyExists.into()))
    }

    /// Keeps a blob for as long as this store's lease, if it has one.
    pub(super) fn hold_blob(&self, digest: &Digest) -> Result<(), Error> {
        self.hold('b', || digest.hex())
    }

    /// As [`hold_blob`](Self::hold_blob), for a layer.
    pub(super) fn hold_layer(&self, diff_id: &DiffId) -> Result<(), Error> {
        self.hold('l', || diff_id.hex())
    }

    fn hold(&self, kind: char, hex: impl FnOnce() -> String) -> Result<(), Error> {
        let Some(lease) = &self.lease else {
            return Ok(());
        };
        let mut state = lease.held.lock().unwrap_or_else(PoisonError::into_inner);
        let line = format!("{kind}{}\n", hex());
        if state.0.contains(&line) {
            return Ok(());
        }
        let _no_collection = self.lock(Want::Share)?;
        disk::write_at(&lease.lock.file, line.as_bytes(), state.1)
            .map_err(|e| Error::io("write", &lease.path, e))?;
        state.1 += line.len() as u64;
        state.0.insert(line);
        Ok(())
    }

    /// What living processes have leased; dead ones' leases are removed. Only for a holder of the store's lock.
    pub(super) fn leases(&self) -> Result<Held, Error> {
        let mut all = Held::default();
        for (_, path) in durable::names(&self.lease_dir())? {
            let open = |path: &std::path::Path| std::fs::OpenOptions::new().read(true).open(path);
            // Seen before it is read: whoever holds it may drop it in between, and then it is not needed.
            if durable::lock(&path, Want::Try, open)?.is_some() {
                let _ = disk::remove_file(&path);
                continue;
            }
            let Some(bytes) = durable::read_bounded(&path, MAX_LEASE)? else {
                continue;
            };
            for line in String::from_utf8_lossy(&bytes).lines() {
                match line.split_at_checked(1) {
                    Some(("b", hex)) => all.blobs.extend(Digest::from_hex(hex)),
                    Some(("l", hex)) => all.layers.extend(DiffId::from_hex(hex)),
                    _ => {}
                }
            }
        }
        Ok(all)
    }
}
