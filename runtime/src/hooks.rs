//! Hooks: programs of the bundle's owner, run at points of the lifecycle with the container's state on stdin.

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use crate::config::Hook;
use crate::error::{Context, Error};

/// How often a hook with a timeout is looked at where the kernel has no pidfd.
const LOOK: Duration = Duration::from_millis(20);

/// Runs hooks in order; `state` is the OCI state document.
///
/// # Errors
///
/// The first hook that cannot be run, fails, or takes longer than its timeout; those after it do not run.
pub(crate) fn run(hooks: &[Hook], point: &str, state: &str) -> Result<(), Error> {
    for (index, hook) in hooks.iter().enumerate() {
        let name = format!("config.json: hooks.{point}[{index}]: {}", hook.path);
        run_one(hook, point, &name, state)?;
    }
    Ok(())
}

fn run_one(hook: &Hook, point: &str, name: &str, state: &str) -> Result<(), Error> {
    let failed = |reason: String| Error::Launch {
        code: 1,
        line: format!("{name}: {reason}"),
    };
    if !hook.path.starts_with('/') {
        return Err(failed("expected an absolute path".into()));
    }
    let mut command = Command::new(&hook.path);
    if let Some((first, rest)) = hook.args.split_first() {
        command.arg0(first).args(rest);
    }
    if let Some(env) = &hook.env {
        command.env_clear();
        command.envs(env.iter().filter_map(|variable| variable.split_once('=')));
    }
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .context(|| name.to_owned())?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read its state.
        match stdin.write_all(state.as_bytes()) {
            Err(e) if e.kind() != std::io::ErrorKind::BrokenPipe => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(e).context(|| name.to_owned());
            }
            _ => {}
        }
    }
    if let Some(seconds) = hook.timeout
        && !ends_within(
            &mut child,
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0)),
        )
    {
        let _ = child.kill();
        let _ = child.wait();
        return Err(failed(format!("not done after {seconds} s")));
    }
    let status = child.wait().context(|| name.to_owned())?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => Err(failed(format!("{point} hook failed with exit code {code}"))),
        None => Err(failed(format!("{point} hook: {status}"))),
    }
}

fn ends_within(child: &mut std::process::Child, limit: Duration) -> bool {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let start = std::time::Instant::now();
    loop {
        if !matches!(child.try_wait(), Ok(None)) {
            return true;
        }
        let left = limit.saturating_sub(start.elapsed());
        if left.is_zero() {
            return false;
        }
        let mut fds: Vec<PollFd<'_>> = pidfd.iter().map(|fd| PollFd::new(fd, PollFlags::IN)).collect();
        let nap = if fds.is_empty() { left.min(LOOK) } else { left };
        let nap = Timespec {
            tv_sec: nap.as_secs() as i64,
            tv_nsec: i64::from(nap.subsec_nanos()),
        };
        let _ = rustix::event::poll(&mut fds, Some(&nap));
    }
}

/// Runs all hooks, whatever becomes of those before; the lines of those that failed.
pub(crate) fn run_all(hooks: &[Hook], point: &str, state: &str) -> Vec<String> {
    let mut failed = Vec::new();
    for (index, hook) in hooks.iter().enumerate() {
        let name = format!("config.json: hooks.{point}[{index}]: {}", hook.path);
        if let Err(error) = run_one(hook, point, &name, state) {
            failed.push(error.to_string());
        }
    }
    failed
}
