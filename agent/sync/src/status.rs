//! What a cluster is told: the `status` of a Pod and of the Node, as JSON in Kubernetes' shape.
//!
//! A status is derived from what is observed, whole, each time; nothing is patched by hand. The one thing that is
//! taken from the status before is the time at which each condition last changed. A phase that is final
//! (`Succeeded`, `Failed`) never goes back.
//!
//! ```text
//!   Pending ──first start──► Running ──policy lets it rest──► Succeeded (exit code 0) | Failed (any other)
//! ```

use serde_json::{Map, Value, json};

use crate::plan::{self, Container, Desired, Moment, Observed, State, Step};
use crate::pod::{PullPolicy, Quality, RestartPolicy};

/// Below this much available memory the node reports `MemoryPressure`, as the kubelet does.
const MEMORY_FLOOR: u64 = 100 << 20;

/// Below this part of the state directory's file system the node reports `DiskPressure`, as the kubelet does.
const DISK_FLOOR_PERCENT: u64 = 10;

/// The order in which conditions are sent.
const POD_CONDITIONS: [&str; 5] = [
    "PodReadyToStartContainers",
    "Initialized",
    "Ready",
    "ContainersReady",
    "PodScheduled",
];

/// Derives the status of a pod.
///
/// `wall` is the time of day in RFC 3339, `host_ip` the board's address, `before` the status that was derived last.
#[must_use]
pub fn pod(
    desired: &Desired,
    observed: &Observed,
    now: Moment,
    wall: &str,
    host_ip: Option<&str>,
    before: Option<&Value>,
) -> Value {
    let own = |container: &&Container| container.uid == desired.uid;
    let mut containers: Vec<&Container> = observed.containers.iter().filter(own).collect();
    containers.sort_by_key(|container| container.attempt);
    let newest = containers.last().copied();
    let dead = containers
        .iter()
        .rev()
        .skip(1)
        .find(|container| matches!(container.state, State::Exited { .. }));

    let phase = phase(desired, observed, newest, before);
    let running = newest.is_some_and(|container| container.state.lives());
    let created = newest.is_some();
    let container = container_status(desired, observed, newest, dead.copied(), now, before);
    let name = desired
        .pod
        .spec
        .containers
        .first()
        .map_or("", |container| container.name.as_str());

    let over = phase == "Succeeded" || phase == "Failed";
    let (reason, message) = match (running, phase) {
        (true, _) => (None, None),
        (false, "Succeeded") => (Some("PodCompleted"), None),
        (false, _) => (
            Some("ContainersNotReady"),
            Some(format!("containers with unready status: [{name}]")),
        ),
    };
    let conditions: Vec<Value> = POD_CONDITIONS
        .iter()
        .map(|kind| {
            let (good, reason, message) = match *kind {
                "Ready" | "ContainersReady" => (running, reason, message.clone()),
                "PodReadyToStartContainers" => (created && !over, None, None),
                _ => (true, None, None),
            };
            condition(kind, good, reason, message, wall, before)
        })
        .collect();

    let mut status = Map::new();
    status.insert("phase".into(), json!(phase));
    status.insert("startTime".into(), start_time(before, wall));
    // The API server decides it from the same fields, and refuses another one.
    let quality = desired.pod.spec.containers.first().map(|c| c.resources.quality());
    status.insert(
        "qosClass".into(),
        json!(quality.unwrap_or(Quality::BestEffort).name()),
    );
    if let Some(ip) = host_ip {
        status.insert("hostIP".into(), json!(ip));
        status.insert("hostIPs".into(), json!([{ "ip": ip }]));
        // A pod with a network of its own has no address that another machine could use.
        if desired.pod.spec.host_network && created {
            status.insert("podIP".into(), json!(ip));
            status.insert("podIPs".into(), json!([{ "ip": ip }]));
        }
    }
    status.insert("conditions".into(), Value::Array(conditions));
    status.insert("containerStatuses".into(), json!([container]));
    Value::Object(status)
}

