//! Archives written and read back; those that others write are tested in `tests/store`.

use super::*;
use crate::platform::Platform;
use crate::store::tests::{Home, home, put_image, tar};
use crate::unpack::tests::Tar as TestTar;

fn options(keep_blobs: bool) -> LoadOptions {
    LoadOptions {
        platform: Platform::host(),
        keep_blobs,
    }
}

fn reload(archive: &[u8], keep_blobs: bool) -> (Home, Result<Vec<Loaded>, Error>) {
    let home = home();
    let loaded = load(&home.store, &mut &archive[..], &options(keep_blobs));
    (home, loaded)
}

#[test]
fn digests_stay_what_they_were() {
    let Home { store, .. } = &home();
    let names: Vec<Reference> = ["x:v1", "reg.example/a/b:c"].map(|n| n.parse().unwrap()).to_vec();
    let image = put_image(store, "x", true);
    let other = put_image(store, "y", true);
    let images = [(image.clone(), names.clone()), (other.clone(), Vec::new())];
    for keep in [false, true] {
        let mut archive = Vec::new();
        let saved = save(store, &images, &mut archive).unwrap();
        assert_eq!(saved.bytes, archive.len() as u64);
        // The manifest's layer is a plain tar: it is made again bit by bit, under its own name.
        assert_eq!(saved.remade, 0);
        let (new, loaded) = reload(&archive, keep);
        let loaded = loaded.unwrap();
        assert_eq!(loaded.len(), 2);
        assert_eq!((&loaded[0].image, &loaded[0].names), (&image, &names));
        assert_eq!((&loaded[1].image, &loaded[1].names), (&other, &Vec::new()));
        for name in ["x:v1", "reg.example/a/b:c"] {
            assert_eq!(new.store.resolve(name).unwrap().digest, image.digest);
        }
        assert!(new.store.missing_layers(&image).is_empty());
        assert_eq!(new.store.has_blob(&image.manifest.layers[0].digest), keep);
        let left = std::fs::read_dir(new.store.root().join("layers")).unwrap();
        assert_eq!(left.count(), 2, "the archive itself is gone");
        // And once more, from there.
        let mut again = Vec::new();
        save(&new.store, &images, &mut again).unwrap();
        assert_eq!(archive, again);
    }
}

/// An image whose layer travels compressed: a store that keeps no blobs has only its tree.
fn compressed(store: &Store) -> Image {
    let tar = tar("compressed");
    let blob = zstd::encode_all(&tar[..], 3).unwrap();
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [DiffId::of(&tar)]},
    });
    let config = config.to_string();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST,
        "config": Descriptor::of(manifest::OCI_CONFIG, config.as_bytes()),
        "layers": [Descriptor::of(manifest::OCI_LAYER_ZSTD, &blob)],
    });
    store.put_document(config.as_bytes()).unwrap();
    let digest = store.put_document(manifest.to_string().as_bytes()).unwrap();
    store
        .put_blob(&Digest::of(&blob), blob.len() as u64, &mut &blob[..])
        .unwrap();
    crate::store::tests::unpack_tar(store, &tar, &DiffId::of(&tar)).unwrap();
    store.image(&digest).unwrap()
}

#[test]
fn an_image_whose_blobs_were_dropped_keeps_its_digest_too() {
    let Home { store, .. } = &home();
    let image = compressed(store);
    let images = [(image.clone(), vec!["x:v1".parse().unwrap()])];
    let mut whole = Vec::new();
    assert_eq!(save(store, &images, &mut whole).unwrap().remade, 0);
    store.remove_blob(&image.manifest.layers[0].digest).unwrap();
    let mut archive = Vec::new();
    assert_eq!(save(store, &images, &mut archive).unwrap().remade, 1);
    for archive in [&whole, &archive] {
        let (new, loaded) = reload(archive, false);
        assert_eq!(loaded.unwrap()[0].image, image);
        assert_eq!(new.store.resolve("x:v1").unwrap().digest, image.digest);
        assert!(new.store.missing_layers(&image).is_empty());
    }
    let layer = store.root().join("layers").join(image.diff_ids[0].hex());
    std::fs::remove_file(layer.join("recipe")).unwrap();
    let error = save(store, &images, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("cannot be made again"), "{error}");
}

