//! Bad input gets one clear line and an exit code, and leaves nothing half-made: no partial file, no work directory, no
//! layer, no image, nothing outside the state directory. What may stay is what was verified before the bad part came: a
//! manifest or config, whole, under its own digest, where the next try finds it.

use std::collections::BTreeSet;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::time::Duration;
use wherry_tests::board::{BOX, Board, refusal};
use wherry_tests::http::{Answer, Response, Server};
use wherry_tests::registry::Registry;
use wherry_tests::sample::{Entry, Layout, Tree, digest_of, gzip, tar};
use wherry_tests::stage::{free_port, skip, wait_for};

/// Every file below, by its path. What is compared is what a later command could find.
fn files(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut open = vec![root.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(&directory).into_iter().flatten().flatten() {
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                open.push(path);
            } else {
                found.insert(path.strip_prefix(root).unwrap_or(&path).to_owned());
            }
        }
    }
    found
}

/// Whether the file is a document (no layer) that is all that its name says.
fn is_whole_document(root: &Path, path: &Path) -> bool {
    let Some(hex) = path.strip_prefix("blobs/sha256").ok().and_then(Path::to_str) else {
        return false;
    };
    let bytes = std::fs::read(root.join(path)).unwrap_or_default();
    digest_of(&bytes) == format!("sha256:{hex}")
        && serde_json::from_slice::<serde_json::Value>(&bytes).is_ok()
}

/// Runs the command, which must be refused with one line that holds all of `parts`, and must leave the files alone.
fn refused_without_a_trace(board: &Board, args: &[&str], parts: &[&str]) -> Result<()> {
    let before = files(&board.root);
    let (code, line) = board.refused(args)?;
    println!("{code}: {line}");
    for part in parts {
        if !line.contains(part) {
            return Err(Error::other(format!("{args:?}: no {part:?} in {line:?}")));
        }
    }
    let after = files(&board.root);
    let gone: Vec<_> = before.difference(&after).collect();
    let left: Vec<_> = after
        .difference(&before)
        .filter(|path| !is_whole_document(&board.root, path))
        .collect();
    if !left.is_empty() || !gone.is_empty() {
        return Err(Error::other(format!(
            "{args:?}: left {left:?}, took away {gone:?}"
        )));
    }
    Ok(())
}

/// A board whose store has been opened once, so that only what a command itself leaves shows.
fn opened() -> Result<Board> {
    let board = Board::with_box()?;
    board.must(&["images"])?;
    Ok(board)
}

#[test]
fn no_such_image_and_no_such_registry() -> Result<()> {
    let board = opened()?;
    let registry = Registry::start(&board.stage, "docker-registry")?;
    let missing = format!("{}/lab/nothing:1", registry.address());
    refused_without_a_trace(&board, &["pull", &missing], &["wherry: ", "lab/nothing"])?;
    refused_without_a_trace(&board, &["run", "--rm", &missing], &["lab/nothing"])?;

    let nobody = format!("127.0.0.1:{}/lab/iris:v1", free_port()?);
    refused_without_a_trace(&board, &["pull", &nobody], &["127.0.0.1"])?;
    refused_without_a_trace(&board, &["pull", "Not A Name"], &["Not A Name"])?;
    refused_without_a_trace(
        &board,
        &["run", "--rm", "--pull=never", "localhost/none:1"],
        &["localhost/none:1"],
    )?;
    for verb in ["stop", "start", "rm", "logs", "inspect"] {
        refused_without_a_trace(&board, &[verb, "nobody"], &["nobody"])?;
    }
    refused_without_a_trace(
        &board,
        &["tag", "localhost/none:1", "localhost/other:1"],
        &["localhost/none:1"],
    )?;
    Ok(())
}