/// The status of a pod that is kept up until its successor can take over, with what the successor waits for: an
/// update that cannot be fetched must be seen where the cluster looks.
#[must_use]
pub fn with_update(serving: &Value, successor: &Value) -> Value {
    let mut status = serving.clone();
    let waiting = &successor["containerStatuses"][0]["state"]["waiting"];
    let (Some(reason), Some(message)) = (waiting["reason"].as_str(), waiting["message"].as_str()) else {
        return status;
    };
    status["reason"] = json!("UpdateWaiting");
    status["message"] = json!(format!("the update waits: {reason}: {message}"));
    status
}

/// Whether a status says that the pod has ended for good.
#[must_use]
pub fn is_final(status: &Value) -> bool {
    matches!(status["phase"].as_str(), Some("Succeeded" | "Failed"))
}

fn phase(
    desired: &Desired,
    observed: &Observed,
    newest: Option<&Container>,
    before: Option<&Value>,
) -> &'static str {
    match before.and_then(|before| before["phase"].as_str()) {
        Some("Succeeded") => return "Succeeded",
        Some("Failed") => return "Failed",
        _ => {}
    }
    match newest.map(|container| container.state) {
        Some(State::Exited { code, .. }) if !desired.pod.spec.restart_policy.restarts(code) => {
            if code == 0 {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        Some(State::Running | State::Ending | State::Exited { .. }) => "Running",
        // The container of a finished pod was deleted by hand: how it ended is not known any more.
        None if observed.finished.contains(&desired.uid) => {
            if desired.pod.spec.restart_policy == RestartPolicy::OnFailure {
                "Succeeded"
            } else {
                "Failed"
            }
        }
        Some(State::Created) | None => match before.and_then(|before| before["phase"].as_str()) {
            Some("Running") => "Running",
            _ => "Pending",
        },
    }
}

fn start_time(before: Option<&Value>, wall: &str) -> Value {
    match before.and_then(|before| before["startTime"].as_str()) {
        Some(time) => json!(time),
        None => json!(wall),
    }
}

fn condition(
    kind: &str,
    good: bool,
    reason: Option<&str>,
    message: Option<String>,
    wall: &str,
    before: Option<&Value>,
) -> Value {
    let status = if good { "True" } else { "False" };
    let mut value = json!({
        "type": kind,
        "status": status,
        "lastProbeTime": null,
        "lastTransitionTime": since(before, kind, status).unwrap_or(wall),
    });
    if let Some(reason) = reason {
        value["reason"] = json!(reason);
    }
    if let Some(message) = message {
        value["message"] = json!(message);
    }
    value
}

/// Since when the condition `kind` has had this status.
fn since<'a>(before: Option<&'a Value>, kind: &str, status: &str) -> Option<&'a str> {
    let conditions = before?["conditions"].as_array()?;
    let same = |value: &&Value| value["type"] == kind && value["status"] == status;
    conditions.iter().find(same)?["lastTransitionTime"].as_str()
}

