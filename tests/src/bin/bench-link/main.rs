//! What bad links cost Wherry and its peers: one image of 1 + 20 + 100 MB out of Debian's docker-registry, through the fault proxy,
//! with each fault in turn. Run as root it goes on as the ordinary user of the tests, its peers too.
//!
//! ```text
//! make bench-link                    everything
//! make bench-link ONLY=outage        the scenarios whose names contain a word
//! ```
//!
//! Bytes are those that the proxy handed to the client. The exit code is 1 when a wanted figure is missed.

mod client;
mod scenario;

use client::{Client, Outcome};
use scenario::{Fault, Scenario, Wanted};
use std::io::{Error, Result};
use std::path::Path;
use std::process::ExitCode;
use wherry_tests::flaky::Proxy;
use wherry_tests::registry::Registry;
use wherry_tests::sample::{Entry, Layout, Tree};
use wherry_tests::stage::Stage;

/// The layers, in bytes before compression, which does nothing to noise.
const LAYERS: [usize; 3] = [1_000_000, 20_000_000, 100_000_000];

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        // A process of its own: the bench itself stays small.
        ["sample", directory] => sample(Path::new(directory)).map(|()| ExitCode::SUCCESS),
        [] => bench(""),
        [only] => bench(only),
        _ => Err(Error::other("usage: bench-link [SCENARIO]")),
    };
    result.unwrap_or_else(|error| {
        eprintln!("bench-link: {error}");
        ExitCode::from(2)
    })
}

/// Bytes that nothing compresses, the same each time.
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

fn sample(directory: &Path) -> Result<()> {
    let mut layout = Layout::create(directory)?;
    let mut layers = Vec::new();
    for (index, length) in LAYERS.into_iter().enumerate() {
        let mut tree = Tree::default();
        tree.insert(
            format!("noise{index}"),
            Entry::File(noise(index as u64 + 1, length), 0o644),
        );
        layers.push(layout.layer(&tree)?);
    }
    layout.image("v1", &layers, serde_json::json!({"Cmd": ["/nothing"]}))?;
    Ok(())
}

/// What everybody pulls: the registry, the image with chunk hashes and without, and how many bytes it has.
struct Goods {
    registry: Registry,
    needed: u64,
}

impl Goods {
    fn publish(stage: &Stage) -> Result<Self> {
        let layout = stage.private_directory("layout")?.join("image");
        let mut maker = stage.command(stage.program("bench-link"));
        let made = maker.arg("sample").arg(&layout).status()?;
        if !made.success() {
            return Err(Error::other(format!("bench-link sample: {made}")));
        }
        let registry = Registry::start(stage, "registry")?;
        let publisher = stage.private_directory("publisher")?;
        let place = format!("oci:{}:v1", layout.display());
        stage.must(&publisher, &["pull", "-q", "--keep-blobs", &place])?;
        for (name, option) in [("hashed", "-q"), ("plain", "--no-chunk-hashes")] {
            let target = format!("{}/{name}:v1", registry.address());
            stage.must(&publisher, &["push", option, "localhost/image:v1", &target])?;
        }
        let mut needed = 0;
        for blob in std::fs::read_dir(layout.join("blobs/sha256"))? {
            needed += blob?.metadata()?.len();
        }
        wherry_tests::stage::remove_tree(&layout);
        wherry_tests::stage::remove_tree(&publisher);
        Ok(Self { registry, needed })
    }
}

fn bench(only: &str) -> Result<ExitCode> {
    let stage = Stage::with(&["wherry", "wherry-runtime", "bench-link"])?;
    let goods = Goods::publish(&stage)?;
    println!(
        "{} bytes needed; wire is what the link delivered, in parts of that",
        goods.needed
    );
    println!(
        "  {:<22} {:<8} {:>8} {:>9} {:>8} {:>6} {:>8}  ",
        "link", "client", "wire", "again KB", "time s", "cuts", "RSS MB"
    );
    let mut missed = false;
    for scenario in scenario::all()
        .iter()
        .filter(|scenario| scenario.name.contains(only))
    {
        for client in Client::ALL {
            let outcome = run(&stage, &goods, scenario, client)?;
            show(scenario, client, &outcome, goods.needed);
            if client == Client::Wherry {
                for (met, what) in judge(scenario, &outcome, goods.needed) {
                    println!("  {}: {what}", if met { "met" } else { "MISSED" });
                    missed |= !met;
                }
            }
        }
    }
    Ok(ExitCode::from(u8::from(missed)))
}

