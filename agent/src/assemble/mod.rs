//! From what a container is meant to be to the bundle that the runtime is given.
//!
//! [`bundle`] is a pure function: the same [`Spec`], user, layers and board give the same `config.json`, byte for byte.
//! What needs looking at a disk is done before: [`Host::read`] for the board's own facts, [`find_user`] in the image's
//! `/etc/passwd`. The runtime enforces what is written here and invents nothing.
//!
//! A single id exists in the container, mapped to the user who runs wherry: the root user, or the image's `USER` under
//! its own number. Everything in the image appears to belong to it.

mod capabilities;
mod image;
mod network;
mod security;
mod user;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use wherry_images::manifest::Empty;

use crate::container::{Id, Mount, Network, Source, Spec};
use crate::devices::Edits;

pub use image::{argv, merge_env, parse_env_file};
pub use network::Host;
pub use security::Security;
pub use user::{User, find_user};

/// The search path of a container that is not given one: docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's size of `/dev` and `/dev/shm`.
const DEV_SIZE: &str = "size=65536k";

/// What shows the board or changes it, hidden: docker's list.
const MASKED: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
];
/// What may be seen and not changed: docker's list.
const READONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Why a bundle cannot be assembled.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Neither the image nor the caller says what to run.
    #[error("image {0} names no command; give one after the image")]
    NoCommand(String),
    /// The user is not in the image's own list.
    #[error("user {user:?}: not in {file} of the image; use a number")]
    UnknownUser {
        /// As it was asked for.
        user: String,
        /// Where it was looked for.
        file: &'static str,
    },
    /// The image's list of users cannot be read.
    #[error("cannot read {file} of the image")]
    UserFile {
        /// Which list.
        file: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// A capability that does not exist.
    #[error("capability {0:?} does not exist; see capabilities(7)")]
    UnknownCapability(String),
    /// A path that the runtime's configuration cannot express.
    #[error("path {0:?} is not UTF-8; rename it")]
    NotUtf8(PathBuf),
    /// A value of the image that cannot be honoured.
    #[error("image {image}: {what}")]
    Image {
        /// As it was asked for.
        image: String,
        /// What is wrong.
        what: String,
    },
    /// A value that the caller gave.
    #[error("{0}")]
    Value(String),
    /// A fact about the board cannot be read.
    #[error("cannot read {path}")]
    Host {
        /// Where it stands.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
}

/// All that a bundle is made of.
#[derive(Debug)]
pub struct Input<'a> {
    /// The container.
    pub id: &'a Id,
    /// What it is meant to be.
    pub spec: &'a Spec,
    /// The directories that the image wants to be writable.
    pub volumes: &'a BTreeMap<String, Empty>,
    /// The one user in the container.
    pub user: &'a User,
    /// The unpacked layers, lowest first.
    pub layers: &'a [PathBuf],
    /// The container's directory, absolute.
    pub directory: &'a Path,
    /// The board.
    pub host: &'a Host,
    /// What its devices need.
    pub devices: &'a Edits,
}

