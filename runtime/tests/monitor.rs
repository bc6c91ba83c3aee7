//! The monitor and the port forwarder on real containers, as an ordinary user.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::print_stdout)]

#[path = "monitor/harness.rs"]
mod harness;

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;

use harness::{Container, PATIENCE, as_user, in_mount_namespace, script, wait_until};

const SLEEP: &[&str] = &["/bin/sleep", "1000"];

fn shell(text: &str) -> Container {
    Container::new(&["/bin/sh", "-c", text])
}

#[test]
fn the_exit_code_and_every_byte_are_kept() {
    as_user("the_exit_code_and_every_byte_are_kept", || {
        let container = shell("echo out; echo err >&2; printf 'no line feed'; exit 7");
        container.start();
        let observed = container.wait();
        assert_eq!(observed["status"], "exited");
        assert_eq!(observed["exitCode"], 7);
        assert!(
            observed["signal"].is_null() && observed["error"].is_null(),
            "{observed}"
        );
        assert_eq!(observed["oomKilled"], false);
        for field in ["createdAt", "startedAt", "finishedAt"] {
            assert_eq!(observed[field].as_str().unwrap().len(), 30, "{field}");
        }
        assert_eq!(container.logged("stdout"), b"out\nno line feed");
        assert_eq!(container.logged("stderr"), b"err\n");
        let mut left: Vec<String> = fs::read_dir(container.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "run" && name != "runtime")
            .collect();
        left.sort();
        assert_eq!(
            left,
            ["bundle", "log", "monitor.json", "monitor.lock", "observed"]
        );
        let run = container.file("run").read_dir().map_or(0, |run| {
            run.filter(|entry| {
                entry.as_ref().unwrap().file_name().to_str() == container.settings["id"].as_str()
            })
            .count()
        });
        assert_eq!(run, 0, "the runtime still has the container");
    });
}

#[test]
fn a_killed_container_says_so() {
    as_user("a_killed_container_says_so", || {
        let container = Container::new(SLEEP);
        container.start();
        let observed = container.observed();
        assert_eq!(observed["status"], "running");
        assert!(!container.unsupervised());
        container.kill("pid", Signal::KILL);
        let observed = container.wait();
        assert_eq!(
            (&observed["exitCode"], &observed["signal"]),
            (&json!(137), &json!(9))
        );
    });
}

#[test]
fn signals_go_on_to_the_container() {
    as_user("signals_go_on_to_the_container", || {
        let container =
            shell("trap 'exit 5' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.05; done");
        container.start();
        container.wait_for_output("ready");
        container.kill("monitorPid", Signal::USR1);
        container.wait_for_output("usr1");
        container.kill("monitorPid", Signal::TERM);
        assert_eq!(container.wait()["exitCode"], 5);
    });
}

#[test]
fn the_log_is_exact_across_rotations() {
    as_user("the_log_is_exact_across_rotations", || {
        let expected: Vec<u8> = (1..=20_000)
            .flat_map(|number| format!("{number}\n").into_bytes())
            .collect();
        for (files, whole) in [(100, true), (2, false)] {
            let container = Container::new(&["/bin/seq", "1", "20000"])
                .with("log", json!({"path": "log", "maxSize": 32768, "maxFiles": files}));
            container.start();
            assert_eq!(container.wait()["exitCode"], 0);
            let logged = container.logged("stdout");
            assert!(expected.ends_with(&logged), "{files} files");
            assert_eq!(logged.len() == expected.len(), whole, "{files} files");
            let names = fs::read_dir(container.path())
                .unwrap()
                .map(|entry| entry.unwrap());
            let logs: Vec<u64> = names
                .filter(|entry| entry.file_name().to_str().unwrap().starts_with("log"))
                .map(|entry| entry.metadata().unwrap().len())
                .collect();
            assert!(logs.iter().all(|&length| length <= 32768), "{logs:?}");
            assert_eq!(logs.len() == 2, !whole, "{logs:?}");
        }
    });
}

