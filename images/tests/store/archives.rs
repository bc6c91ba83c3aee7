//! Archives that others made: GNU tar, gzip, zstd, skopeo; and what overlay makes of the trees.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::Command;

use wherry_images::layout::Layout;
use wherry_images::store::Input;
use wherry_images::unpack::{Encoding, Limits};
use wherry_images::{DiffId, Platform, Reference};

use crate::stage::{assert_same, have, make_tree, open, ordinary, picture, program, run, shared_dir, unpack};

pub(crate) fn archives_that_gnu_tar_made_come_back_as_they_were() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 300);
    let want = picture(&source);
    let store = open(&dir.path().join("state"));
    let names: Vec<_> = fs::read_dir(&source)
        .unwrap()
        .map(|e| e.unwrap().file_name())
        .collect();
    for (i, options) in [
        &["--format=gnu"][..],
        &["--format=gnu", "--sparse"],
        &["--format=posix"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
    ]
    .into_iter()
    .enumerate()
    {
        let tar = dir.path().join(format!("{i}.tar"));
        // Names without "./" in front: the second archive of the same tree must not be the first one.
        let mut command = Command::new("tar");
        run(command
            .args(options)
            .arg("-cf")
            .arg(&tar)
            .arg("-C")
            .arg(&source)
            .arg("--")
            .args(&names));
        let info = unpack(&store, &tar).unwrap();
        let tree = store.layer(&info.diff_id).unwrap().unwrap();
        // GNU's form has whole seconds, and that is what the picture shows.
        assert_same(&picture(&tree), &want, &format!("{options:?}"));
        let blocks = fs::metadata(tree.join("sparse")).unwrap().blocks();
        if options.contains(&"--sparse") {
            assert!(blocks < 1000, "{options:?}: {blocks} blocks of a sparse file");
        }
    }
}

pub(crate) fn compressed_layers_through_the_cage() {
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 100);
    let tar = dir.path().join("l.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&tar)
        .arg("-C")
        .arg(&source)
        .arg("."));
    let bytes = fs::read(&tar).unwrap();
    let diff_id = DiffId::of(&bytes);
    for (program, suffix) in [("gzip", "gz"), ("zstd", "zst")] {
        if !have(program) {
            eprintln!("SKIPPED: {program} is not installed");
            continue;
        }
        let packed = dir.path().join(format!("l.{suffix}"));
        let output = run(Command::new(program).arg("-c").arg(&tar));
        fs::write(&packed, output.stdout).unwrap();
        let store = open(&dir.path().join(suffix));
        let mut stream: Box<dyn Read> = Box::new(File::open(&packed).unwrap());
        let limits = Limits::for_blob(fs::metadata(&packed).unwrap().len());
        let info = store
            .unpack_layer(&diff_id, Input::Stream(&mut stream), &Encoding::Layer, &limits)
            .unwrap();
        assert_eq!(info.tar_size, bytes.len() as u64);
        let tree = store.layer(&diff_id).unwrap().unwrap();
        assert_same(&picture(&tree), &picture(&source), suffix);
    }
}

/// Overlay in a user namespace, as an ordinary user: what the lower layer has and the upper one hides is hidden.
pub(crate) fn whiteouts_and_opaque_directories_hide_in_an_overlay() {
    let Some(mut ingest) = ordinary("sh") else { return };
    if !have("unshare") {
        eprintln!("SKIPPED: unshare is not installed");
        return;
    }
    let dir = shared_dir();
    let at = dir.path();
    let script = r#"
        set -e
        cd "$1"; cage=$2
        mkdir -p a/d a/o a/r b/d b/o b/r/new
        echo x > a/d/gone; echo x > a/d/stays; echo x > a/o/old; echo x > a/r/old
        : > b/d/.wh.gone; : > b/o/.wh..wh..opq; echo x > b/o/new; : > b/.wh.r; 
        tar -cf a.tar -C a d o r
        tar -cf b.tar -C b .wh.r d o r
        for l in a b; do $cage ingest "$PWD/state" $l.tar sha256:$(sha256sum $l.tar | cut -d' ' -f1); done
        tree() { echo "$PWD/state/layers/$(sha256sum $1.tar | cut -d' ' -f1)/tree"; }
        mkdir m u w
        unshare -Urm sh -ec "
            mount -t overlay overlay -o userxattr,lowerdir=$(tree b):$(tree a),upperdir=u,workdir=w m
            find m -mindepth 1 -printf '%P\n' | sort"
    "#;
    let output = run(ingest.args(["-c", script, "sh"]).arg(at).arg(program()));
    let seen = String::from_utf8(output.stdout).unwrap();
    assert_eq!(
        seen.lines().collect::<Vec<_>>(),
        ["d", "d/stays", "o", "o/new", "r", "r/new"]
    );
    clean_as_owner(at);
}

