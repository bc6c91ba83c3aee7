//! One container directory with a busybox root filesystem, and the monitor's view of it.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

pub(crate) const RUNTIME: &str = env!("CARGO_BIN_EXE_wherry-runtime");

/// A test that waits longer than this has found something that hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

const INSIDE: &str = "WHERRY_TEST_INSIDE";

/// Runs a test as an ordinary user: as root the test binary is run again as `wherry-test`.
pub(crate) fn as_user(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() || !rustix::process::geteuid().is_root() {
        return body();
    }
    let passwd = fs::read_to_string("/etc/passwd").unwrap();
    let line = passwd.lines().find(|line| line.starts_with("wherry-test:"));
    let line = line.expect("tests run by root need the user wherry-test (tests/setup makes it)");
    let mut fields = line.split(':').skip(2).map(|field| field.parse::<u32>().unwrap());
    let (uid, gid) = (fields.next().unwrap(), fields.next().unwrap());
    let mut command = Command::new(std::env::current_exe().unwrap());
    // Root's other groups are left by this, too.
    command.uid(uid).gid(gid);
    again(test, command);
}

/// As `as_user`, and in a user and mount namespace, where file systems can be mounted.
pub(crate) fn in_mount_namespace(test: &str, body: impl FnOnce()) {
    if std::env::var_os(INSIDE).is_some() {
        return body();
    }
    as_user(test, || {
        let mut command = Command::new("unshare");
        command
            .args(["--user", "--map-root-user", "--mount"])
            .arg(std::env::current_exe().unwrap())
            .env(INSIDE, "1");
        again(test, command);
    });
}

fn again(test: &str, mut command: Command) {
    let status = command.args(["--exact", test, "--nocapture"]).status();
    let status = status.unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(status.success(), "{command:?}: {status}");
}

pub(crate) fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "waited too long: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A container directory. Whatever still runs in it ends with the test.
pub(crate) struct Container {
    directory: tempfile::TempDir,
    pub(crate) settings: Value,
    pub(crate) config: Value,
}

impl Container {
    /// A container that runs `args`.
    pub(crate) fn new(args: &[&str]) -> Self {
        Self::beneath(&std::env::temp_dir(), args)
    }

    pub(crate) fn beneath(parent: &Path, args: &[&str]) -> Self {
        // As deep as a real one: longer than a socket address.
        let directory = tempfile::Builder::new()
            .prefix(&format!("wherry-{}-", "x".repeat(100)))
            .tempdir_in(parent)
            .unwrap();
        let path = directory.path();
        let bin = path.join("bundle/rootfs/bin");
        fs::create_dir_all(&bin).unwrap();
        for name in ["proc", "dev", "sys", "tmp", "www"] {
            fs::create_dir(path.join("bundle/rootfs").join(name)).unwrap();
        }
        fs::copy("/bin/busybox", bin.join("busybox")).expect("busybox-static is installed by tests/setup");
        for name in "cat dd echo false head httpd kill nc seq sh sleep stty true yes".split(' ') {
            std::os::unix::fs::symlink("busybox", bin.join(name)).unwrap();
        }
        let id = path.file_name().unwrap().to_str().unwrap().replace('x', "");
        let settings = json!({
            "version": 1, "id": id, "runtime": runtime(path), "runtimeRoot": path.join("run"), "bundle": "bundle",
            "terminal": false, "openStdin": false, "waitAttach": false,
            "log": {"path": "log", "maxSize": 10_485_760, "maxFiles": 3}, "ports": [],
        });
        let map = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
        let config = json!({
            "ociVersion": "1.0.2",
            "process": {
                "terminal": false, "user": {"uid": 0, "gid": 0}, "args": args, "cwd": "/",
                "env": ["PATH=/bin", "TERM=xterm"], "noNewPrivileges": true,
            },
            "root": {"path": "rootfs"},
            "hostname": "box",
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
                 "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"]},
            ],
            "linux": {
                "uidMappings": map(rustix::process::geteuid().as_raw()),
                "gidMappings": map(rustix::process::getegid().as_raw()),
                "namespaces": [{"type": "user"}, {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
            },
        });
        Self {
            directory,
            settings,
            config,
        }
    }

    pub(crate) fn with_network(mut self) -> Self {
        self.config["linux"]["namespaces"]
            .as_array_mut()
            .unwrap()
            .push(json!({"type": "network"}));
        self
    }

    pub(crate) fn with_terminal(mut self) -> Self {
        self.settings["terminal"] = json!(true);
        self.config["process"]["terminal"] = json!(true);
        self
    }

    pub(crate) fn with(mut self, field: &str, value: Value) -> Self {
        self.settings[field] = value;
        self
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    pub(crate) fn command(&self) -> Command {
        fs::write(self.file("monitor.json"), self.settings.to_string()).unwrap();
        fs::write(self.file("bundle/config.json"), self.config.to_string()).unwrap();
        let mut command = Command::new(RUNTIME);
        command
            .arg("monitor")
            .arg("--dir")
            .arg(self.path())
            .stdin(Stdio::null());
        command
    }

    /// Starts the monitor and waits for its answer.
    pub(crate) fn try_start(&self) -> Output {
        self.command().output().unwrap()
    }

    pub(crate) fn start(&self) {
        let output = self.try_start();
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
    }

    pub(crate) fn observed(&self) -> Value {
        fs::read(self.file("observed")).map_or(Value::Null, |bytes| serde_json::from_slice(&bytes).unwrap())
    }

    /// Whether nobody holds the monitor's lock.
    pub(crate) fn unsupervised(&self) -> bool {
        let lock = fs::OpenOptions::new()
            .write(true)
            .open(self.file("monitor.lock"))
            .unwrap();
        lock.try_lock_shared().is_ok()
    }

    /// Waits for the end of the monitor and returns the final record.
    pub(crate) fn wait(&self) -> Value {
        wait_until("the monitor ends", || self.unsupervised());
        self.observed()
    }

    /// The log's records, oldest first: stream, tag, content.
    pub(crate) fn records(&self) -> Vec<(String, String, Vec<u8>)> {
        let mut all = Vec::new();
        let names = (1..100)
            .rev()
            .map(|index| format!("log.{index}"))
            .chain(["log".to_owned()]);
        for bytes in names.filter_map(|name| fs::read(self.file(&name)).ok()) {
            assert!(
                bytes.is_empty() || bytes.ends_with(b"\n"),
                "a log ends inside a record"
            );
            for record in bytes.split_inclusive(|&byte| byte == b'\n') {
                let text = std::str::from_utf8(&record[..40]).unwrap();
                let fields: Vec<&str> = text.split(' ').collect();
                assert!(
                    fields.len() == 4 && fields[0].len() == 30 && fields[0].ends_with('Z'),
                    "{text}"
                );
                let content = record[40..record.len() - 1].to_vec();
                all.push((fields[1].to_owned(), fields[2].to_owned(), content));
            }
        }
        all
    }

    /// What the container wrote to a stream, as the log has it.
    pub(crate) fn logged(&self, stream: &str) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (_, tag, content) in self.records().into_iter().filter(|record| record.0 == stream) {
            bytes.extend_from_slice(&content);
            if tag == "F" {
                bytes.push(b'\n');
            }
        }
        bytes
    }

    pub(crate) fn wait_for_output(&self, text: &str) {
        wait_until(text, || {
            let log = fs::read(self.file("log")).unwrap_or_default();
            String::from_utf8_lossy(&log).contains(text)
        });
    }

    pub(crate) fn attach(&self) -> Client {
        let directory = fs::File::open(self.path()).unwrap();
        let stream =
            UnixStream::connect(format!("/proc/self/fd/{}/attach.sock", directory.as_raw_fd())).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Client { stream }
    }

    pub(crate) fn kill(&self, who: &str, signal: rustix::process::Signal) {
        let pid = self.observed()[who].as_i64().unwrap();
        let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let observed = self.observed();
        if self.file("monitor.lock").exists() && observed["status"] != "exited" {
            for who in ["pid", "monitorPid"] {
                if let Some(pid) = observed[who]
                    .as_i64()
                    .and_then(|pid| rustix::process::Pid::from_raw(pid as i32))
                {
                    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
                }
            }
        }
        let root = self.settings["runtimeRoot"].as_str().unwrap();
        let id = self.settings["id"].as_str().unwrap();
        if Path::new(root).join(id).exists() {
            let runtime = self.settings["runtime"].as_str().unwrap();
            let _ = Command::new(runtime)
                .args(["--root", root, "delete", "--force", id])
                .output();
        }
    }
}

