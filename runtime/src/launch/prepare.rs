//! The mounter: the first process in the container's namespaces. It builds the mount tree, makes the spawner, mounts the
//! procfs from within the new pid namespace, enters the root for all of them, and ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Gid, Uid};
use rustix::pty::OpenptFlags;
use rustix::thread::UnshareFlags;

use super::mounts::{self, Site};
use super::plan::{Pids, Plan};
use super::{Inherited, Message, program, spawner};
use crate::config::Device;
use crate::error::{Context, Error};
use crate::resolve::{self, Leaf};
use crate::sys::{self, Side};
use crate::{hooks, network, wire};

/// Device nodes that every container has.
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

/// Group of terminals, by which container engines mount devpts.
const TTY_GROUP: u32 = 5;

/// Symlinks that every container has, beneath `/dev`.
const LINKS: &[(&str, &str)] = &[
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
];

/// Runs the mounter; an error goes to the creator and ends it.
pub(super) fn run(plan: &Plan, inherited: &Inherited) -> ! {
    let code = match prepare(plan, inherited) {
        Ok(()) => 0,
        Err(error) => {
            super::report(inherited.setup.as_fd(), &error);
            1
        }
    };
    sys::exit_now(code)
}

fn prepare(plan: &Plan, inherited: &Inherited) -> Result<(), Error> {
    enter_namespaces(plan, inherited)?;
    mounts::isolate(plan.propagation).context(|| "make the mount tree private")?;
    let root = mounts::mount_root(&plan.rootfs, plan.overlay.as_ref(), plan.in_user_namespace())?;
    if !plan.hooks.prestart.is_empty() || !plan.hooks.create_runtime.is_empty() {
        inherited.tell(Message::Namespaces)?;
        inherited.await_message(Message::Continue)?;
    }

    let mut site = Site {
        root: root.as_fd(),
        own_network: owns(plan, UnshareFlags::NEWNET),
        own_ipc: owns(plan, UnshareFlags::NEWIPC),
        own_pids: !matches!(plan.pids, Pids::Host),
        has_tty_group: has_group(TTY_GROUP)?,
        warnings: Vec::new(),
    };
    for mounting in plan.mounts.iter().filter(|m| !m.is_late()) {
        site.mount(mounting)?;
    }
    let null = open_host("/dev/null")?;
    let bound_dev = plan
        .mounts
        .iter()
        .any(|m| m.destination == Path::new("dev") && matches!(m.kind, mounts::Kind::Bind { .. }));
    if !bound_dev {
        devices(&site, plan)?;
    }
    let terminal = if plan.process.terminal {
        Some(console(&site, plan, inherited)?)
    } else {
        None
    };
    let cwd = resolve::clean(&plan.process.cwd);
    resolve::make(root.as_fd(), &cwd, Leaf::Directory)
        .context(|| format!("config.json: process.cwd: {}", plan.process.cwd))?;
    if plan.mounts.iter().any(|m| m.kind == mounts::Kind::Proc) {
        resolve::make(root.as_fd(), Path::new("proc"), Leaf::Directory).context(|| "make /proc")?;
    }

    // What is forked from here on is undumpable, until it executes a program: nobody can trace it or open its /proc files.
    program::hide(true)?;
    let (ours, theirs) = wire::pair().context(|| "socketpair")?;
    match sys::fork(libc::CLONE_PARENT).context(|| "fork the spawner")? {
        Side::Child => {
            drop(ours);
            spawner::run(plan, inherited, theirs, root.as_fd(), terminal.as_ref())
        }
        Side::Parent(pid) => {
            drop((theirs, terminal));
            finish(
                plan,
                inherited,
                &mut site,
                &ours,
                pid.as_raw_nonzero().get(),
                null.as_fd(),
            )
        }
    }
}

