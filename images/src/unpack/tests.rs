//! Hostile and odd archives, and what becomes of them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::Path;

use super::*;

mod archive;
mod wide;

pub(crate) use archive::Tar;
use archive::{header, mend_checksums, octal};

const LIMITS: Limits = Limits {
    tar_bytes: 64 << 20,
    entries: 1000,
    room: u64::MAX,
};

fn unpack_into(dir: &Path, bytes: &[u8]) -> Result<Summary, Error> {
    unpack(bytes, &Encoding::Layer, &LIMITS, File::open(dir).unwrap().as_fd())
}

/// Unpacks in a directory of its own that has a witness beside it.
fn unpacked(bytes: &[u8]) -> (tempfile::TempDir, Result<Summary, Error>) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("work")).unwrap();
    fs::write(dir.path().join("witness"), "untouched").unwrap();
    let result = unpack_into(&dir.path().join("work"), bytes);
    let mut outside: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    outside.sort();
    assert_eq!(outside, ["witness", "work"], "something was made outside");
    assert_eq!(fs::read(dir.path().join("witness")).unwrap(), b"untouched");
    if let Ok(summary) = &result {
        read_back(&dir.path().join("work"), summary);
    }
    (dir, result)
}

/// Whatever was unpacked can be made into the same tar again, and is found to be what the tar says.
fn read_back(work: &Path, summary: &Summary) {
    let work = File::open(work).unwrap();
    let mut tar = Vec::new();
    let made = regenerate(work.as_fd(), &mut tar).unwrap();
    assert_eq!(made, Some((summary.diff_id, summary.tar_size)));
    assert_eq!(DiffId::of(&tar), summary.diff_id, "not bit-exact");
    let checked = check(work.as_fd()).unwrap();
    assert_eq!(checked.faults, Vec::<String>::new());
    assert_eq!(
        (checked.diff_id, checked.tar_size),
        (Some(summary.diff_id), summary.tar_size)
    );
    assert!(checked.nodes <= summary.entries, "{checked:?} {summary:?}");
}

