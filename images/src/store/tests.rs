//! The store's promises, one process; several processes and kills are in `tests/store.rs` of this crate.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;

use super::*;
use crate::manifest::{OCI_CONFIG, OCI_INDEX, OCI_LAYER, OCI_MANIFEST};
use crate::unpack::{Encoding, Limits};
use crate::{Class, Platform};

pub(crate) struct Home {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) store: Store,
}

pub(crate) fn home() -> Home {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("state")).unwrap();
    Home { dir, store }
}

pub(super) fn all_files(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_owned()];
    while let Some(next) = todo.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let entry = entry.unwrap();
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                todo.push(path.clone());
            }
            found.push(path.strip_prefix(dir).unwrap().to_str().unwrap().to_owned());
        }
    }
    found.sort();
    found
}

/// A tar with one file in it.
pub(crate) fn tar(content: &str) -> Vec<u8> {
    crate::unpack::tests::Tar::default()
        .file("f", content.as_bytes())
        .end()
}

/// Puts an image of one layer into the store; the layer itself only when `unpack` says so.
pub(crate) fn put_image(store: &Store, content: &str, unpack: bool) -> Image {
    let tar = tar(content);
    let diff_id = DiffId::of(&tar);
    let platform = Platform::host();
    let config = format!(
        r#"{{"architecture":"{}","os":"linux","created":"2026-01-01T00:00:00Z","rootfs":{{"type":"layers","diff_ids":["{diff_id}"]}}}}"#,
        platform.architecture
    );
    let config_digest = store.put_document(config.as_bytes()).unwrap();
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": OCI_LAYER, "digest": Digest::of(&tar), "size": tar.len()}],
    });
    let digest = store.put_document(manifest.to_string().as_bytes()).unwrap();
    if unpack {
        unpack_tar(store, &tar, &diff_id).unwrap();
    }
    store.image(&digest).unwrap()
}

pub(crate) fn unpack_tar(store: &Store, mut tar: &[u8], diff_id: &DiffId) -> Result<LayerInfo, Error> {
    let limits = Limits::for_blob(tar.len() as u64);
    store.unpack_layer(diff_id, Input::Stream(&mut tar), &Encoding::Layer, &limits)
}

#[test]
fn a_state_directory_is_made_private_and_opens_again() {
    let home = home();
    let root = home.store.root();
    assert_eq!(fs::read(root.join("version")).unwrap(), b"wherry-state 1\n");
    assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o777, 0o700);
    fs::set_permissions(root, fs::Permissions::from_mode(0o755)).unwrap();
    let before = all_files(root);
    Store::open(root).unwrap();
    assert_eq!(all_files(root), before);
    assert_eq!(fs::metadata(root).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn directories_that_are_not_ours_to_use() {
    let dir = tempfile::tempdir().unwrap();
    let table: [(&str, &str, &str); 6] = [
        ("version", "wherry-state 2\n", "state format 2 is newer than 1"),
        ("version", "wherry-state 0\n", "unreadable"),
        ("version", "wherry-state 1", "unreadable"),
        ("version", "", "unreadable"),
        ("version", &"x".repeat(100), "longer than 64 bytes"),
        ("photo.jpg", "x", "it holds \"photo.jpg\" and no file \"version\""),
    ];
    for (i, (name, content, want)) in table.into_iter().enumerate() {
        let root = dir.path().join(i.to_string());
        fs::create_dir(&root).unwrap();
        fs::write(root.join(name), content).unwrap();
        fs::set_permissions(&root, fs::Permissions::from_mode(0o755)).unwrap();
        let error = Store::open(&root).unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
        assert_eq!(all_files(&root), [name], "{name} {content}: touched");
        assert_eq!(fs::read(root.join(name)).unwrap(), content.as_bytes());
        let mode = fs::metadata(&root).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o755, "{name} {content}: touched");
    }
    // Cut off while it was being made: it was ours all along.
    let root = dir.path().join("cut");
    fs::create_dir(&root).unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    fs::write(root.join(".version.tmp"), "wher").unwrap();
    Store::open(&root).unwrap();
    // A file in its place.
    fs::write(dir.path().join("file"), "").unwrap();
    assert!(Store::open(&dir.path().join("file")).is_err());
}

