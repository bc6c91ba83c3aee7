//! The mounting itself.
//!
//! Every target is resolved beneath the root and held as a descriptor before anything is mounted on it; sources are host
//! paths of whoever wrote the bundle. All of it happens in the container's user and mount namespace, before its root is
//! entered, while the host's procfs still names our descriptors.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use super::mounts::{Kind, Mounting, handle, name, text};
use super::options::{Change, Options};
use crate::error::{Context, Error};
use crate::resolve::{self, Leaf};
use crate::{cgroup, sys};

/// What the mounting needs to know of the container.
pub(crate) struct Site<'a> {
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) own_network: bool,
    pub(crate) own_ipc: bool,
    pub(crate) own_pids: bool,
    pub(crate) own_cgroup: bool,
    /// Whether the creator is root of the host.
    pub(crate) host_root: bool,
    /// The container's directories in hierarchies of cgroup v1.
    pub(crate) legacy: &'a BTreeMap<String, PathBuf>,
    /// Whether group 5 (tty) exists inside.
    pub(crate) has_tty_group: bool,
    /// Guarantees lost on the way.
    pub(crate) warnings: Vec<String>,
}

impl Site<'_> {
    /// Whether a mount makes nothing that has an owner, so that it can go before the ids are mapped.
    pub(crate) fn can_mount_unmapped(&self, mounting: &Mounting) -> bool {
        let plain = match mounting.kind {
            Kind::Proc => self.own_pids,
            Kind::Tmpfs => {
                let owned = |option: &String| option.starts_with("uid=") || option.starts_with("gid=");
                !mounting.options.copy_up && !mounting.options.data.iter().any(owned)
            }
            _ => false,
        };
        plain && resolve::open(self.root, &mounting.destination).is_ok()
    }

    /// Carries out one mount. `tree` is a source that is prepared already: a detached one with ids mapped.
    pub(crate) fn mount(&mut self, mounting: &Mounting, tree: Option<BorrowedFd<'_>>) -> Result<(), Error> {
        let field = &mounting.field;
        let destination = &mounting.destination;
        let what = || format!("config.json: {field}: /{}", destination.display());
        let options = &mounting.options;
        match &mounting.kind {
            Kind::Bind { source, recursive } => {
                let source = handle(source)
                    .context(|| format!("config.json: {field}.source: {}", source.display()))?;
                return match tree {
                    Some(tree) => self.attach(tree, destination, options).context(what),
                    None => self
                        .bind(source.as_fd(), destination, *recursive, options)
                        .context(what),
                };
            }
            Kind::Remount => {
                let target = resolve::open(self.root, destination).context(what)?;
                let data = text(&options.data.join(","))?;
                let changed = if options.bind.is_some() {
                    change(target.as_fd(), options.flags)
                } else {
                    let flags = options.flags.set;
                    rustix::mount::mount_remount(name(target.as_fd()), flags, data.as_c_str())
                };
                return changed
                    .context(what)
                    .and_then(|()| self.finish(destination, options).context(what));
            }
            _ => {}
        }
        let target = match mounting.kind {
            // A symlink in the image must not put these elsewhere, where masks would miss them.
            Kind::Proc | Kind::Sysfs => self.real_directory(destination).context(what)?,
            _ => resolve::make(self.root, destination, Leaf::Directory).context(what)?,
        };
        let mut data = options.data.clone();
        if mounting.kind == Kind::Devpts && !self.has_tty_group {
            data.retain(|option| option != "gid=5");
        }
        let data = text(&data.join(","))?;
        let mount = |kind: &str| {
            let (source, flags) = (mounting.source.as_str(), options.flags.set);
            rustix::mount::mount(source, name(target.as_fd()), kind, flags, data.as_c_str())
        };
        let bind_host = |path: &str| -> Result<(), Error> {
            let source = handle(Path::new(path)).context(what)?;
            self.bind(source.as_fd(), destination, true, options)
                .context(what)
        };
        match &mounting.kind {
            Kind::Proc if !self.own_pids => {
                bind_host("/proc")?;
                self.warnings.push(format!(
                    "{field}: the host's /proc, since the pid namespace is the host's"
                ));
                return Ok(());
            }
            Kind::Proc => mount("proc").context(what)?,
            Kind::Sysfs if !self.own_network => return bind_host("/sys"),
            Kind::Sysfs => mount("sysfs").context(what)?,
            // The host's queues: root may mount them, others have what the host shows.
            Kind::Mqueue if !self.own_ipc && mount("mqueue").is_err() => return bind_host("/dev/mqueue"),
            Kind::Mqueue if !self.own_ipc => {}
            Kind::Mqueue => mount("mqueue").context(what)?,
            Kind::Devpts => mount("devpts").context(what)?,
            Kind::Tmpfs if options.copy_up => {
                mount("tmpfs").context(what)?;
                let top = resolve::open(self.root, destination).context(what)?;
                copy_up(target.as_fd(), top.as_fd(), 0).context(|| format!("{}: tmpcopyup", what()))?;
            }
            Kind::Tmpfs => mount("tmpfs").context(what)?,
            Kind::Other(kind) => mount(kind).context(what)?,
            Kind::Cgroup => {
                let unified = rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type == 0x6367_7270);
                if unified && mount("cgroup2").is_ok() {
                } else if !unified && self.host_root {
                    self.mount_legacy(mounting).context(what)?;
                } else {
                    self.warnings.push(format!(
                        "{field}: /{}: not mounted, no cgroup v2 hierarchy is delegated",
                        destination.display()
                    ));
                    return Ok(());
                }
            }
            Kind::Bind { .. } | Kind::Remount => {}
        }
        self.finish(destination, options).context(what)
    }

    /// Shows the hierarchies of cgroup v1, each in a directory as on the host: those of this cgroup namespace, or without
    /// one of its own the container's directories.
    fn mount_legacy(&self, mounting: &Mounting) -> rustix::io::Result<()> {
        let flags = mounting.options.flags.set;
        let destination = &mounting.destination;
        let target = resolve::make(self.root, destination, Leaf::Directory)?;
        let data = c"mode=755,size=64k";
        let rest = flags - MountFlags::RDONLY;
        rustix::mount::mount("tmpfs", name(target.as_fd()), "tmpfs", rest, data)?;
        for hierarchy in cgroup::legacy_hierarchies(self.legacy) {
            let place = destination.join(&hierarchy.name);
            let target = resolve::make(self.root, &place, Leaf::Directory)?;
            if self.own_cgroup {
                let data = text(&hierarchy.data).map_err(|_| Errno::INVAL)?;
                rustix::mount::mount("cgroup", name(target.as_fd()), "cgroup", flags, data.as_c_str())?;
            } else {
                let source = handle(&hierarchy.directory)?;
                rustix::mount::mount_bind(name(source.as_fd()), name(target.as_fd()))?;
                remount(resolve::open(self.root, &place)?.as_fd(), flags)?;
            }
            // Controllers that share a hierarchy are found by each of their names.
            for alias in hierarchy.aliases() {
                let directory = resolve::open(self.root, destination)?;
                rustix::fs::symlinkat(&hierarchy.name, &directory, alias)?;
            }
        }
        if flags.contains(MountFlags::RDONLY) {
            remount(resolve::open(self.root, destination)?.as_fd(), flags)?;
        }
        Ok(())
    }

    /// Binds `source` on `destination`, which is made if it is missing, then sets flags and propagation.
    pub(crate) fn bind(
        &self,
        source: BorrowedFd<'_>,
        destination: &Path,
        recursive: bool,
        options: &Options,
    ) -> rustix::io::Result<()> {
        let target = self.target(source, destination)?;
        if recursive {
            rustix::mount::mount_bind_recursive(name(source), name(target.as_fd()))?;
        } else {
            rustix::mount::mount_bind(name(source), name(target.as_fd()))?;
        }
        self.settle(destination, options)
    }

    /// Puts a detached tree on `destination`.
    fn attach(&self, tree: BorrowedFd<'_>, destination: &Path, options: &Options) -> rustix::io::Result<()> {
        use rustix::mount::MoveMountFlags as Move;
        let target = self.target(tree, destination)?;
        let flags = Move::MOVE_MOUNT_F_EMPTY_PATH | Move::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(tree, "", &target, "", flags)?;
        self.settle(destination, options)
    }

    fn target(&self, source: BorrowedFd<'_>, destination: &Path) -> rustix::io::Result<OwnedFd> {
        let directory = FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode) == FileType::Directory;
        let leaf = if directory { Leaf::Directory } else { Leaf::File };
        resolve::make(self.root, destination, leaf)
    }

    /// Sets the flags of a bind mount, and what any mount has.
    fn settle(&self, destination: &Path, options: &Options) -> rustix::io::Result<()> {
        if !options.flags.is_empty() {
            change(resolve::open(self.root, destination)?.as_fd(), options.flags)?;
        }
        self.finish(destination, options)
    }

    /// Recursive attributes, then propagation.
    fn finish(&self, destination: &Path, options: &Options) -> rustix::io::Result<()> {
        if !options.recursive.is_empty() {
            let top = resolve::open(self.root, destination)?;
            change_tree(top.as_fd(), options.recursive)?;
        }
        for change in &options.propagation {
            let top = resolve::open(self.root, destination)?;
            rustix::mount::mount_change(name(top.as_fd()), *change)?;
        }
        Ok(())
    }

    fn real_directory(&self, destination: &Path) -> rustix::io::Result<OwnedFd> {
        let target = resolve::make(self.root, destination, Leaf::Directory)?;
        let parent = resolve::open(self.root, destination.parent().unwrap_or(Path::new("")))?;
        let leaf = destination.file_name().ok_or(Errno::INVAL)?;
        let direct = rustix::fs::openat(
            &parent,
            leaf,
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        let (a, b) = (rustix::fs::fstat(&target)?, rustix::fs::fstat(&direct)?);
        if FileType::from_raw_mode(b.st_mode) == FileType::Symlink
            || (a.st_dev, a.st_ino) != (b.st_dev, b.st_ino)
        {
            return Err(Errno::LOOP);
        }
        Ok(target)
    }

    /// Hides a path: an empty read-only directory, or the null device. Missing paths are hidden already.
    pub(crate) fn mask(&self, path: &str, null: BorrowedFd<'_>) -> Result<(), Error> {
        let what = || format!("config.json: linux.maskedPaths: {path}");
        let target = match resolve::open(self.root, &resolve::clean(path)) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            target => target.context(what)?,
        };
        if resolve::is_directory(&target).context(what)? {
            rustix::mount::mount(
                "tmpfs",
                name(target.as_fd()),
                "tmpfs",
                MountFlags::RDONLY,
                c"size=0k",
            )
        } else {
            rustix::mount::mount_bind(name(null), name(target.as_fd()))
        }
        .context(what)
    }

    /// Makes a path read-only. Missing paths cannot be written.
    pub(crate) fn protect(&self, path: &str) -> Result<(), Error> {
        let what = || format!("config.json: linux.readonlyPaths: {path}");
        let relative = resolve::clean(path);
        let target = match resolve::open(self.root, &relative) {
            Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
            target => target.context(what)?,
        };
        rustix::mount::mount_bind_recursive(name(target.as_fd()), name(target.as_fd())).context(what)?;
        let top = resolve::open(self.root, &relative).context(what)?;
        remount(top.as_fd(), MountFlags::RDONLY).context(what)
    }
}

