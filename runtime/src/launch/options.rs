//! Mount options as in fstab, read into flags, propagation and what is left for the filesystem.

use rustix::mount::{MountFlags, MountPropagationFlags};

/// Options of a mount's flags: set or cleared.
const FLAGS: &[(&str, MountFlags, bool)] = &[
    ("async", MountFlags::SYNCHRONOUS, false),
    ("atime", MountFlags::NOATIME, false),
    ("dev", MountFlags::NODEV, false),
    ("diratime", MountFlags::NODIRATIME, false),
    ("dirsync", MountFlags::DIRSYNC, true),
    ("exec", MountFlags::NOEXEC, false),
    ("iversion", I_VERSION, true),
    ("lazytime", MountFlags::LAZYTIME, true),
    ("loud", MountFlags::SILENT, false),
    ("mand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, true),
    ("noatime", MountFlags::NOATIME, true),
    ("nodev", MountFlags::NODEV, true),
    ("nodiratime", MountFlags::NODIRATIME, true),
    ("noexec", MountFlags::NOEXEC, true),
    ("noiversion", I_VERSION, false),
    ("nolazytime", MountFlags::LAZYTIME, false),
    ("nomand", MountFlags::PERMIT_MANDATORY_FILE_LOCKING, false),
    ("norelatime", MountFlags::RELATIME, false),
    ("nostrictatime", MountFlags::STRICTATIME, false),
    ("nosuid", MountFlags::NOSUID, true),
    ("nosymfollow", MountFlags::NOSYMFOLLOW, true),
    ("relatime", MountFlags::RELATIME, true),
    ("ro", MountFlags::RDONLY, true),
    ("rw", MountFlags::RDONLY, false),
    ("silent", MountFlags::SILENT, true),
    ("strictatime", MountFlags::STRICTATIME, true),
    ("suid", MountFlags::NOSUID, false),
    ("symfollow", MountFlags::NOSYMFOLLOW, false),
    ("sync", MountFlags::SYNCHRONOUS, true),
];

/// `MS_I_VERSION`, which has no name in the library.
const I_VERSION: MountFlags = MountFlags::from_bits_retain(1 << 23);

/// Options that say something of the whole tree: set or cleared, as `mount_setattr` does it.
const RECURSIVE: &[(&str, MountFlags, bool)] = &[
    ("ratime", MountFlags::NOATIME, false),
    ("rdev", MountFlags::NODEV, false),
    ("rdiratime", MountFlags::NODIRATIME, false),
    ("rexec", MountFlags::NOEXEC, false),
    ("rnoatime", MountFlags::NOATIME, true),
    ("rnodev", MountFlags::NODEV, true),
    ("rnodiratime", MountFlags::NODIRATIME, true),
    ("rnoexec", MountFlags::NOEXEC, true),
    ("rnorelatime", MountFlags::RELATIME, false),
    ("rnostrictatime", MountFlags::STRICTATIME, false),
    ("rnosuid", MountFlags::NOSUID, true),
    ("rnosymfollow", MountFlags::NOSYMFOLLOW, true),
    ("rrelatime", MountFlags::RELATIME, true),
    ("rro", MountFlags::RDONLY, true),
    ("rrw", MountFlags::RDONLY, false),
    ("rstrictatime", MountFlags::STRICTATIME, true),
    ("rsuid", MountFlags::NOSUID, false),
    ("rsymfollow", MountFlags::NOSYMFOLLOW, false),
];

/// Options that are words of their own.
const WORDS: &[&str] = &[
    "bind",
    "defaults",
    "idmap",
    "private",
    "rbind",
    "remount",
    "ridmap",
    "rprivate",
    "rshared",
    "rslave",
    "runbindable",
    "shared",
    "slave",
    "tmpcopyup",
    "unbindable",
];

/// Options that are honoured on any mount, sorted.
pub(crate) fn names() -> Vec<&'static str> {
    let flags = FLAGS.iter().chain(RECURSIVE).map(|(name, ..)| *name);
    let mut names: Vec<_> = flags.chain(WORDS.iter().copied()).collect();
    names.sort_unstable();
    names
}

