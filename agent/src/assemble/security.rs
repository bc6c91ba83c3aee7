//! What parts of the confinement a person switched off or replaced, by docker's `--security-opt`.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::Error;

/// The longest seccomp profile; docker's own has 15 KB.
const PROFILE_MAX: usize = 256 << 10;
const PROFILE_FIELDS: [&str; 8] = [
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "archMap",
    "syscalls",
    "flags",
    "listenerPath",
    "listenerMetadata",
];
const RULE_FIELDS: [&str; 8] = [
    "names", "name", "action", "errnoRet", "args", "comment", "includes", "excludes",
];

/// Departures from the default confinement. Each shows in `inspect` and in the runtime's `state`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Security {
    /// No Landlock domain.
    pub landlock_off: bool,
    /// No filter of system calls.
    pub seccomp_off: bool,
    /// A filter instead of the default one: docker's form of a profile, or the runtime specification's.
    pub seccomp: Option<Value>,
    /// A program may gain privileges by executing another.
    pub new_privileges: bool,
    /// An AppArmor profile that is loaded on the board.
    pub apparmor: Option<String>,
}

impl Security {
    /// Whether nothing departs.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Takes one `NAME=VALUE` (or docker's older `NAME:VALUE`). `read` reads a profile's file.
    ///
    /// # Errors
    ///
    /// Names what is wrong with it.
    pub fn add(
        &mut self,
        option: &str,
        read: impl FnOnce(&str) -> std::io::Result<Vec<u8>>,
    ) -> Result<(), Error> {
        let invalid = |why: &str| {
            Error::Value(format!(
                "security option {option:?}: {why}; there are landlock=off, seccomp=unconfined, seccomp=FILE, no-new-privileges=false, \
                 apparmor=PROFILE"
            ))
        };
        let (name, value) = option.split_once(['=', ':']).unwrap_or((option, ""));
        match (name, value) {
            ("landlock", "off") => self.landlock_off = true,
            ("landlock", "on") => self.landlock_off = false,
            ("seccomp", "unconfined") => (self.seccomp_off, self.seccomp) = (true, None),
            ("seccomp", "builtin") => (self.seccomp_off, self.seccomp) = (false, None),
            ("seccomp", path) if !path.is_empty() => {
                let text = read(path).map_err(|error| invalid(&error.to_string()))?;
                if text.len() > PROFILE_MAX {
                    return Err(invalid(&format!(
                        "the profile is longer than {PROFILE_MAX} bytes"
                    )));
                }
                let profile = serde_json::from_slice(&text).map_err(|error| invalid(&error.to_string()))?;
                // What cannot be converted is told now and not at the next boot.
                profile_for(&profile, &[], &Machine::this())?;
                (self.seccomp_off, self.seccomp) = (false, Some(profile));
            }
            ("no-new-privileges", "" | "true") => self.new_privileges = false,
            ("no-new-privileges", "false") => self.new_privileges = true,
            ("apparmor", profile) if !profile.is_empty() => self.apparmor = Some(profile.into()),
            ("label", _) => return Err(invalid("there are no SELinux labels; leave it out")),
            ("systempaths", _) => return Err(invalid("masked paths stay masked")),
            _ => return Err(invalid("unknown")),
        }
        Ok(())
    }

    /// Writes it into the runtime's configuration.
    pub(super) fn apply(
        &self,
        config: &mut Value,
        bounding: &[String],
        machine: &Machine,
    ) -> Result<(), Error> {
        if self.landlock_off {
            config["annotations"]["dev.wherry.landlock"] = "off".into();
        }
        if self.seccomp_off {
            config["annotations"]["dev.wherry.seccomp"] = "unconfined".into();
        }
        if let Some(profile) = &self.seccomp {
            config["linux"]["seccomp"] = profile_for(profile, bounding, machine)?;
        }
        if self.new_privileges {
            config["process"]["noNewPrivileges"] = false.into();
        }
        if let Some(profile) = &self.apparmor {
            config["process"]["apparmorProfile"] = profile.as_str().into();
        }
        Ok(())
    }
}

/// What a profile's conditions ask about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Machine {
    /// As docker calls it: `amd64`, `arm64`, `arm`, `riscv64`.
    pub(super) architecture: &'static str,
    /// Major and minor version of the kernel.
    pub(super) kernel: (u32, u32),
}

