//! The bodies of requests, as Kubernetes wants them.

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::macros::format_description;
use wherry_sync::status::NodeFacts;

use super::PodReport;

/// On a mirror pod: that it is one, and of which content.
pub(super) const MIRROR: &str = "kubernetes.io/config.mirror";

/// Seconds after which a node that has not renewed its lease is given up.
const LEASE_SECONDS: u32 = 40;

/// The time of day in the two forms that Kubernetes takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wall {
    /// `Time`: to the second.
    pub(super) seconds: String,
    /// `MicroTime`: exactly six digits, anything else is refused.
    pub(super) micros: String,
}

impl Wall {
    pub(super) fn now() -> Self {
        Self::of(OffsetDateTime::now_utc())
    }

    fn of(moment: OffsetDateTime) -> Self {
        let seconds = format_description!("[year]-[month]-[day]T[hour]:[minute]:[second]Z");
        let micros =
            format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z");
        Self {
            seconds: moment.format(&seconds).unwrap_or_default(),
            micros: moment.format(&micros).unwrap_or_default(),
        }
    }
}

pub(super) fn node(facts: &NodeFacts) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": facts.name,
            "labels": {
                "kubernetes.io/hostname": facts.name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": facts.architecture,
            },
        },
    })
}

/// A strategic merge patch of a Node's status; the order keeps a first condition from being sorted to the front.
pub(super) fn node_status(status: &Value) -> Value {
    let mut status = status.clone();
    status["$setElementOrder/conditions"] = order(&status);
    json!({ "status": status })
}

fn order(status: &Value) -> Value {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    conditions
        .map(|condition| json!({ "type": condition["type"] }))
        .collect()
}

pub(super) fn lease(node: &str, node_uid: &str, wall: &Wall) -> Value {
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": node,
            "namespace": "kube-node-lease",
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid }],
        },
        "spec": lease_spec(node, wall),
    })
}

/// A merge patch that renews a lease.
pub(super) fn lease_renewal(node: &str, wall: &Wall) -> Value {
    json!({ "spec": lease_spec(node, wall) })
}

fn lease_spec(node: &str, wall: &Wall) -> Value {
    json!({ "holderIdentity": node, "leaseDurationSeconds": LEASE_SECONDS, "renewTime": wall.micros })
}

/// The name of a pod's mirror: unlike the pod's own it is unique in the cluster.
pub(super) fn mirror_name(report: &PodReport, node: &str) -> String {
    format!("{}-{node}", report.pod.metadata.name)
}

/// The mirror pod of a pod of this board, as the kubelet makes them for its static pods.
pub(super) fn mirror(report: &PodReport, node: &str, node_uid: &str, wall: &Wall) -> Value {
    let mut body = report.pod.to_json().unwrap_or(Value::Null);
    body["metadata"]["name"] = json!(mirror_name(report, node));
    for (name, value) in [
        (MIRROR, report.uid.as_str()),
        ("kubernetes.io/config.hash", report.uid.as_str()),
        ("kubernetes.io/config.seen", wall.seconds.as_str()),
        ("kubernetes.io/config.source", "file"),
    ] {
        body["metadata"]["annotations"][name] = json!(value);
    }
    body["metadata"]["ownerReferences"] =
        json!([{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid, "controller": true }]);
    body["spec"]["nodeName"] = json!(node);
    // It runs whatever the cluster thinks of this node.
    body["spec"]["tolerations"] = json!([{ "operator": "Exists", "effect": "NoExecute" }]);
    body
}

/// A strategic merge patch of a mirror pod's status. The UID makes sure that it is still the same pod; addresses
/// replace the ones before, which a merge would keep.
pub(super) fn pod_status(uid: &str, generation: u64, status: &Value) -> Value {
    let mut status = status.clone();
    status["$setElementOrder/conditions"] = order(&status);
    status["observedGeneration"] = json!(generation);
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["observedGeneration"] = json!(generation);
    }
    // A merge keeps what is not named: what is no longer said has to be taken back.
    for word in ["reason", "message"] {
        if status[word].is_null() {
            status[word] = Value::Null;
        }
    }
    for list in ["hostIPs", "podIPs"] {
        if let Some(addresses) = status[list].as_array_mut() {
            addresses.insert(0, json!({ "$patch": "replace" }));
        } else if let Some(status) = status.as_object_mut() {
            status.remove(list);
        }
    }
    json!({ "metadata": { "uid": uid }, "status": status })
}

/// Deletes a mirror pod at once, if it is still the one of this UID.
pub(super) fn deletion(uid: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "DeleteOptions",
        "gracePeriodSeconds": 0,
        "preconditions": { "uid": uid },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_digits_that_are_asked_for() {
        let wall = Wall::of(OffsetDateTime::from_unix_timestamp_nanos(1_795_000_000_000_001_000).unwrap());
        assert_eq!((wall.seconds.len(), wall.micros.len()), (20, 27));
        assert!(wall.micros.ends_with(".000001Z"), "{wall:?}");
    }

    #[test]
    fn addresses_are_replaced_and_conditions_keep_their_order() {
        let status = json!({
            "conditions": [{ "type": "B", "status": "True" }, { "type": "A", "status": "True" }],
            "hostIPs": [{ "ip": "10.0.0.1" }],
        });
        assert_eq!(
            pod_status("u", 2, &status),
            json!({ "metadata": { "uid": "u" }, "status": {
                "conditions": [
                    { "type": "B", "status": "True", "observedGeneration": 2 },
                    { "type": "A", "status": "True", "observedGeneration": 2 },
                ],
                "hostIPs": [{ "$patch": "replace" }, { "ip": "10.0.0.1" }],
                "$setElementOrder/conditions": [{ "type": "B" }, { "type": "A" }],
                "observedGeneration": 2,
                "reason": null,
                "message": null,
            } })
        );
    }
}
