//! `linux.resources` of a bundle, and of `update`: limits as the runtime specification writes them.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// All limits of one container. What is absent is not limited, or with `update` not changed.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Resources {
    /// Memory.
    pub memory: Option<Memory>,
    /// Processor time and processors.
    pub cpu: Option<Cpu>,
    /// Processes and threads.
    pub pids: Option<Pids>,
    /// Block devices.
    #[serde(rename = "blockIO")]
    pub block_io: Option<BlockIo>,
    /// Huge pages, by size.
    pub hugepage_limits: Option<Vec<HugePages>>,
    /// Remote direct memory access, by device.
    pub rdma: Option<BTreeMap<String, Rdma>>,
    /// Files of cgroup v2 and what to write to them.
    pub unified: Option<BTreeMap<String, String>>,
    /// Device rules, in order; the last that matches decides.
    pub devices: Option<Vec<DeviceRule>>,
    /// Classes and priorities of packets, which cgroup v2 does not know.
    pub network: Option<BTreeMap<String, Value>>,
}

/// Memory, in bytes; -1 is unlimited.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Memory {
    /// What the container may use.
    pub limit: Option<i64>,
    /// What it keeps when memory is short.
    pub reservation: Option<i64>,
    /// Memory and swap together.
    pub swap: Option<i64>,
    /// Memory of the kernel; the kernel gave this limit up.
    pub kernel: Option<i64>,
    /// TCP buffers; the kernel gave this limit up.
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Option<i64>,
    /// 0 to 100, cgroup v1 only.
    pub swappiness: Option<u64>,
    /// Processes wait instead of being killed, cgroup v1 only.
    #[serde(rename = "disableOOMKiller")]
    pub disable_oom_killer: bool,
    /// Count the memory of child cgroups: always so in cgroup v2.
    pub use_hierarchy: Option<bool>,
    /// Refuse a limit below what is in use.
    pub check_before_update: bool,
}

/// Processor time and processors.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Cpu {
    /// Relative share, 2 to 262144; 0 says nothing.
    pub shares: Option<u64>,
    /// Microseconds in each period; 0 or less is unlimited.
    pub quota: Option<i64>,
    /// Microseconds that may be saved up.
    pub burst: Option<u64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// Microseconds of real-time scheduling, cgroup v1 only.
    pub realtime_runtime: Option<i64>,
    /// Microseconds, cgroup v1 only.
    pub realtime_period: Option<u64>,
    /// Processors, as in `0-2,4`.
    pub cpus: Option<String>,
    /// Memory nodes.
    pub mems: Option<String>,
    /// 1: only when nothing else wants to run.
    pub idle: Option<i64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Pids {
    /// How many; 0 or less is unlimited.
    pub limit: Option<i64>,
}

/// Block devices.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct BlockIo {
    /// Relative share, 10 to 1000; 0 says nothing.
    pub weight: Option<u16>,
    /// The share against child cgroups, which only the CFQ scheduler knew.
    pub leaf_weight: Option<u16>,
    /// Shares by device.
    pub weight_device: Vec<WeightDevice>,
    /// Bytes read in a second.
    pub throttle_read_bps_device: Vec<ThrottleDevice>,
    /// Bytes written in a second.
    pub throttle_write_bps_device: Vec<ThrottleDevice>,
    /// Reads in a second.
    #[serde(rename = "throttleReadIOPSDevice")]
    pub throttle_read_iops_device: Vec<ThrottleDevice>,
    /// Writes in a second.
    #[serde(rename = "throttleWriteIOPSDevice")]
    pub throttle_write_iops_device: Vec<ThrottleDevice>,
}

/// The share of one device.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct WeightDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// 10 to 1000.
    pub weight: Option<u16>,
    /// As in [`BlockIo::leaf_weight`].
    pub leaf_weight: Option<u16>,
}

/// The rate of one device.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct ThrottleDevice {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Bytes or operations in a second.
    pub rate: u64,
}

/// Who may do what with which devices.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct DeviceRule {
    /// Allow, or deny.
    pub allow: bool,
    /// `c`, `b`, or `a` and nothing for both.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// Major number; absent or -1 for all.
    pub major: Option<i64>,
    /// Minor number; absent or -1 for all.
    pub minor: Option<i64>,
    /// Letters of `rwm`; absent for all.
    pub access: Option<String>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HugePages {
    /// As the kernel writes it: `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Remote direct memory access of one device.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rdma {
    /// Handles.
    pub hca_handles: Option<u32>,
    /// Objects.
    pub hca_objects: Option<u32>,
}

/// One value to write, and the field that asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Below `linux.resources.`.
    pub(crate) field: String,
    /// File and value; where the first file is not in this kernel, the next one.
    pub(crate) writes: Vec<(String, String)>,
}

impl Setting {
    pub(crate) fn new(field: impl Into<String>, file: impl Into<String>, value: impl ToString) -> Self {
        Self {
            field: field.into(),
            writes: vec![(file.into(), value.to_string())],
        }
    }

    pub(crate) fn or(mut self, file: &str, value: impl ToString) -> Self {
        self.writes.push((file.into(), value.to_string()));
        self
    }

    /// The controller that the file belongs to, by its name in cgroup v2.
    pub(crate) fn controller(&self) -> &str {
        let file = self.writes.first().map_or("", |(file, _)| file.as_str());
        match file.split('.').next().unwrap_or_default() {
            "blkio" => "io",
            controller => controller,
        }
    }
}

/// Limits in the terms of one version of cgroups.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Translation {
    /// To be written in this order.
    pub(crate) settings: Vec<Setting>,
    /// Fields that this version has no file for: the controller that a file would belong to, and a line.
    pub(crate) lost: Vec<(String, String)>,
}

impl Translation {
    pub(crate) fn set(&mut self, field: &str, file: &str, value: impl ToString) {
        self.settings.push(Setting::new(field, file, value));
    }

    pub(crate) fn lose(&mut self, field: &str, asked: bool, why: &str) {
        if asked {
            let field_of_file = field.strip_prefix("unified.").unwrap_or(field);
            let controller = match field_of_file.split('.').next().unwrap_or_default() {
                "blockIO" => "io",
                controller => controller,
            };
            let line = format!("linux.resources.{field}: not enforced: {why}");
            self.lost.push((controller.to_owned(), line));
        }
    }
}

/// A memory limit in the kernel's words.
pub(crate) fn bytes(value: i64, unlimited: &str) -> String {
    if value < 0 {
        unlimited.to_owned()
    } else {
        value.to_string()
    }
}
