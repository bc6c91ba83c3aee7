//! Eight processes that pull, load, name, forget, verify and collect in one store at once, and are killed at random.
//!
//! Each writes down what it is about to do to names of its own and what was acknowledged; whatever it was doing when it was
//! killed, its names must mean the last thing acknowledged or the thing it was at. An image that is pinned must be whole at
//! every moment. At the end everything is verified, everything is forgotten, and nothing may be left.

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use wherry_images::layout::Layout;
use wherry_images::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use wherry_images::pull::{PullOptions, Source, pull_from};
use wherry_images::registry::{Client, Options};
use wherry_images::store::{Error, InUse, Scope, Store};
use wherry_images::{DiffId, Digest, Platform, Reference};

use crate::stage::{memory_dir, open, program, run};

const WORKERS: usize = 8;
const IMAGES: usize = 5;
/// How long the test runs unless `WHERRY_STRESS_SECONDS` says something else.
const SECONDS: u64 = 10;

/// Numbers that look random, by a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) % sides
    }
}

/// A layout of images that share layers: image n has the layers n, n + 1 and the common one.
fn make_layout(dir: &Path) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        digest
    };
    let layers: Vec<Vec<u8>> = (0..=IMAGES + 1).map(|n| make_layer(dir, n)).collect();
    let mut listed = Vec::new();
    for n in 0..IMAGES {
        let own = [&layers[IMAGES + 1], &layers[n], &layers[n + 1]];
        let config = serde_json::json!({
            "architecture": Platform::host().architecture, "os": "linux", "config": {"Cmd": [n.to_string()]},
            "rootfs": {"type": "layers", "diff_ids": own.map(|tar| DiffId::of(tar))},
        })
        .to_string();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST,
            "config": {"mediaType": OCI_CONFIG, "digest": put(config.as_bytes()), "size": config.len()},
            "layers": own.map(|tar| serde_json::json!({"mediaType": OCI_LAYER, "digest": put(tar), "size": tar.len()})),
        })
        .to_string();
        listed.push(serde_json::json!({
            "mediaType": OCI_MANIFEST, "digest": put(manifest.as_bytes()), "size": manifest.len(),
            "annotations": {"org.opencontainers.image.ref.name": format!("v{n}")},
        }));
    }
    let index = serde_json::json!({"schemaVersion": 2, "manifests": listed});
    fs::write(dir.join("index.json"), index.to_string()).unwrap();
}

fn make_layer(dir: &Path, n: usize) -> Vec<u8> {
    let source = dir.join(format!("layer-{n}"));
    fs::create_dir(&source).unwrap();
    for i in 0..40 {
        fs::write(source.join(format!("{n}-{i}")), format!("{n} {i} ").repeat(200)).unwrap();
    }
    let output = run(Command::new("tar").args(["-cf", "-", "-C"]).arg(&source).arg("."));
    output.stdout
}

/// A registry over the layout: `GET` and `HEAD`, one request a connection, until the test program ends.
fn registry(layout: PathBuf) -> SocketAddr {
    use std::io::{BufRead, BufReader};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let opened = Layout::open(&layout).unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let lines: Vec<String> = lines
                .map_while(Result::ok)
                .take_while(|l| !l.is_empty())
                .collect();
            let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else {
                continue;
            };
            let what = path.rsplit('/').next().unwrap_or_default();
            let digest = what
                .parse::<Digest>()
                .ok()
                .or_else(|| opened.find(Some(what)).ok().map(|d| d.digest));
            let bytes = digest.and_then(|d| fs::read(layout.join("blobs/sha256").join(d.hex())).ok());
            let (Some(digest), Some(bytes)) = (digest, bytes) else {
                let _ = stream
                    .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                continue;
            };
            let from = lines.iter().find_map(|line| {
                let line = line.to_ascii_lowercase();
                let range = line.strip_prefix("range: bytes=")?;
                range.trim_end_matches('-').parse::<usize>().ok()
            });
            let (status, range, body) = match from.filter(|from| (1..bytes.len()).contains(from)) {
                Some(from) => (
                    "206 Partial Content",
                    format!(
                        "content-range: bytes {from}-{}/{}\r\n",
                        bytes.len() - 1,
                        bytes.len()
                    ),
                    &bytes[from..],
                ),
                None => ("200 OK", String::new(), &bytes[..]),
            };
            let kind = match path.contains("/manifests/") {
                true => OCI_MANIFEST,
                false => "application/octet-stream",
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n{range}\
                 docker-content-digest: {digest}\r\netag: \"{digest}\"\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let is_head = lines.first().is_some_and(|line| line.starts_with("HEAD"));
            // A client that was killed does not read to the end.
            let _ = stream
                .write_all(head.as_bytes())
                .and_then(|()| stream.write_all(if is_head { b"" } else { body }));
        }
    });
    address
}

