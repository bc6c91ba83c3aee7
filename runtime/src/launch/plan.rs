//! The bundle, checked and turned into what the launch carries out. Everything that can be refused is refused here,
//! before a process or a namespace exists.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::mount::MountPropagationFlags;
use rustix::thread::{LinkNameSpaceType, UnshareFlags};
use serde::{Deserialize, Serialize};

use super::mounts::{self, Kind, Mounting, Overlay};
use super::options;
use crate::attributes::Domain;
use crate::cgroup::Resources;
use crate::config::{Config, Device, Hooks, IdMapping, Process, Seccomp};
use crate::confine::{Credentials, KEEP_GROUPS};
use crate::error::{Context, Error};
use crate::policy::{self, Policy};
use crate::seccomp::Filter;
use crate::sys;

/// Annotations that steer this runtime; anything else below `dev.wherry.` is refused.
const ANNOTATIONS: &[&str] = &["dev.wherry.seccomp", "dev.wherry.landlock", "dev.wherry.ports"];

/// Namespaces that a bundle may name.
pub(crate) const NAMESPACES: &[&str] = &["cgroup", "ipc", "mount", "network", "pid", "time", "user", "uts"];

/// Most id ranges: the kernel's own limit.
const MAX_MAPPINGS: usize = 340;

/// The pid namespace of the container.
pub(crate) enum Pids {
    New,
    Join(OwnedFd),
    Host,
}

/// How the ids of a new user namespace are set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Mappings {
    pub(crate) uids: Vec<IdMapping>,
    pub(crate) gids: Vec<IdMapping>,
    /// A single id is mapped without privileges only if the namespace gives up setgroups for good.
    pub(crate) setgroups_denied: bool,
}

/// A launch, ready to be carried out.
pub(crate) struct Plan {
    pub(crate) rootfs: PathBuf,
    pub(crate) readonly: bool,
    pub(crate) overlay: Option<Overlay>,
    pub(crate) mounts: Vec<Mounting>,
    pub(crate) masked: Vec<String>,
    pub(crate) protected: Vec<String>,
    pub(crate) devices: Vec<Device>,
    pub(crate) propagation: Option<MountPropagationFlags>,
    /// New namespaces, besides pid.
    pub(crate) new: UnshareFlags,
    /// Namespaces to join by kind, the user namespace first.
    pub(crate) joined: Vec<(LinkNameSpaceType, OwnedFd)>,
    pub(crate) pids: Pids,
    /// The kinds of those joined.
    pub(crate) joined_kinds: UnshareFlags,
    /// Set for a new user namespace.
    pub(crate) mappings: Option<Mappings>,
    pub(crate) hostname: Option<String>,
    pub(crate) domainname: Option<String>,
    pub(crate) sysctl: BTreeMap<String, String>,
    pub(crate) process: Process,
    pub(crate) credentials: Credentials,
    /// The system call filter, compiled by who installs it: while the mounts are made.
    pub(crate) filter: FilterSource,
    pub(crate) policy: Policy,
    pub(crate) hooks: Hooks,
    /// Where its cgroup shall be.
    pub(crate) cgroups_path: Option<String>,
    /// Limits of its cgroup.
    pub(crate) resources: Resources,
    /// Whether the creator is root of the host.
    pub(crate) host_root: bool,
    /// Guarantees lost and fields not honoured, by name.
    pub(crate) warnings: Vec<String>,
    /// Whether AppArmor can be asked to confine.
    pub(crate) has_apparmor: bool,
    /// Execution domain and memory policy of all processes.
    pub(crate) domain: Domain,
    /// Clocks of a new time namespace, in the kernel's words.
    pub(crate) clocks: String,
    /// Root of the new user namespace is the caller: what it makes belongs to the right user before the ids are mapped.
    pub(crate) maps_own_root: bool,
    /// Supplementary groups stay the caller's.
    pub(crate) keep_groups: bool,
    /// Where the listener of the system call filter is sent.
    pub(crate) listener: Option<Listener>,
}

/// Where the system call filter comes from.
#[derive(Debug)]
pub(crate) enum FilterSource {
    /// There is none.
    None,
    /// The default one, for the capabilities of the bundle's process.
    BuiltIn,
    /// The bundle's.
    Profile(Seccomp),
}

/// Who answers system calls with `SCMP_ACT_NOTIFY`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Listener {
    /// Its socket.
    pub(crate) path: PathBuf,
    /// Text for it.
    pub(crate) metadata: Option<String>,
}

