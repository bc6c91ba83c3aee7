use std::fs;
use std::path::Path;

use super::*;

fn open(directory: &Path, max_size: u64, max_files: u32) -> Log {
    let fd = fs::File::open(directory).unwrap().into();
    Log::new(
        Rc::new(fd),
        LogSettings {
            path: "log".to_owned(),
            max_size,
            max_files,
        },
    )
}

/// Timestamp checked and removed: `(stream, tag, content)` of every record.
fn records(directory: &Path, name: &str) -> Vec<(String, char, Vec<u8>)> {
    let bytes = fs::read(directory.join(name)).unwrap();
    assert!(
        bytes.is_empty() || bytes.ends_with(b"\n"),
        "{name} ends inside a record"
    );
    let mut all = Vec::new();
    for record in bytes.split_inclusive(|&byte| byte == b'\n') {
        let text = std::str::from_utf8(&record[..PREFIX]).unwrap();
        assert!(text.starts_with("20") && text[..30].ends_with('Z'), "{text}");
        let fields: Vec<&str> = text.split(' ').collect();
        assert_eq!((fields.len(), fields[3]), (4, ""), "{text}");
        let tag = fields[2].chars().next().unwrap();
        all.push((
            fields[1].to_owned(),
            tag,
            record[PREFIX..record.len() - 1].to_vec(),
        ));
    }
    all
}

/// The container's bytes, as a reader puts them together again.
fn content(records: &[(String, char, Vec<u8>)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (_, tag, text) in records {
        bytes.extend_from_slice(text);
        if *tag == 'F' {
            bytes.push(b'\n');
        }
    }
    bytes
}

#[test]
fn lines_become_records() {
    let long = vec![b'x'; MAX_CONTENT];
    let longer = vec![b'y'; 2 * MAX_CONTENT + 3];
    /// What is given, the tag and length of each record, and how much is taken.
    type Row<'a> = (&'a [u8], &'a [(char, usize)], usize);
    let table: [Row<'_>; 8] = [
        (b"", &[], 0),
        (b"abc", &[], 0),
        (b"abc\n", &[('F', 3)], 4),
        (b"\n\n", &[('F', 0), ('F', 0)], 2),
        (b"a\nbc\nd", &[('F', 1), ('F', 2)], 5),
        (&long, &[], 0),
        (
            &[long.as_slice(), b"\n"].concat(),
            &[('F', MAX_CONTENT)],
            MAX_CONTENT + 1,
        ),
        (
            &[longer.as_slice(), b"\n"].concat(),
            &[('P', MAX_CONTENT), ('P', MAX_CONTENT), ('F', 3)],
            longer.len() + 1,
        ),
    ];
    for (bytes, expected, taken) in table {
        let directory = tempfile::tempdir().unwrap();
        let mut log = open(directory.path(), 1 << 20, 1);
        assert_eq!(log.lines(Stream::Stderr, bytes), taken);
        log.flush();
        let found = if taken == 0 {
            Vec::new()
        } else {
            records(directory.path(), "log")
        };
        let shape: Vec<(char, usize)> = found.iter().map(|(_, tag, text)| (*tag, text.len())).collect();
        assert_eq!(shape, expected);
        assert!(found.iter().all(|(stream, _, _)| stream == "stderr"));
        assert_eq!(content(&found), bytes[..taken]);
    }
}

#[test]
fn a_partial_line_is_joined_with_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(directory.path(), 1 << 20, 1);
    log.partial(Stream::Stdout, b"password: ");
    log.flush();
    assert_eq!(log.lines(Stream::Stdout, b"ok\n"), 3);
    log.partial(Stream::Stdout, b"no line feed at the end");
    log.flush();
    let found = records(directory.path(), "log");
    assert_eq!(found.iter().map(|record| record.1).collect::<String>(), "PFP");
    assert_eq!(content(&found), b"password: ok\nno line feed at the end");
}