/// What happens once the spawner and init exist: the procfs of their pid namespace, and the way into the root.
fn finish(
    plan: &Plan,
    inherited: &Inherited,
    site: &mut Site<'_>,
    spawner: &OwnedFd,
    spawner_pid: i32,
    null: BorrowedFd<'_>,
) -> Result<(), Error> {
    // The end: the spawner has already told the creator why.
    let Some(packet) = wire::receive(spawner).context(|| "spawner")? else {
        return Ok(());
    };
    let Some(init) = packet.number(0) else {
        return Err(Error::Corrupt("spawner: a malformed packet".into()));
    };
    // Of the pid namespace only children become members; of the cgroup namespace its root is what matters, for mounts.
    for namespace in &packet.fds {
        rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
            .context(|| "enter init's namespaces")?;
    }
    let late: Vec<_> = plan.mounts.iter().filter(|m| m.is_late()).collect();
    if !late.is_empty() {
        let mut failed = None;
        let mut mount = || {
            failed = late.iter().find_map(|mounting| site.mount(mounting).err());
            u8::from(failed.is_some())
        };
        if matches!(plan.pids, Pids::Host) {
            mount();
        } else {
            sys::call_in_child(&mut mount).context(|| "fork in the pid namespace")?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
    for path in &plan.protected {
        site.protect(path)?;
    }
    for path in &plan.masked {
        site.mask(path, null)?;
    }
    hooks::run(
        &plan.hooks.create_container,
        "createContainer",
        &inherited.hook_state(init),
    )?;
    if plan.readonly {
        mounts::remount(site.root, rustix::mount::MountFlags::RDONLY)
            .context(|| "make the root read-only")?;
    }
    for warning in &site.warnings {
        wire::send(&inherited.setup, Message::Warning as u8, warning.as_bytes(), &[])
            .context(|| "creator")?;
    }
    enter_root(plan, site.root)?;
    wire::send_numbers(&inherited.setup, Message::Pids as u8, &[spawner_pid, init]).context(|| "creator")?;
    wire::send(spawner, Message::Continue as u8, &[], &[]).context(|| "spawner")
}

/// Whether a group exists in this user namespace, new or joined.
fn has_group(gid: u32) -> Result<bool, Error> {
    let map = std::fs::read_to_string("/proc/self/gid_map").context(|| "/proc/self/gid_map")?;
    Ok(map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u32>);
        match (fields.next(), fields.nth(1)) {
            (Some(Ok(first)), Some(Ok(count))) => gid.checked_sub(first).is_some_and(|offset| offset < count),
            _ => false,
        }
    }))
}

fn owns(plan: &Plan, flag: UnshareFlags) -> bool {
    plan.new.contains(flag) || plan.joined_kinds.contains(flag)
}

fn enter_namespaces(plan: &Plan, inherited: &Inherited) -> Result<(), Error> {
    for (kind, namespace) in &plan.joined {
        // By kind: a path to a mount namespace under another name would move the mounting below out of our own.
        rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(*kind))
            .context(|| format!("config.json: linux.namespaces: join by path as {kind:?}"))?;
    }
    if plan.joins_user_namespace() {
        sys::unshare(inherited.namespaces(plan)).context(|| "new namespaces")?;
    }
    // What needs no id of the namespace is done while the ids are mapped.
    if plan.new.contains(UnshareFlags::NEWNET) {
        network::loopback().context(|| "bring up lo")?;
    }
    if let Some(name) = &plan.hostname {
        rustix::system::sethostname(name.as_bytes())
            .context(|| format!("config.json: hostname: {name:?}"))?;
    }
    if let Some(name) = &plan.domainname {
        sys::setdomainname(name.as_bytes()).context(|| format!("config.json: domainname: {name:?}"))?;
    }
    inherited.await_message(Message::Mapped)?;
    if plan.in_user_namespace() {
        // Root inside, if there is one; otherwise the one id that is mapped, with the same capabilities.
        for result in [
            rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT),
            rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT),
        ] {
            match result {
                Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
                Err(e) => return Err(e).context(|| "become root of the user namespace"),
            }
        }
    }
    if let Some(score) = plan.process.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .context(|| format!("config.json: process.oomScoreAdj: {score}"))?;
    }
    rustix::process::umask(Mode::empty());
    for (name, value) in &plan.sysctl {
        std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
            .context(|| format!("config.json: linux.sysctl.{name}"))?;
    }
    Ok(())
}

fn open_host(path: &str) -> Result<OwnedFd, Error> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).context(|| path)
}

