//! A container's spec from a pod and its image.

use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wherry_images::Image;
use wherry_sync::plan::Desired;
use wherry_sync::pod::{self, HostPathType, VolumeSource};

use super::board::{ATTEMPT, CRASHES};
use crate::assemble::merge_env;
use crate::container::{Limits, Mount, Network, Owner, Port, Source, Spec};

/// Why no container can be made of a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Assemble(#[from] crate::assemble::Error),
    #[error("volume {volume}: {path} {what}")]
    HostPath {
        volume: String,
        path: PathBuf,
        what: String,
    },
    #[error("volume {volume}: cannot make {path}")]
    Volume {
        volume: String,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the pod has no container")]
    NoContainer,
}

/// The spec of try number `attempt`. `volumes` is the directory of the pod's own volumes, made as needed.
pub(super) fn spec(
    desired: &Desired,
    image: &Image,
    attempt: u32,
    crashes: u32,
    volumes: &Path,
) -> Result<Spec, Error> {
    let pod = &desired.pod;
    let container = pod.spec.containers.first().ok_or(Error::NoContainer)?;
    let (command, args) = container.expanded_command();
    let entrypoint = (!command.is_empty()).then_some(command.as_slice());
    let mut spec = Spec::from_image(image, &container.image, entrypoint, &args)?;
    spec.name = name(desired, &container.name, attempt);
    merge_env(&mut spec.env, container.expanded_env());
    if let Some(dir) = &container.working_dir {
        spec.cwd.clone_from(dir);
    }
    if let Some(user) = pod.user(container) {
        spec.user = match user.strip_prefix(':') {
            // A group alone: the image's user, or root, in that group.
            Some(group) => format!("{}:{group}", image_user(&spec.user)),
            None => user,
        };
    }
    spec.hostname = hostname(pod);
    spec.mounts = mounts(pod, container, volumes)?;
    spec.ports = ports(pod, container);
    spec.network = if pod.spec.host_network {
        Network::Host
    } else {
        Network::Private
    };
    spec.tty = container.tty;
    spec.open_stdin = container.stdin;
    spec.readonly_root = container.security_context.read_only_root_filesystem;
    let capability = |name: &String| {
        if name == "ALL" {
            name.clone()
        } else {
            format!("CAP_{name}")
        }
    };
    spec.cap_add = container
        .security_context
        .capabilities
        .add
        .iter()
        .map(capability)
        .collect();
    spec.cap_drop = container
        .security_context
        .capabilities
        .drop
        .iter()
        .map(capability)
        .collect();
    spec.labels.clone_from(&pod.metadata.labels);
    spec.labels.extend([
        (ATTEMPT.into(), attempt.to_string()),
        (CRASHES.into(), crashes.to_string()),
    ]);
    spec.owner = Owner::Pod {
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: desired.uid.clone(),
        container: container.name.clone(),
    };
    spec.stop_grace = pod.spec.termination_grace_period_seconds;
    spec.limits = limits(&container.resources, memory_of_board());
    Ok(spec)
}

/// As the kubelet does on cgroup v2: limits of memory leave no swap, and one process without memory ends all of them.
fn limits(resources: &pod::Resources, capacity: u64) -> Limits {
    let memory = resources.limits.memory.filter(|bytes| *bytes > 0);
    Limits {
        memory,
        memory_swap: memory.map(|bytes| i64::try_from(bytes).unwrap_or(i64::MAX)),
        cpu_quota: resources.limits.cpu.filter(|cpu| *cpu > 0).map(Limits::quota),
        cpu_shares: resources.cpu_shares(),
        oom_score_adj: resources.oom_score_adj(capacity),
        oom_group: memory.is_some(),
        ..Limits::default()
    }
}

/// Bytes of memory.
fn memory_of_board() -> u64 {
    let info = rustix::system::sysinfo();
    // The fields are as wide as the board's words.
    let bytes = u128::from(info.totalram) * u128::from(info.mem_unit);
    u64::try_from(bytes).unwrap_or(u64::MAX)
}

