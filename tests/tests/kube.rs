//! The Kubernetes double beside the real thing: every recorded exchange of the copied folders is asked of the double,
//! in the order of time, and the answers are compared whole: status, and body member by member.
//!
//! The recordings hold what other writers did as well (controllers, the admin, a second node). Those versions of
//! objects are known from watches and answers; each is stored before the first exchange that has seen it, so what is
//! compared is what the double itself makes of the node's requests.

use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use wherry_tests::http;
use wherry_tests::kube::Double;

const PATIENCE: Duration = Duration::from_secs(20);

const PAST: &str = "it starts with the state of its time, which has passed when its events are known";

/// What cannot be replayed, by name, with the reason.
const NOT_REPLAYED: &[(&str, &str)] = &[
    ("01-node/34-watch-own-node", PAST),
    ("03-pods-watch/01-bookmarks-150s", PAST),
    ("03-pods-watch/02-no-bookmarks-100s", PAST),
    ("05-deletion/01-node-watch", PAST),
    (
        "03-pods-watch/34-across-server-restart",
        "the double does not restart within one watch",
    ),
    (
        "04-deployment-status/02-admin-watch-deployments",
        "controllers are not part of the double",
    ),
    (
        "04-deployment-status/03-admin-create-deployment",
        "controllers are not part of the double",
    ),
    (
        "04-deployment-status/23-admin-update-image",
        "controllers are not part of the double",
    ),
    (
        "05-deletion/15-finalizer-admin-delete",
        "finalizers are not part of the double",
    ),
    (
        "05-deletion/16-finalizer-node-delete-grace0",
        "finalizers are not part of the double",
    ),
    (
        "05-deletion/17-finalizer-node-delete-again",
        "finalizers are not part of the double",
    ),
    (
        "05-deletion/18-finalizer-removed",
        "finalizers are not part of the double",
    ),
    (
        "05-deletion/19-finalizer-get-after-403",
        "finalizers are not part of the double",
    ),
    (
        "05-deletion/22-same-name-new-uid-409",
        "no recording shows the second pod of that name",
    ),
    (
        "05-deletion/24-unscheduled-delete",
        "no recording shows the pod before",
    ),
];

/// Members that an unrecorded write of a controller had changed before: not compared.
const OF_CONTROLLERS: &[(&str, &str)] = &[
    ("01-node/10-patch-status-address-merges", "body.spec.taints"),
    ("01-node/11-patch-status-address-replace", "body.spec.taints"),
    ("01-node/12-patch-status-delete-condition", "body.spec.taints"),
    (
        "01-node/13-patch-status-merge-patch-replaces-list",
        "body.spec.taints",
    ),
    (
        "04-deployment-status/40-podip-change-with-replace",
        "body.status.conditions[2]",
    ),
    (
        "04-deployment-status/41-podip-change-with-delete",
        "body.status.conditions[2]",
    ),
];

/// Where the text of a message is the inside of the server's own types; code and reason are compared all the same.
const MESSAGE_NOT_COMPARED: &[&str] = &[
    "02-lease/12-patch-time-without-micro-422",
    "02-lease/13-renew-time-garbage-422",
    "03-pods-watch/15-list-future-rv-504",
    "04-deployment-status/18-status-bad-type-422",
];

struct Exchange {
    name: String,
    at: OffsetDateTime,
    value: Value,
}

/// A version of an object that some answer or watch showed.
#[derive(Clone)]
struct Version {
    revision: u64,
    seen: OffsetDateTime,
    deleted: bool,
    resource: &'static str,
    object: Value,
}