/// Flags to set and to clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) set: MountFlags,
    pub(crate) clear: MountFlags,
}

impl Default for Change {
    fn default() -> Self {
        Self {
            set: MountFlags::empty(),
            clear: MountFlags::empty(),
        }
    }
}

impl Change {
    fn apply(&mut self, flag: MountFlags, set: bool) {
        self.set.set(flag, set);
        self.clear.set(flag, !set);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.set.is_empty() && self.clear.is_empty()
    }
}

/// A mount's options, taken apart.
#[derive(Debug, Clone, Default)]
pub(crate) struct Options {
    /// `bind` or `rbind`, and which.
    pub(crate) bind: Option<bool>,
    /// Change a mount that is there.
    pub(crate) remount: bool,
    /// Flags of the mount.
    pub(crate) flags: Change,
    /// Flags of the mount and of all beneath it.
    pub(crate) recursive: Change,
    /// `idmap` or `ridmap`, and which.
    pub(crate) idmap: Option<bool>,
    /// Fill a new tmpfs with what it covers.
    pub(crate) copy_up: bool,
    /// Changes of propagation, in order.
    pub(crate) propagation: Vec<MountPropagationFlags>,
    /// What the filesystem itself reads, joined by commas.
    pub(crate) data: Vec<String>,
}

/// Takes options apart. Words that are not mount flags are the filesystem's.
///
/// # Errors
///
/// Returns the option that cannot be one.
pub(crate) fn parse(options: &[String]) -> Result<Options, String> {
    let mut parsed = Options::default();
    for option in options {
        if option.bytes().any(|b| b == 0) || (option.contains(',') && !option.contains('=')) {
            return Err(format!("{option:?}: malformed"));
        }
        let find = |list: &[(&str, MountFlags, bool)]| {
            let found = list.iter().find(|(name, ..)| name == option);
            found.map(|(_, flag, set)| (*flag, *set))
        };
        match option.as_str() {
            "defaults" | "" => {}
            "bind" => parsed.bind = Some(parsed.bind.unwrap_or(false)),
            "rbind" => parsed.bind = Some(true),
            "remount" => parsed.remount = true,
            "idmap" => parsed.idmap = Some(parsed.idmap.unwrap_or(false)),
            "ridmap" => parsed.idmap = Some(true),
            "tmpcopyup" => parsed.copy_up = true,
            word => {
                if let Some((flag, set)) = find(FLAGS) {
                    parsed.flags.apply(flag, set);
                } else if let Some((flag, set)) = find(RECURSIVE) {
                    parsed.recursive.apply(flag, set);
                } else if let Some(change) = propagation(word) {
                    parsed.propagation.push(change);
                } else {
                    parsed.data.push(option.clone());
                }
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_are_taken_apart() {
        let parsed = parse(&words(
            "rbind ro nosuid rw rprivate size=64k mode=755 rro ridmap tmpcopyup",
        ))
        .unwrap();
        assert_eq!(parsed.bind, Some(true));
        assert_eq!(parsed.flags.set, MountFlags::NOSUID);
        assert_eq!(parsed.flags.clear, MountFlags::RDONLY);
        assert_eq!(parsed.recursive.set, MountFlags::RDONLY);
        assert_eq!((parsed.idmap, parsed.copy_up), (Some(true), true));
        assert_eq!(parsed.propagation.len(), 1);
        assert_eq!(parsed.data, ["size=64k", "mode=755"]);
        for refused in ["ro,suid", "a\0"] {
            assert!(parse(&words(refused)).is_err(), "{refused:?}");
        }
    }

    #[test]
    fn every_name_is_an_option() {
        for name in names() {
            assert!(parse(&words(name)).unwrap().data.is_empty(), "{name}");
        }
    }
}
