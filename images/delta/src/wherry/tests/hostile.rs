//! Patches that lie, and old layers that are not what they were.

use proptest::prelude::*;

use super::super::header::Header;
use super::super::wire::put;
use super::super::*;
use super::roundtrip::{Model, Tree, encode, options, pair, sources, tar, unpacked};
use super::{ALL, Memory, Outcome, decode, noise};
use crate::adapt::{Std, Zstd};

fn small_pair() -> (Tree, Tree) {
    let (mut old, mut new) = (Tree::new(), Tree::new());
    for number in 0..6u64 {
        let before = noise(3000, number);
        let mut after = before.clone();
        after[1500] ^= 7;
        after.splice(10..20, noise(50, 99));
        old.insert(format!("d/f{number}").into_bytes(), (Model::File(before), 1));
        new.insert(format!("d/f{number}").into_bytes(), (Model::File(after), number));
    }
    old.insert(b"same".to_vec(), (Model::File(noise(2000, 9)), 1));
    new.insert(b"same".to_vec(), (Model::File(noise(2000, 9)), 1));
    new.insert(b"link".to_vec(), (Model::Symlink(b"same".to_vec()), 1));
    (old, new)
}

fn prepared(old: &Tree, new: &Tree, frame: usize) -> (Vec<u8>, Memory, Vec<u8>) {
    let bytes = tar(new);
    let (patch, _) = encode(&[tar(old)], &bytes, &options(frame));
    let memory = sources(&patch, &[unpacked(old)]);
    (patch, memory, bytes)
}

/// The same patch with every stream as it is, so that a changed byte reaches the decoder and not only zstd.
pub(super) fn stored(patch: &[u8]) -> Vec<u8> {
    let header = Header::read::<_, std::io::Error>(&mut Std(patch)).unwrap();
    let mut frames = Vec::new();
    for (number, frame) in header.frames.iter().enumerate() {
        let place = header.place(number).unwrap();
        let bytes = &patch[place.start as usize..place.end as usize];
        let (hashes, bytes) = bytes.split_at(frame.chunks() as usize * 8);
        let count = if frame.kind == FrameKind::Table {
            table::stream::COUNT
        } else {
            part::stream::COUNT
        };
        let mut at = wire::Cursor::new(0, bytes.len());
        let lengths: Vec<_> = (0..count)
            .map(|_| (at.size(bytes).unwrap(), at.size(bytes).unwrap()))
            .collect();
        let (mut head, mut body) = (hashes.to_vec(), Vec::new());
        for (raw, packed) in lengths {
            put(&mut head, raw as u64);
            put(&mut head, 0);
            if packed == 0 {
                body.extend_from_slice(at.bytes(bytes, raw).unwrap());
            } else {
                let mut stream = vec![0; raw];
                assert!(Zstd::default().decompress(at.bytes(bytes, packed).unwrap(), &mut stream));
                body.extend_from_slice(&stream);
            }
        }
        frames.push(([head, body].concat(), frame.output));
    }
    let mut body = Vec::new();
    for number in [PREDICTOR, 64 << 20, header.output, header.sources.len() as u64] {
        put(&mut body, number);
    }
    body.extend(header.sources.iter().flatten());
    let base = header.base.unwrap();
    put(&mut body, base.source as u64 + 1);
    body.extend_from_slice(&base.hash.to_le_bytes());
    put(&mut body, base.entries as u64);
    put(&mut body, base.names as u64);
    for (frame, output) in &frames {
        put(&mut body, frame.len() as u64);
        put(&mut body, *output);
    }
    let mut patch = [&MAGIC[..], &(body.len() as u32).to_le_bytes(), &body].concat();
    patch.extend(frames.into_iter().flat_map(|(frame, _)| frame));
    patch
}

/// Whatever a patch is: what comes out is the right bytes, up to an error.
fn survives(patch: &[u8], memory: &Memory, expected: &[u8]) -> Outcome {
    let limits = Limits {
        memory: 64 << 20,
        output: 64 << 20,
    };
    let (made, end) = decode(patch, memory, &limits);
    if end.is_ok() {
        assert!(made == expected, "wrong bytes came out");
    } else {
        let whole = made.len() / CHUNK * CHUNK;
        assert!(
            expected.starts_with(&made[..whole]),
            "wrong bytes came out before an error"
        );
    }
    end
}

#[test]
fn every_byte_changed() {
    let (old, new) = small_pair();
    let (patch, memory, bytes) = prepared(&old, &new, 4 << 20);
    for patch in [stored(&patch), patch] {
        survives(&patch, &memory, &bytes).unwrap();
        let mut unnoticed = 0;
        for at in 0..patch.len() {
            for change in [1, 0x80, 0xff] {
                let mut changed = patch.clone();
                changed[at] ^= change;
                unnoticed += usize::from(survives(&changed, &memory, &bytes).is_ok());
            }
        }
        // What does not count: templates' bytes that fields are written over, more memory declared, a source's name.
        assert!(
            unnoticed * 8 < 3 * patch.len(),
            "{unnoticed} of {} changes were not noticed",
            3 * patch.len()
        );
    }
}