/// What a worker says of its two names, each in its half of the file: `acknowledged` and `intended`, 100 bytes each.
struct Ledger(File);

const FIELD: u64 = 100;
/// What a worker does.
const DEEDS: [&str; 6] = ["loads", "pulls", "namings", "removals", "collections", "prunes"];

impl Ledger {
    fn open(path: &Path) -> Self {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
            .unwrap();
        if file.metadata().unwrap().len() == 0 {
            file.write_all_at(&[b' '; 4 * FIELD as usize], 0).unwrap();
            file.write_all_at(&[0; 8 * DEEDS.len()], 4 * FIELD).unwrap();
        }
        Self(file)
    }

    fn put(&self, name: u64, field: u64, digest: Option<Digest>) {
        let text = digest.map_or(String::new(), |d| d.to_string());
        let line = format!("{text:<width$}", width = FIELD as usize);
        self.0
            .write_all_at(line.as_bytes(), (name * 2 + field) * FIELD)
            .unwrap();
    }

    fn get(&self, name: u64, field: u64) -> Option<Digest> {
        let mut bytes = [0; FIELD as usize];
        self.0
            .read_exact_at(&mut bytes, (name * 2 + field) * FIELD)
            .unwrap();
        String::from_utf8_lossy(&bytes).trim().parse().ok()
    }

    /// How often each deed was done to its end.
    fn counts(&self) -> [u64; DEEDS.len()] {
        std::array::from_fn(|deed| {
            let mut bytes = [0; 8];
            self.0
                .read_exact_at(&mut bytes, 4 * FIELD + 8 * deed as u64)
                .unwrap();
            u64::from_le_bytes(bytes)
        })
    }

    fn done(&self, deed: usize) {
        let count = self.counts()[deed] + 1;
        self.0
            .write_all_at(&count.to_le_bytes(), 4 * FIELD + 8 * deed as u64)
            .unwrap();
    }

    /// What the store says of the names now must be what was acknowledged last or what was being done when the process was killed.
    fn reconcile(&self, store: &Store, worker: usize) {
        for name in 0..2 {
            let record = store.tagged(&own_name(worker, name)).unwrap();
            let found = record.map(|record| record.target.digest);
            let (acknowledged, intended) = (self.get(name, 0), self.get(name, 1));
            assert!(
                found == acknowledged || found == intended,
                "worker {worker}, name {name}: {found:?}, acknowledged {acknowledged:?}, intended {intended:?}"
            );
            self.intend(name, found);
            self.acknowledge(name, found);
        }
    }

    fn intend(&self, name: u64, digest: Option<Digest>) {
        self.put(name, 1, digest);
    }

    fn acknowledge(&self, name: u64, digest: Option<Digest>) {
        self.put(name, 0, digest);
    }
}

fn own_name(worker: usize, name: u64) -> Reference {
    format!("own/w{worker}:n{name}").parse().unwrap()
}

fn in_use(store: &Store) -> Result<InUse, Error> {
    let names = store.tags()?.into_iter().map(|record| record.reference);
    let names =
        names.filter(|name| !name.repository().ends_with("/free") && !name.repository().contains("app"));
    Ok(InUse {
        images: BTreeSet::new(),
        names: names.collect(),
    })
}

