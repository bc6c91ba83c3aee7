//! Control groups on the hierarchies of this machine: as an ordinary user in a subtree of cgroup v2 that was delegated to
//! it, and as root beside its own cgroup. Without root nobody delegates anything: the tests then say so and count as
//! skipped.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
#![allow(clippy::print_stderr, clippy::print_stdout)]

mod support;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::json;
use support::{Bundle, eventually, finish, ids, text};

/// The mount point of cgroup v2, alone or beside v1.
fn unified() -> Option<PathBuf> {
    ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"]
        .into_iter()
        .map(PathBuf::from)
        .find(|path| path.join("cgroup.procs").exists() && path.join("cgroup.controllers").exists())
}

/// A subtree that belongs to the ordinary user, as a systemd unit with `Delegate=yes` is: callers are in `agent`.
struct Delegated(PathBuf);

impl Delegated {
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            support::skip(
                &format!("cgroups::{test}"),
                "needs root to delegate a part of cgroup v2",
            );
            return None;
        }
        let Some(mount) = unified() else {
            support::skip(&format!("cgroups::{test}"), "no cgroup v2 hierarchy is mounted");
            return None;
        };
        let path = mount.join(format!("wherry-test-{}-{test}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&path) {
            support::skip(
                &format!("cgroups::{test}"),
                &format!("{}: {error}", path.display()),
            );
            return None;
        }
        let this = Self(path);
        std::fs::create_dir(this.0.join("agent")).unwrap();
        let (uid, gid) = ids();
        for directory in [this.0.clone(), this.0.join("agent")] {
            for name in ["", "cgroup.procs", "cgroup.subtree_control", "cgroup.threads"] {
                std::os::unix::fs::chown(directory.join(name), Some(uid), Some(gid)).unwrap();
            }
        }
        Some(this)
    }

    /// Has a command run in `agent`.
    fn enter(&self, mut command: Command) -> Command {
        support::enter_cgroup(&mut command, &self.0.join("agent"));
        command
    }

    fn call(&self, bundle: &Bundle, args: &[&str]) -> Output {
        // A container inherits the streams: pipes would not end before it.
        let open = |name: &str| std::fs::File::create(bundle.path().join(name)).unwrap();
        let mut command = self.enter(bundle.runtime(args));
        command
            .stdin(Stdio::null())
            .stdout(open("stdout"))
            .stderr(open("stderr"));
        let mut output = finish(command.spawn().unwrap());
        let read = |name: &str| std::fs::read(bundle.path().join(name)).unwrap();
        (output.stdout, output.stderr) = (read("stdout"), read("stderr"));
        output
    }

    fn ok(&self, bundle: &Bundle, args: &[&str]) -> String {
        let output = self.call(bundle, args);
        assert!(
            output.status.success(),
            "{args:?}: {:?} {}",
            output.status,
            text(&output.stderr)
        );
        text(&output.stdout)
    }

    fn start(&self, bundle: &Bundle) {
        bundle.write();
        self.ok(bundle, &["create", "--pid-file", "pid", "c"]);
        self.ok(bundle, &["start", "c"]);
    }

    fn state(&self, bundle: &Bundle) -> serde_json::Value {
        serde_json::from_str(&self.ok(bundle, &["state", "c"])).unwrap()
    }

    /// The cgroups in it, besides `agent`.
    fn containers(&self) -> Vec<String> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.0).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if entry.file_type().unwrap().is_dir() && name != "agent" {
                names.push(name);
            }
        }
        names.sort();
        names
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for directory in [self.0.join("agent"), self.0.clone()] {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

fn procs(directory: &Path) -> Vec<i32> {
    let text = std::fs::read_to_string(directory.join("cgroup.procs")).unwrap();
    text.lines().map(|line| line.parse().unwrap()).collect()
}

#[test]
fn a_container_is_beside_its_caller_and_alone_in_its_cgroup() {
    let Some(delegated) = Delegated::new("beside") else {
        return;
    };
    let mut bundle = Bundle::new(&["sh", "-c", "cat /proc/self/cgroup > /tmp/own; sleep 1000; true"]);
    bundle.config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro", "nosuid", "noexec", "nodev"],
    }));
    delegated.start(&bundle);
    assert_eq!(delegated.containers(), ["wherry-c"]);
    let own = delegated.0.join("wherry-c");
    eventually("the container's sleep", || procs(&own).len() == 2);
    assert!(procs(&own).contains(&bundle.pid()));

    // Its own cgroup is the root that it sees.
    let seen = || std::fs::read_to_string(bundle.rootfs().join("tmp/own")).unwrap_or_default();
    eventually("the container's view", || seen().ends_with('\n'));
    assert!(seen().lines().any(|line| line == "0::/"), "{}", seen());

    // A process of exec is there too, and sees the same.
    let exec = delegated.ok(
        &bundle,
        &["exec", "c", "sh", "-c", "echo $$; cat /proc/self/cgroup"],
    );
    assert!(exec.lines().any(|line| line == "0::/"), "{exec}");
    let namespace = |path: &str| delegated.ok(&bundle, &["exec", "c", "readlink", path]);
    assert_eq!(namespace("/proc/self/ns/cgroup"), namespace("/proc/1/ns/cgroup"));

    delegated.ok(&bundle, &["delete", "--force", "c"]);
    assert!(delegated.containers().is_empty(), "{:?}", delegated.containers());
}

