//! What is cut off: making a store, pulls, tag changes, collections.

use super::*;
use crate::layout::Layout;
use crate::manifest::{OCI_CONFIG, OCI_LAYER, OCI_MANIFEST};
use crate::pull::{PullOptions, Source, pull_from};
use crate::registry::{Client, Options};
use crate::store::Input;
use crate::store::tests::{home, put_image};
use crate::unpack::tests::Tar;
use crate::unpack::{Encoding, Limits};
use crate::{Platform, Reference};

/// Each with other layers than the one before, the last with the same, and one without any.
const VERSIONS: [&str; 4] = ["v1", "v2", "v3", "bare"];

/// Images in a layout and in a store that has them whole.
struct Fixture {
    dir: tempfile::TempDir,
    full: Store,
    images: BTreeMap<&'static str, Image>,
    layers: BTreeMap<DiffId, Vec<String>>,
}

/// The layers of the images: a common one, and one that has of everything a bit.
fn tars(version: &str) -> Vec<Vec<u8>> {
    let version = match version {
        "bare" => return Vec::new(),
        // Another image of the same layers.
        "v3" => "v2",
        version => version,
    };
    let common = Tar::default().dir("d", 0o755).file("d/common", b"common").end();
    let own = Tar::default()
        .dir("d", 0o700)
        .file("d/own", version.as_bytes())
        .file("d/large", &vec![version.as_bytes()[1]; 70_000])
        .hardlink("d/again", "d/own")
        .symlink("d/link", "own")
        .file("d/.wh.common", b"")
        .dir("o", 0o755)
        .file("o/.wh..wh..opq", b"")
        .file("e/implicit", b"")
        .end();
    vec![common, own]
}

fn write_image(layout: &Path, version: &str) -> (String, Digest) {
    let tars = tars(version);
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(layout.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
        digest
    };
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
        "config": {"Cmd": [version]},
        "rootfs": {"type": "layers", "diff_ids": tars.iter().map(|t| DiffId::of(t)).collect::<Vec<_>>()},
    });
    let config = config.to_string();
    let layers: Vec<_> = tars
        .iter()
        .map(|tar| serde_json::json!({"mediaType": OCI_LAYER, "digest": put(tar), "size": tar.len()}))
        .collect();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": put(config.as_bytes()), "size": config.len()},
        "layers": layers,
    });
    let manifest = manifest.to_string();
    let digest = put(manifest.as_bytes());
    let listed = serde_json::json!({
        "mediaType": OCI_MANIFEST, "digest": digest, "size": manifest.len(),
        "annotations": {"org.opencontainers.image.ref.name": version},
    });
    (listed.to_string(), digest)
}

fn fixture() -> Fixture {
    let dir = scratch();
    let layout = dir.path().join("layout");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let listed: Vec<String> = VERSIONS.map(|v| write_image(&layout, v).0).to_vec();
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, listed.join(","));
    fs::write(layout.join("index.json"), index).unwrap();
    let full = Store::open(&dir.path().join("full")).unwrap();
    let mut images = BTreeMap::new();
    let mut layers = BTreeMap::new();
    let opened = Layout::open(&layout).unwrap();
    for version in VERSIONS {
        let name: Reference = format!("localhost/app:{version}").parse().unwrap();
        let image = full
            .import_layout(&opened, Some(version), &Platform::host(), Some(&name), true)
            .unwrap();
        for diff_id in &image.diff_ids {
            layers.insert(*diff_id, layer_picture(&full, diff_id));
        }
        images.insert(version, image);
    }
    Fixture {
        dir,
        full,
        images,
        layers,
    }
}

impl Fixture {
    fn layout(&self) -> Layout {
        Layout::open(&self.dir.path().join("layout")).unwrap()
    }

    fn digest(&self, version: &str) -> Option<Digest> {
        Some(self.images[version].digest)
    }