/// One process: goes on until it is killed. An error that should not be ends it.
pub(crate) fn worker(state: &Path, layout: &Path, registry: &str, worker: usize, seed: u64) {
    let mut dice = Dice(seed | 1);
    let ledger = Ledger::open(&state.with_file_name(format!("ledger-{worker}")));
    let layout = Layout::open(layout).unwrap();
    ledger.reconcile(&Store::open(state).unwrap(), worker);
    loop {
        let store = Store::open(state).unwrap();
        let version = format!("v{}", dice.roll(IMAGES as u64));
        let name = dice.roll(2);
        let own = own_name(worker, name);
        let roll = dice.roll(8) as usize;
        match roll {
            // Loads under a name of its own.
            0 | 1 => {
                let digest = layout.find(Some(&version)).unwrap().digest;
                ledger.intend(name, Some(digest));
                let keep = dice.roll(4) == 0;
                store
                    .import_layout(&layout, Some(&version), &Platform::host(), Some(&own), keep)
                    .unwrap();
                ledger.acknowledge(name, Some(digest));
            }
            // Pulls.
            2 | 3 => {
                let source = Source::parse(&format!("{registry}/app:{version}")).unwrap();
                let client = Client::new(Options::default());
                let options = PullOptions {
                    keep_blobs: dice.roll(4) == 0,
                    use_deltas: false,
                    ..PullOptions::default()
                };
                pull_from(&store, &client, &source, &options, &mut |_| ()).unwrap();
            }
            // Names what is there.
            4 => name_what_is_there(&store, &mut dice, &ledger, name, &own),
            // Forgets.
            5 => {
                ledger.intend(name, None);
                match store.remove_tag(&own) {
                    Ok(()) | Err(Error::NoImage(_)) => ledger.acknowledge(name, None),
                    Err(e) => panic!("{e}"),
                }
            }
            6 => drop(
                store
                    .collect(Scope::Dangling(&|_| true), &mut || in_use(&store))
                    .unwrap(),
            ),
            _ => drop(
                store
                    .collect(Scope::All(&|_| true), &mut || in_use(&store))
                    .unwrap(),
            ),
        }
        ledger.done([0, 0, 1, 1, 2, 3, 4, 5][roll]);
    }
}

/// An image that was found under a lease is there to be named, whoever forgets and collects meanwhile.
fn name_what_is_there(store: &Store, dice: &mut Dice, ledger: &Ledger, name: u64, own: &Reference) {
    let store = store.leased().unwrap();
    let tags = store.tags().unwrap();
    let Some(record) = tags.get(dice.roll(tags.len().max(1) as u64) as usize) else {
        return;
    };
    match store.image(&record.target.digest) {
        Ok(image) if store.missing_layers(&image).is_empty() => {
            ledger.intend(name, Some(image.digest));
            store.tag(&image, own).unwrap();
            ledger.acknowledge(name, Some(image.digest));
        }
        // Collected between the list and the lease.
        Ok(_) | Err(Error::NoBlob { .. }) => {}
        Err(e) => panic!("{e}"),
    }
}

fn spawn(state: &Path, layout: &Path, address: SocketAddr, worker: usize, seed: u64) -> Child {
    let log = OpenOptions::new()
        .create(true)
        .append(true)
        .open(state.with_file_name(format!("log-{worker}")))
        .unwrap();
    Command::new(program())
        .arg("stress-worker")
        .arg(state)
        .arg(layout)
        .args([address.to_string(), worker.to_string(), seed.to_string()])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap()
}

/// The pinned image is whole, at this moment and any.
fn check_pinned(state: &Path, pinned: &Digest) {
    let store = open(state);
    let image = store.resolve("own/pinned:v").unwrap();
    assert_eq!(image.digest, *pinned);
    for diff_id in &image.diff_ids {
        let tree = store.layer(diff_id).unwrap().expect("a pinned layer is gone");
        assert_eq!(fs::read_dir(tree).unwrap().count(), 40);
    }
}