#[test]
fn blobs_come_in_pieces_and_count_when_they_are_whole() {
    let Home { store, dir } = &home();
    let bytes: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
    let digest = Digest::of(&bytes);
    let size = bytes.len() as u64;
    let mut partial = store.partial(&digest, size).unwrap();
    partial.append(&bytes[..1000]).unwrap();
    partial.set_etag(Some("\"tag\"")).unwrap();
    drop(partial);
    assert!(!store.has_blob(&digest));
    // Another process, later: what is there is kept.
    let again = Store::open(&dir.path().join("state")).unwrap();
    let mut partial = again.partial(&digest, size).unwrap();
    assert_eq!(
        (partial.offset(), partial.etag(), partial.is_complete()),
        (1000, Some("\"tag\""), false)
    );
    let early = partial.verify().unwrap_err();
    assert!(matches!(early, Error::Length { got: 1000, .. }), "{early}");
    let beyond = partial.append(&vec![0; bytes.len()]).unwrap_err();
    assert!(
        matches!(beyond, Error::Length { .. }) && partial.offset() == 1000,
        "{beyond}"
    );
    for chunk in bytes[1000..].chunks(70_000) {
        partial.append(chunk).unwrap();
    }
    assert!(partial.is_complete());
    assert_eq!(store.commit_blob(partial).unwrap(), digest);
    let mut read = Vec::new();
    store
        .blob(&digest)
        .unwrap()
        .unwrap()
        .read_to_end(&mut read)
        .unwrap();
    assert_eq!(read, bytes);
    assert!(all_files(&store.partial_dir()).is_empty());
    store.remove_blob(&digest).unwrap();
    store.remove_blob(&digest).unwrap();
    assert!(store.blob(&digest).unwrap().is_none());
}

#[test]
fn wrong_bytes_never_become_a_blob() {
    let Home { store, .. } = &home();
    let digest = Digest::of(b"right");
    let mut partial = store.partial(&digest, 5).unwrap();
    partial.append(b"wrong").unwrap();
    let error = store.commit_blob(partial).unwrap_err();
    let got = Digest::of(b"wrong");
    assert_eq!(
        error.to_string(),
        format!("blob {digest}: got {got} after 5 bytes")
    );
    assert_eq!(error.class(), Class::Corrupt);
    assert!(!store.has_blob(&digest) && all_files(&store.partial_dir()).is_empty());
    // A flipped byte found by resuming: cut back and go on.
    let mut partial = store.partial(&digest, 5).unwrap();
    partial.append(b"rixxx").unwrap();
    partial.truncate(2).unwrap();
    partial.append(b"ght").unwrap();
    store.commit_blob(partial).unwrap();
    assert!(matches!(
        store.put_blob(&got, 5, &mut &b"short"[..]),
        Err(Error::Digest { .. })
    ));
    assert!(matches!(
        store.put_blob(&got, 6, &mut &b"wrong"[..]),
        Err(Error::Length { got: 5, .. })
    ));
}

#[test]
fn after_a_reboot_only_what_was_synced_is_believed() {
    let Home { store, .. } = &home();
    let digest = Digest::of(b"0123456789");
    let facts = store.partial_dir().join(format!("{}.json", digest.hex()));
    let mut partial = store.partial(&digest, 10).unwrap();
    partial.append(b"0123").unwrap();
    partial.sync().unwrap();
    partial.append(b"zeros").unwrap();
    drop(partial);
    assert_eq!(
        store.partial(&digest, 10).unwrap().offset(),
        9,
        "the same boot: the page cache is whole"
    );
    let noted = fs::read_to_string(&facts).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    fs::write(&facts, noted.replace(boot.trim(), "another")).unwrap();
    let mut partial = store.partial(&digest, 10).unwrap();
    assert_eq!(partial.offset(), 4, "another boot: only what was synced");
    partial.append(b"456789").unwrap();
    store.commit_blob(partial).unwrap();
    for rubbish in ["", "{", "{\"version\":9}"] {
        let digest = Digest::of(b"xy");
        let mut partial = store.partial(&digest, 2).unwrap();
        partial.append(b"x").unwrap();
        drop(partial);
        fs::write(
            store.partial_dir().join(format!("{}.json", digest.hex())),
            rubbish,
        )
        .unwrap();
        let partial = store.partial(&digest, 2).unwrap();
        assert_eq!(partial.offset(), 0, "{rubbish:?}");
    }
}