fn fixtures() -> Vec<Exchange> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/kubernetes");
    let mut exchanges = Vec::new();
    for folder in std::fs::read_dir(root)
        .expect("fixtures")
        .flatten()
        .filter(|entry| entry.path().is_dir())
    {
        for file in std::fs::read_dir(folder.path()).expect("folder").flatten() {
            let value: Value =
                serde_json::from_slice(&std::fs::read(file.path()).expect("read")).expect("json");
            let at = OffsetDateTime::parse(value["at"].as_str().expect("at"), &Rfc3339).expect("time");
            exchanges.push(Exchange {
                name: value["name"].as_str().expect("name").to_owned(),
                at,
                value,
            });
        }
    }
    // A watch carries the number and time of its start, and is replayed when all that it saw has happened.
    exchanges.sort_by_key(|exchange| (finished(exchange), exchange.name.clone()));
    exchanges
}

/// When the exchange was over: a watch that the folder's other exchanges feed is asked for after them.
fn finished(exchange: &Exchange) -> OffsetDateTime {
    let last = exchange.value["response"]["body"]
        .as_array()
        .and_then(|events| events.last());
    exchange.at + time::Duration::seconds_f64(last.and_then(|event| event["t"].as_f64()).unwrap_or(0.0))
}

fn resource_of(kind: &str) -> Option<&'static str> {
    Some(match kind {
        "Node" => "nodes",
        "Pod" => "pods",
        "Lease" => "leases",
        "Deployment" => "deployments",
        "ReplicaSet" => "replicasets",
        _ => return None,
    })
}

