//! The workload: Kubernetes' Pod, as far as it is honoured here.
//!
//! A value of these types has passed [`crate::manifest`]: names are DNS-1123, ports are ports, each volume mount has
//! its volume, and there is exactly one container. Serialised, it is the Pod's JSON again, with the defaults filled
//! in, in a fixed order: [`Pod::to_json`] is what the identity of a pod is hashed from and what a mirror pod shows.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

/// A Pod with its defaults filled in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Pod {
    /// Name, namespace, labels, annotations.
    pub metadata: Metadata,
    /// What to run.
    pub spec: PodSpec,
}

/// The part of `metadata` that is kept.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// DNS-1123 subdomain.
    pub name: String,
    /// DNS-1123 label; `default` where the file names none.
    pub namespace: String,
    /// Labels, verbatim.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations, verbatim.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The part of `spec` that is honoured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSpec {
    /// The containers; exactly one for now.
    pub containers: Vec<Container>,
    /// The volumes that the containers may mount.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<Volume>,
    /// Share the board's network.
    #[serde(skip_serializing_if = "is_false")]
    pub host_network: bool,
    /// The host name inside; the pod's name where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// What to do when the container ends.
    pub restart_policy: RestartPolicy,
    /// Seconds between the stop signal and SIGKILL.
    pub termination_grace_period_seconds: u32,
    /// The board this pod is for; any where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Defaults for the containers' user.
    #[serde(skip_serializing_if = "PodSecurity::is_empty")]
    pub security_context: PodSecurity,
}

/// What to do when a container ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum RestartPolicy {
    /// Start it again.
    Always,
    /// Start it again unless it ended with 0.
    OnFailure,
    /// Leave it.
    Never,
}

impl RestartPolicy {
    /// Whether a container that ended with `code` is started again.
    #[must_use]
    pub fn restarts(self, code: i64) -> bool {
        match self {
            Self::Always => true,
            Self::OnFailure => code != 0,
            Self::Never => false,
        }
    }
}

/// When the registry is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum PullPolicy {
    /// Once for each change of the pod, even if the store has an image of that name.
    Always,
    /// Only if the store has no image of that name.
    IfNotPresent,
    /// Never: the image has to be there.
    Never,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Container {
    /// DNS-1123 label.
    pub name: String,
    /// The image reference as written.
    pub image: String,
    /// Replaces the image's entry point.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    /// Absolute path; the image's where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// Ports, of which those with a host port are published.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// Where volumes appear.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volume_mounts: Vec<VolumeMount>,
    /// When the registry is asked.
    pub image_pull_policy: PullPolicy,
    /// Keep standard input open.
    #[serde(skip_serializing_if = "is_false")]
    pub stdin: bool,
    /// Give the process a terminal.
    #[serde(skip_serializing_if = "is_false")]
    pub tty: bool,
    /// What it may use and what it needs.
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub resources: Resources,
    /// User, capabilities, read-only root.
    #[serde(skip_serializing_if = "Security::is_empty")]
    pub security_context: Security,
}

/// What a container may use and what it needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Resources {
    /// What it may use.
    #[serde(skip_serializing_if = "Amounts::is_empty")]
    pub limits: Amounts,
    /// What it needs: as limited where nothing else is said.
    #[serde(skip_serializing_if = "Amounts::is_empty")]
    pub requests: Amounts,
}

/// Amounts of the resources that a board gives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Amounts {
    /// Thousandths of a processor.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "millis")]
    pub cpu: Option<u64>,
    /// Bytes.
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "bytes")]
    pub memory: Option<u64>,
}

fn millis<S: serde::Serializer>(cpu: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{}m", cpu.unwrap_or(0)))
}

fn bytes<S: serde::Serializer>(memory: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&memory.unwrap_or(0))
}

impl Amounts {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Kubernetes' three classes of pods, by which memory is taken back first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Quality {
    /// Everything is limited, and asked for in full.
    Guaranteed,
    /// Something is asked for or limited.
    Burstable,
    /// Nothing is.
    BestEffort,
}

impl Quality {
    /// Kubernetes' name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

impl Resources {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// The class of these resources. An amount of 0 asks for nothing.
    #[must_use]
    pub fn quality(&self) -> Quality {
        let some = |amount: Option<u64>| amount.filter(|amount| *amount > 0);
        let limits = (some(self.limits.cpu), some(self.limits.memory));
        let requests = (some(self.requests.cpu), some(self.requests.memory));
        match (limits, requests) {
            ((None, None), (None, None)) => Quality::BestEffort,
            ((Some(_), Some(_)), requests) if requests == limits => Quality::Guaranteed,
            _ => Quality::Burstable,
        }
    }

