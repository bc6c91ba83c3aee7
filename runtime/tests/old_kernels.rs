//! Kernels that lack what this runtime uses when it is there: each newer system call is made to fail, and containers run
//! all the same, as confined as that kernel can, which `state` then says.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod support;

use std::process::{Output, Stdio};

use serde_json::{Value, json};
use support::{Bundle, eventually, finish, text, without};

/// What came after Linux 4.9, by the way it is used here.
fn newer() -> Vec<(&'static str, Vec<libc::c_long>)> {
    let landlock = [
        libc::SYS_landlock_create_ruleset,
        libc::SYS_landlock_add_rule,
        libc::SYS_landlock_restrict_self,
    ];
    let mounts = [
        libc::SYS_open_tree,
        libc::SYS_move_mount,
        libc::SYS_fsopen,
        libc::SYS_fsconfig,
        libc::SYS_fsmount,
        libc::SYS_fspick,
        libc::SYS_mount_setattr,
    ];
    let pidfd = [
        libc::SYS_pidfd_open,
        libc::SYS_pidfd_send_signal,
        libc::SYS_pidfd_getfd,
    ];
    let mut all = vec![
        ("clone3 (5.3)", vec![libc::SYS_clone3]),
        ("openat2 (5.6)", vec![libc::SYS_openat2]),
        ("the mount API (5.2, 5.12)", mounts.to_vec()),
        ("pidfd (5.1, 5.3)", pidfd.to_vec()),
        ("close_range (5.9)", vec![libc::SYS_close_range]),
        ("faccessat2 (5.8)", vec![libc::SYS_faccessat2]),
        ("Landlock (5.13)", landlock.to_vec()),
    ];
    let every = all.iter().flat_map(|(_, calls)| calls.clone()).collect();
    all.push(("all of them", every));
    all
}

/// Runs a verb as on that kernel; its output goes to files, as a container that lives on would hold a pipe open.
fn call(bundle: &Bundle, calls: &[libc::c_long], args: &[&str]) -> Output {
    let out = bundle.path().join("out");
    let err = bundle.path().join("err");
    let mut command = bundle.runtime(args);
    without(&mut command, calls);
    let child = command
        .stdin(Stdio::null())
        .stdout(std::fs::File::create(&out).unwrap())
        .stderr(std::fs::File::create(&err).unwrap())
        .spawn()
        .unwrap();
    let output = finish(child);
    Output {
        stdout: std::fs::read(out).unwrap(),
        stderr: std::fs::read(err).unwrap(),
        ..output
    }
}

/// A bundle with a mount of each way: of a filesystem, bound read-only, and bound as a tree whose flags are changed.
fn bundle(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    let tree = bundle.path().join("tree");
    std::fs::create_dir_all(&tree).unwrap();
    std::fs::write(tree.join("file"), "kept\n").unwrap();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    let source = tree.to_str().unwrap();
    mounts
        .push(json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind", "rro"]}));
    mounts.push(
        json!({"destination": "/tmp", "type": "bind", "source": source, "options": ["bind", "ro", "nosuid"]}),
    );
    bundle.write();
    bundle
}

fn state(bundle: &Bundle, calls: &[libc::c_long]) -> Value {
    let output = call(bundle, calls, &["state", "c"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn containers_run_and_are_confined_without_each_newer_call() {
    let script = "cat /data/file; echo x 2>/dev/null >/data/file || echo rro; echo x 2>/dev/null >/tmp/file || echo ro; \
                  mount -t tmpfs t /bin 2>/dev/null || echo no mount; grep NoNewPrivs: /proc/self/status; \
                  grep Seccomp: /proc/self/status; ls /proc/self/fd | wc -l; ls -d /proc/[0-9]* | wc -l; hostname";
    for (name, calls) in newer() {
        let bundle = bundle(&["sh", "-c", script]);
        let output = call(&bundle, &calls, &["run", "c"]);
        let lines = text(&output.stdout);
        assert!(output.status.success(), "{name}: {lines}{}", text(&output.stderr));
        let expected = [
            "kept",
            "rro",
            "ro",
            "no mount",
            "NoNewPrivs:\t1",
            "Seccomp:\t2",
            // Standard streams and the directory itself; the shell, ls and wc, at most.
            "4",
        ];
        let got: Vec<&str> = lines.lines().collect();
        assert_eq!(got.get(..7), Some(&expected[..]), "{name}: {lines}");
        let processes: usize = got[7].trim().parse().unwrap();
        assert!(processes <= 4, "{name}: {lines}");
        assert_eq!(got[8], "boat", "{name}");
        assert!(bundle.processes().is_empty(), "{name}");
    }
}

#[test]
fn every_verb_works_without_each_newer_call() {
    for (name, calls) in newer() {
        let bundle = bundle(&["sleep", "1000"]);
        let ok = |args: &[&str]| {
            let output = call(&bundle, &calls, args);
            assert!(
                output.status.success(),
                "{name}: {args:?}: {}",
                text(&output.stderr)
            );
            text(&output.stdout)
        };
        ok(&["create", "--pid-file", "pid", "c"]);
        assert_eq!(state(&bundle, &calls)["status"], "created", "{name}");
        ok(&["start", "c"]);
        assert_eq!(state(&bundle, &calls)["status"], "running", "{name}");
        let said = state(&bundle, &calls)["annotations"]["dev.wherry.warnings"].to_string();
        let has_landlock = !calls.contains(&libc::SYS_landlock_create_ruleset);
        assert_eq!(
            !said.contains("landlock: not enforced"),
            has_landlock,
            "{name}: {said}"
        );
        assert_eq!(
            ok(&["exec", "c", "sh", "-c", "echo $MARK; exit 0"]),
            "here\n",
            "{name}"
        );
        let failed = call(&bundle, &calls, &["exec", "c", "sh", "-c", "exit 7"]);
        assert_eq!(failed.status.code(), Some(7), "{name}");
        assert!(ok(&["list", "-q"]).contains('c'), "{name}");
        let refused = call(&bundle, &calls, &["delete", "c"]);
        assert!(!refused.status.success(), "{name}");
        ok(&["kill", "--all", "c", "KILL"]);
        eventually("stopped", || state(&bundle, &calls)["status"] == "stopped");
        ok(&["delete", "c"]);
        assert!(bundle.processes().is_empty(), "{name}");
    }
}

#[test]
fn what_cannot_be_had_otherwise_is_an_error_with_the_field() {
    // Ids of a mount are mapped by the newer calls alone; as an ordinary user it is refused on any kernel.
    let mut bundle = bundle(&["true"]);
    bundle.config["mounts"][7]["options"] = json!(["bind", "idmap"]);
    bundle.write();
    let mounts = newer().swap_remove(2).1;
    let output = call(&bundle, &mounts, &["run", "c"]);
    assert_eq!(output.status.code(), Some(1));
    let line = text(&output.stderr);
    assert!(
        line.contains("mounts[7].uidMappings") && line.contains("5.12"),
        "{line}"
    );
    assert!(bundle.processes().is_empty());
}