fn revision(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"]
        .as_str()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The object versions that an exchange shows.
fn versions(exchange: &Exchange) -> Vec<Version> {
    let body = &exchange.value["response"]["body"];
    let version = |object: &Value, seen, deleted| {
        let resource = resource_of(object["kind"].as_str()?)?;
        (revision(object) > 0).then(|| Version {
            revision: revision(object),
            seen,
            deleted,
            resource,
            object: object.clone(),
        })
    };
    if let Some(events) = body.as_array() {
        return events
            .iter()
            .filter(|event| event["type"] != "BOOKMARK")
            .filter_map(|event| {
                let t = time::Duration::seconds_f64(event["t"].as_f64().unwrap_or(0.0));
                version(&event["object"], exchange.at + t, event["type"] == "DELETED")
            })
            .collect();
    }
    if let Some(items) = body["items"].as_array() {
        let kind = body["kind"]
            .as_str()
            .unwrap_or_default()
            .trim_end_matches("List")
            .to_owned();
        return items
            .iter()
            .filter_map(|item| {
                let mut object = json!({"kind": kind, "apiVersion": body["apiVersion"]});
                for (name, value) in item.as_object()? {
                    object[name] = value.clone();
                }
                version(&object, exchange.at, false)
            })
            .collect();
    }
    let deleted = exchange.value["request"]["method"] == "DELETE"
        && body["metadata"]["deletionGracePeriodSeconds"] == 0
        && body["kind"] == "Pod";
    version(body, exchange.at, deleted).into_iter().collect()
}

/// Stores what other writers did up to `revision` or up to `at`, in the order of their revisions.
fn catch_up(double: &Double, known: &BTreeMap<u64, Version>, at: OffsetDateTime, before: u64) {
    for version in known.values() {
        let due = version.revision < before || (before == 0 && version.seen <= at);
        if !due || version.revision <= double.revision() {
            continue;
        }
        let name = |field: &str| {
            version.object["metadata"][field]
                .as_str()
                .unwrap_or_default()
                .to_owned()
        };
        double.advance(version.revision - 1);
        if version.deleted {
            double.remove(version.resource, &name("namespace"), &name("name"));
        } else {
            double.put(version.resource, version.object.clone());
        }
    }
}

/// An unrecorded deletion shows by absence: what a list does not show is gone.
fn forget_absent(double: &Double, exchange: &Exchange) {
    let body = &exchange.value["response"]["body"];
    let path = exchange.value["request"]["path"].as_str().unwrap_or_default();
    let whole = !path.contains("limit=");
    if let (Some(items), Some("PodList"), true) = (body["items"].as_array(), body["kind"].as_str(), whole) {
        for pod in double.list("pods") {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            if pod["spec"]["nodeName"] == "edge1"
                && !items.iter().any(|item| item["metadata"]["name"] == name)
            {
                double.remove(
                    "pods",
                    pod["metadata"]["namespace"].as_str().unwrap_or_default(),
                    name,
                );
            }
        }
    }
}

/// The members in which the bodies differ, as `path: recorded X, got Y`.
fn differences(path: &str, recorded: &Value, got: &Value, found: &mut Vec<String>) {
    match (recorded, got) {
        (Value::Object(a), Value::Object(b)) => {
            let names: BTreeSet<&String> = a.keys().chain(b.keys()).collect();
            for name in names {
                let empty = Value::Null;
                let (a, b) = (a.get(name).unwrap_or(&empty), b.get(name).unwrap_or(&empty));
                differences(&format!("{path}.{name}"), a, b, found);
            }
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            for (index, (a, b)) in a.iter().zip(b).enumerate() {
                differences(&format!("{path}[{index}]"), a, b, found);
            }
        }
        (a, b) if a != b => found.push(format!("{path}: recorded {a}, got {b}")),
        _ => {}
    }
}

/// The watch's events without the bookmarks whose time is the server's own affair.
fn events(list: &[Value]) -> Vec<Value> {
    list.iter()
        .filter(|event| {
            event["type"] != "BOOKMARK" || event["object"]["metadata"].get("annotations").is_some()
        })
        .map(|event| json!({"type": event["type"], "object": event["object"]}))
        .collect()
}

fn replay(double: &Double, exchange: &Exchange) -> Vec<String> {
    let request = &exchange.value["request"];
    let response = &exchange.value["response"];
    let token = match exchange.value["as"].as_str() {
        Some("admin") => "admin-token",
        Some("system:node:edge2") => "edge2-token",
        _ => "edge1-token",
    };
    let bearer = format!("Bearer {token}");
    let mut headers = vec![("authorization", bearer.as_str())];
    for (name, value) in request["headers"].as_object().into_iter().flatten() {
        headers.push((name.as_str(), value.as_str().unwrap_or_default()));
    }
    let body = match &request["body"] {
        Value::Null => None,
        // A body that was no JSON was recorded as text.
        Value::String(text) => Some(text.clone().into_bytes()),
        other => Some(other.to_string().into_bytes()),
    };
    let mut path = request["path"].as_str().expect("path").to_owned();
    let is_watch = response["body"].is_array();
    if is_watch {
        // The whole story has happened by now, and lies in the history: a second is enough to tell it.
        path = path
            .split('&')
            .filter(|part| !part.starts_with("timeoutSeconds"))
            .collect::<Vec<_>>()
            .join("&");
        path.push_str("&timeoutSeconds=1");
    }
    let method = request["method"].as_str().expect("method");
    let answer = http::request(
        double.address(),
        method,
        &path,
        &headers,
        body.as_deref(),
        PATIENCE,
    )
    .expect("an answer");

    let mut found = Vec::new();
    if response["status"] != answer.status {
        found.push(format!(
            "status: recorded {}, got {}",
            response["status"], answer.status
        ));
    }
    if is_watch && answer.status == 200 {
        let got: Vec<Value> = answer
            .body
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice(line).expect("an event"))
            .collect();
        let recorded = events(response["body"].as_array().expect("events"));
        let got = events(&got);
        if recorded.len() != got.len() {
            let shown = |events: &[Value]| -> Vec<String> {
                let show = |event: &Value| {
                    format!(
                        "{} {} {}",
                        event["type"],
                        event["object"]["metadata"]["name"],
                        revision(&event["object"])
                    )
                };
                events.iter().map(show).collect()
            };
            found.push(format!(
                "events: recorded {:?}, got {:?}",
                shown(&recorded),
                shown(&got)
            ));
        } else {
            differences("events", &json!(recorded), &json!(got), &mut found);
        }
    } else {
        let mut recorded = response["body"].clone();
        let mut got = answer.json();
        if MESSAGE_NOT_COMPARED.contains(&exchange.name.as_str()) {
            for body in [&mut recorded, &mut got] {
                body["message"] = Value::Null;
                body["details"] = Value::Null;
            }
        }
        differences("body", &recorded, &got, &mut found);
    }
    for name in ["warning", "retry-after"] {
        if let Some(recorded) = response["headers"][name].as_str()
            && answer.header(name) != Some(recorded)
        {
            found.push(format!(
                "{name}: recorded {recorded}, got {:?}",
                answer.header(name)
            ));
        }
    }
    found
}