impl Plan {
    /// Compiles the system call filter.
    ///
    /// # Errors
    ///
    /// Names the field of the profile that is refused.
    pub(crate) fn compile_filter(&self, warnings: &mut Vec<String>) -> Result<Option<Filter>, Error> {
        match &self.filter {
            FilterSource::None => Ok(None),
            FilterSource::BuiltIn => Ok(Some(Filter::built_in(self.credentials.bounding()))),
            FilterSource::Profile(profile) => Filter::compile(profile, warnings).map(Some),
        }
    }

    /// Whether mounting can begin before the ids are mapped: nothing is made that belongs to somebody else then.
    pub(crate) fn begins_unmapped(&self) -> bool {
        self.maps_own_root && self.overlay.is_none() && self.sysctl.is_empty() && self.clocks.is_empty()
    }

    /// Whether the container's user namespace is not the host's first one.
    pub(crate) fn in_user_namespace(&self) -> bool {
        !self.host_root || self.new.contains(UnshareFlags::NEWUSER)
    }

    /// Whether init can be made in the container's cgroup: its maker, the spawner, must be the user who made the cgroup, in
    /// a cgroup namespace that shows it. Otherwise init enters through a descriptor that the creator has opened.
    pub(crate) fn born_in_cgroup(&self) -> bool {
        let root = self.mappings.as_ref().and_then(|mappings| {
            let first = |m: &&IdMapping| m.container_id == 0;
            mappings.uids.iter().find(first).map(|m| m.host_id)
        });
        let joined = UnshareFlags::NEWUSER | UnshareFlags::NEWCGROUP;
        root.is_none_or(|id| id == rustix::process::geteuid().as_raw())
            && !self.joined_kinds.intersects(joined)
    }

    /// Whether new namespaces can only be made after a user namespace was joined.
    pub(crate) fn joins_user_namespace(&self) -> bool {
        self.joined_kinds.contains(UnshareFlags::NEWUSER)
    }
}

/// Whether this process is root of the host. Engines for ordinary users run the runtime as root of a user namespace.
pub(crate) fn is_host_root() -> bool {
    // Before 3.8, or without procfs, there is nothing else to be root of.
    let everybody = |map: String| map.split_ascii_whitespace().eq(["0", "0", "4294967295"]);
    rustix::process::geteuid().is_root()
        && std::fs::read_to_string("/proc/self/uid_map").map_or(true, everybody)
}