/// A registry that lies: its manifest is not what its digest says, or its layer is not.
fn liar(manifest_lies: bool) -> Result<(Server, String)> {
    let layer = gzip(&tar(&Tree::from([(
        "file".to_owned(),
        Entry::File(vec![7; 1000], 0o644),
    )]))?)?;
    let told = digest_of(b"something else");
    let architecture = wherry_tests::sample::architecture();
    let config = format!(
        "{{\"architecture\":\"{architecture}\",\"os\":\"linux\",\"config\":{{}},\
         \"rootfs\":{{\"type\":\"layers\",\"diff_ids\":[\"{told}\"]}}}}"
    );
    let manifest = serde_json::json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {
            "mediaType": "application/vnd.oci.image.config.v1+json",
            "digest": digest_of(config.as_bytes()),
            "size": config.len(),
        },
        "layers": [{
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": if manifest_lies { digest_of(&layer) } else { told.clone() },
            "size": layer.len(),
        }],
    })
    .to_string();
    let name = if manifest_lies {
        format!("@{}", digest_of(b"another"))
    } else {
        ":1".to_owned()
    };
    let config_path = format!("/blobs/{}", digest_of(config.as_bytes()));
    let server = Server::start("127.0.0.1:0", move |request| {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        Answer::Whole(match request.path.as_str() {
            "/v2/" => Response::new(200, "application/json", "{}"),
            path if path.contains("/manifests/sha256-") => Response::new(404, "application/json", "{}"),
            path if path.contains("/manifests/") => Response::new(200, kind, manifest.clone()),
            path if path.ends_with(&config_path) => {
                Response::new(200, "application/octet-stream", config.clone())
            }
            path if path.contains("/blobs/") => Response::new(200, "application/octet-stream", layer.clone()),
            _ => Response::new(404, "application/json", "{}"),
        })
    })?;
    let name = format!("{}/lab/liar{name}", server.address());
    Ok((server, name))
}

#[test]
fn a_registry_that_lies_about_digests() -> Result<()> {
    let board = opened()?;
    for manifest_lies in [true, false] {
        let (_server, name) = liar(manifest_lies)?;
        refused_without_a_trace(&board, &["pull", &name], &["sha256:"])?;
    }
    Ok(())
}

#[test]
fn layers_that_lead_outside() -> Result<()> {
    let board = opened()?;
    let outside = board.stage.private_directory("outside")?;
    let file = || Entry::File(b"escaped".to_vec(), 0o644);
    let far = format!("{}etc/evil", "../".repeat(20));
    let absolute = outside.to_string_lossy().into_owned();
    let cases: Vec<(&str, Tree)> = vec![
        ("dots", Tree::from([(far, file())])),
        (
            "dots inside",
            Tree::from([("a/../../../outside/evil".to_owned(), file())]),
        ),
        (
            "symlink up",
            Tree::from([
                (
                    "a".to_owned(),
                    Entry::Symlink("../../../../../../../../tmp".to_owned()),
                ),
                ("a/wherry-evil".to_owned(), file()),
            ]),
        ),
        (
            "symlink absolute",
            Tree::from([
                ("a".to_owned(), Entry::Symlink(absolute.clone())),
                ("a/evil".to_owned(), file()),
            ]),
        ),
        (
            "hard link",
            Tree::from([(
                "a".to_owned(),
                Entry::Link("../../../../../../../etc/passwd".to_owned()),
            )]),
        ),
        (
            "hard link through a symlink",
            Tree::from([
                ("a".to_owned(), Entry::Symlink("/etc".to_owned())),
                ("b".to_owned(), Entry::Link("a/passwd".to_owned())),
            ]),
        ),
    ];
    for (index, (what, tree)) in cases.iter().enumerate() {
        let layout = board.stage.directory().join(format!("evil-{index}"));
        let mut writing = Layout::create(&layout)?;
        let layer = writing.layer(tree)?;
        writing.image("evil", &[layer], serde_json::json!({"Cmd": ["/x"]}))?;
        let name = format!("oci:{}:evil", layout.display());
        println!("{what}:");
        refused_without_a_trace(&board, &["pull", &name], &["wherry: "])
            .map_err(|error| Error::other(format!("{what}: {error}")))?;
        assert!(files(&outside).is_empty(), "{what}: {:?}", files(&outside));
        assert!(
            !Path::new("/tmp/wherry-evil").exists() && !Path::new("/etc/evil").exists(),
            "{what}"
        );
    }
    Ok(())
}