#[test]
fn where_only_the_callers_own_cgroup_is_delegated_it_is_beneath_it() {
    let Some(delegated) = Delegated::new("beneath") else {
        return;
    };
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    // In the delegated cgroup itself, not in `agent`: what is above it belongs to root.
    let mut command = bundle.runtime(&["create", "--pid-file", "pid", "c"]);
    support::enter_cgroup(&mut command, &delegated.0);
    let errors = std::fs::File::create(bundle.path().join("errors")).unwrap();
    let child = command
        .current_dir(bundle.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .unwrap();
    let created = finish(child).status;
    let errors = std::fs::read_to_string(bundle.path().join("errors")).unwrap();
    assert!(created.success(), "{errors}");
    assert_eq!(procs(&delegated.0.join("wherry-c")), [bundle.pid()]);
    delegated.ok(&bundle, &["delete", "--force", "c"]);
    assert!(delegated.containers().is_empty(), "{:?}", delegated.containers());
}

#[test]
fn a_path_is_made_and_removed_with_what_was_made_for_it() {
    let Some(delegated) = Delegated::new("path") else {
        return;
    };
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["cgroupsPath"] = json!("/pods/p1/c1");
    delegated.start(&bundle);
    let own = delegated.0.join("pods/p1/c1");
    assert_eq!(procs(&own), [bundle.pid()]);

    // Another container does not get the same one.
    let mut other = Bundle::new(&["true"]);
    other.config["linux"]["cgroupsPath"] = json!("/pods/p1/c1");
    other.write();
    let output = delegated.call(&other, &["run", "d"]);
    assert!(!output.status.success());
    let line = text(&output.stderr);
    assert!(
        line.contains("linux.cgroupsPath: ") && line.contains("has processes of somebody else"),
        "{line}"
    );
    assert_eq!(procs(&own), [bundle.pid()]);

    delegated.ok(&bundle, &["delete", "--force", "c"]);
    assert!(delegated.containers().is_empty(), "{:?}", delegated.containers());
}

#[test]
fn a_limit_without_its_controller_is_a_warning_that_state_repeats() {
    let Some(delegated) = Delegated::new("warning") else {
        return;
    };
    let controllers = std::fs::read_to_string(delegated.0.join("cgroup.controllers")).unwrap();
    if controllers.contains("memory") {
        return support::skip("cgroups::warning", "the memory controller is delegated here");
    }
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 10_000_000, "swap": 10_000_000}, "cpu": {"quota": 50_000}, "pids": {"limit": 20},
    });
    delegated.start(&bundle);
    let state = delegated.state(&bundle);
    let warnings = state["annotations"]["dev.wherry.warnings"].as_str().unwrap();
    assert!(
        warnings.contains("linux.resources.memory.limit, memory.swap: memory limit not enforced: ")
            && warnings.contains("linux.resources.pids.limit: process limit not enforced: "),
        "{warnings}"
    );
}

