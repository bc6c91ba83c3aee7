//! `exec`: another process in a container, made by its spawner.
//!
//! The process is a child of the spawner, in whose Landlock domain it has to be born. Engines that ask for `--detach` wait
//! for the process by the id in the pid file, as for a child of theirs. So with `--detach` a keeper is left to them: it has
//! the id that they know, passes signals on, and ends as the process ends. When the keeper is killed the process is, too.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, Mode, OFlags};
use rustix::process::Pid;

use super::Exec;
use crate::error::{Context, Error};
use crate::foreground::{Event, Foreground};
use crate::launch::{self, Message, Request};
use crate::state::{ProcessId, Root, Status};
use crate::sys::{self, Side, Signals};
use crate::{config, wire};

/// Carries out `exec` and returns the exit status of the process, 0 with `--detach`.
///
/// # Errors
///
/// If the container does not run or the process cannot be executed (126, 127).
pub fn run(root: &Root, options: &Exec) -> Result<u8, Error> {
    let request = request(options)?;
    let terminal = request.terminal || request.process.as_ref().is_some_and(|process| process.terminal);
    match (terminal, options.detach, &options.console_socket) {
        (true, true, None) => {
            return Err(Error::Usage(
                "a terminal with --detach needs --console-socket".into(),
            ));
        }
        (false, _, Some(_)) => return Err(Error::Usage("--console-socket needs --tty".into())),
        _ => {}
    }
    let console = options
        .console_socket
        .as_deref()
        .map(super::console_socket)
        .transpose()?;
    let directory = root.find(&options.id)?;
    let record = directory.record()?;
    let status = directory.status(record.as_ref());
    if status != Status::Running {
        return Err(Error::Status {
            id: directory.id.clone(),
            verb: "exec in",
            status: status.as_str(),
        });
    }

    let text = serde_json::to_vec(&request).map_err(|e| Error::Usage(format!("exec: {e}")))?;
    let file = rustix::fs::memfd_create("exec", MemfdFlags::CLOEXEC).context(|| "exec: memfd")?;
    let mut file = std::fs::File::from(file);
    file.write_all(&text).context(|| "exec: memfd")?;
    let (report, theirs) = wire::pair().context(|| "socketpair")?;
    let preserved = (3..3i32.saturating_add_unsigned(options.preserve_fds))
        .map(|fd| sys::inherited(fd).context(|| format!("--preserve-fds: descriptor {fd}")))
        .collect::<Result<Vec<OwnedFd>, _>>()?;
    let mut fds = vec![file.as_fd(), theirs.as_fd()];
    if !terminal {
        fds.extend([
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
        ]);
        fds.extend(preserved.iter().map(AsFd::as_fd));
    } else if !preserved.is_empty() {
        return Err(Error::Usage(
            "--preserve-fds cannot be used with a terminal".into(),
        ));
    }

    let mut foreground = if options.detach {
        None
    } else {
        Some(Foreground::new()?)
    };
    let spawner = directory.connect()?;
    let bound = i32::from(options.detach).to_ne_bytes();
    wire::send(&spawner, Message::Exec as u8, &bound, &fds).context(|| "spawner")?;
    drop(fds);
    drop((theirs, file, preserved));
    let pid = match wire::receive(&spawner).context(|| "spawner")? {
        Some(packet) if packet.kind == Message::Pids as u8 => packet.number(0).and_then(Pid::from_raw),
        Some(packet) => return Err(launch::reported(&packet)),
        None => None,
    };
    let pid = pid.ok_or_else(|| Error::Launch {
        code: 1,
        line: format!("container {}: ended before the process was made", directory.id),
    })?;
    // It may have ended already; the spawner will say so.
    let process = ProcessId::of(pid).ok();
    executed(
        &report,
        console.as_ref().map(AsFd::as_fd),
        foreground.as_mut(),
        |packet| {
            let record = record
                .as_ref()
                .ok_or_else(|| Error::NotFound(directory.id.clone()))?;
            super::send_listener(&directory, record, packet, pid.as_raw_nonzero().get())
        },
    )?;
    let known = match &foreground {
        Some(_) => pid,
        None => keeper(&spawner, process)?,
    };
    if let Some(path) = &options.pid_file {
        super::write_pid(path, known.as_raw_nonzero().get())?;
    }
    match &mut foreground {
        Some(foreground) => attend(foreground, &spawner, process),
        None => Ok(0),
    }
}

