//! What a container cannot do: in init, and the same in `exec`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::process::{Output, Stdio};

use serde_json::json;
use support::{Bundle, eventually, finish, ids, text};

/// Runs a script as init of one container and by exec in another; both must answer the same.
fn both(bundle: &mut Bundle, script: &str) -> Output {
    bundle.config["process"]["args"] = json!(["sh", "-c", script]);
    let init = bundle.run();
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    let exec = bundle.call(&["exec", "c", "sh", "-c", script]);
    bundle.ok(&["delete", "--force", "c"]);
    assert_eq!(
        text(&init.stdout),
        text(&exec.stdout),
        "init and exec differ: {}",
        text(&exec.stderr)
    );
    assert_eq!(init.status.code(), exec.status.code(), "{}", text(&exec.stderr));
    init
}

#[test]
fn capabilities_no_new_privs_and_a_filter_are_on() {
    let mut bundle = Bundle::new(&[]);
    let status = |bundle: &mut Bundle| {
        let output = both(bundle, "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status");
        text(&output.stdout).replace('\t', " ")
    };
    let set = "00000000000405fb";
    assert_eq!(
        status(&mut bundle),
        format!(
            "CapInh: 0000000000000000\nCapPrm: {set}\nCapEff: {set}\nCapBnd: {set}\n\
             CapAmb: 0000000000000000\nNoNewPrivs: 1\nSeccomp: 2\n"
        )
    );
    // A bundle without capabilities gets none, and ambient ones are kept where they are asked for.
    bundle.config["process"]["capabilities"] = json!(null);
    assert!(status(&mut bundle).contains("CapPrm: 0000000000000000"));
    let one = json!(["CAP_KILL"]);
    bundle.config["process"]["capabilities"] =
        json!({"bounding": one, "effective": one, "permitted": one, "inheritable": one, "ambient": one});
    assert!(status(&mut bundle).contains("CapAmb: 0000000000000020"));
    // What is switched off is off, and said.
    bundle.config["process"]["noNewPrivileges"] = json!(false);
    bundle.config["annotations"] = json!({"dev.wherry.seccomp": "unconfined"});
    let off = status(&mut bundle);
    assert!(
        off.contains("NoNewPrivs: 0") && off.contains("Seccomp: 0"),
        "{off}"
    );
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    let state: serde_json::Value = serde_json::from_str(&bundle.ok(&["state", "c"])).unwrap();
    assert!(
        state["annotations"]["dev.wherry.warnings"]
            .as_str()
            .unwrap()
            .contains("seccomp: off")
    );
}

#[test]
fn the_filter_denies_and_lets_do() {
    let mut bundle = Bundle::new(&[]);
    let denied =
        "mount -t tmpfs x /tmp && exit 1; unshare -U true && exit 2; unshare -m true && exit 3; exit 0";
    let output = both(&mut bundle, denied);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));

    // The bundle's own filter instead of the built-in one.
    bundle.config["linux"]["seccomp"] = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    });
    let output = both(&mut bundle, "mkdir /tmp/x || exit 9");
    assert_eq!(output.status.code(), Some(9));
    assert!(
        text(&output.stderr).contains("No space left on device"),
        "{}",
        text(&output.stderr)
    );
}

/// Has a directory of the host open at descriptor 3 in init, as a mistake of some program could.
fn with_leak(bundle: &Bundle, outside: &std::path::Path) -> Output {
    bundle.write();
    let leak = support::inheritable(outside);
    let mut command = bundle.runtime(&["run", "--preserve-fds", "1", "c"]);
    support::inherit(&mut command, &[(leak.as_raw_fd(), 3)]);
    finish(
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap(),
    )
}