#[test]
fn facts_that_outlived_their_bytes_are_forgotten() {
    let Home { store, .. } = &home();
    let bytes = vec![7; 100_000];
    let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
    let facts = store.partial_dir().join(format!("{}.json", digest.hex()));
    let mut partial = store.partial(&digest, size).unwrap();
    partial.set_etag(Some("\"old\"")).unwrap();
    partial.append(&bytes).unwrap();
    partial.sync().unwrap();
    let noted = fs::read(&facts).unwrap();
    store.commit_blob(partial).unwrap();
    // A kill between the rename of the bytes and the removal of the facts; later the blob was dropped and is wanted again.
    fs::write(&facts, noted).unwrap();
    store.remove_blob(&digest).unwrap();
    let mut partial = store.partial(&digest, size).unwrap();
    assert_eq!((partial.offset(), partial.etag()), (0, None));
    for chunk in bytes.chunks(1000) {
        partial.append(chunk).unwrap();
    }
    store.commit_blob(partial).unwrap();
}

#[test]
fn a_state_directory_that_went_away_is_an_error_and_no_endless_wait() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", false);
    fs::remove_dir_all(store.partial_dir()).unwrap();
    fs::remove_dir_all(store.layers_dir()).unwrap();
    assert!(matches!(
        store.partial(&Digest::of(b"y"), 1),
        Err(Error::Io { .. })
    ));
    let tar = tar("x");
    assert!(matches!(
        unpack_tar(store, &tar, &DiffId::of(&tar)),
        Err(Error::Io { .. })
    ));
    fs::remove_dir_all(store.root()).unwrap();
    assert!(store.tag(&image, &"x".parse().unwrap()).is_err());
    assert!(store.remove_tag(&"x".parse().unwrap()).is_err());
}

#[test]
fn uploads_are_named_by_their_session() {
    let Home { store, .. } = &home();
    assert!(!store.has_upload("a-1"));
    let mut upload = store.upload("a-1", 8).unwrap();
    upload.append(b"hello").unwrap();
    drop(upload);
    assert!(store.has_upload("a-1"));
    let mut upload = store.upload("a-1", 8).unwrap();
    assert_eq!(upload.offset(), 5);
    assert!(upload.append(b"too long").is_err());
    store.commit_upload(upload, &Digest::of(b"hello")).unwrap();
    assert!(store.has_blob(&Digest::of(b"hello")) && !store.has_upload("a-1"));
    let mut upload = store.upload("b", 8).unwrap();
    upload.append(b"hello").unwrap();
    assert!(matches!(
        store.commit_upload(upload, &Digest::of(b"other")),
        Err(Error::Digest { .. })
    ));
    assert!(!store.has_upload("b"));
    for bad in ["", "../x", "A", "a/b", &"a".repeat(65)] {
        assert!(store.upload(bad, 1).is_err() && !store.has_upload(bad), "{bad}");
    }
}