/// Checks a bundle.
///
/// # Errors
///
/// Names the field that is refused.
pub(crate) fn plan(config: Config, mut warnings: Vec<String>, bundle: &Path) -> Result<Plan, Error> {
    check_annotations(&config)?;
    let ids = (
        config.linux.uid_mappings.as_slice(),
        config.linux.gid_mappings.as_slice(),
    );
    let (overlay, mounts) = mounts::plan(&config.mounts, bundle, ids, &mut warnings)?;
    if config.root.path.is_empty() || config.root.path.contains('\0') {
        return Err(Error::config("root.path", "expected a path"));
    }
    let namespaces = plan_namespaces(&config)?;
    let own = |flag| (namespaces.new | namespaces.kinds).contains(flag);
    let mappings = plan_mappings(&config, &namespaces)?;

    let own_network = own(UnshareFlags::NEWNET);
    for name in config.sysctl_names() {
        let inside = match name.split('.').next() {
            Some("net") => own_network,
            Some("fs") => name.starts_with("fs.mqueue.") && own(UnshareFlags::NEWIPC),
            Some("kernel") => {
                let rest = name.trim_start_matches("kernel.");
                (rest.starts_with("msg") || rest.starts_with("shm") || rest == "sem")
                    && own(UnshareFlags::NEWIPC)
                    || rest == "domainname" && own(UnshareFlags::NEWUTS)
            }
            _ => false,
        };
        if !inside || name.contains('/') || name.contains("..") {
            return Err(Error::config(
                format!("linux.sysctl.{name}"),
                "not a parameter of one of the container's own namespaces",
            ));
        }
    }
    if let (Some(name), Some(value)) = (&config.domainname, config.linux.sysctl.get("kernel.domainname"))
        && name != value
    {
        return Err(Error::config(
            "linux.sysctl.kernel.domainname",
            format!("{value:?}: config.json's domainname is {name:?}"),
        ));
    }
    if (config.hostname.is_some() || config.domainname.is_some()) && !own(UnshareFlags::NEWUTS) {
        return Err(Error::config(
            "hostname",
            "needs a UTS namespace in linux.namespaces",
        ));
    }

    let seccomp_off = config.annotation("dev.wherry.seccomp").is_some();
    let keep_groups = config
        .annotation(KEEP_GROUPS)
        .is_some_and(|value| !matches!(value, "" | "0"));
    let credentials =
        Credentials::from_process(&config.process, mappings.as_ref(), keep_groups, &mut warnings)?;
    if seccomp_off {
        warnings.push("seccomp: off, as the annotation dev.wherry.seccomp asks".into());
    }

    let ports = config
        .annotation("dev.wherry.ports")
        .map(policy::parse_ports)
        .transpose()
        .map_err(|reason| Error::config("annotations.dev.wherry.ports", reason))?;
    let policy = policy::decide(
        &policy::Asked {
            off: config.annotation("dev.wherry.landlock").is_some(),
            private_network: own_network,
            private_pids: !matches!(namespaces.pids, Pids::Host),
            ports,
        },
        sys::landlock_abi(),
    );
    warnings.extend(policy.lost.iter().cloned());

    let propagation = match config.linux.rootfs_propagation.as_deref() {
        None | Some("") => None,
        Some(word) => Some(options::propagation(word).ok_or_else(|| {
            Error::config(
                "linux.rootfsPropagation",
                format!("{word:?}: expected a propagation"),
            )
        })?),
    };
    for (index, device) in config.linux.devices.iter().enumerate() {
        if !matches!(device.kind.as_str(), "c" | "b" | "u" | "p") || !device.path.starts_with('/') {
            return Err(Error::config(
                format!("linux.devices[{index}]"),
                "expected a type and an absolute path",
            ));
        }
    }
    check_process(&config.process)?;
    check_labels(&config, &mut warnings)?;
    warnings.extend(check_apparmor(config.process.apparmor_profile.as_deref()));
    let clocks = plan_clocks(&config, namespaces.new.contains(UnshareFlags::NEWTIME))?;
    let domain = Domain::new(
        config.linux.personality.as_ref(),
        config.linux.memory_policy.as_ref(),
    )?;
    let maps_own_root = mappings.as_ref().is_some_and(|mappings| {
        let own = |list: &[IdMapping], id: u32| list.iter().any(|m| m.container_id == 0 && m.host_id == id);
        own(&mappings.uids, rustix::process::geteuid().as_raw())
            && own(&mappings.gids, rustix::process::getegid().as_raw())
    });
    let listener = config
        .linux
        .seccomp
        .as_ref()
        .filter(|_| !seccomp_off)
        .and_then(|profile| {
            let path = profile.listener_path.as_ref().filter(|path| !path.is_empty())?;
            Some(Listener {
                path: path.into(),
                metadata: profile.listener_metadata.clone(),
            })
        });
    if config.process.terminal && own(UnshareFlags::NEWNS) && !mounts.iter().any(|m| m.kind == Kind::Devpts) {
        return Err(Error::config("process.terminal", "needs a devpts mount"));
    }

    Ok(Plan {
        rootfs: bundle.join(&config.root.path),
        readonly: config.root.readonly,
        overlay,
        mounts,
        masked: config.linux.masked_paths,
        protected: config.linux.readonly_paths,
        devices: config.linux.devices,
        propagation,
        new: namespaces.new,
        joined: namespaces.joined,
        joined_kinds: namespaces.kinds,
        pids: namespaces.pids,
        mappings,
        hostname: config.hostname,
        domainname: config.domainname,
        sysctl: config.linux.sysctl,
        process: config.process,
        credentials,
        filter: match config.linux.seccomp {
            _ if seccomp_off => FilterSource::None,
            Some(profile) => FilterSource::Profile(profile),
            None => FilterSource::BuiltIn,
        },
        maps_own_root,
        policy,
        hooks: config.hooks,
        cgroups_path: config.linux.cgroups_path,
        resources: config.linux.resources.unwrap_or_default(),
        warnings,
        host_root: is_host_root(),
        has_apparmor: has_apparmor(),
        domain,
        clocks,
        keep_groups,
        listener,
    })
}