/// Adds flags to a bind mount. A user namespace must keep those its source had.
pub(super) fn remount(top: BorrowedFd<'_>, flags: MountFlags) -> rustix::io::Result<()> {
    rustix::mount::mount_remount(name(top), flags | kept(top)? | MountFlags::BIND, c"")
}

/// Sets and clears flags of a bind mount. What its source has and this user namespace may not take off stays.
fn change(top: BorrowedFd<'_>, change: Change) -> rustix::io::Result<()> {
    let kept = kept(top)?;
    let remount = |flags| rustix::mount::mount_remount(name(top), flags | MountFlags::BIND, c"");
    if change.set.is_empty() && !kept.intersects(change.clear) {
        return Ok(());
    }
    let wanted = (kept - change.clear) | change.set;
    match remount(wanted) {
        Err(Errno::PERM) if wanted != kept | change.set => remount(kept | change.set),
        result => result,
    }
}

/// The flags that a mount has.
fn kept(top: BorrowedFd<'_>) -> rustix::io::Result<MountFlags> {
    use rustix::fs::StatVfsMountFlags as Has;
    let has = rustix::fs::fstatvfs(top)?.f_flag;
    let mut flags = MountFlags::empty();
    for (bit, flag) in [
        (Has::RDONLY, MountFlags::RDONLY),
        (Has::NOSUID, MountFlags::NOSUID),
        (Has::NODEV, MountFlags::NODEV),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ] {
        if has.contains(bit) {
            flags |= flag;
        }
    }
    Ok(flags)
}

