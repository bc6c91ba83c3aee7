//! What the server knows about the shape of the objects that a node writes: which fields exist and of which type,
//! what is defaulted, and what an update of a status must keep.

use super::refusal::{Refusal, Target};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The types of known fields. `Open` is anything: looked at elsewhere, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Text,
    Int,
    Bool,
    Time,
    Open,
}

use Kind::{Bool, Int, Open, Text, Time};

const POD_STATUS: &[(&str, Kind)] = &[
    ("observedGeneration", Int),
    ("phase", Text),
    ("conditions", Open),
    ("message", Text),
    ("reason", Text),
    ("nominatedNodeName", Text),
    ("hostIP", Text),
    ("hostIPs", Open),
    ("podIP", Text),
    ("podIPs", Open),
    ("startTime", Time),
    ("initContainerStatuses", Open),
    ("containerStatuses", Open),
    ("ephemeralContainerStatuses", Open),
    ("qosClass", Text),
    ("resize", Text),
    ("resourceClaimStatuses", Open),
    ("extendedResourceClaimStatus", Open),
    ("allocatedResources", Open),
    ("resources", Open),
];

const CONTAINER_STATUS: &[(&str, Kind)] = &[
    ("name", Text),
    ("state", Open),
    ("lastState", Open),
    ("ready", Bool),
    ("restartCount", Int),
    ("image", Text),
    ("imageID", Text),
    ("containerID", Text),
    ("started", Bool),
    ("allocatedResources", Open),
    ("resources", Open),
    ("volumeMounts", Open),
    ("user", Open),
    ("allocatedResourcesStatus", Open),
    ("stopSignal", Text),
];

const STATES: &[(&str, Kind)] = &[("waiting", Open), ("running", Open), ("terminated", Open)];

const TERMINATED: &[(&str, Kind)] = &[
    ("exitCode", Int),
    ("signal", Int),
    ("reason", Text),
    ("message", Text),
    ("startedAt", Time),
    ("finishedAt", Time),
    ("containerID", Text),
];

const POD_CONDITION: &[(&str, Kind)] = &[
    ("type", Text),
    ("observedGeneration", Int),
    ("status", Text),
    ("lastProbeTime", Time),
    ("lastTransitionTime", Time),
    ("reason", Text),
    ("message", Text),
];

const NODE_STATUS: &[(&str, Kind)] = &[
    ("capacity", Open),
    ("allocatable", Open),
    ("phase", Text),
    ("conditions", Open),
    ("addresses", Open),
    ("daemonEndpoints", Open),
    ("nodeInfo", Open),
    ("images", Open),
    ("volumesInUse", Open),
    ("volumesAttached", Open),
    ("config", Open),
    ("runtimeHandlers", Open),
    ("features", Open),
    ("declaredFeatures", Open),
];

const NODE_CONDITION: &[(&str, Kind)] = &[
    ("type", Text),
    ("status", Text),
    ("lastHeartbeatTime", Time),
    ("lastTransitionTime", Time),
    ("reason", Text),
    ("message", Text),
];

const NODE_INFO: &[(&str, Kind)] = &[
    ("machineID", Text),
    ("systemUUID", Text),
    ("bootID", Text),
    ("kernelVersion", Text),
    ("osImage", Text),
    ("containerRuntimeVersion", Text),
    ("kubeletVersion", Text),
    ("kubeProxyVersion", Text),
    ("operatingSystem", Text),
    ("architecture", Text),
    ("swap", Open),
];

const LEASE_SPEC: &[(&str, Kind)] = &[
    ("holderIdentity", Text),
    ("leaseDurationSeconds", Int),
    ("acquireTime", Text),
    ("renewTime", Text),
    ("leaseTransitions", Int),
    ("strategy", Text),
    ("preferredHolder", Text),
];

