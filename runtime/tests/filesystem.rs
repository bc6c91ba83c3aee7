//! The mount tree: overlays, mounts, masks, and images that try to lead out of it.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::os::unix::fs::symlink;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{Bundle, as_user, ids, text};

fn push(bundle: &mut Bundle, mount: Value) {
    bundle.config["mounts"].as_array_mut().unwrap().push(mount);
}

/// Puts an overlay in front, over the bundle's tree.
fn overlay(bundle: &mut Bundle, lower: &std::path::Path, upper: &str) {
    for name in [upper.to_owned(), format!("{upper}.work"), "merged".to_owned()] {
        std::fs::create_dir_all(bundle.path().join(name)).unwrap();
    }
    // A colon and a comma in a path are part of it.
    let lower = lower.to_str().unwrap().replace(':', "\\:");
    let options = [
        format!("lowerdir={lower}"),
        format!("upperdir={upper}"),
        format!("workdir={upper}.work"),
    ];
    let mount = json!({"destination": "/", "type": "overlay", "source": "overlay", "options": options});
    bundle.config["mounts"].as_array_mut().unwrap().insert(0, mount);
    bundle.config["root"]["path"] = json!("merged");
}

#[test]
fn an_overlay_keeps_what_a_container_writes_from_the_base_and_from_others() {
    let base = Bundle::new(&["true"]);
    let tree = base.path().join("a:b,c");
    std::fs::rename(base.rootfs(), &tree).unwrap();
    std::fs::write(tree.join("data/file"), "base\n").unwrap();
    support::own(base.path());
    let run = |script: &str, upper: &str| {
        let mut bundle = Bundle::new(&["sh", "-c", script]);
        overlay(&mut bundle, &tree, upper);
        let output = bundle.run();
        assert!(output.status.success(), "{}", text(&output.stderr));
        (text(&output.stdout), bundle)
    };
    let (a, bundle) = run("echo more >> /data/file; rm /bin/true; cat /data/file", "upper");
    assert_eq!(a, "base\nmore\n");
    let (b, _) = run("cat /data/file; ls /bin/true", "upper");
    assert_eq!(b, "base\n/bin/true\n");
    assert_eq!(std::fs::read_to_string(tree.join("data/file")).unwrap(), "base\n");
    // What was written is there when the container starts again.
    let mut again = bundle;
    again.config["process"]["args"] = json!(["cat", "/data/file"]);
    assert_eq!(text(&again.run().stdout), "base\nmore\n");
    // And the container learns nothing of the host's paths.
    again.config["process"]["args"] = json!(["cat", "/proc/self/mounts"]);
    let mounts = text(&again.run().stdout);
    assert!(
        !mounts.contains("a:b") && !mounts.contains(again.path().to_str().unwrap()),
        "{mounts}"
    );
}

#[test]
fn an_overlay_of_many_layers_without_an_upper_is_read_only() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /data/layer /l0 /l99; touch /x"]);
    let mut layers = Vec::new();
    for layer in 0..100 {
        let path = bundle.path().join(format!("layer{layer}"));
        std::fs::create_dir_all(path.join("data")).unwrap();
        std::fs::write(path.join("data/layer"), format!("{layer}\n")).unwrap();
        std::fs::write(path.join(format!("l{layer}")), "l\n").unwrap();
        layers.push(format!("layer{layer}"));
    }
    layers.push("rootfs".into());
    std::fs::create_dir(bundle.path().join("merged")).unwrap();
    let options = [format!("lowerdir={}", layers.join(":"))];
    let mount = json!({"destination": "/", "type": "overlay", "options": options});
    bundle.config["mounts"].as_array_mut().unwrap().insert(0, mount);
    bundle.config["root"]["path"] = json!("merged");
    let output = bundle.run();
    assert_eq!(text(&output.stdout), "0\nl\nl\n", "{}", text(&output.stderr));
    assert!(
        text(&output.stderr).contains("Read-only file system"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_read_only_root_with_writable_mounts() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "touch /data/x || echo root; touch /dev/shm/x && touch /vol/x && echo 1 > /proc/self/oom_score_adj && \
         echo x > /ro/x || echo ro; ls /vol /dev/shm",
    ]);
    for name in ["vol", "ro"] {
        std::fs::create_dir(bundle.path().join(name)).unwrap();
    }
    bundle.config["root"]["readonly"] = json!(true);
    push(
        &mut bundle,
        json!({"destination": "/vol", "type": "bind", "source": "vol", "options": ["rbind", "nosuid"]}),
    );
    push(
        &mut bundle,
        json!({"destination": "/ro", "type": "bind", "source": "ro", "options": ["bind", "ro"]}),
    );
    let output = bundle.run();
    assert_eq!(
        text(&output.stdout),
        "root\nro\n/dev/shm:\nx\n\n/vol:\nx\n",
        "{}",
        text(&output.stderr)
    );
    assert!(bundle.path().join("vol/x").exists());
}

