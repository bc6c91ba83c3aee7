//! From two images of a publisher's store to a layer of a board's store, over a registry.

#![cfg(feature = "publish")]

use std::fs::File;
use std::io::{Cursor, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::thread;

use super::*;
use crate::digest::DiffId;
use crate::manifest::{Descriptor, OCI_CONFIG, OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST};
use crate::reference::Reference;
use crate::registry::{Client, Login, Options};
use crate::serve;
use crate::store::{Image, Input, Store};
use crate::unpack::{Encoding, Limits};

const TOKEN: &str = "let me write";

fn noise(length: usize, mut seed: u64) -> Vec<u8> {
    (0..length)
        .map(|_| {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        })
        .collect()
}

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (path, bytes) in files {
        let mut header = [0; 512];
        header[..path.len()].copy_from_slice(path.as_bytes());
        header[100..108].copy_from_slice(b"0000644\0");
        header[108..124].copy_from_slice(b"0000000\x000000000\0");
        header[124..136].copy_from_slice(format!("{:011o}\0", bytes.len()).as_bytes());
        header[136..148].copy_from_slice(b"00000000000\0");
        header[148..156].fill(b' ');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend_from_slice(&header);
        tar.extend_from_slice(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.resize(tar.len() + 1024, 0);
    tar
}

/// The layer's blob: gzip as most are, or zstd at its best, which a patch without a source cannot beat.
fn blob(tar: &[u8]) -> (&'static str, Vec<u8>) {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(tar).unwrap();
    let gzip = encoder.finish().unwrap();
    let zstd = zstd::encode_all(tar, 19).unwrap();
    if zstd.len() < gzip.len() {
        (OCI_LAYER_ZSTD, zstd)
    } else {
        (OCI_LAYER_GZIP, gzip)
    }
}

/// Puts an image with these layer tars into the store, blobs and all, under a name.
fn image(store: &Store, name: &str, tars: &[Vec<u8>]) -> Image {
    let mut layers = Vec::new();
    for tar in tars {
        let (media_type, blob) = blob(tar);
        let layer = Descriptor::of(media_type, &blob);
        store.put_blob(&layer.digest, layer.size, &mut &blob[..]).unwrap();
        let file = store.blob(&layer.digest).unwrap().unwrap();
        let limits = Limits::for_blob(layer.size);
        store
            .unpack_layer(&DiffId::of(tar), Input::Blob(&file), &Encoding::Layer, &limits)
            .unwrap();
        layers.push(layer);
    }
    let diff_ids: Vec<_> = tars.iter().map(|tar| DiffId::of(tar).to_string()).collect();
    let config = serde_json::json!({"architecture": "arm64", "os": "linux", "config": {"Labels": {"name": name}},
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let config = serde_json::to_vec(&config).unwrap();
    store.put_document(&config).unwrap();
    let manifest = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": Descriptor::of(OCI_CONFIG, &config), "layers": layers});
    let digest = store
        .put_document(&serde_json::to_vec(&manifest).unwrap())
        .unwrap();
    let image = store.image(&digest).unwrap();
    store.tag(&image, &Reference::parse(name).unwrap()).unwrap();
    image
}

fn send(store: &Store, client: &Client, image: &Image, reference: &Reference) {
    for blob in image.manifest.layers.iter().chain([&image.manifest.config]) {
        let mut file = store.blob(&blob.digest).unwrap().unwrap();
        client
            .put_blob(reference, &blob.digest, blob.size, &mut file, &mut |_| {})
            .unwrap();
    }
    let bytes = store.document(&image.digest).unwrap().unwrap();
    client
        .put_manifest(reference, OCI_MANIFEST, &bytes, None)
        .unwrap();
}

fn client() -> Client {
    let login = Login::Password {
        user: "x".into(),
        secret: TOKEN.into(),
    };
    Client::new(Options {
        login: Some(login),
        docker_config: None,
        ..Options::default()
    })
}

/// A tar-diff whose output is one file of `times` copies of an old file's `size` bytes.
fn endless_patch(path: &str, size: u64, times: u64) -> Vec<u8> {
    let mut operations = Vec::new();
    let mut operation = |code: u8, mut size: u64, payload: &[u8]| {
        operations.push(code);
        while size >= 0x80 {
            operations.push(size as u8 | 0x80);
            size >>= 7;
        }
        operations.push(size as u8);
        operations.extend_from_slice(payload);
    };
    let mut header = tar(&[("f", b"")])[..512].to_vec();
    header[124..136].copy_from_slice(format!("{:011o}\0", size * times).as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    operation(0, 512, &header);
    operation(1, path.len() as u64, path.as_bytes());
    for _ in 0..times {
        operation(4, 0, b"");
        operation(2, size, b"");
    }
    let operations = zstd::encode_all(&operations[..], 3).unwrap();
    [&wherry_delta::tardiff::MAGIC_V1[..], &operations].concat()
}

/// Runs `with` while a registry of our own listens.
fn with_registry(root: &Path, with: impl FnOnce(SocketAddr)) {
    let options = serve::Options {
        listen: "127.0.0.1:0".parse().unwrap(),
        token: Some(TOKEN.into()),
        unix: None,
    };
    let server = serve::Server::bind(options, Store::open(root).unwrap()).unwrap();
    let (address, stopper) = (server.addr().unwrap(), server.stopper());
    thread::scope(|scope| {
        scope.spawn(|| server.run().unwrap());
        // Stops the server when `with` panics too: the scope would wait for it for ever.
        struct Stop(serve::Stopper);
        impl Drop for Stop {
            fn drop(&mut self) {
                self.0.stop();
            }
        }
        let _stop = Stop(stopper);
        with(address);
    });
}

/// A base layer that stays, a layer that is changed a little, and a layer that is all new.
fn old_and_new(store: &Store) -> (Image, Image) {
    let base = tar(&[("etc/os-release", b"NAME=test\n")]);
    let server = noise(200_000, 1);
    let mut changed = server.clone();
    changed.splice(50_000..50_010, noise(3_000, 2));
    let old = image(
        store,
        "registry.test/app:1",
        &[
            base.clone(),
            tar(&[("app/server-1.0", &server), ("app/model", &noise(9_000, 3))]),
        ],
    );
    let new = image(
        store,
        "registry.test/app:2",
        &[
            base,
            tar(&[("app/server-1.1", &changed), ("app/model", &noise(9_000, 3))]),
            tar(&[("new", &noise(5_000, 4))]),
        ],
    );
    (old, new)
}

/// Changes a file's bytes and not its time, as a bad card does.
fn write_as_before(path: &Path, bytes: &[u8]) {
    let before = std::fs::metadata(path).unwrap().modified().unwrap();
    std::fs::write(path, bytes).unwrap();
    File::options()
        .write(true)
        .open(path)
        .unwrap()
        .set_modified(before)
        .unwrap();
}

/// The whole way, against whatever registry listens at `address`.
fn the_whole_way(address: SocketAddr, codec: Codec) {
    let dir = tempfile::tempdir().unwrap();
    let [publisher, board] = ["publisher", "board"].map(|name| Store::open(&dir.path().join(name)).unwrap());
    let (old, new) = old_and_new(&publisher);
    let target = Reference::parse(&format!("{address}/app:2")).unwrap();
    let client = client();

    let early = push(&publisher, &client, &old, &new, &target, None).unwrap_err();
    assert!(early.to_string().contains("push it first"), "{early}");
    send(&publisher, &client, &new, &target);
    assert!(list(&client, &target, &new.digest).unwrap().is_empty());
    let same = push(&publisher, &client, &new, &new, &target, None).unwrap_err();
    assert!(same.to_string().contains("both are the image"), "{same}");

    let published = push(&publisher, &client, &old, &new, &target, Some(codec)).unwrap();
    assert_eq!(published.layers.len(), 2);
    assert_eq!(published.layers[0].layer, new.manifest.layers[1].digest);
    assert!(published.layers[0].patch.unwrap() < 5_000);
    assert_eq!(published.layers[0].codec, Some(codec));
    assert_eq!(published.layers[1].patch, None, "noise has no smaller patch");
    // Published again it is the same artifact: the encoder is deterministic.
    assert_eq!(
        push(&publisher, &client, &old, &new, &target, Some(codec)).unwrap(),
        published
    );
    let listed = list(&client, &target, &new.digest).unwrap();
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0].0, published.artifact);

    // A board with nothing, and one with another image, find nothing.
    assert_eq!(find(&client, &target, &new.digest, &board).unwrap(), None);
    image(&board, "registry.test/other:1", &[tar(&[("x", b"y")])]);
    assert_eq!(find(&client, &target, &new.digest, &board).unwrap(), None);

    let tars = [
        tar(&[("etc/os-release", b"NAME=test\n")]),
        tar(&[
            ("app/server-1.0", &noise(200_000, 1)),
            ("app/model", &noise(9_000, 3)),
        ]),
    ];
    let here = image(&board, "registry.test/app:1", &tars);
    assert_eq!(here.config_digest, old.config_digest);
    let found = find(&client, &target, &new.digest, &board).unwrap().unwrap();
    assert_eq!(found.artifact, published.artifact);
    assert_eq!(
        found.layer(&new.manifest.layers[0].digest),
        None,
        "the board has it"
    );
    assert_eq!(found.layer(&new.manifest.layers[2].digest), None, "no patch");
    let layer = found.layer(&new.manifest.layers[1].digest).unwrap();
    let mut partial = board.partial(&layer.blob.digest, layer.blob.size).unwrap();
    client
        .fetch_blob(&target, &layer.blob, &mut partial, &mut |_| {})
        .unwrap();
    let full = new.manifest.layers[1].size;

    // A layer that is not the expected one leaves nothing behind.
    let wrong = DiffId::of(b"something else");
    let error = apply(&board, &found, layer, &partial.file().unwrap(), full, &wrong).unwrap_err();
    assert!(
        matches!(error, Error::Store(store::Error::DiffId { .. })),
        "{error}"
    );
    assert!(!board.has_layer(&wrong));

    // An old file that is not what it was is noticed, too.
    let victim = board
        .layer(&here.diff_ids[1])
        .unwrap()
        .unwrap()
        .join("app/server-1.0");
    let good = std::fs::read(&victim).unwrap();
    let mut bad = good.clone();
    bad[100_000] ^= 1;
    write_as_before(&victim, &bad);
    let error = apply(
        &board,
        &found,
        layer,
        &partial.file().unwrap(),
        full,
        &new.diff_ids[1],
    )
    .unwrap_err();
    match codec {
        Codec::TarDiff => assert!(
            matches!(error, Error::Store(store::Error::DiffId { .. })),
            "{error}"
        ),
        Codec::Wherry => assert!(error.to_string().contains("output from byte 0 on"), "{error}"),
    }
    write_as_before(&victim, &good[..1000]);
    let error = apply(
        &board,
        &found,
        layer,
        &partial.file().unwrap(),
        full,
        &new.diff_ids[1],
    )
    .unwrap_err();
    let expected = match codec {
        Codec::TarDiff => "old file ends",
        Codec::Wherry => "does not list the files",
    };
    assert!(error.to_string().contains(expected), "{error}");
    write_as_before(&victim, &good);

    // However long the manifest says that the layer is, a patch makes no more than it and its source are good for.
    let endless = endless_patch("app/server-1.0", 200_000, 4000);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&endless).unwrap();
    std::io::Seek::rewind(&mut file).unwrap();
    let mut other = layer.clone();
    other.blob.media_type = Codec::TarDiff.media_type().to_owned();
    let error = apply(&board, &found, &other, &file, u64::MAX, &wrong).unwrap_err();
    assert!(error.to_string().contains("the layer has more than"), "{error}");

    apply(
        &board,
        &found,
        layer,
        &partial.file().unwrap(),
        full,
        &new.diff_ids[1],
    )
    .unwrap();
    let made = board.layer(&new.diff_ids[1]).unwrap().unwrap();
    let theirs = publisher.layer(&new.diff_ids[1]).unwrap().unwrap();
    assert!(
        std::fs::read(made.join("app/server-1.1")).unwrap()
            == std::fs::read(theirs.join("app/server-1.1")).unwrap()
    );
}

#[test]
fn over_our_own_registry() {
    let dir = tempfile::tempdir().unwrap();
    with_registry(dir.path(), |address| the_whole_way(address, Codec::Wherry));
}

#[test]
fn over_our_own_registry_as_tar_diff() {
    let dir = tempfile::tempdir().unwrap();
    with_registry(dir.path(), |address| the_whole_way(address, Codec::TarDiff));
}

#[test]
fn without_a_codec_the_smaller_patch_is_published() {
    let dir = tempfile::tempdir().unwrap();
    with_registry(&dir.path().join("registry"), |address| {
        let store = Store::open(&dir.path().join("store")).unwrap();
        let (old, new) = old_and_new(&store);
        let target = Reference::parse(&format!("{address}/app:2")).unwrap();
        let client = client();
        send(&store, &client, &new, &target);
        let size = |codec| push(&store, &client, &old, &new, &target, codec).unwrap().layers[0].patch;
        let sizes = [Codec::TarDiff, Codec::Wherry].map(|codec| size(Some(codec)).unwrap());
        assert_eq!(size(None), sizes.into_iter().min());
    });
}

#[test]
fn what_is_no_delta_is_passed_over() {
    let dir = tempfile::tempdir().unwrap();
    with_registry(&dir.path().join("registry"), |address| {
        let store = Store::open(&dir.path().join("store")).unwrap();
        let (old, new) = old_and_new(&store);
        let target = Reference::parse(&format!("{address}/app:2")).unwrap();
        let client = client();
        send(&store, &client, &new, &target);
        let subject = Descriptor::new(OCI_MANIFEST, new.digest, 1);
        client
            .put_blob(
                &target,
                &Digest::of(b"{}"),
                2,
                &mut Cursor::new(b"{}"),
                &mut |_| {},
            )
            .unwrap();
        let artifact = serde_json::json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": ARTIFACT_TYPE,
            "config": Descriptor::of(manifest::OCI_EMPTY, b"{}"), "layers": [], "subject": subject,
            "annotations": {"io.github.containers.delta.source-config": old.config_digest}});
        let bytes = serde_json::to_vec(&artifact).unwrap();
        client
            .put_manifest(
                &target.with_digest(Digest::of(&bytes)),
                OCI_MANIFEST,
                &bytes,
                Some(&subject),
            )
            .unwrap();
        assert_eq!(find(&client, &target, &new.digest, &store).unwrap(), None);
        assert!(
            list(&client, &target, &new.digest)
                .unwrap_err()
                .to_string()
                .contains("image-manifest")
        );
    });
}
