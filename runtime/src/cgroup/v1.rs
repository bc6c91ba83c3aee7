//! Limits in the terms of cgroup v1.

use super::resources::{BlockIo, Cpu, DeviceRule, Memory, Resources, Setting, Translation, bytes};
use super::v2::check_file;
use crate::error::Error;

/// Turns limits into files and values, as [`super::v2::translate`] does.
///
/// # Errors
///
/// Names a field that cannot be meant.
pub(crate) fn translate(resources: &Resources) -> Result<Translation, Error> {
    let mut to = Translation::default();
    if let Some(memory) = &resources.memory {
        translate_memory(memory, &mut to);
    }
    if let Some(cpu) = &resources.cpu {
        translate_cpu(cpu, &mut to);
    }
    if let Some(limit) = resources.pids.as_ref().and_then(|pids| pids.limit) {
        let value = if limit > 0 {
            limit.to_string()
        } else {
            "max".into()
        };
        to.set("pids.limit", "pids.max", value);
    }
    if let Some(io) = &resources.block_io {
        translate_io(io, &mut to);
    }
    for (index, pages) in resources.hugepage_limits.iter().flatten().enumerate() {
        let field = format!("hugepageLimits[{index}]");
        check_file(&field, &pages.page_size)?;
        let file = format!("hugetlb.{}.limit_in_bytes", pages.page_size);
        to.set(&field, &file, pages.limit);
    }
    translate_devices(resources.devices.as_deref().unwrap_or_default(), &mut to)?;
    to.lose(
        "rdma",
        resources.rdma.as_ref().is_some_and(|map| !map.is_empty()),
        "it needs cgroup v2",
    );
    to.lose(
        "network",
        resources.network.as_ref().is_some_and(|map| !map.is_empty()),
        "this runtime sets neither classes nor priorities of packets",
    );
    for file in resources.unified.iter().flatten().map(|(file, _)| file) {
        to.lose(&format!("unified.{file}"), true, "it needs cgroup v2");
    }
    Ok(to)
}

/// What every container may do beside what its bundle says: make nodes, use the default devices and its terminals.
const DEFAULT_DEVICES: &[&str] = &[
    "c *:* m",
    "b *:* m",
    "c 1:3 rwm",
    "c 1:5 rwm",
    "c 1:7 rwm",
    "c 1:8 rwm",
    "c 1:9 rwm",
    "c 5:0 rwm",
    "c 5:2 rwm",
    "c 136:* rwm",
];

fn translate_devices(rules: &[DeviceRule], to: &mut Translation) -> Result<(), Error> {
    let refuse = |index: usize, reason: String| {
        Err(Error::config(format!("linux.resources.devices[{index}]"), reason))
    };
    for (index, rule) in rules.iter().enumerate() {
        let field = format!("devices[{index}]");
        let kind = rule
            .kind
            .as_deref()
            .filter(|kind| !kind.is_empty())
            .unwrap_or("a");
        let access = rule
            .access
            .as_deref()
            .filter(|access| !access.is_empty())
            .unwrap_or("rwm");
        if !matches!(kind, "a" | "b" | "c") || !access.bytes().all(|letter| b"rwm".contains(&letter)) {
            return refuse(
                index,
                format!("type {kind:?} and access {access:?}: expected a, b or c, and letters of rwm"),
            );
        }
        let number = |number: Option<i64>| match number {
            None | Some(-1) => Some("*".to_owned()),
            Some(number) => u32::try_from(number).ok().map(|number| number.to_string()),
        };
        let (Some(major), Some(minor)) = (number(rule.major), number(rule.minor)) else {
            return refuse(index, "expected device numbers, or -1 for all".into());
        };
        let file = if rule.allow {
            "devices.allow"
        } else {
            "devices.deny"
        };
        // What begins with "a" is about all devices, whatever follows.
        let everything = kind == "a" && major == "*" && minor == "*";
        let kinds: &[&str] = if kind == "a" {
            &["c", "b"]
        } else {
            std::slice::from_ref(&kind)
        };
        if everything && access.len() == 3 {
            to.set(&field, file, "a");
        } else {
            for kind in kinds {
                to.set(&field, file, format!("{kind} {major}:{minor} {access}"));
            }
        }
    }
    if !rules.is_empty() {
        for rule in DEFAULT_DEVICES {
            to.set("devices", "devices.allow", rule);
        }
    }
    Ok(())
}

fn translate_memory(memory: &Memory, to: &mut Translation) {
    for (field, file, value) in [
        ("memory.limit", "memory.limit_in_bytes", memory.limit),
        (
            "memory.reservation",
            "memory.soft_limit_in_bytes",
            memory.reservation,
        ),
        ("memory.swap", "memory.memsw.limit_in_bytes", memory.swap),
    ] {
        if let Some(value) = value.filter(|value| *value != 0) {
            to.set(field, file, bytes(value, "-1"));
        }
    }
    if let Some(swappiness) = memory.swappiness {
        to.set("memory.swappiness", "memory.swappiness", swappiness);
    }
    if memory.disable_oom_killer {
        to.set("memory.disableOOMKiller", "memory.oom_control", 1);
    }
    let gone = "the kernel gave this limit up";
    to.lose(
        "memory.kernel",
        memory.kernel.is_some_and(|bytes| bytes > 0),
        gone,
    );
    to.lose(
        "memory.kernelTCP",
        memory.kernel_tcp.is_some_and(|bytes| bytes > 0),
        gone,
    );
}