#[test]
fn a_path_meant_for_systemd_is_a_name_beside_the_caller() {
    let Some(delegated) = Delegated::new("scope") else {
        return;
    };
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["cgroupsPath"] = json!("user.slice:libpod:c");
    delegated.start(&bundle);
    assert_eq!(delegated.containers(), ["libpod-c"]);
    let state = delegated.state(&bundle);
    let warnings = state["annotations"]["dev.wherry.warnings"].as_str().unwrap();
    assert!(
        warnings.contains("systemd is not asked for a scope"),
        "{warnings}"
    );
}

#[test]
fn without_delegation_limits_are_warnings_and_nothing_else_is_lost() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["resources"] = json!({"memory": {"limit": 10_000_000}});
    bundle.config["linux"]["cgroupsPath"] = json!("/pods/c");
    bundle.start();
    let state: serde_json::Value = serde_json::from_str(&bundle.ok(&["state", "c"])).unwrap();
    let warnings = state["annotations"]["dev.wherry.warnings"].as_str().unwrap();
    for line in [
        "linux.resources.memory.limit: memory limit not enforced: ",
        "linux.cgroupsPath: not used: ",
    ] {
        assert!(warnings.contains(line), "{warnings}");
    }
    bundle.ok(&["delete", "--force", "c"]);
}

#[test]
fn paused_it_stands_still_and_still_answers() {
    let Some(delegated) = Delegated::new("paused") else {
        return;
    };
    let bundle = Bundle::new(&["sh", "-c", "while :; do echo >> /tmp/ticks; sleep 0.01; done"]);
    delegated.start(&bundle);
    let ticks = || std::fs::metadata(bundle.rootfs().join("tmp/ticks")).map_or(0, |file| file.len());
    eventually("ticks", || ticks() > 2);
    assert!(!delegated.call(&bundle, &["resume", "c"]).status.success());
    delegated.ok(&bundle, &["pause", "c"]);
    assert_eq!(delegated.state(&bundle)["status"], "paused");
    let frozen = std::fs::read_to_string(delegated.0.join("wherry-c/cgroup.events")).unwrap();
    assert!(frozen.contains("frozen 1"), "{frozen}");
    for (verb, words) in [
        (
            &["exec", "c", "true"][..],
            "cannot exec in a container that is paused",
        ),
        (&["pause", "c"], "cannot pause a container that is paused"),
        (&["delete", "c"], "cannot delete a container that is paused"),
    ] {
        let output = delegated.call(&bundle, verb);
        assert!(
            !output.status.success() && text(&output.stderr).contains(words),
            "{verb:?}: {}",
            text(&output.stderr)
        );
    }
    let before = ticks();
    delegated.ok(&bundle, &["resume", "c"]);
    assert_eq!(delegated.state(&bundle)["status"], "running");
    eventually("ticks again", || ticks() > before);

    // A frozen container dies all the same.
    delegated.ok(&bundle, &["pause", "c"]);
    delegated.ok(&bundle, &["delete", "--force", "c"]);
    assert!(delegated.containers().is_empty());
}