/// Every worker's last word, and how much was done in all.
fn check_ledgers(state: &Path) -> String {
    let store = open(state);
    let mut sums = [0; DEEDS.len()];
    for worker in 0..WORKERS {
        let ledger = Ledger::open(&state.with_file_name(format!("ledger-{worker}")));
        ledger.reconcile(&store, worker);
        for (sum, count) in sums.iter_mut().zip(ledger.counts()) {
            *sum += count;
        }
    }
    assert!(sums.iter().all(|sum| *sum > 0), "{sums:?}");
    let each = sums.iter().zip(DEEDS);
    each.map(|(sum, deed)| format!("{sum} {deed}"))
        .collect::<Vec<_>>()
        .join(", ")
}

pub(crate) fn eight_processes_at_once_with_random_kills() {
    let seconds = std::env::var("WHERRY_STRESS_SECONDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(SECONDS);
    let dir = memory_dir();
    let layout = dir.path().join("layout");
    fs::create_dir(&layout).unwrap();
    make_layout(&layout);
    let address = registry(layout.clone());
    let state = dir.path().join("state");
    let store = open(&state);
    let opened = Layout::open(&layout).unwrap();
    let pinned = store
        .import_layout(
            &opened,
            Some("v0"),
            &Platform::host(),
            Some(&"own/pinned:v".parse().unwrap()),
            false,
        )
        .unwrap()
        .digest;
    let mut dice = Dice(u64::from(std::process::id()) << 20 | 0x5eed);
    eprintln!("stress: seed {:#x}, {seconds} s", dice.0);
    let mut workers: Vec<Child> = (0..WORKERS)
        .map(|n| spawn(&state, &layout, address, n, dice.roll(u64::MAX)))
        .collect();
    let (begin, mut kills) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(seconds) {
        // Not a synchronisation but the spread of the kills.
        std::thread::sleep(Duration::from_millis(dice.roll(120)));
        check_pinned(&state, &pinned);
        let at = dice.roll(WORKERS as u64) as usize;
        end(&mut workers[at], &state, at);
        kills += 1;
        workers[at] = spawn(&state, &layout, address, at, dice.roll(u64::MAX));
    }
    for (at, worker) in workers.iter_mut().enumerate() {
        end(worker, &state, at);
    }
    check_pinned(&state, &pinned);
    let deeds = check_ledgers(&state);
    let names = open(&state).tags().unwrap().len();
    let verified = open(&state).verify(&mut |_, _| ()).unwrap();
    assert!(verified.is_clean() && verified.unknown.is_empty(), "{verified:?}");
    eprintln!(
        "stress: {kills} kills in {seconds} s; {deeds}; {names} names and {} things verified",
        verified.whole
    );
    leaves_nothing(&state);
}

/// Kills a worker; one that ended by itself met an error that should not be.
fn end(worker: &mut Child, state: &Path, at: usize) {
    if let Some(status) = worker.try_wait().unwrap() {
        let log = fs::read_to_string(state.with_file_name(format!("log-{at}"))).unwrap_or_default();
        panic!("worker {at} ended by itself: {status}\n{log}");
    }
    worker.kill().unwrap();
    worker.wait().unwrap();
}

fn leaves_nothing(state: &Path) {
    // A killed worker's cage dies after it: what it holds is given back before long.
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let store = open(state);
        for record in store.tags().unwrap() {
            store.remove_tag(&record.reference).unwrap();
        }
        let none = || Ok(InUse::default());
        let done = store.collect(Scope::All(&|_| true), &mut || none()).unwrap();
        assert_eq!(done.damaged, None);
        let mut left = Vec::new();
        for dir in ["blobs/sha256", "layers", "partial", "leases"] {
            let entries = fs::read_dir(state.join(dir)).unwrap();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        }
        if left.is_empty() {
            assert_eq!(store.used().unwrap(), 0);
            return;
        }
        assert!(Instant::now() < deadline, "leaked: {left:?}");
    }
}
