//! Bundles that mean harm: each ends in one line that names the field, or in a container that stays in its root. Never in
//! a panic, never in a change outside.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use support::{Bundle, own, text};

/// Kind and mode, owner, size, seconds and nanoseconds of the last change, content.
type Entry = (u32, u32, u64, i64, i64, Vec<u8>);

/// Every file of a tree.
fn snapshot(path: &Path, into: &mut BTreeMap<PathBuf, Entry>) {
    let metadata = std::fs::symlink_metadata(path).unwrap();
    let content = if metadata.is_file() {
        std::fs::read(path).unwrap()
    } else {
        Vec::new()
    };
    let (mode, owner) = (metadata.mode(), metadata.uid());
    let times = (metadata.mtime(), metadata.mtime_nsec());
    into.insert(
        path.to_owned(),
        (mode, owner, metadata.len(), times.0, times.1, content),
    );
    if metadata.is_dir() {
        for entry in std::fs::read_dir(path).unwrap() {
            snapshot(&entry.unwrap().path(), into);
        }
    }
}

/// A tree that nothing may touch, open to the user that the runtime runs as.
struct Outside(tempfile::TempDir);

impl Outside {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(directory.path().join("dir/deep")).unwrap();
        std::fs::write(directory.path().join("file"), "untouched").unwrap();
        std::fs::write(directory.path().join("dir/file"), "untouched").unwrap();
        symlink("dir", directory.path().join("link")).unwrap();
        own(directory.path());
        Self(directory)
    }

    fn state(&self) -> (BTreeMap<PathBuf, Entry>, Vec<String>) {
        let mut files = BTreeMap::new();
        snapshot(self.0.path(), &mut files);
        let name = self.0.path().to_str().unwrap();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mounts = mounts.lines().filter(|line| line.contains(name));
        (files, mounts.map(str::to_owned).collect())
    }
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": kind, "source": source, "options": options})
}

/// Runs it; the line of its error, none if it ran.
fn run(bundle: &Bundle) -> Option<String> {
    let output = bundle.run();
    let line = text(&output.stderr);
    // 101 is a panic's.
    assert!(
        matches!(output.status.code(), Some(0 | 1 | 126 | 127)),
        "{:?} {line}",
        output.status
    );
    assert!(!line.contains("panicked"), "{line}");
    if output.status.success() {
        return None;
    }
    assert!(
        line.starts_with("wherry-runtime: ") && line.lines().count() == 1,
        "{line:?}"
    );
    assert!(!bundle.path().join("state/c").exists(), "{line}");
    Some(line)
}

