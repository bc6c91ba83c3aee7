//! Where a container meets `wherry-runtime`: its monitor is started, its process signalled, its remains deleted.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;
use serde::{Deserialize, Serialize};
use wherry_images::Image;

use super::directory::{self, Directory, read_bounded, write_durably};
use super::observed::Observed;
use super::spec::{Id, Port, Signal, Source};
use super::{Container, Containers, Error, process};
use crate::assemble::{self, Host};

/// A log file is rotated when it is as large as this.
const LOG_MAX_SIZE: u64 = 10 << 20;
/// How many log files are kept.
const LOG_MAX_FILES: u32 = 3;
/// How long a signal or a deletion may take: longer than the runtime's own bounds, and an end to waiting for one that
/// is stuck.
const VERB_PATIENCE: Duration = Duration::from_secs(30);
/// How long a start may take. The monitor gives up earlier, and says why.
const START_PATIENCE: Duration = Duration::from_secs(150);
/// The words of the runtime's command line by which a call is known.
const VERBS: [&str; 4] = ["monitor", "kill", "delete", "state"];
/// How much of what the runtime says is read.
const MESSAGE_MAX: u64 = 4096;
/// How much of what it answers is read.
const ANSWER_MAX: u64 = 1 << 20;
/// No `monitor.json` is larger.
const CONFIG_MAX: u64 = 1 << 20;

/// When the process may begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    /// At once.
    None,
    /// When the first client is connected to `attach.sock`, so that nothing it writes is missed.
    Wait,
}

/// What a monitor is told: `monitor.json`, version 1.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MonitorConfig {
    version: u32,
    id: Id,
    runtime: PathBuf,
    runtime_root: PathBuf,
    bundle: PathBuf,
    terminal: bool,
    open_stdin: bool,
    wait_attach: bool,
    log: LogConfig,
    ports: Vec<PortConfig>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LogConfig {
    path: PathBuf,
    max_size: u64,
    max_files: u32,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct PortConfig {
    host_ip: std::net::IpAddr,
    host_port: u16,
    container_port: u16,
    protocol: String,
}

/// Gives each port without a host port one that is free now.
pub(super) fn choose_ports(ports: &mut [Port]) -> Result<(), Error> {
    let mut held = Vec::new();
    for port in ports.iter_mut().filter(|port| port.host_port == 0) {
        let address = SocketAddr::new(port.host_ip, 0);
        let listener = TcpListener::bind(address)
            .and_then(|listener| Ok((listener.local_addr()?.port(), listener)))
            .map_err(|error| Error::io("listen on", Path::new(&address.to_string()), error))?;
        port.host_port = listener.0;
        // Held until all are chosen, so that no two are the same.
        held.push(listener.1);
    }
    Ok(())
}

/// Starts the monitor and returns when the container runs, or waits to be attached to.
pub(super) fn start(
    containers: &Containers,
    container: &Container,
    image: &Image,
    attach: Attach,
) -> Result<(), Error> {
    let dir = container.directory();
    let spec = &container.spec;
    let mut layers = Vec::new();
    for diff_id in &image.diff_ids {
        let layer = containers.store.layer(diff_id)?;
        layers.push(layer.ok_or_else(|| Error::LayerMissing {
            image: spec.image_name.clone(),
            layer: diff_id.to_string(),
        })?);
    }
    for mount in &spec.mounts {
        match &mount.source {
            Source::Bind(path) if !path.exists() => return Err(Error::NoVolume(path.clone())),
            _ => {}
        }
    }
    let host = Host::read()?;
    let user = assemble::find_user(&spec.user, &dir.join("upper"), &layers)?;
    let devices = crate::devices::resolve(&spec.devices, &crate::devices::Places::default())?;
    let bundle = assemble::bundle(&assemble::Input {
        id: &container.id,
        spec,
        volumes: &image.config.config.volumes,
        user: &user,
        layers: &layers,
        directory: dir,
        host: &host,
        devices: &devices,
    })?;
    for directory in &bundle.directories {
        directory::make_directory(&dir.join(directory))?;
    }
    for (name, content) in &bundle.files {
        let path = dir.join(name);
        fs::write(&path, content).map_err(|error| Error::io("write", &path, error))?;
    }
    let config = MonitorConfig {
        version: 1,
        id: container.id,
        runtime: containers.runtime.clone(),
        runtime_root: runtime_root(containers.store.root())?,
        bundle: "bundle".into(),
        terminal: spec.tty,
        open_stdin: spec.open_stdin,
        wait_attach: attach == Attach::Wait,
        log: LogConfig {
            path: "log".into(),
            max_size: LOG_MAX_SIZE,
            max_files: LOG_MAX_FILES,
        },
        ports: published(container),
    };
    let path = dir.join("monitor.json");
    let text = serde_json::to_vec_pretty(&config).map_err(|error| Error::io("write", &path, error))?;
    write_durably(&path, &text)?;
    let mut monitor = Command::new(&containers.runtime);
    monitor.arg("monitor").arg("--dir").arg(dir);
    run(monitor, START_PATIENCE)
}

fn published(container: &Container) -> Vec<PortConfig> {
    if container.spec.network != super::Network::Private {
        return Vec::new();
    }
    let one = |port: &Port| PortConfig {
        host_ip: port.host_ip,
        host_port: port.host_port,
        container_port: port.container_port,
        protocol: "tcp".into(),
    };
    container.spec.ports.iter().map(one).collect()
}

/// Where the runtime keeps its state: in the user's runtime directory, which a reboot empties, or else in the state
/// directory. Two state directories never share one.
fn runtime_root(state: &Path) -> Result<PathBuf, Error> {
    let own = rustix::process::geteuid().as_raw();
    if let Some(base) = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from)
        && base.is_absolute()
        && fs::metadata(&base).is_ok_and(|meta| meta.is_dir() && meta.uid() == own)
    {
        let state = fs::canonicalize(state).map_err(|error| Error::io("find", state, error))?;
        let name = wherry_images::Digest::of(state.as_os_str().as_encoded_bytes());
        let path = base.join(format!("wherry-{}", name.short()));
        directory::make_directory(&path)?;
        return Ok(path);
    }
    let path = state.join("run");
    directory::make_directory(&path)?;
    fs::canonicalize(&path).map_err(|error| Error::io("find", &path, error))
}

