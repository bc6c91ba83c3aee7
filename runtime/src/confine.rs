//! The confinement itself: ids, capabilities, limits, no_new_privs, Landlock and seccomp, in the order that lets each
//! step still be taken and none be undone. Init and `exec` go through the same functions.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::str::FromStr;

use caps::{Capability, CapsHashSet};
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, PathBeneath, Ruleset,
    RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::io::Errno;
use rustix::process::{Gid, Resource, Rlimit, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

use crate::attributes::Scheduling;
use crate::config::Process;
use crate::error::{Context, Error};
use crate::launch::Mappings;
use crate::policy::Policy;
use crate::seccomp::Filter;
use crate::sys;

/// The newest Landlock rights that this code was written for; an older kernel gives fewer, which the policy reports.
const RIGHTS: ABI = ABI::V6;

/// Annotation with which engines ask for the caller's own supplementary groups, as devices may belong to them.
pub(crate) const KEEP_GROUPS: &str = "run.oci.keep_original_groups";

/// Who a process is and what it may do, checked.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    uid: u32,
    gid: u32,
    /// `None`: keep what the caller has, since setting groups is denied.
    groups: Option<Vec<u32>>,
    umask: Option<u32>,
    sets: Sets,
    rlimits: Vec<(Resource, Rlimit)>,
    pub(crate) no_new_privileges: bool,
    scheduling: Scheduling,
}

#[derive(Debug, Clone, Default)]
struct Sets {
    bounding: CapsHashSet,
    effective: CapsHashSet,
    inheritable: CapsHashSet,
    permitted: CapsHashSet,
    ambient: CapsHashSet,
}

impl Credentials {
    /// Checks a process's user, capabilities and limits. `mappings` are those of a new user namespace.
    ///
    /// # Errors
    ///
    /// Names the field.
    pub(crate) fn from_process(
        process: &Process,
        mappings: Option<&Mappings>,
        keep_groups: bool,
        warnings: &mut Vec<String>,
    ) -> Result<Self, Error> {
        let user = &process.user;
        if let Some(mappings) = mappings {
            for (field, id, list) in [
                ("process.user.uid", user.uid, &mappings.uids),
                ("process.user.gid", user.gid, &mappings.gids),
            ] {
                if !list.iter().any(|m| {
                    id.checked_sub(m.container_id)
                        .is_some_and(|offset| offset < m.size)
                }) {
                    return Err(Error::config(
                        field,
                        format!("{id} is not mapped in the user namespace"),
                    ));
                }
            }
        }
        let groups = if mappings.is_some_and(|mappings| mappings.setgroups_denied) {
            if user.additional_gids.iter().any(|gid| *gid != user.gid) {
                warnings.push(
                    "process.user.additionalGids: not set: with a single id mapped the kernel denies setgroups".into(),
                );
            }
            None
        } else if keep_groups {
            if !user.additional_gids.is_empty() {
                warnings.push(format!(
                    "process.user.additionalGids: not set, as the annotation {KEEP_GROUPS} asks"
                ));
            }
            None
        } else {
            Some(user.additional_gids.clone())
        };
        Ok(Self {
            uid: user.uid,
            gid: user.gid,
            groups,
            umask: user.umask,
            sets: Sets::from_process(process)?,
            rlimits: rlimits(process)?,
            no_new_privileges: process.no_new_privileges,
            scheduling: Scheduling::from_process(process)?,
        })
    }

    /// The bounding set, which decides the built-in system call filter.
    pub(crate) fn bounding(&self) -> &CapsHashSet {
        &self.sets.bounding
    }