#[test]
fn long_lines_and_binary_output_are_exact() {
    as_user("long_lines_and_binary_output_are_exact", || {
        let container = Container::new(&["/bin/cat", "/www/data"]);
        let mut data = Vec::new();
        let mut state = 1u32;
        for index in 0..400_000u32 {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let byte = (state >> 24) as u8;
            data.push(if byte == b'\n' && index % 100_000 > 200 {
                b'x'
            } else {
                byte
            });
        }
        fs::write(container.file("bundle/rootfs/www/data"), &data).unwrap();
        container.start();
        assert_eq!(container.wait()["exitCode"], 0);
        assert!(
            container.logged("stdout") == data,
            "the log differs from what was written"
        );
        assert!(container.records().iter().all(|record| record.2.len() <= 16384));
    });
}

#[test]
fn an_attached_client_is_the_container_s_terminal_or_pipes() {
    as_user("an_attached_client_is_the_container_s_terminal_or_pipes", || {
        let container = shell("cat; echo done >&2; exit 3")
            .with("openStdin", json!(true))
            .with("waitAttach", json!(true));
        container.start();
        assert_eq!(container.observed()["status"], "created");
        let mut client = container.attach();
        let data: Vec<u8> = (0..200_000u32)
            .flat_map(|number| format!("line {number}\n").into_bytes())
            .collect();
        let mut sender = container_clone(&client);
        let sent = data.clone();
        let thread = std::thread::spawn(move || {
            for piece in sent.chunks(65_536) {
                sender.send(0, piece);
            }
            sender.send(0, b"");
        });
        let (stdout, stderr, code) = client.finish();
        thread.join().unwrap();
        assert!(
            stdout == data,
            "{} of {} bytes came back",
            stdout.len(),
            data.len()
        );
        assert_eq!((stderr.as_slice(), code), (&b"done\n"[..], 3));
        assert_eq!(container.wait()["exitCode"], 3);
        assert!(container.file("log.1").exists() || container.logged("stdout") == data);

        let container = shell("read x; stty size; echo \"got $x\"; exit 4")
            .with_terminal()
            .with("openStdin", json!(true))
            .with("waitAttach", json!(true));
        container.start();
        let mut client = container.attach();
        client.resize(33, 101);
        client.send(0, b"hello\n");
        let (stdout, stderr, code) = client.finish();
        let stdout = String::from_utf8(stdout).unwrap();
        assert!(
            stdout.contains("33 101\r\n") && stdout.contains("got hello\r\n"),
            "{stdout:?}"
        );
        assert_eq!((stderr.as_slice(), code), (&b""[..], 4));
        assert_eq!(container.wait()["exitCode"], 4);
        assert!(
            String::from_utf8(container.logged("stdout"))
                .unwrap()
                .contains("got hello\r\n")
        );
    });
}

fn container_clone(client: &harness::Client) -> harness::Client {
    harness::Client {
        stream: client.stream.try_clone().unwrap(),
    }
}

#[test]
fn clients_come_and_go() {
    as_user("clients_come_and_go", || {
        let container =
            shell("while read x; do echo \"got $x\"; done; exit 6").with("openStdin", json!(true));
        container.start();
        let mut first = container.attach();
        let mut second = container.attach();
        first.send(0, b"one\n");
        assert_eq!(first.receive(), Some((1, b"got one\n".to_vec())));
        assert_eq!(second.receive(), Some((1, b"got one\n".to_vec())));
        drop(first);
        let mut stranger = container.attach();
        stranger.stream.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
        assert_eq!(stranger.receive(), None);
        second.stream.shutdown(Shutdown::Write).unwrap();
        let mut third = container.attach();
        third.send(0, b"two\n");
        assert_eq!(second.receive(), Some((1, b"got two\n".to_vec())));
        third.send(0, b"");
        assert_eq!(second.finish(), (Vec::new(), Vec::new(), 6));
    });
}

