//! What a container is meant to be: the value in `desired`, written once by its owner.
//!
//! `wherry run` makes it from flags, the agent from a pod. It is complete: nothing in it is looked up again except the
//! image's layers and the board's own facts (name servers, ids).

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use wherry_images::Digest;

use super::limits::Limits;

/// The longest container or host name.
const NAME_MAX: usize = 128;
/// `HOST_NAME_MAX` of Linux.
const HOSTNAME_MAX: usize = 64;

/// A container's id: 32 random bytes, written as 64 hex digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id([u8; 32]);

impl Id {
    /// An id made of these bytes, which must be random.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads 64 lower-case hex digits.
    pub fn parse(text: &str) -> Option<Self> {
        Digest::from_hex(text).map(|digest| Self(*digest.as_bytes()))
    }

    /// All 64 hex digits.
    pub fn hex(&self) -> String {
        self.0.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// The first 12 hex digits, as people see and type it.
    pub fn short(&self) -> String {
        self.0.iter().take(6).map(|byte| format!("{byte:02x}")).collect()
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.short())
    }
}

impl Serialize for Id {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for Id {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| de::Error::custom("a container id is 64 lower-case hex digits"))
    }
}

/// Everything that makes a container what it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Spec {
    /// Unique among the containers of a state directory.
    pub name: String,
    /// The manifest that was resolved when the container was made.
    pub image: Digest,
    /// The image as it was asked for, to show.
    pub image_name: String,
    /// The final argument vector, never empty.
    pub args: Vec<String>,
    /// The final environment in order, without the defaults that [`crate::assemble`] adds.
    pub env: Vec<(String, String)>,
    /// Absolute; made in the container when it is missing. Empty means `/`.
    pub cwd: String,
    /// `""`, `user`, `uid`, `user:group` or `uid:gid`, looked up in the container's own `/etc/passwd` at each start.
    pub user: String,
    /// Empty means the short id, or the board's name with the host's network.
    pub hostname: String,
    /// In the order in which they are mounted.
    pub mounts: Vec<Mount>,
    /// Published ports; with the host's network the only ports that may be listened on.
    pub ports: Vec<Port>,
    /// Which network the container sees.
    pub network: Network,
    /// Whether the process gets a terminal.
    pub tty: bool,
    /// Whether standard input stays open for whoever attaches.
    pub open_stdin: bool,
    /// Whether `/` is read-only.
    pub readonly_root: bool,
    /// Capabilities added to the default set, with the `CAP_` prefix.
    pub cap_add: Vec<String>,
    /// Capabilities taken from the default set, with the `CAP_` prefix, or `ALL`.
    pub cap_drop: Vec<String>,
    /// Further lines of `/etc/hosts`: name, address.
    pub extra_hosts: Vec<(String, String)>,
    /// Labels, as shown by `ps --format json`.
    pub labels: BTreeMap<String, String>,
    /// Who made it and may replace it.
    pub owner: Owner,
    /// Whether it goes away when it has exited.
    pub auto_remove: bool,
    /// Sent first by `stop`.
    pub stop_signal: Signal,
    /// Seconds between that signal and `SIGKILL`.
    pub stop_grace: u32,
    /// What it may use.
    #[serde(default, skip_serializing_if = "Limits::is_empty")]
    pub limits: Limits,
    /// Devices of the board, looked up at each start.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<crate::devices::Request>,
    /// What of the confinement is switched off or replaced.
    #[serde(default, skip_serializing_if = "crate::assemble::Security::is_default")]
    pub security: crate::assemble::Security,
}

/// Who made a container. There is exactly one owner and it never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Owner {
    /// A person, with `wherry run`.
    Cli,
    /// The agent, for a container of a pod.
    #[serde(rename_all = "camelCase")]
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod's name.
        name: String,
        /// The pod's UID: another UID is another pod.
        uid: String,
        /// The container's name in the pod.
        container: String,
    },
}

impl Owner {
    /// A pod's container by namespace, pod and container name: where one process stands at a time.
    pub(super) fn place(&self) -> Option<(&str, &str, &str)> {
        match self {
            Self::Cli => None,
            Self::Pod {
                namespace,
                name,
                container,
                ..
            } => Some((namespace, name, container)),
        }
    }
}

