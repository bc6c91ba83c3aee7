//! A pod: several containers in one network, IPC, UTS and user namespace, and where it is wanted one pid namespace.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod support;

use serde_json::json;
use support::{Bundle, eventually, text};

/// A container that holds its namespaces for others.
fn sandbox() -> Bundle {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["hostname"] = json!("pod");
    bundle.start();
    bundle
}

/// A container of its pod: what is named is joined, the rest is its own.
fn member(sandbox: &Bundle, args: &[&str], joined: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    let pid = sandbox.pid();
    let namespaces: Vec<_> = ["user", "network", "ipc", "uts", "pid", "mount"]
        .into_iter()
        .map(|kind| {
            let file = if kind == "network" { "net" } else { kind };
            if joined.contains(&kind) {
                json!({"type": kind, "path": format!("/proc/{pid}/ns/{file}")})
            } else {
                json!({"type": kind})
            }
        })
        .collect();
    bundle.config["linux"]["namespaces"] = json!(namespaces);
    bundle.config.as_object_mut().unwrap().remove("hostname");
    if joined.contains(&"user") {
        let linux = bundle.config["linux"].as_object_mut().unwrap();
        linux.remove("uidMappings");
        linux.remove("gidMappings");
    }
    bundle
}

const POD: &[&str] = &["user", "network", "ipc", "uts"];
const WITH_PIDS: &[&str] = &["user", "network", "ipc", "uts", "pid"];

/// What `/proc/self/ns` of a process in a running container says.
fn names(bundle: &Bundle, kinds: &[&str]) -> Vec<String> {
    let list: Vec<String> = kinds.iter().map(|kind| format!("/proc/self/ns/{kind}")).collect();
    // busybox reads one link at a time.
    list.iter()
        .map(|path| bundle.ok(&["exec", "c", "readlink", path]).trim().to_owned())
        .collect()
}

#[test]
fn the_containers_of_a_pod_share_what_they_join_and_nothing_else() {
    let sandbox = sandbox();
    let one = member(&sandbox, &["sleep", "1000"], POD);
    let two = member(&sandbox, &["sleep", "1000"], POD);
    one.start();
    two.start();
    let shared = ["user", "net", "ipc", "uts"];
    let of_pod = names(&sandbox, &shared);
    assert_eq!(of_pod, names(&one, &shared));
    assert_eq!(of_pod, names(&two, &shared));
    for own in ["pid", "mnt"] {
        let mut all = [&sandbox, &one, &two].map(|bundle| names(bundle, &[own]));
        all.sort();
        assert!(all[0] != all[1] && all[1] != all[2], "{own}: {all:?}");
    }
    assert_eq!(one.ok(&["exec", "c", "hostname"]), "pod\n");
    // The second address of the pod's loopback device, which a new namespace would not have.
    assert!(
        two.ok(&["exec", "c", "ip", "addr", "show", "lo"])
            .contains("10.88.0.2")
    );
    // Each sees its own processes, and has its own files.
    one.ok(&["exec", "c", "touch", "/tmp/of-one"]);
    assert!(!two.call(&["exec", "c", "ls", "/tmp/of-one"]).status.success());
    assert_eq!(
        one.ok(&["exec", "c", "sh", "-c", "ls -d /proc/1 /proc/[0-9]* | grep -c ."])
            .trim()
            .parse::<u32>()
            .unwrap_or(99),
        5
    );
    // One that ends takes nothing with it.
    one.ok(&["delete", "--force", "c"]);
    assert_eq!(
        (sandbox.status(), two.status()),
        ("running".into(), "running".into())
    );
    assert_eq!(two.ok(&["exec", "c", "hostname"]), "pod\n");
}

#[test]
fn a_shared_pid_namespace_shows_the_pods_processes_and_ends_with_its_first() {
    let sandbox = sandbox();
    let one = member(&sandbox, &["sleep", "1001"], WITH_PIDS);
    one.start();
    assert_eq!(names(&sandbox, &["pid"]), names(&one, &["pid"]));
    let seen = one.ok(&["exec", "c", "ps"]);
    assert!(
        seen.contains("sleep 1000") && seen.contains("sleep 1001"),
        "{seen}"
    );
    let seen = sandbox.ok(&["exec", "c", "ps"]);
    assert!(seen.contains("sleep 1001"), "{seen}");
    // Its init is none: the pod's first process is.
    let refused = one.call(&["kill", "--all", "c", "KILL"]);
    assert!(
        text(&refused.stderr).contains("does not have a pid namespace of its own"),
        "{}",
        text(&refused.stderr)
    );
    // Siblings may signal one another, which is what a shared pid namespace is for; another Landlock domain cannot be
    // traced, nor looked into.
    one.ok(&["exec", "c", "sh", "-c", "kill -0 1"]);
    let other = one.call(&["exec", "c", "cat", "/proc/1/environ"]);
    assert!(!other.status.success(), "{}", text(&other.stdout));
    sandbox.ok(&["kill", "c", "KILL"]);
    eventually("the pod ends", || one.status() == "stopped");
    one.ok(&["delete", "c"]);
    sandbox.ok(&["delete", "--force", "c"]);
    assert!(one.processes().is_empty() && sandbox.processes().is_empty());
}

#[test]
fn a_member_of_a_pod_is_confined_as_any_container() {
    let sandbox = sandbox();
    let script = "grep NoNewPrivs: /proc/self/status; grep Seccomp: /proc/self/status; \
                  mount -t tmpfs t /tmp 2>/dev/null || echo no mount; hostname other 2>/dev/null || echo no hostname";
    for joined in [POD, WITH_PIDS] {
        let one = member(&sandbox, &["sh", "-c", script], joined);
        let output = one.run();
        assert_eq!(
            text(&output.stdout),
            "NoNewPrivs:\t1\nSeccomp:\t2\nno mount\nno hostname\n",
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn a_pod_that_has_ended_cannot_be_joined() {
    let sandbox = sandbox();
    let one = member(&sandbox, &["true"], POD);
    sandbox.ok(&["delete", "--force", "c"]);
    let output = one.run();
    assert_eq!(output.status.code(), Some(1));
    let line = text(&output.stderr);
    assert!(line.contains("linux.namespaces["), "{line}");
}