#[test]
fn standard_input_ends_with_the_client_that_was_waited_for() {
    as_user("standard_input_ends_with_the_client_that_was_waited_for", || {
        let container = Container::new(&["/bin/cat"])
            .with("openStdin", json!(true))
            .with("waitAttach", json!(true));
        container.start();
        let mut client = container.attach();
        client.send(0, b"last words");
        drop(client);
        assert_eq!(container.wait()["exitCode"], 0);
        assert_eq!(container.logged("stdout"), b"last words");
    });
}

#[test]
fn a_client_that_reads_nothing_is_dropped_and_the_container_goes_on() {
    as_user(
        "a_client_that_reads_nothing_is_dropped_and_the_container_goes_on",
        || {
            let container = Container::new(&["/bin/seq", "1", "500000"])
                .with("waitAttach", json!(true))
                .with("attachStallSeconds", json!(1));
            container.start();
            let client = container.attach();
            let observed = container.wait();
            assert_eq!(
                (&observed["exitCode"], &observed["error"]),
                (&json!(0), &json!(null))
            );
            assert!(container.logged("stdout").ends_with(b"499999\n500000\n"));
            drop(client);
        },
    );
}

#[test]
fn killing_the_creator_in_the_middle_does_not_stop_the_start() {
    as_user(
        "killing_the_creator_in_the_middle_does_not_stop_the_start",
        || {
            let mut container = Container::new(&["/bin/sh", "-c", "echo made it; exit 9"]);
            let real = container.settings["runtime"].as_str().unwrap().to_owned();
            let gate = container.file("gate");
            assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
            let slow = format!(
                "case \"$*\" in *' create '*) read go < {} ;; esac\nexec {real} \"$@\"",
                gate.display()
            );
            container.settings["runtime"] = json!(script(container.path(), "slow", &slow));
            let mut creator = container.command().spawn().unwrap();
            // Opening returns once the runtime waits at the other end.
            let mut gate = fs::OpenOptions::new().write(true).open(&gate).unwrap();
            creator.kill().unwrap();
            creator.wait().unwrap();
            assert!(!container.unsupervised());
            gate.write_all(b"go\n").unwrap();
            drop(gate);
            wait_until("the container ends", || {
                container.observed()["status"] == "exited"
            });
            assert_eq!(container.wait()["exitCode"], 9);
            assert_eq!(container.logged("stdout"), b"made it\n");
        },
    );
}

#[test]
fn a_killed_monitor_leaves_the_truth_and_the_next_one_clears_up() {
    as_user(
        "a_killed_monitor_leaves_the_truth_and_the_next_one_clears_up",
        || {
            let container = Container::new(SLEEP);
            container.start();
            let first = container.observed();
            container.kill("monitorPid", Signal::KILL);
            wait_until("the lock is free", || container.unsupervised());
            assert_eq!(container.observed(), first);
            let stat = fs::read_to_string(format!("/proc/{}/stat", first["pid"])).unwrap();
            let start = stat
                .rsplit(')')
                .next()
                .unwrap()
                .split_whitespace()
                .nth(19)
                .unwrap();
            assert_eq!(
                first["pidStart"].to_string(),
                start,
                "init lives, and is the process that observed names"
            );
            container.start();
            let second = container.observed();
            assert_eq!(second["status"], "running");
            assert_ne!(second["pid"], first["pid"]);
            wait_until("the first init is gone", || {
                fs::read_to_string(format!("/proc/{}/stat", first["pid"]))
                    .map_or(true, |stat| stat.contains(") Z "))
            });
            container.kill("pid", Signal::KILL);
            assert_eq!(container.wait()["exitCode"], 137);
        },
    );
}

