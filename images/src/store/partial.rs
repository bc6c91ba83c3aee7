//! A blob on its way in: bytes appended as they come, kept across cuts, kills and reboots, believed only when verified.
//!
//! `partial/<hex>` holds the bytes, `partial/<hex>.json` what is known about them. Whoever appends holds an exclusive
//! lock on the first; it is released when its holder dies.
//!
//! After a reboot the tail of a file may be zeros or stale blocks although its length is right. So the bytes are synced
//! every [`SYNC_EVERY`] and the length then reached is noted together with the boot it happened in; on another boot
//! the file is cut back to the noted length. After a mere kill the page cache has everything and nothing is cut.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::durable::{self, Lock, Want};
use super::{Error, Store};
use crate::digest::{Digest, Hasher};
use crate::disk;

/// How many bytes a power cut may cost; each sync writes at most this much and wears the card by one small file more.
const SYNC_EVERY: u64 = if cfg!(test) { 32 << 10 } else { 8 << 20 };
/// The noted facts fit easily.
const MAX_FACTS_LEN: u64 = 4096;
/// An ETag longer than this is not worth keeping.
const MAX_ETAG_LEN: usize = 1024;
/// Read size when hashing what is on disk.
const CHUNK: usize = 128 << 10;

/// `partial/<hex>.json`.
#[derive(Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Facts {
    version: u32,
    etag: Option<String>,
    synced: u64,
    boot_id: Option<String>,
}

/// What the bytes will have to be.
#[derive(Debug, Clone, Copy)]
enum Expected {
    /// This blob, of this length.
    Blob(Digest, u64),
    /// Whatever the uploader says at the end, at most this long.
    Upload(u64),
}

/// A blob that is being received. One process at a time holds it.
#[derive(Debug)]
pub struct Partial {
    dir: PathBuf,
    name: String,
    lock: Lock,
    expected: Expected,
    len: u64,
    /// Over the first `len` bytes; `None` until the bytes found on disk have been read once.
    hasher: Option<Hasher>,
    facts: Facts,
}

impl Store {
    /// Takes hold of the partial of a blob of `size` bytes, waiting while another process has it. What was received
    /// before is there: go on from [`Partial::offset`].
    pub fn partial(&self, digest: &Digest, size: u64) -> Result<Partial, Error> {
        self.hold_blob(digest)?;
        self.open_partial(digest.hex(), Expected::Blob(*digest, size))
    }

