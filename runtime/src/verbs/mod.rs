//! One module for each verb of the command line.

pub mod create;
pub mod delete;
pub mod events;
pub mod exec;
pub mod features;
pub mod kill;
pub mod list;
pub mod pause;
pub mod ps;
pub mod run;
pub mod spec;
pub mod start;
pub mod state;
pub mod update;

use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use argh::FromArgs;
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::error::{Context, Error};
use crate::state::{Directory, Record};
use crate::wire;

/// Options of `create` and `run`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "create")]
/// create a container from a bundle; it waits for start
pub struct Create {
    /// directory of the bundle (default: the current one)
    #[argh(option, short = 'b', default = "PathBuf::from(\".\")")]
    pub bundle: PathBuf,
    /// configuration file (default: config.json of the bundle)
    #[argh(option, short = 'f')]
    pub config: Option<PathBuf>,
    /// file to write the first process's id to
    #[argh(option)]
    pub pid_file: Option<PathBuf>,
    /// socket that receives the terminal
    #[argh(option)]
    pub console_socket: Option<PathBuf>,
    /// descriptors after stderr to keep
    #[argh(option, default = "0")]
    pub preserve_fds: u32,
    /// refused: the root is always entered with pivot_root
    #[argh(switch)]
    pub no_pivot: bool,
    /// accepted: a new session keyring is never made, and the default filter denies keyctl
    #[argh(switch)]
    pub no_new_keyring: bool,
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `run`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "run")]
/// create, start, wait for and delete a container
pub struct Run {
    /// directory of the bundle (default: the current one)
    #[argh(option, short = 'b', default = "PathBuf::from(\".\")")]
    pub bundle: PathBuf,
    /// configuration file (default: config.json of the bundle)
    #[argh(option, short = 'f')]
    pub config: Option<PathBuf>,
    /// file to write the first process's id to
    #[argh(option)]
    pub pid_file: Option<PathBuf>,
    /// socket that receives the terminal; without it the caller's terminal is used
    #[argh(option)]
    pub console_socket: Option<PathBuf>,
    /// descriptors after stderr to keep
    #[argh(option, default = "0")]
    pub preserve_fds: u32,
    /// refused: the root is always entered with pivot_root
    #[argh(switch)]
    pub no_pivot: bool,
    /// accepted: a new session keyring is never made, and the default filter denies keyctl
    #[argh(switch)]
    pub no_new_keyring: bool,
    /// do not wait for it, and delete it later
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// do not delete it when it has ended
    #[argh(switch)]
    pub keep: bool,
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `spec`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "spec")]
/// write a config.json to begin with
pub struct Spec {
    /// directory of the bundle (default: the current one)
    #[argh(option, short = 'b', default = "PathBuf::from(\".\")")]
    pub bundle: PathBuf,
    /// for a user who is not root: with a user namespace that maps the caller's own ids
    #[argh(switch)]
    pub rootless: bool,
}

/// Options of `start`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "start")]
/// let a created container execute its program
pub struct Start {
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `state`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "state")]
/// print the OCI state of a container
pub struct State {
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `list`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "list")]
/// print the containers of this root directory
pub struct List {
    /// output: table or json
    #[argh(option, short = 'f', default = "String::from(\"table\")")]
    pub format: String,
    /// names only
    #[argh(switch, short = 'q')]
    pub quiet: bool,
}

/// Options of `kill`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "kill")]
/// send a signal to a container (default: TERM)
pub struct Kill {
    /// to all of its processes
    #[argh(switch, short = 'a')]
    pub all: bool,
    /// name of the container
    #[argh(positional)]
    pub id: String,
    /// signal by name or number
    #[argh(positional)]
    pub signal: Option<String>,
}

/// Options of `delete`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "delete")]
/// remove what is kept of a stopped container
pub struct Delete {
    /// kill it first; a container that does not exist is no error
    #[argh(switch, short = 'f')]
    pub force: bool,
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `pause`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "pause")]
/// stop all processes of a container where they are
pub struct Pause {
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `resume`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "resume")]
/// let a paused container go on
pub struct Resume {
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `ps`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "ps")]
/// print the processes of a container
pub struct Ps {
    /// output: table or json
    #[argh(option, short = 'f', default = "String::from(\"table\")")]
    pub format: String,
    /// name of the container
    #[argh(positional)]
    pub id: String,
    /// options for the host's ps, which makes the table (default: -ef)
    #[argh(positional, greedy)]
    pub args: Vec<String>,
}

/// Options of `events`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "events")]
/// print what a container uses, and when memory runs out, as JSON lines
pub struct Events {
    /// print the statistics once and end
    #[argh(switch)]
    pub stats: bool,
    /// time between statistics, as 5s
    #[argh(option, default = "String::from(\"5s\")")]
    pub interval: String,
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `features`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "features")]
/// print what this runtime can do, as the runtime specification wants it
pub struct Features {}