#[test]
fn a_second_monitor_is_refused() {
    as_user("a_second_monitor_is_refused", || {
        let container = Container::new(SLEEP);
        container.start();
        let before = container.observed();
        let second = container.try_start();
        assert_eq!(second.status.code(), Some(1));
        let line = String::from_utf8(second.stderr).unwrap();
        assert!(
            line.ends_with("/monitor.lock: held: the container has a monitor already\n"),
            "{line}"
        );
        assert_eq!(container.observed(), before);
        container.attach();
        container.kill("pid", Signal::KILL);
        container.wait();
    });
}

#[test]
fn what_cannot_be_started_says_why() {
    as_user("what_cannot_be_started_says_why", || {
        let container = Container::new(&["/bin/nothing"]);
        let output = container.try_start();
        let line = String::from_utf8(output.stderr).unwrap();
        assert_ne!(output.status.code(), Some(0));
        if std::env::var_os("WHERRY_TEST_OCI_RUNTIME").is_none() {
            assert_eq!(output.status.code(), Some(127), "{line}");
        }
        assert!(
            line.starts_with("wherry-runtime: ") && line.contains("/bin/nothing"),
            "{line}"
        );
        assert_eq!(line.lines().count(), 1, "{line}");
        let observed = container.wait();
        assert_eq!(observed["status"], "exited");
        assert!(
            observed["startedAt"].is_null() && observed["finishedAt"].is_string(),
            "{observed}"
        );
        assert_eq!(observed["exitCode"], output.status.code().unwrap());
        assert!(line.contains(observed["error"].as_str().unwrap()), "{observed}");

        let container = container.with("waitAttach", json!(true));
        if container.try_start().status.success() {
            // The runtime finds out when it starts the process: the client is told.
            let (_, stderr, code) = container.attach().finish();
            assert!(String::from_utf8(stderr).unwrap().contains("/bin/nothing"));
            assert_eq!(code, 127);
        }
        assert_eq!(container.wait()["status"], "exited");

        let container = Container::new(SLEEP).with("runtime", json!("/nonexistent/runtime"));
        let output = container.try_start();
        assert_eq!(output.status.code(), Some(1));
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains("cannot run /nonexistent/runtime: "), "{line}");

        let container = Container::new(SLEEP).with("oomScore", json!(1));
        let line = String::from_utf8(container.try_start().stderr).unwrap();
        assert!(line.contains("/monitor.json: unknown field `oomScore`"), "{line}");
        assert!(container.observed().is_null());
    });
}

#[test]
fn many_short_containers_never_hang() {
    as_user("many_short_containers_never_hang", || {
        let container = Container::new(&["/bin/true"]);
        for number in 0..200 {
            container.start();
            let observed = container.wait();
            assert_eq!(observed["exitCode"], 0, "{number}: {observed}");
            assert!(observed["error"].is_null(), "{number}: {observed}");
        }
    });
}

#[test]
fn a_full_disk_costs_lines_and_not_the_container() {
    in_mount_namespace("a_full_disk_costs_lines_and_not_the_container", || {
        let parent = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(parent.path())
            .status();
        assert!(mount.unwrap().success());
        let container = Container::beneath(
            parent.path(),
            &[
                "/bin/sh",
                "-c",
                // Not before the disk is full: the log alone would fill it, and taking the filler away would free nothing.
                "read go; seq 1 200000; echo waiting; cat; echo the end; exit 8",
            ],
        )
        .with("openStdin", json!(true));
        let filler = parent.path().join("filler");
        container.start();
        // Nothing is left on the disk but what the monitor has reserved.
        let mut file = fs::File::create(&filler).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        drop(file);
        let mut client = container.attach();
        client.send(0, b"go\n");
        while client
            .receive()
            .is_some_and(|(_, bytes)| !bytes.ends_with(b"waiting\n"))
        {}
        fs::remove_file(&filler).unwrap();
        client.send(0, b"");
        assert_eq!(client.finish().2, 8);
        let observed = container.wait();
        assert_eq!(observed["exitCode"], 8);
        let error = observed["error"].as_str().unwrap();
        assert!(
            error.contains(" bytes of output in ") && error.contains("were not logged: No space left"),
            "{error}"
        );
        let told = String::from_utf8(container.logged("stderr")).unwrap();
        assert_eq!(told.trim_end(), format!("wherry: {error}"));
        let logged = String::from_utf8(container.logged("stdout")).unwrap();
        assert!(logged.ends_with("the end\n"));
        let lost: usize = error.split(' ').next().unwrap().parse().unwrap();
        let written: usize = (1..=200_000).map(|number| format!("{number}\n").len()).sum();
        assert_eq!(logged.len() + lost, written + "waiting\nthe end\n".len());
    });
}