/// Passes signals on to a process until it ends; its exit status.
fn attend(foreground: &mut Foreground, spawner: &OwnedFd, process: Option<ProcessId>) -> Result<u8, Error> {
    let status = foreground.run(Some(spawner.as_fd()), |event| match event {
        Event::Signal(signal) => {
            if let Some(process) = process.filter(|_| signal != libc::SIGCHLD) {
                let _ = process.signal(signal);
            }
            Ok(None)
        }
        Event::Answer => match wire::receive(spawner).context(|| "spawner")? {
            Some(packet) if packet.kind == Message::Exited as u8 => Ok(packet.number(0)),
            Some(_) => Ok(None),
            None => Err(Error::Launch {
                code: 1,
                line: "exec: the container's spawner died".into(),
            }),
        },
    })?;
    Ok(super::exit_code(status))
}

/// Leaves a process behind that stands for one of the container, and returns its id.
fn keeper(spawner: &OwnedFd, process: Option<ProcessId>) -> Result<Pid, Error> {
    let keep = || -> Result<u8, Error> {
        let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context(|| "/dev/null")?;
        // Whoever reads the process's output waits until nobody can write any more.
        for target in 0..3 {
            sys::dup_onto(null.as_fd(), target).context(|| "standard streams")?;
        }
        let standard = [
            rustix::stdio::stdin(),
            rustix::stdio::stdout(),
            rustix::stdio::stderr(),
            spawner.as_fd(),
        ];
        sys::close_all_but(&standard).context(|| "close_range")?;
        // It is closed: nothing may close that number again.
        std::mem::forget(null);
        rustix::process::setsid().context(|| "setsid")?;
        sys::trim_heap();
        attend(&mut Foreground::new()?, spawner, process)
    };
    // From its first moment on: a signal that comes before it is ready waits.
    Signals::new(None).block().context(|| "signals")?;
    match sys::fork(0).context(|| "exec: fork")? {
        Side::Parent(pid) => Ok(pid),
        Side::Child => sys::exit_now(keep().unwrap_or(1)),
    }
}

/// Waits until the program is executed: the report socket closes with it. A terminal comes this way first.
fn executed(
    report: &OwnedFd,
    console: Option<BorrowedFd<'_>>,
    mut foreground: Option<&mut Foreground>,
    listener: impl Fn(wire::Packet) -> Result<(), Error>,
) -> Result<(), Error> {
    while let Some(packet) = wire::receive(report).context(|| "exec")? {
        if packet.kind == Message::Listener as u8 {
            listener(packet)?;
            continue;
        }
        if packet.kind != Message::Terminal as u8 {
            return Err(launch::reported(&packet));
        }
        let name = packet.text();
        let Some(master) = packet.fds.into_iter().next() else {
            continue;
        };
        match (console, &mut foreground) {
            (Some(socket), _) => launch::send_terminal(socket, &name, master.as_fd())?,
            (None, Some(foreground)) => foreground.attach(master)?,
            (None, None) => {}
        }
    }
    Ok(())
}

fn request(options: &Exec) -> Result<Request, Error> {
    let process = match &options.process {
        None => None,
        Some(path) => {
            let what = || format!("--process {}", path.display());
            let mut text = Vec::new();
            let file = std::fs::File::open(path).context(what)?;
            file.take(config::MAX_BYTES)
                .read_to_end(&mut text)
                .context(what)?;
            let (process, ignored) = config::parse_process(&text)?;
            let label = process.selinux_label.as_deref();
            if let Some(line) = launch::check_label("process.selinuxLabel", label)? {
                let _ = writeln!(std::io::stderr(), "wherry-runtime: warning: {line}");
            }
            if let Some(line) = launch::check_apparmor(process.apparmor_profile.as_deref()) {
                let _ = writeln!(std::io::stderr(), "wherry-runtime: warning: {line}");
            }
            // There is no state to repeat it: it is told here.
            for line in ignored {
                let _ = writeln!(std::io::stderr(), "wherry-runtime: warning: {}: {line}", what());
            }
            Some(process)
        }
    };
    if process.is_none() && options.args.is_empty() {
        return Err(Error::Usage("exec: expected a program, or --process".into()));
    }
    Ok(Request {
        process,
        args: options.args.clone(),
        env: options.env.clone(),
        cwd: options.cwd.clone(),
        user: options.user.as_deref().map(parse_user).transpose()?,
        capabilities: options.cap.clone(),
        terminal: options.tty,
        console_size: if options.tty {
            super::run::terminal_size()
        } else {
            None
        },
        preserved: options.preserve_fds,
        no_new_privileges: options.no_new_privs,
    })
}

fn parse_user(text: &str) -> Result<(u32, Option<u32>), Error> {
    let number = |part: &str| {
        part.parse()
            .map_err(|_| Error::Usage(format!("--user {text:?}: expected numbers, U or U:G")))
    };
    match text.split_once(':') {
        Some((uid, gid)) => Ok((number(uid)?, Some(number(gid)?))),
        None => Ok((number(text)?, None)),
    }
}
