//! From the bytes of a file to Pods, or to a list of what is wrong with it, each with its field and its line.
//!
//! A field of Kubernetes that is not honoured is refused by name, and so is one that does not exist: a board must
//! not run something other than what was written. `null` is the same as leaving a field out, as in Kubernetes.

mod check;
mod known;
mod resources;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use crate::pod::{
    Capabilities, Container, EnvVar, HostPathType, Metadata, Pod, PodSecurity, PodSpec, Port, PullPolicy,
    Resources, RestartPolicy, Security, Volume, VolumeMount, VolumeSource,
};
use crate::yaml::{self, Node, Value};
use check::{
    absolute_path, clip, default_pull_policy, dns_label, dns_subdomain, image_reference, ip_address,
};

/// A file with more mistakes than this is the wrong file.
const MAX_PROBLEMS: usize = 20;

/// One thing that is wrong with a file.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub struct Problem {
    /// The field, as in `spec.containers[0].image`; empty for the file as a whole.
    pub path: String,
    /// The line, from 1; 0 where there is none.
    pub line: u64,
    /// What is wrong.
    pub what: String,
}

impl Problem {
    pub(crate) fn file(what: String) -> Self {
        Self {
            path: String::new(),
            line: 0,
            what,
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.what)?;
        if self.line > 0 {
            write!(f, ", line {}", self.line)?;
        }
        Ok(())
    }
}

/// Reads the Pods in `bytes`: one or several YAML documents, or JSON.
///
/// # Errors
/// What is wrong, in the order of the file; at least one.
pub fn parse(bytes: &[u8]) -> Result<Vec<Pod>, Vec<Problem>> {
    let documents = yaml::parse(bytes).map_err(|problem| vec![problem])?;
    let mut reader = Reader { problems: Vec::new() };
    let mut pods: Vec<Pod> = Vec::new();
    for document in documents.iter().filter(|document| document.value != Value::Null) {
        let Some(pod) = reader.pod(document) else { continue };
        if pods.iter().any(|other| other.key() == pod.key()) {
            reader.refuse(
                "metadata.name",
                document.line,
                format!("a second Pod named {}", pod.key()),
            );
        }
        pods.push(pod);
    }
    if reader.problems.is_empty() {
        return Ok(pods);
    }
    reader.problems.sort_by_key(|problem| problem.line);
    reader.problems.truncate(MAX_PROBLEMS);
    Err(reader.problems)
}

/// A mapping whose fields are taken one by one; [`Reader::finish`] refuses those that nobody took.
struct Fields<'a> {
    path: String,
    line: u64,
    rest: Vec<&'a (String, u64, Node)>,
}

impl<'a> Fields<'a> {
    fn take(&mut self, name: &str) -> Option<&'a Node> {
        let at = self.rest.iter().position(|field| field.0 == name)?;
        let node = &self.rest.remove(at).2;
        (node.value != Value::Null).then_some(node)
    }

    fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }
}

struct Reader {
    problems: Vec<Problem>,
}

impl Reader {
    fn refuse(&mut self, path: &str, line: u64, what: impl Into<String>) {
        self.problems.push(Problem {
            path: path.to_owned(),
            line,
            what: what.into(),
        });
    }

    fn wanted(&mut self, path: &str, node: &Node, wanted: &str) {
        let hint = match (&node.value, wanted) {
            (Value::Bool(_) | Value::Integer(_) | Value::Number(_), "a string") => " (put it in quotes)",
            _ => "",
        };
        self.refuse(
            path,
            node.line,
            format!("expected {wanted}, got {}{hint}", node.value.kind()),
        );
    }