/// The runtime root that a container was started with: another process of the user may have another environment.
pub(crate) fn started_root(dir: &Path) -> Result<Option<PathBuf>, Error> {
    let path = dir.join("monitor.json");
    let Some(bytes) = read_bounded(&path, CONFIG_MAX)? else {
        return Ok(None);
    };
    let config: MonitorConfig = serde_json::from_slice(&bytes)
        .map_err(|error| Error::record(&path, directory::Problem::Damaged(error.to_string())))?;
    Ok(Some(config.runtime_root))
}

/// Sends a signal to the container's first process.
pub(super) fn kill(containers: &Containers, container: &Container, signal: Signal) -> Result<(), Error> {
    let Some(root) = started_root(container.directory())? else {
        return Err(Error::NotRunning {
            name: container.spec.name.clone(),
        });
    };
    let mut kill = Command::new(&containers.runtime);
    kill.arg("--root")
        .arg(root)
        .arg("kill")
        .arg(container.id.hex())
        .arg(signal.number().to_string());
    run(kill, VERB_PATIENCE)
}

/// What of devices and limits this board cannot do, one line each. The runtime is asked only for a container that has
/// limits.
pub(super) fn lost_limits(containers: &Containers, container: &Container) -> Result<Vec<String>, Error> {
    let devices = crate::devices::resolve(&container.spec.devices, &crate::devices::Places::default());
    let mut lost = devices.map(|edits| edits.left_out).unwrap_or_default();
    if container.spec.limits.resources().is_none() {
        return Ok(lost);
    }
    let Some(root) = started_root(container.directory())? else {
        return Ok(lost);
    };
    let mut state = Command::new(&containers.runtime);
    state.arg("--root").arg(root).arg("state").arg(container.id.hex());
    let state: serde_json::Value = serde_json::from_slice(&answer(state, VERB_PATIENCE)?)
        .map_err(|error| Error::io("read", Path::new("the runtime's state"), error))?;
    let warnings = state["annotations"]["dev.wherry.warnings"].as_str();
    let lines = warnings.unwrap_or_default().lines();
    lost.extend(lines.filter_map(lost_limit).map(str::to_owned));
    Ok(lost)
}

/// What a warning of the runtime says of a limit, without the names of its fields.
fn lost_limit(line: &str) -> Option<&str> {
    let (_, what) = line.strip_prefix("linux.resources.")?.split_once(": ")?;
    what.contains("not enforced").then_some(what)
}

/// Ends and deletes what a lost monitor left behind. The container's lock is held. Whether its process still ran.
pub(super) fn clean_up(containers: &Containers, dir: &Directory, claim: &Observed) -> Result<bool, Error> {
    let this_boot = claim.boot_id == containers.boot_id;
    let killed = match (claim.pid, claim.pid_start) {
        (Some(pid), Some(started)) if this_boot => process::kill_leftover(pid, started),
        _ => false,
    };
    delete_state(containers, dir)?;
    Ok(killed)
}

/// Has the runtime delete what it still knows of a container without a monitor, processes included. The container's lock
/// is held.
pub(super) fn delete_state(containers: &Containers, dir: &Directory) -> Result<(), Error> {
    let Some(root) = started_root(dir.path())? else {
        return Ok(());
    };
    let id = dir.path().file_name().unwrap_or_default();
    if !root.join(id).exists() {
        return Ok(());
    }
    let mut delete = Command::new(&containers.runtime);
    delete
        .arg("--root")
        .arg(root)
        .arg("delete")
        .arg("--force")
        .arg(id);
    run(delete, VERB_PATIENCE)
}

