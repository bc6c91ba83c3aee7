//! Containers come, run and go; nothing of them stays.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

mod support;

use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::process::Stdio;

use serde_json::{Value, json};
use support::{Bundle, eventually, finish, text};

#[test]
fn each_state_and_what_it_refuses() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    let created = bundle
        .runtime(&["create", "c"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(created.success());
    let state: Value = serde_json::from_str(&bundle.ok(&["state", "c"])).unwrap();
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "c");
    assert_eq!(
        state["bundle"].as_str().unwrap(),
        bundle.path().canonicalize().unwrap().to_str().unwrap()
    );
    assert!(std::path::Path::new(&format!("/proc/{}", state["pid"])).exists());

    let refused = |args: &[&str], words: &str| {
        let output = bundle.call(args);
        assert_eq!(output.status.code(), Some(1), "{args:?}");
        let line = text(&output.stderr);
        assert!(
            line.contains(words) && line.starts_with("wherry-runtime: ") && line.lines().count() == 1,
            "{line}"
        );
    };
    refused(&["create", "c"], "already exists");
    refused(&["exec", "c", "true"], "created");
    refused(&["delete", "c"], "created");
    refused(&["start", "d"], "does not exist");
    refused(&["create", "../c"], "container id");

    bundle.ok(&["start", "c"]);
    assert_eq!(bundle.status(), "running");
    assert!(bundle.ok(&["list"]).contains("running"));
    refused(&["start", "c"], "running");
    refused(&["delete", "c"], "running");
    assert_eq!(bundle.ok(&["exec", "c", "cat", "/proc/1/comm"]), "sleep\n");

    bundle.ok(&["kill", "c", "KILL"]);
    eventually("stopped", || bundle.status() == "stopped");
    refused(&["kill", "c", "KILL"], "stopped");
    refused(&["start", "c"], "stopped");
    refused(&["exec", "c", "true"], "stopped");
    bundle.ok(&["delete", "c"]);
    refused(&["delete", "c"], "does not exist");
    bundle.ok(&["delete", "--force", "c"]);
    eventually("no process left", || bundle.processes().is_empty());
    assert_eq!(std::fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
}

#[test]
fn exit_statuses_are_the_shells() {
    let cases: &[(&[&str], i32, &str)] = &[
        (&["true"], 0, ""),
        (&["sh", "-c", "exit 7"], 7, ""),
        (&["sh", "-c", "kill -9 $$; sleep 9"], 0, ""),
        (&["no-such-program"], 127, "not found"),
        (&["/no/such/program"], 127, "no such file"),
        (&["/etc"], 126, "permission denied"),
        (&["/data/text"], 126, "permission denied"),
        (&["/data/broken"], 126, "exec"),
    ];
    let bundle = Bundle::new(&["true"]);
    std::fs::write(bundle.rootfs().join("data/text"), "x").unwrap();
    std::fs::write(bundle.rootfs().join("data/broken"), "x").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.rootfs().join("data/broken"), mode).unwrap();
    let mut run = bundle;
    for (args, code, words) in cases {
        // A pid namespace's first process cannot kill itself with a signal: only `exec` shows that one.
        if args.contains(&"kill -9 $$; sleep 9") {
            continue;
        }
        run.config["process"]["args"] = json!(args);
        let output = run.run();
        assert_eq!(
            output.status.code(),
            Some(*code),
            "run {args:?}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(words),
            "run {args:?}: {}",
            text(&output.stderr)
        );
        assert!(
            !run.path().join("state/c").exists(),
            "run {args:?} left its state"
        );
    }
    run.config["process"]["args"] = json!(["sleep", "1000"]);
    run.start();
    for (args, code, words) in cases {
        let code = if args.contains(&"kill -9 $$; sleep 9") {
            137
        } else {
            *code
        };
        let output = run.call(&[&["exec", "c"], *args].concat());
        assert_eq!(
            output.status.code(),
            Some(code),
            "exec {args:?}: {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(words),
            "exec {args:?}: {}",
            text(&output.stderr)
        );
    }
    // A signal from outside ends init, and with it whoever waits for `run` or `exec`.
    let waiting = run
        .runtime(&["exec", "c", "sleep", "1000"])
        .stdin(Stdio::null())
        .spawn()
        .unwrap();
    eventually("the second sleep", || {
        run.ok(&["exec", "c", "ps"]).matches("sleep 1000").count() == 2
    });
    run.ok(&["kill", "c", "KILL"]);
    assert_eq!(finish(waiting).status.code(), Some(137));
}

