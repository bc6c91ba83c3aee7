//! `features`: what this runtime can do, in the document of the runtime specification.

use std::io::Write;

use serde_json::{Value, json};

use crate::attributes;
use crate::error::{Context, Error};
use crate::{launch, seccomp};

/// Carries out `features`.
///
/// # Errors
///
/// If the document cannot be written.
pub fn run(out: &mut dyn Write) -> Result<(), Error> {
    let text = serde_json::to_string_pretty(&document()).map_err(|e| Error::Corrupt(e.to_string()))?;
    writeln!(out, "{text}").context(|| "stdout")
}

fn names<T>(list: &[(&'static str, T)]) -> Vec<&'static str> {
    list.iter().map(|(name, _)| *name).collect()
}

fn document() -> Value {
    let mut capabilities: Vec<String> = caps::all().iter().map(ToString::to_string).collect();
    capabilities.sort();
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.3.0",
        "hooks": ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"],
        "mountOptions": launch::mount_options(),
        "linux": {
            "namespaces": launch::NAMESPACES,
            "capabilities": capabilities,
            "cgroup": {"v1": true, "v2": true, "systemd": false, "systemdUser": false, "rdma": true},
            "seccomp": {
                "enabled": true,
                "actions": seccomp::ACTIONS,
                "operators": seccomp::OPERATORS,
                "archs": seccomp::architectures(),
                "knownFlags": seccomp::FLAGS,
                "supportedFlags": seccomp::FLAGS,
            },
            "apparmor": {"enabled": true},
            "selinux": {"enabled": false},
            "intelRdt": {"enabled": false},
            "memoryPolicy": {
                "modes": names(attributes::MEMORY_MODES), "flags": names(attributes::MEMORY_FLAGS),
            },
            "netDevices": {"enabled": false},
            "mountExtensions": {"idmap": {"enabled": true}},
        },
        "annotations": {"dev.wherry.version": env!("CARGO_PKG_VERSION")},
        "potentiallyUnsafeConfigAnnotations": ["dev.wherry."],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_document_names_what_the_parsers_take() {
        let document = document();
        let words = |pointer: &str| -> Vec<String> {
            let list = document.pointer(pointer).unwrap().as_array().unwrap();
            list.iter()
                .map(|word| word.as_str().unwrap().to_owned())
                .collect()
        };
        for kind in words("/linux/namespaces") {
            let text = format!(
                r#"{{"ociVersion":"1.3.0","root":{{"path":"r"}},"process":{{"args":["a"],"cwd":"/"}},
                    "linux":{{"namespaces":[{{"type":"{kind}"}},{{"type":"mount"}},{{"type":"user"}}]}}}}"#
            );
            let (config, warnings) = crate::config::parse(text.as_bytes()).unwrap();
            let refused = launch::plan(config, warnings, std::path::Path::new("/b")).err();
            let refused = refused.map(|error| error.to_string()).unwrap_or_default();
            assert!(!refused.contains("not supported"), "{kind}: {refused}");
        }
        for option in words("/mountOptions") {
            assert!(launch::is_mount_option(&option), "{option}");
        }
        for action in words("/linux/seccomp/actions") {
            let operators = words("/linux/seccomp/operators");
            let args: Vec<Value> = operators
                .iter()
                .map(|op| json!({"index": 0, "value": 1, "op": op}))
                .collect();
            let profile = json!({
                "defaultAction": "SCMP_ACT_ALLOW", "listenerPath": "/l", "architectures": words("/linux/seccomp/archs"),
                "flags": words("/linux/seccomp/supportedFlags"),
                "syscalls": [{"names": ["mkdirat"], "action": action, "args": args}],
            });
            let profile = serde_json::from_value(profile).unwrap();
            let mut warnings = Vec::new();
            seccomp::Filter::compile(&profile, &mut warnings).unwrap();
            assert!(warnings.is_empty(), "{action}: {warnings:?}");
        }
    }
}