#[test]
fn every_process_is_listed_counted_and_killed_without_a_pid_namespace() {
    let Some(delegated) = Delegated::new("all") else {
        return;
    };
    // With the host's pid namespace only the cgroup knows what belongs to the container.
    let mut bundle = Bundle::new(&["sh", "-c", "(sleep 1000 &) ; (sleep 1000 &) ; sleep 1000; true"]);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    delegated.start(&bundle);
    let own = delegated.0.join("wherry-c");
    eventually("four processes", || procs(&own).len() == 4);
    let listed: Vec<i32> =
        serde_json::from_str(&delegated.ok(&bundle, &["ps", "--format", "json", "c"])).unwrap();
    let mut expected = procs(&own);
    expected.sort_unstable();
    assert_eq!(listed, expected);
    let table = delegated.ok(&bundle, &["ps", "c"]);
    assert_eq!(table.matches(" sleep 1000").count(), 4, "{table}");
    let stats: serde_json::Value =
        serde_json::from_str(&delegated.ok(&bundle, &["events", "--stats", "c"])).unwrap();
    assert_eq!(stats["type"], "stats");
    assert_eq!(stats["data"]["pids"]["current"], 4);

    delegated.ok(&bundle, &["kill", "--all", "c", "KILL"]);
    eventually("no process", || procs(&own).is_empty());
    delegated.ok(&bundle, &["delete", "c"]);
    assert!(delegated.containers().is_empty());
}

