//! A place to run Wherry in as an ordinary user: binaries that the user can read, directories that are its own, and
//! an end that leaves nothing behind.
//!
//! Run as root, everything runs as the user `wherry-test` (`tests/setup` makes it); run as an ordinary user, as that
//! user. Nothing is ever run as root and called rootless.

use rustix::fs::{Gid, Mode, Uid};
use rustix::process::{Pid, Signal};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{Error, Result};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

/// The user that root's tests run as.
const ORDINARY_USER: &str = "wherry-test";
/// The programs that a stage of `wherry` holds.
const PROGRAMS: &[&str] = &["wherry", "wherry-runtime", "tracer", "escape"];

/// The ordinary user, when it is not the one that runs the test.
#[derive(Debug, Clone, Copy)]
struct User {
    uid: u32,
    gid: u32,
}

/// A temporary place with binaries and a home; dropping it ends every process that was started there.
#[derive(Debug)]
pub struct Stage {
    directory: PathBuf,
    user: Option<User>,
}

impl Stage {
    /// Sets the stage. The binaries come from `WHERRY_BIN_DIR`.
    pub fn new() -> Result<Self> {
        Self::with(PROGRAMS)
    }

    /// A stage that holds these programs of `WHERRY_BIN_DIR` only.
    pub fn with(names: &[&str]) -> Result<Self> {
        let programs = std::env::var_os("WHERRY_BIN_DIR").ok_or_else(|| {
            Error::other("WHERRY_BIN_DIR is not set: run this through `make demo` or `make test`")
        })?;
        let user = if rustix::process::getuid().is_root() {
            Some(ordinary_user()?)
        } else {
            None
        };
        let directory = tempfile::Builder::new().prefix("wherry-stage-").tempdir()?.keep();
        let stage = Self { directory, user };
        fs::set_permissions(&stage.directory, fs::Permissions::from_mode(0o755))?;
        let bin = stage.directory.join("bin");
        fs::create_dir(&bin)?;
        for program in names {
            let from = Path::new(&programs).join(program);
            fs::copy(&from, bin.join(program))
                .map_err(|error| Error::other(format!("{}: {error}", from.display())))?;
            fs::set_permissions(bin.join(program), fs::Permissions::from_mode(0o755))?;
        }
        stage.private_directory("home")?;
        stage.private_directory("run")?;
        Ok(stage)
    }

    /// Where everything lies.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// A program of the stage.
    pub fn program(&self, name: &str) -> PathBuf {
        self.directory.join("bin").join(name)
    }

    /// The user id that commands run as.
    pub fn uid(&self) -> u32 {
        self.user
            .map_or_else(|| rustix::process::getuid().as_raw(), |user| user.uid)
    }

    /// A new directory that belongs to the ordinary user alone.
    pub fn private_directory(&self, name: &str) -> Result<PathBuf> {
        let path = self.directory.join(name);
        fs::DirBuilder::new().mode(0o700).create(&path)?;
        self.give(&path)?;
        Ok(path)
    }

