//! A stateful double of the Kubernetes API, as far as a node uses it: Node, Lease, Pods with their status, mirror
//! pods, lists and watches with bookmarks, each refusal in the server's own words. It obeys the exchanges that were
//! recorded from a real control plane (`tests/fixtures/kubernetes`, replayed by `tests/tests/kube.rs`).
//!
//! What it is not: no controllers (nothing removes a taint or creates a pod), no protobuf, no tables, no gzip, plain
//! HTTP with bearer tokens in the place of client certificates.
//!
//! A refusal carries its whole answer, so it is a large error; a double has no hot path that would feel it.
#![allow(clippy::result_large_err)]

mod access;
mod list;
mod model;
mod patch;
mod refusal;
mod store;

use crate::http::{Answer, Request, Response, Server};
use access::{User, Verb};
use refusal::{Refusal, Target};
use ring::rand::SecureRandom as _;
use serde_json::{Value, json};
use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use store::{Key, Store, version_of};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// The resources that the double knows: plural, kind, group with version, whether in a namespace.
const RESOURCES: &[(&str, &str, &str, bool)] = &[
    ("nodes", "Node", "v1", false),
    ("namespaces", "Namespace", "v1", false),
    ("pods", "Pod", "v1", true),
    ("events", "Event", "v1", true),
    ("services", "Service", "v1", true),
    ("configmaps", "ConfigMap", "v1", true),
    ("secrets", "Secret", "v1", true),
    ("leases", "Lease", "coordination.k8s.io/v1", true),
    ("deployments", "Deployment", "apps/v1", true),
    ("replicasets", "ReplicaSet", "apps/v1", true),
];

/// One answered request, for tests to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// Who asked: `admin` or `system:node:NAME`, empty for a wrong token.
    pub user: String,
    /// `PATCH`, ...
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The status; 200 for a watch.
    pub status: u16,
    /// The `Warning` texts that were given along.
    pub warnings: Vec<String>,
}

#[derive(Default)]
struct State {
    store: Store,
    served: Vec<Served>,
    /// A clock that stands still, for replays.
    clock: Option<OffsetDateTime>,
    /// UIDs that new objects take, for replays; random ones when empty.
    uids: VecDeque<String>,
}

struct Inner {
    tokens: BTreeMap<String, User>,
    state: Mutex<State>,
    changed: Condvar,
}

/// A running double; dropping it closes every connection.
pub struct Double {
    server: Server,
    inner: Arc<Inner>,
}

impl Double {
    /// Starts on `listen` (port 0: any) with the namespaces `default` and `kube-node-lease`, a token for the admin and
    /// one for each node.
    pub fn start(listen: &str, admin_token: &str, nodes: &[(&str, &str)]) -> std::io::Result<Self> {
        let mut tokens = BTreeMap::from([(admin_token.to_owned(), User::Admin)]);
        for (node, token) in nodes {
            tokens.insert((*token).to_owned(), User::Node((*node).to_owned()));
        }
        let inner = Arc::new(Inner {
            tokens,
            state: Mutex::default(),
            changed: Condvar::new(),
        });
        for namespace in ["default", "kube-node-lease"] {
            let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
            let key = Key {
                resource: "namespaces".to_owned(),
                namespace: String::new(),
                name: namespace.to_owned(),
            };
            inner.state().store.put(key, object);
        }
        let serving = Arc::clone(&inner);
        let server = Server::start(listen, move |request| serving.serve(request))?;
        Ok(Self { server, inner })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.server.address()
    }

    /// A kubeconfig for the bearer of that token.
    pub fn kubeconfig(&self, server: SocketAddr, token: &str) -> String {
        json!({
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "edge",
            "clusters": [{"name": "edge", "cluster": {"server": format!("http://{server}")}}],
            "users": [{"name": "edge", "user": {"token": token}}],
            "contexts": [{"name": "edge", "context": {"cluster": "edge", "user": "edge"}}],
        })
        .to_string()
    }

    /// What was asked and answered so far.
    pub fn served(&self) -> Vec<Served> {
        self.inner.state().served.clone()
    }

    /// An object as it is now: `get("pods", "default", "x")`.
    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = Key {
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        self.inner.state().store.get(&key).cloned()
    }

