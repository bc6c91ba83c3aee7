//! Control groups on the hierarchies of this machine: as an ordinary user in a subtree of cgroup v2 that was delegated to
//! it, and as root beside its own cgroup. Without root nobody delegates anything: the tests then say so and count as
//! skipped.

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

/// Says why a test did not run, loudly and where skipped tests are counted.
fn skip(test: &str, why: &str) {
    use std::io::Write;
    let line = format!("cgroups::{test}: {why}");
    eprintln!("SKIPPED: {line}");
    if let Some(path) = std::env::var_os("WHERRY_SKIP_LOG") {
        let mut log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(log, "{line}").unwrap();
    }
}

/// A subtree that belongs to the ordinary user, as a systemd unit with `Delegate=yes` is: callers are in `agent`.
struct Delegated(PathBuf);

impl Delegated {
    fn new(test: &str) -> Option<Self> {
        if !rustix::process::getuid().is_root() {
            skip(test, "needs root to delegate a part of cgroup v2");
            return None;
        }
        let Some(mount) = unified() else {
            skip(test, "no cgroup v2 hierarchy is mounted");
            return None;
        };
        let path = mount.join(format!("wherry-test-{}-{test}", std::process::id()));
        if let Err(error) = std::fs::create_dir(&path) {
            skip(test, &format!("{}: {error}", path.display()));
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
    fn enter(&self, command: &Command) -> Command {
        let (uid, gid) = ids();
        let mut inside = Command::new("/bin/sh");
        inside
            .args(["-c", "echo 0 > \"$0\" && exec setpriv \"$@\""])
            .arg(self.0.join("agent/cgroup.procs"))
            .args([format!("--reuid={uid}"), format!("--regid={gid}")])
            .arg("--clear-groups")
            .arg(command.get_program())
            .args(command.get_args())
            .env_remove("XDG_RUNTIME_DIR");
        if let Some(directory) = command.get_current_dir() {
            inside.current_dir(directory);
        }
        inside
    }

    fn call(&self, bundle: &Bundle, args: &[&str]) -> Output {
        // A container inherits the streams: pipes would not end before it.
        let open = |name: &str| std::fs::File::create(bundle.path().join(name)).unwrap();
        let mut command = self.enter(&bundle.runtime(args));
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
    let mut bundle = Bundle::new(&["sh", "-c", "cat /proc/self/cgroup > /tmp/own; sleep 1000"]);
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
        return skip("warning", "the memory controller is delegated here");
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