#[test]
fn layers_are_unpacked_once_and_only_when_the_diff_id_is_right() {
    let Home { store, .. } = &home();
    let (right, wrong) = (tar("right"), tar("wrong"));
    let diff_id = DiffId::of(&right);
    let error = unpack_tar(store, &wrong, &diff_id).unwrap_err();
    let got = DiffId::of(&wrong);
    assert_eq!(
        error.to_string(),
        format!(
            "layer: expected diffID {diff_id}, got {got} after {} bytes",
            wrong.len()
        )
    );
    assert!(
        all_files(&store.layers_dir()).is_empty(),
        "{:?}",
        all_files(&store.layers_dir())
    );
    let hostile = crate::unpack::tests::Tar::default().file("../f", b"x").end();
    let error = unpack_tar(store, &hostile, &DiffId::of(&hostile)).unwrap_err();
    assert!(
        error.to_string().contains("leads outside") && error.class() == Class::Permanent,
        "{error}"
    );
    assert!(all_files(&store.layers_dir()).is_empty());

    let info = unpack_tar(store, &right, &diff_id).unwrap();
    assert_eq!(
        (info.data_size, info.entries, info.tar_size),
        (5, 1, right.len() as u64)
    );
    // A second time nothing is read.
    let mut never = NeverRead;
    let limits = Limits::for_blob(0);
    assert_eq!(
        store
            .unpack_layer(&diff_id, Input::Stream(&mut never), &Encoding::Layer, &limits)
            .unwrap(),
        info
    );
    assert_eq!(
        fs::read(store.layer(&diff_id).unwrap().unwrap().join("f")).unwrap(),
        b"right"
    );
    assert!(store.layer(&got).unwrap().is_none() && !store.has_layer(&got));
    assert_eq!(store.layers().unwrap().into_iter().collect::<Vec<_>>(), [diff_id]);
}

struct NeverRead;

impl Read for NeverRead {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        panic!("the layer was read again")
    }
}

#[test]
fn half_made_layers_are_swept_unless_somebody_makes_them() {
    let Home { store, .. } = &home();
    let tar = tar("x");
    let diff_id = DiffId::of(&tar);
    let work = store.layers_dir().join(format!(".work-{}", diff_id.hex()));
    let leave = || {
        fs::create_dir_all(work.join("tree/old")).unwrap();
        fs::write(work.join("tree/f"), "half").unwrap();
    };
    leave();
    let holder = File::open(&work).unwrap();
    rustix::fs::flock(&holder, rustix::fs::FlockOperation::LockExclusive).unwrap();
    Store::open(store.root()).unwrap();
    assert!(work.exists(), "somebody holds it");
    drop(holder);
    Store::open(store.root()).unwrap();
    assert!(!work.exists());
    // Left behind and then wanted, with no sweep in between.
    leave();
    unpack_tar(store, &tar, &diff_id).unwrap();
    let tree = store.layer(&diff_id).unwrap().unwrap();
    assert_eq!(all_files(&tree), ["f"]);
    assert!(!work.exists());
}

#[test]
fn what_is_damaged_hides_nothing_else_and_is_replaced() {
    let Home { store, .. } = &home();
    let images = ["a", "b", "c"].map(|name| {
        let image = put_image(store, name, true);
        store.tag(&image, &name.parse().unwrap()).unwrap();
        image
    });
    let names = || -> Vec<String> {
        let images = store.images().unwrap();
        images.iter().map(|image| image.reference.familiar()).collect()
    };
    // A flipped bit in a config, in a tag's file, in a layer's description.
    let config = store.document(&images[0].config_digest).unwrap().unwrap();
    let path = store.blob_dir().join(images[0].config_digest.hex());
    fs::write(&path, config.to_ascii_uppercase()).unwrap();
    let reference: Reference = "b".parse().unwrap();
    let tag = store.image_dir().join(format!(
        "{}.json",
        Digest::of(reference.to_string().as_bytes()).hex()
    ));
    fs::write(tag, "{").unwrap();
    fs::write(
        store
            .layers_dir()
            .join(images[2].diff_ids[0].hex())
            .join("layer.json"),
        "{",
    )
    .unwrap();
    assert_eq!(names(), ["c:latest"]);
    assert_eq!(
        store.resolve(&images[2].config_digest.short()).unwrap().digest,
        images[2].digest
    );
    // Asked for by name, the damage is told.
    assert!(matches!(store.resolve("a"), Err(Error::Digest { .. })));
    assert!(matches!(store.resolve("b"), Err(Error::Broken { .. })));
    assert!(matches!(
        store.layer(&images[2].diff_ids[0]),
        Err(Error::Broken { .. })
    ));
    // What comes again from outside takes the place of what is damaged.
    store.put_document(&config).unwrap();
    store.tag(&images[1], &reference).unwrap();
    assert_eq!(names(), ["a:latest", "b:latest", "c:latest"]);
}