    /// Takes hold of an upload whose digest is known only at its end. `session` is `[a-z0-9-]{1,64}`.
    pub fn upload(&self, session: &str, max_size: u64) -> Result<Partial, Error> {
        let valid = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'-');
        if session.is_empty() || session.len() > 64 || !session.bytes().all(valid) {
            return Err(Error::NoImage(format!("upload {session:?}")));
        }
        self.open_partial(format!("upload-{session}"), Expected::Upload(max_size))
    }

    /// Whether an upload was begun under this name and not finished.
    pub fn has_upload(&self, session: &str) -> bool {
        !session.contains('/') && self.partial_dir().join(format!("upload-{session}")).is_file()
    }

    fn open_partial(&self, name: String, expected: Expected) -> Result<Partial, Error> {
        let dir = self.partial_dir();
        let path = dir.join(&name);
        let Some(lock) = durable::lock(&path, Want::Wait, disk::open_or_make)? else {
            return Err(Error::io("lock", &path, io::ErrorKind::WouldBlock.into()));
        };
        let len = lock
            .file
            .metadata()
            .map_err(|e| Error::io("stat", &path, e))?
            .len();
        // Unreadable facts are no facts: the file was never synced as far as anybody knows.
        let facts: Facts = durable::read_bounded(&dir.join(format!("{name}.json")), MAX_FACTS_LEN)
            .ok()
            .flatten()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
            .filter(|facts: &Facts| facts.version == 1)
            .unwrap_or_default();
        // Facts of more than is there are those of bytes that were taken away: a kill came between the two files.
        let facts = if facts.synced > len {
            Facts {
                version: 1,
                boot_id: facts.boot_id,
                ..Facts::default()
            }
        } else {
            facts
        };
        let boot_id = boot_id();
        let same_boot = boot_id.is_some() && facts.boot_id == boot_id;
        let trusted = if same_boot { len } else { facts.synced.min(len) };
        let mut partial = Partial {
            dir,
            name,
            lock,
            expected,
            len,
            hasher: None,
            facts,
        };
        partial.truncate(trusted.min(partial.max_len()))?;
        if !same_boot {
            partial.facts = Facts {
                version: 1,
                boot_id,
                ..partial.facts
            };
            // Where nothing was synced yet there is nothing that a half-written note could lose.
            partial.write_facts(partial.facts.synced > 0)?;
        }
        Ok(partial)
    }

    /// Verifies a received blob and makes it the store's, durably. Wrong bytes are dropped with the error.
    pub fn commit_blob(&self, mut partial: Partial) -> Result<Digest, Error> {
        let digest = match partial.verify() {
            Ok(digest) => digest,
            Err(e) => {
                if matches!(e, Error::Digest { .. }) {
                    partial.discard()?;
                }
                return Err(e);
            }
        };
        self.publish(partial, digest)
    }

    /// As [`commit_blob`](Self::commit_blob), for an upload: the digest is what the uploader says it is, or the upload
    /// is dropped.
    pub fn commit_upload(&self, mut partial: Partial, digest: &Digest) -> Result<(), Error> {
        self.hold_blob(digest)?;
        partial.expected = Expected::Blob(*digest, partial.len);
        self.commit_blob(partial).map(|_| ())
    }

    fn publish(&self, mut partial: Partial, digest: Digest) -> Result<Digest, Error> {
        let from = partial.path();
        let dir = self.blob_dir();
        let to = dir.join(digest.hex());
        partial.sync_data()?;
        disk::rename(&from, &to).map_err(|e| Error::io("rename", &from, e))?;
        durable::sync_dir(&dir)?;
        // The facts without their file mean nothing; a cut in between leaves them to the next partial of this blob.
        let _ = disk::remove_file(&partial.facts_path());
        Ok(digest)
    }
}

impl Partial {
    fn path(&self) -> PathBuf {
        self.dir.join(&self.name)
    }

    fn facts_path(&self) -> PathBuf {
        self.dir.join(format!("{}.json", self.name))
    }

    fn max_len(&self) -> u64 {
        match self.expected {
            Expected::Blob(_, size) | Expected::Upload(size) => size,
        }
    }

    /// How many bytes are there: the offset to go on from.
    pub fn offset(&self) -> u64 {
        self.len
    }

    /// Whether all bytes are there (verified or not).
    pub fn is_complete(&self) -> bool {
        self.len == self.max_len()
    }

    /// The ETag that came with the bytes, to ask for the rest of the same thing.
    pub fn etag(&self) -> Option<&str> {
        self.facts.etag.as_deref()
    }

    /// Notes the ETag of the bytes that follow.
    pub fn set_etag(&mut self, etag: Option<&str>) -> Result<(), Error> {
        let etag = etag.filter(|e| e.len() <= MAX_ETAG_LEN).map(str::to_owned);
        if self.facts.etag == etag {
            return Ok(());
        }
        self.facts.etag = etag;
        self.write_facts(self.facts.synced > 0)
    }