/// Root's temporary directory may hold an ordinary user's files, which root can remove; nothing to do otherwise.
pub(crate) fn clean_as_owner(dir: &Path) {
    for name in ["state", "m", "u", "w"] {
        let _ = fs::remove_dir_all(dir.join(name));
    }
}

pub(crate) fn an_image_that_skopeo_wrote() {
    if !have("skopeo") {
        eprintln!("SKIPPED: skopeo is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    make_tree(&source, 20);
    let layer = dir.path().join("layer.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&layer)
        .arg("-C")
        .arg(&source)
        .arg("."));
    // What `docker save` writes, made by hand; skopeo turns it into a layout with a compressed layer.
    let diff_id = DiffId::of(&fs::read(&layer).unwrap());
    let platform = Platform::host();
    let config = serde_json::json!({
        "architecture": platform.architecture, "os": "linux", "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [diff_id]},
    });
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    let manifest = r#"[{"Config":"config.json","RepoTags":["iris:v1"],"Layers":["layer.tar"]}]"#;
    fs::write(dir.path().join("manifest.json"), manifest).unwrap();
    run(Command::new("tar").current_dir(dir.path()).args([
        "-cf",
        "image.tar",
        "manifest.json",
        "config.json",
        "layer.tar",
    ]));
    for tag in ["v1", "v2"] {
        run(Command::new("skopeo").current_dir(dir.path()).args([
            "--insecure-policy",
            "copy",
            "-q",
            "docker-archive:image.tar",
            &format!("oci:layout:{tag}"),
        ]));
    }
    let store = open(&dir.path().join("state"));
    let layout = Layout::open(&dir.path().join("layout")).unwrap();
    let reference: Reference = "iris:v1".parse().unwrap();
    let image = store
        .import_layout(&layout, Some("v1"), &platform, Some(&reference), true)
        .unwrap();
    assert_eq!(image.config.config.cmd, ["/hello"]);
    assert_eq!(store.resolve("iris:v1").unwrap(), image);
    assert_same(
        &picture(&store.layer(&diff_id).unwrap().unwrap()),
        &picture(&source),
        "skopeo",
    );
    assert!(store.has_blob(&image.manifest.layers[0].digest), "kept");
    let error = layout.find(Some("v3")).unwrap_err().to_string();
    assert!(
        error.contains("no image \"v3\" in the layout, only: v1, v2"),
        "{error}"
    );
    assert!(layout.find(None).is_err());

    // The same layout with a layer that is another one.
    let blob = dir
        .path()
        .join("layout/blobs/sha256")
        .join(image.manifest.layers[0].digest.hex());
    fs::set_permissions(&blob, fs::Permissions::from_mode(0o644)).unwrap();
    fs::write(&blob, fs::read(dir.path().join("image.tar")).unwrap()).unwrap();
    let store = open(&dir.path().join("state2"));
    let error = store
        .import_layout(&layout, Some("v1"), &platform, Some(&reference), false)
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains(&format!("expected diffID {diff_id}, got")),
        "{error}"
    );
    assert!(store.images().unwrap().is_empty());
    assert_eq!(fs::read_dir(store.root().join("layers")).unwrap().count(), 0);
}