/// Which network a container sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Network {
    /// The board's own.
    Host,
    /// A loopback interface alone, with nothing published.
    None,
    /// A namespace of its own, reached through published ports.
    Private,
}

/// A host directory or file, or an empty file system, inside the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    pub source: Source,
    /// An absolute path in the container.
    pub target: String,
    /// Whether writing is refused.
    pub readonly: bool,
}

/// Where a mount's content comes from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub enum Source {
    /// An absolute path on the board.
    Bind(PathBuf),
    /// Memory; with a limit in bytes.
    Tmpfs {
        /// `None` leaves the kernel's default, half of the memory.
        size: Option<u64>,
    },
}

/// A TCP port of the container published on the board.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Port {
    /// The address listened on.
    pub host_ip: IpAddr,
    /// The port listened on.
    pub host_port: u16,
    /// The port dialled in the container.
    pub container_port: u16,
}

/// Why a port, a mount, a name or a signal is refused. The text names the value and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct Invalid(String);

impl Invalid {
    /// With the whole line that the person reads.
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }
}

impl Port {
    /// Reads docker's `[[IP:]HOST_PORT:]CONTAINER_PORT[/tcp]`. A host port of 0 means any that is free.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = |why: &str| {
            Invalid::new(format!(
                "port {text:?}: {why}; write [IP:]HOST_PORT:CONTAINER_PORT"
            ))
        };
        let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
        match protocol {
            "tcp" => {}
            "udp" | "sctp" => return Err(invalid(&format!("{protocol} cannot be published yet, only tcp"))),
            _ => return Err(invalid("the protocol must be tcp")),
        }
        let (host, container) = match rest.rsplit_once(':') {
            None => (None, rest),
            Some((host, container)) => (Some(host), container),
        };
        let number = |port: &str| {
            if port.contains('-') {
                return Err(invalid("ranges are not supported, publish each port by itself"));
            }
            port.parse::<u16>()
                .map_err(|_| invalid(&format!("{port:?} is not a port number")))
        };
        let container_port = match number(container)? {
            0 => return Err(invalid("a container port cannot be 0")),
            port => port,
        };
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (host_ip, host_port) = match host {
            None => (any, 0),
            Some(host) => match host.rsplit_once(':') {
                None => (any, number(host)?),
                Some((ip, port)) => {
                    let bare = ip
                        .strip_prefix('[')
                        .and_then(|ip| ip.strip_suffix(']'))
                        .unwrap_or(ip);
                    let ip = bare
                        .parse()
                        .map_err(|_| invalid(&format!("{ip:?} is not an IP address")))?;
                    (ip, if port.is_empty() { 0 } else { number(port)? })
                }
            },
        };
        Ok(Self {
            host_ip,
            host_port,
            container_port,
        })
    }
}

impl fmt::Display for Port {
    /// As in docker's `ps`: `0.0.0.0:5001->5000/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host_ip {
            IpAddr::V4(ip) => write!(f, "{ip}:{}->{}/tcp", self.host_port, self.container_port),
            IpAddr::V6(ip) => write!(f, "[{ip}]:{}->{}/tcp", self.host_port, self.container_port),
        }
    }
}

impl Mount {
    /// Reads docker's `HOST_PATH:TARGET[:ro|rw]`. A relative host path starts at `here`.
    pub fn parse(text: &str, here: &std::path::Path) -> Result<Self, Invalid> {
        let invalid = |why: &str| {
            Invalid::new(format!(
                "volume {text:?}: {why}; write HOST_PATH:CONTAINER_PATH[:ro]"
            ))
        };
        let mut parts = text.split(':');
        let (source, target, options, more) = (parts.next(), parts.next(), parts.next(), parts.next());
        let source = source.unwrap_or_default();
        let Some(target) = target else {
            return Err(invalid("anonymous volumes are not supported"));
        };
        if more.is_some() {
            return Err(invalid("too many colons"));
        }
        if source.is_empty() {
            return Err(invalid("the host path is empty"));
        }
        let relative =
            source == "." || source == ".." || source.starts_with("./") || source.starts_with("../");
        if !source.starts_with('/') && !relative {
            return Err(invalid(
                "named volumes are not supported, give a directory such as ./data",
            ));
        }
        let mut readonly = false;
        for option in options.unwrap_or("rw").split(',') {
            match option {
                "ro" => readonly = true,
                "rw" => readonly = false,
                "z" | "Z" => {}
                other => return Err(invalid(&format!("option {other:?} is not supported"))),
            }
        }
        let source = if relative {
            here.join(source)
        } else {
            PathBuf::from(source)
        };
        let target = mount_target(target).map_err(|why| invalid(&why))?;
        Ok(Self {
            source: Source::Bind(source),
            target,
            readonly,
        })
    }

