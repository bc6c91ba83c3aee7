//! Images of every kind that registries hold: compressions, foreign layers, platforms.

use std::io::Cursor;

use wherry_images::manifest::{
    DOCKER_CONFIG, DOCKER_LAYER_GZIP, DOCKER_MANIFEST, Descriptor, OCI_CONFIG, OCI_INDEX, OCI_LAYER,
    OCI_LAYER_GZIP, OCI_LAYER_ZSTD, OCI_MANIFEST,
};
use wherry_images::pull::{Error, PullOptions, pull};
use wherry_images::push::push;
use wherry_images::{DiffId, Digest, Reference};

use super::parts::{DockerRegistry, gzip, noise, store, tar};
use super::{Served, client, keep, reference, writer};

/// Sends a blob and says what it is.
fn blob(name: &Reference, kind: &str, bytes: &[u8]) -> serde_json::Value {
    let (digest, size) = (Digest::of(bytes), bytes.len() as u64);
    writer()
        .put_blob(name, &digest, size, &mut Cursor::new(bytes), &mut |_| {})
        .unwrap();
    serde_json::json!({"mediaType": kind, "digest": digest, "size": size})
}

/// Sends an image of layers that are there, for a platform.
fn image(
    name: &Reference,
    kinds: (&str, &str),
    layers: &[serde_json::Value],
    diff_ids: &[DiffId],
    platform: &str,
) -> (Digest, Vec<u8>) {
    let mut parts = platform.split('/');
    let mut config = serde_json::json!({"os": parts.next(), "architecture": parts.next(),
        "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    if let Some(variant) = parts.next() {
        config["variant"] = variant.into();
    }
    let config = blob(name, kinds.1, config.to_string().as_bytes());
    let manifest =
        serde_json::json!({"schemaVersion": 2, "mediaType": kinds.0, "config": config, "layers": layers});
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    writer()
        .put_manifest(&name.with_digest(digest), kinds.0, &bytes, None)
        .unwrap();
    writer().put_manifest(name, kinds.0, &bytes, None).unwrap();
    (digest, bytes)
}

pub(super) fn layers_of_every_compression_are_pulled_and_pushed_as_they_are() {
    let (registry, served) = (DockerRegistry::start(), Served::start());
    let tars: Vec<Vec<u8>> = (0..3u64)
        .map(|n| {
            tar(&[
                (&format!("file{n}"), &noise(n + 20, 50_000)),
                ("last", n.to_string().as_bytes()),
            ])
        })
        .collect();
    let diff_ids: Vec<DiffId> = tars.iter().map(|tar| DiffId::of(tar)).collect();
    let packed = [
        (OCI_LAYER, tars[0].clone()),
        (OCI_LAYER_GZIP, gzip(&tars[1])),
        (OCI_LAYER_ZSTD, zstd::encode_all(&tars[2][..], 3).unwrap()),
    ];
    let platform = wherry_images::Platform::host().to_string();
    let name = reference(registry.address, "mixed:v1");
    let layers: Vec<_> = packed
        .iter()
        .map(|(kind, bytes)| blob(&name, kind, bytes))
        .collect();
    let (digest, manifest) = image(&name, (OCI_MANIFEST, OCI_CONFIG), &layers, &diff_ids, &platform);
    // docker's own kinds, too.
    let docker = reference(registry.address, "docker:v1");
    let layer = blob(&docker, DOCKER_LAYER_GZIP, &packed[1].1);
    let (docker_digest, _) = image(
        &docker,
        (DOCKER_MANIFEST, DOCKER_CONFIG),
        &[layer],
        &diff_ids[1..2],
        &platform,
    );

    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let pulled = pull(&store, &client(), &name, &keep(), &mut |_| {}).unwrap();
    assert_eq!(pulled.digest, digest);
    for (n, diff_id) in diff_ids.iter().enumerate() {
        let tree = store.layer(diff_id).unwrap().unwrap();
        assert_eq!(
            std::fs::read(tree.join("last")).unwrap(),
            n.to_string().as_bytes()
        );
    }
    assert_eq!(
        pull(&store, &client(), &docker, &keep(), &mut |_| {})
            .unwrap()
            .digest,
        docker_digest
    );
    // On to another registry: every byte, and so every digest, as it was.
    let there = reference(served.address, "mixed:v2");
    push(
        &store,
        &writer(),
        &store.image(&digest).unwrap(),
        &there,
        &mut |_| {},
    )
    .unwrap();
    let again = client().get_manifest(&there).unwrap();
    assert_eq!((again.digest, again.bytes), (digest, manifest));
    for (kind, bytes) in &packed {
        let here = client().blob_bytes(&there, &Descriptor::of(kind, bytes)).unwrap();
        assert!(here == *bytes, "{kind}");
    }
}

pub(super) fn foreign_and_unknown_layers_are_refused_before_any_is_fetched() {
    let registry = DockerRegistry::start();
    let layer = gzip(&tar(&[("a", b"a")]));
    let platform = wherry_images::Platform::host().to_string();
    let diff_ids = [DiffId::of(b"x")];
    for (at, (kind, said)) in [
        (
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "is a foreign layer",
        ),
        (
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "is a foreign layer",
        ),
        (
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
            "encrypted layers are not supported",
        ),
        ("application/x-shellscript", "is not a layer's"),
    ]
    .into_iter()
    .enumerate()
    {
        let name = reference(registry.address, &format!("odd{at}:v1"));
        let layer = blob(&name, kind, &layer);
        image(&name, (OCI_MANIFEST, OCI_CONFIG), &[layer], &diff_ids, &platform);
        let folder = tempfile::tempdir().unwrap();
        let store = store(folder.path());
        let client = client();
        let error = pull(&store, &client, &name, &PullOptions::default(), &mut |_| {}).unwrap_err();
        assert!(
            matches!(error, Error::Document { .. }) && error.to_string().contains(said),
            "{error}"
        );
        assert!(client.wire().down < 4096 && store.tags().unwrap().is_empty());
    }
}

pub(super) fn the_platform_that_is_asked_for_is_chosen_by_variant() {
    let registry = DockerRegistry::start();
    let name = reference(registry.address, "many:v1");
    let mut entries = Vec::new();
    let mut digests = Vec::new();
    for platform in [
        "linux/amd64",
        "linux/arm/v6",
        "linux/arm/v7",
        "linux/arm64/v8",
        "linux/riscv64",
    ] {
        let (digest, bytes) = image(&name, (OCI_MANIFEST, OCI_CONFIG), &[], &[], platform);
        let mut parts = platform.split('/');
        let mut named = serde_json::json!({"os": parts.next(), "architecture": parts.next()});
        if let Some(variant) = parts.next() {
            named["variant"] = variant.into();
        }
        entries.push(serde_json::json!({"mediaType": OCI_MANIFEST, "digest": digest, "size": bytes.len(), "platform": named}));
        digests.push((platform, digest));
    }
    let index =
        serde_json::json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": entries}).to_string();
    writer()
        .put_manifest(&name, OCI_INDEX, index.as_bytes(), None)
        .unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path());
    let digest_of = |platform: &str| digests.iter().find(|(p, _)| *p == platform).map(|(_, d)| *d);
    for (asked, wanted) in [
        ("linux/arm/v7", "linux/arm/v7"),
        ("linux/arm/v6", "linux/arm/v6"),
        // An older image runs on a newer core, not the other way round.
        ("linux/arm/v8", "linux/arm/v7"),
        ("linux/arm64", "linux/arm64/v8"),
        ("linux/riscv64", "linux/riscv64"),
    ] {
        let options = PullOptions {
            platform: asked.parse().unwrap(),
            ..PullOptions::default()
        };
        let pulled = pull(&store, &client(), &name, &options, &mut |_| {}).unwrap();
        assert_eq!(Some(pulled.digest), digest_of(wanted), "{asked}");
    }
    let options = PullOptions {
        platform: "linux/s390x".parse().unwrap(),
        ..PullOptions::default()
    };
    let error = pull(&store, &client(), &name, &options, &mut |_| {}).unwrap_err();
    assert!(
        matches!(error, Error::Platform { .. }) && error.to_string().contains("linux/arm/v7"),
        "{error}"
    );
}
