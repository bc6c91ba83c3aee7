//! An image's config: what is taken can be written and read again, and names no more layers than an image may have.
#![no_main]

use libfuzzer_sys::fuzz_target;
use wherry_images::manifest::{ImageConfig, MAX_LAYERS};

fuzz_target!(|input: &[u8]| {
    let Ok(config) = ImageConfig::parse(input) else { return };
    assert!(config.rootfs.diff_ids.len() <= MAX_LAYERS);
    let _ = config.platform();
    let written = serde_json::to_vec(&config).expect("written");
    let again = ImageConfig::parse(&written).expect("what was written is read");
    assert_eq!(again, config);
});