    fn fields<'a>(&mut self, path: String, node: &'a Node) -> Fields<'a> {
        let rest = match &node.value {
            Value::Map(map) => map.iter().collect(),
            _ => {
                self.wanted(&path, node, "a mapping");
                Vec::new()
            }
        };
        Fields {
            path,
            line: node.line,
            rest,
        }
    }

    /// Refuses every field that is left; `known` are those of Kubernetes that are not honoured yet.
    fn finish(&mut self, fields: Fields<'_>, known: &[&str]) {
        for (name, line, node) in fields.rest {
            let known = known.contains(&name.as_str());
            // `kubectl create --dry-run=client -o yaml` writes such fields without a value.
            let empty = match &node.value {
                Value::Null => true,
                Value::Map(map) => map.is_empty(),
                Value::List(list) => list.is_empty(),
                _ => false,
            };
            if known && empty {
                continue;
            }
            let name = if name.len() > 64 { "(a long name)" } else { name };
            let path = if fields.path.is_empty() {
                name.to_owned()
            } else {
                format!("{}.{name}", fields.path)
            };
            self.refuse(
                &path,
                *line,
                if known {
                    "not supported yet"
                } else {
                    "unknown field"
                },
            );
        }
    }

    fn required<'a>(&mut self, fields: &mut Fields<'a>, name: &str) -> Option<&'a Node> {
        let node = fields.take(name);
        if node.is_none() {
            self.refuse(&fields.path(name), fields.line, "missing");
        }
        node
    }

    fn text(&mut self, path: &str, node: &Node) -> Option<String> {
        match &node.value {
            Value::String(text) if text.contains('\0') => {
                self.refuse(path, node.line, "contains a NUL byte");
                None
            }
            Value::String(text) => Some(text.clone()),
            _ => {
                self.wanted(path, node, "a string");
                None
            }
        }
    }

    fn string(&mut self, fields: &mut Fields<'_>, name: &str) -> Option<String> {
        let node = fields.take(name)?;
        self.text(&fields.path(name), node)
    }

    /// A string that `check` accepts; `check` answers what a right one looks like.
    fn checked(
        &mut self,
        fields: &mut Fields<'_>,
        name: &str,
        check: fn(&str) -> Result<(), String>,
    ) -> Option<String> {
        let node = fields.take(name)?;
        let path = fields.path(name);
        let text = self.text(&path, node)?;
        match check(&text) {
            Ok(()) => Some(text),
            Err(what) => {
                self.refuse(&path, node.line, what);
                None
            }
        }
    }

    fn boolean(&mut self, fields: &mut Fields<'_>, name: &str) -> Option<bool> {
        let node = fields.take(name)?;
        match node.value {
            Value::Bool(value) => Some(value),
            _ => {
                self.wanted(&fields.path(name), node, "a boolean");
                None
            }
        }
    }

    fn integer(&mut self, fields: &mut Fields<'_>, name: &str, from: i64, to: i64) -> Option<i64> {
        let node = fields.take(name)?;
        match node.value {
            Value::Integer(value) if (from..=to).contains(&value) => Some(value),
            Value::Integer(value) => {
                self.refuse(
                    &fields.path(name),
                    node.line,
                    format!("{value} is not between {from} and {to}"),
                );
                None
            }
            _ => {
                self.wanted(&fields.path(name), node, "a number");
                None
            }
        }
    }

    fn choice<T: Copy>(&mut self, fields: &mut Fields<'_>, name: &str, choices: &[(&str, T)]) -> Option<T> {
        let node = fields.take(name)?;
        let path = fields.path(name);
        let text = self.text(&path, node)?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(*value);
        }
        let names: Vec<String> = choices.iter().map(|(name, _)| format!("{name:?}")).collect();
        self.refuse(
            &path,
            node.line,
            format!("{text:?} is not one of {}", names.join(", ")),
        );
        None
    }

    fn list<'a>(&mut self, fields: &mut Fields<'a>, name: &str) -> Vec<(String, &'a Node)> {
        let Some(node) = fields.take(name) else {
            return Vec::new();
        };
        let path = fields.path(name);
        match &node.value {
            Value::List(list) => list
                .iter()
                .enumerate()
                .map(|(index, node)| (format!("{path}[{index}]"), node))
                .collect(),
            _ => {
                self.wanted(&path, node, "a list");
                Vec::new()
            }
        }
    }

    fn strings(&mut self, fields: &mut Fields<'_>, name: &str) -> Vec<String> {
        self.list(fields, name)
            .into_iter()
            .filter_map(|(path, node)| self.text(&path, node))
            .collect()
    }

    fn string_map(&mut self, fields: &mut Fields<'_>, name: &str) -> BTreeMap<String, String> {
        let Some(node) = fields.take(name) else {
            return BTreeMap::new();
        };
        let path = fields.path(name);
        let Value::Map(map) = &node.value else {
            self.wanted(&path, node, "a mapping");
            return BTreeMap::new();
        };
        let mut out = BTreeMap::new();
        for (key, _, node) in map {
            if let Some(value) = self.text(&format!("{path}.{key}"), node) {
                out.insert(key.clone(), value);
            }
        }
        out
    }

    /// Names in a list are unique.
    fn unique(&mut self, seen: &mut BTreeSet<String>, path: &str, line: u64, name: &str) {
        if !seen.insert(name.to_owned()) {
            self.refuse(path, line, format!("{name:?} is there twice"));
        }
    }

    fn pod(&mut self, node: &Node) -> Option<Pod> {
        let before = self.problems.len();
        let mut root = self.fields(String::new(), node);
        let line = |root: &Fields<'_>, name: &str| {
            root.rest
                .iter()
                .find(|field| field.0 == name)
                .map_or(node.line, |field| field.1)
        };
        let (version_line, kind_line) = (line(&root, "apiVersion"), line(&root, "kind"));
        let version = self.string(&mut root, "apiVersion");
        let kind = self.string(&mut root, "kind");
        match (version.as_deref(), kind.as_deref()) {
            (Some("v1"), Some("Pod")) => {}
            (_, Some("Pod")) => self.refuse("apiVersion", version_line, "a Pod has apiVersion v1"),
            (_, Some(kind)) => {
                let what = format!("{} is not supported yet; write a Pod", clip(kind));
                self.refuse("kind", kind_line, what);
                return None;
            }
            (_, None) if self.problems.len() == before => {
                self.refuse("kind", node.line, "missing; write \"kind: Pod\"");
                return None;
            }
            (_, None) => return None,
        }
        let metadata = self
            .required(&mut root, "metadata")
            .and_then(|node| self.metadata(node));
        let spec = self.required(&mut root, "spec").and_then(|node| self.spec(node));
        self.finish(root, &["status"]);
        Some(Pod {
            metadata: metadata?,
            spec: spec?,
        })
    }

    fn metadata(&mut self, node: &Node) -> Option<Metadata> {
        let mut fields = self.fields("metadata".to_owned(), node);
        let missing = !fields.rest.iter().any(|field| field.0 == "name");
        let name = self.checked(&mut fields, "name", dns_subdomain);
        if missing {
            self.refuse("metadata.name", node.line, "missing");
        }
        let namespace = self
            .checked(&mut fields, "namespace", dns_label)
            .unwrap_or_else(|| "default".to_owned());
        let labels = self.string_map(&mut fields, "labels");
        let annotations = self.string_map(&mut fields, "annotations");
        self.finish(fields, known::METADATA);
        Some(Metadata {
            name: name?,
            namespace,
            labels,
            annotations,
        })
    }

    fn spec(&mut self, node: &Node) -> Option<PodSpec> {
        let mut fields = self.fields("spec".to_owned(), node);
        let host_network = self.boolean(&mut fields, "hostNetwork").unwrap_or(false);
        let volumes = self.volumes(&mut fields);
        let names: BTreeSet<&str> = volumes.iter().map(|volume| volume.name.as_str()).collect();
        let list = self.list(&mut fields, "containers");
        if list.is_empty() {
            self.refuse("spec.containers", node.line, "a Pod has one container");
        }
        if let Some((path, second)) = list.get(1) {
            let path = path.clone();
            self.refuse(&path, second.line, "more than one container is not supported yet");
        }
        let containers: Vec<Container> = list
            .iter()
            .filter_map(|(path, node)| self.container(path, node, &names, host_network))
            .collect();
        let policies = [
            ("Always", RestartPolicy::Always),
            ("OnFailure", RestartPolicy::OnFailure),
            ("Never", RestartPolicy::Never),
        ];
        let restart_policy = self
            .choice(&mut fields, "restartPolicy", &policies)
            .unwrap_or(RestartPolicy::Always);
        let grace = self
            .integer(&mut fields, "terminationGracePeriodSeconds", 0, 86_400)
            .unwrap_or(30);
        let node_name = self.checked(&mut fields, "nodeName", dns_subdomain);
        let hostname = self.checked(&mut fields, "hostname", dns_label);
        let security_context = match fields.take("securityContext") {
            None => PodSecurity::default(),
            Some(node) => self.pod_security(node),
        };
        self.only(
            &mut fields,
            "automountServiceAccountToken",
            false,
            "there is no service account to mount",
        );
        self.only(
            &mut fields,
            "hostPID",
            false,
            "a pod always has its own process namespace",
        );
        self.only(
            &mut fields,
            "hostIPC",
            false,
            "a pod always has its own IPC namespace",
        );
        self.finish(fields, known::SPEC);
        Some(PodSpec {
            containers,
            volumes,
            host_network,
            hostname,
            restart_policy,
            termination_grace_period_seconds: u32::try_from(grace).unwrap_or(30),
            node_name,
            security_context,
        })
    }

    /// A boolean of which only one value can be honoured.
    fn only(&mut self, fields: &mut Fields<'_>, name: &str, allowed: bool, why: &str) {
        let line = fields
            .rest
            .iter()
            .find(|field| field.0 == name)
            .map_or(fields.line, |field| field.1);
        if self.boolean(fields, name).is_some_and(|value| value != allowed) {
            let path = fields.path(name);
            self.refuse(&path, line, format!("only {allowed} is supported: {why}"));
        }
    }

    fn pod_security(&mut self, node: &Node) -> PodSecurity {
        let mut fields = self.fields("spec.securityContext".to_owned(), node);
        let run_as_user = self.id(&mut fields, "runAsUser");
        let run_as_group = self.id(&mut fields, "runAsGroup");
        self.finish(fields, known::POD_SECURITY);
        PodSecurity {
            run_as_user,
            run_as_group,
        }
    }

    fn id(&mut self, fields: &mut Fields<'_>, name: &str) -> Option<u32> {
        self.integer(fields, name, 0, i64::from(i32::MAX))
            .and_then(|id| u32::try_from(id).ok())
    }

    fn container(
        &mut self,
        path: &str,
        node: &Node,
        volumes: &BTreeSet<&str>,
        host_network: bool,
    ) -> Option<Container> {
        let mut fields = self.fields(path.to_owned(), node);
        for name in ["name", "image"] {
            if !fields.rest.iter().any(|field| field.0 == name) {
                self.refuse(&fields.path(name), node.line, "missing");
            }
        }
        let name = self.checked(&mut fields, "name", dns_label);
        let image = self.checked(&mut fields, "image", image_reference);
        let command = self.strings(&mut fields, "command");
        let args = self.strings(&mut fields, "args");
        let env = self.env(&mut fields);
        let working_dir = self.checked(&mut fields, "workingDir", absolute_path);
        let ports = self.ports(&mut fields, host_network);
        let volume_mounts = self.volume_mounts(&mut fields, volumes);
        let policies = [
            ("Always", PullPolicy::Always),
            ("IfNotPresent", PullPolicy::IfNotPresent),
            ("Never", PullPolicy::Never),
        ];
        let image_pull_policy = self.choice(&mut fields, "imagePullPolicy", &policies);
        let stdin = self.boolean(&mut fields, "stdin").unwrap_or(false);
        let tty = self.boolean(&mut fields, "tty").unwrap_or(false);
        let security_context = match fields.take("securityContext") {
            None => Security::default(),
            Some(node) => self.security(&format!("{path}.securityContext"), node),
        };
        let resources = match fields.take("resources") {
            None => Resources::default(),
            Some(node) => self.resources(&format!("{path}.resources"), node),
        };
        self.finish(fields, known::CONTAINER);
        let image = image?;
        Some(Container {
            name: name?,
            image_pull_policy: image_pull_policy.unwrap_or_else(|| default_pull_policy(&image)),
            image,
            command,
            args,
            env,
            working_dir,
            ports,
            volume_mounts,
            stdin,
            tty,
            resources,
            security_context,
        })
    }

    fn security(&mut self, path: &str, node: &Node) -> Security {
        let mut fields = self.fields(path.to_owned(), node);
        let mut security = Security {
            run_as_user: self.id(&mut fields, "runAsUser"),
            run_as_group: self.id(&mut fields, "runAsGroup"),
            read_only_root_filesystem: self
                .boolean(&mut fields, "readOnlyRootFilesystem")
                .unwrap_or(false),
            capabilities: Capabilities::default(),
        };
        self.only(
            &mut fields,
            "allowPrivilegeEscalation",
            false,
            "no process in a pod ever gains privileges",
        );
        self.only(&mut fields, "privileged", false, "pods run without root");
        if let Some(node) = fields.take("capabilities") {
            let mut sets = self.fields(format!("{path}.capabilities"), node);
            security.capabilities.add = self.capabilities(&mut sets, "add");
            security.capabilities.drop = self.capabilities(&mut sets, "drop");
            self.finish(sets, &[]);
        }
        self.finish(fields, known::SECURITY);
        security
    }

    fn capabilities(&mut self, fields: &mut Fields<'_>, name: &str) -> Vec<String> {
        let mut out = Vec::new();
        for (path, node) in self.list(fields, name) {
            let Some(text) = self.text(&path, node) else {
                continue;
            };
            let plain = text.strip_prefix("CAP_").unwrap_or(&text);
            if plain.is_empty()
                || !plain
                    .bytes()
                    .all(|byte| byte.is_ascii_uppercase() || byte == b'_')
            {
                self.refuse(
                    &path,
                    node.line,
                    format!("{:?} is not the name of a capability", clip(&text)),
                );
            } else {
                out.push(plain.to_owned());
            }
        }
        out
    }

    fn env(&mut self, fields: &mut Fields<'_>) -> Vec<EnvVar> {
        let mut out = Vec::new();
        for (path, node) in self.list(fields, "env") {
            let mut item = self.fields(path, node);
            let name = self.required(&mut item, "name").and_then(|node| {
                let path = item.path("name");
                let text = self.text(&path, node)?;
                let good = !text.is_empty() && !text.contains('=');
                if !good {
                    self.refuse(
                        &path,
                        node.line,
                        "a variable's name is not empty and has no \"=\"",
                    );
                }
                good.then_some(text)
            });
            let value = self.string(&mut item, "value").unwrap_or_default();
            self.finish(item, &["valueFrom"]);
            if let Some(name) = name {
                out.push(EnvVar { name, value });
            }
        }
        out
    }

    fn ports(&mut self, fields: &mut Fields<'_>, host_network: bool) -> Vec<Port> {
        let mut out = Vec::new();
        let mut seen = BTreeSet::new();
        for (path, node) in self.list(fields, "ports") {
            let mut item = self.fields(path.clone(), node);
            let name = self.checked(&mut item, "name", dns_label);
            if !item.rest.iter().any(|field| field.0 == "containerPort") {
                self.refuse(&item.path("containerPort"), node.line, "missing");
            }
            let port = |value: Option<i64>| value.and_then(|value| u16::try_from(value).ok());
            let container_port = port(self.integer(&mut item, "containerPort", 1, 65_535));
            let host_port = port(self.integer(&mut item, "hostPort", 1, 65_535));
            let host_ip = self.checked(&mut item, "hostIP", ip_address);
            self.choice(&mut item, "protocol", &[("TCP", ())]);
            self.finish(item, &[]);
            let Some(container_port) = container_port else {
                continue;
            };
            if host_network && host_port.is_some_and(|host| host != container_port) {
                let what = format!("with hostNetwork it has to be the containerPort {container_port}");
                self.refuse(&format!("{path}.hostPort"), node.line, what);
            }
            if let Some(host) = host_port {
                let place = format!("{}:{host}", host_ip.as_deref().unwrap_or("*"));
                self.unique(&mut seen, &format!("{path}.hostPort"), node.line, &place);
            }
            out.push(Port {
                name,
                container_port,
                host_port,
                host_ip,
            });
        }
        out
    }

    fn volume_mounts(&mut self, fields: &mut Fields<'_>, volumes: &BTreeSet<&str>) -> Vec<VolumeMount> {
        let mut out = Vec::new();
        let mut seen = BTreeSet::new();
        for (path, node) in self.list(fields, "volumeMounts") {
            let mut item = self.fields(path.clone(), node);
            let name = self.required(&mut item, "name").and_then(|node| {
                let path = item.path("name");
                let name = self.text(&path, node)?;
                if !volumes.contains(name.as_str()) {
                    self.refuse(
                        &path,
                        node.line,
                        format!("there is no volume {:?} in spec.volumes", clip(&name)),
                    );
                }
                Some(name)
            });
            if !item.rest.iter().any(|field| field.0 == "mountPath") {
                self.refuse(&item.path("mountPath"), node.line, "missing");
            }
            let mount_path = self.checked(&mut item, "mountPath", absolute_path);
            let read_only = self.boolean(&mut item, "readOnly").unwrap_or(false);
            self.finish(
                item,
                &["subPath", "subPathExpr", "mountPropagation", "recursiveReadOnly"],
            );
            let (Some(name), Some(mount_path)) = (name, mount_path) else {
                continue;
            };
            self.unique(&mut seen, &format!("{path}.mountPath"), node.line, &mount_path);
            out.push(VolumeMount {
                name,
                mount_path,
                read_only,
            });
        }
        out
    }

    fn volumes(&mut self, fields: &mut Fields<'_>) -> Vec<Volume> {
        let mut out = Vec::new();
        let mut seen = BTreeSet::new();
        for (path, node) in self.list(fields, "volumes") {
            let before = self.problems.len();
            let mut item = self.fields(path.clone(), node);
            if !item.rest.iter().any(|field| field.0 == "name") {
                self.refuse(&item.path("name"), node.line, "missing");
            }
            let name = self.checked(&mut item, "name", dns_label);
            // `emptyDir:` with nothing behind it is an emptyDir: here, null is a value.
            let empty = item
                .rest
                .iter()
                .position(|field| field.0 == "emptyDir")
                .map(|at| &item.rest.remove(at).2);
            let host = item.take("hostPath");
            if let Some(node) = empty.filter(|node| node.value != Value::Null) {
                let inner = self.fields(format!("{path}.emptyDir"), node);
                self.finish(inner, &["medium", "sizeLimit"]);
            }
            let host = host.and_then(|node| self.host_path(&format!("{path}.hostPath"), node));
            self.finish(item, known::VOLUME);
            let source = match (empty, host) {
                (Some(_), None) => VolumeSource::EmptyDir {},
                (None, Some(source)) => source,
                _ => {
                    if self.problems.len() == before {
                        self.refuse(&path, node.line, "a volume has either emptyDir or hostPath");
                    }
                    continue;
                }
            };
            let Some(name) = name else { continue };
            self.unique(&mut seen, &format!("{path}.name"), node.line, &name);
            out.push(Volume { name, source });
        }
        out
    }

    fn host_path(&mut self, path: &str, node: &Node) -> Option<VolumeSource> {
        let mut fields = self.fields(path.to_owned(), node);
        if !fields.rest.iter().any(|field| field.0 == "path") {
            self.refuse(&fields.path("path"), node.line, "missing");
        }
        let host = self.checked(&mut fields, "path", absolute_path);
        let kinds = [
            ("", HostPathType::Any),
            ("Directory", HostPathType::Directory),
            ("DirectoryOrCreate", HostPathType::DirectoryOrCreate),
            ("File", HostPathType::File),
        ];
        let kind = self
            .choice(&mut fields, "type", &kinds)
            .unwrap_or(HostPathType::Any);
        self.finish(fields, &[]);
        Some(VolumeSource::HostPath { path: host?, kind })
    }
}

#[cfg(test)]
mod tests;