    /// All objects of a resource as they are now.
    pub fn list(&self, resource: &str) -> Vec<Value> {
        self.inner
            .state()
            .store
            .list(resource)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// For replays: the clock stands still at this time.
    pub fn set_clock(&self, now: OffsetDateTime) {
        self.inner.state().clock = Some(now);
    }

    /// For replays: the next new object gets this UID.
    pub fn next_uid(&self, uid: &str) {
        let mut state = self.inner.state();
        state.uids.clear();
        state.uids.push_back(uid.to_owned());
    }

    /// For replays: other writers have moved the counter to `revision`.
    pub fn advance(&self, revision: u64) {
        self.inner.state().store.advance(revision);
    }

    /// The counter.
    pub fn revision(&self) -> u64 {
        self.inner.state().store.revision()
    }

    /// Watches and exact lists from before `revision` are refused from now on, as after a restart of the server.
    pub fn compact(&self, revision: u64) {
        self.inner.state().store.compact(revision);
    }

    /// Another writer stores this object, as it is, under the next number.
    pub fn put(&self, resource: &str, object: Value) {
        let name = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
        let key = Key {
            resource: resource.to_owned(),
            namespace: name("namespace"),
            name: name("name"),
        };
        self.inner.state().store.put(key, object);
        self.inner.changed.notify_all();
    }

    /// Another writer removes the object; false when there is none.
    pub fn remove(&self, resource: &str, namespace: &str, name: &str) -> bool {
        let key = Key {
            resource: resource.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
        };
        let removed = self.inner.state().store.remove(&key).is_some();
        self.inner.changed.notify_all();
        removed
    }
}

/// What an object write needs to know.
struct Asked<'a> {
    user: &'a User,
    target: Target,
    kind: &'static str,
    api_version: &'static str,
}

impl Asked<'_> {
    fn key(&self) -> Key {
        Key {
            resource: self.target.resource.clone(),
            namespace: self.target.namespace.clone().unwrap_or_default(),
            name: self.target.name().to_owned(),
        }
    }
}

type Outcome = Result<(u16, Value), Refusal>;

impl Inner {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn serve(self: &Arc<Self>, request: Request) -> Answer {
        let user = request
            .header("authorization")
            .and_then(|value| value.strip_prefix("Bearer "))
            .and_then(|token| self.tokens.get(token));
        let name = match user {
            None => String::new(),
            Some(User::Admin) => "admin".to_owned(),
            Some(User::Node(node)) => format!("system:node:{node}"),
        };
        let mut served = Served {
            user: name,
            method: request.method.clone(),
            path: request.path.clone(),
            status: 200,
            warnings: Vec::new(),
        };
        let answer = match user {
            None => Err(Refusal::new(401, "Unauthorized", "Unauthorized")),
            Some(user) => self.answer(user, &request, &mut served.warnings),
        };
        let answer = answer.unwrap_or_else(|refusal| Answer::Whole(refusal.response()));
        if let Answer::Whole(response) = &answer {
            served.status = response.status;
        }
        self.state().served.push(served);
        answer
    }

    fn answer(
        self: &Arc<Self>,
        user: &User,
        request: &Request,
        warnings: &mut Vec<String>,
    ) -> Result<Answer, Refusal> {
        if let Some(accept) = request.header("accept") {
            check_accept(accept)?;
        }
        match request.path.as_str() {
            "/healthz" | "/readyz" | "/livez" => {
                return Ok(Answer::Whole(Response::new(200, "text/plain", "ok")));
            }
            "/version" => {
                let version =
                    json!({"major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64"});
                return Ok(Answer::Whole(Response::new(
                    200,
                    "application/json",
                    version.to_string(),
                )));
            }
            _ => {}
        }
        let (target, kind, api_version) = route(&request.path)?;
        let verb = verb(request, &target)?;
        let selector = list::field_selector(request, &target.resource)?;
        access::authorise(user, verb, &target, &selector, &self.state().store)?;
        let asked = Asked {
            user,
            target,
            kind,
            api_version,
        };
        match verb {
            Verb::Watch => return list::watch(self, &asked.target, kind, api_version, &selector, request),
            Verb::List => return list::list(self, &asked.target, kind, api_version, &selector, request),
            Verb::DeleteCollection => {
                return Err(Refusal::new(
                    405,
                    "MethodNotAllowed",
                    "this double deletes no collections",
                ));
            }
            _ => {}
        }
        let mut state = self.state();
        let (status, object) = match verb {
            Verb::Get => state.get(&asked),
            Verb::Create => state.create(&asked, request, warnings),
            Verb::Delete => state.delete(&asked, request),
            _ => state.update(&asked, verb, request, warnings),
        }?;
        drop(state);
        self.changed.notify_all();
        let mut response = Response::new(status, "application/json", object.to_string());
        response
            .headers
            .push(("cache-control".to_owned(), "no-cache, private".to_owned()));
        for warning in warnings {
            response
                .headers
                .push(("warning".to_owned(), format!("299 - {warning:?}")));
        }
        Ok(Answer::Whole(response))
    }
}

