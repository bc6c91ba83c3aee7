use std::path::Path;

use serde_json::json;
use wherry_sync::manifest;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

/// An answer as it was recorded from a real API server.
fn recorded(name: &str) -> Answer {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/kubernetes");
    let text = std::fs::read_to_string(root.join(format!("{name}.json"))).unwrap();
    let exchange: Value = serde_json::from_str(&text).unwrap();
    let response = &exchange["response"];
    Answer {
        status: u16::try_from(response["status"].as_u64().unwrap()).unwrap(),
        retry_after: response["headers"]["retry-after"]
            .as_str()
            .map(|s| Duration::from_secs(s.parse().unwrap())),
        body: response["body"].clone(),
    }
}

fn answer(status: u16, body: Value) -> Answer {
    Answer {
        status,
        retry_after: None,
        body,
    }
}

fn wall() -> Wall {
    Wall {
        seconds: "2026-11-20T20:00:00Z".into(),
        micros: "2026-11-20T20:00:00.000000Z".into(),
    }
}

fn facts() -> NodeFacts {
    NodeFacts {
        name: "edge1".into(),
        cpus: 2,
        memory: 1 << 30,
        memory_available: 1 << 29,
        ..NodeFacts::default()
    }
}

fn report(uid: &str, phase: &str) -> PodReport {
    let text =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: static}\nspec: {containers: [{name: c, image: i:1}]}\n";
    let pod = manifest::parse(text.as_bytes()).unwrap().remove(0);
    let ready = json!({ "type": "Ready", "status": if phase == "Running" { "True" } else { "False" } });
    PodReport {
        uid: uid.into(),
        pod,
        status: json!({ "phase": phase, "conditions": [ready] }),
    }
}

/// A cluster and the time; each step names the request that is expected and what is answered to it.
struct Talk {
    cluster: Cluster,
    reports: Vec<PodReport>,
    now: Moment,
}

impl Talk {
    fn new(reports: &[PodReport]) -> Self {
        Self {
            cluster: Cluster::new("edge1"),
            reports: reports.to_vec(),
            now: SECOND * 1000,
        }
    }

    fn next(&mut self) -> Next {
        self.cluster.next(&self.reports, &facts(), wall(), self.now)
    }

    fn step(&mut self, expected: &str, answer: Answer) -> Option<String> {
        let Next::Send(request) = self.next() else {
            panic!("expected {expected}, got nothing to send")
        };
        assert_eq!(format!("{} {}", request.method, request.path), expected);
        self.cluster
            .answered(&request, Ok(answer), self.now, 0)
            .map(|trouble| trouble.why)
    }

    /// Nothing to send until then.
    fn quiet(&mut self) -> Duration {
        match self.next() {
            Next::Wait(until) => until - self.now,
            Next::Send(request) => panic!("not quiet: {} {}", request.method, request.path),
        }
    }

    fn fail(&mut self) {
        let Next::Send(request) = self.next() else {
            panic!("nothing to send")
        };
        self.cluster.answered(
            &request,
            Err(Error::Link("connection refused".into())),
            self.now,
            0,
        );
    }
}

const NODE: &str = "POST /api/v1/nodes";
const NODE_STATUS_PATH: &str = "PATCH /api/v1/nodes/edge1/status";
const RENEWAL: &str = "PATCH /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/edge1";
const LEASE_POST: &str = "POST /apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
const LIST_PODS: &str = "GET /api/v1/pods?fieldSelector=spec.nodeName%3Dedge1";
const POD_POST: &str = "POST /api/v1/namespaces/default/pods";
const POD: &str = "/api/v1/namespaces/default/pods/static-edge1";

