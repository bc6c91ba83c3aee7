//! Chunk hashes: what lets a client that got a wrong byte fetch one chunk again and not the whole layer.
//!
//! A publisher's push attaches them to the image as a referrer; `CHUNKS.md` beside this crate is the format. This module owns
//! the format and performs no request. A list is as hostile as what it describes: it says which chunks *may* be wrong, and
//! the digest of the whole blob alone says when it is right.

use std::collections::BTreeMap;
use std::io::{self, Read};

use crate::digest::{Digest, Hasher};
use crate::manifest::{Descriptor, MAX_DOCUMENT, Manifest, OCI_EMPTY, OCI_MANIFEST};

/// The artifact type of chunk hashes.
pub const ARTIFACT_TYPE: &str = "application/vnd.wherry.chunks.v1";
/// The media type of one blob's list.
pub const LIST_TYPE: &str = "application/vnd.wherry.chunks.v1+sha256";
/// How long a chunk is; the last one of a blob is shorter.
pub const CHUNK: u64 = 1 << 20;
/// The config of the artifact.
pub(crate) const EMPTY_CONFIG: &[u8] = b"{}";

/// Names the blob whose chunks are listed.
const OF: &str = "dev.wherry.chunks.of";
/// The blob's length in bytes, decimal.
const LENGTH: &str = "dev.wherry.chunks.length";
/// The length of one hash.
const HASH: usize = 32;

/// The hashes of one blob's chunks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct List {
    length: u64,
    hashes: Vec<[u8; HASH]>,
}

impl List {
    /// Hashes a blob of `length` bytes, chunk by chunk.
    pub fn of(length: u64, blob: &mut impl Read) -> io::Result<List> {
        let mut hashes = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        let mut left = length;
        while left > 0 {
            let mut hasher = Hasher::new();
            let mut rest = blob.take(left.min(CHUNK));
            loop {
                match rest.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(got) => {
                        hasher.update(buffer.get(..got).unwrap_or_default());
                        left -= got as u64;
                    }
                    Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(e),
                }
            }
            if rest.limit() > 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hashes.push(*hasher.digest().as_bytes());
        }
        Ok(List { length, hashes })
    }

    /// Reads the list of a blob of `length` bytes: none unless it has exactly one hash for each chunk.
    pub fn parse(bytes: &[u8], length: u64) -> Option<List> {
        let (hashes, rest) = bytes.as_chunks::<HASH>();
        let wanted = usize::try_from(list_length(length)?).ok()?;
        (rest.is_empty() && bytes.len() == wanted).then(|| List {
            length,
            hashes: hashes.to_vec(),
        })
    }

    /// The list as it travels: the hashes, one after the other.
    pub fn to_bytes(&self) -> Vec<u8> {
        self.hashes.concat()
    }

    /// Each chunk's first byte, its end and its hash.
    pub(crate) fn chunks(&self) -> impl Iterator<Item = (u64, u64, &[u8; HASH])> {
        let starts = (0..).map(|at: u64| at * CHUNK);
        let chunks = starts.zip(&self.hashes);
        chunks.map(|(start, hash)| (start, (start + CHUNK).min(self.length), hash))
    }
}

/// How long the list of a blob of `length` bytes is; none where one makes no sense or would be absurd.
fn list_length(length: u64) -> Option<u64> {
    let list = length.div_ceil(CHUNK) * HASH as u64;
    (length > CHUNK && list <= MAX_DOCUMENT).then_some(list)
}

/// Whether a blob of this length gets a list: one of a single chunk is its own.
pub fn has_list(length: u64) -> bool {
    list_length(length).is_some()
}

/// The entry of a list in its artifact.
pub(crate) fn entry(blob: &Descriptor, list: &[u8]) -> Descriptor {
    let mut entry = Descriptor::of(LIST_TYPE, list);
    entry.annotations = BTreeMap::from([
        (OF.to_owned(), blob.digest.to_string()),
        (LENGTH.to_owned(), blob.size.to_string()),
    ]);
    entry
}