fn check_accept(accept: &str) -> Result<(), Refusal> {
    let served = accept
        .split(',')
        .map(|part| part.split(';').next().unwrap_or_default().trim());
    if served
        .into_iter()
        .any(|kind| matches!(kind, "*/*" | "application/*" | "application/json" | ""))
    {
        return Ok(());
    }
    let message = "406: Not Acceptable\n\nAvailable representations: application/json, application/yaml, \
                   application/vnd.kubernetes.protobuf, application/json;stream=watch, \
                   application/vnd.kubernetes.protobuf;stream=watch";
    Err(Refusal {
        details: json!({}),
        ..Refusal::new(406, "NotAcceptable", message)
    })
}

/// `/api/v1/...` and `/apis/GROUP/VERSION/...` with a resource that the double knows.
fn route(path: &str) -> Result<(Target, &'static str, &'static str), Refusal> {
    let unknown = || Refusal {
        details: json!({}),
        ..Refusal::new(
            404,
            "NotFound",
            "the server could not find the requested resource",
        )
    };
    let mut parts = path.trim_matches('/').split('/').peekable();
    let version = match (parts.next(), parts.next()) {
        (Some("api"), Some(version)) => version.to_owned(),
        (Some("apis"), Some(group)) => format!("{group}/{}", parts.next().unwrap_or_default()),
        _ => return Err(unknown()),
    };
    let rest: Vec<&str> = parts.collect();
    let (namespace, rest) = match rest[..] {
        ["namespaces", namespace, _, ..] => (Some(namespace), &rest[2..]),
        _ => (None, &rest[..]),
    };
    let resource = *rest.first().ok_or_else(unknown)?;
    let known = RESOURCES
        .iter()
        .find(|(plural, _, served, _)| *plural == resource && *served == version);
    let (plural, kind, api_version, _) = known.ok_or_else(unknown)?;
    let target = Target {
        group: version
            .split_once('/')
            .map(|(group, _)| group.to_owned())
            .unwrap_or_default(),
        resource: (*plural).to_owned(),
        namespace: namespace.map(str::to_owned),
        name: rest.get(1).map(|name| (*name).to_owned()),
        subresource: rest.get(2).map(|name| (*name).to_owned()),
    };
    if rest.len() > 3 || target.subresource.as_deref().is_some_and(|name| name != "status") {
        return Err(unknown());
    }
    Ok((target, kind, api_version))
}

fn verb(request: &Request, target: &Target) -> Result<Verb, Refusal> {
    let watch = request
        .parameter("watch")
        .is_some_and(|value| matches!(value, "true" | "1"));
    Ok(match (request.method.as_str(), target.name.is_some()) {
        ("GET", true) => Verb::Get,
        ("GET", false) if watch => Verb::Watch,
        ("GET", false) => Verb::List,
        ("POST", false) => Verb::Create,
        ("PUT", true) => Verb::Update,
        ("PATCH", true) => Verb::Patch,
        ("DELETE", true) => Verb::Delete,
        ("DELETE", false) => Verb::DeleteCollection,
        _ => {
            return Err(Refusal::new(
                405,
                "MethodNotAllowed",
                "the server does not allow this method on the requested resource",
            ));
        }
    })
}