fn image_user(user: &str) -> &str {
    match user.split(':').next() {
        Some("") | None => "0",
        Some(user) => user,
    }
}

/// `iris_server_default_1f3a4b5c_0`: what a person looks for comes first. A pod's name may be longer than a
/// container's.
fn name(desired: &Desired, container: &str, attempt: u32) -> String {
    let meta = &desired.pod.metadata;
    let uid = desired.uid.get(..8).unwrap_or(&desired.uid);
    let rest = format!("_{uid}_{attempt}");
    let mut name = format!("{}_{container}_{}", meta.name, meta.namespace);
    name.truncate(128 - rest.len().min(128));
    name + &rest
}

/// The pod's host name: what the file says, else the pod's name up to where the kernel's limit allows.
fn hostname(pod: &pod::Pod) -> String {
    if pod.spec.host_network {
        return String::new();
    }
    let name = pod.spec.hostname.as_deref().unwrap_or(&pod.metadata.name);
    let mut name = name.to_owned();
    name.truncate(63);
    name.trim_end_matches(['-', '.']).to_owned()
}

fn ports(pod: &pod::Pod, container: &pod::Container) -> Vec<Port> {
    let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let port = |port: &pod::Port| {
        // With the board's network every named port may be listened on; else only those with a host port are published.
        let host_port = if pod.spec.host_network {
            Some(port.container_port)
        } else {
            port.host_port
        };
        let host_ip = port
            .host_ip
            .as_ref()
            .and_then(|ip| ip.parse().ok())
            .unwrap_or(any);
        host_port.map(|host_port| Port {
            host_ip,
            host_port,
            container_port: port.container_port,
        })
    };
    container.ports.iter().filter_map(port).collect()
}

fn mounts(pod: &pod::Pod, container: &pod::Container, volumes: &Path) -> Result<Vec<Mount>, Error> {
    let mut mounts = Vec::new();
    for mount in &container.volume_mounts {
        let Some(volume) = pod.spec.volumes.iter().find(|volume| volume.name == mount.name) else {
            continue;
        };
        let source = match &volume.source {
            VolumeSource::EmptyDir {} => {
                let path = volumes.join(&volume.name);
                empty_dir(&path).map_err(|source| Error::Volume {
                    volume: volume.name.clone(),
                    path: path.clone(),
                    source,
                })?;
                path
            }
            VolumeSource::HostPath { path, kind } => {
                let path = PathBuf::from(path);
                host_path(&path, *kind).map_err(|what| Error::HostPath {
                    volume: volume.name.clone(),
                    path: path.clone(),
                    what,
                })?;
                path
            }
        };
        mounts.push(Mount {
            source: Source::Bind(source),
            target: mount.mount_path.clone(),
            readonly: mount.read_only,
        });
    }
    Ok(mounts)
}

/// Any user of the container may write there, as in Kubernetes; who else may reach it is up to the directories above.
fn empty_dir(path: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777))
}