#[test]
fn mounts_of_each_kind() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "grep -E ' /(data/deep|dev/mqueue|sys|tmp) ' /proc/mounts; cat /etc/one; echo no > /etc/one; \
         test -c /dev/null && echo y > /dev/null && readlink /dev/fd && readlink /dev/ptmx; ls /proc/acpi /sys/firmware; \
         cat /proc/timer_list; echo 1 > /proc/sys/kernel/shmmax",
    ]);
    std::fs::write(bundle.path().join("one"), "one\n").unwrap();
    push(
        &mut bundle,
        json!({"destination": "/etc/one", "type": "bind", "source": "one", "options": ["bind", "ro"]}),
    );
    push(
        &mut bundle,
        json!({"destination": "/data/deep/er/../", "type": "tmpfs", "options": ["size=4k", "noexec"]}),
    );
    let output = bundle.run();
    let (stdout, stderr) = (text(&output.stdout), text(&output.stderr));
    assert!(
        stdout.contains(" /data/deep tmpfs rw,noexec") && stdout.contains(" /sys sysfs ro"),
        "{stdout}"
    );
    assert!(
        stdout.contains("one\n/proc/self/fd\npts/ptmx\n"),
        "{stdout} {stderr}"
    );
    assert!(stderr.contains("/etc/one: Read-only file system"), "{stderr}");
    assert!(stderr.contains("shmmax: Read-only file system"), "{stderr}");
    assert_eq!(
        std::fs::read_to_string(bundle.path().join("one")).unwrap(),
        "one\n"
    );
}

#[test]
fn targets_behind_symlinks_stay_inside() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat /tmp/outside/file"]);
    let outside = bundle.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(bundle.path().join("file"), "mounted\n").unwrap();
    symlink("../../../../../../tmp", bundle.rootfs().join("climb")).unwrap();
    symlink(&outside, bundle.rootfs().join("absolute")).unwrap();
    push(
        &mut bundle,
        json!({"destination": "/climb/outside/file", "type": "bind", "source": "file", "options": ["bind"]}),
    );
    push(
        &mut bundle,
        json!({"destination": "/../../climb/up", "type": "tmpfs"}),
    );
    let output = bundle.run();
    assert_eq!(text(&output.stdout), "mounted\n", "{}", text(&output.stderr));
    assert!(bundle.rootfs().join("tmp/outside/file").exists() && bundle.rootfs().join("tmp/up").is_dir());

    // An absolute link that dangles inside is not followed to make anything.
    push(
        &mut bundle,
        json!({"destination": "/absolute/new", "type": "tmpfs"}),
    );
    let output = bundle.run();
    assert!(
        text(&output.stderr).contains("config.json: mounts[8]: /absolute/new"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
}

#[test]
fn proc_and_its_masks_cannot_be_put_elsewhere() {
    let bundle = Bundle::new(&["true"]);
    std::fs::remove_dir(bundle.rootfs().join("proc")).unwrap();
    symlink("tmp", bundle.rootfs().join("proc")).unwrap();
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("mounts[0]: /proc"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn the_image_cannot_plant_devices_links_or_directories_of_its_own() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "echo x > /dev/null; pwd; test -s /data/target || echo untouched",
    ]);
    // Without a /dev of its own the nodes are bound over what the image has there.
    bundle.config["mounts"] = json!([bundle.config["mounts"][0]]);
    std::fs::write(bundle.rootfs().join("data/target"), "").unwrap();
    symlink("../data/target", bundle.rootfs().join("dev/null")).unwrap();
    bundle.config["process"]["cwd"] = json!("/not/yet/there");
    let output = bundle.run();
    assert_eq!(
        text(&output.stdout),
        "/not/yet/there\nuntouched\n",
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn ids_namespaces_and_the_loopback_device() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "id -u; id -g; cat /proc/self/uid_map; ip addr show lo; ip route",
    ]);
    let (uid, gid) = ids();
    bundle.config["process"]["user"] = json!({"uid": 1234567, "gid": 7654321, "umask": 0o27});
    bundle.config["process"]["capabilities"] = json!(null);
    bundle.config["linux"]["uidMappings"] = json!([{"containerID": 1234567, "hostID": uid, "size": 1}]);
    bundle.config["linux"]["gidMappings"] = json!([{"containerID": 7654321, "hostID": gid, "size": 1}]);
    let output = bundle.run();
    let stdout = text(&output.stdout);
    assert!(
        stdout.starts_with("1234567\n7654321\n"),
        "{stdout} {}",
        text(&output.stderr)
    );
    assert!(
        stdout.contains("10.88.0.2/32") && stdout.contains("127.0.0.1/8"),
        "{stdout}"
    );
    assert!(stdout.contains("UP"), "{stdout}");

    // A range needs the helpers, and says so where they are missing or refuse.
    bundle.config["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100000, "size": 65536}]);
    bundle.config["process"]["user"] = json!({"uid": 0, "gid": 0});
    bundle.config["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": gid, "size": 1}]);
    let output = bundle.run();
    let stderr = text(&output.stderr);
    if !output.status.success() {
        assert!(
            stderr.contains("linux.uidMappings") && stderr.contains("newuidmap"),
            "{stderr}"
        );
    }
}