/// A cluster that knows the node, its lease and its one pod.
fn settled() -> Talk {
    let mut talk = Talk::new(&[report("abc123", "Running")]);
    assert_eq!(talk.step(NODE, recorded("01-node/04-create")), None);
    assert_eq!(talk.step(RENEWAL, recorded("02-lease/01-get-404")), None);
    assert_eq!(talk.step(LEASE_POST, recorded("02-lease/02-create")), None);
    assert_eq!(
        talk.step(NODE_STATUS_PATH, recorded("01-node/07-patch-status")),
        None
    );
    assert_eq!(
        talk.step(LIST_PODS, recorded("03-pods-watch/03-list-empty")),
        None
    );
    assert_eq!(talk.step(POD_POST, recorded("09-mirror-pod/01-create")), None);
    assert_eq!(
        talk.step(
            &format!("PATCH {POD}/status"),
            recorded("09-mirror-pod/15-status-running")
        ),
        None
    );
    talk
}

#[test]
fn from_nothing_to_quiet() {
    let mut talk = settled();
    assert_eq!(talk.quiet(), SECOND * 10);
    assert!(talk.cluster.is_content());
    talk.now += SECOND * 10;
    talk.step(RENEWAL, recorded("02-lease/08-renew-merge-patch"));
    assert_eq!(talk.quiet(), SECOND * 10);
}

#[test]
fn a_node_that_is_there_already_is_taken() {
    let mut talk = Talk::new(&[]);
    assert_eq!(talk.step(NODE, recorded("01-node/05-create-again-409")), None);
    assert_eq!(
        talk.step("GET /api/v1/nodes/edge1", recorded("01-node/06-get")),
        None
    );
    assert_eq!(
        talk.step(RENEWAL, recorded("02-lease/08-renew-merge-patch")),
        None
    );
    let mut talk = Talk::new(&[]);
    talk.step(NODE, recorded("01-node/05-create-again-409"));
    assert_eq!(
        talk.step(
            "GET /api/v1/nodes/edge1",
            recorded("01-node/01-get-own-node-before-create-404")
        ),
        None
    );
    talk.step(NODE, recorded("01-node/04-create"));
}

#[test]
fn a_refused_object_waits_and_the_others_go_on() {
    let mut talk = Talk::new(&[]);
    talk.step(NODE, recorded("01-node/04-create"));
    let why = talk
        .step(RENEWAL, recorded("02-lease/16-patch-other-403"))
        .unwrap();
    assert!(why.starts_with("403 leases.coordination.k8s.io"), "{why}");
    let why = talk
        .step(
            NODE_STATUS_PATH,
            recorded("01-node/15-patch-unknown-content-type-415"),
        )
        .unwrap();
    assert!(why.starts_with("415"), "{why}");
    talk.step(LIST_PODS, recorded("03-pods-watch/03-list-empty"));
    assert_eq!(talk.quiet(), SECOND * 2);
    assert!(!talk.cluster.is_content());
    talk.now += SECOND * 2;
    talk.step(RENEWAL, recorded("02-lease/10-patch-stale-rv-409"))
        .unwrap();
    talk.step(NODE_STATUS_PATH, recorded("01-node/07-patch-status"));
    assert_eq!(talk.quiet(), SECOND * 4, "twice as long after the second refusal");
    let mut talk = Talk::new(&[]);
    assert!(
        talk.step(NODE, recorded("01-node/02-create-forbidden-label-403"))
            .is_some()
    );
    assert_eq!(talk.quiet(), SECOND * 2);
}

#[test]
fn everything_waits_while_the_link_or_the_server_is_down() {
    let slow_down = Answer {
        retry_after: Some(SECOND * 7),
        ..answer(429, json!({}))
    };
    for (answer, wait) in [
        (recorded("03-pods-watch/15-list-future-rv-504"), SECOND),
        (slow_down, SECOND * 7),
        (
            Answer {
                retry_after: Some(SECOND * 86_400),
                ..answer(503, json!({}))
            },
            RETRY_AFTER_MAX,
        ),
        (answer(401, json!({ "message": "Unauthorized" })), SECOND),
        (answer(500, Value::Null), SECOND),
    ] {
        let mut talk = Talk::new(&[]);
        assert!(talk.step(NODE, answer).is_some());
        assert_eq!(talk.quiet(), wait);
    }
    let mut talk = Talk::new(&[]);
    for wait in [1, 2, 4, 8, 16, 20, 20] {
        talk.fail();
        assert_eq!(talk.quiet(), SECOND * wait);
        talk.now += SECOND * wait;
    }
}