/// Sets and clears flags of a mount and of all mounts beneath it.
fn change_tree(top: BorrowedFd<'_>, asked: Change) -> rustix::io::Result<()> {
    match sys::mount_setattr(top, attributes(asked), true) {
        // Before 5.12, or a filter of an outer container: each by itself.
        Err(e) if matches!(e.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            for path in mounts_beneath(top)? {
                let mount = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
                let wanted = (kept(mount.as_fd())? - asked.clear) | asked.set;
                rustix::mount::mount_remount(name(mount.as_fd()), wanted | MountFlags::BIND, c"")?;
            }
            Ok(())
        }
        result => result.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::INVAL)),
    }
}

/// Flags as `mount_setattr` names them.
fn attributes(change: Change) -> sys::MountAttributes<'static> {
    const ACCESS_TIME: MountFlags = MountFlags::NOATIME
        .union(MountFlags::RELATIME)
        .union(MountFlags::STRICTATIME);
    const BITS: [(MountFlags, u64); 7] = [
        (MountFlags::RDONLY, libc::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, libc::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, libc::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, libc::MOUNT_ATTR_NOEXEC),
        (MountFlags::NODIRATIME, libc::MOUNT_ATTR_NODIRATIME),
        (MountFlags::NOSYMFOLLOW, libc::MOUNT_ATTR_NOSYMFOLLOW),
        // Relative access time is no bit: it is what the others leave.
        (MountFlags::NOATIME, libc::MOUNT_ATTR_NOATIME),
    ];
    let bits = |flags: MountFlags| {
        let chosen = BITS.iter().filter(|(flag, _)| flags.contains(*flag));
        chosen.fold(0, |bits, (_, bit)| bits | bit)
    };
    let mut attributes = sys::MountAttributes {
        set: bits(change.set),
        clear: bits(change.clear - MountFlags::NOATIME),
        ..sys::MountAttributes::default()
    };
    if (change.set | change.clear).intersects(ACCESS_TIME) {
        // One of three values, which the kernel changes as one.
        attributes.clear |= libc::MOUNT_ATTR__ATIME;
        if change.set.contains(MountFlags::STRICTATIME) {
            attributes.set |= libc::MOUNT_ATTR_STRICTATIME;
        }
    }
    attributes
}

