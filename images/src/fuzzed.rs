//! The parsers of foreign bytes that are nobody else's business, opened to the fuzz targets in `tests/fuzz` and to nothing else: this
//! module is compiled with `--cfg fuzzing` only. Each panics where what always holds does not.

use crate::chunks::{self, List};
use crate::digest::Digest;
use crate::manifest::{Descriptor, Document, OCI_LAYER_GZIP};
use crate::reference::Reference;

pub use crate::registry::fuzzed::{account, challenges, headers, verdict};
pub use crate::serve::fuzzed::request;

/// A reference: what is read is written, and read again as the same.
pub fn reference(text: &str) {
    let Ok(reference) = Reference::parse(text) else {
        return;
    };
    for written in [reference.to_string(), reference.familiar()] {
        assert_eq!(Reference::parse(&written).as_ref(), Ok(&reference), "{written}");
    }
    let elsewhere = reference.at_registry("mirror.example:5000");
    assert!(elsewhere.is_err() || elsewhere.is_ok_and(|r| r.repository() == reference.repository()));
}

/// A manifest or index, with the media type that a registry gave it.
pub fn document(bytes: &[u8], media_type: Option<&str>) {
    let digest = Digest::of(b"layer");
    let blob = Descriptor::new(OCI_LAYER_GZIP, digest, 3_000_000);
    match Document::parse(bytes, media_type) {
        Ok(Document::Manifest(manifest)) => {
            let _ = manifest.check_image();
            let _ = manifest.layers_size();
            if let Some(entry) = chunks::find(&manifest, &digest, &blob) {
                assert_eq!(entry.size, 96);
            }
        }
        Ok(Document::Index(index)) => {
            let _ = crate::Platform::host().select(&index);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

/// A list of chunk hashes for a blob of `length` bytes: none, or one that covers the blob without gaps.
pub fn list(bytes: &[u8], length: u64) {
    let Some(list) = List::parse(bytes, length) else {
        return;
    };
    assert_eq!(list.to_bytes(), bytes);
    let end = list.chunks().fold(0, |at, (from, to, _)| {
        assert!(from == at && to > from);
        to
    });
    assert_eq!(end, length);
}