fn host_path(path: &Path, kind: HostPathType) -> Result<(), String> {
    if kind == HostPathType::DirectoryOrCreate {
        std::fs::create_dir_all(path).map_err(|error| format!("cannot be made: {error}"))?;
    }
    let meta = std::fs::metadata(path).map_err(|error| format!("cannot be used: {error}"))?;
    match kind {
        HostPathType::Directory | HostPathType::DirectoryOrCreate if !meta.is_dir() => {
            Err("is not a directory".into())
        }
        HostPathType::File if !meta.is_file() => Err("is not a regular file".into()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wherry_sync::manifest;

    fn desired(name: &str, spec: &str) -> Desired {
        let text = format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec: {{{spec}}}\n");
        let pod = manifest::parse(text.as_bytes()).unwrap().remove(0);
        Desired {
            uid: "1f3a4b5c-0000".into(),
            pod,
            digest: None,
        }
    }

    #[test]
    fn names_are_those_of_containers() {
        let short = desired("iris", "containers: [{name: server, image: i:1}]");
        assert_eq!(name(&short, "server", 2), "iris_server_default_1f3a4b5c_2");
        let long = desired(&"a".repeat(63), "containers: [{name: server, image: i:1}]");
        let name = name(&long, &"b".repeat(63), 2);
        assert!(
            crate::container::check_name(&name).is_ok() && name.ends_with("_1f3a4b5c_2"),
            "{name}"
        );
    }

    #[test]
    fn resources_become_limits() {
        let of = |resources: &str| {
            let text = format!("containers: [{{name: c, image: i, resources: {{{resources}}}}}]");
            limits(&desired("p", &text).pod.spec.containers[0].resources, 1 << 30)
        };
        let none = of("");
        assert_eq!((none.resources(), none.oom_score_adj), (None, Some(1000)));
        let guaranteed = of("limits: {cpu: 0.5, memory: 64Mi}");
        assert_eq!(
            guaranteed.resources().unwrap(),
            serde_json::json!({
                "memory": {"limit": 67_108_864, "swap": 67_108_864},
                "cpu": {"quota": 50_000, "period": 100_000, "shares": 512},
                "unified": {"memory.oom.group": "1"},
            })
        );
        assert_eq!(guaranteed.oom_score_adj, None);
        let burstable = of("requests: {cpu: 250m, memory: 512Mi}");
        assert_eq!(
            burstable.resources().unwrap(),
            serde_json::json!({"cpu": {"shares": 256}})
        );
        assert_eq!(burstable.oom_score_adj, Some(500));
    }

    #[test]
    fn ports_are_published_or_allowed() {
        let shown = |desired: &Desired| {
            let pod = &desired.pod;
            ports(pod, &pod.spec.containers[0])
                .iter()
                .map(Port::to_string)
                .collect::<Vec<_>>()
        };
        let private = "containers: [{name: c, image: i, ports: [{containerPort: 80, hostPort: 8080, hostIP: 127.0.0.1}, \
                       {containerPort: 81}]}]";
        assert_eq!(shown(&desired("p", private)), ["127.0.0.1:8080->80/tcp"]);
        let host = "hostNetwork: true, containers: [{name: c, image: i, ports: [{containerPort: 80}]}]";
        assert_eq!(shown(&desired("p", host)), ["0.0.0.0:80->80/tcp"]);
    }

    #[test]
    fn volumes_are_made_or_checked() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "x").unwrap();
        let of = |source: String| {
            let text = format!(
                "volumes: [{{name: v, {source}}}], containers: [{{name: c, image: i, volumeMounts: [{{name: v, mountPath: \
                 /v, readOnly: true}}]}}]"
            );
            let desired = desired("p", &text);
            mounts(
                &desired.pod,
                &desired.pod.spec.containers[0],
                &dir.path().join("volumes"),
            )
        };
        let made = of("emptyDir: {}".into()).unwrap();
        let path = dir.path().join("volumes/v");
        assert_eq!(
            made,
            [Mount {
                source: Source::Bind(path.clone()),
                target: "/v".into(),
                readonly: true
            }]
        );
        assert_eq!(
            std::fs::metadata(path).unwrap().permissions().mode() & 0o777,
            0o777
        );
        let file = file.display();
        for (source, what) in [
            (format!("hostPath: {{path: {file}}}"), None),
            (format!("hostPath: {{path: {file}, type: File}}"), None),
            (
                format!("hostPath: {{path: {file}, type: Directory}}"),
                Some("is not a directory"),
            ),
            (
                format!("hostPath: {{path: {file}.missing}}"),
                Some("cannot be used"),
            ),
            (
                format!("hostPath: {{path: {file}.dir, type: DirectoryOrCreate}}"),
                None,
            ),
        ] {
            let error = of(source.clone()).err().map(|error| error.to_string());
            match what {
                None => assert_eq!(error, None, "{source}"),
                Some(what) => assert!(error.unwrap().contains(what), "{source}"),
            }
        }
    }
}
