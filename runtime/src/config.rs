//! `config.json`: the fields this runtime honours, and the names of those it does not.
//!
//! The types below hold exactly what is honoured. Whatever else a bundle says is found by the parser itself and becomes a
//! warning by name that `state` repeats, or an error where it cannot be left out; SPEC.md lists every field. Empty values ask
//! for nothing and pass. The bundle is hostile input: its size is bounded before it is read.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cgroup::Resources;
use crate::error::Error;

/// The largest `config.json` that is read. Podman's, with its seccomp profile, is 80 KB.
pub const MAX_BYTES: u64 = 4 << 20;

/// The whole document.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Config {
    /// Version of the runtime specification the bundle was made for.
    pub oci_version: String,
    /// What `start` runs.
    pub process: Process,
    /// The root filesystem.
    pub root: Root,
    /// Host name in the container's UTS namespace.
    pub hostname: Option<String>,
    /// NIS domain name in the container's UTS namespace.
    pub domainname: Option<String>,
    /// Mounts, in order.
    pub mounts: Vec<Mount>,
    /// Programs that run at points of the lifecycle.
    pub hooks: Hooks,
    /// Free data; keys below `dev.wherry.` steer this runtime.
    pub annotations: BTreeMap<String, String>,
    /// Linux's part.
    pub linux: Linux,
}

/// A process to run in the container.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Process {
    /// Give it a terminal.
    pub terminal: bool,
    /// The terminal's first size.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub console_size: Option<ConsoleSize>,
    /// Who it runs as, inside the user namespace.
    pub user: User,
    /// Program and arguments.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// Capability sets; absent means none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub capabilities: Option<CapabilitySets>,
    /// Resource limits.
    pub rlimits: Vec<Rlimit>,
    /// Set `no_new_privs`.
    pub no_new_privileges: bool,
    /// AppArmor profile to enter at exec.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor_profile: Option<String>,
    /// Badness for the out-of-memory killer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// How it shares processors.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scheduler: Option<Scheduler>,
    /// How it shares block devices.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_priority: Option<IoPriority>,
    /// Processors of processes of `exec`.
    #[serde(rename = "execCPUAffinity", skip_serializing_if = "Option::is_none")]
    pub exec_cpu_affinity: Option<Affinity>,
    /// SELinux's label of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selinux_label: Option<String>,
}

/// Scheduling policy, as sched_setattr(2) has it.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Scheduler {
    /// `SCHED_OTHER` and so on.
    pub policy: String,
    /// -20 to 19.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub nice: Option<i32>,
    /// Of real-time policies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// `SCHED_FLAG_*`.
    pub flags: Vec<String>,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub runtime: Option<u64>,
    /// Nanoseconds, of `SCHED_DEADLINE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<u64>,
    /// Nanoseconds, of `SCHED_DEADLINE`; 0 is the deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
}

/// I/O priority.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct IoPriority {
    /// `IOPRIO_CLASS_RT`, `IOPRIO_CLASS_BE` or `IOPRIO_CLASS_IDLE`.
    pub class: String,
    /// 0 to 7.
    pub priority: i32,
}

/// Processors of a process of `exec`, as `0-2,4`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Affinity {
    /// From its start on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial: Option<String>,
    /// From its program on.
    #[serde(rename = "final", skip_serializing_if = "Option::is_none")]
    pub last: Option<String>,
}

/// Execution domain.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Personality {
    /// `LINUX` or `LINUX32`.
    pub domain: String,
    /// The specification names none yet.
    pub flags: Vec<String>,
}

/// Where memory comes from on machines with several nodes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct MemoryPolicy {
    /// `MPOL_*`.
    pub mode: String,
    /// Nodes, as `0-2,4`.
    pub nodes: String,
    /// `MPOL_F_*`.
    pub flags: Vec<String>,
}

/// How far a clock of a time namespace is ahead.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[serde(default)]
pub struct TimeOffset {
    /// Seconds.
    pub secs: i64,
    /// Nanoseconds.
    pub nanosecs: u32,
}

/// Rows and columns.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct ConsoleSize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// Ids inside the user namespace.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// File mode creation mask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u32>,
    /// Supplementary groups.
    pub additional_gids: Vec<u32>,
}

/// Capability names (`CAP_KILL`) of the five sets.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CapabilitySets {
    /// What no program may ever gain.
    pub bounding: Vec<String>,
    /// In force.
    pub effective: Vec<String>,
    /// Kept over an exec by file capabilities.
    pub inheritable: Vec<String>,
    /// May be made effective.
    pub permitted: Vec<String>,
    /// Kept over an exec.
    pub ambient: Vec<String>,
}

/// One resource limit.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE` and so on.
    #[serde(rename = "type")]
    pub kind: String,
    /// The limit in force.
    pub soft: u64,
    /// The highest it can be raised to.
    pub hard: u64,
}