    /// Appends the next bytes. Bytes beyond the expected length are refused before any is written.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let len = self.len.saturating_add(bytes.len() as u64);
        if len > self.max_len() {
            return Err(self.wrong_length(len));
        }
        let path = self.path();
        self.hash_what_is_there()?;
        if let Err(e) = disk::write_at(&self.lock.file, bytes, self.len) {
            // Part of the bytes may be there: forget them, the length on disk is the truth that is resumed from.
            let _ = disk::set_len(&self.lock.file, self.len);
            return Err(Error::io("write", &path, e));
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(bytes);
        }
        self.len = len;
        if self.len - self.facts.synced >= SYNC_EVERY {
            self.sync()?;
        }
        Ok(())
    }

    /// Throws away everything from `len` on.
    pub fn truncate(&mut self, len: u64) -> Result<(), Error> {
        if len >= self.len {
            return Ok(());
        }
        disk::set_len(&self.lock.file, len).map_err(|e| Error::io("truncate", &self.path(), e))?;
        self.len = len;
        self.hasher = None;
        if self.facts.synced > len {
            self.facts.synced = len;
            self.write_facts(true)?;
        }
        Ok(())
    }

    /// Makes the bytes so far survive a power cut.
    pub fn sync(&mut self) -> Result<(), Error> {
        self.sync_data()?;
        self.write_facts(true)
    }

    fn sync_data(&mut self) -> Result<(), Error> {
        disk::sync_data(&self.lock.file).map_err(|e| Error::io("sync", &self.path(), e))?;
        self.facts.synced = self.len;
        Ok(())
    }

    fn write_facts(&self, durably: bool) -> Result<(), Error> {
        let name = format!("{}.json", self.name);
        let bytes = super::to_json(&self.facts, &self.dir.join(&name))?;
        if durably {
            return durable::replace(&self.dir, &name, &bytes);
        }
        durable::replace_for_this_boot(&self.dir, &name, &bytes)
    }

    fn hash_what_is_there(&mut self) -> Result<&Hasher, Error> {
        if self.hasher.is_none() {
            let failed = |e| Error::io("read", &self.path(), e);
            let mut hasher = Hasher::new();
            let mut file = &self.lock.file;
            file.seek(SeekFrom::Start(0)).map_err(failed)?;
            let mut rest = file.take(self.len);
            let mut buffer = vec![0; CHUNK];
            loop {
                match rest.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(n) => hasher.update(buffer.get(..n).unwrap_or_default()),
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(failed(e)),
                }
            }
            self.hasher = Some(hasher);
        }
        Ok(self.hasher.get_or_insert_with(Hasher::new))
    }

    fn wrong_length(&self, got: u64) -> Error {
        match self.expected {
            Expected::Blob(digest, expected) => Error::Length {
                digest,
                expected,
                got,
            },
            Expected::Upload(limit) => Error::Broken {
                path: self.path(),
                reason: format!("an upload of {got} bytes: at most {limit} are taken"),
            },
        }
    }

    /// Checks length and digest of what is there.
    pub fn verify(&mut self) -> Result<Digest, Error> {
        let Expected::Blob(expected, size) = self.expected else {
            return Ok(self.hash_what_is_there()?.clone().digest());
        };
        if self.len != size {
            return Err(self.wrong_length(self.len));
        }
        let got = self.hash_what_is_there()?.clone().digest();
        if got != expected {
            return Err(Error::Digest {
                expected,
                got,
                bytes: self.len,
            });
        }
        Ok(got)
    }

    /// The bytes from the start, for unpacking a layer whose blob is not going to be kept.
    pub fn file(&self) -> Result<File, Error> {
        File::open(self.path()).map_err(|e| Error::io("open", &self.path(), e))
    }

    /// Throws the bytes away.
    pub fn discard(self) -> Result<(), Error> {
        let path = self.path();
        disk::remove_file(&path).map_err(|e| Error::io("remove", &path, e))?;
        let _ = disk::remove_file(&self.facts_path());
        Ok(())
    }
}

/// The kernel's name of this boot.
fn boot_id() -> Option<String> {
    #[cfg(test)]
    if let Some(other) = super::crash::BOOT.with(|boot| boot.borrow().clone()) {
        return Some(other);
    }
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}
