//! The story, step by step.

use crate::ledger::{Ledger, bytes};
use serde_json::Value;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use wherry_tests::flaky::{Options, Proxy};
use wherry_tests::kube::Double;
use wherry_tests::stage::{Process, Stage, free_port, wait_for};
use wherry_tests::{http, memory};

/// The link cuts every connection after this many bytes.
const CUT: u64 = 256 * 1024;
/// How often an answer is asked for during the switch.
const POLL: Duration = Duration::from_millis(20);
/// What a flower of the second class measures.
const QUESTION: &str = "/predict?sepal_length=6.0&sepal_width=2.9&petal_length=4.5&petal_width=1.5";
const TOKEN: &str = "demo-write-token";
const PATIENCE: Duration = Duration::from_secs(60);

/// The parts that run for the whole of the demo. The stage is the last to be dropped: its end ends all that is left.
struct Scene {
    link: Proxy,
    cluster_link: Proxy,
    cluster: Double,
    registry: SocketAddr,
    host_port: u16,
    board: PathBuf,
    pods: PathBuf,
    kubeconfig: PathBuf,
    serve: Process,
    stage: Stage,
}

/// Plays the demo and returns how many claims failed.
pub(crate) fn sail() -> Result<usize> {
    let mut ledger = Ledger::new();
    let stage = Stage::new()?;
    let layout = copy_layout(&stage)?;
    ledger.say(&format!(
        "a publisher, a registry and a board, as user id {} in {}",
        stage.uid(),
        stage.directory().display()
    ));
    let scene = set(stage)?;
    let images = Images::read(&layout)?;

    publish(&scene, &layout, "v1")?;
    ledger.say(&format!(
        "published iris:v1 ({}) to `wherry serve` at {}; the board sees it through a link that cuts each connection \
         after {}",
        bytes(images.full("v1")),
        scene.registry,
        bytes(CUT)
    ));
    let agent = start_agent(&scene, "agent")?;
    wait_for("the cluster hears of the node", PATIENCE, || {
        ready_node(&scene.cluster)
    })?;
    ledger.say("`wherry agent` has told the cluster of its node");

    scene.link.reset_counters();
    let begin = Instant::now();
    write_pod(&scene, "v1")?;
    let answer = wait_for("version 1 answers", PATIENCE, || predict(scene.host_port))
        .map_err(|error| explain(&error, &agent))?;
    let counters = scene.link.counters();
    ledger.claim(
        &format!(
            "pod file names v1: pulled, running without root, answering after {:.1} s: {}",
            begin.elapsed().as_secs_f64(),
            answer.to_string().trim()
        ),
        answer["class"] == "versicolor" && answer["version"] == 1,
    );
    let needed = images.full("v1");
    let ratio = counters.down as f64 / needed as f64;
    ledger.claim(
        &format!(
            "{} over the wire for {} needed, with headers and manifests, through {} cuts: ratio {ratio:.4}",
            bytes(counters.down),
            bytes(needed),
            counters.cuts
        ),
        ratio <= 1.01 && needed >= 8_000_000 && counters.cuts >= needed / CUT - 1,
    );

    let delta = update(&mut ledger, &scene, &images, &layout, &agent)?;
    let agent = die_and_return(&mut ledger, &scene, agent)?;
    reported(&mut ledger, &scene)?;

    ledger.row("a full pull of v2 to an empty board", bytes(images.full("v2")));
    ledger.row("the layer of v2 that changed, in full", bytes(images.changed()));
    ledger.row("the delta v1 -> v2 (all of its artifact)", bytes(delta.artifact));
    ledger.row(
        "the delta beside the full layer",
        format!("{:.1} %", 100.0 * delta.share),
    );
    ledger.row("wire / needed, full pull of v1", format!("{ratio:.4}"));
    ledger.row("wire for the whole update to v2", bytes(delta.wire));
    ledger.row(
        "without an answer at the switch",
        format!("{:.3} s", delta.silence.as_secs_f64()),
    );
    memories(&mut ledger, &scene, &agent);
    Ok(ledger.close())
}

