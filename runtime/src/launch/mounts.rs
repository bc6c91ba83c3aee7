//! The mount tree of a container: what to mount, decided from the bundle, and the mounting.
//!
//! Every target is resolved beneath the root and held as a descriptor before anything is mounted on it; sources are host
//! paths of whoever wrote the bundle. All of it happens in the container's user and mount namespace, before its root is
//! entered, while the host's procfs still names our descriptors.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::options::{self, Options};
use crate::config;
use crate::error::{Context, Error};
use crate::resolve::{self, Leaf};

/// Most layers of an overlay: what fits into a mount call's page by descriptor names.
const MAX_LAYERS: usize = 128;

/// Most mounts of one bundle.
const MAX_MOUNTS: usize = 4096;

/// Files beneath `/proc` that may be bound over: those that only inform.
const PROC_TARGETS: &[&str] = &[
    "proc/cpuinfo",
    "proc/diskstats",
    "proc/loadavg",
    "proc/meminfo",
    "proc/net/dev",
    "proc/slabinfo",
    "proc/stat",
    "proc/swaps",
    "proc/uptime",
];

/// The root's directories, if it is an overlay.
#[derive(Debug, Clone)]
pub(crate) struct Overlay {
    lower: Vec<PathBuf>,
    upper_work: Option<(PathBuf, PathBuf)>,
    data: Vec<String>,
}

/// What one mount is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Kind {
    Bind { source: PathBuf, recursive: bool },
    Proc,
    Sysfs,
    Mqueue,
    Devpts,
    Tmpfs,
    Cgroup,
}

/// One mount, checked.
#[derive(Debug, Clone)]
pub(crate) struct Mounting {
    field: String,
    pub(crate) destination: PathBuf,
    pub(crate) kind: Kind,
    options: Options,
}

impl Mounting {
    /// Whether it shows namespaces that are init's: its processes, or its cgroup.
    pub(crate) fn shows_init(&self) -> bool {
        matches!(self.kind, Kind::Proc | Kind::Cgroup)
    }
}

/// Reads the bundle's mounts: the overlay of the root, if there is one, and the rest in order.
///
/// # Errors
///
/// Names the field that is refused.
pub(crate) fn plan(
    mounts: &[config::Mount],
    bundle: &Path,
) -> Result<(Option<Overlay>, Vec<Mounting>), Error> {
    if mounts.len() > MAX_MOUNTS {
        return Err(Error::config(
            "mounts",
            format!("{} entries, the limit is {MAX_MOUNTS}", mounts.len()),
        ));
    }
    let mut overlay = None;
    let mut planned = Vec::with_capacity(mounts.len());
    for (index, mount) in mounts.iter().enumerate() {
        let field = format!("mounts[{index}]");
        let kind = mount.kind.as_deref().unwrap_or("bind");
        let destination = resolve::clean(&mount.destination);
        if mount.destination.is_empty() || mount.destination.contains('\0') {
            return Err(Error::config(format!("{field}.destination"), "expected a path"));
        }
        if destination.as_os_str().is_empty() {
            if kind != "overlay" || overlay.is_some() || index != 0 {
                return Err(Error::config(
                    format!("{field}.destination"),
                    "only one overlay, as the first mount, may be mounted on the root",
                ));
            }
            overlay = Some(plan_overlay(&mount.options, &field, bundle)?);
            continue;
        }
        let options = options::parse(&mount.options)
            .map_err(|reason| Error::config(format!("{field}.options"), reason))?;
        let kind = match kind {
            _ if options.bind.is_some() || matches!(kind, "bind" | "none" | "") => {
                let source = match mount.source.as_deref() {
                    Some(source) if !source.is_empty() && !source.contains('\0') => bundle.join(source),
                    _ => {
                        return Err(Error::config(
                            format!("{field}.source"),
                            "a bind mount needs a path",
                        ));
                    }
                };
                if let Some(option) = options.data.first() {
                    return Err(Error::config(
                        format!("{field}.options"),
                        format!("{option:?}: unknown for a bind mount"),
                    ));
                }
                // The specification's type "bind" without an option binds recursively, as other runtimes do.
                Kind::Bind {
                    source,
                    recursive: options.bind.unwrap_or(true),
                }
            }
            "proc" => Kind::Proc,
            "sysfs" => Kind::Sysfs,
            "mqueue" => Kind::Mqueue,
            "devpts" => Kind::Devpts,
            "tmpfs" | "shm" => Kind::Tmpfs,
            "cgroup" | "cgroup2" => Kind::Cgroup,
            "overlay" => {
                return Err(Error::config(
                    format!("{field}.type"),
                    "an overlay is supported as the root (destination \"/\") only",
                ));
            }
            other => {
                return Err(Error::config(
                    format!("{field}.type"),
                    format!("{other:?}: not supported"),
                ));
            }
        };
        let beneath_proc = destination.starts_with("proc") && destination != Path::new("proc");
        let named = PROC_TARGETS.iter().any(|target| destination == Path::new(target));
        if beneath_proc && !(named && matches!(kind, Kind::Bind { .. })) {
            return Err(Error::config(
                format!("{field}.destination"),
                "refused beneath /proc: it would hide what the kernel says",
            ));
        }
        planned.push(Mounting {
            field,
            destination,
            kind,
            options,
        });
    }
    Ok((overlay, planned))
}

