//! Images between Wherry and the tools that people have: Debian's docker-registry and skopeo, byte for byte, and over
//! a link that cuts every connection.

use serde_json::Value;
use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use wherry_tests::board::{Board, Serve, TOKEN, import};
use wherry_tests::flaky::{CutMode, Options, Proxy};
use wherry_tests::http;
use wherry_tests::registry::{Registry, skopeo};
use wherry_tests::sample::digest_of;

const CUT: u64 = 256 * 1024;
const PATIENCE: Duration = Duration::from_secs(20);

/// The sample layout, which `make test` builds before the tests.
fn layout() -> Result<PathBuf> {
    let samples = std::env::var_os("WHERRY_SAMPLE_DIR");
    let samples =
        samples.ok_or_else(|| Error::other("WHERRY_SAMPLE_DIR is not set: run this through `make test`"))?;
    Ok(Path::new(&samples).join("iris"))
}

/// The documents and blobs of one image of a layout, by digest.
fn contents(layout: &Path, tag: &str) -> Result<(String, BTreeMap<String, Vec<u8>>)> {
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json"))?)?;
    let name = "org.opencontainers.image.ref.name";
    let entry = index["manifests"]
        .as_array()
        .into_iter()
        .flatten()
        .find(|entry| entry["annotations"][name] == tag);
    let entry = entry.ok_or_else(|| Error::other(format!("no {tag} in {}", layout.display())))?;
    let digest = entry["digest"].as_str().unwrap_or_default().to_owned();
    let read = |digest: &str| {
        std::fs::read(
            layout
                .join("blobs/sha256")
                .join(digest.trim_start_matches("sha256:")),
        )
    };
    let manifest: Value = serde_json::from_slice(&read(&digest)?)?;
    let mut all = BTreeMap::from([(digest.clone(), read(&digest)?)]);
    for descriptor in manifest["layers"]
        .as_array()
        .into_iter()
        .flatten()
        .chain([&manifest["config"]])
    {
        let digest = descriptor["digest"].as_str().unwrap_or_default();
        all.insert(digest.to_owned(), read(digest)?);
    }
    for (digest, bytes) in &all {
        assert_eq!(&digest_of(bytes), digest);
    }
    Ok((digest, all))
}

/// The same from a registry: what it answers, byte for byte.
fn served(
    address: SocketAddr,
    repository: &str,
    manifest: &str,
    blobs: &[String],
) -> Result<BTreeMap<String, Vec<u8>>> {
    let mut all = BTreeMap::new();
    for digest in blobs {
        let kind = if digest == manifest { "manifests" } else { "blobs" };
        let answer = http::get(
            address,
            &format!("/v2/{repository}/{kind}/{digest}"),
            None,
            PATIENCE,
        )?;
        if answer.status != 200 {
            return Err(Error::other(format!("{kind}/{digest}: {}", answer.status)));
        }
        all.insert(digest.clone(), answer.body);
    }
    Ok(all)
}

/// A copy of the layout that the ordinary user can read.
fn readable(board: &Board, layout: &Path) -> Result<PathBuf> {
    let to = board.stage.directory().join("layout");
    skopeo(&[
        "copy",
        "-q",
        &format!("oci:{}:v1", layout.display()),
        &format!("oci:{}:v1", to.display()),
    ])?;
    skopeo(&[
        "copy",
        "-q",
        &format!("oci:{}:v2", layout.display()),
        &format!("oci:{}:v2", to.display()),
    ])?;
    Ok(to)
}

