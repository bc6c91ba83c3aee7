//! `spec`: a `config.json` to begin with.

use std::io::Write;

use serde_json::{Value, json};

use super::Spec;
use crate::error::{Context, Error};

/// What engines give a container that asks for nothing.
const CAPABILITIES: &[&str] = &["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];

/// Writes `config.json` into the bundle, where there is none yet.
///
/// # Errors
///
/// If there is one, or it cannot be written.
pub fn run(options: &Spec) -> Result<(), Error> {
    let path = options.bundle.join("config.json");
    let what = || path.display().to_string();
    let text = serde_json::to_string_pretty(&document(options.rootless))
        .map_err(|e| Error::Corrupt(e.to_string()))?;
    let mut file = std::fs::File::create_new(&path).context(what)?;
    writeln!(file, "{text}").context(what)
}

fn document(rootless: bool) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let mut namespaces = vec!["pid", "network", "ipc", "uts", "mount", "cgroup"];
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if rootless {
        namespaces.push("user");
    } else {
        terminals.push("gid=5");
    }
    let namespaces: Vec<Value> = namespaces.iter().map(|kind| json!({"type": kind})).collect();
    let mut document = json!({
        "ociVersion": "1.3.0",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm"],
            "cwd": "/",
            "terminal": true,
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "wherry",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", &terminals),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            mount("/sys/fs/cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "maskedPaths": [
                "/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
                "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
                "/sys/devices/virtual/powercap", "/sys/firmware",
            ],
            "readonlyPaths": [
                "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
            ],
        },
    });
    if rootless {
        let own = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        document["linux"]["uidMappings"] = own(rustix::process::geteuid().as_raw());
        document["linux"]["gidMappings"] = own(rustix::process::getegid().as_raw());
    }
    document
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_accepted_without_a_warning() {
        for rootless in [false, true] {
            let text = document(rootless).to_string();
            let (config, warnings) = crate::config::parse(text.as_bytes()).unwrap();
            assert!(warnings.is_empty(), "{warnings:?}");
            let user = config
                .linux
                .namespaces
                .iter()
                .any(|namespace| namespace.kind == "user");
            assert_eq!(user, rootless);
        }
    }

    #[test]
    fn nothing_is_written_over() {
        let bundle = tempfile::tempdir().unwrap();
        let options = Spec {
            bundle: bundle.path().to_owned(),
            rootless: true,
        };
        run(&options).unwrap();
        assert!(run(&options).unwrap_err().to_string().contains("config.json"));
    }
}
