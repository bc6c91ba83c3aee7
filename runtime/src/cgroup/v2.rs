//! Limits in the terms of cgroup v2.

use super::resources::{BlockIo, Cpu, Memory, Resources, Setting, ThrottleDevice, Translation, bytes};
use crate::error::Error;

const V1_ONLY: &str = "cgroup v2 has nothing like it";

/// Devices are filtered by an eBPF program there, which only root of the host may load.
const NO_FILTER: &str = "linux.resources.devices: no device filter: the container's /dev holds the devices it was given and no others, and its mounts decide which those are";

/// Turns limits into files and values. Fields of value 0 that mean "unset" ask for nothing.
///
/// # Errors
///
/// Names a field that contradicts another one or that cannot be meant.
pub(crate) fn translate(resources: &Resources) -> Result<Translation, Error> {
    let mut to = Translation::default();
    if let Some(memory) = &resources.memory {
        translate_memory(memory, &mut to)?;
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
        to.set(&field, &format!("hugetlb.{}.max", pages.page_size), pages.limit);
    }
    for (device, limit) in resources.rdma.iter().flatten() {
        let number = |count: Option<u32>| count.map_or("max".into(), |count| count.to_string());
        let (handles, objects) = (number(limit.hca_handles), number(limit.hca_objects));
        let value = format!("{device} hca_handle={handles} hca_object={objects}");
        to.set("rdma", "rdma.max", value);
    }
    to.lose("network", resources.network.is_some(), V1_ONLY);
    if resources.devices.as_ref().is_some_and(|rules| !rules.is_empty()) {
        to.lost.push(("devices".into(), NO_FILTER.into()));
    }
    // Last: they say exactly what they mean, and stand over the fields above.
    for (file, value) in resources.unified.iter().flatten() {
        let field = format!("unified.{file}");
        check_file(&field, file)?;
        if !file.contains('.') || matches!(file.as_str(), "cgroup.procs" | "cgroup.threads" | "cgroup.kill") {
            return Err(Error::config(
                format!("linux.resources.{field}"),
                "not a file that holds a limit",
            ));
        }
        to.set(&field, file, value);
    }
    Ok(to)
}

/// A name from the bundle that becomes part of a file's name.
pub(super) fn check_file(field: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.len() > 200 || name.contains(['/', '\0', '\n']) {
        return Err(Error::config(
            format!("linux.resources.{field}"),
            format!("{name:?}: not a file of a cgroup"),
        ));
    }
    Ok(())
}

fn translate_memory(memory: &Memory, to: &mut Translation) -> Result<(), Error> {
    let limit = memory.limit.filter(|limit| *limit != 0);
    if let Some(limit) = limit {
        to.set("memory.limit", "memory.max", bytes(limit, "max"));
    }
    if let Some(reservation) = memory.reservation.filter(|bytes| *bytes != 0) {
        to.set("memory.reservation", "memory.low", bytes(reservation, "max"));
    }
    // The specification counts memory and swap together, the kernel swap alone.
    match (memory.swap.filter(|swap| *swap != 0), limit) {
        (None, _) => {}
        (Some(swap), _) if swap < 0 => to.set("memory.swap", "memory.swap.max", "max"),
        (Some(swap), Some(limit)) if limit >= 0 && swap >= limit => {
            to.set("memory.swap", "memory.swap.max", swap - limit);
        }
        (Some(swap), Some(limit)) if limit >= 0 => {
            return Err(Error::config(
                "linux.resources.memory.swap",
                format!("{swap} is memory and swap together: less than the memory limit {limit}"),
            ));
        }
        (Some(_), _) => {
            return Err(Error::config(
                "linux.resources.memory.swap",
                "is memory and swap together: it needs a memory limit",
            ));
        }
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
    to.lose("memory.swappiness", memory.swappiness.is_some(), V1_ONLY);
    to.lose("memory.disableOOMKiller", memory.disable_oom_killer, V1_ONLY);
    Ok(())
}

fn translate_cpu(cpu: &Cpu, to: &mut Translation) {
    if let Some(shares) = cpu.shares.filter(|shares| *shares != 0) {
        to.set("cpu.shares", "cpu.weight", weight(shares));
    }
    let (quota, period) = (cpu.quota.filter(|q| *q != 0), cpu.period.filter(|p| *p != 0));
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".into(),
        };
        let value = match period {
            Some(period) => format!("{quota} {period}"),
            None => quota,
        };
        let field = if cpu.quota.is_some() {
            "cpu.quota"
        } else {
            "cpu.period"
        };
        to.set(field, "cpu.max", value);
    }
    if let Some(burst) = cpu.burst {
        to.set("cpu.burst", "cpu.max.burst", burst);
    }
    if let Some(idle) = cpu.idle {
        to.set("cpu.idle", "cpu.idle", idle);
    }
    for (field, file, value) in [
        ("cpu.cpus", "cpuset.cpus", &cpu.cpus),
        ("cpu.mems", "cpuset.mems", &cpu.mems),
    ] {
        if let Some(value) = value.as_deref().filter(|value| !value.is_empty()) {
            to.set(field, file, value);
        }
    }
    let realtime =
        cpu.realtime_runtime.is_some_and(|t| t != 0) || cpu.realtime_period.is_some_and(|t| t != 0);
    to.lose("cpu.realtimeRuntime", realtime, V1_ONLY);
}