    /// Kubernetes' `oom_score_adj` on a board with this much memory: the more a container has asked for, the later it is
    /// ended. `None` for the class whose score only root may set.
    #[must_use]
    pub fn oom_score_adj(&self, capacity: u64) -> Option<i32> {
        match self.quality() {
            Quality::Guaranteed => None,
            Quality::BestEffort => Some(1000),
            Quality::Burstable => {
                let requested = self.requests.memory.unwrap_or(0);
                let share = u128::from(requested) * 1000 / u128::from(capacity.max(1));
                let share = i32::try_from(share).unwrap_or(1000);
                Some((1000 - share.min(1000)).clamp(3, 999))
            }
        }
    }

    /// Kubernetes' share of processor time: 1024 for a whole processor, 2 at least. `None` if none is asked for.
    #[must_use]
    pub fn cpu_shares(&self) -> Option<u64> {
        let millis = self.requests.cpu?;
        Some((millis.saturating_mul(1024) / 1000).clamp(2, 262_144))
    }
}

/// One environment variable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct EnvVar {
    /// Not empty, no `=` and no NUL.
    pub name: String,
    /// `$(NAME)` refers to an earlier variable, `$$(NAME)` is a literal `$(NAME)`.
    pub value: String,
}

/// One port of a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Port {
    /// A name for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// 1..=65535.
    pub container_port: u16,
    /// The port of the board that leads to it, if it is published.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_port: Option<u16>,
    /// The address of the board to listen on; all where there is none.
    #[serde(rename = "hostIP", skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<String>,
}

/// Where a volume appears in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VolumeMount {
    /// A volume of the pod.
    pub name: String,
    /// Absolute path without `..`.
    pub mount_path: String,
    /// No writing.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only: bool,
}

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// DNS-1123 label.
    pub name: String,
    /// Where its files are.
    #[serde(flatten)]
    pub source: VolumeSource,
}

/// Where a volume's files are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub enum VolumeSource {
    /// A directory that lives as long as the pod does.
    #[serde(rename = "emptyDir")]
    EmptyDir {},
    /// A path of the board.
    #[serde(rename = "hostPath")]
    HostPath {
        /// Absolute path without `..`.
        path: String,
        /// What has to be there.
        #[serde(rename = "type", skip_serializing_if = "HostPathType::is_any")]
        kind: HostPathType,
    },
}

/// What has to be at a host path before the pod starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum HostPathType {
    /// Anything.
    #[serde(rename = "")]
    Any,
    /// A directory.
    Directory,
    /// A directory, made if it is missing.
    DirectoryOrCreate,
    /// A regular file.
    File,
}

impl HostPathType {
    fn is_any(&self) -> bool {
        *self == Self::Any
    }
}

/// The pod's part of the security settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSecurity {
    /// Numeric user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<u32>,
    /// Numeric group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<u32>,
}

impl PodSecurity {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// A container's part of the security settings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Security {
    /// Numeric user.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_user: Option<u32>,
    /// Numeric group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_as_group: Option<u32>,
    /// No writing outside of volumes.
    #[serde(skip_serializing_if = "is_false")]
    pub read_only_root_filesystem: bool,
    /// Capabilities on top of, or taken from, the default set.
    #[serde(skip_serializing_if = "Capabilities::is_empty")]
    pub capabilities: Capabilities,
}

impl Security {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Capabilities by name, without the `CAP_` prefix.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// Given on top of the default set.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub add: Vec<String>,
    /// Taken from it; `ALL` takes all.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<String>,
}

impl Capabilities {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn is_false(value: &bool) -> bool {
    !*value
}

impl Pod {
    /// `namespace/name`: at most one pod of that key runs at any time.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}/{}", self.metadata.namespace, self.metadata.name)
    }

    /// The Pod as JSON, with `apiVersion` and `kind`, in a fixed order.
    ///
    /// # Errors
    /// Never for a value made by [`crate::manifest::parse`]; the signature follows the serializer's.
    pub fn to_json(&self) -> Result<Value, serde_json::Error> {
        Ok(json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": serde_json::to_value(&self.metadata)?,
            "spec": serde_json::to_value(&self.spec)?,
        }))
    }

    /// `user`, `user:group` or `:group` for `container`, whose own setting wins over the pod's.
    #[must_use]
    pub fn user(&self, container: &Container) -> Option<String> {
        let pod = &self.spec.security_context;
        let own = &container.security_context;
        match (
            own.run_as_user.or(pod.run_as_user),
            own.run_as_group.or(pod.run_as_group),
        ) {
            (None, None) => None,
            (Some(user), None) => Some(user.to_string()),
            (user, Some(group)) => Some(format!(
                "{}:{group}",
                user.map(|user| user.to_string()).unwrap_or_default()
            )),
        }
    }
}