/// The offsets of a new time namespace, as the kernel reads them.
fn plan_clocks(config: &Config, own_time: bool) -> Result<String, Error> {
    let mut clocks = String::new();
    for (name, offset) in &config.linux.time_offsets {
        let field = format!("linux.timeOffsets.{name}");
        if !matches!(name.as_str(), "monotonic" | "boottime") {
            return Err(Error::config(field, "expected monotonic or boottime"));
        }
        if !own_time {
            return Err(Error::config(
                field,
                "needs a new time namespace in linux.namespaces",
            ));
        }
        clocks += &format!("{name} {} {}\n", offset.secs, offset.nanosecs);
    }
    Ok(clocks)
}

/// Whether this kernel has AppArmor on.
fn has_apparmor() -> bool {
    std::fs::read("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.first() == Some(&b'Y'))
}

/// The warning for a profile of AppArmor, where there is none.
pub(crate) fn check_apparmor(profile: Option<&str>) -> Option<String> {
    let profile = profile.filter(|profile| !profile.is_empty() && !has_apparmor())?;
    Some(format!(
        "process.apparmorProfile: {profile:?}: not enforced, this kernel has no AppArmor on"
    ))
}

/// Labels are SELinux's: without it there is nothing to label, and with it they are not set.
fn check_labels(config: &Config, warnings: &mut Vec<String>) -> Result<(), Error> {
    for (field, label) in [
        ("process.selinuxLabel", &config.process.selinux_label),
        ("linux.mountLabel", &config.linux.mount_label),
    ] {
        warnings.extend(check_label(field, label.as_deref())?);
    }
    Ok(())
}

/// The warning for a label, where it means nothing.
pub(crate) fn check_label(field: &str, label: Option<&str>) -> Result<Option<String>, Error> {
    match label {
        None | Some("") => Ok(None),
        Some(_) if Path::new("/sys/fs/selinux/enforce").exists() => Err(Error::config(
            field,
            "SELinux is on, and this runtime does not set its labels: remove the field",
        )),
        Some(label) => Ok(Some(format!(
            "{field}: {label:?}: ignored, this kernel has no SELinux on"
        ))),
    }
}

impl Config {
    fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.get(key).map(String::as_str)
    }

    fn sysctl_names(&self) -> impl Iterator<Item = &str> {
        self.linux.sysctl.keys().map(String::as_str)
    }
}

fn check_annotations(config: &Config) -> Result<(), Error> {
    for (key, value) in &config.annotations {
        let refuse = |reason: String| Err(Error::config(format!("annotations.{key}"), reason));
        match key.as_str() {
            "dev.wherry.seccomp" if value != "unconfined" => {
                return refuse(format!("expected \"unconfined\", got {value:?}"));
            }
            "dev.wherry.landlock" if value != "off" => {
                return refuse(format!("expected \"off\", got {value:?}"));
            }
            _ if key.starts_with("dev.wherry.") && !ANNOTATIONS.contains(&key.as_str()) => {
                return refuse("unknown to this runtime".into());
            }
            _ => {}
        }
    }
    Ok(())
}

/// What any process must say, of `create` and of `exec`.
pub(crate) fn check_process(process: &Process) -> Result<(), Error> {
    if process.args.first().is_none_or(String::is_empty) {
        return Err(Error::config("process.args", "expected a program"));
    }
    if !process.cwd.starts_with('/') {
        return Err(Error::config(
            "process.cwd",
            format!("expected an absolute path, got {:?}", process.cwd),
        ));
    }
    let texts = process.args.iter().chain(&process.env).chain([&process.cwd]);
    if texts.into_iter().any(|text| text.contains('\0')) {
        return Err(Error::config("process", "a zero byte in args, env or cwd"));
    }
    Ok(())
}

struct Namespaces {
    new: UnshareFlags,
    joined: Vec<(LinkNameSpaceType, OwnedFd)>,
    /// The kinds of those joined.
    kinds: UnshareFlags,
    pids: Pids,
}