/// Weight of `cpu.weight` for shares: a curve through 2, 1024 and 262144 at 1, 100 and 10000, so that the default of one
/// stays the default of the other (the formula of runc 1.4 and crun 1.23).
fn weight(shares: u64) -> u64 {
    match shares {
        0..=2 => 1,
        262_144.. => 10_000,
        _ => {
            let log = (shares as f64).log2();
            let exponent = (log * log + 125.0 * log) / 612.0 - 7.0 / 34.0;
            10f64.powf(exponent).ceil() as u64
        }
    }
}

fn translate_io(io: &BlockIo, to: &mut Translation) {
    // BFQ takes the specification's range as it is; the general file has 1 to 10000.
    let general = |weight: u16| 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
    if let Some(weight) = io.weight.filter(|weight| *weight != 0) {
        let setting = Setting::new("blockIO.weight", "io.bfq.weight", weight);
        to.settings.push(setting.or("io.weight", general(weight)));
    }
    for (index, device) in io.weight_device.iter().enumerate() {
        let Some(weight) = device.weight else {
            continue;
        };
        let (field, name) = (
            format!("blockIO.weightDevice[{index}]"),
            format!("{}:{}", device.major, device.minor),
        );
        let setting = Setting::new(field, "io.bfq.weight", format!("{name} {weight}"));
        to.settings
            .push(setting.or("io.weight", format!("{name} {}", general(weight))));
    }
    let leaf = io.leaf_weight.is_some() || io.weight_device.iter().any(|device| device.leaf_weight.is_some());
    to.lose("blockIO.leafWeight", leaf, V1_ONLY);
    for (field, key, list) in throttles(io) {
        for (index, device) in list.iter().enumerate() {
            // The kernel has no rate 0: it stands for none.
            let rate = match device.rate {
                0 => "max".into(),
                rate => rate.to_string(),
            };
            let value = format!("{}:{} {key}={rate}", device.major, device.minor);
            to.set(&format!("blockIO.{field}[{index}]"), "io.max", value);
        }
    }
}

