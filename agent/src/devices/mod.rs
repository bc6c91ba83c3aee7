//! Devices of the board in a container: what `--device` and `--gpus` ask for becomes edits of the bundle.
//!
//! ```text
//! /dev/x[:/dev/y][:rwm] ────────────────────────────┐
//! vendor.example/class=name ──▶ cdi: /etc/cdi, /run/cdi ──▶ Edits ──▶ assemble
//! --gpus ──▶ nvidia.com/gpu=... ──▶ cdi, or l4t on a Jetson without it ──┘
//! ```
//! A node cannot be made without privileges: the board's own is bound into the container, and only one that the user may
//! open is granted. Nothing filters what is done with an open device: that takes an eBPF program, which takes root.
//! Requests are resolved at every start: specifications are written anew when drivers change.

mod cdi;
mod l4t;

use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The kind by which NVIDIA's container toolkit describes GPUs.
const GPU: &str = "nvidia.com/gpu";
/// A directory such as `/dev/snd` holds no more nodes than this.
const NODES_MAX: usize = 256;
const DEPTH_MAX: usize = 4;

/// What of the board's devices a container asks for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Request {
    /// A node, or a directory of nodes, and where it is to be in the container.
    #[serde(rename_all = "camelCase")]
    Path {
        /// On the board, absolute.
        host: PathBuf,
        /// In the container, absolute.
        container: String,
    },
    /// A device by its qualified CDI name, `vendor.example/class=name`.
    Cdi(String),
}

/// Why a device is refused. The text names it and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

/// What is added to a bundle for the devices of a container, in the order in which it was asked for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    /// Device nodes: the board's, the container's.
    pub nodes: Vec<(PathBuf, String)>,
    /// Mounts in the runtime specification's form.
    pub mounts: Vec<Value>,
    /// Hooks by the runtime specification's names.
    pub hooks: Vec<(String, Value)>,
    /// Groups that devices belong to, which the user must be in.
    pub groups: Vec<u32>,
    /// `linux.intelRdt`.
    pub rdt: Option<Value>,
    /// What was asked for and cannot be done, one line each.
    pub left_out: Vec<String>,
}

impl Request {
    /// Reads docker's `HOST_PATH[:CONTAINER_PATH][:rwm]`, or a qualified CDI name.
    ///
    /// # Errors
    ///
    /// Names what is wrong with it.
    pub fn parse(text: &str) -> Result<Self, Error> {
        if !text.starts_with('/') {
            cdi::qualified(text)?;
            return Ok(Self::Cdi(text.into()));
        }
        let invalid = |why: String| {
            Error::new(format!(
                "device {text:?}: {why}; write HOST_PATH[:CONTAINER_PATH][:rwm], or VENDOR/CLASS=NAME"
            ))
        };
        let words: Vec<&str> = text.split(':').collect();
        let (host, container, rights) = match words[..] {
            [host] => (host, host, "rwm"),
            [host, second] if second.starts_with('/') => (host, second, "rwm"),
            [host, rights] => (host, host, rights),
            [host, container, rights] => (host, container, rights),
            _ => return Err(invalid("too many colons".into())),
        };
        if rights.is_empty() || !rights.chars().all(|right| "rwm".contains(right)) {
            return Err(invalid(format!("{rights:?}: rights are letters of \"rwm\"")));
        }
        if !(rights.contains('r') && rights.contains('w')) {
            return Err(invalid(format!(
                "{rights:?} cannot be enforced without root: a device is granted to read and write"
            )));
        }
        for path in [host, container] {
            if !path.starts_with('/') || path.split('/').any(|part| part == "..") {
                return Err(invalid(format!("{path:?} is not an absolute path")));
            }
        }
        Ok(Self::Path {
            host: host.into(),
            container: container.into(),
        })
    }

    /// Reads docker's `--gpus`: `all`, a number, `device=NAME,NAME`, or these with docker's quotes and further keys.
    ///
    /// # Errors
    ///
    /// Names what is wrong with it.
    pub fn parse_gpus(text: &str) -> Result<Vec<Self>, Error> {
        let invalid = |why: &str| {
            Error::new(format!(
                "gpus {text:?}: {why}; write all, a number, or device=0,1"
            ))
        };
        let one = |name: &str| Self::parse(&format!("{GPU}={name}")).map_err(|_| invalid("not a GPU's name"));
        let plain = text.trim().trim_matches(['"', '\'']);
        if let Some(names) = plain.strip_prefix("device=") {
            return names
                .trim_matches('"')
                .split(',')
                .map(|name| one(name.trim()))
                .collect();
        }
        match plain {
            "all" | "-1" => Ok(vec![one("all")?]),
            number => match number.parse::<u32>() {
                Ok(count @ 1..=64) => (0..count).map(|index| one(&index.to_string())).collect(),
                _ => Err(invalid("unknown")),
            },
        }
    }
}

