//! The container's `/dev`: the nodes that every container has, those of the bundle, and its terminal.
//!
//! A node is made where that is permitted (root of the host), and is the host's own otherwise, bound.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, UnmountFlags};
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;

use super::mounts;
use super::plan::Plan;
use super::site::Site;
use super::{Inherited, nodes, options};
use crate::config::Device;
use crate::error::{Context, Error};
use crate::resolve::{self, Leaf};

/// Device nodes that every container has.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Symlinks that every container has, beneath `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

pub(super) fn open_host(path: &str) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| path)
}

/// Makes the devices and links of a container.
pub(super) fn make(site: &mut Site<'_>, plan: &Plan, inherited: &Inherited) -> Result<(), Error> {
    let no_options = options::parse(&[]).map_err(Error::Usage)?;
    for device in DEVICES {
        let source = open_host(&format!("/dev/{device}"))?;
        site.bind(source.as_fd(), &Path::new("dev").join(device), false, &no_options)
            .context(|| format!("device /dev/{device}"))?;
    }
    let ready = Ready::attach(site, inherited)?;
    for (index, device) in plan.devices.iter().enumerate() {
        let field = format!("linux.devices[{index}]");
        if is_default(device) {
            continue;
        }
        if device.kind == "p" || !plan.in_user_namespace() {
            match make_node(site, device) {
                Ok(()) => continue,
                // Of an outer container: root that may not make devices.
                Err(Errno::PERM) if device.kind != "p" => {}
                Err(e) => return Err(e).context(|| format!("config.json: {field}: {}", device.path)),
            }
        }
        match ready.as_ref().and_then(|ready| ready.node(index)) {
            Some(node) => site
                .bind(node.as_fd(), &resolve::clean(&device.path), false, &no_options)
                .context(|| format!("config.json: {field}: {}", device.path))?,
            None => bind_node(site, device, &field)?,
        }
    }
    if let Some(ready) = ready {
        ready.detach(site)?;
    }
    let dev = resolve::make(site.root, Path::new("dev"), Leaf::Directory).context(|| "make /dev")?;
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(*target, &dev, *name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).context(|| format!("make /dev/{name}")),
        }
    }
    if plan.mounts.iter().any(|m| m.kind == mounts::Kind::Devpts) {
        match rustix::fs::unlinkat(&dev, "ptmx", AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).context(|| "replace /dev/ptmx"),
        }
        rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx").context(|| "make /dev/ptmx")?;
    }
    Ok(())
}

/// Nodes that the creator has made, in the container's tree while they are bound.
struct Ready(OwnedFd);

/// Where they are meanwhile, beneath `/dev`.
const READY: &str = "dev/.nodes";

impl Ready {
    fn attach(site: &Site<'_>, inherited: &Inherited) -> Result<Option<Self>, Error> {
        let Some(nodes) = &inherited.nodes else {
            return Ok(None);
        };
        let what = || "device nodes";
        let point = resolve::make(site.root, Path::new(READY), Leaf::Directory).context(what)?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(nodes, "", &point, "", flags).context(what)?;
        resolve::open(site.root, Path::new(READY))
            .context(what)
            .map(|top| Some(Self(top)))
    }

    fn node(&self, index: usize) -> Option<OwnedFd> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(&self.0, nodes::name(index), flags, Mode::empty()).ok()
    }

    fn detach(self, site: &Site<'_>) -> Result<(), Error> {
        let what = || "device nodes";
        rustix::mount::unmount(mounts::name(self.0.as_fd()), UnmountFlags::DETACH).context(what)?;
        let dev = resolve::open(site.root, Path::new("dev")).context(what)?;
        rustix::fs::unlinkat(&dev, ".nodes", AtFlags::REMOVEDIR).context(what)
    }
}

/// Whether a device of the bundle is one that every container has anyway.
pub(super) fn is_default(device: &Device) -> bool {
    let path = resolve::clean(&device.path);
    DEVICES.iter().any(|known| path == Path::new("dev").join(known))
}

