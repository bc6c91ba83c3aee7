//! The tree being made: every name resolved by descriptors, so that nothing outside can be reached.
//!
//! The directories from the root to the current one are open, each with its name; the next entry's parent is reached by closing
//! those that it does not share and opening the rest one component at a time, never through a symbolic link. Each
//! directory gets its time back when it is closed, because making things in it changed it: so nothing about directories
//! has to be remembered, and memory depends on depth alone.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timespec, Timestamps, UTIME_OMIT, openat, statat};
use rustix::io::Errno;

use super::metadata::{Note, Writer};
use super::tar::{Archive, Entry, Kind};
use super::{Error, Limits, METADATA, TREE};
use crate::disk;

/// The longest path, as Linux has it.
const MAX_PATH: usize = 4096;
/// The longest name of one component, as Linux has it.
const MAX_NAME: usize = 255;
/// The deepest path: each directory on it is open while it is being filled.
const MAX_DEPTH: usize = 256;
/// How much file data is written at once.
const CHUNK: u64 = 128 << 10;

/// A name that hides the same name of the layers below.
pub(super) const WHITEOUT: &[u8] = b".wh.";
/// A name that hides everything that the layers below have in this directory.
pub(super) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Other names of this form are AUFS's own bookkeeping.
pub(super) const AUFS: &[u8] = b".wh..wh.";
/// How overlay with `userxattr` marks an opaque directory.
pub(super) const OPAQUE_XATTR: &str = "user.overlay.opaque";

/// A directory on the way to the current one.
struct Frame {
    name: Vec<u8>,
    fd: OwnedFd,
    mtime: Timespec,
}

/// What was made.
pub(super) struct Written {
    pub(super) data_size: u64,
    pub(super) entries: u64,
    pub(super) devices: u64,
}

/// The tree of one layer while it is being made.
pub(super) struct Tree {
    /// The root first; never empty until finished.
    stack: Vec<Frame>,
    metadata: Writer,
    written: Written,
    max_entries: u64,
    room: u64,
}

/// The tree's own mode and the mode of directories that no entry describes.
const PLAIN_DIR: u32 = 0o755;
/// What its owner must always be able to do with a directory, and with a file.
pub(super) const DIR_FLOOR: u32 = 0o700;
pub(super) const FILE_FLOOR: u32 = 0o400;

impl Tree {
    /// Begins a tree in the work directory.
    pub(super) fn create(work: BorrowedFd<'_>, limits: &Limits) -> Result<Self, Error> {
        let failed = |e| Error::io("create", TREE.as_bytes(), e);
        disk::make_dir_at(work, TREE.as_bytes(), DIR_FLOOR).map_err(failed)?;
        let fd = open_dir(work, TREE.as_bytes()).map_err(failed)?;
        disk::set_mode(fd.as_fd(), PLAIN_DIR).map_err(failed)?;
        let metadata = disk::make_file_at(work, METADATA.as_bytes()).map_err(failed)?;
        Ok(Self {
            stack: vec![Frame {
                name: Vec::new(),
                fd,
                mtime: time((0, 0)),
            }],
            metadata: Writer::new(File::from(metadata)),
            written: Written {
                data_size: 0,
                entries: 0,
                devices: 0,
            },
            max_entries: limits.entries,
            room: limits.room,
        })
    }

    /// Ends the tree: every directory has its time, every note is written.
    pub(super) fn finish(mut self) -> Result<Written, Error> {
        while let Some(frame) = self.stack.pop() {
            frame.close()?;
        }
        self.metadata
            .finish()
            .map_err(|e| Error::io("write", METADATA.as_bytes(), e))?;
        Ok(self.written)
    }