fn translate_cpu(cpu: &Cpu, to: &mut Translation) {
    let mut number = |field: &str, file: &str, value: Option<i64>| {
        if let Some(value) = value {
            to.set(field, file, value);
        }
    };
    let wide = |value: Option<u64>| {
        value
            .filter(|v| *v != 0)
            .map(|v| i64::try_from(v).unwrap_or(i64::MAX))
    };
    number("cpu.shares", "cpu.shares", wide(cpu.shares));
    // The period bounds the quota: first the one, then the other.
    number("cpu.period", "cpu.cfs_period_us", wide(cpu.period));
    let quota = cpu.quota.filter(|quota| *quota != 0).map(|quota| quota.max(-1));
    number("cpu.quota", "cpu.cfs_quota_us", quota);
    number(
        "cpu.burst",
        "cpu.cfs_burst_us",
        cpu.burst.map(|burst| i64::try_from(burst).unwrap_or(i64::MAX)),
    );
    number(
        "cpu.realtimePeriod",
        "cpu.rt_period_us",
        wide(cpu.realtime_period),
    );
    number(
        "cpu.realtimeRuntime",
        "cpu.rt_runtime_us",
        cpu.realtime_runtime.filter(|runtime| *runtime != 0),
    );
    number("cpu.idle", "cpu.idle", cpu.idle);
    for (field, file, value) in [
        ("cpu.cpus", "cpuset.cpus", &cpu.cpus),
        ("cpu.mems", "cpuset.mems", &cpu.mems),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            to.set(field, file, value);
        }
    }
}

fn translate_io(io: &BlockIo, to: &mut Translation) {
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        let setting = Setting::new("blockIO.weight", "blkio.weight", weight);
        to.settings.push(setting.or("blkio.bfq.weight", weight));
    }
    for (index, device) in io.weight_device.iter().enumerate() {
        if let Some(weight) = device.weight {
            let value = format!("{}:{} {weight}", device.major, device.minor);
            let field = format!("blockIO.weightDevice[{index}]");
            let setting = Setting::new(field, "blkio.weight_device", &value);
            to.settings.push(setting.or("blkio.bfq.weight_device", &value));
        }
    }
    let leaf = io.leaf_weight.is_some() || io.weight_device.iter().any(|device| device.leaf_weight.is_some());
    to.lose("blockIO.leafWeight", leaf, "only the CFQ scheduler knew it");
    for (field, file, list) in [
        ("throttleReadBpsDevice", "read_bps", &io.throttle_read_bps_device),
        (
            "throttleWriteBpsDevice",
            "write_bps",
            &io.throttle_write_bps_device,
        ),
        (
            "throttleReadIOPSDevice",
            "read_iops",
            &io.throttle_read_iops_device,
        ),
        (
            "throttleWriteIOPSDevice",
            "write_iops",
            &io.throttle_write_iops_device,
        ),
    ] {
        for (index, device) in list.iter().enumerate() {
            let value = format!("{}:{} {}", device.major, device.minor, device.rate);
            let file = format!("blkio.throttle.{file}_device");
            to.set(&format!("blockIO.{field}[{index}]"), &file, value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_becomes_a_file_and_a_value() {
        let cases: &[(&str, &[(&str, &str)])] = &[
            (r#"{"memory":{"limit":0},"cpu":{"shares":0,"quota":0}}"#, &[]),
            (
                r#"{"memory":{"limit":-1,"swap":9,"reservation":4,"swappiness":0,"disableOOMKiller":true}}"#,
                &[
                    ("memory.limit_in_bytes", "-1"),
                    ("memory.soft_limit_in_bytes", "4"),
                    ("memory.memsw.limit_in_bytes", "9"),
                    ("memory.swappiness", "0"),
                    ("memory.oom_control", "1"),
                ],
            ),
            (
                r#"{"cpu":{"shares":7,"quota":-5,"period":9,"cpus":"1"},"pids":{"limit":3}}"#,
                &[
                    ("cpu.shares", "7"),
                    ("cpu.cfs_period_us", "9"),
                    ("cpu.cfs_quota_us", "-1"),
                    ("cpuset.cpus", "1"),
                    ("pids.max", "3"),
                ],
            ),
            (
                r#"{"blockIO":{"weight":20,"throttleWriteBpsDevice":[{"major":1,"minor":2,"rate":3}]},
                   "hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#,
                &[
                    ("blkio.weight", "20"),
                    ("blkio.throttle.write_bps_device", "1:2 3"),
                    ("hugetlb.2MB.limit_in_bytes", "0"),
                ],
            ),
        ];
        for (text, expected) in cases {
            let to = translate(&serde_json::from_str(text).unwrap()).unwrap();
            let got: Vec<(&str, &str)> = to
                .settings
                .iter()
                .map(|s| (s.writes[0].0.as_str(), s.writes[0].1.as_str()))
                .collect();
            assert_eq!(&got, expected, "{text}");
            assert!(to.lost.is_empty(), "{text}: {:?}", to.lost);
        }
    }

    #[test]
    fn what_v1_does_not_know_is_named() {
        for text in [
            r#"{"rdma":{"a":{}}}"#,
            r#"{"unified":{"memory.high":"1"}}"#,
            r#"{"network":{"classID":1}}"#,
            r#"{"blockIO":{"leafWeight":1}}"#,
            r#"{"memory":{"kernel":1}}"#,
        ] {
            let to = translate(&serde_json::from_str(text).unwrap()).unwrap();
            assert_eq!((to.settings.len(), to.lost.len()), (0, 1), "{text}");
        }
    }
}
