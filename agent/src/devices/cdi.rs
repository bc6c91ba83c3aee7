//! The Container Device Interface, versions 0.3 to 1.0: files in which vendors describe what a container needs for a
//! device (<https://github.com/cncf-tags/container-device-interface>, SPEC.md).
//!
//! A specification in a later directory takes the place of an earlier one's device of the same name; two in one directory
//! are a conflict, and a device in conflict cannot be had. A file that is not understood harms only whoever asks for a
//! device that is not found elsewhere. Fields that are not known are refused: each could be what keeps something in.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};

use super::{Edits, Error};

/// The longest file that is read. NVIDIA's for eight GPUs has 60 KB.
const FILE_MAX: u64 = 4 << 20;
/// The most files of one directory.
const FILES_MAX: usize = 1000;
const VERSIONS: &[&str] = &["0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0"];
const HOOKS: &[&str] = &[
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Spec {
    cdi_version: String,
    kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    devices: Vec<Device>,
    #[serde(default)]
    container_edits: ContainerEdits,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Device {
    name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    container_edits: ContainerEdits,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ContainerEdits {
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    device_nodes: Vec<Node>,
    #[serde(default)]
    mounts: Vec<Mount>,
    #[serde(default)]
    hooks: Vec<Hook>,
    #[serde(default)]
    additional_gids: Vec<u32>,
    #[serde(default)]
    intel_rdt: Option<Rdt>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Node {
    path: String,
    #[serde(default)]
    host_path: Option<String>,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    major: Option<i64>,
    #[serde(default)]
    minor: Option<i64>,
    // The board's own node is bound: it keeps its mode and owner. What was to be otherwise is told.
    #[serde(default)]
    file_mode: Option<u32>,
    #[serde(default)]
    permissions: Option<String>,
    #[serde(default)]
    uid: Option<u32>,
    #[serde(default)]
    gid: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Mount {
    host_path: String,
    container_path: String,
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    options: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Hook {
    hook_name: String,
    path: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    timeout: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rdt {
    #[serde(default, rename = "closID")]
    clos_id: Option<String>,
    #[serde(default, rename = "l3CacheSchema")]
    l3_cache_schema: Option<String>,
    #[serde(default, rename = "memBwSchema")]
    mem_bw_schema: Option<String>,
    #[serde(default, rename = "enableCMT")]
    enable_cmt: Option<bool>,
    #[serde(default, rename = "enableMBM")]
    enable_mbm: Option<bool>,
}

/// All specifications of a board.
pub(super) struct Registry {
    specs: Vec<(PathBuf, usize, Spec)>,
    broken: Vec<String>,
}

impl Registry {
    /// Reads the files `*.json` and `*.yaml` of the directories, which may be missing.
    pub(super) fn read(directories: &[PathBuf]) -> Result<Self, Error> {
        let mut registry = Self {
            specs: Vec::new(),
            broken: Vec::new(),
        };
        for (priority, directory) in directories.iter().enumerate() {
            let entries = match std::fs::read_dir(directory) {
                Ok(entries) => entries,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => continue,
                Err(error) => return Err(Error::new(format!("devices: {}: {error}", directory.display()))),
            };
            let mut paths: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.extension().is_some_and(|end| end == "json" || end == "yaml"))
                .take(FILES_MAX)
                .collect();
            paths.sort();
            for path in paths {
                match read(&path) {
                    Ok(spec) => registry.specs.push((path, priority, spec)),
                    Err(why) => registry.broken.push(format!("{}: {why}", path.display())),
                }
            }
        }
        Ok(registry)
    }

    /// Whether some specification is of this kind.
    pub(super) fn knows_kind(&self, kind: &str) -> bool {
        self.specs.iter().any(|(_, _, spec)| spec.kind == kind)
    }

    /// Adds what the named devices need; a specification's own edits come once, before those of its devices.
    pub(super) fn inject(&self, names: &[&str], edits: &mut Edits) -> Result<(), Error> {
        let mut seen = BTreeSet::new();
        for name in names {
            let (path, spec, device) = self.find(name)?;
            let about = |why: String| Error::new(format!("device {name}: {}: {why}", path.display()));
            if seen.insert(path) {
                spec.container_edits.apply(edits).map_err(about)?;
            }
            device.container_edits.apply(edits).map_err(about)?;
        }
        Ok(())
    }

    fn find(&self, name: &str) -> Result<(&Path, &Spec, &Device), Error> {
        let (kind, device) = qualified(name)?;
        let mut found: Vec<(usize, &Path, &Spec, &Device)> = Vec::new();
        for (path, priority, spec) in self.specs.iter().filter(|(_, _, spec)| spec.kind == kind) {
            let devices = spec.devices.iter().filter(|known| known.name == device);
            found.extend(devices.map(|device| (*priority, path.as_path(), spec, device)));
        }
        let highest = found.iter().map(|found| found.0).max();
        found.retain(|found| Some(found.0) == highest);
        match found[..] {
            [(_, path, spec, device)] => Ok((path, spec, device)),
            [] => Err(Error::new(self.missing(name, kind))),
            [first, second, ..] => Err(Error::new(format!(
                "device {name}: described by both {} and {}; remove one of them",
                first.1.display(),
                second.1.display()
            ))),
        }
    }

    fn missing(&self, name: &str, kind: &str) -> String {
        let known: Vec<String> = self
            .specs
            .iter()
            .filter(|(_, _, spec)| spec.kind == kind)
            .flat_map(|(_, _, spec)| &spec.devices)
            .map(|device| device.name.chars().take(64).collect())
            .take(16)
            .collect();
        let mut text = format!("device {name}: ");
        if known.is_empty() {
            text += &format!("nothing of the kind {kind} is described in /etc/cdi or /run/cdi");
            if kind == super::GPU {
                text += "; install nvidia-container-toolkit and run: nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml";
            }
        } else {
            text += &format!("there is none; there are: {}", known.join(" "));
        }
        if let Some(broken) = self.broken.first() {
            text += &format!(" (not understood: {broken})");
        }
        text
    }
}

fn read(path: &Path) -> Result<Spec, String> {
    let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
    let mut bytes = Vec::new();
    file.take(FILE_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 > FILE_MAX {
        return Err(format!("longer than {FILE_MAX} bytes"));
    }
    parse(&bytes, path.extension().is_some_and(|end| end == "yaml"))
}

/// Reads and checks a specification.
fn parse(bytes: &[u8], yaml: bool) -> Result<Spec, String> {
    let spec: Spec = if yaml {
        let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
        serde_saphyr::from_str(text).map_err(|error| error.to_string())?
    } else {
        serde_json::from_slice(bytes).map_err(|error| error.to_string())?
    };
    if !VERSIONS.contains(&spec.cdi_version.as_str()) {
        return Err(format!(
            "cdiVersion {:?}: 0.3.0 to 1.0.0 are known",
            spec.cdi_version
        ));
    }
    check_kind(&spec.kind)?;
    check_annotations(&spec.annotations)?;
    if spec.devices.is_empty() {
        return Err("no devices".into());
    }
    spec.container_edits.check()?;
    let mut names = BTreeSet::new();
    for device in &spec.devices {
        let about = |why: String| format!("device {:?}: {why}", device.name);
        check_name(&device.name).map_err(about)?;
        check_annotations(&device.annotations).map_err(about)?;
        device.container_edits.check().map_err(about)?;
        if !names.insert(&device.name) {
            return Err(about("described twice".into()));
        }
    }
    Ok(spec)
}

/// Splits `vendor/class=name`.
pub(super) fn qualified(text: &str) -> Result<(&str, &str), Error> {
    let invalid = |why: &str| {
        Error::new(format!(
            "device {text:?}: {why}; write /dev/NAME, or VENDOR/CLASS=NAME as nvidia.com/gpu=0"
        ))
    };
    let (kind, name) = text
        .split_once('=')
        .ok_or_else(|| invalid("neither a path nor a qualified name"))?;
    check_kind(kind).map_err(|why| invalid(&why))?;
    check_name(name).map_err(|why| invalid(&why))?;
    Ok((kind, name))
}

fn check_kind(kind: &str) -> Result<(), String> {
    let part = |text: &str, more: &str| {
        text.starts_with(|first: char| first.is_ascii_alphabetic())
            && text.ends_with(|last: char| last.is_ascii_alphanumeric())
            && text
                .chars()
                .all(|letter| letter.is_ascii_alphanumeric() || more.contains(letter))
    };
    match kind.split_once('/') {
        Some((vendor, class)) if part(vendor, "-_.") && part(class, "-_") => Ok(()),
        _ => Err(format!("kind {kind:?} is not VENDOR/CLASS")),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let ends = |letter: char| letter.is_ascii_alphanumeric();
    if name.starts_with(ends)
        && name.ends_with(ends)
        && name.chars().all(|letter| ends(letter) || "-_.:".contains(letter))
    {
        Ok(())
    } else {
        Err(format!("{name:?} is not a device's name"))
    }
}

fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), String> {
    const TOTAL_MAX: usize = 256 << 10;
    let total: usize = annotations
        .iter()
        .map(|(key, value)| key.len() + value.len())
        .sum();
    if total > TOTAL_MAX {
        return Err(format!("annotations longer than {TOTAL_MAX} bytes"));
    }
    match annotations
        .keys()
        .find(|key| key.is_empty() || key.chars().any(char::is_whitespace))
    {
        Some(key) => Err(format!("annotation {key:?} is not a name")),
        None => Ok(()),
    }
}

impl ContainerEdits {
    fn check(&self) -> Result<(), String> {
        for line in &self.env {
            if line.split_once('=').is_none_or(|(name, _)| name.is_empty()) || line.contains('\0') {
                return Err(format!("env {line:?}: expected NAME=VALUE"));
            }
        }
        for node in &self.device_nodes {
            absolute("deviceNodes.path", &node.path)?;
            if let Some(path) = &node.host_path {
                absolute("deviceNodes.hostPath", path)?;
            }
            if !matches!(node.kind.as_deref(), None | Some("" | "b" | "c" | "u" | "p")) {
                return Err(format!("deviceNodes {:?}: type {:?}", node.path, node.kind));
            }
            let rights = node.permissions.as_deref().unwrap_or_default();
            if !rights.chars().all(|right| "rwm".contains(right)) {
                return Err(format!("deviceNodes {:?}: permissions {rights:?}", node.path));
            }
            if !(rights.is_empty() || rights.contains('r') && rights.contains('w')) {
                return Err(format!(
                    "deviceNodes {:?}: permissions {rights:?} cannot be enforced without root: a device is granted to read and write",
                    node.path
                ));
            }
        }
        for mount in &self.mounts {
            absolute("mounts.containerPath", &mount.container_path)?;
            if mount.host_path.is_empty() {
                return Err(format!("mounts {:?}: no hostPath", mount.container_path));
            }
        }
        for hook in &self.hooks {
            if !HOOKS.contains(&hook.hook_name.as_str()) {
                return Err(format!("hooks: {:?} is not a hook's name", hook.hook_name));
            }
            absolute("hooks.path", &hook.path)?;
        }
        if let Some(id) = self.intel_rdt.as_ref().and_then(|rdt| rdt.clos_id.as_deref())
            && (id.is_empty() || id.len() > 4095 || id == "." || id == ".." || id.contains(['/', '\n']))
        {
            return Err(format!("intelRdt.closID {id:?} is not a name"));
        }
        Ok(())
    }

    fn apply(&self, edits: &mut Edits) -> Result<(), String> {
        edits.env.extend(self.env.iter().cloned());
        for node in &self.device_nodes {
            let host = node
                .host_path
                .as_deref()
                .filter(|path| !path.is_empty())
                .unwrap_or(&node.path);
            node.matches(Path::new(host), &mut edits.left_out)?;
            let pair = (PathBuf::from(host), node.path.clone());
            if !edits.nodes.contains(&pair) {
                edits.nodes.push(pair);
            }
        }
        for mount in &self.mounts {
            let mut options = mount.options.clone();
            let kind = mount
                .kind
                .as_deref()
                .filter(|kind| !kind.is_empty())
                .unwrap_or("bind");
            if kind == "bind" && !options.iter().any(|word| word == "bind" || word == "rbind") {
                options.push("bind".into());
            }
            let mount = json!({"destination": mount.container_path, "type": kind, "source": mount.host_path, "options": options});
            if !edits.mounts.contains(&mount) {
                edits.mounts.push(mount);
            }
        }
        for hook in &self.hooks {
            let mut value = json!({"path": hook.path});
            for (key, list) in [("args", &hook.args), ("env", &hook.env)] {
                if !list.is_empty() {
                    value[key] = json!(list);
                }
            }
            if let Some(seconds) = hook.timeout {
                value["timeout"] = seconds.into();
            }
            edits.hooks.push((hook.hook_name.clone(), value));
        }
        for gid in self.additional_gids.iter().filter(|gid| **gid != 0) {
            if !edits.groups.contains(gid) {
                edits.groups.push(*gid);
            }
        }
        if let Some(rdt) = &self.intel_rdt {
            edits.rdt = Some(rdt.value());
        }
        Ok(())
    }
}

impl Rdt {
    fn value(&self) -> Value {
        let fields = [
            ("closID", self.clos_id.clone().map(Value::from)),
            ("l3CacheSchema", self.l3_cache_schema.clone().map(Value::from)),
            ("memBwSchema", self.mem_bw_schema.clone().map(Value::from)),
            ("enableCMT", self.enable_cmt.map(Value::from)),
            ("enableMBM", self.enable_mbm.map(Value::from)),
        ];
        fields
            .into_iter()
            .filter_map(|(name, value)| Some((name.to_owned(), value?)))
            .collect::<serde_json::Map<_, _>>()
            .into()
    }
}

impl Node {
    /// Whether the board's node is what the specification says it is. One that is not there is named later.
    fn matches(&self, host: &Path, left_out: &mut Vec<String>) -> Result<(), String> {
        use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
        let Ok(meta) = std::fs::metadata(host) else {
            return Ok(());
        };
        let numbers = (
            i64::from(rustix::fs::major(meta.rdev())),
            i64::from(rustix::fs::minor(meta.rdev())),
        );
        let kind = if meta.file_type().is_block_device() {
            "b"
        } else if meta.file_type().is_fifo() {
            "p"
        } else {
            "c"
        };
        let asked = self
            .kind
            .as_deref()
            .filter(|kind| !kind.is_empty())
            .map(|kind| if kind == "u" { "c" } else { kind });
        let numbered = kind != "p" && (self.major.unwrap_or(0) != 0 || self.minor.unwrap_or(0) != 0);
        let other = numbered && (self.major.unwrap_or(numbers.0), self.minor.unwrap_or(numbers.1)) != numbers;
        if asked.is_some_and(|asked| asked != kind) || other {
            return Err(format!(
                "{} is {kind} {}:{} on this board, not as described; write the specification anew",
                host.display(),
                numbers.0,
                numbers.1
            ));
        }
        let node = self.path.as_str();
        let mut other = |field: &str, asked: Option<String>, found: String| {
            if let Some(asked) = asked.filter(|asked| *asked != found) {
                left_out.push(format!("device {node}: {field} {asked} not set: a node of the board is given as it is, with {found}"));
            }
        };
        other(
            "fileMode",
            self.file_mode.map(|mode| format!("{:o}", mode & 0o7777)),
            format!("{:o}", meta.mode() & 0o7777),
        );
        other("uid", self.uid.map(|id| id.to_string()), meta.uid().to_string());
        other("gid", self.gid.map(|id| id.to_string()), meta.gid().to_string());
        Ok(())
    }
}

fn absolute(what: &str, path: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.split('/').any(|part| part == "..") && !path.contains('\0') {
        Ok(())
    } else {
        Err(format!("{what}: {path:?} is not an absolute path"))
    }
}

#[cfg(test)]
pub(super) fn parse_for_tests(bytes: &[u8], yaml: bool) -> Result<(), String> {
    parse(bytes, yaml).map(drop)
}