fn container_status(
    desired: &Desired,
    observed: &Observed,
    newest: Option<&Container>,
    dead: Option<&Container>,
    now: Moment,
    before: Option<&Value>,
) -> Value {
    let spec = desired.pod.spec.containers.first();
    let image = spec.map_or("", |container| container.image.as_str());
    let name = spec.map_or("", |container| container.name.as_str());
    let running = newest.is_some_and(|container| container.state.lives());
    let mut last = dead.map(terminated);
    let state = match newest {
        None => waiting(desired, observed, now),
        Some(container) => match container.state {
            State::Running | State::Ending => {
                json!({ "running": { "startedAt": container.detail.started_at } })
            }
            State::Created => match observed.troubles.get(&desired.uid) {
                Some(_) => waiting(desired, observed, now),
                None => json!({ "waiting": { "reason": "ContainerCreating" } }),
            },
            State::Exited { at, ran, code } => {
                let (delay, _) = plan::crash_delay(container.crashes, ran);
                let rests = !desired.pod.spec.restart_policy.restarts(code);
                let troubled = observed.troubles.contains_key(&desired.uid);
                if rests || (delay.is_zero() && !troubled) {
                    terminated(container)
                } else {
                    last = Some(terminated(container));
                    if at.saturating_add(delay) > now || !troubled {
                        let message =
                            format!("back-off {}s restarting failed container={name}", delay.as_secs());
                        json!({ "waiting": { "reason": "CrashLoopBackOff", "message": message } })
                    } else {
                        waiting(desired, observed, now)
                    }
                }
            }
        },
    };
    let digest = newest
        .map(|container| container.image.as_str())
        .or(desired.digest.as_deref());
    let restarts = newest.map_or_else(
        || restarts_before(before),
        |container| u64::from(container.attempt),
    );
    let mut status = json!({
        "name": name,
        "image": image,
        "imageID": digest.map(|digest| image_id(image, digest)).unwrap_or_default(),
        "restartCount": restarts,
        "ready": running,
        "started": running,
        "state": state,
        "lastState": last.unwrap_or_else(|| json!({})),
    });
    if let Some(container) = newest {
        status["containerID"] = json!(container_id(container));
    }
    status
}

fn restarts_before(before: Option<&Value>) -> u64 {
    before
        .and_then(|before| before["containerStatuses"][0]["restartCount"].as_u64())
        .unwrap_or(0)
}

/// `repository@digest`, as other runtimes report it.
fn image_id(image: &str, digest: &str) -> String {
    let name = image.split('@').next().unwrap_or(image);
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let end = name[slash..].find(':').map_or(name.len(), |at| slash + at);
    format!("{}@{digest}", &name[..end])
}

fn container_id(container: &Container) -> String {
    format!("wherry://{}", container.id)
}

fn waiting(desired: &Desired, observed: &Observed, now: Moment) -> Value {
    let image = desired
        .pod
        .spec
        .containers
        .first()
        .map_or("", |container| container.image.as_str());
    let never = desired
        .pod
        .spec
        .containers
        .first()
        .is_some_and(|c| c.image_pull_policy == PullPolicy::Never);
    let Some(trouble) = observed.troubles.get(&desired.uid) else {
        let name = desired.digest.as_deref().unwrap_or(image);
        if never && !observed.images.contains_key(name) {
            let message = format!("image {image:?} is not in the store and imagePullPolicy is Never");
            return json!({ "waiting": { "reason": "ErrImageNeverPull", "message": message } });
        }
        return json!({ "waiting": { "reason": "ContainerCreating" } });
    };
    let waits = trouble.retry_at.is_none_or(|at| at > now);
    let (reason, message) = match trouble.step {
        Step::Name => ("InvalidImageName", trouble.message.clone()),
        Step::Fetch if waits => (
            "ImagePullBackOff",
            format!("Back-off pulling image {image:?}: {}", trouble.message),
        ),
        Step::Fetch => ("ErrImagePull", trouble.message.clone()),
        Step::Create => ("CreateContainerError", trouble.message.clone()),
    };
    json!({ "waiting": { "reason": reason, "message": message } })
}

fn terminated(container: &Container) -> Value {
    let State::Exited { code, .. } = container.state else {
        return json!({});
    };
    let detail = &container.detail;
    let reason = if detail.oom_killed {
        "OOMKilled"
    } else if detail.started_at.is_none() {
        "StartError"
    } else if code == 0 {
        "Completed"
    } else {
        "Error"
    };
    let mut state = json!({ "exitCode": code, "reason": reason, "containerID": container_id(container) });
    let optional = [
        ("startedAt", detail.started_at.clone().map(Value::from)),
        ("finishedAt", detail.finished_at.clone().map(Value::from)),
        ("signal", detail.signal.map(Value::from)),
        ("message", detail.error.clone().map(Value::from)),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            state[name] = value;
        }
    }
    json!({ "terminated": state })
}