#[test]
fn every_cut() {
    let (old, new) = small_pair();
    let (patch, memory, bytes) = prepared(&old, &new, 4 << 20);
    for length in 0..patch.len() {
        let (made, end) = decode(&patch[..length], &memory, &ALL);
        let error = end.unwrap_err();
        assert_eq!(error.class(), crate::Class::Corrupt, "{error}");
        assert!(bytes.starts_with(&made));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn many_bytes_changed(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12)) {
        let (old, new) = small_pair();
        let (patch, memory, bytes) = prepared(&old, &new, 4 << 20);
        let mut changed = stored(&patch);
        // The header is changed elsewhere: behind it there is more to break.
        let header = Header::read::<_, std::io::Error>(&mut Std(&changed[..])).unwrap();
        let from = header.length as usize;
        for (at, byte) in changes {
            let at = from + at.index(changed.len() - from);
            changed[at] = byte;
        }
        let _ = survives(&changed, &memory, &bytes);
    }

    #[test]
    fn any_bytes(mut bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        let (old, _) = small_pair();
        let memory = Memory(vec![unpacked(&old)]);
        let _ = decode(&bytes, &memory, &ALL);
        let length = bytes.len() as u32 / 2;
        bytes.splice(0..0, [&MAGIC[..], &length.to_le_bytes(), &[1]].concat());
        let _ = decode(&bytes, &memory, &ALL);
    }
}

#[test]
fn a_changed_old_file_is_noticed_before_its_chunk_comes_out() {
    let (old, new) = pair();
    let (patch, memory, bytes) = prepared(&old, &new, 64 << 10);
    let mut changed = memory.clone();
    let node = changed.0[0].0.get_mut(&b"lib/same"[..]).unwrap();
    node.bytes[2_000_000] ^= 1;
    let (made, end) = decode(&patch, &changed, &ALL);
    let Err(Error::Fault(Fault::Chunk { offset })) = end else {
        panic!("{end:?}")
    };
    assert_eq!(made.len() as u64, offset);
    assert!(made.len() > 1 << 20 && bytes.starts_with(&made));

    // A file that is shorter, or is not there: the list of files tells before anything comes out.
    for change in [0, 1] {
        let mut changed = memory.clone();
        let files = &mut changed.0[0].0;
        match change {
            0 => files.get_mut(&b"lib/same"[..]).unwrap().bytes.truncate(1000),
            _ => drop(files.remove(&b"lib/same"[..])),
        }
        let (made, end) = decode(&patch, &changed, &ALL);
        assert!(matches!(end, Err(Error::Fault(Fault::Listing))), "{end:?}");
        assert!(made.is_empty());
    }
}

#[test]
fn what_is_declared_is_enforced() {
    let (old, new) = small_pair();
    let (patch, memory, bytes) = prepared(&old, &new, 4 << 20);
    let header = Header::read::<_, std::io::Error>(&mut Std(&patch[..])).unwrap();
    let declared = Limits {
        memory: header.memory - 1,
        output: u64::MAX,
    };
    let (_, end) = decode(&patch, &memory, &declared);
    assert!(
        matches!(end, Err(Error::Fault(Fault::Declared { .. }))),
        "{end:?}"
    );
    let output = Limits {
        memory: u64::MAX,
        output: bytes.len() as u64 - 1,
    };
    let (_, end) = decode(&patch, &memory, &output);
    assert!(matches!(end, Err(Error::Fault(Fault::TooMuch { .. }))), "{end:?}");
    // It says that it needs less than it does.
    for less in [0, 4096, 20_000] {
        let mut decoder = {
            let mut rest = Std(&patch[..]);
            let mut header = Header::read::<_, std::io::Error>(&mut rest).unwrap();
            header.memory = less;
            match Decoder::new(header, rest, memory.clone(), Zstd::default(), &ALL) {
                Ok(decoder) => decoder,
                Err(fault) => {
                    assert_eq!(fault, Fault::Memory { declared: less });
                    continue;
                }
            }
        };
        let error = loop {
            match decoder.read(&mut [0; 4096]) {
                Ok(0) => panic!("decoded with {less} bytes"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, Error::Fault(Fault::Memory { declared }) if declared == less),
            "{error}"
        );
        // An error is final.
        assert_eq!(decoder.read(&mut [0; 16]).unwrap(), 0);
    }
}

#[test]
fn hostile_headers() {
    let head = |body: &[u8]| [&MAGIC[..], &(body.len() as u32).to_le_bytes(), body].concat();
    let cases: Vec<(&str, Vec<u8>, Fault)> = vec![
        ("empty", vec![], Fault::Truncated),
        (
            "another file",
            b"tardf1\n\0....".to_vec(),
            Fault::Magic(*b"tardf1\n\0"),
        ),
        (
            "a header of 4 GB",
            [&MAGIC[..], &[0xff; 4]].concat(),
            Fault::Corrupt("the header is too long"),
        ),
        (
            "a header that is not there",
            [&MAGIC[..], &[9, 0, 0, 0]].concat(),
            Fault::Truncated,
        ),
        ("another predictor", head(&[2, 0, 0, 0, 0]), Fault::Predictor(2)),
        (
            "sources without end",
            head(&[1, 0, 0, 0xff, 0xff, 0x7f]),
            Fault::Corrupt("there are too many sources"),
        ),
        (
            "a source that is not there",
            head(&[1, 0, 0, 1, 5]),
            Fault::Corrupt("a stream ends too early"),
        ),
        (
            "a listing of none",
            head(&[1, 0, 0, 0, 1]),
            Fault::Corrupt("the listed source is not one of the sources"),
        ),
        (
            "too little output",
            head(&[1, 0, 9, 0, 0, 5, 8]),
            Fault::Corrupt("the frames make less than the output"),
        ),
        (
            "too much output",
            head(&[1, 0, 9, 0, 0, 5, 10]),
            Fault::Corrupt("the frames make more than the output"),
        ),
        (
            "tables without end",
            head(&[&[1, 0, 0, 0, 0][..], &[5, 0].repeat(20)].concat()),
            Fault::Corrupt("there are too many frames"),
        ),
    ];
    for (what, patch, expected) in cases {
        let (_, end) = decode(&patch, &Memory::default(), &ALL);
        match end {
            Err(Error::Fault(fault)) => assert_eq!(fault, expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
}