impl Machine {
    pub(super) fn this() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let name = rustix::system::uname();
        Self {
            architecture,
            kernel: version(&name.release().to_string_lossy()),
        }
    }
}

fn version(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|letter: char| !letter.is_ascii_digit());
    let mut number = || numbers.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    (number(), number())
}

/// Docker's profile with its conditions decided, as the runtime specification has it. A field that is not known is
/// refused: it could be what denies something.
fn profile_for(profile: &Value, bounding: &[String], machine: &Machine) -> Result<Value, Error> {
    let invalid = |why: String| Error::Value(format!("seccomp profile: {why}"));
    let fields = profile
        .as_object()
        .ok_or_else(|| invalid("not an object".into()))?;
    if let Some(other) = fields.keys().find(|key| !PROFILE_FIELDS.contains(&key.as_str())) {
        return Err(invalid(format!("field {other:?} is not known")));
    }
    let mut out = json!({});
    for field in [
        "defaultAction",
        "defaultErrnoRet",
        "flags",
        "listenerPath",
        "listenerMetadata",
    ] {
        if let Some(value) = fields.get(field) {
            out[field] = value.clone();
        }
    }
    if !out["defaultAction"].is_string() {
        return Err(invalid("defaultAction is missing".into()));
    }
    if let Some(architectures) = fields.get("architectures").filter(|list| !list.is_null()) {
        out["architectures"] = architectures.clone();
    }
    let mut rules = Vec::new();
    let none = Vec::new();
    let listed = match fields.get("syscalls") {
        None | Some(Value::Null) => &none,
        Some(list) => list
            .as_array()
            .ok_or_else(|| invalid("syscalls is not a list".into()))?,
    };
    for (index, rule) in listed.iter().enumerate() {
        let invalid = |why: String| invalid(format!("syscalls[{index}]: {why}"));
        let fields = rule.as_object().ok_or_else(|| invalid("not an object".into()))?;
        if let Some(other) = fields.keys().find(|key| !RULE_FIELDS.contains(&key.as_str())) {
            return Err(invalid(format!("field {other:?} is not known")));
        }
        let condition =
            |name: &str| Condition::read(fields.get(name)).map_err(|why| invalid(format!("{name}: {why}")));
        let (includes, excludes) = (condition("includes")?, condition("excludes")?);
        if !includes.all(bounding, machine) || excludes.any(bounding, machine) {
            continue;
        }
        let mut kept = json!({});
        for field in ["names", "action", "errnoRet", "args"] {
            if let Some(value) = fields.get(field).filter(|value| !value.is_null()) {
                kept[field] = value.clone();
            }
        }
        // Docker's older form.
        if let Some(name) = fields.get("name").filter(|name| !name.is_null()) {
            kept["names"] = json!([name]);
        }
        rules.push(kept);
    }
    out["syscalls"] = rules.into();
    Ok(out)
}

/// When a rule counts.
#[derive(Default)]
struct Condition {
    caps: Vec<String>,
    arches: Vec<String>,
    kernel: Option<(u32, u32)>,
}

impl Condition {
    fn read(value: Option<&Value>) -> Result<Self, String> {
        let mut condition = Self::default();
        let Some(value) = value.filter(|value| !value.is_null()) else {
            return Ok(condition);
        };
        let fields = value.as_object().ok_or("not an object")?;
        for (name, value) in fields {
            let words = || -> Result<Vec<String>, String> {
                serde_json::from_value(value.clone()).map_err(|error| format!("{name}: {error}"))
            };
            match name.as_str() {
                "caps" => condition.caps = words()?,
                "arches" => condition.arches = words()?,
                "minKernel" => {
                    condition.kernel = Some(version(value.as_str().ok_or("minKernel: not a version")?))
                }
                other => return Err(format!("{other:?} is not known")),
            }
        }
        Ok(condition)
    }

    /// As docker reads `includes`: every capability, one of the architectures, the kernel.
    fn all(&self, bounding: &[String], machine: &Machine) -> bool {
        self.caps.iter().all(|cap| bounding.contains(cap))
            && (self.arches.is_empty() || self.arches.iter().any(|arch| arch == machine.architecture))
            && self.kernel.is_none_or(|kernel| machine.kernel >= kernel)
    }

