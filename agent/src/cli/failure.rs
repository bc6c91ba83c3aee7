//! What a verb fails with: one line and an exit code.

use std::error::Error;
use std::fmt::Display;
use std::io::Write;
use std::process::ExitCode;

use super::registry;
use crate::causes;
use crate::container;

/// One line for standard error, and what the process exits with.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) line: String,
    pub(super) code: u8,
}

impl Failure {
    /// A failure of a verb's own.
    pub(super) fn new(line: impl Into<String>) -> Self {
        Self {
            line: line.into(),
            code: 1,
        }
    }

    /// The error and its causes in one line.
    pub(super) fn of(error: &dyn Error) -> Self {
        Self::new(causes::line(error))
    }

    /// `what: error`.
    pub(super) fn about(what: impl Display, error: &dyn Error) -> Self {
        let Self { line, code } = Self::of(error);
        Self {
            line: format!("{what}: {line}"),
            code,
        }
    }

    /// In `run` everything that is wherry's own failure exits with 125, as with docker.
    pub(super) fn of_run(self) -> Self {
        Self {
            code: if self.code == 1 { 125 } else { self.code },
            ..self
        }
    }
}

impl From<container::Error> for Failure {
    fn from(error: container::Error) -> Self {
        let code = match &error {
            container::Error::Runtime { code: 126, .. } => 126,
            container::Error::Runtime { code: 127, .. } => 127,
            _ => 1,
        };
        Self {
            code,
            ..Self::of(&error)
        }
    }
}

impl From<wherry_images::store::Error> for Failure {
    fn from(error: wherry_images::store::Error) -> Self {
        let Self { line, code } = Self::of(&error);
        Self {
            line: line + registry::store_advice(&error),
            code,
        }
    }
}

macro_rules! from {
    ($($error:ty),+) => {
        $(impl From<$error> for Failure {
            fn from(error: $error) -> Self {
                Self::of(&error)
            }
        })+
    };
}

from!(
    crate::assemble::Error,
    container::Invalid,
    crate::devices::Error,
    wherry_images::reference::Error
);

/// Writes to standard output. A reader that has gone away is not a failure: `wherry ps | head` ends well.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Failure::about("cannot write to standard output", &error))
        }
        _ => Ok(()),
    }
}

/// Does the same to each of several containers and prints the names of those that worked, as docker does; the others
/// get a line each. Fails if one of them failed.
pub(super) fn for_each(
    first: &String,
    more: &[String],
    mut act: impl FnMut(&str) -> Result<(), Failure>,
) -> Result<ExitCode, Failure> {
    let mut failed = None;
    for name in std::iter::once(first).chain(more) {
        match act(name) {
            Ok(()) => print(&format!("{name}\n"))?,
            Err(failure) => {
                // The last one is told by whoever prints the returned failure.
                if let Some(Failure { line, .. }) = failed.replace(failure) {
                    let _ = writeln!(std::io::stderr(), "wherry: {line}");
                }
            }
        }
    }
    failed.map_or(Ok(ExitCode::SUCCESS), Err)
}
