//! A layer read back: its tar made again from recipe and tree, hashed, and compared entry by entry with what the tree shows.
//!
//! Runs inside the [`cage`](crate::cage), because a recipe on a bad card is a foreign archive again. Nothing is changed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, statat};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::decompress::Source;
use super::metadata::Note;
use super::recipe::Reader;
use super::tar::{Archive, Entry, Kind};
use super::tree::{self, components, is_whiteout, open_dir};
use super::{Error, METADATA, RECIPE, TREE};
use crate::digest::{DiffId, Hasher};

/// At most so many faults are told; one is enough to know.
const MAX_FAULTS: usize = 10;
/// How much is read at once.
const CHUNK: usize = 128 << 10;
/// Times that every file system keeps, in seconds.
const KEPT_TIMES: std::ops::RangeInclusive<i64> = 0..=i32::MAX as i64;
/// Deeper than any layer that was unpacked.
const MAX_DEPTH: usize = 260;

/// What reading a layer back gave.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Checked {
    /// The digest of the tar that recipe and tree give; none where the layer has no recipe: it was made before there were any.
    pub diff_id: Option<DiffId>,
    /// The length of that tar.
    pub tar_size: u64,
    /// Files, directories, links and whiteouts in the tree.
    pub nodes: u64,
    /// What else is not as the tar says, the first few.
    pub faults: Vec<String>,
}

/// The recipe and the tree of the layer in `dir`; none where there is no recipe.
fn open(dir: BorrowedFd<'_>) -> Result<Option<(File, OwnedFd)>, Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let recipe = match rustix::fs::openat(dir, RECIPE, flags, Mode::empty()) {
        Ok(recipe) => File::from(recipe),
        Err(Errno::NOENT) => return Ok(None),
        Err(e) => return Err(Error::io("open", RECIPE.as_bytes(), e)),
    };
    let tree = open_dir(dir, TREE.as_bytes()).map_err(|e| Error::io("open", TREE.as_bytes(), e))?;
    Ok(Some((recipe, tree)))
}

/// Writes the tar of the layer in `dir` to `out`; what it was the digest of and how long. None where there is no recipe.
pub fn regenerate(dir: BorrowedFd<'_>, out: &mut dyn Write) -> Result<Option<(DiffId, u64)>, Error> {
    let Some((recipe, tree)) = open(dir)? else {
        return Ok(None);
    };
    let failed = |e| Error::io("read back", b"the layer", e);
    let mut reader = Reader::new(recipe, tree.as_fd()).map_err(failed)?;
    let (mut hasher, mut len) = (Hasher::new(), 0);
    let mut buffer = vec![0; CHUNK];
    loop {
        let n = match reader.read(&mut buffer) {
            Ok(0) => return Ok(Some((hasher.diff_id(), len))),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(failed(e)),
        };
        let bytes = buffer.get(..n).unwrap_or_default();
        hasher.update(bytes);
        len += n as u64;
        out.write_all(bytes)
            .map_err(|e| Error::io("write", b"the layer's tar", e))?;
    }
}

/// Reads the layer in `dir` back. An error is one of reading; whatever is wrong with the layer is in the answer.
pub fn check(dir: BorrowedFd<'_>) -> Result<Checked, Error> {
    let mut checked = Checked {
        diff_id: None,
        tar_size: 0,
        nodes: 0,
        faults: Vec::new(),
    };
    let Some((recipe, tree)) = open(dir)? else {
        return Ok(checked);
    };
    let mut source = match Reader::new(recipe, tree.as_fd()) {
        Ok(reader) => Source::new(reader, u64::MAX, None),
        Err(e) => {
            checked.diff_id = Some(Hasher::new().diff_id());
            checked.faults.push(format!("its recipe cannot be read: {e}"));
            return Ok(checked);
        }
    };
    let mut check = Check {
        tree: tree.as_fd(),
        notes: Hasher::new(),
        faults: Vec::new(),
    };
    let read = check.entries(&mut source).and_then(|()| source.drain());
    if let Err(e) = read {
        check.fault(e.to_string());
    } else {
        check.compare_notes(dir)?;
        match count(tree.as_fd(), 0) {
            Ok(nodes) => checked.nodes = nodes,
            Err(e) => check.fault(format!("the tree cannot be listed: {}", io::Error::from(e))),
        }
    }
    checked.faults = check.faults;
    let (diff_id, tar_size) = source.finish()?;
    (checked.diff_id, checked.tar_size) = (Some(diff_id), tar_size);
    Ok(checked)
}

struct Check<'a> {
    tree: BorrowedFd<'a>,
    /// Over the notes as they ought to be.
    notes: Hasher,
    faults: Vec<String>,
}