/// What the board is, for its Node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// The Node's name.
    pub name: String,
    /// The address that other machines use, if there is one.
    pub address: Option<String>,
    /// Number of processors.
    pub cpus: u64,
    /// Memory in bytes.
    pub memory: u64,
    /// Available memory in bytes.
    pub memory_available: u64,
    /// Size in bytes of the file system that holds the state directory.
    pub disk: u64,
    /// Bytes free on it for an ordinary user.
    pub disk_available: u64,
    /// Kubernetes' name of the architecture: `amd64`, `arm64`, `arm`.
    pub architecture: String,
    /// As `uname -r`.
    pub kernel: String,
    /// `PRETTY_NAME` of os-release.
    pub os_image: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// The kernel's boot id.
    pub boot_id: String,
    /// The agent's version.
    pub version: String,
    /// How many pods the board takes.
    pub pods: u32,
}

/// Derives the status of the Node. `wall` is the time of day in RFC 3339, `before` the status derived last.
#[must_use]
pub fn node(facts: &NodeFacts, wall: &str, before: Option<&Value>) -> Value {
    let disk_floor = facts.disk / 100 * DISK_FLOOR_PERCENT;
    let memory = facts.memory_available < MEMORY_FLOOR;
    let disk = facts.disk_available < disk_floor;
    let conditions = [
        (
            "MemoryPressure",
            memory,
            if memory {
                "KubeletHasInsufficientMemory"
            } else {
                "KubeletHasSufficientMemory"
            },
            if memory {
                "less than 100 MiB of memory is available"
            } else {
                "enough memory is available"
            },
        ),
        (
            "DiskPressure",
            disk,
            if disk {
                "KubeletHasDiskPressure"
            } else {
                "KubeletHasNoDiskPressure"
            },
            if disk {
                "less than a tenth of the disk is free"
            } else {
                "enough of the disk is free"
            },
        ),
        (
            "PIDPressure",
            false,
            "KubeletHasSufficientPID",
            "enough process ids are available",
        ),
        ("Ready", true, "KubeletReady", "the agent is running"),
    ];
    let conditions: Vec<Value> = conditions
        .iter()
        .map(|(kind, set, reason, message)| {
            let status = if *set { "True" } else { "False" };
            json!({
                "type": kind,
                "status": status,
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": wall,
                "lastTransitionTime": since(before, kind, status).unwrap_or(wall),
            })
        })
        .collect();
    let mut addresses = Vec::new();
    if let Some(address) = &facts.address {
        addresses.push(json!({ "type": "InternalIP", "address": address }));
    }
    addresses.push(json!({ "type": "Hostname", "address": facts.name }));
    let size = json!({
        "cpu": facts.cpus.to_string(),
        "memory": format!("{}Ki", facts.memory >> 10),
        "pods": facts.pods.to_string(),
        "ephemeral-storage": format!("{}Ki", facts.disk >> 10),
    });
    let allocatable = json!({
        "cpu": facts.cpus.to_string(),
        "memory": format!("{}Ki", facts.memory.saturating_sub(MEMORY_FLOOR) >> 10),
        "pods": facts.pods.to_string(),
        "ephemeral-storage": format!("{}Ki", (facts.disk - disk_floor) >> 10),
    });
    json!({
        "capacity": size,
        "allocatable": allocatable,
        "conditions": conditions,
        "addresses": addresses,
        "nodeInfo": {
            "architecture": facts.architecture,
            "bootID": facts.boot_id,
            "containerRuntimeVersion": format!("wherry://{}", facts.version),
            "kernelVersion": facts.kernel,
            "kubeProxyVersion": "",
            "kubeletVersion": format!("v{}-wherry", facts.version),
            "machineID": facts.machine_id,
            "operatingSystem": "linux",
            "osImage": facts.os_image,
            "systemUUID": facts.machine_id,
        },
    })
}

/// The same status without its heartbeats: what has to differ for an update to be worth sending.
#[must_use]
pub fn without_heartbeat(status: &Value) -> Value {
    let mut status = status.clone();
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        if let Some(condition) = condition.as_object_mut() {
            condition.remove("lastHeartbeatTime");
        }
    }
    status
}

#[cfg(test)]
mod tests;
