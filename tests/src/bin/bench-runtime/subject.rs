//! What is measured, and how one call of it is timed.

use rustix::event::{PollFd, PollFlags};
use rustix::process::{Pid, PidfdFlags};
use std::fs::File;
use std::io::{Error, Result};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use wherry_tests::kernel;

/// One runtime with one bundle.
pub(crate) struct Subject {
    /// What the table calls it.
    pub(crate) name: &'static str,
    /// The program and its options before the verb.
    pub(crate) program: Vec<String>,
    /// The directory of its bundle; of the floor, nothing is read from it.
    pub(crate) bundle: PathBuf,
    /// Of the floor: the whole command line. It has one verb only.
    pub(crate) floor: bool,
}

/// What one call took.
#[derive(Clone, Copy, Default)]
pub(crate) struct Call {
    /// From before the fork until its end.
    pub(crate) wall: Duration,
    /// Largest resident set in kilobytes, of the process or of one that it waited for.
    pub(crate) resident: u64,
}

impl Call {
    /// Both, one after the other.
    pub(crate) fn and(self, other: Self) -> Self {
        Self {
            wall: self.wall + other.wall,
            resident: self.resident.max(other.resident),
        }
    }
}

impl Subject {
    /// Runs one verb to its good end.
    pub(crate) fn call(&self, words: &[&str]) -> Result<Call> {
        let (program, options) = self
            .program
            .split_first()
            .ok_or_else(|| Error::other("no program"))?;
        let errors = self.bundle.join("errors");
        let mut command = Command::new(program);
        command
            .args(options)
            .args(words)
            .current_dir(&self.bundle)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&errors)?);
        let start = Instant::now();
        let child = command.spawn()?;
        let (status, resident) = kernel::wait_measured(Pid::from_child(&child))?;
        let wall = start.elapsed();
        if status.success() {
            return Ok(Call { wall, resident });
        }
        let text = std::fs::read_to_string(&errors).unwrap_or_default();
        Err(Error::other(format!(
            "{} {}: {status}: {}",
            self.name,
            words.join(" "),
            text.trim_end()
        )))
    }

    /// `run`, from its start to the end of the container.
    pub(crate) fn run(&self) -> Result<Call> {
        if self.floor {
            return self.call(&[]);
        }
        self.call(&["run", "b"])
    }

    /// `create`, `start` and, when the program has ended, `delete`.
    pub(crate) fn steps(&self) -> Result<[Call; 3]> {
        let create = self.call(&["create", "--pid-file", "pid", "b"])?;
        let pid: i32 = std::fs::read_to_string(self.bundle.join("pid"))?
            .trim()
            .parse()
            .map_err(|_| Error::other(format!("{}: no number in the pid file", self.name)))?;
        let init =
            Pid::from_raw(pid).and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()).ok());
        let start = self.call(&["start", "b"])?;
        if let Some(init) = init {
            rustix::event::poll(&mut [PollFd::new(&init, PollFlags::IN)], None)?;
        }
        let delete = self.call(&["delete", "--force", "b"])?;
        Ok([create, start, delete])
    }

    /// A container that sleeps, for [`Self::exec`].
    pub(crate) fn sleep(&self) -> Result<()> {
        self.call(&["create", "s"])?;
        self.call(&["start", "s"]).map(drop)
    }

    /// One program in the container that sleeps.
    pub(crate) fn exec(&self) -> Result<Call> {
        self.call(&["exec", "s", "/bin/true"])
    }

    /// The end of the container that sleeps.
    pub(crate) fn wake(&self) -> Result<()> {
        self.call(&["delete", "--force", "s"]).map(drop)
    }
}

/// Writes a bundle's configuration.
pub(crate) fn write(bundle: &Path, config: &serde_json::Value) -> Result<()> {
    std::fs::create_dir_all(bundle)?;
    std::fs::write(bundle.join("config.json"), config.to_string())
}
