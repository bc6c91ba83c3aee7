//! `monitor.json`: what one monitor is told about its container.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::forward::Publish;

/// The version of `monitor.json`, `observed` and the attach protocol that this program speaks.
pub const VERSION: u32 = 1;

/// Largest `monitor.json` that is read.
pub(crate) const MAX_LENGTH: u64 = 64 * 1024;

/// Smallest log file: one record of the longest line must fit.
const MIN_LOG_SIZE: u64 = 32 * 1024;

/// Most rotated files: their names are shifted one by one at each rotation.
const MAX_LOG_FILES: u32 = 100;

/// Most published ports: each one is a listening descriptor.
const MAX_PORTS: usize = 512;

/// How long an attached client may accept nothing before it is dropped, where `monitor.json` does not say: long
/// enough for a short loss of the network below an SSH session, short enough that a service whose output somebody
/// forgot to read goes on.
const ATTACH_STALL_SECONDS: u32 = 30;

/// The checked content of `monitor.json`.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Settings {
    #[serde(rename = "version")]
    _version: u32,
    /// The container's ID, as it is passed to the runtime.
    pub(crate) id: String,
    /// Absolute path of a program with the OCI runtime command line.
    pub(crate) runtime: PathBuf,
    /// The runtime's `--root`, absolute.
    pub(crate) runtime_root: PathBuf,
    /// The OCI bundle, relative to the container's directory.
    pub(crate) bundle: PathBuf,
    /// The bundle asks for a terminal (`process.terminal`).
    pub(crate) terminal: bool,
    /// The container's standard input is kept open for attached clients; else it is `/dev/null`.
    pub(crate) open_stdin: bool,
    /// The container is started when the first client attaches, not at once.
    pub(crate) wait_attach: bool,
    /// The log file.
    pub(crate) log: LogSettings,
    /// Published ports.
    pub(crate) ports: Vec<Port>,
    /// Seconds that an attached client may accept nothing before it is dropped.
    #[serde(default = "attach_stall_seconds")]
    pub(crate) attach_stall_seconds: u32,
}

/// Where the log goes and how large it may grow.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct LogSettings {
    /// A file name in the container's directory.
    pub(crate) path: String,
    /// Bytes after which the file is rotated.
    pub(crate) max_size: u64,
    /// Files kept, the current one included.
    pub(crate) max_files: u32,
}

/// One published port.
#[derive(Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Port {
    /// Host address to listen on; `0.0.0.0` is every IPv4 address, `::` every IPv6 address.
    pub(crate) host_ip: IpAddr,
    /// Host port.
    pub(crate) host_port: u16,
    /// Port inside the container.
    pub(crate) container_port: u16,
    /// `tcp`.
    pub(crate) protocol: String,
}

fn attach_stall_seconds() -> u32 {
    ATTACH_STALL_SECONDS
}

/// Reads `monitor.json` from its bytes. The error says which field is wrong and why.
pub(crate) fn parse(bytes: &[u8]) -> Result<Settings, String> {
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let versioned: Versioned = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if versioned.version != VERSION {
        return Err(format!(
            "version {} is not known, this program speaks version {VERSION}",
            versioned.version
        ));
    }
    let settings: Settings = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    settings.check()?;
    Ok(settings)
}

impl Settings {
    /// The published ports, for the forwarder.
    pub(crate) fn published(&self) -> Vec<Publish> {
        let publish = |port: &Port| Publish {
            host: SocketAddr::new(port.host_ip, port.host_port),
            container_port: port.container_port,
        };
        self.ports.iter().map(publish).collect()
    }

    fn check(&self) -> Result<(), String> {
        let id_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
        if self.id.is_empty()
            || self.id.len() > 255
            || !self.id.bytes().all(id_byte)
            || self.id.starts_with(['.', '-'])
        {
            return Err(format!("id: {:?} is not a container ID", self.id));
        }
        for (name, path) in [("runtime", &self.runtime), ("runtimeRoot", &self.runtime_root)] {
            if !path.is_absolute() {
                return Err(format!("{name}: {} is not an absolute path", path.display()));
            }
        }
        if !is_beneath(&self.bundle) {
            return Err(format!(
                "bundle: {} is not a path below the directory",
                self.bundle.display()
            ));
        }
        self.log.check()?;
        if self.ports.len() > MAX_PORTS {
            return Err(format!(
                "ports: {} are too many, at most {MAX_PORTS}",
                self.ports.len()
            ));
        }
        for (index, port) in self.ports.iter().enumerate() {
            if port.protocol != "tcp" {
                return Err(format!(
                    "ports[{index}].protocol: {:?} is not supported, only \"tcp\" can be published",
                    port.protocol
                ));
            }
            if port.host_port == 0 || port.container_port == 0 {
                return Err(format!(
                    "ports[{index}]: port 0 cannot be published, choose a number"
                ));
            }
        }
        if self.attach_stall_seconds == 0 {
            return Err("attachStallSeconds: must be at least 1".to_owned());
        }
        Ok(())
    }
}

