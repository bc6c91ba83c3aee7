//! The agent keeps its promises when it is killed, when the board restarts with no network, and when a file is bad.

use serde_json::{Value, json};
use std::io::{Error, Result};
use std::path::PathBuf;
use std::time::Duration;
use wherry_tests::board::{BOX, Board};
use wherry_tests::flaky::{Options, Proxy};
use wherry_tests::kube::Double;
use wherry_tests::stage::wait_for;

const PATIENCE: Duration = Duration::from_secs(30);

fn pod(name: &str, command: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  terminationGracePeriodSeconds: 2\n  containers:\n  \
         - name: main\n    image: {BOX}\n    command: {command}\n"
    )
}

fn file(board: &Board, name: &str) -> PathBuf {
    board.pods.join(format!("{name}.yaml"))
}

/// The containers that run, by `inspect`.
fn running(board: &Board) -> Vec<Value> {
    let ids = board.must(&["ps", "-q", "--no-trunc"]).unwrap_or_default();
    ids.lines().filter_map(|id| board.inspect(id).ok()).collect()
}

/// The one container that runs, with its first process's id.
fn only(board: &Board, what: &str) -> Result<(String, i64)> {
    wait_for(what, PATIENCE, || {
        let all = running(board);
        let [one] = &all[..] else { return None };
        let id = one["Id"].as_str().or_else(|| one["id"].as_str())?.to_owned();
        Some((id, one["observed"]["pid"].as_i64()?))
    })
}

#[test]
fn a_killed_agent_leaves_its_workload_alone_and_the_next_adopts_it() -> Result<()> {
    let board = Board::with_box()?;
    board
        .stage
        .write(&file(&board, "steady"), &pod("steady", "[/tracer, wait]"))?;
    let mut agent = board.agent("agent-1", &[])?;
    let before = only(&board, "the pod runs")?;
    for round in 2..5 {
        agent.kill();
        assert_eq!(only(&board, "the workload outlives the agent")?, before);
        agent = board.agent(&format!("agent-{round}"), &[])?;
        // A second agent on the same state directory is refused, in one line.
        let pods = board.pods.to_string_lossy();
        let (code, line) = board.refused(&["agent", "--watch", &pods])?;
        assert!(code != 0 && line.contains("another agent"), "{line}");
        assert_eq!(only(&board, "the next agent adopts it")?, before);
    }
    // It still is the agent's: without its file it is stopped.
    std::fs::remove_file(file(&board, "steady"))?;
    wait_for("the pod is stopped", PATIENCE, || {
        running(&board).is_empty().then_some(())
    })?;
    Ok(())
}

#[test]
fn a_board_that_restarts_offline_runs_what_it_ran() -> Result<()> {
    let board = Board::with_box()?;
    board
        .stage
        .write(&file(&board, "steady"), &pod("steady", "[/tracer, wait]"))?;
    let agent = board.agent("agent-1", &[])?;
    let before = only(&board, "the pod runs")?;
    // As at a power cut: every process is gone at once, and what is on disk is what there is.
    drop(agent);
    board.stage.kill_all();
    assert!(running(&board).is_empty(), "something survived");
    // The directory of pod files is not there yet either: the last good desired state is the board's own.
    std::fs::rename(&board.pods, board.stage.directory().join("unplugged"))?;
    let _agent = board.agent("agent-2", &[]);
    let after = only(&board, "it runs again, with no network and no pod file")?;
    assert_ne!(before.1, after.1);
    Ok(())
}

