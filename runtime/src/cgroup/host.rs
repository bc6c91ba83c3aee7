//! Which hierarchies this host has, and where in them this process is.

use std::path::{Path, PathBuf};

use crate::resolve;

/// Where hierarchies are mounted: by systemd, by OpenRC and by everything that followed them.
const ROOT: &str = "/sys/fs/cgroup";

/// `CGROUP2_SUPER_MAGIC`.
const CGROUP2: u64 = 0x6367_7270;

/// How many containers of one id, of different root directories, can be beside each other.
const NAMES: usize = 16;

/// One hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// Its controllers, by their names in cgroup v1; empty for the unified one, whose directories tell.
    pub(crate) controllers: Vec<String>,
    /// Its mount point.
    pub(crate) mount: PathBuf,
    /// This process's directory.
    pub(crate) own: PathBuf,
}

impl Hierarchy {
    /// Where a container's directory may be, best first.
    ///
    /// A cgroup with processes cannot give controllers to its children, so a container goes beside its caller's, and
    /// only where that is not permitted beneath it. A name that is not asked for gets a number where it is taken.
    pub(crate) fn places(&self, asked: Option<&str>, id: &str) -> Vec<PathBuf> {
        let beside = match self.own.parent() {
            Some(parent) if self.own != self.mount => parent,
            _ => &self.mount,
        };
        let (absolute, relative) = match asked.filter(|path| !resolve::clean(path).as_os_str().is_empty()) {
            None => {
                let name = |number: usize| match number {
                    1 => PathBuf::from(format!("wherry-{id}")),
                    _ => PathBuf::from(format!("wherry-{id}-{number}")),
                };
                let mut places: Vec<PathBuf> = (1..=NAMES).map(|number| beside.join(name(number))).collect();
                if self.own != beside {
                    places.extend((1..=NAMES).map(|number| self.own.join(name(number))));
                }
                return places;
            }
            // slice:prefix:name, by which systemd would be asked for a scope.
            Some(path) if path.contains(':') => {
                let (prefix, name) = path
                    .split_once(':')
                    .and_then(|(_, rest)| rest.split_once(':'))
                    .unwrap_or(("wherry", id));
                (
                    false,
                    resolve::clean(&format!("{prefix}-{name}").replace('/', "-")),
                )
            }
            Some(path) => (path.starts_with('/'), resolve::clean(path)),
        };
        let mut places = Vec::new();
        if absolute {
            places.push(self.mount.join(&relative));
        }
        for directory in [beside, &self.own] {
            let place = directory.join(&relative);
            if !places.contains(&place) {
                places.push(place);
            }
        }
        places
    }
}

/// The hierarchies of this host.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Host {
    /// cgroup v2, alone or beside v1.
    pub(crate) unified: Option<Hierarchy>,
    /// cgroup v1.
    pub(crate) legacy: Vec<Hierarchy>,
}

impl Host {
    /// Looks at what is mounted.
    pub(crate) fn find() -> Self {
        let Ok(own) = std::fs::read_to_string("/proc/self/cgroup") else {
            return Self::default();
        };
        let is_v2 = |path: &Path| rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type as u64 == CGROUP2);
        let root = Path::new(ROOT);
        let unified = [root.to_owned(), root.join("unified")]
            .into_iter()
            .find(|path| is_v2(path));
        Self::parse(&own, unified, |path| path.is_dir())
    }

    /// Reads `/proc/self/cgroup`; `unified` is the mount point of cgroup v2.
    fn parse(own: &str, unified: Option<PathBuf>, exists: impl Fn(&Path) -> bool) -> Self {
        let mut host = Self::default();
        for line in own.lines() {
            let mut fields = line.splitn(3, ':');
            let (Some(number), Some(list), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            // Outside of this cgroup namespace's root: no directory of ours.
            if path.starts_with("/..") {
                continue;
            }
            let directory = |mount: &Path| mount.join(path.trim_start_matches('/'));
            if number == "0" && list.is_empty() {
                host.unified = unified.clone().map(|mount| Hierarchy {
                    controllers: Vec::new(),
                    own: directory(&mount),
                    mount,
                });
            } else if !list.starts_with("name=") {
                let names = std::iter::once(list).chain(list.split(','));
                let mount = names.map(|name| Path::new(ROOT).join(name)).find(|m| exists(m));
                host.legacy.extend(mount.map(|mount| Hierarchy {
                    controllers: list.split(',').map(str::to_owned).collect(),
                    own: directory(&mount),
                    mount,
                }));
            }
        }
        host
    }

    /// The v1 hierarchy of a controller.
    pub(crate) fn legacy_of(&self, controller: &str) -> Option<&Hierarchy> {
        self.legacy
            .iter()
            .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_and_own_directories() {
        let all = |_: &Path| true;
        let v2 = Host::parse("0::/a/b\n", Some("/sys/fs/cgroup".into()), all);
        assert_eq!(v2.unified.unwrap().own, Path::new("/sys/fs/cgroup/a/b"));
        assert!(v2.legacy.is_empty());

        let text = "5:name=systemd:/x\n4:memory:/m:1\n3:cpu,cpuacct:/\n2:freezer:/../f\n0::/u\n";
        let hybrid = Host::parse(text, Some("/sys/fs/cgroup/unified".into()), |path| {
            !path.ends_with("cpu,cpuacct")
        });
        assert_eq!(
            hybrid.unified.as_ref().unwrap().own,
            Path::new("/sys/fs/cgroup/unified/u")
        );
        assert_eq!(
            hybrid.legacy_of("memory").unwrap().own,
            Path::new("/sys/fs/cgroup/memory/m:1")
        );
        assert_eq!(
            hybrid.legacy_of("cpuacct").unwrap().mount,
            Path::new("/sys/fs/cgroup/cpu")
        );
        assert!(hybrid.legacy_of("freezer").is_none());

        assert_eq!(Host::parse("0::/u\n", None, all), Host::default());
        assert_eq!(
            Host::parse("garbage\n1:x\n\n", Some("/c".into()), all),
            Host::default()
        );
    }

    #[test]
    fn places_stay_inside_the_hierarchy_and_begin_beside_the_caller() {
        let hierarchy = |own: &str| Hierarchy {
            controllers: Vec::new(),
            mount: "/c".into(),
            own: own.into(),
        };
        for (own, asked, expected) in [
            ("/c/s/u", Some("/p/q"), &["/c/p/q", "/c/s/p/q", "/c/s/u/p/q"][..]),
            ("/c/s/u", Some("p"), &["/c/s/p", "/c/s/u/p"]),
            ("/c/s/u", Some("../../../etc"), &["/c/s/etc", "/c/s/u/etc"]),
            (
                "/c/s/u",
                Some("user.slice:libpod:x/y"),
                &["/c/s/libpod-x-y", "/c/s/u/libpod-x-y"],
            ),
        ] {
            let places = hierarchy(own).places(asked, "i");
            let expected: Vec<&Path> = expected.iter().map(Path::new).collect();
            assert_eq!(places, expected, "{own} {asked:?}");
        }
        for (own, asked, first, middle) in [
            ("/c/s/u", None, "/c/s/wherry-i", Some("/c/s/u/wherry-i")),
            ("/c/u", Some(""), "/c/wherry-i", Some("/c/u/wherry-i")),
            ("/c", Some("/"), "/c/wherry-i", None),
        ] {
            let places = hierarchy(own).places(asked, "i");
            assert_eq!(places[0], Path::new(first));
            assert_eq!(places[1], Path::new(&format!("{first}-2")));
            assert_eq!(places.get(NAMES).map(PathBuf::as_path), middle.map(Path::new));
        }
    }
}