    /// Makes what an entry describes.
    pub(super) fn write(&mut self, entry: &Entry, data: &mut Archive<'_, impl Read>) -> Result<(), Error> {
        let path = components(&entry.path)?;
        let Some((&name, parents)) = path.split_last() else {
            if entry.kind != Kind::Directory {
                return Err(Error::entry(&entry.path, "only a directory can be the root"));
            }
            self.enter(&[], &entry.path)?;
            return self.describe_dir(entry, b"");
        };
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(entry, parents, name, hidden);
        }
        let normal = path.join(&b'/');
        if entry.kind == Kind::Directory {
            self.enter(&path, &entry.path)?;
            return self.describe_dir(entry, &normal);
        }
        self.enter(parents, &entry.path)?;
        let mut kept_mode = entry.mode;
        match entry.kind {
            Kind::File => {
                kept_mode |= FILE_FLOOR;
                self.file(entry, name, &normal, kept_mode, data)?;
            }
            Kind::Symlink => self.symlink(entry, name)?,
            Kind::HardLink => return self.hard_link(entry, parents, name),
            Kind::Fifo => {
                self.fresh(entry, name, |dir| {
                    disk::make_node_at(dir, name, FileType::Fifo, entry.mode)
                })?;
                self.set_time(entry, name)?;
            }
            Kind::CharDevice | Kind::BlockDevice => self.written.devices += 1,
            Kind::Directory => {}
        }
        self.note(entry, &normal, kept_mode)
    }

    /// Opens the directories of `path` down from the root, making those that are missing, so that the last is current.
    fn enter(&mut self, path: &[&[u8]], whole: &[u8]) -> Result<(), Error> {
        let names = self.stack.iter().skip(1).map(|frame| frame.name.as_slice());
        let shared = names.zip(path).take_while(|(have, want)| have == *want).count();
        while self.stack.len() > shared + 1 {
            if let Some(frame) = self.stack.pop() {
                frame.close()?;
            }
        }
        for name in path.iter().skip(shared) {
            let frame = self.open_or_make(name, whole)?;
            self.stack.push(frame);
        }
        Ok(())
    }

    fn open_or_make(&mut self, name: &[u8], whole: &[u8]) -> Result<Frame, Error> {
        let dir = self.current();
        let failed = |e: Errno| Error::io("open a directory of", whole, e);
        let opened = match open_dir(dir, name) {
            Ok(fd) => {
                let stat = rustix::fs::fstat(&fd).map_err(failed)?;
                return Ok(Frame {
                    name: name.to_vec(),
                    fd,
                    mtime: mtime_of(&stat),
                });
            }
            Err(Errno::NOENT) => None,
            Err(Errno::LOOP | Errno::NOTDIR) => {
                Some(statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?)
            }
            Err(e) => return Err(failed(e)),
        };
        let hides_below = match opened {
            None => false,
            // The name was whited out and is now made anew: nothing from below may show through.
            Some(stat) if is_whiteout(&stat) => {
                disk::remove_at(dir, name).map_err(failed)?;
                true
            }
            Some(stat) => {
                let reason = match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Symlink => "is a symbolic link, and none is followed",
                    _ => "is not a directory",
                };
                return Err(Error::entry(
                    whole,
                    format!("its parent {:?} {reason}", super::quote(name)),
                ));
            }
        };
        self.count()?;
        let dir = self.current();
        disk::make_dir_at(dir, name, PLAIN_DIR).map_err(failed)?;
        let fd = open_dir(dir, name).map_err(failed)?;
        if hides_below {
            make_opaque(fd.as_fd(), whole)?;
        }
        Ok(Frame {
            name: name.to_vec(),
            fd,
            mtime: time((0, 0)),
        })
    }

    fn current(&self) -> BorrowedFd<'_> {
        // The root stays on the stack until `finish` takes the tree.
        self.stack
            .last()
            .map_or(rustix::fs::CWD, |frame| frame.fd.as_fd())
    }

    fn count(&mut self) -> Result<(), Error> {
        self.written.entries += 1;
        if self.written.entries > self.max_entries {
            return Err(Error::Limit {
                what: "entries",
                limit: self.max_entries,
            });
        }
        Ok(())
    }

    /// Makes something under a name that must be free, or taken by a whiteout that then goes.
    fn fresh<T>(
        &mut self,
        entry: &Entry,
        name: &[u8],
        make: impl Fn(BorrowedFd<'_>) -> rustix::io::Result<T>,
    ) -> Result<T, Error> {
        self.count()?;
        let dir = self.current();
        match make(dir) {
            Err(Errno::EXIST) => {}
            other => return other.map_err(|e| Error::io("create", &entry.path, e)),
        }
        let there =
            statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| Error::io("stat", &entry.path, e))?;
        if !is_whiteout(&there) {
            return Err(Error::entry(&entry.path, "it is there twice"));
        }
        disk::remove_at(dir, name).map_err(|e| Error::io("remove", &entry.path, e))?;
        make(dir).map_err(|e| Error::io("create", &entry.path, e))
    }

    fn describe_dir(&mut self, entry: &Entry, normal: &[u8]) -> Result<(), Error> {
        let kept = entry.mode | DIR_FLOOR;
        let failed = |e: Errno| Error::io("set the mode of", &entry.path, e);
        if let Some(frame) = self.stack.last_mut() {
            disk::set_mode(frame.fd.as_fd(), kept).map_err(failed)?;
            set_xattrs(frame.fd.as_fd(), entry);
            frame.mtime = time(entry.mtime);
        }
        self.note(entry, normal, kept)
    }

    fn file(
        &mut self,
        entry: &Entry,
        name: &[u8],
        normal: &[u8],
        mode: u32,
        data: &mut Archive<'_, impl Read>,
    ) -> Result<(), Error> {
        let file = self.fresh(entry, name, |dir| disk::make_file_at(dir, name))?;
        let file = File::from(file);
        let failed = |e: io::Error| Error::io("write", &entry.path, e);
        for (offset, len) in &entry.segments {
            let mut done = 0;
            while done < *len {
                let n = data.data((*len - done).min(CHUNK), (normal, *offset + done), |bytes| {
                    disk::write_at(&file, bytes, *offset + done).map_err(failed)
                })?;
                done += n;
                self.written.data_size += n;
                if self.written.data_size > self.room {
                    return Err(Error::NoSpace(0));
                }
            }
        }
        // A map may end with an empty segment at the end of the file, which writes nothing there.
        let mut data = entry.segments.iter().filter(|(_, len)| *len > 0);
        let end = data.next_back().map_or(0, |(offset, len)| offset + len);
        if end < entry.size {
            disk::set_len(&file, entry.size).map_err(failed)?;
        }
        let described = || {
            set_xattrs(file.as_fd(), entry);
            disk::set_mode(file.as_fd(), mode)?;
            disk::set_times(file.as_fd(), &times(time(entry.mtime)))
        };
        described().map_err(|e| Error::io("describe", &entry.path, e))
    }

    fn symlink(&mut self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        if entry.link.is_empty() || entry.link.len() >= MAX_PATH || entry.link.contains(&0) {
            return Err(Error::entry(
                &entry.path,
                "a symbolic link to nothing that Linux could name",
            ));
        }
        self.fresh(entry, name, |dir| {
            disk::make_symlink_at(entry.link.as_slice(), dir, name)
        })?;
        self.set_time(entry, name)
    }

    fn set_time(&self, entry: &Entry, name: &[u8]) -> Result<(), Error> {
        let times = times(time(entry.mtime));
        disk::set_times_at(self.current(), name, &times).map_err(|e| Error::io("describe", &entry.path, e))
    }

    fn hard_link(&mut self, entry: &Entry, parents: &[&[u8]], name: &[u8]) -> Result<(), Error> {
        let refused = |reason: &str| {
            Error::entry(
                &entry.path,
                format!("hard link to {:?}: {reason}", super::quote(&entry.link)),
            )
        };
        let target = components(&entry.link).map_err(|e| match e {
            Error::Entry { reason, .. } => refused(&reason),
            e => e,
        })?;
        let Some((target_name, target_parents)) = target.split_last() else {
            return Err(refused("that is the root"));
        };
        // The target's directory is looked up on the side: the current one is where the link will be.
        let mut side: Option<OwnedFd> = None;
        let root = self
            .stack
            .first()
            .map_or(rustix::fs::CWD, |frame| frame.fd.as_fd());
        if target_parents != parents {
            for name in target_parents {
                let from = side.as_ref().map_or(root, AsFd::as_fd);
                side = Some(open_dir(from, name).map_err(|e| match e {
                    Errno::NOENT => refused("it is not in this layer"),
                    Errno::LOOP | Errno::NOTDIR => refused("the way there is not through directories"),
                    e => Error::io("open the target of", &entry.path, e),
                })?);
            }
        }
        let from = match &side {
            Some(fd) => fd.as_fd(),
            None if target_parents == parents => self.current(),
            None => root,
        };
        let stat = statat(from, *target_name, AtFlags::SYMLINK_NOFOLLOW).map_err(|e| match e {
            Errno::NOENT => refused("it is not in this layer"),
            e => Error::io("stat the target of", &entry.path, e),
        })?;
        let linkable = matches!(
            FileType::from_raw_mode(stat.st_mode),
            FileType::RegularFile | FileType::Symlink | FileType::Fifo
        );
        if !linkable {
            return Err(refused("it is not a file"));
        }
        // `from` borrows from the stack, which `fresh` needs to change its count only.
        let from = from
            .try_clone_to_owned()
            .map_err(|e| Error::io("open the target of", &entry.path, e))?;
        self.fresh(entry, name, |dir| {
            disk::link_at(from.as_fd(), target_name, dir, name)
        })
    }

    fn whiteout(
        &mut self,
        entry: &Entry,
        parents: &[&[u8]],
        name: &[u8],
        hidden: &[u8],
    ) -> Result<(), Error> {
        if name == OPAQUE {
            if parents.is_empty() {
                return Err(Error::entry(
                    &entry.path,
                    "an opaque root directory is not supported: overlay has none",
                ));
            }
            self.enter(parents, &entry.path)?;
            return make_opaque(self.current(), &entry.path);
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Error::entry(&entry.path, "a whiteout of no name"));
        }
        self.enter(parents, &entry.path)?;
        self.count()?;
        let dir = self.current();
        match disk::make_node_at(dir, hidden, FileType::CharacterDevice, 0o600) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) => {
                // The layer both hides the name below and has its own: of a directory nothing below may show through,
                // anything else hides what is below by being there.
                let stat = statat(dir, hidden, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(|e| Error::io("stat", &entry.path, e))?;
                match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        let fd = open_dir(dir, hidden).map_err(|e| Error::io("open", &entry.path, e))?;
                        make_opaque(fd.as_fd(), &entry.path)
                    }
                    _ if is_whiteout(&stat) => Err(Error::entry(&entry.path, "it is there twice")),
                    _ => Ok(()),
                }
            }
            Err(Errno::PERM) => Err(Error::entry(
                &entry.path,
                "this kernel or file system lets no ordinary user make a whiteout (Linux 5.8 does)",
            )),
            Err(e) => Err(Error::io("create", &entry.path, e)),
        }
    }

    fn note(&mut self, entry: &Entry, normal: &[u8], kept_mode: u32) -> Result<(), Error> {
        match Note::of(entry, normal, kept_mode) {
            Some(note) => self
                .metadata
                .write(&note)
                .map_err(|e| Error::io("write", METADATA.as_bytes(), e)),
            None => Ok(()),
        }
    }
}