fn parse(body: &[u8]) -> Result<Value, Refusal> {
    serde_json::from_slice(body).map_err(|error| {
        let message = if error.is_eof() {
            "unexpected end of JSON input".to_owned()
        } else {
            error.to_string()
        };
        Refusal::new(400, "BadRequest", message)
    })
}

/// A body that cannot be read as its kind: 400, in the words of a PUT or POST.
fn unreadable(asked: &Asked<'_>, why: &str) -> Refusal {
    let version = asked.api_version.rsplit('/').next().unwrap_or_default();
    let kind = asked.kind;
    Refusal::new(
        400,
        "BadRequest",
        format!("{kind} in version \"{version}\" cannot be handled as a {kind}: {why}"),
    )
}

impl State {
    fn now(&self) -> OffsetDateTime {
        self.clock.unwrap_or_else(OffsetDateTime::now_utc)
    }

    fn timestamp(&self, offset_seconds: i64) -> String {
        let at = self.now() + time::Duration::seconds(offset_seconds);
        at.replace_nanosecond(0)
            .unwrap_or(at)
            .format(&Rfc3339)
            .unwrap_or_default()
    }

    fn uid(&mut self) -> String {
        if let Some(uid) = self.uids.pop_front() {
            return uid;
        }
        let mut bytes = [0; 16];
        // Without randomness the UID is of zeros: it differs from no other, and a test will say so.
        let _ = ring::rand::SystemRandom::new().fill(&mut bytes);
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        format!(
            "{}-{}-4{}-a{}-{}",
            &hex[..8],
            &hex[8..12],
            &hex[13..16],
            &hex[17..20],
            &hex[20..]
        )
    }

    fn get(&self, asked: &Asked<'_>) -> Outcome {
        let object = self
            .store
            .get(&asked.key())
            .ok_or_else(|| Refusal::not_found(&asked.target))?;
        Ok((200, object.clone()))
    }

    fn create(&mut self, asked: &Asked<'_>, request: &Request, warnings: &mut Vec<String>) -> Outcome {
        let mut object = parse(&request.body)?;
        let unknown = model::check_fields(&asked.target.resource, &mut object)
            .map_err(|why| unreadable(asked, &why))?;
        warnings.extend(unknown.iter().map(|path| format!("unknown field \"{path}\"")));
        let mut target = asked.target.clone();
        target.name = object["metadata"]["name"]
            .as_str()
            .filter(|name| !name.is_empty())
            .map(str::to_owned);
        if target.name.is_none() {
            let prefix = object["metadata"]["generateName"]
                .as_str()
                .unwrap_or_default()
                .to_owned();
            if prefix.is_empty() {
                let text = "Required value: name or generateName is required";
                return Err(Refusal::invalid(&target, "metadata.name", text));
            }
            target.name = Some(prefix + &self.uid()[..5]);
        }
        if let Some(namespace) = &target.namespace {
            let key = Key {
                resource: "namespaces".to_owned(),
                namespace: String::new(),
                name: namespace.clone(),
            };
            if self.store.get(&key).is_none() {
                let missing = Target {
                    resource: "namespaces".to_owned(),
                    name: Some(namespace.clone()),
                    ..Target::default()
                };
                return Err(Refusal::not_found(&missing));
            }
        }
        match target.resource.as_str() {
            "nodes" => access::admit_node(asked.user, &target, None, &object)?,
            "leases" => {
                access::admit_lease(asked.user, &target)?;
                model::check_micro_times(&object).map_err(|why| unreadable(asked, &why))?;
            }
            "pods" => access::admit_pod(asked.user, &target, &object, &self.store)?,
            "events" => {}
            other
                if *asked.user == User::Admin && ["namespaces", "configmaps", "secrets"].contains(&other) => {
            }
            _ => {
                return Err(Refusal::new(
                    405,
                    "MethodNotAllowed",
                    "this double creates no such objects",
                ));
            }
        }
        let asked = Asked {
            target,
            ..Asked {
                user: asked.user,
                target: Target::default(),
                ..*asked
            }
        };
        let key = asked.key();
        if self.store.get(&key).is_some() {
            return Err(Refusal::exists(&asked.target));
        }
        let uid = self.uid();
        let created = self.timestamp(0);
        let given = object["metadata"].take();
        let mut metadata = json!({"name": key.name});
        if let Some(namespace) = &asked.target.namespace {
            metadata["namespace"] = json!(namespace);
        }
        metadata["uid"] = json!(uid);
        metadata["resourceVersion"] = json!("");
        metadata["creationTimestamp"] = json!(created);
        for name in [
            "generateName",
            "labels",
            "annotations",
            "ownerReferences",
            "finalizers",
        ] {
            if let Some(value) = given.get(name) {
                metadata[name] = value.clone();
            }
        }
        object["metadata"] = metadata;
        object["kind"] = json!(asked.kind);
        object["apiVersion"] = json!(asked.api_version);
        match asked.target.resource.as_str() {
            "nodes" => {
                object["status"] = json!({});
                let spec = object
                    .as_object_mut()
                    .map(|members| members.entry("spec").or_insert(json!({})));
                if let Some(spec) = spec {
                    spec["taints"] = json!([{"key": "node.kubernetes.io/not-ready", "effect": "NoSchedule"}]);
                }
            }
            "pods" => {
                let node = object["spec"]["nodeName"].as_str().unwrap_or_default().to_owned();
                let node = Key {
                    resource: "nodes".to_owned(),
                    namespace: String::new(),
                    name: node,
                };
                let zone = self
                    .store
                    .get(&node)
                    .and_then(|node| node["metadata"]["labels"].get("topology.kubernetes.io/zone"));
                model::default_pod(&mut object, zone);
            }
            _ => {}
        }
        model::normalise(&asked.target.resource, &mut object);
        Ok((201, self.store.put(key, object)))
    }

