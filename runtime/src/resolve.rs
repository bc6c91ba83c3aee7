//! Paths of the container, resolved beneath its root: no symlink, `..` or magic link of an image leads out of it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// Symlinks followed for one path, as many as the kernel allows.
const MAX_LINKS: usize = 40;

/// `path` without `.` and with each `..` taken back, relative to the root: `/a/../../b` is `b`.
pub(crate) fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::Prefix(_) | Component::RootDir | Component::CurDir => {}
        }
    }
    clean
}

/// Opens `path` (cleaned) beneath `root` as a handle. Symlinks are followed, within the root.
pub(crate) fn open(root: BorrowedFd<'_>, path: &Path) -> rustix::io::Result<OwnedFd> {
    open_with(root, path, OFlags::PATH)
}

/// As [`open`], with access flags.
pub(crate) fn open_with(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let flags = flags | OFlags::CLOEXEC;
    let here = if path.as_os_str().is_empty() {
        Path::new(".")
    } else {
        path
    };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, here, flags, Mode::empty(), how) {
            // A rename or mount elsewhere on the host raced with a `..`: the kernel asks to try again.
            Err(Errno::AGAIN) => {}
            // Before 5.6, or a filter of an outer container.
            Err(Errno::NOSYS | Errno::PERM) => return walk(root, path, flags),
            result => return result,
        }
    }
}

/// What openat2 does, step by step: each component is opened without following, and links are expanded by hand.
fn walk(root: BorrowedFd<'_>, path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    let handle = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut rest: VecDeque<OsString> = path.components().map(|c| c.as_os_str().to_owned()).collect();
    let mut parents: Vec<OwnedFd> = Vec::new();
    let mut links = 0;
    while let Some(name) = rest.pop_front() {
        if name == "/" {
            parents.clear();
            continue;
        }
        if name == "." {
            continue;
        }
        if name == ".." {
            parents.pop();
            continue;
        }
        let here = parents.last().map_or(root, AsFd::as_fd);
        let entry = rustix::fs::openat(here, &name, handle, Mode::empty())?;
        if FileType::from_raw_mode(rustix::fs::fstat(&entry)?.st_mode) != FileType::Symlink {
            parents.push(entry);
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(&entry, "", Vec::new())?.into_bytes();
        // A magic link's text (`pipe:[1]`) is no path: as text it leads nowhere, which is what is wanted.
        let target = PathBuf::from(OsString::from_vec(target));
        for component in target.components().rev() {
            rest.push_front(component.as_os_str().to_owned());
        }
    }
    let here = parents.last().map_or(root, AsFd::as_fd);
    if flags.contains(OFlags::PATH) {
        return rustix::io::fcntl_dupfd_cloexec(here, 0);
    }
    // The handle is no symlink, so this opens exactly what was resolved.
    let name = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&here));
    rustix::fs::open(name, flags, Mode::empty())
}

/// What stands at the end of a path that is made.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Leaf {
    Directory,
    File,
}

/// Opens `path` beneath `root`, making what is missing: directories 0755, and a file 0644 if `leaf` says so.
pub(crate) fn make(root: BorrowedFd<'_>, path: &Path, leaf: Leaf) -> rustix::io::Result<OwnedFd> {
    match open(root, path) {
        Err(Errno::NOENT) => {}
        result => return result,
    }
    let parent = match path.parent() {
        Some(parent) => make(root, parent, Leaf::Directory)?,
        None => return Err(Errno::NOENT),
    };
    let name = path.file_name().ok_or(Errno::NOENT)?;
    if name.as_bytes().len() > 255 {
        return Err(Errno::NAMETOOLONG);
    }
    let made = match leaf {
        Leaf::Directory => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        Leaf::File => rustix::fs::openat(
            &parent,
            name,
            OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::from_raw_mode(0o644),
        )
        .map(drop),
    };
    match made {
        // A dangling symlink in the image: it is not followed to make something elsewhere.
        Ok(()) | Err(Errno::EXIST) => open(root, path),
        Err(e) => Err(e),
    }
}

/// Whether a handle is a directory.
pub(crate) fn is_directory(fd: impl AsFd) -> io::Result<bool> {
    Ok(FileType::from_raw_mode(rustix::fs::fstat(fd)?.st_mode) == FileType::Directory)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn paths_are_cleaned_beneath_the_root() {
        for (path, clean_path) in [
            ("/", ""),
            ("/a/../../b", "b"),
            ("a//./b/", "a/b"),
            ("../../..", ""),
            ("", ""),
        ] {
            assert_eq!(clean(path), Path::new(clean_path), "{path}");
        }
    }

    #[test]
    fn no_symlink_leads_out_with_and_without_openat2() {
        let outside = tempfile::tempdir().unwrap();
        let root = outside.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::create_dir_all(root.join("tmp")).unwrap();
        std::fs::write(outside.path().join("secret"), "x").unwrap();
        std::fs::write(root.join("etc/inside"), "y").unwrap();
        symlink("../../secret", root.join("up")).unwrap();
        symlink(outside.path().join("secret"), root.join("absolute")).unwrap();
        symlink("/etc/inside", root.join("ok")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("../../../tmp", root.join("etc/dir")).unwrap();
        let fd = rustix::fs::open(&root, OFlags::PATH, Mode::empty()).unwrap();
        let openers: [fn(BorrowedFd<'_>, &Path) -> rustix::io::Result<OwnedFd>; 2] =
            [open, |root, path| walk(root, path, OFlags::PATH)];
        for opener in openers {
            for name in ["up", "absolute", "magic"] {
                assert_eq!(
                    opener(fd.as_fd(), Path::new(name)).unwrap_err(),
                    Errno::NOENT,
                    "{name}"
                );
            }
            assert_eq!(opener(fd.as_fd(), Path::new("loop")).unwrap_err(), Errno::LOOP);
            let found = opener(fd.as_fd(), Path::new("ok")).unwrap();
            let inside = std::fs::metadata(root.join("etc/inside")).unwrap();
            assert_eq!(
                rustix::fs::fstat(found).unwrap().st_ino,
                std::os::unix::fs::MetadataExt::ino(&inside)
            );
            assert!(opener(fd.as_fd(), Path::new("etc/dir")).is_ok());
        }
        // A target below a link that climbs is made inside, and a dangling link is not followed to make its target.
        make(fd.as_fd(), Path::new("etc/dir/new/leaf"), Leaf::File).unwrap();
        assert!(root.join("tmp/new/leaf").is_file());
        assert_eq!(
            make(fd.as_fd(), Path::new("up"), Leaf::File).unwrap_err(),
            Errno::NOENT
        );
        assert!(!outside.path().join("tmp").exists());
    }
}
