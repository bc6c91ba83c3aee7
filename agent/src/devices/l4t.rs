//! Jetson without CDI: the lists of files that NVIDIA's base system (L4T) gives to every container with a GPU, lines of
//! `dev|lib|dir|sym, /path` in `host-files-for-container.d/*.csv`. What a list names and the board has not is left out, as
//! NVIDIA's own runtime does: one list serves several boards.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Edits, Error};

const FILE_MAX: u64 = 1 << 20;
const FILES_MAX: usize = 100;
/// The most entries of all lists; JetPack's have about 400.
const ENTRIES_MAX: usize = 10_000;

/// A line's meaning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Device,
    File,
}

/// The lists of the directory, in order; none where it is missing.
pub(super) fn lists(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten();
    let mut lists: Vec<PathBuf> = entries
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|end| end == "csv"))
        .take(FILES_MAX)
        .collect();
    lists.sort();
    lists
}

/// Adds what the lists name.
pub(super) fn edits(lists: &[PathBuf], edits: &mut Edits) -> Result<(), Error> {
    let failed =
        |path: &Path, why: &dyn std::fmt::Display| Error::new(format!("devices: {}: {why}", path.display()));
    let mut count = 0;
    for list in lists {
        let mut text = String::new();
        let file = std::fs::File::open(list).map_err(|error| failed(list, &error))?;
        file.take(FILE_MAX)
            .read_to_string(&mut text)
            .map_err(|error| failed(list, &error))?;
        for (number, line) in text.lines().enumerate() {
            let Some((kind, path)) =
                parse(line).map_err(|why| failed(list, &format!("line {}: {why}", number + 1)))?
            else {
                continue;
            };
            count += 1;
            if count > ENTRIES_MAX {
                return Err(failed(list, &format!("more than {ENTRIES_MAX} entries")));
            }
            if Path::new(path).exists() {
                add(kind, path, edits);
            }
        }
    }
    if edits.nodes.is_empty() {
        return Err(Error::new(
            "devices: none of those in the lists of L4T is on this board",
        ));
    }
    Ok(())
}

fn add(kind: Kind, path: &str, edits: &mut Edits) {
    match kind {
        Kind::Device => {
            let node = (PathBuf::from(path), path.to_owned());
            if !edits.nodes.contains(&node) {
                edits.nodes.push(node);
            }
        }
        // A link's place in the container is taken by what it leads to.
        Kind::File => {
            let mount = json!({"destination": path, "type": "bind", "source": path, "options": ["bind", "ro", "nosuid", "nodev"]});
            if !edits.mounts.contains(&mount) {
                edits.mounts.push(mount);
            }
        }
    }
}

fn parse(line: &str) -> Result<Option<(Kind, &str)>, String> {
    let line = line.trim();
    if line.is_empty() || line.starts_with('#') {
        return Ok(None);
    }
    let (kind, path) = line.split_once(',').ok_or("expected KIND, PATH")?;
    let path = path.trim();
    let kind = match kind.trim() {
        "dev" => Kind::Device,
        "lib" | "dir" | "sym" => Kind::File,
        other => return Err(format!("{other:?} is not dev, lib, dir or sym")),
    };
    if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(format!("{path:?} is not an absolute path"));
    }
    Ok(Some((kind, path)))
}
