//! `events`: what a container uses, and when the kernel ends a process of it for want of memory.

use std::io::Write;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};
use serde_json::{Value, json};

use super::{Events, pause};
use crate::error::{Context, Error};
use crate::state::{Root, Status};

/// How often a process is looked at where the kernel has no pidfd (before 5.3).
const WITHOUT_PIDFD: Duration = Duration::from_millis(200);

/// Carries out `events`: one JSON document a line, in runc's shape, until the container has ended; with `--stats` one.
///
/// # Errors
///
/// If the container has no process or no cgroup.
pub fn run(root: &Root, options: &Events, out: &mut dyn Write) -> Result<(), Error> {
    let interval = parse_interval(&options.interval).ok_or_else(|| {
        Error::Usage(format!(
            "--interval {:?}: expected a duration above 0, as 5s",
            options.interval
        ))
    })?;
    let directory = root.find(&options.id)?;
    let record = directory.record()?;
    let status = directory.status(record.as_ref());
    let record = match record {
        Some(record) if !matches!(status, Status::Creating | Status::Stopped) => record,
        _ => {
            return Err(Error::Status {
                id: directory.id.clone(),
                verb: "watch",
                status: status.as_str(),
            });
        }
    };
    let cgroup = pause::needed(&record.cgroup, &directory.id, "events")?;
    let mut tell = |kind: &str, data: Option<Value>| -> Result<(), Error> {
        let mut document = json!({"type": kind, "id": directory.id});
        if let Some(data) = data {
            document["data"] = data;
        }
        writeln!(out, "{document}")
            .and_then(|()| out.flush())
            .context(|| "stdout")
    };
    if options.stats {
        return tell("stats", Some(cgroup.stats()));
    }
    let pidfd = Pid::from_raw(record.init.pid)
        .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    let memory = cgroup.memory_events();
    let (mut kills, mut due) = (cgroup.oom_kills(), Instant::now() + interval);
    while record.init.is_alive() {
        let now = cgroup.oom_kills();
        if now > kills {
            tell("oom", None)?;
            kills = now;
        }
        if Instant::now() >= due {
            tell("stats", Some(cgroup.stats()))?;
            due = Instant::now() + interval;
        }
        wait(pidfd.as_ref(), memory.as_ref(), due)?;
    }
    Ok(())
}

/// Waits until the process has ended, the kernel has changed `memory.events`, or it is time for the next statistics.
fn wait(pidfd: Option<&OwnedFd>, memory: Option<&OwnedFd>, due: Instant) -> Result<(), Error> {
    let mut fds: Vec<PollFd<'_>> = Vec::new();
    fds.extend(pidfd.map(|fd| PollFd::new(fd, PollFlags::IN)));
    fds.extend(memory.map(|fd| PollFd::new(fd, PollFlags::PRI)));
    let mut left = due.saturating_duration_since(Instant::now());
    if pidfd.is_none() {
        left = left.min(WITHOUT_PIDFD);
    }
    let left = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(left.subsec_nanos()),
    };
    match rustix::event::poll(&mut fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(e) => Err(e).context(|| "poll"),
    }
}

/// A duration as Go writes it, of one unit: `5s`, `500ms`, `1m`, `1h`.
fn parse_interval(text: &str) -> Option<Duration> {
    let end = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(end);
    let number: u64 = number.parse().ok().filter(|number| *number > 0)?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "m" => number.checked_mul(60).map(Duration::from_secs),
        "h" => number.checked_mul(3600).map(Duration::from_secs),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_as_go_writes_them() {
        for (text, expected) in [
            ("5s", Some(Duration::from_secs(5))),
            ("250ms", Some(Duration::from_millis(250))),
            ("2m", Some(Duration::from_secs(120))),
            ("1h", Some(Duration::from_secs(3600))),
            ("0s", None),
            ("5", None),
            ("s", None),
            ("-1s", None),
            ("5d", None),
            ("99999999999999999999h", None),
            ("18446744073709551615h", None),
        ] {
            assert_eq!(parse_interval(text), expected, "{text}");
        }
    }
}