    /// As docker reads `excludes`: one of them is enough.
    fn any(&self, bounding: &[String], machine: &Machine) -> bool {
        self.caps.iter().any(|cap| bounding.contains(cap))
            || self.arches.iter().any(|arch| arch == machine.architecture)
            || self.kernel.is_some_and(|kernel| machine.kernel >= kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine() -> Machine {
        Machine {
            architecture: "arm64",
            kernel: (6, 1),
        }
    }

    #[test]
    fn each_option() {
        let profile = br#"{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        let read = |path: &str| match path {
            "good.json" => Ok(profile.to_vec()),
            "odd.json" => Ok(br#"{"defaultAction":"SCMP_ACT_ALLOW","denied":[]}"#.to_vec()),
            _ => Err(std::io::ErrorKind::NotFound.into()),
        };
        let mut security = Security::default();
        for option in [
            "landlock=off",
            "seccomp=good.json",
            "no-new-privileges=false",
            "apparmor=mine",
        ] {
            security.add(option, read).unwrap();
        }
        assert!(security.landlock_off && security.new_privileges && !security.seccomp_off);
        assert_eq!(security.apparmor.as_deref(), Some("mine"));
        let mut config = json!({"process": {}, "linux": {}});
        security.apply(&mut config, &[], &machine()).unwrap();
        assert_eq!(config["annotations"], json!({"dev.wherry.landlock": "off"}));
        assert_eq!(
            config["linux"]["seccomp"]["syscalls"][0]["names"],
            json!(["read"])
        );
        assert_eq!(
            config["process"],
            json!({"noNewPrivileges": false, "apparmorProfile": "mine"})
        );
        security.add("seccomp:unconfined", read).unwrap();
        assert!(security.seccomp_off && security.seccomp.is_none());
        for (option, part) in [
            ("seccomp=missing.json", "not found"),
            ("seccomp=odd.json", "\"denied\" is not known"),
            ("label=disable", "SELinux"),
            ("landlock=maybe", "unknown"),
            ("nonsense", "unknown"),
        ] {
            let error = security.add(option, read).unwrap_err().to_string();
            assert!(error.contains(part), "{option}: {error}");
        }
    }

    #[test]
    fn dockers_conditions() {
        let profile = json!({
            "defaultAction": "SCMP_ACT_ERRNO",
            "archMap": [{"architecture": "SCMP_ARCH_AARCH64", "subArchitectures": ["SCMP_ARCH_ARM"]}],
            "syscalls": [
                {"names": ["always"], "action": "SCMP_ACT_ALLOW", "args": [], "comment": "", "includes": {}, "excludes": {}},
                {"names": ["bpf"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_BPF"]}},
                {"names": ["chroot"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_CHROOT"]}},
                {"names": ["arm"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["arm", "arm64"]}},
                {"names": ["x86"], "action": "SCMP_ACT_ALLOW", "includes": {"arches": ["amd64"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "4.8"}},
                {"names": ["future"], "action": "SCMP_ACT_ALLOW", "includes": {"minKernel": "6.2"}},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW", "excludes": {"caps": ["CAP_SYS_CHROOT"]}},
                {"name": "old", "action": "SCMP_ACT_ALLOW", "excludes": {"arches": ["s390x"]}},
            ],
        });
        let kept = profile_for(&profile, &["CAP_SYS_CHROOT".into()], &machine()).unwrap();
        let names: Vec<&str> = kept["syscalls"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|rule| rule["names"][0].as_str())
            .collect();
        assert_eq!(names, ["always", "chroot", "arm", "ptrace", "old"]);
        assert!(kept.get("archMap").is_none());
        for bad in [
            json!([]),
            json!({}),
            json!({"defaultAction": "A", "syscalls": [{"names": ["x"], "includes": {"moon": "full"}}]}),
        ] {
            assert!(profile_for(&bad, &[], &machine()).is_err(), "{bad}");
        }
    }

    #[test]
    fn versions() {
        assert_eq!(version("6.12.95+deb12-cloud-arm64"), (6, 12));
        assert_eq!(version("4.9-rc1"), (4, 9));
        assert_eq!(version(""), (0, 0));
    }
}
