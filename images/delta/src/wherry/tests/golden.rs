//! A patch of version 1 with every kind of part. It has to decode for ever; a decoder that cannot is another version.
//!
//! `WHERRY_WRITE_VECTORS=1 cargo test -p wherry-delta --features publish golden` writes `vectors/wherry` anew, and the fuzz target's seeds.

use std::fs;
use std::path::PathBuf;

use super::super::elf::Elf;
use super::super::map::{Block, Map};
use super::super::predict::{Predictor, Window};
use super::super::wire::Account;
use super::super::*;
use super::hostile::stored;
use super::roundtrip::{Model, Tree, encode, options, sources, tar, unpacked};
use super::vectors::program;
use super::{ALL, decode, noise};
use crate::adapt::Std;

/// Names of files in `vectors/wherry/old`, and the paths at which they are in the old layer.
const OLD: [(&str, &str); 5] = [
    ("tool", "bin/tool"),
    ("text", "etc/text"),
    ("source", "lib/m.py"),
    ("compiled", "lib/__pycache__/m.cpython-311.pyc"),
    ("weights", "weights"),
];

fn vectors() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("vectors/wherry")
}

fn old() -> Tree {
    let file = |(name, path): (&str, &str)| {
        let bytes = fs::read(vectors().join("old").join(name)).unwrap();
        (path.as_bytes().to_vec(), (Model::File(bytes), 1))
    };
    OLD.into_iter().map(file).collect()
}

fn write_old() {
    fs::create_dir_all(vectors().join("old")).unwrap();
    let compiled = [
        &b"\xa7\x0d\x0d\x0a\0\0\0\0\x01\0\0\0\x10\0\0\0"[..],
        &noise(200, 5),
    ]
    .concat();
    let mut weights = noise(4 * 17_000, 6);
    for number in weights.as_chunks_mut::<4>().0 {
        // Between one and two.
        (number[2], number[3]) = (number[2] | 0x80, 0x3f);
    }
    for (name, bytes) in [
        ("tool", program(1, 0x40_0000, 0x60_0000)),
        ("text", noise(5_000, 4)),
        ("source", b"def f(x):\n    return x + 1\n".to_vec()),
        ("compiled", compiled),
        ("weights", weights),
    ] {
        fs::write(vectors().join("old").join(name), bytes).unwrap();
    }
}

/// The old program with its data loaded elsewhere, as the linker would have written it, but for a few words.
fn moved(old: &[u8]) -> Vec<u8> {
    let headers = program(1, 0x40_0000, 0x61_0000);
    let (Ok(Some(old_elf)), Ok(Some(new_elf))) =
        (Elf::read(&mut &*old, 1 << 20), Elf::read(&mut &headers[..], 0))
    else {
        panic!("not programs")
    };
    let block = Block {
        old: 0,
        new: 0,
        length: old.len() as u32,
    };
    let predictor = Predictor {
        old: old_elf,
        new: new_elf.segments,
        frame_table: new_elf.frame_table,
        new_length: old.len() as u64,
        map: Map::new(&mut [block], &mut Account::new(u64::MAX)).unwrap(),
    };
    let mut new = old.to_vec();
    predictor.apply(block, 0, &Window { base: 0, bytes: old }, &mut new);
    new[..0x200].copy_from_slice(&headers[..0x200]);
    for at in (0x1003..0x9000).step_by(1111) {
        new[at] ^= 0x11;
    }
    new
}

fn new(old: &Tree, with_weights: bool) -> Tree {
    let mut new = Tree::new();
    for (path, (model, _)) in old {
        let Model::File(bytes) = model else { continue };
        let mut bytes = bytes.clone();
        match &path[..] {
            b"bin/tool" => bytes = moved(&bytes),
            b"etc/text" => {
                bytes.splice(1000..1010, noise(40, 8));
                bytes[3000] ^= 1;
            }
            b"weights" if !with_weights => continue,
            b"weights" => {
                for (number, bytes) in bytes.as_chunks_mut::<4>().0.iter_mut().enumerate() {
                    let step = (number as u32).wrapping_mul(2_654_435_761) >> 14;
                    *bytes = u32::from_le_bytes(*bytes)
                        .wrapping_add(step)
                        .wrapping_sub(130_000)
                        .to_le_bytes();
                }
            }
            // The time in it is the source's.
            path if path.ends_with(b".pyc") => bytes[8] = 9,
            _ => {}
        }
        new.insert(path.clone(), (Model::File(bytes), 9));
    }
    new.insert(b"etc/attributed".to_vec(), (Model::Attributed(noise(300, 9)), 9));
    new.insert(b"etc/link".to_vec(), (Model::Symlink(b"text".to_vec()), 9));
    new
}

#[test]
fn golden_patch() {
    let write = std::env::var_os("WHERRY_WRITE_VECTORS").is_some();
    if write {
        write_old();
    }
    let old = old();
    let layer = [tar(&old)];
    if write {
        let out = tar(&new(&old, true));
        fs::write(
            vectors().join("v1.delta"),
            encode(&layer, &out, &options(64 << 10)).0,
        )
        .unwrap();
        fs::write(vectors().join("v1.out"), out).unwrap();
        let seeds = vectors().join("../../../../tests/fuzz/seeds/wherry");
        fs::create_dir_all(&seeds).unwrap();
        let small = stored(&encode(&layer, &tar(&new(&old, false)), &options(4 << 20)).0);
        fs::write(seeds.join("stored"), &small).unwrap();
        fs::write(seeds.join("table"), &small[..small.len().min(2000)]).unwrap();
    }
    let patch = fs::read(vectors().join("v1.delta")).unwrap();
    let expected = fs::read(vectors().join("v1.out")).unwrap();
    let memory = sources(&patch, &[unpacked(&old)]);
    let (made, end) = decode(&patch, &memory, &ALL);
    end.unwrap();
    assert!(
        made == expected,
        "a patch of version 1 no longer makes what it made"
    );
    // Every kind of part that the vector is for is in it: prediction, numbers, several frames.
    let header = Header::read::<_, std::io::Error>(&mut Std(&patch[..])).unwrap();
    assert_eq!(header.frames.len(), 3);
    let (again, _) = encode(&layer, &expected, &options(64 << 10));
    assert!(
        again.len() <= patch.len(),
        "the encoder became worse: {} bytes, {} before",
        again.len(),
        patch.len()
    );
    assert!(patch.len() < 50_000, "{} bytes", patch.len());
}
