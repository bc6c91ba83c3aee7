//! One call of the OCI runtime: a child process whose last line on standard error is its reason to fail.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitStatus};

use super::poll::Source;
use super::settings::Settings;
use super::sys;

/// How long `create` and `start` may take: hooks run in them and images are mounted, on slow cards too. A runtime that is
/// stuck longer must not keep whoever started the container waiting.
const START_TIMEOUT: Duration = Duration::from_secs(120);

/// How long `delete` may take. Hooks run in it; a monitor must not stay for ever because one of them does.
const DELETE_TIMEOUT: Duration = Duration::from_secs(10);

/// What is kept of a runtime's standard error: more than any line that could be shown.
const MAX_TEXT: usize = 4096;

/// The verbs that a monitor uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// `delete --force` of what a killed monitor has left behind.
    Clear,
    /// `create`.
    Create,
    /// `start`.
    Start,
    /// `delete`.
    Delete,
    /// `delete --force` after a failure.
    DeleteForce,
}

/// A verb that is running.
#[derive(Debug)]
pub(crate) struct Verb {
    pub(crate) kind: Kind,
    pub(crate) pid: Pid,
    /// The read end of its standard error, where that is not the container's.
    pub(crate) errors: Option<Source>,
    pub(crate) deadline: Option<Instant>,
    allowed: Duration,
    text: Vec<u8>,
}

/// Standard input, output and error of a verb.
pub(crate) type Three = [Stdio; 3];

impl Verb {
    /// Starts a verb. `directory` is the container's directory, absolute; `console` is passed to `create`.
    pub(crate) fn start(
        settings: &Settings,
        directory: &Path,
        kind: Kind,
        console: Option<&Path>,
        [stdin, stdout, stderr]: Three,
        errors: Option<Source>,
    ) -> Result<Self, String> {
        let mut command = Command::new(&settings.runtime);
        command.arg("--root").arg(&settings.runtime_root);
        match kind {
            Kind::Create => {
                command
                    .arg("create")
                    .arg("--bundle")
                    .arg(directory.join(&settings.bundle));
                command.arg("--pid-file").arg(directory.join(PID_FILE));
                if let Some(console) = console {
                    command.arg("--console-socket").arg(console);
                }
            }
            Kind::Start => {
                command.arg("start");
            }
            Kind::Delete => {
                command.arg("delete");
            }
            Kind::Clear | Kind::DeleteForce => {
                command.arg("delete").arg("--force");
            }
        }
        command
            .arg(&settings.id)
            .stdin(stdin)
            .stdout(stdout)
            .stderr(stderr);
        sys::unblock_signals_in(&mut command);
        let child = command.spawn();
        let pid = child
            .map_err(|error| format!("cannot run {}: {error}", settings.runtime.display()))
            .map(|child| i32::try_from(child.id()).ok().and_then(Pid::from_raw))?
            .ok_or_else(|| "the runtime has no process id".to_owned())?;
        let allowed = match kind {
            Kind::Create | Kind::Start => START_TIMEOUT,
            Kind::Clear | Kind::Delete | Kind::DeleteForce => DELETE_TIMEOUT,
        };
        Ok(Self {
            kind,
            pid,
            errors,
            deadline: Some(Instant::now() + allowed),
            allowed,
            text: Vec::new(),
        })
    }

    /// Takes what the runtime has said; what is beyond `MAX_TEXT` is dropped from the front.
    pub(crate) fn hear(&mut self, bytes: &[u8]) {
        let bytes = &bytes[bytes.len().saturating_sub(MAX_TEXT)..];
        let surplus = (self.text.len() + bytes.len()).saturating_sub(MAX_TEXT);
        self.text.drain(..surplus);
        self.text.extend_from_slice(bytes);
    }

    /// Everything that the runtime has said.
    pub(crate) fn text(&self) -> &[u8] {
        &self.text
    }

    /// Ends the verb at once.
    pub(crate) fn kill(&self) {
        // Not reaped yet, so the number is still its own.
        let _ = rustix::process::kill_process(self.pid, Signal::KILL);
    }

    /// `Ok`, or the runtime's exit code and its reason in one line.
    pub(crate) fn verdict(&self, status: WaitStatus) -> Result<(), (u8, String)> {
        let code = exit_code(status);
        if code == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&self.text);
        let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
        let reason = match (line, status.terminating_signal()) {
            // Its deadline is taken away when it is killed for it.
            (_, Some(_)) if self.deadline.is_none() => {
                format!("{} did not end within {} s", self.name(), self.allowed.as_secs())
            }
            (_, Some(signal)) => format!("{} was ended by signal {signal}", self.name()),
            (Some(line), None) => line.strip_prefix("wherry-runtime: ").unwrap_or(line).to_owned(),
            (None, None) => format!("{} ended with code {code} and no reason", self.name()),
        };
        Err((u8::try_from(code).unwrap_or(1), reason))
    }

    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Create => "runtime create",
            Kind::Start => "runtime start",
            Kind::Clear | Kind::Delete | Kind::DeleteForce => "runtime delete",
        }
    }
}

/// The file in the container's directory that `create` writes the process id of init to.
pub(crate) const PID_FILE: &str = "pid";

/// The code of an ended process as shells and docker show it: 128 and the signal's number for a killed one.
pub(crate) fn exit_code(status: WaitStatus) -> i32 {
    status
        .exit_status()
        .or(status.terminating_signal().map(|signal| 128 + signal))
        .unwrap_or(1)
}