fn run(stage: &Stage, goods: &Goods, scenario: &Scenario, client: Client) -> Result<Outcome> {
    let proxy = Proxy::start(scenario.link(goods.registry.address()))?;
    let repository = if scenario.hashed { "hashed" } else { "plain" };
    let image = format!("{}/{repository}:v1", proxy.address());
    let directory = stage.private_directory("client")?;
    let kill_at = matches!(scenario.fault, Fault::Kill).then_some(goods.needed / 2);
    let mut outcome = client.pull(stage, &directory, &image, &proxy, kill_at)?;
    if kill_at.is_some() && outcome.killed {
        // The same again, from what the first left.
        let first = outcome;
        outcome = client.pull(stage, &directory, &image, &proxy, None)?;
        outcome.resident = outcome.resident.max(first.resident);
    }
    outcome.counters = proxy.counters();
    if outcome.failure.is_none() && client == Client::Wherry {
        let digest = stage.must(&directory, &["images", "-q"])?;
        if digest.is_empty() {
            return Err(Error::other("wherry pulled, and has no image"));
        }
    }
    drop(proxy);
    client.clean(stage, &directory);
    Ok(outcome)
}

fn show(scenario: &Scenario, client: Client, outcome: &Outcome, needed: u64) {
    let wire = outcome.counters.down as f64 / needed as f64;
    let again = outcome.counters.down.saturating_sub(needed) as f64 / 1024.0;
    let counters = &outcome.counters;
    println!(
        "  {:<22} {:<8} {:>8.4} {:>9.0} {:>8.1} {:>6} {:>8.1}  {}",
        scenario.name,
        client.name(),
        wire,
        again,
        outcome.wall.as_secs_f64(),
        counters.cuts + counters.dropped + counters.flipped,
        outcome.resident as f64 / 1024.0,
        outcome
            .failure
            .as_deref()
            .map_or(String::new(), |why| format!("FAILS: {why}")),
    );
}

/// The wanted figures of a scenario, each with whether it was met.
fn judge(scenario: &Scenario, outcome: &Outcome, needed: u64) -> Vec<(bool, String)> {
    if let Some(why) = &outcome.failure {
        return vec![(false, format!("the pull fails: {why}"))];
    }
    let down = outcome.counters.down;
    let ratio = down as f64 / needed as f64;
    let seconds = outcome.wall.as_secs_f64();
    let resident = outcome.resident as f64 / 1024.0;
    let mut all = vec![(
        resident <= 12.0,
        format!("{resident:.1} MB of all its processes at once, wanted at most 12 MB"),
    )];
    all.push(match scenario.wanted {
        Wanted::Ratio(most) => (ratio <= most, format!("wire {ratio:.4}, wanted at most {most}")),
        Wanted::Again(most) => {
            let again = down.saturating_sub(needed);
            (
                again <= most,
                format!("{again} bytes beyond those needed, wanted at most {most}"),
            )
        }
        Wanted::Seconds(most) => (
            seconds <= most,
            format!("{seconds:.1} s, wanted at most {most} s"),
        ),
        Wanted::Ideal(most) => {
            let ideal = scenario.ideal(needed);
            let times = seconds / ideal;
            (
                times <= most,
                format!("{seconds:.1} s where {ideal:.1} s are ideal: {times:.3}, wanted at most {most}"),
            )
        }
        Wanted::OnceMore => {
            let most = (needed + (LAYERS[2] as u64) * 101 / 100) as f64 / needed as f64;
            (
                ratio <= most,
                format!("wire {ratio:.4}, wanted at most the layer once more, {most:.4}"),
            )
        }
    });
    all
}