#[test]
fn what_the_container_leaves_behind_ends_with_it() {
    let Some(delegated) = Delegated::new("leftover") else {
        return;
    };
    let mut bundle = Bundle::new(&["sh", "-c", "(sleep 1000 &) ; true"]);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    bundle.write();
    let output = delegated.call(&bundle, &["run", "c"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert!(delegated.containers().is_empty(), "{:?}", delegated.containers());
}

#[test]
fn killed_at_any_moment_delete_force_removes_the_cgroup() {
    let Some(delegated) = Delegated::new("killed") else {
        return;
    };
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["cgroupsPath"] = json!("/pods/c");
    bundle.write();
    let null = || std::fs::File::create("/dev/null").unwrap();
    for round in 0..60u64 {
        let mut command = delegated.enter(bundle.runtime(&["create", "c"]));
        command.stdin(Stdio::null()).stdout(null()).stderr(null());
        let mut child = command.spawn().unwrap();
        // A spread of moments, not a wait for anything.
        std::thread::sleep(std::time::Duration::from_micros(round * 250));
        child.kill().unwrap();
        child.wait().unwrap();
        delegated.ok(&bundle, &["delete", "--force", "c"]);
        assert!(
            delegated.containers().is_empty(),
            "round {round}: {:?}",
            delegated.containers()
        );
    }
    assert!(bundle.processes().is_empty(), "{:?}", bundle.processes());
}

#[test]
fn without_a_cgroup_the_verbs_that_need_one_say_so() {
    let bundle = Bundle::new(&["sh", "-c", "sleep 1000 & sleep 1000; true"]);
    bundle.start();
    for verb in [
        &["pause", "c"][..],
        &["update", "--memory", "64m", "c"],
        &["events", "--stats", "c"],
    ] {
        let output = bundle.call(verb);
        let line = text(&output.stderr);
        assert!(
            !output.status.success() && line.lines().count() == 1 && line.contains("needs a cgroup"),
            "{verb:?}: {line}"
        );
    }
    // Its processes are found all the same: by descent.
    let listed =
        || -> Vec<i32> { serde_json::from_str(&bundle.ok(&["ps", "--format", "json", "c"])).unwrap() };
    eventually("three processes", || listed().len() == 3);
    assert!(listed().contains(&bundle.pid()));
}

#[test]
fn features_are_told_without_a_container() {
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    let features: serde_json::Value = serde_json::from_str(&bundle.ok(&["features"])).unwrap();
    assert_eq!(features["linux"]["cgroup"]["v2"], true);
    assert_eq!(features["linux"]["cgroup"]["systemd"], false);
    assert!(features["linux"]["namespaces"].as_array().unwrap().len() >= 7);
}

/// A bundle that root runs as itself, in no user namespace.
fn as_root(args: &[&str]) -> Bundle {
    let mut bundle = Bundle::new(args);
    let linux = bundle.config["linux"].as_object_mut().unwrap();
    linux.remove("uidMappings");
    linux.remove("gidMappings");
    let namespaces = linux["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "user");
    std::fs::write(bundle.path().join("config.json"), bundle.config.to_string()).unwrap();
    bundle
}

fn root_call(bundle: &Bundle, args: &[&str]) -> Output {
    root_call_in(bundle, Command::new(env!("CARGO_BIN_EXE_wherry-runtime")), args)
}

/// As [`root_call`], with cgroup v2 out of sight.
fn v1_call(bundle: &Bundle, args: &[&str]) -> Output {
    let mut command = Command::new("unshare");
    command
        .args([
            "--mount",
            "sh",
            "-c",
            "umount /sys/fs/cgroup/unified && exec \"$0\" \"$@\"",
        ])
        .arg(env!("CARGO_BIN_EXE_wherry-runtime"));
    root_call_in(bundle, command, args)
}

fn root_call_in(bundle: &Bundle, mut command: Command, args: &[&str]) -> Output {
    let open = |name: &str| std::fs::File::create(bundle.path().join(name)).unwrap();
    command
        .arg("--root")
        .arg(bundle.path().join("root-state"))
        .args(args)
        .current_dir(bundle.path())
        .stdin(Stdio::null())
        .stdout(open("stdout"))
        .stderr(open("stderr"));
    let mut output = finish(command.spawn().unwrap());
    let read = |name: &str| std::fs::read(bundle.path().join(name)).unwrap();
    (output.stdout, output.stderr) = (read("stdout"), read("stderr"));
    output
}

/// Whether limits can be tried out here: as root, with a hierarchy of cgroup v1 for them.
fn v1_limits(test: &str) -> bool {
    let here = rustix::process::getuid().is_root();
    let hierarchies = [
        "memory/memory.limit_in_bytes",
        "pids/cgroup.procs",
        "cpu/cpu.shares",
    ];
    let there = hierarchies
        .iter()
        .all(|file| Path::new("/sys/fs/cgroup").join(file).exists());
    if !here || !there {
        support::skip(
            &format!("cgroups::{test}"),
            "needs root and the v1 hierarchies memory, pids and cpu",
        );
    }
    here && there
}

#[test]
fn limits_of_cgroup_v1_are_set_changed_and_gone_with_the_container() {
    if !v1_limits("v1") {
        return;
    }
    let bundle = as_root(&["sleep", "1000"]);
    let mut config = bundle.config.clone();
    config["linux"]["cgroupsPath"] = json!(format!("/wherry-test-{}/c", std::process::id()));
    config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20}, "pids": {"limit": 30}, "cpu": {"shares": 512, "quota": 50_000, "period": 100_000},
    });
    std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let created = root_call(&bundle, &["create", "c"]);
    assert!(created.status.success(), "{}", text(&created.stderr));
    let path = |file: &str| {
        let (controller, file) = file.split_once('/').unwrap();
        format!(
            "/sys/fs/cgroup/{controller}/wherry-test-{}/c/{file}",
            std::process::id()
        )
    };
    let value = |file: &str| std::fs::read_to_string(path(file)).unwrap().trim().to_owned();
    for (file, expected) in [
        ("memory/memory.limit_in_bytes", "67108864"),
        ("pids/pids.max", "30"),
        ("cpu/cpu.shares", "512"),
        ("cpu/cpu.cfs_quota_us", "50000"),
    ] {
        assert_eq!(value(file), expected, "{file}");
    }
    assert_eq!(value("memory/cgroup.procs").lines().count(), 1);
    let state: serde_json::Value =
        serde_json::from_str(&text(&root_call(&bundle, &["state", "c"]).stdout)).unwrap();
    assert!(state["annotations"]["dev.wherry.warnings"].is_null(), "{state}");

    let updated = root_call(
        &bundle,
        &[
            "update",
            "--memory",
            "128m",
            "--pids-limit",
            "-1",
            "--cpu-share",
            "100",
            "c",
        ],
    );
    assert!(updated.status.success(), "{}", text(&updated.stderr));
    assert_eq!(value("memory/memory.limit_in_bytes"), "134217728");
    assert_eq!(value("pids/pids.max"), "max");
    assert_eq!(value("cpu/cpu.shares"), "100");
    let refused = root_call(&bundle, &["update", "--cpuset-cpus", "0", "c"]);
    assert!(
        text(&refused.stderr).contains("linux.resources.cpu.cpus: processor set limit not enforced"),
        "{}",
        text(&refused.stderr)
    );

    let deleted = root_call(&bundle, &["delete", "--force", "c"]);
    assert!(deleted.status.success(), "{}", text(&deleted.stderr));
    for controller in ["memory", "pids", "cpu", "unified"] {
        let left = format!("/sys/fs/cgroup/{controller}/wherry-test-{}", std::process::id());
        assert!(!Path::new(&left).exists(), "{left}");
    }
}

