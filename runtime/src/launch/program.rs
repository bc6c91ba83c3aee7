//! From a fork of the spawner to the program: init, and the processes of `exec`.
//!
//! Both are in the Landlock domain by birth and undumpable until their program is executed, so nothing in the container
//! can trace them or reach this binary through `/proc/PID/exe` in between.

use std::ffi::{CStr, CString};
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, AtFlags, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::pty::OpenptFlags;
use rustix::thread::UnshareFlags;
use serde::{Deserialize, Serialize};

use super::plan::{self, Pids, Plan};
use super::{Inherited, Message};
use crate::config::{CapabilitySets, Process, User};
use crate::confine::{self, Credentials};
use crate::error::{Context, Error};
use crate::seccomp::Filter;
use crate::sys::{self, Signals};
use crate::{attributes, hooks, wire};

/// Where programs are looked for when the environment has no PATH, as in other runtimes.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The largest specification of an `exec`.
const MAX_REQUEST: u64 = 4 << 20;

/// What `exec` asks for; what is absent is as for init.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Request {
    /// A whole process (`--process`); the other fields then stand on top of it.
    pub(crate) process: Option<Process>,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<String>,
    pub(crate) cwd: Option<String>,
    pub(crate) user: Option<(u32, Option<u32>)>,
    pub(crate) capabilities: Vec<String>,
    pub(crate) terminal: bool,
    pub(crate) console_size: Option<crate::config::ConsoleSize>,
    pub(crate) preserved: u32,
    pub(crate) no_new_privileges: bool,
}

impl Request {
    /// The process to run in a container whose init is `base`.
    fn process(&self, base: &Process) -> Result<Process, Error> {
        let mut process = match &self.process {
            Some(process) => process.clone(),
            None => Process {
                terminal: false,
                console_size: None,
                ..base.clone()
            },
        };
        if !self.args.is_empty() {
            process.args.clone_from(&self.args);
        }
        for variable in &self.env {
            let name = variable
                .split_once('=')
                .map_or(variable.as_str(), |(name, _)| name);
            process
                .env
                .retain(|known| known.split_once('=').map_or(known.as_str(), |(n, _)| n) != name);
            process.env.push(variable.clone());
        }
        if let Some(cwd) = &self.cwd {
            process.cwd.clone_from(cwd);
        }
        if let Some((uid, gid)) = self.user {
            process.user = User {
                uid,
                gid: gid.unwrap_or(0),
                umask: process.user.umask,
                additional_gids: Vec::new(),
            };
        }
        if !self.capabilities.is_empty() {
            let sets = process.capabilities.get_or_insert_with(CapabilitySets::default);
            for set in [&mut sets.bounding, &mut sets.effective, &mut sets.permitted] {
                set.extend(self.capabilities.iter().cloned());
            }
        }
        process.terminal |= self.terminal;
        if self.console_size.is_some() {
            process.console_size = self.console_size;
        }
        // A guarantee of the container, not of one process: exec can add it, never take it off.
        process.no_new_privileges |= base.no_new_privileges || self.no_new_privileges;
        if process.apparmor_profile.is_none() {
            process.apparmor_profile.clone_from(&base.apparmor_profile);
        }
        plan::check_process(&process)?;
        Ok(process)
    }
}

/// Init: prepares, waits for `start`, becomes the program.
///
/// `born` says that the kernel made it in the container's cgroup.
pub(super) fn init(plan: &Plan, inherited: &Inherited, channel: OwnedFd, born: bool) -> ! {
    let mut filter = None;
    let started = enter_cgroup(plan, inherited, &channel, born)
        .and_then(|()| prepare_filter(plan, inherited))
        .and_then(|compiled| {
            filter = compiled;
            wait_for_start(plan, inherited, &channel)
        });
    let program = match started {
        Ok(Some(program)) => program,
        Ok(None) => sys::exit_now(1),
        Err(error) => {
            super::report(inherited.setup.as_fd(), &error);
            sys::exit_now(error.exit_code())
        }
    };
    let error = become_init(plan, inherited, &program, channel.as_fd(), filter.as_ref());
    super::report(channel.as_fd(), &error);
    sys::exit_now(error.exit_code())
}

/// Init enters its cgroup, makes it the root of a namespace, and gives that to the spawner.
fn enter_cgroup(plan: &Plan, inherited: &Inherited, channel: &OwnedFd, born: bool) -> Result<(), Error> {
    if let Some(entry) = &inherited.cgroup {
        entry.enter(born)?;
    }
    if inherited.roots_cgroup(plan) {
        let what = || "new cgroup namespace";
        sys::unshare(UnshareFlags::NEWCGROUP).context(what)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let namespace = rustix::fs::open("/proc/self/ns/cgroup", flags, Mode::empty()).context(what)?;
        wire::send(channel, Message::Namespaces as u8, &[], &[namespace.as_fd()]).context(what)?;
    }
    Ok(())
}

