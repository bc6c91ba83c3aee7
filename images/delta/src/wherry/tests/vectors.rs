//! The predictor is frozen: what it makes of a fixed program may never change under the same version number.

use core::hash::Hasher as _;

use twox_hash::XxHash64;

use super::super::elf::Elf;
use super::super::map::{Block, Map};
use super::super::predict::{MARGIN, Predictor, Window};
use super::super::wire::Account;
use super::noise;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

const TEXT: usize = 0x1000;
const DATA: usize = 0x9000;
const FRAMES: usize = 0xb000;
const TABLE: usize = 0xc000;
const LENGTH: usize = 0xe000;

/// An AArch64 program of pseudorandom instructions of every kind that is predicted, pointers and frame descriptions; `text` and `data` are
/// where its segments are loaded.
pub(super) fn program(seed: u64, text: u64, data: u64) -> Vec<u8> {
    let mut file = vec![0; LENGTH];
    let random = noise(LENGTH, seed);
    put(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put(&mut file, 18, &183u16.to_le_bytes());
    put(&mut file, 32, &64u64.to_le_bytes());
    put(&mut file, 40, &0xd000u64.to_le_bytes());
    for (at, value) in [(54, 56u16), (56, 3), (58, 64), (60, 6), (62, 5)] {
        put(&mut file, at, &value.to_le_bytes());
    }
    let segments = [
        (1u32, 0u64, text, 0x9000u64, 0x9000u64),
        (1, 0x9000, data, 0x4000, 0x5000),
        (0x6474_e550, TABLE as u64, data + 0x3000, 0x1000, 0x1000),
    ];
    for (index, (kind, offset, address, in_file, in_memory)) in segments.into_iter().enumerate() {
        let at = 64 + index * 56;
        put(&mut file, at, &kind.to_le_bytes());
        for (field, value) in [(8, offset), (16, address), (32, in_file), (40, in_memory)] {
            put(&mut file, at + field, &value.to_le_bytes());
        }
    }
    let sections: [(u32, u32, u64, u64, usize, u64); 5] = [
        (1, 1, 4, text + TEXT as u64, TEXT, 0x8000),
        (7, 1, 0, data, DATA, 0x2000),
        (13, 1, 0, data + 0x2000, FRAMES, 0x1000),
        (23, 1, 0, data + 0x3000, TABLE, 0x800),
        (37, 3, 0, 0, 0xd800, 64),
    ];
    for (index, (name, kind, flags, address, offset, size)) in sections.into_iter().enumerate() {
        let at = 0xd000 + (index + 1) * 64;
        put(&mut file, at, &name.to_le_bytes());
        put(&mut file, at + 4, &kind.to_le_bytes());
        for (field, value) in [(8, flags), (16, address), (24, offset as u64), (32, size)] {
            put(&mut file, at + field, &value.to_le_bytes());
        }
    }
    put(
        &mut file,
        0xd800,
        b"\0.text\0.data\0.eh_frame\0.eh_frame_hdr\0.shstrtab\0",
    );
    const OPCODES: [(u32, u32); 10] = [
        (0x9400_0000, 0x0000_1fff),
        (0x1400_0000, 0x03ff_ffff),
        (0x5400_0000, 0x0000_ffef),
        (0x3400_0000, 0x01ff_ffff),
        (0x3600_0000, 0x01ff_ffff),
        (0x9000_0000, 0x6000_009f),
        (0x1000_0000, 0x6000_ffff),
        (0x9100_0000, 0x003f_ffff),
        (0xf940_0000, 0x003f_ffff),
        (0x5800_0000, 0x0000_ffff),
    ];
    for at in (TEXT..DATA).step_by(4) {
        let number = u32::from_le_bytes(random[at..at + 4].try_into().unwrap());
        let (opcode, mask) = OPCODES[(random[at + 4] % 10) as usize];
        put(&mut file, at, &(opcode | number & mask).to_le_bytes());
    }
    for at in (DATA..FRAMES).step_by(8) {
        let number = u64::from(u16::from_le_bytes([random[at], random[at + 1]]));
        let value = if random[at + 2] < 128 {
            text + number % 0x9000
        } else {
            data + number % 0x5000
        };
        put(&mut file, at, &value.to_le_bytes());
    }
    for at in (FRAMES..FRAMES + 0xff0).step_by(16) {
        put(&mut file, at, &12u32.to_le_bytes());
        put(&mut file, at + 4, &u32::from(random[at] > 20).to_le_bytes());
        let target =
            i64::from(random[at + 1]) * 64 + text as i64 - (data as i64 + 0x2000 + (at + 8 - FRAMES) as i64);
        put(&mut file, at + 8, &(target as i32).to_le_bytes());
    }
    for at in (TABLE + 12..TABLE + 0x800).step_by(4) {
        let target = i64::from(random[at]) * 128 + text as i64 - (data as i64 + 0x3000);
        put(&mut file, at, &(target as i32).to_le_bytes());
    }
    file
}

/// Predicts in tiles of some length and returns the hash of all predicted bytes.
fn predicted(tile: usize) -> u64 {
    let old = program(1, 0x40_0000, 0x60_0000);
    let new = program(2, 0x40_0000, 0x61_0000);
    let Ok(Some(old_elf)) = Elf::read(&mut &old[..], 1 << 20) else {
        panic!("not a program")
    };
    let Ok(Some(new_elf)) = Elf::read(&mut &new[..], 0) else {
        panic!("not a program")
    };
    assert_eq!(old_elf.sections.len(), 4);
    assert!(old_elf.frames.len() > 200 && new_elf.frames.is_empty());
    // Overlapping, reordered, with gaps.
    let blocks = [
        (0x0, 0x0, 0x1800),
        (0x1800, 0x1a40, 0x2000),
        (0x3000, 0x3400, 0x1800),
        (0x5000, 0x4c80, 0x3000),
        (0x8100, 0x8200, 0xd00),
        (0x9000, 0x9000, 0x1000),
        (0xa000, 0xa080, 0x1000),
        (0xb000, 0xb000, 0x2000),
    ]
    .map(|(old, new, length)| Block { old, new, length });
    let map = Map::new(&mut blocks.to_vec(), &mut Account::new(u64::MAX)).unwrap();
    let predictor = Predictor {
        old: old_elf,
        new: new_elf.segments,
        frame_table: new_elf.frame_table,
        new_length: new.len() as u64,
        map,
    };
    let mut hasher = XxHash64::with_seed(0);
    for block in blocks {
        let (mut at, end) = (block.old as usize, (block.old + block.length) as usize);
        while at < end {
            let to = end.min(at + tile);
            let base = at.saturating_sub(MARGIN as usize);
            let window = Window {
                base: base as u64,
                bytes: &old[base..old.len().min(to + MARGIN as usize)],
            };
            let mut out = old[at..to].to_vec();
            predictor.apply(block, at as u64, &window, &mut out);
            hasher.write(&out);
            at = to;
        }
    }
    hasher.finish()
}

#[test]
fn predictor_version_1() {
    assert_eq!(super::super::PREDICTOR, 1);
    // Tiles do not change what is predicted.
    for tile in [16 << 10, 4096, 64, 8] {
        assert_eq!(predicted(tile), 1_513_087_378_390_320_430, "tiles of {tile}");
    }
}

#[test]
fn a_map_follows_the_longest_block_and_the_nearest() {
    let mut blocks = [
        (100, 1100, 100),
        (150, 5150, 20),
        (160, 3160, 200),
        (400, 400, 10),
    ]
    .map(|(old, new, length)| Block { old, new, length })
    .to_vec();
    let map = Map::new(&mut blocks, &mut Account::new(u64::MAX)).unwrap();
    for (old, new) in [
        (0, 1000),
        (100, 1100),
        (155, 1155),
        (160, 3160),
        (170, 3170),
        (359, 3359),
        (370, 3370),
        (390, 390),
        (405, 405),
        (9999, 9999),
    ] {
        assert_eq!(map.at(old), new, "{old}");
    }
    assert_eq!(Map::default().at(7), 7);
}

#[test]
fn damaged_programs_are_not_predicted_and_do_no_harm() {
    let whole = program(1, 0x40_0000, 0x60_0000);
    let random = noise(20_000, 77);
    for round in 0..2_000 {
        let mut damaged = whole.clone();
        for change in 0..4 {
            let at = (round * 4 + change) * 2 % 19_000;
            // Mostly in the headers.
            let place = match random[at] % 4 {
                0 => usize::from(random[at + 1]) % 240,
                1 | 2 => 0xd000 + (usize::from(random[at + 1]) * 2) % 0x1000,
                _ => FRAMES + usize::from(random[at + 1]) * 16,
            };
            damaged[place] = random[at + 2];
        }
        let Ok(Some(elf)) = Elf::read(&mut &damaged[..], 1 << 20) else {
            continue;
        };
        let mut blocks = vec![Block {
            old: 0,
            new: 64,
            length: LENGTH as u32,
        }];
        let predictor = Predictor {
            new: elf.segments.clone(),
            frame_table: elf.frame_table,
            old: elf,
            new_length: LENGTH as u64,
            map: Map::new(&mut blocks.clone(), &mut Account::new(u64::MAX)).unwrap(),
        };
        let mut out = damaged.clone();
        let window = Window {
            base: 0,
            bytes: &damaged,
        };
        predictor.apply(blocks.remove(0), 0, &window, &mut out);
    }
}
