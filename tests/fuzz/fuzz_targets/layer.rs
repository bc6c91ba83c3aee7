//! A layer's archive, whatever it is: unpacked into a directory in memory. What is taken must be what the archive says, nothing may
//! appear outside, and the archive must come back from tree and recipe bit by bit.
#![no_main]

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use wherry_images::DiffId;
use wherry_images::unpack::{Encoding, Limits, check, regenerate, unpack};

/// A sparse file may claim to be large; this is as much as is looked at.
const LIMITS: Limits = Limits {
    tar_bytes: 1 << 20,
    entries: 200,
    room: 1 << 20,
};

fn place() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let above = if memory.is_dir() { memory } else { std::env::temp_dir() };
    above.join(format!("wherry-fuzz-layer-{}", std::process::id()))
}

/// Sets right the checksum of every block that calls itself a header, so that more than the checksum is reached.
fn mend(bytes: &mut [u8]) {
    for block in bytes.chunks_exact_mut(512) {
        if block[257..262] == *b"ustar" {
            block[148..156].copy_from_slice(b"        ");
            let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
            block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        }
    }
}

fuzz_target!(|input: &[u8]| {
    let mut bytes = input.to_vec();
    mend(&mut bytes);
    let place = place();
    let _ = fs::remove_dir_all(&place);
    fs::create_dir_all(place.join("work")).expect("a directory");
    let work = File::open(place.join("work")).expect("a directory");
    let unpacked = unpack(&bytes[..], &Encoding::Layer, &LIMITS, work.as_fd());
    assert_eq!(fs::read_dir(&place).expect("listed").count(), 1, "something was made outside");
    let Ok(summary) = unpacked else { return };
    let mut tar = Vec::new();
    let made = regenerate(work.as_fd(), &mut tar).expect("made again");
    assert_eq!(made, Some((summary.diff_id, summary.tar_size)));
    assert_eq!(DiffId::of(&tar), summary.diff_id);
    let checked = check(work.as_fd()).expect("read back");
    assert!(checked.faults.is_empty(), "{:?}", checked.faults);
    assert!(checked.nodes <= summary.entries);
});