#[test]
fn images_are_found_by_every_name_they_have() {
    let Home { store, .. } = &home();
    let (one, two) = (put_image(store, "one", true), put_image(store, "two", false));
    let reference: Reference = "localhost:5000/iris:v1".parse().unwrap();
    store.tag(&one, &reference).unwrap();
    store.tag(&two, &"iris:v2".parse().unwrap()).unwrap();
    for name in [
        "localhost:5000/iris:v1".to_owned(),
        one.digest.to_string(),
        one.digest.hex(),
        one.config_digest.to_string(),
        one.config_digest.hex()[..12].to_owned(),
        one.digest.hex()[..12].to_owned(),
        format!("localhost:5000/iris@{}", one.digest),
    ] {
        assert_eq!(store.resolve(&name).unwrap().digest, one.digest, "{name}");
    }
    assert_eq!(
        store.resolve("localhost:5000/iris:v1").unwrap().reference,
        Some(reference.clone())
    );
    assert_eq!(
        store.resolve("docker.io/library/iris:v2").unwrap().digest,
        two.digest
    );
    for name in [
        "iris",
        "iris:v3",
        "nothing",
        "",
        "ABC",
        "0000000000",
        &Digest::of(b"?").to_string(),
        "a b",
    ] {
        let error = store.resolve(name).unwrap_err();
        assert_eq!(error.to_string(), format!("no such image: {name}"));
    }
    let list = store.images().unwrap();
    assert_eq!(
        list.iter().map(|i| i.reference.familiar()).collect::<Vec<_>>(),
        ["iris:v2", "localhost:5000/iris:v1"]
    );
    assert_eq!((list[0].size, list[1].size), (0, 3));
    assert_eq!(list[1].created.as_deref(), Some("2026-01-01T00:00:00Z"));
    assert_eq!(store.missing_layers(&one).len(), 0);
    assert_eq!(store.missing_layers(&two)[0].0.size, tar("two").len() as u64);
    assert_eq!(store.layers_in_use().unwrap().len(), 2);

    // The tag moves on; what ran before is still found by its digest.
    store.tag(&two, &reference).unwrap();
    assert_eq!(
        store.resolve("localhost:5000/iris:v1").unwrap().digest,
        two.digest
    );
    assert_eq!(store.resolve(&one.digest.to_string()).unwrap().digest, one.digest);
    store.remove_tag(&reference).unwrap();
    assert!(matches!(store.remove_tag(&reference), Err(Error::NoImage(_))));
    assert!(matches!(
        store.set_tag(&reference, &Descriptor::of("x", b"?")),
        Err(Error::NoBlob { .. })
    ));
}

#[test]
fn an_id_that_could_mean_two_images_is_refused() {
    let Home { store, .. } = &home();
    // Enough images that two share their first two hex digits.
    for i in 0..40 {
        let image = put_image(store, &i.to_string(), false);
        store.tag(&image, &format!("many:{i}").parse().unwrap()).unwrap();
    }
    let prefixes: Vec<String> = store
        .images()
        .unwrap()
        .iter()
        .map(|i| i.config_digest.hex()[..2].to_owned())
        .collect();
    let double = prefixes
        .iter()
        .find(|p| prefixes.iter().filter(|q| q == p).count() > 1)
        .expect("no pair in 40");
    let error = store.resolve(double).unwrap_err();
    assert!(error.to_string().contains("is ambiguous"), "{error}");
}