#[test]
fn what_skopeo_pushed_to_docker_registry_arrives_byte_for_byte_through_256_kb_cuts() -> Result<()> {
    let board = Board::new()?;
    let layout = layout()?;
    let registry = Registry::start(&board.stage, "docker-registry")?;
    let target = format!("docker://{}/lab/iris:v1", registry.address());
    skopeo(&[
        "copy",
        "-q",
        "--dest-tls-verify=false",
        &format!("oci:{}:v1", layout.display()),
        &target,
    ])?;

    let (digest, contents) = contents(&layout, "v1")?;
    let needed: u64 = contents.values().map(|bytes| bytes.len() as u64).sum();
    assert!(needed >= 8_000_000, "{needed} bytes are no full pull of 8 MB");
    for mode in [CutMode::Rst, CutMode::Fin] {
        let mut options = Options::good(registry.address());
        (options.cut, options.cut_mode) = (Some(CUT..=CUT), mode);
        let link = Proxy::start(options)?;
        let root = board.stage.private_directory(&format!("{mode:?}"))?;
        let name = format!("{}/lab/iris:v1", link.address());
        let pulled = board.stage.must(&root, &["pull", "-q", "--keep-blobs", &name])?;
        assert_eq!(pulled, digest, "{mode:?}");

        let counters = link.counters();
        let ratio = counters.down as f64 / needed as f64;
        println!(
            "{mode:?}: {} bytes for {needed} needed, ratio {ratio:.4}, {} cuts",
            counters.down, counters.cuts
        );
        assert!(ratio <= 1.01, "{mode:?}: {ratio}");
        assert!(
            counters.cuts >= needed / CUT - 1,
            "{mode:?}: {} cuts",
            counters.cuts
        );

        // What is in the store now is what was pushed: asked of the store through `wherry serve`.
        let serve = Serve::start(&board.stage, &format!("serve-{mode:?}"), &root)?;
        let digests: Vec<String> = contents.keys().cloned().collect();
        assert_eq!(
            served(serve.address, "lab/iris", &digest, &digests)?,
            contents,
            "{mode:?}"
        );
    }
    Ok(())
}

#[test]
fn skopeo_copies_out_of_wherry_serve_byte_for_byte_and_into_it() -> Result<()> {
    let board = Board::new()?;
    let layout = readable(&board, &layout()?)?;
    let store = board.stage.private_directory("registry")?;
    let serve = Serve::start(&board.stage, "serve", &store)?;
    let name = format!("{}/lab/iris:v1", serve.address);
    import(&board.stage, &board.root, &layout, "v1", &name)?;
    board.must(&["push", "--creds", &format!("any:{TOKEN}"), &name])?;

    let out = board.stage.directory().join("out");
    let to = format!("oci:{}:v1", out.display());
    skopeo(&[
        "copy",
        "-q",
        "--src-tls-verify=false",
        &format!("docker://{name}"),
        &to,
    ])?;
    assert_eq!(contents(&out, "v1")?, contents(&layout, "v1")?);

    let from = format!("oci:{}:v2", layout.display());
    let pushed = format!("docker://{}/lab/iris:v2", serve.address);
    let refused = skopeo(&["copy", "-q", "--dest-tls-verify=false", &from, &pushed]);
    assert!(refused.is_err(), "a push without a token was taken");
    let creds = format!("any:{TOKEN}");
    skopeo(&[
        "copy",
        "-q",
        "--dest-tls-verify=false",
        "--dest-creds",
        &creds,
        &from,
        &pushed,
    ])?;
    let (digest, contents) = contents(&layout, "v2")?;
    let digests: Vec<String> = contents.keys().cloned().collect();
    assert_eq!(served(serve.address, "lab/iris", &digest, &digests)?, contents);
    Ok(())
}