fn devices(site: &Site<'_>, plan: &Plan) -> Result<(), Error> {
    let no_options = super::options::parse(&[]).map_err(Error::Usage)?;
    for device in DEVICES {
        let source = open_host(&format!("/dev/{device}"))?;
        site.bind(source.as_fd(), &Path::new("dev").join(device), false, &no_options)
            .context(|| format!("device /dev/{device}"))?;
    }
    for (index, device) in plan.devices.iter().enumerate() {
        let what = || format!("config.json: linux.devices[{index}]: {}", device.path);
        if DEVICES
            .iter()
            .any(|known| Path::new(&device.path) == Path::new("/dev").join(known))
        {
            continue;
        }
        let source = host_device(device)?;
        site.bind(source.as_fd(), &resolve::clean(&device.path), false, &no_options)
            .context(what)?;
    }
    let dev = resolve::make(site.root, Path::new("dev"), Leaf::Directory).context(|| "make /dev")?;
    for (name, target) in LINKS {
        match rustix::fs::symlinkat(*target, &dev, *name) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(e) => return Err(e).context(|| format!("make /dev/{name}")),
        }
    }
    if plan.mounts.iter().any(|m| m.kind == mounts::Kind::Devpts) {
        match rustix::fs::unlinkat(&dev, "ptmx", rustix::fs::AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(e) => return Err(e).context(|| "replace /dev/ptmx"),
        }
        rustix::fs::symlinkat("pts/ptmx", &dev, "ptmx").context(|| "make /dev/ptmx")?;
    }
    Ok(())
}

/// The host's node of a device: nodes cannot be made in a user namespace, and binding is enough everywhere.
fn host_device(device: &Device) -> Result<OwnedFd, Error> {
    let node = open_host(&device.path)?;
    let stat = rustix::fs::fstat(&node).context(|| device.path.clone())?;
    let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
    let expected = match device.kind.as_str() {
        "b" => rustix::fs::FileType::BlockDevice,
        "p" => rustix::fs::FileType::Fifo,
        _ => rustix::fs::FileType::CharacterDevice,
    };
    let numbers = (
        i64::from(rustix::fs::major(stat.st_rdev)),
        i64::from(rustix::fs::minor(stat.st_rdev)),
    );
    let asked = (
        device.major.unwrap_or(numbers.0),
        device.minor.unwrap_or(numbers.1),
    );
    if kind != expected || (device.kind != "p" && asked != numbers) {
        return Err(Error::config(
            format!("linux.devices: {}", device.path),
            format!(
                "the host's node is {kind:?} {}:{}, not as asked",
                numbers.0, numbers.1
            ),
        ));
    }
    Ok(node)
}

/// Makes the container's terminal: its controlling end goes to the console socket, the other end is returned.
fn console(site: &Site<'_>, plan: &Plan, inherited: &Inherited) -> Result<OwnedFd, Error> {
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
    let no_options = super::options::parse(&[]).map_err(Error::Usage)?;
    site.bind(node.as_fd(), Path::new("dev/console"), false, &no_options)
        .context(|| "make /dev/console")?;
    match &inherited.console {
        Some(socket) => super::send_terminal(socket.as_fd(), path, master.as_fd())?,
        None => return Err(Error::Usage("process.terminal needs --console-socket".into())),
    }
    Ok(peer)
}

/// Enters the root for every process of this mount namespace, and lets go of the host's tree.
fn enter_root(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Error> {
    let host = open_host("/")?;
    rustix::process::fchdir(root).context(|| "root")?;
    rustix::process::pivot_root(".", ".").context(|| "pivot_root")?;
    rustix::process::fchdir(&host).context(|| "root")?;
    // Nothing of what is let go may be unmounted on the host.
    rustix::mount::mount_change(
        ".",
        rustix::mount::MountPropagationFlags::DOWNSTREAM | rustix::mount::MountPropagationFlags::REC,
    )
    .context(|| "let go of the host's mounts")?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).context(|| "let go of the host's mounts")?;
    rustix::process::chdir("/").context(|| "root")?;
    if let Some(propagation) = plan.propagation {
        rustix::mount::mount_change("/", propagation).context(|| "config.json: linux.rootfsPropagation")?;
    }
    Ok(())
}