#[test]
fn a_short_name_may_be_that_of_an_image_made_here() {
    let Home { store, .. } = &home();
    let made = put_image(store, "made", false);
    store.tag(&made, &"localhost/app:v1".parse().unwrap()).unwrap();
    assert_eq!(store.resolve("app:v1").unwrap().digest, made.digest);
    for elsewhere in ["docker.io/library/app:v1", "app:v2", "other.example/app:v1"] {
        assert!(
            matches!(store.resolve(elsewhere), Err(Error::NoImage(_))),
            "{elsewhere}"
        );
    }
    let fetched = put_image(store, "fetched", false);
    store.tag(&fetched, &"app:v1".parse().unwrap()).unwrap();
    assert_eq!(store.resolve("app:v1").unwrap().digest, fetched.digest);
}

#[test]
fn an_index_means_this_boards_image() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", false);
    let mut here = Descriptor::new(OCI_MANIFEST, image.digest, 1);
    here.platform = Some(Platform::host());
    let mut other = Descriptor::new(OCI_MANIFEST, Digest::of(b"other"), 1);
    other.platform = Some(Platform::new("linux", "s390x", None));
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [other, here]})
        .to_string();
    let digest = store.put_document(index.as_bytes()).unwrap();
    let target = Descriptor::new(OCI_INDEX, digest, index.len() as u64);
    store.set_tag(&"multi".parse().unwrap(), &target).unwrap();
    assert_eq!(store.resolve("multi").unwrap().digest, image.digest);
    assert_eq!(
        store.resolve(&format!("multi@{digest}")).unwrap().digest,
        image.digest
    );
    assert!(matches!(store.image(&digest), Err(Error::Image { .. })));
}

#[test]
fn documents_and_records_are_verified_when_they_are_read() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", false);
    store.tag(&image, &"x".parse().unwrap()).unwrap();
    let blob = store.blob_dir().join(image.config_digest.hex());
    let good = fs::read(&blob).unwrap();
    fs::write(&blob, "{}").unwrap();
    let error = store.resolve("x").unwrap_err();
    assert!(
        matches!(error, Error::Digest { .. }) && error.class() == Class::Corrupt,
        "{error}"
    );
    fs::write(&blob, good).unwrap();
    store.resolve("x").unwrap();
    let (_, record) = durable::names(&store.image_dir()).unwrap().pop().unwrap();
    fs::write(&record, "{\"version\":2}").unwrap();
    assert!(matches!(store.resolve("x"), Err(Error::Broken { .. })));
    assert!(store.tags().unwrap().is_empty());
    let config = br#"{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}"#;
    let config_digest = store.put_document(config).unwrap();
    let manifest = serde_json::json!({"schemaVersion": 2,
        "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": config.len()},
        "layers": [{"mediaType": OCI_LAYER, "digest": Digest::of(b""), "size": 0}]});
    let digest = store.put_document(manifest.to_string().as_bytes()).unwrap();
    let error = store.image(&digest).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("the manifest has 1 layers and the config 0"),
        "{error}"
    );
}

#[test]
fn many_threads_at_once() {
    let Home { store, .. } = &home();
    let image = put_image(store, "x", false);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let image = &image;
            scope.spawn(move || {
                for round in 0..4 {
                    // All write the same document and each its own tag, and all fight for one.
                    store
                        .put_document(format!("document {round}").as_bytes())
                        .unwrap();
                    store
                        .tag(image, &format!("many:{thread}-{round}").parse().unwrap())
                        .unwrap();
                    store.tag(image, &"one:latest".parse().unwrap()).unwrap();
                    if round % 2 == 0 {
                        store
                            .remove_tag(&format!("many:{thread}-{round}").parse().unwrap())
                            .unwrap();
                    }
                    assert_eq!(store.resolve("one").unwrap().digest, image.digest);
                }
            });
        }
    });
    assert_eq!(store.tags().unwrap().len(), 8 * 2 + 1);
    assert!(
        all_files(&store.partial_dir()).is_empty(),
        "{:?}",
        all_files(&store.partial_dir())
    );
}
