//! What to ask the API server next, and what its answers mean. No I/O, no clock, no randomness.
//!
//! ```text
//!   Node:    unknown ── POST ── 201 ─────────► known ── PATCH status: on change, every 5 minutes
//!               ▲        └ 409 ─► GET 200 ──────┘│
//!               └──────────────── 404 ───────────┘
//!   Lease:   PATCH every 10 s ── 404 ─► POST ── 201, 409 ─► PATCH ..
//!   mirror:  absent ── POST ── 201 ─────────────────► there ── PATCH status with its UID, on change
//!               ▲       └ 409 ─► GET: ours ────────────┘│
//!               ├───────── 404, 422 metadata.uid ───────┤
//!               └── DELETE (UID) ◄─ other content, not wanted, or deleted by someone
//! ```
//!
//! A refusal of one object (403, 404, 409, 422 and the like) delays that object alone; a link that fails, 401, 429 and
//! 5xx delay everything. Statuses are latest-wins: what could not be sent is replaced by what is true when it can be.
//! After a gap longer than a lease lives, everything is sent again: the cluster has given this node up meanwhile, and
//! only a status from the node itself takes that back, for each pod.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde_json::Value;
use wherry_sync::Backoff;
use wherry_sync::plan::Moment;
use wherry_sync::status::{self, NodeFacts};

use super::PodReport;
use super::client::Error;
use super::objects::{self, Wall};

const RENEW: Duration = Duration::from_secs(10);
/// The cluster gives a node up 50 s after its last renewal; a little less is taken for it.
const GIVEN_UP: Duration = Duration::from_secs(40);
const NODE_STATUS: Duration = Duration::from_secs(300);
/// Mirror pods that someone deleted or patched are noticed in this time.
const LIST: Duration = Duration::from_secs(300);
/// A link that comes back is noticed in time for the lease.
const LINK: Backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(20));
const OBJECT: Backoff = Backoff::new(Duration::from_secs(2), Duration::from_secs(300));
/// An API server may ask for a pause, but not for ever.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(300);

const JSON: &str = "application/json";
const MERGE: &str = "application/merge-patch+json";
const STRATEGIC: &str = "application/strategic-merge-patch+json";
const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";

/// One request.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Request {
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) content_type: &'static str,
    pub(super) body: Option<Value>,
    purpose: Purpose,
}

/// One answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) retry_after: Option<Duration>,
    pub(super) body: Value,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Next {
    Send(Box<Request>),
    /// Nothing until then.
    Wait(Moment),
}

/// Something that a person may want to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Trouble {
    pub(super) what: String,
    pub(super) why: String,
}

#[derive(Clone, Debug, PartialEq)]
enum Purpose {
    NodeCreate,
    NodeGet,
    NodeStatus { status: Value },
    LeaseRenew,
    LeaseCreate,
    List,
    MirrorCreate { key: String, hash: String },
    MirrorGet { key: String },
    MirrorStatus { key: String, status: Value },
    MirrorDelete { key: String },
}

impl Purpose {
    /// What a refusal delays.
    fn object(&self) -> String {
        match self {
            Self::NodeCreate | Self::NodeGet | Self::NodeStatus { .. } => "node".into(),
            Self::LeaseRenew | Self::LeaseCreate => "lease".into(),
            Self::List => "pods".into(),
            Self::MirrorCreate { key, .. }
            | Self::MirrorGet { key }
            | Self::MirrorStatus { key, .. }
            | Self::MirrorDelete { key } => format!("pod {key}"),
        }
    }
}