#[test]
fn a_limit_that_the_kernel_refuses_is_an_error_by_its_field() {
    if !v1_limits("refused") {
        return;
    }
    let bundle = as_root(&["true"]);
    let mut config = bundle.config.clone();
    let name = format!("wherry-test-{}-refused", std::process::id());
    config["linux"]["cgroupsPath"] = json!(format!("/{name}"));
    config["linux"]["resources"] = json!({"cpu": {"cpus": "0-4095"}});
    std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let output = root_call(&bundle, &["run", "c"]);
    let line = text(&output.stderr);
    assert!(
        !output.status.success() && line.contains("config.json: linux.resources.cpu.cpus: "),
        "{line}"
    );
    for controller in ["cpuset", "unified"] {
        assert!(!Path::new("/sys/fs/cgroup").join(controller).join(&name).exists());
    }
}

#[test]
fn more_processes_than_the_limit_cannot_be_made() {
    if !v1_limits("pids") {
        return;
    }
    let bundle = as_root(&["sh", "-c", "sleep 0 & sleep 0 & sleep 0 & wait; echo more"]);
    let mut config = bundle.config.clone();
    config["linux"]["resources"] = json!({"pids": {"limit": 1}});
    std::fs::write(bundle.path().join("config.json"), config.to_string()).unwrap();
    let output = root_call(&bundle, &["run", "c"]);
    let line = text(&output.stderr);
    assert!(line.contains("can't fork"), "{:?} {line}", output.status);
}

#[test]
fn with_cgroup_v1_alone_the_freezer_pauses_counts_and_lets_die() {
    if !v1_limits("v1-only") || !Path::new("/sys/fs/cgroup/unified").exists() {
        return;
    }
    let mut bundle = as_root(&["sh", "-c", "(sleep 1000 &) ; sleep 1000; true"]);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "pid");
    std::fs::write(bundle.path().join("config.json"), bundle.config.to_string()).unwrap();
    let ok = |args: &[&str]| {
        let output = v1_call(&bundle, args);
        assert!(output.status.success(), "{args:?}: {}", text(&output.stderr));
        text(&output.stdout)
    };
    let id = format!("wherry-test-{}-v1", std::process::id());
    ok(&["create", &id]);
    ok(&["start", &id]);
    let own = PathBuf::from(format!("/sys/fs/cgroup/freezer/wherry-{id}"));
    eventually("three processes", || procs(&own).len() == 3);
    ok(&["pause", &id]);
    assert!(ok(&["state", &id]).contains("\"paused\""));
    assert_eq!(
        std::fs::read_to_string(own.join("freezer.state")).unwrap().trim(),
        "FROZEN"
    );
    ok(&["resume", &id]);
    assert!(ok(&["state", &id]).contains("\"running\""));
    ok(&["exec", &id, "true"]);
    ok(&["pause", &id]);
    ok(&["delete", "--force", &id]);
    assert!(!own.exists());
}