    /// PUT and PATCH, of the object or of its status.
    fn update(
        &mut self,
        asked: &Asked<'_>,
        verb: Verb,
        request: &Request,
        warnings: &mut Vec<String>,
    ) -> Outcome {
        let target = &asked.target;
        let resource = target.resource.as_str();
        let status = target.subresource.is_some();
        let key = asked.key();
        if resource == "nodes" {
            // Another's node is refused before anything is looked at.
            access::admit_node(asked.user, target, Some(&Value::Null), &Value::Null)?;
        }
        let form = match verb {
            Verb::Patch => Some(patch::Form::of(
                request.header("content-type").unwrap_or_default(),
            )?),
            _ => None,
        };
        let mut body = parse(&request.body)?;
        let old = self
            .store
            .get(&key)
            .cloned()
            .ok_or_else(|| Refusal::not_found(target))?;
        if resource == "pods" && status {
            access::admit_own_pod(asked.user, target, &old, "update pod status for pods")?;
        }
        let shown = body.to_string();
        let unknown = model::check_fields(resource, &mut body).map_err(|why| match form {
            Some(_) => Refusal::invalid_patch(&shown, &why),
            None => unreadable(asked, &why),
        })?;
        warnings.extend(unknown.iter().map(|path| format!("unknown field \"{path}\"")));
        let new = match form {
            Some(form) => patch::apply(form, &old, &body)?,
            None => body,
        };
        if resource == "leases" {
            model::check_micro_times(&new).map_err(|why| match form {
                Some(_) => Refusal::invalid_patch(&new.to_string(), &why),
                None => unreadable(asked, &why),
            })?;
        }
        let version = new["metadata"]["resourceVersion"].as_str().unwrap_or_default();
        if version.is_empty() && resource == "leases" {
            let text = "Invalid value: 0: must be specified for an update";
            return Err(Refusal::invalid(target, "metadata.resourceVersion", text));
        }
        if !version.is_empty() && version != old["metadata"]["resourceVersion"] {
            return Err(Refusal::conflict(target));
        }
        let uid = new["metadata"]["uid"].as_str().unwrap_or_default();
        if !uid.is_empty() && uid != old["metadata"]["uid"] {
            let text = format!("Invalid value: \"{uid}\": field is immutable");
            return Err(Refusal::invalid_kind(
                target,
                asked.kind,
                "metadata.uid",
                "FieldValueInvalid",
                &text,
                2,
            ));
        }
        let new = merged(resource, status, &old, new);
        if resource == "nodes" {
            access::admit_node(asked.user, target, Some(&old), &new)?;
        }
        if resource == "pods" {
            if let User::Node(node) = asked.user
                && old["metadata"].get("labels") != new["metadata"].get("labels")
            {
                return Err(Refusal::forbidden(
                    target,
                    format!("node \"{node}\" cannot update labels through pod status"),
                ));
            }
            model::check_pod_status(target, &old, &new)?;
        }
        if new == old {
            return Ok((200, old));
        }
        Ok((200, self.store.put(key, new)))
    }

