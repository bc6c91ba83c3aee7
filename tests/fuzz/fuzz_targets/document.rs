//! Manifests, indexes and lists of chunk hashes: the first byte chooses the media type that the registry gives, the rest is the document.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wherry_images::fuzzed;
use wherry_images::manifest::ACCEPT;

fuzz_target!(|bytes: &[u8]| {
    let Some((kind, rest)) = bytes.split_first() else {
        return;
    };
    fuzzed::document(rest, ACCEPT.get(usize::from(*kind % 8)).copied());
    if let Some((length, list)) = rest.split_first_chunk() {
        fuzzed::list(list, u64::from_le_bytes(*length));
    }
});