    /// Reads docker's `--tmpfs TARGET[:size=N[k|m|g]][,ro]`.
    pub fn parse_tmpfs(text: &str) -> Result<Self, Invalid> {
        let invalid =
            |why: &str| Invalid::new(format!("tmpfs {text:?}: {why}; write CONTAINER_PATH[:size=64m]"));
        let (target, options) = text.split_once(':').unwrap_or((text, ""));
        let (mut size, mut readonly) = (None, false);
        for option in options.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                None if option == "ro" => readonly = true,
                None if option == "rw" => readonly = false,
                Some(("size", value)) => {
                    size =
                        Some(parse_size(value).ok_or_else(|| invalid(&format!("{value:?} is not a size")))?);
                }
                _ => return Err(invalid(&format!("option {option:?} is not supported"))),
            }
        }
        let target = mount_target(target).map_err(|why| invalid(&why))?;
        Ok(Self {
            source: Source::Tmpfs { size },
            target,
            readonly,
        })
    }
}

/// A mount's target: absolute, without `.` and `..`, and not the root itself.
fn mount_target(text: &str) -> Result<String, String> {
    if !text.starts_with('/') {
        return Err(format!("the container path {text:?} is not absolute"));
    }
    let mut target = String::new();
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." || part.contains('\0') {
            return Err(format!("the container path {text:?} leaves where it starts"));
        }
        target.push('/');
        target.push_str(part);
    }
    if target.is_empty() {
        return Err("the container path cannot be /".into());
    }
    Ok(target)
}

/// `64m` and the like, in bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match text.get(digits.len()..)?.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1 << 10,
        "m" | "mb" => 1 << 20,
        "g" | "gb" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// Checks a container's name against docker's grammar.
pub fn check_name(name: &str) -> Result<(), Invalid> {
    let mut bytes = name.bytes();
    let first = bytes.next().is_some_and(|b| b.is_ascii_alphanumeric());
    let rest = name.len() >= 2 && bytes.all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
    if first && rest && name.len() <= NAME_MAX {
        return Ok(());
    }
    Err(Invalid::new(format!(
        "container name {name:?}: expected [a-zA-Z0-9][a-zA-Z0-9_.-]+ of at most {NAME_MAX} characters"
    )))
}

/// Checks a host name as far as the kernel and `/etc/hosts` care.
pub fn check_hostname(name: &str) -> Result<(), Invalid> {
    let good = name
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    if good && name.len() <= HOSTNAME_MAX && !name.starts_with('-') {
        return Ok(());
    }
    Err(Invalid::new(format!(
        "hostname {name:?}: expected letters, digits, dots and dashes, at most {HOSTNAME_MAX}"
    )))
}

/// A signal's number, read and shown by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Signal(u8);

/// The names are those of `kill -l`; the numbers those of x86 and ARM Linux.
const SIGNALS: &[(&str, u8)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];
/// `SIGRTMIN` as programs see it: two are taken by the C library.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

impl Signal {
    /// `SIGTERM`.
    pub const TERM: Self = Self(15);
    /// `SIGKILL`.
    pub const KILL: Self = Self(9);

    /// By number, 1 to 64.
    pub const fn from_number(number: u8) -> Option<Self> {
        if number >= 1 && number <= RTMAX {
            Some(Self(number))
        } else {
            None
        }
    }