fn plan_overlay(options: &[String], field: &str, bundle: &Path) -> Result<Overlay, Error> {
    let refuse = |reason: String| Error::config(format!("{field}.options"), reason);
    let mut overlay = Overlay {
        lower: Vec::new(),
        upper_work: None,
        data: Vec::new(),
    };
    let (mut upper, mut work) = (None, None);
    for option in options {
        match option.split_once('=') {
            Some(("lowerdir", list)) => overlay.lower = split_escaped(list, bundle),
            Some(("upperdir", path)) => upper = Some(bundle.join(path)),
            Some(("workdir", path)) => work = Some(bundle.join(path)),
            _ if option == "userxattr" => {}
            _ if option == "volatile" || option.starts_with("metacopy=") || option.starts_with("xino=") => {
                overlay.data.push(option.clone());
            }
            _ => return Err(refuse(format!("{option:?}: not supported for the root overlay"))),
        }
    }
    if overlay.lower.is_empty() || overlay.lower.len() > MAX_LAYERS {
        return Err(refuse(format!(
            "expected 1 to {MAX_LAYERS} lowerdirs, got {}",
            overlay.lower.len()
        )));
    }
    overlay.upper_work = match (upper, work) {
        (Some(upper), Some(work)) => Some((upper, work)),
        (None, None) => None,
        _ => return Err(refuse("upperdir and workdir go together".into())),
    };
    Ok(overlay)
}

/// Splits at `:`, with `\` taking the next character literally.
fn split_escaped(list: &str, bundle: &Path) -> Vec<PathBuf> {
    let mut parts = vec![String::new()];
    let mut characters = list.chars();
    while let Some(character) = characters.next() {
        match (character, parts.last_mut()) {
            (':', _) => parts.push(String::new()),
            ('\\', Some(part)) => part.extend(characters.next()),
            (_, Some(part)) => part.push(character),
            (_, None) => {}
        }
    }
    parts
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| bundle.join(part))
        .collect()
}

/// A descriptor's name for system calls that take paths.
pub(crate) fn name(fd: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}", fd.as_raw_fd())
}

fn handle(path: &Path) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
}

/// Mounts the root filesystem on `rootfs` and returns its top.
pub(crate) fn mount_root(
    rootfs: &Path,
    overlay: Option<&Overlay>,
    in_user_namespace: bool,
) -> Result<OwnedFd, Error> {
    let what = || format!("root {}", rootfs.display());
    let point = handle(rootfs).context(what)?;
    match overlay {
        None => {
            rustix::mount::mount_bind_recursive(name(point.as_fd()), name(point.as_fd())).context(what)?;
        }
        Some(overlay) => {
            let mut held = Vec::new();
            let mut hold = |path: &Path| -> Result<String, Error> {
                let fd = handle(path).context(|| format!("overlay layer {}", path.display()))?;
                let name = name(fd.as_fd());
                held.push(fd);
                Ok(name)
            };
            // Layers are named by descriptors: short, free of characters that would need escaping, and the container
            // learns nothing of the host's paths from its mount table.
            let lower = overlay
                .lower
                .iter()
                .map(|path| hold(path))
                .collect::<Result<Vec<_>, _>>()?;
            let mut data = vec![format!("lowerdir={}", lower.join(":"))];
            let mut flags = MountFlags::empty();
            match &overlay.upper_work {
                Some((upper, work)) => {
                    data.push(format!("upperdir={}", hold(upper)?));
                    data.push(format!("workdir={}", hold(work)?));
                }
                None => flags |= MountFlags::RDONLY,
            }
            data.extend(overlay.data.iter().cloned());
            if in_user_namespace {
                data.push("userxattr".into());
            }
            let data = text(&data.join(","))?;
            rustix::mount::mount("overlay", name(point.as_fd()), "overlay", flags, data.as_c_str())
                .context(|| format!("root {}: mount overlay", rootfs.display()))?;
        }
    }
    handle(rootfs).context(what)
}

