//! What a container uses, in the shape of `runc events`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde_json::{Value, json};

use super::{Cgroup, read};

/// Nanoseconds in a microsecond, in which cgroup v2 counts.
const MICROSECOND: u64 = 1000;

/// No limit, as runc writes it.
const UNLIMITED: u64 = u64::MAX;

impl Cgroup {
    /// The directory that a controller's files are in, and whether it is of the unified hierarchy.
    fn directory_of(&self, controller: &str) -> Option<(&Path, bool)> {
        match self.legacy.get(controller) {
            Some(path) => Some((path, false)),
            None => self.unified.as_deref().map(|path| (path, true)),
        }
    }

    /// The statistics. What no controller counts is 0.
    pub(crate) fn stats(&self) -> Value {
        json!({
            "cpu": self.cpu(),
            "memory": self.memory(),
            "pids": self.pids(),
            "blkio": self.blkio(),
            "hugetlb": {},
            "intel_rdt": {},
            "network_interfaces": null,
        })
    }

    fn cpu(&self) -> Value {
        let (time, throttled) = match self.directory_of("cpu") {
            // cgroup v2 counts processor time without a controller, too.
            _ if self.unified.is_some() => {
                let path = self.unified.as_deref().unwrap_or(Path::new(""));
                let stat = keyed(&path.join("cpu.stat"));
                let of = |key: &str| stat.get(key).copied().unwrap_or(0);
                let micro = |key: &str| of(key).saturating_mul(MICROSECOND);
                let time = (micro("usage_usec"), micro("system_usec"), micro("user_usec"));
                (
                    time,
                    (of("nr_periods"), of("nr_throttled"), micro("throttled_usec")),
                )
            }
            Some((path, _)) => {
                let stat = keyed(&path.join("cpu.stat"));
                let of = |key: &str| stat.get(key).copied().unwrap_or(0);
                let throttled = (of("nr_periods"), of("nr_throttled"), of("throttled_time"));
                ((number(&path.join("cpuacct.usage")), 0, 0), throttled)
            }
            None => ((0, 0, 0), (0, 0, 0)),
        };
        json!({
            "usage": {"total": time.0, "percpu": [], "percpu_kernel": [], "percpu_user": [], "kernel": time.1, "user": time.2},
            "throttling": {"periods": throttled.0, "throttledPeriods": throttled.1, "throttledTime": throttled.2},
        })
    }

    fn memory(&self) -> Value {
        let Some((path, unified)) = self.directory_of("memory") else {
            return json!({});
        };
        let raw = keyed(&path.join("memory.stat"));
        let entry = |usage: &str, limit: &str, max: &str, failures: u64| {
            json!({
                "limit": number(&path.join(limit)), "usage": number(&path.join(usage)),
                "max": number(&path.join(max)), "failcnt": failures,
            })
        };
        let of = |key: &str| raw.get(key).copied().unwrap_or(0);
        if unified {
            let failures = keyed(&path.join("memory.events"))
                .get("max")
                .copied()
                .unwrap_or(0);
            let memory = entry("memory.current", "memory.max", "memory.peak", failures);
            // runc counts swap as cgroup v1 does: together with memory.
            let sum = |swap: &str, memory: &str| {
                number(&path.join(swap)).saturating_add(number(&path.join(memory)))
            };
            let swap = json!({
                "limit": sum("memory.swap.max", "memory.max"),
                "usage": sum("memory.swap.current", "memory.current"),
                "max": sum("memory.swap.peak", "memory.peak"), "failcnt": 0,
            });
            return json!({
                "cache": of("file"), "usage": memory, "swap": swap, "kernel": {"failcnt": 0, "limit": 0},
                "kernelTCP": {"failcnt": 0, "limit": 0}, "raw": raw,
            });
        }
        let of_v1 = |part: &str| {
            let name = |file: &str| format!("memory.{part}{file}");
            let failures = number(&path.join(name("failcnt")));
            entry(
                &name("usage_in_bytes"),
                &name("limit_in_bytes"),
                &name("max_usage_in_bytes"),
                failures,
            )
        };
        json!({
            "cache": of("cache"), "usage": of_v1(""), "swap": of_v1("memsw."), "kernel": of_v1("kmem."),
            "kernelTCP": of_v1("kmem.tcp."), "raw": raw,
        })
    }

    fn pids(&self) -> Value {
        let Some((path, _)) = self.directory_of("pids") else {
            return json!({});
        };
        let limit = match number(&path.join("pids.max")) {
            UNLIMITED => 0,
            limit => limit,
        };
        let current = match read(&path.join("pids.current")) {
            Ok(text) => text.trim().parse().unwrap_or(0),
            // Without the controller nobody counts threads; the processes can be.
            Err(_) => self.processes().map_or(0, |found| found.len() as u64),
        };
        json!({"current": current, "limit": limit})
    }

