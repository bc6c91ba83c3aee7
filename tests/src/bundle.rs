//! OCI bundles around busybox, for tests and measurements of the runtime beside its peers: what they are given is what
//! container engines give.

use serde_json::{Value, json};
use std::io::{Error, Result};
use std::path::Path;

/// Where containers-common, which podman brings, keeps docker's default seccomp profile.
pub const PROFILE: &str = "/usr/share/containers/seccomp.json";

/// Docker's default capabilities.
const CAPABILITIES: &[&str] = &[
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
];

/// The programs of busybox that a root has.
const APPLETS: &[&str] = &["sh", "true", "sleep", "cat", "echo", "ls", "id"];

/// Paths that engines hide.
pub const MASKED: &[&str] = &[
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/scsi",
    "/sys/firmware",
];

/// Paths that engines make read-only.
pub const READ_ONLY: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// One mapping: first id inside, first id outside, how many.
pub type Mapping = (u32, u32, u32);

/// Which ids a container has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ids {
    /// Mappings of user ids.
    pub users: Vec<Mapping>,
    /// Mappings of group ids.
    pub groups: Vec<Mapping>,
}

impl Ids {
    /// The caller's own, as root inside.
    pub fn single(uid: u32, gid: u32) -> Self {
        Self {
            users: vec![(0, uid, 1)],
            groups: vec![(0, gid, 1)],
        }
    }

    /// The caller's own and its range of `/etc/subuid` and `/etc/subgid`.
    ///
    /// # Errors
    ///
    /// If the user has no range.
    pub fn range(uid: u32, gid: u32) -> Result<Self> {
        let name = user_name(uid)?;
        let with = |own: u32, file: &str| -> Result<Vec<Mapping>> {
            let text = std::fs::read_to_string(file)?;
            let range = text.lines().find_map(|line| {
                let mut fields = line.strip_prefix(&format!("{name}:"))?.split(':');
                Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
            });
            let (first, count) =
                range.ok_or_else(|| Error::other(format!("{file} gives {name} no range of ids")))?;
            Ok(vec![(0, own, 1), (1, first, count)])
        };
        Ok(Self {
            users: with(uid, "/etc/subuid")?,
            groups: with(gid, "/etc/subgid")?,
        })
    }

    fn is_range(&self) -> bool {
        self.users.iter().any(|(_, _, count)| *count > 5)
    }
}

fn user_name(uid: u32) -> Result<String> {
    std::fs::read_to_string("/etc/passwd")?
        .lines()
        .find(|line| line.split(':').nth(2) == Some(uid.to_string().as_str()))
        .and_then(|line| line.split(':').next().map(str::to_owned))
        .ok_or_else(|| Error::other(format!("/etc/passwd does not name user {uid}")))
}

/// Makes a root file system of busybox at `path`.
///
/// # Errors
///
/// Those of the file system, and if busybox is missing.
pub fn make_root(path: &Path) -> Result<()> {
    for name in ["bin", "etc", "proc", "dev", "sys", "tmp", "data"] {
        std::fs::create_dir_all(path.join(name))?;
    }
    std::fs::copy("/bin/busybox", path.join("bin/busybox"))?;
    for applet in APPLETS {
        std::os::unix::fs::symlink("busybox", path.join("bin").join(applet))?;
    }
    Ok(())
}

/// A configuration that runs `args` in `root`, with the namespaces and mounts that container engines give.
pub fn config(root: &Path, args: &[&str], ids: &Ids) -> Value {
    let mount = |destination: &str, kind: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": kind, "options": options});
    let terminals: &[&str] = if ids.is_range() {
        &[
            "nosuid",
            "noexec",
            "newinstance",
            "ptmxmode=0666",
            "mode=0620",
            "gid=5",
        ]
    } else {
        &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]
    };
    let map = |list: &[Mapping]| -> Vec<Value> {
        list.iter()
            .map(|(inside, outside, count)| json!({"containerID": inside, "hostID": outside, "size": count}))
            .collect()
    };
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": args,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "noNewPrivileges": true,
            "capabilities": {
                "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES,
            },
        },
        "root": {"path": root},
        "hostname": "boat",
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/dev/pts", "devpts", terminals),
            mount("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
            mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "uidMappings": map(&ids.users),
            "gidMappings": map(&ids.groups),
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"},
                {"type": "user"},
            ],
            "maskedPaths": MASKED,
            "readonlyPaths": READ_ONLY,
        },
    })
}

/// Docker's default profile as `linux.seccomp` for [`config`]'s capabilities: the conditions of the file resolved.
///
/// # Errors
///
/// If the file is missing or of another shape.
pub fn default_seccomp() -> Result<Value> {
    let text = std::fs::read_to_string(PROFILE).map_err(|error| {
        Error::other(format!(
            "{PROFILE} (package golang-github-containers-common): {error}"
        ))
    })?;
    let profile: Value = serde_json::from_str(&text)?;
    let machine = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let names = |value: &Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|name| name.as_str().map(str::to_owned)).collect()
    };
    let capable = |name: &String| CAPABILITIES.contains(&name.as_str());
    let mut rules = Vec::new();
    for rule in profile["syscalls"].as_array().into_iter().flatten() {
        let (includes, excludes) = (&rule["includes"], &rule["excludes"]);
        let (with, without) = (names(&includes["caps"]), names(&excludes["caps"]));
        let (on, off) = (names(&includes["arches"]), names(&excludes["arches"]));
        if !with.iter().all(capable)
            || without.iter().any(capable)
            || !(on.is_empty() || on.iter().any(|name| name == machine))
            || off.iter().any(|name| name == machine)
        {
            continue;
        }
        let mut plain = json!({"names": rule["names"], "action": rule["action"]});
        for key in ["args", "errnoRet"] {
            if rule[key].as_array().is_some_and(|list| !list.is_empty()) || rule[key].is_u64() {
                plain[key] = rule[key].clone();
            }
        }
        rules.push(plain);
    }
    let native = format!("SCMP_ARCH_{}", std::env::consts::ARCH.to_uppercase());
    let mut architectures = vec![Value::from(native.clone())];
    for entry in profile["archMap"].as_array().into_iter().flatten() {
        if entry["architecture"] == native.as_str() {
            let others = entry["subArchitectures"].as_array().into_iter().flatten();
            architectures.extend(others.cloned());
        }
    }
    Ok(json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "architectures": architectures,
        "syscalls": rules,
    }))
}