impl Frame {
    fn close(self) -> Result<(), Error> {
        disk::set_times(self.fd.as_fd(), &times(self.mtime)).map_err(|e| Error::io("describe", &self.name, e))
    }
}

/// The components of a name, or why it is not one that can be beneath the tree.
pub(super) fn components(path: &[u8]) -> Result<Vec<&[u8]>, Error> {
    let refused = |reason: &str| Err(Error::entry(path, reason));
    if path.is_empty() {
        return refused("it has no name");
    }
    if path.len() > MAX_PATH {
        return refused("its name is longer than 4096 bytes");
    }
    if path.contains(&0) {
        return refused("its name has a zero byte in it");
    }
    if path.starts_with(b"/") {
        return refused("its name is absolute");
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return refused("its name leads outside"),
            _ if name.len() > MAX_NAME => return refused("a part of its name is longer than 255 bytes"),
            _ => names.push(name),
        }
    }
    if names.len() > MAX_DEPTH {
        return refused("it lies deeper than 256 directories");
    }
    Ok(names)
}

pub(super) fn open_dir(dir: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn make_opaque(dir: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
    disk::set_xattr(dir, OPAQUE_XATTR.as_bytes(), b"y").map_err(|e| match e {
        Errno::OPNOTSUPP => Error::entry(
            path,
            "the file system of the state directory keeps no user attributes, which opaque directories need",
        ),
        e => Error::io("mark as opaque", path, e),
    })
}

/// Sets the attributes that an ordinary user may and overlay does not obey; all of them are in `metadata` anyway, so a file
/// system that does not take one loses nothing that is not written down.
fn set_xattrs(fd: BorrowedFd<'_>, entry: &Entry) {
    for (name, value) in &entry.xattrs {
        if name.starts_with(b"user.") && !name.starts_with(b"user.overlay.") {
            let _ = disk::set_xattr(fd, name, value);
        }
    }
}

fn time((seconds, nanos): (i64, u32)) -> Timespec {
    Timespec {
        tv_sec: seconds as _,
        tv_nsec: nanos as _,
    }
}

fn times(mtime: Timespec) -> Timestamps {
    Timestamps {
        last_access: Timespec {
            tv_sec: 0,
            tv_nsec: UTIME_OMIT as _,
        },
        last_modification: mtime,
    }
}

pub(super) fn mtime_of(stat: &Stat) -> Timespec {
    Timespec {
        tv_sec: stat.st_mtime as _,
        tv_nsec: stat.st_mtime_nsec as _,
    }
}