    /// A state directory in which `app` means the first version.
    fn with_first(&self, name: &str) -> std::path::PathBuf {
        let root = self.dir.path().join(name);
        let store = Store::open(&root).unwrap();
        let app: Reference = "app".parse().unwrap();
        store
            .import_layout(&self.layout(), Some("v1"), &Platform::host(), Some(&app), false)
            .unwrap();
        root
    }

    fn promise(&self, names: &[(&'static str, &[Option<Digest>])]) -> Promise {
        Promise {
            names: names
                .iter()
                .map(|(name, may)| (*name, may.iter().copied().collect()))
                .collect(),
            // The last that it may mean is what it shall mean.
            end: names
                .iter()
                .map(|(name, may)| (*name, *may.last().unwrap()))
                .collect(),
            layers: self.layers.clone(),
        }
    }
}

/// A registry that answers for what is in the store, until the test program ends: `GET` and `HEAD`, one request for each connection.
fn registry(store: Store) -> std::net::SocketAddr {
    use std::io::{BufRead, BufReader, Write};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap()).lines();
            let lines: Vec<String> = lines
                .map_while(Result::ok)
                .take_while(|line| !line.is_empty())
                .collect();
            let Some(path) = lines.first().and_then(|line| line.split(' ').nth(1)) else {
                continue;
            };
            let what = path.rsplit('/').next().unwrap_or_default();
            let digest = match what.parse::<Digest>() {
                Ok(digest) => Some(digest),
                Err(_) => {
                    let name = format!("localhost/app:{what}").parse().unwrap();
                    store.tagged(&name).unwrap().map(|record| record.target.digest)
                }
            };
            let found = digest.and_then(|digest| fs::read(store.blob_dir().join(digest.hex())).ok());
            let (Some(digest), Some(bytes)) = (digest, found) else {
                let _ = stream
                    .write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                continue;
            };
            let from = lines.iter().find_map(|line| {
                let line = line.to_ascii_lowercase();
                line.strip_prefix("range: bytes=")?
                    .trim_end_matches('-')
                    .parse::<usize>()
                    .ok()
            });
            let (status, range, body) = match from {
                Some(from) if from > 0 => (
                    "206 Partial Content",
                    format!(
                        "content-range: bytes {from}-{}/{}\r\n",
                        bytes.len() - 1,
                        bytes.len()
                    ),
                    &bytes[from..],
                ),
                _ => ("200 OK", String::new(), &bytes[..]),
            };
            let kind = if path.contains("/manifests/") {
                OCI_MANIFEST
            } else {
                "application/octet-stream"
            };
            let head = format!(
                "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n{range}docker-content-digest: {digest}\r\netag: \"{digest}\"\r\nconnection: close\r\n\r\n",
                body.len()
            );
            let head_only = lines.first().is_some_and(|line| line.starts_with("HEAD"));
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(if head_only { b"" } else { body });
        }
    });
    address
}

fn at_least(tried: Tried, states: u64) {
    assert!(
        tried.states >= states,
        "only {tried:?}: the model has lost its teeth"
    );
}

#[test]
fn a_store_being_made() {
    let dir = scratch();
    let root = dir.path().join("state");
    fs::create_dir(&root).unwrap();
    let promise = Promise {
        names: Meanings::new(),
        end: BTreeMap::new(),
        layers: BTreeMap::new(),
    };
    let make = |root: &Path| drop(Store::open(root).unwrap());
    at_least(prove("making a store", &root, &make, &promise), 15);
}

#[test]
fn a_pull_from_a_layout() {
    let fixture = fixture();
    for keep_blobs in [false, true] {
        let root = fixture.with_first(&format!("state-{keep_blobs}"));
        let app: Reference = "app".parse().unwrap();
        let pull = |root: &Path| {
            let store = Store::open(root).unwrap();
            store
                .import_layout(
                    &fixture.layout(),
                    Some("v2"),
                    &Platform::host(),
                    Some(&app),
                    keep_blobs,
                )
                .unwrap();
        };
        let promise = fixture.promise(&[("app", &[fixture.digest("v1"), fixture.digest("v2")])]);
        at_least(prove("a pull from a layout", &root, &pull, &promise), 250);
    }
}

