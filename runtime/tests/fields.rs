//! Fields of a bundle that change what a process is, each seen from inside. SPEC.md names the test of each.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr
)]

mod support;

use std::io::Read;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::{Output, Stdio};

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use serde_json::{Value, json};
use support::{Bundle, eventually, finish, own, text};

/// Runs a shell script in a container with a changed configuration.
fn run(script: &str, change: impl FnOnce(&mut Value)) -> (String, Output) {
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    change(&mut bundle.config);
    let output = bundle.run();
    (text(&output.stdout), output)
}

fn mount(config: &mut Value, mount: Value) {
    config["mounts"].as_array_mut().unwrap().push(mount);
}

#[test]
fn personality() {
    let (plain, _) = run("busybox uname -m", |_| ());
    let (other, output) = run("busybox uname -m", |config| {
        config["linux"]["personality"] = json!({"domain": "LINUX32"});
    });
    assert_ne!(plain, other, "{}", text(&output.stderr));
    assert!(!other.is_empty());
}

#[test]
fn scheduler_and_io_priority_of_init_and_exec() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["process"]["scheduler"] = json!({"policy": "SCHED_BATCH", "nice": 5});
    bundle.config["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_IDLE", "priority": 0});
    bundle.start();
    for pid in ["1", "$$"] {
        // Nice value and policy: SCHED_BATCH.
        let script = format!("busybox cut -d' ' -f19,41 /proc/{pid}/stat; busybox ionice -p {pid}");
        let said = bundle.ok(&["exec", "c", "sh", "-c", &script]);
        assert_eq!(said, "5 3\nidle\n", "{pid}");
    }
    // A process that says nothing of it has nothing of it.
    std::fs::write(
        bundle.path().join("process.json"),
        json!({"args": ["sh", "-c", "busybox cut -d' ' -f41 /proc/$$/stat"], "cwd": "/", "env": ["PATH=/bin"]}).to_string(),
    )
    .unwrap();
    let said = bundle.ok(&["exec", "--process", "process.json", "c"]);
    assert_eq!(said, "0\n");
}

