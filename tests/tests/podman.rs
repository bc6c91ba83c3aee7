//! Debian's podman with our runtime in crun's place, rootless: what people type, with its exit codes and output.

use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;
use wherry_tests::bundle::{self, Ids};
use wherry_tests::stage::{Stage, skip, wait_for};

const BOX: &str = "localhost/box:1";

/// podman with a store, a runtime directory and our runtime of its own.
struct Podman {
    stage: Stage,
}

impl Podman {
    fn words(&self) -> Vec<String> {
        let path = |path: PathBuf| path.to_string_lossy().into_owned();
        let (home, run) = (
            self.stage.directory().join("home"),
            self.stage.directory().join("run"),
        );
        let mut words: Vec<String> = ["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]
            .map(str::to_owned)
            .into();
        words.extend(["--events-backend".into(), "file".into()]);
        words.extend(["--root".into(), path(home.join("storage"))]);
        words.extend(["--runroot".into(), path(run.join("storage"))]);
        words.extend(["--tmpdir".into(), path(run.join("tmp"))]);
        words.extend(["--runtime".into(), path(self.stage.program("wherry-runtime"))]);
        words
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = self.stage.command("timeout");
        command
            .args(["--foreground", "--kill-after=5", "60", "podman"])
            .args(self.words())
            .args(words);
        command
    }

    fn call(&self, words: &[&str]) -> Result<Output> {
        self.command(words).stdin(Stdio::null()).output()
    }

    /// Must end with this code; its standard output, then its standard error.
    fn ends(&self, code: i32, words: &[&str]) -> Result<(String, String)> {
        let output = self.call(words)?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_owned();
        let (out, err) = (text(&output.stdout), text(&output.stderr));
        if output.status.code() != Some(code) {
            return Err(Error::other(format!(
                "podman {}: {}, not {code}: {err}",
                words.join(" "),
                output.status
            )));
        }
        Ok((out, err))
    }

    fn must(&self, words: &[&str]) -> Result<String> {
        Ok(self.ends(0, words)?.0)
    }

    fn status(&self, name: &str) -> Result<String> {
        self.must(&["inspect", "--format", "{{.State.Status}}", name])
    }

    /// The first process of a container, as the host sees it.
    fn process(&self, name: &str) -> Result<String> {
        self.must(&["inspect", "--format", "{{.State.Pid}}", name])
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // The store has files of other ids, and a process holds the user namespace: both are podman's to end.
        let _ = self.call(&["rm", "--force", "--all", "--time", "0"]);
        let _ = self.call(&["rmi", "--force", "--all"]);
        let _ = self.call(&["system", "migrate"]);
    }
}

/// What this machine lacks.
fn lacking() -> Option<&'static str> {
    let found = |name: &str| {
        let places = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/bin", "/sbin"];
        places.iter().any(|place| Path::new(place).join(name).exists())
    };
    let missing = [
        ("podman", "the package podman"),
        ("newuidmap", "the package uidmap"),
        ("script", "the package bsdutils"),
    ];
    missing
        .iter()
        .find(|(name, _)| !found(name))
        .map(|(_, what)| *what)
}

#[test]
fn podman_runs_containers_with_it() -> Result<()> {
    if let Some(what) = lacking() {
        skip("podman_runs_containers_with_it", what);
        return Ok(());
    }
    let podman = Podman {
        stage: Stage::with(&["wherry-runtime"])?,
    };
    let owner = podman.stage.uid();
    if let Err(error) = Ids::range(owner, owner) {
        skip("podman_runs_containers_with_it", &error.to_string());
        return Ok(());
    }
    let root = podman.stage.directory().join("root");
    let archive = podman.stage.directory().join("box.tar");
    bundle::make_root(&root)?;
    let tar = Command::new("tar")
        .arg("-C")
        .arg(&root)
        .arg("-cf")
        .arg(&archive)
        .arg(".")
        .status()?;
    assert!(tar.success());
    podman.must(&["import", &archive.to_string_lossy(), BOX])?;

    let run = ["run", "--rm", "--network", "none", BOX];
    let with = |words: &[&'static str]| -> Vec<&str> { run.iter().chain(words).copied().collect() };
    assert_eq!(podman.must(&with(&["echo", "hello"]))?, "hello");
    podman.ends(7, &with(&["sh", "-c", "exit 7"]))?;
    podman.ends(127, &with(&["no-such-program"]))?;
    podman.ends(126, &with(&["/etc"]))?;

    let loop_of_two = "echo out; echo err >&2; trap 'exit 3' TERM; while :; do sleep 0.1; done";
    podman.must(&[
        "run",
        "-d",
        "--name",
        "a",
        "--network",
        "none",
        BOX,
        "sh",
        "-c",
        loop_of_two,
    ])?;
    assert_eq!(podman.status("a")?, "running");
    wait_for("both lines are in the log", Duration::from_secs(20), || {
        let (out, err) = podman.ends(0, &["logs", "a"]).ok()?;
        (out == "out" && err == "err").then_some(())
    })?;

    assert_eq!(podman.must(&["exec", "a", "echo", "inside"])?, "inside");
    podman.ends(5, &["exec", "a", "sh", "-c", "exit 5"])?;
    podman.ends(127, &["exec", "a", "no-such-program"])?;
    assert_eq!(podman.must(&["exec", "--user", "1:1", "a", "id", "-u"])?, "1");
    // A terminal at both ends.
    let interactive = podman.command(&[
        "exec",
        "-it",
        "a",
        "sh",
        "-c",
        "test -t 0 && test -t 1 && echo both; exit 4",
    ]);
    let line: Vec<String> = interactive
        .get_args()
        .map(|word| format!("'{}'", word.to_string_lossy().replace('\'', r"'\''")))
        .collect();
    let mut script = podman.stage.command("script");
    script.args(["-qec", &format!("timeout {}", line.join(" ")), "/dev/null"]);
    let output = script.output()?;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        shown.contains("both") && output.status.code() == Some(4),
        "{shown} {:?}",
        output.status
    );

    let paused = podman.call(&["pause", "a"])?;
    if paused.status.success() {
        assert_eq!(podman.status("a")?, "paused");
        podman.must(&["unpause", "a"])?;
    } else {
        let line = String::from_utf8_lossy(&paused.stderr).into_owned();
        assert!(line.to_lowercase().contains("cgroup"), "{line}");
        skip("podman pause", line.trim_end());
    }

    let first = podman.process("a")?;
    podman.must(&["stop", "--time", "30", "a"])?;
    assert_eq!(
        podman.must(&["inspect", "--format", "{{.State.ExitCode}}", "a"])?,
        "3"
    );
    podman.must(&["start", "a"])?;
    let second = podman.process("a")?;
    assert!(first != second && podman.status("a")? == "running");
    podman.must(&["restart", "--time", "30", "a"])?;
    assert!(podman.process("a")? != second && podman.status("a")? == "running");
    podman.must(&["kill", "a"])?;
    assert_eq!(podman.must(&["wait", "a"])?, "137");
    podman.must(&["rm", "a"])?;
    assert_eq!(podman.must(&["ps", "--all", "--quiet"])?, "");

    podman.must(&[
        "run",
        "-d",
        "--name",
        "b",
        "--network",
        "none",
        BOX,
        "sleep",
        "1000",
    ])?;
    podman.must(&["rm", "--force", "--time", "0", "b"])?;
    let state = podman.stage.directory().join("run/wherry");
    let left: Vec<_> = std::fs::read_dir(state)?
        .flatten()
        .map(|entry| entry.file_name())
        .collect();
    assert!(left.is_empty(), "left in the runtime's state: {left:?}");
    Ok(())
}