impl Check<'_> {
    fn fault(&mut self, what: String) {
        if self.faults.len() < MAX_FAULTS {
            self.faults.push(what);
        }
    }

    fn entries(&mut self, source: &mut Source<impl Read>) -> Result<(), Error> {
        let mut archive = Archive::new(source);
        while let Some(entry) = archive.next()? {
            self.entry(&entry)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &Entry) -> Result<(), Error> {
        let path = components(&entry.path)?;
        let normal = path.join(&b'/');
        let Some((&name, parents)) = path.split_last() else {
            return self.note(entry, b"", entry.mode | tree::DIR_FLOOR);
        };
        let found = match self.parent(parents) {
            Ok(dir) => self.compare(entry, dir.as_ref().map_or(self.tree, AsFd::as_fd), name),
            Err(e) => Err(e),
        };
        match found {
            Ok(None) => {}
            Ok(Some(what)) => self.fault(format!("{:?}: {what}", super::quote(&entry.path))),
            Err(e) => {
                let e = io::Error::from(e);
                self.fault(format!("{:?}: {e}", super::quote(&entry.path)));
            }
        }
        if name.starts_with(tree::WHITEOUT) || entry.kind == Kind::HardLink {
            return Ok(());
        }
        let kept = match entry.kind {
            Kind::Directory => entry.mode | tree::DIR_FLOOR,
            Kind::File => entry.mode | tree::FILE_FLOOR,
            _ => entry.mode,
        };
        self.note(entry, &normal, kept)
    }

    fn note(&mut self, entry: &Entry, normal: &[u8], kept_mode: u32) -> Result<(), Error> {
        if let Some(note) = Note::of(entry, normal, kept_mode) {
            let failed = |e: serde_json::Error| Error::io("describe", &entry.path, io::Error::from(e));
            self.notes.update(&serde_json::to_vec(&note).map_err(failed)?);
            self.notes.update(b"\n");
        }
        Ok(())
    }

    fn parent(&self, parents: &[&[u8]]) -> rustix::io::Result<Option<OwnedFd>> {
        let mut dir: Option<OwnedFd> = None;
        for name in parents {
            dir = Some(open_dir(dir.as_ref().map_or(self.tree, AsFd::as_fd), name)?);
        }
        Ok(dir)
    }

    /// What is not as the entry says.
    fn compare(
        &self,
        entry: &Entry,
        dir: BorrowedFd<'_>,
        name: &[u8],
    ) -> rustix::io::Result<Option<&'static str>> {
        if name == tree::OPAQUE {
            let mut value = [0; 8];
            let marked = rustix::fs::fgetxattr(dir, tree::OPAQUE_XATTR, &mut value[..]);
            let marked = marked.is_ok_and(|n| value.get(..n) == Some(b"y"));
            return Ok((!marked).then_some("the directory is not opaque"));
        }
        if name.starts_with(tree::AUFS) {
            return Ok(None);
        }
        if let Some(hidden) = name.strip_prefix(tree::WHITEOUT) {
            // A whiteout, or what the layer has in its place.
            statat(dir, hidden, AtFlags::SYMLINK_NOFOLLOW)?;
            return Ok(None);
        }
        if matches!(entry.kind, Kind::CharDevice | Kind::BlockDevice) {
            return Ok(None);
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let wrong_kind = Ok(Some("it is something else in the tree"));
        match entry.kind {
            Kind::File if kind != FileType::RegularFile => wrong_kind,
            Kind::File if stat.st_size as u64 != entry.size => Ok(Some("its length is another")),
            Kind::File => Ok(described(entry, &stat, entry.mode | tree::FILE_FLOOR)),
            Kind::Fifo if kind != FileType::Fifo => wrong_kind,
            Kind::Fifo => Ok(described(entry, &stat, entry.mode)),
            Kind::Directory if kind != FileType::Directory => wrong_kind,
            Kind::Symlink if kind != FileType::Symlink => wrong_kind,
            Kind::Symlink => {
                let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
                let same = target.as_bytes() == entry.link.as_slice();
                Ok((!same).then_some("the symbolic link leads elsewhere"))
            }
            Kind::HardLink => {
                let path = components(&entry.link).map_err(|_| Errno::INVAL)?;
                let (target, parents) = path.split_last().ok_or(Errno::INVAL)?;
                let dir = self.parent(parents)?;
                let other = statat(
                    dir.as_ref().map_or(self.tree, AsFd::as_fd),
                    *target,
                    AtFlags::SYMLINK_NOFOLLOW,
                )?;
                let same = (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino);
                Ok((!same).then_some("it is a hard link no more"))
            }
            _ => Ok(None),
        }
    }

    fn compare_notes(&mut self, dir: BorrowedFd<'_>) -> Result<(), Error> {
        let failed = |e: io::Error| Error::io("read", METADATA.as_bytes(), e);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = match rustix::fs::openat(dir, METADATA, flags, Mode::empty()) {
            Ok(file) => file,
            Err(Errno::NOENT) => {
                self.fault("the file with what the tree cannot show is gone".into());
                return Ok(());
            }
            Err(e) => return Err(failed(e.into())),
        };
        let mut found = Hasher::new();
        io::copy(&mut File::from(file), &mut found).map_err(failed)?;
        let wanted = std::mem::take(&mut self.notes);
        if found.digest() != wanted.digest() {
            self.fault("what is noted of the tree is not what the tar says".into());
        }
        Ok(())
    }
}

/// How many entries there are below.
fn count(dir: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<u64> {
    let mut nodes = 0;
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if matches!(name, b"." | b"..") {
            continue;
        }
        nodes += 1;
        let is_dir = match entry.file_type() {
            FileType::Unknown => {
                let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            kind => kind == FileType::Directory,
        };
        if is_dir {
            if depth >= MAX_DEPTH {
                return Err(Errno::NAMETOOLONG);
            }
            nodes += count(open_dir(dir, name)?.as_fd(), depth + 1)?;
        }
    }
    Ok(nodes)
}

fn described(entry: &Entry, stat: &Stat, mode: u32) -> Option<&'static str> {
    let time = tree::mtime_of(stat);
    match () {
        () if is_whiteout(stat) => Some("it is something else in the tree"),
        () if stat.st_mode & 0o7777 != mode => Some("its mode is another"),
        // A file system may keep whole seconds, and none before 1970 or after 2038.
        () if KEPT_TIMES.contains(&entry.mtime.0) && time.tv_sec != entry.mtime.0 => {
            Some("its time is another")
        }
        () => None,
    }
}