#[test]
fn a_bad_pod_file_keeps_the_last_good_one_running() -> Result<()> {
    let board = Board::with_box()?;
    board
        .stage
        .write(&file(&board, "steady"), &pod("steady", "[/tracer, wait]"))?;
    let agent = board.agent("agent", &[])?;
    let before = only(&board, "the pod runs")?;
    for (number, bad) in [
        pod("steady", "[/tracer, wait]").replace("containers:", "containerz:"),
        "}{ not yaml".to_owned(),
        String::new(),
        pod("steady", "[/tracer, wait]").replace("kind: Pod", "kind: Deployment"),
    ]
    .iter()
    .enumerate()
    {
        let told = agent.log().matches("steady.yaml").count();
        board.stage.write(&file(&board, "steady"), bad)?;
        wait_for(&format!("bad file {number} is named"), PATIENCE, || {
            (agent.log().matches("steady.yaml").count() > told).then_some(())
        })?;
        assert_eq!(
            only(&board, "the last good one runs on")?,
            before,
            "bad file {number}"
        );
    }
    Ok(())
}

#[test]
fn a_workload_that_ends_is_started_again_and_the_cluster_hears_of_it() -> Result<()> {
    let board = Board::with_box()?;
    let cluster = Double::start("127.0.0.1:0", "admin-token", &[("edge1", "edge1-token")])?;
    let link = Proxy::start(Options::good(cluster.address()))?;
    let kubeconfig = board.stage.directory().join("kubeconfig");
    board
        .stage
        .write(&kubeconfig, &cluster.kubeconfig(link.address(), "edge1-token"))?;
    board.stage.write(
        &file(&board, "moody"),
        &pod("moody", "[sh, -c, \"sleep 1; exit 3\"]"),
    )?;
    let kubeconfig = kubeconfig.to_string_lossy();
    let _agent = board.agent("agent", &["--kubeconfig", &kubeconfig, "--node-name", "edge1"])?;
    let status = |wanted: &dyn Fn(&Value) -> bool| {
        let pods = cluster.list("pods");
        let status = pods
            .first()
            .map(|pod| pod["status"]["containerStatuses"][0].clone())?;
        wanted(&status).then_some(status)
    };
    let first = wait_for("it ended with 3, and the cluster knows", PATIENCE, || {
        status(&|status| {
            [&status["lastState"], &status["state"]]
                .iter()
                .any(|state| state["terminated"]["exitCode"] == 3)
        })
    })?;
    println!("{first}");
    let again = wait_for("it was started again", Duration::from_secs(45), || {
        status(&|status| status["restartCount"].as_i64().is_some_and(|count| count >= 1))
    })?;
    println!("{again}");
    wait_for("it waits in a crash loop", Duration::from_secs(45), || {
        status(&|status| status["state"]["waiting"]["reason"] == "CrashLoopBackOff")
    })?;

    // The link dies and comes back: the latest state arrives, and nothing else was needed.
    link.set_link(false);
    std::fs::remove_file(file(&board, "moody"))?;
    wait_for("the pod is gone from the board", PATIENCE, || {
        board.must(&["ps", "-aq"]).ok().filter(String::is_empty)
    })?;
    link.set_link(true);
    wait_for(
        "the pod is gone from the cluster",
        Duration::from_secs(60),
        || cluster.list("pods").is_empty().then_some(()),
    )?;
    let warnings: Vec<String> = cluster
        .served()
        .into_iter()
        .flat_map(|request| request.warnings)
        .collect();
    assert!(warnings.is_empty(), "{warnings:?}");
    Ok(())
}

