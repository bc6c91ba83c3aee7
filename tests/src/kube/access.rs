//! Who may do what: the node authorizer, the rules of the role of a node, and the admission of its writes, with the
//! server's own words for each refusal.

use super::refusal::{Refusal, Target};
use super::store::{Key, Store};
use serde_json::Value;

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum User {
    /// May do everything.
    Admin,
    /// `system:node:NAME`.
    Node(String),
}

/// What is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    /// One object.
    Get,
    /// All of a selector.
    List,
    /// The same, as a stream.
    Watch,
    /// POST.
    Create,
    /// PUT.
    Update,
    /// PATCH.
    Patch,
    /// DELETE of one.
    Delete,
    /// DELETE of all of a selector.
    DeleteCollection,
}

impl Verb {
    fn word(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Create => "create",
            Self::Update => "update",
            Self::Patch => "patch",
            Self::Delete => "delete",
            Self::DeleteCollection => "deletecollection",
        }
    }
}

/// The authorizer's answer, before anything else is looked at. `selector` is the parsed fieldSelector.
pub(super) fn authorise(
    user: &User,
    verb: Verb,
    target: &Target,
    selector: &[(String, String)],
    store: &Store,
) -> Result<(), Refusal> {
    let User::Node(node) = user else { return Ok(()) };
    let selects = |field: &str| {
        selector
            .iter()
            .any(|(name, value)| name == field && value == node)
    };
    let refuse = |why: &str| {
        let scope = match &target.namespace {
            Some(namespace) => format!("in the namespace \"{namespace}\""),
            None => "at the cluster scope".to_owned(),
        };
        let resource = match &target.subresource {
            Some(subresource) => format!("{}/{subresource}", target.resource),
            None => target.resource.clone(),
        };
        let mut text = format!(
            "User \"system:node:{node}\" cannot {} resource \"{resource}\" in API group \"{}\" {scope}",
            verb.word(),
            target.group
        );
        if !why.is_empty() {
            text = format!("{text}: {why}");
        }
        // The authorizer does not know the name of what is created.
        let mut named = target.clone();
        if verb == Verb::Create {
            named.name = None;
        }
        Err(Refusal::forbidden(&named, text))
    };
    match (target.resource.as_str(), verb) {
        ("nodes", Verb::Get) if target.name() != node => refuse(&format!(
            "node '{node}' cannot read '{}', only its own Node object",
            target.name()
        )),
        ("nodes", Verb::List | Verb::Watch) if !selects("metadata.name") => refuse(&format!(
            "node '{node}' cannot read all nodes, only its own Node object"
        )),
        ("nodes", Verb::Delete | Verb::DeleteCollection) => refuse(""),
        ("nodes", _) => Ok(()),
        ("leases", _) if target.namespace.as_deref() != Some("kube-node-lease") => {
            refuse("can only access leases in the \"kube-node-lease\" system namespace")
        }
        ("leases", Verb::List | Verb::Watch | Verb::DeleteCollection) => {
            refuse("can only get, create, update, patch, or delete a node lease")
        }
        ("leases", Verb::Create) => Ok(()),
        ("leases", _) if target.name() != node => {
            refuse("can only access node lease with the same name as the requesting node")
        }
        ("leases", _) => Ok(()),
        ("pods", Verb::List | Verb::Watch) if !selects("spec.nodeName") => {
            refuse("can only list/watch pods with spec.nodeName field selector")
        }
        ("pods", Verb::Get) if bound_to(store, target).as_deref() != Some(node) => refuse(&format!(
            "no relationship found between node '{node}' and this object"
        )),
        ("pods", Verb::Get | Verb::List | Verb::Watch | Verb::Create | Verb::Delete) => Ok(()),
        ("pods", Verb::Update | Verb::Patch) if target.subresource.as_deref() == Some("status") => Ok(()),
        ("events", Verb::Create | Verb::Update | Verb::Patch) => Ok(()),
        ("services", Verb::Get | Verb::List | Verb::Watch) => Ok(()),
        ("configmaps" | "secrets" | "persistentvolumeclaims" | "persistentvolumes", Verb::Get) => refuse(
            &format!("no relationship found between node '{node}' and this object"),
        ),
        _ => refuse(""),
    }
}

fn bound_to(store: &Store, target: &Target) -> Option<String> {
    let key = Key {
        resource: "pods".to_owned(),
        namespace: target.namespace.clone().unwrap_or_default(),
        name: target.name().to_owned(),
    };
    store.get(&key)?["spec"]["nodeName"].as_str().map(str::to_owned)
}

/// Labels of the `kubernetes.io` and `k8s.io` families that a node may set on itself.
fn label_allowed(label: &str) -> bool {
    const NAMES: &[&str] = &[
        "kubernetes.io/hostname",
        "kubernetes.io/os",
        "kubernetes.io/arch",
        "topology.kubernetes.io/zone",
        "topology.kubernetes.io/region",
        "failure-domain.beta.kubernetes.io/zone",
        "failure-domain.beta.kubernetes.io/region",
        "beta.kubernetes.io/os",
        "beta.kubernetes.io/arch",
        "beta.kubernetes.io/instance-type",
        "node.kubernetes.io/instance-type",
    ];
    let Some((domain, _)) = label.split_once('/') else {
        return true;
    };
    let family = ["kubernetes.io", "k8s.io"]
        .iter()
        .any(|root| domain == *root || domain.ends_with(&format!(".{root}")));
    if !family || NAMES.contains(&label) {
        return true;
    }
    ["kubelet.kubernetes.io", "node.kubernetes.io"]
        .iter()
        .any(|root| domain == *root || domain.ends_with(&format!(".{root}")))
}

