//! Which part of the cgroup v2 hierarchy is this process's to divide among containers.
//!
//! The runtime puts a container beside its caller's cgroup, or beneath it where that is not permitted. A cgroup with
//! processes of its own hands no controllers to those beneath it, so the agent first makes room for itself.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::Access;

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: u64 = 0x6367_7270;

/// Where the agent moves to, beneath the cgroup it was started in.
const LEAF: &str = "agent";

/// Where this process is in the hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Delegation {
    mount: PathBuf,
    own: PathBuf,
}

impl Delegation {
    /// Looks for it; `None` without cgroup v2.
    pub(crate) fn find() -> Option<Self> {
        let mounts = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
        let is_v2 = |path: &&str| rustix::fs::statfs(*path).is_ok_and(|fs| fs.f_type as u64 == CGROUP2);
        let mount = PathBuf::from(mounts.iter().find(|path| is_v2(path))?);
        let text = fs::read_to_string("/proc/self/cgroup").ok()?;
        let path = text.lines().find_map(|line| line.strip_prefix("0::"))?;
        let own = mount.join(path.trim_start_matches('/'));
        Some(Self { mount, own })
    }

    /// This process's own directory.
    pub(crate) fn own(&self) -> &Path {
        &self.own
    }

    /// The directory that containers' cgroups are made in, if any is this user's.
    pub(crate) fn containers(&self) -> Option<&Path> {
        let beside = self.own.parent().filter(|_| self.own != self.mount);
        beside
            .into_iter()
            .chain([self.own.as_path()])
            .find(|path| is_ours(path))
    }

    /// Moves this process beneath where it was started, if only what is beneath belongs to this user: then the
    /// containers are beside it and have controllers.
    ///
    /// # Errors
    ///
    /// If the kernel refuses; this process stays where it was.
    pub(crate) fn make_room(&self) -> io::Result<()> {
        if self.own == self.mount || self.containers() != Some(self.own.as_path()) {
            return Ok(());
        }
        let leaf = self.own.join(LEAF);
        match fs::create_dir(&leaf) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        fs::write(leaf.join("cgroup.procs"), "0")
    }
}

/// Whether this user may make cgroups in a directory and processes enter them.
fn is_ours(directory: &Path) -> bool {
    ["", "cgroup.procs", "cgroup.subtree_control"]
        .iter()
        .all(|name| rustix::fs::access(directory.join(name), Access::WRITE_OK).is_ok())
}

/// The controllers of a directory.
pub(crate) fn controllers(directory: &Path) -> Vec<String> {
    let text = fs::read_to_string(directory.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(directory: &Path) {
        fs::create_dir_all(directory).unwrap();
        for name in ["cgroup.procs", "cgroup.subtree_control"] {
            fs::write(directory.join(name), "").unwrap();
        }
    }

    #[test]
    fn containers_go_beside_or_else_beneath() {
        let mount = tempfile::tempdir().unwrap();
        let unit = mount.path().join("unit");
        let at = |own: &Path| Delegation {
            mount: mount.path().to_owned(),
            own: own.to_owned(),
        };
        fs::create_dir(&unit).unwrap();
        assert_eq!(at(&unit).containers(), None);
        files(&unit);
        assert_eq!(at(&unit).containers(), Some(unit.as_path()));
        let leaf = unit.join("agent");
        files(&leaf);
        assert_eq!(at(&leaf).containers(), Some(unit.as_path()));
    }

    #[test]
    fn room_is_made_only_where_containers_would_be_beneath() {
        let mount = tempfile::tempdir().unwrap();
        let unit = mount.path().join("unit");
        files(&unit);
        let at = |own: &Path| Delegation {
            mount: mount.path().to_owned(),
            own: own.to_owned(),
        };
        at(&unit).make_room().unwrap();
        let leaf = unit.join(LEAF);
        assert_eq!(fs::read_to_string(leaf.join("cgroup.procs")).unwrap(), "0");
        files(&leaf);
        at(&leaf).make_room().unwrap();
        assert!(!leaf.join(LEAF).exists());
        at(mount.path()).make_room().unwrap();
        assert!(!mount.path().join(LEAF).exists());
    }
}