#[test]
fn a_pull_from_a_registry() {
    let fixture = fixture();
    let address = registry(fixture.full.clone());
    for keep_blobs in [false, true] {
        let root = fixture.with_first(&format!("state-{keep_blobs}"));
        let name: &'static str = format!("{address}/localhost/app:v2").leak();
        let source = Source::parse(name).unwrap();
        let options = PullOptions {
            keep_blobs,
            use_deltas: false,
            ..PullOptions::default()
        };
        let pull = |root: &Path| {
            let store = Store::open(root).unwrap();
            let client = Client::new(Options::default());
            pull_from(&store, &client, &source, &options, &mut |_| {}).unwrap();
        };
        let promise = fixture.promise(&[
            ("app", &[fixture.digest("v1")]),
            (name, &[None, fixture.digest("v2")]),
        ]);
        at_least(prove("a pull from a registry", &root, &pull, &promise), 250);
    }
}

#[test]
fn a_load() {
    let fixture = fixture();
    let root = fixture.with_first("state");
    let app: Reference = "app".parse().unwrap();
    let mut archive = Vec::new();
    let images = [(fixture.images["v2"].clone(), vec![app])];
    crate::archive::save(&fixture.full, &images, &mut archive).unwrap();
    let options = crate::archive::LoadOptions {
        platform: Platform::host(),
        keep_blobs: false,
    };
    let load = |root: &Path| {
        let store = Store::open(root).unwrap();
        crate::archive::load(&store, &mut &archive[..], &options).unwrap();
    };
    let promise = fixture.promise(&[("app", &[fixture.digest("v1"), fixture.digest("v2")])]);
    at_least(prove("a load", &root, &load, &promise), 250);
}

/// What `verify --repair` does to a layer that a bad card has changed: out of the way, and fetched again.
#[test]
fn a_repair() {
    use crate::store::Item;
    let fixture = fixture();
    let root = fixture.with_first("state");
    let app: Reference = "app".parse().unwrap();
    let diff_id = fixture.images["v1"].diff_ids[1];
    let repair = |root: &Path| {
        let store = Store::open(root).unwrap();
        store.discard(&Item::Layer(diff_id)).unwrap();
        store
            .import_layout(
                &fixture.layout(),
                Some("v1"),
                &Platform::host(),
                Some(&app),
                false,
            )
            .unwrap();
    };
    let mut promise = fixture.promise(&[]);
    // In between the image lacks its layer, which was no good before: whoever starts it is told, and a pull mends it.
    promise.end.insert("app", fixture.digest("v1"));
    at_least(prove("a repair", &root, &repair, &promise), 150);
}

#[test]
fn an_image_whose_layers_are_all_here() {
    let fixture = fixture();
    let app: Reference = "app".parse().unwrap();
    for (first, then) in [("v2", "v3"), ("", "bare")] {
        let root = fixture.dir.path().join(then);
        let import = |root: &Path, version: &str| {
            let store = Store::open(root).unwrap();
            store
                .import_layout(
                    &fixture.layout(),
                    Some(version),
                    &Platform::host(),
                    Some(&app),
                    false,
                )
                .unwrap();
        };
        if first.is_empty() {
            fs::create_dir(&root).unwrap();
        } else {
            import(&root, first);
        }
        let before = fixture.images.get(first).map(|image| image.digest);
        let promise = fixture.promise(&[("app", &[before, fixture.digest(then)])]);
        let what = format!("a pull of {then} after {first:?}");
        at_least(prove(&what, &root, &|root| import(root, then), &promise), 50);
    }
}

