//! Numbers that 16 and 32 bits do not hold, on targets of either width.

use std::os::unix::fs::FileExt;

use super::*;

#[test]
fn a_file_above_4_gb_with_ids_above_16_bits_and_a_time_after_2038() {
    const END: u64 = 5 << 30;
    const LATE: i64 = 2_240_000_000;
    let mut map = format!("1\n{}\n512\n", END - 512).into_bytes();
    map.resize(512, 0);
    let size = END.to_string();
    let tar = Tar::default()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"far"),
            ("GNU.sparse.realsize", size.as_bytes()),
            ("mtime", LATE.to_string().as_bytes()),
            ("uid", b"70000"),
            ("gid", b"70001"),
        ])
        .file("x", &[&map[..], &[7; 512]].concat())
        .end();
    let (dir, result) = unpacked(&tar);
    result.unwrap();
    let path = dir.path().join("work/tree/far");
    let found = fs::metadata(&path).unwrap();
    assert_eq!(found.size(), END);
    assert_eq!(found.mtime(), LATE);
    assert!(
        found.blocks() < 1000,
        "{} blocks: it is not sparse",
        found.blocks()
    );
    let mut last = [0; 2];
    File::open(&path)
        .unwrap()
        .read_exact_at(&mut last, END - 513)
        .unwrap();
    assert_eq!(last, [0, 7]);
    let notes = fs::read_to_string(dir.path().join("work/metadata")).unwrap();
    assert!(notes.contains("70000") && notes.contains("70001"), "{notes}");
}