#[test]
fn hostile_archives_are_refused_by_name() {
    let t = Tar::default;
    let long_name = "n".repeat(256);
    let deep = "d/".repeat(257) + "f";
    let huge_path = "p/".repeat(2100);
    let xattr_bomb = vec![b'x'; 2 << 20];
    let sparse = |map: &[u8]| {
        let map = &[map, &vec![0; 512 - map.len()]].concat();
        t().pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.realsize", b"100"),
            ("GNU.sparse.name", b"s"),
        ])
        .file("s", map)
    };
    let gnu_sparse = |edit: fn(&mut [u8; 512])| t().raw(header(b'S', b"s", 512, edit), &[7; 512]);
    let mut damaged = t().file("a", b"x").end();
    damaged[3] ^= 1;
    let table: Vec<(&str, Vec<u8>, &str)> = vec![
        ("parent", t().file("../witness", b"x").end(), "leads outside"),
        (
            "hidden parent",
            t().file("a/../../witness", b"x").end(),
            "leads outside",
        ),
        ("parent of nothing", t().dir("..", 0o755).end(), "leads outside"),
        ("absolute", t().file("/etc/passwd", b"x").end(), "absolute"),
        (
            "long absolute",
            t().gnu_long(b'L', b"/etc/passwd").file("x", b"x").end(),
            "absolute",
        ),
        (
            "pax parent",
            t().pax(&[("path", b"../witness")]).file("x", b"x").end(),
            "leads outside",
        ),
        (
            "pax zero",
            t().pax(&[("path", b"a\0b")]).file("x", b"x").end(),
            "makes no sense",
        ),
        (
            "through a symlink",
            t().symlink("a", "..").file("a/witness", b"x").end(),
            "symbolic link",
        ),
        (
            "through an absolute symlink",
            t().symlink("a", "/tmp").file("a/x", b"x").end(),
            "symbolic link",
        ),
        (
            "through a symlink deeper",
            t().symlink("a", "/tmp").file("a/b/c", b"x").end(),
            "symbolic link",
        ),
        (
            "directory over a symlink",
            t().symlink("a", "..").dir("a", 0o777).end(),
            "symbolic link",
        ),
        (
            "whiteout through a symlink",
            t().symlink("a", "..").file("a/.wh.witness", b"").end(),
            "symbolic link",
        ),
        (
            "opaque through a symlink",
            t().symlink("a", "..").file("a/.wh..wh..opq", b"").end(),
            "symbolic link",
        ),
        (
            "through a file",
            t().file("a", b"x").file("a/b", b"x").end(),
            "is not a directory",
        ),
        (
            "through a fifo",
            t().raw(header(b'6', b"a", 0, |_| ()), b"")
                .file("a/b", b"x")
                .end(),
            "is not a directory",
        ),
        (
            "link to outside",
            t().hardlink("a", "../witness").end(),
            "leads outside",
        ),
        (
            "link to absolute",
            t().hardlink("a", "/etc/passwd").end(),
            "absolute",
        ),
        (
            "link through a symlink",
            t().symlink("s", "..").hardlink("a", "s/witness").end(),
            "not through directories",
        ),
        (
            "link to nothing",
            t().hardlink("a", "nothing").end(),
            "not in this layer",
        ),
        (
            "link to itself",
            t().hardlink("a", "a").end(),
            "not in this layer",
        ),
        (
            "link to a directory",
            t().dir("d", 0o755).hardlink("a", "d").end(),
            "not a file",
        ),
        (
            "link to a whiteout",
            t().file(".wh.w", b"").hardlink("a", "w").end(),
            "not a file",
        ),
        (
            "link to the root",
            t().hardlink("a", "./").end(),
            "that is the root",
        ),
        (
            "file twice",
            t().file("a", b"1").file("./a", b"2").end(),
            "there twice",
        ),
        (
            "symlink over a file",
            t().file("a", b"1").symlink("a", "b").end(),
            "there twice",
        ),
        (
            "file over a directory",
            t().dir("a", 0o755).file("a", b"1").end(),
            "there twice",
        ),
        (
            "file over a symlink",
            t().symlink("a", "../witness").file("a", b"1").end(),
            "there twice",
        ),
        (
            "whiteout twice",
            t().file(".wh.a", b"").file(".wh.a", b"").end(),
            "there twice",
        ),
        (
            "whiteout of nothing",
            t().file(".wh.", b"").end(),
            "whiteout of no name",
        ),
        (
            "whiteout of the directory",
            t().file("d/.wh..", b"").end(),
            "whiteout of no name",
        ),
        (
            "whiteout of the parent",
            t().file("d/.wh...", b"").end(),
            "whiteout of no name",
        ),
        ("opaque root", t().file(".wh..wh..opq", b"").end(), "opaque root"),
        ("empty name", t().file("", b"").end(), "no name"),
        (
            "file as the root",
            t().file("./", b"").link(b'2', ".", "x").end(),
            "only a directory",
        ),
        (
            "long component",
            t().gnu_long(b'L', long_name.as_bytes()).file("x", b"").end(),
            "longer than 255",
        ),
        (
            "deep",
            t().gnu_long(b'L', deep.as_bytes()).file("x", b"").end(),
            "deeper than 256",
        ),
        (
            "long path",
            t().gnu_long(b'L', huge_path.as_bytes()).file("x", b"").end(),
            "longer than 4096",
        ),
        (
            "huge extension",
            t().raw(header(b'L', b"l", 1 << 30, |_| ()), b"").end(),
            "at most 1048576",
        ),
        (
            "huge pax",
            t().pax(&[("SCHILY.xattr.user.a", &xattr_bomb)])
                .file("x", b"")
                .end(),
            "at most 1048576",
        ),
        (
            "pax twice",
            t().pax(&[("path", b"a")])
                .pax(&[("path", b"b")])
                .file("x", b"")
                .end(),
            "of one kind",
        ),
        (
            "pax rubbish",
            t().raw(header(b'x', b"p", 6, |_| ()), b"99 a=b")
                .file("x", b"")
                .end(),
            "LENGTH KEY=VALUE",
        ),
        (
            "pax at the end",
            t().pax(&[("path", b"a")]).end(),
            "no entry behind it",
        ),
        (
            "empty symlink",
            t().symlink("a", "").end(),
            "symbolic link to nothing",
        ),
        (
            "huge file",
            t().pax(&[("size", b"99999999999999999")]).file("x", b"").end(),
            "at most",
        ),
        (
            "negative size",
            t().raw(header(b'0', b"x", 0, |h| h[124..136].fill(0xff)), b"")
                .end(),
            "size is not a number",
        ),
        (
            "odd uid",
            t().pax(&[("uid", b"4294967295")]).file("x", b"").end(),
            "uid 4294967295",
        ),
        ("checksum", damaged, "checksum"),
        ("not a tar", b"<html>".repeat(200), "checksum"),
        ("cut block", vec![1; 100], "512"),
        (
            "cut file",
            t().file("a", &[1; 600]).0[..1100].to_vec(),
            "ends inside a file",
        ),
        (
            "lone zero block",
            [&[0; 512][..], &t().file("a", b"").0].concat(),
            "single zero block",
        ),
        (
            "multi-volume",
            t().raw(header(b'M', b"x", 0, |_| ()), b"").end(),
            "type 'M'",
        ),
        (
            "solaris",
            t().raw(header(b'X', b"x", 0, |_| ()), b"").end(),
            "type 'X'",
        ),
        ("sparse overlap", sparse(b"2\n0\n50\n40\n10\n").end(), "overlap"),
        ("sparse beyond", sparse(b"1\n90\n20\n").end(), "beyond its end"),
        ("sparse bomb", sparse(b"99999999\n").end(), "segments"),
        (
            "sparse letters",
            sparse(b"x\n").end(),
            "something else than numbers",
        ),
        ("sparse short", sparse(b"1\n0\n50\n").end(), "sparse map wants 50"),
        (
            "sparse old",
            gnu_sparse(|h| octal(&mut h[483..495], 1)).end(),
            "sparse map wants 0",
        ),
        (
            "sparse old overlap",
            gnu_sparse(|h| {
                octal(&mut h[483..495], 4096);
                octal(&mut h[386..398], 1024);
                octal(&mut h[398..410], 256);
                octal(&mut h[410..422], 512);
                octal(&mut h[422..434], 256);
            })
            .end(),
            "overlap",
        ),
        (
            "xz",
            b"\xfd7zXZ\0rest".to_vec(),
            "xz compression is not supported",
        ),
        ("bzip2", b"BZh91AY".to_vec(), "bzip2 compression is not supported"),
        (
            "cut gzip",
            gzip(&t().file("a", &[1; 9000]).end())[..60].to_vec(),
            "gzip",
        ),
        (
            "damaged zstd",
            [&b"\x28\xb5\x2f\xfd"[..], &[0xff; 40]].concat(),
            "zstd",
        ),
    ];
    for (name, bytes, want) in table {
        let (_dir, result) = unpacked(&bytes);
        match result {
            Ok(summary) => panic!("{name}: taken, {summary:?}"),
            Err(e) => {
                assert!(e.to_string().contains(want), "{name}: {e}");
                assert_eq!(e.class(), Class::Permanent, "{name}: {e}");
            }
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

#[test]
fn bombs_stop_at_their_limit() {
    let zeros = Tar::default().file("zeros", &vec![0; 80 << 20]).end();
    let many = (0..1001)
        .fold(Tar::default(), |tar, i| tar.file(&format!("f{i}"), b""))
        .end();
    let implied = Tar::default().gnu_long(b'L', "d/".repeat(200).as_bytes());
    let implied = (0..6).fold(implied, |tar, i| {
        tar.dir("x", 0o755)
            .gnu_long(b'L', (i.to_string() + "/").repeat(200).as_bytes())
    });
    let zstd = |bytes: &[u8]| zstd::encode_all(bytes, 3).unwrap();
    for (name, bytes, what) in [
        ("gzip", gzip(&zeros), "bytes"),
        ("zstd", zstd(&zeros), "bytes"),
        ("plain", zeros, "bytes"),
        ("entries", many, "entries"),
        ("implied directories", implied.dir("x", 0o755).end(), "entries"),
    ] {
        let (_dir, result) = unpacked(&bytes);
        assert!(
            matches!(result, Err(Error::Limit { what: w, .. }) if w == what),
            "{name}: {result:?}"
        );
    }
    assert_eq!(Limits::for_blob(10).tar_bytes, 256 << 20);
    assert_eq!(Limits::for_blob(u64::MAX).tar_bytes, u64::MAX);
}

#[test]
fn a_window_larger_than_the_limit_is_refused() {
    let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
    encoder.window_log(27).unwrap();
    // Longer than the window: a shorter stream would declare its own size instead.
    let chunk = vec![1; 1 << 20];
    (0..130).for_each(|_| encoder.write_all(&chunk).unwrap());
    let (_dir, result) = unpacked(&encoder.finish().unwrap());
    let error = result.unwrap_err().to_string();
    assert!(error.contains("window is larger than 64 MiB"), "{error}");
}

#[test]
fn every_compression_gives_the_same_tree_and_diff_id() {
    let tar = Tar::default().dir("d/", 0o750).file("d/f", b"hello").end();
    let skippable = [
        &b"\x50\x2a\x4d\x18\x04\0\0\0abcd"[..],
        &zstd::encode_all(&tar[..], 3).unwrap(),
    ]
    .concat();
    let (first, second) = tar.split_at(700);
    let members = [gzip(first), gzip(second)].concat();
    let frames = [
        zstd::encode_all(first, 3).unwrap(),
        zstd::encode_all(second, 3).unwrap(),
    ]
    .concat();
    for bytes in [
        tar.clone(),
        gzip(&tar),
        members,
        zstd::encode_all(&tar[..], 3).unwrap(),
        skippable,
        frames,
    ] {
        let (dir, result) = unpacked(&bytes);
        let summary = result.unwrap();
        assert_eq!(summary.diff_id, DiffId::of(&tar));
        assert_eq!(
            (summary.tar_size, summary.data_size, summary.entries),
            (tar.len() as u64, 5, 2)
        );
        assert_eq!(fs::read(dir.path().join("work/tree/d/f")).unwrap(), b"hello");
    }
}

#[test]
fn names_modes_times_and_kinds_are_kept() {
    let odd = b"n\xff\xfe\nname";
    let long = "long/".repeat(60) + "end";
    let tar = Tar::default()
        .dir("./", 0o711)
        .dir("d/", 0o1777)
        .file("d/plain", b"1234")
        .raw(
            header(b'0', b"d/suid", 0, |h| octal(&mut h[100..108], 0o4755)),
            b"",
        )
        .raw(
            header(b'0', b"d/closed", 2, |h| octal(&mut h[100..108], 0)),
            b"no",
        )
        .dir("shut", 0o0)
        .file("shut/inside", b"x")
        .symlink("d/abs", "/etc/passwd")
        .symlink("d/up", "../../..")
        .hardlink("again", "d/plain")
        .hardlink("d/beside", "./d/abs")
        .raw(header(b'6', b"d/fifo", 0, |_| ()), b"")
        .raw(header(b'0', odd, 1, |_| ()), b"o")
        .gnu_long(b'L', long.as_bytes())
        .file("cut", b"long")
        .pax(&[
            ("path", "päx".as_bytes()),
            ("mtime", b"1500000000.25"),
            ("uid", b"7"),
        ])
        .file("cut", b"pax")
        .raw(
            header(b'0', b"name", 0, |h| h[345..351].copy_from_slice(b"prefix")),
            b"",
        )
        .raw(header(b'0', b"old-style/", 0, |h| h[257..265].fill(0)), b"")
        .raw(header(b'g', b"global", 0, |_| ()), b"")
        .end();
    let (dir, result) = unpacked(&tar);
    let summary = result.unwrap();
    assert_eq!(summary.diff_id, DiffId::of(&tar));
    let tree = dir.path().join("work/tree");
    let meta = |name: &str| fs::symlink_metadata(tree.join(name)).unwrap();
    let mode = |name: &str| meta(name).permissions().mode() & 0o7777;
    assert_eq!(mode(""), 0o711);
    assert_eq!(mode("d"), 0o1777);
    assert_eq!(mode("d/suid"), 0o4755);
    assert_eq!(mode("d/closed"), 0o400, "its owner can read it");
    assert_eq!(mode("shut"), 0o700, "its owner can enter it");
    assert_eq!(fs::read(tree.join("shut/inside")).unwrap(), b"x");
    assert_eq!(
        fs::read_link(tree.join("d/abs")).unwrap(),
        Path::new("/etc/passwd")
    );
    assert_eq!(fs::read_link(tree.join("d/up")).unwrap(), Path::new("../../.."));
    assert_eq!(meta("again").ino(), meta("d/plain").ino());
    assert_eq!(meta("d/beside").ino(), meta("d/abs").ino());
    assert!(meta("d/fifo").file_type().is_fifo());
    assert_eq!(fs::read(tree.join(OsStr::from_bytes(odd))).unwrap(), b"o");
    assert_eq!(fs::read(tree.join(&long)).unwrap(), b"long");
    assert_eq!(fs::read(tree.join("päx")).unwrap(), b"pax");
    assert_eq!(
        (meta("päx").mtime(), meta("päx").mtime_nsec()),
        (1_500_000_000, 250_000_000)
    );
    assert!(meta("prefix/name").is_file() && meta("old-style").is_dir());
    for name in ["", "d", "d/plain", "d/abs", "shut"] {
        assert_eq!(meta(name).mtime(), 1_000_000_000, "{name:?}");
    }
    assert_eq!(meta("prefix").mtime(), 0, "a directory that no entry describes");
}

fn notes(dir: &Path) -> Vec<Note> {
    let text = fs::read(dir.join("work/metadata")).unwrap();
    text.split(|b| *b == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| parse_note(line).unwrap())
        .collect()
}

#[test]
fn what_the_tree_cannot_have_is_written_down() {
    let tar = Tar::default()
        .raw(header(b'5', b"home", 0, |h| octal(&mut h[108..116], 1000)), b"")
        .file("home/usual", b"")
        .raw(
            header(b'0', b"home/a b", 0, |h| octal(&mut h[100..108], 0o111)),
            b"",
        )
        .raw(
            header(b'3', b"null", 0, |h| {
                octal(&mut h[329..337], 1);
                octal(&mut h[337..345], 3);
            }),
            b"",
        )
        .pax(&[
            ("SCHILY.xattr.security.capability", b"\x01\0"),
            ("SCHILY.xattr.user.mine", b"v"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ])
        .file("capable", b"")
        .end();
    let (dir, result) = unpacked(&tar);
    assert_eq!(result.unwrap().devices, 1);
    assert!(!dir.path().join("work/tree/null").exists());
    let notes = notes(dir.path());
    let lines: Vec<String> = notes
        .iter()
        .map(|note| serde_json::to_string(note).unwrap())
        .collect();
    assert_eq!(
        lines,
        [
            r#"{"path":"home","uid":1000,"mode":420}"#,
            r#"{"path":"home/a%20b","mode":73}"#,
            r#"{"path":"null","mode":420,"device":{"type":"char","major":1,"minor":3}}"#,
            concat!(
                r#"{"path":"capable","xattrs":{"security.capability":"AQA=","trusted.overlay.redirect":"L2V0Yw==","#,
                r#""user.mine":"dg==","user.overlay.opaque":"eQ=="}}"#
            ),
        ]
    );
    let file = File::open(dir.path().join("work/tree/capable")).unwrap();
    assert_eq!(xattr(&file, "user.mine").as_deref(), Some(&b"v"[..]));
    assert_eq!(xattr(&file, "user.overlay.opaque"), None);
}

fn xattr(file: &File, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 64];
    let len = rustix::fs::fgetxattr(file, name, &mut value[..]).ok()?;
    value.truncate(len);
    Some(value)
}

#[test]
fn whiteouts_take_the_form_that_overlay_reads() {
    let tar = Tar::default()
        .file("d/.wh.gone", b"")
        .file("o/.wh..wh..opq", b"")
        .file("o/new", b"n")
        .file(".wh..wh.plnk", b"")
        // Both a whiteout and a thing of the name, in both orders.
        .file(".wh.file", b"")
        .file("file", b"own")
        .file("file2", b"own")
        .file(".wh.file2", b"")
        .file(".wh.dir", b"")
        .file("dir/x", b"own")
        .file("dir2/x", b"own")
        .file(".wh.dir2", b"")
        .end();
    let (dir, result) = unpacked(&tar);
    result.unwrap();
    let tree = dir.path().join("work/tree");
    let gone = fs::symlink_metadata(tree.join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let opaque = |name: &str| xattr(&File::open(tree.join(name)).unwrap(), "user.overlay.opaque");
    for name in ["o", "dir", "dir2"] {
        assert_eq!(opaque(name).as_deref(), Some(&b"y"[..]), "{name}");
    }
    assert_eq!(opaque("d"), None);
    assert!(!tree.join(".wh..wh.plnk").exists() && !tree.join(".wh..wh.plnk".replace(".wh.", "")).exists());
    for name in ["file", "file2", "dir/x", "dir2/x"] {
        assert_eq!(fs::read(tree.join(name)).unwrap(), b"own", "{name}");
    }
}

#[test]
fn every_form_of_sparse_file() {
    let data: Vec<u8> = [vec![1; 512], vec![2; 512]].concat();
    let mut want = vec![0; 10_000];
    want[1024..1536].fill(1);
    want[8192..8704].fill(2);
    let real: (&str, &[u8]) = ("GNU.sparse.realsize", b"10000");
    let mut map = b"3\n1024\n512\n8192\n512\n10000\n0\n".to_vec();
    map.resize(512, 0);
    let old = header(b'S', b"s", 1024, |h| {
        octal(&mut h[483..495], 10_000);
        for (at, value) in [
            (386, 1024),
            (398, 512),
            (410, 8192),
            (422, 512),
            (434, 10_000),
            (446, 0),
        ] {
            octal(&mut h[at..at + 12], value);
        }
    });
    let (offset, len): (&str, &str) = ("GNU.sparse.offset", "GNU.sparse.numbytes");
    let table = [
        Tar::default().raw(old, &data),
        Tar::default()
            .pax(&[
                ("GNU.sparse.size", b"10000"),
                (offset, b"1024"),
                (len, b"512"),
                (offset, b"8192"),
                (len, b"512"),
            ])
            .file("s", &data),
        Tar::default()
            .pax(&[
                ("GNU.sparse.size", b"10000"),
                ("GNU.sparse.name", b"s"),
                ("GNU.sparse.map", b"1024,512,8192,512"),
            ])
            .file("x", &data),
        Tar::default()
            .pax(&[
                ("GNU.sparse.major", b"1"),
                ("GNU.sparse.minor", b"0"),
                ("GNU.sparse.name", b"s"),
                real,
            ])
            .file("x", &[&map[..], &data].concat()),
    ];
    for (form, tar) in table.into_iter().enumerate() {
        let (dir, result) = unpacked(&tar.file("after", b"ok").end());
        let summary = result.unwrap();
        assert_eq!(summary.data_size, 1026, "form {form}");
        let tree = dir.path().join("work/tree");
        assert_eq!(fs::read(tree.join("s")).unwrap(), want, "form {form}");
        assert_eq!(fs::read(tree.join("after")).unwrap(), b"ok", "form {form}");
    }
}

/// A reader that hands out a few bytes at a time, and ends with an error.
struct Broken<'a>(&'a [u8]);

impl Read for Broken<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.0.is_empty() {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        let n = buffer.len().min(self.0.len()).min(7);
        buffer[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        Ok(n)
    }
}

#[test]
fn a_broken_input_is_transient() {
    let dir = tempfile::tempdir().unwrap();
    let tar = gzip(&Tar::default().file("a", &[3; 5000]).end());
    let work = File::open(dir.path()).unwrap();
    let error = unpack(
        Broken(&tar[..tar.len() - 9]),
        &Encoding::Layer,
        &LIMITS,
        work.as_fd(),
    )
    .unwrap_err();
    assert!(
        matches!(error, Error::Input(_)) && error.class() == Class::Transient,
        "{error}"
    );
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig { cases: 100, ..Default::default() })]

    /// An archive with a bit of everything, damaged anywhere: unpacked or refused, never a panic, never a thing outside.
    #[test]
    fn damaged_archives_do_no_harm(damage: Vec<(proptest::sample::Index, u8)>, cut: proptest::sample::Index) {
        let mut bytes = Tar::default()
            .dir("d", 0o755)
            .pax(&[("path", b"d/pax"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
            .file("x", b"some data")
            .gnu_long(b'L', &b"long/".repeat(30))
            .file("x", &[1; 700])
            .symlink("d/up", "../..")
            .hardlink("d/hard", "d/pax")
            .file("d/.wh.gone", b"")
            .file("d/.wh..wh..opq", b"")
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.realsize", b"99999"), ("GNU.sparse.name", b"s")])
            .file("s", &[&b"1\n5\n512\n"[..], &[0; 503], &[2; 512]].concat())
            .end();
        for (index, byte) in damage {
            let len = bytes.len();
            bytes[index.index(len)] = byte;
        }
        mend_checksums(&mut bytes);
        bytes.truncate(bytes.len() - cut.index(600));
        let (_dir, _result) = unpacked(&bytes);
    }
}
