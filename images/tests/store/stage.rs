//! What the tests of the store stand on: programs, users, directories, and pictures of trees.

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use wherry_images::DiffId;
use wherry_images::store::{Error, Input, LayerInfo, Store};
use wherry_images::unpack::{Encoding, Limits};

/// This program.
pub(crate) fn program() -> PathBuf {
    std::env::current_exe().unwrap()
}

pub(crate) fn open(root: &Path) -> Store {
    Store::open(root).unwrap()
}

pub(crate) fn unpack(store: &Store, tar: &Path) -> Result<LayerInfo, Error> {
    let bytes = fs::read(tar).unwrap();
    let limits = Limits::for_blob(bytes.len() as u64);
    store.unpack_layer(
        &DiffId::of(&bytes),
        Input::Blob(&File::open(tar).unwrap()),
        &Encoding::Layer,
        &limits,
    )
}

pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

pub(crate) fn have(program: &str) -> bool {
    Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
}

pub(crate) fn is_root() -> bool {
    fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A command as an ordinary user: this one, or `wherry-test` when this is root.
pub(crate) fn ordinary(program: &str) -> Option<Command> {
    if !is_root() {
        return Some(Command::new(program));
    }
    let known = Command::new("id")
        .arg("wherry-test")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if !known.is_ok_and(|status| status.success()) {
        eprintln!("SKIPPED for an ordinary user: this is root and there is no user wherry-test");
        return None;
    }
    let mut command = Command::new("setpriv");
    command.args([
        "--reuid=wherry-test",
        "--regid=wherry-test",
        "--clear-groups",
        "--",
        program,
    ]);
    Some(command)
}

/// A directory that anybody may enter and write to, so that an ordinary user can work in it.
pub(crate) fn shared_dir() -> tempfile::TempDir {
    let dir = tempfile::Builder::new()
        .prefix("wherry-store-")
        .tempdir_in("/tmp")
        .unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
    dir
}

/// A directory in memory, where there is one: kills cannot tell the difference, and syncing a whole disk that others write to
/// would take most of the time.
pub(crate) fn memory_dir() -> tempfile::TempDir {
    tempfile::tempdir_in("/dev/shm")
        .or_else(|_| tempfile::tempdir())
        .unwrap()
}

/// What a tree looks like: path, kind and mode, size, time, link target, content; hard links by their first name.
pub(crate) fn picture(tree: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first = std::collections::BTreeMap::new();
    let mut todo = vec![tree.to_owned()];
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<PathBuf> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let meta = fs::symlink_metadata(&path).unwrap();
            let name = path.strip_prefix(tree).unwrap().to_owned();
            let content = match () {
                () if meta.is_symlink() => format!("{:?}", fs::read_link(&path).unwrap()),
                () if meta.is_file() => DiffId::of(&fs::read(&path).unwrap()).hex(),
                () => String::new(),
            };
            let link = match meta.nlink() > 1 && !meta.is_dir() {
                true => format!("{:?}", first.entry(meta.ino()).or_insert_with(|| name.clone())),
                false => String::new(),
            };
            lines.push(format!(
                "{name:?} {:o} {} {content} {link}",
                meta.mode(),
                meta.mtime()
            ));
            if meta.is_dir() {
                todo.push(path);
            }
        }
    }
    lines.sort();
    lines
}

/// Fails with the lines that differ.
#[track_caller]
pub(crate) fn assert_same(got: &[String], want: &[String], what: &str) {
    let lacking: Vec<_> = want.iter().filter(|line| !got.contains(line)).take(5).collect();
    let extra: Vec<_> = got.iter().filter(|line| !want.contains(line)).take(5).collect();
    assert!(
        lacking.is_empty() && extra.is_empty(),
        "{what}: lacking {lacking:#?}, instead {extra:#?}"
    );
}

/// A tree with a bit of everything that an ordinary user can make.
pub(crate) fn make_tree(dir: &Path, files: usize) {
    use std::os::unix::ffi::OsStrExt;
    let long = dir
        .join("long".repeat(40))
        .join("l".repeat(200))
        .join("x".repeat(255));
    fs::create_dir_all(&long).unwrap();
    fs::write(long.join("end"), "of the path").unwrap();
    fs::write(dir.join(std::ffi::OsStr::from_bytes(b"not \xff utf-8\n")), "odd").unwrap();
    fs::write(dir.join("empty"), "").unwrap();
    fs::write(dir.join("hard"), "link").unwrap();
    fs::hard_link(dir.join("hard"), dir.join("harder")).unwrap();
    fs::create_dir(dir.join("links")).unwrap();
    std::os::unix::fs::symlink("../hard", dir.join("links/up")).unwrap();
    std::os::unix::fs::symlink("/nowhere/at/all", dir.join("links/abs")).unwrap();
    std::os::unix::fs::symlink("t".repeat(300), dir.join("links/long")).unwrap();
    fs::write(dir.join("suid"), "#!").unwrap();
    fs::set_permissions(dir.join("suid"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::create_dir(dir.join("sticky")).unwrap();
    fs::set_permissions(dir.join("sticky"), fs::Permissions::from_mode(0o1777)).unwrap();
    let sparse = File::create(dir.join("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 5 << 20).unwrap();
    for i in 0..files {
        let sub = dir.join(format!("many/{}", i % 50));
        fs::create_dir_all(&sub).unwrap();
        fs::write(sub.join(i.to_string()), format!("file {i} ").repeat(i % 200)).unwrap();
    }
}

/// A process that unpacks a layer and may be killed.
pub(crate) fn ingest_command(state: &Path, tar: &Path, diff_id: &DiffId) -> Command {
    let mut command = Command::new(program());
    command
        .arg("ingest")
        .arg(state)
        .arg(tar)
        .arg(diff_id.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    command
}

/// A tar of a few thousand files, its diffID, and what it unpacks to.
pub(crate) fn big_layer(dir: &Path) -> (PathBuf, DiffId, Vec<String>) {
    let source = dir.join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 1000);
    let tar = dir.join("big.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&source)
        .arg("."));
    let diff_id = DiffId::of(&fs::read(&tar).unwrap());
    (tar, diff_id, picture(&source))
}