/// What to write into the container's directory.
#[derive(Debug, PartialEq, Eq)]
pub struct Bundle {
    /// Directories to make, relative.
    pub directories: Vec<PathBuf>,
    /// Files to write, relative; `bundle/config.json` among them.
    pub files: Vec<(&'static str, String)>,
}

/// Assembles the bundle.
pub fn bundle(input: &Input<'_>) -> Result<Bundle, Error> {
    let spec = input.spec;
    let hostname = match (spec.hostname.as_str(), spec.network) {
        ("", Network::Host) => input.host.name.clone(),
        ("", _) => input.id.short(),
        (name, _) => name.to_owned(),
    };
    let mut directories = Vec::new();
    let mounts = mounts(input, &mut directories)?;
    let sets = capabilities::sets(spec, input.user.uid)?;
    let mut namespaces: Vec<Value> = ["user", "pid", "mount", "ipc", "uts", "cgroup"]
        .map(|kind| json!({ "type": kind }))
        .into();
    if spec.network != Network::Host {
        namespaces.push(json!({ "type": "network" }));
    }
    let mut config = json!({
        "ociVersion": "1.2.0",
        "process": {
            "terminal": spec.tty,
            "user": { "uid": input.user.uid, "gid": input.user.gid },
            "args": spec.args,
            "env": environment(input, &hostname),
            "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
            "capabilities": sets,
            "noNewPrivileges": true,
        },
        "root": { "path": text(&input.directory.join("rootfs"))?, "readonly": spec.readonly_root },
        "hostname": hostname,
        "mounts": mounts,
        "linux": {
            "uidMappings": [{ "containerID": input.user.uid, "hostID": input.host.uid, "size": 1 }],
            "gidMappings": [{ "containerID": input.user.gid, "hostID": input.host.gid, "size": 1 }],
            "namespaces": namespaces,
            "maskedPaths": MASKED,
            "readonlyPaths": READONLY,
        },
    });
    if let Some(resources) = spec.limits.resources() {
        config["linux"]["resources"] = resources;
    }
    let rlimits = spec.limits.rlimits();
    if !rlimits.is_empty() {
        config["process"]["rlimits"] = Value::from(rlimits);
    }
    if let Some(score) = spec.limits.oom_score_adj {
        config["process"]["oomScoreAdj"] = score.into();
    }
    if spec.network == Network::Host && !spec.ports.is_empty() {
        let ports: Vec<String> = spec
            .ports
            .iter()
            .map(|port| port.container_port.to_string())
            .collect();
        config["annotations"]["dev.wherry.ports"] = ports.join(",").into();
    }
    let bounding: Vec<String> =
        serde_json::from_value(config["process"]["capabilities"]["bounding"].clone()).unwrap_or_default();
    spec.security.apply(&mut config, &bounding, &input.host.machine)?;
    devices(input.devices, &mut config)?;
    let files = vec![
        ("etc/hostname", format!("{hostname}\n")),
        (
            "etc/hosts",
            network::hosts(input.host, spec, &hostname, input.id)?,
        ),
        ("etc/resolv.conf", network::resolv_conf(input.host, spec.network)),
        ("bundle/config.json", format!("{config:#}\n")),
    ];
    Ok(Bundle { directories, files })
}

/// Adds what devices need. A node is bound from the board's: a node cannot be made without privileges.
fn devices(edits: &Edits, config: &mut Value) -> Result<(), Error> {
    let mut add = |place: &[&str], values: Vec<Value>| {
        if values.is_empty() {
            return;
        }
        let mut at = &mut *config;
        for name in place {
            at = &mut at[*name];
        }
        match at {
            Value::Array(list) => list.extend(values),
            other => *other = values.into(),
        }
    };
    add(
        &["process", "env"],
        edits.env.iter().map(|line| Value::from(line.as_str())).collect(),
    );
    let mut mounts = edits.mounts.clone();
    for (host, container) in &edits.nodes {
        mounts.push(json!({
            "destination": container, "type": "bind", "source": text(host)?, "options": ["bind", "rprivate", "nosuid", "noexec"],
        }));
    }
    add(&["mounts"], mounts);
    for (name, hook) in &edits.hooks {
        add(&["hooks", name], vec![hook.clone()]);
    }
    add(
        &["process", "user", "additionalGids"],
        edits.groups.iter().map(|gid| Value::from(*gid)).collect(),
    );
    if let Some(rdt) = &edits.rdt {
        config["linux"]["intelRdt"] = rdt.clone();
    }
    Ok(())
}

/// Docker's order: what the runtime gives, then what the image and the caller say, then the home directory.
fn environment(input: &Input<'_>, hostname: &str) -> Vec<String> {
    let spec = input.spec;
    let missing = |name: &str| !spec.env.iter().any(|(known, _)| known == name);
    let mut env = Vec::new();
    let mut default = |name: &str, value: &str| {
        if missing(name) {
            env.push(format!("{name}={value}"));
        }
    };
    default("PATH", DEFAULT_PATH);
    default("HOSTNAME", hostname);
    if spec.tty {
        default("TERM", "xterm");
    }
    env.extend(spec.env.iter().map(|(name, value)| format!("{name}={value}")));
    if missing("HOME") {
        env.push(format!("HOME={}", input.user.home));
    }
    env
}

fn mounts(input: &Input<'_>, directories: &mut Vec<PathBuf>) -> Result<Vec<Value>, Error> {
    let spec = input.spec;
    let mount = |target: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": target, "type": kind, "source": source, "options": options });
    let mut mounts = vec![
        overlay(input, directories)?,
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", DEV_SIZE],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["ro", "nosuid", "noexec", "nodev"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", DEV_SIZE],
        ),
    ];
    for name in ["resolv.conf", "hostname", "hosts"] {
        let source = text(&input.directory.join("etc").join(name))?;
        mounts.push(mount(
            &format!("/etc/{name}"),
            "bind",
            &source,
            &["rbind", "rprivate"],
        ));
    }
    for Mount {
        source,
        target,
        readonly,
    } in &spec.mounts
    {
        // A mount of the caller takes the place of one of ours at the same target.
        mounts.retain(|known| known["destination"] != target.as_str());
        let mode = if *readonly { "ro" } else { "rw" };
        mounts.push(match source {
            Source::Bind(path) => mount(target, "bind", &text(path)?, &["rbind", "rprivate", mode]),
            Source::Tmpfs { size } => {
                let size = size.map(|size| format!("size={size}"));
                let mut options = vec!["nosuid", "nodev", "noexec", "mode=1777", mode];
                options.extend(size.as_deref());
                mount(target, "tmpfs", "tmpfs", &options)
            }
        });
    }
    if spec.readonly_root {
        volumes(input, directories, &mut mounts)?;
    }
    Ok(mounts)
}

