//! The cage: a short-lived child of this very program in which foreign bytes are parsed.
//!
//! ```text
//! parent                                     child: `/proc/self/exe cage JOB`
//!   stdin   <- the blob, or a pipe           reads it (or, where a tar is made again, writes it)
//!   stdout  -> a pipe                        one line of JSON, at most 16 KiB
//!   stderr  <- the work directory, flocked   writes beneath it and nowhere else
//!              (or a layer, to be read back   reads beneath it and writes nowhere)
//! ```
//!
//! The child is single-threaded, has no environment, no other descriptor, no capability, no new privileges, and before it
//! reads the first byte: a Landlock domain that lets it write in the work directory and nothing else (no network either),
//! and a seccomp filter that denies sockets, processes, mounts and path-based changes of modes. The work directory comes as standard error because a descriptor
//! passed so needs no unsafe code and, being a duplicate of the parent's, keeps the parent's `flock` until both are dead.
//! The child dies with the parent and is killed when the parent gives up.
//!
//! A kernel without Landlock (or with its first version, which cannot make hard links) still gets the rest; [`missing`] says so
//! before, the child's report after, and every pull's result.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};

use serde::{Deserialize, Serialize};

use crate::Class;
use crate::digest::DiffId;
use crate::unpack::{self, Checked, Encoding, Limits, Summary};

/// The word that makes the program a cage.
pub const VERB: &str = "cage";
/// The longest answer: a summary, or an error with a name in it.
const MAX_REPORT: u64 = 16 << 10;
/// The longest job: limits and the paths of the trees that a delta copies from.
const MAX_JOB: usize = 128 << 10;
/// Address space: the largest zstd window, the decoder's own tables, buffers and the program, generously.
const ADDRESS_SPACE: u64 = 512 << 20;
/// Bytes of tar a second that the slowest board gets through, many times over.
const SLOWEST: u64 = 256 << 10;
/// Open files: the deepest path, twice.
const OPEN_FILES: u64 = 600;

/// Why a job was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The child could not be started or talked to.
    #[error("{action} the cage: {source}")]
    Start {
        /// What was being done.
        action: &'static str,
        /// Why not.
        source: io::Error,
    },
    /// The child ended without an answer.
    #[error("the cage ended without a report ({status})")]
    Died {
        /// How.
        status: String,
        /// Whether it was killed from outside: by an operator, or because memory ran out.
        killed: bool,
    },
    /// The bytes for the child could not be read.
    #[error("read the layer: {0}")]
    Input(io::Error),
    /// What the child made could not be written.
    #[error("write the layer: {0}")]
    Output(io::Error),
    /// The child refused the layer.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
        /// Whether trying again can help.
        class: Class,
        /// Whether the file system is full.
        no_space: bool,
    },
}

impl Error {
    /// What the failure means to whoever may try again.
    pub fn class(&self) -> Class {
        match self {
            Self::Start { .. } | Self::Input(_) | Self::Output(_) => Class::Transient,
            Self::Died { killed: true, .. } => Class::Transient,
            // Whatever in the bytes ended it will do so again.
            Self::Died { killed: false, .. } => Class::Permanent,
            Self::Refused { class, .. } => *class,
        }
    }

    fn confused(report: &Report) -> Self {
        Self::Died {
            status: format!("it answered {report:?}"),
            killed: false,
        }
    }

    fn of(error: &unpack::Error) -> Self {
        let no_space = matches!(error, unpack::Error::NoSpace(_));
        Self::Refused {
            message: error.to_string(),
            class: error.class(),
            no_space,
        }
    }
}

/// Which program is the cage.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cage {
    program: Option<PathBuf>,
}

