//! Mount options as in fstab, read into flags, propagation and what is left for the filesystem.

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options that are honoured on any mount.
pub(crate) const NAMES: &[&str] = &[
    "async",
    "atime",
    "bind",
    "defaults",
    "dev",
    "diratime",
    "dirsync",
    "exec",
    "noatime",
    "nodev",
    "nodiratime",
    "noexec",
    "norelatime",
    "nostrictatime",
    "nosuid",
    "nosymfollow",
    "private",
    "rbind",
    "relatime",
    "ro",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "rw",
    "shared",
    "slave",
    "strictatime",
    "suid",
    "symfollow",
    "sync",
    "unbindable",
];

/// A mount's options, taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Options {
    /// `bind` or `rbind`, and which.
    pub(crate) bind: Option<bool>,
    /// Flags of the mount.
    pub(crate) flags: MountFlags,
    /// Changes of propagation, in order.
    pub(crate) propagation: Vec<MountPropagationFlags>,
    /// What the filesystem itself reads, joined by commas.
    pub(crate) data: Vec<String>,
}

/// Takes options apart. Words that are not mount flags are the filesystem's.
///
/// # Errors
///
/// Returns the option that this runtime knows but does not honour.
pub(crate) fn parse(options: &[String]) -> Result<Options, String> {
    let mut parsed = Options {
        bind: None,
        flags: MountFlags::empty(),
        propagation: Vec::new(),
        data: Vec::new(),
    };
    for option in options {
        if option.bytes().any(|b| b == 0) || (option.contains(',') && !option.contains('=')) {
            return Err(format!("{option:?}: malformed"));
        }
        let (flag, set) = match option.as_str() {
            "defaults" | "" => continue,
            "bind" => {
                parsed.bind = Some(parsed.bind.unwrap_or(false));
                continue;
            }
            "rbind" => {
                parsed.bind = Some(true);
                continue;
            }
            "ro" => (MountFlags::RDONLY, true),
            "rw" => (MountFlags::RDONLY, false),
            "nosuid" => (MountFlags::NOSUID, true),
            "suid" => (MountFlags::NOSUID, false),
            "nodev" => (MountFlags::NODEV, true),
            "dev" => (MountFlags::NODEV, false),
            "noexec" => (MountFlags::NOEXEC, true),
            "exec" => (MountFlags::NOEXEC, false),
            "sync" => (MountFlags::SYNCHRONOUS, true),
            "async" => (MountFlags::SYNCHRONOUS, false),
            "dirsync" => (MountFlags::DIRSYNC, true),
            "noatime" => (MountFlags::NOATIME, true),
            "atime" => (MountFlags::NOATIME, false),
            "nodiratime" => (MountFlags::NODIRATIME, true),
            "diratime" => (MountFlags::NODIRATIME, false),
            "relatime" => (MountFlags::RELATIME, true),
            "norelatime" => (MountFlags::RELATIME, false),
            "strictatime" => (MountFlags::STRICTATIME, true),
            "nostrictatime" => (MountFlags::STRICTATIME, false),
            "nosymfollow" => (MountFlags::NOSYMFOLLOW, true),
            "symfollow" => (MountFlags::NOSYMFOLLOW, false),
            word => {
                if let Some(change) = propagation(word) {
                    parsed.propagation.push(change);
                } else if refused(word) {
                    return Err(format!("{option:?}: not supported by this runtime"));
                } else {
                    parsed.data.push(option.clone());
                }
                continue;
            }
        };
        parsed.flags.set(flag, set);
    }
    Ok(parsed)
}

/// A propagation by its name.
pub(crate) fn propagation(word: &str) -> Option<MountPropagationFlags> {
    Some(match word {
        "private" => MountPropagationFlags::PRIVATE,
        "rprivate" => MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
        "shared" => MountPropagationFlags::SHARED,
        "rshared" => MountPropagationFlags::SHARED | MountPropagationFlags::REC,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "rslave" => MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        "runbindable" => MountPropagationFlags::UNBINDABLE | MountPropagationFlags::REC,
        _ => return None,
    })
}

/// Options of the specification that need more than flags: recursive attributes, id-mapped mounts, copying up.
fn refused(word: &str) -> bool {
    const RECURSIVE: &[&str] = &[
        "rro",
        "rrw",
        "rnosuid",
        "rsuid",
        "rnodev",
        "rdev",
        "rnoexec",
        "rexec",
        "rnoatime",
        "ratime",
        "rrelatime",
        "rnorelatime",
        "rstrictatime",
        "rnostrictatime",
        "rnodiratime",
        "rdiratime",
        "rnosymfollow",
        "rsymfollow",
    ];
    RECURSIVE.contains(&word) || matches!(word, "idmap" | "ridmap" | "tmpcopyup" | "mand" | "nomand")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_taken_apart() {
        let parsed = parse(&words("rbind ro nosuid rw rprivate size=64k mode=755")).unwrap();
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.flags, MountFlags::NOSUID);
        assert_eq!(parsed.propagation.len(), 1);
        assert_eq!(parsed.data, ["size=64k", "mode=755"]);
        for refused in ["rro", "idmap", "tmpcopyup", "ro,suid", "a\0"] {
            assert!(parse(&words(refused)).is_err(), "{refused:?}");
        }
    }
}
