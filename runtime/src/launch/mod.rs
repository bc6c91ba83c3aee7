//! The launch: from a checked bundle to an init that waits for `start`. The crate's documentation draws it.

mod devices;
mod idmap;
mod mounts;
mod nodes;
mod options;
mod plan;
mod prepare;
mod program;
mod site;
mod spawner;

use std::collections::BTreeMap;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, WaitOptions};
use rustix::thread::UnshareFlags;

pub(crate) use options::names as mount_options;
pub(crate) use plan::{
    Listener, Mappings, NAMESPACES, Plan, check_apparmor, check_label, is_host_root, plan,
};
pub(crate) use program::Request;

use crate::cgroup::Entry;
use crate::config::IdMapping;
use crate::error::{Context, Error};
use crate::state::ProcessId;
use crate::sys::{self, Side};
use crate::{hooks, wire};

/// The kinds of packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Message {
    /// An exit status and a line.
    Error = b'E',
    /// A line.
    Warning = b'W',
    /// The namespaces and mounts exist; hooks may run. Process ids as with `Pids`.
    Namespaces = b'H',
    /// Go on.
    Continue = b'c',
    /// The ids are mapped.
    Mapped = b'm',
    /// Process ids: spawner and init, or of an exec.
    Pids = b'P',
    /// Init found its program and waits for `start`.
    Ready = b'R',
    /// The container is recorded.
    Commit = b'C',
    /// Ask whether it was started.
    Status = b'?',
    /// Execute the program.
    Start = b's',
    /// It is done.
    Done = b'd',
    /// Signal every process.
    SignalAll = b'k',
    /// Run another process.
    Exec = b'x',
    /// It ended, with this wait status.
    Exited = b'X',
    /// A terminal's controlling end.
    Terminal = b'T',
    /// A system call filter's listener.
    Listener = b'L',
}

impl Message {
    pub(crate) fn from(kind: u8) -> Option<Self> {
        use Message::*;
        [
            Error, Warning, Namespaces, Continue, Mapped, Pids, Ready, Commit, Status, Start, Done,
            SignalAll, Exec, Exited, Terminal, Listener,
        ]
        .into_iter()
        .find(|message| *message as u8 == kind)
    }
}

/// Tells a peer of an error: its exit status, then its line.
pub(crate) fn report(to: BorrowedFd<'_>, error: &Error) {
    let mut payload = vec![error.exit_code()];
    payload.extend(error.to_string().into_bytes());
    // Nobody listens any more: nothing else can be done with an error.
    let _ = wire::send(to, Message::Error as u8, &payload, &[]);
}

/// The error that [`report`] told.
pub(crate) fn reported(packet: &wire::Packet) -> Error {
    let (code, line) = packet.payload.split_first().unwrap_or((&1, b"unknown"));
    Error::Launch {
        code: *code,
        line: String::from_utf8_lossy(line).into_owned(),
    }
}

/// Sends a terminal's controlling end to a console socket: a stream socket that takes the terminal's name with it.
pub(crate) fn send_terminal(socket: BorrowedFd<'_>, name: &str, master: BorrowedFd<'_>) -> Result<(), Error> {
    let (kind, rest) = name.as_bytes().split_first().unwrap_or((&b'/', &[]));
    wire::send(socket, *kind, rest, &[master]).context(|| "console socket")
}

/// What the processes of a launch inherit from the creator.
pub(crate) struct Inherited {
    /// To the creator.
    pub(crate) setup: OwnedFd,
    /// `exec.sock`, listening.
    pub(crate) listener: OwnedFd,
    /// The console socket, connected.
    pub(crate) console: Option<OwnedFd>,
    /// The null device.
    pub(crate) null: OwnedFd,
    /// Descriptors after the standard streams that init keeps.
    pub(crate) preserved: u32,
    /// The way into the container's cgroup.
    pub(crate) cgroup: Option<Entry>,
    /// Its directories in hierarchies of cgroup v1.
    pub(crate) legacy: BTreeMap<String, PathBuf>,
    pub(crate) state: HookState,
    /// Detached trees to be mounted, by the positions of their mounts; the launch fills them in.
    pub(crate) trees: Vec<(usize, OwnedFd)>,
    /// A detached filesystem with the bundle's device nodes; the launch makes it.
    pub(crate) nodes: Option<OwnedFd>,
}

