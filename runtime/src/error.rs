//! The errors of this crate: each becomes one line on stderr and an exit status.

use std::io;

/// What went wrong, with the object it went wrong for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The command line asks for something that cannot be meant.
    #[error("{0}")]
    Usage(String),
    /// A field of `config.json` that is malformed, hostile, or cannot be honoured.
    #[error("config.json: {field}: {reason}")]
    Config {
        /// The field, dotted, as in `linux.seccomp.defaultAction`.
        field: String,
        /// Why it is refused.
        reason: String,
    },
    /// No container of this name below the root directory.
    #[error("container {0}: does not exist")]
    NotFound(String),
    /// A container of this name is there already.
    #[error("container {0}: already exists")]
    Exists(String),
    /// The verb is not allowed in the container's state.
    #[error("container {id}: cannot {verb} a container that is {status}")]
    Status {
        /// The container.
        id: String,
        /// The refused verb.
        verb: &'static str,
        /// The state it is in.
        status: &'static str,
    },
    /// A system call failed.
    #[error("{what}: {source}")]
    Io {
        /// The object and the operation.
        what: String,
        /// The cause.
        source: io::Error,
    },
    /// A state file that cannot be read: damaged, or written by a newer version.
    #[error("{0}")]
    Corrupt(String),
    /// A process of the launch reported this: the line, and the exit status it asks for.
    #[error("{line}")]
    Launch {
        /// 126 (found, not executable), 127 (not found) or 1.
        code: u8,
        /// The whole line.
        line: String,
    },
}

/// How a caller that retries should read an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The same call may succeed later.
    Transient,
    /// The same call fails again.
    Permanent,
    /// Stored data is damaged.
    Corrupt,
}

impl Error {
    /// Shorthand for a refused field of `config.json`.
    pub(crate) fn config(field: impl Into<String>, reason: impl Into<String>) -> Self {
        Self::Config {
            field: field.into(),
            reason: reason.into(),
        }
    }

    /// How a caller that retries should read this error.
    pub fn class(&self) -> Class {
        match self {
            Self::Corrupt(_) => Class::Corrupt,
            Self::Io { source, .. } => match source.kind() {
                io::ErrorKind::OutOfMemory
                | io::ErrorKind::StorageFull
                | io::ErrorKind::WouldBlock
                | io::ErrorKind::TimedOut => Class::Transient,
                _ => Class::Permanent,
            },
            _ => Class::Permanent,
        }
    }

    /// The exit status of the command that fails with this error.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Launch { code, .. } => *code,
            _ => 1,
        }
    }
}

/// Adds the object and the operation to the error of a system call.
pub(crate) trait Context<T> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T, Error> {
        self.map_err(|e| Error::Io {
            what: what().into(),
            source: e.into(),
        })
    }
}