#[test]
fn a_tag_change() {
    let fixture = fixture();
    let root = fixture.with_first("state");
    let store = Store::open(&root).unwrap();
    store
        .import_layout(&fixture.layout(), Some("v2"), &Platform::host(), None, false)
        .unwrap();
    let app: Reference = "app".parse().unwrap();
    let change = |root: &Path| {
        let store = Store::open(root).unwrap();
        store.tag(&fixture.images["v2"], &app).unwrap();
        store
            .tag(&fixture.images["v1"], &"other".parse().unwrap())
            .unwrap();
    };
    let promise = fixture.promise(&[
        ("app", &[fixture.digest("v1"), fixture.digest("v2")]),
        ("other", &[None, fixture.digest("v1")]),
    ]);
    at_least(prove("two tag changes", &root, &change, &promise), 15);
    let remove = |root: &Path| {
        let store = Store::open(root).unwrap();
        // Removed before the cut: then it is not there, as was wanted.
        let _ = store.remove_tag(&app);
    };
    let promise = fixture.promise(&[
        ("app", &[fixture.digest("v2"), None]),
        ("other", &[fixture.digest("v1")]),
    ]);
    at_least(prove("a tag's removal", &root, &remove, &promise), 3);
}

#[test]
fn a_collection() {
    let fixture = fixture();
    let root = fixture.with_first("state");
    let store = Store::open(&root).unwrap();
    // A second version under another name that goes, a third image without a name, a partial blob, a kept blob.
    store
        .import_layout(
            &fixture.layout(),
            Some("v2"),
            &Platform::host(),
            Some(&"old".parse().unwrap()),
            true,
        )
        .unwrap();
    let dangling = put_image(&store, "dangling", true);
    let mut promise = fixture.promise(&[
        ("app", &[fixture.digest("v1")]),
        ("old", &[fixture.digest("v2"), None]),
    ]);
    let picture = layer_picture(&store, &dangling.diff_ids[0]);
    promise.layers.insert(dangling.diff_ids[0], picture);
    let mut partial = store.partial(&Digest::of(b"12"), 2).unwrap();
    partial.append(b"1").unwrap();
    partial.sync().unwrap();
    drop(partial);
    let in_use = InUse {
        names: BTreeSet::from(["app".parse().unwrap()]),
        ..InUse::default()
    };
    let collect = |root: &Path| {
        let store = Store::open(root).unwrap();
        let done = store
            .collect(Scope::All(&|_| true), &mut || Ok(in_use.clone()))
            .unwrap();
        assert_eq!(done.damaged, None);
    };
    at_least(prove("a collection", &root, &collect, &promise), 80);
    let store = Store::open(&root).unwrap();
    assert_eq!(
        store.layers().unwrap(),
        fixture.images["v1"].diff_ids.iter().copied().collect()
    );
}

#[test]
fn an_upload_and_a_layer_that_was_left_half_made() {
    let fixture = fixture();
    let root = fixture.with_first("state");
    let home = home();
    let image = put_image(&home.store, "x", true);
    let tar = crate::store::tests::tar("x");
    let act = |root: &Path| {
        let store = Store::open(root).unwrap().leased().unwrap();
        // Something else under the name of the work: swept or overwritten.
        let mut upload = store.upload("a-1", 1 << 20).unwrap();
        upload.truncate(0).unwrap();
        upload.append(&tar).unwrap();
        store.commit_upload(upload, &Digest::of(&tar)).unwrap();
        let limits = Limits::for_blob(tar.len() as u64);
        store
            .unpack_layer(
                &image.diff_ids[0],
                Input::Stream(&mut &tar[..]),
                &Encoding::Layer,
                &limits,
            )
            .unwrap();
    };
    let mut promise = fixture.promise(&[("app", &[fixture.digest("v1")])]);
    let picture = layer_picture(&home.store, &image.diff_ids[0]);
    promise.layers.insert(image.diff_ids[0], picture);
    at_least(prove("an upload and a layer", &root, &act, &promise), 80);
}