/// The layout is read by the ordinary user, who may not see the checkout.
fn copy_layout(stage: &Stage) -> Result<PathBuf> {
    let from = std::env::var_os("WHERRY_SAMPLE_DIR").map(PathBuf::from);
    let from =
        from.ok_or_else(|| Error::other("WHERRY_SAMPLE_DIR is not set: run this through `make demo`"))?;
    let to = stage.directory().join("layout");
    let blobs = "blobs/sha256";
    std::fs::create_dir_all(to.join(blobs))?;
    for name in ["oci-layout", "index.json"] {
        std::fs::copy(from.join("iris").join(name), to.join(name))?;
    }
    for blob in std::fs::read_dir(from.join("iris").join(blobs))? {
        let blob = blob?;
        std::fs::copy(blob.path(), to.join(blobs).join(blob.file_name()))?;
    }
    Ok(to)
}

fn set(stage: Stage) -> Result<Scene> {
    let registry: SocketAddr = ([127, 0, 0, 1], free_port()?).into();
    let store = stage.private_directory("registry")?;
    let token = stage.directory().join("token");
    stage.write(&token, TOKEN)?;
    let token = token.to_string_lossy().into_owned();
    let serve = stage.wherry(
        &store,
        &["serve", "--listen", &registry.to_string(), "--token-file", &token],
    );
    let mut serve = stage.start("serve", serve)?;
    wait_for("wherry serve answers", Duration::from_secs(10), || {
        if let Some(status) = serve.ended() {
            return Some(Err(Error::other(format!(
                "wherry serve: {status}: {}",
                serve.log().trim_end()
            ))));
        }
        let answer = http::get(registry, "/v2/", None, Duration::from_secs(1)).ok()?;
        matches!(answer.status, 200 | 401).then_some(Ok(()))
    })??;

    let mut bad = Options::good(registry);
    bad.cut = Some(CUT..=CUT);
    let link = Proxy::start(bad)?;
    let cluster = Double::start("127.0.0.1:0", "admin-token", &[("edge1", "edge1-token")])?;
    let cluster_link = Proxy::start(Options::good(cluster.address()))?;
    let kubeconfig = stage.directory().join("kubeconfig");
    stage.write(
        &kubeconfig,
        &cluster.kubeconfig(cluster_link.address(), "edge1-token"),
    )?;
    stage.private_directory("publisher")?;
    let board = stage.private_directory("board")?;
    let pods = stage.private_directory("pods")?;
    Ok(Scene {
        link,
        cluster_link,
        cluster,
        registry,
        host_port: free_port()?,
        board,
        pods,
        kubeconfig,
        serve,
        stage,
    })
}

/// The sizes of what the layout holds.
struct Images {
    sizes: Vec<(String, Vec<(String, u64)>)>,
}

impl Images {
    fn read(layout: &Path) -> Result<Self> {
        let read = |path: PathBuf| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
        let mut sizes = Vec::new();
        for entry in read(layout.join("index.json"))?["manifests"]
            .as_array()
            .into_iter()
            .flatten()
        {
            let tag = entry["annotations"]["org.opencontainers.image.ref.name"]
                .as_str()
                .unwrap_or_default();
            let digest = |descriptor: &Value| descriptor["digest"].as_str().unwrap_or_default().to_owned();
            let size = |descriptor: &Value| descriptor["size"].as_u64().unwrap_or(0);
            let hex = digest(entry).trim_start_matches("sha256:").to_owned();
            let manifest = read(layout.join("blobs/sha256").join(hex))?;
            let mut blobs = vec![
                (digest(entry), size(entry)),
                (digest(&manifest["config"]), size(&manifest["config"])),
            ];
            blobs.extend(
                manifest["layers"]
                    .as_array()
                    .into_iter()
                    .flatten()
                    .map(|layer| (digest(layer), size(layer))),
            );
            sizes.push((tag.to_owned(), blobs));
        }
        Ok(Self { sizes })
    }

    fn of(&self, tag: &str) -> &[(String, u64)] {
        self.sizes
            .iter()
            .find(|(known, _)| known == tag)
            .map(|(_, blobs)| blobs.as_slice())
            .unwrap_or_default()
    }

