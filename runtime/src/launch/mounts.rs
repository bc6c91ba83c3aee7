//! The mount tree of a container: what to mount, decided from the bundle, and its root. `site` does the mounting.

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::{MountFlags, MountPropagationFlags};

use super::options::{self, Options};
use crate::config::{self, IdMapping};
use crate::error::{Context, Error};
use crate::resolve;

/// Most layers of an overlay: what fits into a mount call's page by descriptor names.
const MAX_LAYERS: usize = 128;

/// Most mounts of one bundle.
const MAX_MOUNTS: usize = 4096;

/// Longest name of a filesystem.
const MAX_TYPE: usize = 64;

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
    Bind {
        source: PathBuf,
        recursive: bool,
    },
    /// A change of a mount that is there.
    Remount,
    Proc,
    Sysfs,
    Mqueue,
    Devpts,
    Tmpfs,
    Cgroup,
    /// Any other filesystem, by its name: the kernel knows who may mount it.
    Other(String),
}

/// One mount, checked.
#[derive(Debug, Clone)]
pub(crate) struct Mounting {
    pub(super) field: String,
    pub(crate) destination: PathBuf,
    pub(crate) kind: Kind,
    /// What the mount table names as its source.
    pub(super) source: String,
    pub(super) options: Options,
    /// The ids of an id-mapped mount.
    pub(super) idmap: Option<Idmap>,
}

/// Ids of a mount as they are shown: the kernel takes them from a user namespace.
#[derive(Debug, Clone)]
pub(crate) struct Idmap {
    pub(super) uids: Vec<IdMapping>,
    pub(super) gids: Vec<IdMapping>,
    pub(super) recursive: bool,
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
    ids: (&[IdMapping], &[IdMapping]),
    warnings: &mut Vec<String>,
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
        let mut options = options::parse(&mount.options)
            .map_err(|reason| Error::config(format!("{field}.options"), reason))?;
        let kind = plan_kind(kind, mount, &mut options, &field, bundle, warnings)?;
        let idmap = plan_idmap(mount, &kind, &options, &field, ids)?;
        let beneath_proc = destination.starts_with("proc") && destination != Path::new("proc");
        let named = PROC_TARGETS.iter().any(|target| destination == Path::new(target));
        if beneath_proc && !(named && matches!(kind, Kind::Bind { .. })) {
            return Err(Error::config(
                format!("{field}.destination"),
                "refused beneath /proc: it would hide what the kernel says",
            ));
        }
        let source = mount.source.clone().filter(|source| !source.is_empty());
        planned.push(Mounting {
            field,
            destination,
            kind,
            source: source.unwrap_or_else(|| "none".into()),
            options,
            idmap,
        });
    }
    Ok((overlay, planned))
}

/// What kind of mount this is.
fn plan_kind(
    word: &str,
    mount: &config::Mount,
    options: &mut Options,
    field: &str,
    bundle: &Path,
    warnings: &mut Vec<String>,
) -> Result<Kind, Error> {
    if word.contains('\0')
        || word.len() > MAX_TYPE
        || mount.source.as_deref().unwrap_or_default().contains('\0')
    {
        return Err(Error::config(format!("{field}.type"), "malformed type or source"));
    }
    if options.remount {
        return Ok(Kind::Remount);
    }
    if options.bind.is_some() || matches!(word, "bind" | "none" | "") {
        let source = match mount.source.as_deref() {
            Some(source) if !source.is_empty() => bundle.join(source),
            _ => {
                return Err(Error::config(
                    format!("{field}.source"),
                    "a bind mount needs a path",
                ));
            }
        };
        for option in std::mem::take(&mut options.data) {
            // A value is some filesystem's; a bare word may be meant to take something away.
            if !option.contains('=') {
                return Err(Error::config(
                    format!("{field}.options"),
                    format!("{option:?}: unknown for a bind mount"),
                ));
            }
            warnings.push(format!(
                "{field}.options: {option:?}: ignored, a bind mount takes no options of filesystems"
            ));
        }
        return Ok(Kind::Bind {
            source,
            // The specification's type "bind" without an option binds recursively, as other runtimes do.
            recursive: options.bind.unwrap_or(true),
        });
    }
    if options.copy_up && word != "tmpfs" {
        return Err(Error::config(
            format!("{field}.options"),
            "\"tmpcopyup\": of a tmpfs only",
        ));
    }
    Ok(match word {
        "proc" => Kind::Proc,
        "sysfs" => Kind::Sysfs,
        "mqueue" => Kind::Mqueue,
        "devpts" => Kind::Devpts,
        "tmpfs" | "shm" => Kind::Tmpfs,
        "cgroup" | "cgroup2" => Kind::Cgroup,
        other => Kind::Other(other.to_owned()),
    })
}

/// The ids of an id-mapped mount: its own, or with the option alone those of the container's user namespace.
fn plan_idmap(
    mount: &config::Mount,
    kind: &Kind,
    options: &Options,
    field: &str,
    ids: (&[IdMapping], &[IdMapping]),
) -> Result<Option<Idmap>, Error> {
    let asked = !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty();
    if !asked && options.idmap.is_none() {
        return Ok(None);
    }
    let field = format!("{field}.uidMappings");
    if !matches!(kind, Kind::Bind { .. }) {
        return Err(Error::config(field, "ids are mapped on bind mounts only"));
    }
    let (uids, gids) = if asked {
        (mount.uid_mappings.as_slice(), mount.gid_mappings.as_slice())
    } else {
        ids
    };
    for list in [uids, gids] {
        super::plan::check_mappings(&field, list)?;
    }
    Ok(Some(Idmap {
        uids: uids.to_vec(),
        gids: gids.to_vec(),
        recursive: options.idmap.unwrap_or(false),
    }))
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

pub(super) fn handle(path: &Path) -> rustix::io::Result<OwnedFd> {
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

pub(super) fn text(text: &str) -> Result<CString, Error> {
    CString::new(text).map_err(|_| Error::config("mounts", "a zero byte in an option"))
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
            ..config::Mount::default()
        }
    }

    #[test]
    fn hostile_mounts_are_refused_by_field() {
        let cases = [
            (mount("/", "tmpfs", "tmpfs", &[]), "mounts[0].destination"),
            (mount("/proc/..", "bind", "/x", &[]), "mounts[0].destination"),
            (mount("", "bind", "/x", &[]), "mounts[0].destination"),
            (mount("/a", "ext4\0", "/dev/sda", &[]), "mounts[0].type"),
            (mount("/a", "ext4", "/dev\0", &[]), "mounts[0].type"),
            (
                mount("/a", "ext4", "/dev/sda", &["idmap"]),
                "mounts[0].uidMappings",
            ),
            (mount("/a", "bind", "/x", &["idmap"]), "mounts[0].uidMappings"),
            (mount("/a", "proc", "proc", &["tmpcopyup"]), "mounts[0].options"),
            (mount("/a", "bind", "", &[]), "mounts[0].source"),
            (mount("/a", "bind", "/x", &["nosiud"]), "mounts[0].options"),
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
            match plan(
                std::slice::from_ref(&mount),
                Path::new("/b"),
                (&[], &[]),
                &mut Vec::new(),
            ) {
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
            mount("/data", "bind", "data", &["ro", "size=3"]),
            mount("/proc/meminfo", "bind", "/m", &[]),
        ];
        let mut warnings = Vec::new();
        let (overlay, rest) = plan(&mounts, Path::new("/b"), (&[], &[]), &mut warnings).unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
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
        assert!(rest[0].options.flags.set.contains(MountFlags::RDONLY));
    }
}