/// Compiles the filter while others mount.
fn prepare_filter(plan: &Plan, inherited: &Inherited) -> Result<Option<Filter>, Error> {
    let mut warnings = Vec::new();
    let filter = plan.compile_filter(&mut warnings)?;
    for warning in warnings {
        wire::send(&inherited.setup, Message::Warning as u8, warning.as_bytes(), &[])
            .context(|| "creator")?;
    }
    Ok(filter)
}

fn wait_for_start(plan: &Plan, inherited: &Inherited, channel: &OwnedFd) -> Result<Option<CString>, Error> {
    // While it waits its owner may look at it: engines and hooks enter its network namespace by /proc/PID/ns. Nothing
    // of the container runs yet, and nothing else is in a pid namespace of its own.
    hide(!matches!(plan.pids, Pids::New))?;
    let preserved: Vec<BorrowedFd<'_>> = sys::inherited_range(3, inherited.preserved);
    let mut keep = vec![
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ];
    keep.extend([channel.as_fd(), inherited.setup.as_fd()]);
    keep.extend(preserved);
    sys::close_all_but(&keep).context(|| "close_range")?;
    let Some(packet) = wire::receive(channel).context(|| "spawner")? else {
        return Ok(None);
    };
    rustix::process::setsid().context(|| "setsid")?;
    if let Some(terminal) = packet.fds.first() {
        // Now, not at the start: the creator's streams are not the container's.
        take_terminal(terminal.as_fd())?;
    }
    enter_directory(&plan.process.cwd)?;
    let program = locate(&plan.process)?;
    inherited.tell(Message::Ready)?;
    let started = wire::receive(channel).context(|| "spawner")?;
    hide(true)?;
    Ok(started.map(|_| program))
}

/// Makes this process and those forked from it undumpable, or dumpable again.
pub(super) fn hide(hidden: bool) -> Result<(), Error> {
    use rustix::process::DumpableBehavior;
    let behavior = if hidden {
        DumpableBehavior::NotDumpable
    } else {
        DumpableBehavior::Dumpable
    };
    rustix::process::set_dumpable_behavior(behavior).context(|| "dumpable")
}

fn become_init(
    plan: &Plan,
    inherited: &Inherited,
    program: &CStr,
    channel: BorrowedFd<'_>,
    filter: Option<&Filter>,
) -> Error {
    let prepare = || -> Result<(), Error> {
        let pid = rustix::process::getpid().as_raw_nonzero().get();
        hooks::run(
            &plan.hooks.start_container,
            "startContainer",
            &inherited.hook_state(pid),
        )?;
        // The image may have changed its mind about the directory since `create`; a hook certainly may.
        enter_directory(&plan.process.cwd)
    };
    match prepare() {
        Ok(()) => execute(
            &plan.process,
            &plan.credentials,
            plan,
            inherited.preserved,
            program,
            channel,
            filter,
        ),
        Err(error) => error,
    }
}

/// A process of `exec`, in a fork of the spawner. `fds` are those of the request.
///
/// `entered` is how it got into the cgroup.
pub(super) fn exec(plan: &Plan, filter: Option<&Filter>, fds: Vec<OwnedFd>, entered: Result<(), Error>) -> ! {
    let mut fds = fds.into_iter();
    let (Some(request), Some(report)) = (fds.next(), fds.next()) else {
        sys::exit_now(1)
    };
    let streams: Vec<OwnedFd> = fds.collect();
    let error = match entered {
        Ok(()) => become_program(plan, filter, request, &report, &streams),
        Err(error) => error,
    };
    super::report(report.as_fd(), &error);
    sys::exit_now(error.exit_code())
}