/// Makes a node, or leaves one that is as asked.
fn make_node(site: &Site<'_>, device: &Device) -> rustix::io::Result<()> {
    let kind = node_type(device);
    let number = number(device)?;
    let mode = Mode::from_raw_mode(device.file_mode.unwrap_or(0o666) & 0o7777);
    let path = resolve::clean(&device.path);
    let parent = path.parent().ok_or(Errno::INVAL)?;
    let name = path.file_name().ok_or(Errno::INVAL)?;
    let parent = resolve::make(site.root, parent, Leaf::Directory)?;
    match rustix::fs::mknodat(&parent, name, kind, mode, number) {
        Ok(()) => {}
        Err(Errno::EXIST) => {
            let there = rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let same_number = kind == FileType::Fifo || there.st_rdev == number;
            if FileType::from_raw_mode(there.st_mode) != kind || !same_number {
                return Err(Errno::EXIST);
            }
        }
        Err(e) => return Err(e),
    }
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let node = rustix::fs::openat(&parent, name, flags, Mode::empty())?;
    // The permissions as asked, whatever a default ACL of the directory says.
    rustix::fs::chmod(mounts::name(node.as_fd()), mode)?;
    let (uid, gid) = (
        Uid::from_raw(device.uid.unwrap_or(0)),
        Gid::from_raw(device.gid.unwrap_or(0)),
    );
    rustix::fs::chownat(&node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
}

/// The number of a device; a pipe has none.
pub(super) fn number(device: &Device) -> rustix::io::Result<u64> {
    let number = |number: Option<i64>| u32::try_from(number.unwrap_or(0)).map_err(|_| Errno::INVAL);
    if node_type(device) == FileType::Fifo {
        return Ok(0);
    }
    Ok(rustix::fs::makedev(number(device.major)?, number(device.minor)?))
}

pub(super) fn node_type(device: &Device) -> FileType {
    match device.kind.as_str() {
        "b" => FileType::BlockDevice,
        "p" => FileType::Fifo,
        _ => FileType::CharacterDevice,
    }
}

/// Binds the host's node of a device. Its owner and permissions are the host's: what is asked for otherwise is told.
fn bind_node(site: &mut Site<'_>, device: &Device, field: &str) -> Result<(), Error> {
    let no_options = options::parse(&[]).map_err(Error::Usage)?;
    let (node, stat) = host_device(device, field)?;
    let path = resolve::clean(&device.path);
    site.bind(node.as_fd(), &path, false, &no_options)
        .context(|| format!("config.json: {field}: {}", device.path))?;
    if let Some(mode) = device
        .file_mode
        .filter(|mode| mode & 0o7777 != stat.st_mode & 0o7777)
    {
        site.warnings.push(format!(
            "{field}.fileMode: {:o} not set: {} is the host's node, its mode is {:o}",
            mode & 0o7777,
            device.path,
            stat.st_mode & 0o7777
        ));
    }
    Ok(())
}

/// The host's node of a device: by its path, or else by its number, as udev names it.
fn host_device(device: &Device, field: &str) -> Result<(OwnedFd, rustix::fs::Stat), Error> {
    let expected = node_type(device);
    let refuse = |reason: String| Err(Error::config(format!("{field}: {}", device.path), reason));
    let mut found = None;
    for path in [Some(PathBuf::from(&device.path)), by_number(device)]
        .into_iter()
        .flatten()
    {
        let Ok(node) = rustix::fs::open(&path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) else {
            continue;
        };
        let stat = rustix::fs::fstat(&node).context(|| path.display().to_string())?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let numbers = (
            i64::from(rustix::fs::major(stat.st_rdev)),
            i64::from(rustix::fs::minor(stat.st_rdev)),
        );
        let asked = (
            device.major.unwrap_or(numbers.0),
            device.minor.unwrap_or(numbers.1),
        );
        if kind == expected && asked == numbers {
            return Ok((node, stat));
        }
        found.get_or_insert((kind, numbers));
    }
    match found {
        Some((kind, numbers)) => refuse(format!(
            "the host's node is {kind:?} {}:{}, not as asked",
            numbers.0, numbers.1
        )),
        None => refuse("no such node on the host, and none can be made without root".into()),
    }
}

/// The node that the host has for a device number.
fn by_number(device: &Device) -> Option<PathBuf> {
    let kind = if device.kind == "b" { "block" } else { "char" };
    let (major, minor) = (device.major?, device.minor?);
    let text = std::fs::read_to_string(format!("/sys/dev/{kind}/{major}:{minor}/uevent")).ok()?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    Some(Path::new("/dev").join(name))
}

/// Makes the container's terminal: its controlling end goes to the console socket, the other end is returned.
pub(super) fn console(site: &Site<'_>, plan: &Plan, inherited: &Inherited) -> Result<OwnedFd, Error> {
    let what = || "process.terminal";
    let flags = OFlags::RDWR | OFlags::NOCTTY;
    let master = resolve::open_with(site.root, Path::new("dev/ptmx"), flags)
        .or_else(|_| resolve::open_with(site.root, Path::new("dev/pts/ptmx"), flags))
        .context(|| "process.terminal: /dev/ptmx")?;
    rustix::pty::unlockpt(&master).context(what)?;
    let peer = rustix::pty::ioctl_tiocgptpeer(
        &master,
        OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC,
    )
    .context(what)?;
    if let Some(size) = plan.process.console_size {
        let size = rustix::termios::Winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).context(what)?;
    }
    if plan.process.user.uid != 0 {
        rustix::fs::fchown(&peer, Some(Uid::from_raw(plan.process.user.uid)), None).context(what)?;
    }
    let path = rustix::pty::ptsname(&master, Vec::new()).context(what)?;
    let path = path
        .to_str()
        .map_err(|_| Error::Corrupt("process.terminal: a nameless terminal".into()))?;
    let node = resolve::open(site.root, &resolve::clean(path)).context(what)?;
    let no_options = options::parse(&[]).map_err(Error::Usage)?;
    site.bind(node.as_fd(), Path::new("dev/console"), false, &no_options)
        .context(|| "make /dev/console")?;
    match &inherited.console {
        Some(socket) => super::send_terminal(socket.as_fd(), path, master.as_fd())?,
        None => return Err(Error::Usage("process.terminal needs --console-socket".into())),
    }
    Ok(peer)
}