    fn blkio(&self) -> Value {
        let (mut bytes, mut operations) = (Vec::new(), Vec::new());
        match self.directory_of("blkio") {
            Some((path, true)) => {
                let text = read(&path.join("io.stat")).unwrap_or_default();
                for (major, minor, key, value) in io_stat(&text) {
                    let (list, op) = match key {
                        "rbytes" => (&mut bytes, "Read"),
                        "wbytes" => (&mut bytes, "Write"),
                        "rios" => (&mut operations, "Read"),
                        "wios" => (&mut operations, "Write"),
                        _ => continue,
                    };
                    list.push(json!({"major": major, "minor": minor, "op": op, "value": value}));
                }
            }
            Some((path, false)) => {
                for (list, file) in [
                    (&mut bytes, "blkio.throttle.io_service_bytes_recursive"),
                    (&mut operations, "blkio.throttle.io_serviced_recursive"),
                ] {
                    for line in read(&path.join(file)).unwrap_or_default().lines() {
                        let fields: Vec<&str> = line.split([' ', ':']).collect();
                        if let [major, minor, op, value] = fields[..]
                            && let (Ok(major), Ok(minor), Ok(value)) =
                                (major.parse::<u64>(), minor.parse::<u64>(), value.parse::<u64>())
                        {
                            list.push(json!({"major": major, "minor": minor, "op": op, "value": value}));
                        }
                    }
                }
            }
            None => {}
        }
        json!({"ioServiceBytesRecursive": bytes, "ioServicedRecursive": operations})
    }

    /// How many processes the kernel has ended for want of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        self.oom_file()
            .and_then(|path| keyed(&path).get("oom_kill").copied())
            .unwrap_or(0)
    }

    fn oom_file(&self) -> Option<PathBuf> {
        self.directory_of("memory").map(|(path, unified)| {
            path.join(if unified {
                "memory.events"
            } else {
                "memory.oom_control"
            })
        })
    }

    /// A descriptor with an event when `memory.events` has changed; v1 has none.
    pub(crate) fn memory_events(&self) -> Option<OwnedFd> {
        let path = self.unified.as_ref()?.join("memory.events");
        rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()
    }
}

/// A file of one number; `max` is [`UNLIMITED`], and 0 what is not there.
fn number(path: &Path) -> u64 {
    match read(path).as_deref().map(str::trim) {
        Ok("max") => UNLIMITED,
        Ok(text) => text.parse().unwrap_or(0),
        Err(_) => 0,
    }
}

/// A file with a name and a number in each line.
fn keyed(path: &Path) -> BTreeMap<String, u64> {
    let text = read(path).unwrap_or_default();
    let pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs
        .filter_map(|(key, value)| Some((key.to_owned(), value.trim().parse().ok()?)))
        .collect()
}

/// `8:0 rbytes=1 wbytes=2 ...`: major, minor, key, value.
fn io_stat(text: &str) -> Vec<(u64, u64, &str, u64)> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut fields = line.split_ascii_whitespace();
        let device = fields.next().and_then(|device| device.split_once(':'));
        let Some((Ok(major), Ok(minor))) = device.map(|(major, minor)| (major.parse(), minor.parse())) else {
            continue;
        };
        for (key, value) in fields.filter_map(|field| field.split_once('=')) {
            if let Ok(value) = value.parse() {
                found.push((major, minor, key, value));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn io_of_each_device() {
        let text = "8:0 rbytes=10 wbytes=20 rios=1 wios=x\n254:1\nbad rbytes=1\n";
        assert_eq!(
            io_stat(text),
            [(8, 0, "rbytes", 10), (8, 0, "wbytes", 20), (8, 0, "rios", 1)]
        );
    }

    #[test]
    fn files_become_runcs_document() {
        let directory = tempfile::tempdir().unwrap();
        for (name, text) in [
            (
                "cpu.stat",
                "usage_usec 7\nuser_usec 5\nsystem_usec 2\nnr_throttled 3\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.max", "max\n"),
            ("memory.stat", "anon 1\nfile 2\n"),
            ("memory.events", "low 0\nmax 9\noom_kill 4\n"),
            ("pids.current", "2\n"),
            ("pids.max", "max\n"),
            ("io.stat", "8:0 rbytes=10 wios=1\n"),
        ] {
            std::fs::write(directory.path().join(name), text).unwrap();
        }
        let cgroup = Cgroup {
            unified: Some(directory.path().to_owned()),
            ..Cgroup::default()
        };
        let stats = cgroup.stats();
        for (pointer, expected) in [
            ("/cpu/usage/total", json!(7000)),
            ("/cpu/usage/kernel", json!(2000)),
            ("/cpu/throttling/throttledPeriods", json!(3)),
            ("/memory/usage/usage", json!(4096)),
            ("/memory/usage/limit", json!(u64::MAX)),
            ("/memory/usage/failcnt", json!(9)),
            ("/memory/cache", json!(2)),
            ("/memory/raw/anon", json!(1)),
            ("/pids/current", json!(2)),
            ("/pids/limit", json!(0)),
            (
                "/blkio/ioServiceBytesRecursive/0",
                json!({"major": 8, "minor": 0, "op": "Read", "value": 10}),
            ),
        ] {
            assert_eq!(stats.pointer(pointer), Some(&expected), "{pointer}: {stats}");
        }
        assert_eq!(cgroup.oom_kills(), 4);
        assert_eq!(Cgroup::default().oom_kills(), 0);
    }
}
