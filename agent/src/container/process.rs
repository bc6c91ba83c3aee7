//! Processes that are not our children: waiting for their end, and signalling them without hitting another.
//!
//! A pid is only a number that may be given out again. With a pidfd (kernel 5.3) it is pinned; without, the start time
//! from `/proc` is compared before each use.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::thread::sleep;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};

use super::Error;
use super::directory::Directory;
use super::observed::Observed;

/// How often the lock is looked at where there is no pidfd.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// The kernel's random id of this boot.
pub(crate) fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path).map_err(|error| Error::io("read", path, error))?;
    Ok(text.trim().to_owned())
}

/// Random bytes from the kernel.
pub(crate) fn random<const N: usize>() -> Result<[u8; N], Error> {
    let path = Path::new("/dev/urandom");
    let mut bytes = [0; N];
    File::open(path)
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| Error::io("read", path, error))?;
    Ok(bytes)
}

/// The start time of a process in clock ticks since boot, or `None` if there is no such process.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in parentheses, which may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

/// The end of one run of a container: that of its monitor.
#[derive(Debug)]
pub(crate) struct Exit {
    how: How,
}

#[derive(Debug)]
enum How {
    Ended,
    Pidfd(OwnedFd),
    Look(Directory, Observed),
}

impl Exit {
    /// The caller holds the container's lock, so that no other monitor can be started. One whose creator was killed may
    /// be on its way all the same: it holds its lock and is not in the record yet.
    pub(crate) fn of_monitor(dir: &Directory, observed: &Observed) -> Result<Self, Error> {
        let pid = observed.monitor_pid.and_then(Pid::from_raw);
        let opened = pid.map(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        let how = match opened {
            _ if !dir.supervised()? => How::Ended,
            // Still supervised, so what was just opened is the monitor and not a later process of the same number.
            Some(Ok(pidfd)) => How::Pidfd(pidfd),
            Some(Err(_)) | None => How::Look(dir.clone(), observed.clone()),
        };
        Ok(Self { how })
    }

    /// Waits for the end, until `deadline` at the latest. Whether it has come.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> Result<bool, Error> {
        match &self.how {
            How::Ended => Ok(true),
            How::Pidfd(pidfd) => {
                poll_until(pidfd, deadline).map_err(|error| Error::io("watch", Path::new("/proc"), error))
            }
            How::Look(dir, observed) => loop {
                let same = match dir.observed() {
                    Ok(now) => now.is_some_and(|now| now.monitor_pid == observed.monitor_pid),
                    Err(Error::Gone { .. }) => false,
                    Err(error) => return Err(error),
                };
                if !same || !dir.supervised()? {
                    return Ok(true);
                }
                if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                    return Ok(false);
                }
                sleep(LOOK_EVERY);
            },
        }
    }
}

/// Waits until the descriptor is readable.
fn poll_until(fd: &OwnedFd, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        });
        let mut fds = [PollFd::new(fd, PollFlags::IN)];
        match rustix::event::poll(&mut fds, timeout.as_ref()) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The status of a child once it has ended. One that takes longer than `patience` is killed, and there is none.
pub(super) fn wait_child(child: &mut Child, patience: Duration) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + patience;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
    let pidfd = pid.and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
    if let Some(pidfd) = pidfd {
        poll_until(&pidfd, Some(deadline))?;
    }
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            // One that even SIGKILL does not end at once is left to the kernel.
            let _ = child.try_wait();
            return Ok(None);
        }
        sleep(LOOK_EVERY);
    }
}

/// Kills what is left of a container that lost its monitor, and waits for the end. Another process of the same number
/// is left alone. Whether there was anything to kill.
pub(crate) fn kill_leftover(pid: i32, started: u64) -> bool {
    let Some(raw) = Pid::from_raw(pid) else {
        return false;
    };
    let pidfd = rustix::process::pidfd_open(raw, PidfdFlags::empty());
    if start_time(pid) != Some(started) {
        return false;
    }
    match pidfd {
        Ok(pidfd) => {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let _ = poll_until(&pidfd, Instant::now().checked_add(super::KILL_PATIENCE));
        }
        Err(_) => {
            let _ = rustix::process::kill_process(raw, rustix::process::Signal::KILL);
            let deadline = Instant::now() + super::KILL_PATIENCE;
            while start_time(pid) == Some(started) && Instant::now() < deadline {
                sleep(LOOK_EVERY);
            }
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_child_is_waited_for_and_not_for_ever() {
        let mut child = Command::new("false").spawn().unwrap();
        let ended = wait_child(&mut child, Duration::from_secs(60)).unwrap();
        assert_eq!(ended.and_then(|status| status.code()), Some(1));
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        assert!(
            wait_child(&mut child, Duration::from_millis(1))
                .unwrap()
                .is_none()
        );
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn only_the_very_process_is_killed() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let started = start_time(pid).unwrap();
        assert!(!kill_leftover(pid, started + 1));
        assert!(
            child.try_wait().unwrap().is_none(),
            "another start time is another process"
        );
        let reaper = std::thread::spawn(move || child.wait().unwrap());
        assert!(kill_leftover(pid, started));
        assert_eq!(
            std::os::unix::process::ExitStatusExt::signal(&reaper.join().unwrap()),
            Some(9)
        );
    }
}