#[test]
fn after_an_outage_everything_is_sent_again() {
    let mut talk = settled();
    talk.now += SECOND * 10;
    talk.fail();
    talk.now += SECOND * 60;
    talk.reports = vec![report("abc123", "Failed")];
    talk.step(RENEWAL, recorded("02-lease/08-renew-merge-patch"));
    talk.step(NODE_STATUS_PATH, recorded("01-node/07-patch-status"));
    let mut list = recorded("03-pods-watch/03-list-empty");
    list.body["items"] = json!([recorded("09-mirror-pod/15-status-running").body]);
    talk.step(LIST_PODS, list);
    talk.step(
        &format!("PATCH {POD}/status"),
        recorded("09-mirror-pod/15-status-running"),
    );
    talk.quiet();
    let mut brief = settled();
    brief.now += SECOND * 10;
    brief.fail();
    brief.now += SECOND;
    brief.step(RENEWAL, recorded("02-lease/08-renew-merge-patch"));
    brief.quiet();
}

#[test]
fn only_changes_are_sent_and_the_node_every_five_minutes() {
    let mut talk = settled();
    talk.reports = vec![report("abc123", "Failed")];
    talk.step(
        &format!("PATCH {POD}/status"),
        recorded("09-mirror-pod/15-status-running"),
    );
    talk.quiet();
    for _ in 0..30 {
        talk.now += SECOND * 10;
        talk.step(RENEWAL, recorded("02-lease/08-renew-merge-patch"));
    }
    talk.step(NODE_STATUS_PATH, recorded("01-node/21-patch-noop"));
}

#[test]
fn a_mirror_that_was_deleted_or_replaced_is_made_again() {
    for name in [
        "04-deployment-status/12-status-patch-unknown-pod-404",
        "04-deployment-status/09-status-patch-wrong-uid-422",
    ] {
        let mut talk = settled();
        talk.reports = vec![report("abc123", "Failed")];
        assert_eq!(
            talk.step(&format!("PATCH {POD}/status"), recorded(name)),
            None,
            "{name}"
        );
        assert_eq!(
            talk.step(POD_POST, recorded("09-mirror-pod/02-create-again-409")),
            None
        );
        assert_eq!(
            talk.step(&format!("GET {POD}"), recorded("09-mirror-pod/01-create")),
            None
        );
        talk.step(
            &format!("PATCH {POD}/status"),
            recorded("09-mirror-pod/15-status-running"),
        );
        talk.quiet();
    }
}

#[test]
fn a_mirror_that_an_administrator_deletes_is_let_go_and_made_again() {
    let mut talk = settled();
    talk.reports = vec![report("abc123", "Failed")];
    // The patch is taken; its answer shows the mark.
    talk.step(
        &format!("PATCH {POD}/status"),
        recorded("09-mirror-pod/16-admin-delete"),
    );
    let Next::Send(request) = talk.next() else {
        panic!()
    };
    assert_eq!(
        request.body.as_ref().unwrap()["preconditions"]["uid"],
        "dcaa8329-eceb-44e5-b80e-e08b0e88b1a4"
    );
    talk.step(&format!("DELETE {POD}"), recorded("09-mirror-pod/18-node-delete"));
    talk.step(POD_POST, recorded("09-mirror-pod/01-create"));
}

#[test]
fn changed_and_removed_pods_replace_and_remove_their_mirrors() {
    let mut talk = settled();
    talk.reports = vec![report("def456", "Running")];
    talk.step(&format!("DELETE {POD}"), recorded("09-mirror-pod/18-node-delete"));
    let Next::Send(request) = talk.next() else {
        panic!()
    };
    assert_eq!(
        request.body.as_ref().unwrap()["metadata"]["annotations"][objects::MIRROR],
        "def456"
    );
    talk.step(POD_POST, recorded("09-mirror-pod/01-create"));
    talk.step(
        &format!("PATCH {POD}/status"),
        recorded("09-mirror-pod/15-status-running"),
    );
    talk.reports.clear();
    talk.step(
        &format!("DELETE {POD}"),
        recorded("04-deployment-status/12-status-patch-unknown-pod-404"),
    );
    talk.quiet();
}