    /// User and group.
    pub(crate) fn ids(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// How the process is scheduled.
    pub(crate) fn scheduling(&self) -> &Scheduling {
        &self.scheduling
    }

    /// Becomes this user with these capabilities, then takes the filter: nothing of the runtime is left after it. A
    /// filter's listener is handed to `listener` at once.
    ///
    /// # Errors
    ///
    /// Names the field or the call that failed.
    pub(crate) fn assume(
        &self,
        filter: Option<&Filter>,
        listener: &dyn Fn(OwnedFd) -> Result<(), Error>,
    ) -> Result<(), Error> {
        let install = |filter: &Filter| match filter.install().context(|| "seccomp")? {
            Some(fd) => listener(fd),
            None => Ok(()),
        };
        self.scheduling.apply()?;
        for (resource, limit) in &self.rlimits {
            rustix::process::setrlimit(*resource, *limit)
                .context(|| format!("config.json: process.rlimits: {resource:?}"))?;
        }
        if self.no_new_privileges {
            rustix::thread::set_no_new_privs(true).context(|| "no_new_privs")?;
        } else if let Some(filter) = filter {
            // Without no_new_privs a filter needs CAP_SYS_ADMIN, which is about to go.
            install(filter)?;
        }
        self.drop_bounding()?;
        rustix::thread::set_keep_capabilities(true).context(|| "keep capabilities")?;
        if let Some(groups) = &self.groups {
            let groups: Vec<Gid> = groups.iter().map(|gid| Gid::from_raw(*gid)).collect();
            match rustix::thread::set_thread_groups(&groups) {
                // A user namespace that was joined may have given up setgroups: then there are none to drop either.
                Err(rustix::io::Errno::PERM) if groups.is_empty() => {}
                result => result.context(|| "config.json: process.user.additionalGids")?,
            }
        }
        let gid = Gid::from_raw(self.gid);
        rustix::thread::set_thread_res_gid(gid, gid, gid)
            .context(|| format!("config.json: process.user.gid: {}", self.gid))?;
        let uid = Uid::from_raw(self.uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)
            .context(|| format!("config.json: process.user.uid: {}", self.uid))?;
        self.set_capabilities()?;
        rustix::thread::set_keep_capabilities(false).context(|| "keep capabilities")?;
        // POSIX masks are bits of the file mode; the default is what the specification says.
        rustix::process::umask(rustix::fs::Mode::from_raw_mode(self.umask.unwrap_or(0o022)));
        if self.no_new_privileges
            && let Some(filter) = filter
        {
            install(filter)?;
        }
        Ok(())
    }

    fn drop_bounding(&self) -> Result<(), Error> {
        for capability in caps::all().difference(&self.sets.bounding) {
            let bit = CapabilitySet::from_bits_retain(capability.bitmask());
            match rustix::thread::remove_capability_from_bounding_set(bit) {
                // One that this kernel does not know is not in the set.
                Ok(()) | Err(Errno::INVAL) => {}
                // Without CAP_SETPCAP nothing can be dropped: all is well if it is not there.
                Err(Errno::PERM)
                    if matches!(rustix::thread::capability_is_in_bounding_set(bit), Ok(false)) => {}
                Err(e) => return Err(capability_error("bounding", e)),
            }
        }
        Ok(())
    }

    /// A set at a time, not a capability at a time: there are forty, and this is between `start` and the program.
    fn set_capabilities(&self) -> Result<(), Error> {
        let sets = CapabilitySets {
            effective: bits(&self.sets.effective),
            permitted: bits(&self.sets.permitted),
            inheritable: bits(&self.sets.inheritable),
        };
        rustix::thread::set_capabilities(None, sets).map_err(|e| capability_error("permitted", e))?;
        match rustix::thread::clear_ambient_capability_set() {
            // Before 4.3 there are none.
            Err(Errno::INVAL) if self.sets.ambient.is_empty() => {}
            result => result.map_err(|e| capability_error("ambient", e))?,
        }
        for capability in &self.sets.ambient {
            let bit = CapabilitySet::from_bits_retain(capability.bitmask());
            rustix::thread::configure_capability_in_ambient_set(bit, true)
                .map_err(|e| capability_error("ambient", e))?;
        }
        Ok(())
    }
}

fn bits(set: &CapsHashSet) -> CapabilitySet {
    CapabilitySet::from_bits_retain(set.iter().fold(0, |bits, capability| bits | capability.bitmask()))
}

fn capability_error(set: &str, error: Errno) -> Error {
    Error::config(format!("process.capabilities.{set}"), error.to_string())
}

impl Sets {
    fn from_process(process: &Process) -> Result<Self, Error> {
        let Some(asked) = &process.capabilities else {
            return Ok(Self::default());
        };
        let set = |name: &str, list: &[String]| {
            list.iter()
                .map(|word| {
                    Capability::from_str(word).map_err(|_| {
                        Error::config(
                            format!("process.capabilities.{name}"),
                            format!("{word:?}: unknown capability"),
                        )
                    })
                })
                .collect::<Result<HashSet<_, _>, _>>()
        };
        let sets = Self {
            bounding: set("bounding", &asked.bounding)?,
            effective: set("effective", &asked.effective)?,
            inheritable: set("inheritable", &asked.inheritable)?,
            permitted: set("permitted", &asked.permitted)?,
            ambient: set("ambient", &asked.ambient)?,
        };
        if !sets.effective.is_subset(&sets.permitted) {
            return Err(Error::config(
                "process.capabilities.effective",
                "not a subset of permitted",
            ));
        }
        if !sets.ambient.is_subset(&sets.permitted) || !sets.ambient.is_subset(&sets.inheritable) {
            return Err(Error::config(
                "process.capabilities.ambient",
                "not a subset of permitted and inheritable",
            ));
        }
        Ok(sets)
    }
}

fn rlimits(process: &Process) -> Result<Vec<(Resource, Rlimit)>, Error> {
    let mut limits = Vec::new();
    for (index, limit) in process.rlimits.iter().enumerate() {
        let resource = match limit.kind.as_str() {
            "RLIMIT_AS" => Resource::As,
            "RLIMIT_CORE" => Resource::Core,
            "RLIMIT_CPU" => Resource::Cpu,
            "RLIMIT_DATA" => Resource::Data,
            "RLIMIT_FSIZE" => Resource::Fsize,
            "RLIMIT_LOCKS" => Resource::Locks,
            "RLIMIT_MEMLOCK" => Resource::Memlock,
            "RLIMIT_MSGQUEUE" => Resource::Msgqueue,
            "RLIMIT_NICE" => Resource::Nice,
            "RLIMIT_NOFILE" => Resource::Nofile,
            "RLIMIT_NPROC" => Resource::Nproc,
            "RLIMIT_RSS" => Resource::Rss,
            "RLIMIT_RTPRIO" => Resource::Rtprio,
            "RLIMIT_RTTIME" => Resource::Rttime,
            "RLIMIT_SIGPENDING" => Resource::Sigpending,
            "RLIMIT_STACK" => Resource::Stack,
            other => {
                return Err(Error::config(
                    format!("process.rlimits[{index}].type"),
                    format!("{other:?}: unknown"),
                ));
            }
        };
        let bound = |value: u64| (value != u64::MAX).then_some(value);
        limits.push((
            resource,
            Rlimit {
                current: bound(limit.soft),
                maximum: bound(limit.hard),
            },
        ));
    }
    Ok(limits)
}

/// Enters the Landlock domain. `stdio` may be reopened as well: a program may write to `/dev/stdout` also when it is a
/// file or terminal of the host.
///
/// # Errors
///
/// When the domain cannot be entered: the launch fails then.
pub(crate) fn enter_domain(
    policy: &Policy,
    root: BorrowedFd<'_>,
    stdio: &[BorrowedFd<'_>],
    no_new_privileges: bool,
) -> Result<(), Error> {
    if no_new_privileges {
        rustix::thread::set_no_new_privs(true).context(|| "no_new_privs")?;
    }
    if !policy.enforced() {
        return Ok(());
    }
    let fail = |error: String| Error::Launch {
        code: 1,
        line: format!("landlock: {error}"),
    };
    let all = AccessFs::from_all(RIGHTS);
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)
        .map_err(|e| fail(e.to_string()))?;
    if policy.bind.is_some() {
        ruleset = ruleset
            .handle_access(AccessNet::BindTcp)
            .map_err(|e| fail(e.to_string()))?;
    }
    let mut scopes = BitFlags::<Scope>::empty();
    if policy.scope_sockets {
        scopes |= Scope::AbstractUnixSocket;
    }
    if policy.scope_signals {
        scopes |= Scope::Signal;
    }
    if !scopes.is_empty() {
        ruleset = ruleset.scope(scopes).map_err(|e| fail(e.to_string()))?;
    }
    let mut ruleset = ruleset.create().map_err(|e| fail(e.to_string()))?;
    ruleset = ruleset
        .add_rule(PathBeneath::new(root, all))
        .map_err(|e| fail(e.to_string()))?;
    for stream in stdio {
        let kind = rustix::fs::fstat(stream).map(|stat| rustix::fs::FileType::from_raw_mode(stat.st_mode));
        if matches!(
            kind,
            Ok(rustix::fs::FileType::RegularFile | rustix::fs::FileType::CharacterDevice)
        ) {
            let access = AccessFs::ReadFile | AccessFs::WriteFile | AccessFs::Truncate | AccessFs::IoctlDev;
            ruleset = ruleset
                .add_rule(PathBeneath::new(stream.as_fd(), access))
                .map_err(|e| fail(e.to_string()))?;
        }
    }
    for port in policy.bind.iter().flatten() {
        ruleset = ruleset
            .add_rule(NetPort::new(*port, AccessNet::BindTcp))
            .map_err(|e| fail(e.to_string()))?;
    }
    let status = ruleset
        .no_new_privs(no_new_privileges)
        .restrict_self()
        .map_err(|e| fail(e.to_string()))?;
    if status.ruleset == RulesetStatus::NotEnforced {
        return Err(fail("not enforced although the kernel has it".into()));
    }
    Ok(())
}

/// Enters an AppArmor profile at the next exec.
///
/// # Errors
///
/// When AppArmor is not there or does not know the profile.
pub(crate) fn set_apparmor(profile: &str) -> Result<(), Error> {
    let refused = |reason: String| Error::config("process.apparmorProfile", format!("{profile:?}: {reason}"));
    // Through a procfs that is verified: /proc here is the container's.
    #[cfg(target_pointer_width = "64")]
    return libcontainer::apparmor::apply_profile(profile).map_err(|e| refused(e.to_string()));
    #[cfg(target_pointer_width = "32")]
    apply_profile(profile).map_err(|e| refused(e.to_string()))
}

/// As libcontainer's, which does not compile here: writes to the attribute of AppArmor, before 5.8 to the shared one.
#[cfg(target_pointer_width = "32")]
fn apply_profile(profile: &str) -> std::io::Result<()> {
    use rustix::fs::{Mode, OFlags, PROC_SUPER_MAGIC, ResolveFlags};
    use std::io::Write;
    if profile.is_empty() {
        return Ok(());
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&proc)?.f_type != PROC_SUPER_MAGIC {
        return Err(std::io::Error::other("/proc is not a procfs"));
    }
    let write = |name: &str| {
        let file = rustix::fs::openat2(
            &proc,
            format!("self/{name}"),
            OFlags::WRONLY | OFlags::CLOEXEC,
            Mode::empty(),
            // Nothing that is mounted over a part of it.
            ResolveFlags::NO_XDEV | ResolveFlags::BENEATH,
        )?;
        std::fs::File::from(file).write_all(format!("exec {profile}").as_bytes())
    };
    write("attr/apparmor/exec").or_else(|_| write("attr/exec"))
}

/// Marks everything but the standard streams and `preserved` descriptors after them as closed at exec.
pub(crate) fn close_descriptors(preserved: u32) -> Result<(), Error> {
    sys::cloexec_from(3 + i32::try_from(preserved).unwrap_or(0)).context(|| "close_range")
}