/// The known fields at a place in an object of the resource; none where the double does not look.
fn fields(resource: &str, place: &str) -> Option<&'static [(&'static str, Kind)]> {
    Some(match (resource, place) {
        ("pods", "status") => POD_STATUS,
        ("pods", "status.conditions[]") => POD_CONDITION,
        (
            "pods",
            "status.containerStatuses[]"
            | "status.initContainerStatuses[]"
            | "status.ephemeralContainerStatuses[]",
        ) => CONTAINER_STATUS,
        ("pods", place) if place.ends_with("tatuses[].state") || place.ends_with("tatuses[].lastState") => {
            STATES
        }
        ("pods", place) if place.ends_with("tate.waiting") => &[("reason", Text), ("message", Text)],
        ("pods", place) if place.ends_with("tate.running") => &[("startedAt", Time)],
        ("pods", place) if place.ends_with("tate.terminated") => TERMINATED,
        ("pods", "status.podIPs[]" | "status.hostIPs[]") => &[("ip", Text)],
        ("nodes", "status") => NODE_STATUS,
        ("nodes", "status.conditions[]") => NODE_CONDITION,
        ("nodes", "status.addresses[]") => &[("type", Text), ("address", Text)],
        ("nodes", "status.nodeInfo") => NODE_INFO,
        ("nodes", "status.images[]") => &[("names", Open), ("sizeBytes", Int)],
        ("leases", "spec") => LEASE_SPEC,
        _ => return None,
    })
}

/// Takes the unknown fields out of what a client sent and returns their paths; a field of a wrong type is an error.
pub(super) fn check_fields(resource: &str, body: &mut Value) -> Result<Vec<String>, String> {
    let mut unknown = Vec::new();
    if let Value::Object(members) = body {
        for name in ["status", "spec"] {
            if let Some(value) = members.get_mut(name) {
                check(resource, name, name, value, &mut unknown)?;
            }
        }
    }
    Ok(unknown)
}