/// Where descriptions of devices lie on a board.
#[derive(Clone, Debug)]
pub struct Places {
    /// Directories of CDI specifications; a later one wins over an earlier one.
    pub cdi: Vec<PathBuf>,
    /// Directory of the lists that Jetson's base system has.
    pub l4t: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            cdi: vec!["/etc/cdi".into(), "/run/cdi".into()],
            l4t: "/etc/nvidia-container-runtime/host-files-for-container.d".into(),
        }
    }
}

/// Looks up what was asked for, on the board as it is now.
///
/// # Errors
///
/// Names the device that is not there, may not be opened, or is described twice; and the file that is not understood.
pub fn resolve(requests: &[Request], places: &Places) -> Result<Edits, Error> {
    let mut edits = Edits::default();
    let mut names: Vec<&str> = Vec::new();
    for request in requests {
        match request {
            Request::Path { host, container } => path_nodes(host, container, 0, &mut edits.nodes)?,
            Request::Cdi(name) if !names.contains(&name.as_str()) => names.push(name),
            Request::Cdi(_) => {}
        }
    }
    if !names.is_empty() {
        let registry = cdi::Registry::read(&places.cdi)?;
        let is_gpu = |name: &&str| name.strip_prefix(GPU).is_some_and(|rest| rest.starts_with('='));
        if !registry.knows_kind(GPU) && names.iter().any(is_gpu) {
            let lists = l4t::lists(&places.l4t);
            if !lists.is_empty() {
                names.retain(|name| !is_gpu(name));
                l4t::edits(&lists, &mut edits)?;
            }
        }
        registry.inject(&names, &mut edits)?;
    }
    for (host, _) in &edits.nodes {
        may_open(host)?;
    }
    no_conflicts(&edits)?;
    Ok(edits)
}

/// The node, or all nodes of the directory.
fn path_nodes(
    host: &Path,
    container: &str,
    depth: usize,
    nodes: &mut Vec<(PathBuf, String)>,
) -> Result<(), Error> {
    let failed = |error: &std::io::Error| Error::new(format!("device {}: {error}", host.display()));
    let meta = std::fs::metadata(host).map_err(|error| failed(&error))?;
    if !meta.is_dir() {
        if nodes.len() >= NODES_MAX {
            return Err(Error::new(format!(
                "device {}: more than {NODES_MAX} nodes",
                host.display()
            )));
        }
        nodes.push((host.to_owned(), container.to_owned()));
        return Ok(());
    }
    if depth >= DEPTH_MAX {
        return Err(Error::new(format!(
            "device {}: directories deeper than {DEPTH_MAX}",
            host.display()
        )));
    }
    let mut entries: Vec<_> = std::fs::read_dir(host)
        .and_then(Iterator::collect::<Result<_, _>>)
        .map_err(|error| failed(&error))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let is_node = entry
            .file_type()
            .is_ok_and(|kind| kind.is_char_device() || kind.is_block_device() || kind.is_dir());
        if let Some(name) = name.to_str().filter(|_| is_node) {
            path_nodes(
                &entry.path(),
                &format!("{}/{name}", container.trim_end_matches('/')),
                depth + 1,
                nodes,
            )?;
        }
    }
    Ok(())
}

/// Whether it is a device, and one that this user may open: in the container nobody may do more.
fn may_open(path: &Path) -> Result<(), Error> {
    let failed = |why: String| Err(Error::new(format!("device {}: {why}", path.display())));
    let kind = match std::fs::metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return failed("this board has none; is its driver loaded?".into());
        }
        Err(error) => return failed(error.to_string()),
    };
    if !kind.is_char_device() && !kind.is_block_device() && !kind.is_fifo() {
        return failed("not a device; mount files and directories with -v".into());
    }
    use rustix::fs::Access;
    match rustix::fs::access(path, Access::READ_OK | Access::WRITE_OK) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::ACCESS) => failed(format!(
            "you may not open it; join the group it belongs to (see ls -l {0}), then log in again",
            path.display()
        )),
        Err(error) => failed(std::io::Error::from(error).to_string()),
    }
}

/// One place in the container cannot be two things.
fn no_conflicts(edits: &Edits) -> Result<(), Error> {
    let target = |mount: &Value| mount["destination"].as_str().unwrap_or_default().to_owned();
    for (index, (host, container)) in edits.nodes.iter().enumerate() {
        let others = edits.nodes.get(index + 1..).unwrap_or_default();
        if let Some((other, _)) = others.iter().find(|(other, at)| at == container && other != host) {
            return Err(Error::new(format!(
                "device {container}: both {} and {} are to be there",
                host.display(),
                other.display()
            )));
        }
        if edits.mounts.iter().any(|mount| target(mount) == *container) {
            return Err(Error::new(format!(
                "device {container}: a file is to be mounted there, too"
            )));
        }
    }
    for (index, mount) in edits.mounts.iter().enumerate() {
        let others = edits.mounts.get(index + 1..).unwrap_or_default();
        if let Some(other) = others
            .iter()
            .find(|other| target(other) == target(mount) && other != &mount)
        {
            return Err(Error::new(format!(
                "devices: {} is to be mounted from {} and from {}",
                target(mount),
                mount["source"],
                other["source"]
            )));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