    /// Manifest, config and layers.
    fn full(&self, tag: &str) -> u64 {
        self.of(tag).iter().map(|(_, size)| size).sum()
    }

    /// The layers of v2 that v1 has not.
    fn changed(&self) -> u64 {
        let old = self.of("v1");
        let layers = self.of("v2").iter().skip(2);
        layers
            .filter(|(digest, _)| !old.iter().any(|(known, _)| known == digest))
            .map(|(_, size)| size)
            .sum()
    }
}

fn publish(scene: &Scene, layout: &Path, version: &str) -> Result<()> {
    let publisher = scene.stage.directory().join("publisher");
    let name = format!("{}/iris:{version}", scene.registry);
    let source = format!("oci:{}:{version}", layout.display());
    let pulled = scene
        .stage
        .must(&publisher, &["pull", "-q", "--keep-blobs", &source])?;
    let local = pulled.trim();
    scene.stage.must(&publisher, &["tag", local, &name])?;
    scene
        .stage
        .must(&publisher, &["push", "--creds", &format!("demo:{TOKEN}"), &name])?;
    Ok(())
}

fn start_agent(scene: &Scene, log: &str) -> Result<Process> {
    let host = scene.link.address().to_string();
    let (pods, kubeconfig) = (scene.pods.to_string_lossy(), scene.kubeconfig.to_string_lossy());
    let args = [
        "agent",
        "--watch",
        &pods,
        "--kubeconfig",
        &kubeconfig,
        "--node-name",
        "edge1",
        "--insecure-registry",
        &host,
    ];
    scene.stage.start(log, scene.stage.wherry(&scene.board, &args))
}

fn write_pod(scene: &Scene, version: &str) -> Result<()> {
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: iris\nspec:\n  terminationGracePeriodSeconds: 5\n  \
         containers:\n  - name: iris\n    image: {}/iris:{version}\n    ports:\n    - containerPort: 8080\n      \
         hostPort: {}\n",
        scene.link.address(),
        scene.host_port
    );
    scene.stage.write(&scene.pods.join("iris.yaml"), &pod)
}

fn predict(port: u16) -> Option<Value> {
    let answer = http::get(
        ([127, 0, 0, 1], port).into(),
        QUESTION,
        None,
        Duration::from_millis(500),
    )
    .ok()?;
    (answer.status == 200)
        .then(|| answer.json())
        .filter(|answer| answer["class"].is_string())
}

fn ready_node(cluster: &Double) -> Option<()> {
    let node = cluster.get("nodes", "", "edge1")?;
    let conditions = node["status"]["conditions"].as_array()?;
    conditions
        .iter()
        .any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
        .then_some(())
}

/// What went wrong, with the end of the agent's log.
fn explain(error: &Error, agent: &Process) -> Error {
    if wherry_tests::kernel::interrupted() {
        return Error::other("interrupted");
    }
    let log = agent.log();
    let lines: Vec<&str> = log.lines().collect();
    Error::other(format!(
        "{error}\nthe agent's last lines:\n{}",
        lines[lines.len().saturating_sub(12)..].join("\n")
    ))
}

/// What the update cost.
struct Delta {
    artifact: u64,
    share: f64,
    wire: u64,
    silence: Duration,
}