#[test]
fn landlock_keeps_a_leaked_descriptor_useless() {
    let script = "echo hi > /proc/self/fd/3/written && echo wrote; cat /proc/self/fd/3/secret; \
                  mkdir /proc/self/fd/3/made && echo made; rm /proc/self/fd/3/secret && echo removed; \
                  /proc/self/fd/3/program && echo ran; echo inside > /data/file && cat /data/file";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    let outside = bundle.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::write(outside.join("secret"), "secret\n").unwrap();
    std::fs::copy("/bin/busybox", outside.join("program")).unwrap();
    let output = with_leak(&bundle, &outside);
    assert_eq!(text(&output.stdout), "inside\n", "{}", text(&output.stderr));
    assert_eq!(
        text(&output.stderr).matches("ermission denied").count(),
        5,
        "{}",
        text(&output.stderr)
    );
    assert!(outside.join("secret").exists());

    // Without it the same descriptor is a way out: this is what the domain stops.
    bundle.config["annotations"] = json!({"dev.wherry.landlock": "off"});
    let output = with_leak(&bundle, &outside);
    assert!(
        text(&output.stdout).starts_with("wrote\nsecret\nmade\nremoved\n"),
        "{}",
        text(&output.stdout)
    );
    assert!(outside.join("written").exists());
}

#[test]
fn standard_streams_that_are_files_can_be_reopened() {
    let bundle = Bundle::new(&["sh", "-c", "echo one > /dev/stdout; echo two >> /dev/stderr"]);
    bundle.write();
    let file = std::fs::File::create(bundle.path().join("output")).unwrap();
    support::own(bundle.path());
    let mut command = bundle.runtime(&["run", "c"]);
    let child = command
        .stdin(Stdio::null())
        .stdout(file.try_clone().unwrap())
        .stderr(file)
        .spawn()
        .unwrap();
    assert!(finish(child).status.success());
    assert_eq!(
        std::fs::read_to_string(bundle.path().join("output")).unwrap(),
        "one\ntwo\n"
    );
}

/// Not a test: the program that the next one runs inside a container, which traces init.
#[test]
#[ignore = "runs inside a container, for the test below"]
fn tracer_inside_the_container() {
    support::trace_first_process();
}

#[test]
fn exec_terminates_traces_and_reads_init_as_under_docker() {
    let script = "trap 'exit 42' TERM; while true; do sleep 1000 & wait; done";
    let mut bundle = Bundle::new(&["sh", "-c", script]);
    // The tracer is this test program itself, with the libraries it needs.
    for directory in ["/lib", "/lib64", "/usr"] {
        if std::path::Path::new(directory).exists() {
            bundle.config["mounts"].as_array_mut().unwrap().push(
                json!({"destination": directory, "type": "bind", "source": directory, "options": ["rbind", "ro"]}),
            );
        }
    }
    let program = std::env::current_exe().unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/tracer", "type": "bind", "source": program, "options": ["bind", "ro"]}),
    );
    bundle.write();
    let mut command = bundle.runtime(&["run", "c"]);
    let run = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    eventually("running", || bundle.call(&["exec", "c", "true"]).status.success());
    assert_eq!(
        bundle.ok(&["exec", "c", "readlink", "/proc/1/exe"]),
        "/bin/busybox\n"
    );
    assert_eq!(bundle.ok(&["exec", "c", "ls", "/proc/1/root/data"]), "");
    let traced = bundle.ok(&[
        "exec",
        "c",
        "/tracer",
        "--exact",
        "tracer_inside_the_container",
        "--ignored",
        "--nocapture",
    ]);
    assert!(
        traced.contains("seized, stopped, attached, stopped and let go"),
        "{traced}"
    );
    // The end of init is the end of what sent the signal, perhaps before it can say that it did.
    bundle.call(&["exec", "c", "kill", "-TERM", "1"]);
    assert_eq!(finish(run).status.code(), Some(42));
}