/// Where the child's input comes from.
pub enum Input<'a> {
    /// An open file, from its current position on.
    Blob(&'a File),
    /// Anything else; it is read in this process and written into a pipe.
    Stream(&'a mut dyn Read),
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Job {
    /// The input becomes a tree in the directory.
    Unpack { encoding: Encoding, limits: Limits },
    /// The layer in the directory is read back and compared.
    Check,
    /// The layer in the directory becomes a tar again.
    Regenerate,
}

impl Job {
    /// Processor time that an honest job of this kind stays far below, in seconds, on the slowest board.
    fn seconds(&self) -> u64 {
        match self {
            Self::Unpack { limits, .. } => 120 + limits.tar_bytes / SLOWEST,
            Self::Check | Self::Regenerate => 24 * 3600,
        }
    }
}

/// The child's one line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
enum Report {
    Done {
        summary: Summary,
        missing: Vec<String>,
    },
    Checked(Checked),
    Regenerated(Option<(DiffId, u64)>),
    Failed {
        message: String,
        transient: bool,
        corrupt: bool,
        no_space: bool,
    },
}

impl Cage {
    /// This program itself, which calls [`main`] when its first argument is [`VERB`].
    pub const fn own() -> Self {
        Self { program: None }
    }

    /// Another program that calls [`main`] in the same way.
    pub const fn program(program: PathBuf) -> Self {
        Self {
            program: Some(program),
        }
    }

    /// Unpacks a layer into `work`, a directory that is open and locked.
    pub(crate) fn unpack(
        &self,
        input: Input<'_>,
        encoding: &Encoding,
        limits: &Limits,
        work: &File,
    ) -> Result<Summary, Error> {
        // The test program has a `main` of its own.
        if cfg!(test) && self.program.is_none() {
            let reader: &mut dyn Read = match input {
                Input::Blob(file) => &mut &*file,
                Input::Stream(reader) => reader,
            };
            return unpack::unpack(reader, encoding, limits, work.as_fd()).map_err(|e| Error::of(&e));
        }
        let failed = |action| move |source| Error::Start { action, source };
        let stdin = match &input {
            Input::Blob(file) => Stdio::from(file.try_clone().map_err(failed("prepare"))?),
            Input::Stream(_) => Stdio::piped(),
        };
        let job = Job::Unpack {
            encoding: encoding.clone(),
            limits: *limits,
        };
        let mut child = self.start(&job, stdin, work)?;
        if let Input::Stream(reader) = input {
            child.feed(reader)?;
        }
        match child.report()? {
            Report::Done { summary, missing } => {
                if !missing.is_empty() {
                    let missing = missing.join(", ");
                    tracing::warn!(missing, "a layer was unpacked without the full confinement");
                }
                Ok(summary)
            }
            other => Err(Error::confused(&other)),
        }
    }

    /// Reads the layer in `dir` back.
    pub(crate) fn check(&self, dir: &File) -> Result<Checked, Error> {
        if cfg!(test) && self.program.is_none() {
            return unpack::check(dir.as_fd()).map_err(|e| Error::of(&e));
        }
        match self.start(&Job::Check, Stdio::null(), dir)?.report()? {
            Report::Checked(checked) => Ok(checked),
            other => Err(Error::confused(&other)),
        }
    }

    /// Makes the tar of the layer in `dir` again and writes it to `out`; what it came to. None where it has no recipe.
    pub(crate) fn regenerate(&self, dir: &File, out: &mut dyn Write) -> Result<Option<(DiffId, u64)>, Error> {
        if cfg!(test) && self.program.is_none() {
            return unpack::regenerate(dir.as_fd(), out).map_err(|e| Error::of(&e));
        }
        let failed = |action| move |source| Error::Start { action, source };
        let (mut tar, theirs) = io::pipe().map_err(failed("prepare"))?;
        let child = self.start(&Job::Regenerate, Stdio::from(theirs), dir)?;
        // When this fails the child is killed: dropped with its report unread.
        io::copy(&mut tar, out).map_err(Error::Output)?;
        match child.report()? {
            Report::Regenerated(made) => Ok(made),
            other => Err(Error::confused(&other)),
        }
    }

    fn start(&self, job: &Job, stdin: Stdio, dir: &File) -> Result<Guard, Error> {
        let failed = |action| move |source| Error::Start { action, source };
        let job = serde_json::to_string(job).map_err(|e| Error::Start {
            action: "describe the job to",
            source: e.into(),
        })?;
        let program = self.program.as_deref().unwrap_or(Path::new("/proc/self/exe"));
        let child = Command::new(program)
            .args([VERB, &job])
            .env_clear()
            .stdin(stdin)
            .stdout(Stdio::piped())
            .stderr(Stdio::from(dir.try_clone().map_err(failed("prepare"))?))
            .spawn()
            .map_err(failed("start"))?;
        Ok(Guard(child))
    }
}

/// A child that does not outlive its handle.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        // Both fail only when it has been waited for.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Guard {
    fn feed(&mut self, reader: &mut dyn Read) -> Result<(), Error> {
        let Some(mut pipe) = self.0.stdin.take() else {
            return Ok(());
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let n = match reader.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(e) => return Err(Error::Input(e)),
            };
            match pipe.write_all(buffer.get(..n).unwrap_or_default()) {
                Ok(()) => {}
                // It has seen enough; its report says why.
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
                Err(source) => {
                    return Err(Error::Start {
                        action: "write to",
                        source,
                    });
                }
            }
        }
    }

    fn report(mut self) -> Result<Report, Error> {
        let mut line = Vec::new();
        if let Some(stdout) = self.0.stdout.take() {
            let read = stdout.take(MAX_REPORT + 1).read_to_end(&mut line);
            read.map_err(|source| Error::Start {
                action: "read from",
                source,
            })?;
        }
        if line.len() as u64 > MAX_REPORT {
            return Err(Error::Died {
                status: "its report is too long".into(),
                killed: false,
            });
        }
        let status = self.0.wait().map_err(|source| Error::Start {
            action: "wait for",
            source,
        })?;
        match serde_json::from_slice(&line) {
            Ok(Report::Failed {
                message,
                transient,
                corrupt,
                no_space,
            }) => {
                let class = match (transient, corrupt) {
                    (true, _) => Class::Transient,
                    (_, true) => Class::Corrupt,
                    _ => Class::Permanent,
                };
                Err(Error::Refused {
                    message,
                    class,
                    no_space,
                })
            }
            Ok(report) => Ok(report),
            Err(_) => {
                use std::os::unix::process::ExitStatusExt;
                Err(Error::Died {
                    status: status.to_string(),
                    killed: status.signal() == Some(libc::SIGKILL),
                })
            }
        }
    }
}