    fn delete(&mut self, asked: &Asked<'_>, request: &Request) -> Outcome {
        let target = &asked.target;
        let key = asked.key();
        let mut object = self
            .store
            .get(&key)
            .cloned()
            .ok_or_else(|| Refusal::not_found(target))?;
        if target.resource == "pods" {
            access::admit_own_pod(asked.user, target, &object, "delete pods")?;
        }
        let options = if request.body.is_empty() {
            json!({})
        } else {
            parse(&request.body)?
        };
        for (what, field) in [("UID", "uid"), ("ResourceVersion", "resourceVersion")] {
            let found = object["metadata"][field].as_str().unwrap_or_default();
            if let Some(wanted) = options["preconditions"][field].as_str()
                && wanted != found
            {
                return Err(Refusal::precondition(target, asked.kind, what, wanted, found));
            }
        }
        if target.resource != "pods" {
            return self
                .store
                .remove(&key)
                .map(|object| (200, object))
                .ok_or_else(|| Refusal::not_found(target));
        }
        let ended = matches!(object["status"]["phase"].as_str(), Some("Succeeded" | "Failed"));
        let unbound = object["spec"]["nodeName"].as_str().unwrap_or_default().is_empty();
        let asked_grace = options["gracePeriodSeconds"].as_i64();
        let own_grace = object["spec"]["terminationGracePeriodSeconds"]
            .as_i64()
            .unwrap_or(30);
        let grace = if ended || unbound {
            0
        } else {
            asked_grace.unwrap_or(own_grace).max(0)
        };
        let current = object["metadata"]["deletionGracePeriodSeconds"].as_i64();
        if current.is_some_and(|current| current <= grace) && grace > 0 {
            return Ok((200, object));
        }
        if current.is_none() {
            let generation = object["metadata"]["generation"].as_i64().unwrap_or(1);
            object["metadata"]["generation"] = json!(generation + 1);
        }
        object["metadata"]["deletionTimestamp"] = json!(self.timestamp(grace));
        object["metadata"]["deletionGracePeriodSeconds"] = json!(grace);
        let marked = self.store.put(key.clone(), object);
        if grace > 0 {
            return Ok((200, marked));
        }
        Ok((200, self.store.remove(&key).unwrap_or(marked)))
    }
}

/// What of a written object becomes the new object: the status subresource writes the status (and of a node the
/// metadata), the object itself everything but the status.
fn merged(resource: &str, status: bool, old: &Value, mut new: Value) -> Value {
    let mut merged = old.clone();
    if status {
        merged["status"] = new["status"].take();
    } else if let (Some(target), Some(source)) = (merged.as_object_mut(), new.as_object()) {
        for (name, value) in source
            .iter()
            .filter(|(name, _)| !["status", "metadata"].contains(&name.as_str()))
        {
            target.insert(name.clone(), value.clone());
        }
    }
    for name in ["labels", "annotations", "ownerReferences"] {
        match new["metadata"].get(name) {
            Some(value) => merged["metadata"][name] = value.clone(),
            None => {
                if let Some(metadata) = merged["metadata"].as_object_mut() {
                    metadata.shift_remove(name);
                }
            }
        }
    }
    model::normalise(resource, &mut merged);
    merged
}

/// Whether the object is among what the selectors select.
fn selected(object: &Value, fields: &[(String, String)], labels: &[(String, String)]) -> bool {
    let matches = |path: &str, wanted: &str| {
        let found = path.split('.').try_fold(object, |value, part| value.get(part));
        found.and_then(Value::as_str).unwrap_or_default() == wanted
    };
    fields.iter().all(|(path, wanted)| matches(path, wanted))
        && labels
            .iter()
            .all(|(name, wanted)| object["metadata"]["labels"].get(name) == Some(&json!(wanted)))
}