/// The mount points at and beneath a directory, outermost first.
fn mounts_beneath(top: BorrowedFd<'_>) -> rustix::io::Result<Vec<PathBuf>> {
    use std::os::unix::ffi::OsStrExt;
    let top = rustix::fs::readlink(name(top), Vec::new())?;
    let top = Path::new(std::ffi::OsStr::from_bytes(top.as_bytes())).to_owned();
    let table = std::fs::read("/proc/self/mountinfo");
    let table = table.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
    let points = table.split(|byte| *byte == b'\n').filter_map(|line| {
        let point = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(point))))
    });
    let mut found: Vec<PathBuf> = points.filter(|point| point.starts_with(&top)).collect();
    found.sort();
    found.dedup();
    Ok(found)
}

/// The mount table writes space, tab, newline and backslash as octal numbers.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((first, tail)) = rest.split_first() {
        let number = tail
            .get(..3)
            .filter(|digits| *first == b'\\' && digits.iter().all(|digit| (b'0'..=b'7').contains(digit)));
        match number {
            Some(digits) => {
                bytes.push(
                    digits
                        .iter()
                        .fold(0u8, |n, digit| n.wrapping_mul(8) + (digit - b'0')),
                );
                rest = tail.get(3..).unwrap_or_default();
            }
            None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    bytes
}