fn become_program(
    plan: &Plan,
    filter: Option<&Filter>,
    request: OwnedFd,
    report: &OwnedFd,
    streams: &[OwnedFd],
) -> Error {
    let prepare = || -> Result<(Process, Credentials, CString, u32), Error> {
        let mut text = Vec::new();
        let mut file = std::fs::File::from(request);
        std::io::Seek::rewind(&mut file).context(|| "exec: request")?;
        file.take(MAX_REQUEST)
            .read_to_end(&mut text)
            .context(|| "exec: request")?;
        let request: Request =
            serde_json::from_slice(&text).map_err(|e| Error::Usage(format!("exec: process: {e}")))?;
        let process = request.process(&plan.process)?;
        let mut warnings = Vec::new();
        let mappings = plan.mappings.as_ref();
        let credentials = Credentials::from_process(&process, mappings, plan.keep_groups, &mut warnings)?;
        attributes::set_affinity("initial", credentials.scheduling().initial.as_deref())?;
        if let Some(score) = process
            .oom_score_adj
            .filter(|score| Some(*score) != plan.process.oom_score_adj)
        {
            return Err(Error::config(
                "process.oomScoreAdj",
                format!("{score}: a process of exec has the container's; leave it out"),
            ));
        }
        rustix::process::setsid().context(|| "setsid")?;
        if process.terminal {
            let terminal = open_terminal(&process, report)?;
            take_terminal(terminal.as_fd())?;
        } else {
            for (target, stream) in (0..).zip(streams.iter().take(3)) {
                sys::dup_onto(stream.as_fd(), target).context(|| "standard streams")?;
            }
        }
        let mut preserved = 0;
        for (target, stream) in (3..).zip(streams.iter().skip(3).take(request.preserved as usize)) {
            sys::dup_onto(stream.as_fd(), target).context(|| "preserved descriptors")?;
            preserved += 1;
        }
        enter_directory(&process.cwd)?;
        let program = locate(&process)?;
        Ok((process, credentials, program, preserved))
    };
    match prepare() {
        Ok((process, credentials, program, preserved)) => {
            let last = credentials.scheduling().last.as_deref();
            match attributes::set_affinity("final", last) {
                Ok(()) => execute(
                    &process,
                    &credentials,
                    plan,
                    preserved,
                    &program,
                    report.as_fd(),
                    filter,
                ),
                Err(error) => error,
            }
        }
        Err(error) => error,
    }
}

/// The last steps, the same for init and exec; returns only with an error. A listener of the filter goes to `parent`.
fn execute(
    process: &Process,
    credentials: &Credentials,
    plan: &Plan,
    preserved: u32,
    program: &CStr,
    parent: BorrowedFd<'_>,
    filter: Option<&Filter>,
) -> Error {
    let hand_over = |listener: OwnedFd| {
        wire::send(parent, Message::Listener as u8, &[], &[listener.as_fd()]).context(|| "seccomp listener")
    };
    let confine = || -> Result<(Vec<CString>, Vec<CString>), Error> {
        sys::default_signals();
        Signals::new(Some(&[])).block().context(|| "signals")?;
        if let Some(profile) = process
            .apparmor_profile
            .as_deref()
            .filter(|profile| !profile.is_empty() && plan.has_apparmor)
        {
            confine::set_apparmor(profile)?;
        }
        let strings = |list: &[String]| {
            list.iter()
                .map(|text| CString::new(text.as_str()))
                .collect::<Result<Vec<_>, _>>()
                .map_err(|_| Error::config("process", "a zero byte in args or env"))
        };
        let (argv, mut envp) = (strings(&process.args)?, strings(&process.env)?);
        if inherited_sockets(process) {
            // Sockets of whoever manages this container: the program checks that they are meant for it.
            envp.extend(CString::new(format!(
                "LISTEN_PID={}",
                rustix::process::getpid().as_raw_nonzero()
            )));
        }
        if !process.env.iter().any(|variable| variable.starts_with("HOME=")) {
            envp.extend(CString::new(format!("HOME={}", home(process.user.uid))));
        }
        own_streams(credentials)?;
        confine::close_descriptors(preserved)?;
        plan.domain.apply()?;
        credentials.assume(filter, &hand_over)?;
        Ok((argv, envp))
    };
    match confine() {
        Ok((argv, envp)) => program_error(&process.args, sys::execve(program, &argv, &envp)),
        Err(error) => error,
    }
}

/// Whether the process gets sockets in the way of systemd: `LISTEN_FDS` without the process they are for.
fn inherited_sockets(process: &Process) -> bool {
    let has = |name: &str| process.env.iter().any(|variable| variable.starts_with(name));
    has("LISTEN_FDS=") && !has("LISTEN_PID=")
}

/// Gives files, pipes and sockets that are the standard streams to the user: a program may open them again by name.
fn own_streams(credentials: &Credentials) -> Result<(), Error> {
    let (uid, gid) = credentials.ids();
    if uid == 0 {
        return Ok(());
    }
    for stream in [
        rustix::stdio::stdin(),
        rustix::stdio::stdout(),
        rustix::stdio::stderr(),
    ] {
        let Ok(stat) = rustix::fs::fstat(stream) else {
            continue;
        };
        // A device is shared with others; a terminal was given away when it was made.
        if stat.st_uid == uid || FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice {
            continue;
        }
        let owner = (
            rustix::process::Uid::from_raw(uid),
            rustix::process::Gid::from_raw(gid),
        );
        match rustix::fs::fchown(stream, Some(owner.0), Some(owner.1)) {
            // Of somebody whom this user namespace does not have, or where there are no owners: it stays as it is.
            Ok(()) | Err(Errno::PERM | Errno::INVAL | Errno::ROFS | Errno::NOSYS | Errno::OPNOTSUPP) => {}
            Err(e) => return Err(e).context(|| "standard streams"),
        }
    }
    Ok(())
}

