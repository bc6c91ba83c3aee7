//! Encoder and decoder together: whatever the trees are, the new tar comes out as it went in.

use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;

use super::super::*;
use super::{ALL, Memory, Node, Unpacked, decode, noise};
use crate::adapt::{Std, Zstd};

/// What a layer of the model holds.
#[derive(Debug, Clone)]
pub(super) enum Model {
    File(Vec<u8>),
    /// A file with an extended attribute, in a pax header.
    Attributed(Vec<u8>),
    /// A file of which only the end is in the tar.
    Sparse(Vec<u8>),
    Hardlink(Vec<u8>),
    Symlink(Vec<u8>),
    Directory,
    Device,
}

/// A layer: paths to what is there and when it was changed.
pub(super) type Tree = BTreeMap<Vec<u8>, (Model, u64)>;

fn header(name: &[u8], kind: u8, mode: u32, size: usize, mtime: u64, link: &[u8]) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[108..124].copy_from_slice(b"0000000\x000001750\0");
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[136..148].copy_from_slice(format!("{mtime:011o}\0").as_bytes());
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    sum(&mut block);
    block
}

fn sum(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

fn padded(tar: &mut Vec<u8>, bytes: &[u8]) {
    tar.extend_from_slice(bytes);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn entry(tar: &mut Vec<u8>, path: &[u8], model: &Model, mtime: u64) {
    let mut name = path.to_vec();
    if matches!(model, Model::Directory) {
        name.push(b'/');
    }
    if name.len() > 100 {
        tar.extend_from_slice(&header(b"././@LongLink", b'L', 0o644, name.len() + 1, 0, b""));
        padded(tar, &[&name[..], b"\0"].concat());
        name.truncate(100);
    }
    let mut plain = |kind, mode, size, link: &[u8]| {
        tar.extend_from_slice(&header(&name, kind, mode, size, mtime, link));
    };
    match model {
        Model::File(bytes) => {
            plain(b'0', 0o644, bytes.len(), b"");
            padded(tar, bytes);
        }
        Model::Attributed(bytes) => {
            let record = b"30 SCHILY.xattr.user.a=value!\n";
            tar.extend_from_slice(&header(b"pax", b'x', 0o644, record.len(), mtime, b""));
            padded(tar, record);
            tar.extend_from_slice(&header(&name, b'0', 0o755, bytes.len(), mtime, b""));
            padded(tar, bytes);
        }
        Model::Sparse(bytes) => {
            let mut block = header(&name, b'S', 0o644, bytes.len(), mtime, b"");
            block[257..265].copy_from_slice(b"ustar  \0");
            block[386..410].copy_from_slice(format!("{:011o}\0{:011o}\0", 4096, bytes.len()).as_bytes());
            block[483..495].copy_from_slice(format!("{:011o}\0", 4096 + bytes.len()).as_bytes());
            sum(&mut block);
            tar.extend_from_slice(&block);
            padded(tar, bytes);
        }
        Model::Hardlink(target) => plain(b'1', 0o644, 0, target),
        Model::Symlink(target) => plain(b'2', 0o777, 0, target),
        Model::Directory => plain(b'5', 0o755, 0, b""),
        Model::Device => plain(b'3', 0o600, 0, b""),
    }
}

pub(super) fn tar(tree: &Tree) -> Vec<u8> {
    let mut tar = Vec::new();
    for (path, (model, mtime)) in tree {
        entry(&mut tar, path, model, *mtime);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// What a program that unpacks layers makes of one.
pub(super) fn unpacked(tree: &Tree) -> Unpacked {
    let mut nodes = BTreeMap::new();
    for (path, (model, mtime)) in tree {
        if path.starts_with(b".wh.") {
            continue;
        }
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            nodes.entry(path[..at].to_vec()).or_insert(Node {
                kind: Kind::Directory,
                bytes: Vec::new(),
                mtime: 77,
                link: Vec::new(),
            });
        }
        let mut node = Node {
            kind: Kind::File,
            bytes: Vec::new(),
            mtime: *mtime as i64,
            link: Vec::new(),
        };
        match model {
            Model::File(bytes) | Model::Attributed(bytes) => node.bytes = bytes.clone(),
            Model::Sparse(bytes) => node.bytes = [&[0; 4096][..], bytes].concat(),
            Model::Hardlink(target) => match nodes.get(target) {
                Some(target) => node = target.clone(),
                None => continue,
            },
            Model::Symlink(target) => (node.kind, node.link) = (Kind::Link, target.clone()),
            Model::Directory => node.kind = Kind::Directory,
            Model::Device => continue,
        }
        nodes.insert(path.clone(), node);
    }
    Unpacked(nodes)
}

pub(super) fn id(layer: usize) -> SourceId {
    [layer as u8; 32]
}

pub(super) fn options(frame: usize) -> Options {
    Options {
        frame,
        ..Options::default()
    }
}

pub(super) fn encode(old: &[Vec<u8>], new: &[u8], options: &Options) -> (Vec<u8>, Encoded) {
    let layers = old
        .iter()
        .enumerate()
        .map(|(layer, tar)| (id(layer), Cursor::new(tar.clone())));
    let mut patch = Vec::new();
    let encoded = Encoder::new(layers.collect())
        .unwrap()
        .encode(&mut Cursor::new(new), &mut patch, options)
        .unwrap()
        .expect("no limit is set");
    assert_eq!(encoded.size, patch.len() as u64);
    (patch, encoded)
}

/// The layers that a patch names, in its order.
pub(super) fn sources(patch: &[u8], old: &[Unpacked]) -> Memory {
    let header = Header::read::<_, std::io::Error>(&mut Std(patch)).unwrap();
    Memory(
        header
            .sources
            .iter()
            .map(|id| old[usize::from(id[0])].clone())
            .collect(),
    )
}

/// Encodes twice, decodes with both decompressors, and returns the patch.
fn check(old: &[Tree], new: &[u8], frame: usize) -> Vec<u8> {
    let tars: Vec<Vec<u8>> = old.iter().map(tar).collect();
    let (patch, encoded) = encode(&tars, new, &options(frame));
    let alone = Options {
        threads: 1,
        ..options(frame)
    };
    assert!(
        encode(&tars, new, &alone).0 == patch,
        "the encoder is deterministic on any number of cores"
    );
    let trees: Vec<Unpacked> = old.iter().map(unpacked).collect();
    let memory = sources(&patch, &trees);
    let exact = Limits {
        memory: encoded.memory,
        output: new.len() as u64,
    };
    let (made, end) = decode(&patch, &memory, &exact);
    end.unwrap();
    assert!(made == new, "the tar differs");
    let mut rest = Std(&patch[..]);
    let header = Header::read::<_, std::io::Error>(&mut rest).unwrap();
    let mut made = Vec::new();
    let decoder = Decoder::new(header, rest, memory, Zstd::default(), &ALL).unwrap();
    assert_eq!(decoder.write_to(&mut made).unwrap(), new.len() as u64);
    assert!(made == new, "the tar differs with the reference implementation");
    patch
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => "[a-c]{1,2}".prop_map(String::into_bytes),
        2 => "[a-b]/[a-c]/[a-d]".prop_map(String::into_bytes),
        1 => "(d/__pycache__/m[.]cpython-311[.]pyc|d/m[.]py)".prop_map(String::into_bytes),
        1 => "x{90}/y{30}/[a-b]-1.[0-9]".prop_map(String::into_bytes),
        1 => Just(b"odd\xff\xfe name\n".to_vec()),
        1 => "\\.wh\\.[a-b]".prop_map(String::into_bytes),
    ]
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    (
        0u64..6,
        0usize..5000,
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..20),
    )
        .prop_map(|(seed, length, edits)| {
            let mut bytes = noise(length, seed);
            for (at, byte) in edits.into_iter().filter(|_| length > 0) {
                bytes[at.index(length)] = byte;
            }
            bytes
        })
}

fn model() -> impl Strategy<Value = Model> {
    prop_oneof![
        6 => content().prop_map(Model::File),
        1 => content().prop_map(Model::Attributed),
        1 => content().prop_map(Model::Sparse),
        1 => name().prop_map(|mut name| { name.truncate(99); Model::Hardlink(name) }),
        1 => name().prop_map(|mut name| { name.truncate(99); Model::Symlink(name) }),
        1 => Just(Model::Directory),
        1 => Just(Model::Device),
    ]
}

fn tree() -> impl Strategy<Value = Tree> {
    prop::collection::btree_map(name(), (model(), 0u64..4), 0..14)
}

/// No unpacker has a file in a file.
fn unpackable(tree: &Tree) -> bool {
    let under = |path: &[u8]| {
        let above = path.iter().enumerate().filter(|&(_, &byte)| byte == b'/');
        above.map(|(at, _)| &path[..at]).all(|parent| {
            tree.get(parent)
                .is_none_or(|(model, _)| matches!(model, Model::Directory))
        })
    };
    tree.keys().all(|path| under(path))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn random_trees(old in prop::collection::vec(tree(), 1..3), new in tree(), swaps in any::<u64>(), tail in 0usize..1500) {
        prop_assume!(old.iter().all(unpackable));
        // The new tar's order is its own.
        let mut entries: Vec<_> = new.iter().collect();
        for at in (1..entries.len()).rev() {
            entries.swap(at, (swaps.rotate_left(at as u32 * 7) % (at as u64 + 1)) as usize);
        }
        let mut bytes = Vec::new();
        for (path, (model, mtime)) in entries {
            entry(&mut bytes, path, model, *mtime);
        }
        bytes.resize(bytes.len() + tail, 0);
        check(&old, &bytes, 4 << 20);
    }

    #[test]
    fn bytes_that_are_no_tar(old in tree(), new in prop::collection::vec(any::<u8>(), 0..3000)) {
        prop_assume!(unpackable(&old));
        check(&[old], &new, 4 << 20);
    }
}

/// A tree of some size whose new version needs several frames.
pub(super) fn pair() -> (Tree, Tree) {
    let mut old = Tree::new();
    let mut new = Tree::new();
    for number in 0..12u64 {
        let path = format!("lib/part-{number:02}").into_bytes();
        let before = noise(150_000, number);
        let mut after = before.clone();
        for at in (0..after.len()).step_by(37) {
            after[at] = after[at].wrapping_add(1);
        }
        after.splice(70_000..70_000, noise(30_000, 100 + number));
        old.insert(path.clone(), (Model::File(before), 10));
        new.insert(path, (Model::File(after), 20));
    }
    let big = noise(2_500_000, 55);
    old.insert(b"lib/same".to_vec(), (Model::File(big.clone()), 10));
    new.insert(b"lib/same".to_vec(), (Model::File(big), 20));
    (old, new)
}

#[test]
fn several_frames_and_a_restart_from_each() {
    let (old, new) = pair();
    let bytes = tar(&new);
    let patch = check(std::slice::from_ref(&old), &bytes, 64 << 10);
    let header = Header::read::<_, std::io::Error>(&mut Std(&patch[..])).unwrap();
    assert!(header.frames.len() > 10, "{} frames", header.frames.len());
    let memory = sources(&patch, &[unpacked(&old)]);
    let mut begins = 0;
    let mut last = None;
    for done in (0..bytes.len() as u64).step_by(20_000) {
        let restart = header.restart(done).unwrap();
        let frame = header.frames[restart.frame];
        assert!(restart.output <= done && done < restart.output + frame.output);
        if last.replace(restart) == Some(restart) {
            continue;
        }
        begins += 1;
        let mut rest = Std(&patch[header.length as usize..]);
        let mut decoder =
            Decoder::new(header.clone(), &mut rest, memory.clone(), super::Portable, &ALL).unwrap();
        assert_eq!(decoder.restart(done).unwrap(), restart.output);
        let mut made = Vec::new();
        decoder.write_to(&mut made).unwrap();
        assert!(
            made == bytes[restart.output as usize..],
            "from byte {}",
            restart.output
        );
    }
    assert_eq!(
        begins,
        header
            .frames
            .iter()
            .filter(|frame| frame.kind == FrameKind::Content)
            .count()
    );
    let end = header.place(header.frames.len() - 1).unwrap().end;
    assert_eq!(end, patch.len() as u64);
}