    /// Reads `SIGTERM`, `TERM`, `15` or `RTMIN+3`, in any case.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let invalid = || {
            Invalid::new(format!(
                "signal {text:?}: expected a name such as SIGTERM or a number 1-64"
            ))
        };
        if let Ok(number) = text.parse() {
            return Self::from_number(number).ok_or_else(invalid);
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
            return Ok(Self(*number));
        }
        let number = if let Some(rest) = name.strip_prefix("RTMIN") {
            let plus = if rest.is_empty() {
                Some(0)
            } else {
                rest.strip_prefix('+').and_then(|n| n.parse().ok())
            };
            plus.and_then(|plus: u8| RTMIN.checked_add(plus))
        } else if let Some(rest) = name.strip_prefix("RTMAX") {
            let minus = if rest.is_empty() {
                Some(0)
            } else {
                rest.strip_prefix('-').and_then(|n| n.parse().ok())
            };
            minus.and_then(|minus: u8| RTMAX.checked_sub(minus))
        } else {
            None
        };
        let real_time = RTMIN..=RTMAX;
        number
            .filter(|number| real_time.contains(number))
            .map(Self)
            .ok_or_else(invalid)
    }

    /// The kernel's number.
    pub const fn number(self) -> u8 {
        self.0
    }
}

impl fmt::Display for Signal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match SIGNALS.iter().find(|(_, number)| *number == self.0) {
            Some((name, _)) => write!(f, "SIG{name}"),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Signal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Signal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn ports() {
        for (text, shown) in [
            ("5001:5000", "0.0.0.0:5001->5000/tcp"),
            ("127.0.0.1:80:8080/tcp", "127.0.0.1:80->8080/tcp"),
            ("[::1]:80:8080", "[::1]:80->8080/tcp"),
            ("8080", "0.0.0.0:0->8080/tcp"),
            ("127.0.0.1::8080", "127.0.0.1:0->8080/tcp"),
        ] {
            assert_eq!(Port::parse(text).unwrap().to_string(), shown, "{text}");
        }
        for (text, part) in [
            ("53:53/udp", "udp"),
            ("80-90:80-90", "ranges"),
            ("80:0", "cannot be 0"),
            ("x:80", "\"x\" is not a port"),
            ("80:99999", "\"99999\" is not a port"),
            ("host:80:80", "not an IP address"),
            ("80:80/icmp", "must be tcp"),
            ("", "is not a port"),
        ] {
            let error = Port::parse(text).unwrap_err().to_string();
            assert!(
                error.contains(part) && error.contains("write [IP:]"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn mounts() {
        let bind = |source: &str, target: &str, readonly| Mount {
            source: Source::Bind(source.into()),
            target: target.into(),
            readonly,
        };
        for (text, mount) in [
            ("/data:/var/lib/x", bind("/data", "/var/lib/x", false)),
            ("/data:/x:ro", bind("/data", "/x", true)),
            ("./d:/x//y/./z/:rw,z", bind("/here/./d", "/x/y/z", false)),
        ] {
            assert_eq!(Mount::parse(text, Path::new("/here")).unwrap(), mount, "{text}");
        }
        for (text, part) in [
            ("data:/x", "named volumes"),
            ("/x", "anonymous"),
            ("/a:b", "not absolute"),
            ("/a:/b/../../c", "leaves"),
            ("/a:/", "cannot be /"),
            ("/a:/b:shared", "\"shared\""),
            ("/a:/b:ro:x", "colons"),
            (":/b", "empty"),
        ] {
            let error = Mount::parse(text, Path::new("/here")).unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let tmpfs = Mount::parse_tmpfs("/run:size=64m,ro").unwrap();
        assert_eq!(
            (tmpfs.source, tmpfs.readonly),
            (Source::Tmpfs { size: Some(64 << 20) }, true)
        );
        assert!(
            Mount::parse_tmpfs("/run:mode=7")
                .unwrap_err()
                .to_string()
                .contains("mode=7")
        );
    }

    #[test]
    fn signals() {
        for (text, number) in [
            ("SIGTERM", 15),
            ("kill", 9),
            ("9", 9),
            ("sigusr1", 10),
            ("RTMIN+3", 37),
            ("SIGRTMAX-1", 63),
        ] {
            assert_eq!(Signal::parse(text).unwrap().number(), number, "{text}");
        }
        for text in ["", "0", "65", "SIGNOT", "RTMIN+99", "RTMAX-40", "-1"] {
            assert!(Signal::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn names() {
        for name in ["ab", "web-1", "a.b_c", "9x"] {
            assert!(check_name(name).is_ok(), "{name}");
        }
        for name in ["", "a", "-ab", "a b", "ab/..", "é1", &"x".repeat(200)] {
            assert!(check_name(name).is_err(), "{name}");
        }
        assert!(check_hostname("board-7.lan").is_ok());
        assert!(check_hostname("a\nb").is_err());
    }
}