fn check(
    resource: &str,
    place: &str,
    shown: &str,
    value: &mut Value,
    unknown: &mut Vec<String>,
) -> Result<(), String> {
    match value {
        Value::Array(elements) => {
            for (index, element) in elements.iter_mut().enumerate() {
                check(
                    resource,
                    &format!("{place}[]"),
                    &format!("{shown}[{index}]"),
                    element,
                    unknown,
                )?;
            }
        }
        Value::Object(members) => {
            let Some(known) = fields(resource, place) else {
                return Ok(());
            };
            let names: Vec<String> = members.keys().cloned().collect();
            for name in names.iter().filter(|name| !name.starts_with('$')) {
                let at = format!("{shown}.{name}");
                match known.iter().find(|(field, _)| field == name) {
                    None => {
                        members.shift_remove(name);
                        unknown.push(at);
                    }
                    Some((_, kind)) => {
                        if let Some(member) = members.get_mut(name) {
                            typed(*kind, member, &at)?;
                            check(resource, &format!("{place}.{name}"), &at, member, unknown)?;
                        }
                    }
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn typed(kind: Kind, value: &Value, at: &str) -> Result<(), String> {
    let fits = match (kind, value) {
        (_, Value::Null) | (Open, _) => true,
        (Text, value) => value.is_string(),
        (Int, value) => value.is_i64(),
        (Bool, value) => value.is_boolean(),
        (Time, Value::String(text)) => {
            OffsetDateTime::parse(text, &Rfc3339)
                .map_err(|error| format!("{at}: parsing time {text:?}: {error}"))?;
            true
        }
        (Time, _) => false,
    };
    let name = match kind {
        Int => "int32",
        Text => "string",
        Bool => "bool",
        Time | Open => "time",
    };
    if fits {
        Ok(())
    } else {
        Err(format!("unrecognized type: {name}"))
    }
}

/// A lease's times need six digits after the second. The error is worded as the server words it.
pub(super) fn check_micro_times(lease: &Value) -> Result<(), String> {
    for name in ["renewTime", "acquireTime"] {
        let Some(text) = lease["spec"][name].as_str() else {
            continue;
        };
        let form = "2006-01-02T15:04:05.000000Z07:00";
        if text
            .get(..19)
            .is_none_or(|date| OffsetDateTime::parse(&format!("{date}Z"), &Rfc3339).is_err())
        {
            return Err(format!(
                "parsing time {text:?} as {form:?}: cannot parse {text:?} as \"2006\""
            ));
        }
        let rest = &text[19..];
        let digits = rest.strip_prefix('.').is_some_and(|rest| {
            rest.len() > 6
                && rest.bytes().take(6).all(|byte| byte.is_ascii_digit())
                && !rest.as_bytes()[6].is_ascii_digit()
        });
        if !digits {
            return Err(format!(
                "parsing time {text:?} as {form:?}: cannot parse {rest:?} as \".000000\""
            ));
        }
    }
    Ok(())
}

fn default(members: &mut Map<String, Value>, name: &str, value: Value) {
    members.entry(name).or_insert(value);
}

fn objects(value: Option<&mut Value>) -> impl Iterator<Item = &mut Map<String, Value>> {
    value
        .and_then(Value::as_array_mut)
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
}

/// The members that the server's types always print, and the order of things that it repairs.
pub(super) fn normalise(resource: &str, object: &mut Value) {
    match resource {
        "nodes" => {
            let Some(status) = section(object, "status") else {
                return;
            };
            default(status, "daemonEndpoints", json!({"kubeletEndpoint": {"Port": 0}}));
            default(status, "nodeInfo", json!({}));
            if let Some(info) = status.get_mut("nodeInfo").and_then(Value::as_object_mut) {
                for (name, kind) in NODE_INFO {
                    if *kind == Text {
                        default(info, name, json!(""));
                    }
                }
            }
            for condition in objects(status.get_mut("conditions")) {
                default(condition, "lastHeartbeatTime", Value::Null);
                default(condition, "lastTransitionTime", Value::Null);
            }
            section(object, "spec");
        }
        "pods" => {
            let Some(status) = section(object, "status") else {
                return;
            };
            default(status, "phase", json!("Pending"));
            for condition in objects(status.get_mut("conditions")) {
                default(condition, "lastProbeTime", Value::Null);
                default(condition, "lastTransitionTime", Value::Null);
            }
            for list in [
                "initContainerStatuses",
                "containerStatuses",
                "ephemeralContainerStatuses",
            ] {
                for container in objects(status.get_mut(list)) {
                    for (name, value) in [
                        ("state", json!({})),
                        ("lastState", json!({})),
                        ("ready", json!(false)),
                        ("restartCount", json!(0)),
                        ("image", json!("")),
                        ("imageID", json!("")),
                    ] {
                        default(container, name, value);
                    }
                    for state in ["state", "lastState"] {
                        let Some(state) = container.get_mut(state).and_then(Value::as_object_mut) else {
                            continue;
                        };
                        if let Some(running) = state.get_mut("running").and_then(Value::as_object_mut) {
                            default(running, "startedAt", Value::Null);
                        }
                        if let Some(terminated) = state.get_mut("terminated").and_then(Value::as_object_mut) {
                            default(terminated, "startedAt", Value::Null);
                            default(terminated, "finishedAt", Value::Null);
                        }
                    }
                }
            }
            // The first of podIPs is podIP; where they differ, podIP is believed and the list is made from it.
            if let Some(ip) = status.get("podIP").cloned()
                && status.get("podIPs").and_then(|ips| ips[0].get("ip")) != Some(&ip)
            {
                status.insert("podIPs".to_owned(), json!([{"ip": ip}]));
            }
        }
        _ => {}
    }
}

fn section<'a>(object: &'a mut Value, name: &str) -> Option<&'a mut Map<String, Value>> {
    let members = object.as_object_mut()?;
    members.entry(name).or_insert(json!({})).as_object_mut()
}

/// A new pod as the server stores it. `zone` is the label of the node that it is bound to.
pub(super) fn default_pod(pod: &mut Value, zone: Option<&Value>) {
    let mirror = pod["metadata"]["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_some();
    if let Some(metadata) = section(pod, "metadata") {
        metadata.insert("generation".to_owned(), json!(1));
        if let Some(zone) = zone {
            let labels = metadata.entry("labels").or_insert(json!({}));
            labels["topology.kubernetes.io/zone"] = zone.clone();
        }
    }
    let Some(spec) = section(pod, "spec") else { return };
    let host_network = spec.get("hostNetwork") == Some(&json!(true));
    for list in ["containers", "initContainers"] {
        for container in objects(spec.get_mut(list)) {
            let image = container.get("image").and_then(Value::as_str).unwrap_or_default();
            let last = image.rsplit('/').next().unwrap_or_default();
            let latest = !last.contains('@') && (!last.contains(':') || last.ends_with(":latest"));
            for (name, value) in [
                ("resources", json!({})),
                ("terminationMessagePath", json!("/dev/termination-log")),
                ("terminationMessagePolicy", json!("File")),
                (
                    "imagePullPolicy",
                    json!(if latest { "Always" } else { "IfNotPresent" }),
                ),
            ] {
                default(container, name, value);
            }
            for port in objects(container.get_mut("ports")) {
                default(port, "protocol", json!("TCP"));
                if host_network && let Some(number) = port.get("containerPort").cloned() {
                    default(port, "hostPort", number);
                }
            }
        }
    }
    for volume in objects(spec.get_mut("volumes")) {
        if let Some(path) = volume.get_mut("hostPath").and_then(Value::as_object_mut) {
            default(path, "type", json!(""));
        }
    }
    for (name, value) in [
        ("restartPolicy", json!("Always")),
        ("terminationGracePeriodSeconds", json!(30)),
        ("dnsPolicy", json!("ClusterFirst")),
        ("securityContext", json!({})),
        ("schedulerName", json!("default-scheduler")),
        ("priority", json!(0)),
        ("enableServiceLinks", json!(true)),
        ("preemptionPolicy", json!("PreemptLowerPriority")),
    ] {
        default(spec, name, value);
    }
    if !mirror {
        default(spec, "serviceAccountName", json!("default"));
        default(spec, "serviceAccount", json!("default"));
    }
    let tolerations = spec.entry("tolerations").or_insert(json!([]));
    if let Some(tolerations) = tolerations.as_array_mut() {
        for key in ["node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable"] {
            let tolerated = tolerations.iter().any(|toleration| {
                let effect = toleration
                    .get("effect")
                    .is_none_or(|effect| effect == "NoExecute");
                effect && toleration.get("key").is_none_or(|known| known == key)
            });
            if !tolerated {
                tolerations.push(
                    json!({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}),
                );
            }
        }
    }
    let qos = quality(pod);
    pod["status"] = json!({"phase": "Pending", "qosClass": qos});
}

/// The quality-of-service class: from requests and limits of cpu and memory, over all containers.
fn quality(pod: &Value) -> &'static str {
    let containers = || pod["spec"]["containers"].as_array().into_iter().flatten();
    let amount = |container: &Value, kind: &str, what: &str| container["resources"][kind].get(what).cloned();
    let any = containers().any(|container| {
        ["requests", "limits"].iter().any(|kind| {
            ["cpu", "memory"]
                .iter()
                .any(|w| amount(container, kind, w).is_some())
        })
    });
    let all = containers().all(|container| {
        ["cpu", "memory"].iter().all(|what| {
            let limit = amount(container, "limits", what);
            let request = amount(container, "requests", what);
            limit.is_some() && (request.is_none() || request == limit)
        })
    });
    match (any, all) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// The rules for a pod's new status beside its old one.
pub(super) fn check_pod_status(target: &Target, old: &Value, new: &Value) -> Result<(), Refusal> {
    let ips: Vec<&str> = new["status"]["podIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|ip| ip["ip"].as_str())
        .collect();
    for family in [false, true] {
        if ips.iter().filter(|ip| ip.contains(':') == family).count() > 1 {
            let shown: Vec<String> = ips.iter().map(|ip| format!("{{\"IP\":\"{ip}\"}}")).collect();
            let text = format!(
                "Invalid value: [{}]: may specify no more than one IP for each IP family",
                shown.join(",")
            );
            return Err(Refusal::invalid_kind(
                target,
                "Pod",
                "status.podIPs",
                "FieldValueInvalid",
                &text,
                1,
            ));
        }
    }
    if old["spec"]["restartPolicy"] == "Never" {
        let list = |pod: &Value| {
            pod["status"]["containerStatuses"]
                .as_array()
                .cloned()
                .unwrap_or_default()
        };
        for (index, container) in list(new).iter().enumerate() {
            let before = list(old)
                .into_iter()
                .find(|known| known["name"] == container["name"]);
            let ended = |status: &Value| status["state"].get("terminated").is_some();
            if before.is_some_and(|before| ended(&before)) && !ended(container) {
                let field = format!("status.containerStatuses[{index}].state");
                let text = "Forbidden: may not be transitioned to non-terminated state";
                return Err(Refusal::invalid_kind(
                    target,
                    "Pod",
                    &field,
                    "FieldValueForbidden",
                    text,
                    1,
                ));
            }
        }
    }
    Ok(())
}
