//! What cgroup v2 alone has: controllers that are handed down, and events.

use std::collections::BTreeSet;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::Access;

use super::{read, write};

/// The controllers that a directory has.
fn controllers(directory: &Path) -> BTreeSet<String> {
    let text = read(&directory.join("cgroup.controllers")).unwrap_or_default();
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// Has `wanted` handed down to `directory` as far as this process may, and returns what it has then.
pub(super) fn enable(mount: &Path, directory: &Path, wanted: &BTreeSet<&str>) -> BTreeSet<String> {
    let has = controllers(directory);
    if directory == mount || wanted.iter().all(|name| has.contains(*name)) {
        return has;
    }
    let Some(above) = directory.parent() else {
        return has;
    };
    let available = enable(mount, above, wanted);
    // Some controllers could be had even so, but then only threads may be beneath.
    if holds_processes(mount, above) {
        return has;
    }
    let missing = wanted.iter().filter(|name| !has.contains(**name));
    let mut changed = false;
    for name in missing.filter(|name| available.contains(**name)) {
        // One by one: each is refused or granted for itself, and what is missing in the end is told.
        changed |= write(&above.join("cgroup.subtree_control"), &format!("+{name}")).is_ok();
    }
    if changed { controllers(directory) } else { has }
}

/// Whether processes keep a directory from handing down controllers; the top of the hierarchy is free of that rule.
fn holds_processes(mount: &Path, directory: &Path) -> bool {
    directory != mount && read(&directory.join("cgroup.procs")).is_ok_and(|procs| !procs.is_empty())
}

/// Why `directory` does not have a controller, and how to get it.
pub(super) fn missing(mount: &Path, directory: &Path, controller: &str) -> String {
    if !controllers(mount).contains(controller) {
        return match controller {
            "memory" => {
                "the memory controller is off (add cgroup_enable=memory to the kernel command line)".into()
            }
            name => format!("the {name} controller is not in this kernel's cgroup v2"),
        };
    }
    let mut lacking = directory;
    for above in directory.ancestors().skip(1) {
        if controllers(above).contains(controller) {
            let (from, to) = (above.display(), lacking.display());
            return if rustix::fs::access(above.join("cgroup.subtree_control"), Access::WRITE_OK).is_err() {
                format!(
                    "the {controller} controller is not delegated to {to} (in a systemd unit: Delegate=yes; for all of a user's: a drop-in for user@.service with Delegate=cpu cpuset io memory pids)"
                )
            } else if holds_processes(mount, above) {
                format!(
                    "{from} has processes of its own, so it cannot hand the {controller} controller down (start them in a cgroup beneath it)"
                )
            } else {
                format!("the kernel does not hand the {controller} controller from {from} down to {to}")
            };
        }
        lacking = above;
        if above == mount {
            break;
        }
    }
    format!("the {controller} controller is not in {}", mount.display())
}

/// Freezes or thaws, and waits; false if it took longer than `patience`.
pub(super) fn freeze(directory: &Path, frozen: bool, patience: Duration) -> io::Result<bool> {
    write(&directory.join("cgroup.freeze"), if frozen { "1" } else { "0" })?;
    await_event(directory, "frozen", frozen, patience)
}

/// Waits until `cgroup.events` says so; false if it took longer than `patience`. A directory that is gone has neither
/// processes nor anything frozen.
pub(super) fn await_event(directory: &Path, key: &str, wanted: bool, patience: Duration) -> io::Result<bool> {
    let file = match std::fs::File::open(directory.join("cgroup.events")) {
        Err(e) if super::is_missing(&e) => return Ok(!wanted),
        file => file?,
    };
    let deadline = Instant::now() + patience;
    loop {
        let mut text = [0u8; 256];
        let length = match file.read_at(&mut text, 0) {
            Err(e) if super::is_missing(&e) => return Ok(!wanted),
            length => length?,
        };
        let text = String::from_utf8_lossy(text.get(..length).unwrap_or_default());
        if event(&text, key) == Some(wanted) {
            return Ok(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(false);
        }
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        match rustix::event::poll(&mut [PollFd::new(&file, PollFlags::PRI)], Some(&left)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

fn event(text: &str, key: &str) -> Option<bool> {
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| *name == key)
        .map(|(_, value)| value != "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_read_by_name() {
        let text = "populated 1\nfrozen 0\n";
        assert_eq!(event(text, "populated"), Some(true));
        assert_eq!(event(text, "frozen"), Some(false));
        assert_eq!(event(text, "froz"), None);
        assert_eq!(event("", "frozen"), None);
    }

    #[test]
    fn what_is_gone_is_empty() {
        let directory = tempfile::tempdir().unwrap();
        let gone = directory.path().join("gone");
        assert!(await_event(&gone, "populated", false, Duration::ZERO).unwrap());
        assert!(!await_event(&gone, "frozen", true, Duration::ZERO).unwrap());
    }
}
