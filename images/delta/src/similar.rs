//! Which old file a renamed new file may resemble, by name.

use std::collections::BTreeMap;

use crate::tree::File;

/// A name with what changes between versions left out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Name {
    /// The whole path, versions left out: `usr/lib/libz.so.1.2.13` is `usr/lib/libz.so#`.
    Path(String),
    /// The last component: the file was moved.
    Base(String),
    /// The last component, versions left out: moved and renamed.
    BaseVersion(String),
}

/// Below this size no two files are too different to be compared.
const SMALL: u64 = 64 << 10;
/// Above it, one may not be ten times the other: a binary that became a shell script.
const FACTOR: u64 = 10;

/// Whether sizes allow two files to be versions of one another.
pub(crate) fn in_size(a: u64, b: u64) -> bool {
    a.max(b) < SMALL || a.max(b) / FACTOR <= a.min(b)
}

/// The names under which a file is looked for, the best first.
pub(crate) fn keys(path: &str) -> [Name; 3] {
    let base = path.rsplit('/').next().unwrap_or(path);
    [
        Name::Path(without_versions(path)),
        Name::Base(base.to_owned()),
        Name::BaseVersion(without_versions(base)),
    ]
}

/// All files under all their names.
pub(crate) fn index(files: &[File]) -> BTreeMap<Name, Vec<usize>> {
    let mut index = BTreeMap::<_, Vec<usize>>::new();
    for (number, file) in files.iter().enumerate() {
        for name in keys(&file.path) {
            index.entry(name).or_default().push(number);
        }
    }
    index
}

/// Every run of digits, dots, dashes and underscores that has a digit becomes `#`, as does a long run of hexadecimal digits: bundlers put content
/// hashes in file names.
fn without_versions(name: &str) -> String {
    const HASH_LEN: usize = 8;
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(first) = rest.chars().next() {
        let hex = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_hexdigit()).len();
        let run = rest.len()
            - rest
                .trim_start_matches(|c: char| c.is_ascii_digit() || ".-_".contains(c))
                .len();
        let word = !out.ends_with(|c: char| c.is_ascii_alphanumeric());
        let length = if word && hex >= HASH_LEN && rest[..hex].contains(|c: char| c.is_ascii_digit()) {
            hex
        } else if rest[..run].contains(|c: char| c.is_ascii_digit()) {
            run
        } else {
            out.push(first);
            rest = &rest[first.len_utf8()..];
            continue;
        };
        if !out.ends_with('#') {
            out.push('#');
        }
        rest = &rest[length..];
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_left_out() {
        for (name, expected) in [
            ("libz.so.1.2.13", "libz.so#"),
            ("libz.so.1", "libz.so#"),
            ("a-b.c", "a-b.c"),
            ("python3.11/x.py", "python#/x.py"),
            ("app.3f9a1c2b77.js", "app#.js"),
            ("numpy-1.26.4.dist-info/RECORD", "numpy#dist-info/RECORD"),
            ("", ""),
            ("é1", "é#"),
        ] {
            assert_eq!(without_versions(name), expected);
        }
    }

    #[test]
    fn sizes() {
        for (a, b, expected) in [
            (0, 65_535, true),
            (1 << 20, 200, false),
            (1 << 20, 200_000, true),
            (0, 0, true),
            (u64::MAX, 1, false),
        ] {
            assert_eq!(in_size(a, b), expected, "{a} {b}");
            assert_eq!(in_size(b, a), expected, "{b} {a}");
        }
    }
}
