//! Mending a blob whose digest is wrong: the chunks whose published hashes differ are fetched again, nothing else.
//!
//! The hashes are hostile like all else. They choose what is fetched again; whether the blob is right afterwards its own digest
//! says, in `blob.rs`. A list that is wrong costs at most two chunks before it is given up for the whole blob.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::blob::{Sink, Tries};
use super::{Client, Error};
use crate::chunks::{self, List};
use crate::digest::{Digest, Hasher};
use crate::manifest::{Descriptor, Document};
use crate::reference::Reference;
use crate::store::{self, Partial};

/// How many artifacts that claim to be chunk hashes are looked at.
const MAX_ARTIFACTS: usize = 4;
/// How often one chunk is fetched again.
const CHUNK_TRIES: usize = 2;
/// Read size.
const BUFFER: usize = 64 << 10;

/// A chunk with its place in the blob.
type Chunk = (u64, u64, [u8; 32]);

/// One chunk in memory, at its place in the blob.
struct Part {
    start: u64,
    bytes: Vec<u8>,
}

impl Sink for Part {
    fn offset(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }
    fn append(&mut self, bytes: &[u8]) -> Result<(), store::Error> {
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }
    fn rewind(&mut self) -> Result<(), store::Error> {
        self.bytes.clear();
        Ok(())
    }
    fn digest(&mut self) -> Result<Digest, store::Error> {
        Ok(Digest::of(&self.bytes))
    }
    fn etag(&self) -> Option<&str> {
        None
    }
    fn set_etag(&mut self, _: Option<&str>) -> Result<(), store::Error> {
        Ok(())
    }
}

impl Client {
    /// Fetches again what is wrong of a complete `partial`. False when there is no list, or it is of no help.
    pub(super) fn mend(
        &self,
        reference: &Reference,
        image: &Digest,
        what: &str,
        blob: &Descriptor,
        partial: &mut Partial,
    ) -> Result<bool, Error> {
        if !chunks::has_list(blob.size) {
            return Ok(false);
        }
        let list = match self.chunk_list(reference, image, blob) {
            Ok(Some(list)) => list,
            Ok(None) => return Ok(false),
            Err(error) if error.ends_all() => return Err(error),
            Err(error) => {
                tracing::warn!(what, %error, "its chunk hashes cannot be used");
                return Ok(false);
            }
        };
        // What cannot be read or written over in place may still be fetched whole.
        let wrong = match wrong_chunks(&list, blob, partial) {
            Ok(wrong) => wrong,
            Err(error) => {
                tracing::warn!(what, %error, "its chunks cannot be compared");
                return Ok(false);
            }
        };
        let bytes: u64 = wrong.iter().map(|(from, to, _)| to - from).sum();
        // Of a blob that is somebody else's altogether the whole is cheaper.
        if wrong.is_empty() || bytes > blob.size / 2 {
            return Ok(false);
        }
        tracing::warn!(
            what,
            chunks = wrong.len(),
            bytes,
            "the digest differs: fetching what is wrong again"
        );
        for chunk in wrong {
            let Some(bytes) = self.fetch_chunk(reference, what, blob, &chunk)? else {
                return Ok(false);
            };
            if let Err(error) = overwrite(partial, blob, chunk.0, &bytes) {
                tracing::warn!(what, %error, "it cannot be mended in place");
                return Ok(false);
            }
        }
        forget_hash(partial, blob)?;
        Ok(true)
    }

    /// The list that the image's publisher attached, if there is one.
    fn chunk_list(
        &self,
        reference: &Reference,
        image: &Digest,
        blob: &Descriptor,
    ) -> Result<Option<List>, Error> {
        let listed = self.list_referrers(reference, image, Some(chunks::ARTIFACT_TYPE))?;
        for candidate in listed.iter().take(MAX_ARTIFACTS) {
            let fetched = self.get_manifest(&reference.with_digest(candidate.digest))?;
            let Ok(Document::Manifest(artifact)) = fetched.document() else {
                continue;
            };
            let Some(entry) = chunks::find(&artifact, image, blob) else {
                continue;
            };
            return Ok(List::parse(&self.blob_bytes(reference, entry)?, blob.size));
        }
        Ok(None)
    }

    /// One chunk, right by its hash; none when the registry's is not.
    fn fetch_chunk(
        &self,
        reference: &Reference,
        what: &str,
        blob: &Descriptor,
        (start, end, hash): &Chunk,
    ) -> Result<Option<Vec<u8>>, Error> {
        for _ in 0..CHUNK_TRIES {
            let mut part = Part {
                start: *start,
                bytes: Vec::new(),
            };
            let mut tries = Tries::new(self.retry(reference), *start);
            if !self.fetch_until(reference, what, blob, *end, &mut part, &mut tries, &mut |_| {})? {
                return Ok(None);
            }
            if part.digest()?.as_bytes() == hash {
                return Ok(Some(part.bytes));
            }
        }
        Ok(None)
    }
}

/// The chunks of `partial` that differ from the list.
fn wrong_chunks(list: &List, blob: &Descriptor, partial: &Partial) -> Result<Vec<Chunk>, Error> {
    let file = partial.file()?;
    let mut buffer = vec![0; BUFFER];
    let mut wrong = Vec::new();
    for (from, to, hash) in list.chunks() {
        let mut hasher = Hasher::new();
        let mut at = from;
        while at < to {
            let most = usize::try_from(to - at).unwrap_or(BUFFER).min(BUFFER);
            let part = buffer.get_mut(..most).unwrap_or_default();
            file.read_exact_at(part, at)
                .map_err(|e| io_error("read", blob, e))?;
            hasher.update(part);
            at += most as u64;
        }
        if hasher.digest().as_bytes() != hash {
            wrong.push((from, to, *hash));
        }
    }
    Ok(wrong)
}

/// Writes over bytes of a partial that are known to be wrong. A cut in between leaves wrong bytes wrong: the digest says so again.
fn overwrite(partial: &Partial, blob: &Descriptor, at: u64, bytes: &[u8]) -> Result<(), Error> {
    let failed = |e| io_error("write", blob, e);
    // The partial hands out its file for reading; this is the same file once more.
    let file = partial.file()?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let file = File::options().write(true).open(path).map_err(failed)?;
    file.write_all_at(bytes, at).map_err(failed)?;
    file.sync_data().map_err(failed)
}

/// Makes a partial hash its bytes anew: it has hashed those that were written over.
fn forget_hash(partial: &mut Partial, blob: &Descriptor) -> Result<(), Error> {
    let Some(last) = partial.offset().checked_sub(1) else {
        return Ok(());
    };
    let mut byte = [0];
    let file = partial.file()?;
    file.read_exact_at(&mut byte, last)
        .map_err(|e| io_error("read", blob, e))?;
    partial.truncate(last)?;
    Ok(partial.append(&byte)?)
}

fn io_error(action: &'static str, blob: &Descriptor, source: io::Error) -> Error {
    let path = PathBuf::from("partial").join(blob.digest.hex());
    store::Error::Io { action, path, source }.into()
}