/// The child's `main`: `PROGRAM cage JOB`, to be called before anything else (no thread, no handler, no open file).
pub fn main() -> ExitCode {
    crate::sys::close_inherited();
    let stderr = io::stderr();
    let report = match work(stderr.as_fd()) {
        Ok(report) => report,
        Err(error) => {
            let class = error.class();
            Report::Failed {
                message: error.to_string(),
                transient: class == Class::Transient,
                corrupt: class == Class::Corrupt,
                no_space: matches!(error, Error::Refused { no_space: true, .. }),
            }
        }
    };
    let line = serde_json::to_vec(&report).unwrap_or_default();
    // Nobody listens any more: then nobody needs the answer.
    match io::stdout().write_all(&line).and_then(|()| io::stdout().flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

fn work(work: BorrowedFd<'_>) -> Result<Report, Error> {
    let failed = |action| move |source: io::Error| Error::Start { action, source };
    let job = std::env::args_os()
        .nth(2)
        .and_then(|arg| arg.into_string().ok())
        .unwrap_or_default();
    let job: Job = (job.len() <= MAX_JOB)
        .then(|| serde_json::from_str(&job).ok())
        .flatten()
        .ok_or_else(|| Error::Refused {
            message: format!("`{VERB}` is started by the program itself, not by hand"),
            class: Class::Permanent,
            no_space: false,
        })?;
    limit(rustix::process::Resource::Cpu, job.seconds()).map_err(failed("confine"))?;
    let (sources, writes): (&[PathBuf], _) = match &job {
        Job::Unpack { encoding, .. } => (encoding.sources(), true),
        Job::Check | Job::Regenerate => (&[], false),
    };
    let missing = confine_to(work, writes, sources).map_err(failed("confine"))?;
    let refused = |e| Error::of(&e);
    match &job {
        Job::Unpack { encoding, limits } => {
            // Modes are exactly what the layer says.
            rustix::process::umask(rustix::fs::Mode::empty());
            let summary = unpack::unpack(io::stdin().lock(), encoding, limits, work).map_err(refused)?;
            Ok(Report::Done { summary, missing })
        }
        Job::Check => unpack::check(work).map(Report::Checked).map_err(refused),
        Job::Regenerate => {
            let out = io::stdin()
                .as_fd()
                .try_clone_to_owned()
                .map_err(failed("prepare"))?;
            let made = unpack::regenerate(work, &mut File::from(out)).map_err(refused)?;
            Ok(Report::Regenerated(made))
        }
    }
}

fn limit(resource: rustix::process::Resource, most: u64) -> io::Result<()> {
    let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let limit = Some(most.min(hard));
    let limit = rustix::process::Rlimit {
        current: limit,
        maximum: limit,
    };
    Ok(rustix::process::setrlimit(resource, limit)?)
}

/// Gives up everything that a child of the cage does not need, for good, and says what this kernel could not take away:
/// afterwards the process may write beneath `work`, read beneath `sources`, use what is open, and nothing else.
pub fn confine(work: BorrowedFd<'_>, sources: &[PathBuf]) -> io::Result<Vec<String>> {
    confine_to(work, true, sources)
}

/// As [`confine`]; where it does not write, `work` too may only be read.
fn confine_to(work: BorrowedFd<'_>, writes: bool, sources: &[PathBuf]) -> io::Result<Vec<String>> {
    use rustix::process::{DumpableBehavior, Resource, Signal};
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    for (resource, most) in [
        (Resource::Core, 0),
        (Resource::Nofile, OPEN_FILES),
        (Resource::As, ADDRESS_SPACE),
        (Resource::Nproc, 0),
    ] {
        limit(resource, most)?;
    }
    rustix::thread::set_no_new_privs(true)?;
    // Where root unpacks, the files' owner is all that is needed of root.
    let none = rustix::thread::CapabilitySet::empty();
    let none = rustix::thread::CapabilitySets {
        effective: none,
        permitted: none,
        inheritable: none,
    };
    rustix::thread::set_capabilities(None, none)?;
    let mut missing = Vec::new();
    missing.extend(restrict_paths(work, writes, sources)?.map(str::to_owned));
    if !crate::sys::install_seccomp()? {
        missing.push(NO_SECCOMP.to_owned());
    }
    Ok(missing)
}

const NO_LANDLOCK: &str = "landlock, which this kernel does not have";
const OLD_LANDLOCK: &str = "landlock, of which this kernel has only the first version, under which no layer with hard links can be unpacked";
const NO_SECCOMP: &str = "seccomp, which this kernel does not have for this architecture";

/// What a cage on this kernel would have to do without, in words; changes nothing in this process.
pub fn missing() -> Vec<&'static str> {
    let seccomp = (!crate::sys::has_seccomp()).then_some(NO_SECCOMP);
    missing_landlock().into_iter().chain(seccomp).collect()
}

fn missing_landlock() -> Option<&'static str> {
    use landlock::{ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr};
    let has = |abi| {
        let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
        let ruleset = ruleset.handle_access(AccessFs::from_all(abi));
        ruleset.and_then(Ruleset::create).is_ok()
    };
    // Hard links between directories need the second version: with the first, a domain could not unpack.
    match () {
        () if has(ABI::V2) => None,
        () if has(ABI::V1) => Some(OLD_LANDLOCK),
        () => Some(NO_LANDLOCK),
    }
}

