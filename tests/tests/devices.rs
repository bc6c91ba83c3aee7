//! Devices in a container, and parts of its confinement switched off by name.

use std::io::Result;
use std::path::PathBuf;
use wherry_tests::board::{BOX, Board};
use wherry_tests::stage::skip;

/// A node that every user may open; it is given under another name.
const NODE: &str = "/dev/zero";

/// A CDI specification of this machine, for as long as the test runs.
struct Specification(PathBuf);

impl Specification {
    fn write(text: &str) -> Result<Self> {
        std::fs::create_dir_all("/run/cdi")?;
        let path = PathBuf::from(format!("/run/cdi/wherry-test-{}.json", std::process::id()));
        std::fs::write(&path, text)?;
        Ok(Self(path))
    }
}

impl Drop for Specification {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn a_container_has_the_nodes_that_it_was_given_and_no_others() -> Result<()> {
    let board = Board::with_box()?;
    let list = |flags: &[&str]| {
        let mut args = vec!["run", "--rm"];
        args.extend(flags);
        args.extend([BOX, "sh", "-c", "cd /dev && ls -d *"]);
        board.must(&args)
    };
    let own = list(&[])?;
    let given = list(&["--device", &format!("{NODE}:/dev/granted")])?;
    let mut more: Vec<&str> = given.split_whitespace().collect();
    more.retain(|name| !own.split_whitespace().any(|known| known == *name));
    assert_eq!(more, ["granted"], "{given}");
    let script = "test -c /dev/granted && exec 3<>/dev/granted && echo opened";
    let device = format!("{NODE}:/dev/granted:rw");
    let said = board.must(&["run", "--rm", "--device", &device, BOX, "sh", "-c", script])?;
    assert_eq!(said.trim(), "opened");
    let (code, line) = board.refused(&["run", "--rm", "--device", "/dev/no-such-node", BOX, "true"])?;
    assert!(
        code == 125 && line.contains("/dev/no-such-node"),
        "{code}: {line}"
    );
    let (_, line) = board.refused(&["run", "--rm", "--gpus", "all", BOX, "true"])?;
    assert!(line.contains("nvidia.com/gpu"), "{line}");
    Ok(())
}

#[test]
fn a_device_by_its_cdi_name() -> Result<()> {
    if !rustix::process::getuid().is_root() {
        skip(
            "devices::a_device_by_its_cdi_name",
            "needs root to write a specification to /run/cdi",
        );
        return Ok(());
    }
    let board = Board::with_box()?;
    let library = board.stage.directory().join("libvendor.so");
    board.stage.write(&library, "a library")?;
    let _specification = Specification::write(&format!(
        r#"{{"cdiVersion": "0.6.0", "kind": "wherry-test.example/card", "devices": [
            {{"name": "0", "containerEdits": {{"deviceNodes": [{{"path": "/dev/card0", "hostPath": "{NODE}"}}], "env": ["CARD=0"]}}}}],
            "containerEdits": {{"mounts": [{{"hostPath": "{}", "containerPath": "/opt/vendor/lib/libvendor.so", "options": ["ro", "nosuid"]}}]}}}}"#,
        library.display()
    ))?;
    let script = "echo $CARD; test -c /dev/card0 && echo node; cat /opt/vendor/lib/libvendor.so; echo >/opt/vendor/lib/libvendor.so || echo kept";
    let output = board.must(&[
        "run",
        "--rm",
        "--device",
        "wherry-test.example/card=0",
        BOX,
        "sh",
        "-c",
        script,
    ])?;
    assert_eq!(output.trim(), "0\nnode\na librarykept");
    let (_, line) = board.refused(&[
        "run",
        "--rm",
        "--device",
        "wherry-test.example/card=1",
        BOX,
        "true",
    ])?;
    assert!(line.contains("there are: 0"), "{line}");
    Ok(())
}

#[test]
fn parts_of_the_confinement_are_switched_off_by_name_and_visibly() -> Result<()> {
    let board = Board::with_box()?;
    let status = |options: &[&str]| {
        let mut args = vec!["run", "--rm"];
        args.extend(options.iter().flat_map(|option| ["--security-opt", option]));
        args.extend([BOX, "sh", "-c", "while read -r name value; do case $name in NoNewPrivs:|Seccomp:) echo $name$value;; esac; done </proc/self/status"]);
        board.must(&args)
    };
    assert_eq!(status(&[])?, "NoNewPrivs:1\nSeccomp:2");
    assert_eq!(status(&["seccomp=unconfined"])?, "NoNewPrivs:1\nSeccomp:0");
    assert_eq!(status(&["no-new-privileges=false"])?, "NoNewPrivs:0\nSeccomp:2");
    // A profile of one's own, in docker's form: it denies one call, and only it.
    let profile = board.stage.directory().join("profile.json");
    board.stage.write(
        &profile,
        r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
            {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95, "includes": {"arches": ["amd64", "arm64", "arm"]}, "excludes": {}}]}"#,
    )?;
    let option = format!("seccomp={}", profile.display());
    let script = "busybox touch /tmp/x && echo touched; busybox mkdir /tmp/y 2>&1 || true";
    let output = board.must(&["run", "--rm", "--security-opt", &option, BOX, "sh", "-c", script])?;
    assert!(
        output.starts_with("touched\n") && output.contains("not supported"),
        "{output}"
    );
    board.must(&[
        "run",
        "-d",
        "--name",
        "open",
        "--security-opt",
        "landlock=off",
        BOX,
        "sleep",
        "1000",
    ])?;
    assert_eq!(board.inspect("open")?["spec"]["security"]["landlockOff"], true);
    let (code, line) = board.refused(&["run", "--security-opt", "label=disable", BOX, "true"])?;
    assert!(code == 125 && line.contains("SELinux"), "{code}: {line}");
    Ok(())
}