/// The artifact that carries the lists of an image's layers.
pub(crate) fn artifact(subject: Descriptor, lists: Vec<Descriptor>) -> Manifest {
    Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.to_owned()),
        artifact_type: Some(ARTIFACT_TYPE.to_owned()),
        config: Descriptor::of(OCI_EMPTY, EMPTY_CONFIG),
        layers: lists,
        subject: Some(subject),
        annotations: BTreeMap::new(),
    }
}

/// Finds the list of `blob` in an artifact about the image `subject`.
pub(crate) fn find<'a>(
    artifact: &'a Manifest,
    subject: &Digest,
    blob: &Descriptor,
) -> Option<&'a Descriptor> {
    let about = artifact.subject.as_ref().map(|s| &s.digest);
    if artifact.artifact_type.as_deref() != Some(ARTIFACT_TYPE) || about != Some(subject) {
        return None;
    }
    let (of, length) = (blob.digest.to_string(), blob.size.to_string());
    artifact.layers.iter().find(|entry| {
        entry.media_type == LIST_TYPE
            && entry.annotations.get(OF) == Some(&of)
            && entry.annotations.get(LENGTH) == Some(&length)
            && Some(entry.size) == list_length(blob.size)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::OCI_LAYER_GZIP;

    #[test]
    fn a_list_goes_out_and_comes_back() {
        let blob: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
        let list = List::of(3_000_000, &mut &blob[..]).unwrap();
        let bytes = list.to_bytes();
        assert_eq!(bytes.len(), 3 * 32);
        assert_eq!(List::parse(&bytes, 3_000_000), Some(list.clone()));
        let chunks: Vec<_> = list.chunks().map(|(from, to, _)| (from, to)).collect();
        assert_eq!(chunks, [(0, CHUNK), (CHUNK, 2 * CHUNK), (2 * CHUNK, 3_000_000)]);
        for (from, to, hash) in list.chunks() {
            let part = &blob[usize::try_from(from).unwrap()..usize::try_from(to).unwrap()];
            assert_eq!(Digest::of(part).as_bytes(), hash);
        }
        assert!(List::of(3_000_001, &mut &blob[..]).is_err());
    }

    #[test]
    fn lists_of_another_length_are_none() {
        for (bytes, length) in [
            (95, 3_000_000),
            (96, CHUNK * 2),
            (96, CHUNK * 3 + 1),
            (32, 1),
            (0, 0),
        ] {
            assert_eq!(List::parse(&vec![0; bytes], length), None, "{bytes} {length}");
        }
        assert!(List::parse(&[0; 96], CHUNK * 3).is_some() && List::parse(&[0; 96], CHUNK * 2 + 1).is_some());
        assert!(!has_list(CHUNK) && has_list(CHUNK + 1));
        assert!(has_list(CHUNK * MAX_DOCUMENT / 32) && !has_list(u64::MAX / 2));
    }

    #[test]
    fn an_artifact_is_looked_at_closely() {
        let subject = Descriptor::of(OCI_MANIFEST, b"image");
        let blob = Descriptor::new(OCI_LAYER_GZIP, Digest::of(b"layer"), 3_000_000);
        let good = artifact(subject.clone(), vec![entry(&blob, &[7; 96])]);
        assert_eq!(find(&good, &subject.digest, &blob), good.layers.first());
        let json = serde_json::to_vec(&good).unwrap();
        assert_eq!(serde_json::from_slice::<Manifest>(&json).unwrap(), good);
        assert_eq!(find(&good, &blob.digest, &blob), None);
        let longer = Descriptor {
            size: blob.size + 1,
            ..blob.clone()
        };
        assert_eq!(find(&good, &subject.digest, &longer), None);
        let mut wrong = good.clone();
        wrong.layers[0].size = 1 << 40;
        assert_eq!(find(&wrong, &subject.digest, &blob), None);
        let mut wrong = good.clone();
        wrong.artifact_type = None;
        assert_eq!(find(&wrong, &subject.digest, &blob), None);
    }
}