#[test]
fn a_process_that_ends_at_once_never_hangs_run() {
    let bundle = Bundle::new(&["true"]);
    bundle.write();
    for _ in 0..100 {
        assert!(bundle.call(&["run", "c"]).status.success());
    }
    eventually("no process left", || bundle.processes().is_empty());
    assert_eq!(std::fs::read_dir(bundle.path().join("state")).unwrap().count(), 0);
}

#[test]
fn a_program_that_is_not_there_fails_create_and_leaves_nothing() {
    let bundle = Bundle::new(&["no-such-program"]);
    bundle.write();
    let output = bundle.call(&["create", "c"]);
    assert_eq!(output.status.code(), Some(127));
    assert!(!bundle.path().join("state/c").exists());
    eventually("no process left", || bundle.processes().is_empty());
}

#[test]
fn killed_at_any_moment_delete_force_cleans() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    // Delays that spread over the whole of a creation, measured first.
    let start = std::time::Instant::now();
    assert!(
        bundle
            .runtime(&["create", "c"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );
    let whole = start.elapsed();
    bundle.ok(&["delete", "--force", "c"]);
    const POINTS: u32 = 40;
    for point in 0..POINTS {
        let mut create = bundle.runtime(&["create", "c"]);
        let mut create = create
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(whole * point / POINTS);
        create.kill().unwrap();
        create.wait().unwrap();
        // Its children notice that it is gone and end; the directory is then nobody's.
        bundle.ok(&["delete", "--force", "c"]);
        assert!(!bundle.path().join("state/c").exists(), "point {point}");
    }
    eventually("no process left", || bundle.processes().is_empty());
    // And the name is free again.
    bundle.start();
}

#[test]
fn a_start_that_was_killed_can_be_repeated_or_deleted() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    for _ in 0..10 {
        let mut create = bundle.runtime(&["create", "c"]);
        assert!(
            create
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .status()
                .unwrap()
                .success()
        );
        let mut start = bundle
            .runtime(&["start", "c"])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        start.kill().unwrap();
        start.wait().unwrap();
        if bundle.status() == "created" {
            bundle.ok(&["start", "c"]);
        }
        assert_eq!(bundle.status(), "running");
        bundle.ok(&["delete", "--force", "c"]);
    }
}

#[test]
fn a_lost_spawner_leaves_the_container_and_says_so() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.start();
    let record: Value =
        serde_json::from_slice(&std::fs::read(bundle.path().join("state/c/state.json")).unwrap()).unwrap();
    let spawner = rustix::process::Pid::from_raw(record["spawner"]["pid"].as_i64().unwrap() as i32).unwrap();
    // Somebody, or the out-of-memory killer.
    let kill = support::as_user("/bin/kill")
        .args(["-9", &spawner.to_string()])
        .status()
        .unwrap();
    assert!(kill.success());
    eventually("exec fails", || {
        let output = bundle.call(&["exec", "c", "true"]);
        output.status.code() == Some(1) && text(&output.stderr).contains("spawner")
    });
    assert_eq!(bundle.status(), "running");
    bundle.ok(&["delete", "--force", "c"]);
}

#[test]
fn kill_all_reaches_every_process() {
    let bundle = Bundle::new(&["sh", "-c", "sleep 1000 & sleep 1001 & sleep 1002"]);
    bundle.start();
    eventually("three processes", || {
        bundle.ok(&["exec", "c", "ps"]).matches("sleep 100").count() == 3
    });
    bundle.ok(&["kill", "--all", "c", "KILL"]);
    eventually("stopped", || bundle.status() == "stopped");
}