#[test]
fn processors_of_exec() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["process"]["execCPUAffinity"] = json!({"initial": "0", "final": "0"});
    bundle.start();
    let grep = "grep Cpus_allowed_list: /proc/self/status";
    assert_eq!(
        bundle.ok(&["exec", "c", "sh", "-c", grep]),
        "Cpus_allowed_list:\t0\n"
    );
    bundle.ok(&["delete", "--force", "c"]);
    bundle.config["process"]["execCPUAffinity"] = json!({"final": "8000"});
    bundle.start();
    let output = bundle.call(&["exec", "c", "true"]);
    assert!(
        text(&output.stderr).contains("process.execCPUAffinity.final"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn clocks_of_a_time_namespace() {
    let (stdout, output) = run(
        "read up rest < /proc/uptime; echo ${up%.*}; readlink /proc/self/ns/time",
        |config| {
            config["linux"]["namespaces"]
                .as_array_mut()
                .unwrap()
                .push(json!({"type": "time"}));
            config["linux"]["timeOffsets"] =
                json!({"boottime": {"secs": 1_000_000_000, "nanosecs": 5}, "monotonic": {"secs": 7}});
        },
    );
    let mut lines = stdout.lines();
    let up: u64 = lines
        .next()
        .unwrap_or_default()
        .parse()
        .unwrap_or_else(|_| panic!("{}", text(&output.stderr)));
    assert!(up >= 1_000_000_000, "{stdout}");
    let host = std::fs::read_link("/proc/self/ns/time").unwrap();
    assert_ne!(lines.next().unwrap(), host.to_str().unwrap());
    let (_, output) = run("true", |config| {
        config["linux"]["timeOffsets"] = json!({"boottime": {"secs": 1}});
    });
    assert!(
        text(&output.stderr).contains("linux.timeOffsets.boottime"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn memory_policy() {
    if !std::path::Path::new("/proc/self/numa_maps").exists() {
        support::skip("fields::memory_policy", "this kernel has no memory policies");
        return;
    }
    let (stdout, output) = run("head -n 1 /proc/self/numa_maps", |config| {
        config["linux"]["memoryPolicy"] =
            json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]});
    });
    assert!(
        stdout.contains(" bind=static:0 "),
        "{stdout}{}",
        text(&output.stderr)
    );
}

#[test]
fn umask_and_domainname() {
    let (stdout, output) = run("umask; cat /proc/sys/kernel/domainname", |config| {
        config["process"]["user"]["umask"] = json!(0o027);
        config["linux"]["sysctl"] = json!({"kernel.domainname": "harbour"});
    });
    assert_eq!(stdout, "0027\nharbour\n", "{}", text(&output.stderr));
    let (_, output) = run("true", |config| {
        config["domainname"] = json!("other");
        config["linux"]["sysctl"] = json!({"kernel.domainname": "harbour"});
    });
    assert!(
        text(&output.stderr).contains("linux.sysctl.kernel.domainname"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn a_tmpfs_begins_with_what_it_covers() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "cat /etc/motd /etc/deep/er/file; readlink /etc/link; echo new > /etc/motd && cat /etc/motd",
    ]);
    let etc = bundle.rootfs().join("etc");
    std::fs::create_dir_all(etc.join("deep/er")).unwrap();
    std::fs::write(etc.join("motd"), "old\n").unwrap();
    std::fs::write(etc.join("deep/er/file"), "deep\n").unwrap();
    std::os::unix::fs::symlink("motd", etc.join("link")).unwrap();
    mount(
        &mut bundle.config,
        json!({"destination": "/etc", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    let output = bundle.run();
    assert_eq!(
        text(&output.stdout),
        "old\ndeep\nmotd\nnew\n",
        "{}",
        text(&output.stderr)
    );
    assert_eq!(std::fs::read_to_string(etc.join("motd")).unwrap(), "old\n");
}

#[test]
fn flags_of_a_whole_tree() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "grep ' /data' /proc/self/mountinfo; echo x > /data/dev/x || echo kept",
    ]);
    let source = bundle.path().join("tree");
    std::fs::create_dir_all(source.join("dev")).unwrap();
    let source = source.to_str().unwrap().to_owned();
    // A mount within the tree: bound there first, beneath the root.
    mount(
        &mut bundle.config,
        json!({"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]}),
    );
    mount(
        &mut bundle.config,
        json!({"destination": "/data/dev", "type": "tmpfs", "source": "tmpfs", "options": []}),
    );
    mount(
        &mut bundle.config,
        json!({"destination": "/data", "type": "none", "source": "none", "options": ["remount", "bind", "rro", "rnoexec"]}),
    );
    let output = bundle.run();
    let stdout = text(&output.stdout);
    let lines: Vec<&str> = stdout.lines().filter(|line| line.contains(" /data")).collect();
    assert_eq!(lines.len(), 2, "{stdout}{}", text(&output.stderr));
    for line in lines {
        let flags = line.split(' ').nth(5).unwrap();
        assert!(flags.starts_with("ro") && flags.contains("noexec"), "{line}");
    }
    assert!(stdout.ends_with("kept\n"), "{stdout}");
}

#[test]
fn nodes_by_number_and_pipes() {
    let (stdout, output) = run(
        "echo x > /dev/hole && echo gone; test -p /dev/pipe && echo pipe; test -c /dev/hole && echo device",
        |config| {
            config["linux"]["devices"] = json!([
                {"path": "/dev/hole", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600},
                {"path": "/dev/pipe", "type": "p", "fileMode": 0o640},
            ]);
        },
    );
    assert_eq!(stdout, "gone\npipe\ndevice\n", "{}", text(&output.stderr));
    let (_, output) = run("true", |config| {
        config["linux"]["devices"] = json!([{"path": "/dev/none", "type": "c", "major": 511, "minor": 77}]);
    });
    assert!(
        text(&output.stderr).contains("linux.devices[0]: /dev/none"),
        "{}",
        text(&output.stderr)
    );
}

#[test]
fn what_is_left_out_is_named_by_state() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["mountLabel"] = json!("system_u:object_r:x_t:s0");
    // Where AppArmor is on, a profile is entered or the container does not start.
    let apparmor = std::fs::read_to_string("/sys/module/apparmor/parameters/enabled")
        .is_ok_and(|enabled| enabled.trim() == "Y");
    if !apparmor {
        bundle.config["process"]["apparmorProfile"] = json!("none-such");
    }
    bundle.config["process"]["later"] = json!({"a": 1});
    bundle.config["linux"]["intelRdt"] = json!({"closID": "a"});
    bundle.config["linux"]["devices"] =
        json!([{"path": "/dev/hole", "type": "c", "major": 1, "minor": 3, "fileMode": 0o600}]);
    mount(
        &mut bundle.config,
        json!({"destination": "/data", "type": "bind", "source": "rootfs/etc", "options": ["bind", "mode=755"]}),
    );
    bundle.create();
    let state: Value = serde_json::from_str(&bundle.ok(&["state", "c"])).unwrap();
    let said = state["annotations"]["dev.wherry.warnings"].as_str().unwrap();
    for field in [
        "linux.mountLabel",
        "process.apparmorProfile",
        "process.later",
        "linux.intelRdt",
        "linux.devices[0].fileMode",
        "mounts[6].options",
    ] {
        assert!(
            said.lines().any(|line| line.starts_with(field)) != (apparmor && field.contains("apparmor")),
            "{field}: {said}"
        );
    }
}

#[test]
fn sockets_of_an_activation() {
    let bundle = Bundle::new(&[
        "sh",
        "-c",
        "echo $LISTEN_FDS $LISTEN_PID $LISTEN_FDNAMES; cat <&3",
    ]);
    bundle.write();
    std::fs::write(bundle.path().join("given"), "given\n").unwrap();
    let given = std::fs::File::open(bundle.path().join("given")).unwrap();
    let mut command = bundle.runtime(&["run", "c"]);
    command
        .env("LISTEN_FDS", "1")
        .env("LISTEN_PID", "77")
        .env("LISTEN_FDNAMES", "web");
    support::inherit(&mut command, &[(given.as_raw_fd(), 3)]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = finish(child);
    assert_eq!(
        text(&output.stdout),
        "1 1 web\ngiven\n",
        "{}",
        text(&output.stderr)
    );
}

/// What comes over a connection: a document, and a descriptor with it.
fn receive(listener: &UnixListener) -> (Value, OwnedFd) {
    let (mut stream, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut first = [0u8; 1];
    let mut parts = [std::io::IoSliceMut::new(&mut first)];
    let received = rustix::net::recvmsg(&stream, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
    assert_eq!(received.bytes, 1);
    let fd = control.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
        _ => None,
    });
    let mut document = first.to_vec();
    stream.read_to_end(&mut document).unwrap();
    (serde_json::from_slice(&document).unwrap(), fd.unwrap())
}

#[test]
fn a_listener_is_handed_over_for_init_and_exec() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    let path = bundle.path().join("listener");
    let listener = UnixListener::bind(&path).unwrap();
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "listenerPath": path, "listenerMetadata": "for the harbour",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_NOTIFY"}],
    });
    own(bundle.path());
    bundle.start();
    let (document, fd) = receive(&listener);
    assert_eq!(document["pid"], bundle.pid());
    assert_eq!(
        (&document["metadata"], &document["state"]["id"]),
        (&json!("for the harbour"), &json!("c"))
    );
    assert_eq!(document["fds"], json!(["seccompFd"]));
    let name = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).unwrap();
    assert!(name.to_string_lossy().contains("seccomp"), "{name:?}");

    let mut exec = bundle.runtime(&["exec", "c", "sh", "-c", "mkdir /tmp/a || echo refused"]);
    let exec = exec
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (document, of_exec) = receive(&listener);
    assert_ne!(document["pid"], bundle.pid());
    // With nobody to answer any more the call is refused.
    drop(of_exec);
    let output = finish(exec);
    assert_eq!(text(&output.stdout), "refused\n", "{}", text(&output.stderr));
}