#[test]
fn the_double_answers_as_the_real_server_did() {
    let exchanges = fixtures();
    assert!(exchanges.len() > 120, "{} fixtures", exchanges.len());
    let mut known: BTreeMap<u64, Version> = BTreeMap::new();
    for version in exchanges.iter().flat_map(versions) {
        let earliest = known.entry(version.revision).or_insert_with(|| version.clone());
        earliest.seen = earliest.seen.min(version.seen);
        earliest.deleted |= version.deleted;
    }
    let double = Double::start(
        "127.0.0.1:0",
        "admin-token",
        &[("edge1", "edge1-token"), ("edge2", "edge2-token")],
    )
    .expect("start");

    let mut wrong = Vec::new();
    let mut replayed = 0;
    for exchange in &exchanges {
        if let Some((name, reason)) = NOT_REPLAYED.iter().find(|(name, _)| *name == exchange.name) {
            println!("not replayed: {name}: {reason}");
            continue;
        }
        let response = &exchange.value["response"];
        let method = exchange.value["request"]["method"].as_str().unwrap_or_default();
        let changes = method != "GET" && response["status"].as_u64().is_some_and(|status| status < 300);
        // A write's own version is made by the double; a read is made of what was there.
        let mark = u64::from(method == "DELETE" && deletes_at_once(exchange));
        let own = if changes {
            revision(&response["body"]) - mark
        } else {
            0
        };
        catch_up(&double, &known, finished(exchange), own);
        if !changes {
            forget_absent(&double, exchange);
        }
        if let Some(listed) = response["body"]["metadata"]["resourceVersion"].as_str() {
            let listed: u64 = listed.parse().unwrap_or(0);
            if !changes {
                double.advance(listed);
            } else {
                double.advance(listed - 1 - mark);
            }
        }
        let initial_end = |event: &&Value| {
            event["type"] == "BOOKMARK" && event["object"]["metadata"].get("annotations").is_some()
        };
        if let Some(bookmark) = response["body"]
            .as_array()
            .and_then(|events| events.iter().find(initial_end))
        {
            double.advance(revision(&bookmark["object"]));
        }
        // A server that says that a version is too old has been restarted since, at this version.
        if response.to_string().contains("\"Expired\"") {
            double.advance(894);
            double.compact(894);
        }
        double.set_clock(exchange.at);
        if let (true, Some(uid)) = (
            response["status"] == 201,
            response["body"]["metadata"]["uid"].as_str(),
        ) {
            double.next_uid(uid);
        }
        let mut found = replay(&double, exchange);
        found.retain(|difference| {
            !OF_CONTROLLERS
                .iter()
                .any(|(name, path)| *name == exchange.name && difference.starts_with(path))
        });
        replayed += 1;
        if !found.is_empty() {
            wrong.push(format!("{}:\n    {}", exchange.name, found.join("\n    ")));
        }
    }
    println!(
        "{replayed} exchanges replayed, {} named as not replayed",
        NOT_REPLAYED.len()
    );
    assert!(
        wrong.is_empty(),
        "{} of {replayed} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// A deletion with grace 0 takes two numbers: the mark and the end.
fn deletes_at_once(exchange: &Exchange) -> bool {
    exchange.value["response"]["body"]["metadata"]["deletionGracePeriodSeconds"] == 0
}
