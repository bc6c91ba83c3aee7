//! What a disk may hold after a power cut, out of what was written to it.
//!
//! Each change is either durable, because a sync that covers it came later, or it may or may not have reached the disk,
//! in any order. A rename is atomic, a write may be torn, a file may have grown by zeros.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::hash::{Hash, Hasher};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};

use crate::disk::record::{About, Kind, Op, about, kind};

type Id = usize;

/// A file or directory, by identity and not by name.
#[derive(Clone, Debug)]
struct Node {
    kind: Kind,
    about: About,
    data: Vec<u8>,
    entries: BTreeMap<OsString, Id>,
}

impl Node {
    fn new(kind: Kind, about: About) -> Self {
        Self {
            kind,
            about,
            data: Vec::new(),
            entries: BTreeMap::new(),
        }
    }
}

/// A change in terms of nodes, so that it means the same whichever others were lost.
#[derive(Clone, Debug)]
enum Change {
    Entries(Vec<(Id, OsString, Option<Id>)>),
    Write(Id, u64, Vec<u8>),
    SetLen(Id, u64),
    Describe(Id, About),
    Nothing,
}

/// What becomes of a change that was not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    Lost,
    /// Half of a write.
    Torn,
    /// The file is as long as after the write, and holds zeros.
    Zeros,
}

/// The beginning, and the list of all changes.
pub(super) struct Journal {
    root: PathBuf,
    start: Vec<Node>,
    changes: Vec<Change>,
    /// The index of the sync that made the change durable, if one did.
    durable_at: Vec<Option<usize>>,
    /// Nodes made on the way, as they were made.
    made: Vec<Node>,
}

/// A directory tree that a disk may hold.
pub(super) struct State {
    nodes: Vec<Node>,
}

/// What is on the disk now.
pub(super) fn read(root: &Path) -> State {
    let mut nodes = vec![Node::new(Kind::Dir, about(root))];
    let mut inodes = BTreeMap::new();
    let mut todo = vec![(root.to_owned(), 0)];
    while let Some((dir, id)) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            let inode = std::os::unix::fs::DirEntryExt::ino(&entry);
            let new = nodes.len();
            let child = *inodes.entry(inode).or_insert(new);
            nodes[id].entries.insert(entry.file_name(), child);
            if child != new {
                continue;
            }
            let mut node = Node::new(kind(&path), about(&path));
            if node.kind == Kind::File {
                node.data = fs::read(&path).unwrap();
            }
            if node.kind == Kind::Dir {
                todo.push((path, new));
            }
            nodes.push(node);
        }
    }
    State { nodes }
}

fn find(nodes: &[Node], root: &Path, path: &Path) -> Option<Id> {
    let inside = path
        .strip_prefix(root)
        .unwrap_or_else(|_| panic!("{path:?} is outside"));
    inside
        .iter()
        .try_fold(0, |id: Id, name| nodes[id].entries.get(name).copied())
}

impl Journal {
    /// `start` is what the disk held before the first of `ops`.
    pub(super) fn new(root: &Path, start: State, ops: &[Op]) -> Self {
        let mut journal = Self {
            root: root.to_owned(),
            start: start.nodes.clone(),
            changes: Vec::new(),
            durable_at: vec![None; ops.len()],
            made: Vec::new(),
        };
        let mut nodes = start.nodes;
        for (at, op) in ops.iter().enumerate() {
            let change = journal.resolve(&mut nodes, at, op);
            apply(&mut nodes, &change, Fate::Kept);
            journal.changes.push(change);
        }
        journal
    }

    fn resolve(&mut self, nodes: &mut Vec<Node>, at: usize, op: &Op) -> Change {
        let root = self.root.clone();
        let id = |nodes: &[Node], path: &Path| {
            find(nodes, &root, path).unwrap_or_else(|| panic!("{path:?} is not there at step {at}"))
        };
        let place = |nodes: &[Node], path: &Path| {
            let dir = id(nodes, path.parent().unwrap());
            (dir, path.file_name().unwrap().to_owned())
        };
        let entry = |nodes: &[Node], path: &Path, to| {
            let (dir, name) = place(nodes, path);
            (dir, name, to)
        };
        match op {
            Op::Make(path, kind, about) => {
                let node = Node::new(kind.clone(), about.clone());
                let new = nodes.len();
                nodes.push(node.clone());
                self.made.push(node);
                Change::Entries(vec![entry(nodes, path, Some(new))])
            }
            Op::Write(path, offset, bytes) => Change::Write(id(nodes, path), *offset, bytes.clone()),
            Op::SetLen(path, len) => Change::SetLen(id(nodes, path), *len),
            Op::Describe(path, about) => Change::Describe(id(nodes, path), about.clone()),
            Op::Link(from, to) => {
                let node = id(nodes, from);
                Change::Entries(vec![entry(nodes, to, Some(node))])
            }
            Op::Rename(from, to) => {
                let node = id(nodes, from);
                Change::Entries(vec![entry(nodes, from, None), entry(nodes, to, Some(node))])
            }
            Op::Remove(path) => Change::Entries(vec![entry(nodes, path, None)]),
            // The name of the state directory itself.
            Op::Sync(path) if root.parent() == Some(path) => Change::Nothing,
            Op::Sync(path) => {
                let node = id(nodes, path);
                self.synced(at, |change| covers(change, node));
                Change::Nothing
            }
            Op::SyncAll => {
                self.synced(at, |_| true);
                Change::Nothing
            }
        }
    }

    fn synced(&mut self, at: usize, covers: impl Fn(&Change) -> bool) {
        for (change, durable) in self.changes.iter().zip(&mut self.durable_at) {
            if durable.is_none() && covers(change) {
                *durable = Some(at);
            }
        }
    }