#[test]
fn exec_takes_environment_directory_user_and_descriptors() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.start();
    assert_eq!(
        bundle.ok(&[
            "exec",
            "-e",
            "A=b c",
            "--cwd=/bin",
            "c",
            "sh",
            "-c",
            "echo $A $MARK $PWD"
        ]),
        "b c here /bin\n"
    );
    assert_eq!(
        bundle.ok(&["exec", "-e", "MARK=there", "c", "sh", "-c", "echo $MARK"]),
        "there\n"
    );
    assert_eq!(bundle.ok(&["exec", "--user", "0:0", "c", "id", "-u"]), "0\n");
    let output = bundle.call(&["exec", "-u", "5", "c", "id"]);
    assert!(
        text(&output.stderr).contains("process.user.uid: 5 is not mapped"),
        "{}",
        text(&output.stderr)
    );
    let output = bundle.call(&["exec", "-u", "name", "c", "id"]);
    assert!(text(&output.stderr).contains("expected numbers"));

    std::fs::write(
        bundle.path().join("process.json"),
        json!({"args": ["sh", "-c", "echo $X; exit 3"], "env": ["X=y", "PATH=/bin"], "cwd": "/", "user": {"uid": 0, "gid": 0}})
            .to_string(),
    )
    .unwrap();
    let output = bundle.call(&["exec", "--process", "process.json", "c"]);
    assert_eq!(
        (output.status.code(), text(&output.stdout).as_str()),
        (Some(3), "y\n")
    );

    let mut detached = bundle.runtime(&["exec", "--detach", "--pid-file", "exec.pid", "c", "sleep", "1000"]);
    let detached = detached
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    assert!(finish(detached).status.success());
    assert!(bundle.ok(&["exec", "c", "ps"]).matches("sleep 1000").count() >= 2);
}

/// A console socket that takes one terminal.
fn console(bundle: &Bundle, name: &str) -> UnixListener {
    let listener = UnixListener::bind(bundle.path().join(name)).unwrap();
    support::own(bundle.path());
    listener
}

fn receive_terminal(listener: &UnixListener) -> std::fs::File {
    let (connection, _) = listener.accept().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = rustix::net::RecvAncillaryBuffer::new(&mut space);
    let mut name = [0u8; 64];
    let mut parts = [std::io::IoSliceMut::new(&mut name)];
    rustix::net::recvmsg(
        &connection,
        &mut parts,
        &mut control,
        rustix::net::RecvFlags::CMSG_CLOEXEC,
    )
    .unwrap();
    let mut fds: Vec<OwnedFd> = Vec::new();
    for message in control.drain() {
        if let rustix::net::RecvAncillaryMessage::ScmRights(received) = message {
            fds.extend(received);
        }
    }
    assert!(name.starts_with(b"/dev/pts/"));
    std::fs::File::from(fds.remove(0))
}

/// Reads a terminal until it says something.
fn read_until(terminal: &mut std::fs::File, words: &str) -> String {
    let mut all = String::new();
    let mut buffer = [0u8; 512];
    while !all.contains(words) {
        let length = match std::io::Read::read(terminal, &mut buffer) {
            Ok(length) if length > 0 => length,
            end => panic!("{end:?} after {all:?}"),
        };
        all.push_str(&text(&buffer[..length]));
    }
    all
}

#[test]
fn a_terminal_goes_to_the_console_socket() {
    let mut bundle = Bundle::new(&[
        "sh",
        "-c",
        "tty; stty size; read line; echo got $line; tty < /dev/console",
    ]);
    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["consoleSize"] = json!({"height": 33, "width": 77});
    bundle.write();
    let refused = bundle.call(&["create", "c"]);
    assert!(text(&refused.stderr).contains("--console-socket"));
    let listener = console(&bundle, "console.sock");
    bundle.ok(&["create", "--console-socket", "console.sock", "c"]);
    let mut terminal = receive_terminal(&listener);
    bundle.ok(&["start", "c"]);
    let said = read_until(&mut terminal, "33 77");
    assert!(said.contains("/dev/pts/0"), "{said}");
    std::io::Write::write_all(&mut terminal, b"line\n").unwrap();
    let said = read_until(&mut terminal, "/dev/console");
    assert!(said.contains("got line"), "{said}");
}

#[test]
fn exec_and_run_proxy_a_terminal() {
    let mut bundle = Bundle::new(&["sleep", "1000"]);
    bundle.start();
    let output = bundle.call(&[
        "exec",
        "--tty",
        "c",
        "sh",
        "-c",
        "tty; test -t 2 && echo all; exit 4",
    ]);
    assert_eq!(output.status.code(), Some(4));
    assert_eq!(text(&output.stdout), "/dev/pts/0\r\nall\r\n");
    let listener = console(&bundle, "exec.sock");
    bundle.ok(&[
        "exec",
        "-t",
        "-d",
        "--console-socket",
        "exec.sock",
        "c",
        "sh",
        "-c",
        "echo hello; read x",
    ]);
    read_until(&mut receive_terminal(&listener), "hello");
    bundle.ok(&["delete", "--force", "c"]);

    bundle.config["process"]["terminal"] = json!(true);
    bundle.config["process"]["args"] = json!([
        "sh",
        "-c",
        "tty; for i in 1 2 3 4 5 6 7 8; do echo $i; done; exit 5"
    ]);
    for _ in 0..10 {
        let output = bundle.run();
        assert_eq!(output.status.code(), Some(5), "{}", text(&output.stderr));
        assert!(
            text(&output.stdout).ends_with("7\r\n8\r\n"),
            "{:?}",
            text(&output.stdout)
        );
    }
}

