//! The mounter: the first process in the container's namespaces. It builds the mount tree, makes the spawner, mounts the
//! procfs from within the new pid namespace, enters the root for all of them, and ends.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::UnmountFlags;
use rustix::process::{Gid, Uid};
use rustix::thread::{LinkNameSpaceType, UnshareFlags};

use super::mounts;
use super::plan::{Pids, Plan};
use super::site::{self, Site};
use super::{Inherited, Message, devices, program, spawner};
use crate::error::{Context, Error};
use crate::resolve::{self, Leaf};
use crate::sys::{self, Side};
use crate::{hooks, network, wire};

/// Group of terminals, by which container engines mount devpts.
const TTY_GROUP: u32 = 5;

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
    let mut gate = Gate {
        plan,
        inherited,
        passed: false,
    };
    enter_namespaces(plan, inherited)?;
    if !plan.begins_unmapped() {
        gate.pass()?;
    }
    mounts::isolate(plan.propagation).context(|| "make the mount tree private")?;
    let root = mounts::mount_root(&plan.rootfs, plan.overlay.as_ref(), plan.in_user_namespace())?;

    let outside = enter_time(plan)?;
    let (ours, theirs) = wire::pair().context(|| "socketpair")?;
    match sys::fork(libc::CLONE_PARENT).context(|| "fork the spawner")? {
        Side::Child => {
            drop(ours);
            spawner::run(plan, inherited, theirs, root.as_fd())
        }
        Side::Parent(pid) => {
            drop(theirs);
            if let Some(outside) = outside {
                let time = Some(LinkNameSpaceType::Time);
                match rustix::thread::move_into_link_name_space(outside.as_fd(), time) {
                    // The host's, of an ordinary user: kernels from 5.19 on do not mind.
                    Ok(()) | Err(Errno::PERM) => {}
                    Err(e) => return Err(e).context(|| "time namespace"),
                }
            }
            let spawner = Spawning {
                channel: ours,
                pid: pid.as_raw_nonzero().get(),
                init: None,
                init_channel: None,
            };
            build(plan, inherited, root.as_fd(), spawner, gate)
        }
    }
}

/// Makes the container's time namespace, which children are born into. What is returned leads back, for this process's
/// own: some kernels refuse to share memory across the border.
fn enter_time(plan: &Plan) -> Result<Option<OwnedFd>, Error> {
    if !plan.new.contains(UnshareFlags::NEWTIME) {
        return Ok(None);
    }
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let outside =
        rustix::fs::open("/proc/self/ns/time", flags, Mode::empty()).context(|| "time namespace")?;
    sys::unshare(UnshareFlags::NEWTIME).context(|| "new time namespace")?;
    if !plan.clocks.is_empty() {
        std::fs::write("/proc/self/timens_offsets", &plan.clocks)
            .context(|| format!("config.json: linux.timeOffsets: {}", plan.clocks.trim_end()))?;
    }
    Ok(Some(outside))
}

/// The spawner, which makes init while the mounter mounts.
struct Spawning {
    channel: OwnedFd,
    pid: i32,
    init: Option<i32>,
    /// Init's channel, which the spawner has as well.
    init_channel: Option<OwnedFd>,
}

impl Spawning {
    /// Init's process id, once it exists; this process is in its cgroup namespace then, and its children are in its pid
    /// namespace. `None`: the spawner failed, and has told the creator why.
    fn init(&mut self, inherited: &Inherited) -> Result<Option<i32>, Error> {
        if self.init.is_none() {
            let Some(packet) = wire::receive(&self.channel).context(|| "spawner")? else {
                return Ok(None);
            };
            self.init = packet.number(0);
            let Some(init) = self.init else {
                return Err(Error::Corrupt("spawner: a malformed packet".into()));
            };
            let pids = [self.pid, init];
            wire::send_numbers(&inherited.setup, Message::Pids as u8, &pids).context(|| "creator")?;
            // Of the pid namespace only children become members; of the cgroup namespace its root is what matters, for
            // mounts.
            let mut fds = packet.fds.into_iter();
            self.init_channel = fds.next();
            for namespace in fds {
                rustix::thread::move_into_link_name_space(namespace.as_fd(), None)
                    .context(|| "enter init's namespaces")?;
            }
        }
        Ok(self.init)
    }
}