/// The root filesystem.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Root {
    /// Directory, absolute or relative to the bundle.
    pub path: String,
    /// Mounted read-only.
    pub readonly: bool,
}

/// One mount.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Mount {
    /// Path inside the container.
    pub destination: String,
    /// Filesystem type; `bind` or empty for bind mounts.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Device or host path, relative to the bundle.
    pub source: Option<String>,
    /// Options as in fstab.
    pub options: Vec<String>,
    /// User ids of an id-mapped mount.
    #[serde(rename = "uidMappings")]
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of an id-mapped mount.
    #[serde(rename = "gidMappings")]
    pub gid_mappings: Vec<IdMapping>,
}

/// Hooks by their point of the lifecycle.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Hooks {
    /// Deprecated; with `createRuntime`.
    pub prestart: Vec<Hook>,
    /// In the runtime's namespaces, when the container's exist and before its root is entered.
    pub create_runtime: Vec<Hook>,
    /// In the container's namespaces, before its root is entered.
    pub create_container: Vec<Hook>,
    /// In the container, before its program.
    pub start_container: Vec<Hook>,
    /// In the runtime's namespaces, after `start`.
    pub poststart: Vec<Hook>,
    /// In the runtime's namespaces, after `delete`.
    pub poststop: Vec<Hook>,
}

/// One program to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Hook {
    /// Absolute path.
    pub path: String,
    /// Argument vector with its name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment; absent: that of the runtime.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<Vec<String>>,
    /// Seconds after which it is killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<i64>,
}

/// Linux's part of the document.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    /// User ids of a new user namespace.
    pub uid_mappings: Vec<IdMapping>,
    /// Group ids of a new user namespace.
    pub gid_mappings: Vec<IdMapping>,
    /// Kernel parameters of the new namespaces.
    pub sysctl: BTreeMap<String, String>,
    /// Where the container's cgroup shall be.
    pub cgroups_path: Option<String>,
    /// Limits.
    pub resources: Option<Resources>,
    /// Namespaces, new ones or joined by path.
    pub namespaces: Vec<Namespace>,
    /// Device nodes besides the default ones.
    pub devices: Vec<Device>,
    /// System call filter; absent means the built-in one.
    pub seccomp: Option<Seccomp>,
    /// Propagation of the root mount.
    pub rootfs_propagation: Option<String>,
    /// Paths hidden from the container.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Execution domain of all processes.
    pub personality: Option<Personality>,
    /// Memory policy of all processes.
    pub memory_policy: Option<MemoryPolicy>,
    /// Clocks of a new time namespace.
    pub time_offsets: BTreeMap<String, TimeOffset>,
    /// SELinux's label of mounts.
    pub mount_label: Option<String>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct IdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id outside.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// A namespace.
#[derive(Debug, Clone, Deserialize)]
pub struct Namespace {
    /// `pid`, `network`, `mount`, `ipc`, `uts`, `user`, `cgroup`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Join this one; absent means a new one.
    #[serde(default)]
    pub path: Option<String>,
}

/// A device node.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Device {
    /// `c`, `b`, `u` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Path inside, and on the host where nodes cannot be made.
    pub path: String,
    /// Major number.
    pub major: Option<i64>,
    /// Minor number.
    pub minor: Option<i64>,
    /// Mode of a node that is made.
    pub file_mode: Option<u32>,
    /// Owner of a node that is made.
    pub uid: Option<u32>,
    /// Group of a node that is made.
    pub gid: Option<u32>,
}

/// A system call filter.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Seccomp {
    /// For calls that no rule matches.
    pub default_action: String,
    /// Errno of an `SCMP_ACT_ERRNO` default.
    #[serde(default)]
    pub default_errno_ret: Option<u32>,
    /// Architectures besides the native one.
    #[serde(default)]
    pub architectures: Vec<String>,
    /// `SECCOMP_FILTER_FLAG_*`.
    #[serde(default)]
    pub flags: Vec<String>,
    /// Rules; the first that matches decides.
    #[serde(default)]
    pub syscalls: Vec<SeccompRule>,
    /// Socket that receives the descriptor by which calls with `SCMP_ACT_NOTIFY` are answered.
    #[serde(default)]
    pub listener_path: Option<String>,
    /// Text for who listens.
    #[serde(default)]
    pub listener_metadata: Option<String>,
}

/// One rule.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompRule {
    /// System calls by name.
    pub names: Vec<String>,
    /// What to do.
    pub action: String,
    /// Errno of an `SCMP_ACT_ERRNO`.
    #[serde(default)]
    pub errno_ret: Option<u32>,
    /// Conditions, all of which must hold.
    #[serde(default)]
    pub args: Vec<SeccompArg>,
}

/// A condition on one argument.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SeccompArg {
    /// 0 to 5.
    pub index: u32,
    /// Value, or mask of `SCMP_CMP_MASKED_EQ`.
    pub value: u64,
    /// The value wanted under the mask.
    #[serde(default)]
    pub value_two: u64,
    /// `SCMP_CMP_EQ` and so on.
    pub op: String,
}

