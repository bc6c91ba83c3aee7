//! What the codec is for: what each kind of change costs.

use super::super::*;
use super::noise;
use super::roundtrip::{Model, Tree, encode, options, tar};

fn size(old: &Tree, new: &Tree) -> u64 {
    encode(&[tar(old)], &tar(new), &options(4 << 20)).1.size
}

fn file(tree: &mut Tree, path: &str, bytes: Vec<u8>, mtime: u64) {
    tree.insert(path.as_bytes().to_vec(), (Model::File(bytes), mtime));
}

#[test]
fn a_rebuild_costs_little_more_than_its_times() {
    let (mut old, mut new) = (Tree::new(), Tree::new());
    for number in 0..400u64 {
        for (tree, time) in [(&mut old, 1000 + number % 7), (&mut new, 90_000 + number % 11)] {
            let source = format!("app/module{number}.py");
            file(tree, &source, noise(500, number), time);
            let header = [
                &b"\xa7\x0d\x0d\x0a\0\0\0\0"[..],
                &(time as u32).to_le_bytes(),
                b"\xf4\x01\0\0",
            ]
            .concat();
            let compiled = [header, noise(700, 1000 + number)].concat();
            file(
                tree,
                &format!("app/__pycache__/module{number}.cpython-311.pyc"),
                compiled,
                time + 3,
            );
        }
    }
    let size = size(&old, &new);
    assert!(size < 1500, "{size} bytes for 800 files");
}

#[test]
fn a_file_that_moved_costs_its_name() {
    let (mut old, mut new) = (Tree::new(), Tree::new());
    file(&mut old, "a/library.so.1.2", noise(300_000, 1), 5);
    let mut changed = noise(300_000, 1);
    changed[1000] ^= 1;
    file(&mut new, "b/library.so.1.3", changed, 5);
    file(&mut new, "b/copy", noise(300_000, 1), 5);
    let size = size(&old, &new);
    assert!(size < 700, "{size}");
}

#[test]
fn trained_weights_are_subtracted_as_numbers() {
    let weights = |step: f32| -> Vec<u8> {
        let random = noise(4 * 100_000, 3);
        let numbers = random.chunks(4).map(|bytes| {
            let base = (f32::from(bytes[0]) - 128.0) / 256.0
                + f32::from(bytes[1]) / 77_777.0
                + f32::from(bytes[3]) / 9e6;
            base + (f32::from(bytes[2]) - 128.0) * step
        });
        numbers.flat_map(f32::to_le_bytes).collect()
    };
    let (mut old, mut new) = (Tree::new(), Tree::new());
    file(&mut old, "model", [vec![b' '; 200], weights(0.0)].concat(), 5);
    file(&mut new, "model", [vec![b' '; 200], weights(1e-6)].concat(), 5);
    let size = size(&old, &new);
    let alone = size_alone(&new);
    assert!(
        size * 10 < alone * 7,
        "{size} bytes, {alone} without the old file"
    );
}

fn size_alone(new: &Tree) -> u64 {
    encode(&[tar(&Tree::new())], &tar(new), &options(4 << 20)).1.size
}

#[test]
fn a_patch_is_not_made_when_it_is_not_smaller_or_takes_too_much_memory() {
    let (mut old, mut new) = (Tree::new(), Tree::new());
    file(&mut old, "a", noise(100_000, 1), 5);
    file(&mut new, "a", noise(100_000, 2), 5);
    let (old, new) = (tar(&old), tar(&new));
    let (patch, encoded) = encode(std::slice::from_ref(&old), &new, &Options::default());
    let again = |smaller_than: u64, memory: u64| {
        let options = Options {
            smaller_than,
            memory,
            ..Options::default()
        };
        let mut encoder = Encoder::new(vec![([0; 32], std::io::Cursor::new(&old))]).unwrap();
        let mut out = Vec::new();
        let made = encoder
            .encode(&mut std::io::Cursor::new(&new), &mut out, &options)
            .unwrap();
        (made.is_some(), out.len())
    };
    assert_eq!(again(encoded.size, u64::MAX), (false, 0));
    assert_eq!(again(encoded.size + 1, encoded.memory - 1), (false, 0));
    assert_eq!(again(encoded.size + 1, encoded.memory), (true, patch.len()));
}