/// A mirror pod in the cluster.
#[derive(Clone, Debug, PartialEq)]
struct Mirror {
    uid: String,
    hash: String,
    generation: u64,
    deleting: bool,
    sent: Option<Value>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Delay {
    failures: u32,
    until: Moment,
}

/// What is known of the cluster.
#[derive(Debug)]
pub(super) struct Cluster {
    node: String,
    node_uid: Option<String>,
    /// The POST said that the Node is there already.
    node_exists: bool,
    node_status: Option<Value>,
    node_sent: Option<(Value, Moment)>,
    lease_due: Moment,
    lease_missing: bool,
    list_due: Moment,
    mirrors: BTreeMap<String, Mirror>,
    /// Mirrors of which the POST said that they are there already.
    existing: BTreeSet<String>,
    link: Delay,
    held: BTreeMap<String, Delay>,
    last_success: Option<Moment>,
}

impl Cluster {
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            node_uid: None,
            node_exists: false,
            node_status: None,
            node_sent: None,
            lease_due: Moment::ZERO,
            lease_missing: false,
            list_due: Moment::ZERO,
            mirrors: BTreeMap::new(),
            existing: BTreeSet::new(),
            link: Delay::default(),
            held: BTreeMap::new(),
            last_success: None,
        }
    }

    /// Whether nothing is being refused at the moment.
    pub(super) fn is_content(&self) -> bool {
        self.link.failures == 0 && self.held.is_empty()
    }

    /// The most urgent request that is due.
    pub(super) fn next(&mut self, reports: &[PodReport], facts: &NodeFacts, wall: Wall, now: Moment) -> Next {
        if self.link.until > now {
            return Next::Wait(self.link.until);
        }
        let mut wake = now.saturating_add(RENEW);
        for request in self.due(reports, facts, &wall, now) {
            match self.held.get(&request.purpose.object()) {
                Some(delay) if delay.until > now => wake = wake.min(delay.until),
                _ => return Next::Send(Box::new(request)),
            }
        }
        let node_due = self
            .node_sent
            .as_ref()
            .map(|(_, at)| at.saturating_add(NODE_STATUS));
        for due in [Some(self.lease_due), Some(self.list_due), node_due]
            .into_iter()
            .flatten()
        {
            if due > now {
                wake = wake.min(due);
            }
        }
        Next::Wait(wake)
    }

    /// Every request that is due, the most urgent first.
    fn due(&mut self, reports: &[PodReport], facts: &NodeFacts, wall: &Wall, now: Moment) -> Vec<Request> {
        let Some(node_uid) = self.node_uid.clone() else {
            return vec![if self.node_exists {
                request("GET", self.node_path(), JSON, None, Purpose::NodeGet)
            } else {
                request(
                    "POST",
                    "/api/v1/nodes".into(),
                    JSON,
                    Some(objects::node(facts)),
                    Purpose::NodeCreate,
                )
            }];
        };
        let mut due = Vec::new();
        if self.lease_due <= now {
            due.push(if self.lease_missing {
                let body = objects::lease(&self.node, &node_uid, wall);
                request("POST", LEASES.into(), JSON, Some(body), Purpose::LeaseCreate)
            } else {
                let body = objects::lease_renewal(&self.node, wall);
                request(
                    "PATCH",
                    format!("{LEASES}/{}", self.node),
                    MERGE,
                    Some(body),
                    Purpose::LeaseRenew,
                )
            });
        }
        let status = status::node(facts, &wall.seconds, self.node_status.as_ref());
        let news = match &self.node_sent {
            None => true,
            Some((sent, at)) => {
                at.saturating_add(NODE_STATUS) <= now || *sent != status::without_heartbeat(&status)
            }
        };
        if news {
            let path = format!("{}/status", self.node_path());
            let body = objects::node_status(&status);
            due.push(request(
                "PATCH",
                path,
                STRATEGIC,
                Some(body),
                Purpose::NodeStatus { status },
            ));
        }
        if self.list_due <= now {
            let path = format!("/api/v1/pods?fieldSelector=spec.nodeName%3D{}", self.node);
            due.push(request("GET", path, JSON, None, Purpose::List));
            // Which mirrors there are is not known yet, or not any more.
            return due;
        }
        self.due_mirrors(reports, &node_uid, wall, &mut due);
        due
    }

    fn due_mirrors(&self, reports: &[PodReport], node_uid: &str, wall: &Wall, due: &mut Vec<Request>) {
        let wanted: BTreeMap<String, &PodReport> =
            reports.iter().map(|report| (self.key(report), report)).collect();
        for (key, mirror) in &self.mirrors {
            let same = wanted.get(key).is_some_and(|report| report.uid == mirror.hash);
            if mirror.deleting || !same {
                let body = objects::deletion(&mirror.uid);
                due.push(request(
                    "DELETE",
                    pod_path(key),
                    JSON,
                    Some(body),
                    Purpose::MirrorDelete { key: key.clone() },
                ));
            }
        }
        for (key, report) in wanted {
            match self.mirrors.get(&key) {
                None if self.existing.contains(&key) => {
                    due.push(request(
                        "GET",
                        pod_path(&key),
                        JSON,
                        None,
                        Purpose::MirrorGet { key },
                    ));
                }
                None => {
                    let namespace = &report.pod.metadata.namespace;
                    let path = format!("/api/v1/namespaces/{namespace}/pods");
                    let body = objects::mirror(report, &self.node, node_uid, wall);
                    let purpose = Purpose::MirrorCreate {
                        key,
                        hash: report.uid.clone(),
                    };
                    due.push(request("POST", path, JSON, Some(body), purpose));
                }
                Some(mirror) if mirror.deleting || mirror.hash != report.uid => {}
                Some(mirror) if mirror.sent.as_ref() == Some(&report.status) => {}
                Some(mirror) => {
                    let body = objects::pod_status(&mirror.uid, mirror.generation, &report.status);
                    let path = format!("{}/status", pod_path(&key));
                    let purpose = Purpose::MirrorStatus {
                        key,
                        status: report.status.clone(),
                    };
                    due.push(request("PATCH", path, STRATEGIC, Some(body), purpose));
                }
            }
        }
    }

    fn key(&self, report: &PodReport) -> String {
        format!(
            "{}/{}",
            report.pod.metadata.namespace,
            objects::mirror_name(report, &self.node)
        )
    }

    fn node_path(&self) -> String {
        format!("/api/v1/nodes/{}", self.node)
    }

    /// Takes in an answer, or why there was none.
    pub(super) fn answered(
        &mut self,
        request: &Request,
        answer: Result<Answer, Error>,
        now: Moment,
        random: u32,
    ) -> Option<Trouble> {
        let what = format!("{} {}", request.method, request.purpose.object());
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => {
                self.pause(None, now, random);
                // The same words whatever was being sent: an outage is one trouble.
                return Some(Trouble {
                    what: "link".into(),
                    why: error.to_string(),
                });
            }
        };
        let retry_after = answer.retry_after.or_else(|| {
            answer.body["details"]["retryAfterSeconds"]
                .as_u64()
                .filter(|s| *s > 0)
                .map(Duration::from_secs)
        });
        if answer.status == 401 || answer.status == 429 || answer.status >= 500 {
            self.pause(retry_after, now, random);
            return Some(Trouble {
                what,
                why: explain(&answer),
            });
        }
        self.link = Delay::default();
        if self
            .last_success
            .is_some_and(|last| last.saturating_add(GIVEN_UP) < now)
        {
            self.send_all_again();
        }
        self.last_success = Some(now);
        let object = request.purpose.object();
        if self.take(&request.purpose, &answer, now) {
            self.held.remove(&object);
            return None;
        }
        let delay = self.held.entry(object).or_default();
        delay.failures = delay.failures.saturating_add(1);
        delay.until = now.saturating_add(retry_after.map_or_else(
            || OBJECT.jittered(delay.failures, random),
            |wait| wait.min(RETRY_AFTER_MAX),
        ));
        Some(Trouble {
            what,
            why: explain(&answer),
        })
    }

    fn pause(&mut self, retry_after: Option<Duration>, now: Moment, random: u32) {
        self.link.failures = self.link.failures.saturating_add(1);
        let wait = match retry_after {
            Some(wait) => wait.min(RETRY_AFTER_MAX),
            None => LINK.jittered(self.link.failures, random),
        };
        self.link.until = now.saturating_add(wait);
    }

    fn send_all_again(&mut self) {
        self.node_sent = None;
        self.list_due = Moment::ZERO;
        for mirror in self.mirrors.values_mut() {
            mirror.sent = None;
        }
    }

    /// Whether the answer brought things forward; if not, its object has to wait.
    fn take(&mut self, purpose: &Purpose, answer: &Answer, now: Moment) -> bool {
        let good = (200..300).contains(&answer.status);
        match purpose {
            Purpose::NodeCreate | Purpose::NodeGet => {
                self.node_exists = answer.status == 409;
                match answer.body["metadata"]["uid"].as_str().filter(|_| good) {
                    Some(uid) => {
                        self.node_uid = Some(uid.to_owned());
                        self.node_sent = None;
                        true
                    }
                    // A Node that vanished between two requests is made again.
                    None => answer.status == 409 || (answer.status == 404 && *purpose == Purpose::NodeGet),
                }
            }
            Purpose::NodeStatus { status } => {
                if good {
                    self.node_sent = Some((status::without_heartbeat(status), now));
                    self.node_status = Some(status.clone());
                } else if answer.status == 404 {
                    // Deleted by someone; its mirror pods go with it.
                    self.node_uid = None;
                    self.lease_due = now;
                    self.mirrors.clear();
                    self.list_due = Moment::ZERO;
                }
                good || answer.status == 404
            }
            Purpose::LeaseRenew | Purpose::LeaseCreate => {
                self.lease_missing = answer.status == 404;
                if self.lease_missing {
                    // A lease goes with its Node, or with the whole cluster: what else has gone?
                    self.send_all_again();
                }
                if good {
                    self.lease_due = now.saturating_add(RENEW);
                }
                let created_by_other = answer.status == 409 && *purpose == Purpose::LeaseCreate;
                let missing = answer.status == 404 && *purpose == Purpose::LeaseRenew;
                good || created_by_other || missing
            }
            Purpose::List => {
                if good {
                    self.listed(&answer.body);
                    self.list_due = now.saturating_add(LIST);
                }
                good
            }
            Purpose::MirrorCreate { key, hash } => {
                if good && let Some(uid) = answer.body["metadata"]["uid"].as_str() {
                    let mirror = Mirror {
                        uid: uid.to_owned(),
                        hash: hash.clone(),
                        generation: answer.body["metadata"]["generation"].as_u64().unwrap_or(1),
                        deleting: false,
                        sent: None,
                    };
                    self.mirrors.insert(key.clone(), mirror);
                    return true;
                }
                match answer.status {
                    409 => {
                        self.existing.insert(key.clone());
                        true
                    }
                    403 => {
                        // Its owner may be a Node that has been made anew: look.
                        self.node_uid = None;
                        self.node_exists = true;
                        false
                    }
                    _ => false,
                }
            }
            Purpose::MirrorGet { key } => {
                self.existing.remove(key);
                match mirror(&answer.body).filter(|_| good) {
                    Some(found) => {
                        self.mirrors.insert(key.clone(), found);
                        true
                    }
                    // Gone again, or a pod of that name that is none of ours.
                    None => false,
                }
            }
            Purpose::MirrorStatus { key, status } => self.status_answered(key, status, answer),
            Purpose::MirrorDelete { key } => {
                // 404 and 409: it has gone, and what has its name now is another one.
                let gone = good || matches!(answer.status, 404 | 409);
                if gone {
                    self.mirrors.remove(key);
                }
                gone
            }
        }
    }

    fn status_answered(&mut self, key: &str, status: &Value, answer: &Answer) -> bool {
        let Some(mirror) = self.mirrors.get_mut(key) else {
            return true;
        };
        match answer.status {
            200..300 => {
                mirror.sent = Some(status.clone());
                mirror.generation = answer.body["metadata"]["generation"]
                    .as_u64()
                    .unwrap_or(mirror.generation);
                mirror.deleting = !answer.body["metadata"]["deletionTimestamp"].is_null();
                true
            }
            404 => {
                self.mirrors.remove(key);
                true
            }
            // Another pod has its name.
            422 if explain(answer).contains("metadata.uid") => {
                self.mirrors.remove(key);
                true
            }
            // This status will never be taken; the next one may be.
            400 | 422 => {
                mirror.sent = Some(status.clone());
                false
            }
            _ => false,
        }
    }

    fn listed(&mut self, list: &Value) {
        let mut before = std::mem::take(&mut self.mirrors);
        self.existing.clear();
        for item in list["items"].as_array().into_iter().flatten() {
            let meta = &item["metadata"];
            let (Some(namespace), Some(name)) = (meta["namespace"].as_str(), meta["name"].as_str()) else {
                continue;
            };
            let Some(mut found) = mirror(item).filter(|_| is_name(namespace) && is_name(name)) else {
                continue;
            };
            let key = format!("{namespace}/{name}");
            if let Some(known) = before.remove(&key).filter(|known| known.uid == found.uid) {
                // Someone else (the node controller, for one) may have changed what was sent.
                found.sent = known
                    .sent
                    .filter(|sent| readiness(sent) == readiness(&item["status"]));
            }
            self.mirrors.insert(key, found);
        }
    }
}