#[test]
fn hooks_run_in_order_with_the_state_and_stop_a_creation() {
    let mut bundle = Bundle::new(&["true"]);
    let log = bundle.path().join("log");
    let hook = |name: &str| {
        let script = format!(
            "echo {name} $(grep -o '\"status\":\"[a-z]*\"') >> {}",
            log.display()
        );
        json!([{"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["PATH=/usr/bin:/bin"]}])
    };
    for name in [
        "prestart",
        "createRuntime",
        "createContainer",
        "poststart",
        "poststop",
    ] {
        bundle.config["hooks"][name] = hook(name);
    }
    let inside =
        json!([{"path": "/bin/sh", "args": ["sh", "-c", "echo inside > /data/hook"], "env": ["PATH=/bin"]}]);
    bundle.config["hooks"]["startContainer"] = inside;
    let output = bundle.run();
    assert!(output.status.success(), "{}", text(&output.stderr));
    assert_eq!(
        std::fs::read_to_string(bundle.rootfs().join("data/hook")).unwrap(),
        "inside\n"
    );
    let lines = std::fs::read_to_string(&log).unwrap();
    let names: Vec<&str> = lines
        .lines()
        .map(|line| line.split(' ').next().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "prestart",
            "createRuntime",
            "createContainer",
            "poststart",
            "poststop"
        ],
        "{lines}"
    );
    assert!(lines.contains("createRuntime \"status\":\"created\""), "{lines}");
    assert!(lines.contains("poststop \"status\":\"stopped\""), "{lines}");

    for (name, hook) in [
        ("createRuntime", json!([{"path": "/bin/false"}])),
        (
            "createContainer",
            json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]),
        ),
        (
            "startContainer",
            json!([{"path": "/bin/sh", "args": ["sh", "-c", "exit 1"]}]),
        ),
    ] {
        bundle.config["hooks"] = json!({name: hook});
        let output = bundle.run();
        assert_eq!(output.status.code(), Some(1), "{name}");
        assert!(
            text(&output.stderr).contains(name),
            "{name}: {}",
            text(&output.stderr)
        );
        assert!(!bundle.path().join("state/c").exists(), "{name}");
    }
    eventually("no process left", || bundle.processes().is_empty());
}

#[test]
fn the_long_paths_of_deep_directories_work() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    let deep = bundle.path().join("d".repeat(120)).join("e".repeat(120));
    std::fs::create_dir_all(&deep).unwrap();
    support::own(bundle.path());
    let call = |args: &[&str]| {
        let mut command = support::as_user(env!("CARGO_BIN_EXE_wherry-runtime"));
        command
            .arg("--root")
            .arg(&deep)
            .args(args)
            .current_dir(bundle.path());
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        assert!(finish(child).status.success(), "{args:?}");
    };
    call(&["create", "c"]);
    call(&["start", "c"]);
    call(&["exec", "c", "true"]);
    call(&["delete", "-f", "c"]);
}