/// The home directory that the image's /etc/passwd gives a user; `/` if it gives none.
fn home(uid: u32) -> String {
    let mut text = String::new();
    let file = std::fs::File::open("/etc/passwd");
    let read = file.and_then(|file| file.take(1 << 20).read_to_string(&mut text));
    let home = read.ok().and_then(|_| {
        text.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.nth(2)?.parse() == Ok(uid)).then(|| fields.nth(2).unwrap_or("/").to_owned())
        })
    });
    home.filter(|home| home.starts_with('/'))
        .unwrap_or_else(|| "/".into())
}

/// Enters the working directory, which must be inside the root.
fn enter_directory(cwd: &str) -> Result<(), Error> {
    rustix::process::chdir(cwd).context(|| format!("process.cwd: {cwd}"))?;
    // The kernel says "(unreachable)/..." of a directory outside, as a leaked descriptor would make it.
    let here = rustix::process::getcwd(Vec::new()).context(|| format!("process.cwd: {cwd}"))?;
    if here.to_bytes().first() == Some(&b'/') {
        Ok(())
    } else {
        Err(Error::config(
            "process.cwd",
            format!("{cwd:?} leads out of the container"),
        ))
    }
}

/// Finds the program as execvp does, in the container's PATH.
fn locate(process: &Process) -> Result<CString, Error> {
    let name = process.args.first().map(String::as_str).unwrap_or_default();
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|v| v.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let candidates: Vec<PathBuf> = if name.contains('/') {
        vec![name.into()]
    } else {
        path.split(':')
            .map(|directory| Path::new(if directory.is_empty() { "." } else { directory }).join(name))
            .collect()
    };
    let mut denied = None;
    for candidate in &candidates {
        let Ok(stat) = rustix::fs::stat(candidate) else {
            continue;
        };
        let regular = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile;
        let executable =
            rustix::fs::accessat(rustix::fs::CWD, candidate, Access::EXEC_OK, AtFlags::EACCESS).is_ok();
        if regular && executable {
            return CString::new(candidate.as_os_str().as_bytes())
                .map_err(|_| Error::config("process.args", "a zero byte"));
        }
        denied.get_or_insert(candidate);
    }
    Err(match denied {
        Some(_) => Error::Launch {
            code: 126,
            line: format!("exec {name:?}: permission denied"),
        },
        None if name.contains('/') => Error::Launch {
            code: 127,
            line: format!("exec {name:?}: no such file or directory"),
        },
        None => Error::Launch {
            code: 127,
            line: format!("exec {name:?}: executable file not found in $PATH"),
        },
    })
}

fn program_error(args: &[String], error: std::io::Error) -> Error {
    let name = args.first().map(String::as_str).unwrap_or_default();
    let code = if error.kind() == std::io::ErrorKind::NotFound {
        127
    } else {
        126
    };
    Error::Launch {
        code,
        line: format!("exec {name:?}: {error}"),
    }
}

/// Makes a terminal the controlling one and the standard streams.
fn take_terminal(terminal: BorrowedFd<'_>) -> Result<(), Error> {
    rustix::process::ioctl_tiocsctty(terminal).context(|| "process.terminal: TIOCSCTTY")?;
    for target in 0..3 {
        sys::dup_onto(terminal, target).context(|| "process.terminal")?;
    }
    Ok(())
}

/// Opens a terminal of the container from inside, and gives its controlling end to the client of `exec`.
fn open_terminal(process: &Process, report: &OwnedFd) -> Result<OwnedFd, Error> {
    let what = || "process.terminal: /dev/ptmx";
    let master = rustix::fs::open(
        "/dev/ptmx",
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(what)?;
    // The container owns its /dev: only a real multiplexer gives a terminal.
    let device = rustix::fs::fstat(&master).context(what)?.st_rdev;
    if (rustix::fs::major(device), rustix::fs::minor(device)) != (5, 2) {
        return Err(Error::config(
            "process.terminal",
            "/dev/ptmx is no terminal multiplexer",
        ));
    }
    rustix::pty::unlockpt(&master).context(what)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let peer = rustix::pty::ioctl_tiocgptpeer(&master, flags).context(what)?;
    if let Some(size) = process.console_size {
        let size = rustix::termios::Winsize {
            ws_row: size.height,
            ws_col: size.width,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&master, size).context(what)?;
    }
    if process.user.uid != 0 {
        let uid = rustix::process::Uid::from_raw(process.user.uid);
        rustix::fs::fchown(&peer, Some(uid), None).context(what)?;
    }
    let path = rustix::pty::ptsname(&master, Vec::new()).context(what)?;
    wire::send(
        report,
        Message::Terminal as u8,
        path.as_bytes(),
        &[master.as_fd()],
    )
    .context(what)?;
    Ok(peer)
}