#[test]
fn what_the_cluster_has_already_is_taken_over() -> Result<()> {
    let board = Board::with_box()?;
    let cluster = Double::start("127.0.0.1:0", "admin-token", &[("edge1", "edge1-token")])?;
    // Left by an earlier life of this board: a node, a lease long expired, and a mirror pod of another node object.
    let old = "2020-01-01T00:00:00Z";
    cluster.put(
        "nodes",
        json!({"kind": "Node", "apiVersion": "v1", "metadata": {"name": "edge1", "uid": "old-node",
            "creationTimestamp": old}, "spec": {}, "status": {"conditions": [{"type": "Ready", "status": "Unknown"}]}}),
    );
    cluster.put(
        "leases",
        json!({"kind": "Lease", "apiVersion": "coordination.k8s.io/v1", "metadata": {"name": "edge1",
            "namespace": "kube-node-lease", "uid": "old-lease", "creationTimestamp": old},
            "spec": {"holderIdentity": "edge1", "leaseDurationSeconds": 40, "renewTime": "2020-01-01T00:00:00.000000Z"}}),
    );
    cluster.put(
        "pods",
        json!({"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "steady-edge1", "namespace": "default",
            "uid": "old-pod", "creationTimestamp": old, "generation": 1,
            "annotations": {"kubernetes.io/config.mirror": "0", "kubernetes.io/config.hash": "0"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": "edge1", "uid": "older-node",
                "controller": true}]},
            "spec": {"nodeName": "edge1", "containers": [{"name": "main", "image": "localhost/other:1"}]},
            "status": {"phase": "Running"}}),
    );
    let kubeconfig = board.stage.directory().join("kubeconfig");
    board
        .stage
        .write(&kubeconfig, &cluster.kubeconfig(cluster.address(), "edge1-token"))?;
    board
        .stage
        .write(&file(&board, "steady"), &pod("steady", "[/tracer, wait]"))?;
    let kubeconfig = kubeconfig.to_string_lossy();
    let agent = board.agent("agent", &["--kubeconfig", &kubeconfig, "--node-name", "edge1"])?;

    let arrived = wait_for("node, lease and pod are this life's", PATIENCE, || {
        let node = cluster.get("nodes", "", "edge1")?;
        let ready = node["status"]["conditions"]
            .as_array()?
            .iter()
            .any(|condition| condition["type"] == "Ready" && condition["status"] == "True");
        let lease = cluster.get("leases", "kube-node-lease", "edge1")?;
        let renewed = lease["spec"]["renewTime"].as_str()? > "2021";
        let pod = cluster.get("pods", "default", "steady-edge1")?;
        let running = pod["metadata"]["uid"] != "old-pod" && pod["status"]["phase"] == "Running";
        (ready && renewed && running).then_some(pod)
    });
    let shown: Vec<_> = cluster
        .served()
        .iter()
        .map(|one| format!("{} {} {}", one.status, one.method, one.path))
        .collect();
    let arrived =
        arrived.map_err(|error| Error::other(format!("{error}\n{}\n{}", shown.join("\n"), agent.log())))?;
    assert_eq!(
        arrived["metadata"]["ownerReferences"][0]["uid"], "old-node",
        "{arrived}"
    );
    Ok(())
}

#[test]
fn a_cluster_that_knows_nobody_costs_a_request_now_and_then_and_no_workload() -> Result<()> {
    let board = Board::with_box()?;
    let cluster = Double::start("127.0.0.1:0", "admin-token", &[("edge1", "edge1-token")])?;
    let kubeconfig = board.stage.directory().join("kubeconfig");
    board
        .stage
        .write(&kubeconfig, &cluster.kubeconfig(cluster.address(), "wrong-token"))?;
    board
        .stage
        .write(&file(&board, "steady"), &pod("steady", "[/tracer, wait]"))?;
    let path = kubeconfig.to_string_lossy().into_owned();
    let agent = board.agent("agent", &["--kubeconfig", &path, "--node-name", "edge1"])?;
    let before = only(&board, "the pod runs")?;
    wait_for("the cluster has refused", PATIENCE, || {
        cluster
            .served()
            .iter()
            .any(|request| request.status == 401)
            .then_some(())
    })?;
    std::thread::sleep(Duration::from_secs(5));
    let asked = cluster.served().len();
    assert!(asked <= 20, "{asked} requests in a few seconds");
    assert_eq!(only(&board, "the pod still runs")?, before);
    let told = agent
        .log()
        .lines()
        .filter(|line| line.contains("WARN") || line.contains("ERROR"))
        .count();
    assert!(
        (1..=3).contains(&told),
        "the refusal was told {told} times:\n{}",
        agent.log()
    );
    Ok(())
}