/// Fields of the specification that this runtime knows and does not honour, and without which a container would not be
/// what its bundle says. All others that it does not honour become warnings: the specification wants an unknown property
/// ignored, and here it is never in silence.
const REFUSED: &[&str] = &["linux.netDevices"];

/// Reads a document: the value and the warnings for fields that are not honoured.
///
/// # Errors
///
/// Names the field that is malformed or that would be dropped although it may concern security.
pub fn parse(bytes: &[u8]) -> Result<(Config, Vec<String>), Error> {
    let mut ignored = Vec::new();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let config: Config = serde_ignored::deserialize(&mut deserializer, |path| {
        ignored.push(path.to_string().replace(".?", ""));
    })
    .map_err(|e| Error::config("syntax", e.to_string()))?;
    deserializer
        .end()
        .map_err(|e| Error::config("syntax", e.to_string()))?;

    let mut warnings = Vec::new();
    if !ignored.is_empty() {
        let document: Value =
            serde_json::from_slice(bytes).map_err(|e| Error::config("syntax", e.to_string()))?;
        for field in ignored {
            let pointer = format!("/{}", field.replace('.', "/"));
            if document.pointer(&pointer).is_some_and(asks_for_nothing) {
                continue;
            }
            if REFUSED.contains(&field.as_str()) {
                return Err(Error::config(
                    field,
                    "not supported by this runtime: remove the field",
                ));
            }
            warnings.push(format!("{field}: not supported, ignored"));
        }
    }
    if !config.oci_version.starts_with("1.") {
        return Err(Error::config(
            "ociVersion",
            format!("expected 1.x, got {:?}", config.oci_version),
        ));
    }
    Ok((config, warnings))
}

/// Reads a process document (`exec --process`): the value and the fields that are not honoured.
///
/// # Errors
///
/// Names the field that is malformed.
pub fn parse_process(bytes: &[u8]) -> Result<(Process, Vec<String>), Error> {
    let wrapped: Vec<u8> = [br#"{"ociVersion":"1.0","process":"#, bytes, b"}"]
        .into_iter()
        .flatten()
        .copied()
        .collect();
    let (config, ignored) = parse(&wrapped)?;
    Ok((config.process, ignored))
}

fn asks_for_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.values().all(asks_for_nothing),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_honoured_is_named() {
        let cases: &[(&str, Result<&[&str], &str>)] = &[
            (r#"{"ociVersion":"1.0.2"}"#, Ok(&[])),
            (
                r#"{"ociVersion":"1.3.0","process":{"selinuxLabel":"","user":{"uid":0}}}"#,
                Ok(&[]),
            ),
            (
                r#"{"ociVersion":"1.0","process":{"later":"x_t"}}"#,
                Ok(&["process.later"]),
            ),
            (
                r#"{"ociVersion":"1.0","linux":{"seccomp":{"defaultAction":"a","later":"/x"}}}"#,
                Ok(&["linux.seccomp.later"]),
            ),
            (
                r#"{"ociVersion":"1.3.0","linux":{"netDevices":{"eth0":{"name":"a"}}}}"#,
                Err("linux.netDevices"),
            ),
            (
                r#"{"ociVersion":"1.0","mounts":[{"destination":"/a","uidMappings":[]}]}"#,
                Ok(&[]),
            ),
            (
                r#"{"ociVersion":"1.0","mounts":[{"destination":"/a","laterMappings":[{"size":1}]}]}"#,
                Ok(&["mounts.0.laterMappings"]),
            ),
            (
                r#"{"ociVersion":"1.0","process":{"commandLine":"x"},"linux":{"intelRdt":{"closID":"a"}}}"#,
                Ok(&["process.commandLine", "linux.intelRdt"]),
            ),
            (r#"{"ociVersion":"1.0","later":{"a":1}}"#, Ok(&["later"])),
            (
                r#"{"ociVersion":"1.0","linux":{"resources":{"memory":{"limit":1,"later":2}}}}"#,
                Ok(&["linux.resources.memory.later"]),
            ),
            (r#"{"ociVersion":"2.0"}"#, Err("ociVersion")),
            (r#"{"ociVersion":"1.0","root":{"path":7}}"#, Err("syntax")),
            (r#"{"ociVersion":"1.0"}x"#, Err("syntax")),
        ];
        for (text, expected) in cases {
            match (parse(text.as_bytes()), expected) {
                (Ok((_, warnings)), Ok(names)) => {
                    assert_eq!(warnings.len(), names.len(), "{text}: {warnings:?}");
                    for (warning, name) in warnings.iter().zip(*names) {
                        assert!(warning.starts_with(&format!("{name}: ")), "{text}: {warning}");
                    }
                }
                (Err(Error::Config { field, .. }), Err(name)) => assert_eq!(&field, name, "{text}"),
                (got, _) => panic!("{text}: {got:?}"),
            }
        }
    }
}