/// The four kinds of rates: field, key of `io.max`, list.
fn throttles(io: &BlockIo) -> [(&'static str, &'static str, &[ThrottleDevice]); 4] {
    [
        ("throttleReadBpsDevice", "rbps", &io.throttle_read_bps_device),
        ("throttleWriteBpsDevice", "wbps", &io.throttle_write_bps_device),
        ("throttleReadIOPSDevice", "riops", &io.throttle_read_iops_device),
        ("throttleWriteIOPSDevice", "wiops", &io.throttle_write_iops_device),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_limit_becomes_a_file_and_a_value() {
        type Written<'a> = &'a [(&'a str, &'a str, &'a str)];
        let cases: &[(&str, Written<'_>)] = &[
            ("{}", &[]),
            (r#"{"memory":{},"cpu":{},"pids":{},"blockIO":{}}"#, &[]),
            (
                r#"{"memory":{"limit":1048576,"swap":3145728,"reservation":65536}}"#,
                &[
                    ("memory.limit", "memory.max", "1048576"),
                    ("memory.reservation", "memory.low", "65536"),
                    ("memory.swap", "memory.swap.max", "2097152"),
                ],
            ),
            (
                r#"{"memory":{"limit":4096,"swap":4096}}"#,
                &[
                    ("memory.limit", "memory.max", "4096"),
                    ("memory.swap", "memory.swap.max", "0"),
                ],
            ),
            (
                r#"{"memory":{"limit":-1,"swap":-1,"reservation":-1}}"#,
                &[
                    ("memory.limit", "memory.max", "max"),
                    ("memory.reservation", "memory.low", "max"),
                    ("memory.swap", "memory.swap.max", "max"),
                ],
            ),
            (r#"{"memory":{"limit":0,"swap":0,"reservation":0}}"#, &[]),
            (
                r#"{"cpu":{"quota":50000,"period":200000,"shares":1024,"burst":10,"idle":1,"cpus":"0-1","mems":"0"}}"#,
                &[
                    ("cpu.shares", "cpu.weight", "100"),
                    ("cpu.quota", "cpu.max", "50000 200000"),
                    ("cpu.burst", "cpu.max.burst", "10"),
                    ("cpu.idle", "cpu.idle", "1"),
                    ("cpu.cpus", "cpuset.cpus", "0-1"),
                    ("cpu.mems", "cpuset.mems", "0"),
                ],
            ),
            (r#"{"cpu":{"quota":50000}}"#, &[("cpu.quota", "cpu.max", "50000")]),
            (
                r#"{"cpu":{"quota":-1,"period":1000}}"#,
                &[("cpu.quota", "cpu.max", "max 1000")],
            ),
            (
                r#"{"cpu":{"period":1000}}"#,
                &[("cpu.period", "cpu.max", "max 1000")],
            ),
            (
                r#"{"cpu":{"shares":0,"quota":0,"period":0,"cpus":"","realtimeRuntime":0}}"#,
                &[],
            ),
            (r#"{"pids":{"limit":7}}"#, &[("pids.limit", "pids.max", "7")]),
            (r#"{"pids":{"limit":-1}}"#, &[("pids.limit", "pids.max", "max")]),
            (
                r#"{"blockIO":{"weight":10,"throttleReadBpsDevice":[{"major":8,"minor":0,"rate":100}],
                   "throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#,
                &[
                    ("blockIO.weight", "io.bfq.weight", "10"),
                    ("blockIO.throttleReadBpsDevice[0]", "io.max", "8:0 rbps=100"),
                    ("blockIO.throttleWriteIOPSDevice[0]", "io.max", "8:16 wiops=max"),
                ],
            ),
            (
                r#"{"hugepageLimits":[{"pageSize":"2MB","limit":4194304}],"rdma":{"mlx5_1":{"hcaHandles":3}}}"#,
                &[
                    ("hugepageLimits[0]", "hugetlb.2MB.max", "4194304"),
                    ("rdma", "rdma.max", "mlx5_1 hca_handle=3 hca_object=max"),
                ],
            ),
            (
                r#"{"unified":{"memory.high":"9","memory.oom.group":"1"},"memory":{"limit":5}}"#,
                &[
                    ("memory.limit", "memory.max", "5"),
                    ("unified.memory.high", "memory.high", "9"),
                    ("unified.memory.oom.group", "memory.oom.group", "1"),
                ],
            ),
        ];
        for (text, expected) in cases {
            let to = translate(&serde_json::from_str(text).unwrap()).unwrap();
            let got: Vec<(&str, &str, &str)> = to
                .settings
                .iter()
                .map(|s| (s.field.as_str(), s.writes[0].0.as_str(), s.writes[0].1.as_str()))
                .collect();
            assert_eq!(&got, expected, "{text}");
            assert!(to.lost.is_empty(), "{text}: {:?}", to.lost);
        }
    }

    #[test]
    fn contradictions_and_foreign_files_are_refused_by_field() {
        for (text, field) in [
            (r#"{"memory":{"limit":9,"swap":8}}"#, "memory.swap"),
            (r#"{"memory":{"swap":8}}"#, "memory.swap"),
            (r#"{"memory":{"limit":-1,"swap":8}}"#, "memory.swap"),
            (
                r#"{"unified":{"../cgroup.procs":"1"}}"#,
                "unified.../cgroup.procs",
            ),
            (r#"{"unified":{"cgroup.procs":"1"}}"#, "unified.cgroup.procs"),
            (r#"{"unified":{"notes":"1"}}"#, "unified.notes"),
            (
                r#"{"hugepageLimits":[{"pageSize":"/../x","limit":1}]}"#,
                "hugepageLimits[0]",
            ),
        ] {
            match translate(&serde_json::from_str(text).unwrap()) {
                Err(Error::Config { field: named, .. }) => {
                    assert_eq!(named, format!("linux.resources.{field}"), "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }

    #[test]
    fn what_v2_does_not_know_is_named() {
        for (text, field) in [
            (r#"{"memory":{"kernel":1}}"#, "memory.kernel"),
            (r#"{"memory":{"kernelTCP":1}}"#, "memory.kernelTCP"),
            (r#"{"memory":{"swappiness":0}}"#, "memory.swappiness"),
            (
                r#"{"memory":{"disableOOMKiller":true}}"#,
                "memory.disableOOMKiller",
            ),
            (r#"{"cpu":{"realtimeRuntime":1}}"#, "cpu.realtimeRuntime"),
            (r#"{"blockIO":{"leafWeight":10}}"#, "blockIO.leafWeight"),
            (r#"{"network":{"classID":1}}"#, "network"),
        ] {
            let to = translate(&serde_json::from_str(text).unwrap()).unwrap();
            assert!(to.settings.is_empty(), "{text}");
            assert!(
                to.lost[0]
                    .1
                    .starts_with(&format!("linux.resources.{field}: not enforced: ")),
                "{text}: {:?}",
                to.lost
            );
        }
    }

    #[test]
    fn shares_and_weights_keep_their_defaults_and_ends() {
        for (shares, expected) in [
            (1, 1),
            (2, 1),
            (512, 59),
            (1024, 100),
            (2048, 174),
            (262_144, 10_000),
            (u64::MAX, 10_000),
        ] {
            assert_eq!(weight(shares), expected, "{shares}");
        }
        let io: BlockIo = serde_json::from_str(r#"{"weight":1000}"#).unwrap();
        let mut to = Translation::default();
        translate_io(&io, &mut to);
        assert_eq!(to.settings[0].writes[1], ("io.weight".into(), "10000".into()));
    }
}