/// Puts a Landlock domain around this process: `work` to be written in, `sources` to be read. What is missing, where that cannot be.
fn restrict_paths(
    work: BorrowedFd<'_>,
    writes: bool,
    sources: &[PathBuf],
) -> io::Result<Option<&'static str>> {
    use landlock::{
        ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
        RulesetCreatedAttr, RulesetStatus, Scope,
    };
    if let Some(missing) = missing_landlock() {
        return Ok(Some(missing));
    }
    let beneath = AccessFs::from_file(ABI::V3) | AccessFs::ReadDir | AccessFs::RemoveFile | AccessFs::Refer;
    let beneath = beneath | AccessFs::MakeDir | AccessFs::MakeReg | AccessFs::MakeSym | AccessFs::MakeFifo;
    let beneath = (beneath | AccessFs::MakeChar) & !AccessFs::Execute;
    let reads = AccessFs::ReadFile | AccessFs::ReadDir;
    let beneath = if writes { beneath } else { reads };
    let mut ruleset = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI::V5))
        .and_then(|ruleset| ruleset.handle_access(AccessNet::from_all(ABI::V5)))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(ABI::V6)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rule(PathBeneath::new(work, beneath)))
        .map_err(io::Error::other)?;
    for source in sources {
        let tree = File::open(source)?;
        ruleset = ruleset
            .add_rule(PathBeneath::new(tree, reads))
            .map_err(io::Error::other)?;
    }
    let status = ruleset.restrict_self().map_err(io::Error::other)?;
    Ok((status.ruleset == RulesetStatus::NotEnforced).then_some(NO_LANDLOCK))
}