/// The runtime below the monitor: ours, or the one named in `WHERRY_TEST_OCI_RUNTIME`.
fn runtime(directory: &Path) -> PathBuf {
    match std::env::var("WHERRY_TEST_OCI_RUNTIME") {
        Ok(command) => script(directory, "runtime", &format!("exec {command} \"$@\"")),
        Err(_) => PathBuf::from(RUNTIME),
    }
}

/// An executable shell script in `directory`.
pub(crate) fn script(directory: &Path, name: &str, text: &str) -> PathBuf {
    let path = directory.join(name);
    // Written by another process: a descriptor that is open for writing in a concurrent fork would make it busy.
    let mut command = Command::new("sh");
    command
        .arg("-c")
        .arg("cat > \"$0\" && chmod 755 \"$0\"")
        .arg(&path);
    let mut child = command.stdin(Stdio::piped()).spawn().unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(format!("#!/bin/sh\n{text}\n").as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success());
    path
}

/// One attached client.
pub(crate) struct Client {
    pub(crate) stream: UnixStream,
}

impl Client {
    pub(crate) fn send(&mut self, kind: u8, payload: &[u8]) {
        let mut frame = vec![kind];
        frame.extend_from_slice(&u32::try_from(payload.len()).unwrap().to_be_bytes());
        frame.extend_from_slice(payload);
        self.stream.write_all(&frame).unwrap();
    }

    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        let [a, b] = rows.to_be_bytes();
        let [c, d] = columns.to_be_bytes();
        self.send(4, &[a, b, c, d]);
    }

    /// The next frame; `None` at the end of the stream.
    pub(crate) fn receive(&mut self) -> Option<(u8, Vec<u8>)> {
        let mut header = [0; 5];
        if let Err(error) = self.stream.read_exact(&mut header) {
            use std::io::ErrorKind::{ConnectionReset, UnexpectedEof};
            assert!(matches!(error.kind(), UnexpectedEof | ConnectionReset), "{error}");
            return None;
        }
        let [kind, length @ ..] = header;
        let mut payload = vec![0; u32::from_be_bytes(length) as usize];
        self.stream.read_exact(&mut payload).unwrap();
        Some((kind, payload))
    }

    /// Everything until the exit frame: standard output, standard error, the exit code.
    pub(crate) fn finish(&mut self) -> (Vec<u8>, Vec<u8>, u32) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        loop {
            match self.receive() {
                Some((1, bytes)) => stdout.extend(bytes),
                Some((2, bytes)) => stderr.extend(bytes),
                Some((3, code)) => return (stdout, stderr, u32::from_be_bytes(code.try_into().unwrap())),
                other => panic!("{other:?} after {:?}", String::from_utf8_lossy(&stdout)),
            }
        }
    }
}