    /// Makes the ordinary user the owner of what the test made.
    pub fn give(&self, path: &Path) -> Result<()> {
        if let Some(user) = self.user {
            rustix::fs::chown(path, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(user.gid)))?;
        }
        Ok(())
    }

    /// Writes a file of the ordinary user, whole or not at all: temporary name, then rename.
    pub fn write(&self, path: &Path, text: &str) -> Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.new"));
        fs::write(&temporary, text)?;
        self.give(&temporary)?;
        fs::rename(temporary, path)
    }

    /// A command as the ordinary user, in an environment of the stage's own.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env_clear()
            .env(
                "PATH",
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            )
            .env("HOME", self.directory.join("home"))
            .env("XDG_RUNTIME_DIR", self.directory.join("run"))
            .env("LANG", "C.UTF-8")
            .current_dir(self.directory.join("home"))
            .stdin(Stdio::null());
        if let Some(user) = self.user {
            command.uid(user.uid).gid(user.gid);
        }
        command
    }

    /// `wherry --root ROOT ARGS...` as the ordinary user.
    pub fn wherry(&self, root: &Path, args: &[&str]) -> Command {
        let mut command = self.command(self.program("wherry"));
        command.arg("--root").arg(root).args(args);
        command
    }

    /// Runs `wherry` to its end.
    pub fn run(&self, root: &Path, args: &[&str]) -> Result<Output> {
        self.wherry(root, args).output()
    }

    /// Runs `wherry` to its end, which must be good; its standard output without the last line end.
    pub fn must(&self, root: &Path, args: &[&str]) -> Result<String> {
        let output = self.run(root, args)?;
        if !output.status.success() {
            let text = String::from_utf8_lossy(&output.stderr).trim_end().to_owned();
            return Err(Error::other(format!(
                "wherry {}: {}: {text}",
                args.join(" "),
                output.status
            )));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
    }

    /// Starts a command that runs on; its output goes to `NAME.log` in the stage.
    pub fn start(&self, name: &str, mut command: Command) -> Result<Process> {
        let path = self.directory.join(format!("{name}.log"));
        let log = File::options().create(true).append(true).open(&path)?;
        crate::kernel::die_with_parent(&mut command);
        let child = command.stdout(log.try_clone()?).stderr(log).spawn()?;
        Ok(Process {
            child,
            name: name.to_owned(),
            log: path,
        })
    }

    /// The processes of this stage: by the paths on their command lines, and by the file systems that they see.
    pub fn processes(&self) -> Vec<i32> {
        let directory = self.directory.as_os_str().as_encoded_bytes();
        let mut found = Vec::new();
        for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            if pid == rustix::process::getpid().as_raw_nonzero().get() {
                continue;
            }
            let mentions = |file: &str| {
                let bytes = fs::read(entry.path().join(file)).unwrap_or_default();
                bytes.windows(directory.len()).any(|window| window == directory)
            };
            if mentions("cmdline") || mentions("mountinfo") {
                found.push(pid);
            }
        }
        found
    }

    /// Ends every process of this stage and waits until they are gone.
    pub fn kill_all(&self) {
        for _ in 0..100 {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            for pid in left {
                if let Some(pid) = Pid::from_raw(pid) {
                    let _ = rustix::process::kill_process(pid, Signal::KILL);
                }
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.kill_all();
        if std::env::var_os("WHERRY_KEEP_STAGE").is_some() {
            eprintln!("kept: {}", self.directory.display());
        } else {
            remove_tree(&self.directory);
        }
    }
}

/// Removes a tree in which directories may be closed even to their owner (overlay work directories are).
pub fn remove_tree(path: &Path) {
    if fs::remove_dir_all(path).is_ok() {
        return;
    }
    open_directories(path);
    let _ = fs::remove_dir_all(path);
}

fn open_directories(path: &Path) {
    let _ = rustix::fs::chmod(path, Mode::RWXU);
    for entry in fs::read_dir(path).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            open_directories(&entry.path());
        }
    }
}

fn ordinary_user() -> Result<User> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let user = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        let gid = fields.next()?.parse().ok()?;
        (name == ORDINARY_USER).then_some(User { uid, gid })
    });
    user.ok_or_else(|| {
        Error::other(format!(
            "there is no user {ORDINARY_USER}: run tests/setup as root"
        ))
    })
}

/// A program that runs on; dropping it kills it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Its process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).unwrap_or(-1)
    }

    /// What it has written so far.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log).unwrap_or_default()).into_owned()
    }

    /// SIGKILL, and waits for the end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// A signal, and waits for the end.
    pub fn end(&mut self, signal: Signal, patience: Duration) -> Result<ExitStatus> {
        if let Some(pid) = Pid::from_raw(self.pid()) {
            rustix::process::kill_process(pid, signal)?;
        }
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > end {
                return Err(Error::other(format!("{} did not end in {patience:?}", self.name)));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// The exit status when it has ended, which most of these never should.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Asks every few milliseconds until there is a value. The error says what was waited for.
pub fn wait_for<T>(what: &str, patience: Duration, mut ask: impl FnMut() -> Option<T>) -> Result<T> {
    let end = Instant::now() + patience;
    loop {
        if crate::kernel::interrupted() {
            return Err(Error::other("interrupted"));
        }
        if let Some(value) = ask() {
            return Ok(value);
        }
        if Instant::now() > end {
            return Err(Error::other(format!(
                "{what}: not within {} s",
                patience.as_secs()
            )));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A loopback port that is free now.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// Says loudly that a test cannot run on this machine, so that the summary counts it.
pub fn skip(test: &str, lacking: &str) {
    eprintln!("SKIPPED: {test}: {lacking}");
    if let Some(path) = std::env::var_os("WHERRY_SKIP_LOG")
        && let Ok(mut log) = File::options().append(true).create(true).open(path)
    {
        use std::io::Write as _;
        let _ = writeln!(log, "{test}: {lacking}");
    }
}