/// What happens while the spawner makes init, and once it has.
fn build(
    plan: &Plan,
    inherited: &Inherited,
    root: BorrowedFd<'_>,
    mut spawner: Spawning,
    mut gate: Gate<'_>,
) -> Result<(), Error> {
    let mut site = Site {
        root,
        own_network: owns(plan, UnshareFlags::NEWNET),
        own_ipc: owns(plan, UnshareFlags::NEWIPC),
        own_pids: !matches!(plan.pids, Pids::Host),
        own_cgroup: owns(plan, UnshareFlags::NEWCGROUP),
        host_root: plan.host_root,
        legacy: &inherited.legacy,
        has_tty_group: false,
        warnings: Vec::new(),
    };
    for (index, mounting) in plan.mounts.iter().enumerate() {
        if !gate.passed && !site.can_mount_unmapped(mounting) {
            gate.pass()?;
        }
        if mounting.shows_init() && spawner.init(inherited)?.is_none() {
            return Ok(());
        }
        if mounting.kind == mounts::Kind::Devpts {
            site.has_tty_group = has_group(TTY_GROUP)?;
        }
        if mounting.kind == mounts::Kind::Proc && site.own_pids {
            mount_inside(&mut site, mounting)?;
        } else {
            site.mount(mounting, inherited.tree(index))?;
        }
    }
    gate.pass()?;
    // Nobody may trace this process or open its /proc files from here on. Not before: newuidmap maps the ids of its
    // caller's processes, and one that cannot be traced is nobody's.
    program::hide(true)?;
    let bound_dev = plan
        .mounts
        .iter()
        .any(|m| m.destination == Path::new("dev") && matches!(m.kind, mounts::Kind::Bind { .. }));
    if !bound_dev {
        devices::make(&mut site, plan, inherited)?;
    }
    let terminal = if plan.process.terminal {
        Some(devices::console(&site, plan, inherited)?)
    } else {
        None
    };
    let cwd = resolve::clean(&plan.process.cwd);
    resolve::make(root, &cwd, Leaf::Directory)
        .context(|| format!("config.json: process.cwd: {}", plan.process.cwd))?;
    for path in &plan.protected {
        site.protect(path)?;
    }
    if !plan.masked.is_empty() {
        let null = devices::open_host("/dev/null")?;
        for path in &plan.masked {
            site.mask(path, null.as_fd())?;
        }
    }

    let Some(init) = spawner.init(inherited)? else {
        return Ok(());
    };
    let pids = [spawner.pid, init];
    if !plan.hooks.prestart.is_empty() || !plan.hooks.create_runtime.is_empty() {
        wire::send_numbers(&inherited.setup, Message::Namespaces as u8, &pids).context(|| "creator")?;
        inherited.await_message(Message::Continue)?;
    }
    hooks::run(
        &plan.hooks.create_container,
        "createContainer",
        &inherited.hook_state(init),
    )?;
    if plan.readonly {
        site::remount(root, rustix::mount::MountFlags::RDONLY).context(|| "make the root read-only")?;
    }
    for warning in &site.warnings {
        wire::send(&inherited.setup, Message::Warning as u8, warning.as_bytes(), &[])
            .context(|| "creator")?;
    }
    enter_root(plan, root)?;
    let terminal: Vec<_> = terminal.iter().map(AsFd::as_fd).collect();
    if let Some(init) = &spawner.init_channel {
        wire::send(init, Message::Continue as u8, &[], &terminal).context(|| "init")?;
    }
    wire::send(&spawner.channel, Message::Continue as u8, &[], &[]).context(|| "spawner")
}

/// Mounts from within the container's pid namespace, which a procfs shows.
fn mount_inside(site: &mut Site<'_>, mounting: &mounts::Mounting) -> Result<(), Error> {
    let mut failed = None;
    let mut mount = || {
        failed = site.mount(mounting, None).err();
        u8::from(failed.is_some())
    };
    sys::call_in_child(&mut mount).context(|| "fork in the pid namespace")?;
    failed.map_or(Ok(()), Err)
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
    if let Some(score) = plan.process.oom_score_adj {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .context(|| format!("config.json: process.oomScoreAdj: {score}"))?;
    }
    rustix::process::umask(Mode::empty());
    Ok(())
}

/// Before it nothing is done that needs the ids of the user namespace: they are mapped meanwhile, for a range by two
/// programs that take longer than most of the mounting.
struct Gate<'a> {
    plan: &'a Plan,
    inherited: &'a Inherited,
    passed: bool,
}

impl Gate<'_> {
    fn pass(&mut self) -> Result<(), Error> {
        if self.passed {
            return Ok(());
        }
        self.passed = true;
        self.inherited.await_message(Message::Mapped)?;
        if self.plan.in_user_namespace() {
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
        for (name, value) in &self.plan.sysctl {
            if name == "kernel.domainname" {
                // The file is the host's root's, also where the name is this namespace's.
                sys::setdomainname(value.as_bytes())
                    .context(|| format!("config.json: linux.sysctl.{name}"))?;
                continue;
            }
            std::fs::write(format!("/proc/sys/{}", name.replace('.', "/")), value)
                .context(|| format!("config.json: linux.sysctl.{name}"))?;
        }
        Ok(())
    }
}

/// Enters the root for every process of this mount namespace, and lets go of the host's tree.
fn enter_root(plan: &Plan, root: BorrowedFd<'_>) -> Result<(), Error> {
    let host = devices::open_host("/")?;
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