#[test]
fn damage_does_not_travel() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", true);
    let images = [(image.clone(), Vec::new())];
    let tree = store.layer(&image.diff_ids[0]).unwrap().unwrap();
    std::fs::write(tree.join("f"), "z").unwrap();
    assert!(matches!(
        save(store, &images, &mut Vec::new()),
        Err(Error::Store(store::Error::DiffId { .. }))
    ));
    let blob = tar("x");
    let digest = image.manifest.layers[0].digest;
    store
        .put_blob(&digest, blob.len() as u64, &mut &blob[..])
        .unwrap();
    let path = store.root().join("blobs/sha256").join(digest.hex());
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[600] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(
        save(store, &images, &mut Vec::new()),
        Err(Error::Store(store::Error::Digest { .. }))
    ));
}

/// What docker wrote before it knew layouts: the layer in a directory of its own, one that is there already a link to it.
#[test]
fn older_docker_archives() {
    let layer = tar("layer");
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux", "config": {"Cmd": ["/x"]},
        "rootfs": {"type": "layers", "diff_ids": [DiffId::of(&layer), DiffId::of(&layer)]},
    })
    .to_string();
    let list = r#"[{"Config":"c.json","RepoTags":["old:v1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
    let archive = TestTar::default()
        .file("a/layer.tar", &layer)
        .symlink("b/layer.tar", "../a/layer.tar")
        .file("c.json", config.as_bytes())
        .file("manifest.json", list.as_bytes())
        .end();
    let (new, loaded) = reload(&zstd::encode_all(&archive[..], 1).unwrap(), true);
    let loaded = loaded.unwrap();
    assert_eq!(loaded[0].image.config.config.cmd, ["/x"]);
    assert_eq!(loaded[0].image.config_digest, Digest::of(config.as_bytes()));
    let image = new.store.resolve("old:v1").unwrap();
    assert!(new.store.missing_layers(&image).is_empty() && new.store.has_blob(&Digest::of(&layer)));
}

#[test]
fn hostile_archives_are_refused_and_leave_nothing() {
    let list = |layer: &str| format!(r#"[{{"Config":"c.json","RepoTags":["x"],"Layers":["{layer}"]}}]"#);
    let config = serde_json::json!({
        "architecture": Platform::host().architecture, "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [DiffId::of(b"another")]},
    })
    .to_string();
    let with = |layer: &str, tar: TestTar| {
        tar.file("c.json", config.as_bytes())
            .file("manifest.json", list(layer).as_bytes())
            .end()
    };
    let plain = TestTar::default;
    for (want, archive) in [
        ("neither index.json nor manifest.json", plain().end()),
        ("leads out of it", with("l", plain().symlink("l", "../../../../../etc/passwd"))),
        ("leads out of it", with("l", plain().symlink("l", "/etc/passwd"))),
        ("leads out of it", with("../../x", plain())),
        ("too many symbolic links", with("l", plain().symlink("l", "l"))),
        ("is not a file", with("d", plain().dir("d", 0o755))),
        ("is listed but missing", with("l", plain())),
        ("expected diffID", with("l", plain().file("l", &tar("x")))),
        ("Not a directory", with("d/l", plain().symlink("d", "/etc"))),
        ("manifest.json: ", plain().file("manifest.json", b"{}").end()),
        ("it holds no image", plain().file("manifest.json", b"[]").end()),
        ("an index has no config", plain().file("index.json", b"{\"schemaVersion\":2,\"config\":{\"mediaType\":\"x\",\"digest\":\"sha256:0000000000000000000000000000000000000000000000000000000000000000\",\"size\":1},\"layers\":[]}").end()),
        ("leads outside", plain().file("../x", b"").end()),
        ("is not a number that makes sense", b"rubbish ".repeat(200).to_vec()),
    ] {
        let (new, loaded) = reload(&archive, false);
        let error = loaded.unwrap_err().to_string();
        assert!(error.contains(want), "{want}: {error}");
        assert!(new.store.tags().unwrap().is_empty());
        assert_eq!(std::fs::read_dir(new.store.root().join("layers")).unwrap().count(), 0, "{want}");
    }
}
