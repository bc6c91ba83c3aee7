//! Which capabilities a container's process has inside its user namespace.

use serde_json::{Value, json};

use super::Error;
use crate::container::{Network, Spec};

/// Docker's default set without `MKNOD` and `AUDIT_WRITE`, which do nothing in a user namespace of one's own.
const DEFAULT: [&str; 12] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];
/// These mean a network namespace that belongs to the container.
const OF_OWN_NETWORK: [&str; 2] = ["CAP_NET_BIND_SERVICE", "CAP_NET_RAW"];
/// All that Linux knows, without the prefix.
const KNOWN: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];

/// `CAP_NAME` for `NAME`, `cap_name` and the like, or `ALL`.
pub(crate) fn normal(text: &str) -> Result<String, Error> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    match name {
        "ALL" => Ok("ALL".into()),
        _ if KNOWN.contains(&name) => Ok(format!("CAP_{name}")),
        _ => Err(Error::UnknownCapability(text.into())),
    }
}

/// The five sets of `process.capabilities`. Adding `ALL` and dropping single ones, or dropping `ALL` and adding single
/// ones, both work as with docker.
pub(super) fn sets(spec: &Spec, uid: u32) -> Result<Value, Error> {
    let add = spec
        .cap_add
        .iter()
        .map(|cap| normal(cap))
        .collect::<Result<Vec<_>, _>>()?;
    let drop = spec
        .cap_drop
        .iter()
        .map(|cap| normal(cap))
        .collect::<Result<Vec<_>, _>>()?;
    let all = |list: &[String]| list.iter().any(|cap| cap == "ALL");
    let mut held: Vec<String> = if all(&add) {
        KNOWN.iter().map(|name| format!("CAP_{name}")).collect()
    } else if all(&drop) {
        Vec::new()
    } else {
        let own_network = spec.network != Network::Host;
        DEFAULT
            .iter()
            .filter(|cap| own_network || !OF_OWN_NETWORK.contains(cap))
            .map(|cap| (*cap).into())
            .collect()
    };
    held.extend(add.iter().filter(|cap| *cap != "ALL").cloned());
    held.retain(|cap| !drop.contains(cap));
    held.sort();
    held.dedup();
    // As under docker, only the root user holds them; for others they bound what a file may grant.
    let effective = if uid == 0 { held.clone() } else { Vec::new() };
    Ok(
        json!({ "bounding": held, "effective": effective, "permitted": effective, "inheritable": [], "ambient": [] }),
    )
}