fn request(
    method: &'static str,
    path: String,
    content_type: &'static str,
    body: Option<Value>,
    purpose: Purpose,
) -> Request {
    Request {
        method,
        path,
        content_type,
        body,
        purpose,
    }
}

fn pod_path(key: &str) -> String {
    let (namespace, name) = key.split_once('/').unwrap_or(("default", key));
    format!("/api/v1/namespaces/{namespace}/pods/{name}")
}

/// What comes from the server becomes part of a path.
fn is_name(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-' || byte == b'.';
    (1..=253).contains(&text.len()) && text.bytes().all(good) && !text.starts_with('.')
}

/// A Pod object, if it is a mirror pod.
fn mirror(pod: &Value) -> Option<Mirror> {
    let meta = &pod["metadata"];
    Some(Mirror {
        uid: meta["uid"].as_str()?.to_owned(),
        hash: meta["annotations"][objects::MIRROR].as_str()?.to_owned(),
        generation: meta["generation"].as_u64().unwrap_or(1),
        deleting: !meta["deletionTimestamp"].is_null(),
        sent: None,
    })
}

/// The phase and the Ready condition of a pod's status.
fn readiness(status: &Value) -> (Option<&str>, Option<&str>) {
    let conditions = status["conditions"].as_array().into_iter().flatten();
    let ready = conditions
        .into_iter()
        .find(|condition| condition["type"] == "Ready");
    (
        status["phase"].as_str(),
        ready.and_then(|ready| ready["status"].as_str()),
    )
}

/// The server's own words, shortened.
fn explain(answer: &Answer) -> String {
    let message = answer.body["message"].as_str().unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(300).collect();
    format!("{} {message}", answer.status).trim_end().to_owned()
}

#[cfg(test)]
mod tests;
