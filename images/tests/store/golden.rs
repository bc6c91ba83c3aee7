//! The sample of the state directory's format, and how it was made.

use std::fs;
use std::path::Path;
use std::process::Command;

use wherry_images::{DiffId, Digest, manifest};

use crate::stage::{open, run, unpack};

/// Everything that git can keep: no whiteouts (device nodes), no attributes, no empty directories, no modes.
pub(crate) fn make_golden_sample(state: &Path) {
    let store = open(state);
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("etc")).unwrap();
    fs::write(dir.path().join("etc/hello"), "hello from format 1\n").unwrap();
    std::os::unix::fs::symlink("hello", dir.path().join("etc/link")).unwrap();
    let tar = dir.path().join("layer.tar");
    let times = [
        "--mtime=@1767225600",
        "--owner=root:0",
        "--group=mail:8",
        "--sort=name",
        "--format=gnu",
    ];
    run(Command::new("tar")
        .args(times)
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(dir.path())
        .arg("etc"));
    let layer = fs::read(&tar).unwrap();
    unpack(&store, &tar).unwrap();
    let config = serde_json::json!({
        "architecture": "arm64", "os": "linux", "created": "2026-01-01T00:00:00Z", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [DiffId::of(&layer)]},
    });
    let config = config.to_string();
    let config_digest = store.put_document(config.as_bytes()).unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST,
        "config": {"mediaType": manifest::OCI_CONFIG, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": manifest::OCI_LAYER, "digest": Digest::of(&layer), "size": layer.len()}],
    });
    let digest = store.put_document(manifest.to_string().as_bytes()).unwrap();
    store
        .tag(
            &store.image(&digest).unwrap(),
            &"localhost:5000/golden:v1".parse().unwrap(),
        )
        .unwrap();
    let blob = b"a blob on its way";
    let mut partial = store.partial(&Digest::of(blob), blob.len() as u64).unwrap();
    partial.set_etag(Some("\"an-etag\"")).unwrap();
    partial.append(&blob[..6]).unwrap();
    partial.sync().unwrap();
    partial.append(&blob[6..10]).unwrap();
}

/// Format 1 as it was on the day it was written opens for ever. `images/STORE.md` says how the sample was made.
pub(crate) fn the_golden_state_directory_opens() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/state-v1");
    run(Command::new("cp").arg("-r").arg(&golden).arg(&state));
    let store = open(&state);
    let images = store.images().unwrap();
    assert_eq!(images.len(), 1);
    assert_eq!(images[0].reference.familiar(), "localhost:5000/golden:v1");
    let image = store.resolve("localhost:5000/golden:v1").unwrap();
    assert_eq!(image.digest, images[0].digest);
    assert!(store.missing_layers(&image).is_empty());
    let tree = store.layer(&image.diff_ids[0]).unwrap().unwrap();
    assert_eq!(
        fs::read(tree.join("etc/hello")).unwrap(),
        b"hello from format 1\n"
    );
    let partial = store
        .partial(&wherry_images::Digest::of(b"a blob on its way"), 17)
        .unwrap();
    assert_eq!(
        (partial.offset(), partial.etag()),
        (6, Some("\"an-etag\"")),
        "synced bytes outlive a reboot"
    );
}
