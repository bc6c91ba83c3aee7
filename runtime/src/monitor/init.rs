//! What the kernel tells about the container's first process.

use std::fs;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::process::{Pid, WaitStatus};

use super::verb::PID_FILE;

/// Where cgroup v2 is mounted, alone or beside v1.
const CGROUP_MOUNTS: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// The container's first process, a child of the monitor.
#[derive(Debug)]
pub(crate) struct Init {
    pub(crate) pid: Pid,
    /// Its start in clock ticks since boot, which tells it from a later process with the same id.
    pub(crate) start: u64,
    /// How it ended, once it has been reaped.
    pub(crate) status: Option<WaitStatus>,
    /// `memory.events` of a cgroup of its own.
    memory_events: Option<fs::File>,
}

impl Init {
    /// Takes the process whose id `create` left in the pid file, and removes the file.
    pub(crate) fn take(directory: &OwnedFd) -> Result<Self, String> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let mut text = String::new();
        rustix::fs::openat(directory, PID_FILE, flags, Mode::empty())
            .map_err(std::io::Error::from)
            .and_then(|file| fs::File::from(file).take(32).read_to_string(&mut text))
            .map_err(|error| format!("the runtime's pid file: {error}"))?;
        let _ = rustix::fs::unlinkat(directory, PID_FILE, AtFlags::empty());
        let pid = text
            .trim()
            .parse()
            .ok()
            .filter(|pid| *pid > 1)
            .and_then(Pid::from_raw);
        let pid = pid.ok_or_else(|| format!("the runtime's pid file holds {text:?}"))?;
        let number = pid.as_raw_nonzero().get();
        let stat = fs::read(format!("/proc/{number}/stat")).unwrap_or_default();
        let start =
            start_ticks(&stat).ok_or_else(|| format!("the runtime's process {number} is not there"))?;
        Ok(Self {
            pid,
            start,
            status: None,
            memory_events: memory_events(number),
        })
    }

    /// Whether the kernel's out-of-memory killer ended a process of the container. Without a cgroup v2 of the
    /// container's own nobody can tell, and the answer is no.
    pub(crate) fn oom_killed(&self) -> bool {
        let mut text = [0u8; 512];
        let length = self
            .memory_events
            .as_ref()
            .and_then(|file| file.read_at(&mut text, 0).ok());
        length.is_some_and(|length| oom_kills(&text[..length]) > 0)
    }
}

/// The boot that process ids and start times belong to.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Field 22 of `/proc/PID/stat`. The command's name, field 2, may hold any byte.
fn start_ticks(stat: &[u8]) -> Option<u64> {
    let name_end = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(stat.get(name_end + 1..)?).ok()?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Opens what counts the killer's victims in the process's cgroup, unless the monitor is in the same one:
/// `memory.events`, or in cgroup v1 `memory.oom_control`.
fn memory_events(pid: i32) -> Option<fs::File> {
    let container = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
    let own = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path_of = |list: &str| path_in(&container, list).filter(|path| path_in(&own, list) != Some(*path));
    let unified = path_of("").and_then(|path| {
        CGROUP_MOUNTS
            .iter()
            .find_map(|mount| fs::File::open(format!("{mount}{path}/memory.events")).ok())
    });
    unified.or_else(|| {
        let path = path_of("memory")?;
        fs::File::open(format!("{}/memory{path}/memory.oom_control", CGROUP_MOUNTS[0])).ok()
    })
}

/// The path in a hierarchy, from the text of `/proc/PID/cgroup`: that of a controller, or without one that of cgroup v2.
fn path_in<'a>(text: &'a str, controller: &str) -> Option<&'a str> {
    text.lines().find_map(|line| {
        let (_, rest) = line.split_once(':')?;
        let (list, path) = rest.split_once(':')?;
        list.split(',').any(|name| name == controller).then_some(path)
    })
}

/// The number of `oom_kill` in the text of `memory.events`.
fn oom_kills(text: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(text);
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    value.and_then(|value| value.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_time_is_found_behind_any_name() {
        let tail = b" S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 987654 20";
        for name in [&b"sh"[..], b"a b", b") S 1", b"\xff\n("] {
            let stat = [b"42 (", name, b")", tail].concat();
            assert_eq!(start_ticks(&stat), Some(987_654), "{name:?}");
        }
        for stat in [&b""[..], b"42", b"42 (sh", b"42 (sh)", b"42 (sh) S 1 2"] {
            assert_eq!(start_ticks(stat), None, "{stat:?}");
        }
        assert!(start_ticks(&fs::read("/proc/self/stat").unwrap()).is_some());
    }

    #[test]
    fn kills_are_counted_from_memory_events() {
        let table = [
            ("low 0\nhigh 0\nmax 12\noom 1\noom_kill 3\noom_group_kill 0\n", 3),
            ("low 0\noom 1\noom_kill 0\n", 0),
            ("oom_kill_disable 0\nunder_oom 0\noom_kill 2\n", 2),
            ("oom_kill x\n", 0),
            ("", 0),
        ];
        for (text, expected) in table {
            assert_eq!(oom_kills(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn a_hierarchy_is_found_among_others() {
        let text = "9:cpu,cpuacct:/a\n4:memory:/b:c\n0::/c/d\n";
        for (controller, path) in [
            ("", Some("/c/d")),
            ("memory", Some("/b:c")),
            ("cpuacct", Some("/a")),
            ("pids", None),
        ] {
            assert_eq!(path_in(text, controller), path, "{controller}");
        }
        assert_eq!(path_in("9:cpu:/a\n", ""), None);
    }
}
