//! What a board's owner says about registries once, for every pull: `registries.json`.
//!
//! ```json
//! { "registries": { "docker.io":       { "mirrors": ["mirror.lan:5000"] },
//!                   "mirror.lan:5000": { "insecure": true } },
//!   "limits":     { "rate": "500k", "window": "01:00-05:00" } }
//! ```
//!
//! Mirrors are asked first, in their order, for whatever is pulled; what none of them gives comes from the registry itself. Nothing
//! is pushed to a mirror. `insecure` is a registry without TLS or with a certificate that proves nothing.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::limits::{Limits, Window, parse_bytes};
use crate::reference::Reference;

/// A file beyond this is not read.
const MAX_FILE: u64 = 256 * 1024;
/// The most mirrors of one registry.
const MAX_MIRRORS: usize = 8;

/// The file as read.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Settings {
    registries: BTreeMap<String, Registry>,
    pub(crate) limits: Limits,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Registry {
    #[serde(default)]
    mirrors: Vec<String>,
    #[serde(default)]
    insecure: bool,
}

/// Where the file is: `$WHERRY_REGISTRIES`, else the user's, else the system's.
pub(crate) fn path() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|v| !v.is_empty())
            .map(PathBuf::from)
    };
    if let Some(path) = set("WHERRY_REGISTRIES") {
        return Some(path);
    }
    let own = set("XDG_CONFIG_HOME")
        .or_else(|| set("HOME").map(|home| home.join(".config")))
        .map(|folder| folder.join("wherry/registries.json"));
    let system = PathBuf::from("/etc/wherry/registries.json");
    own.into_iter().chain([system]).find(|path| path.exists())
}

/// Reads the file; no path is no settings.
pub(crate) fn load(path: Option<&Path>) -> Result<Settings, String> {
    use std::io::Read;
    let Some(path) = path else {
        return Ok(Settings::default());
    };
    let read = || {
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path)?;
        file.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    let bytes = read().map_err(|e| format!("{}: {e}", path.display()))?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(format!("{}: larger than {MAX_FILE} bytes", path.display()));
    }
    parse(&bytes).map_err(|e| format!("{}: {e}", path.display()))
}

fn parse(bytes: &[u8]) -> Result<Settings, String> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        registries: BTreeMap<String, Registry>,
        #[serde(default)]
        limits: Limited,
    }
    #[derive(Default, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Limited {
        rate: Option<String>,
        window: Option<String>,
    }
    let file: File = serde_json::from_slice(bytes).map_err(|e| e.to_string())?;
    let any = Reference::parse("localhost/x").map_err(|e| e.to_string())?;
    for (name, registry) in &file.registries {
        if registry.mirrors.len() > MAX_MIRRORS {
            return Err(format!("registry {name}: more than {MAX_MIRRORS} mirrors"));
        }
        for host in registry.mirrors.iter().chain([name]) {
            any.at_registry(host).map_err(|_| {
                format!("registry {name}: {host:?} is not a host name or address with an optional port")
            })?;
        }
    }
    Ok(Settings {
        registries: file.registries,
        limits: Limits {
            rate: file.limits.rate.as_deref().map(parse_bytes).transpose()?,
            budget: None,
            window: file
                .limits
                .window
                .as_deref()
                .map(str::parse::<Window>)
                .transpose()?,
        },
    })
}

impl Settings {
    /// Whether a registry (`host[:port]`) is called insecure.
    pub(crate) fn is_insecure(&self, authority: &str) -> bool {
        let same = |name: &&String| name.eq_ignore_ascii_case(authority);
        let mut names = self
            .registries
            .iter()
            .filter(|(_, r)| r.insecure)
            .map(|(name, _)| name);
        names.any(|name| same(&name))
    }

    /// The same thing at the mirrors of its registry, in the order they are asked.
    pub(crate) fn mirrors(&self, reference: &Reference) -> Vec<Reference> {
        let registry = self.registries.get(reference.registry());
        let hosts = registry.map_or(&[][..], |registry| &registry.mirrors);
        hosts
            .iter()
            .filter_map(|host| reference.at_registry(host).ok())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_whole_or_named() {
        let settings = parse(
            br#"{"registries":{"docker.io":{"mirrors":["mirror.lan:5000","[::1]:5000"]},"mirror.lan:5000":{"insecure":true}},
                "limits":{"rate":"500k","window":"01:00-05:00"}}"#,
        )
        .unwrap();
        let iris = Reference::parse("iris:v1").unwrap();
        let mirrors: Vec<String> = settings.mirrors(&iris).iter().map(|m| m.to_string()).collect();
        assert_eq!(
            mirrors,
            ["mirror.lan:5000/library/iris:v1", "[::1]:5000/library/iris:v1"]
        );
        assert!(
            settings
                .mirrors(&Reference::parse("ghcr.io/x").unwrap())
                .is_empty()
        );
        assert!(settings.is_insecure("Mirror.LAN:5000") && !settings.is_insecure("docker.io"));
        assert_eq!(settings.limits.rate, Some(500_000));
        assert_eq!(parse(b"{}").unwrap(), Settings::default());
        for wrong in [
            "",
            "[1]",
            r#"{"registries":{"docker.io":{"mirror":["x"]}}}"#,
            r#"{"registries":{"docker.io":{"mirrors":["https://x/y"]}}}"#,
            r#"{"registries":{"a b":{}}}"#,
            r#"{"limits":{"rate":"fast"}}"#,
            r#"{"limits":{"window":"night"}}"#,
        ] {
            let error = parse(wrong.as_bytes()).unwrap_err();
            assert!(!error.is_empty() && !error.contains('\n'), "{wrong}");
        }
        let nowhere = Path::new("/nonexistent/registries.json");
        assert!(
            load(Some(nowhere))
                .unwrap_err()
                .starts_with("/nonexistent/registries.json: No such file")
        );
        assert_eq!(load(None).unwrap(), Settings::default());
    }
}