fn plan_namespaces(config: &Config) -> Result<Namespaces, Error> {
    let mut namespaces = Namespaces {
        new: UnshareFlags::empty(),
        joined: Vec::new(),
        kinds: UnshareFlags::empty(),
        pids: Pids::Host,
    };
    let mut seen = Vec::new();
    for (index, namespace) in config.linux.namespaces.iter().enumerate() {
        let field = format!("linux.namespaces[{index}]");
        let flag = match namespace.kind.as_str() {
            "user" => UnshareFlags::NEWUSER,
            "mount" => UnshareFlags::NEWNS,
            "ipc" => UnshareFlags::NEWIPC,
            "uts" => UnshareFlags::NEWUTS,
            "network" => UnshareFlags::NEWNET,
            "cgroup" => UnshareFlags::NEWCGROUP,
            "pid" => UnshareFlags::NEWPID,
            "time" => UnshareFlags::NEWTIME,
            other => {
                return Err(Error::config(
                    field,
                    format!("type {other:?}: not supported by this runtime"),
                ));
            }
        };
        if seen.contains(&flag) {
            return Err(Error::config(
                field,
                format!("{:?} is named twice", namespace.kind),
            ));
        }
        seen.push(flag);
        let path = namespace.path.as_deref().filter(|path| !path.is_empty());
        let joined = path
            .map(|path| {
                // Whatever else stands there must not make this wait, as a fifo would.
                let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                rustix::fs::open(path, flags, Mode::empty())
                    .context(|| format!("config.json: {field}.path: {path}"))
            })
            .transpose()?;
        match (flag, joined) {
            (UnshareFlags::NEWPID, None) => namespaces.pids = Pids::New,
            (UnshareFlags::NEWPID, Some(fd)) => namespaces.pids = Pids::Join(fd),
            (UnshareFlags::NEWNS, Some(_)) => {
                return Err(Error::config(
                    field,
                    "joining a mount namespace is not supported by this runtime",
                ));
            }
            (flag, None) => namespaces.new |= flag,
            (flag, Some(fd)) => {
                namespaces.kinds |= flag;
                let kind = match flag {
                    UnshareFlags::NEWUSER => LinkNameSpaceType::User,
                    UnshareFlags::NEWIPC => LinkNameSpaceType::InterProcessCommunication,
                    UnshareFlags::NEWUTS => LinkNameSpaceType::HostNameAndNISDomainName,
                    UnshareFlags::NEWCGROUP => LinkNameSpaceType::ControlGroup,
                    UnshareFlags::NEWTIME => LinkNameSpaceType::Time,
                    _ => LinkNameSpaceType::Network,
                };
                let position = if flag == UnshareFlags::NEWUSER {
                    0
                } else {
                    namespaces.joined.len()
                };
                namespaces.joined.insert(position, (kind, fd));
            }
        }
    }
    if !namespaces.new.contains(UnshareFlags::NEWNS) {
        return Err(Error::config(
            "linux.namespaces",
            "a mount namespace of its own is required",
        ));
    }
    if !seen.contains(&UnshareFlags::NEWUSER) && !rustix::process::geteuid().is_root() {
        return Err(Error::config(
            "linux.namespaces",
            "a user namespace is required for a user who is not root",
        ));
    }
    Ok(namespaces)
}

fn plan_mappings(config: &Config, namespaces: &Namespaces) -> Result<Option<Mappings>, Error> {
    let (uids, gids) = (
        config.linux.uid_mappings.clone(),
        config.linux.gid_mappings.clone(),
    );
    let single = uids.len() == 1 && gids.len() == 1 && uids.iter().chain(&gids).all(|m| m.size == 1);
    let setgroups_denied = single && !rustix::process::geteuid().is_root();
    let mappings = Mappings {
        uids,
        gids,
        setgroups_denied,
    };
    if !namespaces.new.contains(UnshareFlags::NEWUSER) {
        let joins = namespaces.kinds.contains(UnshareFlags::NEWUSER);
        if !joins && (!mappings.uids.is_empty() || !mappings.gids.is_empty()) {
            return Err(Error::config(
                "linux.uidMappings",
                "needs a user namespace in linux.namespaces",
            ));
        }
        return Ok(None);
    }
    for (field, list) in [
        ("linux.uidMappings", &mappings.uids),
        ("linux.gidMappings", &mappings.gids),
    ] {
        check_mappings(field, list)?;
    }
    Ok(Some(mappings))
}

/// Checks the ranges of ids of one field.
pub(super) fn check_mappings(field: &str, list: &[IdMapping]) -> Result<(), Error> {
    if list.is_empty() || list.len() > MAX_MAPPINGS {
        return Err(Error::config(
            field,
            format!("expected 1 to {MAX_MAPPINGS} ranges, got {}", list.len()),
        ));
    }
    for (index, m) in list.iter().enumerate() {
        let overflows =
            m.container_id.checked_add(m.size).is_none() || m.host_id.checked_add(m.size).is_none();
        if m.size == 0 || overflows {
            return Err(Error::config(format!("{field}[{index}]"), "not a range of ids"));
        }
    }
    Ok(())
}