#[test]
fn a_joined_network_namespace_is_shared() {
    let first = Bundle::new(&["sleep", "1000"]);
    first.start();
    let mut second = Bundle::new(&[
        "sh",
        "-c",
        "readlink /proc/self/ns/net; readlink /proc/self/ns/uts",
    ]);
    // The user namespace that owns it comes first, whatever the bundle's order.
    let path = |kind: &str| format!("/proc/{}/ns/{kind}", first.pid());
    second.config["linux"]["namespaces"] = json!([
        {"type": "network", "path": path("net")}, {"type": "user", "path": path("user")},
        {"type": "mount"}, {"type": "pid"}, {"type": "ipc"}, {"type": "uts"},
    ]);
    second.config["linux"]["uidMappings"] = json!([]);
    second.config["linux"]["gidMappings"] = json!([]);
    let output = second.run();
    let stdout = text(&output.stdout);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut lines = stdout.lines();
    let link = |kind: &str| first.ok(&["exec", "c", "readlink", &format!("/proc/self/ns/{kind}")]);
    assert_eq!(lines.next().unwrap(), link("net").trim());
    assert_ne!(lines.next().unwrap(), link("uts").trim());
}

#[test]
fn host_network_and_declared_ports() {
    let listen = "for p in 18080 18081; do (sleep 1 | busybox nc -l -p $p -w 1) && echo open $p || echo denied $p; done";
    let mut bundle = Bundle::new(&["sh", "-c", listen]);
    let namespaces = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
    namespaces.retain(|namespace| namespace["type"] != "network");
    bundle.config["annotations"] = json!({"dev.wherry.ports": "18080"});
    bundle.create();
    let state = bundle.ok(&["state", "c"]);
    bundle.ok(&["delete", "-f", "c"]);
    let output = bundle.run();
    if state.contains("(needs Landlock ABI 4") {
        assert!(
            text(&output.stdout).contains("open 18081"),
            "told as lost, yet kept"
        );
        return;
    }
    assert!(
        text(&output.stdout).contains("denied 18081"),
        "{} {}",
        text(&output.stdout),
        text(&output.stderr)
    );
    assert!(
        text(&output.stderr).contains("bind: Permission denied"),
        "{}",
        text(&output.stderr)
    );
    assert_eq!(
        text(&output.stderr).matches("bind:").count(),
        1,
        "{}",
        text(&output.stderr)
    );
}

/// A path of another kind of namespace than its entry says would take the launch somewhere else: a mount namespace taken
/// for a network namespace, for one, and the mounts would be made there.
#[test]
fn a_namespace_is_joined_as_what_it_is() {
    let mut own = as_user("unshare");
    own.args([
        "--user",
        "--map-root-user",
        "--mount",
        "--uts",
        "sh",
        "-c",
        "echo ready; read end",
    ]);
    let mut own = own.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 6];
    std::io::Read::read_exact(own.stdout.as_mut().unwrap(), &mut line).unwrap();
    let mounts = || std::fs::read_to_string(format!("/proc/{}/mountinfo", own.id())).unwrap();
    let before = mounts();
    for (kind, file) in [
        ("network", "mnt"),
        ("ipc", "uts"),
        ("pid", "mnt"),
        ("user", "uts"),
    ] {
        let mut bundle = Bundle::new(&["true"]);
        let list = bundle.config["linux"]["namespaces"].as_array_mut().unwrap();
        list.retain(|namespace| namespace["type"] != kind);
        list.push(json!({"type": kind, "path": format!("/proc/{}/ns/{file}", own.id())}));
        if kind == "user" {
            let linux = bundle.config["linux"].as_object_mut().unwrap();
            linux.remove("uidMappings");
            linux.remove("gidMappings");
        }
        let output = bundle.run();
        let line = text(&output.stderr);
        assert!(!output.status.success(), "{kind}: {file}");
        assert!(line.contains("linux.namespaces"), "{line}");
    }
    assert_eq!(mounts(), before);
    drop(own.stdin.take());
    own.wait().unwrap();
}

#[test]
fn mounts_are_made_in_the_bundles_order() {
    let mut bundle = Bundle::new(&["cat", "/proc/self/mountinfo"]);
    let source = bundle.path().join("state").to_str().unwrap().to_owned();
    std::fs::create_dir_all(&source).unwrap();
    push(
        &mut bundle,
        json!({"destination": "/data", "type": "bind", "source": source, "options": ["bind"]}),
    );
    bundle.config["root"]["readonly"] = json!(true);
    let output = bundle.run();
    let lines = text(&output.stdout);
    // The kernel lists mounts by their age.
    let points: Vec<&str> = lines.lines().filter_map(|line| line.split(' ').nth(4)).collect();
    let mut last = 0;
    for mount in bundle.config["mounts"].as_array().unwrap() {
        let destination = mount["destination"].as_str().unwrap();
        let place = points.iter().position(|point| *point == destination);
        let place = place.unwrap_or_else(|| panic!("{destination}: {lines} {}", text(&output.stderr)));
        assert!(place > last, "{destination}: {lines}");
        last = place;
    }
}