/// Deepest directory that `tmpcopyup` follows.
const MAX_DEPTH: usize = 128;

/// Copies a directory's content, with modes and owners, into a new tmpfs.
fn copy_up(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let source = rustix::fs::openat(from, ".", flags, Mode::empty())?;
    for entry in rustix::fs::Dir::read_from(&source)? {
        let entry = entry?;
        let entry_name = entry.file_name();
        if matches!(entry_name.to_bytes(), b"." | b"..") {
            continue;
        }
        copy_entry(source.as_fd(), to, entry_name, depth)?;
    }
    let stat = rustix::fs::fstat(&source)?;
    take_over(to, c".", &stat)
}

fn copy_entry(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    entry: &std::ffi::CStr,
    depth: usize,
) -> rustix::io::Result<()> {
    let stat = rustix::fs::statat(from, entry, rustix::fs::AtFlags::SYMLINK_NOFOLLOW)?;
    let mode = Mode::from_raw_mode(stat.st_mode);
    let open = |directory: BorrowedFd<'_>, flags: OFlags| {
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, entry, flags, mode)
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if depth >= MAX_DEPTH => return Err(Errno::LOOP),
        FileType::Directory => {
            rustix::fs::mkdirat(to, entry, Mode::RWXU)?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY;
            return copy_up(open(from, flags)?.as_fd(), open(to, flags)?.as_fd(), depth + 1);
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(from, entry, Vec::new())?;
            rustix::fs::symlinkat(target, to, entry)?;
        }
        FileType::RegularFile => {
            let mut source = std::fs::File::from(open(from, OFlags::RDONLY)?);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut copy = std::fs::File::from(open(to, flags)?);
            std::io::copy(&mut source, &mut copy)
                .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        }
        kind => rustix::fs::mknodat(to, entry, kind, mode, stat.st_rdev)?,
    }
    take_over(to, entry, &stat)
}

/// Gives an entry the owner and permissions of another. A user namespace cannot give away to ids that it does not have.
fn take_over(
    directory: BorrowedFd<'_>,
    entry: &std::ffi::CStr,
    stat: &rustix::fs::Stat,
) -> rustix::io::Result<()> {
    use rustix::process::{Gid, Uid};
    let owner = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW;
    match rustix::fs::chownat(directory, entry, Some(owner.0), Some(owner.1), flags) {
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Symlink {
        return Ok(());
    }
    // After the owner, which takes set-user-ID off.
    let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
    rustix::fs::chmodat(directory, entry, mode, rustix::fs::AtFlags::empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_is_unescaped() {
        for (text, expected) in [
            ("/a\\040b", "/a b"),
            ("/a\\134", "/a\\"),
            ("/a\\9", "/a\\9"),
            ("\\04", "\\04"),
        ] {
            assert_eq!(unescape(text.as_bytes()), expected.as_bytes(), "{text}");
        }
    }

    #[test]
    fn recursive_flags_in_the_kernels_words() {
        let change = |set, clear| attributes(Change { set, clear });
        let none = MountFlags::empty();
        let plain = change(MountFlags::RDONLY, MountFlags::NOSUID);
        assert_eq!(
            (plain.set, plain.clear),
            (libc::MOUNT_ATTR_RDONLY, libc::MOUNT_ATTR_NOSUID)
        );
        for (set, clear, bits) in [
            (MountFlags::NOATIME, none, libc::MOUNT_ATTR_NOATIME),
            (none, MountFlags::NOATIME, 0),
            (MountFlags::RELATIME, none, 0),
            (MountFlags::STRICTATIME, none, libc::MOUNT_ATTR_STRICTATIME),
        ] {
            let attributes = change(set, clear);
            assert_eq!(
                (attributes.set, attributes.clear),
                (bits, libc::MOUNT_ATTR__ATIME)
            );
        }
    }
}