fn update(
    ledger: &mut Ledger,
    scene: &Scene,
    images: &Images,
    layout: &Path,
    agent: &Process,
) -> Result<Delta> {
    publish(scene, layout, "v2")?;
    let publisher = scene.stage.directory().join("publisher");
    let name = |version: &str| format!("{}/iris:{version}", scene.registry);
    let creds = format!("demo:{TOKEN}");
    scene.stage.must(
        &publisher,
        &["delta", "push", "--creds", &creds, &name("v1"), &name("v2")],
    )?;
    let artifact = artifact_size(scene.registry, &images.of("v2")[0].0)?;
    let share = artifact as f64 / images.changed() as f64;
    ledger.claim(
        &format!(
            "published iris:v2 and the delta v1 -> v2: {}, {:.1} % of the changed layer's {}",
            bytes(artifact),
            100.0 * share,
            bytes(images.changed())
        ),
        share <= 0.30,
    );

    scene.link.reset_counters();
    let stop = Arc::new(AtomicBool::new(false));
    let watcher = {
        let (stop, port) = (Arc::clone(&stop), scene.host_port);
        std::thread::spawn(move || watch_switch(port, &stop))
    };
    write_pod(scene, "v2")?;
    let answer = wait_for("version 2 answers", PATIENCE, || {
        predict(scene.host_port).filter(|answer| answer["version"] == 2)
    });
    // A few more answers show that the old version does not come back.
    std::thread::sleep(10 * POLL);
    stop.store(true, Ordering::SeqCst);
    let switch = watcher
        .join()
        .map_err(|_| Error::other("the watcher of the switch failed"))?;
    let answer = answer.map_err(|error| explain(&error, agent))?;
    let wire = scene.link.counters().down;
    ledger.claim(
        &format!(
            "pod file names v2: the delta came ({}), and it answers: {}",
            bytes(wire),
            answer.to_string().trim()
        ),
        answer["class"] == "versicolor" && answer["confidence"].is_number(),
    );
    ledger.claim(
        &format!(
            "less came over the wire than the changed layer: {} of {}",
            bytes(wire),
            bytes(images.changed())
        ),
        wire < images.changed(),
    );
    let silence =
        switch.ok_or_else(|| Error::other("the switch was not seen: no answer of version 1 before it"))?;
    ledger.say(&format!(
        "the longest time without an answer at the switch: {:.3} s",
        silence.as_secs_f64()
    ));
    Ok(Delta {
        artifact,
        share,
        wire,
        silence,
    })
}

/// The manifest and blobs of the delta artifact that refers to the image, as the registry lists it.
fn artifact_size(registry: SocketAddr, image: &str) -> Result<u64> {
    let get = |target: String| -> Result<http::Response> {
        http::get(registry, &target, None, Duration::from_secs(5))
    };
    let size = |descriptor: &Value| descriptor["size"].as_u64().unwrap_or(0);
    let index = get(format!("/v2/iris/referrers/{image}"))?.json();
    let kind = "application/vnd.io.github.containers.oci-delta.v1";
    let mut found = index["manifests"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|entry| entry["artifactType"] == kind);
    let entry = found
        .next()
        .ok_or_else(|| Error::other(format!("no delta refers to {image}: {index}")))?;
    let manifest = get(format!(
        "/v2/iris/manifests/{}",
        entry["digest"].as_str().unwrap_or_default()
    ))?
    .json();
    let layers = manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .map(size)
        .sum::<u64>();
    Ok(size(entry) + size(&manifest["config"]) + layers)
}

/// The longest time between two answers while the version changed; none when the change was not seen.
fn watch_switch(port: u16, stop: &AtomicBool) -> Option<Duration> {
    let mut last: Option<(Instant, Value)> = None;
    let mut longest = Duration::ZERO;
    let mut seen = false;
    while !stop.load(Ordering::SeqCst) {
        let round = Instant::now();
        if let Some(answer) = predict(port) {
            let now = Instant::now();
            if let Some((before, version)) = &last {
                longest = longest.max(now - *before);
                seen |= *version != answer["version"];
            }
            last = Some((now, answer["version"].clone()));
        }
        std::thread::sleep(POLL.saturating_sub(round.elapsed()));
    }
    seen.then_some(longest)
}

fn first_process(scene: &Scene) -> Result<(String, i64)> {
    let id = scene.stage.must(&scene.board, &["ps", "-q", "--no-trunc"])?;
    let id = id.lines().next().unwrap_or_default().to_owned();
    let inspected: Value = serde_json::from_str(&scene.stage.must(&scene.board, &["inspect", &id])?)?;
    Ok((id, inspected[0]["observed"]["pid"].as_i64().unwrap_or(0)))
}

