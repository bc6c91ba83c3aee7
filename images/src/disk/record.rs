//! What the disk calls of one thread did, in order, with the bytes.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is at a path, as far as the store cares.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink(PathBuf),
    Fifo,
    Whiteout,
}

/// Permission bits, modification time, `user.*` attributes.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub(crate) struct About {
    pub(crate) mode: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) xattrs: BTreeMap<String, Vec<u8>>,
}

/// One change of the disk, or a sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Make(PathBuf, Kind, About),
    Write(PathBuf, u64, Vec<u8>),
    SetLen(PathBuf, u64),
    Describe(PathBuf, About),
    Link(PathBuf, PathBuf),
    Rename(PathBuf, PathBuf),
    Remove(PathBuf),
    Sync(PathBuf),
    SyncAll,
}

thread_local! {
    static LOG: RefCell<Option<Vec<Op>>> = const { RefCell::new(None) };
}

/// Runs `act` and gives what it did to the disk on this thread.
pub(crate) fn recorded<T>(act: impl FnOnce() -> T) -> (T, Vec<Op>) {
    LOG.with(|log| *log.borrow_mut() = Some(Vec::new()));
    let result = act();
    let ops = LOG.with(|log| log.borrow_mut().take()).unwrap_or_default();
    (result, ops)
}

fn push(op: impl FnOnce() -> Op) {
    let on = LOG.with(|log| log.borrow().is_some());
    if on {
        let op = op();
        LOG.with(|log| log.borrow_mut().as_mut().unwrap().push(op));
    }
}

fn path_of(fd: BorrowedFd<'_>) -> PathBuf {
    fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap()
}

fn at(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    path_of(dir).join(std::ffi::OsStr::from_bytes(name))
}

pub(crate) fn kind(path: &Path) -> Kind {
    let meta = fs::symlink_metadata(path).unwrap();
    let file_type = meta.file_type();
    match () {
        () if file_type.is_dir() => Kind::Dir,
        () if file_type.is_symlink() => Kind::Symlink(fs::read_link(path).unwrap()),
        () if file_type.is_fifo() => Kind::Fifo,
        () if file_type.is_char_device() => Kind::Whiteout,
        () => Kind::File,
    }
}

pub(crate) fn about(path: &Path) -> About {
    let meta = fs::symlink_metadata(path).unwrap();
    let mut xattrs = BTreeMap::new();
    if meta.is_file() || meta.is_dir() {
        let mut names = vec![0; 65_536];
        let n = rustix::fs::listxattr(path, &mut names[..]).unwrap_or(0);
        for name in names[..n].split(|b| *b == 0).filter(|n| n.starts_with(b"user.")) {
            let mut value = vec![0; 65_536];
            let n = rustix::fs::getxattr(path, name, &mut value[..]).unwrap();
            value.truncate(n);
            xattrs.insert(String::from_utf8_lossy(name).into_owned(), value);
        }
    }
    About {
        mode: meta.mode() & 0o7777,
        mtime: (meta.mtime(), meta.mtime_nsec()),
        xattrs,
    }
}

pub(super) fn made(path: &Path) {
    push(|| Op::Make(path.to_owned(), kind(path), about(path)));
}

pub(super) fn made_at(dir: BorrowedFd<'_>, name: &[u8]) {
    push(|| {
        let path = at(dir, name);
        Op::Make(path.clone(), kind(&path), about(&path))
    });
}

pub(super) fn wrote(file: BorrowedFd<'_>, offset: u64, bytes: &[u8]) {
    push(|| Op::Write(path_of(file), offset, bytes.to_vec()));
}

pub(super) fn resized(file: BorrowedFd<'_>, len: u64) {
    push(|| Op::SetLen(path_of(file), len));
}

pub(super) fn synced(fd: BorrowedFd<'_>) {
    push(|| Op::Sync(path_of(fd)));
}

pub(super) fn synced_all() {
    push(|| Op::SyncAll);
}

pub(super) fn renamed(from: &Path, to: &Path) {
    push(|| Op::Rename(from.to_owned(), to.to_owned()));
}

pub(super) fn removed(path: &Path) {
    push(|| Op::Remove(path.to_owned()));
}

pub(super) fn removed_at(dir: BorrowedFd<'_>, name: &[u8]) {
    push(|| Op::Remove(at(dir, name)));
}

pub(super) fn linked_at(from: BorrowedFd<'_>, old: &[u8], dir: BorrowedFd<'_>, name: &[u8]) {
    push(|| Op::Link(at(from, old), at(dir, name)));
}

pub(super) fn described(fd: BorrowedFd<'_>) {
    push(|| {
        let path = path_of(fd);
        Op::Describe(path.clone(), about(&path))
    });
}

pub(super) fn described_at(dir: BorrowedFd<'_>, name: &[u8]) {
    push(|| {
        let path = at(dir, name);
        Op::Describe(path.clone(), about(&path))
    });
}

/// The removals that make up that of a tree: what is in a directory before it.
pub(super) fn removing_tree(path: &Path) {
    if !LOG.with(|log| log.borrow().is_some()) {
        return;
    }
    let Ok(meta) = fs::symlink_metadata(path) else {
        return;
    };
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            removing_tree(&entry.unwrap().path());
        }
    }
    push(|| Op::Remove(path.to_owned()));
}