#[test]
fn a_listener_that_is_not_there_stops_the_start() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["seccomp"] =
        json!({"defaultAction": "SCMP_ACT_ALLOW", "listenerPath": bundle.path().join("none")});
    let output = bundle.run();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("linux.seccomp.listenerPath"),
        "{}",
        text(&output.stderr)
    );
    eventually("nothing is left", || bundle.processes().is_empty());
}

#[test]
fn a_container_is_kept_when_asked() {
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    bundle.ok(&["run", "--keep", "c"]);
    assert_eq!(bundle.status(), "stopped");
    let again = bundle.call(&["run", "c"]);
    assert!(
        text(&again.stderr).contains("already exists"),
        "{}",
        text(&again.stderr)
    );
    bundle.ok(&["delete", "c"]);
}

#[test]
fn a_configuration_to_begin_with_runs() {
    let mut bundle = Bundle::new(&["true"]);
    bundle.write();
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    bundle.ok(&["spec", "--rootless"]);
    let written = std::fs::read_to_string(bundle.path().join("config.json")).unwrap();
    bundle.config = serde_json::from_str(&written).unwrap();
    bundle.config["process"]["terminal"] = json!(false);
    bundle.config["process"]["args"] = json!(["/bin/hostname"]);
    std::fs::remove_file(bundle.path().join("config.json")).unwrap();
    let output = bundle.run();
    assert_eq!(text(&output.stdout), "wherry\n", "{}", text(&output.stderr));
}

#[test]
fn a_poststart_hook_that_fails_stops_the_container() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["hooks"] = json!({"poststart": [{"path": "/bin/false"}]});
    bundle.create();
    let output = bundle.call(&["start", "c"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(
        text(&output.stderr).contains("poststart hook failed with exit code 1"),
        "{}",
        text(&output.stderr)
    );
    assert!(text(&bundle.call(&["state", "c"]).stderr).contains("does not exist"));
    assert!(bundle.processes().is_empty());
}

#[test]
fn cgroups_can_be_left_alone() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["linux"]["resources"] = json!({"pids": {"limit": 5}});
    bundle.write();
    let errors = std::fs::File::create(bundle.path().join("errors")).unwrap();
    let mut command = bundle.runtime(&["--cgroup-manager", "disabled", "create", "c"]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(errors)
        .spawn()
        .unwrap();
    assert!(finish(child).status.success());
    let state: Value = serde_json::from_str(&bundle.ok(&["state", "c"])).unwrap();
    let said = state["annotations"]["dev.wherry.warnings"].as_str().unwrap();
    assert!(
        said.contains("linux.resources.pids.limit") && said.contains("--cgroup-manager=disabled"),
        "{said}"
    );
    let unknown = bundle.call(&["--cgroup-manager", "none", "list"]);
    assert!(!unknown.status.success());
}
