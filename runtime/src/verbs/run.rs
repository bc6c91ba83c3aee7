//! `run`: create, start, wait, delete, in the foreground; with `--detach` create and start.

use std::io::Write;
use std::os::fd::AsFd;

use rustix::process::{Pid, WaitOptions};

use super::{Create, Run};
use crate::cgroup::Manager;
use crate::error::{Context, Error};
use crate::foreground::{Event, Foreground};
use crate::state::Root;
use crate::wire;

/// Carries out `run` and returns the exit status of the container's program, 0 with `--detach`.
///
/// # Errors
///
/// Those of `create`, `start` and `delete`.
pub fn run(root: &Root, options: Run, manager: Manager) -> Result<u8, Error> {
    let Run {
        bundle,
        config,
        pid_file,
        console_socket,
        preserve_fds,
        no_pivot,
        no_new_keyring,
        detach,
        keep,
        id,
    } = options;
    let create = Create {
        bundle: bundle.clone(),
        config: config.clone(),
        pid_file,
        console_socket: console_socket.clone(),
        preserve_fds,
        no_pivot,
        no_new_keyring,
        id,
    };
    let bundle = crate::launch::absolute(&bundle)?;
    let loaded = super::create::load(&bundle, config.as_deref())?;
    let terminal = loaded.0.process.terminal;
    let mut proxy = None;
    let console = match (&console_socket, terminal) {
        (Some(path), _) => Some(super::console_socket(path)?),
        (None, true) if detach => {
            return Err(Error::Usage(
                "a terminal with --detach needs --console-socket".into(),
            ));
        }
        (None, true) => {
            let (ours, theirs) = wire::pair().context(|| "socketpair")?;
            proxy = Some(ours);
            Some(theirs)
        }
        (None, false) => None,
    };
    if detach {
        let (directory, record, launched) =
            super::create::create(root, &create, manager, bundle, loaded, console, true)?;
        let spawner = launched.commit_and_start();
        let started = spawner.and_then(|spawner| super::start::started(&directory, &record, &spawner));
        if started.is_err() {
            // The first error is the one to tell.
            let _ = super::delete::delete(&directory, true);
        }
        return started.map(|()| 0);
    }
    let mut foreground = Foreground::new()?;
    let (directory, record, launched) =
        super::create::create(root, &create, manager, bundle, loaded, console, true)?;
    // Its commitment and the request to start are one message.
    let launched = launched.commit_and_start();
    if let Some(proxy) = proxy {
        let packet = wire::receive(&proxy).context(|| "terminal")?;
        if let Some(master) = packet.and_then(|packet| packet.fds.into_iter().next()) {
            foreground.attach(master)?;
        }
    }
    let started = launched.and_then(|spawner| super::start::started(&directory, &record, &spawner));
    let result = started.and_then(|()| {
        let init = Pid::from_raw(record.init.pid);
        foreground.run(None, |event| match event {
            Event::Signal(libc::SIGCHLD) => loop {
                match rustix::process::wait(WaitOptions::NOHANG) {
                    Ok(Some((pid, status))) if Some(pid) == init => return Ok(Some(status.as_raw())),
                    Ok(Some(_)) | Err(rustix::io::Errno::INTR) => {}
                    Ok(None) | Err(_) => return Ok(None),
                }
            },
            Event::Signal(signal) => {
                // It may just have ended: SIGCHLD comes next.
                let _ = record.init.signal(signal);
                Ok(None)
            }
            Event::Answer => Ok(None),
        })
    });
    drop(foreground);
    if !keep || result.is_err() {
        let lines = match &result {
            Ok(_) => super::delete::finish(&directory, &record)?,
            Err(_) => super::delete::delete(&directory, true)?,
        };
        for line in lines {
            let _ = writeln!(std::io::stderr(), "wherry-runtime: warning: {line}");
        }
    }
    while matches!(rustix::process::wait(WaitOptions::NOHANG), Ok(Some(_))) {}
    result.map(super::exit_code)
}

/// Tells whether stdin is a terminal whose size a container can take over.
pub(super) fn terminal_size() -> Option<crate::config::ConsoleSize> {
    let size = rustix::termios::tcgetwinsize(rustix::stdio::stdin().as_fd()).ok()?;
    Some(crate::config::ConsoleSize {
        height: size.ws_row,
        width: size.ws_col,
    })
}