impl Inherited {
    fn tree(&self, index: usize) -> Option<BorrowedFd<'_>> {
        let found = self.trees.iter().find(|(position, _)| *position == index);
        found.map(|(_, tree)| tree.as_fd())
    }

    fn tell(&self, message: Message) -> Result<(), Error> {
        wire::send(&self.setup, message as u8, &[], &[]).context(|| "creator")
    }

    fn await_message(&self, expected: Message) -> Result<(), Error> {
        match wire::receive(&self.setup).context(|| "creator")? {
            Some(packet) if packet.kind == expected as u8 => Ok(()),
            Some(_) => Err(Error::Corrupt("creator: an unexpected message".into())),
            // The creator was killed: there is nobody to tell.
            None => sys::exit_now(1),
        }
    }

    /// The new namespaces that the mounter makes. A cgroup namespace has the cgroup of its maker as its root: init makes
    /// it once it is in the container's.
    fn namespaces(&self, plan: &Plan) -> UnshareFlags {
        // A clone cannot make a time namespace, and its clocks are set before somebody is in it.
        let new = plan.new - UnshareFlags::NEWTIME;
        if self.cgroup.is_some() {
            new - UnshareFlags::NEWCGROUP
        } else {
            new
        }
    }

    /// Whether init makes a cgroup namespace.
    fn roots_cgroup(&self, plan: &Plan) -> bool {
        self.cgroup.is_some() && plan.new.contains(UnshareFlags::NEWCGROUP)
    }

    fn hook_state(&self, pid: i32) -> String {
        self.state.with_pid(pid)
    }
}

/// The state document that hooks read, before the container's process exists.
#[derive(Debug, Clone)]
pub(crate) struct HookState {
    pub(crate) oci_version: String,
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) annotations: BTreeMap<String, String>,
}

impl HookState {
    /// The document of a container that is being created. Its status is `created`, as in other runtimes: whoever reads it
    /// finds the namespaces and the process.
    fn with_pid(&self, pid: i32) -> String {
        serde_json::json!({
            "ociVersion": self.oci_version,
            "id": self.id,
            "status": "created",
            "pid": pid,
            "bundle": self.bundle,
            "annotations": self.annotations,
        })
        .to_string()
    }
}

/// A container that waits for `start`, not yet committed.
pub(crate) struct Launched {
    pub(crate) warnings: Vec<String>,
    setup: OwnedFd,
    /// It was told to start already.
    started: bool,
}

impl Launched {
    /// Lets the container live on without its creator.
    pub(crate) fn commit(self) -> Result<(), Error> {
        wire::send(&self.setup, Message::Commit as u8, &[], &[]).context(|| "spawner")
    }

    /// Lets it live on, and start at once. The answer to `start` comes by the descriptor.
    pub(crate) fn commit_and_start(self) -> Result<OwnedFd, Error> {
        if !self.started {
            wire::send(&self.setup, Message::Start as u8, &[], &[]).context(|| "spawner")?;
        }
        Ok(self.setup)
    }
}

/// Carries out a plan. On an error nothing of it is left. `early` is told of the spawner and init as soon as they are
/// there, while the mounts are made; if it has recorded them, and says so, the container is to start by itself.
///
/// # Errors
///
/// Those of the processes it makes, in their words.
pub(crate) fn launch(
    plan: &Plan,
    inherit: impl FnOnce(OwnedFd) -> Result<Inherited, Error>,
    early: &mut dyn FnMut(ProcessId, ProcessId) -> Result<bool, Error>,
) -> Result<Launched, Error> {
    let (ours, theirs) = wire::pair().context(|| "socketpair")?;
    let mut inherited = inherit(theirs)?;
    inherited.trees = idmap::prepare(&plan.mounts)?;
    inherited.nodes = nodes::prepare(plan)?;
    let flags = if plan.joins_user_namespace() {
        UnshareFlags::empty()
    } else {
        inherited.namespaces(plan)
    };
    let mounter = match sys::fork(flags.bits() as i32) {
        Ok(Side::Child) => {
            drop(ours);
            prepare::run(plan, &inherited)
        }
        Ok(Side::Parent(pid)) => pid,
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            return Err(e).context(|| "new namespaces (are unprivileged user namespaces allowed here?)");
        }
        Err(e) => return Err(e).context(|| "new namespaces"),
    };
    let state = inherited.state.clone();
    drop(inherited);
    let mut started = false;
    let mut known = |spawner, init| -> Result<(), Error> {
        if early(spawner, init)? {
            // With nobody left to tell, why they ended is what is read next.
            started = wire::send(&ours, Message::Start as u8, &[], &[]).is_ok();
        }
        Ok(())
    };
    match attend(plan, mounter, &ours, &state, &mut known) {
        Ok(warnings) => {
            let _ = sys::wait(mounter);
            Ok(Launched {
                warnings,
                setup: ours,
                started,
            })
        }
        Err(error) => {
            // Their ends of the socket close with ours; the mounter may be busy with something else than reading.
            drop(ours);
            let _ = rustix::process::kill_process(mounter, rustix::process::Signal::KILL);
            while !matches!(
                rustix::process::wait(WaitOptions::empty()),
                Err(rustix::io::Errno::CHILD)
            ) {}
            Err(error)
        }
    }
}