#[test]
fn preserved_descriptors_and_no_others() {
    let mut bundle = Bundle::new(&["sh", "-c", "cat <&3; ls /proc/self/fd | wc -l; ls /proc/1/fd"]);
    bundle.write();
    std::fs::write(bundle.path().join("given"), "given\n").unwrap();
    let given = std::fs::File::open(bundle.path().join("given")).unwrap();
    let secret = support::inheritable(std::path::Path::new("/etc"));
    let mut command = bundle.runtime(&["run", "--preserve-fds", "1", "c"]);
    let fds = (given.as_raw_fd(), secret.as_raw_fd());
    // 3 is passed on purpose, 9 by mistake.
    support::inherit(&mut command, &[(fds.0, 3), (fds.1, 9)]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let output = finish(child);
    // ls, which the shell becomes in the end, opens the directory: one more.
    assert_eq!(
        text(&output.stdout),
        "given\n5\n0\n1\n2\n3\n4\n",
        "{}",
        text(&output.stderr)
    );
    let refused = bundle.call(&["run", "--preserve-fds", "5000", "c"]);
    assert!(text(&refused.stderr).contains("--preserve-fds 5000: expected at most"));

    bundle.config["process"]["args"] = json!(["sleep", "1000"]);
    bundle.start();
    let mut command = bundle.runtime(&["exec", "c", "ls", "/proc/self/fd"]);
    support::inherit(&mut command, &[(fds.1, 9)]);
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(text(&finish(child).stdout), "0\n1\n2\n3\n");
}

#[test]
fn many_processes_come_and_go_at_once() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.start();
    // One ends in the moment in which another is asked for: the spawner sees both at once.
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let bundle = &bundle;
            scope.spawn(move || {
                for round in 0..40 {
                    let wanted = (caller + round) % 7;
                    let output = bundle.call(&["exec", "c", "sh", "-c", &format!("exit {wanted}")]);
                    assert_eq!(
                        output.status.code(),
                        Some(wanted),
                        "caller {caller}, round {round}: {}",
                        text(&output.stderr)
                    );
                }
            });
        }
    });
    assert_eq!(bundle.status(), "running");
}

/// An engine waits for a detached process by the id in the pid file, as the subreaper that it is.
#[test]
fn a_detached_exec_is_waited_for_as_a_child() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.start();
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).unwrap();
    let exec = |words: &[&str]| -> rustix::process::Pid {
        let mut command = bundle.runtime(&["exec", "--detach", "--pid-file", "exec.pid", "c"]);
        command.args(words).stdin(Stdio::null()).stdout(Stdio::null());
        assert!(finish(command.spawn().unwrap()).status.success());
        let text = std::fs::read_to_string(bundle.path().join("exec.pid")).unwrap();
        rustix::process::Pid::from_raw(text.parse().unwrap()).unwrap()
    };
    let wait = |pid| {
        let flags = rustix::process::WaitOptions::empty();
        rustix::process::waitpid(Some(pid), flags).unwrap().unwrap().1
    };
    assert_eq!(wait(exec(&["sh", "-c", "exit 7"])).exit_status(), Some(7));
    // Its output ends with the process: the keeper does not hold it open.
    let line = bundle.ok(&["exec", "--detach", "c", "echo", "said"]);
    assert_eq!(line, "said\n");

    let passed = exec(&[
        "sh",
        "-c",
        "trap 'exit 9' TERM; touch /data/ready; while :; do sleep 0.01; done",
    ]);
    let ready = bundle.rootfs().join("data/ready");
    eventually("the trap is set", || ready.exists());
    rustix::process::kill_process(passed, rustix::process::Signal::TERM).unwrap();
    assert_eq!(wait(passed).exit_status(), Some(9));

    let killed = exec(&["sleep", "77777"]);
    let there = || bundle.ok(&["exec", "c", "ps"]).contains("sleep 77777");
    assert!(there());
    rustix::process::kill_process(killed, rustix::process::Signal::KILL).unwrap();
    wait(killed);
    eventually("the process ends with its keeper", || !there());
}

#[test]
fn another_configuration_can_stand_for_the_bundles() {
    let bundle = Bundle::new(&["sh", "-c", "exit 3"]);
    bundle.write();
    std::fs::rename(
        bundle.path().join("config.json"),
        bundle.path().join("other.json"),
    )
    .unwrap();
    assert_eq!(bundle.call(&["run", "c"]).status.code(), Some(1));
    assert_eq!(
        bundle.call(&["run", "--config", "other.json", "c"]).status.code(),
        Some(3)
    );
}

#[test]
fn a_detached_run_lives_on() {
    let bundle = Bundle::new(&["sleep", "1000"]);
    bundle.write();
    let mut command = bundle.runtime(&["run", "--detach", "--pid-file", "pid", "c"]);
    command.stdin(Stdio::null()).stdout(Stdio::null());
    assert!(finish(command.spawn().unwrap()).status.success());
    assert_eq!(bundle.status(), "running");
    assert!(std::path::Path::new(&format!("/proc/{}", bundle.pid())).exists());
    assert_eq!(bundle.ok(&["exec", "c", "echo", "x"]), "x\n");
    bundle.ok(&["delete", "--force", "c"]);

    let missing = Bundle::new(&["/bin/no-such-program"]);
    missing.write();
    assert_eq!(missing.call(&["run", "-d", "c"]).status.code(), Some(127));
    assert!(!missing.path().join("state/c").exists());
}