#[test]
fn rotation_keeps_the_newest_bytes_within_the_size() {
    const SIZE: u64 = 32 * 1024;
    for files in [1, 2, 3] {
        let directory = tempfile::tempdir().unwrap();
        let mut all = Vec::new();
        let mut log = open(directory.path(), SIZE, files);
        for number in 0..9000 {
            let line = format!("{number} {}\n", "z".repeat(number % 97));
            all.extend_from_slice(line.as_bytes());
            assert_eq!(log.lines(Stream::Stdout, line.as_bytes()), line.len());
            if number % 5 == 0 {
                log.flush();
            }
            if number == 4000 {
                // The monitor of the next start goes on in the same file.
                log.flush();
                log = open(directory.path(), SIZE, files);
            }
        }
        log.flush();
        assert_eq!(log.loss(), None);
        let mut names: Vec<String> = (1..files).rev().map(|index| format!("log.{index}")).collect();
        names.push("log".to_owned());
        let mut kept = Vec::new();
        for name in &names {
            let length = fs::metadata(directory.path().join(name)).unwrap().len();
            assert!(length <= SIZE, "{name} has {length} bytes");
            assert!(
                name == "log" || length > SIZE - 200,
                "{name} was rotated at {length} bytes"
            );
            kept.extend_from_slice(&content(&records(directory.path(), name)));
        }
        assert!(all.ends_with(&kept), "{files} files");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), names.len());
    }
}

#[test]
fn a_torn_record_of_the_last_power_cut_is_ended() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(
        directory.path().join("log"),
        "2026-11-20T23:50:01.123456789Z stdout F to",
    )
    .unwrap();
    let mut log = open(directory.path(), 1 << 20, 1);
    assert_eq!(log.lines(Stream::Stdout, b"next\n"), 5);
    log.flush();
    assert_eq!(content(&records(directory.path(), "log")), b"to\nnext\n");
}

#[test]
fn what_is_not_a_regular_file_is_not_written() {
    let directory = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/null", directory.path().join("log")).unwrap();
    let mut log = open(directory.path(), 1 << 20, 1);
    assert_eq!(log.lines(Stream::Stdout, b"123\n45\n"), 7);
    log.flush();
    let loss = log.loss().unwrap();
    assert!(
        loss.starts_with("7 bytes of output in 2 records were not logged: "),
        "{loss}"
    );
}

#[test]
fn lost_output_is_counted_and_told_once_there_is_room() {
    let directory = tempfile::tempdir().unwrap();
    // A directory in the place of the file fails as a full disk does: at open, with an errno.
    fs::create_dir(directory.path().join("log")).unwrap();
    let mut log = open(directory.path(), 1 << 20, 1);
    for _ in 0..3 {
        assert_eq!(log.lines(Stream::Stdout, b"abc\n"), 4);
        log.partial(Stream::Stdout, b"de");
        log.flush();
    }
    fs::remove_dir(directory.path().join("log")).unwrap();
    assert_eq!(log.lines(Stream::Stdout, b"again\n"), 6);
    log.flush();
    assert_eq!(log.lines(Stream::Stdout, b"and again\n"), 10);
    log.flush();
    let text = String::from_utf8(content(&records(directory.path(), "log"))).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines.len(), 3, "{text}");
    assert!(
        lines[0].starts_with("wherry: 18 bytes of output in 6 records were not logged: "),
        "{text}"
    );
    assert_eq!(lines[1..], ["again", "and again"]);
    assert!(log.loss().unwrap().starts_with("18 bytes"));
}

#[test]
fn a_batch_that_fits_in_part_leaves_whole_records() {
    let directory = tempfile::tempdir().unwrap();
    let mut log = open(directory.path(), 1 << 20, 1);
    log.lines(Stream::Stdout, b"first\n");
    log.flush();
    let whole = log.length;
    let torn = b"2026-11-20T23:50:01.123456789Z stdout F second\n2026-11-20T23:50:01.123456789Z stdout F th";
    // What a write that stops at a full disk leaves behind.
    fs::OpenOptions::new()
        .append(true)
        .open(directory.path().join("log"))
        .and_then(|mut file| std::io::Write::write_all(&mut file, torn))
        .unwrap();
    log.length += torn.len() as u64;
    let end_of_second = 47;
    assert_eq!(
        log.cut(torn, torn.len(), Errno::NOSPC),
        (end_of_second, Errno::NOSPC)
    );
    assert_eq!(log.length, whole + end_of_second as u64);
    assert_eq!(content(&records(directory.path(), "log")), b"first\nsecond\n");
}
