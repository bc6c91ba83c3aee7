//! Removing a tree that a container wrote: hostile names, directories without permissions, links that lead out.
//!
//! Every step goes through a descriptor of the parent directory and never follows a link, so what is removed is what was
//! found beneath the start. A directory that may not be read (overlay's `work/work` has mode 000, a container makes
//! others) is given back its owner's permissions first; with a single mapped id all of them belong to the caller.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::Error;

/// Descriptors are held one per level; what lies deeper is moved up first.
const DEPTH_MAX: usize = 64;

/// Removes `path` and everything in it. What is already gone, or goes meanwhile, is no error.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(());
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let parent = match rustix::fs::open(parent, flags, Mode::empty()) {
        Ok(parent) => parent,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(Error::io("open", parent, error)),
    };
    let invalid = || {
        Error::io(
            "remove",
            path,
            std::io::Error::from(std::io::ErrorKind::InvalidInput),
        )
    };
    let mut tops = vec![CString::new(name.as_encoded_bytes()).map_err(|_| invalid())?];
    while let Some(name) = tops.pop() {
        let mut walk = Walk {
            top: parent.as_fd(),
            moved: &mut tops,
        };
        walk.remove(parent.as_fd(), &name, 0)
            .map_err(|error| Error::io("remove", path, error))?;
    }
    Ok(())
}

struct Walk<'a> {
    /// Where directories are moved that lie too deep to be walked in place.
    top: BorrowedFd<'a>,
    /// Their names there.
    moved: &'a mut Vec<CString>,
}

impl Walk<'_> {
    fn remove(&mut self, parent: BorrowedFd<'_>, name: &CStr, depth: usize) -> rustix::io::Result<()> {
        match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
        let Some(dir) = open_directory(parent, name)? else {
            return Ok(());
        };
        if depth == DEPTH_MAX {
            let inode = rustix::fs::fstat(&dir)?.st_ino;
            let moved = CString::new(format!(".removing-deep-{inode:x}")).map_err(|_| Errno::INVAL)?;
            match rustix::fs::renameat(parent, name, self.top, moved.as_c_str()) {
                Ok(()) => self.moved.push(moved),
                Err(Errno::NOENT) => {}
                Err(error) => return Err(error),
            }
            return Ok(());
        }
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
                self.remove(dir.as_fd(), entry.file_name(), depth + 1)?;
            }
        }
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// Opens a directory that its owner may read, write and search afterwards. `None` when it is gone.
fn open_directory(parent: BorrowedFd<'_>, name: &CStr) -> rustix::io::Result<Option<OwnedFd>> {
    let stat = match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(error),
    };
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return Err(Errno::NOTDIR);
    }
    if !Mode::from_raw_mode(stat.st_mode).contains(Mode::RWXU) {
        // A path descriptor needs no permission and pins the directory, so that no link can take its place.
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let pinned = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            Ok(pinned) => pinned,
            Err(Errno::NOENT) => return Ok(None),
            Err(error) => return Err(error),
        };
        let link = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&pinned));
        rustix::fs::chmod(link, Mode::RWXU)?;
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    #[test]
    fn closed_directories_go_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("kept"), "x").unwrap();
        let tree = dir.path().join("tree");
        fs::create_dir_all(tree.join("work/work/deep")).unwrap();
        fs::write(tree.join("work/work/deep/file"), "x").unwrap();
        symlink(&outside, tree.join("work/link")).unwrap();
        symlink("/", tree.join("root")).unwrap();
        for name in ["work/work/deep", "work/work", "work"] {
            fs::set_permissions(tree.join(name), fs::Permissions::from_mode(0o0)).unwrap();
        }
        remove(&tree).unwrap();
        assert!(!tree.exists());
        assert!(outside.join("kept").exists());
        remove(&tree).unwrap();
        let link = dir.path().join("link");
        symlink(&outside, &link).unwrap();
        remove(&link).unwrap();
        assert!(!link.exists() && outside.join("kept").exists());
    }

    #[test]
    fn a_tree_of_any_depth_goes() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("tree");
        fs::create_dir(&top).unwrap();
        let mut at = rustix::fs::open(&top, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        for _ in 0..3000 {
            rustix::fs::mkdirat(&at, "directory", Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, "directory", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        remove(&top).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }
}