fn refused_labels(old: &Value, new: &Value) -> Vec<String> {
    let labels = |object: &Value| {
        object["metadata"]["labels"]
            .as_object()
            .cloned()
            .unwrap_or_default()
    };
    let (old, new) = (labels(old), labels(new));
    let mut names: Vec<String> = new
        .keys()
        .chain(old.keys())
        .filter(|name| old.get(*name) != new.get(*name))
        .cloned()
        .collect();
    names.sort();
    names.dedup();
    names.retain(|name| !label_allowed(name));
    names
}

/// A node writes a Node object: only its own, no foreign labels, no taints of its own making.
pub(super) fn admit_node(
    user: &User,
    target: &Target,
    old: Option<&Value>,
    new: &Value,
) -> Result<(), Refusal> {
    let User::Node(node) = user else { return Ok(()) };
    if target.name() != node {
        return Err(Refusal::forbidden(
            target,
            format!(
                "node \"{node}\" is not allowed to modify node \"{}\"",
                target.name()
            ),
        ));
    }
    let refused = refused_labels(old.unwrap_or(&Value::Null), new);
    if !refused.is_empty() {
        let why = match old {
            None => format!(
                "node \"{node}\" is not allowed to set the following labels: {}",
                refused.join(", ")
            ),
            Some(_) => format!("is not allowed to modify labels: {}", refused.join(", ")),
        };
        return Err(Refusal::forbidden(target, why));
    }
    if old.is_some_and(|old| old["spec"].get("taints") != new["spec"].get("taints")) {
        return Err(Refusal::forbidden(
            target,
            format!("node \"{node}\" is not allowed to modify taints"),
        ));
    }
    Ok(())
}

/// A node creates a lease: only the one with its own name.
pub(super) fn admit_lease(user: &User, target: &Target) -> Result<(), Refusal> {
    match user {
        User::Node(node) if target.name() != node => Err(Refusal::forbidden(
            target,
            "can only access node lease with the same name as the requesting node",
        )),
        _ => Ok(()),
    }
}

/// A pod is created: a mirror pod refers to nothing, and a node creates nothing but its own mirror pods.
pub(super) fn admit_pod(user: &User, target: &Target, pod: &Value, store: &Store) -> Result<(), Refusal> {
    let refuse = |why: String| Err(Refusal::forbidden(target, why));
    let mirror = pod["metadata"]["annotations"]
        .get("kubernetes.io/config.mirror")
        .is_some();
    let volumes = || pod["spec"]["volumes"].as_array().into_iter().flatten();
    if mirror {
        if pod["spec"]
            .get("serviceAccountName")
            .is_some_and(|name| name != "")
        {
            return refuse("a mirror pod may not reference service accounts".to_owned());
        }
        if volumes().any(|volume| volume.get("secret").is_some()) {
            return refuse("a mirror pod may not reference secrets".to_owned());
        }
    }
    let User::Node(node) = user else { return Ok(()) };
    if !mirror {
        return refuse(format!(
            "pod does not have \"kubernetes.io/config.mirror\" annotation, node \"{node}\" can only create mirror pods"
        ));
    }
    if pod["spec"]["nodeName"] != node.as_str() {
        return refuse(format!(
            "node \"{node}\" can only create pods with spec.nodeName set to itself"
        ));
    }
    let owners = pod["metadata"]["ownerReferences"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let [owner] = owners else {
        return refuse(format!(
            "node \"{node}\" can only create pods with an owner reference set to itself"
        ));
    };
    if owner["apiVersion"] != "v1" || owner["kind"] != "Node" || owner["name"] != node.as_str() {
        return refuse(format!(
            "node \"{node}\" can only create pods with an owner reference set to itself"
        ));
    }
    if owner["controller"] != true {
        return refuse(format!(
            "node \"{node}\" can only create pods with a controller owner reference set to itself"
        ));
    }
    if owner["blockOwnerDeletion"] == true {
        return refuse(format!(
            "node \"{node}\" must not set blockOwnerDeletion on an owner reference"
        ));
    }
    let key = Key {
        resource: "nodes".to_owned(),
        namespace: String::new(),
        name: node.clone(),
    };
    let uid = store
        .get(&key)
        .and_then(|node| node["metadata"]["uid"].as_str())
        .unwrap_or_default();
    let given = owner["uid"].as_str().unwrap_or_default();
    if given != uid {
        return refuse(format!("node {node} UID mismatch: expected {given} got {uid}"));
    }
    for (source, named) in [
        ("configMap", "configmaps"),
        ("persistentVolumeClaim", "persistentvolumeclaims"),
    ] {
        if volumes().any(|volume| volume.get(source).is_some()) {
            return refuse(format!(
                "node \"{node}\" can not create pods that reference {named}"
            ));
        }
    }
    Ok(())
}

/// A node writes a pod's status or deletes a pod: only of a pod that is bound to it. `what` completes the sentence
/// `can only ... with spec.nodeName set to itself`.
pub(super) fn admit_own_pod(user: &User, target: &Target, pod: &Value, what: &str) -> Result<(), Refusal> {
    match user {
        User::Node(node) if pod["spec"]["nodeName"] != node.as_str() => Err(Refusal::forbidden(
            target,
            format!("node \"{node}\" can only {what} with spec.nodeName set to itself"),
        )),
        _ => Ok(()),
    }
}