#[test]
fn a_delta_kept_in_docker_registry_updates_a_board() -> Result<()> {
    let board = Board::new()?;
    let layout = readable(&board, &layout()?)?;
    let registry = Registry::start(&board.stage, "docker-registry")?;
    let publisher = board.stage.private_directory("publisher")?;
    let name = |version: &str| format!("{}/lab/iris:{version}", registry.address());
    for version in ["v1", "v2"] {
        import(&board.stage, &publisher, &layout, version, &name(version))?;
        board.stage.must(&publisher, &["push", &name(version)])?;
    }
    board
        .stage
        .must(&publisher, &["delta", "push", &name("v1"), &name("v2")])?;

    let link = Proxy::start(Options::good(registry.address()))?;
    let through = |version: &str| format!("{}/lab/iris:{version}", link.address());
    board.must(&["pull", "--keep-blobs", &through("v1")])?;
    link.reset_counters();
    board.must(&["pull", &through("v2")])?;
    let (_, old) = contents(&layout, "v1")?;
    let (_, new) = contents(&layout, "v2")?;
    let changed = new
        .iter()
        .filter(|(digest, _)| !old.contains_key(*digest))
        .map(|(_, bytes)| bytes.len())
        .max();
    let changed = changed.unwrap_or(0) as u64;
    let wire = link.counters().down;
    println!("{wire} bytes over the wire for a changed layer of {changed}");
    assert!(
        wire * 2 < changed,
        "{wire} bytes over the wire for a changed layer of {changed}"
    );

    // The new image is whole: it runs.
    let answer = board.must(&["run", "--rm", "--entrypoint", "/bin/ls", &through("v2"), "/app"])?;
    assert_eq!(answer.trim(), "iris-server");
    Ok(())
}

/// Calls an image of a layout one for another processor: its documents are written anew.
fn foreign(layout: &Path, tag: &str, architecture: &str) -> Result<()> {
    let blobs = layout.join("blobs/sha256");
    let path = |digest: &Value| blobs.join(digest.as_str().unwrap_or_default().trim_start_matches("sha256:"));
    let store = |value: &Value| -> Result<(String, usize)> {
        let bytes = serde_json::to_vec(value)?;
        let digest = digest_of(&bytes);
        std::fs::write(blobs.join(digest.trim_start_matches("sha256:")), &bytes)?;
        Ok((digest, bytes.len()))
    };
    let read = |path: &Path| -> Result<Value> { Ok(serde_json::from_slice(&std::fs::read(path)?)?) };
    let mut index = read(&layout.join("index.json"))?;
    let entries = index["manifests"].as_array_mut().into_iter().flatten();
    for entry in entries.filter(|entry| entry["annotations"]["org.opencontainers.image.ref.name"] == tag) {
        let mut manifest = read(&path(&entry["digest"]))?;
        let mut config = read(&path(&manifest["config"]["digest"]))?;
        config["architecture"] = architecture.into();
        let (digest, size) = store(&config)?;
        manifest["config"]["digest"] = digest.into();
        manifest["config"]["size"] = size.into();
        let (digest, size) = store(&manifest)?;
        entry["digest"] = digest.into();
        entry["size"] = size.into();
    }
    std::fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)
}

/// A publisher whose machine is of another kind than the boards: pulled, pushed and made into a delta all the same.
#[test]
fn a_delta_for_boards_of_another_platform() -> Result<()> {
    const PLATFORM: &str = "linux/riscv64";
    let board = Board::new()?;
    let layout = readable(&board, &layout()?)?;
    foreign(&layout, "v1", "riscv64")?;
    foreign(&layout, "v2", "riscv64")?;
    let registry = Registry::start(&board.stage, "docker-registry")?;
    let name = |version: &str| format!("{}/lab/iris:{version}", registry.address());
    for version in ["v1", "v2"] {
        let target = format!("docker://{}", name(version));
        skopeo(&[
            "copy",
            "-q",
            "--dest-tls-verify=false",
            &format!("oci:{}:{version}", layout.display()),
            &target,
        ])?;
    }
    for version in ["v1", "v2"] {
        board.must(&["pull", "--keep-blobs", "--platform", PLATFORM, &name(version)])?;
    }
    let (_, line) = board.refused(&[
        "delta",
        "push",
        "--platform",
        "linux/arm64",
        &name("v1"),
        &name("v2"),
    ])?;
    assert!(
        line.contains("is here for linux/riscv64, not for linux/arm64"),
        "{line}"
    );
    board.must(&["delta", "push", "--platform", PLATFORM, &name("v1"), &name("v2")])?;
    let told = board.must(&["delta", "show", &name("v2")])?;
    assert!(told.lines().count() > 1, "{told}");
    Ok(())
}