#[test]
fn init_cannot_signal_or_see_what_is_outside() {
    let mut bundle = Bundle::new(&[]);
    let output = both(
        &mut bundle,
        "cat /proc/self/setgroups; hostname; ls /sys/class/net",
    );
    assert_eq!(text(&output.stdout), "deny\nboat\nlo\n");
    // Init and the process that looks: no spawner, no host.
    bundle.start();
    let seen = bundle.ok(&["exec", "c", "sh", "-c", "echo /proc/[0-9]*"]);
    assert_eq!(seen.split_ascii_whitespace().count(), 2, "{seen}");
    assert!(seen.starts_with("/proc/1 "), "{seen}");
}

#[test]
fn the_runtimes_binary_cannot_be_reached() {
    let binary = std::path::Path::new(env!("CARGO_BIN_EXE_wherry-runtime"));
    let before = std::fs::metadata(binary).unwrap();
    let mut bundle = Bundle::new(&[]);
    std::fs::write(bundle.rootfs().join("bin/script"), "#!/proc/self/exe\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.rootfs().join("bin/script"), mode).unwrap();
    symlink("/proc/self/exe", bundle.rootfs().join("bin/link")).unwrap();
    for program in ["/proc/self/exe", "/bin/script", "/bin/link"] {
        bundle.config["process"]["args"] = json!([program, "--version"]);
        let output = bundle.run();
        assert_eq!(
            output.status.code(),
            Some(126),
            "{program}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stdout).is_empty(),
            "{program} ran the runtime in the container"
        );
    }
    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    for program in ["/proc/self/exe", "/bin/script", "/bin/link"] {
        let output = bundle.call(&["exec", "c", program, "--version"]);
        assert_eq!(
            output.status.code(),
            Some(126),
            "{program}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stdout).is_empty(),
            "{program} ran the runtime in the container"
        );
    }
    let after = std::fs::metadata(binary).unwrap();
    assert_eq!(
        (before.ino(), before.mtime(), before.len()),
        (after.ino(), after.mtime(), after.len())
    );
}

#[test]
fn without_landlock_the_container_starts_from_a_sealed_copy() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.config["annotations"] = json!({"dev.wherry.landlock": "off"});
    // A binary that the container's user owns, as somebody who unpacked it at home has.
    let own = bundle.path().join("wherry-runtime");
    std::fs::copy(env!("CARGO_BIN_EXE_wherry-runtime"), &own).unwrap();
    bundle.write();
    let mut command = support::as_user(&own);
    command
        .arg("--root")
        .arg(bundle.path().join("state"))
        .args(["create", "c"])
        .current_dir(bundle.path());
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(finish(child).status.success());
    // The owner may ask for the file by its name only where nothing else hides it: root looks.
    if ids().0 != rustix::process::getuid().as_raw() {
        let state: serde_json::Value = serde_json::from_str(&bundle.ok(&["state", "c"])).unwrap();
        let exe = std::fs::read_link(format!("/proc/{}/exe", state["pid"])).unwrap();
        assert!(
            exe.to_str().unwrap().starts_with("/memfd:wherry-runtime"),
            "{exe:?}"
        );
    }
    bundle.ok(&["start", "c"]);
    assert_eq!(bundle.ok(&["exec", "c", "echo", "works"]), "works\n");
}

