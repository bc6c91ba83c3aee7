use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::plan::{Detail, Trouble};

const SECOND: Duration = Duration::from_secs(1);
const T1: &str = "2026-11-20T20:00:01Z";
const T2: &str = "2026-11-20T20:00:02Z";

fn desired(policy: &str) -> Desired {
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: p}}\nspec: {{restartPolicy: {policy}, containers: [{{name: c, \
         image: 'r:5000/i:1'}}]}}\n"
    );
    let pod = crate::manifest::parse(text.as_bytes()).unwrap().remove(0);
    Desired {
        uid: "u".into(),
        pod,
        digest: Some("sha256:d".into()),
    }
}

fn container(attempt: u32, state: State) -> Container {
    let ended = matches!(state, State::Exited { .. });
    Container {
        id: format!("c{attempt}"),
        key: "default/p".into(),
        uid: "u".into(),
        attempt,
        crashes: attempt,
        state,
        kill_at: None,
        image: "sha256:d".into(),
        detail: Detail {
            started_at: (state != State::Created).then(|| T1.to_owned()),
            finished_at: ended.then(|| T2.to_owned()),
            ..Detail::default()
        },
    }
}

fn exited(code: i64) -> State {
    State::Exited {
        at: SECOND * 100,
        ran: SECOND,
        code,
    }
}

fn board(containers: &[Container]) -> Observed {
    Observed {
        containers: containers.to_vec(),
        images: BTreeMap::from([("sha256:d".to_owned(), "sha256:d".to_owned())]),
        ..Observed::default()
    }
}