/// Runs the runtime to its end.
fn run(command: Command, patience: Duration) -> Result<(), Error> {
    call(command, Stdio::null(), patience)
}

/// Runs the runtime to its end; what it answers.
fn answer(command: Command, patience: Duration) -> Result<Vec<u8>, Error> {
    let mut file = memory_file()?;
    let stdout = file
        .try_clone()
        .map_err(|error| Error::io("make", Path::new("memfd"), error))?;
    call(command, stdout.into(), patience)?;
    read_back(&mut file, ANSWER_MAX)
}

fn memory_file() -> Result<File, Error> {
    rustix::fs::memfd_create("wherry-runtime", MemfdFlags::CLOEXEC)
        .map(File::from)
        .map_err(|error| Error::io("make", Path::new("memfd"), error))
}

fn read_back(file: &mut File, limit: u64) -> Result<Vec<u8>, Error> {
    let mut text = Vec::new();
    let read = file
        .seek(SeekFrom::Start(0))
        .and_then(|_| file.take(limit).read_to_end(&mut text));
    read.map_err(|error| Error::io("read", Path::new("memfd"), error))?;
    Ok(text)
}

/// What it says goes to a file in memory: a monitor that stays behind cannot hold us up.
fn call(mut command: Command, stdout: Stdio, patience: Duration) -> Result<(), Error> {
    let program = PathBuf::from(command.get_program());
    let failed = |verb: &'static str| {
        let program = &program;
        move |error| Error::io(verb, program, error)
    };
    let mut said = memory_file()?;
    let stderr = said.try_clone().map_err(failed("run"))?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .map_err(failed("run"))?;
    let Some(status) = process::wait_child(&mut child, patience).map_err(failed("wait for"))? else {
        let verb = command
            .get_args()
            .find(|word| VERBS.iter().any(|verb| word == verb));
        return Err(Error::Hung {
            verb: verb.unwrap_or_default().to_string_lossy().into_owned(),
            seconds: patience.as_secs(),
        });
    };
    if status.success() {
        return Ok(());
    }
    let text = read_back(&mut said, MESSAGE_MAX)?;
    Err(Error::Runtime {
        code: status.code().unwrap_or(1),
        message: first_line(&text, &status.to_string()),
    })
}

/// The runtime's line, without its name and without what a terminal would act upon.
fn first_line(said: &[u8], status: &str) -> String {
    let text = String::from_utf8_lossy(said);
    let line = text.lines().map(str::trim).find(|line| !line.is_empty());
    let clean = |line: &str| {
        line.chars()
            .map(|c| if c.is_control() { '?' } else { c })
            .collect()
    };
    let told = line.map(|line| line.strip_prefix("wherry-runtime: ").unwrap_or(line));
    told.map_or_else(|| format!("wherry-runtime: no message, {status}"), clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_ports_are_chosen_and_differ() {
        let mut ports = [
            Port::parse("80").unwrap(),
            Port::parse("81").unwrap(),
            Port::parse("5001:82").unwrap(),
        ];
        choose_ports(&mut ports).unwrap();
        assert_eq!(ports[2].host_port, 5001);
        assert!(
            ports[0].host_port != 0 && ports[1].host_port != 0 && ports[0].host_port != ports[1].host_port
        );
    }

    #[test]
    fn a_message_is_one_clean_line() {
        for (said, line) in [
            (
                "wherry-runtime: exec \"x\": no such file\nmore",
                "exec \"x\": no such file",
            ),
            ("\n  x\u{1b}[31m\n", "x?[31m"),
            ("", "wherry-runtime: no message, exit status: 1"),
        ] {
            assert_eq!(first_line(said.as_bytes(), "exit status: 1"), line);
        }
    }

    #[test]
    fn of_the_runtimes_warnings_the_lost_limits_are_told() {
        for (line, told) in [
            (
                "linux.resources.memory.limit, memory.swap: memory limit not enforced: the memory controller is off",
                Some("memory limit not enforced: the memory controller is off"),
            ),
            ("linux.resources.devices: no device filter", None),
            ("landlock: not enforced: no", None),
            ("linux.resources.", None),
            ("", None),
        ] {
            assert_eq!(lost_limit(line), told, "{line}");
        }
    }

    #[test]
    fn what_a_monitor_is_told() {
        let text = r#"{"version":1,"id":"0000000000000000000000000000000000000000000000000000000000000001","runtime":"/usr/bin/wherry-runtime","runtimeRoot":"/run/w","bundle":"bundle","terminal":true,"openStdin":false,"waitAttach":false,"log":{"path":"log","maxSize":10485760,"maxFiles":3},"ports":[{"hostIp":"0.0.0.0","hostPort":5001,"containerPort":5000,"protocol":"tcp"}]}"#;
        let config: MonitorConfig = serde_json::from_str(text).unwrap();
        assert_eq!(config.log.max_size, LOG_MAX_SIZE);
        assert_eq!(serde_json::to_string(&config).unwrap(), text);
    }
}