/// The layers, and above them the container's own directory. A layer that occurs twice counts where it is higher, since
/// the kernel refuses one directory as two lower ones.
fn overlay(input: &Input<'_>, directories: &mut Vec<PathBuf>) -> Result<Value, Error> {
    let mut lower: Vec<String> = Vec::new();
    for layer in input.layers.iter().rev() {
        let layer = text(layer)?.replace('\\', "\\\\").replace(':', "\\:");
        if !lower.contains(&layer) {
            lower.push(layer);
        }
    }
    if lower.is_empty() {
        directories.push("empty".into());
        lower.push(
            text(&input.directory.join("empty"))?
                .replace('\\', "\\\\")
                .replace(':', "\\:"),
        );
    }
    Ok(json!({
        "destination": "/",
        "type": "overlay",
        "source": "overlay",
        "options": [
            format!("lowerdir={}", lower.join(":")),
            format!("upperdir={}", text(&input.directory.join("upper"))?),
            format!("workdir={}", text(&input.directory.join("work"))?),
        ],
    }))
}

/// Beneath a read-only root each of the image's volumes is a directory that lives as long as the container. Otherwise
/// they are part of the writable root, where the image's own content is seen.
fn volumes(input: &Input<'_>, directories: &mut Vec<PathBuf>, mounts: &mut Vec<Value>) -> Result<(), Error> {
    for (number, target) in input.volumes.keys().enumerate() {
        let image = || input.spec.image_name.clone();
        if !target.starts_with('/')
            || target.split('/').any(|part| part == "..")
            || target.trim_matches('/').is_empty()
        {
            return Err(Error::Image {
                image: image(),
                what: format!("volume {target:?} is not a path below /"),
            });
        }
        if mounts.iter().any(|mount| mount["destination"] == target.as_str()) {
            continue;
        }
        let directory = Path::new("volumes").join(number.to_string());
        let source = text(&input.directory.join(&directory))?;
        mounts.push(json!({
            "destination": target, "type": "bind", "source": source, "options": ["rbind", "rprivate", "rw"],
        }));
        directories.push(directory);
    }
    Ok(())
}

fn text(path: &Path) -> Result<String, Error> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::NotUtf8(path.to_owned()))
}

#[cfg(test)]
mod tests;