#[test]
fn a_pod_file_with_an_unknown_field_is_named_with_its_line() -> Result<()> {
    let board = Board::with_box()?;
    let good = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  containers:\n  - name: c\n    image: {BOX}\n"
        )
    };
    board.stage.write(&board.pods.join("good.yaml"), &good("good"))?;
    let agent = board.agent("agent", &[])?;
    wait_for("the good pod runs", Duration::from_secs(20), || {
        board.must(&["ps"]).ok().filter(|table| table.contains("Up"))
    })?;
    let bad = good("bad").replace("    image:", "    imagePullPolizei: Never\n    image:");
    board.stage.write(&board.pods.join("bad.yaml"), &bad)?;
    let line = wait_for("the bad file is named", Duration::from_secs(20), || {
        agent
            .log()
            .lines()
            .find(|line| line.contains("imagePullPolizei"))
            .map(str::to_owned)
    })?;
    println!("{line}");
    assert!(
        line.contains("bad.yaml") && line.contains('8'),
        "neither file nor line 8: {line}"
    );
    let running = board.must(&["ps", "-aq"])?;
    assert_eq!(running.lines().count(), 1, "{running}");
    Ok(())
}

/// The pull runs inside a mount namespace of the ordinary user's own, with a small tmpfs as the state directory.
#[test]
fn a_full_disk_is_named_and_nothing_half_made_stays() -> Result<()> {
    let board = Board::new()?;
    let probe = board
        .stage
        .command("unshare")
        .args(["-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"])
        .output()?;
    if !probe.status.success() {
        skip(
            "a full disk",
            "a tmpfs cannot be mounted in a user namespace here",
        );
        return Ok(());
    }
    let samples = std::env::var_os("WHERRY_SAMPLE_DIR");
    let samples =
        samples.ok_or_else(|| Error::other("WHERRY_SAMPLE_DIR is not set: run this through `make test`"))?;
    let layout = board.stage.directory().join("layout");
    let copied = std::process::Command::new("cp")
        .arg("-r")
        .arg(Path::new(&samples).join("iris"))
        .arg(&layout)
        .status()?;
    assert!(copied.success());
    let script = format!(
        "mount -t tmpfs -o size=6m tmpfs '{root}' && '{wherry}' --root '{root}' images >/dev/null || exit 99\n\
         df -k --output=used '{root}' > '{stage}/home/used'\n\
         '{wherry}' --root '{root}' pull oci:'{layout}':v1 >/dev/null\n\
         echo $? > '{stage}/home/code'\n\
         cp -r '{root}' '{stage}/home/after'; df -k --output=used '{root}' >> '{stage}/home/used'\n\
         '{wherry}' --root '{root}' images -q\n",
        root = board.root.display(),
        wherry = board.stage.program("wherry").display(),
        stage = board.stage.directory().display(),
        layout = layout.display(),
    );
    let output = board
        .stage
        .command("unshare")
        .args(["-Urm", "--", "/bin/sh", "-c", &script])
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
    println!("{text}");
    let home = board.stage.directory().join("home");
    let read = |name: &str| std::fs::read_to_string(home.join(name)).unwrap_or_default();
    assert_ne!(output.status.code(), Some(99), "{text}");
    assert_eq!(text.lines().count(), 1, "{text}");
    assert!(text.to_lowercase().contains("space"), "{text}");
    assert!(
        !matches!(read("code").trim(), "0" | ""),
        "exit code {:?}",
        read("code")
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "", "an image is listed");
    // The tmpfs is gone with its namespace: what was in it has been copied out.
    let after = home.join("after");
    let left: Vec<_> = files(&after)
        .into_iter()
        .filter(|path| !is_whole_document(&after, path))
        .collect();
    assert_eq!(left, ["lock", "version"].map(PathBuf::from));
    let used: Vec<u64> = read("used")
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect();
    assert!(
        used.len() == 2 && used[1] <= used[0] + 64,
        "kilobytes used before and after: {used:?}"
    );
    Ok(())
}

#[test]
fn a_wrong_command_line_is_one_line_and_125() -> Result<()> {
    let board = Board::new()?;
    for args in [
        &["bogus"][..],
        &["run"],
        &["run", "--rm", "--nonsense", BOX],
        &["ps", "--format"],
    ] {
        let (code, line) = refusal(&board.stage, &board.root, args)?;
        assert_eq!(code, 125, "{args:?}: {line}");
    }
    Ok(())
}