#[test]
fn an_exit_is_recorded_on_a_full_disk() {
    in_mount_namespace("an_exit_is_recorded_on_a_full_disk", || {
        let parent = tempfile::tempdir().unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
            .arg(parent.path())
            .status();
        assert!(mount.unwrap().success());
        let container = Container::beneath(parent.path(), &["/bin/sh", "-c", "cat; exit 11"])
            .with("openStdin", json!(true));
        container.start();
        let mut file = fs::File::create(parent.path().join("filler")).unwrap();
        while file.write_all(&[0; 4096]).is_ok() {}
        let mut client = container.attach();
        client.send(0, b"");
        assert_eq!(client.finish().2, 11);
        assert_eq!(container.wait()["exitCode"], 11);
    });
}

/// A port that was free a moment ago.
fn free_port(address: &str) -> u16 {
    TcpListener::bind(address).unwrap().local_addr().unwrap().port()
}

fn published(ports: &[(&str, u16, u16)]) -> serde_json::Value {
    let port = |&(host_ip, host_port, container_port): &(&str, u16, u16)| json!({"hostIp": host_ip, "hostPort": host_port, "containerPort": container_port, "protocol": "tcp"});
    ports.iter().map(port).collect()
}

#[test]
fn published_ports_reach_the_container() {
    as_user("published_ports_reach_the_container", || {
        let (echo, web) = (free_port("127.0.0.1:0"), free_port("[::1]:0"));
        let container = shell("httpd -p 8080 -h /www; nc -ll -p 7000 -e cat & echo ready; wait")
            .with_network()
            .with("ports", published(&[("0.0.0.0", echo, 7000), ("::", web, 8080)]));
        fs::write(container.file("bundle/rootfs/www/index.html"), "a page").unwrap();
        container.start();
        container.wait_for_output("ready");

        // Both directions at once, more than any buffer, with the end of one direction passed on alone.
        let data: Vec<u8> = (0..8_000_000u32).map(|number| (number / 7) as u8).collect();
        let mut reader = connect(&format!("127.0.0.1:{echo}"));
        let mut writer = reader.try_clone().unwrap();
        let sent = data.clone();
        let thread = std::thread::spawn(move || {
            writer.write_all(&sent).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let mut back = Vec::new();
        reader.read_to_end(&mut back).unwrap();
        thread.join().unwrap();
        assert!(back == data, "{} of {} bytes came back", back.len(), data.len());

        let answer = get(&format!("[::1]:{web}"), "/index.html");
        assert!(
            answer.starts_with("HTTP/1.") && answer.ends_with("a page"),
            "{answer}"
        );

        // The ports are free again once the container has ended, and it can be started at once.
        container.kill("pid", Signal::KILL);
        container.wait();
        TcpListener::bind(("0.0.0.0", echo)).unwrap();
        container.start();
        container.kill("pid", Signal::KILL);
        container.wait();
    });
}

/// Connects to an echo service; again while it is not up yet, which the forwarder answers with a reset.
fn connect(address: &str) -> TcpStream {
    let begin = Instant::now();
    loop {
        // A forwarder that is just being replaced listens on, and its backlog ends with it.
        let echoed = TcpStream::connect(address).and_then(|mut stream| {
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])?;
            Ok(stream)
        });
        match echoed {
            Ok(stream) => return stream,
            Err(error) => assert!(begin.elapsed() < PATIENCE, "{address}: {error}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The answer of a web server; asked again while it is not up yet.
fn get(address: &str, path: &str) -> String {
    let begin = Instant::now();
    loop {
        let mut stream = TcpStream::connect(address).unwrap();
        let mut answer = String::new();
        let asked = stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes());
        match asked.and_then(|()| stream.read_to_string(&mut answer)) {
            Ok(length) if length > 0 => return answer,
            other => assert!(begin.elapsed() < PATIENCE, "{address}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_taken_port_is_named_before_anything_is_made() {
    as_user("a_taken_port_is_named_before_anything_is_made", || {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let container = Container::new(SLEEP)
            .with_network()
            .with("ports", published(&[("127.0.0.1", port, 80)]));
        let output = container.try_start();
        assert_eq!(output.status.code(), Some(1));
        let line = String::from_utf8(output.stderr).unwrap();
        assert_eq!(
            line,
            format!("wherry-runtime: port 127.0.0.1:{port}/tcp: already in use on this host\n")
        );
        assert!(container.observed().is_null() && !container.file("run").exists());

        let host =
            Container::new(SLEEP).with("ports", published(&[("127.0.0.1", free_port("127.0.0.1:0"), 80)]));
        let output = host.try_start();
        let line = String::from_utf8(output.stderr).unwrap();
        assert!(line.contains("is in the network namespace of the host"), "{line}");
        assert_eq!(host.wait()["status"], "exited");
    });
}

#[test]
fn the_forwarder_dies_with_a_killed_monitor() {
    as_user("the_forwarder_dies_with_a_killed_monitor", || {
        let port = free_port("127.0.0.1:0");
        let container = Container::new(SLEEP)
            .with_network()
            .with("ports", published(&[("127.0.0.1", port, 80)]));
        container.start();
        assert!(TcpListener::bind(("127.0.0.1", port)).is_err());
        container.kill("monitorPid", Signal::KILL);
        wait_until("the port is free", || {
            TcpListener::bind(("127.0.0.1", port)).is_ok()
        });
    });
}

#[test]
fn a_killed_forwarder_is_replaced() {
    as_user("a_killed_forwarder_is_replaced", || {
        let port = free_port("127.0.0.1:0");
        let container = shell("nc -ll -p 7000 -e cat")
            .with_network()
            .with("ports", published(&[("127.0.0.1", port, 7000)]));
        container.start();
        connect(&format!("127.0.0.1:{port}"));
        let monitor = container.observed()["monitorPid"].as_i64().unwrap();
        let children = format!("/proc/{monitor}/task/{monitor}/children");
        let forwarder = || -> Option<i32> {
            let pids = fs::read_to_string(&children).unwrap();
            let monitor = fs::read_to_string(format!("/proc/{monitor}/cmdline")).unwrap();
            let same = |pid: &&str| {
                fs::read_to_string(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == monitor)
            };
            pids.split_whitespace().find(same).map(|pid| pid.parse().unwrap())
        };
        let first = forwarder().unwrap();
        // A forwarder that dies in its first second is not replaced.
        std::thread::sleep(Duration::from_millis(1100));
        rustix::process::kill_process(rustix::process::Pid::from_raw(first).unwrap(), Signal::KILL).unwrap();
        wait_until("another forwarder", || {
            forwarder().is_some_and(|pid| pid != first)
        });
        let mut stream = connect(&format!("127.0.0.1:{port}"));
        stream.write_all(b"again").unwrap();
        let mut back = [0; 5];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(&back, b"again");
        container.kill("pid", Signal::KILL);
        assert!(container.wait()["error"].is_null());
    });
}

#[test]
fn a_thousand_connections_at_once() {
    as_user("a_thousand_connections_at_once", || {
        const COUNT: usize = 1000;
        // The server's, too: it inherits this.
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        let raised = rustix::process::Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        };
        rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
        let port = free_port("127.0.0.1:0");
        let exe = std::env::current_exe().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let server = script(
            directory.path(),
            "server",
            "busybox ip link set lo up && busybox ip addr add 10.88.0.2/32 dev lo && exec \"$@\"",
        );
        let mut server = Command::new("unshare")
            .args(["--user", "--map-root-user", "--net"])
            .arg(server)
            .arg(exe)
            .args([
                "--ignored",
                "--exact",
                "echo_server_of_the_test_above",
                "--nocapture",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = server.stdout.take().unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"listening") {
            let mut byte = [0];
            assert_eq!(
                ready.read(&mut byte).unwrap(),
                1,
                "{}",
                String::from_utf8_lossy(&seen)
            );
            seen.push(byte[0]);
        }
        let mut forwarder = Command::new(harness::RUNTIME)
            .args([
                "forward",
                "--pid",
                &server.id().to_string(),
                "--publish",
                &format!("127.0.0.1:{port}:7000"),
            ])
            .spawn()
            .unwrap();
        wait_until("the forwarder listens", || {
            TcpStream::connect(("127.0.0.1", port)).is_ok()
        });
        let mut streams: Vec<TcpStream> = (0..COUNT)
            .map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap())
            .collect();
        let message = |index: usize| format!("{index:08}").repeat(512);
        for (index, stream) in streams.iter_mut().enumerate() {
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.write_all(message(index).as_bytes()).unwrap();
        }
        for (index, stream) in streams.iter_mut().enumerate() {
            let mut back = vec![0; 8 * 512];
            stream.read_exact(&mut back).unwrap();
            assert!(back == message(index).as_bytes(), "connection {index}");
        }
        let fds = || {
            fs::read_dir(format!("/proc/{}/fd", forwarder.id()))
                .unwrap()
                .count()
        };
        assert!(
            fds() < 2 * COUNT + 64,
            "{} descriptors for {COUNT} idle connections",
            fds()
        );
        drop(streams);
        wait_until("the connections are gone", || fds() < 64);
        server.kill().unwrap();
        server.wait().unwrap();
        assert!(
            forwarder.wait().unwrap().success(),
            "the forwarder ends with the process it was made for"
        );
    });
}

/// The service inside the namespace; it ends with the end of its standard input.
#[test]
#[ignore = "it is a process of a_thousand_connections_at_once"]
fn echo_server_of_the_test_above() {
    let listener = TcpListener::bind("10.88.0.2:7000").unwrap();
    std::thread::spawn(move || {
        println!("listening");
        for stream in listener.incoming().map_while(Result::ok) {
            let echo = move || std::io::copy(&mut stream.try_clone().unwrap(), &mut &stream);
            std::thread::Builder::new()
                .stack_size(64 * 1024)
                .spawn(echo)
                .unwrap();
        }
    });
    let _ = std::io::stdin().read(&mut [0]);
}

#[test]
fn the_monitor_and_the_forwarder_are_small() {
    as_user("the_monitor_and_the_forwarder_are_small", || {
        let port = free_port("127.0.0.1:0");
        let container = Container::new(&["/bin/sh", "-c", "seq 1 50000; exec sleep 1000"])
            .with_network()
            .with("ports", published(&[("127.0.0.1", port, 80)]));
        container.start();
        container.wait_for_output("50000");
        let monitor = container.observed()["monitorPid"].as_i64().unwrap();
        let private = private_memory(Path::new(&format!("/proc/{monitor}/smaps_rollup")));
        // The figure that is promised, 1 MB, is for the release build; this one carries everything a debug build does.
        assert!(private < 4 << 20, "the monitor has {private} bytes of its own");
        container.kill("pid", Signal::KILL);
        container.wait();
    });
}

fn private_memory(rollup: &Path) -> u64 {
    let text = fs::read_to_string(rollup).unwrap();
    let fields = text.lines().filter(|line| line.starts_with("Private_"));
    fields
        .map(|line| line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024)
        .sum()
}