/// Options of `update`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "update")]
/// change the limits of a container
pub struct Update {
    /// file with linux.resources, - for stdin; other options are then ignored
    #[argh(option, short = 'r')]
    pub resources: Option<String>,
    /// memory: bytes, as 64m; -1 is unlimited
    #[argh(option)]
    pub memory: Option<String>,
    /// memory kept when it is short
    #[argh(option)]
    pub memory_reservation: Option<String>,
    /// memory and swap together; -1 is unlimited
    #[argh(option)]
    pub memory_swap: Option<String>,
    /// microseconds of processor time in each period
    #[argh(option)]
    pub cpu_quota: Option<i64>,
    /// microseconds of a period
    #[argh(option)]
    pub cpu_period: Option<u64>,
    /// microseconds that may be saved up
    #[argh(option)]
    pub cpu_burst: Option<u64>,
    /// relative share of processor time, 2 to 262144
    #[argh(option)]
    pub cpu_share: Option<u64>,
    /// with 1 only when nothing else wants to run
    #[argh(option)]
    pub cpu_idle: Option<i64>,
    /// processors, as 0-2,4
    #[argh(option)]
    pub cpuset_cpus: Option<String>,
    /// memory nodes
    #[argh(option)]
    pub cpuset_mems: Option<String>,
    /// processes and threads; -1 is unlimited
    #[argh(option)]
    pub pids_limit: Option<i64>,
    /// relative share of block devices, 10 to 1000
    #[argh(option)]
    pub blkio_weight: Option<u16>,
    /// name of the container
    #[argh(positional)]
    pub id: String,
}

/// Options of `exec`.
#[derive(FromArgs, Debug, PartialEq)]
#[argh(subcommand, name = "exec")]
/// run another process in a container
pub struct Exec {
    /// file with the process as in config.json
    #[argh(option, short = 'p')]
    pub process: Option<PathBuf>,
    /// give it a terminal
    #[argh(switch, short = 't')]
    pub tty: bool,
    /// user id, or user and group ids as UID:GID
    #[argh(option, short = 'u')]
    pub user: Option<String>,
    /// working directory
    #[argh(option)]
    pub cwd: Option<String>,
    /// environment variable: NAME=value
    #[argh(option, short = 'e')]
    pub env: Vec<String>,
    /// capability to add
    #[argh(option, short = 'c')]
    pub cap: Vec<String>,
    /// no program may gain privileges
    #[argh(switch)]
    pub no_new_privs: bool,
    /// do not wait for it
    #[argh(switch, short = 'd')]
    pub detach: bool,
    /// file to write its process id to
    #[argh(option)]
    pub pid_file: Option<PathBuf>,
    /// socket that receives the terminal; without it the caller's terminal is used
    #[argh(option)]
    pub console_socket: Option<PathBuf>,
    /// descriptors after stderr to pass
    #[argh(option, default = "0")]
    pub preserve_fds: u32,
    /// name of the container
    #[argh(positional)]
    pub id: String,
    /// program and arguments
    #[argh(positional, greedy)]
    pub args: Vec<String>,
}

/// Hands the listener of a process's system call filter to whom the bundle names, with the state of the process.
fn send_listener(
    directory: &Directory,
    record: &Record,
    packet: wire::Packet,
    pid: i32,
) -> Result<(), Error> {
    let what = || "config.json: linux.seccomp.listenerPath";
    let (Some(listener), Some(fd)) = (&record.listener, packet.fds.first()) else {
        return Ok(());
    };
    let mut state = state::for_hooks(directory, record, crate::state::Status::Creating);
    state["pid"] = record.init.pid.into();
    let document = serde_json::json!({
        // The version of this document, as the specification's example has it.
        "ociVersion": "0.2.0",
        "fds": ["seccompFd"],
        "pid": pid,
        "metadata": listener.metadata.as_deref().unwrap_or_default(),
        "state": state,
    });
    let socket = connect(&listener.path, what())?;
    wire::send_stream(&socket, document.to_string().as_bytes(), fd.as_fd()).context(what)
}

/// Connects to a console socket.
fn console_socket(path: &Path) -> Result<OwnedFd, Error> {
    connect(path, "console socket")
}

/// Connects to a stream socket. Its path may be longer than an address: it is reached through its directory.
fn connect(path: &Path, name: &str) -> Result<OwnedFd, Error> {
    let what = || format!("{name} {}", path.display());
    let parent = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    let name = path
        .file_name()
        .ok_or_else(|| Error::Usage(format!("{}: expected a file", what())))?;
    let directory = rustix::fs::open(
        parent,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context(what)?;
    let address = Path::new("/proc/self/fd")
        .join(directory.as_raw_fd().to_string())
        .join(name);
    let address = SocketAddrUnix::new(address).context(what)?;
    let socket = rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::STREAM,
        SocketFlags::CLOEXEC,
        None,
    )
    .context(what)?;
    rustix::net::connect(&socket, &address).context(what)?;
    Ok(socket)
}

/// Writes a process id where somebody may be waiting to read all of it.
fn write_pid(path: &Path, pid: i32) -> Result<(), Error> {
    let what = || format!("pid file {}", path.display());
    let mut name = path
        .file_name()
        .ok_or_else(|| Error::Usage(format!("{}: expected a file", what())))?
        .to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    std::fs::File::create(&new)
        .and_then(|mut file| file.write_all(pid.to_string().as_bytes()))
        .context(what)?;
    std::fs::rename(&new, path).context(what)
}

/// The exit status a shell would report for a wait status.
fn exit_code(status: i32) -> u8 {
    let status = std::process::ExitStatus::from_raw(status);
    match (status.code(), status.signal()) {
        (Some(code), _) => code as u8,
        (None, Some(signal)) => 128u8.wrapping_add(signal as u8),
        (None, None) => 255,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wait_statuses() {
        for (status, code) in [(0, 0), (7 << 8, 7), (9, 137), (15 | 0x80, 143)] {
            assert_eq!(exit_code(status), code, "{status:#x}");
        }
    }

    #[test]
    fn a_pid_file_is_replaced_whole() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pid");
        write_pid(&path, 12).unwrap();
        write_pid(&path, 7).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "7");
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 1);
    }
}