impl Container {
    /// The environment with `$(NAME)` replaced by the variables before it.
    #[must_use]
    pub fn expanded_env(&self) -> Vec<(String, String)> {
        let mut known: BTreeMap<&str, String> = BTreeMap::new();
        let mut list = Vec::new();
        for EnvVar { name, value } in &self.env {
            let value = expand(value, &known);
            known.insert(name, value.clone());
            list.push((name.clone(), value));
        }
        list
    }

    /// `command` and `args` with `$(NAME)` replaced by the container's variables.
    #[must_use]
    pub fn expanded_command(&self) -> (Vec<String>, Vec<String>) {
        let env = self.expanded_env();
        let known: BTreeMap<&str, String> = env
            .iter()
            .map(|(name, value)| (name.as_str(), value.clone()))
            .collect();
        let all = |words: &[String]| words.iter().map(|word| expand(word, &known)).collect();
        (all(&self.command), all(&self.args))
    }
}

/// The longest text an expansion makes, so that `$(A)$(A)` repeated cannot grow without end.
const MAX_EXPANDED: usize = 128 * 1024;

/// Kubernetes' `$(NAME)` syntax: an unknown name stays as written, `$$` is a literal `$`.
fn expand(text: &str, known: &BTreeMap<&str, String>) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        if let Some(after) = rest.strip_prefix("$$") {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix("$(").and_then(|tail| tail.split_once(')')) {
            match known.get(name) {
                Some(value) if out.len() + value.len() <= MAX_EXPANDED => out.push_str(value),
                _ => {
                    out.push_str("$(");
                    out.push_str(name);
                    out.push(')');
                }
            }
            rest = after;
        } else {
            out.push('$');
            rest = &rest[1..];
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_scores_and_shares_are_kubernetes() {
        let amounts = |cpu, memory| Amounts { cpu, memory };
        let none = amounts(None, None);
        for (limits, requests, quality, score, shares) in [
            (none, none, "BestEffort", Some(1000), None),
            (none, amounts(Some(0), None), "BestEffort", Some(1000), Some(2)),
            (
                amounts(Some(500), Some(100)),
                amounts(Some(500), Some(100)),
                "Guaranteed",
                None,
                Some(512),
            ),
            (
                amounts(Some(500), None),
                amounts(Some(500), None),
                "Burstable",
                Some(999),
                Some(512),
            ),
            (none, amounts(Some(1), Some(250)), "Burstable", Some(750), Some(2)),
            (none, amounts(None, Some(5000)), "Burstable", Some(3), None),
            (
                amounts(Some(1000), Some(100)),
                amounts(Some(100), Some(100)),
                "Burstable",
                Some(900),
                Some(102),
            ),
        ] {
            let resources = Resources { limits, requests };
            assert_eq!(resources.quality().name(), quality, "{resources:?}");
            assert_eq!(resources.oom_score_adj(1000), score, "{resources:?}");
            assert_eq!(resources.cpu_shares(), shares, "{resources:?}");
        }
    }

    #[test]
    fn expansion_follows_kubernetes() {
        let known = BTreeMap::from([("A", "1".to_owned()), ("B", "$(A)".to_owned())]);
        for (text, expected) in [
            ("plain", "plain"),
            ("$(A)", "1"),
            ("x$(A)y$(A)", "x1y1"),
            ("$(B)", "$(A)"),
            ("$(C)", "$(C)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$", "$"),
            ("$(A", "$(A"),
            ("a$b", "a$b"),
        ] {
            assert_eq!(expand(text, &known), expected, "{text}");
        }
    }

    #[test]
    fn expansion_is_bounded() {
        let doubling = |name: &str, before: &str| EnvVar {
            name: name.into(),
            value: format!("$({before})").repeat(64),
        };
        let mut env = vec![EnvVar {
            name: "A0".into(),
            value: "x".repeat(64),
        }];
        env.extend((1..20).map(|n| doubling(&format!("A{n}"), &format!("A{}", n - 1))));
        let container = Container {
            name: "c".into(),
            image: "i".into(),
            command: vec![],
            args: vec![],
            env,
            working_dir: None,
            ports: vec![],
            volume_mounts: vec![],
            image_pull_policy: PullPolicy::Always,
            stdin: false,
            tty: false,
            resources: Resources::default(),
            security_context: Security::default(),
        };
        assert!(
            container
                .expanded_env()
                .iter()
                .all(|(_, value)| value.len() <= 2 * MAX_EXPANDED)
        );
    }

    #[test]
    fn restart_policies() {
        for (policy, zero, one) in [
            (RestartPolicy::Always, true, true),
            (RestartPolicy::OnFailure, false, true),
            (RestartPolicy::Never, false, false),
        ] {
            assert_eq!(
                (policy.restarts(0), policy.restarts(1)),
                (zero, one),
                "{policy:?}"
            );
        }
    }
}