    /// How many steps there are.
    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// The changes of the first `steps` that a power cut then may undo.
    pub(super) fn pending(&self, steps: usize) -> Vec<usize> {
        let changes = self.changes.iter().zip(&self.durable_at).take(steps).enumerate();
        changes
            .filter(|(_, (change, durable))| {
                !matches!(change, Change::Nothing) && durable.is_none_or(|at| at >= steps)
            })
            .map(|(at, _)| at)
            .collect()
    }

    /// Whether a step changes names and not contents.
    pub(super) fn is_name(&self, step: usize) -> bool {
        matches!(self.changes[step], Change::Entries(_))
    }

    /// Whether a step writes.
    pub(super) fn is_write(&self, step: usize) -> bool {
        matches!(self.changes[step], Change::Write(..))
    }

    /// What the disk holds after `steps`, where `fate` says what became of those that are pending.
    pub(super) fn state(&self, steps: usize, fate: impl Fn(usize) -> Fate) -> State {
        let mut nodes = self.start.clone();
        nodes.extend(self.made.iter().cloned());
        for (at, change) in self.changes.iter().take(steps).enumerate() {
            let durable = self.durable_at[at].is_some_and(|sync| sync < steps);
            apply(&mut nodes, change, if durable { Fate::Kept } else { fate(at) });
        }
        State { nodes }
    }
}

fn covers(change: &Change, node: Id) -> bool {
    match change {
        Change::Entries(entries) => entries.iter().any(|(dir, ..)| *dir == node),
        Change::Write(id, ..) | Change::SetLen(id, _) | Change::Describe(id, _) => *id == node,
        Change::Nothing => false,
    }
}

fn apply(nodes: &mut [Node], change: &Change, fate: Fate) {
    if fate == Fate::Lost {
        return;
    }
    match change {
        Change::Entries(entries) => {
            for (dir, name, to) in entries {
                match to {
                    Some(id) => drop(nodes[*dir].entries.insert(name.clone(), *id)),
                    None => drop(nodes[*dir].entries.remove(name)),
                }
            }
        }
        Change::Write(id, offset, bytes) => {
            let (data, start) = (&mut nodes[*id].data, *offset as usize);
            let end = start + bytes.len();
            if data.len() < end {
                data.resize(end, 0);
            }
            match fate {
                Fate::Zeros => data[start..end].fill(0),
                Fate::Torn => data[start..start + bytes.len() / 2].copy_from_slice(&bytes[..bytes.len() / 2]),
                _ => data[start..end].copy_from_slice(bytes),
            }
        }
        Change::SetLen(id, len) => nodes[*id].data.resize(*len as usize, 0),
        Change::Describe(id, about) => nodes[*id].about = about.clone(),
        Change::Nothing => {}
    }
}

impl State {
    /// Every path with what is there.
    pub(super) fn picture(&self) -> Vec<String> {
        let mut lines = Vec::new();
        self.walk(0, Path::new(""), &mut |path, node| {
            let mut about = node.about.clone();
            // What a layer's tar said of a time is from long ago; all others are the clock's.
            if about.mtime.0 > 1_600_000_000 {
                about.mtime = (0, 0);
            }
            let mut hasher = std::hash::DefaultHasher::new();
            node.data.hash(&mut hasher);
            lines.push(format!(
                "{path:?} {:?} {} {:x} {about:?}",
                node.kind,
                node.data.len(),
                hasher.finish()
            ));
        });
        lines
    }

    fn walk<'a>(&'a self, id: Id, path: &Path, seen: &mut impl FnMut(&Path, &'a Node)) {
        for (name, child) in &self.nodes[id].entries {
            let path = path.join(name);
            seen(&path, &self.nodes[*child]);
            self.walk(*child, &path, seen);
        }
    }

    /// Something that is the same for states that are the same.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut hasher = std::hash::DefaultHasher::new();
        self.picture().hash(&mut hasher);
        hasher.finish()
    }

    /// Puts it on a real disk, in an empty directory.
    pub(super) fn write(&self, root: &Path) {
        let mut first: BTreeMap<Id, PathBuf> = BTreeMap::new();
        self.write_dir(0, root, &mut first);
    }

    fn write_dir(&self, id: Id, dir: &Path, first: &mut BTreeMap<Id, PathBuf>) {
        for (name, child) in &self.nodes[id].entries {
            let path = dir.join(name);
            let node = &self.nodes[*child];
            if let Some(other) = first.get(child).filter(|_| node.kind != Kind::Dir) {
                fs::hard_link(other, &path).unwrap();
                continue;
            }
            first.insert(*child, path.clone());
            match &node.kind {
                Kind::Dir => {
                    fs::create_dir(&path).unwrap();
                    self.write_dir(*child, &path, first);
                }
                Kind::File => fs::write(&path, &node.data).unwrap(),
                Kind::Symlink(target) => std::os::unix::fs::symlink(target, &path).unwrap(),
                Kind::Fifo => rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::RUSR, 0).unwrap(),
                Kind::Whiteout => {
                    rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, Mode::RUSR, 0).unwrap();
                }
            }
            describe(&path, node);
        }
    }
}

fn describe(path: &Path, node: &Node) {
    if matches!(node.kind, Kind::File | Kind::Dir) {
        for (name, value) in &node.about.xattrs {
            rustix::fs::setxattr(path, name.as_str(), value, XattrFlags::empty()).unwrap();
        }
    }
    if !matches!(node.kind, Kind::Symlink(_)) {
        fs::set_permissions(path, fs::Permissions::from_mode(node.about.mode)).unwrap();
    }
    let time = Timespec {
        tv_sec: node.about.mtime.0 as _,
        tv_nsec: node.about.mtime.1 as _,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}