#[test]
fn phases_and_states() {
    for (name, policy, containers, phase, ready, state) in [
        (
            "nothing yet",
            "Always",
            vec![],
            "Pending",
            "False",
            "waiting ContainerCreating",
        ),
        (
            "made",
            "Always",
            vec![container(0, State::Created)],
            "Pending",
            "False",
            "waiting ContainerCreating",
        ),
        (
            "runs",
            "Always",
            vec![container(0, State::Running)],
            "Running",
            "True",
            "running ",
        ),
        (
            "first exit",
            "Always",
            vec![container(0, exited(1))],
            "Running",
            "False",
            "terminated Error",
        ),
        (
            "crash loop",
            "Always",
            vec![container(2, exited(1))],
            "Running",
            "False",
            "waiting CrashLoopBackOff",
        ),
        (
            "done",
            "Never",
            vec![container(0, exited(0))],
            "Succeeded",
            "False",
            "terminated Completed",
        ),
        (
            "failed",
            "Never",
            vec![container(0, exited(2))],
            "Failed",
            "False",
            "terminated Error",
        ),
        (
            "done on the second try",
            "OnFailure",
            vec![container(1, exited(0))],
            "Succeeded",
            "False",
            "terminated Completed",
        ),
    ] {
        let status = pod(
            &desired(policy),
            &board(&containers),
            SECOND * 101,
            T2,
            Some("10.0.0.11"),
            None,
        );
        assert_eq!(status["phase"], phase, "{name}");
        let found = status["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["type"] == "Ready")
            .unwrap();
        assert_eq!(found["status"], ready, "{name}");
        let (kind, value) = status["containerStatuses"][0]["state"]
            .as_object()
            .unwrap()
            .iter()
            .next()
            .unwrap();
        let reason = value["reason"].as_str().unwrap_or_default();
        assert_eq!(format!("{kind} {reason}"), state, "{name}");
    }
}

#[test]
fn a_running_pod_has_kubernetes_shape() {
    let containers = [container(1, State::Running), container(0, exited(3))];
    let status = pod(
        &desired("Always"),
        &board(&containers),
        SECOND * 101,
        T2,
        Some("10.0.0.11"),
        None,
    );
    assert_eq!(
        status["containerStatuses"],
        json!([{
            "name": "c",
            "image": "r:5000/i:1",
            "imageID": "r:5000/i@sha256:d",
            "restartCount": 1,
            "ready": true,
            "started": true,
            "state": { "running": { "startedAt": T1 } },
            "lastState": { "terminated": {
                "exitCode": 3, "reason": "Error", "containerID": "wherry://c0", "startedAt": T1, "finishedAt": T2,
            } },
            "containerID": "wherry://c1",
        }])
    );
    assert_eq!(status["hostIPs"], json!([{ "ip": "10.0.0.11" }]));
    assert_eq!(status.get("podIP"), None);
    let kinds: Vec<&str> = status["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|c| c["type"].as_str())
        .collect();
    assert_eq!(kinds, POD_CONDITIONS);
}

#[test]
fn a_final_phase_never_goes_back() {
    let done = pod(
        &desired("Never"),
        &board(&[container(0, exited(0))]),
        SECOND * 101,
        T1,
        None,
        None,
    );
    assert!(is_final(&done));
    for containers in [
        vec![],
        vec![container(1, State::Running)],
        vec![container(0, exited(1))],
    ] {
        let status = pod(
            &desired("Never"),
            &board(&containers),
            SECOND * 200,
            T2,
            None,
            Some(&done),
        );
        assert_eq!(status["phase"], "Succeeded", "{containers:?}");
    }
}

#[test]
fn transition_times_change_with_the_condition_alone() {
    let time = |status: &Value, kind: &str| {
        let conditions = status["conditions"].as_array().unwrap();
        conditions.iter().find(|c| c["type"] == kind).unwrap()["lastTransitionTime"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let first = pod(&desired("Always"), &board(&[]), SECOND, T1, None, None);
    let second = pod(
        &desired("Always"),
        &board(&[container(0, State::Running)]),
        SECOND * 2,
        T2,
        None,
        Some(&first),
    );
    assert_eq!(
        (
            time(&second, "PodScheduled").as_str(),
            time(&second, "Ready").as_str()
        ),
        (T1, T2)
    );
    assert_eq!(second["startTime"], T1);
    let third = pod(
        &desired("Always"),
        &board(&[container(0, State::Running)]),
        SECOND * 3,
        "T3",
        None,
        Some(&second),
    );
    assert_eq!(third, second, "nothing changed, so nothing differs");
}

#[test]
fn waiting_says_why() {
    let trouble = |step, retry_at| Trouble {
        step,
        failures: 1,
        retry_at,
        message: "no route".into(),
    };
    for (step, retry_at, reason, message) in [
        (
            Step::Fetch,
            Some(SECOND * 60),
            "ImagePullBackOff",
            "Back-off pulling image \"r:5000/i:1\": no route",
        ),
        (Step::Fetch, Some(SECOND), "ErrImagePull", "no route"),
        (
            Step::Create,
            Some(SECOND * 60),
            "CreateContainerError",
            "no route",
        ),
        (Step::Name, None, "InvalidImageName", "no route"),
    ] {
        let mut observed = board(&[]);
        observed.troubles.insert("u".into(), trouble(step, retry_at));
        let status = pod(&desired("Always"), &observed, SECOND * 10, T1, None, None);
        let state = &status["containerStatuses"][0]["state"]["waiting"];
        assert_eq!(
            (&state["reason"], &state["message"]),
            (&json!(reason), &json!(message))
        );
    }
}

#[test]
fn the_node_reports_pressure_and_heartbeats() {
    let facts = NodeFacts {
        name: "edge1".into(),
        cpus: 2,
        memory: 512 << 20,
        memory_available: 200 << 20,
        disk: 1000 << 20,
        disk_available: 500 << 20,
        pods: 32,
        version: "0.1.0".into(),
        ..NodeFacts::default()
    };
    let first = node(&facts, T1, None);
    let second = node(&facts, T2, Some(&first));
    assert_ne!(first, second);
    assert_eq!(without_heartbeat(&first), without_heartbeat(&second));
    assert_eq!(first["capacity"]["memory"], "524288Ki");
    assert_eq!(first["allocatable"]["memory"], "421888Ki");
    let full = node(
        &NodeFacts {
            disk_available: 99 << 20,
            memory_available: 1,
            ..facts
        },
        T2,
        Some(&first),
    );
    let status = |kind: &str| {
        let found = full["conditions"]
            .as_array()
            .unwrap()
            .iter()
            .find(|c| c["type"] == kind)
            .unwrap()
            .clone();
        format!(
            "{} {}",
            found["status"].as_str().unwrap(),
            found["lastTransitionTime"].as_str().unwrap()
        )
    };
    assert_eq!(status("DiskPressure"), format!("True {T2}"));
    assert_eq!(status("MemoryPressure"), format!("True {T2}"));
    assert_eq!(status("Ready"), format!("True {T1}"));
}

#[test]
fn an_update_that_waits_is_told() {
    let serving = json!({ "phase": "Running" });
    let successor = |state: Value| json!({ "containerStatuses": [{ "state": { "waiting": state } }] });
    assert_eq!(
        with_update(&serving, &successor(json!({ "reason": "ContainerCreating" }))),
        serving
    );
    let told = with_update(
        &serving,
        &successor(json!({ "reason": "ImagePullBackOff", "message": "not found" })),
    );
    assert_eq!(
        told,
        json!({
            "phase": "Running",
            "reason": "UpdateWaiting",
            "message": "the update waits: ImagePullBackOff: not found",
        })
    );
}

#[test]
fn image_ids() {
    for (image, expected) in [
        ("iris:1", "iris@d"),
        ("r:5000/iris", "r:5000/iris@d"),
        ("r:5000/a/iris:1", "r:5000/a/iris@d"),
        ("iris@sha256:00", "iris@d"),
        ("r:5000/iris:1@sha256:00", "r:5000/iris@d"),
    ] {
        assert_eq!(image_id(image, "d"), expected, "{image}");
    }
}
