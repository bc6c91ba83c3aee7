//! Encoder and decoder together: whatever the trees are, the new tar comes out as it went in.

use std::collections::BTreeMap;
use std::io::Cursor;

use proptest::prelude::*;

use super::{Memory, file};
use crate::tardiff::{Encoded, Encoder};

/// What a layer of the model holds.
#[derive(Debug, Clone)]
enum Node {
    File(Vec<u8>),
    Secret(Vec<u8>),
    Hardlink(String),
    Symlink(String),
    Directory,
}

type Layer = Vec<(String, Node)>;

fn header(name: &[u8], kind: u8, mode: u32, size: usize, link: &[u8]) -> [u8; 512] {
    let mut block = [0; 512];
    block[..name.len()].copy_from_slice(name);
    block[100..108].copy_from_slice(format!("{mode:07o}\0").as_bytes());
    block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
    block[148..156].fill(b' ');
    block[156] = kind;
    block[157..157 + link.len()].copy_from_slice(link);
    block[257..265].copy_from_slice(b"ustar\x0000");
    let sum: u32 = block.iter().map(|&byte| u32::from(byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn padded(tar: &mut Vec<u8>, bytes: &[u8]) {
    tar.extend_from_slice(bytes);
    tar.resize(tar.len().next_multiple_of(512), 0);
}

fn tar(layer: &Layer) -> Vec<u8> {
    let mut tar = Vec::new();
    for (path, node) in layer {
        let mut name = path.as_bytes();
        if name.len() > 100 {
            tar.extend_from_slice(&header(b"././@LongLink", b'L', 0o644, name.len() + 1, b""));
            padded(&mut tar, &[name, b"\0"].concat());
            name = &name[..100];
        }
        match node {
            Node::File(bytes) | Node::Secret(bytes) => {
                let mode = if matches!(node, Node::File(_)) {
                    0o644
                } else {
                    0o640
                };
                tar.extend_from_slice(&header(name, b'0', mode, bytes.len(), b""));
                padded(&mut tar, bytes);
            }
            Node::Hardlink(target) => tar.extend_from_slice(&header(name, b'1', 0o644, 0, target.as_bytes())),
            Node::Symlink(target) => tar.extend_from_slice(&header(name, b'2', 0o777, 0, target.as_bytes())),
            Node::Directory => tar.extend_from_slice(&header(name, b'5', 0o755, 0, b"")),
        }
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// What a container of the image may read: whatever is not in here must not be asked for.
fn visible(layers: &[Layer]) -> Memory {
    let mut files = BTreeMap::<Vec<u8>, Vec<u8>>::new();
    for layer in layers {
        // The whiteouts of a layer hide what lower layers have, wherever they stand in it.
        for (path, _) in layer {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            let hide = |hidden: &str, files: &mut BTreeMap<Vec<u8>, Vec<u8>>, itself: bool| {
                files.retain(|path, _| {
                    let path = std::str::from_utf8(path).unwrap();
                    let beneath = hidden.is_empty()
                        || path
                            .strip_prefix(hidden)
                            .is_some_and(|rest| rest.starts_with('/'));
                    !(beneath || itself && path == hidden)
                });
            };
            if name == ".wh..wh..opq" {
                hide(parent, &mut files, false);
            } else if let Some(name) = name.strip_prefix(".wh.") {
                hide(
                    &if parent.is_empty() {
                        name.to_owned()
                    } else {
                        format!("{parent}/{name}")
                    },
                    &mut files,
                    true,
                );
            }
        }
        for (path, node) in layer {
            let key = path.clone().into_bytes();
            match node {
                Node::File(bytes) => {
                    files.insert(key, bytes.clone());
                }
                Node::Hardlink(target) => {
                    if let Some(bytes) = files.get(target.as_bytes()).cloned() {
                        files.insert(key, bytes);
                    } else {
                        files.remove(&key);
                    }
                }
                Node::Secret(_) | Node::Symlink(_) => {
                    files.remove(&key);
                }
                Node::Directory => {}
            }
        }
    }
    Memory(files)
}

fn encode(old: &[Layer], new: &[u8]) -> (Vec<u8>, Encoded) {
    let make = || {
        let layers = old.iter().map(|layer| Cursor::new(tar(layer))).collect();
        let mut patch = Vec::new();
        let encoded = Encoder::new(layers)
            .unwrap()
            .encode(&mut Cursor::new(new), &mut patch)
            .unwrap();
        (patch, encoded)
    };
    let (patch, encoded) = make();
    assert_eq!(make().0, patch, "the encoder is deterministic");
    assert_eq!(encoded.output, new.len() as u64);
    assert_eq!(encoded.copied + encoded.added + encoded.data, encoded.output);
    (patch, encoded)
}

fn check(old: &[Layer], new: &[u8]) -> (Vec<u8>, Encoded) {
    let (patch, encoded) = encode(old, new);
    let found = file(&patch, visible(old)).unwrap();
    assert!(found == new, "the tar differs");
    (patch, encoded)
}

fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    (0..length)
        .map(|_| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .collect()
}

fn path(text: &str) -> String {
    text.to_owned()
}

#[test]
fn files_are_found() {
    let body = noise(100_000, 1);
    let mut patched = body.clone();
    for at in (0..patched.len()).step_by(5000) {
        patched[at] ^= 1;
    }
    let moved = [&noise(3000, 7), &body[50_000..], &body[..50_000]].concat();
    let lower: Layer = vec![
        (path("srv/model-1.2.bin"), Node::File(body.clone())),
        (path("srv/hidden"), Node::File(noise(50_000, 2))),
        (path("srv/secret"), Node::Secret(noise(50_000, 3))),
        (path("opt/a"), Node::File(noise(50_000, 4))),
        (path("usr"), Node::Directory),
        (path("usr/x"), Node::File(noise(50_000, 5))),
    ];
    let upper: Layer = vec![
        (path("srv/.wh.hidden"), Node::File(vec![])),
        (path("opt/.wh..wh..opq"), Node::File(vec![])),
        (path("usr"), Node::Symlink(path("elsewhere"))),
        (path("srv/again"), Node::Hardlink(path("srv/other"))),
    ];
    let old = [lower, upper];
    let one = |path: &str, bytes: &[u8]| tar(&vec![(path.to_owned(), Node::File(bytes.to_vec()))]);
    for (what, new, most) in [
        ("the same file", one("srv/model-1.2.bin", &body), 400),
        ("the same bytes elsewhere", one("a/b/c", &body), 400),
        ("the same path, changed", one("srv/model-1.2.bin", &patched), 700),
        (
            "another version in the name",
            one("srv/model-2.0.bin", &patched),
            700,
        ),
        ("another directory", one("x/model-1.2.bin", &patched), 700),
        ("nothing but the content", one("x/y", &moved), 4000),
        ("a whole other file", one("x/y", &noise(90_000, 9)), 91_000),
        (
            "a removed file is no source",
            one("srv/hidden", &noise(50_000, 2)),
            51_000,
        ),
        (
            "an unreadable file is no source",
            one("srv/secret", &noise(50_000, 3)),
            51_000,
        ),
        (
            "a file under an opaque directory is no source",
            one("opt/a", &noise(50_000, 4)),
            51_000,
        ),
        (
            "a file behind a link is no source",
            one("usr/x", &noise(50_000, 5)),
            51_000,
        ),
    ] {
        let (patch, _) = check(&old, &new);
        assert!(
            patch.len() <= most,
            "{what}: {} bytes, expected at most {most}",
            patch.len()
        );
        if most > 50_000 {
            assert!(patch.len() > 50_000, "{what}: {} bytes", patch.len());
        }
    }
}

#[test]
fn odd_tars() {
    let long = format!("{}/file", "directory/".repeat(30).trim_end_matches('/'));
    let old: Layer = vec![(long.clone(), Node::File(noise(20_000, 1)))];
    let whole = tar(&vec![(long, Node::File(noise(20_000, 1)))]);
    let mut broken = whole.clone();
    broken[512 + 512 + 124] = b'9';
    let mut huge = whole.clone();
    huge[512 + 512 + 124..512 + 512 + 136]
        .copy_from_slice(b"\x80\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff");
    for (what, new, most) in [
        ("a long name", &whole[..], 700),
        ("nothing", &[], 100),
        ("no end-of-archive", &whole[..whole.len() - 1024], 700),
        ("cut in the padding", &whole[..whole.len() - 1024 - 100], 700),
        ("cut in a file", &whole[..5_000], 5_000),
        ("cut in a header", &whole[..700], 500),
        ("a size that is no number", &broken, 22_000),
        ("a size beyond 64 bits", &huge, 22_000),
        ("no tar at all", &noise(5_000, 3), 5_300),
    ] {
        let (patch, _) = check(std::slice::from_ref(&old), new);
        assert!(
            patch.len() <= most,
            "{what}: {} bytes, expected at most {most}",
            patch.len()
        );
    }
    // An old layer that is not a tar is the caller's mistake: it verified the layer.
    assert!(Encoder::new(vec![Cursor::new(noise(5000, 4))]).is_err());
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        1 => Just(vec![]),
        2 => prop::collection::vec(any::<u8>(), 0..300),
        2 => (1usize..6000, 0u64..4).prop_map(|(length, seed)| noise(length, seed)),
        1 => (1usize..4000, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
    ]
}

fn some_path() -> impl Strategy<Value = String> {
    prop::collection::vec(
        prop::sample::select(vec!["a", "b", "lib-1.so", "lib-2.so", "é", "a b"]),
        1..4,
    )
    .prop_map(|parts| parts.join("/"))
}

fn node() -> impl Strategy<Value = Node> {
    prop_oneof![
        6 => content().prop_map(Node::File),
        1 => content().prop_map(Node::Secret),
        1 => some_path().prop_map(Node::Hardlink),
        1 => some_path().prop_map(Node::Symlink),
        1 => Just(Node::Directory),
    ]
}

/// Layers in which no path is both a file and a directory: a file system would refuse these.
fn layer() -> impl Strategy<Value = Layer> {
    prop::collection::vec((some_path(), node()), 0..8).prop_map(|mut layer| {
        let paths: Vec<String> = layer.iter().map(|(path, _)| format!("{path}/")).collect();
        layer.retain(|(path, node)| {
            matches!(node, Node::Directory)
                || !paths
                    .iter()
                    .any(|other| other.starts_with(&format!("{path}/")) && *other != format!("{path}/"))
        });
        layer
    })
}

#[derive(Debug, Clone)]
enum Edit {
    Flip(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
    Cut(prop::sample::Index),
    Rename(prop::sample::Index, String),
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        any::<prop::sample::Index>().prop_map(Edit::Flip),
        (any::<prop::sample::Index>(), content()).prop_map(|(at, bytes)| Edit::Insert(at, bytes)),
        any::<prop::sample::Index>().prop_map(Edit::Cut),
        (any::<prop::sample::Index>(), some_path()).prop_map(|(at, path)| Edit::Rename(at, path)),
    ]
}

fn edited(mut layer: Layer, edits: Vec<Edit>) -> Layer {
    for edit in edits {
        if layer.is_empty() {
            break;
        }
        let length = layer.len();
        match edit {
            Edit::Rename(at, path) => at.get_mut(&mut layer).0 = path,
            Edit::Flip(at) | Edit::Insert(at, _) | Edit::Cut(at) if matches!(&layer[at.index(length)].1, Node::File(bytes) if !bytes.is_empty()) =>
            {
                let Node::File(bytes) = &mut layer[at.index(length)].1 else {
                    continue;
                };
                let place = at.index(bytes.len());
                match edit {
                    Edit::Flip(_) => bytes[place] ^= 0x55,
                    Edit::Insert(_, new) => drop(bytes.splice(place..place, new)),
                    _ => bytes.truncate(place),
                }
            }
            _ => {}
        }
    }
    layer
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn any_trees(old in prop::collection::vec(layer(), 1..3), new in layer()) {
        check(&old, &tar(&new));
    }

    #[test]
    fn edited_trees(old in layer(), edits in prop::collection::vec(edit(), 0..6), cut in prop::option::of(any::<prop::sample::Index>())) {
        let mut new = tar(&edited(old.clone(), edits));
        if let Some(cut) = cut {
            new.truncate(cut.index(new.len()));
        }
        check(&[old], &new);
    }
}