#[test]
fn hostile_bundles_are_refused_by_field_and_leave_nothing() {
    let mut many = Vec::new();
    for id in 0..400 {
        many.push(json!({"containerID": id, "hostID": id, "size": 1}));
    }
    type Change = fn(&mut serde_json::Value, &[serde_json::Value]);
    let cases: &[(&str, Change)] = &[
        ("process.user.uid", |c, _| c["process"]["user"]["uid"] = json!(1)),
        ("syntax", |c, _| c["process"]["user"]["uid"] = json!(-1)),
        ("process.args", |c, _| c["process"]["args"] = json!([])),
        ("process.cwd", |c, _| c["process"]["cwd"] = json!("relative")),
        ("process", |c, _| c["process"]["env"] = json!(["A=\0"])),
        ("linux.netDevices", |c, _| {
            c["linux"]["netDevices"] = json!({"eth0": {"name": "x"}})
        }),
        ("process.capabilities.bounding", |c, _| {
            c["process"]["capabilities"]["bounding"] = json!(["CAP_FLY"])
        }),
        ("process.rlimits", |c, _| {
            c["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 1, "hard": u64::MAX}])
        }),
        ("root.path", |c, _| c["root"]["path"] = json!("")),
        ("linux.uidMappings", |c, many| {
            c["linux"]["uidMappings"] = json!(many)
        }),
        ("linux.uidMappings", |c, _| c["linux"]["uidMappings"] = json!([])),
        (
            "linux.gidMappings[0]",
            |c, _| {
                c["linux"]["gidMappings"] =
                    json!([{"containerID": 4294967295u32, "hostID": 0, "size": 4294967295u32}])
            },
        ),
        ("linux.namespaces", |c, _| {
            c["linux"]["namespaces"] = json!([{"type": "user"}])
        }),
        ("linux.namespaces[0]", |c, _| {
            c["linux"]["namespaces"] = json!([{"type": "weather"}])
        }),
        ("linux.namespaces[1]", |c, _| {
            c["linux"]["namespaces"] = json!([{"type": "pid"}, {"type": "pid"}])
        }),
        ("linux.sysctl.kernel.panic", |c, _| {
            c["linux"]["sysctl"] = json!({"kernel.panic": "1"})
        }),
        ("linux.sysctl.net/../kernel", |c, _| {
            c["linux"]["sysctl"] = json!({"net/../kernel": "1"})
        }),
        ("linux.seccomp.defaultAction", |c, _| {
            c["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_MAYBE"})
        }),
        ("linux.personality", |c, _| {
            c["linux"]["personality"] = json!({"domain": "LINUX64"})
        }),
        (
            "mounts[0]",
            |c, _| c["mounts"] = json!([{"destination": "/a", "type": "ext4", "source": "/dev/vda"}]),
        ),
        ("mounts[0].destination", |c, _| {
            c["mounts"] = json!([{"destination": "/proc/self", "type": "tmpfs"}])
        }),
        ("annotations.dev.wherry.landlock", |c, _| {
            c["annotations"] = json!({"dev.wherry.landlock": "yes"})
        }),
        ("annotations.dev.wherry.new", |c, _| {
            c["annotations"] = json!({"dev.wherry.new": "1"})
        }),
        ("ociVersion", |c, _| c["ociVersion"] = json!("9.0.0")),
    ];
    for (field, change) in cases {
        let mut bundle = Bundle::new(&["true"]);
        change(&mut bundle.config, &many);
        let output = bundle.run();
        let line = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{field}: {line}");
        assert!(
            line.starts_with(&format!("wherry-runtime: config.json: {field}")),
            "{field}: {line}"
        );
        assert_eq!(line.lines().count(), 1, "{line}");
        assert!(!bundle.path().join("state/c").exists(), "{field}");
    }
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    for (name, content) in [
        ("nothing", Vec::new()),
        ("depth", [vec![b'['; 100_000], vec![b']'; 100_000]].concat()),
        ("size", vec![b' '; (4 << 20) + 1]),
        ("binary", vec![0xff; 64]),
    ] {
        std::fs::write(bundle.path().join("config.json"), content).unwrap();
        let output = bundle.call(&["run", "c"]);
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(
            text(&output.stderr).contains("config.json: syntax"),
            "{name}: {}",
            text(&output.stderr)
        );
    }
}

#[test]
fn an_engine_finds_the_network_namespace_before_and_after_start() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.create();
    let namespace = |pid: &str| {
        let mut command = support::as_user("readlink");
        let child = command
            .arg(format!("/proc/{pid}/ns/net"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        text(&finish(child).stdout).clone()
    };
    let pid = bundle.pid().to_string();
    let waiting = namespace(&pid);
    assert!(waiting.starts_with("net:["), "{waiting:?}");
    assert_ne!(waiting, namespace("self"));
    bundle.ok(&["start", "c"]);
    assert_eq!(namespace(&pid), waiting);
}