fn text(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::config("mounts", "a zero byte in an option"))
}

/// What the mounting needs to know of the container.
pub(crate) struct Site<'a> {
    pub(crate) root: BorrowedFd<'a>,
    pub(crate) own_network: bool,
    pub(crate) own_ipc: bool,
    pub(crate) own_pids: bool,
    /// Whether group 5 (tty) exists inside.
    pub(crate) has_tty_group: bool,
    /// Guarantees lost on the way.
    pub(crate) warnings: Vec<String>,
}

impl Site<'_> {
    /// Carries out one mount.
    pub(crate) fn mount(&mut self, mounting: &Mounting) -> Result<(), Error> {
        let field = &mounting.field;
        let destination = &mounting.destination;
        let what = || format!("config.json: {field}: /{}", destination.display());
        let flags = mounting.options.flags;
        if let Kind::Bind { source, recursive } = &mounting.kind {
            let source =
                handle(source).context(|| format!("config.json: {field}.source: {}", source.display()))?;
            return self
                .bind(source.as_fd(), destination, *recursive, &mounting.options)
                .context(what);
        }
        let target = match mounting.kind {
            // A symlink in the image must not put these elsewhere, where masks would miss them.
            Kind::Proc | Kind::Sysfs => self.real_directory(destination).context(what)?,
            _ => resolve::make(self.root, destination, Leaf::Directory).context(what)?,
        };
        let mut data = mounting.options.data.clone();
        if mounting.kind == Kind::Devpts && !self.has_tty_group {
            data.retain(|option| option != "gid=5");
        }
        let data = text(&data.join(","))?;
        let mount = |kind: &str, flags| {
            rustix::mount::mount(kind, name(target.as_fd()), kind, flags, data.as_c_str())
        };
        match mounting.kind {
            Kind::Proc if !self.own_pids => {
                self.warnings.push(format!(
                    "{field}: the host's /proc, since the pid namespace is the host's"
                ));
                let source = handle(Path::new("/proc")).context(what)?;
                return self
                    .bind(source.as_fd(), destination, true, &mounting.options)
                    .context(what);
            }
            Kind::Proc => mount("proc", flags).context(what)?,
            Kind::Sysfs if !self.own_network => {
                let source = handle(Path::new("/sys")).context(what)?;
                return self
                    .bind(source.as_fd(), destination, true, &mounting.options)
                    .context(what);
            }
            Kind::Sysfs => mount("sysfs", flags).context(what)?,
            Kind::Mqueue if !self.own_ipc => {
                let source = handle(Path::new("/dev/mqueue")).context(what)?;
                return self
                    .bind(source.as_fd(), destination, true, &mounting.options)
                    .context(what);
            }
            Kind::Mqueue => mount("mqueue", flags).context(what)?,
            Kind::Devpts => mount("devpts", flags).context(what)?,
            Kind::Tmpfs => mount("tmpfs", flags).context(what)?,
            Kind::Cgroup => {
                let unified = rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|fs| fs.f_type == 0x6367_7270);
                if !unified || mount("cgroup2", flags).is_err() {
                    self.warnings.push(format!(
                        "{field}: /{}: not mounted, no cgroup v2 hierarchy is delegated",
                        destination.display()
                    ));
                    return Ok(());
                }
            }
            Kind::Bind { .. } => {}
        }
        self.propagate(destination, &mounting.options).context(what)
    }

    /// Binds `source` on `destination`, which is made if it is missing, then sets flags and propagation.
    pub(crate) fn bind(
        &self,
        source: BorrowedFd<'_>,
        destination: &Path,
        recursive: bool,
        options: &Options,
    ) -> rustix::io::Result<()> {
        let directory = FileType::from_raw_mode(rustix::fs::fstat(source)?.st_mode) == FileType::Directory;
        let leaf = if directory { Leaf::Directory } else { Leaf::File };
        let target = resolve::make(self.root, destination, leaf)?;
        if recursive {
            rustix::mount::mount_bind_recursive(name(source), name(target.as_fd()))?;
        } else {
            rustix::mount::mount_bind(name(source), name(target.as_fd()))?;
        }
        if !options.flags.is_empty() {
            remount(resolve::open(self.root, destination)?.as_fd(), options.flags)?;
        }
        self.propagate(destination, options)
    }

    fn propagate(&self, destination: &Path, options: &Options) -> rustix::io::Result<()> {
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
pub(crate) fn remount(top: BorrowedFd<'_>, flags: MountFlags) -> rustix::io::Result<()> {
    use rustix::fs::StatVfsMountFlags as Has;
    let kept = rustix::fs::fstatvfs(top)?.f_flag;
    let mut flags = flags;
    for (has, flag) in [
        (Has::RDONLY, MountFlags::RDONLY),
        (Has::NOSUID, MountFlags::NOSUID),
        (Has::NODEV, MountFlags::NODEV),
        (Has::NOEXEC, MountFlags::NOEXEC),
        (Has::NOATIME, MountFlags::NOATIME),
        (Has::NODIRATIME, MountFlags::NODIRATIME),
        (Has::RELATIME, MountFlags::RELATIME),
    ] {
        if kept.contains(has) {
            flags |= flag;
        }
    }
    rustix::mount::mount_remount(name(top), flags | MountFlags::BIND, c"")
}

/// Makes the host's mounts receive nothing from here, and this namespace nothing that the bundle did not ask for.
pub(crate) fn isolate(propagation: Option<MountPropagationFlags>) -> rustix::io::Result<()> {
    let receives = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::SHARED;
    let change = match propagation {
        Some(asked) if asked.intersects(receives) => MountPropagationFlags::DOWNSTREAM,
        _ => MountPropagationFlags::PRIVATE,
    };
    rustix::mount::mount_change("/", change | MountPropagationFlags::REC)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> config::Mount {
        config::Mount {
            destination: destination.into(),
            kind: Some(kind.into()),
            source: Some(source.into()),
            options: options.iter().map(|o| (*o).to_owned()).collect(),
        }
    }

    #[test]
    fn hostile_mounts_are_refused_by_field() {
        let cases = [
            (mount("/", "tmpfs", "tmpfs", &[]), "mounts[0].destination"),
            (mount("/proc/..", "bind", "/x", &[]), "mounts[0].destination"),
            (mount("", "bind", "/x", &[]), "mounts[0].destination"),
            (mount("/a", "ext4", "/dev/sda", &[]), "mounts[0].type"),
            (mount("/a", "overlay", "o", &[]), "mounts[0].type"),
            (mount("/a", "bind", "", &[]), "mounts[0].source"),
            (mount("/a", "bind", "/x", &["size=3"]), "mounts[0].options"),
            (
                mount("/proc/sys/kernel", "bind", "/x", &[]),
                "mounts[0].destination",
            ),
            (
                mount("/x/../proc/self", "tmpfs", "t", &[]),
                "mounts[0].destination",
            ),
            (mount("/", "overlay", "o", &["upperdir=u"]), "mounts[0].options"),
            (
                mount("/", "overlay", "o", &["lowerdir=a", "upperdir=u"]),
                "mounts[0].options",
            ),
            (
                mount("/", "overlay", "o", &["lowerdir=a", "redirect_dir=on"]),
                "mounts[0].options",
            ),
        ];
        for (mount, expected) in cases {
            match plan(std::slice::from_ref(&mount), Path::new("/b")) {
                Err(Error::Config { field, .. }) => assert_eq!(field, expected, "{mount:?}"),
                other => panic!("{mount:?}: {other:?}"),
            }
        }
    }

    #[test]
    fn an_overlay_root_and_relative_sources() {
        let mounts = [
            mount(
                "/",
                "overlay",
                "overlay",
                &["lowerdir=/a\\:b:c", "upperdir=upper", "workdir=work"],
            ),
            mount("/data", "bind", "data", &["ro"]),
            mount("/proc/meminfo", "bind", "/m", &[]),
        ];
        let (overlay, rest) = plan(&mounts, Path::new("/b")).unwrap();
        let overlay = overlay.unwrap();
        assert_eq!(overlay.lower, [PathBuf::from("/a:b"), "/b/c".into()]);
        assert_eq!(overlay.upper_work, Some(("/b/upper".into(), "/b/work".into())));
        assert_eq!(
            rest[0].kind,
            Kind::Bind {
                source: "/b/data".into(),
                recursive: true
            }
        );
        assert!(rest[0].options.flags.contains(MountFlags::RDONLY));
    }
}