#[test]
fn what_is_refused_is_named() {
    type Change = Box<dyn Fn(&mut Value)>;
    let set = |pointer: &'static str, value: Value| -> Change {
        Box::new(move |config| {
            let (parent, name) = pointer.rsplit_once('/').unwrap();
            config.pointer_mut(parent).unwrap()[name] = value.clone();
        })
    };
    let add = |value: Value| -> Change {
        Box::new(move |config| config["mounts"].as_array_mut().unwrap().push(value.clone()))
    };
    let map = |size: u64| json!({"containerID": 1, "hostID": 4_294_967_000u64, "size": size});
    let many = |count: usize, value: Value| Value::from(vec![value; count]);
    let nothing = || mount("/tmp", "tmpfs", "tmpfs", &[]);
    let cases: Vec<(Change, &str)> = vec![
        (
            set("/linux/uidMappings", many(10_000, map(1))),
            "linux.uidMappings",
        ),
        (
            set("/linux/gidMappings", many(1, map(4_000_000_000))),
            "linux.gidMappings",
        ),
        (
            set(
                "/linux/uidMappings",
                many(1, json!({"containerID": 0, "hostID": 0, "size": 0})),
            ),
            "linux.uidMappings",
        ),
        (set("/mounts", many(5000, nothing())), "mounts"),
        (
            add(mount("/proc/self/fd", "tmpfs", "tmpfs", &[])),
            "mounts[6].destination",
        ),
        (
            add(mount("/proc/1/root/etc", "bind", "/tmp", &["bind"])),
            "mounts[6].destination",
        ),
        (
            add(mount("/tmp/../proc/sys", "bind", "/tmp", &["bind"])),
            "mounts[6].destination",
        ),
        (add(mount("/", "tmpfs", "tmpfs", &[])), "mounts[6].destination"),
        (
            add(mount("/a\0b", "tmpfs", "tmpfs", &[])),
            "mounts[6].destination",
        ),
        (add(mount(&"/x".repeat(3000), "tmpfs", "tmpfs", &[])), "mounts[6]"),
        (
            add(mount(&format!("/{}", "n".repeat(300)), "tmpfs", "tmpfs", &[])),
            "mounts[6]",
        ),
        (add(mount("/tmp", "ext4", "/dev/sda", &[])), "mounts[6]"),
        (
            add(mount("/tmp", "bind", "/no/such/place", &["bind"])),
            "mounts[6].source",
        ),
        (set("/process/cwd", json!("relative")), "process.cwd"),
        (set("/process/args", json!([])), "process.args"),
        (set("/process/args", json!(["a\0b"])), "process"),
        (
            set("/process/user", json!({"uid": 12345, "gid": 0})),
            "process.user.uid",
        ),
        (
            set(
                "/process/rlimits",
                json!([{"type": "RLIMIT_ALL", "soft": 1, "hard": 1}]),
            ),
            "process.rlimits[0]",
        ),
        (
            set("/process/capabilities", json!({"bounding": ["CAP_EVERYTHING"]})),
            "process.capabilities.bounding",
        ),
        (set("/hostname", json!("h".repeat(100))), "hostname"),
        (
            set(
                "/linux/sysctl",
                json!({"net.ipv4/../../kernel/core_pattern": "|/bin/sh"}),
            ),
            "linux.sysctl",
        ),
        (
            set("/linux/sysctl", json!({"kernel.core_pattern": "|/bin/sh"})),
            "linux.sysctl",
        ),
        (set("/root/path", json!("a\0b")), "root.path"),
        (
            set("/linux/namespaces", json!([{"type": "mount"}, {"type": "mount"}])),
            "linux.namespaces[1]",
        ),
        (
            set("/linux/namespaces", json!([{"type": "weather"}])),
            "linux.namespaces[0]",
        ),
        (
            set(
                "/linux/seccomp",
                json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls":
                [{"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "value": 0, "op": "SCMP_CMP_EQ"}]}]}),
            ),
            "linux.seccomp",
        ),
    ];
    let outside = Outside::new();
    let before = outside.state();
    for (change, field) in cases {
        let mut bundle = Bundle::new(&["true"]);
        change(&mut bundle.config);
        let line = run(&bundle).unwrap_or_else(|| panic!("not refused: {field}"));
        assert!(line.contains(field), "{field}: {line}");
    }
    assert!(outside.state() == before);
}

#[test]
fn text_that_is_no_configuration_is_refused() {
    let deep = "[".repeat(200_000);
    let long = format!("{{\"ociVersion\": \"{}\"}}", "1".repeat(5 << 20));
    for content in [
        "",
        "{",
        "null",
        "[]",
        "{\"ociVersion\": 7}",
        "\u{feff}{}",
        &deep,
        &long,
    ] {
        let bundle = Bundle::new(&["true"]);
        bundle.write();
        std::fs::write(bundle.path().join("config.json"), content).unwrap();
        let output = bundle.call(&["run", "c"]);
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{line}");
        assert!(line.contains("config.json") && line.len() < 1000, "{line}");
    }
}

/// Symlinks and `..` of the image lead back into the root: what is made for a mount, a mask or a device is made there.
#[test]
fn targets_never_lead_outside() {
    let outside = Outside::new();
    let name = outside.0.path().to_str().unwrap();
    let before = outside.state();
    let climb = format!("{}{name}", "../".repeat(20));
    for target in [
        name.to_owned(),
        climb.clone(),
        format!("/proc/self/root{name}"),
        format!("/proc/1/cwd/{climb}"),
    ] {
        for at in ["data", "dev", "sys", "proc", "tmp"] {
            let mut bundle = Bundle::new(&["true"]);
            let link = bundle.rootfs().join(at);
            std::fs::remove_dir(&link).unwrap();
            symlink(&target, &link).unwrap();
            let mounts = bundle.config["mounts"].as_array_mut().unwrap();
            for (destination, kind) in [
                ("/data/new/place", "tmpfs"),
                ("/data/file", "tmpfs"),
                ("/tmp/dir", "mqueue"),
            ] {
                mounts.push(mount(destination, kind, kind, &[]));
            }
            mounts.push(mount(&format!("{climb}/dir"), "tmpfs", "tmpfs", &[]));
            mounts.push(mount("/data/bound", "bind", "/dev/null", &["bind", "ro"]));
            let linux = &mut bundle.config["linux"];
            linux["maskedPaths"] = json!(["/data/dir", "/data/file", "/tmp/link", climb]);
            linux["readonlyPaths"] = json!(["/data", "/tmp/dir/file"]);
            linux["devices"] = json!([{"path": "/data/null", "type": "c", "major": 1, "minor": 3}]);
            bundle.config["process"]["cwd"] = json!("/data/made/for/cwd");
            let line = run(&bundle);
            assert!(outside.state() == before, "{at} -> {target}: {line:?}");
        }
    }
}

/// A tree bound into itself again and again doubles each time, until the kernel's limit: an error that names the mount.
#[test]
fn mounts_that_multiply_end_in_an_error() {
    let outside = Outside::new();
    let before = outside.state();
    let mut bundle = Bundle::new(&["true"]);
    let source = bundle.rootfs().to_str().unwrap().to_owned();
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    for index in 0..20 {
        mounts.push(mount(&format!("/data/{index}"), "bind", &source, &["rbind"]));
    }
    let line = run(&bundle).expect("an error");
    assert!(line.contains("mounts["), "{line}");
    assert!(outside.state() == before);
    assert!(bundle.processes().is_empty());
}