impl LogSettings {
    fn check(&self) -> Result<(), String> {
        const TAKEN: [&str; 9] = [
            "desired",
            "observed",
            "monitor.json",
            "monitor.lock",
            "lock",
            "bundle",
            "upper",
            "work",
            "rootfs",
        ];
        let path = &self.path;
        if path.is_empty() || path.len() > 200 || path.starts_with('.') || path.contains(['/', '\0']) {
            return Err(format!(
                "log.path: {path:?} is not a file name in the container's directory"
            ));
        }
        if TAKEN.contains(&path.as_str()) || path.ends_with(".sock") {
            return Err(format!("log.path: {path:?} is used for something else"));
        }
        if self.max_size < MIN_LOG_SIZE {
            return Err(format!(
                "log.maxSize: {} is too small, at least {MIN_LOG_SIZE}",
                self.max_size
            ));
        }
        if !(1..=MAX_LOG_FILES).contains(&self.max_files) {
            return Err(format!(
                "log.maxFiles: {} is not between 1 and {MAX_LOG_FILES}",
                self.max_files
            ));
        }
        Ok(())
    }
}

fn is_beneath(path: &Path) -> bool {
    let mut parts = path.components().peekable();
    parts.peek().is_some() && parts.all(|part| matches!(part, std::path::Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The golden sample of version 1; MONITOR.md shows the same text.
    const SAMPLE: &str = r#"{"version":1,"id":"3f1c","runtime":"/usr/bin/wherry-runtime","runtimeRoot":"/run/user/1000/wherry","bundle":"bundle","terminal":false,"openStdin":true,"waitAttach":false,"log":{"path":"log","maxSize":10485760,"maxFiles":3},"ports":[{"hostIp":"0.0.0.0","hostPort":5001,"containerPort":5000,"protocol":"tcp"}]}"#;

    #[test]
    fn the_golden_sample_is_read_and_documented() {
        let settings = parse(SAMPLE.as_bytes()).unwrap();
        assert_eq!(settings.id, "3f1c");
        assert_eq!(settings.runtime, Path::new("/usr/bin/wherry-runtime"));
        assert_eq!(settings.runtime_root, Path::new("/run/user/1000/wherry"));
        assert_eq!(settings.bundle, Path::new("bundle"));
        assert!(!settings.terminal && settings.open_stdin && !settings.wait_attach);
        assert_eq!(
            settings.log,
            LogSettings {
                path: "log".to_owned(),
                max_size: 10_485_760,
                max_files: 3
            }
        );
        let host_ip = "0.0.0.0".parse().unwrap();
        let protocol = "tcp".to_owned();
        assert_eq!(
            settings.ports,
            [Port {
                host_ip,
                host_port: 5001,
                container_port: 5000,
                protocol
            }]
        );
        assert_eq!(settings.attach_stall_seconds, ATTACH_STALL_SECONDS);
        let document = include_str!("../../MONITOR.md");
        assert!(
            document.contains(SAMPLE),
            "MONITOR.md does not show the golden sample of monitor.json"
        );
    }

    #[test]
    fn what_is_wrong_is_named() {
        let table = [
            ("\"version\":1", "\"version\":2", "version 2 is not known"),
            (
                "\"version\":1",
                "\"version\":2,\"new\":1",
                "version 2 is not known",
            ),
            (
                "\"version\":1",
                "\"version\":1,\"oom\":true",
                "unknown field `oom`",
            ),
            (
                "\"maxFiles\":3",
                "\"maxFiles\":3,\"mode\":\"x\"",
                "unknown field `mode`",
            ),
            ("\"id\":\"3f1c\",", "", "missing field `id`"),
            ("3f1c", "--help", "id: \"--help\""),
            ("3f1c", "a/b", "id: \"a/b\""),
            ("3f1c", "", "id: \"\""),
            (
                "\"/usr/bin/",
                "\"",
                "runtime: wherry-runtime is not an absolute path",
            ),
            (
                "\"bundle\":\"bundle\"",
                "\"bundle\":\"../other\"",
                "bundle: ../other",
            ),
            ("\"bundle\":\"bundle\"", "\"bundle\":\"/etc\"", "bundle: /etc"),
            ("\"bundle\":\"bundle\"", "\"bundle\":\"\"", "bundle: "),
            ("\"path\":\"log\"", "\"path\":\"../log\"", "log.path: \"../log\""),
            (
                "\"path\":\"log\"",
                "\"path\":\"observed\"",
                "is used for something else",
            ),
            ("10485760", "1024", "log.maxSize: 1024 is too small"),
            ("\"maxFiles\":3", "\"maxFiles\":0", "log.maxFiles: 0"),
            (
                "\"tcp\"",
                "\"udp\"",
                "ports[0].protocol: \"udp\" is not supported",
            ),
            ("5001", "0", "ports[0]: port 0"),
            ("5001", "70000", "invalid value: integer `70000`"),
            ("0.0.0.0", "localhost", "invalid IP address"),
            (
                "\"version\":1",
                "\"version\":1,\"attachStallSeconds\":0",
                "attachStallSeconds",
            ),
        ];
        for (before, after, expected) in table {
            let text = SAMPLE.replacen(before, after, 1);
            assert_ne!(text, SAMPLE, "{before} is not in the sample");
            let error = parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{after}: {error}");
        }
        assert!(parse(b"").is_err());
        assert!(parse(b"[1]").is_err());
    }
}
