//! The state directory keeps its promise to later versions: a golden sample of format 1 opens, and a directory of a
//! newer format is refused and left as it is.
//!
//! The sample (`fixtures/state-v1.tar.gz`) holds an image with its blobs, a container that has exited with its log, and
//! the records of an agent. It was written by the first version of the format, with
//! `WHERRY_WRITE_GOLDEN=fixtures/state-v1.tar.gz cargo test --test state`, and is never written again: a new format
//! gets a sample of its own beside it.

use std::collections::BTreeMap;
use std::io::{Error, Result};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use wherry_tests::board::Board;
use wherry_tests::sample::{Entry, Layout, Tree, digest_of};
use wherry_tests::stage::wait_for;

const IMAGE: &str = "localhost/golden:1";

fn sample() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/state-v1.tar.gz")
}

/// The golden sample as a board's state directory, owned by the ordinary user.
fn golden() -> Result<Board> {
    let board = Board::new()?;
    let archive = board.stage.directory().join("state.tar.gz");
    std::fs::copy(sample(), &archive)?;
    let mut command = board.stage.command("tar");
    command
        .arg("-xzpf")
        .arg(&archive)
        .arg("-C")
        .arg(&board.root)
        .arg("--no-same-owner");
    let output = command.output()?;
    if !output.status.success() {
        return Err(Error::other(
            String::from_utf8_lossy(&output.stderr).trim_end().to_owned(),
        ));
    }
    Ok(board)
}

/// Every file below with what it is: mode, time of change, contents.
fn snapshot(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut all = BTreeMap::new();
    let mut open = vec![root.to_owned()];
    while let Some(path) = open.pop() {
        let Ok(metadata) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        let contents = if metadata.is_file() {
            digest_of(&std::fs::read(&path).unwrap_or_default())
        } else {
            String::new()
        };
        if metadata.is_dir() {
            open.extend(
                std::fs::read_dir(&path)
                    .into_iter()
                    .flatten()
                    .flatten()
                    .map(|entry| entry.path()),
            );
        }
        all.insert(
            path,
            format!("{:o} {} {contents}", metadata.mode(), metadata.mtime_nsec()),
        );
    }
    all
}

/// Makes the state that the sample holds.
fn make(board: &Board) -> Result<()> {
    let layout = board.stage.directory().join("layout");
    let mut writing = Layout::create(&layout)?;
    let layer = writing.layer(&Tree::from([
        ("etc".to_owned(), Entry::Directory),
        (
            "etc/hello".to_owned(),
            Entry::File(b"a golden sample\n".to_vec(), 0o644),
        ),
        ("etc/link".to_owned(), Entry::Symlink("hello".to_owned())),
    ]))?;
    writing.image(
        "golden",
        &[layer],
        serde_json::json!({"Cmd": ["/etc/hello"], "Env": ["PATH=/"]}),
    )?;
    board.import(&layout, "golden", IMAGE)?;
    // A text is no program: the container exits with 126, and its record says so.
    let output = board
        .stage
        .run(&board.root, &["run", "--name", "golden", IMAGE])?;
    if output.status.code() != Some(126) {
        return Err(Error::other(format!(
            "{}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        )));
    }
    let pod = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: golden\nspec:\n  restartPolicy: Never\n  containers:\n  - name: \
         main\n    image: {IMAGE}\n"
    );
    board.stage.write(&board.pods.join("golden.yaml"), &pod)?;
    let _agent = board.agent("agent", &[])?;
    wait_for("the pod has a record", Duration::from_secs(20), || {
        let recorded =
            |name: &str| std::fs::read_dir(board.root.join(name)).is_ok_and(|mut all| all.next().is_some());
        (recorded("desired") && recorded("pods") && board.must(&["ps", "-aq"]).ok()?.lines().count() == 2)
            .then_some(())
    })?;
    Ok(())
}

#[test]
fn the_golden_sample_opens() -> Result<()> {
    if let Some(to) = std::env::var_os("WHERRY_WRITE_GOLDEN") {
        let board = Board::new()?;
        make(&board)?;
        board.stage.kill_all();
        let status = Command::new("tar")
            .args([
                "--sort=name",
                "--owner=0",
                "--group=0",
                "--numeric-owner",
                "--exclude=*.sock",
                "-czpf",
            ])
            .arg(&to)
            .arg("-C")
            .arg(&board.root)
            .arg(".")
            .status()?;
        assert!(status.success());
    }
    let board = golden()?;
    let images = board.must(&["images"])?;
    assert!(images.contains("localhost/golden"), "{images}");
    let containers = board.must(&["ps", "-a"])?;
    assert!(
        containers.contains("Exited (126)") && containers.contains("golden"),
        "{containers}"
    );
    assert_eq!(board.inspect("golden")?["observed"]["exitCode"], 126);
    board.must(&["logs", "golden"])?;

    // The agent goes on from the records, although the directory that it watches is empty by now.
    let agent = board.agent("agent", &[])?;
    wait_for("the agent has looked", Duration::from_secs(20), || {
        let gone = board.must(&["ps", "-aq"]).ok()?.lines().count() == 1;
        gone.then_some(())
    })?;
    let log = agent.log();
    assert!(!log.contains("ERROR") && !log.contains("damaged"), "{log}");

    // And the state is as good as any: its container can be removed, its image pushed about and run again.
    board.must(&["rm", "golden"])?;
    let code = board
        .stage
        .run(&board.root, &["run", "--rm", IMAGE])?
        .status
        .code();
    assert_eq!(code, Some(126));
    Ok(())
}

#[test]
fn a_newer_format_is_refused_and_left_alone() -> Result<()> {
    let board = golden()?;
    board
        .stage
        .write(&board.root.join("version"), "wherry-state 2\n")?;
    let before = snapshot(&board.root);
    let pods = board.pods.to_string_lossy();
    for args in [
        &["images"][..],
        &["ps", "-a"],
        &["run", "--rm", IMAGE],
        &["rm", "golden"],
        &["pull", "localhost/other:1"],
        &["tag", IMAGE, "localhost/golden:2"],
        &["serve", "--listen", "127.0.0.1:0"],
        &["agent", "--watch", &pods],
    ] {
        let (code, line) = board.refused(args)?;
        println!("{code}: {line}");
        assert!(line.contains("newer"), "{args:?}: {line}");
        assert_eq!(snapshot(&board.root), before, "{args:?} touched it");
    }
    Ok(())
}
