//! An image reference: any text ends in a reference that is written and read again as the same, or in an error.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(text) = std::str::from_utf8(bytes) {
        wherry_images::fuzzed::reference(text);
    }
});