fn die_and_return(ledger: &mut Ledger, scene: &Scene, mut agent: Process) -> Result<Process> {
    let before = first_process(scene)?;
    scene.link.set_link(false);
    scene.cluster_link.set_link(false);
    agent.kill();
    let alone = (0..10)
        .filter(|_| predict(scene.host_port).is_some_and(|answer| answer["version"] == 2))
        .count();
    ledger.claim(
        &format!("the links are down, the agent is dead (SIGKILL): {alone} of 10 questions answered"),
        alone == 10,
    );
    let mut agent = start_agent(scene, "agent-2")?;
    wait_for("the new agent is up", Duration::from_secs(15), || {
        agent.log().contains("agent started").then_some(())
    })?;
    let mut answered = 0;
    for _ in 0..50 {
        answered += u32::from(predict(scene.host_port).is_some_and(|answer| answer["version"] == 2));
        std::thread::sleep(POLL);
    }
    let after = first_process(scene)?;
    ledger.claim(
        &format!(
            "a new agent with the links still down: {answered} of 50 answered, by the same process as before"
        ),
        answered == 50 && before == after && before.1 > 0 && agent.ended().is_none(),
    );
    Ok(agent)
}

fn reported(ledger: &mut Ledger, scene: &Scene) -> Result<()> {
    let renewed = |cluster: &Double| {
        cluster
            .get("leases", "kube-node-lease", "edge1")
            .map(|lease| lease["spec"]["renewTime"].clone())
    };
    let before = renewed(&scene.cluster);
    scene.link.set_link(true);
    scene.cluster_link.set_link(true);
    wait_for("the lease is renewed", Duration::from_secs(40), || {
        (renewed(&scene.cluster).is_some() && renewed(&scene.cluster) != before).then_some(())
    })?;
    let running = |pod: &Value| {
        let ready = pod["status"]["conditions"].as_array().into_iter().flatten();
        let ready = ready
            .filter(|condition| condition["type"] == "Ready" && condition["status"] == "True")
            .count();
        let image = pod["status"]["containerStatuses"][0]["image"]
            .as_str()
            .unwrap_or_default();
        pod["status"]["phase"] == "Running" && ready == 1 && image.ends_with("iris:v2")
    };
    let pod = wait_for("the pod's status has arrived", Duration::from_secs(30), || {
        scene.cluster.list("pods").into_iter().find(running)
    })?;
    let served = scene.cluster.served();
    let writes = served.iter().filter(|request| request.method != "GET").count();
    let warned = served
        .iter()
        .flat_map(|request| request.warnings.clone())
        .collect::<Vec<_>>();
    ledger.claim(
        &format!(
            "links up: the cluster has node edge1 ready, its lease renewed, and pod {} running v2 ({writes} writes)",
            pod["metadata"]["name"].as_str().unwrap_or_default()
        ),
        ready_node(&scene.cluster).is_some() && warned.is_empty(),
    );
    for warning in warned {
        ledger.say(&format!("the API server warned: {warning}"));
    }
    Ok(())
}

/// The memory of every Wherry process, and the two claims about it.
fn memories(ledger: &mut Ledger, scene: &Scene, agent: &Process) {
    let kilobytes = |memory: &memory::Memory| format!("{} / {} kB", memory.resident, memory.private);
    let program = scene.stage.directory().join("bin").to_string_lossy().into_owned();
    ledger.row("memory (resident / private):", String::new());
    let mut processes: Vec<i32> = scene.stage.processes();
    processes.sort_unstable();
    for pid in processes {
        let line = memory::command_line(pid);
        let Some(memory) = memory::of(pid) else { continue };
        let parent = memory::parent(pid).unwrap_or(0);
        let is = |words: &str| line.contains(words);
        let role = if pid == agent.pid() {
            ledger.claim(
                &format!("the idle agent: {}", kilobytes(&memory)),
                memory.resident <= 12 * 1024,
            );
            "agent"
        } else if pid == scene.serve.pid() {
            "registry (wherry serve)"
        } else if is(" monitor ") && !memory::command_line(parent).contains(" monitor ") {
            ledger.claim(
                &format!("the monitor of the container: {}", kilobytes(&memory)),
                memory.private <= 1024,
            );
            "monitor of the container"
        } else if is(" monitor ") {
            "port forwarder of the container"
        } else if is(&program) {
            "spawner of the container"
        } else {
            "(the container's own process)"
        };
        ledger.row(&format!("  {role}"), kilobytes(&memory));
    }
}