#[test]
fn a_pod_of_the_mirrors_name_that_is_none_of_ours_is_left_alone() {
    let mut talk = Talk::new(&[report("abc123", "Running")]);
    talk.step(NODE, recorded("01-node/04-create"));
    talk.step(RENEWAL, recorded("02-lease/08-renew-merge-patch"));
    talk.step(NODE_STATUS_PATH, recorded("01-node/07-patch-status"));
    talk.step(LIST_PODS, recorded("03-pods-watch/05-list"));
    talk.step(POD_POST, recorded("09-mirror-pod/02-create-again-409"));
    assert!(
        talk.step(
            &format!("GET {POD}"),
            recorded("03-pods-watch/20-get-unknown-pod-403")
        )
        .is_some()
    );
    talk.quiet();
}

#[test]
fn a_refused_mirror_looks_at_its_node_again_and_waits() {
    let mut talk = settled();
    talk.reports = vec![report("def456", "Running")];
    talk.step(&format!("DELETE {POD}"), recorded("09-mirror-pod/18-node-delete"));
    let why = talk
        .step(POD_POST, recorded("09-mirror-pod/05-wrong-owner-uid-403"))
        .unwrap();
    assert!(why.contains("UID mismatch"), "{why}");
    talk.step("GET /api/v1/nodes/edge1", recorded("01-node/06-get"));
    talk.step(NODE_STATUS_PATH, recorded("01-node/07-patch-status"));
    talk.quiet();
    talk.now += SECOND * 2;
    let why = talk
        .step(POD_POST, recorded("09-mirror-pod/14-missing-namespace-404"))
        .unwrap();
    assert!(why.contains("not found"), "{why}");
    assert_eq!(talk.quiet(), SECOND * 4);
}

#[test]
fn a_status_that_is_never_taken_is_sent_once() {
    let mut talk = settled();
    talk.reports = vec![report("abc123", "Failed")];
    let refused = recorded("04-deployment-status/36-job-back-to-running-422");
    assert!(talk.step(&format!("PATCH {POD}/status"), refused).is_some());
    talk.now += SECOND * 9;
    assert_eq!(talk.quiet(), SECOND);
    talk.reports = vec![report("abc123", "Running")];
    talk.step(
        &format!("PATCH {POD}/status"),
        recorded("09-mirror-pod/15-status-running"),
    );
}

#[test]
fn a_cluster_that_was_made_anew_is_told_everything() {
    let mut talk = settled();
    talk.now += SECOND * 10;
    talk.step(RENEWAL, recorded("02-lease/01-get-404"));
    talk.step(LEASE_POST, recorded("02-lease/02-create"));
    talk.step(
        NODE_STATUS_PATH,
        recorded("01-node/01-get-own-node-before-create-404"),
    );
    talk.step(NODE, recorded("01-node/04-create"));
}

#[test]
fn a_deleted_node_is_made_again() {
    let mut talk = settled();
    talk.now += SECOND * 300;
    talk.step(RENEWAL, recorded("02-lease/08-renew-merge-patch"));
    talk.step(
        NODE_STATUS_PATH,
        recorded("01-node/01-get-own-node-before-create-404"),
    );
    talk.step(NODE, recorded("01-node/04-create"));
    talk.step(RENEWAL, recorded("02-lease/01-get-404"));
}

#[test]
fn names_from_the_server_stay_names() {
    let mut cluster = Cluster::new("edge1");
    let item = |namespace: &str, name: &str| json!({ "metadata": { "namespace": namespace, "name": name, "uid": "u", "annotations": { objects::MIRROR: "h" } } });
    cluster.listed(&json!({ "items": [item("../x", "a"), item("a", "b/../../c"), item("a", ".."), item("a", "b"), {}, 3] }));
    assert_eq!(cluster.mirrors.keys().collect::<Vec<_>>(), ["a/b"]);
}