/// The creator's part of the conversation.
fn attend(
    plan: &Plan,
    mounter: Pid,
    setup: &OwnedFd,
    state: &HookState,
    known: &mut dyn FnMut(ProcessId, ProcessId) -> Result<(), Error>,
) -> Result<Vec<String>, Error> {
    // A mounter that has ended already has said why: that is the error then.
    let its_own = |error: Error| match wire::receive(setup) {
        Ok(Some(packet)) if packet.kind == Message::Error as u8 => reported(&packet),
        _ => error,
    };
    if let Some(mappings) = &plan.mappings
        && let Err(error) = map_ids(mappings, mounter)
    {
        let _ = rustix::process::kill_process(mounter, rustix::process::Signal::KILL);
        return Err(its_own(error));
    }
    wire::send(setup, Message::Mapped as u8, &[], &[])
        .context(|| "mounter")
        .map_err(its_own)?;
    let mut warnings = Vec::new();
    let mut named = false;
    loop {
        let Some(packet) = wire::receive(setup).context(|| "mounter")? else {
            return Err(Error::Launch {
                code: 1,
                line: "the launch ended without a word: was it killed?".into(),
            });
        };
        match Message::from(packet.kind) {
            Some(Message::Error) => return Err(reported(&packet)),
            Some(Message::Warning) => warnings.push(packet.text()),
            Some(Message::Namespaces) => {
                let state = state.with_pid(packet.number(1).unwrap_or(0));
                hooks::run(&plan.hooks.prestart, "prestart", &state)?;
                hooks::run(&plan.hooks.create_runtime, "createRuntime", &state)?;
                wire::send(setup, Message::Continue as u8, &[], &[]).context(|| "mounter")?;
            }
            Some(Message::Pids) => {
                let pid = |index| packet.number(index).and_then(Pid::from_raw);
                if let Some((spawner, init)) = pid(0).zip(pid(1)) {
                    known(ProcessId::of(spawner)?, ProcessId::of(init)?)?;
                    named = true;
                }
            }
            Some(Message::Ready) => {
                if !named {
                    return Err(Error::Corrupt(
                        "mounter: init is ready before it was named".into(),
                    ));
                }
                return Ok(warnings);
            }
            _ => return Err(Error::Corrupt("mounter: an unexpected message".into())),
        }
    }
}

/// Sets the ids of the mounter's user namespace.
fn map_ids(mappings: &Mappings, mounter: Pid) -> Result<(), Error> {
    let pid = mounter.as_raw_nonzero().get();
    let root = rustix::process::geteuid().is_root();
    let own = |list: &[IdMapping], id: u32| matches!(list, [m] if m.size == 1 && m.host_id == id);
    let direct = own(&mappings.uids, rustix::process::geteuid().as_raw())
        && own(&mappings.gids, rustix::process::getegid().as_raw());
    if !root && !direct {
        // Both at once: each is a program of its own to start, and neither waits for the other.
        let users = start_mapper("newuidmap", pid, &mappings.uids);
        let groups = start_mapper("newgidmap", pid, &mappings.gids);
        let users = finish_mapper("newuidmap", "linux.uidMappings", users);
        let groups = finish_mapper("newgidmap", "linux.gidMappings", groups);
        return users.and(groups);
    }
    let write = |file: &str, text: &str| {
        let path = format!("/proc/{pid}/{file}");
        std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .context(|| format!("write {text:?} to {path}"))
    };
    if !root {
        match write("setgroups", "deny") {
            // Before 3.19 there was nothing to deny.
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    let lines = |list: &[IdMapping]| {
        list.iter()
            .map(|m| format!("{} {} {}\n", m.container_id, m.host_id, m.size))
            .collect::<String>()
    };
    write("uid_map", &lines(&mappings.uids))?;
    write("gid_map", &lines(&mappings.gids))
}

fn start_mapper(program: &str, pid: i32, list: &[IdMapping]) -> std::io::Result<Child> {
    let numbers = list.iter().flat_map(|m| [m.container_id, m.host_id, m.size]);
    Command::new(program)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
}

fn finish_mapper(program: &str, field: &str, mapper: std::io::Result<Child>) -> Result<(), Error> {
    match mapper.and_then(Child::wait_with_output) {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => Err(Error::config(
            field,
            format!(
                "{program} refused: {}",
                String::from_utf8_lossy(&output.stderr).trim()
            ),
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Err(Error::config(
            field,
            format!(
                "a range of ids needs {program} (package uidmap): install it, or map the caller's one id"
            ),
        )),
        Err(e) => Err(e).context(|| program.to_owned()),
    }
}

/// Reads and plans a configuration (`config.json`, at most [`crate::config::MAX_BYTES`]) for a bundle in that directory, and
/// carries nothing out. The result are the warnings: guarantees lost and fields not honoured, by name.
///
/// # Errors
///
/// Names the field that is refused.
pub fn check(config: &[u8], bundle: &Path) -> Result<Vec<String>, Error> {
    let (config, warnings) = crate::config::parse(config)?;
    let mut plan = plan(config, warnings, bundle)?;
    let mut warnings = std::mem::take(&mut plan.warnings);
    plan.compile_filter(&mut warnings)?;
    Ok(warnings)
}

/// Whether a mount option is honoured, and not handed to the filesystem.
#[cfg(test)]
pub(crate) fn is_mount_option(word: &str) -> bool {
    options::parse(&[word.to_owned()]).is_ok_and(|options| options.data.is_empty())
}

/// Whether a path can be a host directory to work in.
pub(crate) fn absolute(path: &Path) -> Result<std::path::PathBuf, Error> {
    std::fs::canonicalize(path).context(|| path.display().to_string())
}
